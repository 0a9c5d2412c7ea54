"""The inbox: what came for a node, bounded, and what it needs to judge it.

Peers' packets with the cursors that say how far the downlink has come, the credentials and
the revocation list, the gateways that were met, what is thought of each peer, and our own
outcomes of late. Packets may be fetched again, so they are not waited for: a power cut
may take the last of them, together with the cursor that had passed them. Credentials,
revocations and gateways are on the disk when the call returns.

One process writes and calls one method at a time; others read through
:meth:`Inbox.inspect`. Packets that come in here were verified before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from qis_edge.core.credential import Credential, RevocationList
from qis_edge.core.errors import Refused, StoreCorrupt, UsageError
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Packet, unpack
from qis_edge.store import salvage
from qis_edge.store.database import Database, Lock
from qis_edge.store.forms import Notice, body_of, outcome_of
from qis_edge.store.schema import INBOX

DEFAULT_PACKETS = 20_000
DEFAULT_BYTES = 16 * 1024 * 1024
#: The part of the room that the packets of one sender may take.
DEFAULT_SHARE = 0.25
KEEP_CREDENTIALS = 4096
#: Our own outcomes: so many seconds before the newest, and so many at most.
KEEP_OWN_SECONDS, KEEP_OWN = 14 * 86400, 20_000
#: What a row costs beyond the packet, with its place in the indexes.
_ROW = 160
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Position:
    """How far the downlink has come.

    :param gateway: kid of whose cursor it is.
    :param cursor: opaque, what the gateway gave.
    :param scope: for what; a hash of the interests, say. A cursor is good for these only.
    """

    gateway: bytes
    cursor: bytes
    scope: bytes = b""


@dataclass(frozen=True, slots=True)
class KnownGateway:
    """A gateway that was met.

    :param epoch: of its spool when it was last met, 4 bytes.
    :param seen: unix seconds.
    """

    kid: bytes
    epoch: bytes
    seen: int


@dataclass(frozen=True, slots=True)
class InboxStats:
    """An inbox in numbers."""

    packets: int
    bytes: int  # that the packets take, with their rows
    senders: int
    addresses: int
    credentials: int
    revocation: int  # number of the list, 0 for none
    gateways: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an inbox keeps.

    :param packets: how many at most.
    :param bytes: what they take at most, with their rows.
    :param share: the part of either that the packets of one sender may take.
    """

    packets: int = DEFAULT_PACKETS
    bytes: int = DEFAULT_BYTES
    share: float = DEFAULT_SHARE

    def __post_init__(self) -> None:
        if self.packets < 1 or self.bytes < 4096:
            raise UsageError("room for one packet at least", field="limits")
        if not 0.0 < self.share <= 1.0:
            raise UsageError("a part of 1", field="share")


