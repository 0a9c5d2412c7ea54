"""SIGKILL at random points of append, pack, send, receipt, deposit and migration.

A process works on an outbox, a spool and a routing database until it is killed, and then
they are opened as the next start would, and compared with what had been acknowledged; again
and again on the same files, and at last everything must arrive, once. Each kill hits all three.

    python -m tests.torture --kills 1000

writes ``build/torture.json`` and fails if anything was lost, duplicated or in conflict.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from tests.torture.ledger import Findings, Ledger
from tests.torture.worker import POINTS, Plan, Worker

ROOT = Path(__file__).parents[2]
OLD = Path(__file__).parents[1] / "store" / "old" / "outbox-1.db"
#: Outcomes that were made in the old file; more than are made in one life.
MADE_BEFORE, A_LIFE = 11, 10_000
#: Kills after which the files are begun anew, so that looking at them stays quick.
A_ROUND = 25
#: Seconds: a life is ended after so many even if its point does not come.
PATIENCE = 20.0


def torture(kills: int, seed: int, folder: Path) -> dict[str, object]:
    """Kill so many workers, one after the other, and look after each."""
    draw = random.Random(seed)
    total, points = Findings(), Counter[str]()
    outcomes = packets = suspected = 0
    for first in range(0, kills, A_ROUND):
        place = folder / str(first)
        place.mkdir()
        ledger = Ledger(place)
        if (first // A_ROUND) % 2:
            shutil.copy(OLD, place / "outbox.db")
            ledger.old = MADE_BEFORE
        for number in range(min(A_ROUND, kills - first)):
            points[_one_life(ledger, draw, number)] += 1
            ledger.inspect()
        ledger.finish()
        for name, found in asdict(ledger.findings).items():
            setattr(total, name, getattr(total, name) + found)
        outcomes += len(ledger.made)
        packets += len(ledger.sent)
        suspected += ledger.suspected
        shutil.rmtree(place)
    return {
        "kills": kills,
        **asdict(total),
        "outcomes": outcomes,
        "packets": packets,
        "suspected": suspected,
        "points": points,
    }


def _one_life(ledger: Ledger, draw: random.Random, number: int) -> str:
    """Returns what was under way when it ended."""
    (point,) = draw.choices(list(POINTS), list(POINTS.values()))
    # Which were begun, and how far they came, does not count: only that they are whole.
    ledger.versions += point == "migrate"
    by_itself = draw.random() < 0.5
    plan = Plan(
        seed=draw.randrange(2**31),
        point=point,
        nth=1 if point in ("open", "migrate") else draw.randrange(1, 20),
        steps=round(2 ** draw.uniform(0, 11 if point not in ("open", "migrate") else 14))
        if by_itself
        else 0,
        # No number twice, even where an earlier life did not come to acknowledge it.
        first=number * A_LIFE,
        versions=ledger.versions,
    )
    longest = 0.04 if point in ("open", "migrate") else 0.003
    data, status = _run(ledger.folder, plan, draw.uniform(0.0, longest))
    under_way = point
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n"):
            under_way = json.loads(line).get("doing", under_way)
            ledger.note(line)
    if status != signal.SIGKILL:
        raise RuntimeError(f"{plan}: the worker ended by itself")
    return under_way


def _run(folder: Path, plan: Plan, wait: float) -> tuple[bytes, int]:
    """What a worker said, and the signal that it died of."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            Worker(folder, plan, write).run()
        except BaseException:  # noqa: BLE001 - its parent sees that it ended
            traceback.print_exc()
        os._exit(1)
    os.close(write)
    data = b""
    deadline = time.monotonic() + PATIENCE
    while (left := deadline - time.monotonic()) > 0 and select.select([read], [], [], left)[0]:
        chunk = os.read(read, 65536)
        if not chunk:  # it is dead
            break
        if b'"now": true' in chunk:
            deadline = time.monotonic() + wait
        data += chunk
    os.kill(child, signal.SIGKILL)
    while chunk := os.read(read, 65536):
        data += chunk
    os.close(read)
    _, status = os.waitpid(child, 0)
    return data, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _share(kills: int, workers: int) -> list[int]:
    return [kills // workers + (number < kills % workers) for number in range(workers)]


def together(kills: int, workers: int, seed: int) -> dict[str, object]:
    """Several tortures beside each other, each in a process that does nothing else."""
    command = [sys.executable, "-m", "tests.torture", "--one"]
    running = [
        subprocess.Popen(
            [*command, "--kills", str(share), "--seed", str(seed + number)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        for number, share in enumerate(_share(kills, workers))
        if share
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"a worker ended by itself (seed {seed})")
    reports = [json.loads(output) for output in outputs]
    points: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for report in reports:
        points.update(report.pop("points"))
        total.update(report)
    return {"seed": seed, **total, "points": dict(sorted(points.items()))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--report", type=Path, default=ROOT / "build" / "torture.json")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(torture(options.kills, options.seed, Path(folder))))
        return 0
    began = time.monotonic()
    report = together(options.kills, options.workers, options.seed)
    report["seconds"] = round(time.monotonic() - began)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return 1 if any(report[name] for name in asdict(Findings())) else 0


if __name__ == "__main__":
    sys.exit(main())
