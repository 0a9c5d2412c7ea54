"""Deterministic CBOR (RFC 8949 section 4.2.1), of the few kinds of item that we use.

cbor2 does the decoding. This module adds what a decoder of other people's bytes needs and
no library promises: a walk over the bytes *before* anything is built from them, which
allows exactly one encoding of each value and names what is wrong. After the walk
``cbor2.loads`` has nothing left to go wrong with: no tags, no floats, no indefinite
lengths, no deep nesting, no length that the bytes do not bear out. Encoding is done here:
of items as small as ours, cbor2 would spend most of its time on getting ready.
"""

from __future__ import annotations

import struct
from typing import Any

import cbor2

from qis_edge.core.errors import Reason, Refused, UsageError

#: Deeper than any message of ours.
MAX_DEPTH = 8

_UINT, _NINT, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_WIDTH = {24: 1, 25: 2, 26: 4, 27: 8}
_LEAST = {24: 24, 25: 1 << 8, 26: 1 << 16, 27: 1 << 32}
_BIGNUM_TAGS = (2, 3)
_HEAD_16, _HEAD_32 = struct.Struct(">BH").pack, struct.Struct(">BI").pack
#: First byte → length of the whole item, for those that need no closer look: integers in
#: the head, short byte strings, false, true, null. 0: it needs one.
_PLAIN = bytes(
    1
    if first < 0x18 or 0x20 <= first < 0x38 or 0xF4 <= first <= 0xF6
    else first - 0x3F
    if 0x40 <= first < 0x58
    else 0
    for first in range(256)
)


def dumps(obj: object) -> bytes:
    """Encode integers, bytes, text, ``None``, booleans, sequences and dicts.

    :raises UsageError: something else is in it (a float, say), or an integer past 64 bits.
    """
    if type(obj) is int:
        return _SMALL.get(obj) or _integer(obj)
    if type(obj) is bytes:
        return head(0x40, len(obj)) + obj
    if type(obj) is list or type(obj) is tuple:
        return head(0x80, len(obj)) + b"".join(map(dumps, obj))
    return _dumps_rarer(obj)


def _dumps_rarer(obj: object) -> bytes:
    if isinstance(obj, str):
        text = obj.encode()
        return head(0x60, len(text)) + text
    if isinstance(obj, dict):
        pairs = sorted((dumps(key), dumps(value)) for key, value in obj.items())
        return head(0xA0, len(pairs)) + b"".join([part for pair in pairs for part in pair])
    if obj is None:
        return b"\xf6"
    if isinstance(obj, bool):
        return b"\xf5" if obj else b"\xf4"
    if isinstance(obj, int):  # of a class of its own: an IntEnum
        return dumps(int(obj))
    if isinstance(obj, bytes):
        return dumps(bytes(obj))
    if isinstance(obj, list | tuple):
        return dumps(list(obj))
    raise UsageError(f"{type(obj).__name__} has no deterministic encoding here", field="cbor")


def head(major: int, argument: int) -> bytes:
    """The head of an item. :param major: in its place, the upper three bits."""
    if argument < 24:
        return bytes((major | argument,))
    if argument < 1 << 8:
        return bytes((major | 24, argument))
    if argument < 1 << 16:
        return _HEAD_16(major | 25, argument)
    if argument < 1 << 32:
        return _HEAD_32(major | 26, argument)
    if argument < 1 << 64:
        return bytes((major | 27,)) + argument.to_bytes(8)
    raise UsageError("an integer past 64 bits", field="cbor")


def _integer(value: int) -> bytes:
    return head(0x00, value) if value >= 0 else head(0x20, -1 - value)


#: What most integers are.
_SMALL = {value: _integer(value) for value in range(-128, 256)}


def loads(data: bytes, field: str, *, max_depth: int = MAX_DEPTH) -> Any:
    """Decode exactly one item.

    :returns: int, bytes, str, None, bool, list or dict.
    :raises Refused: truncated, trailing bytes, or anything :func:`item_end` refuses.
    """
    if item_end(data, 0, field, max_depth=max_depth) != len(data):
        raise Refused(Reason.TRAILING, field)
    return cbor2.loads(data)


