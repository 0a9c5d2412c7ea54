"""Peers' packets to those who asked for their addresses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway import downlink as module
from gateway.downlink import Downlink
from gateway.routing import Batch, Entry, Interest, open_engine
from qis_edge.core.errors import Reason, Refused, RoutingError
from qis_edge.core.identity import Identity
from qis_edge.core.messages import PacketMessage, Position, Request
from qis_edge.core.packet import unpack
from qis_edge.core.receipt import MacKeys
from qis_edge.links.base import Direction
from tests.gateway.kit import ADDRESS, CLOCK, HOUR, NOW, Letters, People, packet_of, until

OTHER = bytes(reversed(range(32)))
#: Shares its first half with ADDRESS.
NEAR = ADDRESS[:16] + bytes(16)


class Bench:
    def __init__(self, folder: Path, **how: Any) -> None:
        self.people = People(folder)
        self.node, self.peer = Identity.generate(), Identity.generate()
        self.gone: set[bytes] = set()
        self.engine = open_engine("memory:")
        self.post = Letters()
        self.nodes = {one.kid: one for one in (self.node, self.peer)}
        self.downlink = Downlink(
            self.engine, self.post, CLOCK, self.people.gateway.kid, self._keys_of, **how
        )

    def _keys_of(self, kid: bytes) -> MacKeys:
        if kid in self.gone or kid not in self.nodes:
            raise Refused(Reason.UNKNOWN_KEY, "kid")
        return self.people.keys(self.nodes[kid])

    def ask(
        self,
        *interests: tuple[bytes, int],
        cursor: bytes | None = None,
        limit: int = 500,
        who: Identity | None = None,
    ) -> None:
        kid = (who or self.node).kid
        wanted = interests or ((ADDRESS, 256),)
        self.downlink.request(Request(kid, self.people.gateway.kid, wanted, cursor, limit))

    async def deposit(self, *sequences: int, who: Identity | None = None, **how: Any) -> None:
        entries = [Entry.of(packet_of(who or self.peer, n, **how)) for n in sequences]
        await self.engine.deposit(entries)

    async def answer(self, number: int = 1) -> tuple[list[int], Position]:
        """The sequences and the position of an answer; forgets them."""
        await until(lambda: self.post.said(self.node.kid)["Position"] == number)
        *packets, position = self.post.messages(self.node.kid)
        assert isinstance(position, Position)
        position.verify(self.people.keys(self.node).to_node)
        self.post.letters.clear()
        return [sequence_of(one) for one in packets], position

    def live(self) -> list[tuple[Direction, bytes, int]]:
        """What went out by itself: where to, and which packet."""
        return [
            (to.direction, to.key, sequence_of(PacketMessage(frame)))
            for frame, to in self.post.letters
            if frame.startswith(b"\xd2\x84")
        ]


def sequence_of(message: object) -> int:
    assert isinstance(message, PacketMessage)
    return unpack(message.raw).sequence


@contextlib.asynccontextmanager
async def running(folder: Path, *, publish: bool = False, **how: Any) -> AsyncIterator[Bench]:
    bench = Bench(folder, **how)
    await bench.engine.open()
    work = [bench.downlink.answer()] + ([bench.downlink.publish()] if publish else [])
    tasks = [asyncio.create_task(one) for one in work]
    await asyncio.sleep(0.01)
    try:
        yield bench
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await bench.engine.close()
        bench.people.fleet.close()


# --- answers -------------------------------------------------------------------------------


async def test_the_newest_first_then_what_came_since(tmp_path: Path) -> None:
    async with running(tmp_path, limit=3) as bench:
        for number in range(1, 7):
            await bench.deposit(number, at=NOW - 10 * HOUR + number * 600)
        bench.ask()
        sequences, position = await bench.answer()
        assert sequences == [4, 5, 6]  # oldest of them first
        assert position.complete
        await bench.deposit(7, 8)
        bench.ask(cursor=position.cursor)
        sequences, position = await bench.answer()
        assert sequences == [7, 8]
        bench.ask(cursor=position.cursor)
        assert (await bench.answer())[0] == []


async def test_nobody_gets_their_own_nor_what_has_expired(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.deposit(1, who=bench.node)
        await bench.deposit(2, at=NOW - 100 * HOUR, ttl=1)
        await bench.deposit(3)
        await bench.deposit(4, where=OTHER)
        bench.ask()
        sequences, position = await bench.answer()
        assert sequences == [3]
        await bench.deposit(5, who=bench.node)
        await bench.deposit(6, at=NOW - 100 * HOUR, ttl=1)
        await bench.deposit(7)
        bench.ask(cursor=position.cursor)
        assert (await bench.answer())[0] == [7]


async def test_a_long_replay_comes_in_parts(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.ask()
        _, position = await bench.answer()
        await bench.deposit(*range(1, 1201))
        found: list[int] = []
        for _ in range(5):
            bench.ask(cursor=position.cursor, limit=100)
            sequences, position = await bench.answer()
            found += sequences
            if position.complete:
                break
            vars(bench.downlink)["_allowances"].clear()  # a minute passes
        assert found == list(range(1, 1201))


async def test_nobody_gets_more_than_their_share_of_a_minute(tmp_path: Path) -> None:
    async with running(tmp_path, per_minute=10) as bench:
        bench.ask()
        _, position = await bench.answer()
        await bench.deposit(*range(1, 13))
        bench.ask(cursor=position.cursor)
        sequences, position = await bench.answer()
        assert sequences == list(range(1, 13))  # one slice of the log
        bench.ask(cursor=position.cursor)
        await asyncio.sleep(0.05)
        assert bench.post.letters == []  # it asks again
        bench.ask(who=bench.peer)  # another one has a share of its own
        await until(lambda: bench.post.said(bench.peer.kid)["Position"])


async def test_a_cursor_of_nothing_begins_anew(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.deposit(1, 2)
        for cursor in (b"", b"x" * 64, b"\x00" * 8):
            bench.ask(cursor=cursor)
            assert (await bench.answer())[0] == [1, 2]


async def test_a_newer_request_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.deposit(1)
        await bench.deposit(2, where=OTHER)
        bench.ask()
        bench.ask((OTHER, 256))
        assert (await bench.answer())[0] == [2]
        assert bench.downlink.answered == 1


async def test_too_wide_a_request_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        with pytest.raises(Refused) as error:
            bench.ask((ADDRESS, 256), (OTHER, 63))
        assert error.value.reason is Reason.SCOPE


async def test_an_engine_that_is_away_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY", 0.02)
    async with running(tmp_path) as bench:
        await bench.deposit(1)
        cursor, times = bench.engine.cursor, 0

        async def away() -> bytes:
            nonlocal times
            times += 1
            if times < 4:
                raise RoutingError("away")
            return await cursor()

        vars(bench.engine)["cursor"] = away
        bench.ask()
        assert (await bench.answer())[0] == [1]


async def test_who_is_gone_gets_nothing_and_holds_up_nobody(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.deposit(1, who=Identity.generate())
        bench.gone.add(bench.peer.kid)
        bench.ask(who=bench.peer)
        bench.ask()
        assert (await bench.answer())[0] == [1]


async def test_what_is_remembered_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    monkeypatch.setattr(module, "MAX_NODES", 7)
    bench = Bench(tmp_path)
    for number in range(100):
        kid = number.to_bytes(8)
        request = Request(kid, bench.people.gateway.kid, ((ADDRESS, 256),), None, 5)
        bench.downlink.request(request)
        bench.downlink._allowance(kid)
    assert len(bench.downlink._waiting) == 5
    assert len(bench.downlink._interests) == 7
    assert len(bench.downlink._allowances) == 7
    bench.people.fleet.close()


# --- live ----------------------------------------------------------------------------------


async def test_what_comes_goes_out_once_for_all_who_listen(tmp_path: Path) -> None:
    async with running(tmp_path, publish=True) as bench:
        bench.ask()
        bench.ask(who=bench.peer)
        await until(lambda: bench.downlink.answered == 2)
        bench.post.letters.clear()
        await bench.deposit(1)
        await bench.deposit(2, where=OTHER)  # nobody asked for that
        await bench.deposit(3, at=NOW - 100 * HOUR, ttl=1)
        await bench.deposit(4)
        await until(lambda: len(bench.live()) >= 2)
        peers = Direction.PEERS
        assert bench.live() == [(peers, ADDRESS, 1), (peers, ADDRESS, 4)]
        assert bench.downlink.published == 2


async def test_who_asked_for_more_gets_the_rest_alone(tmp_path: Path) -> None:
    async with running(tmp_path, publish=True) as bench:
        bench.ask((ADDRESS, 256), (ADDRESS, 128))
        await until(lambda: bench.downlink.answered == 1)
        bench.post.letters.clear()
        await bench.deposit(1)
        await bench.deposit(2, where=NEAR)
        await until(lambda: len(bench.live()) >= 3)
        assert sorted(bench.live(), key=lambda one: (one[2], one[0].value)) == [
            (Direction.PEERS, ADDRESS, 1),
            (Direction.DOWN, bench.node.kid, 2),
            (Direction.PEERS, NEAR, 2),
        ]


async def test_interests_change(tmp_path: Path) -> None:
    async with running(tmp_path, publish=True) as bench:
        bench.ask()
        await until(lambda: bench.downlink.answered == 1)
        bench.ask((OTHER, 256))
        await until(lambda: bench.downlink.answered == 2)
        bench.post.letters.clear()
        await bench.deposit(1)
        await bench.deposit(2, where=OTHER)
        await until(bench.live)
        assert bench.live() == [(Direction.PEERS, OTHER, 2)]


async def test_for_who_is_out_nothing_is_followed(tmp_path: Path) -> None:
    async with running(tmp_path, publish=True) as bench:
        bench.ask()
        bench.ask((OTHER, 256), who=bench.peer)
        await until(lambda: bench.downlink.answered == 2)
        bench.post.letters.clear()
        bench.downlink.forget(bench.node.kid)
        bench.downlink.forget(b"nobody!!")
        await bench.deposit(1, who=Identity.generate())
        await bench.deposit(2, where=OTHER)
        await until(bench.live)
        assert bench.live() == [(Direction.PEERS, OTHER, 2)]


async def test_following_survives_an_engine_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY", 0.02)
    bench = Bench(tmp_path)
    await bench.engine.open()
    follow, times = bench.engine.follow, 0

    def away(interests: frozenset[Interest], after: bytes | None = None) -> Any:
        nonlocal times
        times += 1
        if times < 4:
            raise RoutingError("away")
        return follow(interests, after)

    vars(bench.engine)["follow"] = away
    publishing = asyncio.create_task(bench.downlink.publish())
    bench.ask()
    await asyncio.sleep(0.01)
    await bench.deposit(1)  # while it is away: it is not passed over
    await until(bench.live)
    assert bench.live() == [(Direction.PEERS, ADDRESS, 1)]
    publishing.cancel()
    await asyncio.gather(publishing, return_exceptions=True)
    await bench.engine.close()
    bench.people.fleet.close()


async def test_what_went_out_does_not_go_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an engine failed in the middle."""
    monkeypatch.setattr(module, "RETRY", 0.02)
    bench = Bench(tmp_path)
    await bench.engine.open()
    follow = bench.engine.follow
    broken = False

    def fragile(interests: frozenset[Interest], after: bytes | None = None) -> Any:
        subscription = follow(interests, after)
        advance = subscription.__aiter__().__anext__

        class Fragile:
            update, close = subscription.update, subscription.close

            def __aiter__(self) -> Fragile:
                return self

            async def __anext__(self) -> Batch:
                batch = await advance()
                if broken:
                    raise RoutingError("away")
                return batch

        return Fragile()

    vars(bench.engine)["follow"] = fragile
    publishing = asyncio.create_task(bench.downlink.publish())
    bench.ask()
    await asyncio.sleep(0.01)
    await bench.deposit(1, 2)
    await until(lambda: len(bench.live()) == 2)
    broken = True
    await bench.deposit(3)
    await asyncio.sleep(0.05)
    broken = False
    await bench.deposit(4)
    await until(lambda: len(bench.live()) >= 4)
    assert [sequence for _, _, sequence in bench.live()] == [1, 2, 3, 4]
    publishing.cancel()
    await asyncio.gather(publishing, return_exceptions=True)
    await bench.engine.close()
    bench.people.fleet.close()
