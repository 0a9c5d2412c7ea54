"""An engine that is only a log, joined with a local view that answers.

``ViewEngine(feed, context)`` publishes to the feed and keeps what the feed brings in an
SQLite file of :attr:`Context.folder` (without a folder, in a temporary one). The file
answers ``query`` and ``follow``; the place in the feed's log is written in the same
transaction as the packets that led there, so a crash repeats some and skips none. Nothing
is lost with the file: delete it, and it is read again from the feed's beginning.

The view is therefore not synced to disk at each commit. What a power cut takes from it
comes again from the feed, at new numbers: the view numbers on with a gap when it was not
closed, so that a cursor of before never skips what came again.

Of a feed that forgets (:class:`gateway.routing.feed.ForgetfulFeed`) the view is where packets
are kept: it is synced, a deposit waits for that, and :mod:`gateway.routing.renewal` publishes
them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from gateway.database import GatewayDatabase
from gateway.routing.base import Context, Cursor, EngineStatus, Entry, Interest
from gateway.routing.feed import MAX_POSITION, Feed, ForgetfulFeed, Position
from gateway.routing.following import LogSubscription
from gateway.routing.renewal import Renewal
from gateway.routing.sorting import ACCEPT_SLICE, MAX_OURS, Sorted, Sorter
from gateway.routing.sqlite import ID_STORED, SCHEMA, SqliteEngine, SqliteFile
from gateway.routing.url import EngineUrl
from qis_edge.core.errors import RoutingError
from qis_edge.links.backoff import Backoff
from qis_edge.store.database import Schema

_T = TypeVar("_T")

log = logging.getLogger(__name__)

#: Packets whose signer is unknown that are kept aside; the oldest give way.
MAX_ASIDE = 4096
#: Seconds after which those aside are tried again.
RETRY_ASIDE = 10.0
#: Seconds between attempts to read while the feed is away: the first, and the longest.
RETRY_FIRST, RETRY_LONGEST = 0.2, 15.0
#: Seconds that a feed which answers at once with nothing is left alone.
IDLE = 0.05
#: Seconds that the reading has to end before it is told again.
CANCEL_AGAIN = 0.2
#: Numbers that are left out when the view was not closed: more than a power cut can take.
GAP = 100_000

#: Bytes of the filter that knows what the view does not have: 3% wrong at a million packets.
FILTER_BYTES = 1 << 20
_PLACES = 8 * FILTER_BYTES - 1
#: Ids that it is told at once.
FILL_SLICE = 2000

#: The URL's scheme and a hash of it, so that each engine has a view of its own.
_NAME = "view-{}-{}.db"

VIEW_SCHEMA = Schema(
    name="view of a routing engine",
    application_id=0x51495356,
    migrations=(
        SCHEMA.migrations[0],
        """
        INSERT INTO facts VALUES ('position', x''), ('incarnation', NULL);
        -- Signed by somebody unknown so far.
        CREATE TABLE aside (
            number INTEGER PRIMARY KEY, expires INTEGER NOT NULL, raw BLOB NOT NULL UNIQUE
        );
        -- Packets of the view that the feed has lost: a depositor's repeat publishes them.
        CREATE TABLE lost (seq INTEGER PRIMARY KEY);
        """,
        SCHEMA.migrations[1],
    ),
)


class _Place(NamedTuple):
    """Where the view stands in the feed. ``incarnation`` is ``None`` before its first."""

    position: Position
    incarnation: str | None


# --- the file -----------------------------------------------------------------------------


class _ViewFile(SqliteFile):
    """The view's file. Each method names the thread that it is for."""

    def __init__(self, path: Path, *, busy: float, synced: bool) -> None:
        remedy = "delete it: it is read again from the engine"
        super().__init__(path, VIEW_SCHEMA, busy=busy, remedy=remedy)
        if not synced:
            self.writer.execute("PRAGMA synchronous=NORMAL")
        if self.writer.unclean:
            self.writer.execute("UPDATE facts SET value = value + ? WHERE name = 'last'", (GAP,))
        #: Unix seconds: what expired by then does not come in again.
        self.floor = 0

    def place(self) -> _Place:
        """(reads)"""
        rows = dict(self.reader.rows("SELECT name, value FROM facts"))
        return _Place(bytes(rows["position"]), rows["incarnation"])

    def missing(self, entries: Sequence[Entry]) -> tuple[list[Entry], int]:
        """(reads) What the view does not have or the feed has lost, each once; and how
        many the view does not have."""
        found: dict[bytes, Entry] = {}
        new = 0
        for entry in entries:
            if entry.id in found:
                continue
            held = self.reader.row(
                "SELECT lost.seq FROM buckets JOIN packets USING (bucket) "
                "LEFT JOIN lost ON lost.seq = packets.seq "
                "WHERE fingerprint = ? AND time = ? AND id = ?",
                (entry.fingerprint, entry.time, entry.id[:ID_STORED]),
            )
            if held is None or held[0] is not None:
                found[entry.id] = entry
                new += held is None
        return list(found.values()), new

    def take(self, sorted_: Sorted, place: _Place | None) -> int:
        """(writes) Keep what was accepted, and where the feed goes on after it; returns how
        many aside had to give way."""
        entries = [entry for entry in sorted_.entries if entry.expires > self.floor]
        dropped = 0

        def beside(db: GatewayDatabase) -> None:
            nonlocal dropped
            _forgive(db, entries)
            db.execute_many(
                "INSERT OR IGNORE INTO aside (expires, raw) VALUES (?, ?)",
                [(entry.expires, entry.raw) for entry in sorted_.unknown],
            )
            if sorted_.unknown:
                dropped = max(db.number("SELECT count(*) FROM aside") - MAX_ASIDE, 0)
                db.execute(
                    "DELETE FROM aside WHERE number IN "
                    "(SELECT number FROM aside ORDER BY number LIMIT ?)",
                    (dropped,),
                )
            if place is not None:
                _set(db, "position", place.position)
                _set(db, "incarnation", place.incarnation)

        self.deposit(entries, beside)
        return dropped

    def put(self, entries: Sequence[Entry]) -> int:
        """(writes) Keep what was published."""
        return self.deposit(entries, lambda db: _forgive(db, entries))

    def begin_anew(self, incarnation: str) -> None:
        """(writes) The feed is another: read it from its beginning; it has none of these."""
        with self.writer.transaction():
            _set(self.writer, "position", b"")
            _set(self.writer, "incarnation", incarnation)
            self.writer.execute("INSERT OR IGNORE INTO lost SELECT seq FROM packets")

    def aside(self, after: int) -> list[tuple[int, bytes]]:
        """(reads) The next few kept aside."""
        return self.reader.rows(
            "SELECT number, raw FROM aside WHERE number > ? ORDER BY number LIMIT ?",
            (after, ACCEPT_SLICE),
        )

    def decide(self, sorted_: Sorted, numbers: Sequence[int]) -> None:
        """(writes) These are aside no more; of them, ``sorted_.entries`` were accepted."""
        entries = [entry for entry in sorted_.entries if entry.expires > self.floor]
        self.deposit(
            entries,
            lambda db: db.execute_many(
                "DELETE FROM aside WHERE number = ?", [(number,) for number in numbers]
            ),
        )

    def expire(self, now: int) -> int:
        """(writes) One slice."""
        self.floor = now
        gone = super().expire(now)
        with self.writer.transaction():
            self.writer.execute("DELETE FROM aside WHERE expires <= ?", (now,))
            if gone:
                self.writer.execute("DELETE FROM lost WHERE seq NOT IN (SELECT seq FROM packets)")
        return gone

    def counted_aside(self) -> int:
        """(reads) How many are kept aside."""
        return self.reader.number("SELECT count(*) FROM aside")


