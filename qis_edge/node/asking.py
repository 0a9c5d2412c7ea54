"""What a node says of its own accord, besides packets: hellos, requests for peers' packets,
and questions for credentials.

Each is said once when there is need, and again, ever more rarely, while no answer comes. A
request is made after each greeting, that is when a link has come up, when a gateway has
begun anew, and every few minutes; and whenever the situation changes. At most one to each
gateway is under way, so that a position is always known to answer it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from qis_edge.core.errors import LinkError, StoreCorrupt, StoreError
from qis_edge.core.identity import Identity
from qis_edge.core.messages import MAX_INTERESTS, NONCE_SIZE, Position, Request
from qis_edge.links.base import UP, Link
from qis_edge.node.gateways import Gateway, Gateways
from qis_edge.node.membership import Membership
from qis_edge.node.timekeeping import Timekeeper
from qis_edge.store import inbox as inboxes
from qis_edge.store.inbox import Inbox
from qis_edge.worker import Disk

log = logging.getLogger(__name__)

#: Packets that one answer to a request may bring.
REQUEST_LIMIT = 500
#: Hellos without a greeting after which nobody seems to be there.
HELLOS = 5
#: Seconds that a position waits at most for the credentials of packets before it.
CREDENTIALS_PATIENCE = 90.0
#: Seconds until something that the link or the disk did not take is tried again.
AGAIN = 1.0
#: Seconds between looks whether anybody still answers.
LOOK = 5.0

#: (fingerprint, leading bits that count), our own address first.
Interests = tuple[tuple[bytes, int], ...]


@dataclass(slots=True)
class _Request:
    """One gateway's.

    :param due: monotonic seconds at which to ask (again); ``None``: not before a greeting.
    :param scope: of the request that is under way.
    :param losses: of ours when it was made.
    :param position: its answer, and the keys of packets before it whose credentials are
        waited for.
    """

    due: float | None
    patience: float
    scope: bytes | None = None
    losses: int = 0
    position: Position | None = None
    waits: frozenset[bytes] = frozenset()


class Asking:
    """The asking half of a node, for one link.

    :param silent: whether nobody answers our packets.
    :param ungreeted: is told that nobody answers our hellos.
    """

    def __init__(
        self,
        link: Link,
        identity: Identity,
        gateways: Gateways,
        membership: Membership,
        inbox: Inbox,
        disk: Disk,
        clock: Timekeeper,
        *,
        silent: Callable[[], bool],
        ungreeted: Callable[[], None] = lambda: None,
    ) -> None:
        self._link = link
        self._identity = identity
        self._gateways = gateways
        self._membership = membership
        self._inbox = inbox
        self._disk = disk
        self._clock = clock
        self._silent = silent
        self._ungreeted = ungreeted
        self._interests: Interests = ()
        self._requests: dict[bytes, _Request] = {}
        self._poked = asyncio.Event()
        #: How many times packets that came could not be kept: no position that comes after
        #: one is taken.
        self.losses = 0

    def poke(self) -> None:
        """Something changed: look what is to be said."""
        self._poked.set()

    def hello(self) -> None:
        """Say hello now."""
        self._gateways.hello_soon()
        self.poke()

    # - what happens

    async def attend(self, interests: Interests) -> None:
        """Hear of these addresses from now on: the first is our own."""
        if interests == self._interests:
            return
        self._interests = interests
        await self._listen()
        for gateway in self._gateways.greeted(self._clock.known):
            self.request(gateway.kid)

    async def _listen(self) -> None:
        """Where only a part of an address counts, the gateway sends to us alone."""
        await self._link.listen(frozenset(where for where, bits in self._interests if bits == 256))

    def request(self, kid: bytes, *, anew: bool = False) -> None:
        """Ask this gateway for what is new, as soon as it has answered the last request.

        :param anew: it has forgotten that one.
        """
        known = self._requests.get(kid)
        if known is None or anew:
            known = self._requests[kid] = _Request(None, self._link.cadence.patience)
        if known.scope is None:
            known.due, known.patience = 0.0, self._link.cadence.patience
        self.poke()

    def forget(self, kid: bytes) -> None:
        """Nothing is expected of this gateway any more."""
        self._requests.pop(kid, None)

    async def answered(self, position: Position) -> None:
        """A gateway says how far its answer has come. If it answers no request, or packets
        before it are lost, it is passed over."""
        known = self._requests.get(position.kid)
        if known is None or known.scope is None or known.losses != self.losses:
            return
        known.position, known.waits = position, self._membership.parked
        if known.waits:
            known.due = time.monotonic() + CREDENTIALS_PATIENCE
        await self.settle()

    async def settle(self) -> None:
        """Take the positions whose packets have all been taken in, or given up."""
        parked = self._membership.parked
        for kid, known in list(self._requests.items()):
            if known.position is not None and not known.waits & parked:
                await self._take(kid, known, known.position)

    async def _take(self, kid: bytes, known: _Request, position: Position) -> None:
        assert known.scope is not None
        mark = inboxes.Position(kid, position.cursor, known.scope)
        again = not position.complete or known.scope != self._scope()
        known.position, known.scope, known.due = None, None, None
        try:
            await self._disk(self._inbox.put, [], now=int(self._clock.now()), position=mark)
        except StoreError:
            known.due = time.monotonic() + known.patience
            raise
        known.patience = self._link.cadence.patience
        if again:
            self.request(kid)

    def _scope(self) -> bytes:
        """Names the interests: a cursor is good for these only."""
        form = b"".join(address + bits.to_bytes(2) for address, bits in self._interests)
        return hashlib.sha256(form).digest()[:8]

    # - saying

    async def run(self) -> None:
        """Say what is due, for ever."""
        connects = 0
        while True:
            self._poked.clear()
            changed = asyncio.ensure_future(self._link.changed())
            try:
                if self._link.up and connects != self._link.stats.connects:
                    connects = self._link.stats.connects
                    cadence = self._gateways.cadence = self._link.cadence
                    self._membership.pace = cadence.pace
                    late = cadence.hello * os.urandom(1)[0] / 255 if cadence.jitter else 0.0
                    self._gateways.hello_soon(time.monotonic() + late)
                    self._requests.clear()  # what was under way is lost
                    await self._listen()
                await self._wait(changed, await self._say() if self._link.up else None)
            except StoreCorrupt:
                raise
            except StoreError:  # said already
                await asyncio.sleep(AGAIN)
            finally:
                changed.cancel()

    async def _wait(self, changed: asyncio.Future[None], until: float | None) -> None:
        poked = asyncio.ensure_future(self._poked.wait())
        timeout = None if until is None else max(0.0, until - time.monotonic())
        try:
            await asyncio.wait((changed, poked), timeout=timeout, return_when="FIRST_COMPLETED")
        finally:
            poked.cancel()

    async def _say(self) -> float:
        """Say what is due. Monotonic seconds of when to look again, at the latest."""
        now = time.monotonic()
        if self._silent():
            self._gateways.doubt(now)
        if now >= self._gateways.hello_at:
            if self._gateways.unanswered >= HELLOS:
                self._ungreeted()
            await self.send(self._gateways.hello(now, os.urandom(NONCE_SIZE)))
        if question := self._membership.question(now):
            await self.send(question)
        await self.settle()
        until = min(self._gateways.hello_at, self._membership.question_at, now + LOOK)
        for gateway in self._gateways.greeted(self._clock.known):
            known = self._requests.get(gateway.kid)
            if known is not None and known.due is not None and now >= known.due:
                await self._request(gateway, known)
            if known is not None and known.due is not None:
                until = min(until, known.due)
        return until

    async def _request(self, gateway: Gateway, known: _Request) -> None:
        known.position, known.scope = None, None
        if not self._interests or not self._membership.enrolled(self._clock.known):
            known.due = None
            return
        scope = self._scope()
        cursor = await self._disk(self._inbox.cursor, gateway.kid, scope)
        request = Request(
            self._identity.kid, gateway.kid, self._interests[:MAX_INTERESTS], cursor, REQUEST_LIMIT
        )
        now = time.monotonic()
        if not await self.send(request.encode(gateway.keys.to_gateway)):
            known.due = now + AGAIN
            return
        known.scope, known.losses = scope, self.losses
        known.due = now + known.patience
        known.patience = min(2 * known.patience, self._link.cadence.longest_patience)

    async def send(self, frame: bytes) -> bool:
        """Send if the link takes it now; whatever this is, it is said again in time."""
        try:
            await self._link.send(frame, UP)
        except LinkError as error:
            log.debug("not sent: %s", error)
            return False
        return True
