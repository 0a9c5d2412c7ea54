"""``mqtt://HOST/PREFIX``: a broker's retained messages, one for each packet.

A packet lies under ``PREFIX/SHARD/DOMAIN/ADDRESS/ID``, retained, with the time after which
the broker forgets it. Who connects is sent what is retained, then what comes: this is a
notifier with a short memory, joined with a view. A broker has no positions: after each
connection everything is read again, and the view knows what it has. What was published on a
connection does not come back on it.

The shard, two digits of the packet's id, is there because brokers drop what is retained
beyond the queue of a subscriber (1,000 messages in Mosquitto): shards are asked for one
after the other, each followed by a message to ourselves that says when it is all there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.routing.access import flag_of, hosts_of, number_of, password_of
from gateway.routing.base import Context, Entry
from gateway.routing.feed import CHUNK_PACKETS, WAIT, Chunk, Position
from gateway.routing.url import EngineUrl
from gateway.routing.view import ViewEngine
from qis_edge.core.errors import LinkError, RoutingError, UsageError
from qis_edge.links.mqtt_dial import dial_aside
from qis_edge.links.mqtt_settings import MqttSettings

log = logging.getLogger(__name__)

EXAMPLE = "mqtt://user@broker.example/qis/routing?password_file=broker.password"
PREFIX = "qis/routing"
#: Parts that what is retained is asked for in.
SHARDS = 64
#: Packets that are brought into their order; where more are retained, part by part.
MAX_SORTED = 50_000
#: Packets that wait for the view; with more, the connection is ended and begun anew.
MAX_WAITING = 4 * MAX_SORTED
#: Bytes of the largest message: a packet, its topic and its properties have less than 800.
LARGEST = 2048
#: Messages on their way, or as many as the broker says.
WINDOW = 1000
#: Seconds that the broker has for each answer, and between signs of life.
PATIENCE = 8.0
KEEPALIVE = 15
#: Seconds after which everything retained is read again: brokers drop without a word.
REREAD = 3600

_PREFIX = re.compile(r"[^+#$\0/]+(/[^+#\0/]+)*")
_OPTIONS = {"password", "ca", "cert", "cert_key", "insecure", "keep", "reread"}
_LOGIN = (0x86, 0x87)  # bad user name or password; not authorised
_FAILURE = 0x80


class _Message(NamedTuple):
    """Orders as it was published."""

    at: bytes
    number: int
    raw: bytes


class _Stamp(Properties):
    """Of a message, as it travels: paho's own takes ten times as long.

    :param at: when it was published, 8 bytes.
    :param left: seconds after which the broker forgets it; ``None``: never.
    """

    _packed: bytes

    def __init__(self, at: bytes, left: int | None) -> None:
        packed = b"\x09\x00\x08" + at
        if left is not None:
            packed += b"\x02" + left.to_bytes(4)
        object.__setattr__(self, "_packed", bytes((len(packed),)) + packed)

    def pack(self) -> bytes:
        """See paho."""
        return self._packed


class _Sending:
    """Messages under way."""

    def __init__(self) -> None:
        self.left = 0
        #: With as many left, who waits is woken.
        self.goal = 0
        self.woken = asyncio.Event()
        self.refused: ReasonCode | None = None


class _Client(paho.Client):
    """paho's client on a socket that is connected already."""

    def __init__(self, sock: socket.socket, **options: Any) -> None:
        self._given = sock
        super().__init__(CallbackAPIVersion.VERSION2, **options)

    def _create_socket(self) -> socket.socket:
        return self._given


