"""Receipts that nodes ask for, over a link where each frame costs all of them airtime.

A question is not authenticated: answering it is all that it is good for. What it asks
about is looked up in the spool. What is not there (refused, put off, trimmed) is answered
from what was lately decided.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gateway.spool import Spool
from gateway.words import Origin, Word, Words, origin_of
from qis_edge.core.errors import Reason, Refused, StoreCorrupt, StoreError
from qis_edge.core.identity import PublicKey
from qis_edge.core.packet import Packet
from qis_edge.core.receipt import MacKeys
from qis_edge.links.base import Polled, Question
from qis_edge.worker import Disk

log = logging.getLogger(__name__)

#: Bytes of one receipt, at most: it shares a frame with others.
RECEIPT = 190
#: What one question may ask about.
MAX_SEQUENCES, MAX_STORES = 64, 4
#: Questions that wait. Beyond it the oldest goes: who asked will ask again.
MAX_QUESTIONS = 32
#: Seconds that a question waits for the routing engines, in custody *routed*.
PATIENCE = 2.0
#: In how many seconds to send again what the engines still lack then, and at least what was
#: put off: each packet takes a second of the channel.
ROUTED_LATER = LEAST_LATER = 300
#: Stores of which decisions are remembered, and packets of each.
MAX_ORIGINS, MAX_DECISIONS = 512, 128


@dataclass(frozen=True, slots=True)
class _Held:
    position: int


@dataclass(frozen=True, slots=True)
class _Refused:
    reason: Reason


@dataclass(frozen=True, slots=True)
class _Later:
    until: float  # monotonic


_Decision = _Held | _Refused | _Later
#: A packet of a store: its number and its id.
_Item = tuple[int, bytes]


class _Decisions:
    """What was lately decided. A node pushes out only what is its own."""

    def __init__(self) -> None:
        self._of: OrderedDict[Origin, OrderedDict[_Item, _Decision]] = OrderedDict()

    def note(self, packet: Packet, decision: _Decision) -> None:
        origin = origin_of(packet)
        decisions = self._of.setdefault(origin, OrderedDict())
        decisions[packet.sequence, packet.id] = decision
        decisions.move_to_end((packet.sequence, packet.id))
        if len(decisions) > MAX_DECISIONS:
            decisions.popitem(last=False)
        self._of.move_to_end(origin)
        if len(self._of) > MAX_ORIGINS:
            self._of.popitem(last=False)

    def about(
        self, origin: Origin, sequences: Sequence[int], now: float
    ) -> Iterator[tuple[_Item, _Decision]]:
        wanted = frozenset(sequences)
        for item, decision in self._of.get(origin, {}).items():
            over = isinstance(decision, _Later) and decision.until <= now
            if item[0] in wanted and not over:
                yield item, decision


class Answering:
    """A :class:`gateway.custodian.Teller` that tells those who ask.

    :param link: where questions come from and answers go.
    :param node_key: Refused for those who may not send packets now.
    :param keys_of: the MAC keys shared with a node, by its kid.
    :param routed: whether *held* waits for the routing engines.
    """

    def __init__(
        self,
        link: Polled,
        spool: Spool,
        disk: Disk,
        node_key: Callable[[bytes], PublicKey],
        keys_of: Callable[[bytes], MacKeys],
        *,
        routed: bool,
    ) -> None:
        self._link = link
        self._spool = spool
        self._disk = disk
        self._node_key = node_key
        self._keys_of = keys_of
        self._routed = routed
        self._through = 0
        self._advanced = asyncio.Event()
        self._decisions = _Decisions()
        self._questions: deque[tuple[Question, float]] = deque()
        self._asked = asyncio.Event()
        self.dropped = 0

    # - what is decided

    def held(self, packet: Packet, position: int) -> None:
        """See :class:`gateway.custodian.Teller`."""
        self._decisions.note(packet, _Held(position))

    def refused(self, packet: Packet, reason: Reason) -> None:
        """See :class:`gateway.custodian.Teller`."""
        self._decisions.note(packet, _Refused(reason))

    def later(self, packet: Packet, seconds: int) -> None:
        """See :class:`gateway.custodian.Teller`."""
        until = time.monotonic() + max(seconds, LEAST_LATER)
        self._decisions.note(packet, _Later(until))
        self._link.forget(packet.id)

    def routed_through(self, position: int) -> None:
        """See :class:`gateway.custodian.Teller`."""
        self._through = max(self._through, position)
        self._advanced.set()

    def tell(self) -> None:
        """Nothing goes out unasked."""

    # - questions

    def ask(self, question: Question) -> None:
        """Somebody asks; all that came before is committed, or was put off."""
        self._questions.append((question, time.monotonic()))
        if len(self._questions) > MAX_QUESTIONS:
            self._questions.popleft()
            self.dropped += 1
        self._asked.set()

    async def run(self) -> None:
        """Answer for ever, one after the other.

        :raises StoreCorrupt: the spool is damaged.
        """
        while True:
            if not self._questions:
                self._asked.clear()
                await self._asked.wait()
            question, since = self._questions.popleft()
            try:
                receipts = await self._receipts(question, since + PATIENCE)
            except StoreCorrupt:
                raise
            except StoreError:  # said already; an answer would say that nothing is here
                continue
            self._link.reply(question, receipts)

    async def _receipts(self, question: Question, deadline: float) -> list[bytes]:
        receipts: list[bytes] = []
        for kid, store in question.stores[:MAX_STORES]:
            try:
                self._node_key(kid)
                key = self._keys_of(kid).to_node
            except Refused as refusal:
                log.debug("no receipt for %s: %s", kid.hex(), refusal)
                continue
            sequences = question.sequences[:MAX_SEQUENCES]
            for word in await self._words((kid, store), sequences, deadline):
                receipts += word.sealed(store, key, self._spool.epoch, RECEIPT)
        return receipts

    async def _words(self, origin: Origin, sequences: Sequence[int], deadline: float) -> list[Word]:
        places = await self._disk(self._spool.ids, *origin, sequences)
        found: dict[_Item, _Decision] = {
            (sequence, place.id): _Held(place.position) for sequence, place in places.items()
        }
        now = time.monotonic()
        for item, decision in self._decisions.about(origin, sequences, now):
            found.setdefault(item, decision)
        if self._routed:
            positions = [one.position for one in found.values() if isinstance(one, _Held)]
            await self._until_routed(max(positions, default=0), deadline)
        # Where there are two contents under one number, the node that asks knows but one of
        # them, and believes no receipt that names the other: those have receipts of their own.
        plain, twofold = Words(), Words()
        contents = Counter(sequence for sequence, _ in found)
        for item, decision in found.items():
            self._say(plain if contents[item[0]] == 1 else twofold, origin, item, decision)
        return [word for words in (plain, twofold) for _, word in words]

    async def _until_routed(self, position: int, deadline: float) -> None:
        while self._through < position and (left := deadline - time.monotonic()) > 0:
            self._advanced.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._advanced.wait()

    def _say(self, words: Words, origin: Origin, item: _Item, decision: _Decision) -> None:
        match decision:
            case _Refused(reason):
                words.refused(origin, *item, reason)
            case _Later(until):
                words.later(origin, *item, max(1, round(until - time.monotonic())))
            case _Held(position) if self._routed and position > self._through:
                words.later(origin, *item, ROUTED_LATER)
            case _:
                words.held(origin, *item)
