"""The report as one page that needs nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from hil.plots import MINUS, bars, scatter
from hil.report import number, tables, verdict, where

_STYLE = """
:root { color-scheme: light dark;
  --page: #fcfcfb; --card: #ffffff; --ink: #1b1b19; --soft: #5d5c57; --line: #e3e2dd;
  --good: #0a7a32; --bad: #c22f2f; --warn: #8a5a00; --warnbg: #fdf3dc;
  --s0: #2a78d6; --s1: #d9571e; --s2: #14936a; --s3: #4a3aa7; --s4: #b88200; --s5: #b5407f; }
@media (prefers-color-scheme: dark) { :root {
  --page: #161614; --card: #1e1e1b; --ink: #f1f0ec; --soft: #a9a8a1; --line: #383732;
  --good: #4cc274; --bad: #ff7d74; --warn: #f2c261; --warnbg: #33290f;
  --s0: #4c94ea; --s1: #e8743d; --s2: #2bb184; --s3: #9085e9; --s4: #d09a1c; --s5: #dd75ab; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem clamp(0.9rem, 3vw, 2.5rem) 4rem;
  background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.4rem 0 0.3rem; letter-spacing: -0.01em; }
h2 { font-size: 1.05rem; margin: 2.2rem 0 0.6rem; }
h3 { font-size: 0.92rem; margin: 0 0 0.5rem; }
p { margin: 0.2rem 0; }
.soft, .unit, caption { color: var(--soft); }
.verdict { font-weight: 600; }
.passed { color: var(--good); } .failed { color: var(--bad); } .skipped { color: var(--warn); }
.notice { background: var(--warnbg); color: var(--warn); border-radius: 8px;
  padding: 0.55rem 0.8rem; margin: 0.9rem 0; font-weight: 500; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: 0.8rem; margin-top: 1.2rem; }
.tile, figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 0.7rem 0.9rem; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.25; font-weight: 600;
  white-space: nowrap; }
.tile span { color: var(--soft); font-size: 0.85rem; line-height: 1.3; display: block; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr));
  gap: 1rem; margin-top: 1rem; align-items: start; }
figure { margin: 0; padding: 0.9rem 1rem 0.7rem; break-inside: avoid; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 12.5px; }
svg .name { fill: var(--ink); } svg .value { font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); }
.track { fill: var(--line); }
.dot circle { fill-opacity: 0.75; stroke: var(--card); stroke-width: 1; }
.s0 { fill: var(--s0); background: var(--s0); } .s1 { fill: var(--s1); background: var(--s1); }
.s2 { fill: var(--s2); background: var(--s2); } .s3 { fill: var(--s3); background: var(--s3); }
.s4 { fill: var(--s4); background: var(--s4); } .s5 { fill: var(--s5); background: var(--s5); }
.bar.over { fill: var(--bad); }
.legend { display: flex; flex-wrap: wrap; gap: 0.1rem 0.9rem; font-size: 0.82rem;
  margin: 0 0 0.4rem; }
.key i { display: inline-block; width: 0.6rem; height: 0.6rem; border-radius: 50%;
  margin-right: 0.35rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; }
th, td { padding: 0.32rem 0.9rem 0.32rem 0; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
td.note { white-space: normal; min-width: 14rem; color: var(--soft); }
td.wrap { white-space: normal; min-width: 13rem; overflow-wrap: anywhere; }
@media print { :root { color-scheme: light;
  --page: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #ccc;
  --good: #0a6b2c; --bad: #b02020; --warn: #6b4600; --warnbg: #fff;
  --s0: #2a78d6; --s1: #d9571e; --s2: #14936a; --s3: #4a3aa7; --s4: #b88200; --s5: #b5407f; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .notice { border: 1px solid var(--warn); }
  svg { max-height: 4.6cm; } .scroll { overflow: visible; }
  .figures { grid-template-columns: 1fr 1fr; }
  tr, h2 { break-inside: avoid; break-after: auto; } h2 { break-after: avoid; } }
"""

#: Round trips of which a median says something.
_ENOUGH = 5
_SIGNS = {"passed": "✓", "failed": "✗", "skipped": "–"}


def to_html(found: dict[str, Any]) -> str:
    """The figures as a page."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Hardware in the loop: {escape(verdict(found))}</title>",
            f"<style>{_STYLE}</style></head><body>",
            *_head(found),
            *_tiles(found),
            *_figures(found),
            *_tables(found),
            *_tests(found),
            "</body></html>\n",
        ]
    )


def _head(found: dict[str, Any]) -> Iterator[str]:
    kind = "passed" if found["passed"] else "failed"
    day, _, clock = found["date"].partition("T")
    yield "<h1>Hardware in the loop</h1>"
    yield (
        f'<p class="verdict {kind}">{_SIGNS[kind]} {escape(verdict(found))}</p>'
        f'<p class="soft">{escape(day)} {escape(clock[:5])} UTC, in {found["seconds"]:.0f} s, on '
        f"{escape(where(found['benches']))}</p>"
        '<p class="soft">'
        + ", ".join(f"{escape(name)} {escape(v)}" for name, v in found["versions"].items())
        + "</p>"
    )
    emulated = [bench for bench in found["benches"] if bench["emulated"]]
    if emulated:
        all_of_it = len(emulated) == len(found["benches"])
        who = "No hardware took part." if all_of_it else "Not all of it was hardware."
        yield (
            f'<p class="notice">{who} Figures of emulated devices say that the programs work, '
            "and nothing about a place, an antenna or a cable.</p>"
        )