class _Link:
    """One connection, from the connected socket to its end. paho reads and writes on a
    thread of its own; what it says comes to the event loop.

    :param arrived: called there with (topic, properties, payload).
    :param born: called there with the incarnation, whenever somebody says it.
    """

    def __init__(
        self,
        url: str,
        settings: MqttSettings,
        client_id: str,
        prefix: str,
        arrived: Callable[[str, Any, bytes], None],
        born: Callable[[str], None],
    ) -> None:
        self._url = url
        self._settings = settings
        self._id = client_id
        self._prefix = prefix
        self._arrived = arrived
        self._born = born
        self._loop = asyncio.get_running_loop()
        self._client: _Client | None = None
        self._sock: socket.socket | None = None
        self._accepted: asyncio.Future[ReasonCode] = self._loop.create_future()
        self._acked: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._sending: dict[int, _Sending] = {}
        self._answered: deque[tuple[int, ReasonCode]] = deque()
        self._marks: dict[bytes, asyncio.Event] = {}
        self._inbox: deque[tuple[str, Any, bytes]] = deque()
        self.ended = asyncio.Event()
        self.incarnation = ""
        self._window = WINDOW
        self._why = "the connection ended"

    # --- from the feed -----------------------------------------------------------------

    async def open(self) -> None:
        """Connect, and learn which broker this is.

        :raises RoutingError: it is away, or does not want us.
        """
        try:
            sock = await dial_aside(self._settings)
        except LinkError as error:
            raise RoutingError(f"{self._url}: {error}", hint=error.hint) from error
        self._sock = sock
        self._client = client = _Client(
            sock,
            client_id=self._id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        settings = self._settings
        if settings.user is not None:
            client.username_pw_set(settings.user, settings.password)
        client.max_inflight_messages_set(0)  # the window is ours to keep
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        wishes = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho's
        wishes.MaximumPacketSize = LARGEST
        client.connect(settings.host, settings.port, KEEPALIVE, clean_start=True, properties=wishes)
        client.loop_start()
        reason = await self._within(self._accepted)
        if reason.value >= _FAILURE:
            hint = "check user and password" if reason.value in _LOGIN else "it must speak MQTT 5"
            what = "refuses the login" if reason.value in _LOGIN else "refuses us"
            raise RoutingError(f"{self._url}: the broker {what}: {reason}", hint=hint)
        await self._learn()

    async def _learn(self) -> None:
        """Its incarnation: drawn by whoever comes first, and gone with what is retained."""
        await self.read(f"{self._prefix}/born", f"{self._prefix}/-/{self._id}", own=True)
        if not self.incarnation:
            drawn = os.urandom(8).hex()
            await self.publish([(f"{self._prefix}/born", drawn.encode(), None, True)])
            await self.mark()
        if not self.incarnation:
            raise RoutingError(
                f"{self._url}: the broker does not send what it was given",
                hint=f"check its access list: read and write on {self._prefix}/#",
            )

    async def read(self, *filters: str, own: bool = False) -> None:
        """Subscribe, and wait until what is retained there has arrived.

        :param own: also to what is published on this connection.
        """
        wish = SubscribeOptions(qos=1, noLocal=not own)
        _, mid = self._ready().subscribe([(name, wish) for name in filters])
        for code in await self._answer(mid):
            if code.value >= _FAILURE:
                raise RoutingError(
                    f"{self._url}: the broker does not let us subscribe: {code}",
                    hint=f"check its access list: read on {self._prefix}/#",
                )
        await self.mark()

    async def mark(self) -> None:
        """Everything that the broker has for us so far is here."""
        name = os.urandom(6).hex().encode()
        there = self._marks[name] = asyncio.Event()
        try:
            await self.publish([(f"{self._prefix}/-/{self._id}", name, None, False)])
            await self._within(there.wait())
        finally:
            del self._marks[name]

    async def publish(self, messages: Sequence[tuple[str, bytes, Properties | None, bool]]) -> None:
        """Topic, payload, properties, retained; until the broker has acknowledged all."""
        client = self._ready()
        sending = _Sending()
        mids = []
        try:
            for topic, payload, properties, retain in messages:
                if sending.left >= self._window:
                    await self._until(sending, self._window // 2)
                info = client.publish(topic, payload, qos=1, retain=retain, properties=properties)
                self._sending[info.mid] = sending
                mids.append(info.mid)
                sending.left += 1
            await self._until(sending, 0)
        finally:
            for mid in mids if sending.left else ():
                self._sending.pop(mid, None)

    async def _until(self, sending: _Sending, goal: int) -> None:
        """No more than that many of these are left."""
        sending.goal = goal
        while sending.left > goal:
            before = sending.left
            sending.woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await sending.woken.wait()
            if sending.refused is not None:
                raise RoutingError(
                    f"{self._url}: the broker does not take it: {sending.refused}",
                    hint=f"check its access list: write on {self._prefix}/#",
                )
            if sending.left == before:
                self.end(f"the broker does not answer for {PATIENCE:g} s")
            if sending.left and self.ended.is_set():
                raise RoutingError(f"{self._url}: {self._why}")

    async def close(self) -> None:
        """Say goodbye. Idempotent."""
        self.end("closed")
        client, self._client = self._client, None
        sock, self._sock = self._sock, None
        try:
            if client is not None:
                client.disconnect()
                await asyncio.to_thread(client.loop_stop)
        finally:  # paho's thread may have ended without
            if sock is not None:
                sock.close()

    def _ready(self) -> _Client:
        if self._client is None or self.ended.is_set():
            raise RoutingError(f"{self._url}: {self._why}")
        return self._client

    async def _answer(self, mid: int | None) -> list[ReasonCode]:
        if mid is None:
            raise RoutingError(f"{self._url}: {self._why}")
        future = self._acked[mid] = self._loop.create_future()
        try:
            found: list[ReasonCode] = await self._within(future)
            return found
        finally:
            self._acked.pop(mid, None)

    async def _within(self, answer: Any) -> Any:
        """An answer, unless the connection ends or the broker says nothing for too long."""
        waiting = asyncio.ensure_future(answer)
        ended = asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait(
                {waiting, ended}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED
            )
            if waiting.done():
                return waiting.result()
            if not ended.done():
                self.end(f"the broker does not answer for {PATIENCE:g} s")
            raise RoutingError(f"{self._url}: {self._why}")
        finally:
            ended.cancel()
            waiting.cancel()

    def end(self, why: str) -> None:
        """It is over."""
        if not self.ended.is_set():
            self._why = why
            self.ended.set()
            for sending in self._sending.values():
                sending.woken.set()

    # --- from paho's thread ------------------------------------------------------------

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(what, *arguments)

    def _on_connect(self, _: Any, __: Any, ___: Any, reason: ReasonCode, properties: Any) -> None:
        self._window = min(getattr(properties, "ReceiveMaximum", WINDOW), WINDOW)
        self._tell(self._settle, self._accepted, reason)

    def _on_disconnect(self, _: Any, __: Any, ___: Any, reason: ReasonCode, ____: Any) -> None:
        self._tell(self.end, f"the connection ended: {reason}")

    def _on_subscribe(self, _: Any, __: Any, mid: int, codes: list[ReasonCode], ___: Any) -> None:
        self._tell(self._acknowledged, mid, codes)

    def _on_publish(self, _: Any, __: Any, mid: int, code: ReasonCode, ___: Any) -> None:
        self._answered.append((mid, code))
        if len(self._answered) == 1:
            self._tell(self._count)

    def _on_message(self, _: Any, __: Any, message: paho.MQTTMessage) -> None:
        with contextlib.suppress(UnicodeDecodeError):
            self._inbox.append((message.topic, message.properties, bytes(message.payload)))
            if len(self._inbox) == 1:
                self._tell(self._empty)

    # --- on the event loop -------------------------------------------------------------

    def _acknowledged(self, mid: int, codes: list[ReasonCode]) -> None:
        # Answers come through the loop, so after whoever waits has noted the number.
        if (future := self._acked.get(mid)) is not None:
            self._settle(future, codes)

    def _count(self) -> None:
        while self._answered:
            mid, code = self._answered.popleft()
            sending = self._sending.pop(mid, None)
            if sending is None:
                continue
            sending.left -= 1
            if code.value >= _FAILURE:
                sending.refused = code
            if sending.left <= sending.goal or sending.refused is not None:
                sending.woken.set()

    @staticmethod
    def _settle(future: asyncio.Future[Any], result: object) -> None:
        if not future.done():
            future.set_result(result)

    def _empty(self) -> None:
        while self._inbox:
            topic, properties, payload = self._inbox.popleft()
            name = topic.removeprefix(f"{self._prefix}/")
            if name == "born":
                self.incarnation = payload[:64].decode("ascii", "replace")
                self._born(self.incarnation)
            elif name.startswith("-/"):
                if mark := self._marks.get(payload):
                    mark.set()
            else:
                self._arrived(topic, properties, payload)


class MqttFeed:
    """See :class:`gateway.routing.feed.Feed`. Positions are of one connection: any other is
    the beginning of what is retained.

    Options: ``password``, ``ca``, ``cert``, ``cert_key``, ``insecure`` (a password may travel
    in the clear), ``keep`` (nothing is forgotten), ``reread`` (seconds).
    """

    def __init__(self, url: EngineUrl, context: Context) -> None:
        """:raises RoutingError: the URL is wrong."""
        url.only(_OPTIONS)
        self.url = str(url)
        self._settings = _settings(url)
        self._prefix = url.path.strip("/") or PREFIX
        if not _PREFIX.fullmatch(self._prefix):
            raise RoutingError(f"{url}: the path must be a topic without wildcards", hint=EXAMPLE)
        self._name = context.name
        self._keep = flag_of(url, "keep")
        self._reread = number_of(url, "reread", REREAD, 0, 30 * 86400)
        self._opened = False
        self._link: _Link | None = None
        self._reading: _Link | None = None  # the one that is being read
        self._connecting = asyncio.Lock()
        self._incarnation = ""
        self._last = 0
        self._forget()

    def _forget(self) -> None:
        self._reading = None
        self._token = os.urandom(4)
        self._given: tuple[Position, Chunk] | None = None
        self._unsorted: list[_Message] = []
        self._queue: deque[bytes] = deque()
        self._number = 0
        self._count = 0
        self._read_until = 0
        self._began = 0.0
        self._news = asyncio.Event()

    @property
    def incarnation(self) -> str:
        """See :class:`gateway.routing.feed.Feed`."""
        return self._incarnation

    async def open(self) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        await self._connected()
        self._opened = True

    async def close(self) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        self._opened = False
        link, self._link = self._link, None
        if link is not None:
            await link.close()
        self._forget()

    def _ready(self) -> None:
        if not self._opened:
            raise RoutingError(f"{self.url}: not open")

    async def _connected(self) -> _Link:
        async with self._connecting:
            if self._link is not None and self._link.ended.is_set():
                old, self._link = self._link, None
                await old.close()
            if self._link is None:
                name = f"qis-{self._name}-{os.urandom(4).hex()}"
                link = _Link(
                    self.url, self._settings, name, self._prefix, self._arrived, self._is_born
                )
                try:
                    await link.open()
                except BaseException:
                    await link.close()
                    raise
                self._link = link
            return self._link

    def _is_born(self, incarnation: str) -> None:
        self._incarnation = incarnation

    # --- writing -----------------------------------------------------------------------

    async def publish(self, entries: Sequence[Entry]) -> None:
        """See :class:`gateway.routing.feed.Feed`. The broker has acknowledged all of them."""
        self._ready()
        link = await self._connected()
        now = time.time()
        await link.publish([self._message(entry, now) for entry in entries])

    def _message(self, entry: Entry, now: float) -> tuple[str, bytes, Properties, bool]:
        self._last = max(self._last + 1, int(now * 1e6))
        left = None
        if not self._keep:
            left = min(max(entry.expires - int(now), 1), 2**32 - 1)
        stamp = _Stamp(self._last.to_bytes(8), left)
        return topic_of(self._prefix, entry), entry.raw, stamp, True

    # --- reading -----------------------------------------------------------------------

    async def fetch(self, after: Position) -> Chunk:
        """See :class:`gateway.routing.feed.Feed`."""
        self._ready()
        if self._given is not None and after == self._given[0]:
            return self._given[1]
        link = await self._connected()
        if link is not self._reading or after != self._position() or self._is_old():
            self._begin(link)
        if not self._queue:
            if self._read_until < SHARDS:
                await self._read_on(link)
            elif not self._unsorted:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WAIT):
                        await self._news.wait()
            self._put_in_order()
            self._news.clear()
        raws = [self._queue.popleft() for _ in range(min(len(self._queue), CHUNK_PACKETS))]
        self._count += len(raws)
        end = not self._queue and not self._unsorted and self._read_until >= SHARDS
        chunk = Chunk(tuple(raws), self._position(), end)
        self._given = (after, chunk) if raws else None
        return chunk

    def _position(self) -> Position:
        return self._token + self._count.to_bytes(8)

    def _is_old(self) -> bool:
        read = self._read_until >= SHARDS and not self._queue and not self._unsorted
        return read and 0 < self._reread < time.monotonic() - self._began

    def _begin(self, link: _Link) -> None:
        """Everything again: who subscribes is sent what is retained, each time."""
        self._forget()
        self._reading = link
        self._began = time.monotonic()

    async def _read_on(self, link: _Link) -> None:
        """What is retained, part by part, until it is all there or enough."""
        while self._read_until < SHARDS and len(self._unsorted) < MAX_SORTED:
            await link.read(f"{self._prefix}/{self._read_until:02x}/+/+/+")
            self._read_until += 1

    def _put_in_order(self) -> None:
        """As it was published, as far as the publishers' clocks agree."""
        self._unsorted.sort()
        self._queue.extend(message.raw for message in self._unsorted)
        self._unsorted.clear()

    def _arrived(self, _: str, properties: Any, payload: bytes) -> None:
        if len(self._unsorted) >= MAX_WAITING:
            if self._link is not None:
                self._link.end("more comes than can be taken")
            return
        at = getattr(properties, "CorrelationData", b"")
        self._number += 1
        self._unsorted.append(_Message(at if len(at) == 8 else b"", self._number, payload))
        self._news.set()

    async def size(self) -> int | None:
        """See :class:`gateway.routing.feed.Feed`. Brokers do not say."""
        self._ready()
        return None


class MqttEngine(ViewEngine):
    """``mqtt:`` – an :class:`MqttFeed` and its view."""

    def __init__(self, url: EngineUrl, context: Context) -> None:
        super().__init__(MqttFeed(url, context), context)


def topic_of(prefix: str, entry: Entry) -> str:
    """Where a packet lies."""
    address = entry.fingerprint.hex()
    return f"{prefix}/{entry.id[0] % SHARDS:02x}/{address[:16]}/{address}/{entry.id.hex()}"


def _settings(url: EngineUrl) -> MqttSettings:
    ((host, port), *others) = hosts_of(url, 0, EXAMPLE)
    if others:
        raise RoutingError(f"{url}: it takes one broker", hint=EXAMPLE)
    try:
        return MqttSettings(
            host=host,
            port=port,
            tls=url.scheme == "mqtts",
            user=url.user,
            password=password_of(url),
            insecure=flag_of(url, "insecure"),
            connect_timeout=PATIENCE,
            ca=_path(url, "ca"),
            cert=_path(url, "cert"),
            key=_path(url, "cert_key"),
        )
    except UsageError as error:
        raise RoutingError(f"{url}: {error}", hint=error.hint or EXAMPLE) from error


def _path(url: EngineUrl, name: str) -> Path | None:
    value = url.options.get(name)
    return Path(value) if value else None
