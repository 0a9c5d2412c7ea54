"""A damaged outbox: set aside, and what can be read of it carried over.

The steps are renames that can be resumed wherever the power fails: ``X`` becomes
``X.salvage``, ``X.new`` is filled from it and becomes ``X``, and ``X.salvage`` becomes
``X.aside-1`` (2, 3: the newest are kept). A mark, ``X.damaged``, says that it is due.

Waiting outcomes are carried over as they are. So are packets whose bytes are still what
was written: they were signed once, under a number of the old store, and a gateway that
has them already knows them again. New packets are numbered under a new store.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from qis_edge.core.errors import Refused
from qis_edge.core.identity import PublicKey
from qis_edge.core.packet import MAX_SEQUENCE, MAX_TTL, Packet, unpack
from qis_edge.store import database
from qis_edge.store.database import Database, beside
from qis_edge.store.forms import body_of, check_of, extensions_text, group_key
from qis_edge.store.tables import (
    LOAD_STATE,
    STATE_COLUMNS,
    PacketRow,
    Tables,
    state_is_sound,
)
from qis_edge.store.times import check_untimed

#: Counters that go on where they were.
_LIFETIME = (
    "made",
    "packed",
    "packets",
    "refused_packets",
    "refused_outcomes",
    "unpackable",
    "evicted_packets",
    "evicted_receipted",
    "evicted_expired",
    "evicted_unsent",
    "unreadable",
    "conflicts",
)
#: Where files that were set aside are kept, and how many.
ASIDE, KEEP_ASIDE = ".aside-{}", 3

_PLACES = ("waiting", "untimed", "open_outcomes", "held_outcomes")


@dataclass(slots=True)
class Salvaged:
    """What a salvage brought.

    :param outcomes: waiting ones carried over.
    :param packets: open and held ones carried over.
    :param lost: outcomes that the old counters knew of and that could not be read;
        ``None`` where the counters could not be read either.
    """

    outcomes: int = 0
    packets: int = 0
    lost: int | None = None

    def __str__(self) -> str:
        lost = "an unknown number of" if self.lost is None else str(self.lost)
        return (
            f"carried over {self.outcomes} waiting outcomes and {self.packets} packets, "
            f"{lost} outcomes could not be read"
        )


def due(path: Path) -> bool:
    """Whether a salvage was asked for or was interrupted."""
    return any(beside(path, end).exists() for end in (".damaged", ".salvage", ".salvage-wal"))


def set_aside(path: Path, fill: Callable[[Path, Path], object]) -> None:
    """Replace a database by what ``fill(new, old)`` makes of it. Resumes.

    :raises StoreError: the disk does not allow it; the next start tries again.
    """
    old, new = beside(path, ".salvage"), beside(path, ".new")
    try:
        if not (old.exists() and path.exists()):
            _move(path, old)
            database.remove(new)
            fill(new, old)
            new.rename(path)
            database.sync_directory(path)
        beside(path, ".damaged").unlink(missing_ok=True)
        _keep(path, old)
    except OSError as error:
        raise database.os_error(error, path) from error


def _move(path: Path, old: Path) -> None:
    """The file, then its log: while both are under way nobody opens either."""
    for suffix in ("", "-wal"):
        source = beside(path, suffix)
        if source.exists():
            source.rename(beside(old, suffix))
    beside(path, "-shm").unlink(missing_ok=True)
    database.sync_directory(path)


def _keep(path: Path, old: Path) -> None:
    """The newest is number 1."""
    if not old.exists():
        return
    names = [beside(path, ASIDE.format(number)) for number in range(1, KEEP_ASIDE + 1)]
    for newer, older in reversed(list(pairwise(names))):
        if newer.exists():
            database.rename(newer, older)
    database.rename(old, names[0])


# --- filling the new file --------------------------------------------------------------


def carry_over(source: sqlite3.Connection, target: Tables, key: PublicKey, anew: bool) -> Salvaged:
    """Copy what can be read of a damaged outbox into an empty one, in one transaction.

    :param key: of the packets that may be kept as they are.
    :param anew: packets are not kept: their outcomes wait to be packed again.
    """
    salvaged = Salvaged()
    with target.change() as state:
        counters = _counters(source)
        state.last_row = max(state.last_row, counters.get("last_row", 0))
        state.clock = max(state.clock, counters.get("clock", 0))
        for number, identity, why, crc in readable(
            source, "stores", "number", ("number", "id", "why", "crc")
        ):
            if check_of(identity, number) == crc:
                target.add_store(number, identity, why)
        arrived = _carry_waiting(source, target)
        _carry_untimed(source, target)
        salvaged.outcomes = state.waiting + state.untimed
        for row in readable(source, "packets", "id", _PACKET_COLUMNS):
            salvaged.packets += _carry_packet(target, row, key, anew)
        if not anew:
            copy(source, target.db, "stubs", "id", ("id", "packet"))
            copy(source, target.db, "gateways", "bit", ("bit", "kid", "epoch"))
        copy(source, target.db, "aside", "id", _ASIDE_COLUMNS)
        copy(source, target.db, "notices", "id", ("id", "at", "code", "text"))
        here = sum(getattr(state, place) for place in _PLACES)
        for name in _LIFETIME:
            setattr(state, name, counters.get(name, 0))
        if not counters:
            state.made = here
            return salvaged
        if anew:  # what a gateway holds under the old key is not carried over
            state.evicted_receipted += counters.pop("held_outcomes")
        known = arrived + sum(counters.get(place, 0) for place in _PLACES)
        state.made += arrived
        salvaged.lost = max(0, known - here)
        state.unreadable += salvaged.lost
        state.made += max(0, here - known)
    return salvaged


_PACKET_COLUMNS = (
    "id", "rank", "priority", "holders", "count", "last_time", "expires", "raw", "crc",
)  # fmt: skip
_ASIDE_COLUMNS = (
    "id", "at", "packet", "reason", "detail", "gateway", "priority", "count", "content",
)  # fmt: skip


def _counters(source: sqlite3.Connection) -> dict[str, int]:
    """Empty where they are not what was written."""
    try:
        row = source.execute(LOAD_STATE).fetchone()
    except sqlite3.Error:
        return {}
    if not row or not state_is_sound(row):
        return {}
    return dict(zip(STATE_COLUMNS, row[:-1], strict=True))


def _carry_waiting(source: sqlite3.Connection, target: Tables) -> int:
    """Returns how many had arrived after the counters were written."""
    before = target.state.last_row
    kinds: dict[int, tuple[bytes, int, int, str]] = {}
    columns = ("id", "key", "fingerprint", "priority", "ttl", "extensions")
    for group, key, *kind in readable(source, "groups", "id", columns):
        if _sane(kind) and group_key(*kind) == key:
            kinds[group] = (kind[0], kind[1], kind[2], kind[3])
    for group, known in kinds.items():
        for row in readable(source, "waiting", "id", _ROW_COLUMNS, f"grp={int(group)}"):
            _carry_row(target, row, known)
    for row in readable(source, "arrivals", "id", _ROW_COLUMNS):
        if row[1] in kinds:
            _carry_row(target, row, kinds[row[1]])
    return target.state.last_row - before


_ROW_COLUMNS = ("id", "grp", "time", "body", "crc")


def _carry_row(target: Tables, found: Sequence[Any], kind: tuple[bytes, int, int, str]) -> None:
    row, _, time, body, crc = found
    if check_of(body, row, time) == crc:
        target.state.last_row = max(target.state.last_row, row)
        target.state.clock = max(target.state.clock, time)
        target.add_waiting(row, time, body, kind)


def _carry_untimed(source: sqlite3.Connection, target: Tables) -> None:
    boots = ("id", "name", "clock", "offset", "uncertainty")
    copy(source, target.db, "boots", "id", boots)
    columns = (
        "id", "priority", "boot", "monotonic", "fingerprint", "ttl", "extensions", "body", "crc",
    )  # fmt: skip
    for priority in range(4):
        for found in readable(source, "untimed", "id", columns, f"priority={priority}"):
            row, _, boot, monotonic, fingerprint, ttl, extensions, body, crc = found
            kind = (fingerprint, priority, ttl, extensions)
            if not _sane(kind) or check_untimed(row, boot, monotonic, kind, body) != crc:
                continue
            target.db.execute(
                "INSERT OR IGNORE INTO boots (id, name, clock) VALUES (?, ?, ?)",
                (boot, f"unreadable {boot}", target.state.clock),
            )
            target.db.execute(
                "INSERT OR IGNORE INTO untimed VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (priority, row, boot, monotonic, fingerprint, ttl, extensions, body, crc),
            )
            target.state.untimed += 1
            target.state.last_row = max(target.state.last_row, row)


def _sane(kind: Sequence[Any]) -> bool:
    fingerprint, priority, ttl, extensions = kind
    return (
        isinstance(fingerprint, bytes)
        and len(fingerprint) == 32
        and priority in range(4)
        and isinstance(ttl, int)
        and 0 <= ttl <= MAX_TTL
        and isinstance(extensions, str)
    )


def _carry_packet(target: Tables, row: Sequence[Any], key: PublicKey, anew: bool) -> bool:
    found = PacketRow(*row[:-1])
    try:
        intact = found.check == row[-1]
        packet = unpack(found.raw, None if intact or anew else key)
    except (Refused, TypeError):
        return False
    number, rank, priority, holders = found[:4]
    if not intact:  # its bytes are: signed. What was known of it is not
        number = number & ~MAX_SEQUENCE | packet.sequence
        rank, priority, holders = 1, 1, 0
    anew = anew or packet.kid != key.kid
    if anew:
        if rank >= 0:
            pack_anew(target, packet, priority)
        return bool(rank >= 0)
    target.add_store(number >> 32, packet.store, "salvaged")
    target.add_packet(packet, priority, number)
    if (carried := target.packet(number)) is not None and (rank < 0 or holders):
        target.hold(carried, holders, done=rank < 0)
    return True


def pack_anew(target: Tables, packet: Packet, priority: int) -> None:
    """Let the outcomes of a packet wait again, to be packed under another number."""
    extensions = extensions_text(packet.extensions)
    for outcome in packet.outcomes:
        target.state.last_row += 1
        target.add_waiting(
            target.state.last_row,
            outcome.time,
            body_of(outcome),
            (packet.fingerprint, priority, packet.ttl, extensions),
        )


# --- reading around damage -------------------------------------------------------------


def open_damaged(path: Path) -> sqlite3.Connection | None:
    """A connection to a damaged file: with its log if that can be, or else without."""
    for mode in ("mode=ro", "immutable=1"):
        try:
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None
            )
        except sqlite3.Error:
            continue
        connection.text_factory = lambda data: data.decode(errors="replace")
        try:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except sqlite3.Error:
            connection.close()
        else:
            return connection
    return None


def key_of(source: sqlite3.Connection) -> bytes | None:
    """The thumbprint of the key that an outbox belongs to, if it can still be read."""
    try:
        row = source.execute("SELECT key FROM state").fetchone()
    except sqlite3.Error:
        return None
    return row[0] if row and isinstance(row[0], bytes) and len(row[0]) == 32 else None


def copy(
    source: sqlite3.Connection, target: Database, table: str, key: str, columns: Sequence[str]
) -> int:
    """Copy the rows of a table that can be read and that fit. Returns how many."""
    marks = ", ".join("?" * len(columns))
    names = ", ".join(columns)
    insert = f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})"  # noqa: S608 - ours
    return sum(target.attempt(insert, row) for row in readable(source, table, key, columns))


def readable(
    source: sqlite3.Connection, table: str, key: str, columns: Sequence[str], where: str = "1"
) -> Iterator[Any]:
    """A table's rows in order of their integer key, passing over what cannot be read."""
    names = ", ".join((key, *columns))
    query = (
        f"SELECT {names} FROM {table}"  # noqa: S608 - our own names
        f" WHERE {where} AND {key}>? ORDER BY {key}"
    )
    at = -1
    while True:
        try:
            for row in source.execute(query, (at,)):
                if row[0] > at:  # a damaged tree may lead in circles
                    at = row[0]
                    yield row[1:]
            return
        except sqlite3.Error:
            following = _after_damage(source, table, key, where, at)
            if following is None:
                return
            at = max(following - 1, at + 1)


def _after_damage(
    source: sqlite3.Connection, table: str, key: str, where: str, at: int
) -> int | None:
    """The lowest key after ``at`` that can be reached again."""
    query = (
        f"SELECT {key} FROM {table}"  # noqa: S608 - our own names
        f" WHERE {where} AND {key}>=? ORDER BY {key} LIMIT 1"
    )

    def reach(distance: int) -> int | None:
        """The first key at or after that distance; -1: there is none; None: damage."""
        try:
            row = source.execute(query, (at + distance,)).fetchone()
        except sqlite3.Error:
            return None
        return -1 if row is None else int(row[0])

    high = 1
    while (found := reach(high)) is None:
        if high > 2**61:
            return None
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if (nearer := reach(middle)) is None:
            low = middle
        else:
            high, found = middle, nearer
    return None if found < 0 else found
