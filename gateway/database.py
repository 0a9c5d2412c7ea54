"""The gateway's SQLite files: as a node's, with what a base station says and does about them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from qis_edge.core.errors import StoreCorrupt, StoreError
from qis_edge.store.database import BUSY_SECONDS, Database, Schema


class GatewayDatabase(Database):
    """A file of the gateway's that other processes (the command line) may share.

    Always durable. ``remedy`` is what to do once it is damaged; the file is left as it is.

    :param cache: bytes of page cache.
    :param busy: seconds to wait for another process's transaction.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        *,
        remedy: str,
        read_only: bool = False,
        cache: int = 2 << 20,
        busy: float = BUSY_SECONDS,
    ) -> None:
        self.remedy = remedy
        super().__init__(path, schema, read_only=read_only)
        self.execute(f"PRAGMA cache_size=-{cache // 1024}")
        self.execute(f"PRAGMA busy_timeout={round(busy * 1000)}")
        # Debian's SQLite overwrites what is deleted; packets are no secrets.
        self.execute("PRAGMA secure_delete=OFF")

    def damaged(self, detail: str) -> StoreCorrupt:
        """The error for damage found."""
        return StoreCorrupt(f"{self.path}: damaged ({detail})", hint=self.remedy)

    def failure(self, error: sqlite3.Error) -> StoreError:
        """What an error of SQLite means to us."""
        found = super().failure(error)
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            found.hint = "free some space; the gateway goes on by itself once there is any"
        return found

    def data_version(self) -> int:
        """Another value once another connection has committed. Takes 3 µs."""
        return self.number("PRAGMA data_version")
