"""Worlds for the conformance suite: MQTT links on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from qis_edge.links.base import Link, Role
from qis_edge.links.mqtt import MqttLink, MqttSettings
from qis_edge.testing.links import LinkWorld
from tests.mosquitto import Mosquitto, running

SITE = "test"
NODE, GATEWAY = b"node\x00\x00\x00\x01", b"gate\x00\x00\x00\x01"


def settings(port: int, **others: Any) -> MqttSettings:
    """Settings for a broker on the loopback, impatient enough for tests."""
    impatient = {"retry_first": 0.05, "retry_longest": 0.2, "connect_timeout": 5.0}
    return MqttSettings(host="127.0.0.1", port=port, **(impatient | others))


def node_link(port: int, kid: bytes = NODE, **others: Any) -> MqttLink:
    return MqttLink(settings(port, **others), Role.NODE, SITE, kid, name="node")


def gateway_link(port: int, kid: bytes = GATEWAY, **others: Any) -> MqttLink:
    return MqttLink(settings(port, **others), Role.GATEWAY, SITE, kid, name="gateway")


class MosquittoWorld(LinkWorld):
    def __init__(self, broker: Mosquitto, protocol: str) -> None:
        self.broker = broker
        self.protocol = protocol

    def node(self, kid: bytes) -> Link:
        return node_link(self.broker.port, kid, protocol=self.protocol)

    def gateway(self, kid: bytes) -> Link:
        return gateway_link(self.broker.port, kid, protocol=self.protocol)

    async def fail(self) -> None:
        await asyncio.to_thread(self.broker.kill)

    async def heal(self) -> None:
        await asyncio.to_thread(self.broker.start)


@asynccontextmanager
async def mosquitto_world(folder: Path, protocol: str) -> AsyncIterator[LinkWorld]:
    with running(Mosquitto(folder)) as broker:
        yield MosquittoWorld(broker, protocol)
