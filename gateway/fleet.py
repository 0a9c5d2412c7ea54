"""The fleet: who is known here, who wants to join, and who is out.

One SQLite file that the daemon and the command line may have open at once, so that
``permit``, ``approve`` and ``revoke`` do the same whether the daemon runs or not: it
notices (:meth:`Fleet.refresh`) within its next look.

Thread-safe. What the docstrings call *in memory* never waits for the disk and may be
called from an event loop; everything else belongs on a worker thread.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.database import GatewayDatabase
from qis_edge.core.credential import (
    ISSUER,
    NODE,
    Credential,
    Enrolment,
    RevocationList,
    TrustStore,
    is_name,
    issue,
)
from qis_edge.core.errors import Reason, Refused, UsageError
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.store.database import Schema

#: Enrolments that wait for approval, at most; more are refused.
MAX_WAITING = 64
#: Seconds after which one that nobody approved is forgotten.
WAITING_LIFETIME = 7 * 86400
#: Credentials that are kept.
MAX_CREDENTIALS = 16_384
#: For how long a node's credential is good: seconds.
VALIDITY = 2 * 365 * 86400

#: Where what strangers did is counted: whom a frame claims to be from is no proof.
STRANGERS = b""

SCHEMA = Schema(
    name="fleet database",
    application_id=0x51495346,
    migrations=(
        """
        CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
        INSERT INTO facts VALUES ('change', 0), ('permit_until', 0), ('revocation', NULL);
        CREATE TABLE credentials (
            kid BLOB PRIMARY KEY,
            raw BLOB NOT NULL,
            change INTEGER NOT NULL
        );
        CREATE INDEX changes ON credentials (change);
        CREATE TABLE seen (
            kid BLOB PRIMARY KEY,
            first REAL NOT NULL,
            last REAL NOT NULL,
            accepted INTEGER NOT NULL
        );
        CREATE TABLE refusals (
            kid BLOB NOT NULL,
            reason TEXT NOT NULL,
            count INTEGER NOT NULL,
            PRIMARY KEY (kid, reason)
        );
        CREATE TABLE waiting (
            kid BLOB PRIMARY KEY,
            name TEXT NOT NULL,
            asked REAL NOT NULL,
            raw BLOB NOT NULL
        );
        """,
    ),
)


@dataclass(frozen=True, slots=True)
class NodeState:
    """What is known of a node. (How far its stores are: :meth:`gateway.spool.Spool.stores`.)

    :param first_seen: unix seconds of its first accepted packet, or ``None``.
    :param accepted: packets of it that were accepted.
    :param refused: reason → frames that *claimed* to be of it and were refused.
    """

    kid: bytes
    name: str
    credential: bytes
    expires: int
    revoked: bool
    first_seen: float | None
    last_seen: float | None
    accepted: int
    refused: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A key that wants to join; that its sender holds it was checked.

    :param name: what it would like to be called; harmless to show.
    :param asked: unix seconds.
    :param taken: whether another known node has that name.
    """

    kid: bytes
    name: str
    asked: float
    key: PublicKey
    taken: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """What another process did since the last look."""

    credentials: tuple[Credential, ...] = ()
    revocation: RevocationList | None = None


@dataclass(slots=True)
class _Seen:
    """Not yet written."""

    first: float
    last: float
    accepted: int = 0


@dataclass(slots=True)
class _Tally:
    """What happened since the last flush."""

    seen: dict[bytes, _Seen] = field(default_factory=dict)
    refused: Counter[tuple[bytes, str]] = field(default_factory=Counter)


