"""A whole site for a test: a fleet, gateways and nodes with real keys and real stores, and a
real broker or a medium in memory between them; in one event loop, or as processes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from gateway.config import load_gateway
from gateway.fleet import Fleet
from gateway.receipting import Receipting
from gateway.routing import EVERYTHING, Context, Entry, open_engine
from gateway.spool import Spool
from gateway.station import Station
from qis_edge.config import load_node
from qis_edge.core.credential import GATEWAY, ISSUER, issue
from qis_edge.core.errors import RoutingError
from qis_edge.core.identity import Identity
from qis_edge.core.messages import decode
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import unpack
from qis_edge.keys import FleetFile, read_key, write_key
from qis_edge.links.base import Destination, Link, Received
from qis_edge.node.runtime import Node
from qis_edge.store.forms import Pending, Stats
from qis_edge.store.inbox import Inbox
from qis_edge.store.outbox import Outbox
from qis_edge.store.reader import OutboxReader
from qis_edge.testing.memory import MemoryMedium

YEAR = 365 * 86400
HOUR = 3600
#: Whole hours of simulated time pass in this many real seconds.
SECONDS_PER_HOUR = 0.1
EPOCH = 1_378_166_400  # 2013-09-03


class Site:
    """One fleet in a folder.

    :param medium: URL of the broker that all use, or the medium in its place.
    :param pace: real seconds that an hour takes.
    :param epoch: unix seconds at which the simulated clock starts.
    """

    def __init__(
        self,
        folder: Path,
        medium: str | MemoryMedium,
        *,
        pace: float = SECONDS_PER_HOUR,
        epoch: int = EPOCH,
    ) -> None:
        self.folder = folder
        self.medium = medium if isinstance(medium, MemoryMedium) else None
        self.broker = medium if isinstance(medium, str) else "mqtt://127.0.0.1:1"
        self.pace, self.epoch = pace, epoch
        self.root = Identity.generate()
        self.anchor = time.time()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._tasks: dict[Node | Station, tuple[asyncio.Event, asyncio.Task[None]]] = {}

    # - making

    def station(
        self,
        name: str = "base",
        root: Identity | None = None,
        *,
        gateway: str = "",
        extra: str = "",
        links: str = "",
        clock: bool = True,
    ) -> Station:
        """A gateway of this fleet (or, with another root, of a foreign one).

        :param gateway: more lines of its table ``[gateway]``; ``links`` of its link's.
        """
        config = load_gateway(
            self.gateway_config(name, root, gateway=gateway, extra=extra, links=links, clock=clock)
        )
        kid = read_key(config.gateway.state / "gateway.key").kid
        return Station(config, self.medium.gateway(kid) if self.medium else None)

    def gateway_config(
        self,
        name: str = "base",
        root: Identity | None = None,
        *,
        gateway: str = "",
        extra: str = "",
        links: str = "",
        clock: bool = True,
    ) -> Path:
        """Its keys, its credential and its configuration."""
        state = self._state(name, root or self.root)
        if not (state / "gateway.key").exists():
            identity = Identity.generate()
            write_key(state / "gateway.key", identity)
            self._vouch(state, identity, name, root or self.root)
        return self._config(
            name,
            f'[gateway]\nname = "{name}"\nstate = "state"\n{gateway}'
            "[broker]\nembedded = false\n"
            f'[links.mqtt]\nurl = "{self.broker}"\n{links}{extra}',
            clock=clock,
        )

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

    def node(
        self,
        name: str,
        station: str = "EWR",
        extra: str = "",
        links: str = "",
        *,
        season: str = '"autumn"',
        clock: bool = True,
        sensor: str = "",
        link: Link | None = None,
    ) -> Node:
        """A node that replays an airport's weather.

        :param season: where the situation's season comes from.
        :param sensor: another one, of :mod:`tests.loop.sensors`.
        :param clock: whether it has the simulated one; else it has the machine's, and its
            windows are of one second.
        """
        config = load_node(
            self.node_config(name, station, extra, links, season=season, clock=clock, sensor=sensor)
        )
        if link is None and self.medium is not None:
            link = self.medium.node(read_key(config.node.state / "node.key").kid)
        return Node(config, link)

    def node_config(
        self,
        name: str,
        station: str = "EWR",
        extra: str = "",
        links: str = "",
        *,
        season: str = '"autumn"',
        clock: bool = True,
        sensor: str = "",
    ) -> Path:
        """Its key and its configuration."""
        state = self._state(name, self.root)
        if not (state / "node.key").exists():
            write_key(state / "node.key", Identity.generate())
        if sensor or not clock:
            interval, window = ("30min", "1h") if clock else ("0.1s", "1s")
            sensing = (
                f'[[sensor]]\ndriver = "tests.loop.sensors:{sensor or "Steady"}"\n'
                f'interval = "{interval}"\nchannels = {{ temperature = "temperature" }}\n'
                f'[distil]\nwindow = "{window}"\nexpected = 1\n'
            )
        else:
            sensing = (
                '[[sensor]]\ndriver = "replay"\ninterval = "30min"\nhistory = "2h"\n'
                'file = "gateway.demo_data:weather-nyc-2013.csv"\n'
                f'where = {{ station = "{station}" }}\n'
                'columns = { temperature = "temperature", humidity = "humidity" }\n'
                'channels = { temperature = "temperature", humidity = "humidity" }\n'
                '[distil]\nwindow = "1h"\nexpected = 1\n'
            )
        return self._config(
            name,
            f'[node]\nname = "{name}"\nstate = "state"\n'
            '[situation]\ndomain = "weather"\n'
            f'fields = {{ climate = "cfa", terrain = "coast", season = {season} }}\n'
            f'{sensing}[links.mqtt]\nurl = "{self.broker}"\n{links}{extra}',
            clock=clock,
        )

    def _state(self, name: str, root: Identity) -> Path:
        state = self.state(name)
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (state / "fleet.toml").exists():
            FleetFile(root.public, "test").write(state / "fleet.toml")
        return state

    def state(self, name: str) -> Path:
        """The state folder of a node or gateway."""
        return self.folder / name / "state"

    def _config(self, name: str, text: str, *, clock: bool = True) -> Path:
        path = self.folder / name / "config.toml"
        if clock:
            text += (
                f"\n[clock.simulate]\nepoch = {self.epoch}\nanchor = {self.anchor:.3f}\n"
                f"rate = {HOUR / self.pace:g}\n"
            )
        path.write_text(text)
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

    async def ended(self, one: Node | Station) -> BaseException | None:
        """What it ended with, by itself."""
        _, task = self._tasks.pop(one)
        await asyncio.wait([task], timeout=60)
        assert task.done(), "it did not end"
        return task.exception()

    def spawn(self, name: str, config: Path) -> subprocess.Popen[bytes]:
        """Run a node or a gateway as a process of its own; its log is ``name/log``."""
        module = "gateway" if "[gateway]" in config.read_text() else "qis_edge"
        with (self.folder / name / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, "run", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes[name] = process
        return process

    def log(self, name: str) -> str:
        """What a process has said."""
        return (self.folder / name / "log").read_text()

    def _last_words(self) -> str:
        return "\n".join(f"{name}: {self.log(name)[-1000:]}" for name in self.processes)

    async def wait(self, what: str, true: Callable[[], object], patience: float = 60.0) -> None:
        """Until ``true()``; fails the test when it takes too long or something died."""

        async def asked() -> object:
            return true()

        await self.wait_for(what, asked, patience)

    async def wait_for(
        self, what: str, true: Callable[[], Awaitable[object]], patience: float = 60.0
    ) -> None:
        """:meth:`wait` for what has to be awaited."""
        deadline = time.monotonic() + patience
        while not await true():
            for _, task in self._tasks.values():
                if task.done():
                    task.result()
            assert time.monotonic() < deadline, (
                f"{what} took longer than {patience} s\n{self._last_words()}"
            )
            await asyncio.sleep(0.03)

    async def join(self, station: Station, *nodes: Node) -> None:
        """Permit, and approve each as it asks, as the command line does: over the file."""
        await self.approve(station.config.gateway.name, *(node.identity.kid for node in nodes))
        await self.wait("joining", lambda: all(node.membership.enrolled(None) for node in nodes))

    async def approve(self, name: str, *kids: bytes) -> None:
        """Permit joining at a gateway, and approve these as they ask."""
        state = self.state(name)
        identity = read_key(state / "gateway.key")
        desk = Fleet(state / "fleet.db", self.root.public)
        desk.permit(time.time() + 10 * YEAR)
        for kid in kids:
            await self.wait("the wish to join", lambda: kid in [one.kid for one in desk.waiting()])  # noqa: B023 - asked at once
            desk.approve(kid, identity, time.time())
        desk.close()

    def end_processes(self) -> None:
        """Whatever still runs."""
        for process in self.processes.values():
            process.kill()
            process.wait()


@contextlib.asynccontextmanager
async def site(
    folder: Path,
    medium: str | MemoryMedium,
    *,
    pace: float = SECONDS_PER_HOUR,
    epoch: int = EPOCH,
) -> AsyncIterator[Site]:
    """A site whose processes end with the test."""
    made = Site(folder, medium, pace=pace, epoch=epoch)
    try:
        yield made
    finally:
        made.end_processes()
        await made.stop()


class Absence:
    """An engine that does not take deposits while :attr:`away`."""

    def __init__(self, station: Station) -> None:
        engine = station.engines[0]
        self.away = True
        self._deposit = engine.deposit
        vars(engine)["deposit"] = self.deposit

    async def deposit(self, entries: Sequence[Entry]) -> int:
        if self.away:
            raise RoutingError("away")
        return await self._deposit(entries)


def count(frames: Sequence[tuple[str, bytes]], way: str) -> Counter[str]:
    """Recorded frames of one way, by the name of their message's class."""
    return Counter(type(decode(frame)).__name__ for came, frame in frames if came == way)


