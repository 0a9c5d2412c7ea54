"""Emulated radios in a thread of their own, for what blocks while it talks to one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from devices.radio_sim.ports import Pace, PtyPort, TcpPort
from tests.devices.radios import radios

#: How many times as fast as real time they live.
RATE = 30


class Bench:
    """Two radios in a thread of their own, one on a pty and one on a TCP port."""

    def __init__(
        self,
        folder: Path,
        preset: str = "SHORT_TURBO",
        *,
        region: str = "US",
        native_usb: bool = False,
    ) -> None:
        self.channel, made = radios(2, preset, region=region)
        self.one, self.other = made
        self._folder = folder
        self._native_usb = native_usb
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        self.do(self._open)
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        self.pace = Pace(self.channel.simulation, RATE)
        self.pty = PtyPort(
            self.one, self.pace, link=self._folder / "radio", native_usb=self._native_usb
        )
        self.tcp = TcpPort(self.other, self.pace)
        self.pace.start()
        self.pty.plug()
        await self.tcp.plug()

    async def _close(self) -> None:
        self.pace.stop()
        self.pty.unplug()
        await self.tcp.unplug()
        await asyncio.sleep(0)

    def do(self, function: Callable[[], Any]) -> Any:
        """Call something in the radios' thread; a coroutine is awaited."""

        async def call() -> Any:
            result = function()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so in the radios' thread."""
        end = time.monotonic() + 10
        while not self.do(condition):
            assert time.monotonic() < end
            time.sleep(0.01)
