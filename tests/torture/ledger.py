"""What the world knows of the three stores, and whether they still agree with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gateway.spool import Intake, Verdict
from qis_edge.core.packet import Packet, unpack
from qis_edge.core.receipt import Receipt
from qis_edge.store import Answer
from qis_edge.store.forms import outcome_of
from tests.store.kit import GATEWAY, ME, T0, conserved
from tests.torture.worker import ENGINE, Stores, number_of, opened

Key = tuple[str, int]


@dataclass
class Findings:
    """What was found wrong: all of it should be 0."""

    lost: int = 0
    duplicated: int = 0
    sequence_conflicts: int = 0
    receipts_lost: int = 0
    miscounted: int = 0

    @property
    def clean(self) -> bool:
        """Whether it is."""
        return not any(vars(self).values())


@dataclass
class Ledger:
    """Of one set of files: what was acknowledged, and by whom."""

    folder: Path
    old: int = 0
    versions: int = 0
    made: set[int] = field(default_factory=set)
    sent: dict[Key, str] = field(default_factory=dict)
    taken: set[Key] = field(default_factory=set)
    done: set[Key] = field(default_factory=set)
    deposited: set[str] = field(default_factory=set)
    #: Logs whose end looked damaged: a kill within a write cannot be told from that, so a new
    #: store, or epoch, is begun to be on the safe side.
    suspected: int = 0
    findings: Findings = field(default_factory=Findings)
    _packets: dict[bytes, Packet] = field(default_factory=dict)

    def note(self, line: bytes) -> None:
        """Something that the worker said before it was killed."""
        event = json.loads(line)
        self.made.update(event.get("made", ()))
        self.taken.update((store, sequence) for store, sequence in event.get("taken", ()))
        self.done.update((store, sequence) for store, sequence in event.get("done", ()))
        self.deposited.update(event.get("deposited", ()))
        self.findings.sequence_conflicts += event.get("conflicts", 0)
        if "resend" in event:
            self.done.clear()
        if "sent" in event:
            store, sequence, raw = event["sent"]
            self._see((store, sequence), raw)

    def _see(self, key: Key, raw: str) -> None:
        if self.sent.setdefault(key, raw) != raw:
            self.findings.sequence_conflicts += 1

    def inspect(self) -> None:
        """Open the stores as the next start would, and look for what must be there."""
        with opened(self.folder, self.versions) as stores:
            self._look(stores)

    def finish(self) -> None:
        """Let all that is left come to its end, and look for each outcome there, once."""
        with opened(self.folder, self.versions) as stores:
            outbox, spool = stores.outbox, stores.spool
            for boot in range(1000):
                if outbox.stats().untimed:
                    outbox.settle(f"last-{boot}", float(T0))
            while outbox.pack(ME, max_packets=100):
                pass
            while queued := outbox.unreceipted(100):
                answers = spool.admit([Intake(self._open(one.raw), T0) for one in queued])
                refused = sum(one.verdict is Verdict.EQUIVOCATION for one in answers)
                self.findings.sequence_conflicts += refused
                if refused:
                    break
                outbox.receipts(
                    Answer(GATEWAY, spool.epoch, Receipt(one.store, held=(one.sequence,)))
                    for one in queued
                )
            while (pending := spool.pending(ENGINE)).entries:
                stores.routing.deposit(pending.entries)
                spool.advance(ENGINE, pending.through)
            found = self._look(stores)
            self.findings.lost += len(self.made - set(found))
            made = outbox.stats().made - self.old
            self.findings.lost += max(0, made - sum(1 for number in found if number >= 0))

    def _open(self, raw: bytes) -> Packet:
        """Verified, once."""
        packet = self._packets.get(raw)
        if packet is None:
            packet = self._packets[raw] = unpack(raw, ME.public)
            self._see((packet.store.hex(), packet.sequence), raw.hex())
        return packet

    def _numbers(self, raws: Iterable[bytes]) -> Counter[int]:
        found: Counter[int] = Counter()
        for raw in raws:
            found.update(number_of(one) for one in self._open(raw).outcomes)
        return found

    def _look(self, stores: Stores) -> Counter[int]:
        """Returns what the routing database holds."""
        self._look_at_outbox(stores)
        self._look_at_spool(stores)
        return self._look_at_routing(stores)

    def _look_at_outbox(self, stores: Stores) -> None:
        box = stores.outbox
        self.suspected += sum(one.code == "torn_log" for one in stores.notices)
        # A file that came here by copying is told of, once; nothing else is to be told.
        known = {"torn_log", "copied"} if self.old else {"torn_log"}
        self.findings.miscounted += any(one.code not in known for one in stores.notices)
        self.findings.miscounted += not conserved(box.stats())
        rows = box._db.rows("SELECT raw, rank FROM packets")
        found = self._numbers(raw for raw, _ in rows)
        found.update(number_of(one) for _, _, one in box.waiting(10**9))
        for (body,) in box._db.rows("SELECT body FROM untimed"):
            found[number_of(outcome_of(T0, body))] += 1
        held = {self._key(raw) for raw, rank in rows if rank < 0}
        self.findings.lost += len(self.made - set(found))
        self.findings.duplicated += _repeated(found)
        self.findings.receipts_lost += len(self.done - held)

    def _look_at_spool(self, stores: Stores) -> None:
        spool = stores.spool
        self.suspected += spool.torn
        self.findings.miscounted += bool(spool.restored)  # a kill must not look like a restore
        held = {
            (one.store.hex(), sequence)
            for one in spool.stores()
            for sequence in spool.held(one.kid, one.store)
        }
        self.findings.lost += len(self.taken - held)
        rows = spool._db.rows("SELECT position, raw FROM packets")
        self.findings.duplicated += _repeated(self._numbers(raw for _, raw in rows))
        status = spool.status()
        size = sum(len(raw) + 64 for _, raw in rows)
        self.findings.miscounted += (status.packets, status.size) != (len(rows), size)
        # What was taken and is here no more must have been deposited before it was dropped.
        here = {self._key(raw) for _, raw in rows}
        routed = {self._key(raw) for (raw,) in stores.routing.reader.rows(_RAWS)}
        self.findings.lost += len(self.taken - here - routed)
        self.findings.lost += sum(
            1
            for position, raw in rows
            if position <= spool.routed_through() and self._key(raw) not in routed
        )

    def _look_at_routing(self, stores: Stores) -> Counter[int]:
        file = stores.routing
        raws = [raw for (raw,) in file.reader.rows(_RAWS)]
        here = {raw.hex() for raw in raws}
        found = self._numbers(raws)
        self.findings.lost += len(self.deposited - here)
        self.findings.duplicated += _repeated(found) + len(raws) - len(here)
        last = file.reader.number("SELECT max(seq) FROM packets")
        self.findings.miscounted += file.counts()[0] != len(raws) or file.last() < last
        for db in file.reader, stores.spool._db, stores.outbox._db:
            self.findings.miscounted += db.value("PRAGMA quick_check(1)") != "ok"
        return found

    def _key(self, raw: bytes) -> Key:
        packet = self._open(raw)
        return packet.store.hex(), packet.sequence


_RAWS = "SELECT raw FROM packets"


def _repeated(found: Counter[int]) -> int:
    return sum(1 for times in found.values() if times > 1)
