"""The uplink: from the outbox over a link into a gateway's custody.

Packets are made when they can be sent, and sent until a gateway's receipt says that it
holds them. The state machine is :class:`qis_edge.core.custody.Custody`; here it meets a
link, the outbox and the clock.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable, Sequence

from qis_edge.core import receipt as receipts
from qis_edge.core.custody import Custody, Pace
from qis_edge.core.errors import LinkError, Reason, Refused, StoreCorrupt, StoreError
from qis_edge.core.identity import Identity
from qis_edge.core.receipt import ReceiptMessage
from qis_edge.core.rows import Template
from qis_edge.links.base import UP, Link
from qis_edge.node.gateways import Gateway, Gateways
from qis_edge.node.timekeeping import Timekeeper
from qis_edge.store.forms import Answer, Queued, Settled
from qis_edge.store.outbox import Outbox
from qis_edge.worker import Disk

log = logging.getLogger(__name__)

#: Packets that are made in one commit.
AT_ONCE = 16
#: Seconds until something that the link or the disk did not take is tried again.
AGAIN = 1.0

#: (store, sequence)
Key = tuple[bytes, int]


class Uplink:
    """Sends what waits, over one link.

    :param pace: of the link.
    :param copies: how many gateways must hold a packet.
    """

    def __init__(
        self,
        link: Link,
        outbox: Outbox,
        disk: Disk,
        identity: Identity,
        gateways: Gateways,
        domain: Template,
        clock: Timekeeper,
        *,
        pace: Pace,
        copies: int,
    ) -> None:
        self.link = link
        self.custody: Custody[Key] = Custody(random.random, pace=pace, copies=copies)
        self.outbox = outbox
        self._disk = disk
        self._identity = identity
        self._gateways = gateways
        self._domain = domain
        self._clock = clock
        self._raw: dict[Key, bytes] = {}
        self._connects = 0
        self._poked = asyncio.Event()
        # The outbox is looked through for packets that were not offered here yet, page by
        # page; whoever wants it looked through again begins another round.
        self._old = True
        self._after: Queued | None = None
        self._round = 0
        # Some gateways hold packets, but not enough, for which there was no room here.
        self._untracked = False
        self._partly = self._partly_room()

    def poke(self) -> None:
        """Something changed: a new outcome, a receipt, a gateway that greeted."""
        self._poked.set()

    def start_over(self) -> None:
        """Look through the outbox again: it has packets that are not known here."""
        self._old, self._after, self._untracked = True, None, False
        self._round += 1
        self.poke()

    def lost(self, gateway: bytes) -> None:
        """What this gateway held counts no more; the outbox knows."""
        self.custody.forget_gateway(gateway, time.monotonic())
        self.start_over()

    # - sending

    async def run(self) -> None:
        """Send for ever."""
        while True:
            self._poked.clear()
            changed = asyncio.ensure_future(self.link.changed())
            try:
                await self._wait(changed, await self._step())
            except StoreCorrupt:
                raise
            except StoreError:  # said already
                await asyncio.sleep(AGAIN)
            finally:
                changed.cancel()

    async def _step(self) -> float | None:
        """Send what can be sent now. When to go on, if nothing happens: monotonic seconds."""
        now = time.monotonic()
        if not self.link.up or not self._gateways.greeted(self._clock.known):
            # Without a gateway there is nobody whose receipt we could check.
            self.custody.link_down(now)
            return None
        if self._connects != self.link.stats.connects:  # it was down meanwhile
            self._connects = self.link.stats.connects
            self.custody.link_down(now)
        self.custody.link_up(now)
        refilled = await self._refill()
        due = self.custody.due(time.monotonic(), self.link.room)
        for key in due:
            raw = self._raw.get(key)
            if raw is None:  # answered while the outbox was being looked through
                self.custody.withdraw(key)
                continue
            try:
                await self.link.send(raw, UP)
            except LinkError as error:
                log.debug("not sent: %s", error)
                return time.monotonic() + AGAIN
            self.custody.sent(key, time.monotonic())
        if refilled or due:
            return now
        # Whatever is due, without room only the link or a poke can change anything.
        return self.custody.next_deadline() if self.link.room else None

    async def _wait(self, changed: asyncio.Future[None], until: float | None) -> None:
        poked = asyncio.ensure_future(self._poked.wait())
        timeout = None if until is None else max(0.0, until - time.monotonic())
        try:
            await asyncio.wait(
                (changed, poked), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            poked.cancel()

    async def _refill(self) -> bool:
        """Offer custody what it has room for; whether there was something."""
        room = min(self.custody.room_for(), AT_ONCE)
        if room <= 0:
            return False
        if self._untracked and not self._old and 2 * self._partly_room() > self._partly:
            self.start_over()
        if self._old and await self._offer_old(room):
            return True
        made = await self._disk(self._pack, room)
        for one in made:
            self._offer(one)
        return bool(made)

    async def _offer_old(self, room: int) -> bool:
        current = self._round
        queued = await self._disk(self.outbox.unreceipted, room, self._after)
        if current == self._round:
            self._after = queued[-1] if queued else self._after
            self._old = len(queued) == room
        for one in queued:
            if one.holders and not self._partly_room():
                self._untracked = True
            else:
                self._offer(one)
        return bool(queued)

    def _partly_room(self) -> int:
        """How many more packets can be kept track of that some gateways hold."""
        copies = self.custody.copies
        return min((self.custody.room_for(held=n) for n in range(1, copies)), default=0)

    def _pack(self, room: int) -> list[Queued]:
        """In the disk's thread."""
        packets = self.outbox.pack(
            self._identity, limit=self.link.mtu, max_packets=room, domain=self._domain
        )
        queued = [self.outbox.packet(packet.store, packet.sequence) for packet in packets]
        return [one for one in queued if one is not None]

    def _offer(self, one: Queued) -> None:
        self._raw[one.key] = one.raw
        for key in self.custody.offer(one.key, one.priority, time.monotonic()):
            # There is no room for it now: the outbox brings it again.
            self._raw.pop(key, None)
            self.start_over()

    # - receipts

    async def receipted(self, messages: Sequence[ReceiptMessage]) -> list[Refused]:
        """Take in receipts; those whose MAC is no known gateway's change nothing. If they
        cannot be written down nothing changes either: gateways say them again when asked.

        :returns: why some were not believed.
        """
        gateways = self._gateways.greeted(self._clock.known)
        try:
            believed, settled, refused = await self._disk(self._believe, messages, gateways)
        except StoreCorrupt:
            raise
        except StoreError:  # said already
            return []
        for one in believed:
            self._answered(one)
        for key in settled.done:  # by what was held before a restart, too
            self.custody.withdraw(key)
            self._raw.pop(key, None)
        if believed:
            self.poke()
        return refused

    def _answered(self, one: Answer) -> None:
        store, receipt = one.receipt.store, one.receipt
        answered = self.custody.answered(
            one.gateway,
            time.monotonic(),
            held=[(store, sequence) for sequence in receipt.held],
            refused=[(code, [(store, s) for s in group]) for code, group in receipt.refused],
            later=[(seconds, [(store, s) for s in group]) for seconds, group in receipt.later],
        )
        for key in (*answered.done, *(key for key, _ in answered.refused)):
            self._raw.pop(key, None)
        for key in answered.dropped:
            self._raw.pop(key, None)
            self._untracked = True
        reasons: dict[str, list[int]] = {}
        for (_, sequence), reason in answered.refused:
            label = reason.label if isinstance(reason, Reason) else str(reason)
            reasons.setdefault(label, []).append(sequence)
        for label, sequences in reasons.items():
            log.warning(
                "gateway %s refused %d packets of %s for good (%s), the first is %d",
                one.gateway.hex(),
                len(sequences),
                store.hex(),
                label,
                min(sequences),
            )

    def _believe(
        self, messages: Iterable[ReceiptMessage], gateways: Sequence[Gateway]
    ) -> tuple[list[Answer], Settled, list[Refused]]:
        """Check receipts and commit what they say. In the disk's thread."""
        believed: list[Answer] = []
        refused: list[Refused] = []
        for message in messages:
            result = self._check(message, gateways)
            if isinstance(result, Refused):
                refused.append(result)
            else:
                believed.append(result)
        settled = self.outbox.receipts(believed) if believed else Settled()
        return believed, settled, refused

    def _check(self, message: ReceiptMessage, gateways: Sequence[Gateway]) -> Answer | Refused:
        """Receipts name no gateway: whose MAC fits, said it."""
        said = message.receipt
        ids: dict[int, bytes | None] = {}

        def id_of(sequence: int) -> bytes | None:
            if sequence not in ids:
                ids[sequence] = self.outbox.packet_id(said.store, sequence)
            return ids[sequence]

        refusal = Refused(Reason.MAC, "receipt.tag", "no gateway has greeted")
        for gateway in gateways:
            try:
                receipts.verify(message, gateway.keys.to_node, gateway.epoch, id_of)
            except Refused as error:
                refusal = error
                continue
            return Answer(gateway.kid, gateway.epoch, said)
        return refusal
