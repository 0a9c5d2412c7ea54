"""``redis:`` with ``group=``: gateways that divide the addresses between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing import EVERYTHING, Context, Entry, Interest
from gateway.routing.redis import RedisEngine, RedisFeed
from gateway.routing.redis_group import SHARES, SharedPlace, share_of
from gateway.routing.redis_places import Place, StreamId
from gateway.routing.url import EngineUrl
from gateway.testing import FeedOutageConformance, FeedWorld, eventually, make_entry
from gateway.testing.entries import ADDRESS, STRANGER
from tests.routing.choose import without
from tests.routing.test_redis import PATIENCE, Redis, feeding, opened, redis_world, talking

GROUP = "?group=site"


@without(
    # Two in a group have half of it each.
    "test_every_position_is_a_place_to_go_on",
    "test_it_outlives_its_clients",
    "test_two_publish_and_both_read_everything",
    "test_who_waits_gets_what_comes",
)
class TestRedisFeedInAGroup(FeedOutageConformance):
    """Who is alone in it has everything."""

    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[FeedWorld]:
        async with redis_world(folder) as world:
            world.url = world.server.url(":right@", options=GROUP)
            yield world


def spread(count: int, first: int = 0) -> list[Entry]:
    """Packets of many addresses in one domain."""
    return [
        make_entry(number, fingerprint=ADDRESS[:8] + bytes([number % 48]) * 24)
        for number in range(first, first + count)
    ]


class Members:
    """Feeds of one group, which read for as long as one waits for something."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.found: dict[str, list[bytes]] = {}
        self._feeds: dict[str, tuple[RedisFeed, bytes]] = {}

    async def join(self, name: str) -> RedisFeed:
        feed = RedisFeed(EngineUrl.parse(self._url), Context(name="same"))
        await feed.open()
        self._feeds[name], self.found[name] = (feed, b""), []
        return feed

    async def leave(self, name: str) -> None:
        feed, _ = self._feeds.pop(name)
        await feed.close()

    async def die(self, name: str) -> None:
        """As when killed: it tells nobody."""
        feed, _ = self._feeds.pop(name)
        found, feed._client = feed._client, None
        await found.aclose()

    async def read(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.gather(*map(self._step, self._feeds))

    async def _step(self, name: str) -> None:
        feed, after = self._feeds[name]
        chunk = await feed.fetch(after)
        self.found[name] += chunk.raws
        self._feeds[name] = feed, chunk.position


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Redis]:
    server = Redis(tmp_path / "server")
    server.start()
    yield server
    server.kill()


async def test_a_group_shares_the_addresses_out(server: Redis) -> None:
    early, late, last = spread(96), spread(96, first=96), spread(96, first=192)
    members = Members(server.url(options=GROUP))
    left = await members.join("left")
    await left.publish(early)
    await members.read(lambda: len(members.found["left"]) == 96)
    assert members.found["left"] == [entry.raw for entry in early]
    await members.join("right")
    # Whoever joins reads its share from the beginning, for its own view.
    await members.read(lambda: len(members.found["right"]) >= 30)
    await left.publish(late)
    raws = {entry.raw for entry in late}
    await members.read(lambda: raws <= {*members.found["left"], *members.found["right"]})
    shares = {name: raws & {*found} for name, found in members.found.items()}
    assert all(shares.values())
    assert not shares["left"] & shares["right"]
    # An address is one gateway's.
    assert not {share_of(raw) for raw in shares["left"]} & {
        share_of(raw) for raw in shares["right"]
    }
    for found in members.found.values():
        assert len(found) == len(set(found))
    # Whoever stays gets what the other had, and what comes.
    await members.leave("right")
    await left.publish(last)
    every = {entry.raw for entry in (*early, *late, *last)}
    await members.read(lambda: every <= {*members.found["left"]})
    assert sorted(members.found["left"]) == sorted(every)  # each once
    await members.leave("left")


