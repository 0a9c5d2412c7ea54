"""Spools that are put back from older copies, and what is no such thing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.spool import Spool
from tests.gateway.spool_kit import intake


def fill(path: Path, *sequences: int) -> bytes:
    """Admit packets and close; the epoch."""
    spool = Spool(path, engines=["memory:"])
    for sequence in sequences:
        spool.admit([intake(sequence)])
    spool.advance("memory:", spool.pending("memory:").through)
    epoch = spool.epoch
    spool.close()
    return epoch


def over_it(copy: Path, path: Path) -> None:
    """``cp``: the file stays, with another content."""
    path.write_bytes((copy / path.name).read_bytes())


def in_its_place(copy: Path, path: Path) -> None:
    """``mv``: another file."""
    shutil.copy(copy / path.name, copy / "moved")
    (copy / "moved").replace(path)


def folder(copy: Path, path: Path) -> None:
    """Everything, as a backup program does it."""
    put = path.parent.with_name("put")
    shutil.copytree(copy, put)
    path.parent.rename(path.parent.with_name("before"))
    put.rename(path.parent)


@pytest.mark.parametrize("put_back", [over_it, in_its_place, folder])
def test_an_old_spool_that_is_put_back_is_noticed(
    tmp_path: Path, put_back: Callable[[Path, Path], None]
) -> None:
    path = tmp_path / "state" / "spool.db"
    path.parent.mkdir()
    epoch = fill(path, 0, 1, 2)
    shutil.copytree(path.parent, tmp_path / "copy")
    assert fill(path, 3, 4) == epoch
    put_back(tmp_path / "copy", path)
    for _ in range(2):  # also if it crashes before anything was done about it
        spool = Spool(path, engines=["memory:"])
        assert spool.restored
        assert spool.routed_through() == 3
        spool.close()
    spool = Spool(path, engines=["memory:"])
    renewed = spool.renew_epoch(0)
    assert renewed != epoch
    assert not spool.restored
    # The engines may have been put back, too.
    assert len(spool.pending("memory:").entries) == 3
    spool.close()
    spool = Spool(path, engines=["memory:"])
    assert not spool.restored
    assert spool.epoch == renewed
    spool.close()


def test_one_from_before_another_epoch_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    fill(path, 0, 1)
    copy = path.read_bytes()
    spool = Spool(path)
    spool.renew_epoch(0)
    spool.close()
    path.write_bytes(copy)
    spool = Spool(path)
    assert "another epoch" in spool.restored
    spool.close()


def test_what_is_no_copy_is_none(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    epoch = fill(path, 0, 1)
    mark = path.with_name("spool.db.mark")
    behind = mark.read_bytes()
    assert fill(path, 2) == epoch
    mark.write_bytes(behind)  # after a loss of power it may lag
    assert fill(path, 3) == epoch
    mark.write_bytes(b"torn")
    assert fill(path, 4) == epoch
    mark.unlink()  # made by an earlier version
    spool = Spool(path)
    assert not spool.restored
    spool.close()


def test_one_that_is_begun_anew_is_no_copy(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    epoch = fill(path, 0, 1)
    path.unlink()
    spool = Spool(path)
    assert not spool.restored
    assert spool.epoch != epoch
    spool.close()


def test_who_only_reads_makes_no_mark(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    fill(path, 0)
    mark = path.with_name("spool.db.mark")
    mark.unlink()
    spool = Spool(path, read_only=True)
    assert not spool.restored
    spool.close()
    assert not mark.exists()


def test_a_mark_that_cannot_be_made_is_said_and_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    mark = path.with_name("spool.db.mark")
    mark.mkdir()
    for _ in range(2):
        with pytest.raises(Exception, match=r"spool\.db\.mark"):
            Spool(path)
    mark.rmdir()
    Spool(path).close()
