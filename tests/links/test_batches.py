"""Frames in batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from qis_edge.links.base import Direction
from qis_edge.links.batches import Batches
from qis_edge.testing.memory import MemoryLink, MemoryMedium


@pytest.fixture
async def link() -> AsyncIterator[MemoryLink]:
    made = MemoryMedium(receive_window=1000).node(b"node\x00\x00\x00\x01")
    await made.start()
    await asyncio.sleep(0.01)
    yield made
    await made.close()


def bring(link: MemoryLink, count: int) -> None:
    for number in range(count):
        link.deliver(b"%d" % number, Direction.DOWN, None)


async def test_what_has_come_is_one_batch_in_order(link: MemoryLink) -> None:
    bring(link, 5)
    async with Batches(link, 10) as batches:
        await asyncio.sleep(0.01)
        assert [one.data for one in await batches.next()] == [b"%d" % n for n in range(5)]


async def test_a_batch_has_a_most(link: MemoryLink) -> None:
    bring(link, 25)
    async with Batches(link, 10) as batches:
        sizes: list[int] = []
        while sum(sizes) < 25:
            sizes.append(len(await batches.next()))
            await asyncio.sleep(0.01)
    assert max(sizes) <= 10
    assert sum(sizes) == 25


async def test_not_much_is_taken_ahead_of_the_reader(link: MemoryLink) -> None:
    bring(link, 100)
    async with Batches(link, 10) as batches:
        await asyncio.sleep(0.02)
        assert len(link._queue) >= 79  # the rest waits where the link can push back
        assert len(await batches.next()) == 10


async def test_a_reader_waits_for_the_first(link: MemoryLink) -> None:
    async with Batches(link, 10) as batches:
        waiting = asyncio.create_task(batches.next())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        bring(link, 1)
        assert len(await asyncio.wait_for(waiting, 1)) == 1


async def test_a_closed_link_ends_it_after_what_had_come(link: MemoryLink) -> None:
    async with Batches(link, 10) as batches:
        bring(link, 3)
        await asyncio.sleep(0.01)
        await link.close()
        assert len(await batches.next()) == 3
        assert await batches.next() == []


async def test_it_ends_with_its_block(link: MemoryLink) -> None:
    async with Batches(link, 10) as batches:
        pump = batches._pump
    await asyncio.sleep(0)
    assert pump is not None
    assert pump.cancelled()
