from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qis_edge.core.custody import BROKER, MESH, Custody, Pace
from qis_edge.core.errors import Reason, UsageError
from tests.core.kit import offer, send

DAY = 86400.0
WEEK = 7 * DAY
GATEWAY = b"gateway1"
SECOND = b"gateway2"
PLAIN = Pace(window=4, first_timeout=2.0, least_timeout=1.0, most_timeout=600.0)


def custody(pace: Pace = PLAIN, copies: int = 1) -> Custody[int]:
    made: Custody[int] = Custody(lambda: 0.0, pace=pace, copies=copies)
    made.link_up(0.0)
    return made


# --- a world to run it in --------------------------------------------------------------


class World:
    """A sender with a backlog, a medium that loses, repeats, delays and reorders, and
    gateways that answer what they get in batches. Time jumps from event to event."""

    def __init__(
        self,
        machine: Custody[int],
        *,
        seed: int,
        loss: float = 0.0,
        repeats: float = 0.0,
        delay: tuple[float, float] = (0.05, 0.3),
        backlog: int = 0,
        gateways: tuple[bytes, ...] = (GATEWAY,),
        room: int = 16,
    ) -> None:
        self.machine = machine
        self.rng = random.Random(seed)
        self.loss, self.repeats, self.delay, self.room = loss, repeats, delay, room
        self.backlog = list(range(backlog, 0, -1))
        self.gateways: dict[bytes, set[int]] = {kid: set() for kid in gateways}
        self.answers: dict[bytes, list[int]] = {kid: [] for kid in gateways}
        self.deaf: set[bytes] = set()
        self.now = 0.0
        self.sends: Counter[int] = Counter()
        self.sent_at: list[float] = []
        self.done: list[int] = []
        self.most_in_flight = 0
        self.refuse: Callable[[int], bool] = lambda _key: False
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._wake: float | None = None

    def at(self, when: float, act: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, act))

    def run(self, until: float) -> None:
        self._pump()
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act()
            self._pump()
        self.now = until

    def _pump(self) -> None:
        machine = self.machine
        while self.backlog and machine.room_for():
            machine.offer(self.backlog.pop(), 1, self.now)
        keys = machine.due(self.now, self.room)
        assert len(keys) <= self.room
        assert len(set(keys)) == len(keys)
        for key in keys:
            machine.sent(key, self.now)
            self.sends[key] += 1
            self.sent_at.append(self.now)
            for kid in self.gateways:
                self._carry(lambda kid=kid, key=key: self._arrives(kid, key))  # type: ignore[misc]  # bound early
        self.most_in_flight = max(self.most_in_flight, machine.in_flight)
        deadline = machine.next_deadline()
        if len(keys) < self.room and deadline is not None:
            assert deadline > self.now, "asked to be asked again at once"
            if self._wake is None or deadline < self._wake or self._wake <= self.now:
                self._wake = deadline
                self.at(deadline, lambda: None)
        elif deadline is not None:
            self.at(self.now + 0.01, lambda: None)  # the link has room again

    def _carry(self, act: Callable[[], None]) -> None:
        for _ in range(1 + (self.rng.random() < self.repeats)):
            if self.rng.random() >= self.loss and self.machine.up:
                self.at(self.now + self.rng.uniform(*self.delay), act)

    def _arrives(self, kid: bytes, key: int) -> None:
        if kid in self.deaf:
            return
        self.gateways[kid].add(key)
        if not self.answers[kid]:
            self.at(self.now + 0.05, lambda: self._answer(kid))
        self.answers[kid].append(key)

    def _answer(self, kid: bytes) -> None:
        keys, self.answers[kid] = self.answers[kid], []
        bad = [key for key in keys if self.refuse(key)]
        good = [key for key in keys if not self.refuse(key)]

        def arrive() -> None:
            if self.machine.up:
                refused = [(Reason.SIGNATURE, bad)] if bad else []
                answer = self.machine.answered(kid, self.now, held=good, refused=refused)
                self.done += answer.done

        self._carry(arrive)

    def link(self, up: bool) -> None:
        if up:
            self.machine.link_up(self.now)
        else:
            self.machine.link_down(self.now)


def machine_for(seed: int, pace: Pace = BROKER, copies: int = 1) -> Custody[int]:
    return Custody(random.Random(seed).random, pace=pace, copies=copies)


