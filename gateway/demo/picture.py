"""The demonstration as one picture: temperatures, estimates, and what waited when."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.demo.scenario import HOUR, STATIONS, Scenario, Span

#: In units of the picture.
LEFT, WIDTH, RIGHT, TOP = 64, 860, 96, 56
PANEL, GAP = 104, 26
#: A gap of more hours is not drawn over: in readings, and between looks at the nodes.
LONGEST_GAP, LONGEST_LOOK = 3, 11

STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #333 } .soft { fill: #6a6a6a; font-size: 11px }
  .title { font-weight: 600; font-size: 14px } .grid { stroke: #e2e2e2 } .axis { stroke: #999 }
  .out { fill: #8881 } .down { fill: #c2571a; fill-opacity: .14 }
  path { fill: none; stroke-width: 1.5; stroke-linejoin: round }
  .real { stroke: #777 } .hidden { stroke: #777; stroke-dasharray: 2 2 }
  .ours { stroke: #1f6fb2; stroke-width: 2.2 } .held { stroke: #c2571a; stroke-dasharray: 6 3 }
  .n0 { stroke: #1f6fb2 } .n1 { stroke: #2a8a57 } .n2 { stroke: #8a4fb0 }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .soft { fill: #a2a2a2 } .grid { stroke: #3a3a3a } .axis { stroke: #888 }
    .out { fill: #fff1 } .down { fill: #f09458 } .real, .hidden { stroke: #aaa }
    .ours, .n0 { stroke: #6db3f2 } .held { stroke: #f09458 } .n1 { stroke: #64c492 }
    .n2 { stroke: #c08be0 }
  }
"""

Series = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Sample:
    """What a look at the nodes' statuses said.

    :param waiting: outcomes without a receipt, by station; those that are down are not in it.
    """

    hour: float
    waiting: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Panel:
    """Hours and values to units of the picture."""

    top: float
    hours: float
    low: float
    high: float

    def x(self, hour: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(hour / self.hours, 0.0), 1.0)

    def y(self, value: float) -> float:
        return self.top + PANEL * (1 - (value - self.low) / (self.high - self.low))

    def line(self, kind: str, points: Series, gap: float = LONGEST_GAP) -> str:
        """A path, with a gap where there are no points for long."""
        steps, before = [], -math.inf
        for hour, value in points:
            move = "M" if hour - before > gap else "L"
            steps.append(f"{move}{self.x(hour):.1f} {self.y(value):.1f}")
            before = hour
        return f'<path class="{kind}" d="{"".join(steps)}"/>'

    def shade(self, kind: str, span: Span, words: str) -> str:
        left, right = self.x(span.begin), self.x(span.end)
        return (
            f'<rect class="{kind}" x="{left:.1f}" y="{self.top:.1f}" '
            f'width="{right - left:.1f}" height="{PANEL}"/>'
            f'<text class="soft" x="{left + 3:.1f}" y="{self.top - 4:.1f}">{words}</text>'
        )

    def frame(self, step: float, unit: str, name: str) -> str:
        """Level lines with their values, and the panel's name."""
        parts = [f'<text x="0" y="{self.top + PANEL / 2:.1f}">{name}</text>']
        value = self.low
        while value <= self.high + 1e-9:
            y = self.y(value)
            last = unit if value + step > self.high + 1e-9 else ""
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="soft" x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">'
                f"{value:g}{last}</text>"
            )
            value += step
        return "".join(parts)


