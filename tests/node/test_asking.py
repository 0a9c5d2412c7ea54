"""What a node asks for: once when there is need, and ever more rarely without an answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from qis_edge.clock import SystemClock
from qis_edge.core.errors import StoreCorrupt, StoreError
from qis_edge.core.messages import Hello, Position, Request, Wanted, decode
from qis_edge.links.base import Cadence
from qis_edge.node import asking as module
from qis_edge.node.asking import Asking
from qis_edge.node.gateways import Gateways
from qis_edge.node.membership import Membership
from qis_edge.node.timekeeping import Timekeeper
from qis_edge.store.inbox import Inbox
from qis_edge.testing import memory
from qis_edge.worker import Disk
from tests.node.kit import ADDRESS, Fleet, Wire, until

EPOCH = b"ep-1"
OTHER = bytes(reversed(range(32)))


class Bench:
    def __init__(self, *, enrolled: bool = True) -> None:
        self.fleet = Fleet()
        trust = self.fleet.trust(enrolled=enrolled)
        self.gateways = Gateways(self.fleet.me, trust)
        self.membership = Membership(self.fleet.me, "field-1", trust)
        self.wire = Wire(self.fleet.me.kid)
        self.inbox = Inbox.in_memory()
        self.disk = Disk("test")
        self.silent = False
        self.asking = Asking(
            self.wire,
            self.fleet.me,
            self.gateways,
            self.membership,
            self.inbox,
            self.disk,
            Timekeeper(SystemClock(), 0, synchronised=False),
            silent=lambda: self.silent,
        )

    @property
    def kid(self) -> bytes:
        return self.fleet.gateway.kid

    def greeted(self) -> None:
        self.gateways.learn({self.kid: EPOCH}, None)

    def requests(self) -> list[Request]:
        return [one for one in self.wire.messages() if isinstance(one, Request)]

    def said(self) -> Counter[str]:
        return Counter(type(one).__name__ for one in self.wire.messages())

    async def position(self, cursor: bytes, *, complete: bool = True) -> None:
        said = Position(self.kid, cursor, complete).encode(self.fleet.keys().to_node)
        arrived = decode(said)
        assert isinstance(arrived, Position)
        await self.asking.answered(arrived)

    async def cursor(self) -> bytes | None:
        return await self.disk(self.inbox.cursor, self.kid, self.asking._scope())

    async def asked(self, count: int) -> Request:
        await until(lambda: len(self.requests()) == count)
        return self.requests()[-1]


@contextlib.asynccontextmanager
async def running(bench: Bench, *, attend: bool = True) -> AsyncIterator[Bench]:
    """Up, with one gateway that has greeted, and one address of interest."""
    bench.greeted()
    await bench.wire.start()
    task = asyncio.create_task(bench.asking.run())
    try:
        await until(lambda: bench.said()["Hello"])
        if attend:
            await bench.asking.attend(((ADDRESS, 256),))
        yield bench
    finally:
        if task.done():
            task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bench.wire.close()
        await bench.disk(bench.inbox.close)
        bench.disk.close()


async def test_a_link_that_comes_up_is_greeted_and_listened_to() -> None:
    async with running(Bench()) as bench:
        assert bench.wire.listening == {ADDRESS}
        await bench.asked(1)
        bench.wire.cut()
        bench.wire.restore()
        await until(lambda: bench.said()["Hello"] == 2)
        await asyncio.sleep(0.05)
        # A request follows the greeting, not the link.
        assert len(bench.requests()) == 1


async def test_hellos_have_fresh_nonces() -> None:
    async with running(Bench()) as bench:
        for number in range(2, 5):
            bench.asking.hello()
            await until(lambda: bench.said()["Hello"] == number)  # noqa: B023 - at once
        nonces = {one.nonce for one in bench.wire.messages() if isinstance(one, Hello)}
        assert len(nonces) == 4


async def test_what_is_asked_for() -> None:
    async with running(Bench()) as bench:
        request = await bench.asked(1)
        assert request.interests == ((ADDRESS, 256),)
        assert request.cursor is None
        assert request.gateway == bench.kid
        request.verify(bench.fleet.keys().to_gateway)
        await bench.position(b"here")
        bench.asking.request(bench.kid)
        assert (await bench.asked(2)).cursor == b"here"


async def test_one_request_at_a_time() -> None:
    async with running(Bench()) as bench:
        await bench.asked(1)
        for _ in range(5):
            bench.asking.request(bench.kid)
            await asyncio.sleep(0.01)
        assert len(bench.requests()) == 1
        await bench.position(b"here")
        await asyncio.sleep(0.05)
        assert len(bench.requests()) == 1


async def test_a_gateway_that_began_anew_is_asked_at_once() -> None:
    async with running(Bench()) as bench:
        await bench.asked(1)
        bench.asking.request(bench.kid, anew=True)
        await bench.asked(2)


async def test_there_is_more() -> None:
    async with running(Bench()) as bench:
        await bench.asked(1)
        await bench.position(b"half", complete=False)
        assert (await bench.asked(2)).cursor == b"half"
        await bench.position(b"whole")
        assert await bench.cursor() == b"whole"
        assert len(bench.requests()) == 2


async def test_an_answer_is_for_what_was_asked(caplog: pytest.LogCaptureFixture) -> None:
    """The situation changes while a request is under way."""
    async with running(Bench()) as bench:
        await bench.asked(1)
        await bench.asking.attend(((OTHER, 256),))
        assert bench.wire.listening == {OTHER}
        await asyncio.sleep(0.05)
        assert len(bench.requests()) == 1  # the answer to the first one is on its way
        await bench.position(b"of the first")
        second = await bench.asked(2)
        assert (second.interests, second.cursor) == (((OTHER, 256),), None)
        assert await bench.cursor() is None
        await bench.position(b"of the second")
        assert await bench.cursor() == b"of the second"


async def test_only_whole_addresses_are_listened_to() -> None:
    async with running(Bench(), attend=False) as bench:
        await bench.asking.attend(((ADDRESS, 256), (OTHER, 200)))
        assert bench.wire.listening == {ADDRESS}
        assert (await bench.asked(1)).interests == ((ADDRESS, 256), (OTHER, 200))


async def test_no_more_interests_than_a_request_holds() -> None:
    async with running(Bench(), attend=False) as bench:
        await bench.asking.attend(tuple((bytes((n,)) * 32, 256) for n in range(30)))
        assert len((await bench.asked(1)).interests) == 10


async def test_a_stranger_asks_for_nothing() -> None:
    async with running(Bench(enrolled=False)) as bench:
        bench.asking.request(bench.kid)
        await asyncio.sleep(0.05)
        assert bench.requests() == []


async def test_positions_that_answer_nothing_are_passed_over() -> None:
    async with running(Bench()) as bench:
        await bench.asked(1)
        await bench.position(b"here")
        await bench.position(b"there")
        assert await bench.cursor() == b"here"


async def test_a_position_after_a_loss_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BROKER_CADENCE", Cadence(patience=0.05))
    async with running(Bench()) as bench:
        await bench.asked(1)
        bench.asking.losses += 1
        await bench.position(b"beyond it")
        assert await bench.cursor() is None
        assert (await bench.asked(2)).cursor is None
        await bench.position(b"now")
        assert await bench.cursor() == b"now"


async def test_a_position_waits_for_the_packets_before_it() -> None:
    async with running(Bench()) as bench:
        await bench.asked(1)
        bench.membership.park(b"unknown1", b"packet", 0.0)
        await bench.position(b"here")
        assert await bench.cursor() is None
        bench.membership.park(b"unknown2", b"another", 0.0)  # came after it
        bench.membership.unpark(b"unknown1")
        await bench.asking.settle()
        assert await bench.cursor() == b"here"


async def test_without_an_answer_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BROKER_CADENCE", Cadence(patience=0.05))
    async with running(Bench()) as bench:
        await asyncio.sleep(1.0)
        assert 3 <= len(bench.requests()) <= 6


async def test_what_the_link_does_not_take_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AGAIN", 0.05)
    async with running(Bench(), attend=False) as bench:
        bench.wire.broken = True
        await bench.asking.attend(((ADDRESS, 256),))
        await asyncio.sleep(0.1)
        bench.wire.broken = False
        await bench.asked(1)


async def test_silence_brings_a_hello(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 0.02)
    async with running(Bench()) as bench:
        hello = bench.wire.messages()[0]
        assert isinstance(hello, Hello)
        bench.gateways.greet(bench.fleet.greeting(hello.nonce), 0.0, None)
        before = bench.said()["Hello"]
        bench.gateways._hello_at = 1e12
        await asyncio.sleep(0.06)
        assert bench.said()["Hello"] == before
        bench.silent = True
        await until(lambda: bench.said()["Hello"] == before + 1)


async def test_missing_credentials_are_asked_for() -> None:
    async with running(Bench()) as bench:
        now = asyncio.get_running_loop().time()
        bench.membership.park(b"unknown1", b"packet", now)
        bench.asking.poke()
        await until(lambda: bench.said()["Wanted"] == 1)
        (wanted,) = (one for one in bench.wire.messages() if isinstance(one, Wanted))
        assert wanted.kids == (b"unknown1",)


async def test_who_is_out_is_asked_no_more() -> None:
    async with running(Bench()) as bench:
        await bench.asked(1)
        bench.asking.forget(bench.kid)
        await bench.position(b"here")
        assert await bench.cursor() is None


async def test_an_idle_node_is_idle() -> None:
    async with running(Bench()) as bench:
        await bench.asked(1)
        await bench.position(b"here")
        bench.gateways._hello_at = 1e12
        looks = 0
        say = bench.asking._say

        async def counting() -> float:
            nonlocal looks
            looks += 1
            return await say()

        vars(bench.asking)["_say"] = counting
        bench.asking.poke()
        await asyncio.sleep(0.2)
        assert looks <= 2


async def test_a_disk_that_does_not_write_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN", 0.02)
    monkeypatch.setattr(memory, "BROKER_CADENCE", Cadence(patience=0.05))
    async with running(Bench()) as bench:
        await bench.asked(1)

        def full(*_: object, **__: object) -> None:
            raise StoreError("full")

        vars(bench.inbox)["put"] = full
        with pytest.raises(StoreError):
            await bench.position(b"here")
        del vars(bench.inbox)["put"]
        assert (await bench.asked(2)).cursor is None
        vars(bench.inbox)["cursor"] = full
        bench.asking.request(bench.kid, anew=True)
        await asyncio.sleep(0.1)
        del vars(bench.inbox)["cursor"]
        await until(lambda: len(bench.requests()) >= 3)


async def test_damage_is_for_nobody_to_pass_over() -> None:
    bench = Bench()
    bench.greeted()

    def damaged(*_: object) -> None:
        raise StoreCorrupt("damaged")

    vars(bench.inbox)["cursor"] = damaged
    await bench.wire.start()
    await bench.asking.attend(((ADDRESS, 256),))
    running_task = asyncio.create_task(bench.asking.run())
    await until(lambda: bench.said()["Hello"])
    bench.asking.request(bench.kid)
    with pytest.raises(StoreCorrupt):
        await asyncio.wait_for(running_task, 5)
    await bench.wire.close()
    await bench.disk(bench.inbox.close)
    bench.disk.close()
