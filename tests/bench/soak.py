"""Two hundred nodes on one gateway for ten minutes, with trouble in the middle, and a flood.

Each node is a whole one, with its key, its stores, its sensor and its own connection to a real
Mosquitto (or the embedded broker, where there is none); they run in processes of fifty, and
an hour takes them ten seconds. Four share a situation and hear each other. The gateway is a
process of its own, with its files on the disk; those of the nodes are in memory, where that
can be had, for two hundred nodes have two hundred cards.

Before that, ``ABSENT`` nodes bring ``WARM`` packets of a long absence, and the broker is started
again once: the gateway's caches and buffers are then about as large as they become (the routing
database may keep 32 MiB of pages), and what still grows is a leak.

In the middle third the broker is killed and started again, and every few seconds a node is
switched off and on. Then, for a sixth of the time, a node of the fleet whose key was stolen
sends good packets as fast as ``FLOOD`` says, through the same broker, and heeds no answer.
The first and the last third are quiet. At the end the nodes make no more outcomes, and what
they made is compared with what the routing layer has.

``lost`` and ``duplicated`` are outcomes. ``rss_growth_mib`` is the resident memory of the
gateway's processes, the median of the last third less that of the first. ``hostile_share`` is
how much of the flood was taken, ``honest_passed_over`` how many frames of others were not.
``latency_ms`` is from making a packet to its receipt, the median and the 95th of 100, over the
first third; the same under the flood; ``latency_ratio`` compares these medians.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.fleet import Fleet
from qis_edge.config import load_node
from qis_edge.core.credential import Enrolment
from qis_edge.core.domain import Domain
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import pack
from qis_edge.keys import read_key
from qis_edge.node.runtime import Node
from qis_edge.store.forms import Answer
from tests.bench import report
from tests.bench.node import memory
from tests.loop.site import EPOCH, Site, deposited, made_and_held, spool_of, stats_of
from tests.mosquitto import MOSQUITTO, Mosquitto, free_port

NODES, MINUTES = 200, 10.0
#: Nodes of one process, and of one situation.
EACH, TOGETHER = 50, 4
PACE = 10.0
#: Frames a second of the node that floods, and how many different packets it has.
FLOOD, FLOOD_PACKETS = 2000, 5000
#: Packets before the time begins, how many a second, and of how many nodes.
WARM, WARM_RATE, ABSENT = 120_000, 3000, 8
PATIENCE = 180.0
SITE = "test"
WEATHER = Domain.load("weather")
#: As in docs/mosquitto.conf.
BROKER = ("max_inflight_messages 200", "max_queued_messages 0", "max_queued_bytes 33554432")


@dataclass
class Plan:
    """What is run, seconds."""

    nodes: int
    seconds: float
    flood: float
    pace: float = PACE
    each: int = EACH
    warm: int = 0

    @property
    def third(self) -> float:
        return self.seconds / 3

    @property
    def flooding(self) -> tuple[float, float]:
        """From when to when."""
        return 1.5 * self.third, 2 * self.third


class Field(Site):
    """A gateway on the disk, and nodes in memory."""

    def _config(self, name: str, text: str, *, clock: bool = True) -> Path:
        if name != "base":
            climates, terrains = (one.values for one in WEATHER.fields[:2])
            group = int(name[1:]) // TOGETHER
            climate, terrain = climates[group % len(climates)], terrains[group % len(terrains)]
            text = text.replace('"cfa"', f'"{climate}"').replace('"coast"', f'"{terrain}"')
        return super()._config(name, text, clock=clock)


# --- nodes, in a process of their own ------------------------------------------------------


@dataclass
class Crowd:
    """The nodes of one process. It is told what to do by lines, and answers with one."""

    names: list[str]
    folder: Path
    nodes: dict[str, tuple[Node, asyncio.Event, asyncio.Task[None]]] = field(default_factory=dict)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    restarts: int = 0

    def start(self, name: str) -> None:
        node = Node(load_node(self.folder / name / "config.toml"))
        self.watch(node)
        stop = asyncio.Event()
        self.nodes[name] = node, stop, asyncio.create_task(node.run(stop))

    def watch(self, node: Node) -> None:
        """Note how long each packet waits for its receipt."""
        made: dict[Any, float] = {}
        offer, answered = node.uplink._offer, node.uplink._answered

        def offering(one: Any) -> None:
            made.setdefault(one.key, time.time())
            offer(one)

        def answering(one: Answer) -> None:
            for sequence in one.receipt.held:
                began = made.pop((one.receipt.store, sequence), None)
                if began is not None:
                    self.latencies.append((began, time.time() - began))
            answered(one)

        vars(node.uplink).update(_offer=offering, _answered=answering)

    async def stop(self, name: str) -> None:
        _, stop, task = self.nodes.pop(name)
        stop.set()
        await task

    async def run(self) -> None:
        for name in self.names:
            self.start(name)
            await asyncio.sleep(0.02)
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
        while line := await reader.readline():
            word, _, name = line.decode().strip().partition(" ")
            if word == "restart":
                await self.stop(name)
                self.start(name)
                self.restarts += 1
            elif word == "drain":
                for node, _, _ in self.nodes.values():
                    await node.drain({})
            for _, _, task in self.nodes.values():
                if task.done():
                    task.result()
        await asyncio.gather(*(self.stop(name) for name in list(self.nodes)))
        print(json.dumps({"latencies": self.latencies, "restarts": self.restarts}))


# --- the node that floods ------------------------------------------------------------------


def flood(port: int, seeds: list[bytes], rate: float, seconds: float, different: int) -> None:
    """Publish good packets of these nodes in turn, so many different ones of each, heeding
    nobody; prints how many were sent."""
    address = WEATHER.situation(climate="cfa", terrain="coast", season="autumn").fingerprint
    frames: list[tuple[bytes, bytes]] = []
    for who in map(Identity.from_seed, seeds):
        topic, store = f"qis/v1/{SITE}/up/{who.kid.hex()}".encode(), os.urandom(4)
        for number in range(different):
            packet = pack(
                [Outcome(EPOCH - different + number, results={"temperature": 20.0})],
                identity=who,
                fingerprint=address,
                store=store,
                sequence=number,
                ttl=24 * 365,
                domain=WEATHER,
            )
            frames.append((topic, packet.raw))
    frames = [frames[n] for start in range(different) for n in range(start, len(frames), different)]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        name = b"flooder"
        body = b"\x00\x04MQTT\x04\x02\x00\x00" + len(name).to_bytes(2, "big") + name
        connection.sendall(bytes([0x10, len(body)]) + body)
        assert connection.recv(4)[3] == 0
        connection.settimeout(0)
        print("ready", flush=True)
        sent, began = 0, time.monotonic()
        while (ago := time.monotonic() - began) < seconds:
            with contextlib.suppress(BlockingIOError):
                while connection.recv(1 << 16):
                    pass
            due = int(ago * rate) - sent
            if due <= 0:
                time.sleep(0.002)
                continue
            connection.settimeout(5)
            connection.sendall(
                b"".join(
                    _publish(*frames[number % len(frames)], number % 65_535 + 1)
                    for number in range(sent, sent + min(due, 200))
                )
            )
            connection.settimeout(0)
            sent += min(due, 200)
        print(sent, flush=True)


def _publish(topic: bytes, payload: bytes, mid: int) -> bytes:
    body = len(topic).to_bytes(2, "big") + topic + mid.to_bytes(2, "big") + payload
    assert 128 <= len(body) < 16_384
    return bytes([0x32, len(body) & 0x7F | 0x80, len(body) >> 7]) + body


# --- the run -------------------------------------------------------------------------------


@contextlib.contextmanager
def broker_in(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """(URL, what kills it and starts it again)."""
    if MOSQUITTO is not None:
        mosquitto = Mosquitto(folder / "broker", ["allow_anonymous true", *BROKER])
        mosquitto.start()
        try:
            yield mosquitto.url, mosquitto.restart
        finally:
            mosquitto.kill()
        return
    port = free_port()
    command = [sys.executable, "-m", "gateway.broker", "--port", str(port)]
    process = subprocess.Popen(command)

    def restart() -> None:
        nonlocal process
        process.kill()
        process.wait()
        process = subprocess.Popen(command)

    try:
        yield f"mqtt://127.0.0.1:{port}", restart
    finally:
        process.kill()
        process.wait()


def resident(pid: int) -> float:
    """Of a process and its children, MiB."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(memory(one)["rss"] for one in [pid, *map(int, children)])


