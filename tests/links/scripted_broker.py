"""A broker that does as it is told: what Mosquitto would never do, and what it saw."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self


def packet(kind: int, body: bytes) -> bytes:
    """An MQTT packet: first byte, length, body."""
    head = bytearray([kind])
    length = len(body)
    while True:
        length, low = divmod(length, 128)
        head.append(low | (0x80 if length else 0))
        if not length:
            return bytes(head) + body


def text(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


@dataclass
class Connect:
    level: int
    clean: bool
    client_id: str


@dataclass
class Publish:
    topic: str
    payload: bytes
    wire: int
    retain: bool


@dataclass
class ScriptedBroker:
    """Behaviour in, observations out.

    :param level: the newest protocol level it knows: 5, or 4 for 3.1.1.
    :param to_newer: ``refuse`` (CONNACK 1), ``hang up`` or ``keep silent`` to newer ones.
    :param connack: reason code of the CONNACK.
    :param properties: properties of the CONNACK (level 5), encoded.
    :param suback: topic filter → code.
    :param puback: topic → reason code, or ``None`` for never.
    :param backlog: raw bytes after each CONNACK, before anything else.
    """

    level: int = 5
    to_newer: str = "refuse"
    connack: int = 0
    properties: bytes = b""
    session_present: bool = False
    suback: Callable[[str], int] = lambda _: 1
    puback: Callable[[str], int | None] = lambda _: 0
    backlog: bytes = b""
    pings: bool = True
    unsuback: bool = True

    connects: list[Connect] = field(default_factory=list)
    publishes: list[Publish] = field(default_factory=list)
    subscribed: list[str] = field(default_factory=list)
    acked: list[int] = field(default_factory=list)
    disconnected: int = 0
    port: int = 0

    async def __aenter__(self) -> Self:
        self._clients: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for client in list(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def say(self, raw: bytes) -> None:
        """Send these bytes to whoever came last."""
        self._writers[-1].write(raw)

    def publish(self, topic: str, payload: bytes, mid: int, *, retain: bool = False) -> bytes:
        """A PUBLISH packet with QoS 1 (QoS 0 if ``mid`` is 0), in the level spoken last."""
        kind = 0x30 | (0x02 if mid else 0) | (0x01 if retain else 0)
        number = mid.to_bytes(2, "big") if mid else b""
        middle = b"\x00" if self.connects[-1].level == 5 else b""
        return packet(kind, text(topic) + number + middle + payload)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        self._writers.append(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        kind = (await reader.readexactly(1))[0]
        length = shift = 0
        size = 1
        while True:
            byte = (await reader.readexactly(1))[0]
            size += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        body = await reader.readexactly(length)
        return await self._packet(kind, body, size + length, writer)

    async def _packet(
        self, kind: int, body: bytes, wire: int, writer: asyncio.StreamWriter
    ) -> bool:
        if kind == 0x10:
            return await self._greeting(body, writer)
        five = self.connects[-1].level == 5
        if kind & 0xF0 == 0x30:
            end = 2 + int.from_bytes(body[:2], "big")
            topic, mid = body[2:end].decode(), body[end : end + 2]
            payload = body[end + 2 + (1 if five else 0) :]
            self.publishes.append(Publish(topic, payload, wire, bool(kind & 1)))
            code = self.puback(topic)
            if code is not None:
                writer.write(packet(0x40, mid + (bytes([code, 0]) if five else b"")))
        elif kind == 0x40:
            self.acked.append(int.from_bytes(body[:2], "big"))
        elif kind & 0xF0 == 0x80:
            self._subscribe(body, five, writer)
        elif kind & 0xF0 == 0xA0 and self.unsuback:
            writer.write(packet(0xB0, body[:2] + (b"\x00\x00" if five else b"")))
        elif kind == 0xC0 and self.pings:
            writer.write(packet(0xD0, b""))
        elif kind == 0xE0:
            self.disconnected += 1
            return False
        return True

    async def _greeting(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        level, flags = body[6], body[7]
        rest = body[10:]
        if level == 5:
            rest = rest[1 + rest[0] :]
        name = rest[2 : 2 + int.from_bytes(rest[:2], "big")].decode()
        self.connects.append(Connect(level, bool(flags & 2), name))
        if level > self.level:
            if self.to_newer == "refuse":
                writer.write(b"\x20\x02\x00\x01")
            elif self.to_newer == "keep silent":
                await asyncio.sleep(3600)
            return False
        extra = bytes([len(self.properties)]) + self.properties if level == 5 else b""
        writer.write(packet(0x20, bytes([self.session_present, self.connack]) + extra))
        writer.write(self.backlog)
        return self.connack == 0

    def _subscribe(self, body: bytes, five: bool, writer: asyncio.StreamWriter) -> None:
        mid, rest = body[:2], body[3 if five else 2 :]
        codes = bytearray()
        while rest:
            end = 2 + int.from_bytes(rest[:2], "big")
            name = rest[2:end].decode()
            self.subscribed.append(name)
            codes.append(self.suback(name))
            rest = rest[end + 1 :]
        writer.write(packet(0x90, mid + (b"\x00" if five else b"") + codes))
