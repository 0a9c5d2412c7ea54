"""``qdrant://host:6333/collection``: a Qdrant server or cluster that gateways share.

Queries are answered by Qdrant, and by this gateway's view while Qdrant is away. Qdrant has
no log: who follows is served from the view, which reads what is new by its *stamp*. A
depositor stamps with its clock (tenths of milliseconds), never below a stamp that it has
seen; a reader goes back a little behind the newest stamp with each look, and further once
a minute, for what was stamped before and written after.

Others may write to the server: each packet that comes from there is verified when it is
first seen here, and believed only at its own point, address and time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.routing import qdrant_points as points
from gateway.routing.base import Context, EngineStatus, Entry, Interest, check_query
from gateway.routing.feed import CHUNK_PACKETS, WAIT, Chunk, Position
from gateway.routing.url import EngineUrl
from gateway.routing.verified import Verified
from gateway.routing.view import ViewEngine
from qis_edge.core.errors import RoutingError

if TYPE_CHECKING:
    from gateway.routing.qdrant_collection import Collection, Found

log = logging.getLogger(__name__)

#: Stamps of a second.
TICKS = 10_000
#: How far behind the newest stamp each look begins, and how far the one a minute; stamps.
NEAR, FAR = 5 * TICKS, 600 * TICKS
#: Seconds between looks that go far back, and between looks while there is nothing new.
FAR_EVERY, POLL = 60.0, 0.25
#: Stamps further ahead of our clock than this are not followed, unless our clock is before
#: ``EARLIEST``: then nobody has set it.
AHEAD = 24 * 3600 * TICKS
EARLIEST = 1_767_225_600 * TICKS  # 2026-01-01T00:00:00Z
#: Ids of points that are not fetched again.
MAX_SEEN = 100_000
#: Packets of our own that are not fetched.
MAX_OWN = 20_000
#: Seconds for which the view answers queries after Qdrant did not.
ASK_AGAIN = 2.0
#: Foreign points that a query may find among its own before the view is asked instead; and
#: that are not counted again.
MAX_FOREIGN = 2000


class QdrantEngine(ViewEngine):
    """See :class:`gateway.routing.base.RoutingLayer`."""

    def __init__(self, url: EngineUrl, context: Context | None = None) -> None:
        """:raises RoutingError: the URL or an option is wrong.
        :raises ModuleNotFoundError: the client is not installed.
        """
        from gateway.routing.qdrant_collection import Collection  # with the client: 60 MB

        context = context or Context()
        self._collection = Collection(url)
        self._verified = Verified(context.accept)
        self._says = ""  # why Qdrant does not answer queries
        self._ask_at = 0.0  # when it is asked again; time.monotonic()
        self._source = QdrantFeed(self._collection)
        self._counting = asyncio.Lock()
        self._foreign = _Recent(MAX_FOREIGN)  # ids of points that queries left out
        self._left_out = 0
        super().__init__(self._source, context)

    async def close(self) -> None:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        await super().close()
        self._verified.close()

    async def deposit(self, entries: Sequence[Entry]) -> int:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        self._verified.know(entries)
        async with self._counting:
            before = self._source.repeated
            added = await super().deposit(entries)
            return max(added - (self._source.repeated - before), 0)

    async def query(
        self,
        interest: Interest,
        *,
        limit: int = 50,
        since: int | None = None,
        confidence: int = 0,
        vector: Sequence[float] | None = None,
    ) -> list[Entry]:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        check_query(limit, vector)
        if limit and self._collection.opened and time.monotonic() > self._ask_at:
            try:
                found = await self._ask(interest, limit, since, confidence, vector)
            except RoutingError as error:
                self._unanswered(error)
            else:
                if found is not None:
                    self._says = ""
                    return found
                self._unanswered(f"{self.url}: much of what it holds is not true")
        return await super().query(
            interest, limit=limit, since=since, confidence=confidence, vector=vector
        )

    def _unanswered(self, why: object) -> None:
        """Say once why the view answers."""
        if not self._says:
            log.warning("the view answers queries: %s", why)
        self._says = str(why)
        self._ask_at = time.monotonic() + ASK_AGAIN

    async def _ask(
        self,
        interest: Interest,
        limit: int,
        since: int | None,
        confidence: int,
        vector: Sequence[float] | None,
    ) -> list[Entry] | None:
        """What Qdrant says; ``None`` where too much of it is not true."""
        conditions = points.wanted(interest, since, confidence)
        values = None if vector is None else [float(value) for value in vector]
        most = limit
        while most <= limit + MAX_FOREIGN:
            if values is None:
                found = await self._collection.newest(conditions, most)
            else:
                found = await self._collection.nearest(conditions, most, values)
            true = [
                (entry, stamp)
                for entry, stamp in await self._true(found)
                if interest.covers(entry.fingerprint)
                and entry.time >= (since or 0)
                and entry.confidence >= confidence
            ]
            if len(true) >= limit or len(found) < most:
                true.sort(key=lambda item: _rank(item[0], item[1], values))
                return [entry for entry, _ in true[:limit]]
            most += 2 * (len(found) - len(true))
        return None

    async def _true(self, found: Sequence[Found]) -> list[tuple[Entry, int]]:
        """Those that hold, where they should be, packets that can be believed."""
        raws = [points.raw_of(one.payload) for one in found]
        verified = await self._verified([raw for raw in raws if raw is not None])
        entries = {entry.raw: entry for entry in verified}
        true = []
        for one, raw in zip(found, raws, strict=True):
            entry = None if raw is None else entries.get(raw)
            if entry is not None and points.is_place_of(entry.raw, one.id):
                true.append((entry, one.stamp))
            elif self._foreign.add(one.id):
                self._left_out += 1
        return true

    async def status(self) -> EngineStatus:
        """See :class:`gateway.routing.base.RoutingLayer`. The view reads by stamps, which a
        stranger may have put where it never looks; queries have met some of those that it
        counts, so the greater number of the two is what is sure."""
        found = await super().status()
        return dataclasses.replace(found, refused=max(found.refused, self._left_out))

    async def expire(self, now: int) -> int:
        """See :class:`gateway.routing.base.RoutingLayer`. In Qdrant and in the view."""
        gone = 0
        while count := await self._collection.expire(now):
            gone += count
        return max(gone, await super().expire(now))


def _rank(entry: Entry, stamp: int, vector: Sequence[float] | None) -> tuple[float, int, int]:
    """What answers are sorted by."""
    near = 0.0
    if vector is not None:
        near = 2.0  # behind all that have a direction
        if entry.vector is not None and len(entry.vector) == len(vector) and any(entry.vector):
            near = -points.cosine(entry.vector, vector)
    return near, -entry.time, -stamp


class _Recent:
    """Ids, the last so many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, one: bytes) -> bool:
        return one in self._known

    def add(self, one: bytes) -> bool:
        """Whether it was not among them."""
        fresh = one not in self._known
        self._known[one] = None
        self._known.move_to_end(one)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return fresh

    def clear(self) -> None:
        self._known.clear()


