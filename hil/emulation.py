"""Emulated radios on ptys, with an event loop and a thread of their own.

So they go on whatever the tests do, and tests that block are not helped by it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from devices.radio_sim.channel import Channel
from devices.radio_sim.channel import Path as AirPath
from devices.radio_sim.ports import Pace, PtyPort
from devices.radio_sim.radio import Radio, introduce
from devices.radio_sim.settings import Settings

T = TypeVar("T")

NUMBERS = {"node": 0x51A00001, "gateway": 0x51A00002, "second gateway": 0x51A00003}
#: How they hear each other, dB and dBm.
_PATHS = {
    ("node", "gateway"): (4.75, -97),
    ("gateway", "node"): (6.0, -94),
    ("node", "second gateway"): (-3.5, -112),
    ("second gateway", "node"): (-2.25, -110),
    ("gateway", "second gateway"): (1.5, -103),
    ("second gateway", "gateway"): (1.0, -104),
}


class Background:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="air", daemon=True)
        self._thread.start()

    def call(self, do: Callable[[], T]) -> T:
        """Call something there, and wait for what it gives."""

        async def called() -> T:
            return do()

        return self.run(called())

    def run(self, what: Awaitable[T]) -> T:
        """Await something there, and wait for what it gives."""

        async def awaited() -> T:
            return await what

        return asyncio.run_coroutine_threadsafe(awaited(), self.loop).result(30)

    def close(self) -> None:
        """End the loop and the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class Air:
    """Radios that hear each other, each on a pty. The node's and the second gateway's have a
    USB bridge; the gateway's port is gone while it reboots, as with native USB.

    :param folder: where the links to the ptys are.
    """

    def __init__(
        self, folder: Path, *, preset: str, region: str, rate: float, loss: float = 0.0
    ) -> None:
        self._background = Background()
        self.loss = loss
        self._make(folder, preset, region, rate)
        self._background.call(self._start)

    def _make(self, folder: Path, preset: str, region: str, rate: float) -> None:
        self.channel = Channel(preset, loss=self.loss, seed=1)
        self.radios = {
            role: Radio(
                self.channel,
                Settings(
                    number, name=f"Emulated {role}", region=region, preset=preset, channel="qis"
                ),
            )
            for role, number in NUMBERS.items()
        }
        introduce(*self.radios.values())
        self._pace = Pace(self.channel.simulation, rate)
        self.ports = {
            role: PtyPort(
                radio,
                self._pace,
                link=folder / f"{role.replace(' ', '-')}-radio",
                native_usb=role == "gateway",
            )
            for role, radio in self.radios.items()
        }

    def _start(self) -> None:
        for one, other in _PATHS:
            self._connect(one, other)
        self._pace.start()
        for port in self.ports.values():
            port.plug()

    def _connect(self, one: str, other: str) -> None:
        snr, rssi = _PATHS[one, other]
        path = AirPath(loss=self.loss, snr=snr, rssi=rssi)
        self.channel.path(NUMBERS[one], NUMBERS[other], path, both=False)

    def hear(self, one: str, other: str, heard: bool) -> None:
        """Whether ``other`` hears what ``one`` sends."""

        def set_path() -> None:
            if heard:
                self._connect(one, other)
            else:
                self.channel.path(NUMBERS[one], NUMBERS[other], None, both=False)

        self._background.call(set_path)

    def plug(self, role: str, plugged: bool) -> None:
        """Plug a radio's cable in, or take it out; the radio stays on."""
        port = self.ports[role]
        self._background.call(port.plug if plugged else port.unplug)

    def reboot(self, role: str) -> None:
        """As if somebody had pressed the button."""
        self._background.call(self.radios[role].reboot)

    def use_up(self, role: str) -> None:
        """Let a radio have sent all that it may in this hour."""
        radio = self.radios[role]
        self._background.call(lambda: radio.spend(radio.settings.duty_cycle / 100 * 3600))

    def refuse(self, role: str, code: int, times: int) -> None:
        """Let a radio refuse what its host sends next, with a routing error."""
        self._background.call(lambda: self.radios[role].refusals.extend([(code, True)] * times))

    def close(self) -> None:
        """Take everything away."""

        def stop() -> None:
            for port in self.ports.values():
                port.unplug()
            self._pace.stop()

        self._background.call(stop)
        self._background.close()
