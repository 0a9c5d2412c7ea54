"""From readings to outcomes on the disk, whatever drivers, clocks and disks do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from qis_edge.clock import SystemClock
from qis_edge.core.errors import SensorError, StoreCorrupt, StoreError
from qis_edge.core.outcome import Kind, Outcome
from qis_edge.core.priority import Priority
from qis_edge.node import sensing as module
from qis_edge.node import timekeeping
from qis_edge.node.runtime import Node
from qis_edge.sensor import Reading
from qis_edge.testing.memory import MemoryMedium
from tests.loop.site import Site, outbox_of, stats_of
from tests.node.kit import until

LONG_AGO = -30 * 365 * 86400.0


class Driver:
    """What a test wants it to be; made for each node anew."""

    last: Driver
    channels: Mapping[str, str] = {"temperature": "Cel"}

    def __init__(self, settings: Mapping[str, Any]) -> None:
        Driver.last = self
        self.error: Exception | None = None
        self.opened = self.closed = 0
        self.reads: list[float] = []
        self.value: Any = 20.0

    def open(self) -> None:
        self.opened += 1
        if self.opened == 1 and isinstance(self.error, SensorError):
            raise self.error

    def read(self, now: float) -> list[Reading]:
        self.reads.append(now)
        if self.error is not None:
            raise self.error
        return [Reading(now, {"temperature": self.value})]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REOPEN", 0.02)
    monkeypatch.setattr(module, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(module, "RETRY_LONGEST", 0.05)
    monkeypatch.setattr(module, "load_driver", lambda _: Driver)


@contextlib.asynccontextmanager
async def sensing(node: Node) -> AsyncIterator[asyncio.Task[None]]:
    """Only the sensing of a node; its link leads nowhere."""
    task = asyncio.create_task(node.sensing.run())
    try:
        yield task
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await node.sensing.close()
        await node.disk(node.outbox.close)
        await node.disk(node.inbox.close)
        node.disk.close()


def node_of(folder: Path, *, clock: bool = True, extra: str = "") -> Node:
    return Site(folder, MemoryMedium()).node("one", clock=clock, sensor="Steady", extra=extra)


async def test_windows_become_outcomes(tmp_path: Path) -> None:
    node = node_of(tmp_path)
    async with sensing(node):
        await until(lambda: stats_of(node).made >= 3)
        own = await node.disk(node.inbox.own)
        assert [one.time for _, one in own] == sorted({one.time for _, one in own})
        assert {address for address, _ in own} == {node.sensing.address}
        assert node.sensing.status()[0]["reads"] == len(Driver.last.reads)
    assert Driver.last.closed == 1


async def test_the_situation_is_attended_to_before_the_first_window(tmp_path: Path) -> None:
    node = node_of(tmp_path, extra="[peers]\nbits = 200\n")
    asked: list[Any] = []

    async def attend(interests: Any) -> None:
        asked.append(interests)

    vars(node.sensing)["_attend"] = attend
    async with sensing(node):
        await until(lambda: asked)
        await until(lambda: stats_of(node).made >= 2)
    assert len(asked) == 1  # it did not change
    own, *wider = asked[0]
    assert own == (node.sensing.address, 256)
    assert wider
    assert {bits for _, bits in wider} == {200}


async def test_a_driver_that_cannot_be_opened_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = node_of(tmp_path)
    Driver.last.error = SensorError("unplugged")
    async with sensing(node):
        await until(lambda: node.sensing.status()[0]["failures"] >= 1)
        Driver.last.error = None
        await until(lambda: node.sensing.status()[0]["open"])
        await until(lambda: node.sensing.status()[0]["error"] is None)
    assert caplog.text.count("unplugged") == 1


@pytest.mark.parametrize("value", [[1, 2], object(), "a word", float("nan"), None])
async def test_nonsense_from_a_driver_is_no_reading(tmp_path: Path, value: object) -> None:
    node = node_of(tmp_path)
    Driver.last.value = value
    async with sensing(node):
        await until(lambda: stats_of(node).made >= 2)
        own = [one for _, one in await node.disk(node.inbox.own)]
    assert {one.kind for one in own} == {Kind.OPEN}


async def test_no_more_outcomes_after_the_stop(tmp_path: Path) -> None:
    node = node_of(tmp_path)
    async with sensing(node) as running:
        await until(lambda: stats_of(node).made >= 1)
        node.sensing.stop.set()
        await asyncio.sleep(0.02)
        made = stats_of(node).made
        await asyncio.sleep(0.25)
        assert stats_of(node).made == made
        assert not running.done()


async def test_windows_before_a_restart_are_not_stated_again(tmp_path: Path) -> None:
    site = Site(tmp_path, MemoryMedium())
    node = site.node("one", sensor="Steady")
    async with sensing(node):
        await until(lambda: stats_of(node).made >= 3)
    before = stats_of(node).made
    node = site.node("one", sensor="Steady")
    async with sensing(node):
        await until(lambda: stats_of(node).made >= before + 2)
    with outbox_of(node) as reader:
        made = [one.time for _, _, one in reader.waiting(1000)]
    assert len(made) == len(set(made)) >= before + 2


async def test_own_outcomes_of_the_future_silence_nobody(tmp_path: Path) -> None:
    """A wrong clock dated them; then it was set."""
    node = node_of(tmp_path)
    future = Outcome(2**33, results={"temperature": 1.0})
    await node.disk(node.inbox.keep_own, bytes(32), [future])
    async with sensing(node):
        await until(lambda: stats_of(node).made >= 2)


async def test_rules_make_outcomes_urgent(tmp_path: Path) -> None:
    rules = '[[priority]]\nresult = "temperature"\nabove = 25\n'
    node = node_of(tmp_path, extra=rules)
    async with sensing(node):
        await until(lambda: stats_of(node).made >= 2)
        Driver.last.value = 26.0
        made = stats_of(node).made
        await until(lambda: stats_of(node).made >= made + 3)
        with outbox_of(node) as reader:
            waiting = [(priority, one.results) for priority, _, one in reader.waiting(100)]
    assert {priority for priority, _ in waiting} == {Priority.NORMAL, Priority.URGENT}
    for priority, results in waiting:
        value = results["temperature"]
        if value is None:  # a busy machine read nothing in that window
            continue
        assert isinstance(value, float)
        assert priority == (Priority.URGENT if value > 25 else Priority.NORMAL)


async def test_an_outcome_waits_for_the_disk(tmp_path: Path) -> None:
    node = node_of(tmp_path)
    keep, tries = node.outbox.append_many, 0

    def hesitant(pending: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 8:
            raise StoreError("full")
        return keep(pending)

    vars(node.outbox)["append_many"] = hesitant
    async with sensing(node):
        await until(lambda: stats_of(node).made >= 6)
        own = [one.time for _, one in await node.disk(node.inbox.own)]
        made = stats_of(node).made
    assert own == list(range(own[0], own[-1] + 3600, 3600))  # none was left out
    assert 0 <= made - len(own) <= 2  # some may be made, and not kept for comparison yet


async def test_what_the_inbox_does_not_take_is_only_compared_less(tmp_path: Path) -> None:
    node = node_of(tmp_path)

    def full(*_: object) -> None:
        raise StoreError("full")

    vars(node.inbox)["keep_own"] = full
    async with sensing(node):
        await until(lambda: stats_of(node).made >= 3)


@pytest.mark.parametrize(("store", "what"), [("outbox", "append_many"), ("inbox", "keep_own")])
async def test_damage_ends_it(tmp_path: Path, store: str, what: str) -> None:
    node = node_of(tmp_path)

    def damaged(*_: object) -> None:
        raise StoreCorrupt("damaged")

    vars(getattr(node, store))[what] = damaged
    with pytest.raises(StoreCorrupt):
        async with sensing(node) as running:
            await asyncio.wait([running], timeout=5)


# --- clocks --------------------------------------------------------------------------------


def lost(folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: float = LONG_AGO) -> Node:
    monkeypatch.setattr(timekeeping, "_synchronised", lambda: False)
    monkeypatch.setattr("qis_edge.config.ClockConfig.make", lambda _: SystemClock(wrong))
    return node_of(folder, clock=False)


async def test_without_a_clock_outcomes_are_untimed_and_no_ones_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = lost(tmp_path, monkeypatch)
    async with sensing(node):
        await until(lambda: stats_of(node).untimed >= 2)
        assert await node.disk(node.inbox.own) == []
        assert node.estimating._synthesiser.state()["course"] == {}


async def test_the_window_in_which_the_time_becomes_known_is_cut_in_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = lost(tmp_path, monkeypatch, -LONG_AGO)
    async with sensing(node):
        await until(lambda: stats_of(node).untimed >= 1)
        before = len(Driver.last.reads)
        await until(lambda: len(Driver.last.reads) >= before + 3)
        untimed = stats_of(node).untimed
        assert node.clock.learn(time.time(), 1.0)
        # The readings of the old clock's window are stated by the boot's clock …
        await until(lambda: stats_of(node).untimed > untimed)
        # … and those of the new one by the time, which goes on from there.
        await until(lambda: stats_of(node).waiting >= 2)
        own = [one.time for _, one in await node.disk(node.inbox.own)]
        assert all(abs(when - time.time()) < 60 for when in own)
        # Sensors are read all the time, however far the clock was set back.
        reads = len(Driver.last.reads)
        await until(lambda: len(Driver.last.reads) >= reads + 2)
        node.sensing.stop.set()
        await node.sensing.ended.wait()
        own = [one.time for _, one in await node.disk(node.inbox.own)]
        stats = stats_of(node)
        assert 0 <= stats.made - stats.untimed - len(own) <= 1  # one may not be kept yet


async def test_a_clock_that_is_set_back_behind_a_restart_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timekeeping, "_LOOK", 0.1)
    node = node_of(tmp_path, clock=False)
    newest = Outcome(int(time.time()) - 60, results={"temperature": 1.0})
    await node.disk(node.inbox.keep_own, bytes(32), [newest])
    async with sensing(node):
        await until(lambda: stats_of(node).made >= 1)
        monkeypatch.setattr(node.clock, "_clock", SystemClock(-7200))
        before = stats_of(node).made
        await until(lambda: stats_of(node).made >= before + 2)


@pytest.mark.parametrize("busy", [False, True], ids=["asleep", "while the disk is busy"])
async def test_a_clock_that_is_set_back_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, busy: bool
) -> None:
    monkeypatch.setattr(timekeeping, "_LOOK", 0.1)
    node = node_of(tmp_path, clock=False, extra='[synthesis]\nwait = "0s"\n')
    keep, made, estimated = node.outbox.append_many, 0, 0
    estimate = node.estimating.estimate

    def back() -> None:
        monkeypatch.setattr(node.clock, "_clock", SystemClock(-7200))

    def busily(pending: Any) -> Any:
        nonlocal made
        made += 1
        if busy and made == 1:
            back()
        return keep(pending)

    async def estimates(start: int) -> Any:
        nonlocal estimated
        estimated += 1
        return await estimate(start)

    vars(node.outbox)["append_many"] = busily
    vars(node.estimating)["estimate"] = estimates
    async with sensing(node):
        await until(lambda: made >= 1)
        if not busy:
            await asyncio.sleep(0.3)
            back()
        before = estimated
        await until(lambda: made >= 3)
        await until(lambda: estimated >= before + 1)
