"""The desk: who is who, and every answer that is not about packets.

It greets nodes that it knows, asks strangers for their credentials, lists those who want
to join while joining is permitted, and hands out credentials to those who ask. Nothing it
hears here is believed before its signature or its MAC was checked.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gateway.fleet import Fleet
from gateway.post import Post
from qis_edge.clock import Clock
from qis_edge.core.credential import NODE, RevocationList
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.messages import (
    CredentialMessage,
    EnrolmentMessage,
    Greeting,
    Hello,
    Message,
    Position,
    Request,
    RevocationMessage,
    Wanted,
)
from qis_edge.core.receipt import MacKeys, ReceiptMessage, mac_keys
from qis_edge.links.base import Link, Received, down
from qis_edge.worker import Disk

log = logging.getLogger(__name__)

#: Pairs whose MAC keys are remembered: computing them takes two curve operations.
MAX_PAIRS = 4096
#: Unauthenticated asks of one key that are answered: a burst, and one more per so many
#: seconds. What authenticates itself is not limited here.
BURST, EVERY = 32, 2.0
#: Keys whose asks are counted, and nodes of which it is known that they were heard.
MAX_ASKERS, MAX_HEARD = 4096, 16_384
#: The same for all strangers together: a flood of made-up keys must not crowd out answers.
STRANGERS_BURST, STRANGERS_EVERY = 256, 0.02
#: A node that sends packets and has asked for nothing so many seconds after, asked before
#: this gateway was started: it is asked who it is, and then asks anew.
NUDGE_AFTER = 5.0

_ALL = (math.inf, 1.0)


@dataclass(frozen=True, slots=True)
class Rates:
    """How much is answered of what anybody can say, or say again. Each is how many at once,
    and seconds until one more.

    :param asks: of one key; all together, where nobody says who asks.
    :param strangers: of all keys together that we do not know.
    :param each: hellos and requests in the name of one key.
    :param all: and of all together.
    :param nudge: seconds, as ``NUDGE_AFTER``.
    """

    asks: tuple[float, float]
    strangers: tuple[float, float]
    each: tuple[float, float]
    all: tuple[float, float]
    nudge: float

    @classmethod
    def of(cls, link: Link) -> Rates:
        """Where an answer takes a second of a channel that all share, few are given: whatever
        is asked, a twentieth of the time or so goes into answers in the long run."""
        if not link.shared:
            strangers = STRANGERS_BURST, STRANGERS_EVERY
            return cls((BURST, EVERY), strangers, _ALL, _ALL, NUDGE_AFTER)
        patience = link.cadence.patience
        rarely = patience / 5
        return cls((24, 2 * rarely), (8, rarely), (4, rarely), (24, rarely / 2), patience)


class Limiter:
    """A bucket of tokens for each key, the least recent forgotten."""

    def __init__(self, burst: float, every: float, most: int) -> None:
        self._burst = burst
        self._every = every
        self._most = most
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def allows(self, key: bytes, now: float) -> bool:
        """Take a token of this key; False where there is none."""
        tokens, since = self._buckets.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) / self._every)
        allowed = tokens >= 1
        self._buckets[key] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return allowed


class Pairs:
    """The MAC keys that a gateway shares with each node whose credential it holds."""

    def __init__(self, identity: Identity, fleet: Fleet) -> None:
        self._identity = identity
        self._fleet = fleet
        self._known: OrderedDict[bytes, MacKeys] = OrderedDict()

    def __call__(self, kid: bytes) -> MacKeys:
        """:raises Refused: UNKNOWN_KEY, SECRET."""
        keys = self._known.get(kid)
        if keys is None:
            credential = self._fleet.credential(kid)
            if credential is None:
                raise Refused(Reason.UNKNOWN_KEY, "kid", kid.hex())
            keys = mac_keys(self._identity, gateway=self._identity.public, node=credential.key)
            self._known[kid] = keys
            if len(self._known) > MAX_PAIRS:
                self._known.popitem(last=False)
        self._known.move_to_end(kid)
        return keys


class FleetDesk:
    """Answers for one gateway over one link.

    :param epoch: of the spool, with the unix second since which nodes are to send again.
    :param keys_of: the MAC keys shared with a node, by its kid; see :class:`Pairs`.
    :param request: is given requests whose MAC was checked.
    :param revoked: is given a revocation list that was news.
    :param link: the one that ``post`` is of.
    """

    def __init__(
        self,
        identity: Identity,
        fleet: Fleet,
        disk: Disk,
        link: Link,
        post: Post,
        clock: Clock,
        keys_of: Callable[[bytes], MacKeys],
        *,
        epoch: tuple[bytes, int],
        request: Callable[[Request], None],
        revoked: Callable[[RevocationList], None],
    ) -> None:
        self._identity = identity
        self._fleet = fleet
        self._disk = disk
        self._post = post
        self._clock = clock
        self._keys_of = keys_of
        self._epoch, self._since = epoch
        self._request = request
        self._revoked = revoked
        self._shared = link.shared
        rates = Rates.of(link)
        self._nudge_after = rates.nudge
        self._limiter = Limiter(*rates.asks, MAX_ASKERS)
        self._strangers = Limiter(*rates.strangers, 1)
        self._each = Limiter(*rates.each, MAX_ASKERS)
        self._all = Limiter(*rates.all, 1)
        #: Nodes heard since the start → when they are to be nudged, if at all.
        self._heard: OrderedDict[bytes, float | None] = OrderedDict()
        #: Nodes, and who would be one, that seem to listen here.
        self._present: OrderedDict[bytes, None] = OrderedDict()

    # - for the others of this gateway

    def node_key(self, kid: bytes) -> PublicKey:
        """The key of a node that may send packets now; a stranger is asked who it is.

        :raises Refused: UNKNOWN_KEY, REVOKED, EXPIRED, SCOPE.
        """
        try:
            return self._fleet.resolve(kid, self._clock.now(), NODE)
        except Refused as refusal:
            if refusal.reason in (Reason.UNKNOWN_KEY, Reason.EXPIRED, Reason.CHAIN):
                self._ask(kid)
            elif refusal.reason is Reason.REVOKED:
                self._tell_revocation(kid)
            raise

    def refused(self, kid: bytes | None, refusal: Refused) -> None:
        """Count a frame that claims to be of ``kid``."""
        self._fleet.refused(kid, refusal.reason)

    def accepted(self, kid: bytes, now: float, packets: int) -> None:
        """A node was heard, verified."""
        self._fleet.accepted(kid, now, packets)
        self._is_present(kid)
        if kid not in self._heard:
            self._hear(kid, time.monotonic() + self._nudge_after)

    def _hear(self, kid: bytes, nudge_at: float | None) -> None:
        self._heard[kid] = nudge_at
        if len(self._heard) > MAX_HEARD:
            self._heard.popitem(last=False)

    def _is_present(self, kid: bytes) -> None:
        self._present[kid] = None
        self._present.move_to_end(kid)
        if len(self._present) > MAX_HEARD:
            self._present.popitem(last=False)

    def present(self, kid: bytes) -> bool:
        """Whether this key, or somebody in its name, was heard over this link."""
        return kid in self._present

    def nudge(self, monotonic: float) -> None:
        """Ask those who have not asked for anything since this gateway was started."""
        due = [kid for kid, at in self._heard.items() if at is not None and monotonic >= at]
        for kid in due:
            self._heard[kid] = None
            self._post.answer(Wanted((kid,)).encode(), down(kid))

    def tell_chain(self, kid: bytes) -> None:
        """Show a node its own new credential."""
        self._send_chain(kid, kid)

    def tell_revocation(self, made: RevocationList, kids: Iterable[bytes]) -> None:
        """Tell these nodes of a new list; once, where all of them hear it."""
        for kid in kids:
            self._post.answer(RevocationMessage(made).encode(), down(kid))
            if self._shared:
                return

    # - messages

    async def handle(self, message: Message, received: Received) -> None:
        """Everything but packets.

        :raises Refused: it is not acceptable.
        :raises StoreError: it cannot be written down now.
        """
        match message:
            case Hello():
                self._hello(message, received)
            case Wanted():
                self._wanted(message, received)
            case CredentialMessage():
                await self._disk(self._fleet.add, message.raw, self._clock.now())
            case EnrolmentMessage():
                await self._enrolment(message, received)
            case Request():
                self._requested(message)
            case RevocationMessage():
                if await self._disk(self._fleet.apply, message.list.raw):
                    self._revoked(message.list)
            case ReceiptMessage() | Greeting() | Position() if self._shared:
                pass  # another gateway's
            case _:  # those are ours to say
                raise Refused(Reason.SCOPE, "message", f"{type(message).__name__} from a node")

    def _hello(self, hello: Hello, received: Received) -> None:
        if received.claimed is not None and received.claimed != hello.kid:
            raise Refused(Reason.TOPIC, "topic", "of another key")
        now = self._clock.now()
        self.node_key(hello.kid)
        self._is_present(hello.kid)
        self._limit(hello.kid, "hello")
        self._fleet.accepted(hello.kid, now, 0)
        if hello.revocation < self._fleet.revocation_number and not self._tell_revocation(
            hello.kid
        ):
            raise Refused(Reason.FLOODED, "hello")  # nothing goes to it before the list
        greeting = Greeting(
            self._identity.kid, int(now), self._epoch, self._since, self._fleet.revocation_number
        )
        key = self._keys_of(hello.kid).to_node
        self._post.greet(greeting.encode(key, hello.nonce), down(hello.kid))

    def _wanted(self, wanted: Wanted, received: Received) -> None:
        asker = received.claimed
        if asker is None:  # a radio: answered by broadcast, limited all together
            asker = b""
        if not self._shared and not self._limiter.allows(asker, time.monotonic()):
            raise Refused(Reason.FLOODED, "wanted")
        for kid in wanted.kids:
            self._show(kid, asker)

    async def _enrolment(self, message: EnrolmentMessage, received: Received) -> None:
        enrolment = message.enrolment
        kid = enrolment.key.kid
        if received.claimed is not None and received.claimed != kid:
            raise Refused(Reason.TOPIC, "topic", "of another key")
        try:
            self._fleet.resolve(kid, self._clock.now(), NODE)
        except Refused:
            if await self._disk(self._fleet.enrol, enrolment, self._clock.now()):
                log.info(
                    "node %s (%s) wants to join: qis-gateway approve %s",
                    kid.hex(),
                    enrolment.name,
                    kid.hex(),
                )
            self._is_present(kid)
        else:  # it was approved and does not know yet
            self._is_present(kid)
            self._show(kid, kid)

    def _requested(self, request: Request) -> None:
        if request.gateway != self._identity.kid:
            return  # for another gateway of this site
        self.node_key(request.kid)
        request.verify(self._keys_of(request.kid).to_gateway)
        self._hear(request.kid, None)
        self._is_present(request.kid)
        self._limit(request.kid, "request")
        self._request(request)

    def _limit(self, kid: bytes, what: str) -> None:
        """:raises Refused: FLOODED: who recorded this can say it again and again."""
        now = time.monotonic()
        if not (self._each.allows(kid, now) and self._all.allows(b"", now)):
            raise Refused(Reason.FLOODED, what)

    # - what goes out

    def _ask(self, kid: bytes) -> None:
        now = time.monotonic()
        if self._limiter.allows(kid, now) and self._strangers.allows(b"", now):
            self._post.answer(Wanted((kid,)).encode(), down(kid))

    def _show(self, kid: bytes, to: bytes) -> None:
        """Answer one who asks for a key's credentials.

        :raises Refused: FLOODED, on a shared link, where all askers are one.
        """
        costs = self._shared and self._fleet.credential(kid) is not None
        if costs and not self._limiter.allows(b"", time.monotonic()):
            raise Refused(Reason.FLOODED, "wanted")
        self._send_chain(kid, to)

    def _send_chain(self, kid: bytes, to: bytes) -> None:
        for raw in self._fleet.chain(kid):
            self._post.answer(raw, down(to))

    def _tell_revocation(self, kid: bytes) -> bool:
        """Whether it was told: not where somebody makes us say it again and again."""
        made = self._fleet.revocation
        if made is None or not self._limiter.allows(kid, time.monotonic()):
            return False
        self._post.answer(RevocationMessage(made).encode(), down(kid))
        return True
