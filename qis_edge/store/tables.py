"""The outbox's rows: what every operation on it is made of.

:class:`Tables` keeps the one row of counters in memory beside the database, and writes it
in the same transaction as the rows that it counts. It knows how rows hang together, not
when to do what: that is the outbox's business.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, NamedTuple
from zlib import crc32

from qis_edge.core.cose import open_sign1
from qis_edge.core.errors import Refused
from qis_edge.core.packet import AAD, MAX_PACKET, Packet, unpack
from qis_edge.store.database import Database
from qis_edge.store.forms import (
    check_of,
    group_key,
    packet_number,
    sequence_of,
)

#: How many things put aside, ids of gone packets, and notices are kept at most.
KEEP_ASIDE = 256
KEEP_STUBS = 8192
KEEP_NOTICES = 64
#: Gateways have one bit each in a packet's row; those after the 62nd share the last.
LAST_BIT = 62

_MOST_GROUPS = 1024
_MOST_ARRIVALS = 256


@dataclass(slots=True)
class State:
    """The row ``state``, without what never changes while the file is open."""

    clock: int
    last_row: int
    store: int
    sequence: int
    announced: int
    dropped: int
    made: int
    waiting: int
    untimed: int
    packed: int
    packets: int
    open_packets: int
    open_outcomes: int
    held_packets: int
    held_outcomes: int
    refused_packets: int
    refused_outcomes: int
    unpackable: int
    evicted_packets: int
    evicted_receipted: int
    evicted_expired: int
    evicted_unsent: int
    unreadable: int
    conflicts: int


STATE_COLUMNS = tuple(column.name for column in fields(State))
_values = attrgetter(*STATE_COLUMNS)

# The only names that are put into statements are those of our own columns and tables.
LOAD_STATE = f"SELECT {', '.join(STATE_COLUMNS)}, crc FROM state"  # noqa: S608 - as said
_SET = ", ".join(f"{name}=?" for name in (*STATE_COLUMNS, "crc"))
_SAVE_STATE = f"UPDATE state SET {_SET} WHERE id=1"  # noqa: S608 - as said


def load_state(db: Database) -> State:
    """The counters, with what has arrived since they were written.

    :raises StoreCorrupt: there are none, or they are not what was written.
    """
    row = db.row(LOAD_STATE)
    if row is None or not state_is_sound(row):
        raise db.damaged("its row of counters is not what was written")
    state = State(*row[:-1])
    arrived, last_row, clock = db.row("SELECT count(*), max(id), max(time) FROM arrivals")
    if arrived:
        state.made += arrived
        state.waiting += arrived
        state.last_row = last_row
        state.clock = max(state.clock, clock)
    return state


def state_is_sound(row: Sequence[int]) -> bool:
    """Whether a row of counters with its checksum is what was written."""
    return check_of(b"", *row[:-1]) == row[-1]


def state_row(values: Sequence[int]) -> list[int]:
    """Counters with their checksum."""
    return [*values, check_of(b"", *values)]


class Group(NamedTuple):
    """Waiting outcomes that may share a packet."""

    id: int
    fingerprint: bytes
    priority: int
    ttl: int
    extensions: str
    head: int

    @property
    def kind(self) -> tuple[bytes, int, int, str]:
        """What they have in common."""
        return self[1:5]


_GROUP = "SELECT id, fingerprint, priority, ttl, extensions, head, key FROM groups"


class PacketRow(NamedTuple):
    """A packet as its row has it."""

    id: int
    rank: int
    priority: int
    holders: int
    outcomes: int
    last_time: int
    expires: int
    raw: bytes

    @property
    def check(self) -> int:
        """What its checksum has to be."""
        return check_of(self.raw, *self[:-1])


_PACKET = "SELECT id, rank, priority, holders, count, last_time, expires, raw, crc FROM packets"


class Tables:
    """Rows and counters of one outbox file, for the one who writes it."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.state = load_state(db)
        self._stale = self._changing = False
        self._arrived = db.number("SELECT count(*) FROM arrivals")
        self._groups: dict[tuple[bytes, int, int, str], int] = {}
        self._gateways: dict[tuple[bytes, bytes], int] = {}

    @contextlib.contextmanager
    def change(self) -> Iterator[State]:
        """A transaction that takes the counters along; within another, part of it."""
        if self._changing:
            yield self.state
            return
        if self._stale:
            self.state = load_state(self.db)
            self._arrived = self.db.number("SELECT count(*) FROM arrivals")
            self._stale = False
        self._changing = True
        try:
            with self.db.transaction():
                if self._arrived:
                    self._place_arrivals()
                yield self.state
                self.db.execute(_SAVE_STATE, state_row(_values(self.state)))
        except BaseException:
            self._stale = True
            self._groups.clear()
            self._gateways.clear()
            raise
        else:
            self._arrived = 0
        finally:
            self._changing = False

    def _place_arrivals(self) -> None:
        self.db.execute(
            "INSERT INTO waiting SELECT grp, id, time, body, crc FROM arrivals ORDER BY grp, id"
        )
        self.db.execute("DELETE FROM arrivals")

    # --- waiting outcomes --------------------------------------------------------------

    def arrive(self, time: int, body: bytes, kind: tuple[bytes, int, int, str]) -> int | None:
        """Let a new outcome wait among those of its kind, in a commit of its own that writes
        as little as can be. Returns its id, or ``None``: that is not possible now."""
        group = self._groups.get(kind)  # none where the counters are stale
        if group is None or self._arrived >= _MOST_ARRIVALS:
            return None
        state = self.state
        row = state.last_row + 1
        crc = crc32(body, crc32(b"(%d, %d)" % (row, time)))  # as check_of, in half the time
        self.db.execute(
            "INSERT INTO arrivals VALUES (?, ?, ?, ?, ?)", (row, group, time, body, crc)
        )
        self._arrived += 1
        state.last_row = row
        state.made += 1
        state.waiting += 1
        state.clock = max(state.clock, time)
        return row

    def add_waiting(
        self, row: int, time: int, body: bytes, kind: tuple[bytes, int, int, str]
    ) -> None:
        """Let an outcome wait among those of its kind.

        :param row: its id; one lower than those that wait already is put before them.
        :param kind: (fingerprint, priority, ttl, extensions).
        """
        group = self._groups.get(kind)
        if group is None or row != self.state.last_row:
            group = self._group(row, time, kind)
        self.db.execute(
            "INSERT INTO waiting VALUES (?, ?, ?, ?, ?)",
            (group, row, time, body, check_of(body, row, time)),
        )
        self.state.waiting += 1

    def _group(self, row: int, time: int, kind: tuple[bytes, int, int, str]) -> int:
        fingerprint, priority, ttl, extensions = kind
        key = group_key(fingerprint, priority, ttl, extensions)
        expires = time + ttl * 3600
        found = self.db.row("SELECT id, head FROM groups WHERE key=?", (key,))
        if found is None:
            made = self.db.execute(
                "INSERT INTO groups (key, fingerprint, priority, ttl, extensions, head,"
                " head_expires) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, fingerprint, priority, ttl, extensions, row, expires),
            )
            group = int(made.lastrowid or 0)
        else:
            group = int(found[0])
            if row < found[1]:
                self._set_head(group, row, expires)
        if len(self._groups) >= _MOST_GROUPS:
            self._groups.clear()
        self._groups[kind] = group
        return group

    def _set_head(self, group: int, row: int, expires: int) -> None:
        self.db.execute(
            "UPDATE groups SET head=?, head_expires=? WHERE id=?", (row, expires, group)
        )

    def next_group(self, priority: int, after: int) -> Group | None:
        """Of the groups of a priority the one with the oldest head after ``after``."""
        row = self.db.row(
            f"{_GROUP} WHERE priority=? AND head>? ORDER BY head LIMIT 1", (priority, after)
        )
        return None if row is None else self._checked_group(row)

    def expired_group(self, now: int) -> Group | None:
        """A group whose oldest outcome is past its ttl."""
        row = self.db.row(f"{_GROUP} WHERE head_expires<=? LIMIT 1", (now,))
        return None if row is None else self._checked_group(row)

    def _checked_group(self, row: Sequence[Any]) -> Group:
        group = Group(*row[:-1])
        if group_key(*group.kind) != row[-1]:
            raise self.db.damaged(f"group {group.id} is not what was written")
        return group

    def waiting_rows(self, group: Group, limit: int) -> list[tuple[int, int, bytes]]:
        """(id, time, body) of a group's oldest outcomes.

        :raises StoreCorrupt: a row is not what was written.
        """
        rows = self.db.rows(
            "SELECT id, time, body, crc FROM waiting WHERE grp=? ORDER BY id LIMIT ?",
            (group.id, limit),
        )
        if self._arrived and len(rows) < limit:  # they are newer than all that wait
            rows += self.db.rows(
                "SELECT id, time, body, crc FROM arrivals WHERE grp=? ORDER BY id LIMIT ?",
                (group.id, limit - len(rows)),
            )
        for row, time, body, crc in rows:
            if check_of(body, row, time) != crc:
                raise self.db.damaged(f"outcome {row} is not what was written")
        if not rows:
            raise self.db.damaged(f"group {group.id} has no outcomes")
        return [row[:3] for row in rows]

    def remove_waiting(self, group: Group, ids: Sequence[int], *, leading: bool) -> None:
        """Take outcomes out of a group, and the group away when it is empty.

        :param leading: they are the group's oldest, without a gap.
        """
        if leading:
            self.db.execute("DELETE FROM waiting WHERE grp=? AND id<=?", (group.id, ids[-1]))
        else:
            self.db.execute_many(
                "DELETE FROM waiting WHERE grp=? AND id=?", [(group.id, row) for row in ids]
            )
        self.state.waiting -= len(ids)
        head = self.db.row(
            "SELECT id, time FROM waiting WHERE grp=? ORDER BY id LIMIT 1", (group.id,)
        )
        if head is None:
            self.db.execute("DELETE FROM groups WHERE id=?", (group.id,))
            self._groups.pop(group.kind, None)
        elif head[0] != group.head:
            self._set_head(group.id, head[0], head[1] + group.ttl * 3600)

    # --- packets -----------------------------------------------------------------------

    def add_packet(self, packet: Packet, priority: int, number: int) -> None:
        """Keep a packet's exact bytes, to be sent until their receipt."""
        row = PacketRow(
            number,
            priority,
            priority,
            0,
            packet.count,
            packet.last_time,
            packet.expires,
            packet.raw,
        )
        self.db.execute("INSERT INTO packets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, row.check))
        self.state.open_packets += 1
        self.state.open_outcomes += packet.count

    def packets(self, where: str, arguments: Sequence[object]) -> list[PacketRow]:
        """Packets by a condition. :raises StoreCorrupt: one is not what was written."""
        rows = self.db.rows(f"{_PACKET} {where}", arguments)
        return [checked(self.db, row) for row in rows]

    def packet(self, number: int) -> PacketRow | None:
        """One packet. :raises StoreCorrupt:"""
        row = self.db.row(f"{_PACKET} WHERE id=?", (number,))
        return None if row is None else checked(self.db, row)

    def remove_packet(self, row: PacketRow) -> None:
        """Take a packet away; its id stays known for a while."""
        self.db.execute("DELETE FROM packets WHERE id=?", (row.id,))
        with contextlib.suppress(Refused):
            self.db.execute(
                "INSERT OR REPLACE INTO stubs VALUES (?, ?)", (row.id, packet_id(row.raw))
            )
        state = self.state
        if row.rank >= 0:
            state.open_packets -= 1
            state.open_outcomes -= row.outcomes
            if row.id >> 32 == state.store:
                state.dropped = max(state.dropped, sequence_of(row.id))
        else:
            state.held_packets -= 1
            state.held_outcomes -= row.outcomes

    def hold(self, row: PacketRow, holders: int, *, done: bool) -> None:
        """Note who holds a packet; once ``done`` it is not sent and is first to go."""
        rank = -1 if done else row.rank
        self._mark(row._replace(rank=rank, holders=holders))
        if rank < 0 <= row.rank:
            self.state.open_packets -= 1
            self.state.open_outcomes -= row.outcomes
            self.state.held_packets += 1
            self.state.held_outcomes += row.outcomes

    def reopen(self, row: PacketRow, holders: int) -> None:
        """Let a packet wait for receipts again."""
        self._mark(row._replace(rank=row.priority, holders=holders))
        if row.rank < 0:
            self.state.held_packets -= 1
            self.state.held_outcomes -= row.outcomes
            self.state.open_packets += 1
            self.state.open_outcomes += row.outcomes

    def _mark(self, row: PacketRow) -> None:
        self.db.execute(
            "UPDATE packets SET rank=?, holders=?, crc=? WHERE id=?",
            (row.rank, row.holders, row.check, row.id),
        )

    def lowest_open(self) -> int:
        """The lowest sequence of the current store that may still come."""
        first = packet_number(self.state.store, 0)
        lowest = packet_number(self.state.store, self.state.sequence)
        for priority in range(4):
            found = self.db.value(
                "SELECT id FROM packets WHERE rank=? AND id>=? ORDER BY id LIMIT 1",
                (priority, first),
            )
            lowest = min(lowest, found if found is not None else lowest)
        return sequence_of(lowest)

    # --- the rest ----------------------------------------------------------------------

    def put_aside(
        self,
        *,
        packet: int | None,
        reason: int,
        detail: str,
        gateway: bytes,
        priority: int,
        count: int,
        content: bytes,
    ) -> None:
        """Keep something that will not be sent where people can see it."""
        self.db.execute(
            "INSERT INTO aside (at, packet, reason, detail, gateway, priority, count, content)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self.state.clock, packet, reason, detail, gateway, priority, count, content),
        )
        self._trim("aside", KEEP_ASIDE)

    def notice(self, code: str, text: str) -> None:
        """Write down what happened."""
        self.db.execute(
            "INSERT INTO notices (at, code, text) VALUES (?, ?, ?)",
            (self.state.clock, code, text),
        )
        self._trim("notices", KEEP_NOTICES)

    def trim_stubs(self) -> None:
        """Forget the oldest ids of packets that are gone, where there are too many."""
        self._trim("stubs", KEEP_STUBS)

    def _trim(self, table: str, keep: int) -> None:
        self.db.execute(
            f"DELETE FROM {table} WHERE id<="  # noqa: S608 - one of our tables
            f"(SELECT id FROM {table} ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (keep,),
        )

    def is_aside(self, number: int) -> bool:
        """Whether a packet was refused and is still kept."""
        return self.db.row("SELECT 1 FROM aside WHERE packet=?", (number,)) is not None

    def take_back(self, number: int) -> PacketRow | None:
        """Put a refused packet back among those to be sent."""
        row = self.db.row("SELECT id, priority, content FROM aside WHERE packet=?", (number,))
        if row is None:
            return None
        aside, priority, raw = row
        try:
            packet = unpack(raw)
        except Refused:
            raise self.db.damaged(f"packet {number}, put aside, is none") from None
        self.db.execute("DELETE FROM aside WHERE id=?", (aside,))
        self.add_packet(packet, priority, number)
        self.state.refused_packets -= 1
        self.state.refused_outcomes -= packet.count
        return self.packet(number)

    def known_bit(self, kid: bytes, epoch: bytes) -> int:
        """The bit of a gateway's spool; 0 while it has none."""
        known = self._gateways.get((kid, epoch))
        if known is None:
            known = self.db.value("SELECT bit FROM gateways WHERE kid=? AND epoch=?", (kid, epoch))
        return 0 if known is None else 1 << int(known)

    def gateway_bit(self, kid: bytes, epoch: bytes) -> int:
        """The bit that stands for a gateway's spool, assigned when first met."""
        known = self._gateways.get((kid, epoch))
        if known is None:
            known = self.db.value("SELECT bit FROM gateways WHERE kid=? AND epoch=?", (kid, epoch))
        if known is None:
            highest = self.db.value("SELECT max(bit) FROM gateways")
            known = 0 if highest is None else highest + 1
            if known >= LAST_BIT:
                return 1 << LAST_BIT
            self.db.execute("INSERT INTO gateways VALUES (?, ?, ?)", (known, kid, epoch))
        self._gateways[kid, epoch] = int(known)
        return 1 << int(known)

    def gateway_bits(self, kid: bytes, but: bytes | None = None) -> int:
        """The bits of all spools that a gateway has had, but for that of one epoch."""
        rows = self.db.rows("SELECT bit, epoch FROM gateways WHERE kid=?", (kid,))
        bits = 0
        for bit, epoch in rows:
            if epoch != but:
                bits |= 1 << bit
        full = self.db.value("SELECT max(bit) FROM gateways") == LAST_BIT - 1
        return bits | (1 << LAST_BIT) if full else bits

    def stores_since(self, time: int, why: str) -> int:
        """How many stores were begun after a time for a reason."""
        return self.db.number("SELECT count(*) FROM stores WHERE at>? AND why=?", (time, why))

    def add_store(self, number: int, identity: bytes, why: str) -> None:
        """Note a store's id."""
        self.db.execute(
            "INSERT OR IGNORE INTO stores VALUES (?, ?, ?, ?, ?)",
            (number, identity, self.state.clock, why, check_of(identity, number)),
        )

    def begin_store(self, identity: bytes, why: str) -> None:
        """Number packets anew under a new store id (4 bytes). Older packets stay."""
        state = self.state
        state.store = 1 + self.db.number("SELECT max(number) FROM stores")
        self.add_store(state.store, identity, why)
        state.sequence = state.announced = 0
        state.dropped = -1


def checked(db: Database, row: Sequence[Any]) -> PacketRow:
    """A row of the query above. :raises StoreCorrupt: its bytes are not what was written."""
    packet = PacketRow(*row[:-1])
    if packet.check != row[-1]:
        raise db.damaged(
            f"packet {packet.id >> 32}/{sequence_of(packet.id)} is not what was written"
        )
    return packet


def store_id(db: Database, number: int) -> bytes:
    """A store's id. :raises StoreCorrupt: it is not what was written."""
    row = db.row("SELECT id, crc FROM stores WHERE number=?", (number,))
    if row is None or check_of(row[0], number) != row[1]:
        raise db.damaged(f"the id of store {number} is not what was written")
    return bytes(row[0])


def packet_id(raw: bytes) -> bytes:
    """SHA-256 of a packet's Sig_structure. :raises Refused: it is no packet."""
    return open_sign1(raw, MAX_PACKET, "packet").id(AAD)


def packet_rows(db: Database, where: str, arguments: Sequence[object]) -> Iterable[PacketRow]:
    """Packets by a condition, for readers. :raises StoreCorrupt:"""
    return (checked(db, row) for row in db.rows(f"{_PACKET} {where}", arguments))
