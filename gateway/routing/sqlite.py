"""``sqlite:PATH``: one file on this machine.

Several gateways and the command line may have it open at once, on one machine (SQLite's
write-ahead log does not work over a network file system). One connection writes, one
reads, each on its own thread, so that a query never waits for the disk to sync.

An address is stored once (``buckets``) and stays, some 80 bytes; ``seq`` numbers the
packets in the order of their commits, which is what followers go by. The index (bucket,
time, id) serves both the newest of an address and idempotence: equal ids mean equal
contents, so equal addresses and times. Bytes read back must have the id that they were
deposited under, and the address; others are dropped and counted. Who can write to the file
can still reorder it or delete from it: it is as trusted as the gateway's other files.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import json
import operator
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gateway.database import GatewayDatabase
from gateway.routing.base import (
    ALL_BITS,
    HEADS,
    LEAST,
    Context,
    EngineStatus,
    Entry,
    Interest,
    check_query,
    framed_id,
)
from gateway.routing.following import Coverage, LogEngine, Slice
from gateway.routing.nearest import Candidate, nearest
from gateway.routing.url import EngineUrl
from qis_edge.core.errors import RoutingError, StoreError
from qis_edge.store.database import BUSY_SECONDS, Schema
from qis_edge.worker import Worker

_T = TypeVar("_T")

#: How often another process's deposits are looked for while somebody follows; seconds.
POLL = 0.05
#: Positions of the log that one slice looks at, and entries that it gives, at most.
WINDOW = 20_000
SLICE = 1000
#: Packets that one transaction of ``expire`` deletes: what a deposit may have to wait for.
EXPIRE_SLICE = 1000
#: Vectors that a query holds in memory at once.
CHUNK = 8192
#: Interests that are looked up one by one; with more, all addresses are gone through.
FEW_INTERESTS = 100
#: Sets of interests whose buckets are remembered.
MAX_CHOSEN = 8
#: Addresses whose bucket is remembered.
MAX_BUCKETS = 65_536

#: Bytes of the id that are stored: enough that nobody makes two alike.
ID_STORED = 16

SCHEMA = Schema(
    name="routing database",
    application_id=0x51495352,
    migrations=(
        """
        CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
        INSERT INTO facts VALUES ('token', randomblob(8)), ('packets', 0), ('last', 0);
        CREATE TABLE buckets (bucket INTEGER PRIMARY KEY, fingerprint BLOB NOT NULL UNIQUE);
        CREATE TABLE packets (
            seq INTEGER PRIMARY KEY,
            bucket INTEGER NOT NULL,
            time INTEGER NOT NULL,
            expires INTEGER NOT NULL,
            confidence INTEGER NOT NULL,
            id BLOB NOT NULL,
            vector BLOB,
            raw BLOB NOT NULL
        );
        CREATE UNIQUE INDEX newest ON packets (bucket, time, id);
        CREATE INDEX expiry ON packets (expires);
        """,
        "UPDATE packets SET id = entry_id(raw, id);",
    ),
)

#: What an entry has, in its order, and the id.
_COLUMNS = "raw, time, expires, confidence, vector, id"
_NEWEST = f"""
    SELECT {_COLUMNS} FROM buckets JOIN packets USING (bucket)
    WHERE fingerprint = ? AND time >= ? {{}} ORDER BY time DESC, seq DESC LIMIT ?
