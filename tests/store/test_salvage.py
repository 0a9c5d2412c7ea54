"""Damage: the file is set aside and kept, what can be read goes on, no number is reused."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from qis_edge.core.errors import StoreCorrupt, StoreError
from qis_edge.core.packet import unpack
from qis_edge.core.receipt import Receipt
from qis_edge.store import Notice, Outbox, Pending, Priority, Unclocked, database, salvage
from tests.store.kit import (
    ADDRESS,
    ELSEWHERE,
    EPOCH,
    GATEWAY,
    HOUR,
    ME,
    OTHER,
    T0,
    conserved,
    files,
    fill,
    held,
    hours,
    open_keys,
    outcome,
    pack_each,
)

PAGE = 2048


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


def furnish(path: Path, waiting: int = 300, packets: int = 60) -> dict[tuple[bytes, int], bytes]:
    """An outbox with something of everything. Returns its packets."""
    with Outbox.open(path, ME.public) as box:
        made = pack_each(box, packets)
        held(box, made[0].store, *range(0, packets, 3))
        box.receipt(GATEWAY, EPOCH, Receipt(made[0].store, refused=((10, (1,)),)))
        box.append_many(Pending(outcome(n), ADDRESS) for n in range(packets, packets + waiting))
        for second in range(20):
            box.append(outcome(0, at=1.0), ELSEWHERE, unclocked=Unclocked("boot", second))
        box.append(outcome(999), ELSEWHERE, priority=Priority.URGENT)
    return {(one.store, one.sequence): one.raw for one in made}


def damage(path: Path, offset: int, size: int = 1) -> None:
    """Turn bits over in place: the file keeps its identity."""
    with path.open("r+b") as file:
        file.seek(offset)
        data = bytes(byte ^ 0x55 for byte in file.read(size))
        file.seek(offset)
        file.write(data)


def pages_of(path: Path, table: str) -> list[int]:
    """Offsets of the pages of a table."""
    db = sqlite3.connect(path)
    rows = db.execute(
        "SELECT pageno, pagetype FROM dbstat WHERE name=? ORDER BY pageno", (table,)
    ).fetchall()
    db.close()
    return [(page - 1) * PAGE for page, kind in rows if kind == "leaf"]


def reopen(path: Path) -> tuple[Outbox, list[Notice]]:
    notices: list[Notice] = []
    box = Outbox.open(path, ME.public, notify=notices.append)
    return box, notices


def test_a_damaged_page_costs_what_is_on_it(path: Path) -> None:
    packets = furnish(path)
    leaf = pages_of(path, "waiting")[2]
    damage(path, leaf, 100)
    box, notices = reopen(path)
    with box:
        assert [notice.code for notice in notices] == ["salvaged"]
        assert box.notices()[0] == notices[0]
        assert "outbox.db.aside-1" in notices[0].text
        stats = box.stats()
        assert 0 < stats.unreadable < 60
        assert stats.waiting == 301 - stats.unreadable
        assert stats.untimed == 20
        assert conserved(stats)
        assert stats.made == 381
        old = next(iter(packets))[0]
        expected = [key for key in packets if key[1] % 3 and key[1] != 1]
        assert sorted(open_keys(box)) == sorted(expected)
        for one in box.unreceipted(1000):
            assert one.raw == packets[one.key]
        assert [aside.key for aside in box.aside()] == [(old, 1)]
        assert box.resend(GATEWAY) == 20
        new = box.pack(ME)[0]
        assert (new.store != old, new.sequence) == (True, 0)
    assert files(path.parent) >= {"outbox.db", "outbox.db.aside-1"}
    assert not files(path.parent) & {"outbox.db.salvage", "outbox.db.new", "outbox.db.damaged"}


@pytest.mark.parametrize("table", ["packets", "groups", "state", "stores", "untimed", "gateways"])
def test_damage_anywhere_is_survived(path: Path, table: str) -> None:
    packets = furnish(path)
    for offset in pages_of(path, table)[:1]:
        damage(path, offset, PAGE)
    box, notices = reopen(path)
    with box:
        assert [notice.code for notice in notices] == ["salvaged"]
        assert conserved(box.stats())
        for one in box.unreceipted(1000):
            assert one.raw == packets[one.key]
        fill(box, 1)
        made = box.pack(ME, max_packets=1000)
        assert made
        assert not {(p.store, p.sequence) for p in made} & set(packets)


def test_random_damage_is_survived_and_never_invents(path: Path, tmp_path: Path) -> None:
    packets = furnish(path, waiting=120, packets=30)
    sound = path.read_bytes()
    draw = random.Random(7)
    for _ in range(40):
        path.write_bytes(sound)
        for _ in range(draw.randrange(1, 4)):
            damage(path, draw.randrange(len(sound) - 64), draw.choice([1, 4, 64]))
        try:
            box = Outbox.open(path, ME.public)
        except StoreError as error:  # the flipped bit was in the version or the key
            assert "newer" in str(error) or "not a" in str(error) or "another key" in str(error)
            continue
        with box:
            settle_all(box, packets)
        for name in files(tmp_path) - {"outbox.db", "outbox.db.lock"}:
            (tmp_path / name).unlink()


def settle_all(box: Outbox, packets: dict[tuple[bytes, int], bytes]) -> None:
    """What is packed now is true, and what was packed then is unchanged; damage that is
    found on the way is damage that is told."""
    try:
        assert conserved(box.stats())
        for queued in box.unreceipted(1000):
            assert queued.raw == packets[queued.key]
        for packet in box.pack(ME, max_packets=1000):
            assert (packet.store, packet.sequence) not in packets
            assert packet.fingerprint in (ADDRESS, ELSEWHERE)
            for one in unpack(packet.raw, ME.public).outcomes:
                hour = (one.time - T0) // HOUR
                assert one.results == {"temperature": 20.0 + hour % 10}
    except StoreCorrupt as error:
        assert error.hint


def test_a_flipped_bit_within_a_row_is_found_when_it_is_read(path: Path) -> None:
    packets = furnish(path)
    raw = packets[sorted(packets)[4]]
    where = path.read_bytes().index(raw) + 50
    damage(path, where)
    box = Outbox.open(path, ME.public)
    with pytest.raises(StoreCorrupt):
        box.unreceipted()
    box.close()
    box, notices = reopen(path)
    with box:
        assert [notice.code for notice in notices] == ["salvaged"]
        assert sorted(packets)[4] not in open_keys(box)
        assert box.stats().unreadable == 1
        assert conserved(box.stats())


@pytest.mark.parametrize("turned_into", ["CAST(x'ff' || raw AS TEXT)", "'text'"])
def test_bytes_that_have_become_a_text_are_damage(path: Path, turned_into: str) -> None:
    """A bit of a row's head says which of the two it is."""
    with Outbox.open(path, ME.public) as box:
        pack_each(box, 3)
        turn(box, f"UPDATE packets SET raw = {turned_into} WHERE id & 4294967295 = 1")
        with pytest.raises(StoreCorrupt):
            box.unreceipted()
    box, notices = reopen(path)
    with box:
        assert [notice.code for notice in notices] == ["salvaged"]
        assert [sequence for _, sequence in open_keys(box)] == [0, 2]
        assert conserved(box.stats())


