"""A damaged spool: set aside, what is still signed carried over, and nobody is accused."""

from __future__ import annotations

import random
import re
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.mending import Mended, open_spool
from gateway.spool import Spool, Verdict
from gateway.spool_schema import SCHEMA
from qis_edge.core.errors import Reason, Refused, StoreCorrupt, StoreError
from qis_edge.core.identity import PublicKey
from qis_edge.core.packet import Packet, unpack
from qis_edge.store import database
from tests.gateway.spool_kit import ENGINE, NODES, START, STORES, intake, packet

OLD = Path(__file__).parent / "old"
COUNT = 120


def key_of(kid: bytes) -> PublicKey:
    for node in NODES:
        if node.kid == kid:
            return node.public
    raise Refused(Reason.UNKNOWN_KEY, "kid")


def verify(raw: bytes) -> Packet:
    return unpack(raw, key_of)


def mend(path: Path) -> tuple[Spool, Mended | None]:
    return open_spool(path, verify, engines=[ENGINE])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


def furnish(path: Path) -> bytes:
    """Some packets of two nodes; returns the epoch."""
    with_it = Spool(path, engines=[ENGINE])
    for first in range(0, COUNT, 10):
        with_it.admit([intake(n, node=n % 2, received=START + n) for n in range(first, first + 10)])
    epoch = with_it.epoch
    with_it.close()
    return epoch


def given(spool: Spool) -> set[bytes]:
    """What the engine is given from now on."""
    found: set[bytes] = set()
    while (pending := spool.pending(ENGINE)).through > spool.routed_through():
        found |= {entry.raw for entry in pending.entries}
        spool.advance(ENGINE, pending.through)
    return found


def originals() -> dict[bytes, int]:
    return {packet(n, node=n % 2).raw: n for n in range(COUNT)}


def flip(path: Path, offset: int) -> None:
    """One bit, in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_flipped_bit_costs_one_packet_until_its_node_sends_it_again(path: Path) -> None:
    epoch = furnish(path)
    broken = packet(7, node=1)
    data = path.read_bytes()  # where pages were split there are remains of others
    for found in re.finditer(re.escape(broken.raw), data):
        flip(path, found.start() + 100)
    spool, mended = mend(path)
    assert mended is None  # a bit within a row is found when it is read
    with pytest.raises(StoreCorrupt, match="packet 8 is not what was written"):
        spool.admit([intake(7, node=1)])  # its node is not accused
    assert spool.equivocations() == []
    spool.close()
    spool, mended = mend(path)
    assert mended is not None
    assert (mended.packets, mended.lost) == (COUNT - 1, 1)
    assert "nodes send again" in str(mended)
    assert mended.aside.name == "spool.db.aside-1"
    assert mended.aside.exists()
    assert spool.epoch != epoch
    assert (spool.since, spool.torn, spool.restored) == (0, False, "")
    assert given(spool) == originals().keys() - {broken.raw}
    (answer,) = spool.admit([intake(7, node=1)])
    assert answer.verdict is Verdict.NEW
    assert answer.position > COUNT  # none is given out twice
    assert given(spool) == {broken.raw}
    spool.close()
    spool, mended = mend(path)
    assert (mended, spool.restored) == (None, "")
    assert {one.name for one in path.parent.iterdir()} >= {"spool.db", "spool.db.aside-1"}
    assert not path.with_name("spool.db.damaged").exists()
    spool.close()


def pages(path: Path, *tables: str) -> list[range]:
    """Where the pages of some tables lie."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name, pgoffset, pgsize FROM dbstat").fetchall()
    connection.close()
    return [range(at, at + size) for name, at, size in rows if name in tables]


