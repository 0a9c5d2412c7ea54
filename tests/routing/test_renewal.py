"""What a forgetful feed is given again, and when."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from gateway.routing import Context, Entry
from gateway.routing import renewal as renewing
from gateway.routing.feed import ForgetfulFeed
from gateway.routing.view import ViewEngine
from gateway.testing import MemoryFeed, MemoryLog, eventually, make_entry
from qis_edge.core.errors import RoutingError

PATIENCE = 30.0


class Forgetful(MemoryFeed):
    def __init__(self, log: MemoryLog, renewal: float) -> None:
        super().__init__(log)
        self.renewal = renewal
        self.renewed: list[Entry] = []
        self.fails = 0

    async def renew(self, entries: Sequence[Entry]) -> None:
        if self.fails:
            self.fails -= 1
            raise RoutingError("away")
        self.renewed += entries


@contextlib.asynccontextmanager
async def view_of(feed: Forgetful, folder: Path) -> AsyncIterator[ViewEngine]:
    engine = ViewEngine(feed, Context(folder=folder))
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


def lasting(count: int, first: int = 0) -> list[Entry]:
    now = int(time.time())
    return [make_entry(first + number, time=now) for number in range(count)]


def test_only_what_can_renew_is_forgetful() -> None:
    assert isinstance(Forgetful(MemoryLog(), 1), ForgetfulFeed)
    assert not isinstance(MemoryFeed(MemoryLog()), ForgetfulFeed)


async def test_each_round_has_everything_that_lasts_once(tmp_path: Path) -> None:
    feed = Forgetful(MemoryLog(), 1.0)
    entries = lasting(2 * renewing.SLICE + 5)
    expired = [make_entry(number, ttl=1) for number in range(900, 910)]
    async with view_of(feed, tmp_path) as engine:
        await engine.deposit([*entries, *expired])
        await eventually(lambda: len(feed.renewed) >= 2 * len(entries), PATIENCE)
    assert feed.renewed[: len(entries)] == entries
    assert feed.renewed[len(entries) : 2 * len(entries)] == entries
    assert not set(feed.renewed) & set(expired)


async def test_it_is_not_before_its_time(tmp_path: Path) -> None:
    feed = Forgetful(MemoryLog(), 3600.0)
    async with view_of(feed, tmp_path) as engine:
        await engine.deposit(lasting(3))
        await asyncio.sleep(0.5)
    assert feed.renewed == []


async def test_what_others_have_published_is_renewed_too(tmp_path: Path) -> None:
    log = MemoryLog()
    (entry,) = lasting(1)
    log.append([entry.raw])
    feed = Forgetful(log, 0.3)
    async with view_of(feed, tmp_path):
        await eventually(lambda: entry in feed.renewed, PATIENCE)


async def test_a_round_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewing, "SHARE", 1e6)  # one slice, then nothing for long
    entries = lasting(3 * renewing.SLICE)
    log = MemoryLog()
    parts: list[list[Entry]] = []
    for _ in range(3):
        feed = Forgetful(log, 0.2)
        async with view_of(feed, tmp_path) as engine:
            await engine.deposit(entries)
            await eventually(lambda f=feed: f.renewed, PATIENCE)  # type: ignore[misc] # its feed
        parts.append(feed.renewed)
    assert [entry for part in parts for entry in part] == entries


@pytest.mark.parametrize("began", [-10_000, 10_000])
async def test_after_a_long_time_off_or_a_clock_that_was_set_it_begins_at_once(
    tmp_path: Path, began: int
) -> None:
    log = MemoryLog()
    (entry,) = lasting(1)
    async with view_of(Forgetful(log, 3600.0), tmp_path) as engine:
        await engine.deposit([entry])
        await eventually(lambda: _begun(engine), PATIENCE)
        done = renewing.Round(time.time() + began, None)
        await engine._view._write(lambda file: renewing._put(file, done))
    feed = Forgetful(log, 3600.0)
    async with view_of(feed, tmp_path):
        await eventually(lambda: entry in feed.renewed, PATIENCE)


async def _begun(engine: ViewEngine) -> bool:
    sql = "SELECT count(*) FROM facts WHERE name = 'renewal'"
    return bool(await engine._view._read(lambda file: file.reader.number(sql)))


async def test_while_the_feed_is_away_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewing, "RETRY_FIRST", 0.05)
    feed = Forgetful(MemoryLog(), 0.2)
    feed.fails = 3
    (entry,) = lasting(1)
    async with view_of(feed, tmp_path) as engine:
        await engine.deposit([entry])
        await eventually(lambda: entry in feed.renewed, PATIENCE)
    assert feed.fails == 0


async def test_what_a_forgetful_feed_took_is_on_the_disk_when_the_deposit_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with view_of(Forgetful(MemoryLog(), 3600.0), tmp_path) as engine:
        file = engine._view._file
        assert file is not None
        synchronous = await engine._view._write(
            lambda file: file.writer.number("PRAGMA synchronous")
        )
        assert synchronous == 2  # FULL
        assert await engine.deposit(lasting(3)) == 3
        assert engine._view._putting is None

        def full(*_: object) -> int:
            raise RoutingError("the disk is full")

        monkeypatch.setattr(file, "put", full)
        with pytest.raises(RoutingError, match="the disk is full"):
            await engine.deposit(lasting(1, 50))
