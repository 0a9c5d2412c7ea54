"""The watchdog is fed by progress: whatever is stuck, systemd hears no more of us."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from qis_edge.core.errors import StoreCorrupt, StoreError
from qis_edge.service.notify import Notifier
from qis_edge.service.supervise import Answer, Supervisor
from qis_edge.worker import Disk
from tests.service.kit import Manager, manager_at

#: Seconds in which systemd wants to hear of us; a beat comes in a quarter of it.
LIMIT = 0.4


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with contextlib.closing(manager_at(tmp_path)) as made:
        yield made


@contextlib.asynccontextmanager
async def supervised(
    manager: Manager, answers: dict[str, Answer], rounds: list[int]
) -> AsyncIterator[asyncio.Task[None]]:
    notifier = Notifier(manager.address, LIMIT)
    supervisor = Supervisor(answers, {"the round": lambda: rounds[0]}, notifier, slowest=0)
    task = asyncio.create_task(supervisor.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def heard(manager: Manager, key: str = "WATCHDOG") -> dict[str, str]:
    return await asyncio.to_thread(manager.until, key)


async def silence(manager: Manager) -> bool:
    """Whether nothing comes for several limits, but for what was under way."""
    await asyncio.sleep(LIMIT)
    await asyncio.to_thread(manager.drain)
    await asyncio.sleep(3 * LIMIT)
    return await asyncio.to_thread(manager.drain) == 0


async def turn(rounds: list[int]) -> None:
    while True:
        await asyncio.sleep(0.02)
        rounds[0] += 1


@contextlib.asynccontextmanager
async def turning(rounds: list[int]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(turn(rounds))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_it_is_fed_while_all_moves(manager: Manager) -> None:
    rounds, disk = [0], Disk("store")

    async def ask() -> str:
        return f"{await disk(len, 'abc')} wait"

    async with turning(rounds), supervised(manager, {"the store": ask}, rounds):
        assert (await heard(manager, "READY"))["STATUS"] == "serving"
        for _ in range(3):
            assert (await heard(manager))["STATUS"] == "3 wait"
    await heard(manager, "STOPPING")
    disk.close()


async def test_a_stuck_store_thread_starves_it(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    rounds, disk, blocked = [0], Disk("store"), threading.Event()

    async def ask() -> str:
        await disk(str)
        return ""

    async with turning(rounds), supervised(manager, {"the store": ask}, rounds):
        await heard(manager)
        stuck = asyncio.create_task(disk(blocked.wait, 60))
        with caplog.at_level(logging.INFO):
            assert await silence(manager)
            blocked.set()  # in the end it is only slow
            await heard(manager)
        assert await stuck
    said = [record.message for record in caplog.records if "the store" in record.message]
    assert said == [
        "the store is stuck: systemd will start this daemon anew if it stays so",
        "the store answers again",
    ]
    disk.close()


async def test_a_round_that_does_not_go_on_starves_it(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop turns, the worker answers, and still the work hangs."""
    rounds = [0]

    async def ask() -> str:
        return ""

    async with supervised(manager, {"the store": ask}, rounds):
        async with turning(rounds):
            await heard(manager)
        with caplog.at_level(logging.INFO):
            assert await silence(manager)
            async with turning(rounds):
                await heard(manager)
    said = [one.message.partition(":")[0] for one in caplog.records if "round" in one.message]
    assert said[0] == "the round is stuck"
    assert set(said) == {"the round is stuck", "the round goes on"}


def test_a_stuck_loop_starves_it(manager: Manager) -> None:
    """In a thread of its own; a blocking call on the loop is the usual fault."""
    rounds, block, blocked = [0], threading.Event(), threading.Event()

    async def ask() -> str:
        return ""

    async def main() -> None:
        async with turning(rounds), supervised(manager, {"the store": ask}, rounds):
            await asyncio.to_thread(block.wait, 60)
            blocked.wait(60)  # the fault: nothing else runs meanwhile
            await heard(manager)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    manager.until("WATCHDOG")
    block.set()
    time.sleep(LIMIT)
    manager.drain()
    time.sleep(3 * LIMIT)
    assert manager.drain() == 0
    blocked.set()
    thread.join(60)
    assert not thread.is_alive()


async def test_trouble_is_an_answer(manager: Manager) -> None:
    """A full disk or a broker that is away is not mended by a restart."""
    rounds = [0]

    async def full() -> str:
        raise StoreError("the disk is full")

    async with turning(rounds), supervised(manager, {"the store": full}, rounds):
        assert (await heard(manager))["STATUS"] == "the disk is full"


async def test_a_damaged_store_ends_the_daemon(manager: Manager) -> None:
    async def damaged() -> str:
        raise StoreCorrupt("damaged")

    async with supervised(manager, {"the store": damaged}, [0]) as task:
        with pytest.raises(StoreCorrupt):
            await asyncio.wait_for(task, 60)
    await heard(manager, "STOPPING")


async def test_without_a_watchdog_it_only_tells(manager: Manager) -> None:
    async def ask() -> str:
        return "3 wait"

    supervisor = Supervisor({"the store": ask}, {}, Notifier(manager.address))
    task = asyncio.create_task(supervisor.run())
    await heard(manager, "READY")
    await asyncio.to_thread(manager.until_it, lambda said: said == {"STATUS": "3 wait"})
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await heard(manager, "STOPPING")


async def test_without_a_manager_it_does_nothing() -> None:
    async def ask() -> str:
        raise AssertionError

    task = asyncio.create_task(Supervisor({"the store": ask}, {}, Notifier()).run())
    await asyncio.sleep(0.05)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
