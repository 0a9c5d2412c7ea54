"""``kafka:`` beside confluent-kafka: a topic for each domain on a broker with one node."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from gateway.routing import Entry
from gateway.routing.kafka_settings import Logger
from gateway.routing.kafka_topics import partition_of
from tests.bench.engines.base import RawSqlite, Site
from tests.routing.kafka import Broker

PARTITIONS = 4
DOMAINS = (b"\1" * 8, b"\2" * 8)


class RawKafka:
    """Idempotent, acknowledged by all, compressed, as the engine; it waits where it stands, and
    asks of each record whether it was taken: what was not, ``flush`` does not tell."""

    def __init__(self, servers: str, view: RawSqlite) -> None:
        self._servers: dict[str, str | int | float | bool] = {"bootstrap.servers": servers}
        self._topics = [f"raw.{domain.hex()}" for domain in DOMAINS]
        admin = AdminClient(self._servers, logger=Logger)
        made = admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in self._topics])
        for one in made.values():
            one.result(10)
        settings = {"enable.idempotence": True, "acks": "all", "compression.type": "lz4"}
        settings |= {"linger.ms": 2, "delivery.report.only.error": True}
        self._producer = Producer({**self._servers, **settings}, logger=Logger)
        self.view = view

    async def deposit(self, entries: Sequence[Entry]) -> None:
        failed: list[object] = []

        def delivered(error: object, _message: Message) -> None:
            if error is not None:
                failed.append(error)

        for entry in entries:
            self._producer.produce(
                f"raw.{entry.fingerprint[:8].hex()}",
                entry.raw,
                entry.fingerprint,
                partition_of(entry.fingerprint, PARTITIONS),
                on_delivery=delivered,
            )
        assert self._producer.flush(10) == 0
        assert not failed

    async def query(self, fingerprint: bytes, limit: int) -> int:
        return await self.view.query(fingerprint, limit)

    async def replay(self) -> int:
        settings = {"group.id": "raw", "enable.auto.commit": False, "enable.partition.eof": True}
        consumer = Consumer({**self._servers, **settings}, logger=Logger)
        places = [TopicPartition(t, p, 0) for t in self._topics for p in range(PARTITIONS)]
        consumer.assign(places)
        count, ended = 0, 0
        while ended < len(places):
            for message in consumer.consume(1000, 0.05):
                if message.error():
                    ended += 1
                else:
                    assert message.value()
                    count += 1
        consumer.close()
        return count


@contextlib.asynccontextmanager
async def kafka(folder: Path) -> AsyncIterator[Site]:
    view = RawSqlite(folder / "raw.db")
    with contextlib.ExitStack() as stack:
        stack.callback(view.close)
        servers = os.environ.get("KAFKA_URL", "").removeprefix("kafka://")
        if not servers:
            (folder / "server").mkdir()
            broker = Broker(folder / "server")
            await asyncio.to_thread(broker.start)
            stack.callback(broker.kill)
            servers = broker.servers
        raw = RawKafka(servers, view)
        yield Site(f"kafka://{servers}?partitions={PARTITIONS}", raw)
