"""Tasks that live and die together, and daemons."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from qis_edge.core.errors import QisError, StoreError
from qis_edge.tasks import run_daemon, until


async def forever(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("forever")


async def test_all_end_when_told() -> None:
    stop, ended = asyncio.Event(), []  # type: asyncio.Event, list[str]
    running = asyncio.create_task(until(stop, forever(ended), forever(ended)))
    await asyncio.sleep(0.01)
    assert not running.done()
    stop.set()
    await running
    assert ended == ["forever"] * 2


async def test_all_end_when_one_fails() -> None:
    ended: list[str] = []

    async def fail() -> None:
        raise StoreError("full")

    with pytest.raises(StoreError, match="full"):
        await until(asyncio.Event(), forever(ended), fail())
    assert ended == ["forever"]


async def test_all_end_when_one_ends() -> None:
    ended: list[str] = []

    async def end() -> None:
        return

    await until(asyncio.Event(), forever(ended), end())
    assert ended == ["forever"]


async def test_all_end_when_it_is_cancelled() -> None:
    ended: list[str] = []
    running = asyncio.create_task(until(asyncio.Event(), forever(ended)))
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == ["forever"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_daemon_ends_when_it_is_told(number: signal.Signals) -> None:
    async def serve(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stop.wait(), 5)

    assert run_daemon(serve) == 0


def test_what_stops_a_daemon_is_passed_on() -> None:
    async def serve(stop: asyncio.Event) -> None:
        raise StoreError("damaged")

    with pytest.raises(StoreError, match="damaged"):
        run_daemon(serve)


def test_a_fault_of_ours_is_called_one(caplog: pytest.LogCaptureFixture) -> None:
    async def serve(stop: asyncio.Event) -> None:
        raise ZeroDivisionError

    with pytest.raises(QisError, match="internal error"):
        run_daemon(serve)
    assert "stopped by a fault of ours" in caplog.text
