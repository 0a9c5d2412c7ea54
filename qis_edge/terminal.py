"""Text for a terminal: harmless, aligned, in units that people read.

Names, summaries and text results come from the network. Whatever could move the cursor,
recolour, reorder or hide text is shown as its code instead.
"""

from __future__ import annotations

import os
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TextIO

# Letters that draw nothing although Unicode counts them as letters or marks.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\u2800")
_DURATIONS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def is_journal(stream: TextIO, environ: Mapping[str, str] | None = None) -> bool:
    """Whether what is written to ``stream`` goes to systemd's journal (systemd.exec(5),
    ``JOURNAL_STREAM``): it then gives each line its time, and takes a priority off its
    beginning."""
    given = (os.environ if environ is None else environ).get("JOURNAL_STREAM")
    if not given:
        return False
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return given == f"{found.st_dev}:{found.st_ino}"


def harmless(text: object, *, limit: int | None = None) -> str:
    r"""``text`` with whatever does more than draw itself shown as its code.

    Every control character, escape, bidirectional override, invisible or unassigned
    character and every line break is shown as ``\xNN``, ``\uNNNN`` or ``\UNNNNNNNN``. A
    backslash is doubled, so that the result has one reading only. With ``limit``, at most
    that many characters, the last an ellipsis where it was cut.
    """
    shown = "".join(map(_shown, str(text)))
    if limit is not None and len(shown) > limit:
        return shown[: max(limit - 1, 0)] + "…"
    return shown


def _shown(character: str) -> str:
    if " " <= character <= "~":
        return "\\\\" if character == "\\" else character
    category = unicodedata.category(character)
    if category[0] in "LNPSM" and character not in _INVISIBLE and not _selector(character):
        return character
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _selector(character: str) -> bool:
    """Variation selectors: marks without a shape of their own."""
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"


def width(text: str) -> int:
    """Columns that ``text`` takes on a terminal: wide characters two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns under their headers, those of numbers to the right.

    Cells are made :func:`harmless`; ``None`` is shown as ``-``.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        max([width(header), *(width(row[i]) for row in cells)]) for i, header in enumerate(headers)
    ]
    numeric = [
        bool(rows) and all(isinstance(row[i], int | float | None) for row in rows)
        for i in range(len(headers))
    ]
    lines = []
    for row in [list(headers), *cells]:
        parts = [
            " " * (w - width(cell)) + cell if number else cell + " " * (w - width(cell))
            for cell, w, number in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def pairs(items: Sequence[tuple[str, object]]) -> str:
    """``label  value`` lines with the values aligned; values are made :func:`harmless`."""
    longest = max((width(label) for label, _ in items), default=0)
    lines = (f"{label}{' ' * (longest - width(label))}  {_cell(value)}" for label, value in items)
    return "\n".join(map(str.rstrip, lines))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return harmless(value)


def size(count: float) -> str:
    """Bytes in decimal units: ``999 B``, ``1.5 kB``, ``64 MB``."""
    if abs(count) < 1000:
        return f"{int(count)} B"
    amount, units = count / 1000, ["kB", "MB", "GB", "TB"]
    while abs(amount) >= 999.5 and len(units) > 1:
        amount /= 1000
        del units[0]
    return f"{amount:.3g} {units[0]}"


def duration(seconds: float) -> str:
    """Seconds in the two largest units: ``2 d 3 h``, ``1 min 30 s``, ``0.25 s``."""
    sign = "-" if seconds < 0 else ""
    seconds = abs(seconds)
    if seconds < 10 and seconds != int(seconds):
        return f"{sign}{seconds:.2g} s"
    left = round(seconds)
    parts: list[str] = []
    for unit, length in _DURATIONS:
        amount, left = divmod(left, length)
        if amount or parts:
            parts.append(f"{amount} {unit}" if amount else "")
        if len(parts) == 2:
            break
    return sign + (" ".join(filter(None, parts)) or "0 s")


def moment(unix: float | None) -> str:
    """A unix time as UTC, ``2026-11-21 01:02:03Z``; ``-`` for none."""
    if unix is None:
        return "-"
    from datetime import UTC, datetime  # only listings need it

    try:
        return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, OSError, ValueError):
        return f"@{unix:.0f}"


def plural(count: int, one: str) -> str:
    """``1 packet``, ``2 packets``."""
    return f"{count} {one if count == 1 else one + 's'}"
