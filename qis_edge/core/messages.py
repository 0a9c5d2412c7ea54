"""Every message that travels: one way in, and a way out for each kind.

A frame is exactly one message of at most 512 bytes, the same on every link; its first
bytes tell which. :func:`decode` checks its form, never who sent it: what it gives is
believed only after the ``verify`` of its kind (packets: :func:`qis_edge.core.packet.unpack`;
credentials and revocation lists: :class:`qis_edge.core.credential.TrustStore`; receipts:
:func:`qis_edge.core.receipt.verify`). *Hello* and *wanted* are authenticated by nobody:
answer them at a limited rate. The formats' home is ``docs/wire-format.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from qis_edge.core import cbor, checks, receipt
from qis_edge.core.checks import require
from qis_edge.core.cose import Mac0, mac0, open_mac0
from qis_edge.core.credential import CWT_TAG, MAX_NUMBER, MAX_TIME, Enrolment, RevocationList
from qis_edge.core.errors import DoesNotFit, Reason, Refused, UsageError
from qis_edge.core.receipt import ReceiptMessage

MAX_MESSAGE = 512
NONCE_SIZE = 8
EPOCH_SIZE = receipt.EPOCH_SIZE
FINGERPRINT_SIZE = 32
MAX_BITS = 8 * FINGERPRINT_SIZE
MAX_CURSOR = 64
#: Credentials asked for by one message.
MAX_WANTED = 32
#: Fingerprints in one request. As many as this fit 512 bytes beside the longest cursor;
#: without one, two more.
MAX_INTERESTS = 10
_MOST_INTERESTS = 16
MAX_LIMIT = 65535

HELLO_AAD = b"qis/hello/1"
REQUEST_AAD = b"qis/request/1"
POSITION_AAD = b"qis/position/1"

_HELLO, _WANTED, _REVOCATION, _ENROLMENT = 1, 2, 3, 4
_GREETING, _REQUEST, _POSITION = 1, 2, 3

_SIGN1 = b"\xd2\x84"
_MAC0 = b"\xd1\x84"
#: Two-element arrays [3, …] and [4, …]: what is in them is framed, and stays as it came.
_REVOCATION_HEAD = bytes((0x82, _REVOCATION))
_ENROLMENT_HEAD = bytes((0x82, _ENROLMENT))
_SHORT_ARRAYS = range(0x80, 0x98)


@dataclass(frozen=True, slots=True)
class PacketMessage:
    """A packet, not looked into. :param raw: at most 512 bytes."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class CredentialMessage:
    """A credential, not looked into. :param raw: at most 512 bytes."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Hello:
    """A node asks who is there and what time it is.

    :param kid: the node's, 8 bytes.
    :param nonce: 8 fresh random bytes, which the greeting answers.
    :param revocation: number of the revocation list that it has, 0 for none.
    """

    kid: bytes
    nonce: bytes
    revocation: int = 0

    def encode(self) -> bytes:
        """:raises UsageError: a field is out of bounds."""
        require(len(self.kid) == 8, "kid", "a kid has 8 bytes")
        require(len(self.nonce) == NONCE_SIZE, "nonce", "must be 8 bytes")
        require(0 <= self.revocation <= MAX_NUMBER, "revocation", "out of bounds")
        return cbor.dumps([_HELLO, self.kid, self.nonce, self.revocation])


@dataclass(frozen=True, slots=True)
class Wanted:
    """Please send the credentials of these keys.

    :param kids: 1 to 32 of 8 bytes each, ascending.
    """

    kids: tuple[bytes, ...]

    @classmethod
    def of(cls, kids: Iterable[bytes]) -> list[Wanted]:
        """As many messages as it takes."""
        ordered = sorted(set(kids))
        return [
            cls(tuple(ordered[at : at + MAX_WANTED])) for at in range(0, len(ordered), MAX_WANTED)
        ]

    def encode(self) -> bytes:
        """:raises UsageError: none or too many kids, not ascending, or not 8 bytes each."""
        require(1 <= len(self.kids) <= MAX_WANTED, "kids", f"must be 1 to {MAX_WANTED}")
        require(list(self.kids) == sorted(set(self.kids)), "kids", "must be ascending")
        require(all(len(kid) == 8 for kid in self.kids), "kids", "a kid has 8 bytes")
        return cbor.dumps([_WANTED, self.kids])


@dataclass(frozen=True, slots=True)
class RevocationMessage:
    """A revocation list; ``TrustStore.apply(message.list.raw)`` believes it or not."""

    list: RevocationList

    def encode(self) -> bytes:
        """At most 512 bytes, for a list holds no more keys than fit."""
        return _REVOCATION_HEAD + self.list.raw


@dataclass(frozen=True, slots=True)
class EnrolmentMessage:
    """A node wants to join. The signature was checked: its sender holds the key."""

    enrolment: Enrolment

    def encode(self) -> bytes:
        """At most 512 bytes."""
        return _ENROLMENT_HEAD + self.enrolment.raw


@dataclass(frozen=True, slots=True)
class Greeting:
    """A gateway's answer to a hello: fresh by the node's nonce.

    :param kid: the gateway's, 8 bytes.
    :param time: unix seconds by its clock.
    :param epoch: 4 bytes, drawn when its spool was born.
    :param since: a node that knew another epoch sends again what this gateway alone held
        of outcomes at or after this unix second.
    :param revocation: number of the revocation list that it has, 0 for none.
    """

    kid: bytes
    time: int
    epoch: bytes
    since: int
    revocation: int
    _mac: Mac0 | None = field(default=None, repr=False, compare=False)

    def encode(self, key: bytes, nonce: bytes) -> bytes:
        """:param key: of the way gateway → node.
        :param nonce: of the hello.
        :raises UsageError: a field is out of bounds.
        """
        require(0 <= self.time <= MAX_TIME, "time", "must be unix seconds")
        require(len(self.epoch) == EPOCH_SIZE, "epoch", "must be 4 bytes")
        require(0 <= self.since <= MAX_TIME, "since", "must be unix seconds")
        require(0 <= self.revocation <= MAX_NUMBER, "revocation", "out of bounds")
        payload = [_GREETING, self.time, self.epoch, self.since, self.revocation]
        return _seal(payload, key, _hello_aad(nonce), self.kid)

    def verify(self, key: bytes, nonce: bytes) -> None:
        """Whether the gateway that shares ``key`` said it, in answer to ``nonce``.

        :raises Refused: MAC.
        """
        _check_mac(self._mac, key, _hello_aad(nonce), "greeting.tag")


@dataclass(frozen=True, slots=True)
class Request:
    """A node says which fingerprints it wants to hear of, from where on.

    :param kid: the node's, 8 bytes.
    :param gateway: whom it asks, 8 bytes.
    :param interests: at least one (fingerprint of 32 bytes, 0..256 leading bits that
        count), at most ``MAX_INTERESTS`` for it to fit.
    :param cursor: the last position that this gateway told, at most 64 bytes, or
        ``None``: from the beginning.
    :param limit: how many packets it wants at most, 1..65535.
    """

    kid: bytes
    gateway: bytes
    interests: tuple[tuple[bytes, int], ...]
    cursor: bytes | None
    limit: int
    _mac: Mac0 | None = field(default=None, repr=False, compare=False)

    def encode(self, key: bytes) -> bytes:
        """:param key: of the way node → gateway.
        :raises DoesNotFit: too many interests for 512 bytes.
        :raises UsageError: a field is out of bounds.
        """
        require(len(self.gateway) == 8, "gateway", "a kid has 8 bytes")
        require(1 <= len(self.interests) <= _MOST_INTERESTS, "interests", f"1..{_MOST_INTERESTS}")
        require(len(set(self.interests)) == len(self.interests), "interests", "one twice")
        for fingerprint, bits in self.interests:
            require(len(fingerprint) == FINGERPRINT_SIZE, "interests", "a fingerprint: 32 bytes")
            require(0 <= bits <= MAX_BITS, "interests", f"bits must be 0..{MAX_BITS}")
        require(1 <= self.limit <= MAX_LIMIT, "limit", f"must be 1..{MAX_LIMIT}")
        if self.cursor is not None:
            require(len(self.cursor) <= MAX_CURSOR, "cursor", f"at most {MAX_CURSOR} bytes")
        payload = [_REQUEST, self.gateway, self.interests, self.cursor, self.limit]
        raw = _seal(payload, key, REQUEST_AAD, self.kid)
        if len(raw) > MAX_MESSAGE:
            raise DoesNotFit(
                f"{len(self.interests)} make {len(raw)} bytes, at most {MAX_MESSAGE}",
                field="interests",
                hint=f"{MAX_INTERESTS} always fit",
            )
        return raw

    def verify(self, key: bytes) -> None:
        """Whether the node that shares ``key`` said it. An old one said again verifies too.

        :raises Refused: MAC.
        """
        _check_mac(self._mac, key, REQUEST_AAD, "request.tag")


@dataclass(frozen=True, slots=True)
class Position:
    """A gateway says up to where a node's request was answered.

    :param kid: the gateway's, 8 bytes.
    :param cursor: opaque to the node, at most 64 bytes.
    :param complete: nothing more was there when it was said.
    """

    kid: bytes
    cursor: bytes
    complete: bool
    _mac: Mac0 | None = field(default=None, repr=False, compare=False)

    def encode(self, key: bytes) -> bytes:
        """:param key: of the way gateway → node.
        :raises UsageError: a field is out of bounds.
        """
        require(len(self.cursor) <= MAX_CURSOR, "cursor", f"at most {MAX_CURSOR} bytes")
        payload = [_POSITION, self.cursor, self.complete]
        return _seal(payload, key, POSITION_AAD, self.kid)

    def verify(self, key: bytes) -> None:
        """Whether the gateway that shares ``key`` said it. An old one said again verifies
        too: it makes a node ask for what it has, no more.

        :raises Refused: MAC.
        """
        _check_mac(self._mac, key, POSITION_AAD, "position.tag")


Message = (
    PacketMessage
    | CredentialMessage
    | Hello
    | Wanted
    | RevocationMessage
    | EnrolmentMessage
    | ReceiptMessage
    | Greeting
    | Request
    | Position
)


def decode(raw: bytes) -> Message:
    """The message that these bytes are.

    :raises Refused: OVERSIZED, MESSAGE (nothing of ours begins like this), or what is
        wrong with a message of the kind that it begins like; the field says where.
    """
    if len(raw) > MAX_MESSAGE:
        raise Refused(Reason.OVERSIZED, "message", f"{len(raw)} bytes, at most {MAX_MESSAGE}")
    if len(raw) < 2:
        raise Refused(Reason.TRUNCATED, "message")
    if raw.startswith(_SIGN1):
        return PacketMessage(raw)
    if raw.startswith(_MAC0):
        return _from_mac0(open_mac0(raw, MAX_MESSAGE, "message"))
    if raw.startswith(CWT_TAG):
        return CredentialMessage(raw)
    if raw.startswith(_REVOCATION_HEAD):
        return RevocationMessage(RevocationList.parse(raw[len(_REVOCATION_HEAD) :]))
    if raw.startswith(_ENROLMENT_HEAD):
        return EnrolmentMessage(Enrolment.open(raw[len(_ENROLMENT_HEAD) :]))
    if raw[0] in _SHORT_ARRAYS:
        return _control(raw)
    raise Refused(Reason.MESSAGE, "message", f"begins with {raw[:2].hex()}")


def _control(raw: bytes) -> Hello | Wanted:
    if raw[1] == _HELLO:
        form = checks.array(cbor.loads(raw, "hello"), 4, 4, "hello")
        return Hello(
            checks.kid(form[1], "hello.kid"),
            checks.bstr(form[2], NONCE_SIZE, NONCE_SIZE, "hello.nonce"),
            checks.uint(form[3], MAX_NUMBER, "hello.revocation"),
        )
    if raw[1] == _WANTED:
        form = checks.array(cbor.loads(raw, "wanted"), 2, 2, "wanted")
        return Wanted(checks.ascending_kids(form[1], MAX_WANTED, "wanted.kids", low=1))
    raise Refused(Reason.MESSAGE, "message", f"begins with {raw[:2].hex()}")


def _from_mac0(mac: Mac0) -> ReceiptMessage | Greeting | Request | Position:
    if mac.kid is None:
        return receipt.from_mac0(mac)
    form = checks.array(cbor.loads(mac.payload, "message"), 1, 8, "message")
    match form[0]:
        case bool():  # true equals 1 in Python, and is no type of message
            pass
        case 1:
            return _greeting(form, mac.kid, mac)
        case 2:
            return _request(form, mac.kid, mac)
        case 3:
            return _position(form, mac.kid, mac)
    raise Refused(Reason.MESSAGE, "message.type")


def _greeting(form: list[object], kid: bytes, mac: Mac0) -> Greeting:
    _, time, epoch, since, revocation = checks.array(form, 5, 5, "greeting")
    return Greeting(
        kid,
        checks.uint(time, MAX_TIME, "greeting.time"),
        checks.bstr(epoch, EPOCH_SIZE, EPOCH_SIZE, "greeting.epoch"),
        checks.uint(since, MAX_TIME, "greeting.since"),
        checks.uint(revocation, MAX_NUMBER, "greeting.revocation"),
        mac,
    )


def _request(form: list[object], kid: bytes, mac: Mac0) -> Request:
    _, gateway, interests, cursor, limit = checks.array(form, 5, 5, "request")
    wanted = tuple(
        _interest(pair) for pair in checks.array(interests, 1, _MOST_INTERESTS, "request.interests")
    )
    if len(set(wanted)) != len(wanted):
        raise Refused(Reason.DUPLICATE_KEY, "request.interests")
    return Request(
        kid,
        checks.kid(gateway, "request.gateway"),
        wanted,
        None if cursor is None else checks.bstr(cursor, 0, MAX_CURSOR, "request.cursor"),
        checks.uint(limit, MAX_LIMIT, "request.limit", low=1),
        mac,
    )


def _interest(pair: object) -> tuple[bytes, int]:
    fingerprint, bits = checks.array(pair, 2, 2, "request.interests")
    return (
        checks.bstr(fingerprint, FINGERPRINT_SIZE, FINGERPRINT_SIZE, "request.fingerprint"),
        checks.uint(bits, MAX_BITS, "request.bits"),
    )


def _position(form: list[object], kid: bytes, mac: Mac0) -> Position:
    _, cursor, complete = checks.array(form, 3, 3, "position")
    return Position(
        kid,
        checks.bstr(cursor, 0, MAX_CURSOR, "position.cursor"),
        checks.boolean(complete, "position.complete"),
        mac,
    )


def _hello_aad(nonce: bytes) -> bytes:
    require(len(nonce) == NONCE_SIZE, "nonce", "must be 8 bytes")
    return HELLO_AAD + nonce


def _seal(payload: Sequence[object], key: bytes, aad: bytes, kid: bytes) -> bytes:
    require(len(kid) == 8, "kid", "a kid has 8 bytes")
    return mac0(key, cbor.dumps(payload), aad, kid)


def _check_mac(mac: Mac0 | None, key: bytes, aad: bytes, name: str) -> None:
    if mac is None:
        raise UsageError("it was made here, not received", field=name)
    mac.verify(key, aad, name)
