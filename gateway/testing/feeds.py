"""A feed in memory, and what every feed does."""

from __future__ import annotations

import asyncio
import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.routing import Entry, RoutingLayer
from gateway.routing.feed import CHUNK_BYTES, CHUNK_PACKETS, MAX_POSITION, WAIT, Chunk, Feed
from gateway.routing.view import ViewEngine
from gateway.testing.entries import eventually, make_entry
from gateway.testing.suite import RoutingWorld
from qis_edge.core.errors import RoutingError


class MemoryLog:
    """What memory feeds share, as clients do a server. Set its attributes to break it.

    :param name: of the URL that its feeds have.
    """

    def __init__(self, name: str = "log") -> None:
        self.name = name
        self.raws: list[bytes] = []
        self.token = os.urandom(4)
        #: Packets that it dropped from its beginning.
        self.trimmed = 0
        #: Why nobody reaches it.
        self.away = ""
        #: How many more packets it takes before it goes away, in the middle of a publish.
        self.takes: int | None = None
        #: Whether it then takes the whole publish and only its answer is lost.
        self.answer_lost = False
        self.published = 0
        self._changed = asyncio.Event()

    def append(self, raws: Sequence[bytes]) -> None:
        """Whoever can write to it."""
        self.raws += raws
        self._changed.set()
        self._changed = asyncio.Event()

    def lose(self) -> None:
        """Everything is gone, and another log is in its place."""
        self.raws, self.trimmed, self.token = [], 0, os.urandom(4)

    def trim(self, count: int) -> None:
        """The oldest are gone."""
        del self.raws[: max(count - self.trimmed, 0)]
        self.trimmed = max(count, self.trimmed)

    async def changed(self) -> None:
        """Until somebody appends, or for as long as a feed waits."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT):
                await self._changed.wait()


class MemoryFeed:
    """A :class:`gateway.routing.feed.Feed` of a :class:`MemoryLog`.

    :param chunk: packets that one ``fetch`` gives at most.
    """

    def __init__(self, log: MemoryLog, chunk: int = CHUNK_PACKETS) -> None:
        self.url = f"memory-feed:{log.name}"
        self.log = log
        self._chunk = chunk
        self._opened = False

    @property
    def incarnation(self) -> str:
        """See :class:`gateway.routing.feed.Feed`."""
        return self.log.token.hex() if self._opened else ""

    def _reach(self) -> None:
        if not self._opened:
            raise RoutingError(f"{self.url}: not open")
        if self.log.away:
            raise RoutingError(f"{self.url}: {self.log.away}")

    async def open(self) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        if self.log.away:
            raise RoutingError(f"{self.url}: {self.log.away}")
        self._opened = True

    async def close(self) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        self._opened = False

    async def publish(self, entries: Sequence[Entry]) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        await asyncio.sleep(0)
        self._reach()
        log = self.log
        raws = [entry.raw for entry in entries]
        if log.takes is not None and log.takes < len(raws):
            log.append(raws if log.answer_lost else raws[: log.takes])
            log.takes, log.away = None, "gone in the middle"
            self._reach()
        if log.takes is not None:
            log.takes -= len(raws)
        log.append(raws)
        log.published += len(raws)

    async def fetch(self, after: bytes) -> Chunk:
        """See :class:`gateway.routing.feed.Feed`."""
        chunk = self._chunk_after(after)
        if not chunk.raws:
            await self.log.changed()
            chunk = self._chunk_after(after)
        return chunk

    def _chunk_after(self, after: bytes) -> Chunk:
        self._reach()
        log = self.log
        last = log.trimmed + len(log.raws)
        known = len(after) == 12 and after[:4] == log.token
        start = int.from_bytes(after[4:]) if known else 0
        start = max(start, log.trimmed) if start <= last else log.trimmed
        raws = log.raws[start - log.trimmed :][: self._chunk]
        position = start + len(raws)
        return Chunk(tuple(raws), log.token + position.to_bytes(8), position == last)

    async def size(self) -> int | None:
        """See :class:`gateway.routing.feed.Feed`."""
        self._reach()
        return len(self.log.raws)


class MemoryFeedWorld(RoutingWorld):
    """Gateways with views over one :class:`MemoryLog`."""

    folder_each = True

    def __init__(self, folder: Path, log: MemoryLog | None = None, chunk: int = 400) -> None:
        self.url = "memory-feed:log"
        self.folder = folder
        self.log = log or MemoryLog()
        self._chunk = chunk

    def feed(self) -> Feed:
        """Another client."""
        return MemoryFeed(self.log, self._chunk)

    def engine(self, gateway: str = "gateway") -> RoutingLayer:
        """See :class:`RoutingWorld`."""
        return ViewEngine(self.feed(), self.context(gateway))

    async def write(self, entry: Entry, raw: bytes) -> None:  # noqa: ARG002 - a log has one place
        """See :class:`RoutingWorld`."""
        self.log.append([raw])

    async def fail(self) -> None:
        """See :class:`RoutingWorld`."""
        self.log.away = "unplugged"

    async def heal(self) -> None:
        """See :class:`RoutingWorld`."""
        self.log.away = ""


# --- the suite ----------------------------------------------------------------------------


class FeedWorld(ABC):
    """A medium, and feeds on it."""

    @abstractmethod
    def feed(self) -> Feed:
        """Another client of this medium, not open."""

    async def write(self, raw: bytes) -> None:
        """As a stranger who can write to the medium: put ``raw`` where a packet would be."""
        raise NotImplementedError

    async def fail(self) -> None:
        """Take the medium away. Calls then fail within the suite's patience."""
        raise NotImplementedError

    async def heal(self) -> None:
        """Bring it back, with all that it had promised to keep."""
        raise NotImplementedError


