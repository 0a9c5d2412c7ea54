"""An outbox whose process is killed again and again, at any moment.

A child works on one outbox in random order and says on a pipe what it was told is done.
The parent kills it with SIGKILL, and then knows what must be there: everything that was
acknowledged, each outcome once, each (store, sequence) with one content for ever.

    python -m tests.store.torture --kills 1000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import unpack
from qis_edge.core.receipt import Receipt
from qis_edge.store import Outbox, Pending, Unclocked
from tests.store.kit import ADDRESS, ELSEWHERE, EPOCH, GATEWAY, ME, T0, conserved, outcome

ROOT = Path(__file__).parents[2]
Key = tuple[str, int]
#: More outcomes than are made in one life.
A_LIFE = 10_000


def numbered(number: int) -> Outcome:
    """An outcome that is known by its number."""
    return outcome(number % 50_000, n=number)


# --- the child -------------------------------------------------------------------------


class Worker:
    """Does one thing after the other until it is killed."""

    def __init__(self, path: Path, seed: int, first: int) -> None:
        self._draw = random.Random(seed)
        self._box = Outbox.open(path, ME.public)
        # Often, so that checkpoints are interrupted too.
        self._box._db.execute(f"PRAGMA wal_autocheckpoint={self._draw.choice([5, 50, 2000])}")
        self._next = first
        self._boot = f"boot-{seed}"
        self._say({"ready": True})

    def _say(self, event: dict[str, object]) -> None:
        os.write(1, json.dumps(event).encode() + b"\n")

    def run(self) -> None:
        acts = [self.append] * 6 + [self.append_many, self.append_unclocked]
        acts += [self.pack] * 3 + [self.receipt] * 3 + [self.resend, self.settle]
        while True:
            self._draw.choice(acts)()

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def append(self) -> None:
        number = self._number()
        self._box.append(
            numbered(number),
            self._draw.choice([ADDRESS, ELSEWHERE]),
            priority=self._draw.randrange(4),
        )
        self._say({"made": [number]})

    def append_many(self) -> None:
        numbers = [self._number() for _ in range(self._draw.randrange(2, 30))]
        self._box.append_many(Pending(numbered(n), ADDRESS) for n in numbers)
        self._say({"made": numbers})

    def append_unclocked(self) -> None:
        number = self._number()
        when = Unclocked(self._boot, float(number))
        self._box.append(numbered(number), ADDRESS, unclocked=when)
        self._say({"made": [number]})

    def settle(self) -> None:
        self._box.settle(self._boot, float(T0))

    def pack(self) -> None:
        limit = self._draw.choice([150, 200, 512])
        for packet in self._box.pack(ME, limit=limit, max_packets=self._draw.randrange(1, 6)):
            # This is the sending: from here on the world has seen these bytes.
            self._say({"sent": [packet.store.hex(), packet.sequence, packet.raw.hex()]})

    def receipt(self) -> None:
        queued = self._box.unreceipted(20)
        if not queued:
            return
        some = self._draw.sample(queued, self._draw.randrange(1, len(queued) + 1))
        store = some[0].store
        held = tuple(one.sequence for one in some if one.store == store)
        for one in some:
            self._say({"sent": [one.store.hex(), one.sequence, one.raw.hex()]})
        self._box.receipt(GATEWAY, EPOCH, Receipt(store, held=held))
        self._say({"held": [[store.hex(), sequence] for sequence in held]})

    def resend(self) -> None:
        if self._draw.random() < 0.05:
            self._say({"resend": True})  # before: whether it was done or not, nothing is lost
            self._box.resend(GATEWAY, since=T0 + self._draw.randrange(self._next + 1) * 3600)


# --- the parent ------------------------------------------------------------------------


@dataclass
class Ledger:
    """What the world knows, and what was found wrong."""

    made: set[int] = field(default_factory=set)
    sent: dict[Key, str] = field(default_factory=dict)
    held: set[Key] = field(default_factory=set)
    conflicts: list[Key] = field(default_factory=list)
    events: int = 0

    def note(self, line: bytes) -> None:
        event = json.loads(line)
        self.events += 1
        self.made.update(event.get("made", ()))
        self.held.update((store, sequence) for store, sequence in event.get("held", ()))
        if "resend" in event:
            self.held.clear()
        if "sent" in event:
            store, sequence, raw = event["sent"]
            self.see((store, sequence), raw)

    def see(self, key: Key, raw: str) -> None:
        if self.sent.setdefault(key, raw) != raw:
            self.conflicts.append(key)


@dataclass
class Report:
    """The end of it. All but the first two should be 0."""

    kills: int = 0
    outcomes: int = 0
    packets: int = 0
    lost: int = 0
    duplicated: int = 0
    sequence_conflicts: int = 0
    receipts_lost: int = 0
    miscounted: int = 0
    opened_with_notices: int = 0

    @property
    def clean(self) -> bool:
        return not (
            self.lost
            or self.duplicated
            or self.sequence_conflicts
            or self.receipts_lost
            or self.miscounted
        )


def torture(folder: Path, kills: int, seed: int) -> Report:
    """Kill a worker so many times and look after each."""
    draw = random.Random(seed)
    path = folder / "outbox.db"
    ledger, report = Ledger(), Report()
    for number in range(kills):
        # No number twice, even where the first life did not come to acknowledge it.
        _one_life(path, draw, seed * 100_003 + number, number * A_LIFE, ledger)
        report.kills += 1
        _inspect(path, ledger, report)
    report.outcomes, report.packets = len(ledger.made), len(ledger.sent)
    report.sequence_conflicts = len(ledger.conflicts)
    return report


def _one_life(path: Path, draw: random.Random, seed: int, first: int, ledger: Ledger) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.store.torture", "--child", str(path), str(seed), str(first)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as child:
        assert child.stdout is not None
        # Sometimes while it opens, mostly in the middle of its work.
        early = draw.random() < 0.1
        deadline = time.monotonic() + (draw.uniform(0.05, 0.4) if early else 30)
        pipe = child.stdout.fileno()
        data = b""
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([pipe], [], [], left)[0]:
                break
            chunk = os.read(pipe, 65536)
            if not chunk:
                raise RuntimeError("the worker ended by itself")
            if not data and not early:
                deadline = time.monotonic() + draw.uniform(0.0, 0.25)
            data += chunk
        child.send_signal(signal.SIGKILL)
        while chunk := os.read(pipe, 65536):
            data += chunk
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n"):
            ledger.note(line)


def _inspect(path: Path, ledger: Ledger, report: Report) -> None:
    """Open it as the next start would, and look for what must be there."""
    notices: list[object] = []
    with Outbox.open(path, ME.public, notify=notices.append) as box:
        report.opened_with_notices += len(notices)
        report.miscounted += not conserved(box.stats())
        found = Counter(_number(one.results["n"]) for _, _, one in box.waiting(10**9))
        for (body,) in box._db.rows("SELECT body FROM untimed"):
            found[_number(json.loads(body)[3]["n"])] += 1
        held = set()
        for raw, rank in box._db.rows("SELECT raw, rank FROM packets"):
            packet = unpack(raw, ME.public)
            key = (packet.store.hex(), packet.sequence)
            ledger.see(key, raw.hex())
            found.update(_number(one.results["n"]) for one in packet.outcomes)
            if rank < 0:
                held.add(key)
    report.lost += len(ledger.made - set(found))
    report.duplicated += sum(1 for times in found.values() if times > 1)
    report.receipts_lost += len(ledger.held - held)


def _number(value: object) -> int:
    return round(float(str(value)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=3, metavar=("PATH", "SEED", "FIRST"))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    options = parser.parse_args()
    if options.child:
        path, seed, first = options.child
        Worker(Path(path), int(seed), int(first)).run()
    with tempfile.TemporaryDirectory() as folder:
        report = torture(Path(folder), options.kills, options.seed)
    print(json.dumps({"seed": options.seed, **asdict(report)}, indent=2))
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