async def test_what_one_had_that_is_gone_others_take_over(
    server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.routing.redis_group.LEASE", 1.0)
    members = Members(server.url(options=GROUP))
    for name in ("a", "b", "c"):
        await members.join(name)
    feed, _ = members._feeds["a"]
    await feed.publish(spread(96))
    raws = {entry.raw for entry in spread(96)}
    await members.read(lambda: raws <= {raw for found in members.found.values() for raw in found})
    await members.die("b")
    await members.die("c")
    await members.read(lambda: raws <= {*members.found["a"]})
    assert len(members.found["a"]) == 96
    async with talking(server) as redis:
        consumers = await redis.xinfo_consumers("qis:group:site", "gateways")
    assert [(one["pending"]) for one in consumers] == [SHARES]
    await members.leave("a")


async def test_a_group_s_shares_may_be_lost(server: Redis) -> None:
    members = Members(server.url(options=GROUP))
    for name in ("a", "b"):
        await members.join(name)
    feed, _ = members._feeds["a"]
    await feed.publish(spread(48))
    everything = {entry.raw for entry in spread(48)}
    both = [members.found["a"], members.found["b"]]
    await members.read(lambda: everything <= {raw for found in both for raw in found})
    async with talking(server) as redis:
        await redis.delete("qis:group:site")
    await feed.publish(spread(48, first=48))
    more = {entry.raw for entry in spread(48, first=48)}
    await members.read(lambda: more <= {raw for found in both for raw in found})
    for name in ("a", "b"):
        await members.leave(name)


async def test_more_gateways_than_shares(server: Redis) -> None:
    members = Members(server.url(options=GROUP))
    names = [str(number) for number in range(SHARES + 2)]
    for name in names:
        await members.join(name)
    feed, _ = members._feeds["0"]
    await feed.publish(spread(96))
    raws = {entry.raw for entry in spread(96)}
    await members.read(lambda: raws <= {raw for found in members.found.values() for raw in found})
    async with talking(server) as redis:
        consumers = await redis.xinfo_consumers("qis:group:site", "gateways")
    assert sum(one["pending"] for one in consumers) == SHARES
    for name in names:
        await members.leave(name)


async def test_views_of_a_group_have_it_all_between_them(server: Redis, tmp_path: Path) -> None:
    url = server.url(options=GROUP)
    async with (
        feeding(server.url()) as outside,
        opened(url, tmp_path / "a", "a") as one,
        opened(url, tmp_path / "b", "b") as two,
    ):
        entries, own = spread(96), make_entry(500, fingerprint=STRANGER)
        await outside.publish(entries)

        async def held(engine: RedisEngine) -> set[bytes]:
            return {entry.id for entry in await engine.query(EVERYTHING, limit=200)}

        async def all_of_it() -> bool:
            return {entry.id for entry in entries} <= await held(one) | await held(two)

        await eventually(all_of_it, PATIENCE)
        # What a gateway deposits itself it answers, whoever has the share.
        for engine in (one, two):
            await engine.deposit([own])
            assert await engine.query(Interest(STRANGER)) == [own]
        # A view that is gone is read anew.
        await one.close()
        for file in (tmp_path / "a").glob("view-*"):
            file.unlink()
        await one.open()
        await eventually(all_of_it, PATIENCE)


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), min_size=64, max_size=64
    )
)
def test_a_group_s_place_says_every_share(ids: list[tuple[int, int]]) -> None:
    place = Place(b"12345678", StreamId(2**48, 7), b"5a5a5a5a")
    shared = SharedPlace(place, tuple(StreamId(*pair) for pair in ids))
    assert SharedPlace.decode(shared.encode(), place.born) == shared
    assert SharedPlace.decode(shared.encode(), b"87654321") == SharedPlace(Place(b"87654321"))
    for other in (b"", place.encode(), shared.encode()[:-1]):
        assert SharedPlace.decode(other, place.born) == SharedPlace(Place(place.born))
