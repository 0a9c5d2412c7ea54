"""Custody: what becomes durable here, and what the nodes are told of it.

``spool``: a packet is *held* once the spool has committed it. ``routed``: once every
routing engine has taken it. Whatever the policy, no receipt leaves before that.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gateway.intake import Counts
from gateway.post import Post
from gateway.spool import Admission, Intake, Spool, Verdict
from qis_edge.clock import Clock
from qis_edge.core import receipt as receipts
from qis_edge.core.errors import Reason
from qis_edge.core.packet import Packet
from qis_edge.core.receipt import MacKeys, Receipt
from qis_edge.links.base import down
from qis_edge.worker import Worker

log = logging.getLogger(__name__)

#: A packet dated further ahead of us than this many seconds is *later*, not held.
FUTURE_TOLERANCE = 600
#: The longest time that a *later* asks to wait, seconds.
LONGEST_LATER = 3600


@dataclass(slots=True)
class _Word:
    """What is to be said to one node of one of its stores."""

    held: list[int] = field(default_factory=list)
    refused: dict[Reason, list[int]] = field(default_factory=dict)
    later: dict[int, list[int]] = field(default_factory=dict)
    ids: dict[int, bytes] = field(default_factory=dict)

    def receipt(self, store: bytes) -> Receipt:
        """Each sequence once, though it may have come twice, even with two contents."""
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


class Custodian:
    """Takes verified packets into custody and says so.

    :param keys_of: the MAC keys shared with a node, by its kid; it was verified by them
        a moment ago, so they are there.
    :param routed: whether *held* waits for the routing engines.
    :param accepted: is told (kid, now, packets) of what was verified.
    """

    def __init__(
        self,
        spool: Spool,
        disk: Worker,
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
        self._owed: deque[tuple[int, Packet]] = deque()
        self._through = 0

    async def take(self, packets: Sequence[Packet]) -> None:
        """Commit packets to the spool, then send the receipts that the policy allows.

        :raises StoreError: the spool cannot be written; nothing was receipted.
        """
        now = self._clock.now()
        words: dict[tuple[bytes, bytes], _Word] = {}
        taken: list[Intake] = []
        for packet in packets:
            ahead = packet.last_time - now
            if ahead > FUTURE_TOLERANCE:
                self._counts.later += 1
                wait = min(LONGEST_LATER, int(ahead))
                _word(words, packet).later.setdefault(wait, []).append(packet.sequence)
            else:
                taken.append(Intake(packet, now, packet.expires > now))
        admissions = await self._disk(self._spool.admit, taken) if taken else []
        for intake, admission in zip(taken, admissions, strict=True):
            self._count(intake, admission)
            packet = intake.packet
            self._accepted(packet.kid, now, 1)
            if admission.verdict is Verdict.EQUIVOCATION:
                log.warning(
                    "node %s signed two contents as %s/%d: refused",
                    packet.kid.hex(),
                    packet.store.hex(),
                    packet.sequence,
                )
                refused = _word(words, packet).refused
                refused.setdefault(Reason.EQUIVOCATION, []).append(packet.sequence)
            elif self._routed and admission.position > self._through:
                self._owed.append((admission.position, packet))
            else:
                _word(words, packet).held.append(packet.sequence)
        self._say(words)
        if any(admission.verdict is Verdict.NEW for admission in admissions):
            self._arrived()

    def routed_through(self, position: int) -> None:
        """Every engine has taken everything up to this position of the spool."""
        self._through = max(self._through, position)
        words: dict[tuple[bytes, bytes], _Word] = {}
        waiting: deque[tuple[int, Packet]] = deque()
        for at, packet in self._owed:
            if at <= position:
                _word(words, packet).held.append(packet.sequence)
            else:
                waiting.append((at, packet))
        self._owed = waiting
        self._say(words)

    def _count(self, intake: Intake, admission: Admission) -> None:
        if admission.verdict is Verdict.NEW:
            self._counts.new += 1
            self._counts.stale += not intake.route
        elif admission.verdict is Verdict.KNOWN:
            self._counts.known += 1
        else:
            self._counts.refused[Reason.EQUIVOCATION.label] += 1

    def _say(self, words: dict[tuple[bytes, bytes], _Word]) -> None:
        for (kid, store), word in words.items():
            receipt = word.receipt(store)
            key = self._keys_of(kid).to_node
            for raw in receipts.build_all(receipt, key, self._spool.epoch, word.ids):
                self._post.answer(raw, down(kid))


def _word(words: dict[tuple[bytes, bytes], _Word], packet: Packet) -> _Word:
    word = words.setdefault((packet.kid, packet.store), _Word())
    word.ids[packet.sequence] = packet.id
    return word