def _set(db: GatewayDatabase, name: str, value: object) -> None:
    db.execute("UPDATE facts SET value = ? WHERE name = ?", (value, name))


def _forgive(db: GatewayDatabase, entries: Sequence[Entry]) -> None:
    """The feed has these (again)."""
    if db.row("SELECT 1 FROM lost LIMIT 1") is not None:
        db.execute_many(
            "DELETE FROM lost WHERE seq IN (SELECT seq FROM buckets JOIN packets USING (bucket) "
            "WHERE fingerprint = ? AND time = ? AND id = ?)",
            [(entry.fingerprint, entry.time, entry.id[:ID_STORED]) for entry in entries],
        )


class _Filter:
    """Knows of most packets that the view does not have them (a Bloom filter), so that a
    deposit of something new need not look into the file. Ids are hashes already."""

    def __init__(self) -> None:
        self._bits = bytearray(FILTER_BYTES)
        #: Whether all that the view has was added.
        self.complete = False

    def add(self, packet: bytes) -> None:
        bits = self._bits
        number = int.from_bytes(packet[:12])
        for place in (number & _PLACES, number >> 32 & _PLACES, number >> 64 & _PLACES):
            bits[place >> 3] |= 1 << (place & 7)

    def lacks(self, packet: bytes) -> bool:
        """Whether the view surely does not have it."""
        if not self.complete:
            return False
        bits = self._bits
        number = int.from_bytes(packet[:12])
        for place in (number & _PLACES, number >> 32 & _PLACES, number >> 64 & _PLACES):
            if not bits[place >> 3] >> (place & 7) & 1:
                return True
        return False


