"""The outbox: a node's outcomes, durable until a gateway has them.

An outcome is on the disk when :meth:`Outbox.append` returns. A packet is on the disk, with
its sequence number, when :meth:`Outbox.pack` returns it; those exact bytes are sent until
their receipt, and then kept while there is room. Waiting for a link writes nothing.

One process writes (a lock beside the file sees to it), and it calls one method at a time.
Others read through :meth:`Outbox.inspect`, whether it runs or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from qis_edge.core.errors import UsageError
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import MAX_PACKET, Extensions, Packet
from qis_edge.core.priority import Priority
from qis_edge.core.receipt import Receipt
from qis_edge.store import opening, times
from qis_edge.store.budget import SMALLEST, Dropped, make_room
from qis_edge.store.database import Database, Lock
from qis_edge.store.forms import (
    DEFAULT_TTL,
    PLAIN,
    Answer,
    Notice,
    Pending,
    Settled,
    Unclocked,
    body_of,
    extensions_text,
    validate,
)
from qis_edge.store.opening import Owner
from qis_edge.store.packing import Domains, Packer, Ready
from qis_edge.store.reader import OutboxReader
from qis_edge.store.receiving import Receiver, resend
from qis_edge.store.schema import OUTBOX
from qis_edge.store.tables import Tables

DEFAULT_BUDGET = 64 * 1024 * 1024

_CLOCK_STEP = 3600
#: How much may be appended between two looks at the budget.
_UNCHECKED = 32 * 1024


class Outbox(OutboxReader):
    """See the module. Made by :meth:`open` or :meth:`in_memory`."""

    def __init__(
        self,
        db: Database,
        lock: Lock | None,
        key: PublicKey,
        *,
        budget: int,
        copies: int,
        notify: Callable[[Notice], None] | None,
    ) -> None:
        super().__init__(db, budget)
        self._lock = lock
        self._key = key
        self._copies = copies
        self._notify = notify
        self._tables = Tables(db)
        self._check_after = min(_UNCHECKED, budget // 64)
        self._unchecked = _UNCHECKED  # look at the first opportunity

    # --- opening -----------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: Path | str,
        key: PublicKey,
        *,
        budget: int = DEFAULT_BUDGET,
        copies: int = 1,
        host: str = "",
        adopt: bool = False,
        clock_floor: int = 0,
        notify: Callable[[Notice], None] | None = None,
    ) -> Outbox:
        """Open the outbox of the node with this key, or make it.

        A damaged file is set aside and what can be read of it carried over; a file that
        was copied, or whose log lost its end, begins a new store (so that no number is
        given out twice). Notices say so.

        :param budget: bytes that the file may hold, at least 256 KiB; its log adds some
            MiB while it is open.
        :param copies: how many gateways must hold a packet before it is done.
        :param host: names the machine (:func:`qis_edge.store.machine.machine_name`); another
            name than before begins a new store. Empty: it is not known, and not compared.
        :param adopt: take over the outbox of another key: its outcomes are packed anew.
        :param clock_floor: unix seconds that have surely passed, e.g. a build date.
        :param notify: called with each notice, after it is durable.
        :raises StoreError: in use, another key's, newer, or the disk does not allow it.
        """
        if budget < SMALLEST:
            raise UsageError(f"at least {SMALLEST} bytes", field="budget")
        if not 1 <= copies <= 8:
            raise UsageError("1..8 gateways", field="copies")
        path = Path(path)
        lock = Lock(path)
        try:
            db, news = opening.open_file(path, Owner(key, host, adopt, clock_floor))
            outbox = cls(db, lock, key, budget=budget, copies=copies, notify=notify)
        except BaseException:
            lock.release()
            raise
        for notice in news:
            outbox._tell(notice)
        return outbox

    @classmethod
    def in_memory(
        cls,
        key: PublicKey,
        *,
        budget: int = DEFAULT_BUDGET,
        copies: int = 1,
        notify: Callable[[Notice], None] | None = None,
    ) -> Outbox:
        """One that ends with the process, for tests and for trying things out."""
        db = opening.in_memory(key)
        return cls(db, None, key, budget=budget, copies=copies, notify=notify)

    @staticmethod
    def inspect(path: Path | str) -> OutboxReader:
        """Read an outbox, also while its daemon runs.

        :raises StoreError: there is none, or it may not be read.
        """
        return OutboxReader(Database(Path(path), OUTBOX, read_only=True))

    def _tell(self, notice: Notice) -> None:
        if self._notify is not None:
            self._notify(notice)

    def close(self) -> None:
        """Idempotent."""
        super().close()
        if self._lock is not None:
            self._lock.release()

    # --- outcomes ----------------------------------------------------------------------

    def append(
        self,
        outcome: Outcome,
        fingerprint: bytes,
        *,
        priority: int = Priority.NORMAL,
        ttl: int = DEFAULT_TTL,
        extensions: Extensions = PLAIN,
        unclocked: Unclocked | None = None,
    ) -> int:
        """Keep an outcome; it is on the disk when this returns. Returns its row's id.

        :param fingerprint: the address that it is for, 32 bytes.
        :param ttl: hours that it is worth routing.
        :param extensions: vector, tags, time uncertainty. Outcomes that differ in them, in
            ttl or in priority do not share a packet.
        :param unclocked: when it was made on a machine that does not know the time; the
            outcome's own time is then ignored, and it is packed after :meth:`settle`.
        :raises UsageError: it could never be packed; the error names the field.
        :raises StoreError: the disk does not take it; nothing was kept.
        """
        if unclocked is None:  # of a kind of which some wait already: the quick way
            body = body_of(outcome)
            kind = (fingerprint, priority, ttl, extensions_text(extensions))
            row = self._tables.arrive(outcome.time, body, kind)
            if row is not None:
                self._unchecked += len(body) + 64
                if self._unchecked >= self._check_after:
                    self._tell_dropped(self._watch_budget())
                return row
        return self._append(Pending(outcome, fingerprint, priority, ttl, extensions, unclocked))

    def append_many(self, pending: Iterable[Pending]) -> list[int]:
        """Keep several outcomes at once, all or none; see :meth:`append`."""
        work = list(pending)
        if len(work) == 1:
            one = work[0]
            return [
                self.append(
                    one.outcome,
                    one.fingerprint,
                    priority=one.priority,
                    ttl=one.ttl,
                    extensions=one.extensions,
                    unclocked=one.unclocked,
                )
            ]
        with self._tables.change():
            ids = [self._add(one) for one in work]
            dropped = self._watch_budget()
        self._tell_dropped(dropped)
        return ids

    def _append(self, pending: Pending) -> int:
        with self._tables.change():
            row = self._add(pending)
            dropped = self._watch_budget()
        self._tell_dropped(dropped)
        return row

    def _add(self, pending: Pending) -> int:
        validate(pending)
        body = body_of(pending.outcome)
        kind = _kind(pending)
        time = pending.outcome.time
        state = self._tables.state
        state.last_row += 1
        state.made += 1
        self._unchecked += len(body) + 64
        if pending.unclocked is not None:
            boot = times.note_boot(self._tables, pending.unclocked.boot)
            if boot.offset is None:
                times.add_untimed(self._tables, state.last_row, boot, pending.unclocked, body, kind)
                return state.last_row
            time, extensions = times.timed(boot, pending.unclocked.monotonic, kind[3])
            kind = (*kind[:3], extensions)
        self._tables.add_waiting(state.last_row, time, body, kind)
        state.clock = max(state.clock, time)
        return state.last_row

    # --- time --------------------------------------------------------------------------

    @property
    def clock_floor(self) -> int:
        """Unix seconds that have passed for sure: it is not earlier."""
        return self._tables.state.clock

    def set_clock(self, now: int) -> None:
        """What the time is, from who knows it. Corrects a floor that a wrong clock raised;
        raises one by an hour and more, so that being told often is not writing often."""
        if 0 <= now - self.clock_floor < _CLOCK_STEP:
            return
        with self._tables.change() as state:
            state.clock = now

    def boot_offset(self, boot: str) -> tuple[float, float] | None:
        """(offset, uncertainty) in seconds that :meth:`settle` was given for this boot: a
        daemon that restarts knows the time by it."""
        found = times.find_boot(self._tables, boot)
        if found is None or found.offset is None:
            return None
        return found.offset, found.uncertainty

    def settle(self, boot: str, offset: float, uncertainty: float = 0.0) -> times.Settlement:
        """The time has become known: outcomes without one get theirs, and can be packed.

        :param boot: the running boot.
        :param offset: unix seconds at its monotonic zero.
        :param uncertainty: of that, seconds. From one second up it travels with the
            outcomes. Those of earlier boots get an estimate and its uncertainty.
        """
        return times.settle(self._tables, boot, offset, uncertainty)

    # --- packing -----------------------------------------------------------------------

    def pack(
        self,
        identity: Identity,
        *,
        limit: int = MAX_PACKET,
        max_packets: int = 16,
        domain: Domains = None,
        ready: Ready | None = None,
        least: Priority = Priority.LOW,
    ) -> list[Packet]:
        """Make packets of waiting outcomes: urgent ones first, then the oldest. What is
        returned is on the disk, under its sequence number, and may be sent.

        :param limit: bytes that the link at hand carries well. An outcome that needs more
            makes a packet of its own.
        :param max_packets: how many at most, in one commit.
        :param domain: gives results their codes and resolution; or what finds it by
            fingerprint.
        :param ready: a policy: what it says no to waits for more.
        :param least: outcomes of a lower priority wait.
        :raises UsageError: the identity is another node's.
        """
        if identity.public != self._key:
            raise UsageError("not the key of this outbox", field="identity")
        if not self._tables.state.waiting or max_packets < 1:
            return []
        packer = Packer(self._tables, identity, limit, domain, ready, least)
        plan = packer.next()
        if plan is None:
            return []
        packets: list[Packet] = []
        with self._tables.change():
            while plan is not None:
                packets += packer.carry_out(plan)
                plan = packer.next() if len(packets) < max_packets else None
            self._unchecked += sum(len(packet.raw) + 128 for packet in packets)
            dropped = self._watch_budget()
        self._tell_dropped(dropped)
        return packets

    # --- receipts ----------------------------------------------------------------------

    def receipt(self, gateway: bytes, epoch: bytes, receipt: Receipt) -> Settled:
        """Take one receipt; see :meth:`receipts`.

        :param gateway: the kid of whose it is.
        :param epoch: of its spool, 4 bytes.
        """
        return self.receipts([Answer(gateway, epoch, receipt)])

    def receipts(self, answers: Iterable[Answer]) -> Settled:
        """Take receipts whose tags were checked, in one commit; repeated ones change and
        write nothing.

        A packet that enough gateways hold is done: it stays, first to go when room is
        needed. One that is refused is put aside and not sent again, unless a gateway
        holds it. Where a gateway knows other content under its number (``EQUIVOCATION``:
        this store was copied or restored), a new store begins and its outcomes wait to
        be packed under that.
        """
        receiver = Receiver(self._tables, self._copies, self._number)
        work = list(answers)
        for answer in work:
            receiver.postpone(answer.receipt)
        if any(receiver.changes(answer) for answer in work):
            with self._tables.change():
                for answer in work:
                    receiver.take(answer)
        for notice in receiver.news:
            self._tell(notice)
        return receiver.settled

    def resend(self, gateway: bytes, since: int = 0, *, epoch: bytes | None = None) -> int:
        """A gateway lost what it held: its packets wait for receipts again, with the same
        bytes, unless enough others hold them. May be repeated. Returns how many do.

        :param gateway: its kid.
        :param since: only packets with outcomes at or after this, unix seconds.
        :param epoch: of its new spool: what that one already holds is not sent again.
        """
        bits = self._tables.gateway_bits(gateway, but=epoch)
        return resend(self._tables, self._copies, bits, since) if bits else 0

    def retry(self, keys: Iterable[tuple[bytes, int]] | None = None) -> int:
        """Send refused packets again after all (the fault was mended). Returns how many.

        :param keys: (store, sequence) of some; ``None``: all that are still kept.
        """
        wanted = [one.key for one in self.aside() if one.key] if keys is None else keys
        count = 0
        with self._tables.change():
            for store, sequence in wanted:
                number = self._number(store, sequence)
                if number is not None:
                    count += self._tables.take_back(number) is not None
        return count

    # --- room --------------------------------------------------------------------------

    def _watch_budget(self) -> Dropped | None:
        """Look at the file's size now and then: looking each time would cost as much as
        appending."""
        if self._unchecked < self._check_after:
            return None
        self._unchecked = 0
        if self._db.used() <= self._budget:
            return None
        return make_room(self._tables, self._budget, self._tables.state.clock)

    def _tell_dropped(self, dropped: Dropped | None) -> None:
        if dropped is not None and (dropped.expired or dropped.unsent):
            text = (
                f"no more room: dropped {dropped.unsent} outcomes that no gateway has"
                f" and {dropped.expired} that were past their time"
            )
            self._tell(Notice(self._tables.state.clock, "evicted", text))


def _kind(pending: Pending) -> tuple[bytes, int, int, str]:
    """What outcomes of one packet have in common."""
    return (
        pending.fingerprint,
        int(pending.priority),
        pending.ttl,
        extensions_text(pending.extensions),
    )