class Feeds:
    """Opens feeds, and closes them at the end."""

    def __init__(self, world: FeedWorld) -> None:
        self.world = world
        self._opened: list[Feed] = []

    async def open(self) -> Feed:
        """Another one."""
        feed = self.world.feed()
        self._opened.append(feed)
        await feed.open()
        return feed

    async def close(self) -> None:
        """All of them."""
        for feed in self._opened:
            await feed.close()


class FeedConformance(ABC):
    """What every :class:`gateway.routing.feed.Feed` does.

    Joined with a view it is also held to :class:`gateway.testing.RoutingConformance`.
    """

    #: Seconds that a single thing may take.
    patience = 60.0
    #: Packets for the longer tests.
    many = 1500
    #: What one ``publish`` took comes back in its order, whatever its addresses.
    ordered = True
    #: It gives what was published once, however often that was published.
    once = False

    @abstractmethod
    def world(self, folder: Path) -> AbstractAsyncContextManager[FeedWorld]:
        """A fresh medium with nothing on it."""

    @pytest_asyncio.fixture
    async def feeds(self, tmp_path: Path) -> AsyncIterator[Feeds]:
        """Opens feeds on a fresh medium."""
        async with self.world(tmp_path) as world:
            feeds = Feeds(world)
            try:
                yield feeds
            finally:
                await feeds.close()

    async def read(
        self, feed: Feed, after: bytes, count: int, chunks: list[Chunk] | None = None
    ) -> tuple[list[bytes], bytes]:
        """At least ``count`` raws after a position, and the position after them.

        :raises TimeoutError: they did not come.
        """
        found: list[bytes] = []
        async with asyncio.timeout(self.patience):
            while len(found) < count:
                chunk = await feed.fetch(after)
                if chunks is not None:
                    chunks.append(chunk)
                found += chunk.raws
                after = chunk.position
        return found, after

    async def nothing(self, feed: Feed, after: bytes) -> bytes:
        """Assert that there is nothing after a position; where it then stands."""
        async with asyncio.timeout(self.patience):
            while True:
                chunk = await feed.fetch(after)
                assert chunk.raws == ()
                after = chunk.position
                if chunk.end:
                    return after

    def same(self, found: Sequence[bytes], entries: Sequence[Entry]) -> bool:
        """Whether these are those, in order if the feed has one."""
        expected = [entry.raw for entry in entries]
        if self.ordered:
            return list(found) == expected
        return sorted(found) == sorted(expected)

    @pytest.mark.asyncio
    async def test_what_is_published_comes_in_its_order(self, feeds: Feeds) -> None:
        feed = await feeds.open()
        entries = [make_entry(number, fingerprint=bytes([number]) * 32) for number in range(60)]
        for start in range(0, 60, 25):
            await feed.publish(entries[start : start + 25])
        found, after = await self.read(feed, b"", 60)
        assert self.same(found, entries)
        await self.nothing(feed, after)

    @pytest.mark.asyncio
    async def test_of_one_address_the_order_is_kept(self, feeds: Feeds) -> None:
        feed = await feeds.open()
        entries = [make_entry(number) for number in range(40)]
        for start in range(0, 40, 7):
            await feed.publish(entries[start : start + 7])
        found, _ = await self.read(feed, b"", 40)
        assert found == [entry.raw for entry in entries]

    @pytest.mark.asyncio
    async def test_an_empty_log_says_so_and_goes_on(self, feeds: Feeds) -> None:
        feed = await feeds.open()
        after = await self.nothing(feed, b"")
        await feed.publish([make_entry(1)])
        assert (await self.read(feed, after, 1))[0] == [make_entry(1).raw]
        await feed.publish([])

    @pytest.mark.asyncio
    async def test_every_position_is_a_place_to_go_on(self, feeds: Feeds) -> None:
        feed = await feeds.open()
        entries = [make_entry(number) for number in range(self.many)]
        for start in range(0, self.many, 300):
            await feed.publish(entries[start : start + 300])
        chunks: list[Chunk] = []
        found, _ = await self.read(feed, b"", self.many, chunks)
        assert found == [entry.raw for entry in entries]
        other = await feeds.open()
        seen = 0
        for chunk in chunks[:6]:
            seen += len(chunk.raws)
            assert len(chunk.raws) <= 2 * CHUNK_PACKETS
            assert sum(map(len, chunk.raws)) <= 2 * CHUNK_BYTES
            assert len(chunk.position) <= MAX_POSITION
            rest, _ = await self.read(other, chunk.position, self.many - seen)
            assert rest == found[seen:]

    @pytest.mark.asyncio
    async def test_who_waits_gets_what_comes(self, feeds: Feeds) -> None:
        here, there = await feeds.open(), await feeds.open()
        after = await self.nothing(there, b"")
        reading = asyncio.create_task(self.read(there, after, 1))
        await asyncio.sleep(0.05)
        await here.publish([make_entry(1)])
        found, after = await reading
        assert found == [make_entry(1).raw]
        await self.nothing(there, after)

    @pytest.mark.asyncio
    async def test_a_wait_that_is_cancelled_loses_nothing(self, feeds: Feeds) -> None:
        feed = await feeds.open()
        after = await self.nothing(feed, b"")
        for number in range(5):
            waiting = asyncio.create_task(feed.fetch(after))
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await feed.publish([make_entry(number)])
        found, _ = await self.read(feed, after, 5)
        assert found == [make_entry(number).raw for number in range(5)]

    @pytest.mark.asyncio
    async def test_a_position_that_it_does_not_know_is_the_beginning(self, feeds: Feeds) -> None:
        feed = await feeds.open()
        entries = [make_entry(number) for number in range(5)]
        await feed.publish(entries)
        for position in (b"\0", b"no position of ours", b"\xff" * 40, bytes(MAX_POSITION)):
            found, _ = await self.read(feed, position, 5)
            assert found == [entry.raw for entry in entries], position

    @pytest.mark.asyncio
    async def test_it_outlives_its_clients(self, feeds: Feeds) -> None:
        feed = await feeds.open()
        born = feed.incarnation
        entries = [make_entry(number) for number in range(30)]
        await feed.publish(entries[:20])
        _, after = await self.read(feed, b"", 20)
        await feed.publish(entries[20:])
        await feed.close()
        await feed.close()
        later = await feeds.open()
        await later.open()
        assert later.incarnation == born
        for reader in (later, feed):
            await reader.open()
            assert (await self.read(reader, after, 10))[0] == [e.raw for e in entries[20:]]
            assert (await self.read(reader, b"", 30))[0] == [e.raw for e in entries]

    @pytest.mark.asyncio
    async def test_two_publish_and_both_read_everything(self, feeds: Feeds) -> None:
        both = [await feeds.open(), await feeds.open()]
        mine = [
            [make_entry(number, fingerprint=bytes([side]) * 32) for number in range(80)]
            for side in range(2)
        ]

        async def publish(feed: Feed, entries: Sequence[Entry]) -> None:
            for start in range(0, len(entries), 9):
                await feed.publish(entries[start : start + 9])

        await asyncio.gather(*(publish(*pair) for pair in zip(both, mine, strict=True)))
        for feed in both:
            found, after = await self.read(feed, b"", 160)
            assert len(found) == 160
            for entries in mine:
                raws = [entry.raw for entry in entries]
                assert [raw for raw in found if raw in set(raws)] == raws
            await self.nothing(feed, after)

    @pytest.mark.asyncio
    async def test_a_repeat_is_safe(self, feeds: Feeds) -> None:
        feed = await feeds.open()
        await feed.publish([make_entry(1), make_entry(2)])
        await feed.publish([make_entry(1), make_entry(2), make_entry(3)])
        found, _ = await self.read(feed, b"", 3 if self.once else 5)
        assert list(dict.fromkeys(found)) == [make_entry(number).raw for number in (1, 2, 3)]
        assert len(found) == 3 or not self.once

    @pytest.mark.asyncio
    async def test_what_others_wrote_passes_through(self, feeds: Feeds) -> None:
        feed = await feeds.open()
        await feed.publish([make_entry(1)])
        hostile = [b"", b"\0", b"no packet", make_entry(7).raw[:-1], os.urandom(2000)]
        for raw in hostile:
            await feeds.world.write(raw)
        await feed.publish([make_entry(2)])
        found: list[bytes] = []
        after = b""
        async with asyncio.timeout(self.patience):
            while make_entry(2).raw not in found:
                chunk = await feed.fetch(after)
                found, after = found + list(chunk.raws), chunk.position
        # What cannot be a packet may be left out, but nothing stands in the way.
        assert [raw for raw in found if raw not in hostile] == [
            make_entry(1).raw,
            make_entry(2).raw,
        ]

    @pytest.mark.asyncio
    async def test_its_size_is_about_right(self, feeds: Feeds) -> None:
        feed = await feeds.open()
        await feed.publish([make_entry(number) for number in range(10)])
        assert await feed.size() in (10, None)

    @pytest.mark.asyncio
    async def test_nothing_works_before_it_is_open(self, feeds: Feeds) -> None:
        feed = feeds.world.feed()
        with pytest.raises(RoutingError):
            await feed.publish([make_entry(1)])
        with pytest.raises(RoutingError):
            await feed.fetch(b"")


