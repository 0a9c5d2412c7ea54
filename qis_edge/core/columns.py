"""Columns: many alike whole numbers, or words, in few bytes.

Outcomes that are neighbours in time are alike, so a packet holds them by column. A column
of ``n`` whole numbers is the shortest of (CDDL in ``docs/wire-format.md``)

- one integer: all are equal; or ``null``: all are missing;
- an array: the first value, then differences, ``null`` where one is missing;
- a byte string: bit-packed. A head byte (bits 0 to 5: width, 0..32; bit 6: differences;
  bit 7: a presence bitmap follows), the bitmap (one bit a row, most significant first),
  then for *plain* the lowest value as a varint and each value's distance from it, for
  *differences* the first value, the lowest difference, and each difference's distance
  from that. Distances are ``width`` bits each, most significant first, the last byte
  padded with zeros. Varints are LEB128 over zigzag, at most 10 bytes, shortest form.

Nothing is expanded before its length is known to be in bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from qis_edge.core import cbor
from qis_edge.core.errors import DoesNotFit, Reason, Refused

MAX_ROWS = 512
MAX_WIDTH = 32
MAX_TEXT = 200
#: Results are floats to a reader: integers up to here survive that unchanged.
MAX_NUMBER = 2**53

_DIFFERENCES = 0x40
_BITMAP = 0x80
_WIDTH_MASK = 0x3F

Row = int | None
Column = int | bytes | list[int | None] | None
TextColumn = str | list[object] | None


def encode(values: Sequence[Row]) -> Column:
    """The shortest form of a column of at least one row."""
    if len(values) == 1:
        return values[0]
    present = [value for value in values if value is not None]
    if not present:
        return None
    complete = len(present) == len(values)
    if complete and present.count(present[0]) == len(present):
        return present[0]
    forms: list[Column] = [_as_differences(values)]
    bitmap = b"" if complete else _pack_bits([value is not None for value in values], 1)
    flag = 0 if complete else _BITMAP
    low = min(present)
    steps = [after - before for before, after in pairwise(present)]
    lowest = min(steps, default=0)
    forms.append(_packed(flag, bitmap, (low,), [value - low for value in present]))
    forms.append(
        _packed(
            flag | _DIFFERENCES,
            bitmap,
            (present[0], lowest),
            [step - lowest for step in steps],
        )
    )
    return min(
        (form for form in forms if form is not None),
        key=lambda form: len(cbor.dumps(form)),
    )


def decode(
    column: object, rows: int, field: str, *, low: int, high: int, missing: bool = False
) -> list[Row]:
    """Expand a column to ``rows`` values within ``low..high``.

    :param missing: whether rows may be missing.
    :raises Refused: TYPE, BOUNDS, TRUNCATED, TRAILING, NON_CANONICAL, INTEGER.
    """
    values: list[Row]
    if isinstance(column, bool):
        raise Refused(Reason.TYPE, field)
    if isinstance(column, int):
        values = [column] * rows
    elif column is None:
        values = [None] * rows
    elif isinstance(column, bytes):
        values = _unpack(column, rows, field)
    elif isinstance(column, list):
        values = _from_differences(column, rows, field)
    else:
        raise Refused(Reason.TYPE, field)
    present = [value for value in values if value is not None]
    if len(present) < rows and not missing:
        raise Refused(Reason.TYPE, field, "a missing row")
    if present and not (low <= min(present) and max(present) <= high):
        raise Refused(Reason.INTEGER, field, f"outside {low}..{high}")
    return values


def encode_texts(values: Sequence[str | None]) -> TextColumn:
    """Words: one for all, or the distinct ones with a column of indexes (``null`` missing)."""
    words: dict[str, int] = {}
    indexes: list[Row] = [
        None if word is None else words.setdefault(word, len(words)) for word in values
    ]
    if not words:
        return None
    if len(words) == 1 and None not in indexes:
        return next(iter(words))
    return [list(words), encode(indexes)]


def decode_texts(column: object, rows: int, field: str) -> list[str | None]:
    """Expand a column of words.

    :raises Refused: TYPE, BOUNDS and what :func:`decode` raises.
    """
    if column is None:
        return [None] * rows
    if isinstance(column, str):
        return [_text(column, field)] * rows
    if not (isinstance(column, list) and len(column) == 2 and isinstance(column[0], list)):
        raise Refused(Reason.TYPE, field)
    words = [_text(word, field) for word in column[0]]
    if not 0 < len(words) <= rows:
        raise Refused(Reason.BOUNDS, field, "number of distinct words")
    indexes = decode(column[1], rows, field, low=0, high=len(words) - 1, missing=True)
    return [None if index is None else words[index] for index in indexes]


def _text(word: object, field: str) -> str:
    if not isinstance(word, str):
        raise Refused(Reason.TYPE, field)
    if len(word) > MAX_TEXT:
        raise Refused(Reason.BOUNDS, field, f"more than {MAX_TEXT} characters")
    return word


# --- arrays of differences -------------------------------------------------------------


def _as_differences(values: Sequence[Row]) -> list[Row]:
    form: list[Row] = []
    before = 0
    for value in values:
        if value is None:
            form.append(None)
        else:
            form.append(value - before)
            before = value
    return form


def _from_differences(form: list[object], rows: int, field: str) -> list[Row]:
    if len(form) != rows:
        raise Refused(Reason.BOUNDS, field, f"{len(form)} rows instead of {rows}")
    values: list[Row] = []
    before = 0
    for step in form:
        if step is None:
            values.append(None)
        elif isinstance(step, int) and not isinstance(step, bool):
            before += step
            values.append(before)
        else:
            raise Refused(Reason.TYPE, field)
    return values


# --- bit packing -----------------------------------------------------------------------


def _packed(flags: int, bitmap: bytes, bases: tuple[int, ...], distances: list[int]) -> Column:
    width = max(distances, default=0).bit_length()
    if width > MAX_WIDTH:
        return None
    head = bytes((flags | width,)) + bitmap + b"".join(_varint(base) for base in bases)
    return head + _pack_bits(distances, width)


def _pack_bits(values: Sequence[int], width: int) -> bytes:
    bits = 0
    for value in values:
        bits = bits << width | value
    total = width * len(values)
    size = (total + 7) // 8
    return (bits << (size * 8 - total)).to_bytes(size)


def _unpack(data: bytes, rows: int, field: str) -> list[Row]:
    if not data:
        raise Refused(Reason.TRUNCATED, field)
    head, at = data[0], 1
    width = head & _WIDTH_MASK
    if width > MAX_WIDTH:
        raise Refused(Reason.BOUNDS, field, f"width {width}, at most {MAX_WIDTH}")
    present: Sequence[int] | None = None
    count = rows
    if head & _BITMAP:
        present, at = _take_bits(data, at, rows, 1, field)
        count = sum(present)
        if not 0 < count < rows:
            raise Refused(Reason.NON_CANONICAL, field, "a bitmap that says nothing")
    base, at = _take_varint(data, at, field)
    if head & _DIFFERENCES:
        lowest, at = _take_varint(data, at, field)
        distances, at = _take_bits(data, at, count - 1, width, field)
        values = list(accumulate((lowest + distance for distance in distances), initial=base))
    else:
        distances, at = _take_bits(data, at, count, width, field)
        values = [base + distance for distance in distances]
    if at != len(data):
        raise Refused(Reason.TRAILING, field)
    if present is None:
        return list(values)
    following = iter(values)
    return [next(following) if bit else None for bit in present]


def _take_bits(data: bytes, at: int, count: int, width: int, field: str) -> tuple[list[int], int]:
    total = width * count
    size = (total + 7) // 8
    end = at + size
    if end > len(data):
        raise Refused(Reason.TRUNCATED, field)
    padding = size * 8 - total
    bits = int.from_bytes(data[at:end])
    if bits & ((1 << padding) - 1):
        raise Refused(Reason.NON_CANONICAL, field, "padding")
    bits >>= padding
    mask = (1 << width) - 1
    return [bits >> shift & mask for shift in range(total - width, -1, -width)] if width else [
        0
    ] * count, end


def _varint(value: int) -> bytes:
    zigzag = value << 1 if value >= 0 else (-value << 1) - 1
    out = bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)


def _take_varint(data: bytes, at: int, field: str) -> tuple[int, int]:
    zigzag = shift = 0
    while True:
        if at >= len(data):
            raise Refused(Reason.TRUNCATED, field)
        byte = data[at]
        at += 1
        zigzag |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise Refused(Reason.INTEGER, field, "past 64 bits")
    if byte == 0 and shift:
        raise Refused(Reason.NON_CANONICAL, field, "a longer varint than needed")
    return (zigzag >> 1) ^ -(zigzag & 1), at


# --- decimal scaling -------------------------------------------------------------------

_SCALES: dict[int, int] = {power: 10**power for power in range(13)}


def to_scaled(value: float, power: int, field: str) -> int:
    """``value`` in units of ``10**power``; exact to a millionth of that unit.

    :raises DoesNotFit: it is no multiple of the unit, not finite, or past 2**53 units.
    """
    try:
        scale = _SCALES.get(abs(power)) or 10 ** abs(power)
        scaled = value * scale if power <= 0 else value / scale
        number = round(scaled)
    except (OverflowError, ValueError):  # infinities and NaN
        raise DoesNotFit(f"{value} is not a finite number", field=field) from None
    if abs(number) > MAX_NUMBER:
        raise DoesNotFit(f"{value} is past 2^53 units of 1e{power}", field=field)
    if abs(scaled - number) > max(1e-6, abs(scaled) * 1e-15):
        raise DoesNotFit(
            f"{value} is no multiple of 1e{power}",
            field=field,
            hint="round it first: domain.quantise(outcome) does",
        )
    return number


def from_scaled(number: int, power: int) -> float:
    """The float nearest to ``number * 10**power``."""
    scale = _SCALES.get(abs(power)) or 10 ** abs(power)
    return number / scale if power < 0 else float(number * scale)


def map_present(values: Sequence[Row], convert: Callable[[int], float]) -> list[float | None]:
    """Convert what is there, keep what is missing."""
    return [None if value is None else convert(value) for value in values]
