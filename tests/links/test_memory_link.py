"""The in-memory double, held to the suite that every link passes, and its faults."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qis_edge.core.errors import UsageError
from qis_edge.links.base import UP, Link
from qis_edge.testing.links import (
    Faults,
    LinkConformance,
    LinkWorld,
    MemoryMedium,
    receive_done,
    send_when_possible,
    until_up,
)

NODE, GATEWAY = b"n" * 8, b"g" * 8


class MemoryWorld(LinkWorld):
    def __init__(self, medium: MemoryMedium) -> None:
        self.medium = medium

    def node(self, kid: bytes) -> Link:
        return self.medium.node(kid)

    def gateway(self, kid: bytes) -> Link:
        return self.medium.gateway(kid)

    async def fail(self) -> None:
        self.medium.fail()

    async def heal(self) -> None:
        self.medium.forget()
        self.medium.heal()


class TestMemoryLink(LinkConformance):
    quiet = 0.05

    @asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[LinkWorld]:
        yield MemoryWorld(MemoryMedium())


class TestMeshLikeMemoryLink(LinkConformance):
    claims = False
    selective = False
    quiet = 0.05

    @asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[LinkWorld]:
        yield MemoryWorld(MemoryMedium(mesh=True, window=8))


class TestSlowUnorderedMemoryLink(LinkConformance):
    ordered = False
    quiet = 0.1
    many = 60

    @asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[LinkWorld]:
        yield MemoryWorld(MemoryMedium(Faults(delay=0.002), interval=0.001))


async def pair(medium: MemoryMedium) -> tuple[Link, Link]:
    node, gateway = medium.node(NODE), medium.gateway(GATEWAY)
    await node.start()
    await gateway.start()
    await until_up(node, gateway)
    return node, gateway


async def arrivals(medium: MemoryMedium, count: int) -> list[int]:
    """The numbers that arrive of ``count`` sent, as they arrive."""
    node, gateway = await pair(medium)
    for number in range(count):
        await send_when_possible(node, number.to_bytes(2, "big"))
    await asyncio.sleep(0.1)
    found: list[int] = []
    while gateway.stats.frames_in > len(found):
        received = (await receive_done(gateway, 1))[0]
        found.append(int.from_bytes(received.data, "big"))
    return found


async def test_loss() -> None:
    medium = MemoryMedium(Faults(loss=0.3), seed=1)
    found = await arrivals(medium, 1000)
    assert len(found) == 1000 - medium.carried.lost
    assert 250 < medium.carried.lost < 350


async def test_duplication() -> None:
    medium = MemoryMedium(Faults(duplicate=0.5), seed=2)
    found = await arrivals(medium, 200)
    assert len(found) == 200 + medium.carried.duplicated
    assert set(found) == set(range(200))
    assert 60 < medium.carried.duplicated < 140


async def test_reordering() -> None:
    medium = MemoryMedium(Faults(reorder=0.3), seed=3)
    found = await arrivals(medium, 200)
    assert sorted(found) == list(range(200))
    assert found != sorted(found)


async def test_delay() -> None:
    medium = MemoryMedium(Faults(delay=0.1))
    node, gateway = await pair(medium)
    began = time.monotonic()
    await node.send(b"frame", UP)
    assert node.room == medium.window - 1
    await receive_done(gateway, 1)
    assert time.monotonic() - began >= 0.09
    assert node.room == medium.window


async def test_the_same_seed_gives_the_same_faults() -> None:
    runs = [await arrivals(MemoryMedium(Faults(loss=0.5), seed=4), 100) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] != await arrivals(MemoryMedium(Faults(loss=0.5), seed=5), 100)


async def test_what_is_under_way_when_the_medium_fails_is_lost() -> None:
    medium = MemoryMedium(Faults(delay=0.02))
    node, gateway = await pair(medium)
    await node.send(b"lost", UP)
    medium.fail()
    medium.heal()
    assert node.room == medium.window
    await node.send(b"kept", UP)
    assert [received.data for received in await receive_done(gateway, 1)] == [b"kept"]


async def test_a_gateway_alone_can_lose_the_medium() -> None:
    medium = MemoryMedium()
    node = medium.node(NODE)
    gateway = medium.gateway(GATEWAY)
    for link in (node, gateway):
        await link.start()
    await until_up(node, gateway)
    gateway.cut()
    await node.send(b"while away", UP)
    assert (node.up, gateway.up) == (True, False)
    gateway.restore()
    assert [received.data for received in await receive_done(gateway, 1)] == [b"while away"]


async def test_what_a_broker_forgets_does_not_come() -> None:
    medium = MemoryMedium()
    node, gateway = await pair(medium)
    await node.send(b"forgotten", UP)
    await gateway.receive()
    medium.fail()
    medium.forget()
    medium.heal()
    await node.send(b"new", UP)
    assert [received.data for received in await receive_done(gateway, 1)] == [b"new"]


async def test_frames_beyond_the_receive_window_wait() -> None:
    medium = MemoryMedium(receive_window=5)
    node, gateway = await pair(medium)
    for number in range(12):
        await send_when_possible(node, bytes([number]))
    await asyncio.sleep(0.01)
    assert gateway.stats.frames_in == 5
    assert [r.data[0] for r in await receive_done(gateway, 12)] == list(range(12))


async def test_a_stranger_is_heard_and_his_large_frames_are_dropped() -> None:
    medium = MemoryMedium()
    _, gateway = await pair(medium)
    medium.inject(bytes(600), UP)
    medium.inject(b"hostile", UP, claimed=NODE)
    received = (await receive_done(gateway, 1))[0]
    assert (received.data, received.claimed) == (b"hostile", NODE)
    assert gateway.stats.dropped_in == 1


def test_probabilities_are_checked() -> None:
    with pytest.raises(UsageError, match="loss"):
        Faults(loss=1.5)