class FeedOutageConformance(FeedConformance):
    """For feeds that can be away: give ``FeedWorld.fail`` and ``heal``."""

    @pytest.mark.asyncio
    async def test_it_goes_away_and_comes_back(self, feeds: Feeds) -> None:
        feed = await feeds.open()
        await feed.publish([make_entry(number) for number in range(5)])
        _, after = await self.read(feed, b"", 5)
        await feeds.world.fail()
        for _ in range(2):
            with pytest.raises(RoutingError):
                await asyncio.wait_for(feed.publish([make_entry(5)]), self.patience)
        with pytest.raises(RoutingError):
            await asyncio.wait_for(self._fetch_for_ever(feed, after), self.patience)
        await feeds.world.heal()
        await eventually(lambda: self._published(feed, [make_entry(5)]), self.patience)
        await eventually(lambda: self._published(feed, [make_entry(6)]), self.patience)
        found: list[bytes] = []

        async def more() -> bool:
            nonlocal after
            with contextlib.suppress(RoutingError):
                chunk = await feed.fetch(after)
                found.extend(chunk.raws)
                after = chunk.position
            return make_entry(6).raw in found

        await eventually(more, self.patience)
        assert list(dict.fromkeys(found)) == [make_entry(number).raw for number in (5, 6)]

    @staticmethod
    async def _fetch_for_ever(feed: Feed, after: bytes) -> None:
        """What it had fetched in advance may come first."""
        while True:
            after = (await feed.fetch(after)).position

    @staticmethod
    async def _published(feed: Feed, entries: Sequence[Entry]) -> bool:
        try:
            await feed.publish(entries)
        except RoutingError:
            return False
        return True

    @pytest.mark.asyncio
    async def test_it_cannot_be_opened_while_it_is_away(self, feeds: Feeds) -> None:
        await feeds.world.fail()
        feed = feeds.world.feed()
        with pytest.raises(RoutingError):
            await asyncio.wait_for(feed.open(), self.patience)
        await feeds.world.heal()
        await eventually(lambda: self._opened(feed), self.patience)
        await feed.close()

    @staticmethod
    async def _opened(feed: Feed) -> bool:
        try:
            await feed.open()
        except RoutingError:
            return False
        return True
