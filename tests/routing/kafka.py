"""Kafka for tests: librdkafka's own cluster in memory, and a real broker.

The broker is the artifact ``org.apache.kafka:kafka_2.13``, which Maven fetches once into
the user's cache. ``KAFKA_URL`` names a cluster to use instead, where a test does not need
to kill it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from confluent_kafka import KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient

from gateway.routing import Context, EngineUrl, Entry, RoutingLayer, open_engine
from gateway.routing.feed import Feed
from gateway.routing.kafka import KafkaFeed
from gateway.routing.kafka_settings import Logger
from gateway.routing.kafka_topics import partition_of
from gateway.testing import FeedWorld, RoutingWorld
from gateway.testing.entries import ADDRESS
from tests.mosquitto import free_port
from tests.routing.server import Server

KAFKA_URL = os.environ.get("KAFKA_URL", "")
VERSION = "4.2.0"
POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>qis-edge</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""
#: The newest of Maven 3's time; named, so that Maven looks for no other.
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"


PARTITIONS = 4  # what librdkafka's cluster makes
#: Waits that librdkafka has between attempts, made short.
QUICK = "".join(
    f"&rdkafka.{name}.ms={milliseconds}"
    for name, milliseconds in (
        ("fetch.wait.max", 20),
        ("fetch.error.backoff", 20),
        ("retry.backoff", 20),
        ("reconnect.backoff", 20),
        ("reconnect.backoff.max", 200),
        ("topic.metadata.refresh.fast.interval", 20),
        ("heartbeat.interval", 200),
    )
)


def write(servers: str, topic: str, partition: int, raws: Sequence[bytes]) -> None:
    """As a stranger: put these into a topic."""
    producer = Producer({"bootstrap.servers": servers}, logger=Logger)
    failed: list[object] = []

    def delivered(error: object, message: Message) -> None:
        failed.extend([error] if error else [])

    for raw in raws:
        producer.produce(topic, raw, b"key", partition, on_delivery=delivered)
    assert producer.flush(10) == 0
    assert not failed


class Medium(FeedWorld, RoutingWorld):
    """Feeds and engines on a cluster, under a prefix of their own."""

    folder_each = True

    def __init__(self, servers: str, folder: Path, options: str = "") -> None:
        self.servers = servers
        self.folder = folder
        self.prefix = f"t{uuid.uuid4().hex[:8]}"
        self.options = f"&domains=4&partitions={PARTITIONS}&refresh=0.3{options}"
        self.url = f"kafka://{servers}?prefix={self.prefix}{self.options}"

    def topic(self, fingerprint: bytes) -> str:
        return f"{self.prefix}.{fingerprint[:8].hex()}"

    def feed(self) -> Feed:
        return KafkaFeed(EngineUrl.parse(self.url), Context())

    async def write(self, entry: Entry | bytes, raw: bytes | None = None) -> None:  # type: ignore[override] # of both kinds of world
        address = entry.fingerprint if isinstance(entry, Entry) else ADDRESS
        value = raw if isinstance(entry, Entry) else entry
        assert value is not None
        partition = partition_of(address, PARTITIONS)
        await asyncio.to_thread(write, self.servers, self.topic(address), partition, [value])


@contextlib.contextmanager
def mock_cluster(brokers: int = 1) -> Iterator[str]:
    """librdkafka's own cluster, which lives in a producer; its bootstrap servers."""
    owner = Producer({"test.mock.num.brokers": brokers, "log_level": 0}, logger=Logger)
    found = owner.list_topics(timeout=10).brokers.values()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in found)
    owner.flush(0)


class Producers:
    """Makes producers in advance: librdkafka gets the id of an idempotent one only half a second
    after it was made. In place of ``confluent_kafka.Producer`` in :mod:`gateway.routing.kafka`.
    """

    #: How many are ready at most.
    ready = 4

    def __init__(self) -> None:
        self._made: deque[tuple[Producer, dict[str, Any], list[Callable[..., None]]]] = deque()

    def __call__(self, config: dict[str, Any], logger: object) -> Producer:
        """One of those, if they are for the same; and another for later."""
        own = {key: value for key, value in config.items() if key not in ("error_cb", "client.id")}
        while self._made and self._made[0][1] != own:
            self._made.popleft()
        while len(self._made) <= self.ready:
            told: list[Callable[..., None]] = []
            callback = functools.partial(self._tell, told)
            producer = Producer({**own, "error_cb": callback}, logger=logger)
            self._made.append((producer, own, told))
        producer, _, told = self._made.popleft()
        told.append(config["error_cb"])
        return producer

    @staticmethod
    def _tell(told: Sequence[Callable[..., None]], error: object) -> None:
        for callback in told:
            callback(error)


