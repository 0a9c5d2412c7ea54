"""A link that all share: little is said there, nothing twice, and the newest of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway import post as module
from gateway.desk import FleetDesk, Pairs
from gateway.downlink import Downlink, Sparing
from gateway.post import Post
from gateway.routing import Entry, open_engine
from qis_edge.core.credential import Enrolment, RevocationList
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.identity import Identity
from qis_edge.core.messages import (
    EnrolmentMessage,
    Greeting,
    Hello,
    PacketMessage,
    Position,
    Request,
    RevocationMessage,
    Wanted,
    decode,
)
from qis_edge.core.packet import unpack
from qis_edge.core.receipt import Receipt, build
from qis_edge.links.base import Direction, Received, down, peers
from qis_edge.worker import Disk
from tests.gateway.kit import ADDRESS, CLOCK, NOW, People, packet_of, until
from tests.gateway.mesh_kit import Air

NODE = down(b"node\x00\x00\x00\x01")
OTHER = down(b"node\x00\x00\x00\x02")


@contextlib.asynccontextmanager
async def sending(post: Post, air: Air) -> AsyncIterator[None]:
    await air.start()
    await until(lambda: air.up)
    task = asyncio.create_task(post.run())
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await air.close()


# --- the post ------------------------------------------------------------------------------


async def test_what_was_just_said_is_not_said_again() -> None:
    """All have heard it."""
    air = Air(patience=0.4)  # it may be repeated after half of that
    post = Post(air)
    async with sending(post, air):
        post.answer(b"credential", NODE)
        post.answer(b"credential", OTHER)  # while it waits
        await until(lambda: air.sent)
        post.answer(b"credential", OTHER)  # when it went out
        post.answer(b"another", OTHER)
        await until(lambda: len(air.sent) == 2)
        assert [frame for frame, _ in air.sent] == [b"credential", b"another"]
        await asyncio.sleep(0.25)
        post.answer(b"credential", OTHER)
        await until(lambda: len(air.sent) == 3)


async def test_what_the_radio_did_not_take_was_not_said() -> None:
    air = Air()
    post = Post(air)
    async with sending(post, air):
        air.broken = True
        post.answer(b"credential", NODE)
        await until(lambda: post.dropped == 1)
        air.broken = False
        post.answer(b"credential", NODE)
        await until(lambda: air.sent)


async def test_the_newest_greeting_of_a_node_takes_the_place_of_older_ones() -> None:
    air = Air()
    post = Post(air)
    for number in range(5):
        post.greet(b"greeting %d" % number, NODE)
        post.greet(b"other greeting %d" % number, OTHER)
    async with sending(post, air):
        await until(lambda: len(air.sent) == 2)
    assert [frame for frame, _ in air.sent] == [b"greeting 4", b"other greeting 4"]


async def test_a_stale_greeting_is_not_sent() -> None:
    air = Air(patience=0.1)  # of use for 0.04 s
    post = Post(air)
    post.greet(b"greeting", NODE)
    post.answer(b"revocation", NODE)
    await asyncio.sleep(0.06)
    async with sending(post, air):
        await until(lambda: len(air.sent) == 1)
        assert air.sent[0][0] == b"revocation"
        assert post.dropped == 1


async def test_few_answers_wait() -> None:
    air = Air()
    post = Post(air)
    for number in range(module.MAX_SHARED_ANSWERS + 10):
        post.answer(b"%d" % number, NODE)
    assert post.dropped == 10


async def test_of_what_is_live_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever brings it never waits, however slow the link is."""
    monkeypatch.setattr(module, "MAX_LIVE", 3)
    air = Air()
    post = Post(air)
    for number in range(10):
        await asyncio.wait_for(post.live(b"%d" % number, peers(ADDRESS)), 1)
    assert post.dropped == 7
    assert not post.has_said(b"0", 900)
    assert post.has_said(b"9", 900)
    async with sending(post, air):
        await until(lambda: len(air.sent) == 3)
    assert [frame for frame, _ in air.sent] == [b"7", b"8", b"9"]


async def test_live_packets_and_answers_to_requests_take_turns() -> None:
    air = Air()
    post = Post(air)
    for number in range(3):
        await post.live(b"live %d" % number, peers(ADDRESS))
        await post.packet(b"asked for %d" % number, NODE)
    post.answer(b"answer", NODE)
    async with sending(post, air):
        await until(lambda: len(air.sent) == 7)
    sent = [frame for frame, _ in air.sent]
    assert sent[0] == b"answer"
    assert {sent[1], sent[2]} == {b"live 0", b"asked for 0"}
    assert [one for one in sent if b"asked" in one] == [b"asked for %d" % n for n in range(3)]
    assert [one for one in sent if b"live" in one] == [b"live %d" % n for n in range(3)]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SAID", 5)
    post = Post(Air())
    for number in range(20):
        post._note(b"%d" % number)
    assert len(post._said) == 5


