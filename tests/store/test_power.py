"""The power fails: of what was not yet synced, any sector may be there, or not, or garbage.

SIGKILL leaves to the kernel what was written. A power cut does not, so it is made here:
the files are photographed after each acknowledged operation, and between two photographs
each sector that differs is drawn from either, or is rubble.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from qis_edge.core.packet import unpack
from qis_edge.core.receipt import Receipt
from qis_edge.store import Outbox, opening
from tests.store.kit import ADDRESS, ELSEWHERE, EPOCH, GATEWAY, ME, conserved, outcome

SECTOR = 512


@dataclass
class Photograph:
    """The files after an operation, and what had been acknowledged by then."""

    main: bytes
    log: bytes
    made: set[int] = field(default_factory=set)
    sent: dict[tuple[bytes, int], bytes] = field(default_factory=dict)
    held: set[tuple[bytes, int]] = field(default_factory=set)


def life(path: Path, draw: random.Random, length: int) -> list[Photograph]:
    """Random operations on one outbox, photographed."""
    box = Outbox.open(path, ME.public)
    # The files before it was opened are of no interest: begin with everything in place.
    box._db.execute(f"PRAGMA wal_autocheckpoint={draw.choice([4, 15, 1000])}")
    made: set[int] = set()
    sent: dict[tuple[bytes, int], bytes] = {}
    held: set[tuple[bytes, int]] = set()
    photographs = []

    def append() -> None:
        number = len(made)
        box.append(outcome(number, n=number), draw.choice([ADDRESS, ELSEWHERE]))
        made.add(number)

    def pack() -> None:
        for packet in box.pack(ME, limit=draw.choice([150, 512]), max_packets=3):
            sent[packet.store, packet.sequence] = packet.raw

    def receipt() -> None:
        for one in box.unreceipted(1):
            box.receipt(GATEWAY, EPOCH, Receipt(one.store, held=(one.sequence,)))
            held.add(one.key)

    # One commit each: what an earlier one wrote is synced and cannot be torn.
    acts: list[Callable[[], None]] = [append, append, pack, receipt]
    for _ in range(length):
        draw.choice(acts)()
        log = path.with_name(path.name + "-wal")
        photographs.append(
            Photograph(path.read_bytes(), log.read_bytes(), set(made), dict(sent), set(held))
        )
    box.close()
    return photographs


def torn(draw: random.Random, before: bytes, after: bytes) -> bytes:
    """Each sector of one or the other; where they differ, seldom of neither."""
    longest = max(len(before), len(after))
    size = draw.choice([len(before), longest, draw.randrange(len(before), longest + 1)])
    sectors = []
    for at in range(0, size, SECTOR):
        old, new = before[at : at + SECTOR], after[at : at + SECTOR]
        chosen = draw.choice([old, new])
        if draw.random() < 0.05:  # what the write did not touch, it does not harm
            rubble = draw.randbytes(SECTOR)
            chosen = bytes(
                new[n] if n < len(old) and n < len(new) and old[n] == new[n] else rubble[n]
                for n in range(max(len(old), len(new)))
            )
        sectors.append(chosen.ljust(SECTOR, b"\0"))
    return b"".join(sectors)[:size]


@pytest.mark.parametrize("seed", range(6))
def test_what_was_acknowledged_is_there_after_a_power_cut(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "inode_of", lambda _: 1)  # the photographs are the file
    draw = random.Random(seed)
    photographs = life(tmp_path / "live.db", draw, 40)
    place = tmp_path / "after"
    place.mkdir()
    path = place / "outbox.db"
    for before, after in pairwise(photographs):
        # The log is synced before the file is touched, and the file before the log is reused.
        while_log = (before.main, torn(draw, before.log, after.log), before)
        while_main = (torn(draw, before.main, after.main), after.log, after)
        for main, log, known in (while_log, while_main):
            for old in place.iterdir():
                old.unlink()
            path.write_bytes(main)
            path.with_name("outbox.db-wal").write_bytes(log)
            _look(path, known, after.sent)


def _look(path: Path, known: Photograph, maybe: dict[tuple[bytes, int], bytes]) -> None:
    with Outbox.open(path, ME.public) as box:
        assert conserved(box.stats())
        assert {notice.code for notice in box.notices()} <= {"torn_log"}
        found = [_number(one.results["n"]) for _, _, one in box.waiting(10**6)]
        open_keys = {one.key for one in box.unreceipted(1000)}
        for (raw,) in box._db.rows("SELECT raw FROM packets"):
            found += [_number(one.results["n"]) for one in unpack(raw, ME.public).outcomes]
        assert len(found) == len(set(found))
        assert known.made <= set(found)
        assert not known.held & open_keys
        for key, raw in known.sent.items():
            kept = box.packet(*key)
            assert kept is not None
            assert kept.raw == raw
        # What is packed now has a number that was never sent with another content. What was
        # in the making when the power failed had not been sent.
        box.append(outcome(10_000, n=10_000), ADDRESS)
        for packet in box.pack(ME, max_packets=100):
            key = (packet.store, packet.sequence)
            assert key not in known.sent
        assert maybe.keys() >= known.sent.keys()


def _number(value: object) -> int:
    return round(float(str(value)))
