"""A disk that is full or read-only: said clearly, nothing lost, and on it goes after."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qis_edge.core.errors import StoreCorrupt, StoreError
from qis_edge.core.packet import unpack
from qis_edge.core.receipt import Receipt
from qis_edge.store import Outbox
from tests import disks
from tests.store.kit import (
    ADDRESS,
    EPOCH,
    GATEWAY,
    ME,
    conserved,
    files,
    fill,
    hours,
    outcome,
    pack_each,
)


def append_until_full(box: Outbox) -> list[int]:
    """The hours that were acknowledged before the disk was full."""
    kept: list[int] = []
    for hour in range(100_000):
        try:
            box.append(outcome(hour, text="x" * 150), ADDRESS)
        except StoreError as error:
            assert not isinstance(error, StoreCorrupt)
            assert error.hint is not None
            assert "full" in str(error)
            assert "space" in error.hint
            return kept
        kept.append(hour)
    raise AssertionError("the disk was never full")


def everything(box: Outbox) -> list[int]:
    return hours(one for _, _, one in box.waiting(10**6))


def test_no_more_pages() -> None:
    box = Outbox.in_memory(ME.public)
    box._db.execute("PRAGMA max_page_count=100")
    kept = append_until_full(box)
    assert len(kept) > 100
    stats = box.stats()
    assert stats.waiting == stats.made == len(kept)
    assert everything(box) == kept
    sent = 0
    with pytest.raises(StoreError, match="full"):  # noqa: PT012 - which one fails is open
        while True:
            sent += len(box.pack(ME, max_packets=1, limit=130))
    assert box.stats().packets == sent
    assert conserved(box.stats())
    box._db.execute("PRAGMA max_page_count=1000000")
    made = box.pack(ME, max_packets=1000)
    rest = [unpack(one.raw).outcomes for one in box.unreceipted(1000)]
    assert len(rest) == sent + len(made)
    assert hours(one for outcomes in rest for one in outcomes) == kept
    assert conserved(box.stats())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of a megabyte."""
    with disks.small_disk(tmp_path / "small") as place:
        yield place


def test_a_full_disk(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(200_000))
    path = small_disk / "outbox.db"
    with Outbox.open(path, ME.public) as box:
        packet = pack_each(box, 1, first=200_000)[0]
        kept = append_until_full(box)
        assert everything(box) == kept
        # What needs no room goes on, and nothing is half done.
        assert [one.raw for one in box.unreceipted()] == [packet.raw]
        assert conserved(box.stats())
        ballast.unlink()
        box.append(outcome(300_000), ADDRESS)
        box.receipt(GATEWAY, EPOCH, Receipt(packet.store, held=(0,)))
        assert everything(box) == [*kept, 300_000]
    with Outbox.open(path, ME.public) as box:
        assert everything(box) == [*kept, 300_000]
        assert box.unreceipted() == []
        assert box.notices() == []
        assert conserved(box.stats())


def test_opening_on_a_full_disk(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(1 << 20))
    with pytest.raises(StoreError, match="full") as caught:
        Outbox.open(small_disk / "outbox.db", ME.public)
    assert not isinstance(caught.value, StoreCorrupt)
    (small_disk / "ballast").unlink()
    with Outbox.open(small_disk / "outbox.db", ME.public) as box:
        fill(box, 1)


def test_starting_again_while_the_disk_is_full(small_disk: Path) -> None:
    """The log cannot go back to the file, and is read where it is."""
    path = small_disk / "outbox.db"
    (small_disk / "ballast").write_bytes(bytes(300_000))
    with Outbox.open(path, ME.public) as box:
        kept = append_until_full(box)
    assert path.with_name("outbox.db-wal").stat().st_size
    for _ in range(2):
        with Outbox.open(path, ME.public) as box:
            assert everything(box) == kept
            assert box.notices() == []
            with pytest.raises(StoreError, match="full"):
                box.pack(ME)
    (small_disk / "ballast").unlink()
    with Outbox.open(path, ME.public) as box:
        assert box.pack(ME)
        assert conserved(box.stats())


@pytest.mark.parametrize("clean", [True, False])
def test_a_disk_that_became_read_only(small_disk: Path, clean: bool) -> None:
    """What the kernel does with a failing card."""
    path = small_disk / "outbox.db"
    box = Outbox.open(path, ME.public)
    fill(box, 3)
    if clean:
        box.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=clean)
    if clean:
        with pytest.raises(StoreError, match="Read-only") as caught:
            Outbox.open(path, ME.public)
        assert caught.value.hint
        with Outbox.inspect(path) as reader:
            assert reader.stats().waiting == 3
    box.close()
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    with Outbox.open(path, ME.public) as box:
        assert everything(box) == [0, 1, 2]
    assert "outbox.db" in files(small_disk)
