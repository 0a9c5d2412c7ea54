"""Types and bounds, of decoded CBOR and of our own arguments: a check names the field that
fails it."""

from __future__ import annotations

from typing import Any

from qis_edge.core.errors import Reason, Refused, UsageError
from qis_edge.core.identity import KID_SIZE


def require(condition: bool, field: str, message: str) -> None:
    """:raises UsageError: an argument of ours is not what it must be."""
    if not condition:
        raise UsageError(message, field=field)


def uint(value: object, high: int, field: str, low: int = 0) -> int:
    """An integer ``low``..``high``. :raises Refused: TYPE, INTEGER."""
    # CBOR's true and false decode to bool, which Python counts among the integers.
    if type(value) is not int:
        raise Refused(Reason.TYPE, field, "not an integer")
    if not low <= value <= high:
        raise Refused(Reason.INTEGER, field, f"outside {low}..{high}")
    return value


def boolean(value: object, field: str) -> bool:
    """True or false. :raises Refused: TYPE."""
    if not isinstance(value, bool):
        raise Refused(Reason.TYPE, field, "neither true nor false")
    return value


def bstr(value: object, low: int, high: int, field: str) -> bytes:
    """A byte string of ``low``..``high`` bytes. :raises Refused: TYPE, BOUNDS."""
    if not isinstance(value, bytes):
        raise Refused(Reason.TYPE, field, "not a byte string")
    if not low <= len(value) <= high:
        raise Refused(Reason.BOUNDS, field, f"{len(value)} bytes, not {low}..{high}")
    return value


def kid(value: object, field: str) -> bytes:
    """The name of a key, 8 bytes. :raises Refused: TYPE, BOUNDS."""
    return bstr(value, KID_SIZE, KID_SIZE, field)


def array(value: object, low: int, high: int, field: str) -> list[Any]:
    """An array of ``low``..``high`` elements. :raises Refused: TYPE, BOUNDS."""
    if not isinstance(value, list):
        raise Refused(Reason.TYPE, field, "not an array")
    if not low <= len(value) <= high:
        raise Refused(Reason.BOUNDS, field, f"{len(value)} elements, not {low}..{high}")
    return value


def ascending_kids(value: object, high: int, field: str, low: int = 0) -> tuple[bytes, ...]:
    """Names of keys, ascending and each once. :raises Refused: TYPE, BOUNDS,
    NON_CANONICAL (out of order), DUPLICATE_KEY."""
    kids = tuple(kid(item, field) for item in array(value, low, high, field))
    ordered = sorted(set(kids))
    if len(ordered) != len(kids):
        raise Refused(Reason.DUPLICATE_KEY, field)
    if list(kids) != ordered:
        raise Refused(Reason.NON_CANONICAL, field, "not in ascending order")
    return kids


def claims(value: object, field: str) -> dict[int, Any]:
    """A map whose keys are integers, all of them. :raises Refused: TYPE."""
    if not isinstance(value, dict) or not all(type(key) is int for key in value):
        raise Refused(Reason.TYPE, field, "not a map with integer keys")
    return value
