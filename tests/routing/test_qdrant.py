"""A Qdrant server's engine, held to the suite: on a double with Qdrant's own engine behind
the REST API, and on the server that QDRANT_URL names."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from gateway.routing import EVERYTHING, Context, Entry, Interest, RoutingLayer, open_engine, qdrant
from gateway.routing import qdrant_points as points
from gateway.testing import (
    DurableConformance,
    LoginConformance,
    MediumConformance,
    RoutingWorld,
    SpoolConformance,
    UrlConformance,
    collect,
    eventually,
    make_entry,
)
from gateway.testing.entries import ADDRESS, HOUR, SIBLING, START, STRANGER
from qis_edge.core.errors import RoutingError

SERVER = os.environ.get("QDRANT_URL", "").rstrip("/")
KEY = "an API key"
#: A stamp of 2026-01-01.
LONG_AGO = 17_672_256_000_000


class Double:
    """The double's process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = 0
        self.start()

    def start(self) -> None:
        program = Path(__file__).with_name("qdrant_server.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program), str(self._folder), str(self.port), KEY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Double]:
    double = Double(tmp_path_factory.mktemp("qdrant"))
    try:
        yield double
    finally:
        double.kill()


class QdrantWorld(RoutingWorld):
    folder_each = True

    def __init__(self, folder: Path, base: str, key: str, collection: str) -> None:
        self.folder = folder
        (folder / "key").write_text(key)
        (folder / "key").chmod(0o600)
        self.collection = collection
        self.url = f"{base.replace('http', 'qdrant', 1)}/{collection}?timeout=20"
        if key:
            self.url += f"&api_key_file={folder / 'key'}"
        self._at = f"{base}/collections/{collection}"
        self._headers = {"api-key": key} if key else {}
        self._strangers = 0

    def ask(self, method: str, rest: str, form: object = None) -> None:
        httpx.request(method, self._at + rest, json=form, headers=self._headers).raise_for_status()

    def drop(self) -> None:
        with contextlib.suppress(httpx.HTTPStatusError):  # it was never made
            self.ask("DELETE", "")

    async def write(self, entry: Entry, raw: bytes) -> None:
        # Whoever writes may choose: now, or long before all that the view looks at by then.
        self._strangers += 1
        stamp = qdrant._now() if self._strangers % 2 else LONG_AGO
        payload = points.payload(entry, 7) | {
            "raw": base64.b64encode(raw).decode(),
            "stamp": stamp,
        }
        point = {
            "id": str(UUID(bytes=entry.id[: points.ID])),
            "vector": points.vectors(entry),
            "payload": payload,
        }
        self.ask("PUT", "/points?wait=true", {"points": [point]})


class DoubleWorld(QdrantWorld):
    """A collection of its own on the double."""

    def __init__(self, folder: Path, double: Double) -> None:
        self.double = double
        super().__init__(folder, f"http://127.0.0.1:{double.port}", KEY, f"test-{uuid4()}")

    def intruder(self) -> RoutingLayer:
        return open_engine(self.url.partition("?")[0] + "?api_key=s3cret", self.context())

    async def fail(self) -> None:
        self.double.kill()

    async def heal(self) -> None:
        self.double.start()


@pytest.fixture
def asked(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> Iterator[None]:
    """Qdrant itself answered all queries, unless it was away."""
    yield
    said = [record.getMessage() for record in caplog.get_records("call")]
    if "away" not in request.node.name:
        assert not [text for text in said if text.startswith("the view answers queries")]


@pytest.mark.usefixtures("asked")
class TestQdrant(DurableConformance, MediumConformance, SpoolConformance, LoginConformance):
    patience = 60.0

    @pytest.fixture(autouse=True)
    def on(self, double: Double) -> None:
        self.double = double

    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[RoutingWorld]:
        world = DoubleWorld(folder, self.double)
        yield world
        world.drop()


class TestQdrantUrl(UrlConformance):
    right = "qdrant://127.0.0.1:1/qis?api_key=s3cret&timeout=3&tls=no&shards=3&replicas=2"
    wrong = (
        ("qdrant:", "must name a host"),
        ("qdrant:folder", "qdrant+edge:"),
        ("qdrant://user:s3cret@host", "no user names"),
        ("qdrant://host/a/b", "no slash"),
        ("qdrant://host?colour=red", "unknown option 'colour'"),
        ("qdrant://host?timeout=soon", "timeout must be"),
        ("qdrant://host?replicas=0", "replicas must be"),
        ("qdrant://host?tls=maybe", "tls must be yes or no"),
    )
    modules = ("qdrant_client",)
    command = "pip install 'qis-edge[qdrant]'"
    nobody = "qdrant://127.0.0.1:1/qis?timeout=2"


@pytest.mark.usefixtures("asked")
@pytest.mark.skipif(not SERVER, reason="QDRANT_URL names no server to test with")
class TestQdrantServer(DurableConformance, MediumConformance):
    patience = 60.0

    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[RoutingWorld]:
        key = os.environ.get("QDRANT_API_KEY", "")
        world = QdrantWorld(folder, SERVER, key, f"test-{uuid4()}")
        try:
            yield world
        finally:
            world.drop()


# --- what is its own -------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, double: Double) -> Iterator[DoubleWorld]:
    world = DoubleWorld(tmp_path, double)
    yield world
    world.drop()


@contextlib.asynccontextmanager
async def opened(world: RoutingWorld, gateway: str = "gateway") -> AsyncIterator[RoutingLayer]:
    engine = world.engine(gateway)
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


async def follow(engine: RoutingLayer, count: int) -> list[Entry]:
    subscription = engine.follow(frozenset([EVERYTHING]))
    batches = await collect(subscription, count, 60)
    await subscription.close()
    return [entry for batch in batches for entry in batch.entries]


async def test_a_gateway_that_has_read_nothing_yet_answers_in_full(
    world: DoubleWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [make_entry(number, vector=(1.0, number / 10)) for number in range(20)]
    async with opened(world, "here") as here:
        await here.deposit(entries)

    async def reads_nothing(feed: object, after: bytes) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(qdrant.QdrantFeed, "fetch", reads_nothing)
    async with opened(world, "there") as there:
        assert await there.query(Interest(ADDRESS), limit=5) == entries[:-6:-1]
        assert await there.query(Interest(ADDRESS), limit=5, vector=(1, 0)) == entries[:5]


async def test_while_it_is_away_the_view_answers(world: DoubleWorld) -> None:
    entries = [make_entry(number, vector=(1.0, number / 10)) for number in range(20)]
    async with opened(world) as engine:
        await engine.deposit(entries)
        await world.fail()
        try:
            assert await engine.query(Interest(ADDRESS), limit=5) == entries[:-6:-1]
            assert await engine.query(Interest(ADDRESS), limit=5, vector=(1, 0)) == entries[:5]
        finally:
            await world.heal()


async def test_of_equally_near_ones_the_newest_come(world: DoubleWorld) -> None:
    vectors = {0: (2.0, 2.0), 1: (3.0, 3.0), 2: (0.1, 0.1), 3: (-1.0, 2.0)}
    entries = [make_entry(n, vector=vectors[n % 4]) for n in range(200)]
    twins = [entry for n, entry in enumerate(entries) if n % 4 != 3]
    async with opened(world) as engine:
        await engine.deposit(entries)
        found = await engine.query(Interest(ADDRESS, 64), limit=30, vector=(5, 5))
        assert found == twins[:-31:-1]


@pytest.mark.parametrize("behind", [60, 6000])
async def test_what_was_stamped_before_and_written_after_is_read(
    world: DoubleWorld, monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    monkeypatch.setattr(qdrant, "NEAR", 100 * qdrant.TICKS)
    monkeypatch.setattr(qdrant, "FAR", 10_000 * qdrant.TICKS)
    monkeypatch.setattr(qdrant, "FAR_EVERY", 0.5)
    async with opened(world, "here") as here, opened(world, "there") as there:
        await here.deposit([make_entry(1)])
        assert await follow(there, 1) == [make_entry(1)]
        stamp = qdrant._now() - behind * qdrant.TICKS
        point = {
            "id": str(UUID(bytes=make_entry(2).id[:16])),
            "vector": {},
            "payload": points.payload(make_entry(2), stamp) | {"stamp": stamp},
        }
        world.ask("PUT", "/points?wait=true", {"points": [point]})
        assert await follow(there, 2) == [make_entry(1), make_entry(2)]
        assert (await there.status()).refused == 0


@pytest.mark.parametrize("read", [True, False])
async def test_a_clock_that_nobody_set_stamps_after_what_is_there(
    world: DoubleWorld, monkeypatch: pytest.MonkeyPatch, read: bool
) -> None:
    first, second = make_entry(1), make_entry(2, time=make_entry(1).time)
    async with opened(world, "here") as here:
        await here.deposit([first])
        monkeypatch.setattr(qdrant, "_now", lambda: 5)
        async with opened(world, "there") as there:
            if read:
                assert await follow(there, 1) == [first]
            await there.deposit([second])
            assert await there.query(EVERYTHING) == [second, first]
            assert await follow(here, 2) == [first, second]


async def test_stamps_far_ahead_hold_nobody_up(world: DoubleWorld) -> None:
    async with opened(world, "here") as here, opened(world, "there") as there:
        await here.deposit([make_entry(1)])
        entry = make_entry(2)
        form = points.payload(entry, 7) | {"stamp": 2**52}
        point = {"id": str(UUID(bytes=entry.id[:16])), "vector": {}, "payload": form}
        world.ask("PUT", "/points?wait=true", {"points": [point]})
        assert set(await follow(there, 2)) == {make_entry(1), entry}
        await here.deposit([make_entry(3)])
        assert set(await follow(there, 3)) == {make_entry(1), entry, make_entry(3)}


async def test_packets_at_places_that_are_not_theirs_are_not_believed(world: DoubleWorld) -> None:
    async with opened(world) as engine:
        real = make_entry(1)
        await engine.deposit([real])
        other = make_entry(2, fingerprint=STRANGER)
        for number, form in enumerate(
            [
                points.payload(real, 7),  # under another id
                points.payload(other, 7) | {"address": ADDRESS.hex()},  # at another address
                points.payload(real._replace(time=START + 900 * HOUR), 7),  # at another time
            ]
        ):
            strange = {
                "id": str(UUID(bytes=bytes([number]) * 16)),
                "vector": {},
                "payload": form | {"stamp": qdrant._now()},
            }
            world.ask("PUT", "/points?wait=true", {"points": [strange]})
        point: dict[str, object] = {
            "id": 7,
            "vector": {},
            "payload": points.payload(real, 7) | {"raw": 5},
        }
        world.ask("PUT", "/points?wait=true", {"points": [point]})
        assert await engine.query(Interest(ADDRESS)) == [real]
        assert await engine.query(Interest(ADDRESS), limit=1) == [real]
        assert await engine.query(Interest(ADDRESS), since=START + 800 * HOUR) == []


async def test_strangers_where_the_view_never_looks_are_counted_when_a_query_meets_them(
    world: DoubleWorld,
) -> None:
    async with opened(world) as engine:
        real = make_entry(1)
        await engine.deposit([real])
        assert await follow(engine, 1) == [real]
        # It has looked at what is of today, so that it will look at nothing older.
        await eventually(functools.partial(_has_looked, engine), 60)
        for number in range(2, 6):
            point = {
                "id": str(UUID(int=number)),
                "vector": {},
                "payload": points.payload(make_entry(number), 7) | {"raw": "", "stamp": LONG_AGO},
            }
            world.ask("PUT", "/points?wait=true", {"points": [point]})
        for _ in range(3):
            assert await engine.query(Interest(ADDRESS)) == [real]
            assert (await engine.status()).refused == 4


async def _has_looked(engine: RoutingLayer) -> bool:
    assert isinstance(engine, qdrant.QdrantEngine)
    return engine._source._caught_up and not (await engine.status()).behind


async def test_where_strangers_wrote_too_much_the_view_answers(
    world: DoubleWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant, "MAX_FOREIGN", 20)
    async with opened(world) as engine:
        real = [make_entry(number) for number in range(5)]
        await engine.deposit(real)
        for number in range(100, 140):
            await world.write(make_entry(number), b"noise")
        assert await engine.query(Interest(ADDRESS), limit=3) == real[:-4:-1]


async def test_a_collection_that_was_lost_is_filled_again(world: DoubleWorld) -> None:
    async with opened(world) as engine:
        entries = [make_entry(number) for number in range(5)]
        await engine.deposit(entries)
        born = engine.incarnation
        world.ask("DELETE", "")

        async def deposited() -> bool:
            with contextlib.suppress(RoutingError):
                await engine.open()
                await engine.deposit(entries)
                await engine.deposit([make_entry(9)])
                return engine.incarnation != born
            return False

        await eventually(deposited, 60)
        async with opened(world, "there") as there:
            assert set(await there.query(EVERYTHING)) == {*entries, make_entry(9)}


async def test_a_collection_of_another_use_is_left_alone(world: DoubleWorld) -> None:
    world.ask("PUT", "", {"vectors": {"words": {"size": 384, "distance": "Cosine"}}})
    with pytest.raises(RoutingError, match="none of ours") as caught:
        await world.engine().open()
    assert "another" in (caught.value.hint or "")


async def test_of_several_hosts_one_that_answers_is_asked(world: DoubleWorld) -> None:
    url = world.url.replace("//", "//127.0.0.1:1,", 1)
    engine = open_engine(url, Context(folder=world.folder))
    await engine.open()
    assert await engine.deposit([make_entry(1)]) == 1
    assert (await engine.status()).ok
    await engine.close()


async def test_prefixes_of_every_length_are_found(world: DoubleWorld) -> None:
    async with opened(world) as engine:
        entries = [make_entry(1), make_entry(2, fingerprint=SIBLING)]
        bits = [0, 1, 31, 32, 33, 63, 64, 65, 111, 112, 113, 160, 208, 255, 256]
        for number, bit in enumerate(bits[:-1], 3):  # differ in just this bit
            address = int.from_bytes(ADDRESS) ^ 1 << 255 - bit
            entries.append(make_entry(number, fingerprint=address.to_bytes(32)))
        await engine.deposit(entries)
        for length in bits:
            interest = Interest(ADDRESS, length)
            expected = [e for e in reversed(entries) if interest.covers(e.fingerprint)]
            assert await engine.query(interest) == expected, length
