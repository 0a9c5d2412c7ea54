"""What is killed: a node's outbox, a gateway's spool and its routing database, at work.

One process does one thing after the other, in random order, as a node and its gateway do
together, and says on a pipe what it was told is done. At a point that its plan names it is
killed: by itself at a step of SQLite's machine, or by its parent at some moment.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gateway import spool as spool_module
from gateway.routing.sqlite import SCHEMA as ROUTING
from gateway.routing.sqlite import SqliteFile
from gateway.spool import Intake, Spool, Verdict
from gateway.spool_schema import SCHEMA as SPOOL
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import unpack
from qis_edge.core.receipt import Receipt
from qis_edge.store import Answer, Notice, Outbox, Pending, Unclocked, opening
from qis_edge.store.database import Database, Schema
from qis_edge.store.schema import OUTBOX
from tests.store.kit import ADDRESS, ELSEWHERE, GATEWAY, ME, T0, outcome

#: What the one outcome of an old file counts as that did not know its time.
WITHOUT_TIME = -1000
ENGINE = "sqlite:routing.db"
#: What can be under way when the kill comes, and how often it is chosen for that.
POINTS = {
    "open": 2,
    "migrate": 3,
    "append": 5,
    "pack": 4,
    "send": 4,
    "receipt": 4,
    "deposit": 4,
    "trim": 1,
}

# A later schema: it has the same tables, but all that they hold is moved, as by a script that
# changes how they are made. Any number of them may follow each other.
_MOVED = {
    "outbox": ("state", "stores", "groups", "waiting", "arrivals", "untimed", "packets", "stubs"),
    "spool": ("facts", "origins", "ranges", "packets", "engines"),
    "routing": ("facts", "buckets", "packets"),
}
_SCHEMAS = {
    "outbox": OUTBOX,
    "spool": SPOOL,
    "routing": ROUTING,
}


def _later(name: str, versions: int) -> Schema:
    script = "".join(
        f"CREATE TABLE moved AS SELECT * FROM {table}; DELETE FROM {table};"
        f"INSERT INTO {table} SELECT * FROM moved; DROP TABLE moved;"
        for table in _MOVED[name]
    )
    schema = _SCHEMAS[name]
    return replace(schema, migrations=(*schema.migrations, *[script] * versions))


def numbered(number: int) -> Outcome:
    """An outcome that is known by its number."""
    return outcome(number % 50_000, n=number)


def number_of(one: Outcome) -> int:
    """Back from :func:`numbered`. Of those that were in an old file: its hour, below 0."""
    number, at = (one.results.get(name) for name in ("n", "at"))  # None in a mixed packet
    if number is not None:
        return round(float(str(number)))
    return WITHOUT_TIME if at is not None else -1 - (one.time - T0) // 3600


@dataclass
class Stores:
    """The three files, open."""

    outbox: Outbox
    spool: Spool
    routing: SqliteFile
    notices: list[Notice]


@contextmanager
def opened(folder: Path, versions: int) -> Iterator[Stores]:
    """All three, as the start after a crash opens them, with ``versions`` later schemas."""
    vars(opening)["OUTBOX"] = _later("outbox", versions)  # for this process
    vars(spool_module)["SCHEMA"] = _later("spool", versions)
    notices: list[Notice] = []
    outbox = Outbox.open(folder / "outbox.db", ME.public, notify=notices.append)
    spool = Spool(folder / "spool.db", engines=[ENGINE], retention=1)
    schema = _later("routing", versions)
    routing = SqliteFile(folder / "routing.db", schema, busy=5.0, remedy="")
    try:
        yield Stores(outbox, spool, routing, notices)
    finally:
        routing.reader.close()
        routing.writer.close()
        spool.close()
        outbox.close()


@dataclass(frozen=True)
class Plan:
    """When a life ends.

    :param point: what is under way then; ``nth`` time.
    :param steps: of SQLite's machine, from then on; 0: the parent kills, at its own time.
    :param first: the number of the first outcome of this life.
    :param versions: of later schemas that the files are brought to.
    """

    seed: int
    point: str
    nth: int
    steps: int
    first: int
    versions: int


class Worker:
    """Does one thing after the other until it is killed."""

    def __init__(self, folder: Path, plan: Plan, pipe: int) -> None:
        self._plan = plan
        self._pipe = pipe
        self._draw = random.Random(plan.seed)
        self._folder = folder
        self._next = plan.first
        self._boot = f"boot-{plan.seed}"
        self._times: dict[str, int] = {}
        self._left = 0  # steps of SQLite's machine until the end, once that is due
        self._held: list[tuple[bytes, int]] = []

    def run(self, acts: int = 10**9) -> None:
        """For ever, or so many acts."""
        if self._plan.steps:
            _watch(self._step)
        self._begin("migrate" if self._plan.point == "migrate" else "open")
        with opened(self._folder, self._plan.versions) as self.stores:
            # Often, so that checkpoints are interrupted too.
            often = self._draw.choice([5, 50, 2000])
            for db in self.stores.outbox._db, self.stores.spool._db, self.stores.routing.writer:
                db.execute(f"PRAGMA wal_autocheckpoint={often}")
            known: list[Callable[[], None]] = [self.append] * 5 + [self.pack] * 3
            known += [self.send, self.receipt, self.deposit] * 3
            known += [self.append_many, self.append_unclocked, self.settle, self.trim, self.resend]
            for _ in range(acts):
                self._draw.choice(known)()

    def _say(self, **event: object) -> None:
        os.write(self._pipe, json.dumps(event).encode() + b"\n")

    def _begin(self, what: str) -> None:
        self._times[what] = times = self._times.get(what, 0) + 1
        due = (what, times) == (self._plan.point, self._plan.nth)
        self._say(doing=what, now=due and not self._plan.steps)
        if due:
            self._left = self._plan.steps

    def _step(self) -> int:
        if self._left:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
        return 0

    # --- the node ------------------------------------------------------------------------

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def append(self) -> None:
        self._begin("append")
        number = self._number()
        self.stores.outbox.append(
            numbered(number),
            self._draw.choice([ADDRESS, ELSEWHERE]),
            priority=self._draw.randrange(4),
        )
        self._say(made=[number])

    def append_many(self) -> None:
        self._begin("append")
        numbers = [self._number() for _ in range(self._draw.randrange(2, 12))]
        self.stores.outbox.append_many(Pending(numbered(n), ADDRESS) for n in numbers)
        self._say(made=numbers)

    def append_unclocked(self) -> None:
        self._begin("append")
        number = self._number()
        when = Unclocked(self._boot, float(number))
        self.stores.outbox.append(numbered(number), ADDRESS, unclocked=when)
        self._say(made=[number])

    def settle(self) -> None:
        self._begin("append")
        self.stores.outbox.settle(self._boot, float(T0))

    def pack(self) -> None:
        self._begin("pack")
        limit, most = self._draw.choice([150, 200, 512]), self._draw.randrange(1, 6)
        for packet in self.stores.outbox.pack(ME, limit=limit, max_packets=most):
            # From here on the world may have seen these bytes.
            self._say(sent=[packet.store.hex(), packet.sequence, packet.raw.hex()])

    def receipt(self) -> None:
        """Of several batches at once, some of them known already."""
        self._begin("receipt")
        told, self._held = self._held, self._held[-3:]
        answers = [
            Answer(GATEWAY, self.stores.spool.epoch, Receipt(store, held=(sequence,)))
            for store, sequence in told
        ]
        self.stores.outbox.receipts(answers)
        self._say(done=[[store.hex(), sequence] for store, sequence in told])

    def resend(self) -> None:
        if self._draw.random() < 0.05:
            self._begin("receipt")
            self._say(resend=True)  # before: whether it was done or not, nothing is lost
            self.stores.outbox.resend(GATEWAY, since=T0 + self._draw.randrange(self._next) * 3600)

    # --- the gateway ---------------------------------------------------------------------

    def send(self) -> None:
        """Some packets arrive, in any order, some of them once more; some receipts do not."""
        queued = self.stores.outbox.unreceipted(20)
        if not queued:
            return
        some = self._draw.sample(queued, self._draw.randrange(1, len(queued) + 1))
        for one in some:
            self._say(sent=[one.store.hex(), one.sequence, one.raw.hex()])
        some += self._draw.sample(some, len(some) // 4)
        batch = [Intake(unpack(one.raw), T0) for one in some]
        self._begin("send")
        answers = self.stores.spool.admit(batch)
        keys = [(intake.packet.store, intake.packet.sequence) for intake in batch]
        self._say(
            taken=[[store.hex(), sequence] for store, sequence in keys],
            conflicts=sum(one.verdict is Verdict.EQUIVOCATION for one in answers),
        )
        self._held += [key for key in keys if self._draw.random() < 0.8]

    def deposit(self) -> None:
        self._begin("deposit")
        pending = self.stores.spool.pending(ENGINE, self._draw.randrange(1, 30))
        if pending.entries:
            self.stores.routing.deposit(pending.entries)
        self._say(deposited=[entry.raw.hex() for entry in pending.entries])
        self.stores.spool.advance(ENGINE, pending.through)

    def trim(self) -> None:
        self._begin("trim")
        self.stores.spool.trim(T0 + self._draw.randrange(4))


def _watch(step: Callable[[], int]) -> None:
    """Have the steps told of all connections that are opened from now on."""
    connect = Database._connect_to

    def connect_and_watch(self: Database, target: str) -> sqlite3.Connection:
        connection = connect(self, target)
        connection.set_progress_handler(step, 1)
        return connection

    Database._connect_to = connect_and_watch  # type: ignore[method-assign]  # for this process
