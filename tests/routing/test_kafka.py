"""``kafka:`` on librdkafka's own cluster; :mod:`tests.routing.test_kafka_broker` has a real one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.testing import FeedConformance, MediumConformance
from tests.routing.kafka import Medium, mock_cluster

#: The cluster holds each fetch for as long as it is told, also when something comes.
QUICK = "&rdkafka.fetch.wait.max.ms=20"


@pytest.fixture(scope="module")
def servers() -> Iterator[str]:
    with mock_cluster() as found:
        yield found


class OnMock:
    @pytest.fixture(autouse=True)
    def _servers(self, servers: str) -> None:
        self.servers = servers

    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[Medium]:
        yield Medium(self.servers, folder, QUICK)


class TestKafkaFeed(OnMock, FeedConformance):
    ordered = False  # over several partitions


class TestKafka(OnMock, MediumConformance):
    order = "address"
