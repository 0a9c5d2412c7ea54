"""Which link is used: the preferred one that works, and no flapping."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core.errors import UsageError
from qis_edge.core.failover import Chooser

AFTER, SETTLE, RETRY, LONGEST = 30.0, 60.0, 300.0, 1200.0


def chooser(count: int = 2) -> Chooser:
    return Chooser(count, 0.0, after=AFTER, settle=SETTLE, retry=RETRY, longest=LONGEST)


def both_up() -> Chooser:
    """Two links, both long up, the first in use."""
    one = chooser()
    one.up(0, 0.0)
    one.up(1, 0.0)
    assert one.choose(100.0) == 0
    return one


def test_the_most_preferred_is_used_from_the_start() -> None:
    one = chooser(3)
    assert one.choose(0.0) == 0
    for index in (2, 1, 0):
        one.up(index, 1.0)
    assert one.choose(1.0) == 0


def test_another_takes_over_when_it_has_been_away_for_a_while() -> None:
    one = both_up()
    one.down(0, 100.0)
    assert one.choose(129.9) == 0
    assert one.next_deadline(100.0) == 130.0
    assert one.choose(130.0) == 1


def test_one_that_is_not_there_at_the_start_is_waited_for_no_longer() -> None:
    one = chooser()
    one.up(1, 0.5)
    assert one.choose(AFTER - 0.1) == 0
    assert one.choose(AFTER) == 1


def test_a_short_outage_changes_nothing() -> None:
    one = both_up()
    one.down(0, 100.0)
    one.up(0, 129.0)
    assert one.choose(1000.0) == 0


def test_a_preferred_one_is_used_again_when_it_has_settled() -> None:
    one = both_up()
    one.down(0, 100.0)
    assert one.choose(130.0) == 1
    one.up(0, 200.0)
    assert one.choose(259.0) == 1
    assert one.next_deadline(200.0) == 260.0
    assert one.choose(260.0) == 0


def test_a_preferred_one_is_used_at_once_if_the_other_goes() -> None:
    one = both_up()
    one.down(0, 100.0)
    assert one.choose(130.0) == 1
    one.up(0, 140.0)
    one.down(1, 141.0)
    assert one.choose(141.0) == 0


def test_the_next_best_is_used_meanwhile() -> None:
    one = chooser(3)
    for index in range(3):
        one.up(index, 0.0)
    one.down(0, 100.0)
    one.down(1, 100.0)
    assert one.choose(130.0) == 2
    one.up(1, 140.0)
    assert one.choose(200.0) == 1
    one.up(0, 210.0)
    assert one.choose(270.0) == 0


def test_one_that_comes_only_for_moments_is_left() -> None:
    one = both_up()
    for second in range(100, 130, 10):
        one.down(0, second)
        one.choose(second)
        one.up(0, second + 9.0)
        one.choose(second + 9.0)
    assert one.choose(129.5) == 0, "it is up just now"
    one.down(0, 130.0)
    assert one.choose(130.0) == 1
    for second in range(150, 1000, 50):  # never up for as long as it takes to settle
        one.up(0, second)
        assert one.choose(second + 39.0) == 1
        one.down(0, second + 40.0)
        assert one.choose(second + 40.0) == 1


def test_one_where_nobody_answers_is_passed_over_at_once_and_tried_again() -> None:
    one = both_up()
    now, waits = 100.0, []
    for _ in range(5):
        one.silent(0, now)
        assert one.choose(now) == 1
        until = one.next_deadline(now)
        assert until is not None
        assert one.choose(until - 0.1) == 1
        waits.append(until - now)
        now = until
        assert one.choose(now) == 0
    assert waits == [300.0, 600.0, 1200.0, 1200.0, 1200.0]
    one.answered(0, now)
    one.silent(0, now)
    assert one.next_deadline(now) == now + 300.0


def test_a_word_over_one_that_is_passed_over_brings_it_back() -> None:
    one = both_up()
    one.silent(0, 100.0)
    assert one.choose(100.0) == 1
    one.answered(0, 110.0)
    assert one.choose(110.0) == 0


def test_saying_again_that_it_is_silent_adds_nothing() -> None:
    one = both_up()
    for second in range(100, 400):
        one.silent(0, second)
    assert one.choose(399.9) == 1
    assert one.choose(400.0) == 0


def test_where_nobody_answers_anywhere_the_one_in_use_stays() -> None:
    one = both_up()
    one.silent(0, 100.0)
    assert one.choose(100.0) == 1
    one.silent(1, 150.0)
    assert one.choose(150.0) == 1
    assert one.choose(400.0) == 0, "its turn again"


def test_one_that_is_up_is_better_than_none_though_nobody_answers() -> None:
    one = both_up()
    one.silent(0, 100.0)
    one.choose(100.0)
    one.down(1, 110.0)
    assert one.choose(110.0) == 0


def test_nothing_up_and_only_one() -> None:
    one = both_up()
    one.down(0, 100.0)
    one.down(1, 100.0)
    assert one.choose(1000.0) == 0
    assert one.next_deadline(1000.0) is None
    alone = chooser(1)
    assert alone.choose(0.0) == 0
    alone.up(0, 1.0)
    alone.silent(0, 2.0)
    assert alone.choose(3.0) == 0
    alone.down(0, 4.0)
    assert alone.choose(500.0) == 0
    with pytest.raises(UsageError):
        Chooser(0, 0.0)


# Whatever happens.

EVENTS = st.lists(
    st.tuples(
        st.floats(0.0, 200.0),
        st.sampled_from(["up", "down", "silent", "answered"]),
        st.integers(0, 2),
    ),
    max_size=40,
)


@dataclass
class World:
    """A chooser of three, and what is true of its links, told in another way."""

    made: Chooser = field(default_factory=lambda: chooser(3))
    now: float = 0.0
    up: list[bool] = field(default_factory=lambda: [False] * 3)
    since: list[float] = field(default_factory=lambda: [0.0] * 3)
    passed_over: list[float] = field(default_factory=lambda: [0.0] * 3)

    def works(self, index: int) -> bool:
        return self.up[index] and self.passed_over[index] <= self.now

    def happens(self, what: str, index: int) -> None:
        getattr(self.made, what)(index, self.now)
        if what in ("up", "down") and self.up[index] != (what == "up"):
            self.up[index], self.since[index] = what == "up", self.now
        elif what == "silent" and self.works(index):
            # How long, is held above.
            self.passed_over[index] = self.made._links[index].suspended
        elif what == "answered":
            self.passed_over[index] = min(self.passed_over[index], self.now)

    def check(self) -> None:
        before = self.made.current
        after = self.made.choose(self.now)
        assert self.made.choose(self.now) == after == self.made.current
        if after == before:
            return
        assert self.up[after]
        if self.works(before):
            # Only for a better one that will stay, and the best of them.
            assert after < before
            assert self.works(after)
            assert self.now - self.since[after] >= SETTLE
        elif self.works(after):
            assert not any(self.works(index) for index in range(after))
        else:
            assert not any(self.works(index) for index in range(3))


@given(EVENTS)
def test_every_change_has_a_reason(events: list[tuple[float, str, int]]) -> None:
    world = World()
    for wait, what, index in events:
        world.now += wait
        world.check()
        world.happens(what, index)
        world.check()


@given(EVENTS, st.floats(0.0, 1.0))
def test_between_events_it_changes_only_at_its_deadlines(
    events: list[tuple[float, str, int]], part: float
) -> None:
    world = World()
    for wait, what, index in events:
        world.now += wait
        world.happens(what, index)
        chosen = world.made.choose(world.now)
        deadline = world.made.next_deadline(world.now)
        assert deadline is None or deadline > world.now
        later = world.now + part * (10_000.0 if deadline is None else deadline - world.now)
        if deadline is None or later < deadline:
            assert world.made.choose(later) == chosen
            world.now = later


@given(EVENTS)
def test_in_the_end_the_best_that_works_is_used(events: list[tuple[float, str, int]]) -> None:
    world = World()
    for wait, what, index in events:
        world.now += wait
        world.happens(what, index)
        world.made.choose(world.now)
    world.now += LONGEST + SETTLE + AFTER
    while (deadline := world.made.next_deadline(world.now)) is not None:
        world.made.choose(world.now)
        world.now = deadline
    best = next((index for index in range(3) if world.up[index]), None)
    assert best is None or world.made.choose(world.now) == best
