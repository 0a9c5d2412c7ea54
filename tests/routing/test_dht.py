"""``dht:`` on real nodes: held to the suite, a third of them killed, written to by strangers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.routing import EVERYTHING, Context, Entry, RoutingLayer, dht, open_engine
from gateway.routing.dht import DhtEngine, DhtFeed
from gateway.routing.url import EngineUrl
from gateway.testing import (
    DurableConformance,
    MediumConformance,
    RoutingWorld,
    SpoolConformance,
    UrlConformance,
    eventually,
    make_entry,
)
from gateway.testing.entries import NODE, accept
from qis_edge.core.errors import Reason, Refused, RoutingError
from qis_edge.core.identity import Identity
from tests.routing.dht import Nodes

#: Seconds that anything may take.
PATIENCE = 90.0


class DhtWorld(RoutingWorld):
    folder_each = True

    def __init__(self, folder: Path, nodes: Nodes) -> None:
        self.folder = folder
        self.nodes = nodes
        self._stranger: DhtFeed | None = None
        self._patched = pytest.MonkeyPatch()

    @property
    def url(self) -> str:  # type: ignore[override] # known once they run
        return self.nodes.url()

    async def stranger(self) -> DhtFeed:
        """Anybody who reaches a node."""
        if self._stranger is None:
            self._stranger = DhtFeed(EngineUrl.parse(self.url), Context())
            await self._stranger.open()
        return self._stranger

    async def write(self, entry: Entry, raw: bytes) -> None:
        feed = await self.stranger()
        await self.put(feed._address_key(entry.fingerprint), entry.id, raw)

    async def put(self, key: bytes, number: bytes, data: bytes) -> None:
        process = await (await self.stranger())._running()
        value = dht._Value(key, int.from_bytes(number[:8]), data)
        assert await process.put([value]) != [0]

    async def close(self) -> None:
        self._patched.undo()
        if self._stranger is not None:
            await self._stranger.close()
        self.nodes.kill()

    async def fail(self) -> None:
        await asyncio.to_thread(self.nodes.pause)
        # The library takes up to 20 s to be sure that nobody is there.
        self._patched.setattr(dht, "PATIENCE", 1.5)
        self._patched.setattr(dht, "FIRST_ANSWER", 0.5)

    async def heal(self) -> None:
        self._patched.undo()
        self.nodes.resume()


@contextlib.asynccontextmanager
async def running(folder: Path, count: int, *, lifetime: int = 3600) -> AsyncIterator[DhtWorld]:
    world = DhtWorld(folder, Nodes(lifetime=lifetime))
    try:
        await asyncio.to_thread(world.nodes.start, count)
        yield world
    finally:
        await world.close()


class TestDht(DurableConformance, MediumConformance, SpoolConformance):
    order = "none"
    patience = 60.0
    many = 600
    kills = 2

    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[RoutingWorld]:
        async with running(folder, 1) as world:
            yield world


class TestDhtUrl(UrlConformance):
    right = "dht://base.example,[::1]:4223?network=north&listen=0.0.0.0:4222"
    wrong = (
        ("dht://u:s3cret@a", "knows no logins"),
        ("dht://a/north", "takes no path"),
        ("dht:north", "takes no path"),
        ("dht:?sync=1", "unknown option 'sync'"),
        ("dht:?network=", "network must be"),
        ("dht:?network=a%20b", "network must be"),
        ("dht:?listen=here:there", "listen must be"),
        ("dht:?listen=:70000", "listen must be"),
        ("dht:?copies=9", "copies must be"),
        ("dht:?lifetime=5", "lifetime must be"),
        ("dht:?reread=soon", "reread must be"),
    )
    modules = ("opendht",)
    command = "pip install 'qis-edge[dht]'"
    nobody = "dht://127.0.0.1:9?listen=127.0.0.1"

    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dht, "FIRST_ANSWER", 1.0)


# --- what is its own ---------------------------------------------------------------------------


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[DhtWorld]:
    async with running(tmp_path, 2) as made:
        yield made


@contextlib.asynccontextmanager
async def opened(*engines: RoutingLayer) -> AsyncIterator[None]:
    try:
        await asyncio.gather(*(engine.open() for engine in engines))
        yield
    finally:
        await asyncio.gather(*(engine.close() for engine in engines))


def feed_of(engine: RoutingLayer) -> DhtFeed:
    assert isinstance(engine, DhtEngine)
    assert isinstance(engine._feed, DhtFeed)
    return engine._feed


async def holds(engine: RoutingLayer, entries: Sequence[Entry]) -> bool:
    found = await engine.query(EVERYTHING, limit=len(entries) + 1)
    return sorted(found) == sorted(entries)


def fresh(number: int, fingerprint: bytes) -> Entry:
    """Of now: it is published again."""
    return make_entry(number, fingerprint=fingerprint, time=int(time.time()))


async def test_a_third_of_32_nodes_is_killed_and_all_is_there_after_more_than_its_lifetime(
    tmp_path: Path,
) -> None:
    lifetime = 12
    async with running(tmp_path, 32, lifetime=lifetime) as world:
        writers = [world.engine(f"writer-{number}") for number in range(3)]
        late = world.engine("late")
        one = b"\x77" * 32
        mine = [[fresh(1000 * w + n, one) for n in range(60)] for w in range(len(writers))]
        others = [fresh(9000 + n, bytes([n % 5]) * 8 + bytes([n]) * 24) for n in range(40)]
        entries = [*(entry for each in mine for entry in each), *others]
        async with opened(*writers):
            # Many write to one address; each hears the others.
            await asyncio.gather(
                *(
                    _deposit_in_parts(engine, each)
                    for engine, each in zip(writers, mine, strict=True)
                )
            )
            await writers[0].deposit(others)
            for engine in writers:
                await eventually(partial(holds, engine, entries), PATIENCE)
            # What nobody publishes again is forgotten.
            left = fresh(1, b"\x99" * 32)
            await world.write(left, left.raw)
            put = time.monotonic()
            world.nodes.kill(slice(2, 13))
            last = fresh(9999, one)
            async with asyncio.timeout(PATIENCE):
                while True:  # dead nodes near the address are noticed first
                    with contextlib.suppress(RoutingError):
                        await writers[1].deposit([last])
                        break
            entries.append(last)
            for engine in writers:
                await eventually(partial(holds, engine, entries), PATIENCE)
            await asyncio.sleep(max(put + 1.3 * lifetime - time.monotonic(), 0))
            async with opened(late):
                await eventually(lambda: holds(late, entries), PATIENCE)
                feed = feed_of(late)
                process = await feed._running()
                await process.get(feed._address_key(left.fingerprint))
                assert hash(left.raw) not in feed._seen


async def _deposit_in_parts(engine: RoutingLayer, entries: Sequence[Entry]) -> None:
    for start in range(0, len(entries), 6):
        assert await engine.deposit(entries[start : start + 6]) == len(entries[start : start + 6])


async def test_alone_it_takes_nothing_and_with_the_first_other_node_it_does(tmp_path: Path) -> None:
    nodes = Nodes()
    engine = open_engine("dht:?network=test&listen=127.0.0.1", Context(accept, tmp_path))
    async with opened(engine):
        with pytest.raises(RoutingError, match="no other node") as caught:
            await engine.deposit([make_entry(1)])
        assert "dht_node" in (caught.value.hint or "")
        assert await engine.query(EVERYTHING) == []
        await eventually(lambda: _detail(engine, "no other node"), PATIENCE)
        process = feed_of(engine)._process
        assert process is not None
        nodes.ports = [process.port]
        try:
            await asyncio.to_thread(nodes.start, 1)
            await eventually(lambda: _deposited(engine, [make_entry(1)]), PATIENCE)
            assert await engine.query(EVERYTHING) == [make_entry(1)]
        finally:
            nodes.kill()


async def _detail(engine: RoutingLayer, words: str) -> bool:
    status = await engine.status()
    return not status.ok and words in status.detail


async def _deposited(engine: RoutingLayer, entries: Sequence[Entry]) -> bool:
    with contextlib.suppress(RoutingError):
        await engine.deposit(entries)
        return True
    return False


async def test_more_copies_are_asked_for_than_there_are_nodes(world: DhtWorld) -> None:
    engine = open_engine(world.url + "&copies=3", world.context())
    async with opened(engine):
        await eventually(lambda: _says(engine, "2 other nodes have taken it"), PATIENCE)
        assert await engine.query(EVERYTHING) == []
        await asyncio.to_thread(world.nodes.start, 1)
        await eventually(lambda: _deposited(engine, [make_entry(1)]), PATIENCE)


async def _says(engine: RoutingLayer, words: str) -> bool:
    with pytest.raises(RoutingError) as caught:
        await engine.deposit([make_entry(1)])
    return words in str(caught.value)


async def test_a_port_that_is_in_use_is_said(world: DhtWorld) -> None:
    port = world.nodes.ports[0]
    engine = open_engine(f"dht:?listen=127.0.0.1:{port}", world.context())
    with pytest.raises(RoutingError, match="the port is in use"):
        await engine.open()
    assert not (await engine.status()).ok
    await engine.close()


async def test_its_node_is_started_again_when_it_was_lost(world: DhtWorld) -> None:
    here, there = world.engine("here"), world.engine("there")
    async with opened(here, there):
        await here.deposit([make_entry(1)])
        for engine in (here, there):
            child = (await feed_of(engine)._running())._child
            assert child is not None
            child.kill()
        await eventually(lambda: _deposited(here, [make_entry(1), make_entry(2)]), PATIENCE)
        await eventually(lambda: holds(there, [make_entry(1), make_entry(2)]), PATIENCE)
        await eventually(lambda: _is_ok(here), PATIENCE)


async def _is_ok(engine: RoutingLayer) -> bool:
    return (await engine.status()).ok


async def test_only_those_whom_the_fleet_knows_send_it_looking(
    world: DhtWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dht, "RETRY_UNPROVEN", 0.2)
    newcomer = Identity.from_seed(b"a node that is let in much later")
    theirs = make_entry(1, fingerprint=b"\x44" * 32, identity=newcomer)
    known = False

    def judge(raw: bytes) -> Entry:
        entry = Entry.parse(raw)
        if entry.kid == newcomer.kid and not known:
            raise Refused(Reason.UNKNOWN_KEY, "kid")
        return entry if known else accept(raw)

    engine = open_engine(world.url, Context(judge, tmp_folder(world)))
    async with opened(engine):
        feed = feed_of(engine)
        forged = bytearray(make_entry(2, fingerprint=b"\x33" * 32).raw)
        forged[-1] ^= 1
        domain = feed._domain_key(b"\x44" * 8)
        hostile: list[tuple[bytes, bytes]] = [
            (feed._network_key, b""),
            (feed._network_key, bytes(60_000)),  # larger than anything of ours
            (feed._network_key, bytes(forged)),
            (feed._network_key, theirs.raw),
            (domain, theirs.raw),
            (feed._address_key(theirs.fingerprint), theirs.raw),
        ]
        for number, (key, data) in enumerate(hostile, 1):
            await world.put(key, number.to_bytes(8), data)
        await engine.deposit([make_entry(5, identity=NODE)])
        await eventually(lambda: theirs.fingerprint in feed._unproven, PATIENCE)
        await eventually(lambda: _refused(engine, 3), PATIENCE)
        assert feed._addresses == {make_entry(5).fingerprint}
        assert await engine.query(EVERYTHING) == [make_entry(5)]
        known = True  # its credential has come
        await eventually(lambda: theirs.fingerprint in feed._addresses, PATIENCE)
        more = make_entry(6, fingerprint=theirs.fingerprint, identity=newcomer)
        await world.write(more, more.raw)
        await eventually(lambda: _finds(engine, more), PATIENCE)


def tmp_folder(world: DhtWorld) -> Path:
    assert world.folder is not None
    return world.folder / "judge"


async def _refused(engine: RoutingLayer, count: int) -> bool:
    return (await engine.status()).refused >= count


async def _finds(engine: RoutingLayer, entry: Entry) -> bool:
    return entry in await engine.query(EVERYTHING)


async def test_a_value_whose_number_was_taken_is_found_all_the_same(world: DhtWorld) -> None:
    entry = make_entry(1)
    await world.write(entry, b"somebody was here before")
    here, there = world.engine("here"), world.engine("there")
    async with opened(here, there):
        await here.deposit([entry])
        await eventually(lambda: holds(there, [entry]), PATIENCE)
