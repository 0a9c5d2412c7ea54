"""Outcomes that were made before their node knew the time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from qis_edge.core.packet import Extensions
from qis_edge.store import Outbox, Unclocked
from tests.store.kit import ADDRESS, HOUR, ME, T0, conserved, fill, outcome

BOOT = T0 + 100 * HOUR  # when the running boot began, as will turn out


@pytest.fixture
def box() -> Outbox:
    return Outbox.in_memory(ME.public)


def unclocked(box: Outbox, boot: str, *seconds: float) -> None:
    for second in seconds:
        box.append(outcome(0, at=float(second)), ADDRESS, unclocked=Unclocked(boot, second))


def times(box: Outbox) -> dict[object, tuple[int, int | None]]:
    """at → (time, uncertainty) of everything packed now."""
    return {
        one.results["at"]: (one.time, packet.extensions.time_uncertainty)
        for packet in box.pack(ME, max_packets=100)
        for one in packet.outcomes
    }


def test_what_has_no_time_is_not_packed(box: Outbox) -> None:
    unclocked(box, "now", 10, 20)
    assert box.pack(ME) == []
    stats = box.stats()
    assert (stats.untimed, stats.waiting, stats.made) == (2, 0, 2)


def test_outcomes_of_this_boot_get_their_exact_time(box: Outbox) -> None:
    unclocked(box, "now", 10, 3600.4, 7200.6)
    settled = box.settle("now", BOOT, 0.2)
    assert (settled.exact, settled.estimated) == (3, 0)
    assert times(box) == {
        10.0: (BOOT + 10, None),
        3600.4: (BOOT + 3600, None),
        7200.6: (BOOT + 7201, None),
    }
    assert box.clock_floor == BOOT + 7201


def test_uncertainty_of_a_second_and_more_travels(box: Outbox) -> None:
    unclocked(box, "now", 10)
    box.append(
        outcome(0, at=11.0),
        ADDRESS,
        extensions=Extensions(time_uncertainty=5, tags=("x",)),
        unclocked=Unclocked("now", 11),
    )
    box.settle("now", BOOT, 2.3)
    assert times(box) == {10.0: (BOOT + 10, 3), 11.0: (BOOT + 11, 8)}


def test_an_earlier_boot_is_put_between_what_is_known(box: Outbox) -> None:
    fill(box, 1, first=80)  # when it was hour 80, the time was known
    unclocked(box, "before", 0, HOUR)
    box.settle("now", BOOT)
    box.pack(ME, max_packets=1)
    found = times(box)
    start, uncertainty = found[0.0]
    assert found[3600.0] == (start + HOUR, uncertainty)
    assert uncertainty is not None
    assert start - uncertainty <= T0 + 80 * HOUR
    assert start + HOUR + uncertainty >= BOOT
    assert start >= T0 + 80 * HOUR
    assert start + HOUR <= BOOT
    assert uncertainty <= (19 * HOUR) / 2 + 1


def test_earlier_boots_keep_their_order(box: Outbox) -> None:
    fill(box, 1, first=90)
    for number, name in enumerate(("a", "b", "c")):
        unclocked(box, name, *(float(number + n * HOUR) for n in range(3)))
    settled = box.settle("now", BOOT)
    assert settled == type(settled)(exact=0, estimated=9)
    box.pack(ME, max_packets=1)
    found = times(box)
    starts = [found[float(number)][0] for number in range(3)]
    assert all(after - before >= 2 * HOUR for before, after in pairwise(starts))
    assert all(T0 + 90 * HOUR <= time <= BOOT for time, _ in found.values())


def test_a_boot_whose_time_was_known_keeps_it_over_a_power_cut(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox.open(path, ME.public) as box:
        unclocked(box, "before", 100, 200)
        box._db.execute("UPDATE boots SET offset=?, uncertainty=0", (float(T0),))
    with Outbox.open(path, ME.public) as box:
        unclocked(box, "now", 5)
        settled = box.settle("now", BOOT)
        assert (settled.exact, settled.estimated) == (3, 0)
        assert times(box) == {
            100.0: (T0 + 100, None),
            200.0: (T0 + 200, None),
            5.0: (BOOT + 5, None),
        }


def test_once_settled_a_restarted_daemon_knows_the_time(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox.open(path, ME.public) as box:
        assert box.boot_offset("now") is None
        box.settle("now", BOOT, 1.5)
    with Outbox.open(path, ME.public) as box:
        assert box.boot_offset("now") == (BOOT, 1.5)
        assert box.boot_offset("other") is None
        unclocked(box, "now", 7)
        assert box.stats().untimed == 0
        assert times(box) == {7.0: (BOOT + 7, 2)}


def test_a_better_offset_is_taken_a_worse_one_is_not(box: Outbox) -> None:
    box.settle("now", BOOT, 2.0)
    box.settle("now", BOOT + 1.5, 3.0)
    assert box.boot_offset("now") == (BOOT, 2.0)
    box.settle("now", BOOT + 1.0, 0.1)
    assert box.boot_offset("now") == (BOOT + 1, 0.1)


def test_settling_again_corrects_what_comes_later_only(box: Outbox) -> None:
    unclocked(box, "now", 1)
    box.settle("now", BOOT)
    box.settle("now", BOOT + 60)
    unclocked(box, "now", 2)
    assert times(box) == {1.0: (BOOT + 1, None), 2.0: (BOOT + 62, None)}


def test_many_are_settled_and_keep_their_place(box: Outbox) -> None:
    unclocked(box, "now", *range(1500))
    fill(box, 3)
    box.settle("now", BOOT)
    stats = box.stats()
    assert (stats.untimed, stats.waiting) == (0, 1503)
    assert conserved(stats)
    first = box.pack(ME, max_packets=1)[0]
    assert first.time == BOOT  # they were there before the others


def test_a_wrong_offset_makes_no_impossible_time(box: Outbox) -> None:
    unclocked(box, "now", 10)
    box.settle("now", -1e6)
    assert times(box) == {10.0: (0, None)}


def test_the_clock_floor_is_kept_and_can_be_corrected(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox.open(path, ME.public, clock_floor=T0) as box:
        assert box.clock_floor == T0
        fill(box, 1, first=1000)
        fill(box, 1, first=10)
        assert box.clock_floor == T0 + 1000 * HOUR
    with Outbox.open(path, ME.public, clock_floor=T0) as box:
        assert box.clock_floor == T0 + 1000 * HOUR
        box.set_clock(T0 + 11 * HOUR)
        box.set_clock(T0 + 11 * HOUR + 60)  # not worth a write
    with Outbox.open(path, ME.public) as box:
        assert box.clock_floor == T0 + 11 * HOUR
