"""The uplink: from the outbox over a link into a gateway's custody.

Packets are made when they can be sent, and sent until a gateway's receipt says that it
holds them. The state machine is :class:`qis_edge.core.custody.Custody`; here it meets a
link, the outbox and the clock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from qis_edge.core import receipt as receipts
from qis_edge.core.custody import Counters, Custody
from qis_edge.core.errors import Reason, Refused, StoreCorrupt, StoreError
from qis_edge.core.filling import Filling
from qis_edge.core.identity import Identity
from qis_edge.core.packet import MAX_PACKET
from qis_edge.core.priority import Priority
from qis_edge.core.receipt import ReceiptMessage
from qis_edge.core.rows import Template
from qis_edge.links.base import Link
from qis_edge.links.switch import Switch, links_of
from qis_edge.links.ways import Carrier, Key, Way, make_way
from qis_edge.node.gateways import Gateway, Gateways
from qis_edge.node.timekeeping import Timekeeper
from qis_edge.store.forms import Answer, Queued, Settled
from qis_edge.store.outbox import Outbox
from qis_edge.worker import Disk

log = logging.getLogger(__name__)

#: Packets that are made in one commit.
AT_ONCE = 16
#: Seconds until something that the disk did not take is tried again.
AGAIN = 1.0
#: The longest time until outcomes that wait for others are looked at again, seconds.
LOOK = 30.0
#: Seconds between looks whether there is something new to tell peers.
ANNOUNCE = 1.0


class Uplink:
    """Sends what waits, over one link, or over the one of several that is in use.

    :param window: packets under way at most, where the link has no idea of its own.
    :param copies: how many gateways must hold a packet.
    :param filling: how long outcomes wait for others where a packet costs airtime.
    :param silent: is told that nobody answers over the link in use.
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
        window: int,
        copies: int,
        filling: Filling,
        silent: Callable[[], None] = lambda: None,
    ) -> None:
        self.link = link
        links = links_of(link)
        self._ways = {id(one): make_way(one, copies, window) for one in links}
        self.way = self._ways[id(links[0])]
        self._shared = any(one.shared for one in links)
        self.outbox = outbox
        self._disk = disk
        self._identity = identity
        self._gateways = gateways
        self._domain = domain
        self._clock = clock
        self._filling = filling
        self._full_at: float | None = None  # unix seconds, by our clock
        self._tell_silent = silent
        self._offered: set[Key] = set()  # to the way in use
        # Until when a gateway that we never met is waited for, on which connection.
        self._unmet = (0, 0.0)
        self._announced = False  # packets that nobody was asked to take into custody
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
        self.way.lost(gateway)
        self.start_over()

    def drain(self) -> None:
        """No more outcomes are made: what waits for others goes at once."""
        self._filling.ended = True
        self.poke()

    def met(self) -> None:
        """A gateway is met for the first time: receipts of it that came before could not be
        checked. Where they come only when asked for, it is asked again."""
        if self.link.shared:
            self.way.reopen()

    def heard(self, gateway: bytes) -> None:
        """A gateway said something authentic."""
        self.way.heard(gateway)
        self.poke()

    @property
    def custody(self) -> Custody[Key]:
        """Of the link in use."""
        return self.way.custody

    @property
    def silent(self) -> bool:
        """Whether nobody answers."""
        return self.way.silent

    @property
    def counters(self) -> Counters:
        """Of all ways together."""
        total = Counters()
        for way in self._ways.values():
            for name in Counters.__dataclass_fields__:
                setattr(total, name, getattr(total, name) + getattr(way.custody.counters, name))
        return total

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
        link, way = self._in_use()
        if not link.up:
            way.shut()
            return None
        if not self._gateways.greeted(self._clock.known):
            # Without a gateway there is nobody whose receipt we could check.
            way.shut()
            return await self._announce_unmet(link)
        if self._connects != self.link.stats.connects:  # it was down meanwhile
            self._connects = self.link.stats.connects
            way.reopen()
        way.open()
        if self._announced and not way.silent:
            self._announced = False
            self.start_over()
        refilled = await self._refill()
        again = await way.send()
        if refilled:
            return float("-inf")
        announced = None
        if way.silent:
            self._tell_silent()
            announced = await self._announce(link)
        return _first(again, announced, self._until_full())

    def _until_full(self) -> float | None:
        """When outcomes that wait for others have waited long enough: monotonic seconds. Or
        earlier, for clocks are set."""
        if self._full_at is None:
            return None
        left = self._clock.real(self._full_at - self._clock.now())
        return time.monotonic() + min(max(left, 0.0), LOOK)

    def _in_use(self) -> tuple[Link, Way]:
        """The link in use; what another one had under way is begun anew on this one."""
        link = self.link.current if isinstance(self.link, Switch) else self.link
        way = self._ways[id(link)]
        if way is not self.way:
            self.way.shut()
            for key in self._offered:
                self.way.withdraw(key)
            self._offered.clear()
            self.way = way
            self.start_over()
        return link, way

    async def _announce_unmet(self, link: Link) -> float | None:
        """Where no gateway has ever greeted us, one may be about to: it needs the air."""
        connects = self.link.stats.connects
        if self._unmet[0] != connects:
            self._unmet = connects, time.monotonic() + link.cadence.patience
        if time.monotonic() < self._unmet[1]:
            return self._unmet[1]
        return await self._announce(link)

    async def _announce(self, link: Link) -> float | None:
        """Nobody takes custody now, but peers may listen: tell them what is new, once. It
        stays in the outbox until a gateway holds it."""
        if not isinstance(link, Carrier):
            return None
        if link.room and not link.busy:
            for one in await self._disk(self._pack, 1):
                self._announced = True
                link.announce(one.raw)
        return _first(time.monotonic() + ANNOUNCE, self._until_full())

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
        room, least = min(self.custody.room_for(), AT_ONCE), Priority.LOW
        if room <= 0:  # what is urgent has places of its own
            room, least = min(self.custody.room_for(Priority.URGENT), AT_ONCE), Priority.URGENT
        if room <= 0:
            return False
        if self._untracked and not self._old and 2 * self._partly_room() > self._partly:
            self.start_over()
        if self._old and least is Priority.LOW and await self._offer_old(room):
            return True
        made = await self._disk(self._pack, room, least)
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
        custody = self.custody
        return min((custody.room_for(held=n) for n in range(1, custody.copies)), default=0)

    def _pack(self, room: int, least: Priority = Priority.LOW) -> list[Queued]:
        """In the disk's thread."""
        fits = self.link.fits
        look = self._filling.look(self._clock.now())
        packets = self.outbox.pack(
            self._identity,
            limit=fits,
            max_packets=room,
            domain=self._domain,
            ready=look.ready if fits < MAX_PACKET else None,
            least=least,
        )
        self._full_at = look.next_at
        queued = [self.outbox.packet(packet.store, packet.sequence) for packet in packets]
        return [one for one in queued if one is not None]

    def _offer(self, one: Queued) -> None:
        self._offered.add(one.key)
        for key in self.way.offer(one.key, one.raw, one.priority):
            # There is no room for it now: the outbox brings it again.
            self._offered.discard(key)
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
            self.way.withdraw(key)
            self._offered.discard(key)
        if believed:
            self.poke()
        return refused

    def _answered(self, one: Answer) -> None:
        store, receipt = one.receipt.store, one.receipt
        answered = self.way.answered(
            one.gateway,
            held=[(store, sequence) for sequence in receipt.held],
            refused=[(code, [(store, s) for s in group]) for code, group in receipt.refused],
            later=[(seconds, [(store, s) for s in group]) for seconds, group in receipt.later],
        )
        gone = (*answered.done, *(key for key, _ in answered.refused), *answered.dropped)
        self._offered.difference_update(gone)
        self._untracked = self._untracked or bool(answered.dropped)
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
            if self._shared and not self.outbox.has_store(message.receipt.store):
                continue  # on a radio, those of others are heard too
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


def _first(*times: float | None) -> float | None:
    return min((at for at in times if at is not None), default=None)
