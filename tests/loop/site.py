"""A whole site for a test: a fleet, gateways and nodes in one event loop, with real keys,
real stores and a real broker between them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from gateway.config import load_gateway
from gateway.fleet import Fleet
from gateway.station import Station
from qis_edge.config import load_node
from qis_edge.core.credential import GATEWAY, ISSUER, issue
from qis_edge.core.identity import Identity
from qis_edge.keys import FleetFile, read_key, write_key
from qis_edge.node.runtime import Node
from qis_edge.testing.memory import MemoryMedium

YEAR = 365 * 86400
HOUR = 3600
#: Whole hours of simulated time pass in this many real seconds.
SECONDS_PER_HOUR = 0.2
EPOCH = 1_378_166_400  # 2013-09-03


class Site:
    """One fleet in a folder.

    :param medium: URL of the broker that all use, or the medium in its place.
    """

    def __init__(self, folder: Path, medium: str | MemoryMedium) -> None:
        self.folder = folder
        self.medium = medium if isinstance(medium, MemoryMedium) else None
        self.broker = medium if isinstance(medium, str) else "mqtt://127.0.0.1:1"
        self.root = Identity.generate()
        self.anchor = time.time()
        self._tasks: dict[Node | Station, tuple[asyncio.Event, asyncio.Task[None]]] = {}

    # - making

    def station(self, name: str = "base", root: Identity | None = None, extra: str = "") -> Station:
        """A gateway of this fleet (or, with another root, of a foreign one)."""
        state = self._state(name, root or self.root)
        identity = Identity.generate()
        if not (state / "gateway.key").exists():
            write_key(state / "gateway.key", identity)
            self._vouch(state, identity, name, root or self.root)
        config = self._config(
            name,
            f'[gateway]\nname = "{name}"\nstate = "state"\n'
            "[broker]\nembedded = false\n"
            f'[links.mqtt]\nurl = "{self.broker}"\n{extra}',
        )
        kid = read_key(state / "gateway.key").kid
        return Station(load_gateway(config), self.medium.gateway(kid) if self.medium else None)

    def _vouch(self, state: Path, identity: Identity, name: str, root: Identity) -> None:
        credential = issue(
            root,
            subject=name,
            key=identity.public,
            scope=(GATEWAY, ISSUER),
            expires=int(time.time()) + YEAR,
            serial=b"\x00\x00\x00\x01",
        )
        fleet = Fleet(state / "fleet.db", root.public, time.time())
        fleet.add(credential.raw, time.time())
        fleet.close()

    def node(self, name: str, station: str = "EWR", extra: str = "", links: str = "") -> Node:
        """A node that replays an airport's weather."""
        state = self._state(name, self.root)
        if not (state / "node.key").exists():
            write_key(state / "node.key", Identity.generate())
        config = self._config(
            name,
            f'[node]\nname = "{name}"\nstate = "state"\n'
            '[situation]\ndomain = "weather"\n'
            'fields = { climate = "cfa", terrain = "coast", season = "autumn" }\n'
            '[[sensor]]\ndriver = "replay"\ninterval = "30min"\nhistory = "2h"\n'
            'file = "gateway.demo_data:weather-nyc-2013.csv"\n'
            f'where = {{ station = "{station}" }}\n'
            'columns = { temperature = "temperature", humidity = "humidity" }\n'
            'channels = { temperature = "temperature", humidity = "humidity" }\n'
            '[distil]\nwindow = "1h"\nexpected = 1\n'
            f'[links.mqtt]\nurl = "{self.broker}"\n{links}{extra}',
        )
        kid = read_key(state / "node.key").kid
        return Node(load_node(config), self.medium.node(kid) if self.medium else None)

    def _state(self, name: str, root: Identity) -> Path:
        state = self.folder / name / "state"
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (state / "fleet.toml").exists():
            FleetFile(root.public, "test").write(state / "fleet.toml")
        return state

    def _config(self, name: str, text: str) -> Path:
        path = self.folder / name / "config.toml"
        path.write_text(
            f"{text}\n[clock.simulate]\nepoch = {EPOCH}\nanchor = {self.anchor:.3f}\n"
            f"rate = {HOUR / SECONDS_PER_HOUR:g}\n"
        )
        return path

    # - running

    def start(self, *what: Node | Station) -> None:
        """Run these until :meth:`stop`."""
        for one in what:
            stop = asyncio.Event()
            self._tasks[one] = stop, asyncio.create_task(one.run(stop))

    async def stop(self, *what: Node | Station) -> None:
        """Stop these, or all."""
        for one in what or list(self._tasks):
            stop, task = self._tasks.pop(one)
            stop.set()
            await task

    async def wait(self, what: str, true: Callable[[], object], patience: float = 20.0) -> None:
        """Until ``true()``; fails the test when it takes too long or something died."""
        deadline = time.monotonic() + patience
        while not true():
            for _, task in self._tasks.values():
                if task.done():
                    task.result()
            assert time.monotonic() < deadline, f"{what} took longer than {patience} s"
            await asyncio.sleep(0.05)

    async def join(self, station: Station, *nodes: Node) -> None:
        """Permit, and approve each as it asks, as the command line does: over the file."""
        desk = Fleet(station.fleet.path, station.fleet.root)
        desk.permit(station.clock.now() + 10 * YEAR)
        for node in nodes:
            kid = node.identity.kid
            await self.wait("the wish to join", lambda: kid in [one.kid for one in desk.waiting()])  # noqa: B023 - asked at once
            desk.approve(kid, station.identity, time.time())
        await self.wait("joining", lambda: all(node.membership.enrolled(None) for node in nodes))
        desk.close()


@contextlib.asynccontextmanager
async def site(folder: Path, medium: str | MemoryMedium) -> AsyncIterator[Site]:
    """A site whose processes end with the test."""
    made = Site(folder, medium)
    try:
        yield made
    finally:
        await made.stop()


def made_and_held(node: Node) -> tuple[int, int]:
    """How many outcomes a node made, and how many are in custody."""
    stats = node.outbox.stats()
    return stats.made, stats.held_outcomes


async def drained(where: Site, *nodes: Node) -> None:
    """Make no more outcomes, and wait until all are in custody."""
    for node in nodes:
        await node.drain({})
    await where.wait(
        "draining", lambda: all(len(set(made_and_held(node))) == 1 for node in nodes), 40
    )
