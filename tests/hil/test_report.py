"""What a run on the bench comes to: figures, text, JSON and the page."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hil.page import duration, to_html
from hil.plots import bars, scatter, ticks
from hil.report import (
    MOST_POINTS,
    Bench,
    Device,
    Hop,
    Result,
    RoundTrip,
    Run,
    Spent,
    Transfer,
    busiest_hour,
    figures,
    number,
    spread,
    thinned,
    to_json,
    to_text,
    where,
)


def a_run(**more: Any) -> Run:
    """A small run with something of everything."""
    return Run(
        began=1767225600.0,
        seconds=61.2,
        versions={"qis-edge": "0.1.0"},
        benches=[Bench("radio", True, 40.0), Bench("line", True)],
        devices=[
            Device("node", "/dev/a", 0x51A00001, "<Field>", "2.7.26", "EU_868", "LONG_FAST"),
            Device("gateway", "/dev/b", 0x51A00002, "Base", "2.7.26", "US", "LONG_FAST"),
            Device("node's end", "/dev/c"),
        ],
        hops=[
            Hop("node", "gateway", 200, 1.0, 2.0, 4.5, -97),
            Hop("node", "gateway", 200, 3.0, 3.0, -1.5, -99),
            Hop("node", "gateway", 200, 4.0),
            Hop("node", "gateway", 200, 5.0, counts=False),
            Hop("gateway", "node", 20, 6.0, 0.5, 7.0, -80),
            Hop("node's end", "gateway's end", 20, 6.0, 0.5),
        ],
        spent=[Spent("node", 0.0, 200, 1.9), Spent("node", 4000.0, 200, 1.9)],
        round_trips=[RoundTrip("radio echo", 12, 1.5), RoundTrip("radio echo", 200, 4.5)],
        transfers=[Transfer("burst", 6000, 75.0), Transfer("night", 1000, 50.0, 144)],
        results=[
            Result("a first", "passed", 1.0),
            Result("a second [231]", "skipped", 0.0, "somebody has to <unplug> it"),
        ],
        telemetry={"node": (12.5, 3.25)},
        **more,
    )


def test_delivery_counts_what_should_have_arrived() -> None:
    up, down = (
        next(one for one in figures(a_run())["delivery"] if one["from"] == source)
        for source in ("node", "gateway")
    )
    assert (up["to"], up["sent"], up["delivered"], up["ratio"]) == ("gateway", 3, 2, 0.6667)
    assert (down["sent"], down["delivered"], down["ratio"]) == (1, 1, 1.0)
    assert (up["delay"]["min"], up["delay"]["max"]) == (2.0, 3.0)


def test_signal_is_of_what_arrived_by_radio() -> None:
    signal = figures(a_run())["signal"]
    assert [(one["from"], one["frames"]) for one in signal] == [("gateway", 1), ("node", 2)]
    assert signal[1]["snr"]["min"] == -1.5
    assert signal[1]["rssi"]["max"] == -97.0


def test_airtime_is_held_against_the_law_of_the_region() -> None:
    node, gateway = figures(a_run())["airtime"]
    assert (node["frames"], node["seconds"], node["busiest_hour"]) == (2, 3.8, 1.9)
    assert node["allowed_an_hour"] == 360.0
    assert node["share"] == pytest.approx(1.9 / 360, abs=1e-5)
    assert (gateway["allowed_an_hour"], gateway["share"]) == (None, None)


def test_the_busiest_hour_begins_anywhere() -> None:
    assert busiest_hour([]) == 0.0
    assert busiest_hour([(0.0, 1.0), (3500.0, 2.0), (3700.0, 3.0), (9000.0, 4.0)]) == 5.0


@pytest.mark.parametrize(
    ("outcomes", "passed"),
    [(["passed"], True), (["passed", "skipped"], True), (["passed", "failed"], False), ([], False)],
)
def test_a_run_passed_if_something_ran_and_nothing_failed(
    outcomes: list[str], passed: bool
) -> None:
    run = Run(results=[Result("x", outcome, 0.0) for outcome in outcomes])
    assert figures(run)["passed"] is passed


def test_a_spread_of_nothing_and_of_much() -> None:
    assert set(spread([]).values()) == {None}
    found = spread([float(i) for i in range(1, 101)])
    assert found == {"min": 1.0, "p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}


def test_thinning_keeps_both_ends() -> None:
    assert thinned([1, 2, 3], 5) == [1, 2, 3]
    few = thinned(list(range(10_000)))
    assert (len(few), few[0], few[-1]) == (MOST_POINTS, 0, 9999)
    assert few == sorted(set(few))


def test_json_is_the_figures() -> None:
    found = figures(a_run())
    assert json.loads(to_json(found)) == json.loads(json.dumps(found))


def test_the_text_says_what_it_ran_on_and_what_did_not_pass() -> None:
    text = to_text(figures(a_run()))
    assert "1 passed, 1 skipped" in text
    assert "EMULATED radios, 40 times as fast; an EMULATED serial line" in text
    assert "a second [231]: somebody has to <unplug> it" in text
    assert re.search(r"node → gateway +3 +2 +66\.7%", text)
    assert re.search(r"night +1000 +144 +50 +20", text)
    assert re.search(r"gateway +0 +0 +0 +no limit", text)


def test_real_hardware_is_called_so() -> None:
    assert where([{"medium": "radio", "emulated": False, "rate": 1.0}]) == "real radios"


def test_a_run_without_anything_has_a_report_too() -> None:
    found = figures(Run())
    assert "no test ran" in to_text(found)
    assert "no test ran" in to_html(found)


def test_numbers_are_short() -> None:
    shown = [number(one) for one in (None, 0.0, 0.004, 1.5, -97.0, 123.4, 20.0)]
    assert shown == ["", "0", "0.004", "1.5", "-97", "123", "20"]


def test_round_trips_are_drawn_where_there_is_something_to_compare() -> None:
    run = a_run()
    run.round_trips = [RoundTrip("joining", 0, 25.0)] + [
        RoundTrip("receipt", 100, 3.0 + i) for i in range(5)
    ]
    html = to_html(figures(run))
    assert "Round trips: " not in html
    assert "receipt, median of 5" in html
    assert "joining, median" not in html
    run.round_trips.append(RoundTrip("receipt", 200, 9.0))
    assert "Round trips: receipt" in to_html(figures(run))


def test_durations_are_said_as_people_say_them() -> None:
    assert [duration(one) for one in (0.0003, 0.0447, 0.5, 24.69)] == [
        "0.3 ms", "44.7 ms", "0.5 s", "24.69 s",
    ]  # fmt: skip


class _Page(HTMLParser):
    """Tags that were opened and not closed, and everything that is fetched."""

    VOID = frozenset({"meta", "circle", "line", "rect"})
    OPTIONAL = frozenset({"tr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.fetched += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in self.VOID | self.OPTIONAL:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID | self.OPTIONAL:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere() -> None:
    html = to_html(figures(a_run()))
    page = _Page()
    page.feed(html)
    assert page.open == []
    assert page.fetched == []
    assert {"svg", "table", "style"} <= page.seen
    assert not {"script", "link", "img"} & page.seen
    assert "url(" not in html
    assert "http" not in html


def test_the_page_shows_what_others_wrote_as_text() -> None:
    html = to_html(figures(a_run()))
    assert "&lt;Field&gt;" in html
    assert "&lt;unplug&gt;" in html
    assert "<Field>" not in html


def test_the_page_says_that_no_hardware_took_part() -> None:
    assert "No hardware took part" in to_html(figures(a_run()))
    real = a_run()
    real.benches = [Bench("radio", False)]
    assert "hardware took part" not in to_html(figures(real))
    real.benches.append(Bench("line", True))
    assert "Not all of it was hardware" in to_html(figures(real))


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-97.0, -94.0), (3.0, 3.0), (0.0, 0.001), (0.0, 8640.0)]
)
def test_ticks_enclose_what_is_shown(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert 2 <= len(found) <= 9
    steps = {round(b - a, 9) for a, b in itertools.pairwise(found)}
    assert len(steps) == 1


def test_every_dot_and_bar_is_inside_its_picture() -> None:
    drawn = scatter({"a": [(0.0, -5.0), (9.0, 7.0)], "b": [(3.0, 3.0)]}, x="x", y="y", title="t")
    dots = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.-]+)" cy="([\d.-]+)"', drawn)]
    assert len(dots) == 3
    assert all(0 < x < 420 and 0 < y < 230 for x, y in dots)
    assert "b</span>" in drawn
    over = bars([("a", 500.0, 360.0, ""), ("b", 0.0, None, "")], title="t")
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', over)]
    assert max(widths) <= 420
    assert " over" in over


def test_the_page_of_how_to_run_it_names_every_option() -> None:
    root = Path(__file__).parents[2]
    options = re.findall(r'addoption\(\s*"(--[a-z-]+)"', (root / "hil/conftest.py").read_text())
    page = (root / "docs/hil.md").read_text()
    assert len(options) > 8
    assert [one for one in options if f"`{one}" not in page] == []
