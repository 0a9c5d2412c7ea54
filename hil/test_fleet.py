"""A node and its gateways over the radios: is every outcome in the routing layer, once?"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from gateway.station import Station
from hil.bench import GATEWAY, NODE, SECOND, Bench
from hil.fleet import Fleet, long_outcome, weather
from hil.measure import Meter
from qis_edge.clock import SystemClock
from qis_edge.node import timekeeping
from qis_edge.node.runtime import Node
from tests.loop.site import deposited, made_and_held, settled, spool_of, stats_of

DUTY_CYCLE_LIMIT = 9
Two = tuple[Fleet, list[Station], Node]
YEARS = 30 * 365 * 86400


async def pair(bench: Bench, folder: Path) -> tuple[Fleet, Station, Node]:
    """A gateway, and a node of its fleet. Neither runs."""
    fleet = Fleet.on(bench, folder)
    bench.fleets.append(fleet)
    station, node = fleet.base(), fleet.field()
    fleet.adopt(node, station)
    return fleet, station, node


async def transfer(
    bench: Bench, folder: Path, meter: Meter, count: int = 12
) -> tuple[Fleet, Station, Node]:
    """The same, and the node is in the middle of sending so many packets."""
    fleet, station, node = await pair(bench, folder)
    fleet.append(node, weather(count, 300, until=time.time() - 300, words=64))
    before = len(meter.run.spent)

    def sent() -> int:
        frames = meter.run.spent[before:]
        return sum(one.source == NODE and one.size > 120 for one in frames)

    fleet.start(station, node)
    await fleet.until("the first packets", lambda: sent() >= 4, 600)
    return fleet, station, node


async def test_a_node_joins_over_the_air(bench: Bench, tmp_path: Path, meter: Meter) -> None:
    fleet = Fleet.on(bench, tmp_path)
    bench.fleets.append(fleet)
    station, node = fleet.base(), fleet.field()
    fleet.append(node, weather(3, 300, until=time.time() - 300))
    began = meter.now()
    fleet.start(station, node)
    await fleet.approve(GATEWAY, node.identity.kid)
    await fleet.until("joining", lambda: node.membership.enrolled(node.clock.known), 900)
    meter.round_trip("joining", 0, meter.now() - began)
    await fleet.greeted(node)
    assert [known.kid for known in node.gateways] == [station.identity.kid]
    await fleet.held(node, 600)
    await fleet.assert_each_once(node, station)


async def test_outcomes_are_receipted_as_they_are_made(
    bench: Bench, tmp_path: Path, meter: Meter
) -> None:
    fleet, station, node = await pair(bench, tmp_path)
    fleet.start(station, node)
    await fleet.greeted(node)
    for number, outcome in enumerate(weather(8, 300, until=time.time() - 300)):
        began = meter.now()
        await fleet.say(node, outcome)
        await fleet.held(node, 300, least=number + 1)
        meter.round_trip("outcome to receipt", 100, meter.now() - began)
    assert stats_of(node).packets == 8
    await fleet.assert_each_once(node, station)


async def test_packets_of_512_bytes_go_in_pieces(
    bench: Bench, tmp_path: Path, meter: Meter
) -> None:
    fleet, station, node = await pair(bench, tmp_path)
    now = int(time.time())
    fleet.append(node, [long_outcome(now - 300 * n, n) for n in range(1, 4)])
    before, began = len(meter.run.spent), meter.now()
    fleet.start(station, node)
    await fleet.held(node, 900)
    stats = stats_of(node)
    meter.transfer("3 packets of 500 bytes", 3 * 500, meter.now() - began, 3)
    assert stats.packets == 3
    frames = [one for one in meter.run.spent[before:] if one.source == NODE and one.size > 100]
    assert len(frames) >= 9, "they did not have to be cut up"
    with spool_of(station) as spool:
        assert spool.status().size > 3 * 450
    await fleet.assert_each_once(node, station)


@pytest.mark.parametrize("every", [300, 600], ids=["every 5 min", "every 10 min"])
async def test_a_night_of_backlog(bench: Bench, tmp_path: Path, meter: Meter, every: int) -> None:
    fleet, station, node = await pair(bench, tmp_path)
    count = 12 * 3600 // every
    fleet.append(node, weather(count, every, until=time.time() - every))
    began = meter.now()
    fleet.start(station, node)
    await fleet.held(node, 1800)
    with spool_of(station) as spool:
        size = spool.status().size
    meter.transfer(f"a night of outcomes {every // 60} min apart", size, meter.now() - began, count)
    await fleet.assert_each_once(node, station)


@pytest.mark.disturbs
async def test_a_gateway_goes_away_and_comes_back(
    bench: Bench, tmp_path: Path, meter: Meter
) -> None:
    fleet, station, node = await transfer(bench, tmp_path, meter)
    await fleet.stop(station)
    await bench.sleep(60)
    assert made_and_held(node)[1] < 12
    station = fleet.base()
    fleet.start(station)
    await fleet.held(node, 3600)
    assert stats_of(node).packets == 12
    await fleet.assert_each_once(node, station)


@pytest.mark.disturbs
async def test_out_of_range_and_back(bench: Bench, tmp_path: Path, meter: Meter) -> None:
    fleet, station, node = await transfer(bench, tmp_path, meter)
    await bench.hear(NODE, GATEWAY, False)
    await bench.hear(GATEWAY, NODE, False)
    await bench.sleep(120)
    assert made_and_held(node)[1] < 12
    await bench.hear(NODE, GATEWAY, True)
    await bench.hear(GATEWAY, NODE, True)
    await fleet.held(node, 3600)
    await fleet.assert_each_once(node, station)


@pytest.mark.disturbs
async def test_receipts_that_do_not_arrive_are_given_again(bench: Bench, tmp_path: Path) -> None:
    if not bench.emulated:
        pytest.skip("one way only: real radios hear each other both ways or not at all")
    fleet, station, node = await pair(bench, tmp_path)
    first, *others = weather(6, 300, until=time.time() - 300)
    fleet.append(node, [first])
    fleet.start(station, node)
    await fleet.held(node, 900)
    await bench.hear(GATEWAY, NODE, False)
    for outcome in others:
        await fleet.say(node, outcome)

    def arrived() -> bool:
        with spool_of(station) as spool:
            return spool.status().packets >= 2

    await fleet.until("packets at the gateway", arrived, 600)
    await bench.sleep(30)
    assert made_and_held(node)[1] == 1
    await bench.hear(GATEWAY, NODE, True)
    await fleet.held(node, 1800)
    await fleet.assert_each_once(node, station)


@pytest.mark.disturbs
@pytest.mark.parametrize("role", [NODE, GATEWAY])
async def test_unplugged_in_the_middle_of_a_transfer(
    bench: Bench, tmp_path: Path, meter: Meter, role: str
) -> None:
    fleet, station, node = await transfer(bench, tmp_path, meter)
    link = node.link if role == NODE else station.fronts[0].link
    async with bench.unplugged(role):
        await fleet.until("the loss to be seen", lambda: not link.up, 60)
        await bench.sleep(30)
        assert made_and_held(node)[1] < 12
    await fleet.until("the radio", lambda: link.up, 120)
    await fleet.held(node, 3600)
    await fleet.assert_each_once(node, station)


@pytest.mark.disturbs
@pytest.mark.parametrize("role", [NODE, GATEWAY])
async def test_a_radio_that_reboots_in_the_middle_of_a_transfer(
    bench: Bench, tmp_path: Path, meter: Meter, role: str
) -> None:
    fleet, station, node = await transfer(bench, tmp_path, meter)
    link = node.link if role == NODE else station.fronts[0].link
    before = link.stats.connects
    await bench.press_reset(role)
    await fleet.until("the reboot to be seen", lambda: link.stats.connects > before, 300)
    await fleet.held(node, 3600)
    await fleet.assert_each_once(node, station)


@pytest.mark.disturbs
async def test_a_duty_cycle_that_is_used_up_is_waited_for(bench: Bench, tmp_path: Path) -> None:
    fleet, station, node = await pair(bench, tmp_path)
    fleet.start(station, node)
    await fleet.greeted(node)
    await bench.refuse(NODE, DUTY_CYCLE_LIMIT, 2)
    for outcome in weather(4, 300, until=time.time() - 300):
        await fleet.say(node, outcome)
    await fleet.held(node, 1800)
    await fleet.assert_each_once(node, station)


async def test_a_node_whose_clock_nobody_set(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet.on(bench, tmp_path)
    bench.fleets.append(fleet)
    station = fleet.base()
    with monkeypatch.context() as patch:
        patch.setattr(timekeeping, "_synchronised", lambda: False)
        patch.setattr("qis_edge.config.ClockConfig.make", lambda _: SystemClock(-YEARS))
        node = fleet.field(window="1s", sensor="tests.loop.sensors:Steady")
    monkeypatch.setattr(timekeeping, "_synchronised", lambda: False)
    fleet.adopt(node, station)
    began = time.time()
    assert node.clock.known is None
    fleet.start(node)
    await fleet.until("outcomes without a time", lambda: stats_of(node).untimed >= 2, 0)
    assert stats_of(node).packets == 0
    fleet.start(station)
    await fleet.until("the time", lambda: node.clock.known is not None, 600)
    assert abs(node.clock.now() - time.time()) < 10
    await node.drain({})
    await asyncio.sleep(0.1)
    await fleet.held(node, 900)
    assert stats_of(node).untimed == 0
    await fleet.assert_each_once(node, station)
    found = (await deposited(station.config.gateway.state))[node.identity.kid]
    times = [outcome.time for outcome in found]
    assert began - 12 <= min(times) <= max(times) <= time.time() + 10


async def two_gateways(bench: Bench, folder: Path, copies: int, count: int) -> Two:
    """Two gateways, and a node with so many outcomes that knows both of them."""
    if SECOND not in bench.ports:
        pytest.skip("it takes a third radio: --second-gateway-radio")
    fleet = Fleet.on(bench, folder)
    bench.fleets.append(fleet)
    stations = [fleet.base(GATEWAY), fleet.base(SECOND)]
    node = fleet.field(copies=copies)
    fleet.adopt(node, *stations, gateways=True)
    fleet.start(*stations, node)
    await fleet.greeted(node)
    for _ in range(10):  # of two answers at the same time one is lost now and then
        await bench.sleep(60)
        if sum(known.greeted is not None for known in node.gateways) == 2:
            break
        node.asking.hello()
    outcomes = weather(count, 300, until=time.time() - 300, words=64)
    await node.disk(fleet.append, node, outcomes)
    node.uplink.poke()
    return fleet, stations, node


async def test_two_gateways_hear_one_node(bench: Bench, tmp_path: Path) -> None:
    fleet, stations, node = await two_gateways(bench, tmp_path, copies=1, count=8)
    await fleet.held(node, 1800)
    everything = set()
    for station in stations:
        await settled(fleet, station)
        found = await deposited(station.config.gateway.state)
        times = [outcome.time for outcome in found.get(node.identity.kid, [])]
        assert times, "it heard nothing"
        assert len(times) == len(set(times)), "some are there twice"
        everything |= set(times)
    assert len(everything) == 8


async def test_a_packet_is_in_custody_when_two_gateways_have_it(
    bench: Bench, tmp_path: Path
) -> None:
    fleet, stations, node = await two_gateways(bench, tmp_path, copies=2, count=3)
    await fleet.held(node, 3600)
    await fleet.assert_each_once(node, *stations)
    for station in stations:
        with spool_of(station) as spool:
            assert spool.status().packets == 3
