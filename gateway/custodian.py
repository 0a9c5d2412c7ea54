"""Custody: what becomes durable here, and what the nodes are told of it.

``spool``: a packet is *held* once the spool has committed it. ``routed``: once every
routing engine has taken it. Whatever the policy, no receipt leaves before that. What the
spool cannot take now, because it is full or its disk does not write, is asked for *later*.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from gateway.intake import Counts
from gateway.spool import Admission, Intake, Spool, Verdict
from gateway.words import Origin, origin_of
from qis_edge.clock import Clock
from qis_edge.core.errors import Reason, StoreCorrupt, StoreError
from qis_edge.core.packet import Packet
from qis_edge.terminal import duration
from qis_edge.worker import Disk

log = logging.getLogger(__name__)

K = TypeVar("K")

#: A packet dated further ahead of us than this many seconds is *later*, not held.
FUTURE_TOLERANCE = 600
#: The longest time that a *later* asks to wait, seconds.
LONGEST_LATER = 3600
#: What it asks for while the spool is full, and while its disk does not write.
FULL_LATER, FAULT_LATER = 300, 30
#: Stores whose equivocations are logged, and nodes whose clocks are, once each.
MAX_ACCUSED = 1024


class Teller(Protocol):
    """Who tells nodes what became of their packets, when it may be told."""

    def held(self, packet: Packet, position: int) -> None:
        """The spool has it; ``position`` as in :class:`gateway.spool.Admission`."""
        ...

    def refused(self, packet: Packet, reason: Reason) -> None:
        """It is never to come again."""
        ...

    def later(self, packet: Packet, seconds: int) -> None:
        """It was not taken, and is to come again after so many seconds."""
        ...

    def tell(self) -> None:
        """These were all of a batch."""
        ...

    def routed_through(self, position: int) -> None:
        """Every engine has taken everything up to this position of the spool."""
        ...


class Custodian:
    """Takes verified packets into custody and has it told.

    :param accepted: is told (kid, now, packets) of what was verified.
    """

    def __init__(
        self,
        spool: Spool,
        disk: Disk,
        teller: Teller,
        clock: Clock,
        counts: Counts,
        *,
        arrived: Callable[[], None],
        accepted: Callable[[bytes, float, int], None],
    ) -> None:
        self._spool = spool
        self._disk = disk
        self._teller = teller
        self._clock = clock
        self._counts = counts
        self._arrived = arrived
        self._accepted = accepted
        self._full = False
        self._accused: OrderedDict[Origin, None] = OrderedDict()
        self._ahead: OrderedDict[bytes, None] = OrderedDict()
        self._unreadable: OrderedDict[bytes, None] = OrderedDict()

    async def take(self, packets: Sequence[Packet]) -> None:
        """Commit packets to the spool, then have told what may be told.

        :raises StoreCorrupt: the spool is damaged; nothing was receipted.
        """
        now = self._clock.now()
        taken: list[Intake] = []
        for packet in packets:
            self._accepted(packet.kid, now, 1)
            ahead = packet.last_time - now
            if ahead > FUTURE_TOLERANCE:
                self._counts.later += 1
                self._note_ahead(packet.kid, ahead)
                self._teller.later(packet, min(LONGEST_LATER, int(ahead)))
            else:
                taken.append(Intake(packet, now, packet.expires > now))
        if taken:
            await self._commit(taken)
        self._teller.tell()

    def refuse_unreadable(self, packet: Packet, reason: Reason) -> None:
        """A node signed this, and its outcomes cannot be read here, now or later."""
        if packet.kid not in self._unreadable:
            log.warning(
                "node %s sends what cannot be read here (%s): it is refused for good, and put "
                "aside there (qis-edge queue). Is that node newer than this gateway?",
                packet.kid.hex(),
                reason.label.replace("_", " "),
            )
        _remember(self._unreadable, packet.kid)
        self._teller.refused(packet, reason)
        self._teller.tell()

    def _note_ahead(self, kid: bytes, ahead: float) -> None:
        """Say it once of each node: it, or this gateway, does not know the time."""
        if kid not in self._ahead:
            log.warning(
                "node %s dates what it sends %s ahead of our clock: one of the two is wrong "
                "(here: timedatectl status). It is asked to send that later",
                kid.hex(),
                duration(ahead),
            )
        _remember(self._ahead, kid)

    async def _commit(self, taken: list[Intake]) -> None:
        try:
            full = await self._disk(_is_full, self._spool)
            self._note(full)
            if full:
                self._put_off(taken, FULL_LATER)
                return
            admissions = await self._disk(self._spool.admit, taken)
        except StoreCorrupt:
            raise
        except StoreError:  # said already
            self._put_off(taken, FAULT_LATER)
            return
        for intake, admission in zip(taken, admissions, strict=True):
            self._judge(intake, admission)
        if any(admission.verdict is Verdict.NEW for admission in admissions):
            self._arrived()

    def _note(self, full: bool) -> None:
        if full and not self._full:
            log.warning(
                "the spool is full of packets that a routing engine still lacks: "
                "nodes are asked to wait"
            )
        self._full = full

    def _put_off(self, taken: Sequence[Intake], seconds: int) -> None:
        self._counts.later += len(taken)
        for intake in taken:
            self._teller.later(intake.packet, seconds)

    def _judge(self, intake: Intake, admission: Admission) -> None:
        packet = intake.packet
        if admission.verdict is Verdict.EQUIVOCATION:
            self._counts.refused[Reason.EQUIVOCATION.label] += 1
            self._accuse(packet)
            self._teller.refused(packet, Reason.EQUIVOCATION)
            return
        if admission.verdict is Verdict.NEW:
            self._counts.new += 1
            self._counts.stale += not intake.route
        else:
            self._counts.known += 1
        self._teller.held(packet, admission.position)

    def _accuse(self, packet: Packet) -> None:
        origin = origin_of(packet)
        if origin not in self._accused:
            log.warning(
                "node %s signed two contents as %s/%d: refused",
                packet.kid.hex(),
                packet.store.hex(),
                packet.sequence,
            )
        _remember(self._accused, origin)


def _is_full(spool: Spool) -> bool:
    return spool.full


def _remember(those: OrderedDict[K, None], one: K) -> None:
    """That it was said of this one; the least recent are forgotten."""
    those[one] = None
    those.move_to_end(one)
    if len(those) > MAX_ACCUSED:
        those.popitem(last=False)
