"""What a routing engine costs over its medium's client making the same calls.

For each engine that can be started here, the engine and the client alone take turns, in one
run on one machine, with the same packets; a ratio is the median of the turns' ratios.

- ``deposit_ratio``: packets a second in batches of 500, the engine's over the client's.
- ``deposit_latency_ratio``: time of a single deposit, the engine's over the client's.
- ``query_ratio``: time of the newest 50 of an address, the engine's over the client's.
- ``replay_ratio``: packets a second of everything from the beginning, the engine's (``follow``)
  over the client's (its log).
- ``rebuild_ratio``: the same of an engine with a view that begins with none, so that it reads the
  log, too; of ``https:``, which remembers what it has read, by a newcomer who remembers nothing.
  Signatures are not checked in it.
- ``rss_mib``: resident memory of a process with the engine open, of its own helpers too; an
  engine without packets.

What an engine with a view answers from it is compared with SQLite on tables like the view's, on
a thread, as an asyncio program must call it; ``query_ratio_blocking`` is the same without that
thread. ``memory:`` has no client: it is compared with SQLite, too.

    python -m tests.bench.routing [SCHEME ...]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gateway.routing import EVERYTHING, Context, Entry, Interest, RoutingLayer, open_engine
from gateway.routing.https import HttpsEngine
from gateway.routing.view import ViewEngine
from gateway.testing.entries import make_entry
from qis_edge.core.errors import RoutingError
from tests.bench import report
from tests.bench.engines.base import Absent, Raw, RawSqlite, Site, Start

BATCH, BATCHES, IN_ONE_TURN = 500, 24, 3
SINGLES, QUERIES, REPLAYS = 60, 150, 7
NEWEST = 50
#: Addresses of two domains that the packets are spread over.
ADDRESSES = [bytes([domain]) * 8 + bytes([n]) * 24 for domain in (1, 2) for n in range(20)]
#: Seconds that an engine may take to have read its own log.
PATIENCE = 180.0
#: Scheme → where its medium is started.
ENGINES = {
    "memory": "tests.bench.engines.local:memory",
    "sqlite": "tests.bench.engines.local:sqlite",
    "kafka": "tests.bench.engines.kafka:kafka",
    "redis": "tests.bench.engines.redis:redis",
    "nats": "tests.bench.engines.nats:nats",
    "mqtt": "tests.bench.engines.mqtt:mqtt",
    "qdrant": "tests.bench.engines.qdrant:qdrant",
    "qdrant+edge": "tests.bench.engines.qdrant_edge:qdrant_edge",
    "https": "tests.bench.engines.https:https",
    "dht": "tests.bench.engines.dht:dht",
}
FLOORS = {"deposit_ratio": 0.6, "replay_ratio": 0.5}
LIMITS = {"deposit_latency_ratio": 2.0, "query_ratio": 2.0}
#: Where an engine misses that (docs/routing/README.md says why), it is to become no worse.
MISSED_FLOORS: dict[str, float] = {"dht.deposit_ratio": 0.2}
MISSED_LIMITS: dict[str, float] = {"dht.deposit_latency_ratio": 3.5}


def packets() -> list[Entry]:
    """Signed ones of the last hours, enough for everything; the last are for single deposits."""
    count = BATCH * BATCHES + SINGLES
    first = int(time.time()) - 5 * count
    return [
        make_entry(
            number, fingerprint=ADDRESSES[number % len(ADDRESSES)], time=first + 5 * number, ttl=720
        )
        for number in range(count)
    ]


@dataclass
class Turns:
    """Seconds that the engine and the client took, turn by turn."""

    engine: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)

    async def take(
        self, engine: Callable[[], Awaitable[object]], raw: Callable[[], Awaitable[object]]
    ) -> None:
        """One turn of each; who is first changes from turn to turn."""
        both = [(engine, self.engine), (raw, self.raw)]
        for work, times in both if len(self.raw) % 2 else reversed(both):
            began = time.perf_counter()
            await work()
            times.append(time.perf_counter() - began)

    @property
    def ratio(self) -> float:
        """The engine's time over the client's; the median of all turns but the first."""
        pairs = list(zip(self.engine, self.raw, strict=True))[1:]
        return statistics.median(engine / raw for engine, raw in pairs)

    @property
    def seconds(self) -> float:
        """The engine's time, the median."""
        return statistics.median(self.engine[1:])


