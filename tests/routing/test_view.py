"""The view over a feed, and the feed in memory that it is tested with."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.routing import EVERYTHING, Context, Entry, view
from gateway.routing.base import Accept
from gateway.routing.feed import Chunk, Feed
from gateway.routing.sorting import Sorted
from gateway.routing.view import ViewEngine
from gateway.testing import (
    MediumConformance,
    RoutingWorld,
    SpoolConformance,
    collect,
    eventually,
    make_entry,
)
from gateway.testing.entries import HOUR, NODE, START, accept, entries_of
from gateway.testing.feeds import (
    FeedOutageConformance,
    FeedWorld,
    MemoryFeed,
    MemoryFeedWorld,
    MemoryLog,
)
from qis_edge.core.errors import Reason, Refused, RoutingError, StoreError
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.packet import unpack

#: Seconds that a single thing may take.
PATIENCE = 60.0


class MemoryMedium(FeedWorld):
    def __init__(self) -> None:
        self.log = MemoryLog()

    def feed(self) -> Feed:
        return MemoryFeed(self.log)

    async def write(self, raw: bytes) -> None:
        self.log.append([raw])

    async def fail(self) -> None:
        self.log.away = "unplugged"

    async def heal(self) -> None:
        self.log.away = ""


class TestMemoryFeed(FeedOutageConformance):
    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[FeedWorld]:
        yield MemoryMedium()


class TestView(MediumConformance, SpoolConformance):
    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[RoutingWorld]:
        yield MemoryFeedWorld(folder)


# --- the view itself ----------------------------------------------------------------------


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(view, "RETRY_LONGEST", 0.02)
    monkeypatch.setattr(view, "RETRY_ASIDE", 0.0)


def entries(first: int, count: int, **more: Any) -> list[Entry]:
    return [make_entry(number, **more) for number in range(first, first + count)]


@contextlib.asynccontextmanager
async def opened(
    log: MemoryLog, folder: Path | None, accept: Accept = accept, chunk: int = 1000
) -> AsyncIterator[ViewEngine]:
    engine = ViewEngine(MemoryFeed(log, chunk), Context(accept, folder))
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


async def caught_up(engine: ViewEngine) -> None:
    async def there() -> bool:
        return not (await engine.status()).behind

    await eventually(there, PATIENCE)


async def held(engine: ViewEngine, after: bytes | None = None) -> list[Entry]:
    """What it follows now."""
    subscription = engine.follow(frozenset([EVERYTHING]), after)
    try:
        return entries_of(await collect(subscription, 0, PATIENCE, live=True))
    finally:
        await subscription.close()


async def has(engine: ViewEngine, wanted: Sequence[Entry]) -> None:
    """Until it holds exactly these, in any order."""
    expected = sorted(entry.id for entry in wanted)

    async def there() -> bool:
        return sorted(entry.id for entry in await held(engine)) == expected

    await eventually(there, PATIENCE)


def views(folder: Path, pattern: str = "view-memory-feed-*.db") -> list[Path]:
    return list(folder.glob(pattern))


async def test_it_is_read_anew_from_the_log_when_its_file_is_gone(tmp_path: Path) -> None:
    log = MemoryLog()
    packets = entries(0, 700)
    async with opened(log, tmp_path) as engine:
        await engine.deposit(packets)
        cursor = await engine.cursor()
    for file in views(tmp_path, "*"):
        file.unlink()
    async with opened(log, tmp_path, chunk=50) as engine:
        assert (await engine.status()).behind
        await caught_up(engine)
        assert await held(engine) == packets
        assert await held(engine, cursor) == packets  # it is another view
        assert await engine.deposit(packets) == 0
    assert log.published == 700


async def test_what_it_published_itself_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Entry] = []
    take = view._ViewFile.take

    def noted(file: view._ViewFile, sorted_: Sorted, place: view._Place | None) -> int:
        taken.extend(sorted_.entries)
        return take(file, sorted_, place)

    monkeypatch.setattr(view._ViewFile, "take", noted)
    log = MemoryLog()
    packets = entries(0, 300)
    async with opened(log, tmp_path) as engine:
        await caught_up(engine)
        for start in range(0, 300, 100):
            await engine.deposit(packets[start : start + 100])
        log.append([entry.raw for entry in entries(300, 2)])  # another gateway's
        await eventually(lambda: len(taken) == 2, PATIENCE)
        assert taken == entries(300, 2)
        await engine.close()
        for file in views(tmp_path, "*"):
            file.unlink()
        await engine.open()  # now it has nothing of its own
        await has(engine, [*packets, *entries(300, 2)])


async def test_what_is_there_is_not_published_again(tmp_path: Path) -> None:
    log = MemoryLog()
    async with opened(log, tmp_path / "a") as here, opened(log, tmp_path / "b") as there:
        await here.deposit(entries(0, 10))
        await has(there, entries(0, 10))
        assert await there.deposit(entries(5, 10)) == 5
        assert log.published == 15


async def test_each_engine_has_a_view_of_its_own(tmp_path: Path) -> None:
    one, other = MemoryLog("one"), MemoryLog("other")
    async with opened(one, tmp_path) as here, opened(other, tmp_path) as there:
        await here.deposit(entries(0, 3))
        assert await held(there) == []
    assert len(views(tmp_path)) == 2


async def test_without_a_folder_it_lives_as_long_as_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    engine = ViewEngine(MemoryFeed(MemoryLog()), Context())
    for number in range(2):
        await engine.open()
        await engine.deposit([make_entry(number)])
        await engine.close()
    await engine.open()
    assert len(await held(engine)) == 2
    await engine.close()
    (folder,) = views(tmp_path, "qis-view-*")
    assert views(folder)
    del engine
    gc.collect()
    assert views(tmp_path, "*") == []


async def test_two_processes_may_share_the_file(tmp_path: Path) -> None:
    log = MemoryLog()
    async with opened(log, tmp_path) as here, opened(log, tmp_path) as there:
        await asyncio.gather(here.deposit(entries(0, 50)), there.deposit(entries(30, 50)))
        await has(here, entries(0, 80))
        await has(there, entries(0, 80))


# - accepting


async def test_a_forged_signature_is_refused_and_counted(tmp_path: Path) -> None:
    log = MemoryLog()
    good = entries(0, 3)
    forged = [entry.raw[:-1] + bytes([entry.raw[-1] ^ 1]) for entry in entries(10, 4)]
    log.append([forged[0], good[0].raw, forged[1], *forged[2:], good[1].raw, good[2].raw])
    async with opened(log, tmp_path) as engine:
        await has(engine, good)
        assert (await engine.status()).refused == 4


async def test_packets_are_accepted_on_another_thread(tmp_path: Path) -> None:
    threads: set[int] = set()

    def watched(raw: bytes) -> Entry:
        threads.add(threading.get_ident())
        return accept(raw)

    log = MemoryLog()
    log.append([entry.raw for entry in entries(0, 250)])
    async with opened(log, tmp_path, watched) as engine:
        await has(engine, entries(0, 250))
    assert threads
    assert threading.get_ident() not in threads


async def test_its_own_are_not_verified_again(tmp_path: Path) -> None:
    asked: list[bytes] = []

    def watched(raw: bytes) -> Entry:
        asked.append(raw)
        return accept(raw)

    log = MemoryLog()
    async with opened(log, tmp_path, watched) as engine:
        await engine.deposit(entries(0, 20))
        log.append([make_entry(20).raw])
        await has(engine, entries(0, 21))
    assert asked == [make_entry(20).raw]


@pytest.mark.usefixtures("hurried")
async def test_a_credential_may_come_later_than_what_it_signs(tmp_path: Path) -> None:
    late = Identity.from_seed(b"one whose credential comes later")
    keys = {NODE.kid: NODE.public}

    def known(raw: bytes) -> Entry:
        def key(kid: bytes) -> PublicKey:
            if kid not in keys:
                raise Refused(Reason.UNKNOWN_KEY, "kid")
            return keys[kid]

        return Entry.of(unpack(raw, key))

    theirs = entries(0, 5, identity=late)
    nobodys = entries(5, 2, identity=Identity.from_seed(bytes(32)), ttl=1, time=START)
    forged = make_entry(9, identity=late).raw[:-1] + b"\0"
    log = MemoryLog()
    log.append([entry.raw for entry in [*theirs, *nobodys, make_entry(8)]] + [forged])
    async with opened(log, tmp_path, known) as engine:
        await has(engine, [make_entry(8)])
        assert "8 aside whose signer is unknown" in (await engine.status()).detail
    async with opened(log, tmp_path, known) as engine:  # kept with the view
        assert "8 aside" in (await engine.status()).detail
        keys[late.kid] = late.public
        await has(engine, [*theirs, make_entry(8)])
        status = await engine.status()
        assert "2 aside" in status.detail
        assert status.refused == 1
        await engine.expire(START + HOUR)
        assert "aside" not in (await engine.status()).detail


async def test_few_are_kept_aside_and_the_oldest_give_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "MAX_ASIDE", 10)
    stranger = Identity.from_seed(bytes(32))
    log = MemoryLog()
    log.append([entry.raw for entry in entries(0, 30, identity=stranger)])
    log.append([entry.raw for entry in entries(0, 30, identity=stranger)])
    async with opened(log, tmp_path, chunk=7) as engine:
        await caught_up(engine)
        status = await engine.status()
        assert "10 aside" in status.detail
        assert status.refused >= 20


async def test_what_expired_does_not_come_in_again(tmp_path: Path) -> None:
    short, long = entries(0, 5, ttl=1, time=START), entries(5, 5, ttl=48, time=START)
    log = MemoryLog()
    async with opened(log, tmp_path) as engine:
        await engine.deposit([*short, *long])
        assert await engine.expire(START + HOUR) == 5
        log.append([entry.raw for entry in [*short, make_entry(20)]])
        await has(engine, [*long, make_entry(20)])


# - what goes wrong


async def test_a_crash_between_log_and_view_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog()
    async with opened(log, tmp_path) as engine:
        real = engine._view.put

        async def crash(entries: Sequence[Entry]) -> None:
            raise RoutingError("the disk is full")

        monkeypatch.setattr(engine._view, "put", crash)
        with pytest.raises(RoutingError, match="full"):
            await engine.deposit(entries(0, 5))
        monkeypatch.setattr(engine._view, "put", real)
        await has(engine, entries(0, 5))  # the log brings them
        assert await engine.deposit(entries(0, 7)) == 2
        assert await held(engine) == entries(0, 7)
    assert log.published == 7


async def test_a_view_that_cannot_be_written_gets_it_from_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(file: object, entries: Sequence[Entry]) -> int:
        raise StoreError("the disk is full")

    log = MemoryLog()
    async with opened(log, tmp_path) as engine:
        monkeypatch.setattr(view._ViewFile, "put", full)
        assert await engine.deposit(entries(0, 5)) == 5
        await has(engine, entries(0, 5))
        assert await engine.deposit(entries(0, 5)) == 0
    assert log.published == 5
    assert "the disk is full" in caplog.text


async def test_what_it_has_is_known_whether_it_was_looked_through_or_not(tmp_path: Path) -> None:
    log = MemoryLog()
    async with opened(log, tmp_path) as engine:
        await engine.deposit(entries(0, 2100))
    for _ in range(2):
        async with opened(log, tmp_path) as engine:
            assert await engine.deposit(entries(0, 2101)) in (0, 1)
            await eventually(lambda: engine._view._filter.complete, PATIENCE)
            assert await engine.deposit(entries(0, 2101)) == 0
    assert log.published == 2101


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("answer_lost", [False, True])
async def test_away_in_the_middle_of_a_publish(tmp_path: Path, answer_lost: bool) -> None:
    log = MemoryLog()
    async with opened(log, tmp_path / "a") as here, opened(log, tmp_path / "b") as there:
        await here.deposit(entries(0, 5))
        log.takes, log.answer_lost = 3, answer_lost
        with pytest.raises(RoutingError, match="gone in the middle"):
            await here.deposit(entries(5, 10))
        status = await here.status()
        assert not status.ok
        assert "gone in the middle" in status.detail
        log.away = ""
        await here.deposit(entries(5, 10))
        await here.deposit(entries(15, 5))
        assert (await here.status()).ok
        for engine in (here, there):
            await has(engine, entries(0, 20))
            assert await held(engine) == entries(0, 20)


@pytest.mark.usefixtures("hurried")
async def test_a_deposit_that_fails_is_said_although_reading_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog()
    async with opened(log, tmp_path) as engine:
        real = engine._feed.publish

        async def forbidden(entries: Sequence[Entry]) -> None:
            raise RoutingError("only reading is allowed")

        monkeypatch.setattr(engine._feed, "publish", forbidden)
        with pytest.raises(RoutingError):
            await engine.deposit(entries(0, 1))
        log.append([make_entry(7).raw])
        await has(engine, [make_entry(7)])
        assert "only reading" in (await engine.status()).detail
        monkeypatch.setattr(engine._feed, "publish", real)
        await engine.deposit(entries(0, 1))
        assert (await engine.status()).ok


@pytest.mark.usefixtures("hurried")
async def test_a_log_that_was_lost_is_filled_again(tmp_path: Path) -> None:
    log = MemoryLog()
    async with opened(log, tmp_path) as engine:
        await engine.deposit(entries(0, 5))
        born, cursor = engine.incarnation, await engine.cursor()
        log.lose()
        log.append([make_entry(2).raw, make_entry(30).raw])  # somebody was quicker
        await has(engine, [*entries(0, 5), make_entry(30)])

        async def read_anew() -> bool:
            end = log.token + len(log.raws).to_bytes(8)
            return await engine._view.place() == (end, log.token.hex())

        await eventually(read_anew, PATIENCE)
        with pytest.raises(RoutingError, match="lost its log"):
            await engine.deposit(entries(0, 6))
        await engine.open()  # as a drain does
        assert engine.incarnation != born
        assert await engine.deposit(entries(0, 6)) == 1
        assert await engine.deposit(entries(0, 6)) == 0
        assert sorted(log.raws) == sorted(entry.raw for entry in [*entries(0, 6), make_entry(30)])
        assert await held(engine, cursor) == [make_entry(30), make_entry(5)]
        await engine.expire(START + 100 * HOUR)
        assert await held(engine) == []


@pytest.mark.usefixtures("hurried")
async def test_a_log_that_was_lost_while_nobody_looked(tmp_path: Path) -> None:
    log = MemoryLog()
    async with opened(log, tmp_path) as engine:
        await engine.deposit(entries(0, 5))
    log.lose()
    log.append([make_entry(9).raw])
    async with opened(log, tmp_path) as engine:
        await has(engine, [*entries(0, 5), make_entry(9)])
        assert await engine.deposit(entries(0, 5)) == 0
        assert len(log.raws) == 6


async def test_a_log_that_drops_its_oldest_goes_on(tmp_path: Path) -> None:
    log = MemoryLog()
    async with opened(log, tmp_path) as engine:
        await engine.deposit(entries(0, 10))
    log.append([entry.raw for entry in entries(10, 10)])
    log.trim(15)
    async with opened(log, tmp_path) as engine:
        await has(engine, [*entries(0, 10), *entries(15, 5)])


@pytest.mark.usefixtures("hurried")
async def test_once_it_has_read_it_opens_and_answers_while_the_log_is_away(
    tmp_path: Path,
) -> None:
    log = MemoryLog()
    log.away = "unplugged"
    engine = ViewEngine(MemoryFeed(log), Context(accept, tmp_path))
    with pytest.raises(RoutingError, match="unplugged"):
        await engine.open()
    assert not (await engine.status()).ok
    log.away = ""
    async with opened(log, tmp_path) as engine:
        born = engine.incarnation
        await engine.deposit(entries(0, 5))
    log.away = "unplugged"
    async with opened(log, tmp_path) as engine:
        assert engine.incarnation == born
        assert await engine.query(EVERYTHING) == entries(0, 5)[::-1]
        status = await engine.status()
        assert (status.ok, status.behind, status.packets) == (False, True, 5)
        assert "unplugged" in status.detail
        with pytest.raises(RoutingError, match="unplugged"):
            await engine.deposit(entries(5, 1))
        assert await engine.deposit(entries(0, 5)) == 0  # it has these
        log.away = ""
        log.append([make_entry(9).raw])
        await has(engine, [*entries(0, 5), make_entry(9)])
        assert await engine.deposit(entries(5, 1)) == 1
        assert (await engine.status()).ok


async def test_what_a_power_cut_took_is_not_skipped_by_older_cursors(tmp_path: Path) -> None:
    """The view goes back to an earlier state; fewer come again than were there."""
    log = MemoryLog()
    before, after = tmp_path / "before", tmp_path / "after"
    async with opened(log, before) as engine:
        await engine.deposit(entries(0, 5))
        assert await held(engine) == entries(0, 5)
        await asyncio.to_thread(shutil.copytree, before, after)
        log.append([entry.raw for entry in entries(5, 10)])
        await has(engine, entries(0, 15))
        cursor = await engine.cursor()
    log.raws = log.raws[:5]
    async with opened(log, after) as engine:
        await engine.deposit(entries(20, 12))  # past where it was
        assert (await held(engine, cursor))[-12:] == entries(20, 12)


async def test_it_closes_although_a_feed_swallows_being_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(MemoryLog(), tmp_path) as engine:
        real, swallowed = engine._feed.fetch, 0

        async def stubborn(after: bytes) -> Chunk:
            nonlocal swallowed
            try:
                return await real(after)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed > 2:
                    raise
                return Chunk((), after, True)

        monkeypatch.setattr(engine._feed, "fetch", stubborn)
        await asyncio.sleep(1.1)  # it fetches with that
        async with asyncio.timeout(PATIENCE):
            await engine.close()
    assert swallowed == 3


@pytest.mark.usefixtures("hurried")
async def test_a_feed_with_a_fault_is_said_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = MemoryLog()
    async with opened(log, tmp_path) as engine:
        await engine.deposit(entries(0, 2))
        real = engine._feed.fetch
        for broken in (_raises, _long_position):
            monkeypatch.setattr(engine._feed, "fetch", broken)
            await eventually(lambda: _ok(engine, False), PATIENCE)
            monkeypatch.setattr(engine._feed, "fetch", real)
            await eventually(lambda: _ok(engine, True), PATIENCE)
        log.append([make_entry(7).raw])
        await has(engine, [*entries(0, 2), make_entry(7)])
    assert "ZeroDivisionError" in caplog.text


async def _ok(engine: ViewEngine, expected: bool) -> bool:
    return (await engine.status()).ok is expected


async def _raises(after: bytes) -> Chunk:
    raise ZeroDivisionError


async def _long_position(after: bytes) -> Chunk:
    return Chunk((), bytes(5000), True)


async def test_another_program_s_file_in_its_place_is_said(tmp_path: Path) -> None:
    log = MemoryLog()
    async with opened(log, tmp_path) as engine:
        await engine.deposit(entries(0, 2))
    views(tmp_path)[0].write_bytes(b"no database " * 500)
    engine = ViewEngine(MemoryFeed(log), Context(accept, tmp_path))
    with pytest.raises(RoutingError) as caught:
        await engine.open()
    assert "delete it: it is read again" in (caught.value.hint or "")
