"""A serial line between two ports, real or emulated, and what can be done to it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from hil.bench import GATEWAY, NODE, Ask
from hil.emulation import Background
from hil.measure import Meter
from hil.report import Device, Hop
from qis_edge.core.errors import LinkError
from qis_edge.links.base import UP, Destination, Link, Received, Role, down
from qis_edge.links.serial_line import BAUD, SerialLink, SerialSettings
from tests.links.serial_bus import SerialBus

ENDS = {NODE: "node's end", GATEWAY: "gateway's end"}
_KIDS = {NODE: b"node-end", GATEWAY: b"gate-end"}


class Line:
    """A line.

    :param ports: role → port, of a real line; empty: an emulated one, in ``folder``.
    :param ask: asks a person and waits; ``None``: nobody is there.
    """

    def __init__(
        self, ports: Mapping[str, str], folder: Path, meter: Meter, ask: Ask | None = None
    ) -> None:
        self.meter = meter
        self._ask = ask
        self._links: list[Link] = []
        self._background: Background | None = None
        self.ports = dict(ports)
        if not ports:
            self._emulate(folder)
        for role, port in self.ports.items():
            device = Device(ENDS[role], port if ports else "emulated")
            if device not in meter.run.devices:
                meter.run.devices.append(device)

    def _emulate(self, folder: Path) -> None:
        self._background = Background()
        self._noise = 0.0
        self._chance = random.Random(1)  # noqa: S311 - the same noise each time
        self._bus = SerialBus(folder, self._spoil)
        made = self._background.call(lambda: [self._bus.port() for _ in ENDS])
        self._made = dict(zip(ENDS, made, strict=True))
        self.ports = {role: str(port.path) for role, port in self._made.items()}

    def _spoil(self, data: bytes) -> bytes:
        if not self._noise:
            return data
        return bytes(
            byte ^ (1 << self._chance.randrange(8)) if self._chance.random() < self._noise else byte
            for byte in data
        )

    @property
    def emulated(self) -> bool:
        """Whether no hardware takes part."""
        return self._background is not None

    async def up(self, role: str) -> SerialLink:
        """A link on one end, open."""
        side = Role.NODE if role == NODE else Role.GATEWAY
        settings = SerialSettings(self.ports[role], retry_first=0.05, retry_longest=0.5)
        link = SerialLink(settings, side, _KIDS[role], name=ENDS[role])
        self._links.append(link)
        await link.start()
        async with asyncio.timeout(20):
            while not link.up:
                await link.changed()
        return link

    @staticmethod
    def to(role: str) -> Destination:
        """How a link of the other end addresses this one."""
        return down(_KIDS[NODE]) if role == NODE else UP

    async def carry(self, sender: str, link: Link, receiver: Link, frame: bytes) -> Received | None:
        """Send, and wait for it at the other end; ``None`` if it does not come."""
        to = GATEWAY if sender == NODE else NODE
        hop = Hop(ENDS[sender], ENDS[to], len(frame), self.meter.now(), counts=self.meter.counting)
        self.meter.run.hops.append(hop)
        began = time.monotonic()
        await self.send(link, frame, to)
        received = await self.receive(receiver, 2.0)
        if received is not None and received.data == frame:
            hop.took = time.monotonic() - began
        return received

    async def send(self, link: Link, frame: bytes, to: str) -> None:
        """Send, when there is room."""
        deadline = time.monotonic() + 20
        while True:
            changed = link.changed()
            if link.room:
                changed.close()
                break
            if time.monotonic() > deadline:
                pytest.fail(f"no room for 20 s: {link.stats.last_error}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed, 1.0)
        await link.send(frame, self.to(to))

    @staticmethod
    async def receive(link: Link, seconds: float) -> Received | None:
        """The next frame; ``None`` if none comes in so many seconds."""
        with contextlib.suppress(TimeoutError, LinkError):
            received = await asyncio.wait_for(link.receive(), seconds)
            await link.done(received)
            return received
        return None

    def speed(self) -> float:
        """Bytes a second that the line carries at most."""
        return BAUD / 10

    # What is done to it. Each skips the test where it cannot be done.

    @contextlib.asynccontextmanager
    async def cut(self, role: str) -> AsyncIterator[None]:
        """One end is unplugged while this is open."""
        await self._plug(role, False)
        try:
            yield
        finally:
            await self._plug(role, True)

    async def _plug(self, role: str, plugged: bool) -> None:
        if self._background is not None:
            port = self._made[role]
            self._background.call(port.plug if plugged else port.unplug)
            return
        if self._ask is None:
            pytest.skip("somebody has to pull the cable: run it with --interactive")
        what = "plug in again" if plugged else "unplug"
        await asyncio.to_thread(self._ask, f"{what} {ENDS[role]} of the line ({self.ports[role]})")

    def noise(self, share: float) -> None:
        """Let so many of the bytes arrive wrong."""
        if not self.emulated:
            pytest.skip("a real line makes its own noise")
        self._noise = share

    async def close(self) -> None:
        """Close the links, and take the emulated line away."""
        for link in self._links:
            await link.close()
        if self._background is not None:
            self._background.call(self._bus.fail)
            self._background.close()
