"""What the outbox costs: an append beside a bare insert, what draining writes, a long backlog.

``ratio``: durable appends a second over bare inserts a second, one row of the same bytes to a
commit, SQLite with a write-ahead log and ``synchronous=FULL``, in the same folder. Both have
gone round their logs before, and take turns in small blocks; each block is compared with its
neighbour, and the median of that is taken. ``append_us`` and ``bare_us`` are per operation,
``processor_ratio`` is the same on files that are never synced.

``drain``: a backlog of hourly outcomes is packed and receipted as a link lets it: ``written``
is what the process gave the disk (``write_bytes`` of ``/proc/self/io``, checkpoints included)
for each outcome, ``handed`` what it handed to ``write``. Over ``mqtt`` packets are as big as
they may be; over ``radio`` they are small, and eight are packed and answered at once; ``alone``
they are small and each has two commits for itself. ``drain_bytes_per_outcome`` is the worse of
the first two.

``million``: with a million outcomes waiting, the time of an operation over that with a
thousand, taking turns, medians of each; ``million_ratio`` is the worst of them.
``rss_growth_mib`` is what the process grew by while it filled and used the million.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from qis_edge.core.outcome import Outcome
from qis_edge.core.receipt import Receipt
from qis_edge.store import Answer, Outbox, Pending
from qis_edge.store.forms import body_of
from tests.bench import report
from tests.store.kit import ADDRESS, EPOCH, GATEWAY, HOUR, ME, T0

#: Appends before anything is measured: both logs have been begun anew by then.
WARM, BLOCKS, BLOCK = 3000, 400, 10
BACKLOG = 8000
FEW, MANY = 1_000, 1_000_000
ROUNDS = 200
#: Waiting outcomes of one address; there are as many addresses as that makes.
EACH = 500
#: What a radio's frame carries, about.
SMALL = 200


def outcomes(first: int, count: int) -> list[Outcome]:
    """Hourly ones, with three results."""
    return [
        Outcome(
            T0 + number * HOUR,
            samples=60,
            results={
                "temperature": 20.0 + number % 97 / 10,
                "humidity": 50.0 + number % 41,
                "pressure": 1013.0 + number % 13,
            },
        )
        for number in range(first, first + count)
    ]


def seconds(work: Callable[[], object]) -> float:
    """What something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# --- an append ---------------------------------------------------------------------------


def bare(path: Path, synchronous: str) -> sqlite3.Connection:
    """What anybody would do."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute(f"PRAGMA synchronous={synchronous}")
    db.execute("CREATE TABLE outcomes (id INTEGER PRIMARY KEY, time INTEGER, body BLOB)")
    return db


def appending(folder: Path, synchronous: str) -> tuple[float, float, float]:
    """Seconds of an append, of a bare insert of the same row, and the second over the first."""
    ours: list[float] = []
    theirs: list[float] = []
    folder.mkdir()
    with (
        Outbox.open(folder / "outbox.db", ME.public) as box,
        closing(bare(folder / "bare.db", synchronous)) as db,
    ):
        box._db.execute(f"PRAGMA synchronous={synchronous}")

        def append(some: list[Outcome]) -> None:
            for one in some:
                box.append(one, ADDRESS)

        def insert(rows: list[tuple[int, bytes]]) -> None:
            for row in rows:
                db.execute("INSERT INTO outcomes (time, body) VALUES (?, ?)", row)

        for number in range(BLOCKS + 1):
            size = BLOCK if number else WARM
            some = outcomes(number * WARM, size)
            rows = [(one.time, body_of(one)) for one in some]
            turns = [(ours, partial(append, some)), (theirs, partial(insert, rows))]
            for times, work in turns[:: 1 if number % 2 else -1]:
                took = seconds(work) / size
                if number:
                    times.append(took)
    ratios = [insert / append for append, insert in zip(ours, theirs, strict=True)]
    return statistics.median(ours), statistics.median(theirs), statistics.median(ratios)


# --- draining a backlog --------------------------------------------------------------------


def given_to_files() -> tuple[int, int]:
    """Bytes that this process has made the disk write, and has handed to ``write``."""
    text = Path("/proc/self/io").read_text()
    found = {name: int(value) for name, value in re.findall(r"(\w+): (\d+)", text)}
    return found["write_bytes"], found["wchar"]


def draining(path: Path, limit: int, window: int) -> dict[str, float]:
    """Bytes for each outcome, from waiting to held, the log's return to the file included."""
    box = Outbox.open(path, ME.public)
    for first in range(0, BACKLOG, 500):
        box.append_many(Pending(one, ADDRESS) for one in outcomes(first, 500))
    box._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = given_to_files()
    while packets := box.pack(ME, limit=limit, max_packets=window):
        box.receipts(
            Answer(GATEWAY, EPOCH, Receipt(one.store, held=(one.sequence,))) for one in packets
        )
    if box.stats().held_outcomes != BACKLOG:
        raise SystemExit("not all of it was drained")
    packets_made = box.stats().packets
    box.close()
    written, handed = (
        (after - earlier) / BACKLOG for after, earlier in zip(given_to_files(), before, strict=True)
    )
    return {
        "written": round(written),
        "handed": round(handed),
        "outcomes_a_packet": round(BACKLOG / packets_made, 1),
    }


