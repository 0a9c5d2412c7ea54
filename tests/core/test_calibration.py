"""Learning how a peer differs and how a day goes: right, robust, restorable."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core.calibration import DAY, FIRST, HOUR, Bias, Course

JUNK = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.integers(),
    st.floats(),
    st.lists(st.one_of(st.floats(), st.integers(), st.text(max_size=2)), max_size=6),
    st.dictionaries(
        st.sampled_from(["rates", "counts", "sums"]), st.lists(st.floats(), max_size=25)
    ),
)


def taught(hours: int, difference: float = 0.0, swing: float = 0.0, noise: float = 0.0) -> Bias:
    rng = random.Random(1)
    bias = Bias(HOUR, 0.1)
    for hour in range(hours):
        daily = swing * math.cos(2 * math.pi * (hour - 15) / 24)
        bias.learn(difference + daily + rng.gauss(0, noise), hour * HOUR)
    return bias


# --- bias ------------------------------------------------------------------------------


def test_nothing_is_said_of_a_stranger() -> None:
    bias = taught(FIRST - 1, 7.0)
    assert not bias.learned
    assert bias.at(0) == 0.0
    assert taught(FIRST, 7.0).at(0) == 7.0


def test_two_days_teach_a_bias_and_its_spread() -> None:
    bias = taught(48, -3.0, noise=1.0)
    assert bias.at(0) == pytest.approx(-3.0, abs=0.5)
    assert bias.spread == pytest.approx(1.0, abs=0.35)
    assert bias.variance == pytest.approx(bias.spread**2)


def test_days_teach_the_swing_of_the_day() -> None:
    bias = taught(10 * 24, 1.0, swing=2.0, noise=0.3)
    afternoon, night = bias.at(15 * HOUR), bias.at(3 * HOUR)
    assert afternoon == pytest.approx(3.0, abs=0.6)
    assert night == pytest.approx(-1.0, abs=0.6)
    assert bias.at(15 * HOUR + 400 * DAY) == pytest.approx(afternoon)


def test_a_bias_that_changes_is_learned_anew() -> None:
    bias = taught(10 * 24, 2.0, noise=0.5)
    for hour in range(14 * 24):
        bias.learn(-4.0, (240 + hour) * HOUR)
    assert bias.at(0) == pytest.approx(-4.0, abs=0.7)


@given(st.floats(-1e28, 1e28), st.integers(0, 23))
def test_one_wild_difference_moves_a_bias_by_a_bounded_step(wild: float, hour: int) -> None:
    bias = taught(48, 1.0, noise=1.0)
    before = bias.at(hour * HOUR)
    spread = bias.spread
    bias.learn(wild, hour * HOUR)
    assert abs(bias.at(hour * HOUR) - before) < 0.4
    assert bias.spread < 1.2 * spread


@given(st.lists(st.floats(-1e28, 1e28), max_size=60), st.floats(0, 1))
def test_nothing_makes_a_bias_anything_but_a_number(wild: list[float], share: float) -> None:
    bias = Bias(HOUR, 0.1)
    for hour, difference in enumerate(wild):
        bias.learn(difference, hour * HOUR, share)
        assert math.isfinite(bias.at(hour * HOUR))
        assert bias.learned == (hour + 1 >= FIRST)
        assert math.isfinite(bias.variance)
        assert bias.variance >= 0


def test_two_of_five_first_differences_may_be_nonsense() -> None:
    bias = Bias(HOUR, 0.1)
    for difference in (1.0, 900.0, 1.1, -900.0, 0.9):
        bias.learn(difference, 0)
    assert bias.at(0) == pytest.approx(1.0)
    assert bias.spread < 1.0


def test_peers_that_always_agreed_may_begin_to_differ() -> None:
    bias = taught(48, 0.0)
    assert 0 < bias.spread < 0.2
    for hour in range(96):
        bias.learn(2.0, hour * HOUR)
    assert bias.at(0) > 1.0


def test_a_doubted_difference_teaches_less() -> None:
    believed, doubted = taught(48, noise=1.0), taught(48, noise=1.0)
    for hour in range(24):
        believed.learn(3.0, hour * HOUR)
        doubted.learn(3.0, hour * HOUR, 0.1)
    assert 0 < doubted.at(0) < believed.at(0) / 3


@pytest.mark.parametrize("hours", [0, 3, FIRST, 100])
def test_a_bias_is_restored(hours: int) -> None:
    bias = taught(hours, 2.0, swing=1.0, noise=0.5)
    again = Bias.restored(HOUR, 0.1, json.loads(json.dumps(bias.state())))
    assert again.learned == bias.learned
    assert again.at(5 * HOUR) == pytest.approx(bias.at(5 * HOUR), abs=1e-4)
    assert again.spread == pytest.approx(bias.spread, abs=1e-4)
    for one in (bias, again):
        for hour in range(6):
            one.learn(2.5, hour * HOUR)
    assert again.at(0) == pytest.approx(bias.at(0), abs=1e-3)


@given(JUNK)
def test_a_state_that_makes_no_sense_is_no_state(junk: object) -> None:
    bias = Bias.restored(HOUR, 0.1, junk)
    bias.learn(1.0, 0)
    assert math.isfinite(bias.at(0))
    course = Course.restored(HOUR, junk)
    course.learn(0, 1.0)
    assert math.isfinite(course.carry(0, DAY))
    assert math.isfinite(course.drift(HOUR))


# --- the course of a day ----------------------------------------------------------------


def daily(hour: float) -> float:
    return 15 + 6 * math.cos(2 * math.pi * (hour - 15) / 24)


def lived(days: float, window: int = HOUR, noise: float = 0.0) -> Course:
    rng = random.Random(2)
    course = Course(window)
    for n in range(int(days * DAY / window)):
        course.learn(n * window, daily(n * window / HOUR) + rng.gauss(0, noise))
    return course


@pytest.mark.parametrize("window", [600, HOUR, 3 * HOUR])
@pytest.mark.parametrize("since", [0, 6, 9, 21])
def test_a_day_like_the_last_ones_is_foreseen(window: int, since: int) -> None:
    course = lived(6, window, noise=0.1)
    assert course.reliance > 0.8
    change = daily(since + 3) - daily(since)
    assert course.carry(since * HOUR, (since + 3) * HOUR) == pytest.approx(change, abs=0.9)


def test_a_day_s_course_adds_up() -> None:
    course = lived(6)
    assert course.carry(5 * HOUR, 5 * HOUR) == 0.0
    assert course.carry(0, DAY) == pytest.approx(0.0, abs=0.2)
    assert course.carry(3 * HOUR, 9 * HOUR) == pytest.approx(-course.carry(9 * HOUR, 3 * HOUR))
    whole = course.carry(0, 3 * DAY + 5 * HOUR)
    assert whole == pytest.approx(course.carry(0, 5 * HOUR) + 3 * course.carry(0, DAY), abs=1e-6)


def test_what_has_no_daily_course_is_left_alone() -> None:
    rng = random.Random(3)
    course, level = Course(HOUR), 50.0
    for hour in range(10 * 24):
        level += rng.gauss(0, 3)
        course.learn(hour * HOUR, level)
    assert course.reliance < 0.35
    assert abs(course.carry(9 * HOUR, 12 * HOUR)) < 2.5
    assert math.sqrt(course.drift(HOUR)) == pytest.approx(3.0, rel=0.4)
    assert course.drift(4 * HOUR) == pytest.approx(4 * course.drift(HOUR))


def test_the_first_day_foresees_nothing() -> None:
    course = Course(HOUR)
    for hour in range(12):
        course.learn(hour * HOUR, daily(hour))
    assert course.carry(13 * HOUR, 15 * HOUR) == 0.0


@given(st.floats(-1e28, 1e28))
def test_one_wild_reading_moves_the_course_by_a_bounded_step(wild: float) -> None:
    course = lived(6, noise=0.2)
    before = [course.carry(h * HOUR, (h + 1) * HOUR) for h in range(24)]
    drift = course.drift(HOUR)
    course.learn(6 * 24 * HOUR, wild)
    after = [course.carry(h * HOUR, (h + 1) * HOUR) for h in range(24)]
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < 1.5
    assert course.drift(HOUR) < 2 * drift


def test_gaps_and_disorder_teach_nothing_wrong() -> None:
    course = Course(HOUR)
    for hour in range(6 * 24):
        if hour % 5:
            course.learn(hour * HOUR, daily(hour))
        course.learn((hour - 7) * HOUR, 1000.0)
    assert course.carry(6 * HOUR, 9 * HOUR) == pytest.approx(daily(9) - daily(6), abs=2.5)


def test_long_windows_have_no_course() -> None:
    course = Course(DAY)
    for day in range(20):
        course.learn(day * DAY, float(day % 3))
    assert course.carry(0, 3 * DAY) == 0.0


def test_a_course_is_restored() -> None:
    course = lived(6, noise=0.2)
    again = Course.restored(HOUR, json.loads(json.dumps(course.state())))
    assert again.reliance == pytest.approx(course.reliance, abs=1e-3)
    assert again.carry(0, 7 * HOUR) == pytest.approx(course.carry(0, 7 * HOUR), abs=1e-2)
    assert again.drift(HOUR) == pytest.approx(course.drift(HOUR), rel=1e-3)
