"""Addresses of situations: 32 bytes from categorical fields, in one of two schemes.

``sha256``
    SHA-256 of the canonical JSON of the fields (:func:`canonical_json`). Two situations
    that differ in anything have unrelated addresses.

``prefix``
    Situations that agree in their most important fields share leading bits::

        | 64 bits: domain | 128 bits: one segment per field | 64 bits: whole |

    *Domain* is the first 8 bytes of SHA-256 of ``name/revision``. The *segments* stand in
    the order of importance; each has ``floor(128 * weight / sum of weights)`` bits and
    holds the code of the field's value. The *whole* follows the last segment and fills the
    32 bytes: the leading bits of SHA-256 of ``name/revision``, a newline and the canonical
    JSON of the fields.

    The code of a value is the first *width* bits of SHA-256 of ``field=value``; where a
    value earlier in the template's list has that code already, one is added (modulo
    2^width) until it is free. Codes of one field are therefore distinct, which makes XOR
    distance order situations by the leading fields that they share, and a value that is
    appended to a list moves no existing address.

Anyone who has the template can list every address: a fingerprint hides nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

SIZE = 32
BITS = 8 * SIZE
DOMAIN_BITS = 64
FIELD_BITS = 128


def canonical_json(fields: Mapping[str, str]) -> bytes:
    """The fields as compact JSON with sorted keys, in ASCII."""
    return json.dumps(dict(fields), sort_keys=True, separators=(",", ":")).encode()


def plain(fields: Mapping[str, str]) -> bytes:
    """The address in the ``sha256`` scheme, 32 bytes."""
    return hashlib.sha256(canonical_json(fields)).digest()


def distance(a: bytes, b: bytes) -> int:
    """XOR distance of two addresses."""
    return int.from_bytes(a) ^ int.from_bytes(b)


def common_bits(a: bytes, b: bytes) -> int:
    """How many leading bits two addresses share, 0..256."""
    return BITS - distance(a, b).bit_length()


def masked(address: bytes, bits: int) -> bytes:
    """The address with everything after its first ``bits`` bits set to zero."""
    low = BITS - bits
    return (int.from_bytes(address) >> low << low).to_bytes(SIZE)


def widths(weights: Sequence[float]) -> tuple[int, ...]:
    """The bits that each field's segment has, by weight.

    Computed in decimals, for the shares must be the same on every machine.
    """
    shares = [Decimal(str(weight)) for weight in weights]
    total = sum(shares)
    return tuple(int(FIELD_BITS * share // total) for share in shares)


def codes(field: str, values: Sequence[str], width: int) -> tuple[int, ...]:
    """The code of each value, distinct, in the order of ``values``.

    ``len(values)`` must not be more than ``2**width``.
    """
    taken: dict[int, None] = {}
    for value in values:
        digest = hashlib.sha256(f"{field}={value}".encode()).digest()
        code = int.from_bytes(digest) >> (BITS - width)
        while code in taken:
            code = (code + 1) % (1 << width)
        taken[code] = None
    return tuple(taken)


@dataclass(frozen=True, slots=True)
class _Segment:
    field: str
    start: int  # bits before it
    width: int
    code_of: Mapping[str, int]
    value_of: Mapping[int, str]


class PrefixScheme:
    """The ``prefix`` scheme of one domain.

    :param domain: the domain's name.
    :param revision: the template's revision; another revision is another address space.
    :param fields: (name, values, weight) of each field, the most important first.
    :raises ValueError: a field's share of the bits does not hold its values; the message
        names the field.
    """

    __slots__ = ("_head", "_segments", "_space")

    def __init__(
        self, domain: str, revision: int, fields: Sequence[tuple[str, Sequence[str], float]]
    ) -> None:
        self._space = f"{domain}/{revision}".encode()
        self._head = int.from_bytes(hashlib.sha256(self._space).digest()[: DOMAIN_BITS // 8])
        segments: list[_Segment] = []
        start = DOMAIN_BITS
        shares = widths([weight for _, _, weight in fields])
        for (name, values, _), width in zip(fields, shares, strict=True):
            if len(values) > 1 << width:
                raise ValueError(
                    f"{name}: its share of {width} bits cannot hold {len(values)} values"
                )
            numbers = codes(name, values, width)
            segments.append(
                _Segment(
                    name,
                    start,
                    width,
                    dict(zip(values, numbers, strict=True)),
                    dict(zip(numbers, values, strict=True)),
                )
            )
            start += width
        self._segments = tuple(segments)

    def fingerprint(self, fields: Mapping[str, str]) -> bytes:
        """The address of a situation, 32 bytes.

        :raises KeyError: a field is missing or has a value that is not listed.
        """
        number, used = self._head, DOMAIN_BITS
        for segment in self._segments:
            number = number << segment.width | segment.code_of[fields[segment.field]]
            used += segment.width
        whole = hashlib.sha256(self._space + b"\n" + canonical_json(fields)).digest()
        left = BITS - used
        return (number << left | int.from_bytes(whole) >> (BITS - left)).to_bytes(SIZE)

    def prefix_bits(self, count: int) -> int:
        """How many leading bits two situations share at least when their first ``count``
        fields agree. 0 fields: the domain alone."""
        return DOMAIN_BITS + sum(segment.width for segment in self._segments[:count])

    def shared_fields(self, a: bytes, b: bytes) -> int | None:
        """In how many leading fields two addresses of this domain agree; ``None`` where
        one of them is of another domain or revision."""
        if self.read(a) is None or self.read(b) is None:
            return None
        bits = common_bits(a, b)
        return sum(1 for s in self._segments if s.start + s.width <= bits)

    def read(self, address: bytes) -> dict[str, str] | None:
        """The fields behind an address, or ``None`` where it is not one of this domain."""
        number = int.from_bytes(address)
        if number >> (BITS - DOMAIN_BITS) != self._head:
            return None
        fields: dict[str, str] = {}
        for segment in self._segments:
            shift = BITS - segment.start - segment.width
            value = segment.value_of.get(number >> shift & ((1 << segment.width) - 1))
            if value is None:
                return None
            fields[segment.field] = value
        return fields if self.fingerprint(fields) == address else None
