"""Opening SQLite files: one writer, known versions, errors that say what to do."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qis_edge.core.errors import StoreCorrupt, StoreError
from qis_edge.store.database import Database, Lock, Schema, statements
from tests.store.kit import files

ONE = Schema("diary", 0x1234, ("CREATE TABLE days (id INTEGER PRIMARY KEY, text TEXT);",))
TWO = Schema(
    "diary",
    0x1234,
    (
        *ONE.migrations,
        "ALTER TABLE days ADD COLUMN mood TEXT; UPDATE days SET mood = 'good; really';",
    ),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "diary.db"


def write(path: Path, schema: Schema = ONE, text: str = "rain") -> None:
    with Database(path, schema) as db, db.transaction():
        db.execute("INSERT INTO days (text) VALUES (?)", (text,))


# --- versions --------------------------------------------------------------------------


def test_a_new_file_has_the_newest_schema(path: Path) -> None:
    with Database(path, TWO) as db:
        assert db.number("PRAGMA user_version") == 2
        assert db.number("PRAGMA application_id") == 0x1234


def test_an_older_schema_is_migrated_with_what_it_holds(path: Path) -> None:
    write(path)
    with Database(path, TWO) as db:
        assert db.rows("SELECT text, mood FROM days") == [("rain", "good; really")]
    with Database(path, TWO) as db:
        assert db.number("PRAGMA user_version") == 2


def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    write(path)
    broken = Schema("diary", 0x1234, (*TWO.migrations, "INSERT INTO nowhere VALUES (1);"))
    with pytest.raises(StoreError, match="nowhere"):
        Database(path, broken)
    with Database(path, ONE) as db:
        assert db.rows("SELECT * FROM days") == [(1, "rain")]


def test_a_newer_schema_is_refused(path: Path) -> None:
    write(path, TWO)
    with pytest.raises(StoreError, match="newer version") as caught:
        Database(path, ONE)
    assert caught.value.hint
    assert not isinstance(caught.value, StoreCorrupt)


def test_a_reader_does_not_migrate(path: Path) -> None:
    write(path)
    with pytest.raises(StoreError, match="older version") as caught:
        Database(path, TWO, read_only=True)
    assert caught.value.hint


def test_another_programs_file_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(StoreError, match="not a diary"):
        Database(path, ONE)
    with Database(path, Schema("x", 0, ("SELECT 1;",))) as db:
        assert db.rows("SELECT * FROM theirs") == []


def test_scripts_are_split_into_statements() -> None:
    script = "CREATE TABLE a (b); -- one; two\nINSERT INTO a VALUES (';');\n"
    assert len(list(statements(script))) == 2
    with pytest.raises(StoreError, match="unfinished"):
        list(statements("CREATE TABLE a ("))


# --- transactions ----------------------------------------------------------------------


def test_a_transaction_is_all_or_nothing(path: Path) -> None:
    with Database(path, ONE) as db:

        def fail() -> None:
            with db.transaction():
                db.execute("INSERT INTO days (text) VALUES ('a')")
                with db.transaction():
                    db.execute("INSERT INTO days (text) VALUES ('b')")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert db.rows("SELECT * FROM days") == []


def test_a_commit_is_asked_to_be_on_the_medium(path: Path) -> None:
    with Database(path, ONE) as db:
        assert db.value("PRAGMA journal_mode") == "wal"
        assert db.number("PRAGMA synchronous") == 2
    with Database(path, ONE, durable=False) as db:
        assert db.number("PRAGMA synchronous") == 1


# --- one writer ------------------------------------------------------------------------


def test_the_lock_is_one_processs(path: Path) -> None:
    lock = Lock(path)
    with pytest.raises(StoreError, match="in use") as caught:
        Lock(path)
    assert caught.value.hint
    lock.release()
    lock.release()
    Lock(path).release()


def test_the_lock_ends_with_its_process(path: Path) -> None:
    code = (
        "import sys, os, pathlib; from qis_edge.store.database import Lock;"
        "lock = Lock(pathlib.Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=root,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(StoreError, match="in use"):
            Lock(path)
        other.kill()
        other.wait()
    Lock(path).release()


def test_locked_by_a_shell(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qis_edge.store.database.BUSY_SECONDS", 0.05)
    write(path)
    shell = sqlite3.connect(path, isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    with Database(path, ONE) as db, pytest.raises(StoreError, match="locked") as caught:
        db.execute("BEGIN IMMEDIATE")
    assert caught.value.hint
    shell.close()


# --- the disk --------------------------------------------------------------------------


def test_no_more_pages_is_a_full_disk_and_loses_nothing(path: Path) -> None:
    with Database(path, ONE) as db:
        db.execute("INSERT INTO days (text) VALUES ('before')")
        db.execute(f"PRAGMA max_page_count={db.number('PRAGMA page_count') + 2}")

        def fill() -> None:
            for _ in range(100):
                with db.transaction():
                    db.execute("INSERT INTO days (text) VALUES (?)", ("x" * 1000,))

        with pytest.raises(StoreError, match="disk is full") as caught:
            fill()
        assert caught.value.hint
        assert not isinstance(caught.value, StoreCorrupt)
        db.execute("PRAGMA max_page_count=100000")
        with db.transaction():
            db.execute("INSERT INTO days (text) VALUES ('after')")
        texts = [text for (text,) in db.rows("SELECT text FROM days")]
        assert (texts[0], texts[-1]) == ("before", "after")
        db.check()


def test_the_directory_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file") as caught:
        Lock(tmp_path / "none" / "diary.db")
    assert "init" in str(caught.value.hint)
    with pytest.raises(StoreError, match="cannot be opened"):
        Database(tmp_path / "none" / "diary.db", ONE)


def test_writing_a_file_that_is_read_only(path: Path) -> None:
    write(path)
    with Database(path, ONE, read_only=True) as db:
        assert db.rows("SELECT text FROM days") == [("rain",)]
        with pytest.raises(StoreError, match="cannot be written") as caught:
            db.execute("INSERT INTO days (text) VALUES ('x')")
        assert caught.value.hint


@pytest.fixture
def read_only_directory(tmp_path: Path) -> Iterator[Path]:
    """A directory that is read-only for root too: a bind mount, where that is allowed."""
    place = tmp_path / "sealed"
    place.mkdir()
    write(place / "diary.db")
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "--bind", place, place], check=False).returncode:
        place.chmod(0o555)
        probe = place / "probe"
        try:
            probe.touch()
        except OSError:
            yield place
            place.chmod(0o755)
            return
        pytest.skip("root that may not mount: there is no read-only directory to be had")
    subprocess.run([mount, "-o", "remount,ro,bind", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_read_only_disk(read_only_directory: Path) -> None:
    path = read_only_directory / "diary.db"
    with pytest.raises(StoreError, match=r"Read-only|Permission") as caught:
        Lock(path)
    assert "read-only" in str(caught.value.hint)
    with pytest.raises(StoreError, match="cannot be") as caught:
        write(path)
    assert caught.value.hint
    with Database(path, ONE, read_only=True) as db:
        assert db.rows("SELECT text FROM days") == [("rain",)]


# --- damage ----------------------------------------------------------------------------


def test_damage_is_told_and_marked(path: Path) -> None:
    for _ in range(300):
        write(path, text="x" * 500)
    data = bytearray(path.read_bytes())
    data[2048 * 5 : 2048 * 6] = bytes(2048)
    path.write_bytes(data)
    with Database(path, ONE) as db, pytest.raises(StoreCorrupt) as caught:
        db.check()
    assert caught.value.hint
    assert "diary.db.damaged" in files(path.parent)


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreCorrupt):
        Database(path, ONE)


def test_a_reader_leaves_no_mark(path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreCorrupt):
        Database(path, ONE, read_only=True)
    assert files(path.parent) == {"diary.db"}