def draw(
    scenario: Scenario,
    truth: Mapping[tuple[str, int], float],
    estimates: Mapping[str, Mapping[int, float]],
    samples: Sequence[Sample],
) -> str:
    """SVG, in light and dark.

    :param truth: (station, unix time) → °C that was really measured, withheld or not.
    :param estimates: station → window's start → °C as its node estimated it.
    """
    height = TOP + 4 * (PANEL + GAP) + 20
    said = f"{scenario.hours // 24} days at three airports"
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img" aria-label="{said}">'
        ),
        f"<style>{STYLE}</style>",
        (
            f'<text class="title" x="0" y="18">{said}: what the peers know of a broken '
            "thermometer, and what waited when</text>"
        ),
    ]
    shown = [value for (_, time), value in truth.items() if _during(scenario, time)]
    low = 5.0 * math.floor(min(shown) / 5)
    high = low + 10 * math.ceil((max(shown) - low) / 10)
    for number, station in enumerate(STATIONS):
        panel = _Panel(TOP + number * (PANEL + GAP), scenario.hours, low, high)
        parts.append(_temperatures(panel, scenario, station, truth, estimates.get(station, {})))
    parts.append(_waiting(TOP + 3 * (PANEL + GAP), scenario, samples))
    parts.append(_dates(scenario, height))
    return "\n".join([*parts, "</svg>\n"])


def _during(scenario: Scenario, time: int) -> bool:
    return scenario.time(0) <= time < scenario.time(scenario.hours)


def _temperatures(
    panel: _Panel,
    scenario: Scenario,
    station: str,
    truth: Mapping[tuple[str, int], float],
    estimates: Mapping[int, float],
) -> str:
    parts = [panel.frame(10, " °C", station)]
    measured: list[tuple[float, float]] = []
    withheld: list[tuple[float, float]] = []
    spans = [one.span for one in scenario.failures if one.station == station]
    parts += [panel.shade("out", span, "no thermometer") for span in spans]
    for hour in range(scenario.hours):
        value = truth.get((station, scenario.time(hour)))
        if value is not None:
            broken = any(span.begin <= hour < span.end for span in spans)
            (withheld if broken else measured).append((hour, value))
    parts += [panel.line("real", measured), panel.line("hidden", withheld)]
    for span in spans:
        before = [value for hour, value in measured if hour < span.begin]
        if before:
            flat = [(float(hour), before[-1]) for hour in range(span.begin, span.end)]
            parts.append(panel.line("held", flat))
        hours = ((time - scenario.time(0)) / HOUR for time in sorted(estimates))
        found = zip(hours, (estimates[time] for time in sorted(estimates)), strict=True)
        parts.append(panel.line("ours", [p for p in found if span.begin <= p[0] < span.end]))
    words = [("real", "measured"), ("hidden", "withheld"), ("ours", "estimated"), ("held", "held")]
    return "".join([*parts, _legend(panel.top, words)])


def _waiting(top: float, scenario: Scenario, samples: Sequence[Sample]) -> str:
    most = max((count for one in samples for count in one.waiting.values()), default=1)
    panel = _Panel(top, scenario.hours, 0, 10 * math.ceil(max(most, 1) / 10))
    victim, dead = scenario.killed
    parts = [
        panel.frame(panel.high / 2, "", "waiting"),
        panel.shade("down", scenario.broker_down, "no broker"),
        panel.shade("down", dead, f"{victim} killed"),
    ]
    for number, station in enumerate(STATIONS):
        points = [(o.hour, float(o.waiting[station])) for o in samples if station in o.waiting]
        parts.append(panel.line(f"n{number}", points, LONGEST_LOOK))
    return "".join([*parts, _legend(top, [(f"n{i}", name) for i, name in enumerate(STATIONS)])])


def _legend(top: float, words: Sequence[tuple[str, str]]) -> str:
    left = WIDTH - RIGHT + 10
    return "".join(
        f'<path class="{kind}" d="M{left} {top + 14 + 18 * row:.1f}h18"/>'
        f'<text class="soft" x="{left + 23}" y="{top + 18 + 18 * row:.1f}">{word}</text>'
        for row, (kind, word) in enumerate(words)
    )


def _dates(scenario: Scenario, height: float) -> str:
    panel = _Panel(TOP, scenario.hours, 0, 1)
    parts = []
    for day in range(0, scenario.hours // 24 + 1, 2):
        moment = datetime.fromtimestamp(scenario.time(day * 24), UTC)
        x, words = panel.x(day * 24), f"{moment:%b} {moment.day}"
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{height - 42}" y2="{height - 37}"/>'
            f'<text class="soft" x="{x:.1f}" y="{height - 22}" text-anchor="middle">{words}</text>'
        )
    return "".join(parts)
