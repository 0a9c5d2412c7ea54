"""Whether a log lost its end: never told of a sound one, told of a damaged one."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from qis_edge.store.database import beside
from qis_edge.store.wal import end_is_suspect, frames_taken

PAGE = 2048
FRAME = PAGE + 24


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """The copy of a database in the middle of its life: its log was never closed."""
    live = tmp_path / "live.db"
    with_log = sqlite3.connect(live, isolation_level=None)
    with_log.execute(f"PRAGMA page_size={PAGE}")
    with_log.execute("PRAGMA journal_mode=WAL")
    with_log.execute("CREATE TABLE t (x)")
    with_log.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for number in range(20):
        with_log.execute("INSERT INTO t VALUES (?)", (str(number) * 700,))
    copy = tmp_path / "copy.db"
    shutil.copy(live, copy)
    shutil.copy(f"{live}-wal", f"{copy}-wal")
    with_log.close()
    return copy


def suspect(path: Path) -> bool:
    """What is said when SQLite has taken what it could."""
    with sqlite3.connect(path) as db:
        db.execute("SELECT count(*) FROM t")
        taken = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
        said = end_is_suspect(Path(f"{path}-wal"), taken)
    db.close()
    return said


def test_a_sound_log(crashed: Path) -> None:
    assert not suspect(crashed)


def test_no_log(tmp_path: Path) -> None:
    assert not end_is_suspect(tmp_path / "none-wal", 0)
    (tmp_path / "empty-wal").touch()
    assert not end_is_suspect(tmp_path / "empty-wal", 0)


def test_an_unfinished_commit_is_no_damage(crashed: Path) -> None:
    log = Path(f"{crashed}-wal")
    frames = (log.stat().st_size - 32) // FRAME
    with log.open("r+b") as file:
        file.truncate(32 + frames * FRAME - 500)  # written in part
    assert not suspect(crashed)


def test_frames_of_an_earlier_round_are_no_damage(crashed: Path) -> None:
    log = Path(f"{crashed}-wal")
    old = log.read_bytes()
    with sqlite3.connect(crashed) as db:
        db.execute("PRAGMA wal_checkpoint(RESTART)")
        db.execute("INSERT INTO t VALUES ('next round')")
        db.commit()
        new = log.read_bytes()
        copy = crashed.with_name("round.db")
        shutil.copy(crashed, copy)
        Path(f"{copy}-wal").write_bytes(new)
    db.close()
    assert len(new) == len(old)
    assert not suspect(copy)


@pytest.mark.parametrize("part", ["header", "salt", "frame header", "page", "many"])
def test_a_flipped_bit_is_damage(crashed: Path, part: str) -> None:
    log = Path(f"{crashed}-wal")
    middle = 32 + 5 * FRAME
    offsets = {
        "header": [9],
        "salt": [middle + 10],
        "frame header": [middle + 3],
        "page": [middle + 24 + 100],
        "many": list(range(middle, middle + 5 * FRAME)),
    }[part]
    data = bytearray(log.read_bytes())
    for offset in offsets:
        data[offset] ^= 0x10
    log.write_bytes(data)
    assert suspect(crashed)


def test_every_lost_tail_is_noticed_wherever_the_bit_is(crashed: Path) -> None:
    log = Path(f"{crashed}-wal")
    sound = log.read_bytes()
    main = crashed.read_bytes()
    for offset in range(40, len(sound) - 4 * FRAME, 997):
        data = bytearray(sound)
        data[offset] ^= 1
        log.write_bytes(data)
        crashed.write_bytes(main)
        assert suspect(crashed), offset


def test_the_index_says_how_much_was_taken(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    assert frames_taken(beside(path, "-shm")) == 0
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t (x)")
    for number in range(5):
        db.execute("INSERT INTO t VALUES (?)", (number,))
        size = db.execute("PRAGMA page_size").fetchone()[0] + FRAME - PAGE
        frames = (beside(path, "-wal").stat().st_size - 32) // size
        assert frames_taken(beside(path, "-shm")) == frames > number
    assert db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1] == frames
    db.close()
