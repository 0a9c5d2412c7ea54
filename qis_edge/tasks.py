"""Running a daemon: several tasks that live and die together, and when to stop."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from qis_edge.core.errors import QisError

log = logging.getLogger(__name__)


async def until(stop: asyncio.Event, *coroutines: Coroutine[Any, Any, None]) -> None:
    """Run these until ``stop`` is set or one of them ends; then all are cancelled.

    :raises QisError: what a task failed with.
    """
    tasks = [asyncio.create_task(one) for one in coroutines]
    stopping = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait((*tasks, stopping), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (*tasks, stopping):
            task.cancel()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)


def run_daemon(serve: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run until SIGTERM or SIGINT; returns an exit status.

    :raises QisError: what stopped it.
    """

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(stop)

    if not faulthandler.is_enabled():
        # What systemd's watchdog ends says where it hung; unless there is no standard error.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            faulthandler.enable()
    # What was imported is no garbage. To look through it, with all the rest, every now and then
    # would hold up the loop, for tens of milliseconds on a small machine.
    gc.freeze()
    try:
        asyncio.run(main())
    except QisError:
        raise
    except Exception as error:
        log.exception("stopped by a fault of ours")
        raise QisError(
            f"internal error: {error!r}", hint="the log above says where; please report it"
        ) from error
    return 0
