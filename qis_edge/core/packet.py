"""The packet: one signed message of at most 512 bytes.

A COSE_Sign1 (RFC 9052) whose payload is an array that begins with what rarely changes::

    [ fingerprint, store, sequence, time, ttl, columns, ? extensions ]

:func:`pack` makes one, :func:`unpack` takes one from a stranger. A packet's id is SHA-256
of its Sig_structure: the unprotected header, which nobody signs, does not enter it. The
format's home is ``docs/wire-format.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from qis_edge.core import cbor, columns, rows
from qis_edge.core.cose import SIGN1_OVERHEAD, open_sign1, sign1
from qis_edge.core.errors import DoesNotFit, Reason, Refused, UsageError
from qis_edge.core.identity import Identity, PublicKey
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
#: The resolution at which a vector travels.
VECTOR_POWER = -3


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
    _columns: object = field(repr=False, compare=False)

    @cached_property
    def rows(self) -> Rows:
        """The columns, expanded. :raises Refused: they are malformed."""
        return rows.decode(self._columns, self.time)

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
    payload = _payload(
        outcomes, fingerprint, store, sequence, ttl, domain, extensions or Extensions()
    )
    raw = sign1(identity, payload, AAD)
    if len(raw) > limit:
        raise DoesNotFit(
            f"{len(outcomes)} outcomes make {len(raw)} bytes, at most {limit}",
            field="outcomes",
            hint="how_many() tells how many fit",
        )
    return unpack(raw)


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

    def fits(count: int) -> bool:
        payload = _payload(
            outcomes[:count],
            fingerprint,
            store,
            sequence,
            ttl,
            domain,
            extensions or Extensions(),
        )
        size = len(payload)
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


def _payload(
    outcomes: Sequence[Outcome],
    fingerprint: bytes,
    store: bytes,
    sequence: int,
    ttl: int,
    domain: Template | None,
    extensions: Extensions,
) -> bytes:
    _require(len(fingerprint) == FINGERPRINT_SIZE, "fingerprint", "must be 32 bytes")
    _require(len(store) == STORE_SIZE, "store", "must be 4 bytes")
    _require(0 <= sequence <= MAX_SEQUENCE, "sequence", "must be 0..2^32-1")
    _require(0 <= ttl <= MAX_TTL, "ttl", f"must be 0..{MAX_TTL} hours")
    _require(len(outcomes) > 0, "outcomes", "there are none")
    ordered = sorted(outcomes, key=lambda outcome: outcome.time)
    payload = [
        fingerprint,
        store,
        sequence,
        ordered[0].time,
        ttl,
        rows.encode(ordered, domain),
    ]
    if more := _encode_extensions(extensions):
        payload.append(more)
    return cbor.dumps(payload)


def _encode_extensions(extensions: Extensions) -> dict[int, object]:
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
    return form


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
    message = open_sign1(raw, MAX_PACKET, "packet")
    payload = cbor.loads(message.payload, "payload")
    packet = _from_payload(raw, message.id(AAD), message.kid, payload)
    if not lazy:
        packet.rows  # noqa: B018 - expands and thereby checks the columns
    if key is not None:
        message.verify(key if isinstance(key, PublicKey) else key(message.kid), AAD)
    return packet


def _from_payload(raw: bytes, packet_id: bytes, kid: bytes, payload: object) -> Packet:
    if not isinstance(payload, list):
        raise Refused(Reason.TYPE, "payload", "not an array")
    if len(payload) not in (6, 7):
        raise Refused(Reason.BOUNDS, "payload", f"{len(payload)} elements")
    return Packet(
        raw=raw,
        id=packet_id,
        kid=kid,
        fingerprint=_exact_bytes(payload[0], FINGERPRINT_SIZE, "fingerprint"),
        store=_exact_bytes(payload[1], STORE_SIZE, "store"),
        sequence=_uint(payload[2], MAX_SEQUENCE, "sequence"),
        time=_uint(payload[3], MAX_TIME, "time"),
        ttl=_uint(payload[4], MAX_TTL, "ttl"),
        extensions=_decode_extensions(payload[6]) if len(payload) == 7 else Extensions(),
        _columns=payload[5],
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
