"""From readings to outcomes: windows, statistics, kind and confidence, gaps and clocks."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core.distil import MAX_EMPTY, MAX_KEPT, Distiller, Window, _Numbers
from qis_edge.core.domain import Domain
from qis_edge.core.errors import UsageError
from qis_edge.core.outcome import Kind, Outcome, Value

DOMAIN = Domain.parse("""
name = "shed"
revision = 1
[[field]]
name = "warmth"
values = ["cold", "warm"]
[[result]]
name = "temperature"
code = 1
unit = "Cel"
resolution = 0.1
low = -50
high = 60
tolerance = 2
[[result]]
name = "gust"
code = 2
unit = "m/s"
resolution = 0.1
statistic = "maximum"
[[result]]
name = "sky"
code = 3
words = ["clear", "cloudy", "rain"]
statistic = "mode"
""")
HOUR = 3600
T0 = 1_380_000_000 // HOUR * HOUR


def distiller(expected: int = 4, **results: str | None) -> Distiller:
    return Distiller(
        DOMAIN, window=HOUR, expected=expected, results=results or {"temperature": None}
    )


def one(
    expected: int, values: list[Value], name: str = "temperature", how: str | None = None
) -> Outcome:
    """The outcome of one window with evenly spaced readings."""
    made = distiller(expected, **{name: how})
    made.roll(T0)
    for n, value in enumerate(values):
        made.feed(T0 + n * HOUR / max(1, len(values)), {name: value})
    (outcome,) = made.roll(T0 + HOUR)
    return outcome


# --- statistics ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "value"),
    [
        ("mean", 12.5),
        ("median", 11.5),
        ("minimum", 9.0),
        ("maximum", 18.0),
        ("last", 12.0),
        (None, 12.5),
    ],
)
def test_statistics_of_numbers(how: str | None, value: float) -> None:
    assert one(4, [9, 11, 18, 12], how=how).results == {"temperature": value}


def test_the_template_says_which_statistic_unless_the_node_does() -> None:
    assert one(2, [3.0, 8.0], "gust").results == {"gust": 8.0}
    assert one(2, [3.0, 8.0], "gust", "mean").results == {"gust": 5.5}


def test_statistics_of_words() -> None:
    words: list[Value] = ["rain", "clear", "rain", "cloudy", "clear"]
    assert one(5, words, "sky").results == {"sky": "clear"}  # the latest of equals
    assert one(5, words, "sky", "last").results == {"sky": "clear"}
    assert one(5, [*words, "cloudy"], "sky", "last").results == {"sky": "cloudy"}


def test_last_means_last_in_time_not_in_arrival() -> None:
    made = distiller(2, temperature="last", sky="last")
    made.feed(T0 + 50, {"temperature": 2.0, "sky": "rain"})
    made.feed(T0 + 10, {"temperature": 1.0, "sky": "clear"})
    (outcome,) = made.roll(T0 + HOUR)
    assert outcome.results == {"temperature": 2.0, "sky": "rain"}


@given(st.lists(st.floats(-50, 60), min_size=1, max_size=60))
def test_values_are_those_of_the_whole_window_at_the_template_s_resolution(
    values: list[float],
) -> None:
    for how, function in (
        ("mean", statistics.fmean),
        ("median", statistics.median),
        ("minimum", min),
        ("maximum", max),
    ):
        got = one(len(values), list(values), how=how).results["temperature"]
        assert isinstance(got, float)
        assert abs(got - function(values)) <= 0.05 + 1e-9
        assert got == round(got, 1)


def test_a_window_of_very_many_readings_takes_bounded_memory() -> None:
    made = distiller(1, temperature="median")
    for n in range(20_000):
        made.feed(T0 + n / 10, {"temperature": n / 1000})
    series = made._open[T0].series["temperature"]
    assert isinstance(series, _Numbers)
    assert len(series.some) <= MAX_KEPT
    (outcome,) = made.roll(T0 + HOUR)
    assert outcome.results["temperature"] == pytest.approx(10.0, abs=0.1)
    assert outcome.samples == 20_000


# --- kind and confidence ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "kind", "confidence"),
    [(0, Kind.OPEN, 0), (4, Kind.OPEN, 0.2), (5, Kind.PARTIAL, 0.25), (15, Kind.PARTIAL, 0.75),
     (16, Kind.RESOLVED, 0.8), (20, Kind.RESOLVED, 1), (30, Kind.RESOLVED, 1)],
)  # fmt: skip
def test_kind_and_confidence_by_coverage(count: int, kind: Kind, confidence: float) -> None:
    outcome = one(20, [20.0] * count)
    assert (outcome.kind, outcome.confidence, outcome.samples) == (kind, confidence, count)
    assert outcome.results["temperature"] == (20.0 if count else None)


@pytest.mark.parametrize(
    ("values", "kind", "confidence"),
    [([20, 20], Kind.RESOLVED, 1), ([19, 21], Kind.RESOLVED, 0.8),
     ([18.1, 21.9], Kind.RESOLVED, 0.53), ([17.9, 22.1], Kind.CONTRADICTED, 0.48),
     ([10, 30], Kind.CONTRADICTED, 0.04)],
)  # fmt: skip
def test_kind_and_confidence_by_spread(values: list[Value], kind: Kind, confidence: float) -> None:
    outcome = one(2, values)
    assert (outcome.kind, outcome.confidence) == (kind, confidence)


def test_words_agree_as_far_as_they_are_the_same() -> None:
    assert one(4, ["rain", "rain", "rain", "clear"], "sky").confidence == 0.75
    assert one(4, ["rain", "clear", "cloudy", "clear"], "sky").kind is Kind.RESOLVED
    assert one(3, ["rain", "clear", "cloudy"], "sky").kind is Kind.CONTRADICTED
    assert one(3, ["rain", "clear", "cloudy"], "sky", "last").confidence == 1.0


def test_a_failed_channel_is_missing_and_lowers_the_confidence() -> None:
    made = distiller(1, temperature=None, gust=None)
    made.feed(T0, {"temperature": None, "gust": 4.0})
    (outcome,) = made.roll(T0 + HOUR)
    assert outcome.results == {"temperature": None, "gust": 4.0}
    assert (outcome.kind, outcome.confidence, outcome.samples) == (Kind.PARTIAL, 0.5, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -51, 60.5, "rain", True])
def test_faults_of_a_sensor_are_counted_and_left_out(value: Value) -> None:
    made = distiller(2)
    assert not made.feed(T0, {"temperature": value})
    assert made.feed(T0 + 1, {"temperature": 20.0})
    assert made.rejected == 1
    (outcome,) = made.roll(T0 + HOUR)
    assert outcome.results["temperature"] == 20.0
    assert outcome.samples == 1


@pytest.mark.parametrize("time", [math.nan, math.inf, -1.0, 2.0**41])
def test_impossible_times_are_refused(time: float) -> None:
    made = distiller()
    assert not made.feed(time, {"temperature": 20.0})
    assert made.rejected == 1
    assert made.next_deadline() is None


@given(
    st.lists(st.one_of(st.none(), st.floats(), st.text(max_size=3), st.integers()), max_size=10),
    st.integers(1, 10),
)
def test_whatever_a_sensor_says_there_is_one_valid_outcome(
    values: list[Value], expected: int
) -> None:
    outcome = one(expected, values)
    assert 0.0 <= outcome.confidence <= 1.0
    assert DOMAIN.quantise(outcome) == outcome
    assert (outcome.results["temperature"] is None) == (outcome.samples == 0)


# --- windows ---------------------------------------------------------------------------


def times(closed: list[Outcome]) -> list[int]:
    return [outcome.time for outcome in closed]


def test_windows_are_aligned_to_utc() -> None:
    made = distiller(1)
    assert made.next_deadline() is None
    made.feed(T0 + 1234.5, {"temperature": 1.0})
    assert made.next_deadline() == T0 + HOUR
    assert made.roll(T0 + HOUR - 0.01) == []
    assert times(made.roll(T0 + HOUR)) == [T0]
    assert made.next_deadline() == T0 + 2 * HOUR
    assert made.roll(T0 + HOUR) == []


def test_a_reading_on_the_boundary_belongs_to_the_later_window() -> None:
    made = distiller(1)
    made.feed(T0, {"temperature": 1.0})
    made.feed(T0 + HOUR, {"temperature": 2.0})
    assert [outcome.results["temperature"] for outcome in made.roll(T0 + 2 * HOUR)] == [1.0, 2.0]


def test_a_reading_for_a_closed_window_is_late() -> None:
    made = distiller(1)
    made.feed(T0, {"temperature": 1.0})
    assert times(made.roll(T0 + HOUR)) == [T0]
    assert not made.feed(T0 + HOUR - 1, {"temperature": 5.0})
    assert made.late == 1


def test_an_empty_window_is_open_with_missing_results() -> None:
    made = distiller(4, temperature=None, sky=None)
    made.feed(T0, {"temperature": 1.0})
    first, second = made.roll(T0 + 2 * HOUR)
    assert first.results == {"temperature": 1.0, "sky": None}
    assert second.results == {"temperature": None, "sky": None}
    assert (second.kind, second.confidence) == (Kind.OPEN, 0.0)
    assert second.samples == 0


def test_a_long_gap_is_not_filled() -> None:
    made = distiller(1)
    made.feed(T0, {"temperature": 1.0})
    assert len(made.roll(T0 + (1 + MAX_EMPTY) * HOUR)) == 1 + MAX_EMPTY
    made.feed(T0 + (1 + MAX_EMPTY) * HOUR, {"temperature": 1.0})
    later = T0 + 500_000 * HOUR
    assert times(made.roll(later)) == [T0 + (1 + MAX_EMPTY) * HOUR]
    assert made.skipped == 500_000 - MAX_EMPTY - 2
    assert made.next_deadline() == later + HOUR


def test_a_log_read_at_once_becomes_all_its_windows() -> None:
    made = distiller(1)
    for n in range(1000):
        made.feed(T0 + n * HOUR, {"temperature": n / 100})
    assert times(made.roll(T0 + 1000 * HOUR)) == [T0 + n * HOUR for n in range(1000)]


def test_a_small_step_back_of_the_clock_repeats_no_window() -> None:
    made = distiller(1)
    made.feed(T0 + HOUR + 1, {"temperature": 1.0})
    made.roll(T0 + HOUR + 2)
    assert made.roll(T0 + 10) == []
    assert not made.feed(T0 + 11, {"temperature": 5.0})
    assert made.late == 1
    assert times(made.roll(T0 + 2 * HOUR)) == [T0 + HOUR]


def test_a_large_step_back_begins_anew() -> None:
    made = distiller(1)
    made.feed(T0 + 100 * HOUR, {"temperature": 1.0})
    assert times(made.roll(T0)) == [T0 + 100 * HOUR]  # what was there is not thrown away
    assert made.feed(T0 + 5, {"temperature": 2.0})
    assert times(made.roll(T0 + HOUR)) == [T0]


def test_a_sensor_with_a_wild_clock_takes_bounded_memory() -> None:
    made = distiller(1)
    for n in range(10_000):
        made.feed(T0 + n * HOUR, {"temperature": 1.0})
    assert len(made._open) == 4096
    assert made.rejected == 10_000 - 4096


# --- the user's own function -----------------------------------------------------------


def test_a_function_takes_the_place_of_the_formula() -> None:
    seen: list[Window] = []

    def mine(window: Window) -> Outcome:
        seen.append(window)
        return Outcome(0, results={"temperature": 7.77}, summary="mine", samples=1)

    made = Distiller(DOMAIN, window=HOUR, expected=3, results={"temperature": None}, function=mine)
    made.feed(T0 + 1, {"temperature": 1.0})
    made.feed(T0 + 2, {"temperature": 999.0})
    (outcome,) = made.roll(T0 + HOUR)
    assert outcome == Outcome(T0, results={"temperature": 7.8}, summary="mine", samples=1)
    (window,) = seen
    assert (window.time, window.length, window.expected) == (T0, HOUR, 3)
    assert list(window.readings) == [(T0 + 1, {"temperature": 1.0})]


@pytest.mark.parametrize("fault", ["raises", "wrong type", "not a number"])
def test_a_function_that_fails_costs_no_outcome(fault: str) -> None:
    def mine(window: Window) -> Outcome:
        if fault == "raises":
            raise RuntimeError("no")
        if fault == "wrong type":
            return {"temperature": 1}  # type: ignore[return-value]  # the point
        return Outcome(window.time, results={"temperature": math.nan})

    made = Distiller(DOMAIN, window=HOUR, expected=1, results={"temperature": None}, function=mine)
    made.feed(T0, {"temperature": 1.0})
    (outcome,) = made.roll(T0 + HOUR)
    assert outcome.results == {"temperature": 1.0}
    assert made.failures == 1
    assert made.last_error


# --- misuse ----------------------------------------------------------------------------


def test_misuse_is_named() -> None:
    for window, expected, results, field in (
        (0, 1, {"temperature": None}, "window"),
        (60, 0, {"temperature": None}, "expected"),
        (60, 1, {}, "results"),
        (60, 1, {"temprature": None}, "temprature"),
        (60, 1, {"temperature": "mode"}, "temperature"),
        (60, 1, {"sky": "mean"}, "sky"),
    ):
        with pytest.raises(UsageError) as caught:
            Distiller(DOMAIN, window=window, expected=expected, results=results)
        assert caught.value.field == field
    with pytest.raises(UsageError, match="does not give"):
        distiller().feed(T0, {"gust": 1.0})
