"""The disk budget: what goes first, what is counted, and that the file keeps to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Packet
from qis_edge.store import Notice, Outbox, Pending, Priority, Unclocked
from qis_edge.store.budget import SMALLEST
from tests.store.kit import ADDRESS, ELSEWHERE, HOUR, ME, T0, conserved, held, open_keys

BUDGET = SMALLEST
FULL = 4500  # more outcomes than fit


@pytest.fixture
def told() -> list[Notice]:
    return []


@pytest.fixture
def box(told: list[Notice]) -> Outbox:
    return Outbox.in_memory(ME.public, budget=BUDGET, notify=told.append)


def at(second: int) -> Outcome:
    """Nothing of these is past a ttl of a week."""
    return Outcome(T0 + second, results={"temperature": 20.0})


def flood(box: Outbox, count: int) -> None:
    """Append many, in commits of some dozens."""
    first = box.stats().made
    for start in range(first, first + count, 50):
        box.append_many([Pending(at(second), ADDRESS) for second in range(start, start + 50)])


def pack_some(box: Outbox, count: int) -> list[Packet]:
    """Append and pack one after the other."""
    made = []
    for _ in range(count):
        box.append(at(box.stats().made), ADDRESS)
        made += box.pack(ME)
    return made


def test_held_packets_go_first_oldest_first(box: Outbox, told: list[Notice]) -> None:
    store = pack_some(box, 200)[0].store
    held(box, store, *range(100, 200))
    while not box.stats().evicted_packets:
        flood(box, 50)
    stats = box.stats()
    assert stats.evicted_receipted == stats.evicted_packets < 100
    assert (stats.evicted_unsent, stats.evicted_expired) == (0, 0)
    assert box.packet(store, 100) is None
    assert box.packet(store, 199) is not None
    assert len(open_keys(box)) == 100
    assert told == []
    assert conserved(stats)


def test_then_what_is_past_its_ttl(box: Outbox, told: list[Notice]) -> None:
    for second in range(20):
        box.append(at(second), ADDRESS, ttl=1)
        box.pack(ME)
    for second in range(20, 40):
        box.append(at(second), ADDRESS, ttl=1)
    # By this time the others are past theirs.
    box.append(at(40 + HOUR), ELSEWHERE, ttl=1, priority=Priority.HIGH)
    while not (stats := box.stats()).evicted_unsent:
        assert (stats.evicted_expired > 0) is bool(told)
        flood(box, 50)
    assert stats.evicted_expired == 40
    assert open_keys(box) == []
    assert any(where == ELSEWHERE for _, where, _ in box.waiting(10**6))
    assert conserved(stats)


def test_then_the_least_important_and_of_those_the_oldest(box: Outbox) -> None:
    for second in range(50):
        box.append(at(second), ADDRESS, priority=Priority.HIGH)
    for second in range(50, 550):
        address = [ADDRESS, ELSEWHERE][second % 2]
        box.append(at(second), address, priority=Priority.LOW)
    while not box.stats().evicted_unsent:
        flood(box, 50)
    low = [one.time for priority, _, one in box.waiting(10**6) if priority is Priority.LOW]
    gone = box.stats().evicted_unsent
    assert sorted(low) == [T0 + second for second in range(50 + gone, 550)]
    flood(box, FULL)
    left = [priority for priority, _, _ in box.waiting(10**6)]
    assert left.count(Priority.HIGH) == 50
    assert left.count(Priority.LOW) == 0
    assert conserved(box.stats())


def test_open_packets_go_when_nothing_else_is_left(box: Outbox) -> None:
    packets = pack_some(box, 1500)
    stats = box.stats()
    assert stats.evicted_unsent == stats.evicted_packets > 100
    assert open_keys(box) == [(p.store, p.sequence) for p in packets[stats.evicted_packets :]]
    floors = [packet.extensions.floor for packet in packets if packet.extensions.floor]
    assert floors
    assert floors == sorted(floors)
    assert floors[-1] <= stats.evicted_packets
    assert conserved(stats)


def test_outcomes_without_time_go_too(box: Outbox) -> None:
    for second in range(FULL):
        box.append(at(0), ADDRESS, unclocked=Unclocked("boot", second))
    stats = box.stats()
    assert stats.evicted_unsent > 100
    assert stats.untimed == FULL - stats.evicted_unsent
    box.settle("boot", T0)
    assert conserved(box.stats())
    assert min(one.time for _, _, one in box.waiting(10**6)) == T0 + stats.evicted_unsent


def test_appending_never_fails_for_the_budget_and_the_file_keeps_to_it(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox.open(path, ME.public, budget=BUDGET) as box:
        for _ in range(8):
            flood(box, 2000)
            for packet in box.pack(ME, max_packets=8):
                held(box, packet.store, packet.sequence)
        stats = box.stats()
        assert stats.made == 16_000
        assert conserved(stats)
        assert stats.bytes <= BUDGET + 32 * 1024
    assert path.stat().st_size <= BUDGET + 32 * 1024


def test_a_smaller_budget_holds_from_the_next_start_on(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox.open(path, ME.public) as box:
        flood(box, 2 * FULL)
        assert box.stats().bytes > BUDGET
    with Outbox.open(path, ME.public, budget=BUDGET) as box:
        flood(box, 50)
        assert box.stats().bytes <= BUDGET
        assert conserved(box.stats())


def test_dropping_is_told(box: Outbox, told: list[Notice]) -> None:
    flood(box, FULL)
    assert {notice.code for notice in told} == {"evicted"}
    assert "no more room" in told[0].text