def record(link: Link) -> list[tuple[str, bytes]]:
    """Every frame that a link takes (``"out"``) and yields (``"in"``) from now on."""
    frames: list[tuple[str, bytes]] = []
    send, receive = link.send, link.receive

    async def sending(frame: bytes, to: Destination) -> None:
        await send(frame, to)
        frames.append(("out", frame))

    async def receiving() -> Received:
        received = await receive()
        frames.append(("in", received.data))
        return received

    vars(link).update(send=sending, receive=receiving)
    return frames


def backlog(node: Node, count: int, *, each: bool = False) -> None:
    """Outcomes that a node made a while ago; ``each``: in a packet of its own. To be called
    before it runs, or by its disk."""
    node.outbox.append_many(
        Pending(
            Outcome(EPOCH - (count - number) * HOUR, results={"temperature": 20.0}),
            (number if each else 0).to_bytes(32),
            ttl=24 * 365,
        )
        for number in range(count)
    )


# --- looking -----------------------------------------------------------------------------
# A store belongs to its worker's thread while it is open: tests look through others' eyes.


def outbox_of(where: Node | Path) -> OutboxReader:
    """A reader of a node's outbox, beside its daemon or without one."""
    state = where.config.node.state if isinstance(where, Node) else where
    return Outbox.inspect(state / "outbox.db")


