"""Plots as inline SVG. Colours are the page's: class ``s0``, ``s1``, … is a series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from hil.report import number

WIDTH, HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 40
_ROW = 46

MINUS = "\N{MINUS SIGN}"

Point = tuple[float, float]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers around and between two values, evenly apart; at least two."""
    if high <= low:
        low, high = low - 1, high + 1
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def scatter(
    series: Mapping[str, Sequence[Point]],
    *,
    x: str,
    y: str,
    title: str,
    from_zero: bool = False,
) -> str:
    """Dots of one or several series.

    :param x: what the axis shows, with its unit. :param y: likewise.
    :param from_zero: whether the y axis begins there.
    """
    points = [point for some in series.values() for point in some]
    xs = ticks(0.0, max(px for px, _ in points))
    values = [py for _, py in points]
    room = 0.06 * (max(values) - min(values))  # so that no dot lies on the frame
    ys = ticks(0.0 if from_zero else min(values) - room, max(values) + room)

    def at(px: float, py: float) -> tuple[float, float]:
        across = (px - xs[0]) / (xs[-1] - xs[0])
        up = (py - ys[0]) / (ys[-1] - ys[0])
        return (
            _LEFT + across * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM),
        )

    parts = [_open(HEIGHT, title)]
    for tick in ys:
        _, level = at(xs[0], tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{level:.1f}" '
            f'y2="{level:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 7}" y="{level + 4:.1f}" text-anchor="end">'
            f"{_minus(number(tick))}</text>"
        )
    for tick in xs:
        across, _ = at(tick, ys[0])
        parts.append(
            f'<text class="tick" x="{across:.1f}" y="{HEIGHT - _BOTTOM + 17}" '
            f'text-anchor="middle">{_minus(number(tick))}</text>'
        )
    parts.append(
        f'<text class="axis" x="{WIDTH - _RIGHT}" y="{HEIGHT - 5}" text-anchor="end">'
        f"{escape(x)}</text>"
    )
    for index, (name, some) in enumerate(series.items()):
        dots = "".join(
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4"><title>{escape(name)}: '
            f"{number(px)}, {number(py)}</title></circle>"
            for px, py in some
            for cx, cy in (at(px, py),)
        )
        parts.append(f'<g class="dot s{index}">{dots}</g>')
    parts.append("</svg>")
    return _legend(series, y) + "".join(parts)


def bars(rows: Sequence[tuple[str, float, float | None, str]], *, title: str) -> str:
    """One bar a row.

    :param rows: (name, value, the most that it may be, what to write beside it).
    """
    most = max([limit for _, _, limit, _ in rows if limit] + [value for _, value, _, _ in rows])
    height = _ROW * len(rows) + 4
    parts = [_open(height, title)]
    for index, (name, value, limit, beside) in enumerate(rows):
        top = index * _ROW
        parts.append(f'<text class="name" x="0" y="{top + 15}">{escape(name)}</text>')
        parts.append(
            f'<text class="value" x="{WIDTH}" y="{top + 15}" text-anchor="end">'
            f"{escape(beside)}</text>"
        )
        if limit:
            parts.append(_bar("track", top + 22, WIDTH * limit / most))
        if value > 0:
            over = " over" if limit and value > limit else ""
            parts.append(_bar(f"bar s0{over}", top + 22, max(2.0, WIDTH * value / (most or 1))))
    parts.append("</svg>")
    return "".join(parts)


def _bar(kind: str, top: float, width: float) -> str:
    return f'<rect class="{kind}" x="0" y="{top}" width="{width:.1f}" height="12" rx="3"/>'


def _open(height: int, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>"
    )


def _legend(series: Mapping[str, Sequence[Point]], y: str) -> str:
    keys = (
        ""
        if len(series) < 2
        else "".join(
            f'<span class="key"><i class="s{index}"></i>{escape(name)}</span>'
            for index, name in enumerate(series)
        )
    )
    return f'<p class="legend"><span class="unit">{escape(y)}</span>{keys}</p>'


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
