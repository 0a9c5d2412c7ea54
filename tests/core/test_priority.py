"""Rules that make an outcome urgent."""

from __future__ import annotations

import pytest

from qis_edge.core.errors import UsageError
from qis_edge.core.outcome import Outcome, Value
from qis_edge.core.priority import PRIORITIES, Priority, Rule, priority_of


def outcome(**results: Value) -> Outcome:
    named: dict[str | int, Value] = {name: value for name, value in results.items()}  # noqa: C416 - wider
    return Outcome(0, results=named)


@pytest.mark.parametrize(
    ("value", "holds"),
    [(35.1, True), (35.0, False), (0, False), (-20, False), (-20.5, True), (None, False)],
)
def test_bounds(value: Value, holds: bool) -> None:
    rule = Rule("temperature", Priority.URGENT, above=35.0, below=-20.0)
    assert rule.holds(outcome(temperature=value)) == holds


def test_one_bound_says_nothing_of_the_other_side() -> None:
    assert not Rule("t", Priority.HIGH, above=0).holds(outcome(t=-1e9))
    assert not Rule("t", Priority.HIGH, below=0).holds(outcome(t=1e9))
    assert Rule("t", Priority.HIGH, below=0).holds(outcome(t=-1e-9))


def test_words() -> None:
    rule = Rule("sky", Priority.URGENT, equals="hail")
    assert rule.holds(outcome(sky="hail"))
    assert not rule.holds(outcome(sky="rain"))
    assert not rule.holds(outcome(sky=None))
    assert not rule.holds(outcome(wind="hail"))
    assert not Rule("sky", Priority.URGENT, above=1).holds(outcome(sky="hail"))
    assert not rule.holds(outcome(sky=3.0))


def test_the_first_that_holds_decides() -> None:
    rules = [
        Rule("t", Priority.URGENT, above=40),
        Rule("t", Priority.LOW, above=20, below=0),
        Rule("sky", Priority.HIGH, equals="hail"),
    ]

    def given(**results: Value) -> Priority:
        return priority_of(outcome(**results), rules, Priority.NORMAL)

    assert given(t=41, sky="hail") is Priority.URGENT
    assert given(t=30, sky="hail") is Priority.LOW
    assert given(t=10, sky="hail") is Priority.HIGH
    assert given(t=10, sky="rain") is Priority.NORMAL
    assert given() is Priority.NORMAL
    assert priority_of(outcome(t=41), [], Priority.LOW) is Priority.LOW


def test_a_rule_without_a_condition_is_refused() -> None:
    with pytest.raises(UsageError, match="above, below or equals"):
        Rule("t", Priority.HIGH)


def test_words_for_people() -> None:
    assert PRIORITIES == ("low", "normal", "high", "urgent")
    assert [Priority[word.upper()].label for word in PRIORITIES] == list(PRIORITIES)
