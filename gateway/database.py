"""The gateway's SQLite files: as a node's, with what a base station says and does about them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from qis_edge.core.errors import StoreCorrupt, StoreError
from qis_edge.store.database import BUSY_SECONDS, Database, Schema

#: Pages in the write-ahead log after which they are written back.
LOG_PAGES = 8000


class GatewayDatabase(Database):
    """A file of the gateway's. Always durable; a damaged one is left as it is, unless it mends.

    :param remedy: what to do once it is damaged.
    :param mends: whether the next start mends it, as a mark then tells it to.
    :param shared: whether other processes (the command line) may write it too.
    :param cache: bytes of page cache.
    :param busy: seconds to wait for another process's transaction.
    :param functions: by name, what migrations call; each of two values.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        *,
        remedy: str,
        mends: bool = False,
        shared: bool = True,
        read_only: bool = False,
        cache: int = 2 << 20,
        busy: float = BUSY_SECONDS,
        functions: Mapping[str, Callable[..., bytes]] | None = None,
    ) -> None:
        self.remedy = remedy
        self._mends = mends
        self._functions = functions or {}
        self._busy = busy
        self._shared = shared
        super().__init__(path, schema, read_only=read_only)
        self.execute(f"PRAGMA cache_size=-{cache // 1024}")
        # A base station has the room, and each page is then written back once, not often.
        self.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
        self.execute("PRAGMA journal_size_limit=67108864")
        self.execute(f"PRAGMA busy_timeout={round(busy * 1000)}")
        # Debian's SQLite overwrites what is deleted; packets are no secrets.
        self.execute("PRAGMA secure_delete=OFF")

    def _connect_to(self, target: str) -> sqlite3.Connection:
        connection = super()._connect_to(target)
        for name, function in self._functions.items():
            connection.create_function(name, 2, function, deterministic=True)
        return connection

    def _configure(self, durable: bool) -> None:
        """As everywhere. SQLite does not wait for others when it turns on the write-ahead
        log, which happens when several processes find an empty file at once: so we do."""
        deadline = time.monotonic() + self._busy
        while True:
            try:
                super()._configure(durable)
            except StoreError as error:
                code = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF
                if code != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def _look_at_log(self) -> None:
        """Only where nobody else can be in the middle of writing it."""
        if not self._shared:
            super()._look_at_log()

    def _migrate(self) -> None:
        """As everywhere, but several processes may find the same old or empty file at once:
        only the first to get the transaction has anything to do."""
        if self.read_only or self.number("PRAGMA user_version") == self.schema.version:
            super()._migrate()
            return
        with self.transaction():
            super()._migrate()

    def damaged(self, detail: str) -> StoreCorrupt:
        """The error for damage found."""
        found = super().damaged(detail) if self._mends else None
        return found or StoreCorrupt(f"{self.path}: damaged ({detail})", hint=self.remedy)

    def failure(self, error: sqlite3.Error) -> StoreError:
        """What an error of SQLite means to us."""
        found = super().failure(error)
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            found.hint = "free some space; the gateway goes on by itself once there is any"
        return found

    def data_version(self) -> int:
        """Another value once another connection has committed. Takes 3 µs."""
        return self.number("PRAGMA data_version")
