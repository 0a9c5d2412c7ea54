"""How full packets get: a real outbox, the configured policy, and a clock that tests turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qis_edge.core.domain import Domain
from qis_edge.core.filling import MARGIN, Filling
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Packet
from qis_edge.core.priority import Priority
from qis_edge.store.outbox import Outbox
from tests.node.kit import ADDRESS, NOW

MINUTE, HOUR = 60, 3600
#: What one frame of a mesh takes.
FITS = 258


class Bench:
    """A node that makes an outcome at the end of each window, and packs what is ready."""

    def __init__(self, outbox: Outbox, me: Identity, window: int, longest: float) -> None:
        self.outbox = outbox
        self.me = me
        self.window = window
        self.filling = Filling((12 * HOUR, longest, 0), window=window)
        self.domain = Domain.load("weather")
        self.now = float(NOW)
        self.next_at: float | None = None
        self.packets: list[tuple[float, Packet]] = []

    def make(self, priority: Priority = Priority.NORMAL, *, address: bytes = ADDRESS) -> None:
        """A window has just ended."""
        start = int(self.now) - self.window
        value = 20 + (start // self.window % 7) / 10
        outcome = Outcome(start, samples=60, results={"temperature": value, "humidity": 61.0})
        self.outbox.append(outcome, address, priority=priority)

    def pack(self) -> list[Packet]:
        """As the uplink does, whenever it is woken."""
        look = self.filling.look(self.now)
        made = self.outbox.pack(
            self.me, limit=FITS, max_packets=8, domain=self.domain, ready=look.ready
        )
        self.next_at = look.next_at
        self.packets += [(self.now, one) for one in made]
        return made

    def live(self, windows: int) -> None:
        """So many windows: wakes at their ends, and when something is due."""
        for _ in range(windows):
            end = self.now + self.window
            while self.next_at is not None and self.next_at <= end:
                self.now = self.next_at
                self.pack()
            self.now = end
            self.make()
            self.pack()


@pytest.fixture
def me() -> Identity:
    return Identity.generate()


@pytest.fixture
def outbox(me: Identity) -> Iterator[Outbox]:
    made = Outbox.in_memory(me.public)
    yield made
    made.close()


def test_outcomes_of_minutes_fill_frames(outbox: Outbox, me: Identity) -> None:
    bench = Bench(outbox, me, MINUTE, 30 * MINUTE)
    bench.live(6 * 60)
    waits = [when - one.outcomes[0].time - MINUTE for when, one in bench.packets]
    assert max(waits) <= 30 * MINUTE + MARGIN
    counts = [one.count for _, one in bench.packets]
    assert min(counts) >= 20
    assert sum(counts) + outbox.stats().waiting == 6 * 60
    assert all(len(one.raw) <= FITS for _, one in bench.packets)


def test_hourly_outcomes_go_as_they_are_made_unless_they_may_wait(
    outbox: Outbox, me: Identity
) -> None:
    bench = Bench(outbox, me, HOUR, 30 * MINUTE)
    bench.live(5)
    assert [one.count for _, one in bench.packets] == [1] * 5
    bench.filling = Filling((0, 3 * HOUR, 0), window=HOUR)
    bench.live(13)
    assert [one.count for _, one in bench.packets[5:]] == [4] * 3


def test_what_is_urgent_goes_and_leaves_the_others_waiting(outbox: Outbox, me: Identity) -> None:
    bench = Bench(outbox, me, MINUTE, 30 * MINUTE)
    bench.make()
    assert bench.pack() == []
    bench.now += MINUTE
    bench.make(Priority.URGENT)
    (urgent,) = bench.pack()
    assert urgent.outcomes[0].time == NOW
    assert outbox.stats().waiting == 1


def test_of_a_backlog_only_the_newest_wait(outbox: Outbox, me: Identity) -> None:
    bench = Bench(outbox, me, MINUTE, 30 * MINUTE)
    for _ in range(200):
        bench.make()
        bench.now += MINUTE
    while bench.pack():
        pass
    assert outbox.stats().waiting < 40
    assert {one.count for _, one in bench.packets[:-1]} <= set(range(20, 80))


def test_each_situation_waits_for_itself(outbox: Outbox, me: Identity) -> None:
    bench = Bench(outbox, me, MINUTE, 30 * MINUTE)
    bench.make()
    bench.now += 10 * MINUTE
    bench.make(address=bytes(32))
    assert bench.pack() == []
    assert bench.next_at == NOW + 30 * MINUTE + MARGIN
    bench.now = bench.next_at
    (first,) = bench.pack()
    assert first.fingerprint == ADDRESS
    assert bench.next_at == NOW + 40 * MINUTE + MARGIN


def test_a_clock_that_is_set_back_lets_what_waits_go(outbox: Outbox, me: Identity) -> None:
    bench = Bench(outbox, me, MINUTE, 30 * MINUTE)
    bench.make()
    assert bench.pack() == []
    bench.now -= 2 * HOUR
    assert len(bench.pack()) == 1


def test_nothing_waits_when_the_node_is_drained(outbox: Outbox, me: Identity) -> None:
    bench = Bench(outbox, me, MINUTE, 30 * MINUTE)
    bench.make()
    assert bench.pack() == []
    bench.filling.ended = True
    assert len(bench.pack()) == 1
