"""What an engine is measured against: its medium's client, making the same calls by itself."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gateway.routing import Entry

T = TypeVar("T")


class Absent(Exception):
    """What the engine needs is not here; says what."""


class Raw(Protocol):
    """The client alone: it keeps the same bytes as durably, and checks nothing."""

    async def deposit(self, entries: Sequence[Entry]) -> None:
        """Durable when it returns, in the sense in which the engine's deposit is."""
        ...

    async def query(self, fingerprint: bytes, limit: int) -> int:
        """Read the newest of an address; how many."""
        ...

    async def replay(self) -> int:
        """Read everything, in the order in which it was deposited; how many."""
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """An engine's medium, started.

    :param url: of the engine.
    :param raw: of the same medium, in a place of its own there.
    :param newcomer: of the engine of a gateway that reads everything anew, if another.
    """

    url: str
    raw: Raw
    newcomer: str | None = None


class Start(Protocol):
    """Starts the medium in a folder. :raises Absent: it cannot be started here."""

    def __call__(self, folder: Path) -> AbstractAsyncContextManager[Site]: ...


_TABLES = """
    CREATE TABLE addresses (address INTEGER PRIMARY KEY, fingerprint BLOB NOT NULL UNIQUE);
    CREATE TABLE packets (
        seq INTEGER PRIMARY KEY, address INTEGER NOT NULL, time INTEGER NOT NULL,
        expires INTEGER NOT NULL, confidence INTEGER NOT NULL, id BLOB NOT NULL, vector BLOB,
        raw BLOB NOT NULL
    );
    CREATE UNIQUE INDEX newest ON packets (address, time, id);
    CREATE INDEX expiry ON packets (expires);
"""
_COLUMNS = "fingerprint, raw, id, time, expires, confidence, vector"


class RawSqlite:
    """SQLite on tables like the engine's, and on a thread of its own, as an asyncio program
    must have it: a disk may take its time."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA page_size=2048")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA cache_size=-32768")
        self._db.execute("PRAGMA wal_autocheckpoint=8000")
        self._db.executescript(_TABLES)
        self._thread = ThreadPoolExecutor(1)

    async def _on_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def deposit(self, entries: Sequence[Entry]) -> None:
        await self._on_thread(self._deposit, entries)

    def _deposit(self, entries: Sequence[Entry]) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            "INSERT OR IGNORE INTO addresses (fingerprint) VALUES (?)",
            {(entry.fingerprint,) for entry in entries},
        )
        db.executemany(
            "INSERT OR IGNORE INTO packets VALUES (NULL, "
            "(SELECT address FROM addresses WHERE fingerprint = ?), ?, ?, ?, ?, NULL, ?)",
            [(e.fingerprint, e.time, e.expires, e.confidence, e.id[:16], e.raw) for e in entries],
        )
        db.execute("COMMIT")

    async def query(self, fingerprint: bytes, limit: int) -> int:
        return await self._on_thread(self.query_here, fingerprint, limit)

    def query_here(self, fingerprint: bytes, limit: int) -> int:
        """On the caller's thread, which it blocks."""
        sql = (
            f"SELECT {_COLUMNS} FROM addresses JOIN packets USING (address) "
            "WHERE fingerprint = ? ORDER BY time DESC, seq DESC LIMIT ?"
        )
        return len(self._db.execute(sql, (fingerprint, limit)).fetchall())

    async def replay(self) -> int:
        count = last = 0
        while rows := await self._on_thread(self._after, last):
            count += len(rows)
            last = rows[-1][-1]
        return count

    def _after(self, last: int) -> list[tuple[Any, ...]]:
        sql = (
            f"SELECT {_COLUMNS}, seq FROM packets JOIN addresses USING (address) "
            "WHERE seq > ? ORDER BY seq LIMIT 1000"
        )
        return self._db.execute(sql, (last,)).fetchall()

    def close(self) -> None:
        self._thread.shutdown()
        self._db.close()
