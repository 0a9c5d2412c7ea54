"""The way in: frames are proved, and acknowledged to the link after that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from gateway.intake import BATCH, Counts, Intake
from qis_edge.core.errors import Reason, Refused, StoreCorrupt, StoreError
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.messages import Hello, Message
from qis_edge.core.packet import Packet
from qis_edge.links.base import Direction, Received
from tests.gateway.kit import Wire, packet_of, until


class Desk:
    """Knows some, and remembers what it was asked."""

    def __init__(self, *known: Identity) -> None:
        self.known = {one.kid: one.public for one in known}
        self.handled: list[Message] = []
        self.blamed: list[tuple[bytes | None, Reason]] = []
        self.error: Exception | None = None

    def node_key(self, kid: bytes) -> PublicKey:
        if kid not in self.known:
            raise Refused(Reason.UNKNOWN_KEY, "kid")
        return self.known[kid]

    async def handle(self, message: Message, received: Received) -> None:
        if self.error is not None:
            raise self.error
        self.handled.append(message)

    def refused(self, kid: bytes | None, refusal: Refused) -> None:
        self.blamed.append((kid, refusal.reason))


class Bench:
    def __init__(self) -> None:
        self.node = Identity.generate()
        self.desk = Desk(self.node)
        self.wire = Wire()
        self.counts = Counts()
        self.taken: list[list[Packet]] = []
        self.done: list[bytes] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.intake = Intake(self.wire, self.desk, self._take, self.counts)
        finish = self.wire.done

        async def done(received: Received) -> None:
            self.done.append(received.data)
            await finish(received)

        vars(self.wire)["done"] = done

    async def _take(self, packets: Sequence[Packet]) -> None:
        await self.hold.wait()
        self.taken.append(list(packets))

    def bring(self, raw: bytes, claimed: bytes | None = None) -> None:
        self.wire.deliver(raw, Direction.UP, claimed)


@contextlib.asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[asyncio.Task[None]]:
    await bench.wire.start()
    task = asyncio.create_task(bench.intake.run())
    try:
        yield task
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bench.wire.close()


async def test_packets_are_proved_together_and_done_after_that() -> None:
    bench = Bench()
    bench.hold.clear()
    packets = [packet_of(bench.node, sequence) for sequence in range(40)]
    async with running(bench):
        await until(lambda: bench.wire.up)
        for packet in packets:
            bench.bring(packet.raw, bench.node.kid)
        await asyncio.sleep(0.1)
        assert bench.done == []
        bench.hold.set()
        await until(lambda: len(bench.done) == 40)
    assert [p.id for batch in bench.taken for p in batch] == [p.id for p in packets]
    assert len(bench.taken) < 5
    assert bench.counts.frames == 40


async def test_a_batch_is_bounded() -> None:
    bench = Bench()
    async with running(bench):
        await until(lambda: bench.wire.up)
        for sequence in range(BATCH + 20):
            bench.bring(packet_of(bench.node, sequence).raw)
        await until(lambda: len(bench.done) == BATCH + 20)
    assert max(len(batch) for batch in bench.taken) <= BATCH


async def test_what_is_not_acceptable_is_counted_and_done() -> None:
    bench = Bench()
    stranger = Identity.generate()
    good = packet_of(bench.node)
    bad = good.raw[:-1] + bytes((good.raw[-1] ^ 1,))
    async with running(bench):
        await until(lambda: bench.wire.up)
        for raw, claimed in (
            (bad, bench.node.kid),
            (packet_of(stranger).raw, stranger.kid),
            (good.raw, stranger.kid),  # on another's topic
            (b"\xff\xff", None),
            (good.raw, bench.node.kid),
        ):
            bench.bring(raw, claimed)
        await until(lambda: len(bench.done) == 5)
    assert [packet.id for batch in bench.taken for packet in batch] == [good.id]
    assert bench.counts.refused == {"signature": 1, "unknown_key": 1, "topic": 1, "message": 1}
    assert (stranger.kid, Reason.TOPIC) in bench.desk.blamed


async def test_a_credential_may_stand_before_the_first_packet() -> None:
    """Whatever is no packet is handled first."""
    bench = Bench()
    newcomer = Identity.generate()

    async def handle(message: Message, received: Received) -> None:
        bench.desk.known[newcomer.kid] = newcomer.public

    vars(bench.desk)["handle"] = handle
    async with running(bench):
        await until(lambda: bench.wire.up)
        bench.bring(packet_of(newcomer).raw)
        bench.bring(Hello(newcomer.kid, b"nonce--1").encode())
        await until(lambda: len(bench.done) == 2)
    assert len(bench.taken) == 1


async def test_what_cannot_be_written_down_is_counted() -> None:
    bench = Bench()
    bench.desk.error = StoreError("full")
    async with running(bench):
        await until(lambda: bench.wire.up)
        bench.bring(Hello(bench.node.kid, b"nonce--1").encode())
        bench.bring(packet_of(bench.node).raw)
        await until(lambda: len(bench.done) == 2)
    assert bench.counts.refused == {"store": 1}
    assert len(bench.taken) == 1


async def test_damage_is_for_nobody_to_pass_over() -> None:
    bench = Bench()
    bench.desk.error = StoreCorrupt("damaged")
    await bench.wire.start()
    await until(lambda: bench.wire.up)
    bench.bring(Hello(bench.node.kid, b"nonce--1").encode())
    with pytest.raises(StoreCorrupt):
        await asyncio.wait_for(bench.intake.run(), 5)
    await bench.wire.close()


async def test_a_closed_link_ends_it() -> None:
    bench = Bench()
    async with running(bench) as task:
        await until(lambda: bench.wire.up)
        await bench.wire.close()
        await asyncio.wait_for(task, 5)