async def replay(engine: RoutingLayer) -> int:
    """Follow everything from the beginning until it is live; how many packets."""
    subscription = engine.follow(frozenset([EVERYTHING]))
    count = 0
    try:
        async for batch in subscription:
            count += len(batch.entries)
            if batch.live:
                return count
        return count
    finally:
        await subscription.close()


async def rebuild(url: str, folder: Path, count: int) -> None:
    """With an empty view, until it has everything."""
    engine = open_engine(url, Context(folder=folder))
    await engine.open()
    try:
        async with asyncio.timeout(PATIENCE):
            while ((await engine.status()).packets or 0) < count:  # noqa: ASYNC110 - it is another's doing
                await asyncio.sleep(0.005)
    finally:
        await engine.close()


async def replay_anew(url: str, folder: Path, count: int) -> None:
    """Follow everything, by an engine that was just made."""
    engine = open_engine(url, Context(folder=folder))
    await engine.open()
    try:
        assert await replay(engine) == count
    finally:
        await engine.close()


async def measure(site: Site, folder: Path, entries: Sequence[Entry]) -> dict[str, float]:
    """Everything of one engine but its memory."""
    engine, raw = open_engine(site.url, Context(folder=folder / "state")), site.raw
    await engine.open()
    try:
        found = await _measure_open(engine, raw, entries)
    finally:
        await engine.close()
    if isinstance(engine, ViewEngine | HttpsEngine):
        anew = rebuild if isinstance(engine, ViewEngine) else replay_anew
        turns = Turns()
        for number in range(4):
            fresh = folder / f"fresh-{number}"
            url = site.newcomer or site.url
            await turns.take(partial(anew, url, fresh, len(entries)), raw.replay)
        found["rebuild_ratio"] = 1 / turns.ratio
        found["rebuild_per_s"] = len(entries) / turns.seconds
    return found


async def _measure_open(
    engine: RoutingLayer, raw: Raw, entries: Sequence[Entry]
) -> dict[str, float]:
    deposits, singles, queries, replays = Turns(), Turns(), Turns(), Turns()
    view = raw if isinstance(raw, RawSqlite) else getattr(raw, "view", None)

    async def take(turns: Turns, some: Sequence[Sequence[Entry]], rest: float) -> None:
        await turns.take(partial(_each, engine.deposit, some), partial(_each, raw.deposit, some))
        if view is not None and view is not raw:
            await _each(view.deposit, some)
        if isinstance(engine, ViewEngine):
            await asyncio.sleep(rest)  # what it reads back is of its own turn

    batches = [entries[start : start + BATCH] for start in range(0, BATCH * BATCHES, BATCH)]
    for first in range(0, BATCHES, IN_ONE_TURN):
        await take(deposits, batches[first : first + IN_ONE_TURN], 0.2)
    for entry in entries[BATCH * BATCHES :]:
        await take(singles, [[entry]], 0.02)
    for number in range(QUERIES):
        address = ADDRESSES[number % len(ADDRESSES)]
        await queries.take(
            partial(engine.query, Interest(address), limit=NEWEST),
            partial(raw.query, address, NEWEST),
        )
    assert len(await engine.query(Interest(ADDRESSES[0]), limit=NEWEST)) == NEWEST
    assert await raw.query(ADDRESSES[0], NEWEST) == NEWEST
    for _ in range(REPLAYS):
        await replays.take(partial(replay, engine), raw.replay)
    assert await replay(engine) == await raw.replay() == len(entries)
    found = {
        "deposit_ratio": 1 / deposits.ratio,
        "deposit_latency_ratio": singles.ratio,
        "query_ratio": queries.ratio,
        "replay_ratio": 1 / replays.ratio,
        "deposit_per_s": BATCH * IN_ONE_TURN / deposits.seconds,
        "deposit_ms": singles.seconds * 1000,
        "query_ms": queries.seconds * 1000,
        "replay_per_s": len(entries) / replays.seconds,
    }
    if isinstance(view, RawSqlite):
        found["query_ratio_blocking"] = queries.seconds / blocking(view)
    return found


