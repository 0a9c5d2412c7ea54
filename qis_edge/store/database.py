"""Opening SQLite files the way every store here does.

One writer holds a lock beside the file for as long as it is open; readers need none. A
file carries its application id and its schema's version (``user_version``); older
schemas are migrated in one transaction, newer ones are refused. Errors of SQLite become
:class:`StoreError` with what to do about them, damage becomes :class:`StoreCorrupt`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from qis_edge.core.errors import StoreCorrupt, StoreError
from qis_edge.store.wal import end_is_suspect, frames_taken

#: How long to wait for somebody else's lock on the file before it is an error.
BUSY_SECONDS = 5.0

_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_FORBIDDEN = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}


@dataclass(frozen=True, slots=True)
class Schema:
    """A kind of file.

    :param name: what errors call it.
    :param application_id: SQLite's ``application_id`` of such files.
    :param migrations: SQL scripts; the n-th leads from version n to version n + 1.
    """

    name: str
    application_id: int
    migrations: Sequence[str]

    @property
    def version(self) -> int:
        """The version that this program writes."""
        return len(self.migrations)


class Lock:
    """The one-writer lock: ``flock`` on a file beside the store. It ends with the process."""

    def __init__(self, path: Path) -> None:
        """:raises StoreError: somebody holds it, or the directory cannot be written."""
        self._file: int | None = None
        place = beside(path, ".lock")
        try:
            file = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise os_error(error, path) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            raise StoreError(
                f"{path}: in use by another process",
                hint="one process at a time may write it; `status` and `queue` only read",
            ) from error
        self._file = file

    def release(self) -> None:
        """Let go. Idempotent. The file stays: removing it would let two in."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Database:
    """A connection whose errors are ours. Not for two threads at once.

    :param durable: whether a commit is on the medium when it returns (``synchronous``
        FULL); otherwise the last commits may be lost with the power, whole ones only.
    :raises StoreError: what stands in the way, with a hint.
    :raises StoreCorrupt: the file is damaged.
    """

    def __init__(
        self,
        path: Path | None,
        schema: Schema,
        *,
        durable: bool = True,
        read_only: bool = False,
    ) -> None:
        self.path = path
        self.schema = schema
        self.read_only = read_only
        #: Whether the one who had it open last did not close it.
        self.unclean = not read_only and self._log_size() > 0
        #: Whether the end of its log was lost; a copy of the log is kept beside it.
        self.torn = False
        self._connection = self._connect()
        try:
            self._configure(durable)
            if self.unclean:
                self._look_at_log()
            self._migrate()
        except BaseException:
            self._connection.close()
            raise

    # --- opening -----------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        if self.path is None:
            return self._connect_to(":memory:")
        uri = self.path.absolute().as_uri()
        if not self.read_only:
            return self._connect_to(f"{uri}?mode=rwc")
        if not self.path.exists():
            raise StoreError(f"{self.path}: there is none yet", hint="start the daemon once")
        try:
            return self._connect_to(f"{uri}?mode=ro")
        except StoreError:
            # A reader who may not write in the directory cannot make the log's index. Where
            # there is no log either, nobody writes and the file alone is the whole of it.
            log = beside(self.path, "-wal")
            if log.exists() and log.stat().st_size:
                raise
            return self._connect_to(f"{uri}?immutable=1")

    def _connect_to(self, target: str) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                target,
                uri=True,
                isolation_level=None,
                timeout=BUSY_SECONDS,
                check_same_thread=False,
                cached_statements=256,
            )
        except sqlite3.Error as error:
            raise self.failure(error) from error
        try:
            connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
        except sqlite3.Error as error:
            connection.close()
            raise self.failure(error) from error
        return connection

    def _configure(self, durable: bool) -> None:
        self.execute("PRAGMA cache_size=-2048")
        self.execute("PRAGMA trusted_schema=OFF")
        if self.read_only:
            self.execute("PRAGMA query_only=ON")
            return
        if self.value("PRAGMA page_count") == 0:
            # Rows are small and commits are many: each writes every page that it touched.
            self.execute("PRAGMA page_size=2048")
            self.execute(f"PRAGMA application_id={self.schema.application_id}")
        if self.path is not None:
            mode = self.value("PRAGMA journal_mode=WAL")
            if mode != "wal":
                raise StoreError(
                    f"{self.path}: this file system does not allow a write-ahead log",
                    hint="keep the state directory on a local disk",
                )
        self.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        self.execute("PRAGMA wal_autocheckpoint=2000")  # pages: 4 MiB
        self.execute("PRAGMA journal_size_limit=8388608")

    def _log_size(self) -> int:
        try:
            return beside(self.path, "-wal").stat().st_size if self.path else 0
        except OSError:
            return 0

    def _look_at_log(self) -> None:
        """Before anything is written: the next write begins the log anew."""
        assert self.path is not None
        log = beside(self.path, "-wal")
        try:
            taken = int(self.row("PRAGMA wal_checkpoint(PASSIVE)")[1])
        except StoreCorrupt:
            raise
        except StoreError:  # a full disk takes none of it back, but is read
            taken = frames_taken(beside(self.path, "-shm"))
        try:
            self.torn = end_is_suspect(log, max(taken, 0))
            if self.torn:
                shutil.copyfile(log, beside(self.path, ".torn-wal"))
        except OSError as error:
            raise os_error(error, self.path) from error

    def _migrate(self) -> None:
        found = self.number("PRAGMA application_id")
        version = self.number("PRAGMA user_version")
        if found != self.schema.application_id and (version or found or not self._empty()):
            raise StoreError(
                f"{self.path}: not a {self.schema.name}",
                hint="another program's file is in the place of ours; move it away",
            )
        if version > self.schema.version:
            raise StoreError(
                f"{self.path}: written by a newer version (schema {version}, this one "
                f"knows {self.schema.version})",
                hint="install the newer version again, or move the file away to begin anew",
            )
        if version == self.schema.version:
            return
        if self.read_only:
            raise StoreError(
                f"{self.path}: of an older version (schema {version}, now {self.schema.version})",
                hint="start the daemon once: it brings the file up to date",
            )
        with self.transaction():
            for number in range(version, self.schema.version):
                for statement in statements(self.schema.migrations[number]):
                    self.execute(statement)
            self.execute(f"PRAGMA user_version={self.schema.version}")

    def _empty(self) -> bool:
        return self.row("SELECT 1 FROM sqlite_schema LIMIT 1") is None

    # --- using -------------------------------------------------------------------------

    def execute(self, sql: str, arguments: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement. :raises StoreError:"""
        try:
            return self._connection.execute(sql, arguments)
        except sqlite3.Error as error:
            raise self.failure(error) from error

    def attempt(self, sql: str, arguments: Sequence[Any] = ()) -> bool:
        """Run one statement; ``False`` where a constraint forbids it. :raises StoreError:"""
        try:
            self._connection.execute(sql, arguments)
        except sqlite3.IntegrityError:
            return False
        except sqlite3.Error as error:
            raise self.failure(error) from error
        return True

    def execute_many(self, sql: str, arguments: Sequence[Sequence[Any]]) -> None:
        """Run one statement for each of the arguments. :raises StoreError:"""
        try:
            self._connection.executemany(sql, arguments)
        except sqlite3.Error as error:
            raise self.failure(error) from error

    def rows(self, sql: str, arguments: Sequence[Any] = ()) -> list[Any]:
        """All rows of a query, as tuples. :raises StoreError:"""
        try:
            return self._connection.execute(sql, arguments).fetchall()
        except sqlite3.Error as error:
            raise self.failure(error) from error

    def each(self, sql: str, arguments: Sequence[Any] = ()) -> Iterator[Any]:
        """The rows of a query one after the other. :raises StoreError:"""
        try:
            yield from self._connection.execute(sql, arguments)
        except sqlite3.Error as error:
            raise self.failure(error) from error

    def row(self, sql: str, arguments: Sequence[Any] = ()) -> Any:
        """The first row of a query, or ``None``. :raises StoreError:"""
        try:
            return self._connection.execute(sql, arguments).fetchone()
        except sqlite3.Error as error:
            raise self.failure(error) from error

    def value(self, sql: str, arguments: Sequence[Any] = ()) -> Any:
        """The first column of the first row, or ``None``. :raises StoreError:"""
        row = self.row(sql, arguments)
        return None if row is None else row[0]

    def number(self, sql: str, arguments: Sequence[Any] = ()) -> int:
        """A value that is an integer; 0 where there is none. :raises StoreError:"""
        return int(self.value(sql, arguments) or 0)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Within another one it is part of that.

        :raises StoreError: it could not be begun or committed; nothing of it happened.
        """
        if self._connection.in_transaction:
            yield
            return
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            # SQLite has already rolled back by itself after some errors.
            with contextlib.suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Reads within see one moment, whatever a writer does meanwhile."""
        if self._connection.in_transaction:
            yield
            return
        self.execute("BEGIN")
        try:
            yield
        finally:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("COMMIT")

    def used(self) -> int:
        """Bytes of the file that hold something."""
        pages = self.number("PRAGMA page_count") - self.number("PRAGMA freelist_count")
        return pages * self.number("PRAGMA page_size")

    def size(self) -> int:
        """Bytes of the file, with those that are free to be used again."""
        return self.number("PRAGMA page_count") * self.number("PRAGMA page_size")

    def check(self) -> None:
        """Walk the whole file. :raises StoreCorrupt: it is damaged."""
        if (found := self.value("PRAGMA quick_check(1)")) != "ok":
            raise self.damaged(str(found))

    def close(self) -> None:
        """Idempotent. The last one to close writes the log back into the file."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- errors ------------------------------------------------------------------------

    def damaged(self, detail: str) -> StoreCorrupt:
        """The error for damage found; leaves a mark, so that the next opening repairs."""
        if self.path is not None and not self.read_only:
            with contextlib.suppress(OSError):
                beside(self.path, ".damaged").touch()
        return StoreCorrupt(
            f"{self.path}: damaged ({detail})",
            hint="the next start sets the file aside and carries over what can be read",
        )

    def failure(self, error: sqlite3.Error) -> StoreError:
        """What an error of SQLite means to us."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        where = str(self.path or "memory")
        # Python's own word for bytes that have become a text which is none.
        if code in _CORRUPT or "Could not decode to UTF-8" in str(error):
            return self.damaged(str(error))
        if code == sqlite3.SQLITE_FULL:
            return StoreError(
                f"{where}: the disk is full",
                hint="free some space; the node goes on by itself once there is any",
            )
        if code in _FORBIDDEN:
            return StoreError(
                f"{where}: cannot be written ({error})",
                hint="check that the disk is not mounted read-only and who owns the file",
            )
        if code in _BUSY:
            return StoreError(
                f"{where}: locked by another program",
                hint="close what else has the file open (a backup, an SQLite shell)",
            )
        if code == sqlite3.SQLITE_CANTOPEN:
            return StoreError(
                f"{where}: cannot be opened",
                hint="check that the directory exists, who may write in it, and that the disk "
                "is not mounted read-only",
            )
        if code == sqlite3.SQLITE_IOERR:
            return StoreError(
                f"{where}: the disk reports an error ({error})",
                hint="look into the kernel's log (dmesg): the medium may be failing",
            )
        return StoreError(f"{where}: {error}")


def statements(script: str) -> Iterator[str]:
    """The statements of a script, so that all can run in one transaction."""
    statement = ""
    *pieces, rest = script.split(";")
    for piece in pieces:
        statement += piece + ";"
        if sqlite3.complete_statement(statement):  # or the semicolon was part of something
            yield statement
            statement = ""
    statement += rest
    if statement.strip():
        raise StoreError(f"an unfinished statement in a schema: {statement.strip()!r}")


def beside(path: Path, suffix: str) -> Path:
    """The file next to ``path`` whose name is ``path``'s with a suffix."""
    return path.with_name(path.name + suffix)


def os_error(error: OSError, path: Path) -> StoreError:
    """What an error of the operating system means to us."""
    if isinstance(error, FileNotFoundError):
        hint = "the state directory does not exist; `init` makes it"
    elif isinstance(error, PermissionError) or error.errno == 30:  # EROFS
        hint = "check who owns the directory and that the disk is not mounted read-only"
    elif error.errno == 28:  # ENOSPC
        hint = "free some space; the node goes on by itself once there is any"
    else:
        hint = "look into the kernel's log (dmesg): the medium may be failing"
    return StoreError(f"{path}: {error.strerror or error}", hint=hint)


def sync_directory(path: Path) -> None:
    """Make renames in the directory of ``path`` durable."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


#: What SQLite keeps beside a file in WAL mode.
COMPANIONS = ("-wal", "-shm")


def remove(path: Path) -> None:
    """Remove a database with its companions, as far as they are there."""
    for suffix in ("", *COMPANIONS):
        beside(path, suffix).unlink(missing_ok=True)


def rename(source: Path, target: Path) -> None:
    """Rename a database that nobody has open, with its log (its index is made anew)."""
    remove(target)
    beside(source, "-shm").unlink(missing_ok=True)
    # The log first: a file without its log would be an older state of the store.
    if beside(source, "-wal").exists():
        beside(source, "-wal").rename(beside(target, "-wal"))
    source.rename(target)
    sync_directory(target)
