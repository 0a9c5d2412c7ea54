"""The packet: one signed message of at most 512 bytes.

A COSE_Sign1 (RFC 9052) whose payload is an array that begins with what rarely changes::

    [ fingerprint, store, sequence, time, ttl, columns, ? extensions ]

:func:`pack` makes one, :func:`unpack` takes one from a stranger. A packet's id is SHA-256
of its Sig_structure: the unprotected header, which nobody signs, does not enter it. The
format's home is ``docs/wire-format.md``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import Protocol

from qis_edge.core import cbor, columns, rows
from qis_edge.core.cose import (
    ED25519,
    EDDSA,
    SIGN1_HEAD,
    SIGN1_OVERHEAD,
    SIGNATURE_HEAD,
    open_sign1,
    structure,
)
from qis_edge.core.errors import DoesNotFit, Reason, Refused, UsageError
from qis_edge.core.identity import SIGNATURE_SIZE, Identity, PublicKey
from qis_edge.core.outcome import Label, Outcome
from qis_edge.core.rows import MAX_POWER, MAX_TIME, Rows, Template

MAX_PACKET = 512
MAX_OUTCOMES = columns.MAX_ROWS
MAX_SEQUENCE = 2**32 - 1
MAX_TTL = 24 * 365 * 100
MAX_VECTOR = 16
MAX_TAGS = 8
MAX_TAG = 32
FINGERPRINT_SIZE = 32
STORE_SIZE = 4

AAD = b"qis/packet/1"

_VECTOR, _TAGS, _UNCERTAINTY, _FLOOR = 1, 2, 3, 4
_time_of = attrgetter("time")
#: The resolution at which a vector travels.
VECTOR_POWER = -3

#: What precedes the payload, with its head, in the Sig_structure, by the protected header.
_STRUCTURES = {protected: structure(protected, AAD, b"")[:-1] for protected in (ED25519, EDDSA)}
#: Where the payload's head begins, and how many bytes follow the payload.
_PAYLOAD, _TAIL = 17, len(SIGNATURE_HEAD) + SIGNATURE_SIZE
_UINT = rb"([\x00-\x17]|\x18[\x18-\xff]|\x19(?!\x00)..|\x1a(?!\x00\x00)....)"
#: A packet up to its columns, in its shortest form: the protected header, the kid, the size
#: of the payload, of how many elements, fingerprint, store, sequence, time, ttl.
_FRAME = re.compile(
    rb"\xd2\x84\x43(\xa1\x01\x32|\xa1\x01\x27)\xa1\x04\x48(.{8})"
    rb"(?:\x58([\x18-\xff])|\x59(?!\x00)(..))([\x86\x87])\x58\x20(.{32})\x44(.{4})" + _UINT * 3,
    re.DOTALL,
).match


@dataclass(frozen=True, slots=True)
class Extensions:
    """What few packets carry.

    :param vector: the situation's continuous fields, at most 16; travels in thousandths.
    :param tags: at most 8 words of at most 32 characters, e.g. ``estimate``.
    :param time_uncertainty: seconds by which the times may be off; ``None``: they are exact.
    :param floor: sequences below it that no gateway holds will never come.
    """

    vector: tuple[float, ...] | None = None
    tags: tuple[str, ...] = ()
    time_uncertainty: int | None = None
    floor: int | None = None


_NO_EXTENSIONS = Extensions()


@dataclass(frozen=True)
class Packet:
    """A packet whose framing, types and bounds were checked; see :func:`unpack` for more.

    :param raw: the bytes as they travel, at most 512.
    :param id: SHA-256 of the Sig_structure, 32 bytes.
    :param kid: 8 bytes; whose it *says* it is.
    :param fingerprint: its address, 32 bytes.
    :param store: the outbox it comes from, 4 bytes.
    :param sequence: its number in that store, 0..2^32-1.
    :param time: start of the first outcome, unix seconds.
    :param ttl: hours that each outcome is worth routing.
    """

    raw: bytes
    id: bytes
    kid: bytes
    fingerprint: bytes
    store: bytes
    sequence: int
    time: int
    ttl: int
    extensions: Extensions
    _columns: bytes = field(repr=False, compare=False)  # as they travel

    @cached_property
    def rows(self) -> Rows:
        """The columns, expanded. :raises Refused: they are malformed."""
        form = cbor.loads(self._columns, "payload", max_depth=cbor.MAX_DEPTH - 1)
        return rows.decode(form, self.time)

    @cached_property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The outcomes, results by label as on the wire. :raises Refused: malformed."""
        return tuple(self.rows.outcomes())

    def named(self, template: Naming) -> tuple[Outcome, ...]:
        """The outcomes with the result names of a template; unknown labels stay."""
        name = {label: template.name_of(label) for label in self.rows.series}
        return tuple(
            replace(o, results={name[label]: value for label, value in o.results.items()})
            for o in self.outcomes
        )

    @property
    def count(self) -> int:
        """How many outcomes."""
        return len(self.rows.times)

    @property
    def last_time(self) -> int:
        """Start of the last outcome, unix seconds."""
        return self.rows.times[-1]

    @property
    def expires(self) -> int:
        """Unix seconds after which not even the last outcome is worth routing."""
        return self.last_time + self.ttl * 3600