def stats_of(where: Node | Path) -> Stats:
    """The outbox in numbers."""
    with outbox_of(where) as reader:
        return reader.stats()


def peers_of(node: Node, address: bytes) -> list[tuple[bytes, int]]:
    """(kid, sequence) of the packets that a node has of an address."""
    with Inbox.inspect(node.config.node.state / "inbox.db") as reader:
        return [(p.kid, p.sequence) for p in reader.query(address, limit=10_000)]


def made_and_held(node: Node | Path) -> tuple[int, int]:
    """How many outcomes a node made, and how many are in custody."""
    stats = stats_of(node)
    return stats.made, stats.held_outcomes


def owed(station: Station) -> int:
    """Receipts of a gateway that wait for its routing engines."""
    teller = station.fronts[0].teller
    assert isinstance(teller, Receipting)
    return teller.owed


def spool_of(where: Station | Path) -> contextlib.closing[Spool]:
    """A reader of a gateway's spool, to be used in a ``with``."""
    state = where.config.gateway.state if isinstance(where, Station) else where
    return contextlib.closing(Spool(state / "spool.db", read_only=True))


async def routed(state: Path) -> list[Entry]:
    """What a gateway's routing layer holds, whether it runs or not."""
    engine = open_engine("sqlite:routing.db", Context(folder=state))
    await engine.open()
    try:
        return await engine.query(EVERYTHING, limit=100_000)
    finally:
        await engine.close()


async def deposited(state: Path) -> dict[bytes, list[Outcome]]:
    """kid → its outcomes in a gateway's routing layer, each as often as it is there."""
    found: dict[bytes, list[Outcome]] = {}
    for entry in await routed(state):
        found.setdefault(entry.kid, []).extend(unpack(entry.raw).outcomes)
    return found


async def assert_each_once(state: Path, nodes: dict[bytes, int]) -> None:
    """Of each node (kid → outcomes made), every outcome is deposited, and none twice."""
    found = await deposited(state)
    for kid, made in nodes.items():
        times = [outcome.time for outcome in found.get(kid, ())]
        assert len(times) == len(set(times)) == made, (len(times), len(set(times)), made)


async def drained(where: Site, *nodes: Node) -> None:
    """Make no more outcomes, and wait until all are in custody."""
    for node in nodes:
        await node.drain({})
    await where.wait(
        "draining", lambda: all(len(set(made_and_held(node))) == 1 for node in nodes), 40
    )


async def settled(where: Site, station: Station) -> None:
    """Wait until every engine has what the spool has."""

    async def done() -> bool:
        status = await station.disk(station.spool.status)
        return all(not engine.behind for engine in status.engines)

    await where.wait_for("routing", done)
