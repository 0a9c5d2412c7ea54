"""``kafka:`` on librdkafka's own cluster; :mod:`tests.routing.test_kafka_broker` has a real one.

``KAFKA_URL`` names a cluster on which the suites run as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing import Context, EngineUrl, kafka
from gateway.routing.feed import MAX_POSITION
from gateway.routing.kafka import MARK, KafkaFeed, Place, decode, encode, mark_of
from gateway.routing.kafka_settings import Settings
from gateway.routing.kafka_topics import Memory, partition_of
from gateway.testing import (
    FeedConformance,
    MediumConformance,
    UrlConformance,
    make_entry,
)
from qis_edge import Domain
from qis_edge.core.errors import RoutingError
from tests.routing.kafka import KAFKA_URL, QUICK, Medium, Producers, mock_cluster


@pytest.fixture(scope="module")
def servers() -> Iterator[str]:
    with mock_cluster() as found:
        yield found


@pytest.fixture(scope="module")
def producers() -> Producers:
    return Producers()


class OnMock:
    @pytest.fixture(autouse=True)
    def _servers(self, servers: str, producers: Producers, monkeypatch: pytest.MonkeyPatch) -> None:
        self.servers = servers
        monkeypatch.setattr(kafka, "Producer", producers)

    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[Medium]:
        yield Medium(self.servers, folder, QUICK)


class TestKafkaFeed(OnMock, FeedConformance):
    ordered = False  # over several partitions
    many = 600


class TestKafka(OnMock, MediumConformance):
    order = "address"
    many = 600


class OnCluster:
    __test__ = bool(KAFKA_URL)

    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[Medium]:
        hosts = EngineUrl.parse(KAFKA_URL).hosts
        yield Medium(",".join(f"{host}:{port or 9092}" for host, port in hosts), folder)


class TestKafkaFeedOnCluster(OnCluster, FeedConformance):
    ordered = False


class TestKafkaOnCluster(OnCluster, MediumConformance):
    order = "address"


class TestKafkaUrl(UrlConformance):
    wrong = (
        ("kafka:", "no server is named"),
        ("kafka://a/topic", "prefix="),
        ("kafka://a?prefx=b", "prefix"),
        ("kafka://a?prefix=a%20b", "prefix"),
        ("kafka://a?partitions=0", "partitions must be"),
        ("kafka://a?partitions=100&domains=64", "too many"),
        ("kafka://a?compression=rar", "lz4"),
        ("kafka://a?replication=many", "replication must be"),
        ("kafka://a?timeout=soon", "timeout must be"),
        ("kafka://a?rdkafka.acks=1", "engine's own"),
        ("kafka://a?rdkafka.enable.idempotence=false", "engine's own"),
        ("kafka://user@a", "password"),
        ("kafka://a?password=b", "user"),
        ("kafka://a:b@c?password=d", "twice"),
        ("kafka://a?ca=x.pem", "tls=yes"),
        ("kafka://user@a?password_file=/missing", "cannot be read"),
    )
    right = "kafka://user:s3cret@a:9092,b?rdkafka.ssl.key.password=s3cret&group=site"
    modules = ("confluent_kafka",)
    command = "pip install 'qis-edge[kafka]'"
    nobody = "kafka://127.0.0.1:1?timeout=1"


# --- where things go -------------------------------------------------------------------


def fingerprints(name: str) -> list[bytes]:
    """Every address of an installed domain, up to some thousands."""
    domain = Domain.load(name)
    values = itertools.product(*(field.values for field in domain.fields))
    names = [field.name for field in domain.fields]
    return [
        domain.situation(dict(zip(names, chosen, strict=True))).fingerprint
        for chosen in itertools.islice(values, 5000)
    ]


@pytest.mark.parametrize("domain", ["weather", "air_quality", "soil_moisture"])
@pytest.mark.parametrize("partitions", [4, 6, 12])
def test_addresses_spread_evenly_over_the_partitions(domain: str, partitions: int) -> None:
    addresses = fingerprints(domain)
    assert len({address[:8] for address in addresses}) == 1
    counts = Counter(partition_of(address, partitions) for address in addresses)
    fair = len(addresses) / partitions
    assert len(counts) == partitions
    # Five deviations of what chance does; by their leading bits they are in one partition.
    assert all(abs(count - fair) < 5 * fair**0.5 for count in counts.values())
    assert len({int.from_bytes(address[:8]) % partitions for address in addresses}) == 1


def test_every_gateway_finds_the_same_partition() -> None:
    # Never to change: an address would have its packets in two places.
    assert [partition_of(bytes([n]) * 32, 6) for n in range(8)] == [3, 5, 3, 3, 2, 2, 5, 3]


# --- positions -------------------------------------------------------------------------

_NAMES = st.one_of(
    st.just("q.rest"), st.binary(min_size=8, max_size=8).map(lambda b: f"q.{b.hex()}")
)
_PLACES = st.dictionaries(
    _NAMES,
    st.tuples(
        st.binary(min_size=MARK, max_size=MARK), st.lists(st.integers(0, 2**62 - 1), max_size=12)
    ),
    max_size=5,
)


@given(_PLACES)
def test_a_position_says_every_offset(places: dict[str, tuple[bytes, list[int]]]) -> None:
    offsets = {name: Place(mark, list(found)) for name, (mark, found) in places.items()}
    again = decode(encode(offsets, "q"), "q")
    expected = {name: held for name, held in places.items() if any(held[1])}
    assert {name: (held.mark, held.offsets) for name, held in again.items()} == expected


@given(st.binary(max_size=60))
def test_what_is_no_position_is_the_beginning(raw: bytes) -> None:
    found = decode(raw, "q")
    assert encode(found, "q") == raw or not any(any(held.offsets) for held in found.values())


def test_as_many_partitions_as_are_allowed_fit_a_position() -> None:
    settings = Settings.of(EngineUrl.parse("kafka://a"), Context())
    for partitions, domains in ((settings.partitions, settings.domains), (256, 2), (1, 170)):
        Settings.of(
            EngineUrl.parse(f"kafka://a?partitions={partitions}&domains={domains}"), Context()
        )
        offsets = {
            f"qis.{number:016x}": Place(mark_of("id"), [2**32 - 1] * partitions)
            for number in range(domains + 1)
        }
        assert len(encode(offsets, "qis")) <= MAX_POSITION
        assert len(decode(encode(offsets, "qis"), "qis")) == domains + 1


def test_of_more_than_fits_some_is_read_again() -> None:
    offsets = {f"qis.{number:016x}": Place(mark_of("id"), [2**40] * 8) for number in range(200)}
    position = encode(offsets, "qis")
    assert MAX_POSITION // 2 < len(position) <= MAX_POSITION
    kept = decode(position, "qis")
    assert 0 < len(kept) < 200
    assert all(held.offsets == [2**40] * 8 for held in kept.values())


# --- what was lost ---------------------------------------------------------------------


def test_a_topic_that_is_another_changes_the_incarnation(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "memory.json")
    memory.note("cluster", {"a": "1"})
    born = memory.incarnation
    memory.note("cluster", {"a": "1", "b": "2"})  # a new one
    memory.note("cluster", {"b": "2"})  # one that nobody could tell anything about
    assert memory.incarnation == Memory(tmp_path / "memory.json").incarnation == born
    seen = {born}
    for ids in ({"a": "3"}, {"b": None}, {"a": None}):
        memory.note("cluster", ids)
        assert memory.incarnation not in seen
        seen.add(memory.incarnation)
        memory.note("cluster", ids)
        assert memory.incarnation in seen
        assert Memory(tmp_path / "memory.json").incarnation == memory.incarnation
    memory.note("another", {})
    assert memory.incarnation not in seen


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"topics": []}', json.dumps({"topics": {}}), "\0"]
)
def test_a_damaged_memory_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory.json").write_text(text)
    memory = Memory(tmp_path / "memory.json")
    assert (memory.topics, memory.incarnation) == ({}, "")
    memory.note("cluster", {"a": "1"})
    assert Memory(tmp_path / "memory.json").topics == {"a": "1"}


# --- clear words -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "words"), [("no-such-host.invalid", "no such host"), ("127.0.0.1:1", "not reached")]
)
async def test_why_it_cannot_be_opened_is_said_within_seconds(host: str, words: str) -> None:
    feed = KafkaFeed(EngineUrl.parse(f"kafka://{host}"))
    for _ in range(2):
        with pytest.raises(RoutingError, match=words):
            await asyncio.wait_for(feed.open(), 10)
    await feed.close()


async def test_a_server_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        feed = KafkaFeed(EngineUrl.parse(f"kafka://127.0.0.1:{server.getsockname()[1]}?timeout=1"))
        with pytest.raises(RoutingError, match="no answer"):
            await asyncio.wait_for(feed.open(), 10)


async def test_a_setting_that_librdkafka_does_not_know_is_said() -> None:
    feed = KafkaFeed(EngineUrl.parse("kafka://127.0.0.1:1?rdkafka.bogus=s3cret"))
    with pytest.raises(RoutingError, match="bogus") as caught:
        await feed.open()
    assert "property" in str(caught.value)


def test_settings_are_handed_on_and_secrets_are_not_shown(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    url = EngineUrl.parse(
        "kafka://me:s3cret@[::1],b:1?tls=yes&ca=ca.pem&cert=c.pem&cert_key=k.pem"
        "&cert_key_password=s3cret&sasl_mechanism=PLAIN&rdkafka.socket.keepalive.enable=true"
        f"&rdkafka.sasl.oauthbearer.client.secret_file={secret}"
    )
    settings = Settings.of(url, Context(name="roof"))
    assert "s3cret" not in repr(settings)
    config = settings.producer()
    assert config["bootstrap.servers"] == "[::1]:9092,b:1"
    assert config["security.protocol"] == "sasl_ssl"
    assert config["sasl.mechanism"] == "PLAIN"
    assert (config["sasl.username"], config["sasl.password"]) == ("me", "s3cret")
    assert config["ssl.ca.location"] == "ca.pem"
    assert config["ssl.certificate.location"] == "c.pem"
    assert config["ssl.key.location"] == "k.pem"
    assert config["ssl.key.password"] == "s3cret"
    assert config["socket.keepalive.enable"] == "true"
    assert config["sasl.oauthbearer.client.secret"] == "s3cret"
    assert (config["acks"], config["enable.idempotence"]) == ("all", True)
    assert config["compression.type"] == "lz4"
    assert settings.consumer()["group.id"] == "qis.roof"
    scram = Settings.of(EngineUrl.parse("kafka://a:b@c"), Context()).consumer()
    assert scram["security.protocol"] == "sasl_plaintext"
    assert scram["sasl.mechanism"] == "SCRAM-SHA-512"


# --- on its threads --------------------------------------------------------------------


async def test_a_fetch_that_is_cancelled_does_not_hold_up_closing(servers: str) -> None:
    feed = KafkaFeed(EngineUrl.parse(f"kafka://{servers}?prefix=cancelled"))
    await feed.open()
    waiting = asyncio.create_task(feed.fetch(b""))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.wait_for(feed.close(), 2)
    with pytest.raises(RoutingError, match="not open"):
        await feed.publish([make_entry(1)])
