"""Clocks that are never set, set late, and set while everything runs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gateway import station as station_module
from qis_edge.clock import SystemClock
from qis_edge.node import runtime, timekeeping
from qis_edge.node.runtime import Node
from qis_edge.testing.memory import MemoryMedium
from tests.loop.site import (
    Site,
    assert_each_once,
    deposited,
    drained,
    made_and_held,
    outbox_of,
    routed,
    settled,
    site,
    stats_of,
)

YEARS = 30 * 365 * 86400
DAY = 86400
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks are looked at often."""
    monkeypatch.setattr(timekeeping, "_LOOK", 0.1)
    monkeypatch.setattr(runtime, "LOOK", 0.05)


def lost(here: Site, monkeypatch: pytest.MonkeyPatch, wrong: float = -YEARS) -> Node:
    """A node on a board whose clock is so many seconds off; :func:`put_right` sets it."""
    with monkeypatch.context() as patch:
        patch.setattr("qis_edge.config.ClockConfig.make", lambda _: SystemClock(wrong))
        return here.node("ewr", clock=False)


def put(node: Node, offset: float) -> None:
    """Somebody sets the system's clock: it is so many seconds off from now on."""
    vars(node.clock)["_clock"] = SystemClock(offset)


async def joined(here: Site) -> bytes:
    """A node and its gateway know each other, and are switched off; the node's kid."""
    station, node = here.station(clock=False), here.node("ewr", clock=False)
    here.start(station, node)
    await here.join(station, node)
    await drained(here, node)
    await settled(here, station)
    await here.stop(node, station)
    return node.identity.kid


async def source(node: Node) -> str:
    return str((await node.status({}))["clock_source"])


# --- never set, set late -------------------------------------------------------------------


async def test_without_a_clock_and_without_a_gateway_outcomes_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        await joined(here)
        monkeypatch.setattr(timekeeping, "_synchronised", lambda: False)
        before = stats_of(here.state("ewr"))
        for wanted in (1, 2):  # and over a restart
            node = lost(here, monkeypatch)
            here.start(node)
            await here.wait("outcomes", lambda: stats_of(node).untimed >= wanted, PATIENCE)  # noqa: B023 - at once
            assert await source(node) == "nobody"
            assert stats_of(node).packets == before.packets
            await here.stop(node)
        assert caplog.text.count("the time is not known yet") == 2


async def test_time_synchronisation_that_comes_late_gives_outcomes_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with site(tmp_path, MemoryMedium()) as here:
        kid = await joined(here)
        before = stats_of(here.state("ewr")).made
        (tmp_path / "timesync").mkdir()
        monkeypatch.setattr(timekeeping, "_TIMESYNC", tmp_path / "timesync")
        node = lost(here, monkeypatch)
        began = time.time()
        here.start(node)
        await here.wait("outcomes", lambda: stats_of(node).untimed >= 2, PATIENCE)
        put(node, 0.0)
        (tmp_path / "timesync" / "synchronized").touch()
        await here.wait("the time", lambda: stats_of(node).untimed == 0, PATIENCE)
        assert await source(node) == "system"
        assert caplog.text.count("the system's clock is set") == 1
        await timed_and_delivered(here, node, kid, before, began)


