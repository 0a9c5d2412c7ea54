"""SIGKILL at random points: nothing acknowledged is lost, nothing is there twice, and no
number has two contents. ``make torture`` does it a thousand times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from qis_edge.core.packet import Packet, pack
from tests.store.kit import ADDRESS, ME, conserved
from tests.torture.ledger import Findings, Ledger
from tests.torture.worker import POINTS, Plan, Worker, numbered, opened

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("QIS_TORTURE_KILLS", "100"))


def test_killed_at_any_time_all_keep_what_they_acknowledged(tmp_path: Path) -> None:
    """The outbox, the spool and the routing database, each hit by every kill."""
    path = tmp_path / "torture.json"
    command = [sys.executable, "-m", "tests.torture", "--kills", str(KILLS), "--report", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert report["kills"] == KILLS
    assert not any(report[name] for name in vars(Findings()))
    assert report["outcomes"] > KILLS  # they did come to work
    assert report["packets"] > KILLS
    assert report["points"].keys() <= POINTS.keys()
    assert len(report["points"]) > len(POINTS) // 2


# --- that it would notice ------------------------------------------------------------------


def event(ledger: Ledger, **said: object) -> None:
    ledger.note(json.dumps(said).encode())


def packed(value: int, sequence: int = 0) -> Packet:
    return pack(
        [numbered(value)], identity=ME, fingerprint=ADDRESS, store=b"mine", sequence=sequence
    )


def test_what_was_acknowledged_and_is_gone_is_lost(tmp_path: Path) -> None:
    for said in (
        {"made": [7]},
        {"taken": [["00000000", 1]]},
        {"deposited": [packed(1).raw.hex()]},
    ):
        ledger = Ledger(tmp_path)
        event(ledger, **said)
        ledger.inspect()
        assert ledger.findings.lost, said
    event(ledger := Ledger(tmp_path), done=[["00000000", 1]])
    ledger.inspect()
    assert ledger.findings == replace(Findings(), receipts_lost=1)


def test_two_contents_are_a_conflict_and_two_places_a_duplicate(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for one in packed(1), packed(1), packed(2):
        event(ledger, sent=[one.store.hex(), one.sequence, one.raw.hex()])
    assert ledger.findings == replace(Findings(), sequence_conflicts=1)
    with opened(tmp_path, 0) as stores:
        stores.outbox.append(numbered(3), ADDRESS)
        stores.outbox.append(numbered(3), ADDRESS)
    ledger = Ledger(tmp_path)
    ledger.inspect()
    assert ledger.findings == replace(Findings(), duplicated=1)
    ledger = Ledger(tmp_path)
    ledger.finish()  # and it is so at the gateway
    assert ledger.findings.duplicated > 1


def test_migrations_carry_everything_over(tmp_path: Path) -> None:
    with opened(tmp_path, 0) as stores:
        for number in range(20):
            stores.outbox.append(numbered(number), ADDRESS)
        stores.outbox.pack(ME, limit=200)
    ledger = Ledger(tmp_path, versions=3)
    event(ledger, made=list(range(20)))
    ledger.finish()
    assert ledger.findings == Findings()
    with opened(tmp_path, 3) as stores:
        assert conserved(stores.outbox.stats())
        assert stores.outbox._db.number("PRAGMA user_version") == 4
        assert stores.spool._db.number("PRAGMA user_version") > 3


def test_a_worker_does_what_it_says(tmp_path: Path) -> None:
    """Without a kill, so that it is known to work at all."""
    (tmp_path / "site").mkdir()
    path = tmp_path / "said"
    with path.open("wb") as said:
        plan = Plan(seed=1, point="trim", nth=10**9, steps=0, first=0, versions=0)
        worker = Worker(tmp_path / "site", plan, said.fileno())
        worker.run(acts=300)
    ledger = Ledger(tmp_path / "site")
    for line in path.read_bytes().splitlines():
        ledger.note(line)
    assert ledger.made
    assert ledger.done
    assert ledger.deposited
    ledger.inspect()
    ledger.finish()
    assert ledger.findings == Findings()
