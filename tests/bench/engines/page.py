"""Writes what ``build/bench/routing.json`` says into docs/routing: the table and the plot.

python -m tests.bench.engines.page
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from tests.bench import report

FOLDER = Path("docs") / "routing"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"
HEAD = (
    "| engine | deposits, rate | one deposit, time | newest 50, time | replay, rate "
    "| log read anew, rate | resident |"
)
#: Key, heading of its panel, the time over the client's that is wanted at most, whether the
#: figure is a rate.
PANELS = (
    ("deposit_ratio", "deposits in batches", 1 / 0.6, True),
    ("deposit_latency_ratio", "one deposit", 2.0, False),
    ("query_ratio", "newest 50", 2.0, False),
    ("replay_ratio", "replay", 2.0, True),
)
LEFT, PANEL, GAP, TOP, ROW = 96, 158, 18, 64, 26
#: The least and the greatest time over the client's that has a place of its own.
LEAST, MOST = 1 / 16, 8.0

Figures = Mapping[str, Mapping[str, Any]]


def table(figures: Figures) -> str:
    """Markdown."""
    lines = [HEAD, "|---|---|---|---|---|---|---|", "| *wanted* | ≥ 0.6 | ≤ 2 | ≤ 2 | ≥ 0.5 | | |"]
    for scheme, found in figures.items():
        if "deposit_ratio" not in found:
            why = f"needs {found['absent']}" if "absent" in found else found["failed"]
            lines.append(f"| `{scheme}:` | not measured: {why} | | | | | |")
            continue
        cells = [_number(found.get(key)) for key, *_ in PANELS]
        cells.append(_number(found.get("rebuild_ratio")))
        lines.append(f"| `{scheme}:` | {' | '.join(cells)} | {found['rss_mib']:.0f} MiB |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def over(found: Mapping[str, Any], key: str, rate: bool) -> float:
    """The engine's time over the client's."""
    value = float(found[key])
    return 1 / value if rate else value


def _x(ratio: float) -> float:
    """Within a panel; logarithmic."""
    held = min(max(ratio, LEAST), MOST)
    return PANEL * math.log(held / LEAST) / math.log(MOST / LEAST)


STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #333 } .soft { fill: #6a6a6a; font-size: 11px }
  .row { stroke: #d5d5d5 } .one { stroke: #888 } .most { stroke: #c2571a; stroke-dasharray: 4 3 }
  .good { fill: #1f6fb2 } .over { fill: #c2571a }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .soft { fill: #a2a2a2 } .row { stroke: #444 } .one { stroke: #999 }
    .most { stroke: #f09458 } .good { fill: #6db3f2 } .over { fill: #f09458 }
  }
"""


def plot(figures: Figures) -> str:
    """SVG: a panel for each kind of call, a dot for each engine."""
    shown = {scheme: found for scheme, found in figures.items() if "deposit_ratio" in found}
    bottom = TOP + ROW * len(shown)
    width = LEFT + len(PANELS) * (PANEL + GAP)
    said = "Time of each engine's calls over the time of its client's"
    size = f'viewBox="0 0 {width} {bottom + 34}" width="{width}" height="{bottom + 34}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{said}">',
        f"<style>{STYLE}</style>",
        f'<text x="0" y="16">{said}: 1 is the same, left is faster</text>',
    ]
    for row, scheme in enumerate(shown):
        y = TOP + ROW * row + ROW / 2
        parts.append(f'<text x="0" y="{y + 4}">{escape(scheme)}</text>')
    for number, (key, heading, most, rate) in enumerate(PANELS):
        left = LEFT + number * (PANEL + GAP)
        parts.append(f'<text x="{left}" y="{TOP - 24}">{heading}</text>')
        parts.append(_scale(left, bottom, most))
        for row, found in enumerate(shown.values()):
            y = TOP + ROW * row + ROW / 2
            parts.append(_dot(left, y, over(found, key, rate), most))
    return "\n".join([*parts, "</svg>\n"])


def _scale(left: float, bottom: float, most: float) -> str:
    """A panel's lines and the words on them."""
    one, wanted = left + _x(1), left + _x(most)
    return (
        f'<line class="one" x1="{one:.1f}" x2="{one:.1f}" y1="{TOP - 6}" y2="{bottom}"/>'
        f'<line class="most" x1="{wanted:.1f}" x2="{wanted:.1f}" y1="{TOP - 6}" y2="{bottom}"/>'
        f'<text class="soft" x="{one:.1f}" y="{TOP - 10}" text-anchor="middle">1</text>'
        f'<text class="soft" x="{wanted:.1f}" y="{TOP - 10}" text-anchor="middle">{most:.2g}</text>'
        f'<text class="soft" x="{wanted:.1f}" y="{bottom + 16}" text-anchor="middle">wanted</text>'
    )


def _dot(left: float, y: float, ratio: float, most: float) -> str:
    x = left + _x(ratio)
    kind = "good" if ratio <= most else "over"
    # At the end of the row where the dot is not.
    beside = f'x="{left}"' if ratio > 0.25 else f'x="{left + PANEL}" text-anchor="end"'
    return (
        f'<line class="row" x1="{left}" x2="{left + PANEL}" y1="{y}" y2="{y}"/>'
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y}" r="5"/>'
        f'<text class="soft" {beside} y="{y - 4}">{ratio:.2g}</text>'
    )


def between(text: str, new: str) -> str:
    """The page with another table. :raises ValueError: it has no place for one."""
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[:start] + new + text[end:]


def main() -> None:
    found = json.loads((report.FOLDER / "routing.json").read_text())
    figures = {scheme: one for scheme, one in found.items() if isinstance(one, dict)}
    page = FOLDER / "README.md"
    page.write_text(between(page.read_text(), table(figures)))
    (FOLDER / "engines.svg").write_text(plot(figures))


if __name__ == "__main__":
    main()