async def test_a_clock_that_is_set_by_hand_is_believed_where_nobody_else_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No time synchronisation that could say so: ``date``, chrony, a GPS receiver."""
    monkeypatch.setattr(timekeeping, "_TIMESYNC", tmp_path / "none")
    async with site(tmp_path, MemoryMedium()) as here:
        kid = await joined(here)
        before = stats_of(here.state("ewr")).made
        node = lost(here, monkeypatch)
        assert not node.clock.trusted
        began = time.time()
        here.start(node)
        await here.wait("outcomes", lambda: stats_of(node).untimed >= 2, PATIENCE)
        put(node, DAY - YEARS)  # that cannot be true
        await here.wait("a look", lambda: node.clock.steps.count == 1, PATIENCE)
        assert not node.clock.trusted
        put(node, 0.0)
        await here.wait("the time", lambda: stats_of(node).untimed == 0, PATIENCE)
        assert await source(node) == "system"
        await timed_and_delivered(here, node, kid, before, began)


async def timed_and_delivered(
    here: Site, node: Node, kid: bytes, before: int, began: float
) -> None:
    """What was made since ``began`` is in the routing layer under its true time."""
    station = here.station(clock=False)
    here.start(station)
    await drained(here, node)
    await settled(here, station)
    times = sorted(one.time for one in (await deposited(here.state("base")))[kid])
    assert len(times) == made_and_held(node)[0]
    recent = times[before:]
    assert len(recent) >= 2
    assert began - 3 <= recent[0] <= recent[-1] <= time.time() + 1


# --- set while it runs ---------------------------------------------------------------------


async def test_a_clock_that_is_set_back_stops_nothing_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station, node = here.station(clock=False), here.node("ewr", clock=False)
        here.start(station, node)
        await here.join(station, node)
        await here.wait("outcomes", lambda: made_and_held(node)[1] >= 1, PATIENCE)
        put(node, -2 * DAY)
        made = stats_of(node).made
        await here.wait("outcomes as before", lambda: stats_of(node).made >= made + 2, PATIENCE)
        await here.wait("words", lambda: "was set back by" in caplog.text, PATIENCE)
        assert caplog.text.count("was set back by") == 1
        assert "timedatectl status" in caplog.text
        assert (await node.status({}))["clock_steps"] == 1
        await drained(here, node)
        await settled(here, station)
        await assert_each_once(here.state("base"), {node.identity.kid: made_and_held(node)[0]})


async def test_what_a_clock_that_was_ahead_has_dated_blocks_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station, node = here.station(clock=False), here.node("ewr", clock=False)
        here.start(station, node)
        await here.join(station, node)
        await here.wait("outcomes", lambda: made_and_held(node)[1] >= 1, PATIENCE)
        put(node, 2 * DAY)
        await here.wait("words", lambda: "was set forward by 2 d" in caplog.text, PATIENCE)
        await here.wait("no for an answer", lambda: station.counts.later >= 2, PATIENCE)
        assert caplog.text.count("ahead of our clock: one of the two is wrong") == 1
        put(node, 0.0)
        await here.wait("words", lambda: "was set back by 2 d" in caplog.text, PATIENCE)
        held = made_and_held(node)[1]
        await here.wait("custody as before", lambda: made_and_held(node)[1] >= held + 1, PATIENCE)
        await node.drain({})
        now = time.time()

        def open_packets() -> list[int]:
            with outbox_of(node) as reader:
                assert reader.stats().waiting == 0
                return [one.last_time for one in reader.unreceipted(100)]

        await here.wait("packing", lambda: stats_of(node).waiting == 0, PATIENCE)
        await here.wait(
            "all but those", lambda: all(at > now + DAY for at in open_packets()), PATIENCE
        )
        assert open_packets()  # they are seen in the queue, and go once their time has come
        made, held = made_and_held(node)
        await settled(here, station)
        assert sum(len(one) for one in (await deposited(here.state("base"))).values()) == held
        assert held < made


# --- at the gateway ------------------------------------------------------------------------


async def test_a_gateway_whose_clock_jumps_ahead_drops_nothing_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(station_module, "HOUSEKEEPING", 0.05)
    async with site(tmp_path, MemoryMedium()) as here:
        station, node = here.station(clock=False), here.node("ewr", clock=False)
        here.start(station, node)
        await here.join(station, node)
        await here.wait("outcomes", lambda: made_and_held(node)[1] >= 2, PATIENCE)
        await drained(here, node)
        await settled(here, station)
        held = len(await routed(here.state("base")))
        station.clock = SystemClock(YEARS)
        await here.wait("words", lambda: "clock was set forward by" in caplog.text, PATIENCE)
        station.clock = SystemClock()
        await here.wait("words", lambda: "clock was set back by" in caplog.text, PATIENCE)
        assert (await station.status({}))["clock_steps"] == 2
        assert len(await routed(here.state("base"))) == held
        # Once nobody has touched it for long, what is old goes again.
        monkeypatch.setattr(station, "_steady_from", 0.0)
        monkeypatch.setattr(station, "clock", SystemClock(YEARS))
        monkeypatch.setattr(station.steps, "look", lambda: 0.0)

        async def gone() -> bool:
            return not await routed(here.state("base"))

        await here.wait_for("expiry", gone, PATIENCE)