def _tiles(found: dict[str, Any]) -> Iterator[str]:
    tiles = [
        (duration(trip["p50"]), f"{trip['what']}, median of {trip['count']}")
        for trip in found["round_trips"]
        if trip["count"] >= _ENOUGH
    ]
    counted = found["delivery"]
    if counted:
        sent = sum(one["sent"] for one in counted)
        ratio = sum(one["delivered"] for one in counted) / sent
        tiles.append((f"{100 * ratio:.1f}%", f"of {sent} frames delivered"))
    tiles += [
        (f"{number(one['bytes_per_second'])} B/s", one["what"])
        for one in found["throughput"][:1]
        if one["bytes_per_second"] is not None
    ]
    shares = [one["share"] for one in found["airtime"] if one["share"] is not None]
    if shares:
        tiles.append((f"{100 * max(shares):.0f}%", "of an hour's airtime, at most"))
    if tiles:
        yield '<div class="tiles">'
        for value, what in tiles:
            yield f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
        yield "</div>"


def duration(seconds: float) -> str:
    """As people say it."""
    return f"{number(seconds)} s" if seconds >= 0.1 else f"{number(1000 * seconds)} ms"


def _figures(found: dict[str, Any]) -> Iterator[str]:
    drawn = [*_trip_plots(found), *_signal_plots(found), *_bar_plots(found)]
    if drawn:
        yield '<div class="figures">'
        for title, plot in drawn:
            yield f"<figure><h3>{escape(title)}</h3>{plot}</figure>"
        yield "</div>"


def _trip_plots(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for trip in found["round_trips"]:
        if len({size for size, _ in trip["points"]}) < 2:
            continue  # nothing to compare
        title = f"Round trips: {trip['what']}"
        points = {trip["what"]: [(float(size), took) for size, took in trip["points"]]}
        yield title, scatter(points, x="payload, bytes", y="seconds", title=title, from_zero=True)


def _signal_plots(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for column, name, unit in ((1, "SNR", "dB"), (2, "RSSI", "dBm")):
        series = {
            f"{one['from']} → {one['to']}": [
                (point[0] / 60, float(point[column])) for point in one["points"]
            ]
            for one in found["signal"]
        }
        if series:
            title = f"{name}, by direction"
            yield title, scatter(series, x="minutes", y=f"{name}, {unit}", title=title)


def _bar_plots(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    rows: list[tuple[str, float, float | None, str]] = [
        (
            one["radio"],
            one["busiest_hour"],
            one["allowed_an_hour"],
            f"{number(one['busiest_hour'])} s"
            + (f" of {number(one['allowed_an_hour'])} s" if one["allowed_an_hour"] else ""),
        )
        for one in found["airtime"]
    ]
    if rows:
        title = "Airtime of the busiest hour, and what is allowed"
        yield title, bars(rows, title=title)
    ways: list[tuple[str, float, float | None, str]] = [
        (
            f"{one['from']} → {one['to']}",
            100 * one["ratio"],
            100.0,
            f"{one['delivered']} of {one['sent']}",
        )
        for one in found["delivery"]
    ]
    if ways:
        title = "Frames delivered"
        yield title, bars(ways, title=title)


def _tables(found: dict[str, Any]) -> Iterator[str]:
    for title, rows in tables(found):
        heads, *rest = rows
        numeric = [i > 0 and all(_figure(row[i]) for row in rest) for i in range(len(heads))]
        yield f'<h2>{escape(title)}</h2><div class="scroll"><table>'
        yield "<tr>" + "".join(_cell("th", *one) for one in zip(heads, numeric, strict=True))
        for row in rest:
            yield "<tr>" + "".join(_cell("td", *one) for one in zip(row, numeric, strict=True))
        yield "</table></div>"


def _figure(cell: str) -> bool:
    """Whether a cell is a number, or stands in the place of one."""
    return cell in ("", "no limit") or cell.strip("-%").replace(".", "", 1).isdigit()


def _cell(kind: str, text: str, right: bool) -> str:
    right_aligned = ' class="n"' if right else ""
    shown = text.replace("-", MINUS) if right else text
    return f"<{kind}{right_aligned}>{escape(shown)}</{kind}>"


def _tests(found: dict[str, Any]) -> Iterator[str]:
    yield '<h2>Tests</h2><div class="scroll"><table>'
    yield '<tr><th></th><th>test</th><th class="n">seconds</th><th>why</th></tr>'
    for one in found["tests"]:
        outcome = one["outcome"]
        yield (
            f'<tr><td class="{outcome}">{_SIGNS[outcome]} {outcome}</td>'
            f'<td class="wrap">{escape(one["name"])}</td>'
            f'<td class="n">{one["seconds"]:.1f}</td>'
            f'<td class="note">{escape(one["note"])}</td></tr>'
        )
    yield "</table></div>"
