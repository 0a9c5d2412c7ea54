"""What time it is, and who may say so."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from qis_edge.clock import SimulatedClock, Steps, SystemClock, boot_seconds
from qis_edge.node import timekeeping
from qis_edge.node.timekeeping import BUILT, Timekeeper, boot_id

YEARS = 30 * 365 * 86400
A, B = b"gatewayA", b"gatewayB"


def unset(wrong: float = -YEARS, floor: int = 0) -> Timekeeper:
    return Timekeeper(SystemClock(wrong), floor, synchronised=False)


def test_a_clock_that_was_set_is_believed() -> None:
    clock = Timekeeper(SystemClock(), 0, synchronised=True)
    assert clock.trusted
    assert clock.known == pytest.approx(time.time(), abs=0.5)


def test_a_simulated_clock_is_believed() -> None:
    clock = Timekeeper(SimulatedClock(1000.0, time.time(), 60.0), BUILT, synchronised=False)
    assert clock.known == pytest.approx(1000.0, abs=60)
    assert clock.real(60.0) == 1.0


def test_a_clock_before_what_has_surely_passed_is_not_believed() -> None:
    assert not Timekeeper(SystemClock(-YEARS), 0, synchronised=True).trusted


@pytest.mark.parametrize(("floor", "trusted"), [(0, True), (2**33, False)])
def test_where_nobody_says_whether_it_was_set_it_must_not_contradict_the_floor(
    monkeypatch: pytest.MonkeyPatch, floor: int, trusted: bool
) -> None:
    monkeypatch.setattr(timekeeping, "_synchronised", lambda: None)
    assert Timekeeper(SystemClock(), floor).trusted is trusted


def test_a_wrong_floor_is_nothing_against_time_synchronisation() -> None:
    assert Timekeeper(SystemClock(), 2**33, synchronised=True).trusted


async def test_time_passes_though_it_is_not_known() -> None:
    """A board that wakes up long before its floor must not stand still at it."""
    clock = unset(floor=BUILT)
    assert clock.known is None
    first = clock.now()
    assert first >= BUILT
    await asyncio.sleep(0.05)
    assert clock.now() >= first + 0.04


def test_who_tells_the_time_first_may_correct_it_and_nobody_else() -> None:
    clock = unset()
    assert clock.learn(BUILT + 1000, 1.0, A)
    assert clock.known == pytest.approx(BUILT + 1000, abs=0.5)
    assert not clock.learn(BUILT + 9000, 1.0, B)
    assert not clock.learn(BUILT + 1001, 1.0, A)  # no news
    assert clock.learn(BUILT + 9000, 1.0, A)
    assert clock.now() == pytest.approx(BUILT + 9000, abs=0.5)


def test_a_better_measure_is_news() -> None:
    clock = unset()
    assert clock.learn(BUILT + 1000, 8.0, A)
    assert clock.doubt == 8
    assert clock.learn(BUILT + 1003, 1.0, A)
    assert clock.doubt == 1


def test_what_an_earlier_run_was_told_anybody_may_correct() -> None:
    clock = unset()
    assert clock.learn(BUILT + 1000, 1.0)
    assert clock.learn(BUILT + 2000, 1.0, B)
    assert not clock.learn(BUILT + 3000, 1.0, A)


def test_a_clock_that_was_set_is_left_alone() -> None:
    clock = Timekeeper(SystemClock(), 0, synchronised=True)
    assert not clock.learn(5_000_000_000, 1.0, A)
    assert clock.now() == pytest.approx(time.time(), abs=0.5)
    assert clock.doubt is None


def test_setting_the_systems_clock_does_not_move_what_was_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = unset()
    clock.learn(BUILT + 1000, 1.0, A)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + YEARS)
    assert clock.now() == pytest.approx(BUILT + 1000, abs=0.5)


def test_synchronisation_that_comes_later_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(timekeeping, "_TIMESYNC", tmp_path)
    clock = Timekeeper(SystemClock(), 0)
    assert not clock.trusted
    assert not clock.look()
    (tmp_path / "synchronized").touch()
    assert clock.look()
    assert clock.trusted
    assert clock.offset is None
    assert not clock.look()


def test_no_word_of_synchronisation_without_the_daemon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(timekeeping, "_TIMESYNC", tmp_path / "none")
    assert Timekeeper(SystemClock(), 0).trusted


async def test_who_sleeps_wakes_when_the_clock_is_set() -> None:
    clock = unset()
    sleeping = asyncio.create_task(clock.sleep_until(clock.now() + 3600))
    await asyncio.sleep(0.01)
    assert not sleeping.done()
    era = clock.era
    clock.learn(BUILT + 1000, 1.0, A)
    assert clock.era == era + 1
    await asyncio.wait_for(sleeping, 1)


async def test_a_small_correction_wakes_nobody() -> None:
    clock = unset()
    clock.learn(BUILT + 1000, 1.0, A)
    era = clock.era
    assert clock.learn(BUILT + 1010, 1.0, A)
    assert clock.era == era


async def test_sleep_ends_at_its_time() -> None:
    clock = Timekeeper(SimulatedClock(0.0, time.time(), 1000.0), 0)
    await asyncio.wait_for(clock.sleep_until(clock.now() + 50), 1)


def test_the_boots_zero() -> None:
    clock = Timekeeper(SystemClock(), 0, synchronised=True)
    assert clock.boot_offset == pytest.approx(time.time() - boot_seconds(), abs=0.5)
    assert boot_id() == boot_id() != ""


def test_a_machine_without_boot_ids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(timekeeping, "_BOOT_ID", tmp_path / "none")
    assert boot_id() == "unknown"


# --- steps ---------------------------------------------------------------------------------


def test_a_clock_that_is_set_is_a_step_and_one_that_drifts_is_none() -> None:
    offset = 0.0
    steps = Steps(lambda: time.time() + offset)
    assert steps.look() == 0.0
    for _ in range(5):
        offset += 50.0  # slowly, look by look
        assert steps.look() == 0.0
    offset -= 7200
    assert steps.look() == pytest.approx(-7200, abs=1)
    assert steps.look() == 0.0
    offset += 90
    assert steps.look() == pytest.approx(90, abs=1)
    assert (steps.count, round(steps.last)) == (2, 90)


def test_who_says_what_time_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Timekeeper(SimulatedClock(0.0, time.time(), 1000.0), 0).source == "simulated"
    assert Timekeeper(SystemClock(), 0, synchronised=True).source == "system"
    clock = unset()
    assert clock.source == "nobody"
    clock.learn(BUILT + 1000, 1.0, A)
    assert clock.source == "gateway"
    monkeypatch.setattr(timekeeping, "_synchronised", lambda: True)
    assert not clock.look()  # it was said that this one is wrong
    assert clock.source == "gateway"


@pytest.mark.parametrize(
    ("known", "told", "believed"),
    [(None, False, True), (None, True, False), (False, False, False)],
    ids=["nobody knows", "a gateway told", "it is said to be wrong"],
)
def test_a_clock_that_somebody_sets(
    monkeypatch: pytest.MonkeyPatch, known: bool | None, told: bool, believed: bool
) -> None:
    monkeypatch.setattr(timekeeping, "_synchronised", lambda: known)
    clock = Timekeeper(SystemClock(-YEARS), 0)
    assert not clock.look()
    if told:
        clock.learn(time.time(), 1.0, A)
    vars(clock)["_clock"] = SystemClock()
    assert clock.look() is believed
    assert clock.source == ("system" if believed else "gateway" if told else "nobody")
