"""The spool: the gateway's intake log, durable before anything is receipted.

One SQLite file with one writer. Each batch is one transaction, synced when it returns.
Per (node, store) the spool knows for ever which sequences it has held, as ranges of which
a batch rewrites only those that it touches. The packets themselves stay until every
active routing engine has passed them *and* they are older than the retention, or the
spool is over its budget; until then a second content under one number is recognised.

Each routing engine has a position in the log and drains at its own pace, in order. An
engine that is new, or that has lost what it held (its incarnation changed), begins at the
oldest packet retained: deposits are idempotent, so going over them twice costs only time.
"""

from __future__ import annotations

import contextlib
import enum
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gateway.database import GatewayDatabase
from gateway.routing.base import Entry, framed_id, is_framed
from gateway.spool_mark import Mark
from gateway.spool_schema import SCHEMA
from qis_edge.core.errors import UsageError
from qis_edge.core.packet import Packet
from qis_edge.core.ranges import runs_of
from qis_edge.store.database import Lock
from qis_edge.store.forms import check_of

#: How long packets stay after every engine has them: what a new engine begins with, and
#: as long as a second content under one number is recognised. Seconds.
RETENTION = 7 * 86400
#: Bytes of packets that are kept at most, unless an engine still needs them.
BUDGET = 1 << 30
#: Packets that one call of :meth:`Spool.trim` drops at most.
TRIM_SLICE = 1000
#: Stores whose number is remembered.
MAX_ORIGINS = 65_536
#: Proofs of equivocation that are kept for each store.
MAX_PROOFS = 4

#: What a packet costs beside its own bytes, about.
_OVERHEAD = 64

_INSERT = "INSERT INTO packets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
#: What a packet's checksum is of, and it.
_CHECKED = "raw, crc, position, origin, sequence, route, time, expires, confidence"
_RUN_BEFORE = (
    "SELECT first, last, crc FROM ranges WHERE origin = ? AND first <= ? "
    "ORDER BY first DESC LIMIT 1"
)


class Verdict(enum.Enum):
    """What became of a packet that was brought to the spool."""

    NEW = "new"
    KNOWN = "known"  # held before: receipt it again
    EQUIVOCATION = "equivocation"  # another content is held under its number: refuse it


class Intake(NamedTuple):
    """A verified packet on its way in.

    :param received: unix seconds.
    :param route: False for one that is held but not worth routing any more.
    """

    packet: Packet
    received: float
    route: bool = True


class Admission(NamedTuple):
    """The spool's answer.

    :param position: where it lies, to compare with :meth:`Spool.routed_through`; 0 where
        it lies no more (every engine has it) or never did (an equivocation).
    """

    verdict: Verdict
    position: int


class Place(NamedTuple):
    """A packet in the log: its position, to compare with :meth:`Spool.routed_through`."""

    position: int
    id: bytes


class Pending(NamedTuple):
    """What an engine is to be given next.

    :param entries: to deposit, in order; those that are not routed are left out.
    :param through: the position to :meth:`Spool.advance` to once they are deposited.
    """

    entries: tuple[Entry, ...]
    through: int


@dataclass(frozen=True, slots=True)
class StoreState:
    """What is held of one node's store.

    :param held: how many sequences.
    :param last: the greatest of them.
    :param coming: missing below ``last``, may still come.
    :param given_up: missing below the node's signed floor: will never come.
    """

    kid: bytes
    store: bytes
    held: int
    last: int
    floor: int
    coming: int
    given_up: int


@dataclass(frozen=True, slots=True)
class Equivocation:
    """The proof: two contents that one key signed under one number.

    :param received: unix seconds at which the other one came.
    """

    kid: bytes
    store: bytes
    sequence: int
    received: int
    held: bytes
    other: bytes


@dataclass(frozen=True, slots=True)
class EngineState:
    """How far a routing engine is: ``behind`` counts the packets that it has yet to pass."""

    url: str
    active: bool
    position: int
    behind: int


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """What ``status`` shows. ``size`` is what the packets take, in bytes."""

    epoch: bytes
    since: int
    packets: int
    size: int
    budget: int
    engines: tuple[EngineState, ...]


