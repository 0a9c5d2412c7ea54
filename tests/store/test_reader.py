"""Reading an outbox beside its daemon, without it, and without the right to write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qis_edge.core.errors import StoreError
from qis_edge.store import Outbox
from tests.store.kit import ADDRESS, ME, files, fill, held, hours, outcome, pack_each


def test_a_reader_sees_what_the_writer_has_done(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox.open(path, ME.public) as box, Outbox.inspect(path) as reader:
        packets = pack_each(box, 3)
        fill(box, 2, first=3)
        held(box, packets[0].store, 0)
        mine, theirs = box.stats(), reader.stats()
        assert (theirs.made, theirs.waiting, theirs.held_packets) == (5, 2, 1)
        assert mine.store == theirs.store
        assert [one.raw for one in reader.unreceipted()] == [p.raw for p in packets[1:]]
        assert hours(one for _, _, one in reader.waiting()) == [3, 4]
        assert reader.aside() == []
        fill(box, 1, first=5)
        assert reader.stats().waiting == 3


def test_a_reader_does_not_hold_the_writer_up(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox.open(path, ME.public) as box:
        fill(box, 10)
        with Outbox.inspect(path) as reader, reader._db.snapshot():
            waiting = reader._each_waiting()
            next(waiting)  # in the middle of its look
            fill(box, 10, first=10)
            assert len(box.pack(ME)) == 1
            assert len(list(waiting)) == 9


def test_a_stopped_outbox_is_read_without_being_changed(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox.open(path, ME.public) as box:
        fill(box, 3)
    before = path.read_bytes()
    with Outbox.inspect(path) as reader:
        assert reader.stats().waiting == 3
    assert path.read_bytes() == before
    with Outbox.open(path, ME.public) as box:
        assert box.notices() == []


def test_there_is_none_yet(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="none yet") as caught:
        Outbox.inspect(tmp_path / "outbox.db")
    assert caught.value.hint
    assert files(tmp_path) == set()


READ = """
import os, sys, urllib.parse  # before it may read no more: an interpreter can be in /root
from qis_edge.store import Outbox
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
try:
    with Outbox.inspect(sys.argv[1]) as reader:
        print(reader.stats().waiting)
except Exception as error:
    print(type(error).__name__, getattr(error, "hint", None))
"""


@pytest.mark.parametrize("running", [True, False])
def test_one_who_may_only_read_reads(tmp_path: Path, running: bool) -> None:
    """Another user than the daemon's, in a directory that is not theirs."""
    place = Path("/tmp") / f"qis-reader-{os.getpid()}-{running}"
    place.mkdir(mode=0o755)
    path = place / "outbox.db"
    try:
        box = Outbox.open(path, ME.public)
        box.append(outcome(0), ADDRESS)
        if not running:
            box.close()
        for file in place.iterdir():
            file.chmod(0o444)
        place.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", READ, str(path)],
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": os.environ["PATH"]},
        )
        assert done.stdout.strip() == "1", done.stderr
        box.close()
    finally:
        place.chmod(0o755)
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
