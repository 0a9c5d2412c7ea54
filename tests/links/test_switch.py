"""Several links as one: what goes where, and when that changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qis_edge.core.errors import LinkError
from qis_edge.links.base import UP, Link, down
from qis_edge.links.switch import Switch
from qis_edge.testing.links import LinkConformance, LinkWorld, until_down
from qis_edge.testing.memory import MemoryMedium

KID, GATEWAY = b"node-kid", b"gate-kid"
AFTER, SETTLE = 0.2, 0.3


class Bench:
    """A node with two ways to one gateway."""

    def __init__(self) -> None:
        self.media = [MemoryMedium(), MemoryMedium()]
        self.links = [medium.node(KID) for medium in self.media]
        for name, link in zip(("cheap", "dear"), self.links, strict=True):
            link.name = name
        self.gateways = [medium.gateway(GATEWAY) for medium in self.media]
        self.switch = Switch(self.links, after=AFTER, settle=SETTLE)

    def used(self) -> str:
        return self.switch.current.name

    async def until_used(self, name: str) -> None:
        async with asyncio.timeout(60):
            while not (self.used() == name and self.switch.up):
                change = self.switch.changed()
                if self.used() == name and self.switch.up:
                    change.close()
                    return
                await change


@asynccontextmanager
async def running() -> AsyncIterator[Bench]:
    bench = Bench()
    for gateway in bench.gateways:
        await gateway.start()
    await bench.switch.start()
    try:
        await bench.until_used("cheap")
        yield bench
    finally:
        await bench.switch.close()
        for gateway in bench.gateways:
            await gateway.close()


async def test_the_most_preferred_carries_everything() -> None:
    async with running() as bench:
        await bench.switch.send(b"reading", UP)
        assert (await bench.gateways[0].receive()).data == b"reading"
        assert bench.links[1].stats.frames_out == 0
        assert bench.switch.stats.frames_out == 1
        assert bench.switch.url == bench.links[0].url


async def test_what_comes_in_comes_from_all() -> None:
    async with running() as bench:
        for gateway, text in zip(bench.gateways, (b"one", b"two"), strict=True):
            await gateway.send(text, down(KID))
        found = {}
        for _ in range(2):
            received = await bench.switch.receive()
            found[received.link] = received.data
            await bench.switch.done(received)
        assert found == {"cheap": b"one", "dear": b"two"}


async def test_another_takes_its_place_and_gives_it_back() -> None:
    async with running() as bench:
        connects = bench.switch.stats.connects
        bench.media[0].fail()
        assert bench.used() == "cheap"  # it may be back in a moment
        await bench.until_used("dear")
        assert bench.switch.stats.connects > connects  # as after a new connection
        await bench.switch.send(b"reading", UP)
        assert (await bench.gateways[1].receive()).data == b"reading"
        bench.media[0].heal()
        began = asyncio.get_running_loop().time()
        await bench.until_used("cheap")
        assert asyncio.get_running_loop().time() - began >= SETTLE / 2


async def test_a_short_outage_changes_nothing() -> None:
    async with running() as bench:
        bench.media[0].fail()
        await asyncio.sleep(AFTER / 4)
        bench.media[0].heal()
        await bench.until_used("cheap")
        await asyncio.sleep(2 * AFTER)
        assert bench.used() == "cheap"
        assert bench.links[1].stats.frames_out == 0


async def test_one_that_nobody_answers_is_passed_over() -> None:
    async with running() as bench:
        bench.switch.silent()
        await bench.until_used("dear")
        await asyncio.sleep(2 * SETTLE)
        assert bench.used() == "dear"  # up all the while, and not believed
        await bench.gateways[0].send(b"greeting", down(KID))
        bench.switch.answered(await bench.switch.receive())
        await bench.gateways[0].send(b"anything", down(KID))
        bench.media[1].fail()
        await bench.until_used("cheap")


async def test_with_nothing_up_it_is_down() -> None:
    async with running() as bench:
        for medium in bench.media:
            medium.fail()
        await until_down(bench.switch)
        with pytest.raises(LinkError):
            await bench.switch.send(b"reading", UP)


class World(LinkWorld):
    """A medium, and beside it one that never is up."""

    def __init__(self) -> None:
        self.medium, self.dead = MemoryMedium(), MemoryMedium()
        self.dead.fail()

    def node(self, kid: bytes) -> Link:
        nothing = self.dead.node(kid)
        nothing.name = "dead"
        return Switch([nothing, self.medium.node(kid)], after=0.0, settle=0.1)

    def gateway(self, kid: bytes) -> Link:
        return self.medium.gateway(kid)

    async def fail(self) -> None:
        self.medium.fail()

    async def heal(self) -> None:
        self.medium.heal()


class TestSwitchConformance(LinkConformance):
    """It is a link like any other."""

    @asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[LinkWorld]:
        yield World()