class QdrantFeed:
    """The collection, read by stamps. See :class:`gateway.routing.feed.Feed`.

    A position is the newest stamp that was looked at (8 bytes) and the number of the chunk
    that led there (4), by which the feed knows that the chunk before was kept.
    """

    def __init__(self, collection: Collection) -> None:
        self.url = collection.url
        self._collection = collection
        self._last = 0  # the greatest stamp that we gave or saw
        self._number = 0
        self._pass: _Pass | None = None
        self._seen = _Recent(MAX_SEEN)
        self._given: list[bytes] = []
        self._far_at: float | None = None
        self._own: OrderedDict[bytes, bytes] = OrderedDict()
        self._caught_up = False
        #: Packets that were published and there already, while the view could not know.
        self.repeated = 0

    @property
    def incarnation(self) -> str:
        """See :class:`gateway.routing.feed.Feed`."""
        return self._collection.token

    async def open(self) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        await self._collection.open()
        # Our clock may not be set yet, or be behind.
        self._last = max(self._last, await self._collection.latest(_limit()))

    async def close(self) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        self._pass = None
        self._seen.clear()
        self._own.clear()
        self._far_at = None
        self._caught_up = False
        await self._collection.close()

    async def size(self) -> int | None:
        """See :class:`gateway.routing.feed.Feed`."""
        return await self._collection.count()

    async def publish(self, entries: Sequence[Entry]) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        stamp = max(_now(), self._last + 1)
        self._last = stamp + len(entries) - 1
        own = {entry.id[: points.ID]: entry.raw for entry in entries}
        there = [] if self._caught_up else await self._collection.packets(list(own))
        await self._collection.put(entries, stamp)
        self.repeated += sum(points.raw_of(one.payload) == own[one.id] for one in there)
        self._own |= own
        while len(self._own) > MAX_OWN:
            self._own.popitem(last=False)

    async def fetch(self, after: Position) -> Chunk:
        """See :class:`gateway.routing.feed.Feed`."""
        deadline = time.monotonic() + WAIT
        going = self._going_on(after)
        while True:
            chunk, going = await self._look(going)
            if chunk.raws or not chunk.end:
                break
            if time.monotonic() > deadline:
                return chunk._replace(position=after)
            await asyncio.sleep(POLL)
        return chunk

    def _going_on(self, after: Position) -> _Pass:
        """The pass that ``after`` belongs to; another where it is not the last one's."""
        going = self._pass
        if going is not None and going.position == after:
            for one in self._given:
                self._seen.add(one)
            self._given = []
            self._caught_up = self._caught_up or self._far_at is not None
            return going
        self._given = []
        self._seen.clear()
        self._far_at = None  # what was seen is not known: look far back
        newest = int.from_bytes(after[:8]) if len(after) == 12 else 0
        return _Pass(after, min(newest, _limit()), None, far=False)

    async def _look(self, going: _Pass) -> tuple[Chunk, _Pass]:
        """One page of a pass, or of the next one where it had ended."""
        newest, start, far = going.newest, going.at, going.far
        if start is None:
            far = self._far_at is None or time.monotonic() - self._far_at > FAR_EVERY
            start = max(newest - (FAR if far else NEAR), 0)
        found = await self._collection.stamped(start, CHUNK_PACKETS, whole=start >= newest)
        fresh = [one for one in found if one.id not in self._seen or not one.id]
        if start < newest and fresh:
            fresh = await self._fetched(fresh)
        end = len(found) < CHUNK_PACKETS
        limit = _limit()
        newest = max([newest, *(one.stamp for one in found if one.stamp <= limit)])
        self._last = max(self._last, newest)
        if end:
            at = None
            if far:
                self._far_at = time.monotonic()
        else:
            # Where a whole page has one stamp, somebody wrote it to hold us up.
            at = max(found[-1].stamp, start + 1)
        position = going.position
        if fresh or newest != going.newest or not end:
            self._number = (self._number + 1) % 2**32
            position = newest.to_bytes(8) + self._number.to_bytes(4)
        self._given += [one.id for one in fresh]
        self._pass = _Pass(position, newest, at, far=far)
        raws = tuple(self._own.get(one.id) or points.raw_of(one.payload) or b"" for one in fresh)
        return Chunk(raws, position, end), self._pass

    async def _fetched(self, found: Sequence[Found]) -> list[Found]:
        """With their packets, but for our own, which are at hand."""
        ids = [one.id for one in found if one.id and one.id not in self._own]
        fetched = await self._collection.packets(ids) if ids else []
        own = [one for one in found if one.id in self._own]
        return sorted([*own, *fetched], key=lambda one: one.stamp)


class _Pass:
    """Where a pass over the stamps stands.

    :param position: what it was given as.
    :param newest: the newest stamp that was looked at.
    :param at: where it goes on; ``None``: it has ended.
    :param far: whether it began far back.
    """

    __slots__ = ("at", "far", "newest", "position")

    def __init__(self, position: Position, newest: int, at: int | None, *, far: bool) -> None:
        self.position = position
        self.newest = newest
        self.at = at
        self.far = far


def _now() -> int:
    """Our clock, as a stamp."""
    return time.time_ns() * TICKS // 10**9


def _limit() -> int:
    """The last stamp that we follow."""
    now = _now()
    return now + AHEAD if now >= EARLIEST else points.GREATEST
