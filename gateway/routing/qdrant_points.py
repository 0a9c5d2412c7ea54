"""How a packet lies in Qdrant, embedded or on a server, and how it is asked for.

A point's id is the first 16 bytes of the packet's SHA-256, as a UUID: a repeat is the same
point. (The first version took the packet's own id; such points are still read.) The vector
is the situation's, padded with zeros to :data:`SIZE` (which changes no cosine between
vectors of one length; ``length`` keeps different ones apart). The payload:

    raw         the packet, base64
    address     the fingerprint, hex; domain: its first 8 bytes
    bits0 …     the fingerprint in words of 32 and 48 bits, named by their first bit: a
                prefix is whole words and a range of one. (Qdrant compares ranges as
                doubles: a word must have less than 53 bits.)
    order       what *newest first* is by: the time, then the order of the deposits
    time, expires, confidence, length, values (of the vector)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gateway.routing.base import ALL_BITS, Entry, Interest, framed_id

#: Values of a vector: as many as a packet carries at most.
SIZE = 16
#: The vector's name.
VECTOR = "situation"
#: Bytes of an entry's id that are its point's.
ID = 16
#: Where the words of a fingerprint begin and end, in bits.
WORDS = ((0, 32), (32, 64), (64, 112), (112, 160), (160, 208), (208, 256))
#: What of the payload is indexed, and as what. The rest only narrows what these found.
KEYWORDS = ("address", "domain")
INTEGERS = ("bits64", "order", "expires", "confidence", "length")
#: Cosines (of single precision in Qdrant) this near to one another are taken for equal
#: until they were calculated anew.
NEAR = 1e-6
#: Similarities are compared to this many decimals: equal vectors must tie.
_DECIMALS = 12

_TIE_BITS = 31
_LAST_TIME = 2**32 - 1
#: The greatest integer that Qdrant tells from its neighbours in a range.
GREATEST = 2**53 - 1


class Is(NamedTuple):
    """The payload has exactly this."""

    key: str
    value: str | int


class Between(NamedTuple):
    """The payload has a number in this range, ends included."""

    key: str
    least: int | None
    most: int | None = None


Condition = Is | Between


def order(time: int, tie: int) -> int:
    """What *newest first* is by: 32 bits of time, 31 of the order of deposits."""
    return min(time, _LAST_TIME) << _TIE_BITS | tie & (1 << _TIE_BITS) - 1


def within(interest: Interest) -> list[Condition]:
    """The addresses of an interest."""
    if interest.bits == ALL_BITS:
        return [Is("address", interest.fingerprint.hex())]
    found: list[Condition] = []
    if interest.bits >= 64:
        found.append(Is("domain", interest.fingerprint[:8].hex()))
    for start, end in WORDS:
        if interest.bits <= start:
            break
        if end <= 64 <= interest.bits:
            continue  # the domain says it
        least = _word(interest.fingerprint, start, end)
        most = _word(interest.last, start, end)
        key = f"bits{start}"
        found.append(Is(key, least) if least == most else Between(key, least, most))
    return found


def wanted(interest: Interest, since: int | None, confidence: int) -> list[Condition]:
    """The conditions of a query."""
    found = within(interest)
    if since is not None and since > 0:
        found.append(Between("order", order(since, 0)))
    if confidence > 0:
        found.append(Between("confidence", confidence))
    return found


def payload(entry: Entry, tie: int) -> dict[str, Any]:
    """What is stored beside the vector."""
    form: dict[str, Any] = {
        "raw": base64.b64encode(entry.raw).decode(),
        "address": entry.fingerprint.hex(),
        "domain": entry.fingerprint[:8].hex(),
        "order": order(entry.time, tie),
        "time": entry.time,
        "expires": min(entry.expires, GREATEST),
        "confidence": entry.confidence,
        "length": 0,
    }
    for start, end in WORDS:
        form[f"bits{start}"] = _word(entry.fingerprint, start, end)
    if entry.vector is not None:
        form["values"] = list(entry.vector)
        if any(entry.vector):
            form["length"] = len(entry.vector)
    return form


def padded(vector: Sequence[float]) -> list[float]:
    """A vector as it is stored and asked for. Of length 1, so that none is too great for
    single precision."""
    greatest = max(map(abs, vector))
    scaled = [value / greatest for value in vector]
    norm = math.hypot(*scaled)
    return [value / norm for value in scaled] + [0.0] * (SIZE - len(vector))


def vectors(entry: Entry) -> dict[str, list[float]]:
    """The vectors of an entry's point: none where it has no direction."""
    if entry.vector is None or not any(entry.vector):
        return {}
    return {VECTOR: padded(entry.vector)}


def raw_of(form: Mapping[str, Any] | None) -> bytes | None:
    """The packet in a payload, if it has one; whoever wrote it."""
    text = (form or {}).get("raw")
    if not isinstance(text, str):
        return None
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return None


def is_place_of(raw: bytes, place: bytes) -> bool:
    """Whether a packet belongs to the point of this id."""
    if hashlib.sha256(raw).digest()[:ID] == place:
        return True
    return (framed_id(raw) or b"")[:ID] == place


def tie_of(form: Mapping[str, Any]) -> int:
    """The place of a payload among those of the same time."""
    value = form.get("order")
    return value & (1 << _TIE_BITS) - 1 if isinstance(value, int) else 0


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of two vectors that have a direction, rounded so that equals tie."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return round(product / (math.hypot(*one) * math.hypot(*other)), _DECIMALS)


def rank(form: Mapping[str, Any] | None, vector: Sequence[float]) -> tuple[float, int, int]:
    """What payloads are sorted by, nearest first; of one nearness newest first.

    Those that have no such vector (which Qdrant did not find near) come last.
    """
    form = form or {}
    time, values = form.get("time"), form.get("values")
    try:
        near = cosine(values, vector)  # type: ignore[arg-type]  # whoever wrote it
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        near = -2.0
    return -near, -time if isinstance(time, int) else 0, -tie_of(form)


def _word(fingerprint: bytes, start: int, end: int) -> int:
    return int.from_bytes(fingerprint[start // 8 : end // 8])
