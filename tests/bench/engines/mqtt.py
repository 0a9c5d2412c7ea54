"""``mqtt:`` beside paho: a retained message for each packet, at QoS 1, on Mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from gateway.routing import Entry
from tests.bench.engines.base import RawSqlite, Site
from tests.mosquitto import Mosquitto

LINES = (
    "allow_anonymous true",
    "max_queued_messages 0",
    "max_inflight_messages 0",
    "autosave_interval 0",
)


class RawMqtt:
    """Publishes at once and waits for all acknowledgements. Its queries are SQLite's."""

    def __init__(self, port: int, view: RawSqlite) -> None:
        self._port = port
        self._client = self._connected()
        self._count = 0
        self.view = view

    def _connected(self) -> Client:
        made = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        made.max_inflight_messages_set(0)
        made.connect("127.0.0.1", self._port)
        made.loop_start()
        return made

    async def deposit(self, entries: Sequence[Entry]) -> None:
        waits = [
            self._client.publish(
                f"raw/{e.fingerprint[:8].hex()}/{e.fingerprint.hex()}/{e.id.hex()}",
                e.raw,
                qos=1,
                retain=True,
            )
            for e in entries
        ]
        for wait in waits:
            wait.wait_for_publish(10)
        self._count += len(entries)

    async def query(self, fingerprint: bytes, limit: int) -> int:
        return await self.view.query(fingerprint, limit)

    async def replay(self) -> int:
        found: list[bytes] = []
        done = threading.Event()

        def heard(_client: Client, _data: Any, message: Any) -> None:
            found.append(message.payload)
            if len(found) == self._count:
                done.set()

        reader = self._connected()
        reader.on_message = heard
        reader.subscribe("raw/#", qos=1)
        await asyncio.to_thread(done.wait, 60)
        reader.disconnect()
        reader.loop_stop()
        return len(found)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextlib.asynccontextmanager
async def mqtt(folder: Path) -> AsyncIterator[Site]:
    broker = Mosquitto(folder / "broker", LINES, persistent=True)
    view = RawSqlite(folder / "raw.db")
    broker.start()
    raw = RawMqtt(broker.port, view)
    try:
        yield Site(broker.url, raw)
    finally:
        raw.close()
        view.close()
        broker.kill()