# --- the desk ------------------------------------------------------------------------------


class Bench:
    """A gateway's parts at a radio."""

    def __init__(self, folder: Path) -> None:
        self.people = People(folder)
        self.node, self.peer = (self.people.let_in(Identity.generate()) for _ in range(2))
        self.air = Air()
        self.post = Post(self.air)
        self.disk = Disk("fleet")
        self.revoked: list[RevocationList] = []
        self.keys_of = Pairs(self.people.gateway, self.people.fleet)
        self.engine = open_engine("memory:")
        self.downlink = Downlink(
            self.engine,
            self.post,
            CLOCK,
            self.people.gateway.kid,
            self.keys_of,
            sparing=Sparing(4, 900.0, 300.0),
        )
        self.desk = FleetDesk(
            self.people.gateway,
            self.people.fleet,
            self.disk,
            self.air,
            self.post,
            CLOCK,
            self.keys_of,
            epoch=(b"ep-1", 0),
            request=self.downlink.request,
            revoked=self.revoked.append,
        )

    async def say(self, raw: bytes) -> None:
        await self.desk.handle(decode(raw), Received(raw, Direction.UP))

    async def flooded(self, raw: bytes, times: int = 100) -> int:
        """How many of so many were answered."""
        good = 0
        for _ in range(times):
            try:
                await self.say(raw)
                good += 1
            except Refused as refusal:
                assert refusal.reason is Reason.FLOODED
        return good

    def waiting(self) -> list[object]:
        return [decode(letter.frame) for letter in self.post._answers.values()]

    def ask(self, cursor: bytes | None = None, who: Identity | None = None) -> None:
        kid = (who or self.node).kid
        gateway = self.people.gateway.kid
        self.downlink.request(Request(kid, gateway, ((ADDRESS, 256),), cursor, 100))

    async def deposit(self, *sequences: int, at: int = NOW - 3600) -> None:
        packets = (packet_of(self.peer, n, at=at + n) for n in sequences)
        await self.engine.deposit([Entry.of(packet) for packet in packets])

    def sent(self) -> list[int]:
        """Sequences of the packets that went out."""
        messages = [decode(frame) for frame, _ in self.air.sent]
        return [unpack(one.raw).sequence for one in messages if isinstance(one, PacketMessage)]

    def positions(self) -> list[Position]:
        messages = [decode(frame) for frame, _ in self.air.sent]
        return [one for one in messages if isinstance(one, Position)]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.disk.close()
    made.people.fleet.close()


async def test_hellos_in_one_name_are_not_all_greeted(bench: Bench) -> None:
    assert await bench.flooded(Hello(bench.node.kid, b"nonce--1").encode()) == 4
    assert len(bench.waiting()) == 1  # the newest
    await bench.say(Hello(bench.peer.kid, b"nonce--1").encode())
    assert len(bench.waiting()) == 2


async def test_questions_for_credentials_cost_by_their_number(bench: Bench) -> None:
    others = [bench.people.let_in(Identity.generate()) for _ in range(30)]
    for number in range(50):  # what is not known costs nothing
        await bench.say(Wanted((number.to_bytes(8),)).encode())
    kids = tuple(sorted(other.kid for other in others))
    with pytest.raises(Refused):
        await bench.say(Wanted(kids).encode())
    assert len(bench.waiting()) == 24 + 1  # and the issuer's, once


async def test_a_wish_to_join_that_is_played_again_is_not_answered_again(bench: Bench) -> None:
    wish = EnrolmentMessage(Enrolment.make(bench.node, "field-1")).encode()
    for _ in range(24):
        await bench.say(wish)
    assert len(bench.waiting()) == 2
    with pytest.raises(Refused):
        await bench.say(wish)


async def test_requests_that_are_played_again_are_not_all_answered(bench: Bench) -> None:
    made = Request(bench.node.kid, bench.people.gateway.kid, ((ADDRESS, 256),), None, 10)
    assert await bench.flooded(made.encode(bench.people.keys(bench.node).to_gateway)) == 4


async def test_hellos_in_all_names_are_limited_together(bench: Bench) -> None:
    nodes = [bench.people.let_in(Identity.generate()) for _ in range(30)]
    answered = 0
    for node in nodes:
        answered += await bench.flooded(Hello(node.kid, b"nonce--1").encode(), 1)
    assert answered == len(bench.waiting()) == 24


async def test_strangers_are_hardly_asked_who_they_are(bench: Bench) -> None:
    for number in range(100):
        with pytest.raises(Refused):
            await bench.say(Hello(number.to_bytes(8), b"nonce--1").encode())
    assert len(bench.waiting()) == 8