class Fleet:
    """See the module.

    :param root: the fleet's root key.
    :param now: unix seconds; ``None`` judges no credential by its dates.
    :raises StoreError: what stands in the way.
    :raises StoreCorrupt: the file is damaged.
    """

    def __init__(
        self, path: Path, root: PublicKey, now: float | None = None, *, read_only: bool = False
    ) -> None:
        self.path = path
        self.root = root
        self._disk = threading.RLock()
        self._memory = threading.RLock()
        self._trust = TrustStore(root, max_entries=MAX_CREDENTIALS)
        self._tally = _Tally()
        self._permit_until = 0.0
        self._change = -1
        self._version = -1
        self._news = Changes()
        self._db = GatewayDatabase(
            path,
            SCHEMA,
            remedy="move it away: nodes present their credentials again, the rest is lost",
            read_only=read_only,
        )
        self.refresh(now)

    def close(self) -> None:
        """Write what was counted, and close. Idempotent."""
        with self._disk:
            if not self._db.read_only:
                self.flush()
            self._db.close()

    # --- in memory ---------------------------------------------------------------------

    def resolve(self, kid: bytes, now: float | None, scope: str = NODE) -> PublicKey:
        """In memory: the key, if it may act as ``scope`` now.

        :raises Refused: as :meth:`qis_edge.core.credential.TrustStore.resolve`.
        """
        with self._memory:
            return self._trust.resolve(kid, now, scope)

    def chain(self, kid: bytes) -> tuple[bytes, ...]:
        """In memory: the credentials to show a stranger, issuer's first; empty if unknown."""
        with self._memory:
            return self._trust.chain(kid)

    def credential(self, kid: bytes) -> Credential | None:
        """In memory: what is held about a key, valid or not."""
        with self._memory:
            return self._trust.credential(kid)

    def valid(self, scope: str, now: float | None) -> tuple[Credential, ...]:
        """In memory: every credential that may act as ``scope`` now."""
        with self._memory:
            return self._trust.valid(scope, now)

    @property
    def revocation(self) -> RevocationList | None:
        """In memory: the newest revocation list."""
        return self._trust.revocation

    @property
    def revocation_number(self) -> int:
        """In memory: its number; 0 before the first."""
        return self._trust.revocation_number

    def permitted(self, now: float) -> bool:
        """In memory: whether joining is permitted, as of the last :meth:`refresh`."""
        return now < self._permit_until

    @property
    def permitted_until(self) -> float:
        """In memory: unix seconds at which joining ends, or ended."""
        return self._permit_until

    def accepted(self, kid: bytes, now: float, packets: int = 1) -> None:
        """In memory until the next :meth:`flush`: a node was heard, verified."""
        with self._memory:
            seen = self._tally.seen.setdefault(kid, _Seen(now, now))
            seen.last = max(seen.last, now)
            seen.accepted += packets

    def refused(self, kid: bytes | None, reason: Reason) -> None:
        """In memory until the next :meth:`flush`: a frame that claims to be of ``kid`` was
        refused. Claims of keys that are not known are counted together."""
        with self._memory:
            known = kid is not None and self._trust.credential(kid) is not None
            self._tally.refused[kid if known and kid else STRANGERS, reason.label] += 1

    # --- between processes -------------------------------------------------------------

    def refresh(self, now: float | None = None) -> Changes:
        """Take in what another process changed. Takes microseconds where nothing did.

        :param now: unix seconds; ``None`` judges no credential by its dates.
        :returns: what is new since the last call, whatever else looked at the file meanwhile.
        """
        with self._disk:
            self._look(now)
            changes, self._news = self._news, Changes()
            return changes

    def _look(self, now: float | None = None) -> None:
        with self._disk:
            version = self._db.data_version()
            if version == self._version:
                return
            permit_until = float(self._fact("permit_until") or 0)
            revocation = self._fact("revocation")
            change = self._db.number("SELECT value FROM facts WHERE name = 'change'")
            credentials = self._credentials("WHERE change > ?", (self._change,))
            with self._memory:
                self._permit_until = permit_until
                learned = self._learn_revocation(revocation)
                self._news = Changes(
                    revocation=learned or self._news.revocation,
                    credentials=self._news.credentials + self._learn_credentials(credentials, now),
                )
            self._change, self._version = change, version

    def _learn_revocation(self, raw: object) -> RevocationList | None:
        try:
            news = isinstance(raw, bytes) and self._trust.apply(raw)
        except Refused:  # older than what we have, or not of this root
            return None
        return self._trust.revocation if news else None

    def _learn_credentials(
        self, credentials: Iterable[Credential], now: float | None
    ) -> tuple[Credential, ...]:
        learned = []
        # What the root made comes first: the others may depend on it.
        for new in sorted(credentials, key=lambda one: one.issuer != self.root.kid):
            held = self._trust.credential(new.kid)
            try:
                stands = self._trust.add(new.raw, now)
            except Refused:  # expired or revoked since
                continue
            if stands.raw == new.raw and (held is None or held.raw != new.raw):
                learned.append(new)
        return tuple(learned)

    def flush(self) -> None:
        """Write what was counted. A loss of power costs the counts since the last one."""
        with self._disk:
            with self._memory:
                tally, self._tally = self._tally, _Tally()
            if not (tally.seen or tally.refused):
                return
            self._db.execute("PRAGMA synchronous=NORMAL")
            try:
                with self._db.transaction():
                    self._db.execute_many(
                        "INSERT INTO seen VALUES (?, ?, ?, ?) ON CONFLICT (kid) DO UPDATE SET "
                        "last = max(last, excluded.last), accepted = accepted + excluded.accepted",
                        [
                            (kid, seen.first, seen.last, seen.accepted)
                            for kid, seen in tally.seen.items()
                        ],
                    )
                    self._db.execute_many(
                        "INSERT INTO refusals VALUES (?, ?, ?) ON CONFLICT (kid, reason) "
                        "DO UPDATE SET count = count + excluded.count",
                        [(*key, count) for key, count in tally.refused.items()],
                    )
            finally:
                self._db.execute("PRAGMA synchronous=FULL")

    # --- credentials -------------------------------------------------------------------

    def add(self, raw: bytes, now: float | None) -> Credential:
        """Check a credential against the root, and keep it.

        :raises Refused: as :meth:`qis_edge.core.credential.TrustStore.add`; nothing was kept.
        """
        with self._memory:
            credential = self._trust.add(raw, now)
        if credential.raw == raw:
            self._keep(credential)
        return credential

    def _keep(self, credential: Credential) -> None:
        with self._disk, self._db.transaction():
            held = self._db.value("SELECT raw FROM credentials WHERE kid = ?", (credential.kid,))
            if held == credential.raw:
                return
            self._db.execute("UPDATE facts SET value = value + 1 WHERE name = 'change'")
            self._db.execute(
                "INSERT OR REPLACE INTO credentials "
                "SELECT ?, ?, value FROM facts WHERE name = 'change'",
                (credential.kid, credential.raw),
            )
            self._db.execute("DELETE FROM waiting WHERE kid = ?", (credential.kid,))
            # Those that were never heard go first, then those not heard for longest.
            self._db.execute(
                "DELETE FROM credentials WHERE kid IN (SELECT kid FROM credentials "
                "LEFT JOIN seen USING (kid) ORDER BY last IS NOT NULL, last, change "
                "LIMIT max(0, (SELECT count(*) FROM credentials) - ?))",
                (MAX_CREDENTIALS,),
            )

    def apply(self, raw: bytes) -> bool:
        """Take in a revocation list that the root made elsewhere; whether it was news.

        :raises Refused: as :meth:`qis_edge.core.credential.TrustStore.apply`.
        """
        with self._disk:
            self._look()
            with self._memory:
                news = self._trust.apply(raw)
            if news:
                with self._db.transaction():
                    self._set("revocation", raw)
            return news

    def revoke(
        self, who: Iterable[str | bytes], root: Identity | None, now: float
    ) -> RevocationList:
        """Make the next revocation list, with these keys and those of the one before.

        :param who: each a kid, its hexadecimal form (or the beginning of it), or the name
            of a known node.
        :param root: the root's private key, where it is at hand.
        :raises UsageError: nobody or several are meant, the root key is not at hand or
            another, or the list is full.
        """
        if root is None:
            raise UsageError(
                "a revocation list is signed by the fleet's root key, which is not here",
                field="root",
                hint="run revoke where root.key is kept, then bring the list here",
            )
        if root.public != self.root:
            raise UsageError(
                "this is the root key of another fleet",
                field="root",
                hint=f"the root of this fleet is {self.root.kid.hex()}",
            )
        with self._disk:
            kids = {one if isinstance(one, bytes) else self.find(one) for one in who}
            with self._db.transaction():
                self._look()  # another process may have made one
                made = RevocationList.issue(
                    root,
                    number=self.revocation_number + 1,
                    issued=int(now),
                    kids=kids | self._still_revoked(now),
                )
                self._set("revocation", made.raw)
            with self._memory:
                self._trust.apply(made.raw)
        return made

    def _still_revoked(self, now: float) -> set[bytes]:
        """Of the last list, those whose credential has not run out by itself."""
        if self.revocation is None:
            return set()
        return set(self.revocation.kids) - {
            credential.kid for credential in self._credentials() if credential.expires <= now
        }

    # --- joining -----------------------------------------------------------------------

    def permit(self, until: float) -> None:
        """Let nodes ask to join until then (unix seconds; 0: no more)."""
        with self._disk:
            with self._db.transaction():
                self._set("permit_until", until)
            self._permit_until = until

    def enrol(self, enrolment: Enrolment, now: float) -> bool:
        """Somebody asks to join; whether it is news. The signature was checked.

        :raises Refused: SCOPE, joining is not permitted; FLOODED, too many wait;
            REVOKED, that key is out.
        """
        self._look(now)
        kid = enrolment.key.kid
        if not self.permitted(now):
            raise Refused(Reason.SCOPE, "enrolment", "joining is not permitted now")
        if self.revocation is not None and kid in self.revocation.kids:
            raise Refused(Reason.REVOKED, "enrolment", kid.hex())
        with self._disk, self._db.transaction():
            self._db.execute("DELETE FROM waiting WHERE asked < ?", (now - WAITING_LIFETIME,))
            before = self._db.value("SELECT raw FROM waiting WHERE kid = ?", (kid,))
            if before == enrolment.raw:
                return False
            if before is None and self._db.number("SELECT count(*) FROM waiting") >= MAX_WAITING:
                raise Refused(Reason.FLOODED, "enrolment", f"{MAX_WAITING} wait already")
            self._db.execute(
                "INSERT OR REPLACE INTO waiting VALUES (?, ?, ?, ?)",
                (kid, enrolment.name, now, enrolment.raw),
            )
        return True

    def waiting(self) -> list[Waiting]:
        """Who asks to join, oldest first."""
        with self._disk:
            rows = self._db.rows("SELECT raw, asked FROM waiting ORDER BY asked, kid")
            names = {credential.subject: credential.kid for credential in self._credentials()}
        found = []
        for raw, asked in rows:
            try:
                enrolment = Enrolment.open(raw)
            except Refused:  # somebody else wrote there
                continue
            kid = enrolment.key.kid
            taken = names.get(enrolment.name, kid) != kid
            found.append(Waiting(kid, enrolment.name, asked, enrolment.key, taken))
        return found

    def approve(
        self,
        who: str | bytes,
        issuer: Identity,
        now: float,
        *,
        name: str | None = None,
    ) -> Credential:
        """Make a node of one who asked to join.

        :param who: its kid, the hexadecimal form (or the beginning of it), or the name
            that it asked for, if nobody else did.
        :param issuer: of this gateway, or the root's.
        :param name: another name than the one that it asked for.
        :returns: its credential: the new one, or one that it has and that ends no sooner.
            It ends after :data:`VALIDITY`, and no later than the issuer's.
        :raises UsageError: nobody or several are meant, the name is taken, the key was
            revoked, or the issuer may not issue.
        """
        with self._disk:
            self._look(now)
            waiting = {one.kid: one for one in self.waiting()}
            chosen = _choose(who, {kid: one.name for kid, one in waiting.items()}, "asks to join")
            one = waiting[chosen]
            return self._make_node(one.key, one.name if name is None else name, issuer, now)

    def approve_enrolment(
        self, enrolment: Enrolment, issuer: Identity, now: float, *, name: str | None = None
    ) -> Credential:
        """Make a node of one whose enrolment was brought here, permitted or not: whoever
        brought it has it from the node itself. Otherwise as :meth:`approve`.
        """
        with self._disk:
            self._look(now)
            wanted = enrolment.name if name is None else name
            return self._make_node(enrolment.key, wanted, issuer, now)

    def _make_node(self, key: PublicKey, name: str, issuer: Identity, now: float) -> Credential:
        if self.revocation is not None and key.kid in self.revocation.kids:
            raise UsageError(f"the key {key.kid.hex()} was revoked", field="node")
        made = issue(
            issuer,
            subject=self._free_name(name, key.kid),
            key=key,
            scope=NODE,
            expires=int(min(now + VALIDITY, self._issuer_end(issuer, now))),
            serial=os.urandom(8),
        )
        stands = self.add(made.raw, now)
        if stands.subject != name:
            raise UsageError(
                f"it is already known as {stands.subject}, by a credential that ends no sooner",
                field="name",
                hint=f"approve it as {stands.subject}",
            )
        with self._db.transaction():  # also where a credential that it had before stands
            self._db.execute("DELETE FROM waiting WHERE kid = ?", (key.kid,))
        return stands

    def _free_name(self, name: str, kid: bytes) -> str:
        if not is_name(name):
            raise UsageError("use 1 to 64 of A-Za-z0-9._-", field="name")
        for credential in self._credentials():
            if credential.subject == name and credential.kid != kid:
                raise UsageError(
                    f"{name} is the name of the node {credential.kid.hex()}",
                    field="name",
                    hint="give this one another name",
                )
        return name

    def _issuer_end(self, issuer: Identity, now: float) -> float:
        """Unix seconds at which what it issues ends at the latest."""
        if issuer.public == self.root:
            return float("inf")
        try:
            self.resolve(issuer.kid, now, ISSUER)
        except Refused as refused:
            raise UsageError(
                f"this gateway may not issue credentials ({refused})",
                field="issuer",
                hint="qis-gateway init --root FILE renews its own credential",
            ) from refused
        held = self.credential(issuer.kid)
        return held.expires if held is not None else now

    # --- looking -----------------------------------------------------------------------

    def nodes(self) -> list[NodeState]:
        """Every node that is known, by name; as of the last :meth:`flush`."""
        with self._disk:
            held = [credential for credential in self._credentials() if NODE in credential.scope]
            seen = {row[0]: row[1:] for row in self._db.rows("SELECT * FROM seen")}
            refusals = self._refusals()
        revoked = frozenset(self.revocation.kids if self.revocation else ())
        states = []
        for credential in sorted(held, key=lambda one: (one.subject, one.kid)):
            first, last, accepted = seen.get(credential.kid, (None, None, 0))
            states.append(
                NodeState(
                    kid=credential.kid,
                    name=credential.subject,
                    credential=credential.raw,
                    expires=credential.expires,
                    revoked=bool(revoked & {credential.kid, credential.issuer}),
                    first_seen=first,
                    last_seen=last,
                    accepted=accepted,
                    refused=refusals.get(credential.kid, {}),
                )
            )
        return states

    def strangers(self) -> Mapping[str, int]:
        """Reason → frames of nobody we know that were refused; as of the last flush."""
        with self._disk:
            return self._refusals().get(STRANGERS, {})

    def find(self, who: str | bytes) -> bytes:
        """The kid that a kid, the beginning of its hexadecimal form, or a name stands for,
        of all keys that are known. A whole kid need not be known.

        :raises UsageError: nobody or several are meant.
        """
        if isinstance(who, bytes):
            return who
        with self._disk:
            names = {credential.kid: credential.subject for credential in self._credentials()}
        return _choose(who, names, "is known")

    def _refusals(self) -> dict[bytes, dict[str, int]]:
        found: dict[bytes, dict[str, int]] = {}
        for kid, reason, count in self._db.rows("SELECT * FROM refusals ORDER BY reason"):
            found.setdefault(kid, {})[reason] = count
        return found

    def _credentials(self, where: str = "", arguments: tuple[Any, ...] = ()) -> list[Credential]:
        """Credentials on disk, valid or not."""
        found = []
        for (raw,) in self._db.rows(f"SELECT raw FROM credentials {where}", arguments):  # noqa: S608 - constants
            try:
                found.append(Credential.parse(raw))
            except Refused:  # somebody else wrote there
                continue
        return found

    def _fact(self, name: str) -> Any:
        return self._db.value("SELECT value FROM facts WHERE name = ?", (name,))

    def _set(self, name: str, value: object) -> None:
        self._db.execute("UPDATE facts SET value = ? WHERE name = ?", (value, name))


def _choose(who: str | bytes, names: Mapping[bytes, str], what: str) -> bytes:
    """The one kid of ``names`` that is meant."""
    if isinstance(who, bytes):
        who = who.hex()
    text = who.lower()
    found = [kid for kid, name in names.items() if name == who]
    if not found and text:
        found = [kid for kid in names if kid.hex().startswith(text)]
    if len(found) == 1:
        return found[0]
    if not found and len(text) == 16 and what == "is known":
        try:
            return bytes.fromhex(text)
        except ValueError:
            pass
    if found:
        several = ", ".join(kid.hex() for kid in sorted(found))
        raise UsageError(f"{who} may be {several}", field="node", hint="name one by its kid")
    raise UsageError(
        f"nobody called {who} {what}",
        field="node",
        hint="qis-gateway nodes shows who is known and who asks to join",
    )
