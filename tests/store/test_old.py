"""Files that earlier versions wrote are opened, with all that they hold."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from qis_edge.core.errors import StoreError
from qis_edge.store import Inbox, Outbox
from qis_edge.store.database import Database, Schema
from qis_edge.store.schema import INBOX, OUTBOX
from tests.store.kit import (
    ADDRESS,
    EPOCH,
    GATEWAY,
    ME,
    OTHER,
    T0,
    conserved,
    hours,
    open_keys,
    outcome,
)

OLD = Path(__file__).parent / "old"
VERSIONS = [(OUTBOX, "outbox"), (INBOX, "inbox")]


def kept(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copy(OLD / name, tmp_path / name))


@pytest.mark.parametrize("version", range(1, OUTBOX.version + 1))
def test_an_outbox_of_each_version_goes_on(version: int, tmp_path: Path) -> None:
    path = kept(f"outbox-{version}.db", tmp_path)
    with Outbox.open(path, ME.public) as box:
        stats = box.stats()
        assert conserved(stats)
        assert (stats.made, stats.waiting, stats.untimed) == (11, 4, 1)
        assert (stats.open_packets, stats.held_packets, stats.refused_packets) == (3, 2, 1)
        assert [sequence for _, sequence in open_keys(box)] == [3, 4, 5]
        assert box.aside()[0].reason == 10
        assert box.resend(GATEWAY) == 2
        box.settle("boot", float(T0))
        packets = box.pack(ME)
        assert hours(o for packet in packets for o in packet.outcomes) == [0, 6, 7, 8, 9]
        # A file that came here by copying: no number of its store is given out again.
        assert packets[0].store != open_keys(box)[0][0]
        assert conserved(box.stats())


@pytest.mark.parametrize("version", range(1, INBOX.version + 1))
def test_an_inbox_of_each_version_goes_on(version: int, tmp_path: Path) -> None:
    box, news = Inbox.open(kept(f"inbox-{version}.db", tmp_path))
    with box:
        assert news == []
        assert len(box.query(ADDRESS)) == 5
        assert box.cursor(GATEWAY) == b"cursor"
        gateway = box.gateway(GATEWAY)
        assert gateway is not None
        assert gateway.epoch == EPOCH
        assert (len(box.trust()), box.revocation_number) == (2, 4)
        assert box.peer_states() == {OTHER.kid: b"good"}
        assert box.own() == [(ADDRESS, outcome(1))]


@pytest.mark.parametrize(("schema", "name"), VERSIONS)
def test_released_scripts_are_as_they_were(schema: Schema, name: str, tmp_path: Path) -> None:
    """Whoever changes a script instead of adding one is told here."""
    for version in range(1, schema.version + 1):
        at_the_time = Schema(schema.name, schema.application_id, schema.migrations[:version])
        fresh = tmp_path / f"{version}.db"
        Database(fresh, at_the_time).close()
        assert tables(fresh) == tables(kept(f"{name}-{version}.db", tmp_path))


def tables(path: Path) -> list[tuple[str, str]]:
    db = sqlite3.connect(path)
    rows = db.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
    found = rows.fetchall()
    db.close()
    return found


@pytest.mark.parametrize(("schema", "name"), VERSIONS)
def test_a_newer_file_is_left_alone(schema: Schema, name: str, tmp_path: Path) -> None:
    path = kept(f"{name}-{schema.version}.db", tmp_path)
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={schema.version + 1}")
    db.close()
    with pytest.raises(StoreError, match="newer version"):
        Outbox.open(path, ME.public) if name == "outbox" else Inbox.open(path)
    with pytest.raises(StoreError, match="newer version"):
        Outbox.inspect(path) if name == "outbox" else Inbox.inspect(path)
