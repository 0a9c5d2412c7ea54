"""What goes out: answers first, then packets, and never more waiting than is good."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from gateway import post as module
from gateway.post import Post
from qis_edge.links.base import down
from tests.gateway.kit import Wire, until

NODE = down(b"node\x00\x00\x00\x01")


@contextlib.asynccontextmanager
async def running(post: Post, wire: Wire) -> AsyncIterator[None]:
    await wire.start()
    task = asyncio.create_task(post.run())
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await wire.close()


async def test_answers_go_before_packets() -> None:
    wire = Wire()
    post = Post(wire)
    for number in range(3):
        await post.packet(b"packet %d" % number, NODE)
        post.answer(b"answer %d" % number, NODE)
    async with running(post, wire):
        await until(lambda: len(wire.sent) == 6)
    assert [frame for frame, _ in wire.sent] == [
        *(b"answer %d" % n for n in range(3)),
        *(b"packet %d" % n for n in range(3)),
    ]


async def test_what_waits_for_a_link_goes_when_it_is_up() -> None:
    wire = Wire()
    post = Post(wire)
    async with running(post, wire):
        await until(lambda: wire.up)
        wire.cut()
        post.answer(b"answer", NODE)
        await asyncio.sleep(0.02)
        assert wire.sent == []
        wire.restore()
        await until(lambda: wire.sent)


async def test_a_narrow_link_sets_the_pace() -> None:
    wire = Wire(window=1)
    post = Post(wire)
    for number in range(50):
        post.answer(b"%d" % number, NODE)
    async with running(post, wire):
        await until(lambda: len(wire.sent) == 50)
    assert post.dropped == 0


async def test_the_oldest_answer_goes_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_ANSWERS", 4)
    wire = Wire()
    post = Post(wire)
    for number in range(10):
        post.answer(b"%d" % number, NODE)
    assert post.dropped == 6
    async with running(post, wire):
        await until(lambda: len(wire.sent) == 4)
    assert [frame for frame, _ in wire.sent] == [b"6", b"7", b"8", b"9"]


async def test_who_brings_too_many_packets_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PACKETS", 3)
    wire = Wire()
    post = Post(wire)

    async def bring() -> None:
        for number in range(20):
            await post.packet(b"%d" % number, NODE)

    bringing = [asyncio.create_task(bring()) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in bringing)
    assert len(post._packets) == 3
    async with running(post, wire):
        await asyncio.wait_for(asyncio.gather(*bringing), 5)
        await until(lambda: len(wire.sent) == 40)


async def test_what_the_link_refuses_is_counted() -> None:
    wire = Wire()
    post = Post(wire)
    wire.broken = True
    post.answer(b"answer", NODE)
    async with running(post, wire):
        await until(lambda: post.dropped == 1)
        wire.broken = False
        post.answer(b"another", NODE)
        await until(lambda: wire.sent)