@pytest.mark.parametrize("pace", [BROKER, MESH], ids=["broker", "mesh"])
@pytest.mark.parametrize("loss", [0.0, 0.1, 0.3, 0.5])
def test_a_backlog_is_delivered_once_each_over_a_bad_medium(pace: Pace, loss: float) -> None:
    machine = machine_for(1, pace)
    world = World(machine, seed=2, loss=loss, repeats=0.1, delay=(0.05, 2.0), backlog=500)
    world.link(True)
    world.run(10 * DAY)
    assert sorted(world.done) == list(range(1, 501))
    assert world.gateways[GATEWAY] == set(world.done)
    assert len(machine) == 0
    assert world.most_in_flight <= pace.window + pace.reserve
    assert machine.next_deadline() is None
    assert machine.counters.sent == 500
    # Both directions lose; what must be repeated is 1 / (1 - loss)² of it.
    assert sum(world.sends.values()) <= 500 / (1 - loss) ** 2 * 1.05


def test_without_loss_nothing_is_sent_twice() -> None:
    world = World(machine_for(3), seed=4, backlog=1000)
    world.link(True)
    world.run(DAY)
    assert len(world.done) == 1000
    assert set(world.sends.values()) == {1}


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    loss=st.floats(0, 0.6),
    repeats=st.floats(0, 0.5),
    window=st.integers(1, 20),
    room=st.integers(1, 20),
)
def test_whatever_the_medium_does_everything_arrives(
    seed: int, loss: float, repeats: float, window: int, room: int
) -> None:
    pace = Pace(window=window, first_timeout=1.0, least_timeout=0.5, most_timeout=60.0)
    machine = machine_for(seed, pace)
    world = World(
        machine, seed=seed, loss=loss, repeats=repeats, delay=(0, 3), backlog=60, room=room
    )
    world.link(True)
    world.run(WEEK)
    assert sorted(world.done) == list(range(1, 61))
    assert world.most_in_flight <= window


def test_a_week_of_outage_costs_nothing_and_ends_at_once() -> None:
    machine = machine_for(5)
    world = World(machine, seed=6, backlog=2000)
    world.link(True)
    world.at(0.5, lambda: world.link(False))
    world.at(WEEK, lambda: world.link(True))
    world.run(WEEK - 1)
    before = sum(world.sends.values())
    assert all(when <= 0.5 for when in world.sent_at)
    assert machine.next_deadline() is None
    world.run(WEEK + 0.5)
    assert sum(world.sends.values()) > before
    world.run(WEEK + DAY)
    assert len(world.done) == 2000
    assert sum(world.sends.values()) <= 2000 + 2 * BROKER.window


@pytest.mark.parametrize(("pace", "most"), [(BROKER, 500), (MESH, 60)], ids=["broker", "mesh"])
def test_a_gateway_that_never_answers_gets_few_sends_a_day(pace: Pace, most: int) -> None:
    world = World(machine_for(7, pace), seed=8, loss=1.0, backlog=100)
    world.link(True)
    world.run(DAY)
    first_day = len(world.sent_at)
    world.run(3 * DAY)
    assert first_day <= most + 100
    assert len(world.sent_at) - first_day <= 2 * (DAY / pace.most_timeout + 1)


def test_a_gateway_that_comes_back_gets_everything() -> None:
    machine = machine_for(9)
    world = World(machine, seed=10, backlog=300)
    world.deaf.add(GATEWAY)
    world.link(True)
    world.run(3 * DAY)
    assert machine.silent
    world.deaf.clear()
    world.run(3 * DAY + BROKER.most_timeout * 1.25 + 30)
    assert sorted(world.done) == list(range(1, 301))
    assert not machine.silent


def test_a_link_that_comes_and_goes_does_not_flood_a_gateway_that_is_away() -> None:
    world = World(machine_for(11), seed=12, loss=1.0, backlog=100)
    for start in range(0, 6 * 3600, 10):
        world.at(start, lambda: world.link(True))
        world.at(start + 2, lambda: world.link(False))
    world.run(6 * 3600)
    # Three times the window, then a probe after eight timeouts at the earliest.
    probes = 6 * 3600 / (8 * BROKER.first_timeout)
    assert len(world.sent_at) <= 3 * (BROKER.window + BROKER.reserve) + probes