def said(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


class Run:
    """One run of a plan."""

    def __init__(self, plan: Plan, disk: Path, memory: Path, url: str) -> None:
        self.plan = plan
        (disk / "base").mkdir()
        (memory / "base").symlink_to(disk / "base")
        self.here = Field(memory, url, pace=plan.pace)
        self.folder = memory
        self.names = [f"n{number:03}" for number in range(plan.nodes)]
        self.crowds: list[subprocess.Popen[bytes]] = []
        self.rss: list[tuple[float, float]] = []
        self.began = 0.0

    async def begin(self) -> None:
        """Everybody runs and has joined."""
        here = self.here
        gateway = here.spawn("base", here.gateway_config())
        self.pid = gateway.pid
        kids = []
        for name in self.names:
            here.node_config(name, sensor="Steady", extra='[outbox]\nttl = "365d"\n')
            kids.append(read_key(here.state(name) / "node.key").kid)
        self.hostile = Identity.generate()
        self.absent = [Identity.generate() for _ in range(ABSENT)]
        identity = read_key(here.state("base") / "gateway.key")
        fleet = Fleet(here.state("base") / "fleet.db", here.root.public)
        for number, who in enumerate([self.hostile, *self.absent]):
            fleet.approve_enrolment(Enrolment.make(who, f"other{number}"), identity, time.time())
        fleet.close()
        for start in range(0, len(self.names), self.plan.each):
            self.crowds.append(self.crowd(self.names[start : start + self.plan.each]))
        await self.approve(kids)
        await here.wait(
            "custody", lambda: all(self.held(name) >= 1 for name in self.names), PATIENCE
        )

    def crowd(self, names: list[str]) -> subprocess.Popen[bytes]:
        """A process that runs these nodes."""
        command = [sys.executable, "-m", "tests.bench.soak", "nodes", str(self.folder), *names]
        with (self.folder / f"crowd-{names[0]}").open("wb") as log:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )

    async def approve(self, kids: list[bytes]) -> None:
        """In the order in which they ask: not all can wait at once."""
        state = self.here.state("base")
        identity = read_key(state / "gateway.key")
        with contextlib.closing(Fleet(state / "fleet.db", self.here.root.public)) as desk:
            desk.permit(time.time() + 86400)
            missing = set(kids)
            deadline = time.monotonic() + PATIENCE
            while missing:
                for one in desk.waiting():
                    desk.approve(one.kid, identity, time.time())
                    missing.discard(one.kid)
                assert time.monotonic() < deadline, f"{len(missing)} never asked"
                await asyncio.sleep(0.1)

    def held(self, name: str) -> int:
        outbox = self.here.state(name) / "outbox.db"
        return made_and_held(self.here.state(name))[1] if outbox.exists() else 0

    def tell(self, name: str, word: str) -> None:
        crowd = self.crowds[self.names.index(name) // self.plan.each]
        assert crowd.stdin is not None
        crowd.stdin.write(f"{word} {name}\n".encode())
        crowd.stdin.flush()

    async def go(self, restart: Callable[[], None]) -> int:
        """The time itself; frames of the flood."""
        plan, sent = self.plan, 0
        self.began = time.time()
        flooder: subprocess.Popen[bytes] | None = None
        broken, turn = False, 0
        next_restart = plan.third
        while (ago := time.time() - self.began) < plan.seconds:
            self.rss.append((ago, resident(self.pid)))
            if ago >= plan.third and not broken:
                broken = True
                await asyncio.to_thread(restart)
            if plan.third <= ago < plan.flooding[0] and ago >= next_restart:
                self.tell(self.names[turn * 7 % len(self.names)], "restart")
                turn, next_restart = turn + 1, ago + max(1.0, plan.third / 30)
            if ago >= plan.flooding[0] and flooder is None:
                begin, end = plan.flooding
                flooder = self.flooder([self.hostile], plan.flood, end - begin, FLOOD_PACKETS)
            await asyncio.sleep(0.5)
            assert self.here.processes["base"].poll() is None, self.here.log("base")[-2000:]
        if flooder is not None:
            out, _ = await asyncio.to_thread(flooder.communicate)
            sent = int(out.split()[-1])
        return sent

    def flooder(
        self, who: Sequence[Identity], rate: float, seconds: float, different: int
    ) -> subprocess.Popen[bytes]:
        port = self.here.broker.rpartition(":")[2]
        seeds = ",".join(one.seed.hex() for one in who)
        command = [sys.executable, "-m", "tests.bench.soak", "flood", port, seeds]
        command += [str(rate), str(seconds), str(different)]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    async def warm(self, restart: Callable[[], None]) -> None:
        """A node brings what it made in a long absence."""
        count = self.plan.warm
        if not count:
            return
        each = count // len(self.absent)
        bringing = self.flooder(self.absent, WARM_RATE, count / WARM_RATE, each)
        assert await asyncio.to_thread(bringing.wait) == 0

        def spooled() -> int:
            with spool_of(self.here.state("base")) as spool:
                return spool.status().packets

        await self.here.wait("the past", lambda: spooled() >= count * 0.9, PATIENCE)
        await asyncio.to_thread(restart)
        before = [self.held(name) for name in self.names]
        await self.here.wait(
            "everybody again",
            lambda: all(self.held(n) > b for n, b in zip(self.names, before, strict=True)),
            PATIENCE,
        )

    async def end(self) -> list[tuple[float, float]]:
        """Nobody makes more, all is delivered; the latencies."""
        here = self.here
        for crowd, name in zip(self.crowds, self.names[:: self.plan.each], strict=True):
            assert crowd.poll() is None
            self.tell(name, "drain")
        await here.wait(
            "draining",
            lambda: all(len(set(made_and_held(here.state(name)))) == 1 for name in self.names),
            PATIENCE,
        )

        def behind() -> int:
            with spool_of(here.state("base")) as spool:
                return max(engine.behind for engine in spool.status().engines)

        await here.wait("routing", lambda: not behind(), PATIENCE)
        found: list[tuple[float, float]] = []
        for crowd in self.crowds:
            out, _ = await asyncio.to_thread(crowd.communicate)
            assert crowd.returncode == 0
            found += [(at - self.began, took) for at, took in json.loads(out)["latencies"]]
        return found

    async def figures(self, sent: int, latencies: list[tuple[float, float]]) -> dict[str, Any]:
        here, plan = self.here, self.plan
        there = await deposited(here.state("base"))
        lost = duplicated = made = passed_over = 0
        fleet = Fleet(here.state("base") / "fleet.db", here.root.public, read_only=True)
        refused = {one.kid: dict(one.refused) for one in fleet.nodes()}
        fleet.close()
        for name in self.names:
            kid = read_key(here.state(name) / "node.key").kid
            times = [one.time for one in there.get(kid, ())]
            own = stats_of(here.state(name)).made
            made += own
            lost += own - len(set(times))
            duplicated += len(times) - len(set(times))
            passed_over += refused.get(kid, {}).get("flooded", 0)
        hostile_over = refused.get(self.hostile.kid, {}).get("flooded", 0)
        third = plan.third
        first = [took for at, took in latencies if at < third]
        flooded = [took for at, took in latencies if plan.flooding[0] + 1 < at < plan.flooding[1]]
        rss = [
            statistics.median(value for at, value in self.rss if low <= at <= high)
            for low, high in ((third / 4, third), (2 * third, plan.seconds))
        ]
        return {
            "nodes": plan.nodes,
            "minutes": round(plan.seconds / 60, 2),
            "outcomes": made,
            "lost": lost,
            "duplicated": duplicated,
            "rss_first_mib": round(rss[0], 1),
            "rss_last_mib": round(rss[1], 1),
            "rss_growth_mib": round(rss[1] - rss[0], 1),
            "rss_mib": self.course(),
            "latency_ms": percentiles(first),
            "latency_under_flood_ms": percentiles(flooded),
            "latency_ratio": (
                round(statistics.median(flooded) / statistics.median(first), 2)
                if first and flooded
                else None
            ),
            "flood_frames": sent,
            "flood_a_second": round(sent / (plan.flooding[1] - plan.flooding[0])),
            "hostile_share": round(1 - hostile_over / sent, 3) if sent else None,
            "honest_passed_over": passed_over,
            "broker": "mosquitto" if MOSQUITTO else "embedded",
        }

    def course(self, points: int = 12) -> list[float]:
        """The gateway's memory over the time, medians of so many parts."""
        part = self.plan.seconds / points
        parts: list[list[float]] = [[] for _ in range(points)]
        for at, value in self.rss:
            parts[min(points - 1, int(at / part))].append(value)
        return [round(statistics.median(one), 1) for one in parts if one]

    def close(self) -> None:
        for crowd in self.crowds:
            if crowd.poll() is None:
                crowd.kill()
                crowd.wait()
        self.here.end_processes()


def percentiles(values: list[float]) -> dict[str, float | None]:
    return {
        name: round(1000 * report.quantile(values, share), 1) if values else None
        for name, share in (("p50", 0.5), ("p95", 0.95))
    }


@contextlib.contextmanager
def folders() -> Iterator[tuple[Path, Path]]:
    """One on the disk, one in memory if there is such a place."""
    shm = Path("/dev/shm")
    free = os.statvfs(shm).f_bavail * os.statvfs(shm).f_frsize if shm.is_dir() else 0
    place = shm if free > 2 << 30 else None
    with (
        tempfile.TemporaryDirectory() as disk,
        tempfile.TemporaryDirectory(dir=place) as memory_,
    ):
        yield Path(disk), Path(memory_)


async def measure(plan: Plan) -> dict[str, Any]:
    """Carry out a plan."""
    with folders() as (disk, quick), broker_in(disk) as (url, restart):
        run = Run(plan, disk, quick, url)
        try:
            await run.begin()
            await run.warm(restart)
            sent = await run.go(restart)
            latencies = await run.end()
            return await run.figures(sent, latencies)
        except BaseException:
            for log in quick.glob("crowd-*"):
                print(log.name, said(log)[-1000:], file=sys.stderr)
            print(said(disk / "base" / "log")[-2000:], file=sys.stderr)
            raise
        finally:
            run.close()


def main() -> None:
    match sys.argv[1:]:
        case ["nodes", folder, *names]:
            asyncio.run(Crowd(names, Path(folder)).run())
        case ["flood", port, seed, rate, seconds, different]:
            seeds = [bytes.fromhex(one) for one in seed.split(",")]
            flood(int(port), seeds, float(rate), float(seconds), int(different))
        case given:
            nodes, minutes = (int(given[0]), float(given[1])) if given else (NODES, MINUTES)
            figures = asyncio.run(measure(Plan(nodes, minutes * 60, FLOOD, warm=WARM)))
            report.write(
                "soak",
                figures,
                limits={
                    "lost": 0,
                    "duplicated": 0,
                    "rss_growth_mib": 8,
                    "latency_ratio": 5,
                    "honest_passed_over": 0,
                },
            )


if __name__ == "__main__":
    main()
