"""What receipts do to packets: held, refused for good, refused because of another content."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qis_edge.core.errors import Reason
from qis_edge.core.packet import unpack
from qis_edge.core.receipt import Receipt, code_of, reason_of
from qis_edge.store.forms import Answer, Notice, Settled, sequence_of
from qis_edge.store.opening import draw_store
from qis_edge.store.salvage import pack_anew
from qis_edge.store.tables import PacketRow, Tables

#: How many new stores a day conflicts may begin: each is some airtime spent again.
_CONFLICTS_A_DAY = 8

Number = Callable[[bytes, int], int | None]


class Receiver:
    """Takes receipts.

    :param copies: how many gateways must hold a packet before it is done.
    :param number: the row of a (store, sequence), ``None`` for a store that is not ours.
    """

    def __init__(self, tables: Tables, copies: int, number: Number) -> None:
        self._tables = tables
        self._copies = copies
        self._number = number
        self.settled = Settled()
        self.news: list[Notice] = []

    def changes(self, answer: Answer) -> bool:
        """Whether it says anything new. Only reads."""
        receipt = answer.receipt
        bit = self._tables.known_bit(answer.gateway, answer.epoch)
        for number in self._rows_of(receipt.store, receipt.held):
            row = self._tables.packet(number)
            if row is not None and not row.holders & bit:
                return True
            if row is None and self._tables.is_aside(number):
                return True
        for _, sequences in receipt.refused:
            for number in self._rows_of(receipt.store, sequences):
                row = self._tables.packet(number)
                if row is not None and row.rank >= 0:
                    return True
        return False

    def postpone(self, receipt: Receipt) -> None:
        """Pass on what is to be sent again later: that is the sender's to remember."""
        for seconds, sequences in receipt.later:
            for sequence in sequences:
                number = self._number(receipt.store, sequence)
                row = None if number is None else self._tables.packet(number)
                if row is not None and row.rank >= 0:
                    self.settled.later.append(((receipt.store, sequence), seconds))

    def take(self, answer: Answer) -> None:
        """Write down what it says, within a transaction."""
        receipt = answer.receipt
        bit = self._tables.gateway_bit(answer.gateway, answer.epoch)
        for number in self._rows_of(receipt.store, receipt.held):
            row = self._tables.packet(number) or self._tables.take_back(number)
            if row is not None and not row.holders & bit:
                self._hold(receipt.store, row, row.holders | bit)
        for reason, sequences in receipt.refused:
            for number in self._rows_of(receipt.store, sequences):
                row = self._tables.packet(number)
                if row is not None and row.rank >= 0:
                    self._refuse(answer, row, code_of(reason))

    def _rows_of(self, store: bytes, sequences: tuple[int, ...]) -> Iterator[int]:
        for sequence in sequences:
            number = self._number(store, sequence)
            if number is not None:
                yield number

    def _hold(self, store: bytes, row: PacketRow, holders: int) -> None:
        done = holders.bit_count() >= self._copies
        self._tables.hold(row, holders, done=done)
        if done and row.rank >= 0:
            self.settled.done.append((store, sequence_of(row.id)))

    def _refuse(self, answer: Answer, row: PacketRow, reason: int) -> None:
        key = (answer.receipt.store, sequence_of(row.id))
        if row.holders:  # somebody has it, so it is not lost: send it no more
            self._tables.hold(row, row.holders, done=True)
            self.settled.done.append(key)
            return
        self.settled.refused.append((key, reason))
        if reason == Reason.EQUIVOCATION.value and self._renumber(row):
            return
        self._tables.remove_packet(row)
        self._tables.state.refused_packets += 1
        self._tables.state.refused_outcomes += row.outcomes
        self._tables.put_aside(
            packet=row.id,
            reason=reason,
            detail=_words(reason),
            gateway=answer.gateway,
            priority=row.priority,
            count=row.outcomes,
            content=row.raw,
        )

    def _renumber(self, row: PacketRow) -> bool:
        """Pack its outcomes anew under a store whose numbers nobody else gives out."""
        state = self._tables.state
        state.conflicts += 1
        if row.id >> 32 == state.store:
            if self._tables.stores_since(state.clock - 86400, "conflict") >= _CONFLICTS_A_DAY:
                return False
            self._tables.begin_store(draw_store(self._tables.db), "conflict")
            text = (
                f"a gateway knows sequence {sequence_of(row.id)} with other content: this "
                "outbox was copied or restored; packets are numbered under a new store"
            )
            self._tables.notice("conflict", text)
            self.news.append(Notice(state.clock, "conflict", text))
            self.settled.conflict = True
        self._tables.remove_packet(row)
        pack_anew(self._tables, unpack(row.raw), row.priority)
        return True


def resend(tables: Tables, copies: int, bits: int, since: int) -> int:
    """Packets that too few hold once the spools of ``bits`` do not count wait for receipts
    again. Returns how many."""
    rows = tables.db.rows(
        "SELECT id FROM packets WHERE holders & ? AND last_time>=? ORDER BY id", (bits, since)
    )
    reopened = 0
    for start in range(0, len(rows), 256):
        with tables.change():
            for (number,) in rows[start : start + 256]:
                row = tables.packet(number)
                if row is None:
                    continue
                rest = row.holders & ~bits
                if rest.bit_count() < copies:
                    reopened += row.rank < 0
                    tables.reopen(row, rest)
                else:  # or this gateway would still count when the next one is lost
                    tables.hold(row, rest, done=row.rank < 0)
    return reopened


def _words(code: int) -> str:
    reason = reason_of(code)
    return reason.label.replace("_", " ") if isinstance(reason, Reason) else f"reason {code}"