def test_a_slow_gateway_is_waited_for() -> None:
    # Round trips of 8 to 10 s, three times the first timeout.
    world = World(machine_for(13), seed=14, delay=(4, 5), backlog=600)
    world.link(True)
    world.run(DAY)
    assert len(world.done) == 600
    assert 8 < world.machine.timeout < 20
    late = [key for key in world.sends if key > 200]
    assert max(world.sends[key] for key in late) <= 2
    assert sum(world.sends[key] for key in late) <= 1.05 * len(late)


def test_what_is_refused_is_never_sent_again() -> None:
    world = World(machine_for(15), seed=16, loss=0.3, repeats=0.3, backlog=200)
    world.refuse = lambda key: key % 5 == 0
    world.link(True)
    world.run(DAY)
    sends = dict(world.sends)
    assert sorted(world.done) == [key for key in range(1, 201) if key % 5]
    assert world.machine.counters.refused == 40
    world.run(30 * DAY)
    assert world.sends == sends


def test_two_gateways_are_needed_where_two_copies_are_asked_for() -> None:
    gateways = (GATEWAY, SECOND)
    machine = machine_for(17, copies=2)
    world = World(machine, seed=18, loss=0.2, backlog=400, gateways=gateways)
    world.deaf.add(SECOND)
    world.link(True)
    world.run(DAY)
    # The one that is there gets everything, the other is awaited at little cost.
    assert world.done == []
    assert len(world.gateways[GATEWAY]) == 400
    assert sum(world.sends.values()) <= 400 * 1.6 + 4 * BROKER.window + DAY / BROKER.most_timeout
    world.deaf.clear()
    world.run(2 * DAY)
    assert world.gateways[SECOND] >= set(world.done)
    assert sorted(world.done) == list(range(1, 401))
    assert len(machine) == 0


def test_two_gateways_that_are_there_cost_no_more_than_one() -> None:
    world = World(machine_for(17, copies=2), seed=18, backlog=400, gateways=(GATEWAY, SECOND))
    world.link(True)
    world.run(DAY)
    assert len(world.done) == 400
    assert set(world.sends.values()) == {1}


@pytest.mark.parametrize(
    "poison", [range(1, 65), range(10, 1000, 10)], ids=["a windowful", "one in ten"]
)
def test_packets_that_nobody_ever_answers_do_not_block_the_others(poison: range) -> None:
    world = World(machine_for(19), seed=20, backlog=1000)
    arrives = world._arrives
    world._arrives = lambda kid, key: None if key in poison else arrives(kid, key)  # type: ignore[method-assign]  # a gateway with a blind spot
    world.link(True)
    for hour in range(48):
        world.at(hour * 3600.0, lambda: world.machine.heard(world.now, GATEWAY))  # it greets
    world.run(2 * DAY)
    assert sorted(world.done) == [key for key in range(1, 1001) if key not in poison]
    assert len(world.machine) == len(poison)
    sends = [world.sends[key] for key in poison]
    assert max(sends) <= 2 * DAY / BROKER.most_timeout + 10


# --- answers ---------------------------------------------------------------------------


def test_an_answer_says_what_it_changed() -> None:
    machine = custody()
    offer(machine, 1, 2, 3, 4)
    send(machine, 0)
    answer = machine.answered(
        GATEWAY, 0.5, held=[1, 77], refused=[(Reason.SIGNATURE, [2, 78])], later=[(60, [3, 79])]
    )
    assert answer.done == answer.held == (1,)
    assert answer.refused == ((2, Reason.SIGNATURE),)
    assert answer.postponed == (3,)
    assert answer.unknown == 3
    counters = machine.counters
    assert (counters.sent, counters.receipted, counters.refused) == (4, 1, 1)
    assert (counters.postponed, counters.unknown, counters.resent) == (1, 3, 0)
    assert len(machine) == 2


def test_a_repeated_answer_changes_nothing() -> None:
    machine = custody()
    offer(machine, 1)
    send(machine, 0)
    machine.answered(GATEWAY, 0.5, held=[1])
    again = machine.answered(GATEWAY, 0.6, held=[1])
    assert (again.done, again.held, again.unknown) == ((), (), 1)
    assert machine.counters.receipted == 1


def test_an_answer_to_an_earlier_life_settles_what_was_not_sent_yet() -> None:
    machine = custody()
    offer(machine, 1)
    assert machine.answered(GATEWAY, 0.5, held=[1]).done == (1,)
    assert send(machine, 1) == []


