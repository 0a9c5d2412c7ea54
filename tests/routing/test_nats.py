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

from gateway.routing import Context, Entry, Interest, RoutingLayer, open_engine
from gateway.routing.feed import Feed
from gateway.routing.nats import NatsEngine, NatsFeed
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
    once = True

    def world(self, folder: Path) -> contextlib.AbstractAsyncContextManager[FeedWorld]:
        return nats_world(folder)


class TestNats(DurableConformance, MediumConformance, SpoolConformance, LoginConformance):
    many = 600

    def world(self, folder: Path) -> contextlib.AbstractAsyncContextManager[RoutingWorld]:
        return nats_world(folder)


class TestNatsUrl(UrlConformance):
    wrong = (
        ("nats:", "no server is named"),
        ("nats://a/x", "takes no path"),
        ("nats://a?strem=x", "stream"),
        ("nats://a?stream=a.b", "stream must be"),
        ("nats://a?replicas=6", "replicas must be"),
        ("nats://a?days=0", "days must be"),
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


async def everything(feed: Feed, after: bytes = b"") -> tuple[list[bytes], bytes]:
    found: list[bytes] = []
    while True:
        chunk = await feed.fetch(after)
        found += chunk.raws
        after = chunk.position
        if chunk.end:
            return found, after


async def published(feed: Feed, *entries: Entry) -> bool:
    with contextlib.suppress(RoutingError):
        await feed.publish(entries)
        return True
    return False


async def test_there_is_a_subject_for_each_address(server: Nats) -> None:
    async with feeding(server.url()) as feed, talking(server) as stream:
        await feed.publish([make_entry(1), make_entry(2, fingerprint=STRANGER)])
        await feed.publish([make_entry(3)])
        last = await stream.get_last_msg("qis", f"qis.{'5a' * 8}.{'5a' * 24}")
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
        found, _ = await everything(feed)
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
        assert (await everything(feed))[0] == [make_entry(number).raw for number in (1, 2, 3)]


async def test_a_stream_that_was_lost_is_deposited_anew(server: Nats, tmp_path: Path) -> None:
    entries = [make_entry(number) for number in range(10)]
    async with opened(server.url(), tmp_path) as engine, talking(server) as stream:
        await engine.deposit(entries)
        born = engine.incarnation
        await stream.delete_stream("qis")

        async def again() -> bool:
            with contextlib.suppress(RoutingError):
                await engine.deposit(entries)
                return engine.incarnation != born
            return False

        await eventually(again, PATIENCE)
        assert (await stream.stream_info("qis")).state.messages == 10
        assert await engine.query(Interest(ADDRESS)) == entries[::-1]


async def test_a_stream_that_lost_its_end_is_another(server: Nats, tmp_path: Path) -> None:
    """As after a power cut: the server had not synced yet."""
    async with feeding(server.url()) as feed:
        await feed.publish([make_entry(number) for number in range(5)])
        server.stop()
        shutil.copytree(server.folder, tmp_path / "earlier")
        server.start()
        await eventually(lambda: published(feed, make_entry(5), make_entry(6)), PATIENCE)
        _, after = await everything(feed)
        born = feed.incarnation
        server.kill()
        shutil.rmtree(server.folder)
        shutil.copytree(tmp_path / "earlier", server.folder)
        server.start()
        async with feeding(server.url()) as fresh:
            # Others have the numbers of what was lost.
            await fresh.publish([make_entry(number) for number in (100, 101, 102)])
            assert fresh.incarnation == born
            found, _ = await everything(fresh, after)
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
        _, after = await everything(feed)
        await feed.publish(entries[20:])
        expected = [entry.raw for entry in entries[50:]]
        assert (await everything(feed, after))[0] == expected
        async with feeding(server.url()) as later:
            assert (await everything(later, after))[0] == expected
            assert later.incarnation == feed.incarnation
        assert (await stream.stream_info("qis")).config.max_age == 2 * 86_400


async def test_a_stream_of_somebody_else_is_left_alone(server: Nats) -> None:
    async with talking(server) as stream:
        await stream.add_stream(name="mine", subjects=["other.*"])
    with pytest.raises(RoutingError, match="other subjects"):
        async with feeding(server.url(options="?stream=mine")):
            pass


async def test_a_full_stream_says_so(server: Nats) -> None:
    async with feeding(server.url()) as feed, talking(server) as stream:
        await feed.publish([make_entry(1)])
        info = await stream.stream_info("qis")
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


async def test_three_servers_outlive_one(tmp_path: Path) -> None:
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
        info = await feed._jetstream().stream_info("qis")
        leader = int(info.cluster.leader[1:])
        servers[leader].kill()
        await eventually(lambda: published(feed, *entries[30:]), PATIENCE)
        found: list[bytes] = []

        async def reads() -> bool:
            with contextlib.suppress(RoutingError):
                found[:] = (await everything(feed))[0]
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
