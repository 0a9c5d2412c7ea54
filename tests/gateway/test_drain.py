"""From the spool to an engine, whatever the engine does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway import drain as module
from gateway.drain import Drain
from gateway.routing import open_engine
from gateway.routing.base import EVERYTHING
from gateway.spool import Intake, Spool
from qis_edge.core.errors import RoutingError, StoreCorrupt, StoreError
from qis_edge.core.identity import Identity
from qis_edge.worker import Disk
from tests.gateway.kit import NOW, packet_of, until


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(module, "RETRY_LONGEST", 0.02)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.engine = open_engine("memory:")
        self.spool = Spool(folder / "spool.db", engines=[self.engine.url])
        self.disk = Disk("test")
        self.positions: list[int] = []
        self.drain = Drain(self.engine, self.spool, self.disk, self.positions.append)
        self.node = Identity.generate()
        self.task: asyncio.Task[None] | None = None

    async def bring(self, first: int, count: int, *, route: bool = True) -> None:
        batch = [
            Intake(packet_of(self.node, number), NOW, route)
            for number in range(first, first + count)
        ]
        await self.disk(self.spool.admit, batch)
        self.drain.nudge()

    def start(self) -> None:
        self.task = asyncio.create_task(self.drain.run())

    async def there(self) -> int:
        return len(await self.engine.query(EVERYTHING, limit=1000))

    async def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.engine.close()
        self.disk.close()
        self.spool.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.close()


def failing(bench: Bench, what: str, times: int, error: Exception) -> None:
    """The next few calls of the engine's fail."""
    work = getattr(bench.engine, what)
    left = times

    async def call(*given: Any) -> Any:
        nonlocal left
        if left:
            left -= 1
            raise error
        return await work(*given)

    vars(bench.engine)[what] = call


async def test_what_was_there_and_what_comes(bench: Bench) -> None:
    await bench.bring(1, 5)
    bench.start()
    await until(lambda: bench.drain.deposited == 5)
    await bench.bring(6, 3)
    await until(lambda: bench.drain.deposited == 8)
    assert await bench.there() == 8
    assert bench.positions == sorted(bench.positions)
    assert bench.positions[-1] == 8 == bench.spool.routed_through()


async def test_more_than_one_slice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 4)
    await bench.bring(1, 10)
    bench.start()
    await until(lambda: bench.drain.deposited == 10)
    assert {4, 8, 10} <= set(bench.positions)


async def test_what_is_not_routed_is_passed(bench: Bench) -> None:
    await bench.bring(1, 3, route=False)
    await bench.bring(4, 1)
    bench.start()
    await until(lambda: bench.spool.routed_through() == 4)
    assert await bench.there() == 1


@pytest.mark.parametrize("what", ["open", "deposit"])
async def test_an_engine_that_is_away_is_waited_for(
    bench: Bench, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """Said once, and once when it is back: opening alone says nothing."""
    caplog.set_level("INFO")
    failing(bench, what, 4, RoutingError("unplugged"))
    await bench.bring(1, 3)
    bench.start()
    await until(lambda: bench.drain.deposited == 3 and bench.drain.away is None)
    said = [one.getMessage() for one in caplog.records if "routing engine" in one.getMessage()]
    assert len(said) == 2
    assert "is away: unplugged" in said[0]
    assert "is back" in said[1]


async def test_a_deposit_that_is_not_remembered_is_made_again(bench: Bench) -> None:
    advance, failed = bench.spool.advance, 0

    def forgetful(url: str, through: int) -> None:
        nonlocal failed
        if failed < 2:
            failed += 1
            raise StoreError("full")
        advance(url, through)

    vars(bench.spool)["advance"] = forgetful
    await bench.bring(1, 3)
    bench.start()
    await until(lambda: bench.spool.routed_through() == 3)
    assert bench.drain.deposited == 3
    assert bench.drain.repeated == 6
    assert await bench.there() == 3


async def test_damage_is_for_nobody_to_pass_over(bench: Bench) -> None:
    def damaged(*_: object) -> None:
        raise StoreCorrupt("damaged")

    vars(bench.spool)["pending"] = damaged
    await bench.bring(1, 1)
    with pytest.raises(StoreCorrupt):
        await asyncio.wait_for(bench.drain.run(), 5)


async def test_an_idle_drain_is_idle(bench: Bench) -> None:
    await bench.bring(1, 1)
    bench.start()
    await until(lambda: bench.drain.deposited == 1)
    looks = 0
    pending = bench.spool.pending

    def counting(*given: Any) -> Any:
        nonlocal looks
        looks += 1
        return pending(*given)

    vars(bench.spool)["pending"] = counting
    for _ in range(300):  # it may be just about to find that there is no more
        before = looks
        await asyncio.sleep(0.1)
        if looks == before:
            return
    raise AssertionError("it looks again and again")
