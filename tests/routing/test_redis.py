"""``redis:`` on the distribution's Redis server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as client
import trustme

from gateway.routing import EVERYTHING, Context, Entry, Interest, RoutingLayer, open_engine
from gateway.routing.feed import Feed
from gateway.routing.redis import RedisEngine, RedisFeed
from gateway.routing.redis_places import Place, StreamId
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
from gateway.testing.entries import ADDRESS, SIBLING, STRANGER
from qis_edge.core.errors import RoutingError
from tests.routing.server import Server

#: Seconds that a single thing may take.
PATIENCE = 60.0

LOGIN = ("--requirepass", "right")


class Redis(Server):
    """Keeps everything on disk at once, unless told otherwise."""

    program = "redis-server"

    def __init__(self, folder: Path, *options: str, fsync: str = "always") -> None:
        super().__init__(folder)
        self.options = options
        self.fsync = fsync

    def arguments(self) -> Sequence[str]:
        return (
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
            *("--appendonly", "yes", "--appendfsync", self.fsync, "--save", ""),
            *("--repl-diskless-sync-delay", "0"),
            *self.options,
        )

    def ready(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), 1) as connection,
        ):
            connection.sendall(b"PING\r\n")
            answer = connection.recv(100)
            return answer.startswith((b"+PONG", b"-NOAUTH"))
        return False

    def url(self, login: str = "", path: str = "", options: str = "") -> str:
        return f"redis://{login}127.0.0.1:{self.port}{path}{options}"


@contextlib.asynccontextmanager
async def talking(server: Redis, password: str | None = None) -> AsyncIterator[Any]:
    """A client of our own. (Its types tell neither bytes from text nor now from later.)"""
    made = client.Redis(port=server.port, password=password, protocol=2)
    try:
        yield made
    finally:
        await made.aclose()


# --- the suites ------------------------------------------------------------------------


class RedisWorld(RoutingWorld, FeedWorld):
    folder_each = True

    def __init__(self, server: Redis, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.url = server.url(":right@")

    def feed(self) -> Feed:
        return RedisFeed(EngineUrl.parse(self.url), Context())

    async def write(self, entry: Entry | bytes, raw: bytes | None = None) -> None:  # type: ignore[override]  # of both kinds of world
        address = entry.fingerprint if isinstance(entry, Entry) else ADDRESS
        async with talking(self.server, "right") as redis:
            value = raw if isinstance(entry, Entry) else entry
            assert value is not None
            await redis.sadd("qis:domains", address[:8].hex())
            await redis.xadd(f"qis:{address[:8].hex()}", {"p": value})

    async def fail(self) -> None:
        self.server.kill()

    async def heal(self) -> None:
        self.server.start()

    def intruder(self) -> RoutingLayer:
        return open_engine(self.server.url(":s3cret@"), self.context("intruder"))


@contextlib.asynccontextmanager
async def redis_world(folder: Path) -> AsyncIterator[RedisWorld]:
    server = Redis(folder / "server", *LOGIN)
    server.start()
    try:
        yield RedisWorld(server, folder)
    finally:
        server.kill()


class TestRedisFeed(FeedOutageConformance):
    def world(self, folder: Path) -> contextlib.AbstractAsyncContextManager[FeedWorld]:
        return redis_world(folder)


class TestRedis(DurableConformance, MediumConformance, SpoolConformance, LoginConformance):
    many = 600

    def world(self, folder: Path) -> contextlib.AbstractAsyncContextManager[RoutingWorld]:
        return redis_world(folder)


class TestRedisUrl(UrlConformance):
    wrong = (
        ("redis:", "no server is named"),
        ("redis://a,b", "one server"),
        ("redis://a/x", "number of a database"),
        ("redis://a?maxln=1", "maxlen"),
        ("redis://a?maxlen=0", "maxlen must be"),
        ("redis://a?maxlen=1&days=2", "not both"),
        ("redis://a?replicas=many", "replicas must be"),
        ("redis://a?fsync=often", "always"),
        ("redis://a?group=a%20b", "group must be"),
        ("redis://a?prefix=a%20b", "prefix must be"),
        ("redis://a?tls=perhaps", "tls must be"),
        ("redis://a?ca=x.pem", "tls=yes"),
        ("redis://a?tls=yes&cert_key=x.pem", "needs cert"),
        ("redis:/run/redis.sock?tls=yes", "has no TLS"),
        ("redis://:a@b?password=c", "twice"),
        ("redis://a?password_file=/missing", "cannot be read"),
    )
    right = "redis://user:s3cret@127.0.0.1:6379/3?prefix=a"
    modules = ("redis",)
    command = "pip install 'qis-edge[redis]'"
    nobody = "redis://127.0.0.1:1"


# --- what is its own -------------------------------------------------------------------


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Redis]:
    server = Redis(tmp_path / "server")
    server.start()
    yield server
    server.kill()


@contextlib.asynccontextmanager
async def opened(
    url: str, folder: Path | None = None, name: str = "gateway"
) -> AsyncIterator[RedisEngine]:
    engine = RedisEngine(EngineUrl.parse(url), Context(folder=folder, name=name))
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


@contextlib.asynccontextmanager
async def feeding(url: str) -> AsyncIterator[RedisFeed]:
    feed = RedisFeed(EngineUrl.parse(url), Context())
    await feed.open()
    try:
        yield feed
    finally:
        await feed.close()


async def everything(feed: Feed, after: bytes = b"") -> tuple[list[bytes], bytes]:
    found: list[bytes] = []
    while True:
        chunk = await feed.fetch(after)
        found += chunk.raws
        after = chunk.position
        if chunk.end:
            return found, after


async def test_there_is_a_stream_for_each_domain(server: Redis) -> None:
    async with feeding(server.url()) as feed, talking(server) as redis:
        entries = [
            make_entry(number, fingerprint=(ADDRESS, SIBLING, STRANGER)[number % 3])
            for number in range(9)
        ]
        await feed.publish(entries)
        assert await redis.xlen("qis:" + "5a" * 8) == 6
        assert await redis.xlen("qis:" + "c3" * 8) == 3
        assert await redis.smembers("qis:domains") == {b"5a" * 8, b"c3" * 8}
        assert await feed.size() == 9


async def test_a_new_domain_is_heard_of_at_once(
    server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.routing.redis.PATIENCE", 10 * PATIENCE)
    monkeypatch.setattr("gateway.routing.redis.WAIT", 5 * PATIENCE)
    async with feeding(server.url()) as here, feeding(server.url()) as there:
        waiting = asyncio.create_task(there.fetch(b""))
        async with talking(server) as redis:
            await eventually(lambda: blocked(redis), PATIENCE)
        await here.publish([make_entry(1, fingerprint=STRANGER)])
        assert (await asyncio.wait_for(waiting, PATIENCE)).raws == (
            make_entry(1, fingerprint=STRANGER).raw,
        )


async def blocked(redis: Any) -> bool:
    return bool((await redis.info("clients"))["blocked_clients"])


async def test_a_killed_server_has_all_that_it_acknowledged(server: Redis) -> None:
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
            await eventually(functools.partial(more_than, kept, len(kept) + 200), PATIENCE)
            server.kill()
            with pytest.raises(RoutingError):
                await publishing
            server.start()
        found, _ = await everything(feed)
        assert set(kept) <= set(found)
        assert len(found) - len(kept) in (0, 3, 6, 9)  # whole publishes, or nothing of them
        assert [raw for raw in found if raw in set(kept)] == kept


def more_than(kept: list[bytes], enough: int) -> bool:
    return len(kept) > enough


async def test_a_server_that_hangs_is_away_within_seconds(
    server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.routing.redis.PATIENCE", 0.3)
    async with feeding(server.url()) as feed:
        await feed.publish([make_entry(1)])
        server.pause()
        with pytest.raises(RoutingError, match="away"):
            await asyncio.wait_for(feed.publish([make_entry(2)]), PATIENCE)
        server.resume()
        await feed.publish([make_entry(3)])
        found, _ = await everything(feed)
        assert {make_entry(1).raw, make_entry(3).raw} <= set(found)


async def test_a_log_that_was_lost_is_deposited_anew(server: Redis, tmp_path: Path) -> None:
    entries = [make_entry(number) for number in range(10)]
    async with opened(server.url(), tmp_path) as engine, talking(server) as redis:
        await engine.deposit(entries)
        born = engine.incarnation
        await redis.flushall()

        async def again() -> bool:
            with contextlib.suppress(RoutingError):
                await engine.deposit(entries)
                return engine.incarnation != born
            return False

        await eventually(again, PATIENCE)
        assert await redis.xlen("qis:" + "5a" * 8) == 10
        assert await engine.query(Interest(ADDRESS)) == entries[::-1]


async def test_a_log_that_lost_its_end_is_another(server: Redis) -> None:
    """As after a power cut with ``everysec``, or a failover to a replica that lagged."""
    async with feeding(server.url()) as feed:
        await feed.publish([make_entry(number) for number in range(5)])
        async with talking(server) as redis:
            await redis.bgrewriteaof()
            await eventually(lambda: rewritten(redis), PATIENCE)
        earlier = {path: path.read_bytes() for path in (server.folder / "appendonlydir").iterdir()}
        await feed.publish([make_entry(number) for number in range(5, 8)])
        _, after = await everything(feed)
        born = feed.incarnation
        server.kill()
        for path, content in earlier.items():
            path.write_bytes(content)
        server.start()
        async with feeding(server.url()) as fresh:
            await fresh.publish([make_entry(100)])  # so that the end alone tells nothing
            assert fresh.incarnation == born
            found, _ = await everything(fresh, after)
            assert found == [make_entry(number).raw for number in (0, 1, 2, 3, 4, 100)]
            assert fresh.incarnation != born
        await eventually(lambda: refuses(feed, make_entry(9)), PATIENCE)
        await feed.publish([make_entry(9)])
        assert feed.incarnation != born


async def refuses(feed: Feed, entry: Entry) -> bool:
    return not await published(feed, entry)


async def rewritten(redis: Any) -> bool:
    facts = await redis.info("persistence")
    return not facts["aof_rewrite_in_progress"] and not facts["aof_rewrite_scheduled"]


async def test_who_published_last_notices_that_it_was_lost(server: Redis) -> None:
    async with feeding(server.url()) as feed:
        await feed.publish([make_entry(1), make_entry(2)])
        born = feed.incarnation
        async with talking(server) as redis:
            (last, _), *_ = await redis.xrevrange("qis:" + "5a" * 8)
            await redis.xdel("qis:" + "5a" * 8, last)
        server.kill()
        server.start()
        with pytest.raises(RoutingError):
            await feed.publish([make_entry(3)])
        await feed.publish([make_entry(3)])
        assert feed.incarnation != born


@pytest.mark.parametrize("option", ["maxlen=100", "days=1"])
async def test_the_oldest_go_where_that_is_wanted(server: Redis, option: str) -> None:
    async with feeding(server.url(options=f"?{option}")) as feed, talking(server) as redis:
        for age in range(300, 0, -1):
            await redis.xadd("qis:" + "5a" * 8, {"p": b"old"}, id=f"{age and 1000 - age}-1")
        await feed.publish([make_entry(1)])
        _, after = await everything(feed)
        await feed.publish([make_entry(number) for number in range(2, 300)])
        assert await redis.xlen("qis:" + "5a" * 8) < 400
        found, _ = await everything(feed, after)
        assert make_entry(299).raw in found
        assert b"old" not in (await everything(feed))[0][-100:]


async def test_replicas_confirm(
    server: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.routing.redis.PATIENCE", 1)
    replica = Redis(tmp_path / "replica", "--replicaof", "127.0.0.1", str(server.port))
    replica.start()
    try:
        async with feeding(server.url(options="?replicas=1")) as feed:
            await eventually(lambda: published(feed, make_entry(1)), PATIENCE)
            async with talking(replica) as redis:
                assert await redis.xlen("qis:" + "5a" * 8) >= 1
        with pytest.raises(RoutingError, match="read only"):
            async with feeding(replica.url()):
                pass
    finally:
        replica.kill()
    async with feeding(server.url(options="?replicas=1")) as feed:
        with pytest.raises(RoutingError, match="0 of 1 replicas"):
            await feed.publish([make_entry(2)])


async def published(feed: Feed, entry: Entry) -> bool:
    with contextlib.suppress(RoutingError):
        await feed.publish([entry])
        return True
    return False


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (("appendfsync", "always"), ""),
        (("appendfsync", "everysec"), "syncs each second"),
        (("appendfsync", "no"), "never syncs"),
        (("appendonly", "no"), "no append-only file"),
        (("maxmemory-policy", "allkeys-lru"), "drops streams"),
    ],
)
async def test_its_status_says_how_the_server_keeps_things(
    server: Redis, setting: tuple[str, str], says: str
) -> None:
    async with talking(server) as redis:
        await redis.config_set("maxmemory", 10**9)
        await redis.config_set(*setting)
    async with opened(server.url()) as engine:
        await engine.deposit([make_entry(1)])
        await eventually(lambda: caught_up(engine), PATIENCE)
        status = await engine.status()
        assert status.ok
        assert says in status.detail
        assert bool(says) == bool(status.detail)
    if "append" in setting[0] and says:
        with pytest.raises(RoutingError, match="fsync=always is wanted"):
            async with opened(server.url(options="?fsync=always")):
                pass
    else:
        async with opened(server.url(options="?fsync=always")):
            pass


async def caught_up(engine: RedisEngine) -> bool:
    return "reading" not in (await engine.status()).detail


async def test_a_full_server_says_so_and_is_asked_again(server: Redis, tmp_path: Path) -> None:
    async with opened(server.url(), tmp_path) as engine, talking(server) as redis:
        await engine.deposit([make_entry(1)])
        await redis.config_set("maxmemory", 1)
        with pytest.raises(RoutingError, match="maxmemory"):
            await engine.deposit([make_entry(2)])
        assert not (await engine.status()).ok
        await redis.config_set("maxmemory", 0)
        assert await engine.deposit([make_entry(2)]) == 1


async def test_what_is_no_stream_stands_in_nobodys_way(server: Redis) -> None:
    async with feeding(server.url()) as feed, talking(server) as redis:
        await redis.sadd("qis:domains", "00" * 8, "no domain", b"\xff")
        await redis.set("qis:" + "00" * 8, "something else")
        await redis.sadd("qis:domains", "5a" * 8)
        await redis.xadd("qis:" + "5a" * 8, {"other": "field"})
        await feed.publish([make_entry(1)])
        assert (await everything(feed))[0] == [b"", make_entry(1).raw]
        assert await feed.size() == 2
        with pytest.raises(RoutingError, match="WRONGTYPE"):
            await feed.publish([make_entry(2), make_entry(3, fingerprint=bytes(32))])


#: As on the page.
PERMISSIONS = (
    *("~qis:*", "-@all", "+eval", "+hsetnx", "+hget", "+hmget", "+hset", "+multi", "+exec"),
    *("+xadd", "+xread", "+xrange", "+xrevrange", "+xlen", "+sadd", "+smembers", "+type"),
    *("+time", "+wait", "+client|setname", "+select"),
)
#: For ``group=`` as well.
GROUP_PERMISSIONS = (
    *("+exists", "+xgroup|create", "+xgroup|delconsumer", "+xreadgroup", "+xinfo|consumers"),
    *("+xpending", "+xclaim", "+xack"),
)


async def test_a_login_of_its_own_with_no_more_than_it_needs(server: Redis, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("right\n")
    secret.chmod(0o600)
    async with talking(server) as redis:
        await redis.execute_command("ACL", "SETUSER", "gate", "on", ">right", *PERMISSIONS)
    url = server.url("gate@", options=f"?password_file={secret}")
    async with opened(url, tmp_path) as engine:
        assert await engine.deposit([make_entry(1)]) == 1
        assert "config get is not permitted" in (await engine.status()).detail
        assert "right" not in engine.url
    async with feeding(f"{url}&group=site") as feed:
        with pytest.raises(RoutingError, match="may not"):
            await feed.fetch(b"")
        async with talking(server) as redis:
            await redis.execute_command("ACL", "SETUSER", "gate", *GROUP_PERMISSIONS)
        assert (await everything(feed))[0] == [make_entry(1).raw]
    with pytest.raises(RoutingError, match="may not"):
        async with opened(server.url("gate@", options=f"?prefix=other&password_file={secret}")):
            pass
    with pytest.raises(RoutingError, match="fsync=always is wanted"):
        async with opened(f"{url}&fsync=always"):
            pass


async def test_over_tls(tmp_path: Path) -> None:
    ca = trustme.CA()
    cert = ca.issue_cert("127.0.0.1")
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    cert.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    server = Redis(tmp_path / "server")
    plain, server.port = server.port, Redis(tmp_path / "server").port
    server.options = (
        *("--port", str(server.port), "--tls-port", str(plain), "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(tmp_path / "server.pem")),
        *("--tls-key-file", str(tmp_path / "server.pem")),
        *("--tls-ca-cert-file", str(tmp_path / "ca.pem")),
    )
    server.start()
    try:
        url = f"redis://127.0.0.1:{plain}?tls=yes"
        async with opened(f"{url}&ca={tmp_path / 'ca.pem'}") as engine:
            assert await engine.deposit([make_entry(1)]) == 1
        with pytest.raises(RoutingError, match="certificate"):
            async with opened(url):
                pass
        with pytest.raises(RoutingError):
            async with opened(f"{url}&ca={tmp_path / 'missing.pem'}"):
                pass
    finally:
        server.kill()


async def test_over_a_socket_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = Redis(tmp_path / "server", "--unixsocket", str(path))
    server.start()
    try:
        async with opened(f"redis:{path}") as engine:
            assert await engine.deposit([make_entry(1)]) == 1
            assert await engine.query(EVERYTHING) == [make_entry(1)]
    finally:
        server.kill()


async def test_prefixes_and_databases_keep_fleets_apart(server: Redis) -> None:
    urls = [server.url(), server.url(path="/1"), server.url(options="?prefix=other")]
    for number, url in enumerate(urls):
        async with feeding(url) as feed:
            await feed.publish([make_entry(number)])
    for number, url in enumerate(urls):
        async with feeding(url) as feed:
            assert (await everything(feed))[0] == [make_entry(number).raw]


async def test_very_many_streams_are_read_in_order(server: Redis) -> None:
    async with feeding(server.url()) as feed:
        entries = [
            make_entry(number, fingerprint=(number * 7 % 300).to_bytes(8) + bytes(24))
            for number in range(700)
        ]
        await feed.publish(entries[:650])
        found, after = await everything(feed)
        await feed.publish(entries[650:])
        assert found + (await everything(feed, after))[0] == [entry.raw for entry in entries]


def test_a_place_is_one_in_one_log() -> None:
    place = Place(b"12345678", StreamId(2**48, 7), b"5a5a5a5a")
    assert Place.decode(place.encode(), place.born) == place
    assert Place.decode(place.encode(), b"87654321") == Place(b"87654321")
    assert Place.decode(b"", place.born) == Place(place.born)