# --- the real thing ----------------------------------------------------------------------


def lacking(what: str) -> NoReturn:
    """Skip. Where ``KAFKA_URL`` names a cluster, nothing is amiss."""
    pytest.skip(f"{'a broker to kill needs' if KAFKA_URL else 'needs'}: {what}, or KAFKA_URL")


def jars() -> Path:
    """The folder with the broker's jars, fetched if need be; skips where that cannot be."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "qis-edge" / f"kafka-{VERSION}"
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        lacking("Maven (sudo apt install maven)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        pom = Path(work) / "pom.xml"
        pom.write_text(POM)
        fetched = subprocess.run(
            [
                maven,
                "-q",
                "-B",
                "-f",
                pom,
                COPY,
                "-DincludeScope=runtime",
                "-DoutputDirectory=jars",
            ],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if fetched.returncode:
            lacking(f"the Kafka broker, which Maven cannot fetch: {fetched.stdout[-500:]}")
        with contextlib.suppress(FileExistsError, OSError):  # another run was as quick
            (Path(work) / "jars").rename(folder)
    return folder


class Broker(Server):
    """A broker that is its own controller.

    :param lines: more lines of its configuration.
    :param listeners: security protocols of more listeners; ``ports`` has their ports.
    """

    program = "java"
    heap = "256m"

    def __init__(
        self, folder: Path, lines: Sequence[str] = (), listeners: Sequence[str] = ()
    ) -> None:
        if shutil.which("java") is None:
            lacking("Java 17 (sudo apt install default-jre-headless)")
        self.jars = jars()
        super().__init__(folder)
        self.ports = {name: free_port() for name in ("CONTROLLER", *listeners)}
        named = {"PLAINTEXT": self.port, **self.ports}
        clients = ",".join(
            f"{name}://127.0.0.1:{port}" for name, port in named.items() if name != "CONTROLLER"
        )
        (folder / "server.properties").write_text(
            "\n".join(
                (
                    "process.roles=broker,controller",
                    "node.id=1",
                    f"controller.quorum.voters=1@127.0.0.1:{self.ports['CONTROLLER']}",
                    "controller.listener.names=CONTROLLER",
                    f"listeners={clients},CONTROLLER://127.0.0.1:{self.ports['CONTROLLER']}",
                    f"advertised.listeners={clients}",
                    "listener.security.protocol.map="
                    + ",".join(
                        f"{name}:{'PLAINTEXT' if name == 'CONTROLLER' else name}" for name in named
                    ),
                    f"log.dirs={folder / 'data'}",
                    "auto.create.topics.enable=false",
                    "offsets.topic.replication.factor=1",
                    "offsets.topic.num.partitions=1",
                    "transaction.state.log.replication.factor=1",
                    "transaction.state.log.min.isr=1",
                    # What was killed may come back at once.
                    "broker.session.timeout.ms=1500",
                    "broker.heartbeat.interval.ms=300",
                    "group.initial.rebalance.delay.ms=0",
                    "log.index.size.max.bytes=65536",
                    *lines,
                    "",
                )
            )
        )
        self._format()

    @property
    def servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _java(self, *arguments: str) -> Sequence[str]:
        quick = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
        return (f"-Xmx{self.heap}", *quick, "-cp", f"{self.jars}/*", *arguments)

    def _format(self) -> None:
        cluster = ("-t", "cWlzLWVkZ2UtdGVzdHMtMQ", "-c", "server.properties")
        subprocess.run(
            [self.path, *self._java("kafka.tools.StorageTool", "format", *cluster)],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            check=True,
            capture_output=True,
            timeout=60,
        )

    def arguments(self) -> Sequence[str]:
        return self._java("kafka.Kafka", "server.properties")

    def ready(self) -> bool:
        if not super().ready():
            return False
        try:
            client = AdminClient({"bootstrap.servers": self.servers}, logger=Logger)
            return bool(client.list_topics(timeout=2).brokers)
        except KafkaException:
            return False


class BrokerWorld(Medium):
    """A medium on a broker that can be killed, and asks for a login at another port."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        super().__init__(broker.servers, folder, f"&timeout=1.5{QUICK}")
        self.broker = broker

    async def fail(self) -> None:
        self.broker.kill()

    async def heal(self) -> None:
        await asyncio.to_thread(self.broker.start)

    def intruder(self) -> RoutingLayer:
        port = self.broker.ports["SASL_PLAINTEXT"]
        return open_engine(
            f"kafka://user:s3cret@127.0.0.1:{port}?sasl_mechanism=PLAIN", self.context("intruder")
        )
