"""Nodes that do not know the time, and gateways that are wrong about it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gateway.station import Station
from qis_edge.clock import SystemClock
from qis_edge.core.packet import unpack
from qis_edge.node import timekeeping
from qis_edge.node.runtime import Node
from qis_edge.node.timekeeping import Timekeeper
from qis_edge.testing.memory import MemoryMedium
from tests.loop.site import (
    Site,
    assert_each_once,
    deposited,
    drained,
    made_and_held,
    routed,
    settled,
    site,
    stats_of,
)

YEARS = 30 * 365 * 86400
DAY = 86400


def clockless(here: Site, monkeypatch: pytest.MonkeyPatch, wrong: float) -> Node:
    """The node on a board whose clock nobody set: it is wrong by so many seconds."""
    with monkeypatch.context() as patch:
        patch.setattr(timekeeping, "_synchronised", lambda: False)
        patch.setattr("qis_edge.config.ClockConfig.make", lambda _: SystemClock(wrong))
        node = here.node("ewr", clock=False)
    # It looks again and again: nobody sets it later either.
    monkeypatch.setattr(timekeeping, "_synchronised", lambda: False)
    return node


async def joined(here: Site) -> Station:
    """A gateway, and a node that has joined and is switched off."""
    station, node = here.station(clock=False), here.node("ewr", clock=False)
    here.start(station, node)
    await here.join(station, node)
    await drained(here, node)
    await here.stop(node)
    return station


@pytest.mark.parametrize("wrong", [-YEARS, YEARS])
async def test_outcomes_wait_untimed_and_get_their_true_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station = await joined(here)
        await here.stop(station)
        before = stats_of(here.state("ewr"))
        began = time.time()
        node = clockless(here, monkeypatch, wrong)
        assert node.clock.known is None
        here.start(node)
        await here.wait("outcomes", lambda: stats_of(node).untimed >= 2)
        assert stats_of(node).packets == before.packets
        station = here.station(clock=False)
        here.start(station)
        await here.wait("the time", lambda: node.clock.known is not None)
        assert abs(node.clock.now() - time.time()) < 2
        await here.wait("custody", lambda: made_and_held(node)[1] >= before.made + 3)
        await drained(here, node)
        assert stats_of(node).untimed == 0
        await settled(here, station)
        kid = node.identity.kid
        times = [one.time for one in (await deposited(here.state("base")))[kid]]
        assert len(times) == made_and_held(node)[0]
        recent = sorted(times)[before.made :]
        assert began - 3 <= recent[0] <= recent[-1] <= time.time() + 1
        # How sure that is travels with them.
        for entry in await routed(here.state("base")):
            packet = unpack(entry.raw)
            if packet.time >= recent[0]:
                assert (packet.extensions.time_uncertainty or 0) >= 1


async def test_a_restart_still_knows_what_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station = await joined(here)
        node = clockless(here, monkeypatch, -YEARS)
        here.start(node)
        await here.wait("the time", lambda: node.clock.known is not None)
        await here.wait("its keeping", lambda: not node.inbound.time_owed)
        await here.stop(node, station)
        again = clockless(here, monkeypatch, -YEARS)
        assert abs((again.clock.known or 0) - time.time()) < 2
        made = stats_of(again).made
        here.start(again)
        await here.wait("an outcome", lambda: stats_of(again).made > made)
        assert stats_of(again).untimed == 0


@pytest.mark.parametrize("wrong", [-DAY, YEARS])
async def test_a_gateway_with_a_wrong_clock_is_not_believed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: float,
) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station = await joined(here)
        await here.stop(station)
        station = here.station(clock=False)
        # From its first minute on; credentials were judged before.
        monkeypatch.setattr(station.fronts[0].desk, "_clock", SystemClock(wrong))
        resolve = station.fleet.resolve
        vars(station.fleet)["resolve"] = lambda kid, _, scope: resolve(kid, None, scope)
        node = here.node("ewr", clock=False)
        here.start(station, node)
        await here.wait("its greeting", lambda: any(g.greeted for g in node.gateways))
        node.asking.hello()
        await here.wait("custody", lambda: len(set(made_and_held(node))) == 1)
        await drained(here, node)
        assert abs(node.clock.now() - time.time()) < 1
        assert isinstance(node.clock, Timekeeper)
        assert node.clock.offset is None
        warnings = [one.message for one in caplog.records if "our clock is" in one.message]
        assert len(warnings) == 1
        assert ("ahead of" if wrong < 0 else "behind") in warnings[0]
        await settled(here, station)
        await assert_each_once(here.state("base"), {node.identity.kid: made_and_held(node)[0]})
