"""Deterministic CBOR (RFC 8949 section 4.2.1), of the few kinds of item that we use.

cbor2 does the encoding and the decoding. This module adds what a decoder of other
people's bytes needs and no library promises: a walk over the bytes *before* anything is
built from them, which allows exactly one encoding of each value and names what is wrong.
After the walk ``cbor2.loads`` has nothing left to go wrong with: no tags, no floats, no
indefinite lengths, no deep nesting, no length that the bytes do not bear out.
"""

from __future__ import annotations

from typing import Any

import cbor2

from qis_edge.core.errors import Reason, Refused, UsageError

#: Deeper than any message of ours.
MAX_DEPTH = 8

_UINT, _NINT, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_WIDTH = {24: 1, 25: 2, 26: 4, 27: 8}
_LEAST = {24: 24, 25: 1 << 8, 26: 1 << 16, 27: 1 << 32}
_BIGNUM_TAGS = (2, 3)


def dumps(obj: object) -> bytes:
    """Encode integers, bytes, text, ``None``, booleans, sequences and dicts.

    :raises UsageError: something else is in it (a float, say).
    """
    return cbor2.dumps(_ordered(obj))


def _ordered(obj: object) -> object:
    """The same value with map keys in bytewise order of their encodings."""
    if obj is None or isinstance(obj, int | bytes | str):
        return obj
    if isinstance(obj, list | tuple):
        return [_ordered(item) for item in obj]
    if isinstance(obj, dict):
        pairs = sorted((cbor2.dumps(key), key) for key in obj)
        return {key: _ordered(obj[key]) for _, key in pairs}
    raise UsageError(f"{type(obj).__name__} has no deterministic encoding here", field="cbor")


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
        for _ in range(_bounded(argument, data, at, field)):
            # Small integers are most of what there is: step over them without a call.
            if at < len(data) and (byte := data[at]) < 0x38 and byte & 0x1F < 24:
                at += 1
            else:
                at = item_end(data, at, field, max_depth=max_depth - 1)
        return at
    return _map_end(data, at, _bounded(argument * 2, data, at, field) // 2, field, max_depth - 1)


def _map_end(data: bytes, at: int, pairs: int, field: str, max_depth: int) -> int:
    keys: list[bytes] = []
    for _ in range(pairs):
        end = item_end(data, at, field, max_depth=max_depth)
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
