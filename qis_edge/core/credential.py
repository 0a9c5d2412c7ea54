"""Who is who: credentials, the revocation list, and what a node says when it wants in.

A credential is a CWT (RFC 8392) with a ``cnf`` key (RFC 8747), signed by the fleet's root
or by an issuer that the root made: *this key is this node, gateway or issuer, until then*.
A revocation list is a numbered list of keys, signed by the root alone. An enrolment is
signed by the key that it names, which proves that its sender holds it and nothing else.

:class:`TrustStore` decides what they are worth. The formats' home is
``docs/wire-format.md``.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from qis_edge.core import cbor, checks
from qis_edge.core.checks import require
from qis_edge.core.cose import Sign1, open_sign1, sign1
from qis_edge.core.errors import Reason, Refused, UsageError
from qis_edge.core.identity import Identity, PublicKey

MAX_CREDENTIAL = 512
MAX_TIME = 2**40 - 1
MAX_SERIAL = 8
MIN_SERIAL = 4
#: What fits a revocation message of 512 bytes, whatever its number.
MAX_REVOKED = 44
MAX_REVOCATION = 510  # the message around it takes two bytes
MAX_NUMBER = 2**32 - 1

NODE = "node"
GATEWAY = "gateway"
ISSUER = "issuer"
#: What a credential may be issued for. Readers pass over words that they do not know.
SCOPES = frozenset({NODE, GATEWAY, ISSUER})

CREDENTIAL_AAD = b"qis/credential/1"
REVOCATION_AAD = b"qis/revocation/1"
ENROLMENT_AAD = b"qis/enrolment/1"

CWT_TAG = b"\xd8\x3d"

_SUB, _EXP, _NBF, _CTI, _CNF, _SCOPE = 2, 4, 5, 7, 8, 9  # RFC 8392, RFC 8747, RFC 9200
_COSE_KEY = 1
_KTY, _CRV, _X = 1, -1, -2
_OKP, _ED25519 = 1, 6
# A name can carry no terminal escape, is no option of a command and no other folder.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_SCOPE_TEXT = re.compile(r"[a-z]{1,16}( [a-z]{1,16}){0,7}", re.ASCII)


def is_name(text: str) -> bool:
    """Whether it may name a node, gateway or site: 1 to 64 of ``A-Za-z0-9._-``, the first
    a letter or a digit."""
    return _NAME.fullmatch(text) is not None


# --- credentials -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential whose form was checked. Its signature is not, until :meth:`verify`.

    :param raw: the bytes as they travel, at most 512, about 160 for a node.
    :param subject: a name, see :func:`is_name`.
    :param key: whose key it is about.
    :param scope: what the key is entitled to: ``node``, ``gateway``, ``issuer``.
    :param issuer: kid of the key that signed it, by its header.
    :param expires: unix seconds at which it ends.
    :param not_before: unix seconds at which it begins, or ``None``.
    :param serial: 4 to 8 bytes that tell it from others of the same key.
    """

    raw: bytes = field(repr=False)
    subject: str
    key: PublicKey
    scope: frozenset[str]
    issuer: bytes
    expires: int
    not_before: int | None
    serial: bytes
    _message: Sign1 = field(repr=False, compare=False)

    @property
    def kid(self) -> bytes:
        """The kid of the key that it is about."""
        return self.key.kid

    @classmethod
    def parse(cls, raw: bytes) -> Credential:
        """Check the form. Claims with integer keys that we do not know are passed over.

        :raises Refused: anything else that is not exactly right; the field says where.
        """
        message = _open_cwt(raw, "credential")
        claims = _load_claims(message.payload, "credential")
        not_before = claims.get(_NBF)
        if _NBF in claims:
            not_before = checks.uint(not_before, MAX_TIME, "credential.nbf")
        return cls(
            raw=raw,
            subject=_name(claims.get(_SUB), "credential.sub"),
            key=_key(claims.get(_CNF), "credential.cnf"),
            scope=_scope(claims.get(_SCOPE), "credential.scope"),
            issuer=message.kid,
            expires=checks.uint(claims.get(_EXP), MAX_TIME, "credential.exp"),
            not_before=not_before,
            serial=checks.bstr(claims.get(_CTI), MIN_SERIAL, MAX_SERIAL, "credential.cti"),
            _message=message,
        )

    def verify(self, issuer: PublicKey) -> None:
        """:raises Refused: SIGNATURE, or CHAIN where it names another issuer."""
        if issuer.kid != self.issuer:
            raise Refused(Reason.CHAIN, "credential.issuer")
        self._message.verify(issuer, CREDENTIAL_AAD)

    def check_time(self, now: float | None, field: str = "credential") -> None:
        """:param now: unix seconds; ``None`` (the clock is not set) judges nothing.
        :raises Refused: EXPIRED.
        """
        if now is None:
            return
        if now >= self.expires:
            raise Refused(Reason.EXPIRED, field, "past its end")
        if self.not_before is not None and now < self.not_before:
            raise Refused(Reason.EXPIRED, field, "not yet begun")


