"""Opening an outbox's file, whatever has happened to it since it was closed."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from qis_edge.core.errors import StoreCorrupt, StoreError
from qis_edge.core.identity import PublicKey
from qis_edge.store import salvage
from qis_edge.store.database import Database, beside
from qis_edge.store.forms import Notice
from qis_edge.store.salvage import Salvaged
from qis_edge.store.schema import OUTBOX
from qis_edge.store.tables import STATE_COLUMNS, Tables, state_row

#: A file of at most this size is checked whole whenever it is opened; a bigger one up to
#: the second figure only after a crash.
_QUICK, _AFTER_CRASH = 4 * 1024 * 1024, 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose outbox it is, and where.

    :param host: names the machine, or ``""``.
    :param adopt: whether the outbox of another key is taken over.
    :param clock: unix seconds that have surely passed.
    """

    key: PublicKey
    host: str = ""
    adopt: bool = False
    clock: int = 0


def open_file(path: Path, owner: Owner) -> tuple[Database, list[Notice]]:
    """A sound, writable file that belongs to this key, and what had to be done for it.

    :raises StoreError: another key's, newer, or the disk does not allow it.
    """
    news: list[Notice] = []
    if salvage.due(path):
        news += _repair(path, owner)
    try:
        return _open(path, owner, news)
    except StoreCorrupt:
        news += _repair(path, owner)
        return _open(path, owner, news)


def in_memory(key: PublicKey) -> Database:
    """A new one that ends with the process."""
    db = Database(None, OUTBOX)
    _begin(db, Owner(key), inode=0)
    return db


def inode_of(path: Path) -> int:
    """What a copy of the file does not share with it."""
    return path.stat().st_ino


def draw_store(db: Database) -> bytes:
    """A store id that this file has not had, 4 random bytes."""
    while True:
        drawn = os.urandom(4)
        if db.row("SELECT 1 FROM stores WHERE id=?", (drawn,)) is None:
            return drawn


def _open(path: Path, owner: Owner, news: list[Notice]) -> tuple[Database, list[Notice]]:
    db = Database(path, OUTBOX)
    try:
        if db.size() <= (_AFTER_CRASH if db.unclean else _QUICK):
            db.check()
        inode = inode_of(path)
        found = db.row("SELECT key, host, inode FROM state")
        if found is None and db.row("SELECT 1 FROM stores") is None:
            _begin(db, owner, inode)
            return db, news
        if found is None:
            raise db.damaged("its row of counters is missing")
        if found[0] != owner.key.thumbprint:
            db.close()
            return _open(path, owner, [*news, *_adopt(path, owner)])
        host = owner.host or found[1]  # where nothing tells, it is taken to be the same
        if host and not found[1]:  # it has become known
            db.execute("UPDATE state SET host=?", (host,))
            found = (found[0], host, found[2])
        same = found[1:] == (host, inode)
        return db, [*news, *_since_last_time(db, same, replace(owner, host=host), inode)]
    except BaseException:
        db.close()
        raise


def _begin(db: Database, owner: Owner, inode: int) -> None:
    """An empty outbox with its first store."""
    with db.transaction():
        _insert_state(db, owner, inode)
        tables = Tables(db)
        with tables.change():
            tables.begin_store(draw_store(db), "new")


def _insert_state(db: Database, owner: Owner, inode: int) -> None:
    values = dict.fromkeys(STATE_COLUMNS, 0) | {"clock": owner.clock, "dropped": -1}
    names, marks = ", ".join((*values, "crc")), ", ".join("?" * (len(values) + 1))
    db.execute(
        f"INSERT INTO state (id, key, host, inode, {names})"  # noqa: S608 - our own names
        f" VALUES (1, ?, ?, ?, {marks})",
        (owner.key.thumbprint, owner.host, inode, *state_row(list(values.values()))),
    )


def _since_last_time(db: Database, same: bool, owner: Owner, inode: int) -> list[Notice]:
    """Begin a new store where numbers may have been given out that the file forgot."""
    if same and not db.torn:
        return []
    tables = Tables(db)
    with tables.change() as state:
        if db.torn:
            code, text = (
                "torn_log",
                (
                    "the end of its log was damaged and a copy of it kept; "
                    "packets are numbered under a new store"
                ),
            )
        else:
            code, text = (
                "copied",
                (
                    "the file or the machine is another than before; "
                    "packets are numbered under a new store"
                ),
            )
        tables.begin_store(draw_store(db), code)
        tables.notice(code, text)
        db.execute("UPDATE state SET host=?, inode=?", (owner.host, inode))
        return [Notice(state.clock, code, text)]


def _adopt(path: Path, owner: Owner) -> list[Notice]:
    if not owner.adopt:
        raise _foreign(path, owner)
    return _repair(path, owner)


def _foreign(path: Path, owner: Owner) -> StoreError:
    return StoreError(
        f"{path}: belongs to another key than {owner.key.kid.hex()}",
        hint="put the key back that it was made with, or move the file away to begin anew",
    )


def _repair(path: Path, owner: Owner) -> list[Notice]:
    """Set the file aside and fill a new one from it."""
    news: list[Notice] = []
    salvage.set_aside(path, lambda new, old: news.append(_fill(path, new, old, owner)))
    return news


def _fill(path: Path, new: Path, old: Path, owner: Owner) -> Notice:
    salvaged = Salvaged()
    code = "salvaged"
    with Database(new, OUTBOX) as db, db.transaction():
        _insert_state(db, owner, inode_of(new))
        tables = Tables(db)
        with tables.change() as state:
            source = salvage.open_damaged(old)
            if source is not None:
                with contextlib.closing(source):
                    foreign = salvage.key_of(source) not in (None, owner.key.thumbprint)
                    if foreign and not owner.adopt:
                        raise _foreign(path, owner)
                    code = "adopted" if foreign else code
                    salvaged = salvage.carry_over(source, tables, owner.key, foreign)
            tables.begin_store(draw_store(db), code)
            why = "another key's" if code == "adopted" else "damaged"
            name = beside(path, salvage.ASIDE.format(1)).name
            text = f"the outbox was {why}: {salvaged}; the old file is kept as {name}"
            tables.notice(code, text)
            return Notice(state.clock, code, text)
