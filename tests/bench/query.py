"""How long the newest 50 packets of an address take among 1,000,000.

The real ``sqlite:`` engine, asked through its interface, so with its thread and its check of
each packet that it reads back. 2,000 addresses hold 500 packets each, deposited in turn, so
that those of one address lie on as many pages; which address is asked for is drawn.

- ``p50_ms``, ``p99_ms``: of the engine's queries; of each of several rounds, and of those the
  median, for on a busy machine some rounds measure nothing but its other programs.
- ``widened_p50_ms``, ``widened_p99_ms``: of the newest 50 of all addresses that share 64 bits
  with one, of which there are 100.
- ``sqlite_p50_ms``, ``sqlite_p99_ms``: of SQLite alone, with the same cache, in the event loop.
- ``ratio``: the engine's time over SQLite's, the median of neighbouring queries; they take turns.
- ``stall_ms``: the longest that the event loop was held up meanwhile.

Packets have the framing of real ones and another's signature: an engine looks at neither.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gateway.routing import Context, Entry, Interest, RoutingLayer, open_engine
from gateway.routing.base import framed_fingerprint
from gateway.testing.entries import ADDRESS, make_entry
from tests.bench import report

PACKETS, BATCH = 1_000_000, 10_000
DOMAINS, OF_A_DOMAIN = 20, 100
ROUNDS, QUERIES, WIDENED = 9, 600, 60
NEWEST = 50
FIRST = 1_767_225_600
#: p99 of the engine's queries, milliseconds.
WANTED = 1.0

_SQL = """
    SELECT fingerprint, raw, id, time, expires, confidence, vector
    FROM buckets JOIN packets USING (bucket)
    WHERE fingerprint = ? ORDER BY time DESC, seq DESC LIMIT ?
"""


def addresses() -> list[bytes]:
    return [
        bytes([domain]) * 8 + number.to_bytes(2) * 12
        for number in range(OF_A_DOMAIN)
        for domain in range(DOMAINS)
    ]


def packets() -> Iterator[list[Entry]]:
    """Batches of packets like that of one outcome, an hour's of all addresses after the other."""
    like = make_entry(2**20, time=FIRST).raw
    at = like.index(ADDRESS)
    assert framed_fingerprint(like) == ADDRESS
    every = addresses()
    for start in range(0, PACKETS, BATCH):
        batch = []
        for number in range(start, start + BATCH):
            raw = b"".join(
                (like[:at], every[number % len(every)], like[at + 32 : -8], number.to_bytes(8))
            )
            newest = FIRST + number // len(every) * 3600 + number % 3600
            batch.append(Entry(raw, newest, newest + 720 * 3600, 90))
        yield batch


async def timed(engine: RoutingLayer, interest: Interest) -> float:
    began = time.perf_counter()
    found = await engine.query(interest, limit=NEWEST)
    seconds = time.perf_counter() - began
    assert len(found) == NEWEST
    return seconds


def alone(path: Path) -> Callable[[bytes], float]:
    """Asks SQLite without anything in between; seconds."""
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    db.execute("PRAGMA cache_size=-32768")

    def ask(fingerprint: bytes) -> float:
        began = time.perf_counter()
        found = db.execute(_SQL, (fingerprint, NEWEST)).fetchall()
        seconds = time.perf_counter() - began
        assert len(found) == NEWEST
        return seconds

    return ask


def times(name: str, rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Milliseconds."""
    return {
        f"{name}p{share * 100:.0f}_ms": 1000
        * statistics.median(report.quantile(one, share) for one in rounds)
        for share in (0.5, 0.99)
    }


async def watch(stalls: list[float]) -> None:
    """How late the loop comes back to somebody who always wants to go on."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(0)
        stalls.append(time.perf_counter() - began)
        await asyncio.sleep(0.002)


async def measure(folder: Path) -> dict[str, float]:
    engine = open_engine("sqlite:routing.db", Context(folder=folder))
    await engine.open()
    began = time.perf_counter()
    for batch in packets():
        await engine.deposit(batch)
    filled = time.perf_counter() - began
    gc.collect()
    gc.freeze()  # the bench itself is no load of an engine
    ask, draw, every = alone(folder / "routing.db"), random.Random(8), addresses()
    ours: list[list[float]] = []
    bare: list[list[float]] = []
    widened: list[list[float]] = []
    stalls: list[float] = []
    watching = asyncio.create_task(watch(stalls))
    for _ in range(ROUNDS):
        ours.append([])
        bare.append([])
        for _ in range(QUERIES):
            ours[-1].append(await timed(engine, Interest(draw.choice(every))))
            bare[-1].append(ask(draw.choice(every)))
        prefixes = [Interest(draw.choice(every), 64) for _ in range(WIDENED)]
        widened.append([await timed(engine, interest) for interest in prefixes])
    watching.cancel()
    await engine.close()
    found = {
        "packets": float(PACKETS),
        "deposit_per_s": PACKETS / filled,
        **times("", ours),
        **times("sqlite_", bare),
        "ratio": statistics.median(
            a / b for pair in zip(ours, bare, strict=True) for a, b in zip(*pair, strict=True)
        ),
        **times("widened_", widened),
        "stall_ms": max(stalls) * 1000,
    }
    return {key: float(f"{value:.3g}") for key, value in found.items()}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="qis-bench-") as folder:
        figures = asyncio.run(measure(Path(folder)))
    report.write("query", figures, limits={"p99_ms": WANTED})


if __name__ == "__main__":
    main()
