"""The downlink: peers' packets, to those who asked for their addresses.

A node's request is answered with what came in after its cursor (or, the first time, with
the newest), and then the address is followed: each packet goes out once for everybody who
listens there, as it is deposited. What of that gets lost, the node asks for again, for
only an answer to a request moves its cursor.

Over a shared link everybody hears every answer: a packet that just went out there is in no
other answer, and an answer brings few, the newest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from gateway.post import Post
from gateway.routing import Batch, Entry, Interest, RoutingLayer
from qis_edge.clock import Clock
from qis_edge.core.errors import Reason, Refused, RoutingError
from qis_edge.core.messages import Position, Request
from qis_edge.core.receipt import MacKeys
from qis_edge.links.base import down, peers

log = logging.getLogger(__name__)

#: Packets of one answer, whatever the node would take.
MOST = 2000
#: Addresses that are followed, all nodes together.
MAX_INTERESTS = 65_536
#: Nodes whose interests are remembered; the one that asked longest ago is forgotten.
MAX_NODES = 16_384
#: Nodes whose requests may wait for an answer.
MAX_WAITING = 1024
RETRY = 2.0


@dataclass(frozen=True, slots=True)
class _Asked:
    interests: frozenset[Interest]
    cursor: bytes | None
    limit: int


@dataclass(frozen=True, slots=True)
class Sparing:
    """How little goes out where all share the air.

    :param most: packets of one answer.
    :param once: seconds within which no answer repeats what went out.
    :param refill: seconds until a node that got so many may have as many again.
    """

    most: int
    once: float
    refill: float


class Downlink:
    """Answers requests and follows addresses on one engine, the first of the list.

    :param keys_of: the MAC keys shared with a node, by its kid.
    :param limit: how many packets of an address a node gets that has no cursor yet.
    :param per_minute: packets that answers bring one node in a minute, at most.
    :param least_bits: a request must name so many leading bits of each address.
    :param sparing: that the link is shared, and with what.
    """

    def __init__(
        self,
        engine: RoutingLayer,
        post: Post,
        clock: Clock,
        kid: bytes,
        keys_of: Callable[[bytes], MacKeys],
        *,
        limit: int = 50,
        per_minute: int = 600,
        least_bits: int = 64,
        sparing: Sparing | None = None,
    ) -> None:
        self._engine = engine
        self._post = post
        self._clock = clock
        self._kid = kid
        self._keys_of = keys_of
        self._first = limit
        self._sparing = sparing
        self._most = sparing.most if sparing else MOST
        #: Packets that answers bring one node: at once, and in a second.
        self._share = float(sparing.most if sparing else per_minute)
        self._refill = self._share / (sparing.refill if sparing else 60.0)
        self._least_bits = least_bits
        self._allowances: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        self._waiting: OrderedDict[bytes, _Asked] = OrderedDict()
        self._asked = asyncio.Event()
        self._interests: OrderedDict[bytes, frozenset[Interest]] = OrderedDict()
        self._changed = asyncio.Event()
        self._published: bytes | None = None  # how far what is live went out
        self.answered = 0
        self.sent = 0
        self.published = 0

    def request(self, request: Request) -> None:
        """A node's request whose MAC was checked. A newer one takes an older one's place.

        :raises Refused: SCOPE, it asks for more than a node may.
        """
        if min(bits for _, bits in request.interests) < self._least_bits:
            raise Refused(Reason.SCOPE, "request.bits", f"at least {self._least_bits}")
        interests = frozenset(Interest(f, bits) for f, bits in request.interests)
        self._waiting[request.kid] = _Asked(interests, request.cursor, request.limit)
        self._waiting.move_to_end(request.kid)
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popitem(last=False)
        self._asked.set()
        if self._interests.get(request.kid) != interests:
            self._interests[request.kid] = interests
            self._changed.set()
        self._interests.move_to_end(request.kid)
        if len(self._interests) > MAX_NODES:
            self._interests.popitem(last=False)
            self._changed.set()

    def forget(self, kid: bytes) -> None:
        """This node gets nothing any more."""
        self._waiting.pop(kid, None)
        if self._interests.pop(kid, None) is not None:
            self._changed.set()

    # - answers

    async def answer(self) -> None:
        """Answer requests for ever, one after the other."""
        while True:
            if not self._waiting:
                self._asked.clear()
                await self._asked.wait()
            kid, asked = self._waiting.popitem(last=False)
            try:
                await self._answer(kid, asked)
            except Refused as refusal:  # its credential went meanwhile
                log.debug("request of %s is not answered: %s", kid.hex(), refusal)
            except RoutingError as error:
                log.debug("request of %s waits: %s", kid.hex(), error)
                self._waiting.setdefault(kid, asked)
                await asyncio.sleep(RETRY)

    async def _answer(self, kid: bytes, asked: _Asked) -> None:
        allowed = self._allowance(kid)
        if allowed < 1:
            return  # it asks again when no position has come
        limit = min(asked.limit, self._most, int(allowed))
        entries, cursor, complete = await self._found(kid, asked, limit)
        for entry in entries:
            await self._post.packet(entry.raw, down(kid))
        self._allowances[kid] = (allowed - max(1, len(entries)), time.monotonic())
        self.sent += len(entries)
        self.answered += 1
        position = Position(self._kid, cursor, complete).encode(self._keys_of(kid).to_node)
        # In the packets' queue, behind them: a position that overtook them would skip them.
        await self._post.packet(position, down(kid))

    async def _found(
        self, kid: bytes, asked: _Asked, limit: int
    ) -> tuple[Sequence[Entry], bytes, bool]:
        """What to answer with, the cursor after it, and whether that is all."""
        if asked.cursor is not None and self._sparing is None:
            return await self._since(kid, asked, asked.cursor, limit)
        if asked.cursor is not None:
            # Of a long absence a few of the newest, and nothing that all just heard.
            entries, cursor, complete = await self._since(kid, asked, asked.cursor, MOST)
            if complete:
                return self._unsaid(entries, limit), cursor, True
        cursor = await self._engine.cursor()
        newest = await self._newest(kid, asked.interests, min(limit, self._first))
        return self._unsaid(newest, limit), cursor, True

    def _unsaid(self, entries: Sequence[Entry], limit: int) -> Sequence[Entry]:
        """The last of them that did not just go out."""
        if self._sparing is None:
            return entries
        once = self._sparing.once
        unsaid = (one for one in reversed(entries) if not self._post.has_said(one.raw, once))
        return list(islice(unsaid, limit))[::-1]

    def _allowance(self, kid: bytes) -> float:
        """How many packets a node may get now: a bucket that a minute fills."""
        now = time.monotonic()
        tokens, since = self._allowances.pop(kid, (self._share, now))
        tokens = min(self._share, tokens + (now - since) * self._refill)
        self._allowances[kid] = tokens, now
        if len(self._allowances) > MAX_NODES:
            self._allowances.popitem(last=False)
        return tokens

    async def _newest(
        self, kid: bytes, interests: frozenset[Interest], limit: int
    ) -> Sequence[Entry]:
        """The newest of each address, oldest first."""
        now = self._clock.now()
        found: dict[bytes, Entry] = {}
        for interest in interests:
            for entry in await self._engine.query(interest, limit=limit):
                if entry.kid != kid and entry.expires > now:
                    found[entry.id] = entry
        return sorted(found.values(), key=lambda entry: entry.time)[-limit:]

    async def _since(
        self, kid: bytes, asked: _Asked, after: bytes, limit: int
    ) -> tuple[list[Entry], bytes, bool]:
        entries: list[Entry] = []
        now = self._clock.now()
        subscription = self._engine.follow(asked.interests, after)
        try:
            async for batch in subscription:
                entries += [e for e in batch.entries if e.kid != kid and e.expires > now]
                if batch.live or len(entries) >= limit:
                    return entries, batch.cursor, batch.live
        finally:
            await subscription.close()
        raise RoutingError("the engine was closed")

    # - live

    async def publish(self) -> None:
        """Follow every address that somebody asked for, for ever."""
        while True:
            try:
                if self._published is None:
                    self._published = await self._engine.cursor()
                await self._follow(self._published)
            except RoutingError as error:
                log.debug("following waits: %s", error)
                await asyncio.sleep(RETRY)

    async def _follow(self, cursor: bytes) -> None:
        subscription = self._engine.follow(self._wanted(), cursor)
        updates = asyncio.create_task(self._update(subscription.update))
        try:
            async for batch in subscription:
                await self._publish(batch)
                self._published = batch.cursor  # what went out does not go out again
        finally:
            updates.cancel()
            await subscription.close()

    async def _publish(self, batch: Batch) -> None:
        now = self._clock.now()
        for entry in batch.entries:
            if entry.expires <= now or not self._unsaid((entry,), 1):
                continue
            self.published += 1
            await self._post.live(entry.raw, peers(entry.fingerprint))
            if self._sparing is None:  # else all have heard it
                for kid in self._widened(entry):
                    await self._post.live(entry.raw, down(kid))

    def _widened(self, entry: Entry) -> list[bytes]:
        """Nodes that want this packet but do not listen to its very address."""
        exact = Interest(entry.fingerprint)
        return [
            kid
            for kid, interests in self._interests.items()
            if kid != entry.kid
            and exact not in interests
            and any(interest.covers(entry.fingerprint) for interest in interests)
        ]

    def _wanted(self) -> frozenset[Interest]:
        wanted: set[Interest] = set()
        for interests in reversed(self._interests.values()):
            wanted |= interests
            if len(wanted) >= MAX_INTERESTS:
                break
        return frozenset(wanted)

    async def _update(self, update: Callable[[frozenset[Interest]], None]) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            update(self._wanted())
