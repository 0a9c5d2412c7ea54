"""Windows, timers and silences, as custody of one copy shows them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from qis_edge.core.custody import Custody
from qis_edge.core.errors import UsageError
from qis_edge.core.pacing import MESH, Pace
from tests.core.kit import offer, send

GATEWAY = b"gateway1"
URGENT = 3
PLAIN = Pace(window=4, first_timeout=2.0, least_timeout=1.0, most_timeout=600.0)


def custody(jitter: float = 0.0) -> Custody[int]:
    made: Custody[int] = Custody(lambda: jitter, pace=PLAIN)
    made.link_up(0.0)
    return made


# --- the window and the order ----------------------------------------------------------


def test_no_more_is_sent_than_the_window_and_the_room_allow() -> None:
    machine = custody()
    offer(machine, *range(10))
    assert machine.due(0, 2) == [0, 1]
    assert machine.due(0, 0) == []
    assert send(machine, 0) == [0, 1, 2, 3]
    assert machine.in_flight == 4
    assert send(machine, 0.1) == []
    machine.answered(GATEWAY, 0.2, held=[1, 2])
    assert send(machine, 0.2) == [4, 5]


def test_urgent_goes_first_and_past_a_full_window() -> None:
    machine = custody()
    offer(machine, 1, 2, 3)
    offer(machine, 4, priority=2)
    offer(machine, 5, priority=URGENT)
    assert machine.due(0, 10) == [5, 4, 1, 2]
    send(machine, 0)
    offer(machine, 6, 7, priority=URGENT, now=0.5)
    assert send(machine, 0.5) == [6]
    assert machine.room_for() == 0


def test_room_for_says_what_could_be_sent() -> None:
    machine = custody()
    assert machine.room_for() == 4
    assert machine.room_for(URGENT) == 5
    offer(machine, 1, 2, 3)
    assert (machine.room_for(), machine.room_for(URGENT)) == (1, 2)
    send(machine, 0)
    assert (machine.room_for(), machine.room_for(URGENT)) == (1, 2)
    machine.answered(GATEWAY, 0.1, held=[1], later=[(60, [2])])
    assert machine.room_for() == 3
    machine.link_down(1.0)
    assert machine.room_for(URGENT) == 0


def test_what_there_is_no_room_for_is_to_be_offered_again() -> None:
    machine = custody()
    offer(machine, *range(PLAIN.capacity))
    assert machine.offer(1000, 1, 0.0) == (1000,)
    assert machine.offer(1001, URGENT, 0.0) == (PLAIN.capacity - 1,)
    assert len(machine) == PLAIN.capacity
    assert machine.due(0, 1) == [1001]


def test_a_packet_is_offered_once_and_may_become_urgent() -> None:
    machine = custody()
    offer(machine, 1, 2)
    offer(machine, 2, priority=URGENT)
    assert len(machine) == 2
    assert machine.due(0, 10) == [2, 1]


def test_a_packet_that_is_withdrawn_is_forgotten() -> None:
    machine = custody()
    offer(machine, 1, 2)
    send(machine, 0)
    assert machine.withdraw(1)
    assert not machine.withdraw(1)
    assert 1 not in machine
    assert 2 in machine
    machine.sent(1, 1.0)
    assert machine.counters.sent == 2
    assert send(machine, 10) == [2]


# --- timers ----------------------------------------------------------------------------


def test_timeouts_double_and_are_capped() -> None:
    machine = custody()
    offer(machine, 1)
    times = []
    now = 0.0
    while now < 5000:
        if send(machine, now):
            times.append(now)
        deadline = machine.next_deadline()
        assert deadline is not None
        assert deadline > now
        now = deadline
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[:3] == [2, 4, 8]
    assert gaps == sorted(gaps)
    assert gaps[-1] == 600


def test_jitter_adds_up_to_a_quarter() -> None:
    for jitter, deadline in ((0.0, 2.0), (1.0, 2.5)):
        machine = custody(jitter=jitter)
        offer(machine, 1)
        send(machine, 0)
        assert machine.next_deadline() == deadline


def test_the_timeout_follows_the_round_trip() -> None:
    machine = custody()
    assert machine.timeout == 2.0
    offer(machine, 1, 2)
    send(machine, 0)
    machine.answered(GATEWAY, 4.0, held=[1])
    # Karn: 2 was not resent yet either, so it counts as well.
    assert machine.timeout == 4.0 + 4 * 2.0
    for key in range(10, 60):
        offer(machine, key, now=key)
        send(machine, key)
        machine.answered(GATEWAY, key + 4.0, held=[key])
    assert machine.timeout == pytest.approx(4.0, abs=0.1)


def test_what_was_sent_twice_measures_nothing() -> None:
    machine = custody()
    offer(machine, 1)
    send(machine, 0)
    send(machine, 2)
    machine.answered(GATEWAY, 2.001, held=[1])
    assert machine.timeout == 2.0


def test_an_answer_after_its_timeout_measures_nothing_though_not_resent() -> None:
    machine = custody()
    offer(machine, 1)
    send(machine, 0)
    machine.due(2.0, 1)
    machine.answered(GATEWAY, 500.0, held=[1])
    assert machine.timeout == 2.0


def test_a_bad_moment_doubles_all_timers_once() -> None:
    machine = custody()
    offer(machine, 1, 2, 3, 4)
    send(machine, 0)
    assert send(machine, 2) == [1, 2, 3, 4]
    assert machine.next_deadline() == 6
    machine.answered(GATEWAY, 3, held=[1, 2, 3, 4])
    offer(machine, 5, now=3)
    send(machine, 3)
    assert machine.next_deadline() == 3 + 4  # not measured yet: still doubled
    machine.answered(GATEWAY, 4, held=[5])
    offer(machine, 6, now=4)
    send(machine, 4)
    assert machine.next_deadline() == 4 + 3  # measured: 1 s and half of it, four times


def test_who_knows_that_it_was_lost_may_say_so() -> None:
    machine = custody()
    offer(machine, 1, 2)
    send(machine, 0)
    assert machine.again([2, 99], 0.5) == 1
    assert send(machine, 0.5) == [2]
    assert machine.counters.resent == 1
    machine.answered(GATEWAY, 0.6, later=[(3600, [2])])
    machine.again([2], 1.0)
    assert send(machine, 1.0) == [2]


# --- silence ---------------------------------------------------------------------------


def silence(machine: Custody[int], *keys: int) -> float:
    """Send into the void until only probes go out; when that was."""
    offer(machine, *keys)
    now = 0.0
    while not machine.silent:
        send(machine, now)
        deadline = machine.next_deadline()
        assert deadline is not None
        now = deadline
        machine.due(now, 1)
    return now


def test_into_silence_goes_one_probe_at_a_time() -> None:
    machine = custody()
    now = silence(machine, 1, 2, 3)
    assert send(machine, now) == [1]
    assert send(machine, now) == []
    assert machine.room_for() == 0
    deadline = machine.next_deadline()
    assert deadline is not None
    assert deadline - now >= 16
    assert send(machine, deadline) == [2]  # another each time


def test_what_is_urgent_goes_once_into_silence() -> None:
    machine = custody()
    now = silence(machine, 1, 2, 3)
    send(machine, now)
    assert machine.room_for(URGENT) == 2
    offer(machine, 9, priority=URGENT, now=now + 1)
    assert machine.next_deadline() == now + 1
    assert send(machine, now + 1) == [9]
    assert send(machine, now + 2) == []


def test_a_word_from_a_gateway_ends_the_silence() -> None:
    for word in ("receipt", "greeting"):
        machine = custody()
        now = silence(machine, 1, 2, 3)
        send(machine, now)
        if word == "receipt":
            machine.answered(GATEWAY, now + 5, held=[1])
            expected = [2, 3]
        else:
            machine.heard(now + 5)
            expected = [1, 2, 3]
        assert not machine.silent
        assert send(machine, now + 5) == expected


def test_an_empty_machine_in_silence_takes_one_to_probe_with() -> None:
    machine = custody()
    now = silence(machine, 1)
    machine.withdraw(1)
    assert machine.room_for() == 4
    offer(machine, 2, now=now)
    assert machine.room_for() == 0
    assert send(machine, now) == [2]


def test_all_postponed_in_silence_waits_for_the_first() -> None:
    machine = custody()
    silence(machine, 1)
    machine.answered(GATEWAY, 100, later=[(1000, [1])])
    offer(machine, 2, now=100)
    now = 100.0
    while not machine.silent:
        send(machine, now)
        now = machine.next_deadline() or 0
        machine.due(now, 1)
    machine.withdraw(2)
    assert send(machine, now) == []
    assert machine.next_deadline() == 1100


# --- the link --------------------------------------------------------------------------


def test_while_the_link_is_down_nothing_is_due() -> None:
    machine: Custody[int] = Custody(lambda: 0.0, pace=PLAIN)
    offer(machine, 1)
    assert not machine.up
    assert (machine.due(5, 10), machine.next_deadline()) == ([], None)
    machine.link_up(6)
    assert machine.next_deadline() == 0
    assert send(machine, 6) == [1]


def test_what_was_in_flight_is_due_when_the_link_is_back() -> None:
    machine = custody()
    offer(machine, *range(6))
    send(machine, 0)
    machine.link_down(1.0)
    machine.link_down(1.0)
    machine.link_up(1.0)
    assert machine.due(1.0, 3) == [0, 1, 2]
    assert send(machine, 1.0) == [0, 1, 2, 3]
    machine.link_up(1.1)  # nothing new
    assert send(machine, 1.1) == []
    # It was sent before, so it measures nothing.
    machine.answered(GATEWAY, 1.2, held=[0])
    assert machine.timeout == 2.0


def test_another_kind_of_link_has_its_own_pace() -> None:
    machine = custody()
    offer(machine, 1, 2)
    send(machine, 0)
    machine.answered(GATEWAY, 0.1, held=[1])
    machine.link_down(1.0)
    machine.retune(MESH)
    machine.link_up(1)
    assert machine.timeout == MESH.first_timeout
    assert send(machine, 1) == [2]
    assert machine.next_deadline() == 31


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pace(window=0),
        lambda: Pace(first_timeout=0.5),
        lambda: Pace(least_timeout=0),
        lambda: Pace(most_timeout=2),
        lambda: Custody(lambda: 0.0, copies=0),
    ],
)
def test_a_pace_must_make_sense(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        make()