def issue(
    issuer: Identity,
    *,
    subject: str,
    key: PublicKey,
    scope: str | Iterable[str],
    expires: int,
    serial: bytes,
    not_before: int | None = None,
) -> Credential:
    """Make and sign a credential.

    :param scope: words, or one text with spaces between them: ``"gateway issuer"``.
    :param expires: unix seconds.
    :param serial: 4 to 8 bytes, not used before for this key (random ones do).
    :raises UsageError: an argument is out of bounds; the error names it.
    """
    words = frozenset(scope.split() if isinstance(scope, str) else scope)
    require(is_name(subject), "subject", f"{subject!r}: use 1 to 64 of A-Za-z0-9._-")
    require(bool(words) and words <= SCOPES, "scope", f"use some of {', '.join(sorted(SCOPES))}")
    require(0 <= expires <= MAX_TIME, "expires", "must be unix seconds")
    require(MIN_SERIAL <= len(serial) <= MAX_SERIAL, "serial", "must be 4 to 8 bytes")
    claims: dict[int, object] = {
        _SUB: subject,
        _EXP: expires,
        _CTI: serial,
        _CNF: _cnf(key),
        _SCOPE: " ".join(sorted(words)),
    }
    if not_before is not None:
        require(0 <= not_before < expires, "not_before", "must be before expires")
        claims[_NBF] = not_before
    return Credential.parse(CWT_TAG + sign1(issuer, cbor.dumps(claims), CREDENTIAL_AAD))


# --- revocation ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RevocationList:
    """The keys that are no longer to be believed. Its signature is not checked until
    :meth:`verify`.

    A list replaces every list of a lower number, so it names *all* keys that are revoked.
    A key may be left out once every credential of it has expired. There is room for 44;
    a fleet that needs more revokes the issuer instead, with all that it issued, and makes
    a new one.

    :param raw: a COSE_Sign1 by the root, at most 510 bytes.
    :param number: counts up from 1.
    :param issued: unix seconds.
    :param kids: the revoked keys, ascending.
    :param signer: kid of the key that signed it, by its header.
    """

    raw: bytes = field(repr=False)
    number: int
    issued: int
    kids: tuple[bytes, ...]
    signer: bytes
    _message: Sign1 = field(repr=False, compare=False)

    @classmethod
    def parse(cls, raw: bytes) -> RevocationList:
        """Check the form.

        :raises Refused: anything that is not exactly right.
        """
        message = open_sign1(raw, MAX_REVOCATION, "revocation")
        payload = cbor.loads(message.payload, "revocation")
        number, issued, kids = checks.array(payload, 3, 3, "revocation")
        return cls(
            raw=raw,
            number=checks.uint(number, MAX_NUMBER, "revocation.number", low=1),
            issued=checks.uint(issued, MAX_TIME, "revocation.issued"),
            kids=checks.ascending_kids(kids, MAX_REVOKED, "revocation.kids"),
            signer=message.kid,
            _message=message,
        )

    @classmethod
    def issue(
        cls, root: Identity, *, number: int, issued: int, kids: Iterable[bytes]
    ) -> RevocationList:
        """Make and sign a list.

        :raises UsageError: too many keys, or another argument is out of bounds.
        """
        ordered = sorted(set(kids))
        require(1 <= number <= MAX_NUMBER, "number", "must be 1..2^32-1")
        require(0 <= issued <= MAX_TIME, "issued", "must be unix seconds")
        require(all(len(kid) == 8 for kid in ordered), "kids", "a kid has 8 bytes")
        if len(ordered) > MAX_REVOKED:
            raise UsageError(
                f"{len(ordered)} keys, a list holds {MAX_REVOKED}",
                field="kids",
                hint="leave out the keys whose credentials have expired, or revoke the "
                "issuer of the others",
            )
        payload = cbor.dumps([number, issued, ordered])
        return cls.parse(sign1(root, payload, REVOCATION_AAD))

    def verify(self, root: PublicKey) -> None:
        """:raises Refused: CHAIN (signed by another key, by its header), SIGNATURE."""
        if self.signer != root.kid:
            raise Refused(Reason.CHAIN, "revocation.kid")
        self._message.verify(root, REVOCATION_AAD)