async def test_what_another_gateway_says_is_passed_over(bench: Bench) -> None:
    key = bench.people.keys(bench.node).to_node
    other = b"gateway2"
    greeting = Greeting(other, NOW, b"ep-2", 0, 0).encode(key, b"nonce--1")
    await bench.say(greeting)
    await bench.say(Position(other, b"here", complete=True).encode(key))
    receipt = build(Receipt(b"abcd", (1,)), key, b"ep-2", {1: bytes(32)})
    await bench.say(receipt)
    assert bench.waiting() == []


async def test_a_list_goes_out_once(bench: Bench) -> None:
    made = RevocationList.issue(bench.people.root, number=1, issued=NOW, kids=[b"outcast!"])
    bench.desk.tell_revocation(made, [bench.node.kid, bench.peer.kid])
    assert bench.waiting() == [RevocationMessage(made)]


async def test_a_list_is_not_repeated_for_each_who_does_not_know_it(bench: Bench) -> None:
    made = RevocationList.issue(bench.people.root, number=1, issued=NOW, kids=[b"outcast!"])
    bench.people.fleet.apply(made.raw)
    for who in (bench.node, bench.peer):
        await bench.say(Hello(who.kid, b"nonce--1", 0).encode())
    assert [type(one) for one in bench.waiting()] == [RevocationMessage, Greeting, Greeting]


async def test_nobody_is_nudged_soon(bench: Bench) -> None:
    bench.desk.accepted(bench.node.kid, NOW, 1)
    now = time.monotonic()
    bench.desk.nudge(now + 200)
    assert bench.waiting() == []
    bench.desk.nudge(now + 400)
    assert bench.waiting() == [Wanted((bench.node.kid,))]


# --- the downlink --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(bench: Bench) -> AsyncIterator[None]:
    await bench.engine.open()
    work = [bench.downlink.answer(), bench.downlink.publish()]
    tasks = [asyncio.create_task(one) for one in work]
    try:
        async with sending(bench.post, bench.air):
            yield
            for task in tasks:
                if task.done():
                    task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await bench.engine.close()


async def answered(bench: Bench, number: int) -> bytes:
    await until(lambda: len(bench.positions()) == number)
    return bench.positions()[-1].cursor


async def test_an_answer_brings_a_few_of_the_newest(bench: Bench) -> None:
    async with serving(bench):
        await bench.deposit(*range(1, 21))
        await asyncio.sleep(0.05)  # nobody listens
        bench.ask()
        await answered(bench, 1)
        assert bench.sent() == [17, 18, 19, 20]


async def test_so_does_one_after_a_long_absence(bench: Bench) -> None:
    async with serving(bench):
        bench.ask(who=bench.peer)
        cursor = await answered(bench, 1)
        bench.downlink.forget(bench.peer.kid)
        await asyncio.sleep(0.05)
        await bench.deposit(*range(1, 1501))
        await asyncio.sleep(0.05)  # nobody listens
        bench.ask(cursor)
        after = await answered(bench, 2)
        assert bench.sent() == [1497, 1498, 1499, 1500]
        assert bench.positions()[-1].complete
        assert after != cursor


async def test_what_all_just_heard_is_in_no_answer(bench: Bench) -> None:
    async with serving(bench):
        bench.ask()
        cursor = await answered(bench, 1)
        await bench.deposit(1, 2)
        await until(lambda: len(bench.sent()) == 2)  # live
        third = bench.people.let_in(Identity.generate())
        bench.ask(who=third)
        await answered(bench, 2)
        fourth = bench.people.let_in(Identity.generate())
        bench.ask(cursor, who=fourth)
        assert await answered(bench, 3) != cursor  # it is beyond them all the same
        assert bench.sent() == [1, 2]


async def test_what_was_in_an_answer_does_not_go_out_live_too(bench: Bench) -> None:
    async with serving(bench):
        packet = packet_of(bench.peer, 1)
        bench.post._note(packet.raw)
        bench.ask()
        await answered(bench, 1)
        await bench.engine.deposit([Entry.of(packet)])
        await bench.deposit(2)
        await until(bench.sent)
        assert bench.sent() == [2]


async def test_one_node_does_not_get_answers_without_end(bench: Bench) -> None:
    async with serving(bench):
        for number in range(1, 5):
            bench.ask()
            await answered(bench, number)
        bench.ask()
        await asyncio.sleep(0.05)
        assert len(bench.positions()) == 4


async def test_one_broadcast_serves_all_who_listen_near(bench: Bench) -> None:
    async with serving(bench):
        kid, gateway = bench.node.kid, bench.people.gateway.kid
        bench.downlink.request(Request(kid, gateway, ((ADDRESS, 128),), None, 10))
        bench.ask(who=bench.peer)
        third = bench.people.let_in(Identity.generate())
        bench.ask(who=third)
        await answered(bench, 3)
        await bench.deposit(1)
        await until(bench.sent)
        await asyncio.sleep(0.05)
        assert bench.sent() == [1]
        assert bench.air.sent[-1][1] == peers(ADDRESS)