class Naming(Template, Protocol):
    """A template that can also be read backwards; :class:`qis_edge.core.domain.Domain` is one."""

    def name_of(self, label: Label) -> Label:
        """The name of a label on the wire; a label that it does not know stays as it is."""
        ...


# --- packing ---------------------------------------------------------------------------


def pack(
    outcomes: Sequence[Outcome],
    *,
    identity: Identity,
    fingerprint: bytes,
    store: bytes,
    sequence: int,
    ttl: int = 24 * 7,
    domain: Template | None = None,
    extensions: Extensions | None = None,
    limit: int = MAX_PACKET,
) -> Packet:
    """Pack and sign outcomes of one situation.

    :param outcomes: at least one; sorted by time here.
    :param fingerprint: 32 bytes.
    :param store: 4 bytes.
    :param ttl: hours.
    :param domain: gives results their codes and their resolution.
    :param limit: bytes that the packet may have.
    :raises DoesNotFit: a value does not fit its resolution, or the packet its limit.
    :raises UsageError: another argument is wrong; the error names it.
    """
    ordered = sorted(outcomes, key=_time_of) if len(outcomes) > 1 else outcomes
    more = extensions or _NO_EXTENSIONS
    head, body, tail = _parts(ordered, fingerprint, store, sequence, ttl, domain, more)
    raw, packet_id = _signed(identity, head + body + tail)
    if len(raw) > limit:
        raise DoesNotFit(
            f"{len(outcomes)} outcomes make {len(raw)} bytes, at most {limit}",
            field="outcomes",
            hint="how_many() tells how many fit",
        )
    if len(ordered) > 1 or tail:
        return unpack(raw)  # as a reader will: what cannot be read must not be sent
    time, kid = ordered[0].time, identity.public.kid
    return Packet(raw, packet_id, kid, fingerprint, store, sequence, time, ttl, more, body)


def _signed(identity: Identity, payload: bytes) -> tuple[bytes, bytes]:
    """The message, as :func:`qis_edge.core.cose.sign1` makes it, and its id: what is signed
    and what travels have most bytes in common."""
    framed = cbor.head(0x40, len(payload)) + payload
    signed = _STRUCTURES[ED25519] + framed
    signature = identity.sign(signed)
    raw = b"".join((SIGN1_HEAD, identity.public.kid, framed, SIGNATURE_HEAD, signature))
    return raw, hashlib.sha256(signed).digest()