def turn(box: Outbox, statement: str) -> None:
    """What the table itself would not allow."""
    db = box._db
    db.execute("PRAGMA writable_schema=ON")
    db.execute("UPDATE sqlite_schema SET sql = replace(sql, ' STRICT', '') WHERE name = 'packets'")
    db.execute("PRAGMA writable_schema=RESET")
    db.execute(statement)


def test_nothing_is_left_but_rubble(path: Path) -> None:
    furnish(path)
    path.write_bytes(b"\xff" * 50_000)
    box, notices = reopen(path)
    with box:
        assert "unknown number" in notices[0].text
        assert box.stats().made == 0
        fill(box, 1)
        assert len(box.pack(ME)) == 1


def test_the_newest_three_are_kept(path: Path) -> None:
    for number in range(5):
        with Outbox.open(path, ME.public) as box:
            fill(box, 1)
        path.write_bytes(bytes([number]) * 3000)
        Outbox.open(path, ME.public).close()
    kept = sorted(name for name in files(path.parent) if "aside" in name)
    assert kept == [f"outbox.db.aside-{number}" for number in (1, 2, 3)]
    assert (path.parent / kept[0]).read_bytes()[:1] == b"\x04"


@pytest.mark.parametrize("step", range(8))
def test_an_interrupted_salvage_is_resumed(
    path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power fails before each of its steps in turn."""
    packets = furnish(path)
    damage(path, pages_of(path, "waiting")[2], 100)
    count = 0

    class PowerCut(BaseException):
        pass

    def cut(original: object) -> object:
        def run(*args: object, **kwargs: object) -> object:
            nonlocal count
            count += 1
            if count == step + 1:
                raise PowerCut
            return original(*args, **kwargs)  # type: ignore[operator]  # what it stands for

        return run

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut(Path.rename))
        patch.setattr(Path, "unlink", cut(Path.unlink))
        patch.setattr(database, "sync_directory", cut(database.sync_directory))
        patch.setattr(salvage, "carry_over", cut(salvage.carry_over))
        try:
            Outbox.open(path, ME.public).close()
        except PowerCut:
            interrupted = True
        else:
            interrupted = False
    assert interrupted
    box, _ = reopen(path)
    with box:
        stats = box.stats()
        assert (stats.made, stats.waiting) == (381, 301 - stats.unreadable)
        assert conserved(stats)
        expected = [key for key in packets if key[1] % 3 and key[1] != 1]
        assert sorted(open_keys(box)) == sorted(expected)
        assert [notice.code for notice in box.notices()] == ["salvaged"]
        fill(box, 1)
    names = files(path.parent)
    assert "outbox.db.aside-1" in names
    assert not names & {"outbox.db.salvage", "outbox.db.new", "outbox.db.damaged"}


def test_a_lost_end_of_the_log_begins_a_new_store(path: Path, tmp_path: Path) -> None:
    live = tmp_path / "live" / "outbox.db"
    live.parent.mkdir()
    with Outbox.open(live, ME.public) as box:
        fill(box, 3)
    with Outbox.open(live, ME.public) as box:
        before = pack_each(box, 5, first=10)
        log = bytearray(live.with_name("outbox.db-wal").read_bytes())
        log[len(log) // 2] ^= 1
        # Taken while it runs: what a power cut leaves. The same inode, as on the same card.
        shutil.copy(live, path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE state SET inode=?", (path.stat().st_ino,))
    db.close()
    path.with_name("outbox.db-wal").write_bytes(log)
    box, notices = reopen(path)
    with box:
        assert [notice.code for notice in notices] == ["torn_log"]
        numbers = {(p.store, p.sequence): p.raw for p in before}
        for packet in pack_each(box, 5, first=100):
            assert (packet.store, packet.sequence) not in numbers
    assert "outbox.db.torn-wal" in files(tmp_path)
    box, notices = reopen(path)
    with box:
        assert notices == []


def test_an_adopted_outbox_is_packed_anew_under_the_new_key(path: Path) -> None:
    with Outbox.open(path, OTHER.public) as box:
        packets = []
        for hour in range(4):
            box.append(outcome(hour), ADDRESS)
            packets += box.pack(OTHER)
        fill(box, 2, first=4)
        held(box, packets[0].store, 0)
    notices: list[Notice] = []
    with Outbox.open(path, ME.public, adopt=True, notify=notices.append) as box:
        assert [notice.code for notice in notices] == ["adopted"]
        assert open_keys(box) == []
        made = box.pack(ME)
        assert hours(o for packet in made for o in packet.outcomes) == [1, 2, 3, 4, 5]
        assert made[0].store != packets[0].store
        assert unpack(made[0].raw, ME.public)
        assert conserved(box.stats())
    with Outbox.open(path, ME.public, adopt=True) as box:
        assert len(box.notices()) == 1


def test_a_damaged_outbox_of_another_key(path: Path) -> None:
    with Outbox.open(path, OTHER.public) as box:
        box.append_many(Pending(outcome(hour), ADDRESS) for hour in range(300))
    damage(path, pages_of(path, "waiting")[2], 100)
    for _ in range(2):
        with pytest.raises(StoreError, match="another key"):
            Outbox.open(path, ME.public)
    with Outbox.open(path, ME.public, adopt=True) as box:
        assert [notice.code for notice in box.notices()] == ["adopted"]
        assert box.stats().waiting > 200
