"""A serial line: does every frame arrive as it was, and every outcome of a node once?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.station import Station
from hil.bench import GATEWAY, NODE
from hil.fleet import Fleet, weather
from hil.line import Line
from hil.measure import Meter
from qis_edge.core.errors import LinkError
from qis_edge.links.base import UP
from qis_edge.node.runtime import Node
from tests.loop.site import made_and_held, spool_of

# - the line alone


def frame(size: int, number: int = 0) -> bytes:
    """Bytes of every value, the delimiters' among them."""
    return bytes((number * 7 + i) & 0xFF for i in range(size))


@pytest.mark.parametrize("size", [1, 253, 254, 255, 511, 512])
async def test_every_size_arrives_unchanged_on_a_line(line: Line, size: int) -> None:
    links = {NODE: await line.up(NODE), GATEWAY: await line.up(GATEWAY)}
    for sender, receiver in ((NODE, GATEWAY), (GATEWAY, NODE)):
        received = await line.carry(sender, links[sender], links[receiver], frame(size))
        assert received is not None
        assert received.data == frame(size)


async def test_what_is_too_long_for_a_line_is_refused(line: Line) -> None:
    node, gateway = await line.up(NODE), await line.up(GATEWAY)
    with pytest.raises(LinkError, match="513"):
        await node.send(frame(513), UP)
    received = await line.carry(NODE, node, gateway, frame(512))
    assert received is not None


async def test_round_trips_on_a_line(line: Line, meter: Meter) -> None:
    node, gateway = await line.up(NODE), await line.up(GATEWAY)
    for number, size in enumerate([1, 64, 200, 512] * 6):
        sent, began = frame(size, number), time.monotonic()
        there = await line.carry(NODE, node, gateway, sent)
        back = await line.carry(GATEWAY, gateway, node, sent)
        assert there is not None
        assert back is not None
        assert there.data == back.data == sent
        meter.round_trip("echo on the line", size, time.monotonic() - began)


async def test_a_stream_on_a_line(line: Line, meter: Meter) -> None:
    node, gateway = await line.up(NODE), await line.up(GATEWAY)
    count, began = 60, time.monotonic()

    async def write() -> None:
        for number in range(count):
            await line.send(node, frame(512, number), GATEWAY)

    writing = asyncio.create_task(write())
    got: list[bytes] = []
    while len(got) < count and (received := await line.receive(gateway, 5.0)) is not None:
        got.append(received.data)
    await writing
    took = time.monotonic() - began
    assert got == [frame(512, number) for number in range(count)]
    assert 512 * count / took < 1.3 * line.speed(), "faster than the line is"
    meter.transfer("60 frames on the line", 512 * count, took)


@pytest.mark.disturbs
async def test_what_noise_damages_is_dropped_and_nothing_else_is(line: Line) -> None:
    node, gateway = await line.up(NODE), await line.up(GATEWAY)
    line.noise(0.002)
    sent: list[bytes] = []
    got: list[bytes] = []
    for number in range(60):
        sent.append(frame(200, number))
        await line.send(node, sent[-1], GATEWAY)
        received = await line.receive(gateway, 0.1)
        if received is not None:
            got.append(received.data)
    assert 0 < len(got) < 60
    assert [one for one in sent if one in got] == got, "invented, or out of order"
    line.noise(0.0)
    for _ in range(2):  # the first may complete what noise had begun
        received = await line.carry(NODE, node, gateway, frame(100))
    assert received is not None
    assert received.data == frame(100)


@pytest.mark.disturbs
@pytest.mark.parametrize("role", [NODE, GATEWAY])
async def test_a_line_that_is_unplugged_and_back(line: Line, role: str) -> None:
    links = {NODE: await line.up(NODE), GATEWAY: await line.up(GATEWAY)}
    async with line.cut(role):
        async with asyncio.timeout(30):
            while links[role].up:  # noqa: ASYNC110 - a person may have done it
                await asyncio.sleep(0.02)
        with pytest.raises(LinkError, match="down"):
            await links[role].send(frame(10), line.to(GATEWAY if role == NODE else NODE))
    async with asyncio.timeout(30):
        while not links[role].up:
            await links[role].changed()
    received = await line.carry(NODE, links[NODE], links[GATEWAY], frame(50))
    assert received is not None


# - a node and its gateway on it


@pytest.fixture
async def fleet(line: Line, tmp_path: Path) -> AsyncIterator[Fleet]:
    tables = {role: f'[links.serial]\nport = "{port}"\n' for role, port in line.ports.items()}
    made = Fleet(tmp_path, tables)
    yield made
    await made.stop()


async def pair(fleet: Fleet, count: int = 0) -> tuple[Station, Node]:
    """A gateway, and a node of its fleet with so many outcomes. Neither runs."""
    station, node = fleet.base(), fleet.field()
    fleet.adopt(node, station)
    if count:
        fleet.append(node, weather(count, 300, until=time.time() - 300, words=64))
    return station, node


async def test_a_night_of_backlog_on_a_line(line: Line, fleet: Fleet, meter: Meter) -> None:
    station, node = await pair(fleet, 144)
    began = time.monotonic()
    fleet.start(station, node)
    await fleet.held(node, 60)
    with spool_of(station) as spool:
        size = spool.status().size
    meter.transfer("a night of outcomes on the line", size, time.monotonic() - began, 144)
    await fleet.assert_each_once(node, station)


@pytest.mark.disturbs
async def test_a_noisy_line_loses_and_doubles_nothing(line: Line, fleet: Fleet) -> None:
    station, node = await pair(fleet, 60)
    line.noise(0.0005)
    fleet.start(station, node)
    await fleet.held(node, 120)
    await fleet.assert_each_once(node, station)


@pytest.mark.disturbs
@pytest.mark.parametrize("role", [NODE, GATEWAY])
async def test_a_cable_is_pulled_in_the_middle_of_a_transfer(
    line: Line, fleet: Fleet, role: str
) -> None:
    station, node = await pair(fleet, 600)
    fleet.start(station, node)
    await fleet.held(node, 60, least=5)
    async with line.cut(role):
        await asyncio.sleep(0.5)
        assert made_and_held(node)[1] < 600
    await fleet.held(node, 120)
    await fleet.assert_each_once(node, station)