# --- a million ----------------------------------------------------------------------------


def filled(path: Path, count: int) -> Outbox:
    """With so many waiting, and some packets."""
    box = Outbox.open(path, ME.public, budget=1 << 30)
    box._db.execute("PRAGMA synchronous=OFF")
    for _ in range(0, count, EACH):
        more(box, count // EACH, EACH)
    box.pack(ME, limit=SMALL, max_packets=50)
    box._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return box


def more(box: Outbox, addresses: int, count: int) -> None:
    """Append to one address after the other."""
    made = box.stats().made
    box.append_many(
        Pending(one, ((made + number) % addresses).to_bytes(32))
        for number, one in enumerate(outcomes(made, count))
    )


def acts(box: Outbox) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a node does with its outbox."""
    (one,) = outcomes(box.stats().made, 1)

    def receipt() -> None:
        one = box.unreceipted(1)[0]
        box.receipt(GATEWAY, EPOCH, Receipt(one.store, held=(one.sequence,)))

    yield "append", lambda: box.append(one, (0).to_bytes(32))
    yield "pack", lambda: box.pack(ME, limit=SMALL, max_packets=1)
    yield "receipt", receipt
    yield "unreceipted", lambda: box.unreceipted(32)
    yield "stats", box.stats


def resident() -> float:
    """MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def backlogs(folder: Path) -> tuple[dict[str, float], float]:
    """Each operation's time with a million waiting over that with a thousand, and MiB grown."""
    folder.mkdir()
    times: dict[str, tuple[list[float], list[float]]] = {}
    with filled(folder / "few.db", FEW) as few:
        before = resident()
        with filled(folder / "many.db", MANY) as many:
            for number in range(ROUNDS):
                for box, count in (few, FEW), (many, MANY):
                    more(box, count // EACH, count - box.stats().waiting)
                for (name, of_few), (_, of_many) in zip(acts(few), acts(many), strict=True):
                    short, long = times.setdefault(name, ([], []))
                    pair = [(short, of_few), (long, of_many)]
                    for found, act in pair[:: 1 if number % 2 else -1]:
                        found.append(seconds(act))
            after = resident()
    ratios = {
        name: round(statistics.median(long) / statistics.median(short), 2)
        for name, (short, long) in times.items()
    }
    return ratios, round(after - before, 1)


@contextmanager
def place() -> Iterator[Path]:
    """A folder on the disk that the figures go to: one in memory would sync for nothing."""
    report.FOLDER.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="outbox-", dir=report.FOLDER))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main() -> None:
    with place() as folder:
        ours, theirs, ratio = appending(folder / "durable", "FULL")
        _, _, processor_ratio = appending(folder / "quick", "OFF")
        drain = {
            "mqtt": draining(folder / "mqtt.db", limit=512, window=16),
            "radio": draining(folder / "radio.db", limit=SMALL, window=8),
            "alone": draining(folder / "alone.db", limit=SMALL, window=1),
        }
        million, growth = backlogs(folder / "million")
    report.write(
        "outbox",
        {
            "ratio": round(ratio, 3),
            "append_us": round(ours * 1e6, 1),
            "bare_us": round(theirs * 1e6, 1),
            "processor_ratio": round(processor_ratio, 3),
            "drain_bytes_per_outcome": max(drain[link]["written"] for link in ("mqtt", "radio")),
            "drain": drain,
            "million_ratio": max(million.values()),
            "million": million,
            "rss_growth_mib": growth,
        },
        floors={"ratio": 0.85},
        limits={
            "drain_bytes_per_outcome": 1024,
            "million_ratio": 1.3,
            "rss_growth_mib": 8,
        },
    )


if __name__ == "__main__":
    main()