class _View(SqliteEngine):
    """The engine of the view's file, with what the feed needs of it.

    What was published is written behind the deposit's back; who reads waits for that.
    """

    def __init__(self, url: str, folder: Path, *, synced: bool) -> None:
        scheme = url.partition(":")[0]
        name = _NAME.format(scheme, hashlib.sha256(url.encode()).hexdigest()[:12])
        super().__init__(EngineUrl("sqlite", None, None, (), name, {}), Context(folder=folder))
        self.url = url
        self._synced = synced
        self._filter = _Filter()
        self._filling: asyncio.Task[None] | None = None
        self._putting: asyncio.Task[None] | None = None
        self._put_now: dict[bytes, Entry] = {}
        #: Ids of what was put and has yet to come from the feed, which brings nothing new.
        self._echoes: dict[bytes, None] = {}

    async def open(self) -> None:
        await super().open()
        if self._filling is None:
            self._filling = asyncio.create_task(self._fill())

    async def close(self) -> None:
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait([self._filling])
            self._filling, self._filter = None, _Filter()
        await self._settled()
        self._echoes.clear()
        await super().close()

    async def _fill(self) -> None:
        """Let the filter know what is there."""
        last = 0
        with contextlib.suppress(RoutingError):
            while found := await super()._read(functools.partial(_ids_after, last)):
                last = found[-1][0]
                for _, packet in found:
                    self._filter.add(packet)
                await asyncio.sleep(0)
            self._filter.complete = True

    async def _settled(self) -> None:
        if self._putting is not None:
            await asyncio.wait([self._putting])

    async def _read(self, work: Callable[[SqliteFile], _T]) -> _T:
        await self._settled()
        return await super()._read(work)

    async def _write(self, work: Callable[[SqliteFile], _T]) -> _T:
        await self._settled()
        return await super()._write(work)

    def _make_file(self) -> SqliteFile:
        return _ViewFile(self.path, busy=self._busy, synced=self._synced)

    async def place(self) -> _Place:
        return await self._read(lambda file: _of(file).place())

    async def missing(self, entries: Sequence[Entry]) -> tuple[list[Entry], int]:
        """What is to be published, each once, and how many of that the view lacks."""
        if self._file is None:
            raise RoutingError(f"{self.url}: not open")
        asked = {entry.id: entry for entry in entries if entry.id not in self._put_now}
        doubtful = [entry for key, entry in asked.items() if not self._filter.lacks(key)]
        if not doubtful:
            return list(asked.values()), len(asked)
        found, new = await super()._read(lambda file: _of(file).missing(doubtful))
        there = {entry.id for entry in doubtful} - {entry.id for entry in found}
        new += len(asked) - len(doubtful)
        return [entry for key, entry in asked.items() if key not in there], new

    async def take(self, sorted_: Sorted, place: _Place) -> int:
        await self._settled()
        new = [entry for entry in sorted_.entries if self._echoes.pop(entry.id, self) is self]
        for entry in new:
            self._filter.add(entry.id)
        sorted_ = sorted_._replace(entries=new)
        dropped = await self._write(lambda file: _of(file).take(sorted_, place))
        self._watch.nudge()
        return dropped

    async def put(self, entries: Sequence[Entry]) -> None:
        """Returns at once, unless synced. Should it fail, the feed brings them."""
        await self._settled()
        for entry in entries:
            self._filter.add(entry.id)
        if self._synced:
            await self._write(lambda file: _of(file).put(entries))
            self._watch.nudge()
            return
        self._put_now = {entry.id: entry for entry in entries}
        self._putting = asyncio.create_task(self._put(entries))

    async def _put(self, entries: Sequence[Entry]) -> None:
        try:
            await super()._write(lambda file: _of(file).put(entries))
        except RoutingError as error:
            log.warning("%s: the view could not be written: %s", self.url, error)
        else:
            self._watch.nudge()
            self._echoes.update(dict.fromkeys(self._put_now))
            for _ in range(len(self._echoes) - MAX_OURS):
                del self._echoes[next(iter(self._echoes))]
        finally:
            self._put_now = {}

    def renewal(self, feed: ForgetfulFeed) -> Renewal:
        return Renewal(feed, self._read, self._write)

    async def begin_anew(self, incarnation: str) -> None:
        await self._settled()
        self._echoes.clear()  # the feed has nothing of it any more
        await self._write(lambda file: _of(file).begin_anew(incarnation))

    async def aside(self, after: int) -> list[tuple[int, bytes]]:
        return await self._read(lambda file: _of(file).aside(after))

    async def decide(self, sorted_: Sorted, numbers: Sequence[int]) -> None:
        for entry in sorted_.entries:
            self._filter.add(entry.id)
        await self._write(lambda file: _of(file).decide(sorted_, numbers))
        self._watch.nudge()

    async def counted_aside(self) -> int:
        return await self._read(lambda file: _of(file).counted_aside())