# --- enrolment -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A node's wish to join, signed by its own key; believing it is a person's decision.

    :param raw: the bytes as they travel: a CWT with the claims ``sub`` and ``cnf``.
    :param name: what the node would like to be called, see :func:`is_name`.
    :param key: its key; that the sender holds it is proven.
    """

    raw: bytes = field(repr=False)
    name: str
    key: PublicKey

    @classmethod
    def make(cls, identity: Identity, name: str) -> Enrolment:
        """:raises UsageError: the name is none."""
        require(is_name(name), "name", f"{name!r}: use 1 to 64 of A-Za-z0-9._-")
        claims = {_SUB: name, _CNF: _cnf(identity.public)}
        raw = CWT_TAG + sign1(identity, cbor.dumps(claims), ENROLMENT_AAD)
        return cls(raw, name, identity.public)

    @classmethod
    def open(cls, raw: bytes) -> Enrolment:
        """Check the form and the signature.

        :raises Refused: SIGNATURE, HEADER (its header names another key), or anything
            about its form.
        """
        message = _open_cwt(raw, "enrolment")
        claims = _load_claims(message.payload, "enrolment")
        key = _key(claims.get(_CNF), "enrolment.cnf")
        name = _name(claims.get(_SUB), "enrolment.sub")
        if message.kid != key.kid:
            raise Refused(Reason.HEADER, "enrolment.kid", "not the key that it is about")
        message.verify(key, ENROLMENT_AAD)
        return cls(raw, name, key)


# --- what they are worth ---------------------------------------------------------------


class TrustStore:
    """The credentials that lead to one root, and what they entitle to at a given time.

    A chain is root → credential, or root → issuer → node. Only the root makes gateways and
    issuers, and an issuer that is revoked or has expired takes what it issued with it.
    Nothing gets in whose signature does not verify.

    Memory is bounded. What the root issued to gateways and issuers stays; of the others
    ``max_entries`` are kept, and those that were resolved lately are the last to go, up to
    half of them: a stolen issuer that mints credentials displaces the ones nobody uses.

    ``now`` is unix seconds everywhere, or ``None`` for a machine whose clock is not set:
    then nothing is judged by its dates, everything else is. Not thread-safe.
    """

    MAX_PINNED = 256

    def __init__(self, root: PublicKey, *, max_entries: int = 4096) -> None:
        if max_entries < 2:
            raise UsageError(f"{max_entries} is too few", field="max_entries")
        self.root = root
        self._max = max_entries
        self._pinned: dict[bytes, Credential] = {}
        self._unused: OrderedDict[bytes, Credential] = OrderedDict()
        self._used: OrderedDict[bytes, Credential] = OrderedDict()
        self._revocation: RevocationList | None = None
        self._revoked: frozenset[bytes] = frozenset()

    # - taking in

    def add(self, raw: bytes, now: float | None) -> Credential:
        """Check a credential and keep it.

        Of two for one key the one that ends later stands, except that an issuer's never
        displaces the root's, and that one which is no longer valid displaces none.

        :returns: the credential that stands for that key now.
        :raises Refused: CHAIN (unknown issuer, vouches for itself, a gateway or issuer
            that the root did not make), SIGNATURE, REVOKED, EXPIRED, SCOPE (its issuer is none),
            FLOODED, or anything about its form.
        """
        new = Credential.parse(raw)
        held = self.credential(new.kid)
        if held is None or held.raw != raw:
            self._check_chain(new)
        self._check_standing(new, now)
        if held is None or self._displaces(new, held, now):
            self._keep(new, now)
            return new
        return held

    def apply(self, raw: bytes) -> bool:
        """Take in a revocation list; whether it was news.

        :raises Refused: CHAIN, SIGNATURE, REPLAYED (an older list), or its form.
        """
        new = RevocationList.parse(raw)
        new.verify(self.root)
        if new.number < self.revocation_number:
            raise Refused(Reason.REPLAYED, "revocation.number", f"have {self.revocation_number}")
        if new.number == self.revocation_number:
            return False
        self._revocation = new
        self._revoked = frozenset(new.kids)
        return True

    def restore(self, snapshot: Iterable[bytes], now: float | None = None) -> list[Refused]:
        """Take in what :meth:`snapshot` gave. Everything is verified anew.

        :returns: why entries were left out (expired since, mostly).
        """
        left_out = []
        for raw in snapshot:
            try:
                if raw.startswith(CWT_TAG):
                    self.add(raw, now)
                else:
                    self.apply(raw)
            except Refused as refused:
                left_out.append(refused)
        return left_out

    # - asking

    def resolve(self, kid: bytes, now: float | None, scope: str) -> PublicKey:
        """The key with this name, if it may act as ``scope`` now.

        :raises Refused: UNKNOWN_KEY, REVOKED, EXPIRED, SCOPE; the field is
            ``credential`` or, where its issuer is at fault, ``credential.issuer``.
        """
        if kid in self._revoked:
            raise Refused(Reason.REVOKED, "credential", kid.hex())
        held = self.credential(kid)
        if held is None:
            raise Refused(Reason.UNKNOWN_KEY, "kid", kid.hex())
        self._check_standing(held, now)
        if scope not in held.scope:
            raise Refused(Reason.SCOPE, "credential", f"{kid.hex()} is no {scope}")
        self._touch(held)
        return held.key

    def credential(self, kid: bytes) -> Credential | None:
        """What is held about a key, valid or not."""
        return self._pinned.get(kid) or self._used.get(kid) or self._unused.get(kid)

    def chain(self, kid: bytes) -> tuple[bytes, ...]:
        """The credentials to show a stranger, its issuer's first; empty if unknown."""
        held = self.credential(kid)
        if held is None:
            return ()
        if held.issuer == self.root.kid:
            return (held.raw,)
        issuer = self._pinned.get(held.issuer)
        return (issuer.raw, held.raw) if issuer else ()

    def valid(self, scope: str, now: float | None) -> tuple[Credential, ...]:
        """Every credential that may act as ``scope`` now."""
        found = []
        for held in (*self._pinned.values(), *self._unused.values(), *self._used.values()):
            try:
                self._check_standing(held, now)
            except Refused:
                continue
            if scope in held.scope:
                found.append(held)
        return tuple(found)

    @property
    def revocation(self) -> RevocationList | None:
        """The revocation list with the highest number so far."""
        return self._revocation

    @property
    def revocation_number(self) -> int:
        """Its number; 0 before the first."""
        return self._revocation.number if self._revocation else 0

    def snapshot(self) -> list[bytes]:
        """Everything, in an order in which :meth:`restore` can take it in again."""
        held = (*self._pinned.values(), *self._unused.values(), *self._used.values())
        lists = [self._revocation.raw] if self._revocation else []
        return lists + [credential.raw for credential in held]

    def __len__(self) -> int:
        return len(self._pinned) + len(self._unused) + len(self._used)

    # - how

    def _check_chain(self, new: Credential) -> None:
        """Whether the signature leads to the root; dates and revocation aside."""
        if new.kid in (new.issuer, self.root.kid):
            raise Refused(Reason.CHAIN, "credential.issuer", "a key that vouches for itself")
        if new.issuer == self.root.kid:
            new.verify(self.root)
            return
        issuer = self._pinned.get(new.issuer)
        if issuer is None:
            raise Refused(Reason.CHAIN, "credential.issuer", "does not lead to the root")
        new.verify(issuer.key)
        if not new.scope.isdisjoint({GATEWAY, ISSUER}):
            raise Refused(Reason.CHAIN, "credential.scope", "only the root makes gateways")

    def _check_standing(self, held: Credential, now: float | None) -> None:
        """Whether it and its issuer are neither revoked nor out of their time."""
        self._check_one(held, now, "credential")
        if held.issuer == self.root.kid:
            return
        issuer = self._pinned.get(held.issuer)
        if issuer is None:
            raise Refused(Reason.CHAIN, "credential.issuer", "no longer held")
        self._check_one(issuer, now, "credential.issuer")
        if ISSUER not in issuer.scope:
            raise Refused(Reason.SCOPE, "credential.issuer", "is not an issuer")

    def _check_one(self, held: Credential, now: float | None, field: str) -> None:
        if held.kid in self._revoked:
            raise Refused(Reason.REVOKED, field, held.kid.hex())
        held.check_time(now, field)

    def _displaces(self, new: Credential, held: Credential, now: float | None) -> bool:
        if new.key != held.key:
            raise Refused(Reason.CHAIN, "credential.cnf", "another key has this kid")
        try:
            self._check_standing(held, now)
        except Refused:
            return True
        by_root = new.issuer == self.root.kid, held.issuer == self.root.kid
        if by_root[0] != by_root[1]:
            return by_root[0]
        return new.expires > held.expires

    def _keep(self, new: Credential, now: float | None) -> None:
        pinned = new.issuer == self.root.kid and not new.scope.isdisjoint({GATEWAY, ISSUER})
        if pinned and new.kid not in self._pinned and len(self._pinned) >= self.MAX_PINNED:
            self._drop_lapsed(now)
        used = self._used.pop(new.kid, None)
        self._unused.pop(new.kid, None)
        self._pinned.pop(new.kid, None)
        if pinned:
            self._pinned[new.kid] = new
        elif used:
            self._used[new.kid] = new
        else:
            self._unused[new.kid] = new
        if len(self._unused) + len(self._used) > self._max:
            self._unused.popitem(last=False)  # used ones are at most half

    def _drop_lapsed(self, now: float | None) -> None:
        """Make room among the pinned. :raises Refused: FLOODED, all of them are valid."""
        for kid, held in list(self._pinned.items()):
            try:
                self._check_one(held, now, "credential")
            except Refused:
                del self._pinned[kid]
        if len(self._pinned) >= self.MAX_PINNED:
            raise Refused(Reason.FLOODED, "credential", f"more than {self.MAX_PINNED} gateways")

    def _touch(self, held: Credential) -> None:
        """Move it behind what was resolved less lately."""
        kid = held.kid
        if kid in self._used:
            self._used.move_to_end(kid)
        elif self._unused.pop(kid, None) is not None:
            self._used[kid] = held
            if len(self._used) > self._max // 2:
                demoted, credential = self._used.popitem(last=False)
                self._unused[demoted] = credential


