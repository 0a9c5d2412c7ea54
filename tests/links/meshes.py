"""Mesh links on emulated radios, and both ends of custody over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from devices.radio_sim.channel import Channel
from devices.radio_sim.ports import Pace, PtyPort
from devices.radio_sim.radio import Radio, introduce
from devices.radio_sim.settings import Settings
from qis_edge.core.packet import Packet
from qis_edge.links.backoff import Backoff
from qis_edge.links.base import Link, Role
from qis_edge.links.mesh import MeshLink, MeshSettings
from qis_edge.links.meshtastic_client import MeshtasticClient
from qis_edge.links.meshtastic_session import Timings
from qis_edge.testing.links import LinkWorld
from tests.core.mesh.kit import verify

#: A radio that answers at all answers at once; so silence may be short here.
QUICK = Timings(ask=0.5, silence=2.0, handshake=6.0, answer=0.5, idle=5.0, poll=0.1, stall=0.1)


class WideChannel(Channel):
    """Radios that may all send at once."""

    def _arrive(self, one: Any, to: Any) -> None:
        path = self.between(one.sender.number, to.number)
        if path.heard and self.random.random() >= path.loss:
            self.carried.delivered += 1
            to.heard(one.frame, path.snr, path.rssi)


class Air(LinkWorld):
    """Emulated radios on ptys, and links to them.

    :param rate: how many times as fast as real time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        preset: str = "SHORT_TURBO",
        rate: float = 50.0,
        loss: float = 0.0,
        collisions: bool = False,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.rate = rate
        made = Channel if collisions else WideChannel
        self.channel = made(preset, loss=loss, seed=5)
        self.pace = Pace(self.channel.simulation, rate)
        self.radios: list[Radio] = []
        self.ports: list[PtyPort] = []
        self.links: list[MeshLink] = []
        self._settings = {"preset": preset, "region": "US", "hop_limit": 0, **settings}
        self._broken = False
        self._ports_of: dict[bytes, PtyPort] = {}

    def radio(self, **settings: Any) -> PtyPort:
        """One more radio, on a port."""
        number = len(self.radios)
        radio = Radio(self.channel, Settings(0x10000001 + number, **{**self._settings, **settings}))
        introduce(*self.radios, radio)
        self.radios.append(radio)
        port = PtyPort(radio, self.pace, link=self.folder / f"radio{number}")
        self.ports.append(port)
        if not self._broken:
            port.plug()
        return port

    def link(
        self,
        role: Role,
        port: PtyPort | None = None,
        *,
        knows: Callable[[bytes], Packet] = verify,
        **settings: Any,
    ) -> MeshLink:
        """A link, on a radio of its own unless told otherwise."""
        port = port or self.radio()
        client = MeshtasticClient(port.path, timings=QUICK, backoff=Backoff(0.02, 0.1))
        made = MeshSettings(**{"radio": port.path, "rate": self.rate, **settings})
        link = MeshLink(made, role, knows, client=client)
        self.links.append(link)
        return link

    def of(self, link: MeshLink) -> Radio:
        """The radio of a link."""
        return next(p.radio for p in self.ports if p.path == link.settings.radio)

    def node(self, kid: bytes) -> Link:
        return self.link(Role.NODE)

    def gateway(self, kid: bytes) -> Link:
        if kid not in self._ports_of:
            self._ports_of[kid] = self.radio()
        return self.link(Role.GATEWAY, self._ports_of[kid])

    async def fail(self) -> None:
        self._broken = True
        for port in self.ports:
            port.unplug()

    async def heal(self) -> None:
        self._broken = False
        for port in self.ports:
            port.plug()


@asynccontextmanager
async def on_air(air: Air) -> AsyncIterator[Air]:
    """Let its time pass; close its links in the end."""
    air.pace.start()
    try:
        yield air
    finally:
        for link in air.links:
            await link.close()
        await air.fail()
        air.pace.stop()


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Look every few milliseconds."""
    async with asyncio.timeout(seconds):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)