def how_many(
    outcomes: Sequence[Outcome],
    *,
    fingerprint: bytes,
    store: bytes,
    sequence: int,
    ttl: int = 24 * 7,
    domain: Template | None = None,
    extensions: Extensions | None = None,
    limit: int = MAX_PACKET,
) -> int:
    """How many of the leading outcomes fit a packet of ``limit`` bytes (0: not even one).

    :raises DoesNotFit: a value among those tried does not fit its resolution.
    """
    more = extensions or _NO_EXTENSIONS

    def fits(count: int) -> bool:
        ordered = sorted(outcomes[:count], key=_time_of)
        parts = _parts(ordered, fingerprint, store, sequence, ttl, domain, more)
        size = sum(map(len, parts))
        return size + SIGN1_OVERHEAD - (size < 24) + (size > 255) <= limit

    # Gallop, then bisect: most calls are for one outcome or for a few dozen.
    most = min(len(outcomes), MAX_OUTCOMES)
    known, tried = 0, 1
    while tried <= most and fits(tried):
        known, tried = tried, tried * 2
    low, high = known, min(tried, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _parts(
    ordered: Sequence[Outcome],
    fingerprint: bytes,
    store: bytes,
    sequence: int,
    ttl: int,
    domain: Template | None,
    extensions: Extensions,
) -> tuple[bytes, bytes, bytes]:
    """The payload: what precedes the columns, the columns, the extensions if any."""
    if len(fingerprint) != FINGERPRINT_SIZE:
        raise UsageError("must be 32 bytes", field="fingerprint")
    if len(store) != STORE_SIZE:
        raise UsageError("must be 4 bytes", field="store")
    if not 0 <= sequence <= MAX_SEQUENCE:
        raise UsageError("must be 0..2^32-1", field="sequence")
    if not 0 <= ttl <= MAX_TTL:
        raise UsageError(f"must be 0..{MAX_TTL} hours", field="ttl")
    if not ordered:
        raise UsageError("there are none", field="outcomes")
    form = b"" if extensions is _NO_EXTENSIONS else _encode_extensions(extensions)
    head = b"".join(
        (
            b"\x87\x58\x20" if form else b"\x86\x58\x20",
            fingerprint,
            b"\x44",
            store,
            cbor.dumps(sequence),
            cbor.dumps(ordered[0].time),
            cbor.dumps(ttl),
        )
    )
    return head, rows.encode(ordered, domain), form


def _encode_extensions(extensions: Extensions) -> bytes:
    form: dict[int, object] = {}
    if extensions.vector is not None:
        _require(
            0 < len(extensions.vector) <= MAX_VECTOR,
            "vector",
            f"1..{MAX_VECTOR} values",
        )
        scale = 10**-VECTOR_POWER
        try:
            form[_VECTOR] = [
                VECTOR_POWER,
                [round(value * scale) for value in extensions.vector],
            ]
        except (ValueError, OverflowError):
            raise DoesNotFit("a value is not finite", field="vector") from None
    if extensions.tags:
        _require(len(extensions.tags) <= MAX_TAGS, "tags", f"at most {MAX_TAGS}")
        for tag in extensions.tags:
            _require(0 < len(tag) <= MAX_TAG, "tags", f"1..{MAX_TAG} characters each")
        form[_TAGS] = list(extensions.tags)
    if extensions.time_uncertainty is not None:
        _require(
            0 <= extensions.time_uncertainty <= MAX_TIME,
            "time_uncertainty",
            "out of bounds",
        )
        form[_UNCERTAINTY] = extensions.time_uncertainty
    if extensions.floor is not None:
        _require(0 <= extensions.floor <= MAX_SEQUENCE, "floor", "must be 0..2^32-1")
        form[_FLOOR] = extensions.floor
    return cbor.dumps(form) if form else b""


def _require(condition: bool, name: str, message: str) -> None:
    if not condition:
        raise UsageError(message, field=name)


# --- unpacking -------------------------------------------------------------------------


def unpack(
    raw: bytes,
    key: PublicKey | Callable[[bytes], PublicKey] | None = None,
    *,
    lazy: bool = False,
) -> Packet:
    """Check a packet and, given a key, its signature.

    :param key: the signer's, or what finds it by kid (raising ``Refused``); ``None``
        leaves the signature unchecked.
    :param lazy: leave the columns for when they are asked for; they then may raise.
    :raises Refused: anything about it that is not exactly right; nothing was kept.
    """
    structure, packet = _framed(raw) or _taken_apart(raw)
    if not lazy:
        packet.rows  # noqa: B018 - expands and thereby checks the columns
    if key is not None:
        found = key if isinstance(key, PublicKey) else key(packet.kid)
        found.verify(structure, raw[-SIGNATURE_SIZE:])
    return packet


def signed(raw: bytes) -> bytes:
    """The signature and what it is of, for :func:`qis_edge.core.identity.is_signed`; of a
    packet that was unpacked."""
    return raw[-SIGNATURE_SIZE:] + _STRUCTURES[raw[3:6]] + raw[_PAYLOAD:-_TAIL]


def _framed(raw: bytes) -> tuple[bytes, Packet] | None:
    """The Sig_structure, and the packet with its columns as they are. ``None`` where it does
    not look as nearly all do: then :func:`_taken_apart` finds what is wrong, if anything is.

    :raises Refused: what is wrong behind the columns.
    """
    match = _FRAME(raw)
    if match is None or len(raw) > MAX_PACKET:
        return None
    protected, kid, short, long, elements, fingerprint, store, *numbers = match.groups()
    signed = len(raw) - _TAIL
    if (
        int.from_bytes(short or long) != signed - match.start(5)
        or raw[signed : signed + 2] != SIGNATURE_HEAD
    ):
        return None
    sequence, time, ttl = [
        number[0] if len(number) == 1 else int.from_bytes(number[1:]) for number in numbers
    ]
    if time > MAX_TIME or ttl > MAX_TTL:
        return None
    rest = raw[match.end() : signed]
    extensions = _NO_EXTENSIONS
    if elements == b"\x87":
        end = cbor.item_end(rest, 0, "payload", max_depth=cbor.MAX_DEPTH - 1)
        form = cbor.loads(rest[end:], "payload", max_depth=cbor.MAX_DEPTH - 1)
        extensions, rest = _decode_extensions(form), rest[:end]
    structure = _STRUCTURES[protected] + raw[_PAYLOAD:signed]
    packet_id = hashlib.sha256(structure).digest()
    return structure, Packet(
        raw, packet_id, kid, fingerprint, store, sequence, time, ttl, extensions, rest
    )


def _taken_apart(raw: bytes) -> tuple[bytes, Packet]:
    """As :func:`_framed`, step by step. :raises Refused: with what is wrong first."""
    message = open_sign1(raw, MAX_PACKET, "packet")
    payload = cbor.loads(message.payload, "payload")
    if not isinstance(payload, list):
        raise Refused(Reason.TYPE, "payload", "not an array")
    if len(payload) not in (6, 7):
        raise Refused(Reason.BOUNDS, "payload", f"{len(payload)} elements")
    return message.structure(AAD), Packet(
        raw=raw,
        id=message.id(AAD),
        kid=message.kid,
        fingerprint=_exact_bytes(payload[0], FINGERPRINT_SIZE, "fingerprint"),
        store=_exact_bytes(payload[1], STORE_SIZE, "store"),
        sequence=_uint(payload[2], MAX_SEQUENCE, "sequence"),
        time=_uint(payload[3], MAX_TIME, "time"),
        ttl=_uint(payload[4], MAX_TTL, "ttl"),
        extensions=_decode_extensions(payload[6]) if len(payload) == 7 else _NO_EXTENSIONS,
        _columns=cbor.dumps(payload[5]),
    )


def _exact_bytes(value: object, size: int, name: str) -> bytes:
    if not isinstance(value, bytes):
        raise Refused(Reason.TYPE, name)
    if len(value) != size:
        raise Refused(Reason.BOUNDS, name, f"{len(value)} bytes instead of {size}")
    return value


def _uint(value: object, high: int, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refused(Reason.TYPE, name)
    if not 0 <= value <= high:
        raise Refused(Reason.INTEGER, name, f"outside 0..{high}")
    return value


def _decode_extensions(form: object) -> Extensions:
    """Unknown keys are passed over, so that later versions may add some."""
    if not isinstance(form, dict):
        raise Refused(Reason.TYPE, "extensions")
    if any(not isinstance(key, int) or isinstance(key, bool) for key in form):
        raise Refused(Reason.TYPE, "extensions", "a key")
    if not form:
        raise Refused(Reason.NON_CANONICAL, "extensions", "empty")
    uncertainty, floor = form.get(_UNCERTAINTY), form.get(_FLOOR)
    return Extensions(
        vector=_decode_vector(form[_VECTOR]) if _VECTOR in form else None,
        tags=_decode_tags(form[_TAGS]) if _TAGS in form else (),
        time_uncertainty=(
            _uint(uncertainty, MAX_TIME, "time_uncertainty") if _UNCERTAINTY in form else None
        ),
        floor=_uint(floor, MAX_SEQUENCE, "floor") if _FLOOR in form else None,
    )


def _decode_vector(form: object) -> tuple[float, ...]:
    if not (isinstance(form, list) and len(form) == 2 and isinstance(form[1], list)):
        raise Refused(Reason.TYPE, "vector")
    power, values = form
    if not isinstance(power, int) or isinstance(power, bool) or abs(power) > MAX_POWER:
        raise Refused(Reason.BOUNDS, "vector.power")
    if not 0 < len(values) <= MAX_VECTOR:
        raise Refused(Reason.BOUNDS, "vector", f"{len(values)} values")
    high = columns.MAX_NUMBER
    numbers = []
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Refused(Reason.TYPE, "vector")
        if abs(value) > high:
            raise Refused(Reason.INTEGER, "vector")
        numbers.append(columns.from_scaled(value, power))
    return tuple(numbers)


def _decode_tags(form: object) -> tuple[str, ...]:
    if not isinstance(form, list) or not all(isinstance(tag, str) for tag in form):
        raise Refused(Reason.TYPE, "tags")
    if not 0 < len(form) <= MAX_TAGS or not all(0 < len(tag) <= MAX_TAG for tag in form):
        raise Refused(Reason.BOUNDS, "tags")
    return tuple(form)