"""  # noqa: S608 - constants
_DIGEST_OF = operator.methodcaller("digest")
_STORED_OF = operator.itemgetter(slice(ID_STORED))
_HEAD_OF = operator.itemgetter(slice(9))
_ENTRY = partial(tuple.__new__, Entry)
_INSERT = "INSERT OR IGNORE INTO packets VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


class SqliteEngine(LogEngine):
    """See :class:`gateway.routing.base.RoutingLayer`.

    The option ``busy`` is the seconds to wait for another process's transaction (5).
    """

    def __init__(self, url: EngineUrl, context: Context | None = None) -> None:
        """:raises RoutingError: there is no path, or there is a host."""
        super().__init__()
        url.only({"busy"})
        if url.hosts or not url.path:
            raise RoutingError(
                f"{url}: must name a file",
                hint="write sqlite:routing.db, or sqlite:/with/the/whole/path.db",
            )
        folder = (context or Context()).folder
        self.url = str(url)
        self.path = (folder or Path()) / url.path
        self._folder = folder
        self._busy = _seconds(url)
        self._file: SqliteFile | None = None
        self._opening = asyncio.Lock()
        self._watch = _Watch(self._version)
        self._error = ""
        # Each connection is used on a thread of its own, and never by the event loop.
        self._threads: tuple[Worker, Worker] | None = None

    async def _last(self) -> int:
        return await self._read(SqliteFile.last)

    def _ready(self) -> None:
        if self._file is None:
            raise RoutingError(f"{self.url}: not open")

    # --- threads -----------------------------------------------------------------------

    async def _read(self, work: Callable[[SqliteFile], _T]) -> _T:
        return await self._on(0, work)

    async def _write(self, work: Callable[[SqliteFile], _T]) -> _T:
        return await self._on(1, work)

    async def _on(self, thread: int, work: Callable[[SqliteFile], _T]) -> _T:
        file, threads = self._file, self._threads
        if file is None or threads is None:
            raise RoutingError(f"{self.url}: not open")
        try:
            return await threads[thread](work, file)
        except StoreError as error:
            raise RoutingError(str(error), hint=error.hint) from error

    # --- the interface -----------------------------------------------------------------

    async def open(self) -> None:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        async with self._opening:
            if self._file is not None:
                return
            threads = (Worker("routing-read"), Worker("routing-write"))
            try:
                self._file = await threads[1](self._make)
            except BaseException as error:
                for thread in threads:
                    thread.close()
                if isinstance(error, StoreError):
                    raise RoutingError(str(error), hint=error.hint) from error
                raise
            self._threads = threads
            self._token = self._file.token

    def _make(self) -> SqliteFile:
        if self._folder is not None:
            with contextlib.suppress(OSError):  # opening says it better
                self._folder.mkdir(parents=True, exist_ok=True)
        return self._make_file()

    def _make_file(self) -> SqliteFile:
        remedy = "move it away: the gateway deposits anew what its spool still has"
        return SqliteFile(self.path, SCHEMA, busy=self._busy, remedy=remedy)

    async def close(self) -> None:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        async with self._opening:
            self._stop_following()
            await self._watch.stop()
            if self._file is None or self._threads is None:
                return
            # Each closes on its own thread, behind whatever is still running there.
            await self._read(lambda file: file.reader.close())
            await self._write(lambda file: file.writer.close())
            threads, self._file, self._threads = self._threads, None, None
            for thread in threads:
                thread.close()

    async def deposit(self, entries: Sequence[Entry]) -> int:
        """See :class:`gateway.routing.base.RoutingLayer`. One transaction, synced to disk."""
        try:
            added = await self._write(lambda file: file.deposit(entries))
        except RoutingError as error:
            self._error = str(error)
            raise
        self._error = ""
        self._watch.nudge()
        return added

    async def query(
        self,
        interest: Interest,
        *,
        limit: int = 50,
        since: int | None = None,
        confidence: int = 0,
        vector: Sequence[float] | None = None,
    ) -> list[Entry]:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        check_query(limit, vector)
        least = max(since or 0, 0)
        if vector is not None:
            near = vector
            return await self._read(
                lambda file: file.nearest(interest, limit, least, confidence, near)
            )
        find = SqliteFile.newest_of if interest.bits == ALL_BITS else SqliteFile.newest_within
        return await self._read(lambda file: find(file, interest, limit, least, confidence))

    async def expire(self, now: int) -> int:
        """See :class:`gateway.routing.base.RoutingLayer`. In slices, between which others write."""
        dropped = 0
        while count := await self._write(lambda file: file.expire(now)):
            dropped += count
        return dropped

    async def status(self) -> EngineStatus:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        try:
            packets, size, refused = await self._read(SqliteFile.counts)
        except RoutingError as error:
            return EngineStatus(self.url, ok=False, packets=None, detail=str(error))
        return EngineStatus(self.url, not self._error, packets, size, refused, self._error)

    # --- the log, for its subscriptions ------------------------------------------------

    async def read(self, interests: frozenset[Interest], after: int) -> Slice:
        """The next few hundred entries after a position."""
        return await self._read(lambda file: file.slice(interests, after))

    async def changed(self, version: int) -> None:
        """Until a connection, of this process or another, has committed."""
        await self._watch.changed(version)

    async def _version(self) -> int:
        return await self._read(lambda file: file.reader.data_version())


class _Watch:
    """Looks for commits, of this process and others, for as long as somebody waits."""

    def __init__(self, version: Callable[[], Any]) -> None:
        self._version = version
        self._waiting: set[tuple[int, asyncio.Future[None]]] = set()
        self._task: asyncio.Task[None] | None = None
        self._nudge = asyncio.Event()

    def nudge(self) -> None:
        """Look at once."""
        self._nudge.set()

    async def changed(self, version: int) -> None:
        """Until the version is another. :raises RoutingError: it cannot be read."""
        waiter = (version, asyncio.get_running_loop().create_future())
        self._waiting.add(waiter)
        self._nudge.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            await waiter[1]
        finally:
            self._waiting.discard(waiter)

    async def stop(self) -> None:
        """No more looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while self._waiting:
            self._nudge.clear()
            try:
                now = await self._version()
            except RoutingError as error:
                for _, future in self._waiting:
                    if not future.done():
                        future.set_exception(error)
                return
            for version, future in self._waiting:
                if version != now and not future.done():
                    future.set_result(None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._nudge.wait()


class _Chosen:
    """The buckets of a set of interests, up to the bucket ``last``."""

    def __init__(self, coverage: Coverage) -> None:
        self.coverage = coverage
        self.everything = coverage.everything
        self.buckets: set[int] = set()
        self.last = 0


class SqliteFile:
    """The database: a connection that reads and one that writes, each for one thread."""

    def __init__(self, path: Path, schema: Schema, *, busy: float, remedy: str) -> None:
        self.writer = GatewayDatabase(
            path, schema, remedy=remedy, cache=32 << 20, busy=busy, functions={"entry_id": entry_id}
        )
        try:
            self.reader = GatewayDatabase(
                path, schema, remedy=remedy, read_only=True, cache=32 << 20, busy=busy
            )
        except BaseException:
            self.writer.close()
            raise
        self.token = bytes(self.writer.value("SELECT value FROM facts WHERE name = 'token'"))
        self.path = path
        self.refused = 0
        self._buckets: dict[bytes, int] = {}  # the writer's
        self._chosen: dict[frozenset[Interest], _Chosen] = {}  # the reader's

    # --- the writer's thread -----------------------------------------------------------

    def deposit(
        self,
        entries: Sequence[Entry],
        beside: Callable[[GatewayDatabase], None] | None = None,
    ) -> int:
        """How many were new.

        :param beside: what else is written, in the same transaction.
        """
        db = self.writer
        known = dict(self._buckets)
        with db.transaction():
            new = self._intern({entry.fingerprint for entry in entries} - known.keys())
            known.update(new)
            before = db.number("SELECT total_changes()")
            last = self._fact(db, "last")
            db.execute_many(
                _INSERT,
                [
                    (
                        last + offset,
                        known[entry.fingerprint],
                        entry.time,
                        entry.expires,
                        entry.confidence,
                        entry.id[:ID_STORED],
                        _pack(entry.vector),
                        entry.raw,
                    )
                    for offset, entry in enumerate(entries, 1)
                ],
            )
            added = db.number("SELECT total_changes()") - before
            if added:
                self._count(added)
                self._advance()
            if beside is not None:
                beside(db)
        if len(self._buckets) + len(new) > MAX_BUCKETS:
            self._buckets.clear()
        self._buckets.update(new)
        return added

    def _intern(self, fingerprints: set[bytes]) -> dict[bytes, int]:
        arguments = [(fingerprint,) for fingerprint in fingerprints]
        self.writer.execute_many(
            "INSERT OR IGNORE INTO buckets (fingerprint) VALUES (?)", arguments
        )
        return {
            fingerprint: self.writer.number(
                "SELECT bucket FROM buckets WHERE fingerprint = ?", (fingerprint,)
            )
            for fingerprint in fingerprints
        }

    def _count(self, change: int) -> None:
        self.writer.execute("UPDATE facts SET value = value + ? WHERE name = 'packets'", (change,))

    def _advance(self) -> None:
        # Once written it never goes back, even when the newest expire: a position is used once.
        self.writer.execute(
            "UPDATE facts SET value = (SELECT max(seq) FROM packets) WHERE name = 'last'"
        )

    def expire(self, now: int) -> int:
        """One slice of what expired; how many."""
        with self.writer.transaction():
            before = self.writer.number("SELECT total_changes()")
            self.writer.execute(
                "DELETE FROM packets WHERE seq IN "
                "(SELECT seq FROM packets WHERE expires <= ? ORDER BY expires LIMIT ?)",
                (now, EXPIRE_SLICE),
            )
            gone = self.writer.number("SELECT total_changes()") - before
            if gone:
                self._count(-gone)
        return gone

    # --- the reader's thread -----------------------------------------------------------

    @staticmethod
    def _fact(db: GatewayDatabase, name: str) -> int:
        return db.number("SELECT value FROM facts WHERE name = ?", (name,))

    def last(self) -> int:
        """The newest position."""
        return self._fact(self.reader, "last")

    def counts(self) -> tuple[int, int, int]:
        """Packets, bytes on disk, packets that were refused when read back."""
        log = self.path.with_name(self.path.name + "-wal")
        size = self.reader.size() + (log.stat().st_size if log.exists() else 0)
        return self._fact(self.reader, "packets"), size, self.refused

    def _entries(
        self, rows: Sequence[Sequence[Any]], covers: Callable[[bytes], bool] | None
    ) -> list[Entry]:
        """The entries of rows that begin with ``_COLUMNS``, which lie at covered addresses
        (``None``: at any). Where somebody else wrote, they are counted and left out."""
        entries = _entries_of_ours(rows)
        if entries is None:
            one_by_one = [_entries_of_ours((row,)) for row in rows]
            entries = [entry for found in one_by_one if found for entry in found]
        if covers is not None:
            entries = [entry for entry in entries if covers(entry.fingerprint)]
        self.refused += len(rows) - len(entries)
        return entries

    def _enough(
        self, interest: Interest, limit: int, find: Callable[[int], list[Any]]
    ) -> list[Entry]:
        """``limit`` entries of the rows that ``find`` gives, which may hold foreign ones."""
        wanted = limit
        while True:
            rows = find(wanted)
            before = self.refused
            entries = self._entries(rows, interest.covers)
            if len(entries) >= limit or len(rows) < wanted:
                return entries[:limit]
            wanted += self.refused - before
            self.refused = before  # they are counted when they are seen again

    def newest_of(self, interest: Interest, limit: int, since: int, confidence: int) -> list[Entry]:
        """The newest of one address."""
        sql = _NEWEST.format("AND confidence >= ?" if confidence > 0 else "AND ? <= 0")
        return self._enough(
            interest,
            limit,
            lambda most: self.reader.rows(sql, (interest.fingerprint, since, confidence, most)),
        )

    def newest_within(
        self, interest: Interest, limit: int, since: int, confidence: int
    ) -> list[Entry]:
        """The newest of the addresses that share a prefix."""

        def find(most: int) -> list[Any]:
            return self._fetch(self._newest_positions(interest, most, since, confidence))

        with self._snapshot():
            return self._enough(interest, limit, find)

    def _newest_positions(
        self, interest: Interest, limit: int, since: int, confidence: int
    ) -> list[int]:
        """Merges the newest of each address, beginning with the address that has the newest
        of all, and stops at the first that cannot contribute any more."""
        if limit == 0:
            return []
        buckets = self.reader.rows(
            "SELECT (SELECT max(time) FROM packets WHERE bucket = b.bucket) AS newest, bucket "
            "FROM buckets b WHERE fingerprint BETWEEN ? AND ? AND newest >= ? "
            "ORDER BY newest DESC",
            (interest.fingerprint, interest.last, since),
        )
        sure = "AND confidence >= ?" if confidence > 0 else "AND ? <= 0"
        sql = (
            f"SELECT time, seq FROM packets WHERE bucket = ? AND time >= ? {sure} "  # noqa: S608 - constants
            "ORDER BY time DESC, seq DESC LIMIT ?"
        )
        best: list[tuple[int, int]] = []  # a heap, its least first
        for newest, bucket in buckets:
            if len(best) == limit and newest < best[0][0]:
                break
            least = max(since, best[0][0]) if len(best) == limit else since
            for item in self.reader.rows(sql, (bucket, least, confidence, limit)):
                if len(best) < limit:
                    heapq.heappush(best, item)
                else:
                    heapq.heappushpop(best, item)
        return [seq for _, seq in sorted(best, reverse=True)]

    def _fetch(self, positions: Sequence[int]) -> list[Any]:
        """The rows of ``_COLUMNS`` at these positions, in their order."""
        found = self.reader.rows(
            f"SELECT {_COLUMNS}, seq FROM packets "  # noqa: S608 - constants
            "WHERE seq IN (SELECT value FROM json_each(?))",
            (json.dumps(positions),),
        )
        by_position = {row[-1]: row[:-1] for row in found}
        return [by_position[position] for position in positions if position in by_position]

    def nearest(
        self,
        interest: Interest,
        limit: int,
        since: int,
        confidence: int,
        vector: Sequence[float],
    ) -> list[Entry]:
        """The nearest of the addresses that share a prefix."""

        def chunks() -> Iterator[list[Candidate]]:
            cursor = self.reader.execute(
                "SELECT vector, time, seq, seq FROM buckets JOIN packets USING (bucket) "
                "WHERE fingerprint BETWEEN ? AND ? AND time >= ? AND confidence >= ?",
                (interest.fingerprint, interest.last, since, confidence),
            )
            while rows := cursor.fetchmany(CHUNK):
                yield [Candidate(*row) for row in rows]

        with self._snapshot():
            return self._enough(
                interest, limit, lambda most: self._fetch(nearest(chunks(), vector, most))
            )

    def slice(self, interests: frozenset[Interest], after: int) -> Slice:
        """Part of the log, for followers."""
        # Before the snapshot: what is committed in between is then noticed once more.
        version = self.reader.data_version()
        with self._snapshot():
            last = self.last()
            until = min(after + WINDOW, last)
            chosen = self._choose(interests)
            rows = self._look(chosen, after, until)
        if len(rows) == SLICE:
            until = rows[-1][-2]
        if not chosen.everything:
            rows = [row for row in rows if row[-1] in chosen.buckets]
        covers = None if chosen.everything else chosen.coverage.__contains__
        entries = self._entries(rows, covers)
        return Slice(tuple(entries), until, until >= last, version)

    def _look(self, chosen: _Chosen, after: int, until: int) -> list[Any]:
        """``_COLUMNS``, seq and bucket of at most ``SLICE`` packets. Where they are few
        anyway, as they are live, the caller sorts out what is not of interest."""
        arguments: tuple[object, ...] = (after, until)
        among = ""
        if not chosen.everything and until - after > SLICE:
            among = "AND +bucket IN (SELECT value FROM json_each(?))"
            arguments += (json.dumps(list(chosen.buckets)),)
        return self.reader.rows(
            f"SELECT {_COLUMNS}, seq, bucket FROM packets "  # noqa: S608 - constants
            f"WHERE seq > ? AND seq <= ? {among} ORDER BY seq LIMIT ?",
            (*arguments, SLICE),
        )

    def _choose(self, interests: frozenset[Interest]) -> _Chosen:
        """Which buckets are of interest; remembered, since buckets are only ever added."""
        chosen = self._chosen.pop(interests, None) or _Chosen(Coverage(interests))
        self._chosen[interests] = chosen  # now the newest
        if len(self._chosen) > MAX_CHOSEN:
            del self._chosen[next(iter(self._chosen))]
        if chosen.everything:
            return chosen
        if chosen.last == 0 and len(interests) <= FEW_INTERESTS:
            chosen.last = self.reader.number("SELECT max(bucket) FROM buckets")
            for interest in interests:
                found = self.reader.rows(
                    "SELECT bucket FROM buckets WHERE fingerprint BETWEEN ? AND ?",
                    (interest.fingerprint, interest.last),
                )
                chosen.buckets.update(row[0] for row in found)
        else:
            for bucket, fingerprint in self.reader.rows(
                "SELECT bucket, fingerprint FROM buckets WHERE bucket > ? ORDER BY bucket",
                (chosen.last,),
            ):
                chosen.last = bucket
                if fingerprint in chosen.coverage:
                    chosen.buckets.add(bucket)
        return chosen

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[None]:
        """One state of the database for several statements."""
        self.reader.execute("BEGIN")
        try:
            yield
        finally:
            self.reader.execute("COMMIT")


def _entries_of_ours(rows: Sequence[Sequence[Any]]) -> list[Entry] | None:
    """The entries of rows that begin with ``_COLUMNS``, or ``None`` where one of them is not
    what was deposited. Column by column, for it is what a query and a replay spend their
    time with: nothing in it is Python that runs once for each row."""
    if not rows:
        return []
    raws, times, expires, confidences, vectors, stored, *_ = zip(*rows, strict=True)
    try:
        if tuple(map(_STORED_OF, map(_DIGEST_OF, map(hashlib.sha256, raws)))) != stored:
            return None
        if not HEADS.issuperset(map(_HEAD_OF, raws)) or min(map(len, raws)) < LEAST:
            return None
    except TypeError:  # is not bytes
        return None
    read = vectors if vectors.count(None) == len(vectors) else map(_unpack, vectors)
    return list(map(_ENTRY, zip(raws, times, expires, confidences, read, strict=True)))


def entry_id(raw: bytes, id_before: bytes) -> bytes:
    """The id to store of a packet that was stored under its own id, as the first version
    did. What is not that packet any more stays as it is."""
    if (framed_id(raw) or b"")[:ID_STORED] != id_before:
        return id_before
    return hashlib.sha256(raw).digest()[:ID_STORED]


def _pack(vector: Sequence[float] | None) -> bytes | None:
    return None if vector is None else struct.pack(f"<{len(vector)}d", *vector)


def _unpack(vector: object) -> tuple[float, ...] | None:
    if not isinstance(vector, bytes) or len(vector) % 8:
        return None
    return struct.unpack(f"<{len(vector) // 8}d", vector)


def _seconds(url: EngineUrl) -> float:
    text = url.option("busy", str(BUSY_SECONDS)) or ""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= 3600:
        raise RoutingError(f"{url}: busy must be 0 to 3600 seconds")
    return seconds