def test_later_is_later() -> None:
    machine = custody()
    offer(machine, 1, 2)
    send(machine, 0)
    machine.answered(GATEWAY, 0.5, later=[(60, [1]), (0, [2])])
    assert machine.next_deadline() == 1.5  # never sooner than the least timeout
    assert machine.in_flight == 0
    assert send(machine, 1.5) == [2]
    machine.answered(GATEWAY, 1.6, held=[2])
    assert machine.next_deadline() == 60.5
    assert send(machine, 60) == []
    assert send(machine, 60.5) == [1]
    machine.answered(GATEWAY, 61, later=[(10 * DAY, [1])])
    assert machine.next_deadline() == 61 + PLAIN.longest_later


def test_a_copy_at_one_gateway_is_not_two() -> None:
    machine = custody(copies=2)
    offer(machine, 1)
    send(machine, 0)
    first = machine.answered(GATEWAY, 0.5, held=[1])
    assert (first.done, first.held) == ((), (1,))
    again = machine.answered(GATEWAY, 0.6, held=[1])
    assert (again.done, again.held) == ((), ())
    assert machine.in_flight == 0
    assert machine.room_for() == 4
    assert send(machine, 3) == [1]
    assert machine.answered(SECOND, 3.1, held=[1]).done == (1,)


def test_the_copies_of_a_lost_gateway_do_not_count() -> None:
    machine = custody(copies=2)
    machine.offer(1, 1, 0.0, held_by=[GATEWAY])
    send(machine, 0)
    assert machine.in_flight == 0
    assert machine.forget_gateway(GATEWAY, 0.5) == 1
    assert machine.forget_gateway(GATEWAY, 0.5) == 0
    assert send(machine, 0.5) == [1]
    assert machine.in_flight == 1
    assert machine.answered(SECOND, 1, held=[1]).done == ()
    assert machine.answered(GATEWAY, 1, held=[1]).done == (1,)


def test_a_second_copy_is_awaited_in_a_window_of_its_own() -> None:
    machine = custody(copies=2)
    for key in range(12):
        offer(machine, key, now=key / 100)
        send(machine, key / 100)
        machine.answered(GATEWAY, key / 100, held=[key])
    assert (len(machine), machine.in_flight, machine.room_for()) == (12, 0, 4)
    # Of the twelve that one gateway holds, a window is repeated, then fewer and fewer.
    now, repeated = 1.0, []
    while now < 3000:
        keys = send(machine, now)
        assert len(keys) <= PLAIN.window
        repeated += keys
        machine.answered(GATEWAY, now, held=keys)  # says nothing new
        deadline = machine.next_deadline()
        assert deadline is not None
        now = deadline
    assert len(repeated) <= 3 * PLAIN.window + 12
    assert set(repeated) == set(range(12))
    # The second gateway appears.
    machine.heard(now, SECOND)
    done: list[int] = []
    while len(done) < 12:
        keys = send(machine, now)
        assert keys
        done += machine.answered(SECOND, now, held=keys).done
    assert len(machine) == 0


def test_what_cannot_be_kept_track_of_may_be_offered_again() -> None:
    machine = custody(copies=2)
    most = 64 * PLAIN.window
    assert machine.room_for(held=1) == most
    for key in range(most):
        machine.offer(key, 1, 0.0, held_by=[GATEWAY])
    assert machine.room_for(held=1) == 0
    assert machine.room_for() == 4
    offer(machine, 1000)
    answer = machine.answered(GATEWAY, 0.5, held=[1000])
    assert (answer.done, answer.held, answer.dropped) == ((), (1000,), (1000,))
    assert 1000 not in machine
    assert machine.offer(1000, 1, 1.0, held_by=[GATEWAY]) == (1000,)
    with pytest.raises(UsageError, match="enough"):
        machine.offer(1000, 1, 1.0, held_by=[GATEWAY, SECOND])
    machine.answered(SECOND, 0.5, held=[7])
    machine.offer(1000, 1, 1.0, held_by=[GATEWAY])
    assert machine.answered(SECOND, 2.0, held=[1000]).done == (1000,)


def test_a_refusal_ends_it_though_another_gateway_holds_it() -> None:
    machine = custody(copies=2)
    offer(machine, 1)
    send(machine, 0)
    machine.answered(GATEWAY, 0.5, held=[1])
    # The one that holds it has had its say.
    assert machine.answered(GATEWAY, 0.6, refused=[(Reason.MAC, [1])]).unknown == 1
    assert machine.answered(SECOND, 0.7, refused=[(99, [1])]).refused == ((1, 99),)
    assert len(machine) == 0