@pytest.mark.parametrize("part", ["file", "log"])
def test_damage_anywhere_is_survived_and_invents_nothing(
    part: str, path: Path, tmp_path: Path
) -> None:
    spool = Spool(path, engines=[ENGINE])
    if part == "file":
        spool.close()
        furnish(path)
    else:
        for n in range(COUNT):
            spool.admit([intake(n, node=n % 2)])
    names = ("spool.db", "spool.db-wal")
    files = {name: (tmp_path / name).read_bytes() for name in names if (tmp_path / name).exists()}
    spool.close()
    draw = random.Random(5)
    target = names[part == "log"]
    where: Sequence[int] = range(len(files[target]))
    if part == "file":  # in what packets are held by; the few other rows have no checksum
        where = [at for page in pages(path, "packets", "ranges") for at in page]
    mendings = 0
    for number in range(12):
        place = tmp_path / f"{number}"
        place.mkdir()
        for name, data in files.items():
            (place / name).write_bytes(data)
        for _ in range(draw.choice([1, 30])):
            flip(place / target, draw.choice(where))
        for _ in range(3):  # what is only found when it is read takes another start
            spool, mended = mend(place / "spool.db")
            mendings += mended is not None or spool.torn
            if spool.torn or spool.restored:
                spool.renew_epoch(0)
            try:
                found = given(spool)
                answers = spool.admit([intake(n, node=n % 2) for n in range(COUNT)])
            except StoreCorrupt:
                spool.close()
                continue
            break
        else:
            raise AssertionError("it does not come to an end")
        assert found <= originals().keys()
        assert {answer.verdict for answer in answers} <= {Verdict.NEW, Verdict.KNOWN}
        assert found | given(spool) == originals().keys()
        assert spool.equivocations() == []
        spool.close()
    assert mendings


def test_nothing_is_left_but_rubble(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(50_000))
    for _ in range(2):
        spool, mended = mend(path)
        if mended is not None:
            assert (mended.packets, mended.lost) == (0, None)
            assert "an unknown number" in str(mended)
        assert spool.admit([intake(0)])[0].position == 1
        spool.close()
        path.write_bytes(b"rubble again" * 1000)
    assert path.with_name("spool.db.aside-1").exists()


def test_an_interrupted_mending_is_resumed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(path)
    path.with_name("spool.db.damaged").touch()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(database, "sync_directory", full)
        with pytest.raises(StoreError, match="No space left"):
            mend(path)
    spool, mended = mend(path)
    assert mended is not None
    assert (mended.packets, mended.lost) == (COUNT, 0)
    assert given(spool) == originals().keys()
    spool.close()


def test_packets_of_whom_nobody_knows_are_left_behind(path: Path) -> None:
    furnish(path)
    path.with_name("spool.db.damaged").touch()

    def only_the_first(raw: bytes) -> Packet:
        return unpack(raw, NODES[0].public)

    spool, mended = open_spool(path, only_the_first, engines=[ENGINE])
    assert mended is not None
    assert mended.lost == COUNT // 2
    assert {one.kid for one in spool.stores()} == {NODES[0].kid}
    spool.close()


# --- earlier versions ----------------------------------------------------------------------


def test_a_spool_of_each_version_goes_on(path: Path) -> None:
    for version in range(1, SCHEMA.version):
        shutil.copy(OLD / f"spool-{version}.db", path)
        spool, mended = mend(path)
        assert mended is None
        assert spool.status().packets == 11
        expected = {packet(n).raw for n in range(4, 8)}
        expected |= {packet(n, node=1, store=STORES[1], vector=(1.0, 2.0)).raw for n in (0, 1, 5)}
        assert given(spool) == expected
        assert spool.admit([intake(3)])[0].verdict is Verdict.KNOWN
        assert len(spool.equivocations()) == 1
        assert spool.admit([intake(8)])[0] == (Verdict.NEW, 12)
        spool.close()
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA.version,)
        connection.close()


def test_released_scripts_are_as_they_were(tmp_path: Path) -> None:
    for version in range(1, SCHEMA.version):
        at_the_time = database.Schema(
            SCHEMA.name, SCHEMA.application_id, SCHEMA.migrations[:version]
        )
        fresh = tmp_path / f"{version}.db"
        database.Database(fresh, at_the_time).close()
        assert tables(fresh) == tables(OLD / f"spool-{version}.db")


def tables(path: Path) -> list[tuple[str, str]]:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name"
    )
    found = rows.fetchall()
    connection.close()
    return found
