"""Combining: medians, Huber's mean, words by weight."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core.robust import huber_mean, median, most_weight, weighted_median

numbers = st.floats(-1e6, 1e6)
voices = st.lists(st.tuples(numbers, st.floats(0.01, 100), st.floats(0.01, 100)), min_size=1)


@given(st.lists(numbers, min_size=1))
def test_median(values: list[float]) -> None:
    assert median(values) == pytest.approx(statistics.median(values))
    assert weighted_median(values, [0.7] * len(values)) == pytest.approx(median(values))


def test_weighted_median_goes_by_weight() -> None:
    assert weighted_median([1, 2, 3], [1, 1, 5]) == 3
    assert weighted_median([3, 1, 2], [1, 1, 1]) == 2
    assert weighted_median([1, 4], [1, 1]) == 2.5
    assert weighted_median([1, 4], [1, 1.5]) == 4


@given(voices)
def test_huber_s_mean_lies_among_the_values(given_: list[tuple[float, float, float]]) -> None:
    values, weights, deviations = map(list, zip(*given_, strict=True))
    centre = huber_mean(values, weights, deviations)
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= centre <= max(values) + slack


def test_huber_s_mean_is_the_mean_of_values_that_agree() -> None:
    assert huber_mean([1.0, 2.0, 3.0], [1, 1, 2], [5, 5, 5]) == pytest.approx(2.25)


@given(st.floats(-1e9, 1e9))
def test_one_wild_value_of_five_moves_it_little(wild: float) -> None:
    calm = [19.0, 20.0, 21.0, 20.5]
    centre = huber_mean([*calm, wild], [1.0] * 5, [1.0] * 5)
    assert 19.0 <= centre <= 21.5


def test_words_by_weight() -> None:
    assert most_weight([]) is None
    assert most_weight([("a", 0.0)]) is None
    assert most_weight([("b", 1.0), ("a", 1.0)]) == ("a", 0.5)
    assert most_weight([("b", 1.0), ("a", 1.0), ("b", 2.0)]) == ("b", 0.75)
