"""The plain way up a link: each packet a frame, as custody says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from qis_edge.core.pacing import BROKER, Pace
from qis_edge.links.base import Link, Role
from qis_edge.links.mesh import MeshLink, MeshSettings, MeshWay
from qis_edge.links.ways import AGAIN, Carrier, PlainWay, Way, make_way
from qis_edge.testing.links import receive_done, until_up
from qis_edge.testing.memory import MemoryLink, MemoryMedium
from tests.core.mesh.kit import verify

GATEWAY, STORE = b"gate-kid", b"stor"
PACE = Pace(window=4, first_timeout=0.05, least_timeout=0.05, most_timeout=0.2)


class Bench:
    """A way over a link, and a gateway that listens."""

    def __init__(self) -> None:
        self.medium = MemoryMedium()
        self.link = self.medium.node(b"node-kid")
        self.gateway = self.medium.gateway(GATEWAY)
        self.way = PlainWay(self.link, PACE, 1)

    def offer(self, *numbers: int) -> None:
        for number in numbers:
            assert self.way.offer((STORE, number), b"packet %d" % number, 1) == ()

    def receipt(self, *numbers: int) -> None:
        keys = [(STORE, number) for number in numbers]
        self.way.answered(GATEWAY, held=keys, refused=(), later=())

    async def send(self) -> float | None:
        """As a caller does that is told to call again at once."""
        until = await self.way.send()
        return await self.send() if until == float("-inf") else until

    async def came(self, count: int) -> list[bytes]:
        return [received.data for received in await receive_done(self.gateway, count, 2.0)]

    async def fall_silent(self) -> None:
        """Nobody answers until that makes a silence."""
        while not self.way.silent:
            until = await self.send()
            assert until is not None
            await asyncio.sleep(until - time.monotonic())


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    await made.link.start()
    await made.gateway.start()
    await until_up(made.link, made.gateway)
    yield made
    await made.link.close()
    await made.gateway.close()


def test_a_link_with_a_way_of_its_own_brings_it() -> None:
    mesh: Link = MeshLink(MeshSettings(), Role.NODE, verify)
    assert isinstance(mesh, Carrier)
    ways: list[Way] = [make_way(mesh, 2, 64)]
    assert isinstance(ways[0], MeshWay)
    assert ways[0].custody.copies == 2
    memory = MemoryLink(MemoryMedium(), Role.NODE, b"node-kid")
    assert not isinstance(memory, Carrier)
    ways.append(make_way(memory, 3, 7))
    assert isinstance(ways[1], PlainWay)
    ways[1].open()
    assert ways[1].custody.copies == 3
    assert ways[1].custody.room_for() == 7


async def test_it_sends_what_custody_lets_it_and_again_what_nobody_answers(bench: Bench) -> None:
    assert await bench.way.send() is None
    bench.way.open()
    bench.offer(1, 2, 3)
    assert await bench.way.send() == float("-inf"), "more may be due"
    await bench.send()
    assert await bench.came(3) == [b"packet 1", b"packet 2", b"packet 3"]
    bench.receipt(1, 3)
    until = await bench.send()
    assert until is not None
    assert until > time.monotonic()
    await asyncio.sleep(until - time.monotonic())
    await bench.send()
    assert await bench.came(1) == [b"packet 2"]
    bench.receipt(2)
    assert await bench.way.send() is None
    assert bench.way._raw == {}


async def test_what_the_link_does_not_take_is_tried_again(bench: Bench) -> None:
    bench.way.open()
    bench.way.offer((STORE, 1), bytes(600), 1)
    until = await bench.way.send()
    assert until is not None
    assert 0 < until - time.monotonic() <= AGAIN
    bench.way.withdraw((STORE, 1))
    assert await bench.way.send() is None


async def test_without_room_only_the_link_can_change_anything(bench: Bench) -> None:
    bench.way.open()
    await bench.link.close()
    bench.offer(1)
    assert await bench.way.send() is None


async def test_while_shut_nothing_goes_and_reopened_what_was_under_way_goes_again(
    bench: Bench,
) -> None:
    bench.way = PlainWay(bench.link, BROKER, 1)
    bench.way.open()
    bench.offer(1)
    await bench.send()
    bench.way.shut()
    bench.offer(2)
    assert await bench.way.send() is None
    bench.way.open()
    await bench.send()
    bench.way.reopen()
    await bench.send()
    assert sorted(await bench.came(5)) == [b"packet 1"] * 3 + [b"packet 2"] * 2


async def test_a_way_that_was_left_in_silence_begins_anew(bench: Bench) -> None:
    bench.way.open()
    bench.offer(1, 2)
    await bench.fall_silent()
    bench.way.reopen()
    assert bench.way.silent, "a link that comes and goes is no answer"
    bench.way.shut()
    for number in (1, 2):
        bench.way.withdraw((STORE, number))
    bench.way.open()
    assert not bench.way.silent
    bench.offer(3, 4)
    await bench.send()
    assert bench.way.custody.in_flight == 2, "and not a probe alone"


async def test_a_word_of_a_gateway_ends_a_silence(bench: Bench) -> None:
    bench.way.open()
    bench.offer(1)
    await bench.fall_silent()
    bench.way.heard(GATEWAY)
    assert not bench.way.silent


async def test_what_a_gateway_lost_counts_no_more(bench: Bench) -> None:
    way = PlainWay(bench.link, PACE, 2)
    way.open()
    way.offer((STORE, 1), b"packet", 1)
    await way.send()
    way.answered(GATEWAY, held=[(STORE, 1)], refused=(), later=())
    way.lost(GATEWAY)
    way.answered(GATEWAY, held=[(STORE, 1)], refused=(), later=())
    answered = way.answered(b"another.", held=[(STORE, 1)], refused=(), later=())
    assert answered.done == ((STORE, 1),)
