"""``nats:`` on the distribution's NATS server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import nats
import nkeys
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing import Context, Entry, Interest, RoutingLayer, open_engine
from gateway.routing.feed import MAX_POSITION, Feed
from gateway.routing.nats import NatsEngine, NatsFeed
from gateway.routing.nats_reading import REST, Spot, decode, encode
from gateway.routing.url import EngineUrl
from gateway.testing import (
    DurableConformance,
    FeedOutageConformance,
    FeedWorld,
    LoginConformance,
    MediumConformance,
    RoutingWorld,
    SpoolConformance,
    UrlConformance,
    eventually,
    make_entry,
)
from gateway.testing.entries import ADDRESS, STRANGER
from qis_edge.core.errors import RoutingError
from tests.mosquitto import free_port
from tests.routing.server import Server

#: Seconds that a single thing may take.
PATIENCE = 60.0

TOKEN = 'authorization { token: "right" }'


class Nats(Server):
    """With JetStream, and lines of configuration."""

    program = "nats-server"

    def __init__(self, folder: Path, *lines: str) -> None:
        super().__init__(folder)
        self.lines = lines

    def arguments(self) -> Sequence[str]:
        conf = self.folder / "nats.conf"
        store = f'jetstream {{ store_dir: "{self.folder}", max_mem: 64M, max_file: 1G }}'
        conf.write_text("\n".join([f"listen: 127.0.0.1:{self.port}", store, *self.lines]))
        return ("-c", str(conf))

    def ready(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), 1) as connection,
        ):
            return connection.recv(100).startswith(b"INFO")
        return False

    def url(self, login: str = "", options: str = "") -> str:
        return f"nats://{login}127.0.0.1:{self.port}{options}"


@contextlib.asynccontextmanager
async def talking(server: Nats, **login: Any) -> AsyncIterator[Any]:
    """JetStream, for a client of our own."""
    connection = await nats.connect(f"nats://127.0.0.1:{server.port}", **login)
    try:
        yield connection.jetstream()
    finally:
        await connection.close()


# --- the suites ------------------------------------------------------------------------


class NatsWorld(RoutingWorld, FeedWorld):
    folder_each = True

    def __init__(self, server: Nats, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.url = server.url(options="?token=right")

    def feed(self) -> Feed:
        return NatsFeed(EngineUrl.parse(self.url), Context())

    async def write(self, entry: Entry | bytes, raw: bytes | None = None) -> None:  # type: ignore[override]  # of both kinds of world
        address = entry.fingerprint.hex() if isinstance(entry, Entry) else ADDRESS.hex()
        value = raw if isinstance(entry, Entry) else entry
        assert value is not None
        async with talking(self.server, token="right") as stream:
            name = f"qis-{address[:16]}"
            with contextlib.suppress(nats.js.errors.BadRequestError):  # there it is
                await stream.add_stream(name=name, subjects=[f"qis.{address[:16]}.*"])
            await stream.publish(f"qis.{address[:16]}.{address[16:]}", value)

    async def fail(self) -> None:
        self.server.kill()

    async def heal(self) -> None:
        self.server.start()

    def intruder(self) -> RoutingLayer:
        return open_engine(self.server.url(options="?token=s3cret"), self.context("intruder"))


@contextlib.asynccontextmanager
async def nats_world(folder: Path) -> AsyncIterator[NatsWorld]:
    server = Nats(folder / "server", TOKEN)
    server.start()
    try:
        yield NatsWorld(server, folder)
    finally:
        server.kill()


class TestNatsFeed(FeedOutageConformance):
    ordered = False  # over several streams
    once = True

    def world(self, folder: Path) -> contextlib.AbstractAsyncContextManager[FeedWorld]:
        return nats_world(folder)


class TestNats(DurableConformance, MediumConformance, SpoolConformance, LoginConformance):
    order = "address"
    many = 600

    def world(self, folder: Path) -> contextlib.AbstractAsyncContextManager[RoutingWorld]:
        return nats_world(folder)

    async def assert_followed(self, engine, entries, order="log"):  # type: ignore[no-untyped-def] # as the suite's
        """A publish that is cut off may have reached some streams and others not."""
        await super().assert_followed(engine, entries, "address")


class TestNatsUrl(UrlConformance):
    wrong = (
        ("nats:", "no server is named"),
        ("nats://a/x", "takes no path"),
        ("nats://a?strem=x", "stream"),
        ("nats://a?stream=a.b", "stream must be"),
        ("nats://a?replicas=6", "replicas must be"),
        ("nats://a?days=0", "days must be"),
        ("nats://a?domains=200", "domains must be"),
        ("nats://:b@a", "needs a user"),
        ("nats://u:b@a?token=c", "one login"),
        ("nats://a?cert=x.pem", "tls=yes"),
        ("nats://a?token_file=/missing", "cannot be read"),
    )
    right = "nats://user:s3cret@127.0.0.1:4222,[::1]:4223?stream=a"
    modules = ("nats",)
    command = "pip install 'qis-edge[nats]'"
    nobody = "nats://127.0.0.1:1"


# --- what is its own -------------------------------------------------------------------


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Nats]:
    server = Nats(tmp_path / "server")
    server.start()
    yield server
    server.kill()


@contextlib.asynccontextmanager
async def feeding(url: str) -> AsyncIterator[NatsFeed]:
    feed = NatsFeed(EngineUrl.parse(url), Context())
    await feed.open()
    try:
        yield feed
    finally:
        await feed.close()


@contextlib.asynccontextmanager
async def opened(url: str, folder: Path) -> AsyncIterator[NatsEngine]:
    engine = NatsEngine(EngineUrl.parse(url), Context(folder=folder))
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


async def everything(feed: Feed, after: bytes = b"", count: int = 0) -> tuple[list[bytes], bytes]:
    """What there is, and at least this many."""
    found: list[bytes] = []
    async with asyncio.timeout(PATIENCE):
        while True:
            chunk = await feed.fetch(after)
            found += chunk.raws
            after = chunk.position
            if chunk.end and len(found) >= count:
                return found, after


async def published(feed: Feed, *entries: Entry) -> bool:
    with contextlib.suppress(RoutingError):
        await feed.publish(entries)
        return True
    return False


HERE, THERE = f"qis-{'5a' * 8}", f"qis-{'c3' * 8}"


async def test_there_is_a_stream_for_each_domain_and_a_subject_for_each_address(
    server: Nats,
) -> None:
    async with feeding(server.url()) as feed, talking(server) as stream:
        await feed.publish([make_entry(1), make_entry(2, fingerprint=STRANGER)])
        await feed.publish([make_entry(3)])
        names = {info.config.name for info in await stream.streams_info()}
        assert names == {"qis", HERE, THERE}
        assert (await stream.stream_info(HERE)).state.messages == 2
        assert (await stream.stream_info(THERE)).state.messages == 1
        last = await stream.get_last_msg(HERE, f"qis.{'5a' * 8}.{'5a' * 24}")
        assert last.data == make_entry(3).raw
        assert last.headers["Nats-Msg-Id"] == make_entry(3).id.hex()
        assert await feed.size() == 3


async def test_a_killed_server_has_all_that_it_acknowledged(server: Nats) -> None:
    async with feeding(server.url()) as feed:
        kept: list[bytes] = []
        number = 0

        async def publish_for_ever() -> None:
            nonlocal number
            while True:
                entries = [make_entry(number + more) for more in range(3)]
                number += 3
                await feed.publish(entries)
                kept.extend(entry.raw for entry in entries)

        for _ in range(3):
            publishing = asyncio.create_task(publish_for_ever())
            await eventually(functools.partial(more_than, kept, len(kept) + 150), PATIENCE)
            server.kill()
            with pytest.raises(RoutingError):
                await publishing
            server.start()
        found, _ = await everything(feed, count=len(kept))
        assert [raw for raw in found if raw in set(kept)] == kept
        assert len(found) - len(kept) <= 9


def more_than(kept: list[bytes], enough: int) -> bool:
    return len(kept) > enough


async def test_a_server_that_hangs_is_away_within_seconds(
    server: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.routing.nats.PATIENCE", 0.5)
    async with feeding(server.url()) as feed:
        await feed.publish([make_entry(1)])
        server.pause()
        with pytest.raises(RoutingError, match="away"):
            await asyncio.wait_for(feed.publish([make_entry(2)]), PATIENCE)
        server.resume()
        await eventually(lambda: published(feed, make_entry(2), make_entry(3)), PATIENCE)
        assert (await everything(feed, count=3))[0] == [
            make_entry(number).raw for number in (1, 2, 3)
        ]


@pytest.mark.parametrize("lost", [(HERE,), ("qis",), ("qis", HERE, THERE)])
async def test_a_stream_that_was_lost_is_deposited_anew(
    server: Nats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: Sequence[str]
) -> None:
    monkeypatch.setattr("gateway.routing.nats.REFRESH", 0.1)
    entries = [
        make_entry(number, fingerprint=(ADDRESS, STRANGER)[number % 2]) for number in range(10)
    ]
    async with opened(server.url(), tmp_path) as engine, talking(server) as stream:
        await engine.deposit(entries)
        born = engine.incarnation
        for name in lost:
            await stream.delete_stream(name)

        async def again() -> bool:
            with contextlib.suppress(RoutingError, nats.js.errors.NotFoundError):
                await engine.open()
                await engine.deposit([*entries, make_entry(10)])
                infos = [await stream.stream_info(name) for name in (HERE, THERE)]
                assert engine.incarnation != born
                return [info.state.messages for info in infos] == [6, 5]
            return False

        with contextlib.suppress(RoutingError):
            await engine.deposit([make_entry(10)])
        await eventually(lambda: engine_noticed(engine, born), PATIENCE)
        await eventually(again, PATIENCE)
        assert await engine.query(Interest(ADDRESS)) == [make_entry(10), *entries[-2::-2]]


async def engine_noticed(engine: RoutingLayer, born: str) -> bool:
    with contextlib.suppress(RoutingError):
        await engine.open()
    return engine.incarnation != born


async def test_a_new_stream_is_heard_of_or_found(
    server: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.routing.nats.WAIT", 10 * PATIENCE)
    monkeypatch.setattr("gateway.routing.nats.REFRESH", 10 * PATIENCE)
    async with feeding(server.url()) as here, feeding(server.url()) as there:
        waiting = asyncio.create_task(there.fetch(b""))
        await eventually(lambda: there._at is not None, PATIENCE)
        await here.publish([make_entry(1)])
        chunk = await asyncio.wait_for(waiting, PATIENCE)
        assert chunk.raws == (make_entry(1).raw,)
        # Who makes one and is killed tells nobody.
        monkeypatch.setattr("gateway.routing.nats.WAIT", 0.1)
        monkeypatch.setattr("gateway.routing.nats.REFRESH", 0.1)
        async with talking(server) as stream:
            await stream.add_stream(name=THERE, subjects=[f"qis.{'c3' * 8}.*"])
            await stream.publish(f"qis.{'c3' * 8}.{'c3' * 24}", b"something")
        found: list[bytes] = []
        async with asyncio.timeout(PATIENCE):
            while not found:
                chunk = await there.fetch(chunk.position)
                found += chunk.raws
        assert found == [b"something"]


async def test_domains_beyond_the_limit_share_a_stream(server: Nats) -> None:
    entries = [make_entry(number, fingerprint=bytes([number]) * 32) for number in range(12)]
    async with feeding(server.url(options="?domains=4")) as feed, talking(server) as stream:
        for entry in entries:
            await feed.publish([entry])
        found, after = await everything(feed, count=12)
        assert sorted(found) == sorted(entry.raw for entry in entries)
        assert len(await stream.streams_info()) == 6
        assert (await stream.stream_info("qis-rest")).state.messages == 8
        last = await stream.get_last_msg("qis-rest", f"qis.rest.{'0b' * 32}")
        assert last.data == entries[11].raw
        # It is followed on from, there too, and by those with another limit.
        async with feeding(server.url()) as other:
            await other.publish([make_entry(20, fingerprint=bytes([11]) * 32)])
            expected = [make_entry(20, fingerprint=bytes([11]) * 32).raw]
            assert (await everything(other, after, 1))[0] == expected


async def test_many_streams_are_read(server: Nats) -> None:
    addresses = [number.to_bytes(8) + bytes(24) for number in range(60)]
    entries = [make_entry(number, fingerprint=addresses[number % 60]) for number in range(900)]
    async with feeding(server.url()) as feed:
        await feed.publish(entries[:600])
        found, after = await everything(feed, count=600)
        assert sorted(found) == sorted(entry.raw for entry in entries[:600])
        await feed.publish(entries[600:])
        async with feeding(server.url()) as other:
            for reader in (feed, other):
                found, _ = await everything(reader, after, 300)
                assert sorted(found) == sorted(entry.raw for entry in entries[600:])


_NAMES = st.one_of(st.just(REST), st.binary(min_size=8, max_size=8).map(bytes.hex))
_SPOTS = st.builds(
    Spot,
    st.binary(min_size=4, max_size=4),
    st.integers(1, 2**64 - 1),
    st.binary(min_size=4, max_size=4),
)


@given(st.dictionaries(_NAMES, _SPOTS, max_size=129))
def test_a_position_says_every_place(spots: dict[str, Spot]) -> None:
    position = encode(b"12345678", spots)
    assert len(position) <= MAX_POSITION
    assert decode(position, b"12345678") == spots
    assert decode(position, b"87654321") == {}


@given(st.binary(max_size=100))
def test_what_is_no_position_is_the_beginning(raw: bytes) -> None:
    found = decode(raw, b"12345678")
    assert not found or raw.startswith(b"\x0212345678")


async def test_a_stream_that_lost_its_end_is_another(server: Nats, tmp_path: Path) -> None:
    """As after a power cut: the server had not synced yet."""
    async with feeding(server.url()) as feed:
        await feed.publish([make_entry(number) for number in range(5)])
        server.stop()
        shutil.copytree(server.folder, tmp_path / "earlier")
        server.start()
        await eventually(lambda: published(feed, make_entry(5), make_entry(6)), PATIENCE)
        _, after = await everything(feed, count=7)
        born = feed.incarnation
        server.kill()
        shutil.rmtree(server.folder)
        shutil.copytree(tmp_path / "earlier", server.folder)
        server.start()
        async with feeding(server.url()) as fresh:
            # Others have the numbers of what was lost.
            await fresh.publish([make_entry(number) for number in (100, 101, 102)])
            assert fresh.incarnation == born
            found, _ = await everything(fresh, after, 8)
            expected = [make_entry(number).raw for number in (0, 1, 2, 3, 4, 100, 101, 102)]
            assert found == expected
            assert fresh.incarnation != born
        await eventually(lambda: published(feed, make_entry(9)), PATIENCE)
        assert feed.incarnation != born


async def test_the_oldest_go_where_that_is_wanted(server: Nats) -> None:
    async with (
        feeding(server.url(options="?maxlen=100&days=2")) as feed,
        talking(server) as stream,
    ):
        entries = [make_entry(number) for number in range(150)]
        await feed.publish(entries[:20])
        _, after = await everything(feed, count=20)
        await feed.publish(entries[20:])
        expected = [entry.raw for entry in entries[50:]]
        # What had come before it went is not lost.
        assert (await everything(feed, after, 100))[0][-100:] == expected
        async with feeding(server.url()) as later:
            assert (await everything(later, after, 100))[0] == expected
            assert later.incarnation == feed.incarnation
        assert (await stream.stream_info(HERE)).config.max_age == 2 * 86_400


async def test_a_stream_of_somebody_else_is_left_alone(server: Nats) -> None:
    async with talking(server) as stream:
        await stream.add_stream(name="mine", subjects=["other.*"])
    with pytest.raises(RoutingError, match="other subjects"):
        async with feeding(server.url(options="?stream=mine")):
            pass


async def test_a_full_stream_says_so(server: Nats) -> None:
    async with feeding(server.url()) as feed, talking(server) as stream:
        await feed.publish([make_entry(1)])
        info = await stream.stream_info(HERE)
        info.config.max_msgs, info.config.discard = 2, "new"
        await stream.update_stream(info.config)
        with pytest.raises(RoutingError, match="maximum messages exceeded"):
            await feed.publish([make_entry(2), make_entry(3)])


async def test_without_jetstream_it_says_what_to_do(tmp_path: Path) -> None:
    class Plain(Nats):
        def arguments(self) -> Sequence[str]:
            return ("-a", "127.0.0.1", "-p", str(self.port))

    server = Plain(tmp_path / "server")
    server.start()
    try:
        with pytest.raises(RoutingError, match="JetStream") as caught:
            async with feeding(server.url()):
                pass
        assert "-js" in (caught.value.hint or "")
    finally:
        server.kill()


async def test_logins(tmp_path: Path) -> None:
    pair = nkeys.from_seed(nkeys.encode_seed(b"s" * 32, nkeys.PREFIX_BYTE_USER))
    (tmp_path / "seed").write_bytes(pair.seed)
    (tmp_path / "password").write_text("pass word\n")
    for name in ("seed", "password"):
        (tmp_path / name).chmod(0o600)
    users = f'{{ user: gate, password: "pass word" }}, {{ nkey: {pair.public_key.decode()} }}'
    server = Nats(tmp_path / "server", f"authorization {{ users: [ {users} ] }}")
    server.start()
    try:
        right = (
            server.url("gate@", f"?password_file={tmp_path / 'password'}"),
            server.url("gate:pass%20word@"),
            server.url(options=f"?nkey_file={tmp_path / 'seed'}"),
        )
        for url in right:
            async with feeding(url) as feed:
                await feed.publish([make_entry(1)])
        for url in (server.url(), server.url("gate:wrong@")):
            with pytest.raises(RoutingError, match="refused the login"):
                async with feeding(url):
                    pass
    finally:
        server.kill()


async def test_a_login_of_its_own_with_no_more_than_it_needs(tmp_path: Path) -> None:
    publish = '["qis.>", "$JS.API.STREAM.>", "$JS.API.CONSUMER.>"]'
    subscribe = '["qis.news", "_INBOX.>"]'
    permissions = f"permissions: {{ publish: {publish}, subscribe: {subscribe} }}"
    user = f"user: gate, password: right, {permissions}"
    server = Nats(tmp_path / "server", f"authorization {{ users: [ {{ {user} }} ] }}")
    server.start()
    try:
        async with opened(server.url("gate:right@"), tmp_path) as engine:
            assert await engine.deposit([make_entry(1)]) == 1
            assert await engine.deposit([make_entry(2, fingerprint=STRANGER)]) == 1
        async with feeding(server.url("gate:right@")) as feed:
            assert len((await everything(feed, count=2))[0]) == 2
            assert await feed.size() == 2
            assert feed._said == ""
    finally:
        server.kill()


async def test_over_tls(tmp_path: Path) -> None:
    ca = trustme.CA()
    cert = ca.issue_cert("127.0.0.1")
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    cert.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    pem = tmp_path / "server.pem"
    server = Nats(tmp_path / "server", f'tls {{ cert_file: "{pem}", key_file: "{pem}" }}')
    server.start()
    try:
        async with feeding(server.url(options=f"?tls=yes&ca={tmp_path / 'ca.pem'}")) as feed:
            await feed.publish([make_entry(1)])
        for options in ("?tls=yes", f"?tls=yes&ca={tmp_path / 'missing.pem'}"):
            with pytest.raises(RoutingError):
                async with feeding(server.url(options=options)):
                    pass
    finally:
        server.kill()


async def test_three_servers_outlive_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.routing.nats.PATIENCE", 1)
    ports = [free_port() for _ in range(3)]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    servers = [
        Nats(
            tmp_path / f"server{number}",
            f"server_name: s{number}",
            f"cluster {{ name: c, listen: 127.0.0.1:{port}, routes: [{routes}] }}",
        )
        for number, port in enumerate(ports)
    ]
    for server in servers:
        server.start()
    try:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        feed = NatsFeed(EngineUrl.parse(f"nats://{hosts}?replicas=3"), Context())
        await eventually(lambda: opens(feed), PATIENCE)
        entries = [make_entry(number) for number in range(60)]
        await eventually(lambda: published(feed, *entries[:30]), PATIENCE)
        info = await feed._jetstream().stream_info(HERE)
        leader = int(info.cluster.leader[1:])
        servers[leader].kill()
        await eventually(lambda: published(feed, *entries[30:]), PATIENCE)
        found: list[bytes] = []

        async def reads() -> bool:
            with contextlib.suppress(RoutingError):
                found[:] = (await everything(feed, count=60))[0]
            return len(found) >= 60

        await eventually(reads, PATIENCE)
        assert sorted(found) == sorted(entry.raw for entry in entries)
        await feed.close()
    finally:
        for server in servers:
            server.kill()


async def opens(feed: Feed) -> bool:
    with contextlib.suppress(RoutingError):
        await feed.open()
        return True
    return False
