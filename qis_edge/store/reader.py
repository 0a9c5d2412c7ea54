"""What can be read of an outbox, also beside the daemon that writes it, or without one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Self

from qis_edge.core.errors import Refused
from qis_edge.core.outcome import Outcome
from qis_edge.core.priority import Priority
from qis_edge.store.database import Database
from qis_edge.store.forms import (
    Aside,
    Notice,
    Queued,
    Stats,
    outcome_of,
    packet_number,
    sequence_of,
)
from qis_edge.store.tables import (
    STATE_COLUMNS,
    PacketRow,
    load_state,
    packet_id,
    packet_rows,
    store_id,
)

_HIDDEN = {"last_row", "store", "sequence", "announced", "dropped"}


class OutboxReader:
    """The reading half of an outbox. Every call sees one consistent moment."""

    def __init__(self, db: Database, budget: int = 0) -> None:
        self._db = db
        self._budget = budget
        self._ids: dict[int, bytes] = {}
        self._numbers: dict[bytes, int] = {}

    def close(self) -> None:
        """Idempotent."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- packets -----------------------------------------------------------------------

    def unreceipted(self, limit: int = 64, after: Queued | None = None) -> list[Queued]:
        """Packets that still need a receipt: urgent first, then in order of sequence.

        :param after: go on after this one.
        :raises StoreCorrupt: one of them is not what was written.
        """
        found: list[Queued] = []
        start, row = after.position if after else (int(Priority.URGENT), -1)
        for priority in range(start, -1, -1):
            rows = packet_rows(
                self._db,
                "WHERE rank=? AND id>? ORDER BY id LIMIT ?",
                (priority, row, limit - len(found)),
            )
            found += [self._queued(one) for one in rows]
            row = -1
            if len(found) >= limit:
                break
        return found

    def packet(self, store: bytes, sequence: int) -> Queued | None:
        """One packet, open or held. :raises StoreCorrupt:"""
        number = self._number(store, sequence)
        if number is None:
            return None
        for row in packet_rows(self._db, "WHERE id=?", (number,)):
            return self._queued(row)
        return None

    def has_store(self, store: bytes) -> bool:
        """Whether a store (4 bytes) is or was one of this outbox."""
        return self._db.value("SELECT 1 FROM stores WHERE id=?", (store,)) is not None

    def packet_id(self, store: bytes, sequence: int) -> bytes | None:
        """The id (32 bytes) of a packet that is or lately was here: what a receipt is
        authenticated with. ``None``: not known, or no longer."""
        number = self._number(store, sequence)
        if number is None:
            return None
        raw = self._db.value("SELECT raw FROM packets WHERE id=?", (number,))
        if raw is not None:
            try:
                return packet_id(raw)
            except Refused:
                raise self._db.damaged(f"packet {number} is none") from None
        known = self._db.value("SELECT packet FROM stubs WHERE id=?", (number,))
        return None if known is None else bytes(known)

    # --- the rest ----------------------------------------------------------------------

    def waiting(self, limit: int = 100) -> list[tuple[Priority, bytes, Outcome]]:
        """(priority, fingerprint, outcome) that wait to be packed: urgent first, then by
        group, oldest first. For people: a big queue is shown in part."""
        with self._db.snapshot():
            return [
                (Priority(priority), bytes(fingerprint), outcome_of(time, body))
                for priority, fingerprint, time, body in islice(self._each_waiting(), limit)
            ]

    def _each_waiting(self) -> Iterator[tuple[int, bytes, int, bytes]]:
        for priority in range(Priority.URGENT, -1, -1):
            for group, fingerprint in self._db.each(
                "SELECT id, fingerprint FROM groups WHERE priority=? ORDER BY head", (priority,)
            ):
                for table in ("waiting", "arrivals"):
                    for time, body in self._db.each(
                        f"SELECT time, body FROM {table} WHERE grp=? ORDER BY id",  # noqa: S608 - ours
                        (group,),
                    ):
                        yield priority, fingerprint, time, body

    def aside(self, limit: int = 256) -> list[Aside]:
        """What will not be sent by itself, newest first."""
        rows = self._db.rows(
            "SELECT at, packet, reason, detail, gateway, priority, count, content FROM aside"
            " ORDER BY id DESC LIMIT ?",
            (limit,),
        )
        return [
            Aside(
                at,
                None if packet is None else (self._store(packet >> 32), sequence_of(packet)),
                reason,
                detail,
                gateway,
                Priority(priority),
                count,
                content,
            )
            for at, packet, reason, detail, gateway, priority, count, content in rows
        ]

    def notices(self, limit: int = 64) -> list[Notice]:
        """What happened to the store, newest first."""
        rows = self._db.rows(
            "SELECT at, code, text FROM notices ORDER BY id DESC LIMIT ?", (limit,)
        )
        return [Notice(*row) for row in rows]

    def stats(self) -> Stats:
        """The outbox in numbers; costs the same whatever it holds."""
        with self._db.snapshot():
            state = load_state(self._db)
            counts = {name: getattr(state, name) for name in STATE_COLUMNS if name not in _HIDDEN}
            return Stats(
                store=self._store(state.store),
                next_sequence=state.sequence,
                stores=self._db.number("SELECT max(number) FROM stores"),
                budget=self._budget,
                bytes=self._db.used(),
                **counts,
            )

    # --- names -------------------------------------------------------------------------

    def _store(self, number: int) -> bytes:
        known = self._ids.get(number)
        if known is None:
            known = self._ids[number] = store_id(self._db, number)
        return known

    def _number(self, store: bytes, sequence: int) -> int | None:
        known = self._numbers.get(store)
        if known is None:
            known = self._db.value("SELECT number FROM stores WHERE id=?", (store,))
            if known is None:
                return None
            self._numbers[store] = known
        return packet_number(known, sequence)

    def _queued(self, row: PacketRow) -> Queued:
        return Queued(
            raw=row.raw,
            store=self._store(row.id >> 32),
            sequence=sequence_of(row.id),
            priority=Priority(row.priority),
            count=row.outcomes,
            last_time=row.last_time,
            expires=row.expires,
            holders=row.holders.bit_count(),
            position=(row.rank, row.id),
        )