async def _each(
    deposit: Callable[[Sequence[Entry]], Awaitable[object]], batches: Sequence[Sequence[Entry]]
) -> None:
    for batch in batches:
        await deposit(batch)


def blocking(view: RawSqlite) -> float:
    """Seconds of SQLite's own query on this thread, the median."""
    times = []
    for number in range(QUERIES):
        began = time.perf_counter()
        view.query_here(ADDRESSES[number % len(ADDRESSES)], NEWEST)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


_OPEN = """
import asyncio, os, sys
from pathlib import Path
from gateway.routing import Context, open_engine

def family(pid):
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(child)

def resident(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

async def main(url, folder):
    engine = open_engine(url, Context(folder=Path(folder)))
    await engine.open()
    await engine.status()
    print(sum(map(resident, family(os.getpid()))))
    await engine.close()

asyncio.run(main(*sys.argv[1:]))
"""


def resident(url: str, folder: Path) -> float:
    """MiB of a process, with those that it started, that has the engine open."""
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, url, str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return int(done.stdout) / 1024


def start_of(scheme: str) -> Start:
    """:raises Absent: a package is missing."""
    module, _, name = ENGINES[scheme].partition(":")
    try:
        found: Start = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise Absent(f"the module {error.name} is missing") from error
    return found


async def figures_of(scheme: str, entries: Sequence[Entry]) -> dict[str, Any]:
    """Of one engine; ``absent`` where it could not be started, with the reason."""
    with tempfile.TemporaryDirectory(prefix="qis-bench-") as name:
        folder = Path(name)
        try:
            async with start_of(scheme)(folder) as site:
                found = await measure(site, folder, entries)
                found["rss_mib"] = resident(site.url, folder / "other")
        except Absent as absent:
            return {"absent": str(absent)}
        except pytest.skip.Exception as skipped:  # how the tests' servers say it
            return {"absent": str(skipped.msg).removeprefix("needs: ")}
        except (TimeoutError, RoutingError) as error:  # the others' figures are not lost with it
            return {"failed": repr(error)}
    return {key: float(f"{value:.3g}") for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.routing")
    parser.add_argument("schemes", nargs="*", choices=[[], *ENGINES], metavar="SCHEME")
    chosen = parser.parse_args().schemes or list(ENGINES)
    entries = packets()
    gc.collect()
    gc.freeze()  # the packets and the bench itself are no load of an engine
    figures: dict[str, dict[str, Any]] = {}
    if len(chosen) < len(ENGINES) and (path := report.FOLDER / "routing.json").exists():
        figures = {k: v for k, v in json.loads(path.read_text()).items() if k in ENGINES}
    for scheme in chosen:
        figures[scheme] = asyncio.run(figures_of(scheme, entries))
        print(scheme, figures[scheme], flush=True)
    failed = [scheme for scheme, found in figures.items() if "failed" in found]
    measured = {one for one, found in figures.items() if "deposit_ratio" in found}
    report.write(
        "routing",
        {scheme: figures[scheme] for scheme in ENGINES if scheme in figures},
        limits=bounds(measured, LIMITS, MISSED_LIMITS),
        floors=bounds(measured, FLOORS, MISSED_FLOORS),
    )
    if failed:
        raise SystemExit(f"without figures: {', '.join(failed)}")


def bounds(
    measured: set[str], wanted: Mapping[str, float], missed: Mapping[str, float]
) -> dict[str, float]:
    """By ``scheme.key``."""
    every = {f"{scheme}.{key}": bound for scheme in measured for key, bound in wanted.items()}
    return {key: missed.get(key, bound) for key, bound in every.items()}


if __name__ == "__main__":
    main()