def item_end(data: bytes, start: int, field: str, *, max_depth: int = MAX_DEPTH) -> int:
    """Walk over one item and return the offset after it; nothing is built.

    :raises Refused: TRUNCATED, INDEFINITE, TYPE (tags, floats, invalid UTF-8, reserved),
        DUPLICATE_KEY, NON_CANONICAL (a longer form than needed, keys out of order),
        INTEGER (past 64 bits), NESTING.
    """
    major, argument, at = _head(data, start, field)
    if major <= _NINT or major == _SIMPLE:
        return at
    if major <= _TEXT:
        end = at + argument
        if end > len(data):
            raise Refused(Reason.TRUNCATED, field)
        if major == _TEXT:
            _check_text(data[at:end], field)
        return end
    if max_depth <= 0:
        raise Refused(Reason.NESTING, field)
    if major == _ARRAY:
        return _array_end(data, at, _bounded(argument, data, at, field), field, max_depth - 1)
    return _map_end(data, at, _bounded(argument * 2, data, at, field) // 2, field, max_depth - 1)


def _array_end(data: bytes, at: int, items: int, field: str, max_depth: int) -> int:
    try:
        for _ in range(items):
            if plain := _PLAIN[data[at]]:  # most of what there is: step over it without a call
                at += plain
            else:
                at = item_end(data, at, field, max_depth=max_depth)
    except IndexError:
        raise Refused(Reason.TRUNCATED, field) from None
    if at > len(data):
        raise Refused(Reason.TRUNCATED, field)
    return at


def _map_end(data: bytes, at: int, pairs: int, field: str, max_depth: int) -> int:
    keys: list[bytes] = []
    for _ in range(pairs):
        plain = _PLAIN[data[at]] if at < len(data) else 0
        end = at + plain if plain else item_end(data, at, field, max_depth=max_depth)
        if end > len(data):
            raise Refused(Reason.TRUNCATED, field)
        key = data[at:end]
        if key[0] >> 5 > _TEXT:  # in Python true equals 1: two keys would become one
            raise Refused(Reason.TYPE, field, "a key that is no number, bytes or text")
        if keys and key <= keys[-1]:
            raise Refused(Reason.DUPLICATE_KEY if key in keys else Reason.NON_CANONICAL, field)
        keys.append(key)
        at = item_end(data, end, field, max_depth=max_depth)
    return at


def _bounded(items: int, data: bytes, at: int, field: str) -> int:
    """Each item takes a byte at least: a count past the end is refused before any loop."""
    if items > len(data) - at:
        raise Refused(Reason.TRUNCATED, field)
    return items


def _head(data: bytes, at: int, field: str) -> tuple[int, int, int]:
    """Major type, argument, offset after the head."""
    try:
        first = data[at]
    except IndexError:
        raise Refused(Reason.TRUNCATED, field) from None
    major, info = first >> 5, first & 0x1F
    at += 1
    if major == _SIMPLE:
        return _simple(info, at, field)
    if info < 24:
        argument = info
    elif (width := _WIDTH.get(info)) is not None:
        if at + width > len(data):
            raise Refused(Reason.TRUNCATED, field)
        argument = int.from_bytes(data[at : at + width])
        if argument < _LEAST[info]:
            raise Refused(Reason.NON_CANONICAL, field, "a shorter form exists")
        at += width
    elif info == 31:
        raise Refused(Reason.INDEFINITE, field)
    else:
        raise Refused(Reason.TYPE, field, "reserved")
    if major == _TAG:
        if argument in _BIGNUM_TAGS:
            raise Refused(Reason.INTEGER, field, "past 64 bits")
        raise Refused(Reason.TYPE, field, f"tag {argument}")
    return major, argument, at


def _simple(info: int, at: int, field: str) -> tuple[int, int, int]:
    if info in (20, 21, 22):  # false, true, null
        return _SIMPLE, info, at
    if info == 31:
        raise Refused(Reason.INDEFINITE, field, "a break")
    raise Refused(Reason.TYPE, field, "a float" if 25 <= info <= 27 else "a simple value")


def _check_text(data: bytes, field: str) -> None:
    try:
        data.decode()
    except UnicodeDecodeError:
        raise Refused(Reason.TYPE, field, "text that is not UTF-8") from None
