"""``kafka:`` on a real broker, a single KRaft node.

Of the suites, what a real broker may do differently; :mod:`tests.routing.test_kafka` has all of
them, on librdkafka's own cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
import trustme
from confluent_kafka import TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined] # not exported by its types
    AdminClient,
    ConfigResource,
)
from cryptography.hazmat.primitives import serialization

from gateway.routing import Context, EngineUrl, Entry, Interest, kafka, open_engine
from gateway.routing.feed import Chunk
from gateway.routing.kafka import KafkaFeed
from gateway.routing.kafka_settings import Logger
from gateway.routing.kafka_topics import partition_of
from gateway.testing import (
    DurableConformance,
    FeedConformance,
    LoginConformance,
    MediumConformance,
    SpoolConformance,
    eventually,
    make_entry,
)
from gateway.testing.entries import ADDRESS, STRANGER
from qis_edge.core.errors import RoutingError
from tests.routing.choose import only
from tests.routing.kafka import Broker, BrokerWorld, Producers

LOGIN = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_user="right";'
PATIENCE = 20.0


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("kafka")
    certificate = authority.issue_cert("127.0.0.1")
    (folder / "broker.pem").write_bytes(
        _pkcs8(certificate.private_key_pem.bytes()) + certificate.cert_chain_pems[0].bytes()
    )
    authority.cert_pem.write_to_path(folder / "ca.pem")
    lines = (
        "sasl.enabled.mechanisms=PLAIN",
        f"listener.name.sasl_plaintext.plain.sasl.jaas.config={LOGIN}",
        "ssl.client.auth=required",
        "ssl.keystore.type=PEM",
        f"ssl.keystore.location={folder}/broker.pem",
        "ssl.truststore.type=PEM",
        f"ssl.truststore.location={folder}/ca.pem",
    )
    broker = Broker(folder, lines, ["SASL_PLAINTEXT", "SSL"])
    broker.start()
    yield broker
    broker.kill()


def _pkcs8(key: bytes) -> bytes:
    """A private key in the only form that the broker reads."""
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.fixture(scope="module")
def producers() -> Producers:
    return Producers()


@pytest.fixture(autouse=True)
def _ready_producers(producers: Producers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "Producer", producers)


class OnBroker:
    @pytest.fixture(autouse=True)
    def _broker(self, broker: Broker) -> None:
        self.broker = broker

    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[BrokerWorld]:
        yield BrokerWorld(self.broker, folder)


@only(
    "test_it_outlives_its_clients",
    "test_its_size_is_about_right",
)
class TestKafkaFeed(OnBroker, FeedConformance):
    ordered = False  # over several partitions


@only(
    "test_a_gateway_that_comes_later_finds_everything_and_goes_on",
    "test_a_killed_depositor_loses_nothing_that_it_was_told_is_kept",
    "test_a_refused_login_is_said",
    "test_away_in_the_middle_of_a_deposit_the_spool_holds",
    "test_it_replays_in_order_and_goes_on_live",
    "test_nobody_misses_anything_while_many_deposit",
    "test_what_others_wrote_there_is_dropped_and_counted",
)
class TestKafka(
    OnBroker, DurableConformance, MediumConformance, SpoolConformance, LoginConformance
):
    order = "address"
    kills = 2

    async def assert_followed(self, engine, entries, order="log"):  # type: ignore[no-untyped-def] # as the suite's
        """A publish that is cut off may have reached some partitions and others not."""
        await super().assert_followed(engine, entries, "address")


# --- what is its own -------------------------------------------------------------------


@pytest.fixture
def world(broker: Broker, tmp_path: Path) -> BrokerWorld:
    return BrokerWorld(broker, tmp_path)


@pytest.fixture
def admin(broker: Broker) -> AdminClient:
    return AdminClient({"bootstrap.servers": broker.servers}, logger=Logger)


@contextlib.asynccontextmanager
async def feeding(
    world: BrokerWorld, options: str = "", folder: Path | None = None
) -> AsyncIterator[KafkaFeed]:
    feed = KafkaFeed(EngineUrl.parse(world.url + options), Context(folder=folder))
    await feed.open()
    try:
        yield feed
    finally:
        await feed.close()


async def read(feed: KafkaFeed, after: bytes = b"", count: int = 0) -> tuple[list[bytes], bytes]:
    """Everything that is there now, and at least this many."""
    found: list[bytes] = []
    async with asyncio.timeout(PATIENCE):
        while True:
            chunk: Chunk = await feed.fetch(after)
            found += chunk.raws
            after = chunk.position
            if chunk.end and len(found) >= count:
                return found, after


def entries_at(fingerprints: Sequence[bytes], count: int, first: int = 0) -> list[Entry]:
    return [
        make_entry(number, fingerprint=fingerprints[number % len(fingerprints)])
        for number in range(first, first + count)
    ]


def many_addresses(count: int = 24) -> list[bytes]:
    return [ADDRESS[:8] + bytes([number]) * 24 for number in range(count)]


async def test_topics_are_made_as_configured(world: BrokerWorld, admin: AdminClient) -> None:
    async with feeding(world, "&retention=3&insync=1&topic.segment.ms=60000") as feed:
        await feed.publish([make_entry(1), make_entry(2, fingerprint=STRANGER)])
    topics = admin.list_topics(timeout=10).topics
    names = {name for name in topics if name.startswith(world.prefix)}
    assert names == {world.topic(ADDRESS), world.topic(STRANGER)}
    assert len(topics[world.topic(ADDRESS)].partitions) == 4
    resource = ConfigResource(ConfigResource.Type.TOPIC, world.topic(ADDRESS))
    (config,) = (wait.result() for wait in admin.describe_configs([resource]).values())
    assert config["retention.ms"].value == str(3 * 86_400_000)
    assert config["min.insync.replicas"].value == "1"
    assert config["segment.ms"].value == "60000"


async def test_more_copies_than_brokers_is_explained(world: BrokerWorld) -> None:
    async with feeding(world, "&replication=3") as feed:
        with pytest.raises(RoutingError, match=r"(?i)replication"):
            await feed.publish([make_entry(1)])


async def test_domains_beyond_the_limit_share_a_topic(
    world: BrokerWorld, admin: AdminClient
) -> None:
    entries = [make_entry(number, fingerprint=bytes([number]) * 32) for number in range(12)]
    async with feeding(world) as feed:
        for entry in entries:
            await feed.publish([entry])
        found, _ = await read(feed, count=12)
    assert sorted(found) == sorted(entry.raw for entry in entries)
    names = {name for name in admin.list_topics(timeout=10).topics if name.startswith(world.prefix)}
    assert len(names) == 5
    assert f"{world.prefix}.rest" in names


async def test_topics_that_appear_later_are_noticed(world: BrokerWorld) -> None:
    async with feeding(world) as here, feeding(world) as there:
        _, after = await read(there)
        await here.publish([make_entry(1)])
        found, after = await read(there, after, 1)
        await here.publish([make_entry(2, fingerprint=STRANGER)])
        more, after = await read(there, after, 1)
    assert [*found, *more] == [make_entry(1).raw, make_entry(2, fingerprint=STRANGER).raw]


async def test_what_is_trimmed_is_skipped(world: BrokerWorld, admin: AdminClient) -> None:
    entries = entries_at([ADDRESS], 10)
    async with feeding(world) as feed:
        await feed.publish(entries[:5])
        _, middle = await read(feed, count=5)
        await feed.publish(entries[5:])
        place = TopicPartition(world.topic(ADDRESS), partition_of(ADDRESS, 4), 7)
        for wait in admin.delete_records([place]).values():
            wait.result(timeout=10)
        for after in (b"", middle):
            found, _ = await read(feed, after, 3)
            assert found == [entry.raw for entry in entries[7:]]


async def test_a_topic_that_was_lost_is_another_incarnation(
    world: BrokerWorld, admin: AdminClient, tmp_path: Path
) -> None:
    old, new = entries_at([ADDRESS], 6), entries_at([ADDRESS], 9, first=100)
    async with feeding(world, folder=tmp_path) as feed:
        await feed.publish([*old, make_entry(50, fingerprint=STRANGER)])
        _, after = await read(feed, count=7)
        born = feed.incarnation
    async with feeding(world, folder=tmp_path) as feed:
        assert feed.incarnation == born
        for wait in admin.delete_topics([world.topic(ADDRESS)], operation_timeout=10).values():
            wait.result(timeout=10)
        await eventually(lambda: _lost(admin, world.topic(ADDRESS)), PATIENCE)
        with contextlib.suppress(RoutingError):  # it may notice only now
            await feed.publish(new)
        await feed.publish(new)
        # Nothing of the new topic is taken for read, and the other's offsets still hold.
        found, _ = await read(feed, after, len(new))
        assert list(dict.fromkeys(found)) == [entry.raw for entry in new]
        assert feed.incarnation != born
        lost = feed.incarnation
    async with feeding(world, folder=tmp_path) as feed:
        assert feed.incarnation == lost


def _lost(admin: AdminClient, name: str) -> bool:
    (wait,) = admin.describe_topics(TopicCollection([name])).values()
    return wait.exception(timeout=10) is not None


async def test_a_group_shares_the_partitions_out(world: BrokerWorld) -> None:
    addresses = many_addresses()
    entries = entries_at(addresses, 96)
    positions = [b"", b""]
    found: list[list[bytes]] = [[], []]

    async def step(side: int, feed: KafkaFeed) -> None:
        chunk = await feed.fetch(positions[side])
        found[side] += chunk.raws
        positions[side] = chunk.position

    async def both(feeds: Sequence[KafkaFeed], condition: object) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # type: ignore[operator] # a plain function
                await asyncio.gather(*(step(*pair) for pair in enumerate(feeds)))

    async with feeding(world, "&group=site") as left:
        await left.publish(entries[:48])
        await both([left], lambda: len(found[0]) == 48)
        async with feeding(world, "&group=site") as right:
            # Whoever joins reads its share from the beginning, for its own view.
            await both([left, right], lambda: found[1])
            await left.publish(entries[48:])
            raws = {entry.raw for entry in entries}
            await both([left, right], lambda: {*found[0], *found[1]} == raws)
            late = {entry.raw for entry in entries[48:]}
            shares = [late & {*side} for side in found]
            assert all(shares)
            assert not shares[0] & shares[1]
            assert len(shares[0]) + len(shares[1]) == 48
        # Whoever stays gets what the other had.
        await left.publish(entries_at(addresses, 48, first=200))
        more = {entry.raw for entry in entries_at(addresses, 48, first=200)}
        await both([left], lambda: more <= {*found[0]})
        assert late <= {*found[0]}


async def test_a_login_is_taken(world: BrokerWorld, broker: Broker, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("right\n")
    password.chmod(0o600)
    url = (
        f"kafka://user@127.0.0.1:{broker.ports['SASL_PLAINTEXT']}?sasl_mechanism=PLAIN"
        f"&prefix={world.prefix}&password_file={password}"
    )
    engine = open_engine(url, Context(folder=tmp_path))
    await engine.open()
    assert await engine.deposit([make_entry(1)]) == 1
    assert await engine.query(Interest(ADDRESS)) == [make_entry(1)]
    assert str(password) not in engine.url
    await engine.close()


async def test_tls_checks_both_sides(
    world: BrokerWorld, broker: Broker, tmp_path: Path, authority: trustme.CA
) -> None:
    certificate = authority.issue_cert("gateway")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "wrong.pem")
    url = f"kafka://127.0.0.1:{broker.ports['SSL']}?tls=yes&prefix={world.prefix}"
    ours = f"&cert={tmp_path}/cert.pem&cert_key={tmp_path}/key.pem"
    right = KafkaFeed(EngineUrl.parse(f"{url}{ours}&ca={broker.folder}/ca.pem"))
    await right.open()
    await right.publish([make_entry(1)])
    await right.close()
    for options in (f"{ours}&ca={tmp_path}/wrong.pem", f"&ca={broker.folder}/ca.pem"):
        wrong = KafkaFeed(EngineUrl.parse(url + options))
        with pytest.raises(RoutingError) as caught:
            await asyncio.wait_for(wrong.open(), PATIENCE)
        assert "TLS" in str(caught.value)


async def test_killed_in_mid_stream_it_loses_nothing_that_it_acknowledged(
    world: BrokerWorld, broker: Broker
) -> None:
    entries = entries_at(many_addresses(), 3000)
    acknowledged: list[bytes] = []
    followed: set[bytes] = set()

    async def publish(feed: KafkaFeed) -> None:
        for start in range(0, len(entries), 50):
            part = entries[start : start + 50]
            while True:
                with contextlib.suppress(RoutingError):
                    await feed.publish(part)
                    break
            acknowledged.extend(entry.raw for entry in part)
            await asyncio.sleep(0.01)

    async def follow(feed: KafkaFeed) -> None:
        after = b""
        while len(followed) < len(entries):
            with contextlib.suppress(RoutingError):
                chunk = await feed.fetch(after)
                followed.update(chunk.raws)
                after = chunk.position

    async with feeding(world) as here, feeding(world) as there, asyncio.timeout(2 * PATIENCE):
        following = asyncio.create_task(follow(there))
        publishing = asyncio.create_task(publish(here))
        await eventually(lambda: len(acknowledged) > 500, PATIENCE)
        broker.kill()
        assert len(acknowledged) < len(entries)
        await asyncio.to_thread(broker.start)
        await publishing
        await following
    assert followed == {*acknowledged}
    async with feeding(world) as late:
        found, _ = await read(late, count=len(entries))
    # Of each address the order is kept, too; what was said again may come twice.
    for address in many_addresses(3):
        expected = [entry.raw for entry in entries if entry.fingerprint == address]
        assert [raw for raw in dict.fromkeys(found) if raw in {*expected}] == expected