class Inbox:
    """See the module. Made by :meth:`open`, :meth:`in_memory` or :meth:`inspect`."""

    def __init__(self, db: Database, lock: Lock | None, limits: Limits) -> None:
        self._db = db
        self._lock = lock
        self._limits = limits
        self._count = self._bytes = 0
        self._recount()

    # --- opening -----------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path | str, limits: Limits | None = None) -> tuple[Inbox, list[Notice]]:
        """Open or make the inbox; with it what had to be done for that. A damaged file is
        set aside; credentials, revocations and gateways are carried over where they can
        be read, packets are fetched anew.

        :raises StoreError: in use, newer, or the disk does not allow it.
        """
        path = Path(path)
        lock = Lock(path)
        try:
            db, news = _open_file(path)
            return cls(db, lock, limits or Limits()), news
        except BaseException:
            lock.release()
            raise

    @classmethod
    def in_memory(cls, limits: Limits | None = None) -> Inbox:
        """One that ends with the process."""
        return cls(Database(None, INBOX), None, limits or Limits())

    @classmethod
    def inspect(cls, path: Path | str) -> Inbox:
        """One that only reads, also while its daemon runs. :raises StoreError:"""
        return cls(Database(Path(path), INBOX, read_only=True), None, Limits())

    def close(self) -> None:
        """Idempotent."""
        self._db.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        try:
            with self._db.transaction():
                yield
        except BaseException:
            with contextlib.suppress(Exception):
                self._recount()
            raise

    @contextlib.contextmanager
    def _durable_change(self) -> Iterator[None]:
        self._db.execute("PRAGMA synchronous=FULL")
        try:
            with self._change():
                yield
        finally:
            self._db.execute("PRAGMA synchronous=NORMAL")

    def _recount(self) -> None:
        row = self._db.row("SELECT total(count), total(bytes) FROM senders")
        self._count, self._bytes = int(row[0]), int(row[1])

    # --- packets -----------------------------------------------------------------------

    def put(
        self, packets: Iterable[Packet], *, now: int, position: Position | None = None
    ) -> list[Packet]:
        """Keep peers' packets, and how far the downlink has come with them, in one commit.
        When there is no room the expired go first, then the oldest; first of all those of
        a sender that takes more than its share.

        :param now: unix seconds, for what has expired.
        :returns: those that were not there.
        """
        with self._change():
            new = [packet for packet in packets if self._insert(packet)]
            for sender in {packet.kid for packet in new}:
                self._hold_to_share(sender)
            if new:
                self._make_room(now)
            if position is not None and position.cursor != self.cursor(
                position.gateway, position.scope
            ):
                self._db.execute(
                    "INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)",
                    (position.gateway, position.scope, position.cursor),
                )
        return new

    def has(self, packet: Packet) -> bool:
        """Whether a packet is here, of this signer: others can have signed the same."""
        return (
            self._db.row(
                "SELECT 1 FROM packets JOIN senders ON senders.id=sender"
                " WHERE packet IN (?, ?) AND kid=?",
                (_name(packet), packet.id, packet.kid),
            )
            is not None
        )

    def query(
        self, fingerprint: bytes, *, limit: int = 50, since: int | None = None
    ) -> list[Packet]:
        """What came for an address: newest outcome first.

        :param since: unix seconds; only packets with an outcome at or after it.
        """
        rows = self._db.rows(
            "SELECT raw FROM packets WHERE time>=?"
            " AND address=(SELECT id FROM addresses WHERE fingerprint=?)"
            " ORDER BY time DESC, id DESC LIMIT ?",
            (0 if since is None else since, fingerprint, limit),
        )
        found = []
        for (raw,) in rows:
            with contextlib.suppress(Refused):  # it did not survive on the disk
                found.append(unpack(raw, lazy=True))
        return found

    def expire(self, now: int) -> int:
        """Drop what nobody need weigh any more. Returns how many."""
        with self._change():
            return self._drop("expires<=? ORDER BY expires", (now,), None)

    def forget_sender(self, kid: bytes) -> int:
        """Drop what a revoked key sent. Returns how many."""
        with self._change():
            return self._drop(
                "sender=(SELECT id FROM senders WHERE kid=?) ORDER BY time", (kid,), None
            )

    def _insert(self, packet: Packet) -> bool:
        if self.has(packet):
            return False
        size = len(packet.raw) + _ROW
        sender = self._db.value(
            "INSERT INTO senders (kid, count, bytes) VALUES (?, 1, ?) ON CONFLICT (kid)"
            " DO UPDATE SET count=count+1, bytes=bytes+excluded.bytes RETURNING id",
            (packet.kid, size),
        )
        self._db.execute(
            "INSERT OR IGNORE INTO addresses (fingerprint) VALUES (?)", (packet.fingerprint,)
        )
        self._db.execute(
            "INSERT INTO packets (packet, address, sender, time, expires, raw)"
            " VALUES (?, (SELECT id FROM addresses WHERE fingerprint=?), ?, ?, ?, ?)",
            (
                _name(packet),
                packet.fingerprint,
                sender,
                packet.last_time,
                packet.expires,
                packet.raw,
            ),
        )
        self._count += 1
        self._bytes += size
        return True

    def _hold_to_share(self, kid: bytes) -> None:
        packets = max(1, int(self._limits.packets * self._limits.share))
        size = int(self._limits.bytes * self._limits.share)
        while True:
            sender, count, used = self._db.row(
                "SELECT id, count, bytes FROM senders WHERE kid=?", (kid,)
            )
            over = max(count - packets, -(-(used - size) // (512 + _ROW)))
            if over <= 0 or count == 1:
                return
            self._drop("sender=? ORDER BY time, id", (sender,), min(over, count - 1))

    def _make_room(self, now: int) -> None:
        while (over := self._over()) > 0:
            if not self._drop("expires<=? ORDER BY expires", (now,), over):
                self._drop("1 ORDER BY time, id", (), over)

    def _over(self) -> int:
        """How many packets have to go at least."""
        excess = -(-(self._bytes - self._limits.bytes) // (512 + _ROW))
        return min(max(self._count - self._limits.packets, excess), self._count - 1)

    def _drop(self, which: str, arguments: tuple[object, ...], limit: int | None) -> int:
        rows = self._db.rows(
            "SELECT id, sender, length(raw), address FROM packets"  # noqa: S608 - our own text
            f" WHERE {which} LIMIT ?",
            (*arguments, -1 if limit is None else limit),
        )
        for row, sender, size, _ in rows:
            self._db.execute("DELETE FROM packets WHERE id=?", (row,))
            self._db.execute(
                "UPDATE senders SET count=count-1, bytes=bytes-? WHERE id=?",
                (size + _ROW, sender),
            )
            self._count -= 1
            self._bytes -= size + _ROW
        for sender in {row[1] for row in rows}:
            self._db.execute("DELETE FROM senders WHERE id=? AND count=0", (sender,))
        for address in {row[3] for row in rows}:
            self._db.execute(
                "DELETE FROM addresses WHERE id=?"
                " AND NOT EXISTS (SELECT 1 FROM packets WHERE address=addresses.id)",
                (address,),
            )
        return len(rows)

    # --- the downlink ------------------------------------------------------------------

    def cursor(self, gateway: bytes, scope: bytes = b"") -> bytes | None:
        """How far a gateway's downlink has come."""
        found = self._db.value(
            "SELECT cursor FROM cursors WHERE gateway=? AND scope=?", (gateway, scope)
        )
        return None if found is None else bytes(found)

    def forget_cursors(self, gateway: bytes) -> None:
        """Begin anew with a gateway: its routing layer is another."""
        with self._change():
            self._db.execute("DELETE FROM cursors WHERE gateway=?", (gateway,))

    def met_gateway(self, kid: bytes, epoch: bytes, now: int) -> None:
        """Remember a gateway that proved itself. Written when its epoch is new, and else
        at most once an hour."""
        known = self.gateway(kid)
        if known is not None and known.epoch == epoch and abs(now - known.seen) < 3600:
            return
        with self._durable_change():
            self._db.execute("INSERT OR REPLACE INTO gateways VALUES (?, ?, ?)", (kid, epoch, now))

    def gateway(self, kid: bytes) -> KnownGateway | None:
        """What is known of a gateway."""
        row = self._db.row("SELECT kid, epoch, seen FROM gateways WHERE kid=?", (kid,))
        return None if row is None else KnownGateway(*row)

    def gateways(self) -> list[KnownGateway]:
        """All that were met, the one met last first."""
        rows = self._db.rows("SELECT kid, epoch, seen FROM gateways ORDER BY seen DESC")
        return [KnownGateway(*row) for row in rows]

    # --- who is who --------------------------------------------------------------------

    def keep_credential(self, raw: bytes, now: int | None = None) -> None:
        """Keep a credential that was verified; it takes the place of one for its key.

        :param now: unix seconds, by which expired ones go when there are too many.
        :raises Refused: it is none.
        """
        made = Credential.parse(raw)
        if self._db.value("SELECT raw FROM credentials WHERE kid=?", (made.kid,)) == raw:
            return
        rank = 1 if made.scope == {"node"} else 0
        with self._durable_change():
            self._db.execute(
                "INSERT INTO credentials (kid, rank, expires, raw) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (kid) DO UPDATE SET rank=excluded.rank,"
                " expires=excluded.expires, raw=excluded.raw",
                (made.kid, rank, made.expires, raw),
            )
            over = self._db.number("SELECT count(*) FROM credentials") - KEEP_CREDENTIALS
            if over > 0:
                self._db.execute(
                    "DELETE FROM credentials WHERE id IN (SELECT id FROM credentials"
                    " WHERE kid<>? ORDER BY expires>?, rank DESC, id LIMIT ?)",
                    (made.kid, now or 0, over),
                )

    def keep_revocation(self, raw: bytes) -> bool:
        """Keep a revocation list that was verified; whether it is newer than what is here.

        :raises Refused: it is none.
        """
        number = RevocationList.parse(raw).number
        if number <= self.revocation_number:
            return False
        with self._durable_change():
            self._db.execute("INSERT OR REPLACE INTO revocations VALUES (1, ?, ?)", (number, raw))
        return True

    @property
    def revocation_number(self) -> int:
        """The number of the revocation list that is here; 0 for none."""
        return self._db.number("SELECT number FROM revocations")

    def trust(self) -> list[bytes]:
        """What ``TrustStore.restore`` takes: the revocation list, then the credentials,
        issuers before those that they vouch for."""
        rows = self._db.rows("SELECT raw FROM revocations")
        rows += self._db.rows("SELECT raw FROM credentials ORDER BY rank, id")
        return [bytes(raw) for (raw,) in rows]

    # --- what is thought of peers ------------------------------------------------------

    def peer_states(self) -> dict[bytes, bytes]:
        """Kid → what was last kept of it."""
        return dict(self._db.rows("SELECT kid, state FROM peers"))

    def keep_peer_states(self, states: Mapping[bytes, bytes | None]) -> None:
        """Keep what is thought of some peers, in one commit; ``None`` forgets."""
        with self._change():
            for kid, state in states.items():
                if state is None:
                    self._db.execute("DELETE FROM peers WHERE kid=?", (kid,))
                else:
                    self._db.execute("INSERT OR REPLACE INTO peers VALUES (?, ?)", (kid, state))

    # --- our own outcomes --------------------------------------------------------------

    def keep_own(self, fingerprint: bytes, outcomes: Iterable[Outcome]) -> None:
        """Keep our own outcomes of an address to compare peers with; one for a time.

        :raises UsageError: a result cannot be kept.
        """
        rows = [(fingerprint, outcome.time, body_of(outcome)) for outcome in outcomes]
        if not rows:
            return
        with self._change():
            self._db.execute_many("INSERT OR REPLACE INTO own VALUES (?, ?, ?)", rows)
            self._db.execute(
                "DELETE FROM own WHERE time<(SELECT max(time) FROM own)-?", (KEEP_OWN_SECONDS,)
            )
            self._db.execute(
                "DELETE FROM own WHERE time<=(SELECT time FROM own"
                " ORDER BY time DESC LIMIT 1 OFFSET ?)",
                (KEEP_OWN,),
            )

    def own(
        self, fingerprint: bytes | None = None, *, since: int = 0, limit: int = 10_000
    ) -> list[tuple[bytes, Outcome]]:
        """(fingerprint, outcome) of ours, oldest first, of one address or of all.

        :param limit: how many of the newest.
        """
        wanted, address = (
            ("", ()) if fingerprint is None else ("fingerprint=? AND ", (fingerprint,))
        )
        rows = self._db.rows(
            f"SELECT fingerprint, time, body FROM own WHERE {wanted}time>=?"  # noqa: S608 - ours
            " ORDER BY time DESC LIMIT ?",
            (*address, since, limit),
        )
        return [(bytes(where), outcome_of(time, body)) for where, time, body in reversed(rows)]

    # --- the rest ----------------------------------------------------------------------

    def stats(self) -> InboxStats:
        """The inbox in numbers."""
        if self._db.read_only:
            self._recount()
        number = self._db.number
        return InboxStats(
            packets=self._count,
            bytes=self._bytes,
            senders=number("SELECT count(*) FROM senders"),
            addresses=number("SELECT count(*) FROM addresses"),
            credentials=number("SELECT count(*) FROM credentials"),
            revocation=self.revocation_number,
            gateways=number("SELECT count(*) FROM gateways"),
        )


def _open_file(path: Path) -> tuple[Database, list[Notice]]:
    news: list[Notice] = []
    if salvage.due(path):
        news.append(_repair(path))
    try:
        return _checked(path), news
    except StoreCorrupt:
        news.append(_repair(path))
        return _checked(path), news


def _checked(path: Path) -> Database:
    db = Database(path, INBOX, durable=False)
    try:
        if db.unclean or db.size() <= 4 * 1024 * 1024:
            db.check()
    except BaseException:
        db.close()
        raise
    return db


_CARRIED = (
    ("credentials", "id", ("id", "kid", "rank", "expires", "raw")),
    ("revocations", "id", ("id", "number", "raw")),
    ("gateways", "rowid", ("kid", "epoch", "seen")),
)


def _repair(path: Path) -> Notice:
    carried = 0

    def fill(new: Path, old: Path) -> None:
        nonlocal carried
        with Database(new, INBOX) as db, db.transaction():
            source = salvage.open_damaged(old)
            if source is None:
                return
            with contextlib.closing(source):
                for table, key, columns in _CARRIED:
                    carried += salvage.copy(source, db, table, key, columns)

    salvage.set_aside(path, fill)
    name = path.name + salvage.ASIDE.format(1)
    text = (
        f"the inbox was damaged: carried over {carried} credentials, revocations and gateways; "
        f"peers' packets are fetched anew; the old file is kept as {name}"
    )
    return Notice(0, "salvaged", text)


def _name(packet: Packet) -> bytes:
    return packet.id + packet.kid  # the id is of what was signed, whoever signed it