class Spool:
    """See the module. Synchronous, for one thread at a time.

    :param engines: the routing engines (``RoutingLayer.url``) that packets wait for.
    :param read_only: beside a gateway that runs or not; only what reads works.
    :raises StoreError: in use by another gateway, or what else stands in the way.
    :raises StoreCorrupt: the file is damaged, also later, by whatever reads it; see
        :mod:`gateway.mending`.
    """

    def __init__(
        self,
        path: Path,
        *,
        engines: Iterable[str] = (),
        retention: float = RETENTION,
        budget: int = BUDGET,
        read_only: bool = False,
    ) -> None:
        self.path = path
        self.retention = retention
        self.budget = budget
        born = not path.exists()
        self._lock = None if read_only else Lock(path)
        self._mark: Mark | None = None
        try:
            self._db = GatewayDatabase(
                path,
                SCHEMA,
                remedy="the next start of the gateway mends it",
                mends=True,
                shared=False,
                read_only=read_only,
                cache=8 << 20,
            )
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise
        #: Whether the end of the log was damaged: what was receipted last may be lost, and
        #: :meth:`renew_epoch` brings it back.
        self.torn = self._db.torn
        #: Why it must be an older copy that was put back: what was receipted since is
        #: missing here, and :meth:`renew_epoch` brings it back. Empty: it is not.
        self.restored = ""
        self._origins: dict[bytes, int] = {}
        #: Active engine → position, and the last position given: as the file has them, so
        #: that :meth:`routed_through` can be asked from any thread.
        self._positions: dict[str, int] = {}
        self._last = int(self._fact("last"))
        #: 4 random bytes, drawn when the spool was born or renewed.
        self.epoch = bytes(self._fact("epoch"))
        #: Unix seconds: what nodes that knew another epoch are to send again from.
        self.since = int(self._fact("since"))
        if not read_only:
            try:
                self._look_at_mark(born)
                self.activate(engines)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Idempotent."""
        self._db.close()
        if self._mark is not None:
            self._mark.close()
        if self._lock is not None:
            self._lock.release()

    def check(self, quick: int, after_crash: int) -> None:
        """Walk the whole file if it has at most ``quick`` bytes, or after a crash the other.

        :raises StoreCorrupt: it is damaged.
        """
        if self._db.size() <= (after_crash if self._db.unclean else quick):
            self._db.check()

    def skip_to(self, position: int) -> None:
        """Give out no position up to this one: another spool has."""
        with self._db.transaction():
            self._set("last", max(position, self._last))
        self._last = max(position, self._last)

    # --- the epoch ---------------------------------------------------------------------

    def renew_epoch(self, since: int) -> bytes:
        """Packets are missing here that were receipted: draw a new epoch, so that the nodes
        send again what they still have of since ``since``, unix seconds. The routing engines
        are given again what is here: they may have been put back, too."""
        epoch = os.urandom(4)
        with self._db.transaction():
            self._set("epoch", epoch)
            self._set("since", since)
            if self._mark is not None:
                self._remember_file(self._mark)
            self._db.execute("UPDATE engines SET position = 0")
        self.epoch, self.since, self.restored = epoch, since, ""
        self._positions = dict.fromkeys(self._positions, 0)
        if self._mark is not None:
            self._mark.write(epoch, self._last)
        return epoch

    def _look_at_mark(self, born: bool) -> None:
        """Whether this is an older copy."""
        mark = self._mark = Mark(self.path)
        if not born:
            inode = self._db.value("SELECT value FROM facts WHERE name = 'inode'")
            self.restored = mark.doubt(self.epoch, self._last, inode)
        if not self.restored:
            with self._db.transaction():
                self._remember_file(mark)
            mark.write(self.epoch, self._last)

    def _remember_file(self, mark: Mark) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES ('inode', ?)", (mark.inode,))

    # --- admission ---------------------------------------------------------------------

    def admit(self, batch: Sequence[Intake]) -> list[Admission]:
        """Take in verified packets, in one transaction that is on disk when this returns.

        :returns: one answer each, in order.
        :raises StoreError: nothing of the batch was taken in; it may be brought again.
        """
        admitting = _Admitting(self._db, self._origins, self._last)
        with self._db.transaction():
            answers = [admitting.take(intake) for intake in batch]
            admitting.write()
        self._last = admitting.last
        if self._mark is not None:
            self._mark.write(self.epoch, self._last)
        if len(self._origins) + len(admitting.new_origins) > MAX_ORIGINS:
            self._origins.clear()
        self._origins.update(admitting.new_origins)
        return answers

    # --- the routing engines -----------------------------------------------------------

    def activate(self, engines: Iterable[str]) -> None:
        """From now on packets wait for exactly these engines. Others keep their positions,
        for when they come back, and hold up nothing."""
        active = sorted(set(engines))
        with self._db.transaction():
            for url in active:
                self._db.execute("INSERT OR IGNORE INTO engines (url) VALUES (?)", (url,))
        self._positions = {url: self._stored_position(url) for url in active}

    def engage(self, url: str, incarnation: str = "") -> int:
        """An engine was opened: its position, which is the beginning if it is no more the
        one that it was (``RoutingLayer.incarnation``).

        :raises UsageError: it is not active.
        """
        self._position(url)
        with self._db.transaction():
            before = self._db.value("SELECT incarnation FROM engines WHERE url = ?", (url,))
            if incarnation and before != incarnation:
                self._db.execute(
                    "UPDATE engines SET incarnation = ?, position = iif(?, 0, position) "
                    "WHERE url = ?",
                    (incarnation, before != "", url),
                )
        position = self._positions[url] = self._stored_position(url)
        return position

    def pending(self, url: str, limit: int = 500) -> Pending:
        """What comes next for an engine: at most ``limit`` packets, none when it has all.

        :raises UsageError: it is not active.
        :raises StoreCorrupt: one of them is not what was written.
        """
        position = self._position(url)
        rows = self._db.rows(
            f"SELECT {_CHECKED}, vector FROM packets "  # noqa: S608 - a constant
            "WHERE position > ? ORDER BY position LIMIT ?",
            (position, limit),
        )
        for row in rows:
            _check(self._db, *row[:-1])
        entries = [entry for row in rows if row[5] and (entry := _entry(row)) is not None]
        return Pending(tuple(entries), rows[-1][2] if rows else position)

    def advance(self, url: str, through: int) -> None:
        """An engine has deposited everything up to a position, durably.

        Not synced by itself: a lost advance costs a second deposit, which changes nothing.

        :raises UsageError: it is not active.
        """
        self._position(url)
        with self._lightly():
            self._db.execute(
                "UPDATE engines SET position = max(position, ?) WHERE url = ?", (through, url)
            )
        self._positions[url] = max(through, self._positions[url])

    def routed_through(self, engines: Iterable[str] | None = None) -> int:
        """The position up to which all of these engines (``None``: all active ones) have
        everything. Without any engine: the end. From memory, on any thread.

        :raises UsageError: one is not active.
        """
        chosen = list(self._positions if engines is None else engines)
        return min(map(self._position, chosen), default=self._last)

    def _position(self, url: str) -> int:
        position = self._positions.get(url)
        if position is None:
            raise UsageError(f"{url} is not an active routing engine", field="engine")
        return position

    def _stored_position(self, url: str) -> int:
        return self._db.number("SELECT position FROM engines WHERE url = ?", (url,))

    # --- trimming ----------------------------------------------------------------------

    def trim(self, now: float) -> int:
        """Drop up to ``TRIM_SLICE`` packets that need not be kept, oldest first; how many.
        Call it until it returns 0, with pauses in which others may come to the spool."""
        passed = self.routed_through()
        with self._lightly():
            gone = self._db.rows(
                "SELECT position, length(raw) FROM packets WHERE received < ? AND position <= ? "
                "ORDER BY received LIMIT ?",
                (int(now - self.retention), passed, TRIM_SLICE),
            )
            if not gone and (over := int(self._fact("bytes")) - self.budget) > 0:
                gone = self._oldest(passed, over)
            self._db.execute_many(
                "DELETE FROM packets WHERE position = ?", [(row[0],) for row in gone]
            )
            if gone:
                _count(self._db, -len(gone), -sum(row[1] + _OVERHEAD for row in gone))
        return len(gone)

    def _oldest(self, passed: int, over: int) -> list[tuple[int, int]]:
        """As many of the oldest as bring the spool back under its budget."""
        gone = []
        for row in self._db.rows(
            "SELECT position, length(raw) FROM packets WHERE position <= ? "
            "ORDER BY position LIMIT ?",
            (passed, TRIM_SLICE),
        ):
            if over <= 0:
                break
            gone.append(row)
            over -= row[1] + _OVERHEAD
        return gone

    @property
    def full(self) -> bool:
        """Whether it is over its budget with packets that an engine still needs: the
        gateway then answers *later* instead of filling the disk."""
        if int(self._fact("bytes")) <= self.budget:
            return False
        oldest = self._db.value("SELECT min(position) FROM packets")
        return oldest is not None and oldest > self.routed_through()

    # --- looking -----------------------------------------------------------------------

    def held(self, kid: bytes, store: bytes) -> set[int]:
        """Every sequence held of a store, ever (:meth:`stores` counts them)."""
        rows = self._db.rows(
            "SELECT first, last FROM ranges JOIN origins USING (origin) "
            "WHERE kid = ? AND store = ?",
            (kid, store),
        )
        return {sequence for first, last in rows for sequence in range(first, last + 1)}

    def ids(self, kid: bytes, store: bytes, sequences: Iterable[int]) -> dict[int, Place]:
        """Where the packets of these sequences lie; those that were trimmed, and those that
        never came, are left out."""
        found = {}
        for sequence in sequences:
            row = self._db.row(
                f"SELECT {_CHECKED} FROM packets JOIN origins USING (origin) "  # noqa: S608 - a constant
                "WHERE kid = ? AND store = ? AND sequence = ?",
                (kid, store, sequence),
            )
            if row is not None:
                _check(self._db, *row)
            if row is not None and (packet_id := framed_id(row[0])) is not None:
                found[sequence] = Place(row[2], packet_id)
        return found

    def stores(self) -> list[StoreState]:
        """What is held of each store of each node."""
        rows = self._db.rows(
            "SELECT kid, store, floor, sum(last - first + 1), max(last), "
            "sum(iif(first < floor, min(last, floor - 1) - first + 1, 0)) "
            "FROM origins JOIN ranges USING (origin) GROUP BY origin ORDER BY kid, origin"
        )
        states = []
        for row_kid, store, floor, held, last, below in rows:
            given_up = floor - below
            # The floor may lie above all that is held: then nothing below it is coming.
            coming = max(last + 1, floor) - held - given_up
            states.append(StoreState(row_kid, store, held, last, floor, coming, given_up))
        return states

    def equivocations(self) -> list[Equivocation]:
        """The proofs that were kept, oldest first."""
        return [
            Equivocation(*row)
            for row in self._db.rows(
                "SELECT kid, store, sequence, received, held, other "
                "FROM proofs JOIN origins USING (origin) ORDER BY proofs.rowid"
            )
        ]

    def status(self) -> SpoolStatus:
        """Figures that cost nothing to know."""
        last = int(self._fact("last"))  # a reader's own is of when it was opened
        engines = self._db.rows("SELECT url, position FROM engines ORDER BY url")
        return SpoolStatus(
            epoch=self.epoch,
            since=self.since,
            packets=int(self._fact("packets")),
            size=int(self._fact("bytes")),
            budget=self.budget,
            engines=tuple(
                EngineState(url, url in self._positions, position, last - position)
                for url, position in engines
            ),
        )

    # --- inside ------------------------------------------------------------------------

    def _fact(self, name: str) -> Any:
        value = self._db.value("SELECT value FROM facts WHERE name = ?", (name,))
        if value is None:
            raise self._db.damaged(f"the fact {name!r} is missing")
        return value

    def _set(self, name: str, value: object) -> None:
        self._db.execute("UPDATE facts SET value = ? WHERE name = ?", (value, name))

    @contextlib.contextmanager
    def _lightly(self) -> Iterator[None]:
        """A transaction that is not synced: after a loss of power it may not have been."""
        self._db.execute("PRAGMA synchronous=NORMAL")
        try:
            with self._db.transaction():
                yield
        finally:
            self._db.execute("PRAGMA synchronous=FULL")


class _Admitting:
    """One batch on its way in, within one transaction."""

    def __init__(self, db: GatewayDatabase, origins: dict[bytes, int], last: int) -> None:
        self._db = db
        self._origins = origins
        self.last = last
        self.new_origins: dict[bytes, int] = {}
        self._rows: list[tuple[object, ...]] = []
        #: (origin, sequence) → packet and position, of what is new in this batch.
        self._fresh: dict[tuple[int, int], tuple[Packet, int]] = {}
        self._floors: dict[int, int] = {}
        self._bytes = 0

    def take(self, intake: Intake) -> Admission:
        packet = intake.packet
        origin = self._origin(packet)
        if packet.extensions.floor is not None:
            self._floors[origin] = max(packet.extensions.floor, self._floors.get(origin, 0))
        if (twin := self._fresh.get((origin, packet.sequence))) is not None:
            if twin[0].id == packet.id:
                return Admission(Verdict.KNOWN, twin[1])
            return self._equivocation(origin, intake, twin[0].raw)
        run = self._run_before(origin, packet.sequence)
        if run is not None and run[1] >= packet.sequence:
            return self._known(origin, intake)
        return self._new(origin, intake)

    def _origin(self, packet: Packet) -> int:
        key = packet.kid + packet.store
        origin = self._origins.get(key) or self.new_origins.get(key)
        if origin is None:
            arguments = (packet.kid, packet.store)
            self._db.execute("INSERT OR IGNORE INTO origins (kid, store) VALUES (?, ?)", arguments)
            origin = self._db.number(
                "SELECT origin FROM origins WHERE kid = ? AND store = ?", arguments
            )
            self.new_origins[key] = origin
        return origin

    def _new(self, origin: int, intake: Intake) -> Admission:
        self.last += 1
        entry = Entry.of(intake.packet)
        self._fresh[origin, intake.packet.sequence] = (intake.packet, self.last)
        self._bytes += len(entry.raw) + _OVERHEAD
        vector = entry.vector
        numbers = (self.last, origin, intake.packet.sequence)
        more = (int(intake.route), entry.time, entry.expires, entry.confidence)
        self._rows.append(
            (
                *numbers,
                int(intake.received),
                *more,
                None if vector is None else struct.pack(f"<{len(vector)}d", *vector),
                entry.raw,
                check_of(entry.raw, *numbers, *more),
            )
        )
        return Admission(Verdict.NEW, self.last)

    def _known(self, origin: int, intake: Intake) -> Admission:
        row = self._db.row(
            f"SELECT {_CHECKED} FROM packets WHERE origin = ? AND sequence = ?",  # noqa: S608 - as said
            (origin, intake.packet.sequence),
        )
        if row is None:  # trimmed: what it was is forgotten
            return Admission(Verdict.KNOWN, 0)
        _check(self._db, *row)  # nobody is accused for what a disk did
        raw, _, position, *_ = row
        if framed_id(raw) == intake.packet.id:
            return Admission(Verdict.KNOWN, position)
        return self._equivocation(origin, intake, raw)

    def _equivocation(self, origin: int, intake: Intake, held: bytes) -> Admission:
        packet = intake.packet
        known = self._db.number("SELECT count(*) FROM proofs WHERE origin = ?", (origin,))
        if known < MAX_PROOFS:
            self._db.execute(
                "INSERT INTO proofs VALUES (?, ?, ?, ?, ?)",
                (origin, packet.sequence, int(intake.received), held, packet.raw),
            )
        return Admission(Verdict.EQUIVOCATION, 0)

    def write(self) -> None:
        """What :meth:`take` has gathered."""
        self._db.execute_many(_INSERT, self._rows)
        sequences: dict[int, list[int]] = {}
        for origin, sequence in self._fresh:
            sequences.setdefault(origin, []).append(sequence)
        for origin, fresh in sequences.items():
            for first, last in runs_of(fresh):
                self._add_run(origin, first, last)
        for origin, floor in self._floors.items():
            self._db.execute(
                "UPDATE origins SET floor = max(floor, ?) WHERE origin = ?", (floor, origin)
            )
        if self._rows:
            _count(self._db, len(self._rows), self._bytes)
            self._db.execute("UPDATE facts SET value = ? WHERE name = 'last'", (self.last,))

    def _add_run(self, origin: int, first: int, last: int) -> None:
        """Add sequences of which none is held, joining the runs that they touch."""
        run = self._run_before(origin, first)
        begin = run[0] if run is not None and run[1] == first - 1 else first
        after = self._run_before(origin, last + 1)
        if after is not None and after[0] != last + 1:
            after = None
        if after is not None:
            self._db.execute(
                "DELETE FROM ranges WHERE origin = ? AND first = ?", (origin, last + 1)
            )
        end = last if after is None else after[1]
        self._db.execute(
            "INSERT OR REPLACE INTO ranges VALUES (?, ?, ?, ?)",
            (origin, begin, end, check_of(b"", origin, begin, end)),
        )

    def _run_before(self, origin: int, sequence: int) -> Any:
        """The last run that begins at or before a sequence. :raises StoreCorrupt:"""
        run = self._db.row(_RUN_BEFORE, (origin, sequence))
        if run is not None and run[2] not in (None, check_of(b"", origin, run[0], run[1])):
            raise self._db.damaged(f"a range of origin {origin} is not what was written")
        return run


def _count(db: GatewayDatabase, packets: int, size: int) -> None:
    db.execute(
        "UPDATE facts SET value = value + iif(name = 'bytes', ?, ?) "
        "WHERE name IN ('bytes', 'packets')",
        (size, packets),
    )


def _check(db: GatewayDatabase, raw: bytes, crc: int | None, *numbers: int) -> None:
    """:raises StoreCorrupt: a packet's row is not what was written."""
    if crc is not None and check_of(raw, *numbers) != crc:
        raise db.damaged(f"packet {numbers[0]} is not what was written")


def _entry(row: Sequence[Any]) -> Entry | None:
    """``None`` for what is no packet any more, on a failing disk: it must hold up nothing."""
    raw, _, _, _, _, _, time, expires, confidence, vector = row
    if not is_framed(raw):
        return None
    return Entry(
        raw,
        time,
        expires,
        confidence,
        None if vector is None else struct.unpack(f"<{len(vector) // 8}d", vector),
    )