# --- claims ----------------------------------------------------------------------------


def _open_cwt(raw: bytes, field: str) -> Sign1:
    if len(raw) > MAX_CREDENTIAL:
        raise Refused(Reason.OVERSIZED, field, f"{len(raw)} bytes, at most {MAX_CREDENTIAL}")
    if not raw.startswith(CWT_TAG):
        truncated = CWT_TAG.startswith(raw)
        raise Refused(Reason.TRUNCATED if truncated else Reason.HEADER, field, "not a CWT")
    return open_sign1(raw[len(CWT_TAG) :], MAX_CREDENTIAL, field)


def _load_claims(payload: bytes, field: str) -> dict[int, Any]:
    return checks.claims(cbor.loads(payload, field), field)


def _cnf(key: PublicKey) -> dict[int, object]:
    return {_COSE_KEY: {_KTY: _OKP, _CRV: _ED25519, _X: key.raw}}


def _key(value: object, field: str) -> PublicKey:
    cnf = checks.claims(value, field)
    key = checks.claims(cnf.get(_COSE_KEY), field)
    if len(cnf) != 1 or key.keys() != {_KTY, _CRV, _X}:
        raise Refused(Reason.TYPE, field, "not one COSE_Key")
    if checks.uint(key[_KTY], 255, field) != _OKP or checks.uint(key[_CRV], 255, field) != _ED25519:
        raise Refused(Reason.TYPE, field, "not an Ed25519 key")
    return PublicKey(checks.bstr(key[_X], 32, 32, field))


def _name(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise Refused(Reason.TYPE, field, "not text")
    if not is_name(value):
        raise Refused(Reason.BOUNDS, field, "not a name of 1 to 64 of A-Za-z0-9._-")
    return value


def _scope(value: object, field: str) -> frozenset[str]:
    if not isinstance(value, str):
        raise Refused(Reason.TYPE, field, "not text")
    if _SCOPE_TEXT.fullmatch(value) is None:
        raise Refused(Reason.BOUNDS, field, "not words with spaces between them")
    words = value.split(" ")
    if words != sorted(set(words)):
        raise Refused(Reason.NON_CANONICAL, field, "not in alphabetical order")
    return frozenset(words)
