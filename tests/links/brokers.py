"""MQTT links for tests: settings, worlds for the conformance suite, and waiting for things."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from qis_edge.link_making import GATEWAY_WINDOW
from qis_edge.links.base import Link, Role
from qis_edge.links.mqtt import MqttLink, MqttSettings
from qis_edge.testing.links import LinkWorld, until_up
from tests.mosquitto import Mosquitto, running

SITE = "test"
NODE, GATEWAY = b"node\x00\x00\x00\x01", b"gate\x00\x00\x00\x01"

UP_TOPIC = f"qis/v1/{SITE}/up/{NODE.hex()}"
DOWN_TOPIC = f"qis/v1/{SITE}/down/{NODE.hex()}"


def settings(port: int, **others: Any) -> MqttSettings:
    """Settings for a broker on the loopback, impatient enough for tests."""
    impatient = {"retry_first": 0.05, "retry_longest": 0.2, "connect_timeout": 5.0}
    return MqttSettings(host="127.0.0.1", port=port, **(impatient | others))


def node_link(port: int, kid: bytes = NODE, **others: Any) -> MqttLink:
    return MqttLink(settings(port, **others), Role.NODE, SITE, kid, name="node")


def gateway_link(port: int, kid: bytes = GATEWAY, **others: Any) -> MqttLink:
    others = {"receive_window": GATEWAY_WINDOW, **others}
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


@asynccontextmanager
async def started(link: MqttLink, *, wait: bool = True) -> AsyncIterator[MqttLink]:
    await link.start()
    try:
        if wait:
            await until_up(link)
        yield link
    finally:
        await link.close()


async def until(condition: Any, seconds: float = 60.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.01)


async def error_of(link: MqttLink, words: str) -> str:
    """The link's error, once it has these words."""
    await until(lambda: words in (link.stats.last_error or ""))
    return link.stats.last_error or ""
