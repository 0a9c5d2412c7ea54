"""Custody: what becomes durable here, and what the nodes are told of it.

``spool``: a packet is *held* once the spool has committed it. ``routed``: once every
routing engine has taken it. Whatever the policy, no receipt leaves before that. What the
spool cannot take now, because it is full or its disk does not write, is asked for *later*.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.intake import Counts
from gateway.post import Post
from gateway.spool import Admission, Intake, Spool, Verdict
from qis_edge.clock import Clock
from qis_edge.core import receipt as receipts
from qis_edge.core.errors import Reason, Refused, StoreCorrupt, StoreError
from qis_edge.core.packet import Packet
from qis_edge.core.receipt import MacKeys, Receipt
from qis_edge.links.base import down
from qis_edge.worker import Disk

log = logging.getLogger(__name__)

#: A packet dated further ahead of us than this many seconds is *later*, not held.
FUTURE_TOLERANCE = 600
#: The longest time that a *later* asks to wait, seconds.
LONGEST_LATER = 3600
#: What it asks for while the spool is full, and while its disk does not write.
FULL_LATER, FAULT_LATER = 300, 30
#: Receipts that wait for the routing engines. Beyond it the oldest goes: its node sends
#: again, and is answered when there is an answer.
MAX_OWED = 65_536
#: Stores whose equivocations are logged, once each.
MAX_ACCUSED = 1024

#: (kid, store)
_Origin = tuple[bytes, bytes]


class _Owed(NamedTuple):
    """A packet whose receipt waits for the routing engines."""

    origin: _Origin
    sequence: int
    id: bytes


@dataclass(slots=True)
class _Word:
    """What is to be said to one node of one of its stores."""

    held: list[int] = field(default_factory=list)
    refused: dict[Reason, list[int]] = field(default_factory=dict)
    later: dict[int, list[int]] = field(default_factory=dict)
    ids: dict[int, bytes] = field(default_factory=dict)

    def receipt(self, store: bytes) -> Receipt:
        """Each sequence once, though its packet may have come twice."""
        named: set[int] = set()

        def once(sequences: list[int]) -> tuple[int, ...]:
            fresh = sorted(set(sequences) - named)
            named.update(fresh)
            return tuple(fresh)

        refused = tuple((reason, once(group)) for reason, group in self.refused.items())
        later = tuple((seconds, once(group)) for seconds, group in self.later.items())
        return Receipt(
            store,
            once(self.held),
            tuple(group for group in refused if group[1]),
            tuple(group for group in later if group[1]),
        )


class _Words:
    """What is to be said, by node and store. Two contents under one number have a word
    each: a receipt is of packets, and names each by its id."""

    def __init__(self) -> None:
        self._words: dict[_Origin, list[_Word]] = {}

    def of(self, origin: _Origin, sequence: int, packet_id: bytes) -> _Word:
        """The word to a node, in which this packet will be named."""
        words = self._words.setdefault(origin, [])
        for word in words:
            if word.ids.setdefault(sequence, packet_id) == packet_id:
                return word
        words.append(_Word(ids={sequence: packet_id}))
        return words[-1]

    def on(self, packet: Packet) -> _Word:
        """:meth:`of` for a packet at hand."""
        return self.of((packet.kid, packet.store), packet.sequence, packet.id)

    def later(self, packet: Packet, seconds: int) -> None:
        """Ask for it again."""
        self.on(packet).later.setdefault(seconds, []).append(packet.sequence)

    def __iter__(self) -> Iterator[tuple[_Origin, _Word]]:
        return ((origin, word) for origin, words in self._words.items() for word in words)


class Custodian:
    """Takes verified packets into custody and says so.

    :param keys_of: the MAC keys shared with a node, by its kid; Refused where there are
        none any more.
    :param routed: whether *held* waits for the routing engines.
    :param accepted: is told (kid, now, packets) of what was verified.
    """

    def __init__(
        self,
        spool: Spool,
        disk: Disk,
        post: Post,
        clock: Clock,
        counts: Counts,
        keys_of: Callable[[bytes], MacKeys],
        *,
        routed: bool,
        arrived: Callable[[], None],
        accepted: Callable[[bytes, float, int], None],
    ) -> None:
        self._spool = spool
        self._disk = disk
        self._post = post
        self._clock = clock
        self._counts = counts
        self._keys_of = keys_of
        self._routed = routed
        self._arrived = arrived
        self._accepted = accepted
        self._owed: OrderedDict[int, _Owed] = OrderedDict()  # by position in the spool
        self._through = 0
        self._full = False
        self._accused: OrderedDict[_Origin, None] = OrderedDict()

    @property
    def owed(self) -> int:
        """How many receipts wait for the routing engines."""
        return len(self._owed)

    async def take(self, packets: Sequence[Packet]) -> None:
        """Commit packets to the spool, then send the receipts that the policy allows.

        :raises StoreCorrupt: the spool is damaged; nothing was receipted.
        """
        now = self._clock.now()
        words = _Words()
        taken: list[Intake] = []
        for packet in packets:
            self._accepted(packet.kid, now, 1)
            ahead = packet.last_time - now
            if ahead > FUTURE_TOLERANCE:
                self._counts.later += 1
                words.later(packet, min(LONGEST_LATER, int(ahead)))
            else:
                taken.append(Intake(packet, now, packet.expires > now))
        if taken:
            await self._commit(taken, words)
        self._say(words)

    async def _commit(self, taken: list[Intake], words: _Words) -> None:
        try:
            full = await self._disk(_is_full, self._spool)
            self._note(full)
            if full:
                self._put_off(taken, words, FULL_LATER)
                return
            admissions = await self._disk(self._spool.admit, taken)
        except StoreCorrupt:
            raise
        except StoreError:  # said already
            self._put_off(taken, words, FAULT_LATER)
            return
        for intake, admission in zip(taken, admissions, strict=True):
            self._judge(intake, admission, words)
        if any(admission.verdict is Verdict.NEW for admission in admissions):
            self._arrived()

    def _note(self, full: bool) -> None:
        if full and not self._full:
            log.warning(
                "the spool is full of packets that a routing engine still lacks: "
                "nodes are asked to wait"
            )
        self._full = full

    def _put_off(self, taken: Sequence[Intake], words: _Words, seconds: int) -> None:
        self._counts.later += len(taken)
        for intake in taken:
            words.later(intake.packet, seconds)

    def _judge(self, intake: Intake, admission: Admission, words: _Words) -> None:
        packet = intake.packet
        if admission.verdict is Verdict.EQUIVOCATION:
            self._counts.refused[Reason.EQUIVOCATION.label] += 1
            self._accuse(packet)
            refused = words.on(packet).refused
            refused.setdefault(Reason.EQUIVOCATION, []).append(packet.sequence)
            return
        if admission.verdict is Verdict.NEW:
            self._counts.new += 1
            self._counts.stale += not intake.route
        else:
            self._counts.known += 1
        if self._routed and admission.position > self._through:
            origin = (packet.kid, packet.store)
            self._owed[admission.position] = _Owed(origin, packet.sequence, packet.id)
            if len(self._owed) > MAX_OWED:
                self._owed.popitem(last=False)
        else:
            words.on(packet).held.append(packet.sequence)

    def _accuse(self, packet: Packet) -> None:
        origin = (packet.kid, packet.store)
        if origin not in self._accused:
            log.warning(
                "node %s signed two contents as %s/%d: refused",
                packet.kid.hex(),
                packet.store.hex(),
                packet.sequence,
            )
        self._accused[origin] = None
        self._accused.move_to_end(origin)
        if len(self._accused) > MAX_ACCUSED:
            self._accused.popitem(last=False)

    def routed_through(self, position: int) -> None:
        """Every engine has taken everything up to this position of the spool."""
        self._through = max(self._through, position)
        words = _Words()
        for at in [at for at in self._owed if at <= position]:
            origin, sequence, packet_id = self._owed.pop(at)
            words.of(origin, sequence, packet_id).held.append(sequence)
        self._say(words)

    def _say(self, words: _Words) -> None:
        for (kid, store), word in words:
            try:
                key = self._keys_of(kid).to_node
            except Refused as refusal:  # its credential went meanwhile
                log.debug("no receipt for %s: %s", kid.hex(), refusal)
                continue
            for raw in receipts.build_all(word.receipt(store), key, self._spool.epoch, word.ids):
                self._post.answer(raw, down(kid))


def _is_full(spool: Spool) -> bool:
    return spool.full
