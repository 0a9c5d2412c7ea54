"""Threads for what blocks, and disks whose trouble is said once."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from qis_edge import worker as module
from qis_edge.core.errors import StoreCorrupt, StoreError
from qis_edge.worker import Disk, Worker


@pytest.fixture
def worker() -> Worker:
    return Worker("test")


async def test_results_and_errors_come_back(worker: Worker) -> None:
    assert await worker(int, "12", base=8) == 10
    with pytest.raises(ValueError, match="invalid literal"):
        await worker(int, "x")
    worker.close()


async def test_it_runs_elsewhere_one_after_the_other(worker: Worker) -> None:
    order: list[int] = []

    def work(number: int) -> int:
        time.sleep(0.005 if number == 0 else 0)
        order.append(number)
        return threading.get_ident()

    threads = await asyncio.gather(*(worker(work, number) for number in range(5)))
    assert order == list(range(5))
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads
    worker.close()


async def test_what_was_asked_for_is_done_though_nobody_waits_any_more(worker: Worker) -> None:
    done: list[str] = []
    blocked = threading.Event()
    first = asyncio.create_task(worker(blocked.wait))
    second = asyncio.create_task(worker(done.append, "second"))
    await asyncio.sleep(0.01)
    for task in (first, second):
        task.cancel()
    blocked.set()
    await worker(done.append, "third")
    assert done == ["second", "third"]
    worker.close()


async def test_close_waits_for_what_is_queued(worker: Worker) -> None:
    done: list[int] = []
    waiting = asyncio.gather(worker(time.sleep, 0.02), worker(done.append, 1))
    await asyncio.sleep(0)
    worker.close()
    assert done == [1]
    await waiting
    worker.close()
    with pytest.raises(RuntimeError, match="closed"):
        await worker(int)


async def test_one_that_hangs_can_be_left(worker: Worker) -> None:
    never = threading.Event()
    hanging = asyncio.create_task(worker(never.wait))
    await asyncio.sleep(0.01)
    began = time.monotonic()
    worker.close(0.05)
    assert time.monotonic() - began < 1
    assert worker._thread is not None
    assert worker._thread.daemon  # the interpreter does not wait for it either
    hanging.cancel()
    never.set()


def test_one_that_did_nothing_closes(worker: Worker) -> None:
    worker.close()


# --- disks ---------------------------------------------------------------------------------


class Store:
    """One that fails while :attr:`error` is set."""

    error: StoreError | None = None

    def write(self) -> str:
        if self.error is not None:
            raise self.error
        return "written"

    def read(self) -> str:
        return "read"


async def test_trouble_is_said_once_and_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    disk, store = Disk("test"), Store()
    store.error = StoreError("full", hint="free some space")
    for _ in range(3):
        with pytest.raises(StoreError):
            await disk(store.write)
        assert await disk(store.read) == "read"  # which says nothing
    assert disk.trouble == "full"
    assert [one.getMessage() for one in caplog.records] == ["full (free some space)"]
    store.error = None
    assert await disk(store.write) == "written"
    assert disk.trouble is None
    assert [one.getMessage() for one in caplog.records][1:] == [
        "the disk works again after 0 s without"
    ]
    disk.close()


async def test_trouble_that_nobody_tries_again_is_over_some_day(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk, store = Disk("test"), Store()
    store.error = StoreError("full")
    with pytest.raises(StoreError):
        await disk(store.write)
    monkeypatch.setattr(module, "_OVER", -1.0)
    await disk(store.read)
    assert disk.trouble is None
    disk.close()


async def test_damage_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    disk, store = Disk("test"), Store()
    store.error = StoreCorrupt("damaged")
    with pytest.raises(StoreCorrupt):
        await disk(store.write)
    assert disk.trouble is None
    assert not caplog.records
    disk.close()
