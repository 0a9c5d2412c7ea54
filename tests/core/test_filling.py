"""Waiting to fill a packet: bounded, whatever the clock does, and only where it helps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core.errors import UsageError
from qis_edge.core.filling import AHEAD, MARGIN, Filling
from qis_edge.core.priority import Priority

NOW = 1_800_000_000
MINUTE, HOUR = 60, 3600
LONGEST = (12 * HOUR, HOUR, 5 * MINUTE)


@dataclass(frozen=True)
class Waiting:
    """A candidate whose oldest window began so long ago."""

    age: float
    priority: Priority = Priority.NORMAL
    full: bool = False

    @property
    def oldest(self) -> int:
        return round(NOW - self.age)


def filling(window: float = MINUTE, longest: Any = LONGEST) -> Filling:
    return Filling(longest, window=window)


@pytest.mark.parametrize(("priority", "longest"), list(zip(Priority, (*LONGEST, 0), strict=True)))
def test_each_priority_waits_as_long_as_it_may(priority: Priority, longest: int) -> None:
    policy = filling()
    made = Waiting(MINUTE, priority)
    due = policy.due(made, NOW)
    assert due == NOW + (longest + MARGIN if longest else 0)
    look = policy.look(due - 0.1)
    assert look.ready(made) == (not longest)
    assert look.next_at == (due if longest else None)
    assert policy.look(due).ready(made)


def test_a_full_packet_goes_at_once() -> None:
    assert filling().look(NOW).ready(Waiting(MINUTE, full=True))
    assert filling().look(NOW).ready(Waiting(MINUTE, Priority.LOW, full=True))


def test_a_backlog_goes_at_once() -> None:
    look = filling().look(NOW)
    assert look.ready(Waiting(30 * 24 * HOUR, Priority.LOW))
    assert look.ready(Waiting(2 * HOUR))
    assert look.next_at is None


@pytest.mark.parametrize("age", [-1e9, -365 * 24 * HOUR, MINUTE - AHEAD - 1])
def test_what_is_dated_in_the_future_does_not_wait(age: float) -> None:
    assert filling().look(NOW).ready(Waiting(age, Priority.LOW))


def test_a_clock_that_was_corrected_a_little_changes_little() -> None:
    look = filling().look(NOW)
    assert not look.ready(Waiting(MINUTE - AHEAD))
    assert look.next_at == NOW + AHEAD + HOUR + MARGIN


def test_nothing_waits_where_no_other_can_come_in_time() -> None:
    assert filling(HOUR + 1).look(NOW).ready(Waiting(HOUR + 1))
    assert not filling(HOUR + 1).look(NOW).ready(Waiting(HOUR + 1, Priority.LOW))


def test_one_that_is_made_at_the_very_end_of_the_wait_comes_along() -> None:
    policy = filling(HOUR)
    first = Waiting(HOUR)  # made now; the next is made in an hour
    assert not policy.look(NOW + HOUR + MARGIN / 2).ready(first)
    assert policy.look(NOW + HOUR + MARGIN).ready(first)


def test_nothing_waits_when_no_more_are_made() -> None:
    policy = filling()
    assert not policy.look(NOW).ready(Waiting(MINUTE))
    policy.ended = True
    assert policy.look(NOW).ready(Waiting(MINUTE))


def test_a_look_knows_when_the_first_is_due() -> None:
    look = filling().look(NOW)
    ages = [30 * MINUTE, 50 * MINUTE, 10 * MINUTE]
    assert [look.ready(Waiting(age)) for age in ages] == [False] * 3
    assert look.next_at == NOW - 50 * MINUTE + MINUTE + HOUR + MARGIN
    assert look.ready(Waiting(MINUTE, Priority.URGENT))
    assert look.next_at is not None


@pytest.mark.parametrize("wrong", [(1, 2), (1, 2, 3, 4), (-1, 0, 0), (0, float("inf"), 0)])
def test_nonsense_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="longest"):
        filling(longest=wrong)
    with pytest.raises(UsageError, match="window"):
        filling(window=0)


SECONDS = st.floats(0, 31 * 86400)


@given(
    longest=st.tuples(SECONDS, SECONDS, SECONDS),
    window=st.integers(1, 31 * 86400),
    age=st.floats(-1e9, 1e9),
    priority=st.sampled_from(Priority),
    full=st.booleans(),
)
def test_the_wait_is_bounded_whatever_the_clock_shows(
    longest: tuple[float, float, float],
    window: int,
    age: float,
    priority: Priority,
    full: bool,
) -> None:
    policy = Filling(longest, window=window)
    waiting = Waiting(age, priority, full)
    due = policy.due(waiting, NOW)
    most = (*longest, 0.0)[priority]
    assert NOW <= due <= NOW + (most + MARGIN + AHEAD if most else 0)
    # Asked when it is due, by any clock that went on from here, it goes.
    assert policy.look(due).ready(waiting)
    # Asked again before, the answer is the same: waiting does not begin anew.
    assert policy.due(waiting, (NOW + due) / 2) == pytest.approx(due) or due == NOW


@given(
    longest=st.integers(1, 12 * HOUR),
    window=st.integers(1, 12 * HOUR),
    jumps=st.lists(st.floats(-86400, 86400), max_size=6),
)
def test_a_clock_that_jumps_prolongs_no_wait_beyond_the_jumps(
    longest: int, window: int, jumps: list[float]
) -> None:
    """Whoever sleeps until what is next due and then looks again is done in bounded time."""
    policy = Filling((longest, longest, longest), window=window)
    waiting = Waiting(window)
    passed, shift = 0.0, 0.0  # real seconds since it was made; what was done to the clock
    for jump in (*jumps, 0.0, 0.0, 0.0):
        look = policy.look(NOW + passed + shift)
        if look.ready(waiting):
            break
        assert look.next_at is not None
        passed, shift = look.next_at - NOW - shift, shift + jump
    assert look.ready(waiting)
    assert passed <= (len(jumps) + 1) * (longest + MARGIN + AHEAD)
