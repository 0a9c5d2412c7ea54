"""A site whose nodes and gateways have emulated radios, beside a broker or without one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from devices.radio_sim.channel import Channel
from devices.radio_sim.ports import Pace, PtyPort
from devices.radio_sim.radio import Radio, introduce
from devices.radio_sim.settings import Settings
from qis_edge.links.mesh import MeshLink
from qis_edge.links.switch import Switch
from qis_edge.node.runtime import Node
from tests.loop.site import Site

FIRST = 0x10000001


class MeshSite(Site):
    """Radios are handed out in the order in which they are asked for.

    :param rate: how many times as fast as real time the radios run.
    :param both: names of those who use the broker as well.
    """

    def __init__(
        self,
        folder: Path,
        broker: str = "mqtt://127.0.0.1:1",
        *,
        rate: float = 60.0,
        pace: float = 0.4,
        loss: float = 0.0,
        preset: str = "LONG_FAST",
        region: str = "EU_868",
        count: int = 5,
        both: tuple[str, ...] = (),
    ) -> None:
        super().__init__(folder, broker, pace=pace)
        self.rate, self.both = rate, both
        self.channel = Channel(preset, loss=loss, seed=5)
        self.radios = [
            Radio(self.channel, Settings(FIRST + i, preset=preset, region=region, hop_limit=0))
            for i in range(count)
        ]
        introduce(*self.radios)
        self.pacing = Pace(self.channel.simulation, rate)
        self.ports = [PtyPort(radio, self.pacing) for radio in self.radios]
        self._names: list[str] = []

    def number(self, name: str) -> int:
        """The index of somebody's radio."""
        if name not in self._names:
            self._names.append(name)
        return self._names.index(name)

    def port(self, name: str) -> PtyPort:
        """Somebody's radio's port."""
        return self.ports[self.number(name)]

    def _config(self, name: str, text: str, *, clock: bool = True) -> Path:
        mqtt = f'[links.mqtt]\nurl = "{self.broker}"\n'
        assert mqtt in text
        links = f'[links.meshtastic]\nradio = "{self.port(name).path}"\nrate = {self.rate:g}\n'
        if name in self.both:
            links += f'{mqtt}retry = "1s"\n'
        return super()._config(name, text.replace(mqtt, links), clock=clock)


@contextlib.asynccontextmanager
async def plugged(made: MeshSite) -> AsyncIterator[MeshSite]:
    """A site, its radios plugged in."""
    made.pacing.start()
    for port in made.ports:
        port.plug()
    try:
        yield made
    finally:
        made.end_processes()
        await made.stop()
        for port in made.ports:
            port.unplug()
        made.pacing.stop()


def mesh_link(node: Node) -> MeshLink:
    """A node's radio link."""
    links = node.link.links if isinstance(node.link, Switch) else (node.link,)
    (found,) = (link for link in links if isinstance(link, MeshLink))
    return found