def _ids_after(seq: int, file: SqliteFile) -> list[tuple[int, bytes]]:
    return file.reader.rows(
        "SELECT seq, id FROM packets WHERE seq > ? ORDER BY seq LIMIT ?", (seq, FILL_SLICE)
    )


def _of(file: SqliteFile) -> _ViewFile:
    assert isinstance(file, _ViewFile)
    return file


# --- the engine -----------------------------------------------------------------------------


class ViewEngine:
    """A :class:`gateway.routing.base.RoutingLayer` of a feed and its view.

    Once the view has read from the feed, it opens even while the feed is away, and answers
    with what it has; deposits raise ``RoutingError`` until the feed is back.

    When the feed's incarnation changes (its log was lost), the log is read from its
    beginning, the view keeps what it has, and the next deposit raises ``RoutingError`` once,
    so that a depositor opens again, sees the other :attr:`incarnation` and repeats all.
    """

    def __init__(self, feed: Feed, context: Context) -> None:
        self.url = feed.url
        self._feed = feed
        self._sorter = Sorter(context.accept)
        folder = context.folder
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="qis-view-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        forgetful = feed if isinstance(feed, ForgetfulFeed) else None
        self._view = _View(self.url, folder, synced=forgetful is not None)
        self._renewal = self._view.renewal(forgetful) if forgetful else None
        self._renewing: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._connecting = asyncio.Lock()
        self._depositing = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        self._again = asyncio.Event()
        self._connected = False
        self._known: str | None = None  # the view's incarnation
        self._incarnation = ""  # as was told to whoever opened it
        self._unread = ""  # why it cannot be read
        self._untaken = ""  # why it did not take the last deposit
        self._published = 0.0  # when a deposit last went through; time.monotonic()
        self._behind = True
        self._aside_tried = 0.0
        self._refused = 0

    @property
    def incarnation(self) -> str:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        return self._incarnation

    # --- opening and closing -----------------------------------------------------------

    async def open(self) -> None:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        async with self._opening:
            await self._view.open()
            try:
                if self._reading is None:
                    self._known = (await self._view.place()).incarnation
                try:
                    self._incarnation = await self._connect()
                    self._unread = ""
                except RoutingError as error:
                    if self._known is None:
                        raise
                    self._incarnation = self._known
                    self._cannot_read(error)
            except BaseException:
                if self._reading is None:
                    await self._view.close()
                    await self._feed.close()
                raise
            if self._reading is None:
                self._reading = asyncio.create_task(self._read())
                if self._renewal is not None:
                    self._renewing = asyncio.create_task(self._renewal.run())

    async def close(self) -> None:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        async with self._opening:
            for task in filter(None, (self._reading, self._renewing)):
                while not task.done():
                    # More than once: a feed may swallow it, as wait_for does before Python 3.12.
                    task.cancel()
                    await asyncio.wait([task], timeout=CANCEL_AGAIN)
            self._reading = self._renewing = None
            await self._view.close()
            await self._feed.close()
            self._sorter.close()
            self._connected = False

    async def _connect(self) -> str:
        """The feed is open and the view is of its incarnation, which is returned."""
        async with self._connecting:
            if not self._connected:
                await self._feed.open()
                self._connected = True
            now = self._feed.incarnation
            if self._known is None or (now and self._known != now):
                if self._known:
                    log.warning("%s has lost its log: it is read anew", self.url)
                await self._view.begin_anew(now)
                self._known = now
            return now

    def _cannot_read(self, error: Exception, began: float | None = None) -> None:
        """It is away, unless a deposit went through since ``began``."""
        if began is None or began > self._published:
            if not self._unread:
                log.info("%s cannot be read: %s", self.url, error)
            self._unread = str(error) or type(error).__name__

    # --- depositing --------------------------------------------------------------------

    async def deposit(self, entries: Sequence[Entry]) -> int:
        """See :class:`gateway.routing.base.RoutingLayer`. Published first; then the view is
        written, which only who reads waits for."""
        async with self._depositing:
            missing, new = await self._view.missing(entries)
            if not missing:
                self._untaken = ""
                return 0
            try:
                if await self._connect() != self._incarnation:
                    self._incarnation = self._feed.incarnation
                    raise RoutingError(f"{self.url} has lost its log: deposit everything anew")
                self._sorter.know(missing)
                await self._feed.publish(missing)
            except RoutingError as error:
                self._untaken = str(error)
                raise
            self._unread = self._untaken = ""
            self._published = time.monotonic()
            self._again.set()
            await self._view.put(missing)
            return new

    # --- reading the feed --------------------------------------------------------------

    async def _read(self) -> None:
        backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        while True:
            self._again.clear()
            began = time.monotonic()
            try:
                await self._try_aside(began)
                if not await self._step():
                    await asyncio.sleep(IDLE if time.monotonic() - began < IDLE else 0)
            except RoutingError as error:
                self._cannot_read(error, began)
            except Exception as error:
                # A feed's or an accept function's fault. The gateway lives on its view.
                log.exception("reading %s failed", self.url)
                self._cannot_read(error, began)
            else:
                self._unread = ""
                backoff.reset()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.next()):
                    await self._again.wait()

    async def _step(self) -> bool:
        """Take the feed's next chunk into the view; whether there was anything."""
        incarnation = await self._connect()
        place = await self._view.place()
        chunk = await self._feed.fetch(place.position)
        if len(chunk.position) > MAX_POSITION:
            raise RoutingError(f"{self.url}: a position of {len(chunk.position)} bytes")
        if chunk.raws or chunk.position != place.position:
            sorted_ = await self._sorter.sort(chunk.raws)
            self._refused += sorted_.refused
            self._refused += await self._view.take(sorted_, _Place(chunk.position, incarnation))
        self._behind = not chunk.end
        return bool(chunk.raws)

    async def _try_aside(self, now: float) -> None:
        """Those whose signer was unknown, once in a while."""
        if self._aside_tried and now - self._aside_tried < RETRY_ASIDE:
            return
        self._aside_tried = now
        after = 0
        while found := await self._view.aside(after):
            after = found[-1][0]
            sorted_ = await self._sorter.sort([raw for _, raw in found])
            unknown = {entry.raw for entry in sorted_.unknown}
            decided = [number for number, raw in found if raw not in unknown]
            if decided:
                self._refused += sorted_.refused
                await self._view.decide(sorted_, decided)

    # --- the view answers --------------------------------------------------------------

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
        return await self._view.query(
            interest, limit=limit, since=since, confidence=confidence, vector=vector
        )

    def follow(
        self, interests: frozenset[Interest], after: Cursor | None = None
    ) -> LogSubscription:
        """See :class:`gateway.routing.base.RoutingLayer`. In the order of arrival here; it
        goes on with what the view has while the feed is away."""
        return self._view.follow(interests, after)

    async def cursor(self) -> Cursor:
        """See :class:`gateway.routing.base.RoutingLayer`. The view's own."""
        return await self._view.cursor()

    async def expire(self, now: int) -> int:
        """See :class:`gateway.routing.base.RoutingLayer`. From the view; what the feed still
        has of it does not come in again."""
        return await self._view.expire(now)

    async def status(self) -> EngineStatus:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        found = await self._view.status()
        if not found.ok:
            return found
        says = list(dict.fromkeys(filter(None, (self._untaken, self._unread))))
        ok = not says
        if self._behind and not self._unread:
            says.append("reading the engine's log" + await self._of_about())
        with contextlib.suppress(RoutingError):
            if aside := await self._view.counted_aside():
                says.append(f"{aside} aside whose signer is unknown")
        return EngineStatus(
            self.url,
            ok=ok,
            packets=found.packets,
            size=found.size,
            refused=found.refused + self._refused,
            detail="; ".join(says),
            behind=self._behind or bool(self._unread),
        )

    async def _of_about(self) -> str:
        try:
            async with asyncio.timeout(1):
                size = await self._feed.size()
        except (RoutingError, TimeoutError):
            size = None
        return "" if size is None else f", which has about {size}"
