"""One connection to an MQTT broker: paho-mqtt, driven by the event loop.

The only module that loads paho. What it is for, and what it promises, is in
:mod:`qis_edge.links.mqtt`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from qis_edge.core.errors import LinkError
from qis_edge.links.base import MAX_FRAME, LinkStats, Role
from qis_edge.links.mqtt_dial import (
    WANTS_CERTIFICATE,
    BufferedSocket,
    OversizedError,
    explain_tls,
)
from qis_edge.links.mqtt_settings import MqttSettings
from qis_edge.links.mqtt_topics import Topics

_T = TypeVar("_T")
_QOS = 1
_ONLINE, _OFFLINE = b"online", b"offline"

#: Seconds for which a broker that sends too much is held back.
_PATIENCE = 5.0
#: Packets read in one go before the loop's other tasks have their turn.
_TURN = 128
#: Bytes of the largest packet that a broker may send us. A frame with its topic has less
#: than 700; MQTT allows 256 MiB, and whoever may publish could fill our memory.
_LARGEST = 4096
#: Topic filters in one SUBSCRIBE.
_FILTERS = 50

# Reason codes of MQTT 5 that mean something to us; paho maps those of 3.1.1 onto them.
_NO_SUBSCRIBERS = 0x10
_FAILURE = 0x80
_BAD_PROTOCOL = 0x84
_BAD_CLIENT_ID = 0x85
_BAD_LOGIN = 0x86
_NOT_AUTHORISED = 0x87
_TAKEN_OVER = 0x8E

_CHECK_ACL = "check the broker's ACL"
_WANTS_TLS = "does it want TLS (mqtts://) on this port?"
_HINTS = {
    _BAD_CLIENT_ID: "the broker wants client ids of its own kind",
    _BAD_LOGIN: "check user and password (or password_file)",
    _NOT_AUTHORISED: "check user and password, and the broker's ACL",
    _TAKEN_OVER: "is a second daemon running with the same key?",
}


class Owner(Protocol):
    """What a connection needs of the link that it belongs to."""

    name: str
    settings: MqttSettings
    role: Role
    kid: bytes
    topics: Topics
    stats: LinkStats

    def cost(self, size: int) -> float:
        """Bytes of a PUBLISH packet."""

    def needed(self) -> str:
        """The topic filter without which the link is of no use."""

    def listening(self) -> frozenset[str]:
        """The other topic filters."""

    def accepted(self, *, resumed: bool) -> None:
        """A session begins; the broker kept the last one or did not."""

    def lost(self, connection: Connection, error: LinkError) -> None:
        """This connection has just ended, or never came about."""

    def poisoned(self) -> None:
        """The broker holds something for us that we cannot take: ask it to forget."""

    def room_changed(self) -> None:
        """The broker acknowledged something."""

    def changed(self) -> Coroutine[Any, Any, None]:
        """Wait for the next :meth:`room_changed`."""

    def take(self, topic: str | None, payload: bytes, token: Token | None) -> bool:
        """A frame came in: False if it is of no use or there is no place for it."""

    def complain(self, text: str) -> None:
        """Something is wrong that does not end the connection: say it once."""

    def count(self, what: str) -> None:
        """One more of ``what``."""


@dataclass(slots=True, eq=False)
class Token:
    """One frame that came in on one connection, until it is done with."""

    connection: Connection
    mid: int
    done: bool = False


class OldProtocolError(LinkError):
    """The broker seems not to speak MQTT 5. ``sure`` if it said so itself."""

    def __init__(self, message: str, *, sure: bool) -> None:
        super().__init__(message)
        self.sure = sure


class _Client(paho.Client):
    """paho's client on a socket that is connected already."""

    def __init__(self, sock: BufferedSocket, **options: Any) -> None:
        self._given = sock
        super().__init__(CallbackAPIVersion.VERSION2, **options)

    def _create_socket(self) -> BufferedSocket:
        return self._given

    def take_publish(self, *, mqtt5: bool) -> tuple[bytes, bytes, int] | None:
        """(topic, payload, packet id) of the next packet, if it is what nearly all are and all
        of it is here: a PUBLISH with QoS 1, neither retained nor repeated, without properties.

        paho takes ten times as long; what is otherwise, it does better.
        """
        if self._in_packet["command"]:
            return None  # it has read the beginning of one
        body = self._given.look(0x32)
        if body is None or len(body) < 5:
            return None
        at = 2 + int.from_bytes(body[:2])
        start = at + (3 if mqtt5 else 2)
        mid = int.from_bytes(body[at : at + 2])
        if at == 2 or mid == 0 or start > len(body) or (mqtt5 and body[at + 2]):
            return None
        self._given.took()
        return body[2:at], body[start:], mid

    def heard(self) -> None:
        """Something was taken by :meth:`take_publish`: the broker lives."""
        self._last_bytes_received = time.monotonic()

    def acknowledge(self, mid: int) -> None:
        """As ``ack``; without paho's queue, where nothing waits in it."""
        if not self._out_packet:
            with contextlib.suppress(BlockingIOError):
                self._given.send(b"\x40\x02" + mid.to_bytes(2))
                self._last_msg_out = time.monotonic()
                self._call_socket_register_write()
                return
        self.ack(mid, _QOS)


class Connection:
    """One connection, from the connected socket to its end; never used again.

    Each has its own paho client: nothing of an earlier connection is left in it, so
    nothing is sent twice by paho itself, and no packet id of then is taken for one of now.
    """

    def __init__(
        self,
        link: Owner,
        sock: socket.socket,
        *,
        mqtt5: bool,
        clean: bool,
        password: str | None,
    ) -> None:
        self._link = link
        self._settings = link.settings
        self._mqtt5 = mqtt5
        self._clean = clean
        self._loop = asyncio.get_running_loop()
        self._sock = BufferedSocket(sock, _LARGEST)
        self._fd = sock.fileno()
        self._ended: asyncio.Future[LinkError] = self._loop.create_future()
        self._accepted: asyncio.Future[tuple[ReasonCode, Properties | None]] = (
            self._loop.create_future()
        )
        self._answers: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._unacked: dict[int, str] = {}  # packet id → topic
        self._progress = time.monotonic()
        self._window = self._settings.window
        self._undone: deque[Token] = deque()
        self._heard = 0
        self._skipped = 0
        self._refusal: str | None = None
        self._held_back: asyncio.TimerHandle | None = None
        self._pressed_on = False
        self._open = False
        self._followed: frozenset[str] = frozenset()
        self._following = asyncio.Lock()
        self._writing = False
        self._watching = False
        self._client = self._make_client(password)

    def _make_client(self, password: str | None) -> _Client:
        link, settings = self._link, self._settings
        prefix = "qis-gw-" if link.role is Role.GATEWAY else "qis-"
        options: dict[str, Any] = {"client_id": prefix + link.kid.hex(), "manual_ack": True}
        if self._mqtt5:
            options["protocol"] = MQTTProtocolVersion.MQTTv5
        else:
            options["protocol"] = MQTTProtocolVersion.MQTTv311
            options["clean_session"] = self._clean
        client = _Client(self._sock, reconnect_on_failure=False, **options)
        if settings.user is not None:
            client.username_pw_set(settings.user, password)
        client.will_set(link.topics.state(link.kid), _OFFLINE, qos=_QOS, retain=True)
        # The window is ours to keep; paho is only to refuse what would go beyond it.
        client.max_inflight_messages_set(0)
        client.max_queued_messages_set(settings.window + 8)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_answer
        client.on_unsubscribe = self._on_answer
        client.on_message = self._on_message
        client.on_socket_register_write = self._on_want_write
        client.on_socket_unregister_write = self._on_nothing_to_write
        client.on_socket_close = self._unwatch
        return client

    # From the link.

    @property
    def room(self) -> int:
        """Frames that may be published now."""
        return max(0, self._window - len(self._unacked))

    async def open(self) -> None:
        """CONNECT, SUBSCRIBE, and say that we are here.

        :raises LinkError: the broker does not want us, or does not answer in time.
        """
        self._connect()
        self._watch()
        reason, properties = await self._answer(self._accepted, "CONNECT")
        self._check_accepted(reason, properties)
        needed = self._link.needed()
        for refusal in await self._subscribe([needed]):
            raise LinkError(refusal, hint=_CHECK_ACL)
        await self.follow()
        self._open = True
        self._say(_ONLINE)

    def _connect(self) -> None:
        settings = self._settings
        options: dict[str, Any] = {}
        if self._mqtt5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho's
            properties.ReceiveMaximum = settings.receive_window
            properties.MaximumPacketSize = _LARGEST
            if self._link.role is Role.GATEWAY:
                properties.SessionExpiryInterval = settings.session_expiry
            options = {"clean_start": self._clean, "properties": properties}
        self._client.connect(settings.host, settings.port, settings.keepalive, **options)

    def _check_accepted(self, reason: ReasonCode, properties: Properties | None) -> None:
        if reason.value == _BAD_PROTOCOL:
            raise OldProtocolError("the broker does not speak MQTT 5", sure=True)
        if reason.value >= _FAILURE:
            raise LinkError(f"the broker refuses us: {reason}", hint=_HINTS.get(reason.value))
        if getattr(properties, "MaximumQoS", _QOS) < _QOS:
            raise LinkError("the broker does not offer QoS 1", hint="use another broker")
        largest = getattr(properties, "MaximumPacketSize", None)
        needed = int(self._link.cost(MAX_FRAME))
        if largest is not None and largest < needed:
            raise LinkError(f"the broker takes packets of {largest} bytes, {needed} are needed")
        self._window = min(self._window, getattr(properties, "ReceiveMaximum", 65535))

    async def live(self) -> None:
        """Keep it alive until it ends.

        :raises LinkError: always; why it ended.
        """
        settings = self._settings
        tick = min(5.0, settings.keepalive / 4, settings.ack_timeout / 4)
        while True:
            await asyncio.wait([self._ended], timeout=tick)
            if self._ended.done():
                raise self._ended.result()
            self._client.loop_misc()
            waited = time.monotonic() - self._progress
            if self._unacked and waited > settings.ack_timeout:
                self._end(LinkError(f"the broker acknowledges nothing for {waited:.0f} s"))

    def publish(self, topic: str, frame: bytes, *, retain: bool = False) -> None:
        """Give one frame to paho.

        :raises LinkError: paho does not take it; the connection has just ended.
        """
        info = self._client.publish(topic, frame, qos=_QOS, retain=retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise LinkError(f"{self._link.name}: {paho.error_string(info.rc)}")
        if not self._unacked:
            self._progress = time.monotonic()
        self._unacked[info.mid] = topic

    async def follow(self) -> None:
        """Subscribe to what the link listens to now, and to nothing else.

        :raises LinkError: the connection ended, or there was no answer in time.
        """
        async with self._following:
            while (wanted := self._link.listening()) != self._followed:
                await self._unsubscribe(self._followed - wanted)
                for refusal in await self._subscribe(wanted - self._followed):
                    self._link.complain(refusal)
                self._followed = wanted

    async def _subscribe(self, filters: Iterable[str]) -> list[str]:
        """Subscribe; returns what was refused, in words."""
        # Retained frames are not wanted: handling 2 is "do not send them".
        wish: Any = SubscribeOptions(qos=_QOS, retainHandling=2) if self._mqtt5 else _QOS
        refusals = []
        for some in _chunks(filters):
            _, mid = self._client.subscribe([(name, wish) for name in some])
            codes = await self._answer_to(mid, "SUBSCRIBE")
            for name, code in zip(some, codes, strict=False):
                if code.value >= _FAILURE:
                    self._link.count("refused_subscriptions")
                    refusals.append(f"the broker does not let us subscribe to {name}: {code}")
        return refusals

    async def _unsubscribe(self, filters: Iterable[str]) -> None:
        for some in _chunks(filters):
            _, mid = self._client.unsubscribe(some)
            await self._answer_to(mid, "UNSUBSCRIBE")

    def done(self, token: Token) -> None:
        """Acknowledge this and what was only waiting for it."""
        token.done = True
        while self._undone and self._undone[0].done:
            mid = self._undone.popleft().mid
            if not self._ended.done():
                self._client.acknowledge(mid)
        if len(self._undone) <= self._settings.receive_window:
            self._pressed_on = False
            self._read_on()
        if self._skipped and not self._undone:
            self._flush()
            text = f"there was no place for {self._skipped} frames, which the broker will repeat"
            self._end(LinkError(text))

    async def goodbye(self, seconds: float) -> None:
        """Give what is under way a moment, say that we go, and disconnect."""
        with contextlib.suppress(LinkError, TimeoutError):
            async with asyncio.timeout(seconds):
                self._say(_OFFLINE)
                while self._unacked and not self._ended.done():
                    await self._link.changed()
        self._client.disconnect()
        self._flush()

    def abandon(self) -> None:
        """Close, whatever its state; nothing comes from it after this."""
        self._end(LinkError("closed"))
        self._sock.close()

    def _say(self, state: bytes) -> None:
        if self.room:
            self.publish(self._link.topics.state(self._link.kid), state, retain=True)

    # Waiting for the broker's answers.

    async def _answer_to(self, mid: int | None, packet: str) -> list[ReasonCode]:
        if mid is None:
            raise LinkError("the connection was lost")
        answer = self._answers[mid] = self._loop.create_future()
        try:
            return await self._answer(answer, packet)
        finally:
            del self._answers[mid]

    async def _answer(self, answer: asyncio.Future[_T], packet: str) -> _T:
        seconds = self._settings.connect_timeout
        both: tuple[asyncio.Future[Any], ...] = (answer, self._ended)
        heard = -1
        while heard != self._heard and not (answer.done() or self._ended.done()):
            heard = self._heard  # what was kept for us comes before the answer
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        if self._ended.done():
            raise self._ended.result()
        text = f"the broker has not answered our {packet} for {seconds:.0f} s"
        old = self._mqtt5 and not self._accepted.done()  # some wait for the rest of a packet
        error = OldProtocolError(text, sure=False) if old else LinkError(text)
        self._end(error)
        raise error

    def _end(self, error: LinkError) -> None:
        """It is over, for this reason; the first one counts."""
        if not self._ended.done():
            self._ended.set_result(error)
            self._unwatch()
            if self._held_back is not None:
                self._held_back.cancel()
            self._link.lost(self, error)

    # The socket.

    def _readable(self) -> None:
        for _ in range(_TURN):
            if self._ended.done():
                return
            if len(self._undone) > self._settings.receive_window and not self._pressed_on:
                self._hold_back()
                return
            if self._accepted.done() and (found := self._client.take_publish(mqtt5=self._mqtt5)):
                self._client.heard()
                self._incoming(*found)
                if self._sock.pending():
                    continue
                return
            try:
                self._client.loop_read()
            except Exception as error:  # noqa: BLE001 - whatever a broker's bytes do to paho
                self._end(LinkError(f"the broker sent what cannot be read ({error!r})"))
                return
            if not self._sock.pending():
                return
        # What lies in our buffer makes no descriptor readable.
        self._loop.call_soon(self._readable)

    def _hold_back(self) -> None:
        """Leave what comes to TCP until there is a place for it, or for a while."""
        if self._held_back is None:
            self._loop.remove_reader(self._fd)
            # Before it is open, the broker's answer to SUBSCRIBE may lie behind all that.
            patience = _PATIENCE if self._open else self._settings.connect_timeout / 4
            self._held_back = self._loop.call_later(min(patience, _PATIENCE), self._press_on)

    def _press_on(self) -> None:
        self._pressed_on = True
        self._read_on()

    def _read_on(self) -> None:
        if self._held_back is not None:
            self._held_back.cancel()
            self._held_back = None
            if not self._ended.done():
                self._watch()
                self._loop.call_soon(self._readable)

    def _watch(self) -> None:
        self._watching = True
        self._loop.add_reader(self._fd, self._readable)

    def _unwatch(self, *_: object) -> None:
        # Once: by the time that paho's destructor says "closed" again, the descriptor's
        # number may be another connection's.
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)

    def _flush(self) -> None:
        self._writing = False
        if self._ended.done():
            return
        try:
            self._client.loop_write()
            everything = self._sock.flush()
        except (OSError, ValueError):
            # The broker's last words, or its TLS alert, may lie there to be read.
            self._readable()
            self._end(self._lost("the connection was lost"))
            return
        if everything:
            self._loop.remove_writer(self._fd)
        else:
            self._loop.add_writer(self._fd, self._flush)

    def _on_want_write(self, *_: object) -> None:
        # Not at once: what a turn of the loop acknowledges and publishes goes out together.
        if not self._writing and not self._ended.done():
            self._writing = True
            self._loop.call_soon(self._flush)

    def _on_nothing_to_write(self, *_: object) -> None:
        """All is in :class:`BufferedSocket`; :meth:`_flush` sees to the rest."""

    def _lost(self, text: str) -> LinkError:
        """The reason, or a better one if the socket knows it."""
        if isinstance(self._sock.error, OversizedError):
            self._link.poisoned()
            hint = "set message_size_limit in the broker's configuration (docs/mosquitto.conf)"
            return LinkError(f"the broker sent {self._sock.error}", hint=hint)
        if self._refusal is not None:  # as Mosquitto 2.0.11 does after its PUBACK
            return LinkError(self._refusal, hint=_CHECK_ACL)
        if isinstance(self._sock.error, ssl.SSLError):
            return explain_tls(self._sock.error, f"{self._settings.host}:{self._settings.port}")
        return LinkError(text)

    # paho's callbacks, all on the loop's thread.

    def _on_connect(
        self, _c: object, _u: object, flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.value < _FAILURE:
            self._link.accepted(resumed=flags.session_present)
        if not self._accepted.done():
            self._accepted.set_result((reason, properties))

    def _on_disconnect(
        self, _c: object, _u: object, flags: Any, reason: ReasonCode, _p: object
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            hint = _HINTS.get(reason.value)
            why = f": {reason}" if reason.value else ""
            self._end(LinkError(f"the broker ended the connection{why}", hint=hint))
        elif str(reason) == "Keep alive timeout":
            self._end(LinkError("the broker has fallen silent: it answers no ping"))
        elif self._accepted.done() or isinstance(self._sock.error, ssl.SSLError | OversizedError):
            self._end(self._lost("the connection was lost"))
        elif self._mqtt5:
            self._end(OldProtocolError("the broker hung up on MQTT 5", sure=False))
        else:
            hint = WANTS_CERTIFICATE if self._settings.tls else _WANTS_TLS
            self._end(LinkError("the broker hung up without an answer", hint=hint))

    def _on_publish(self, _c: object, _u: object, mid: int, reason: ReasonCode, _p: object) -> None:
        topic = self._unacked.pop(mid, None)
        if topic is None:
            return
        self._progress = time.monotonic()
        if reason.value >= _FAILURE:
            self._refused(topic, reason)
        elif reason.value == _NO_SUBSCRIBERS and "/state/" not in topic:
            self._link.count("no_subscribers")
        self._link.room_changed()

    def _refused(self, topic: str, reason: ReasonCode) -> None:
        text = f"the broker does not let us publish to {topic}: {reason}"
        self._link.count("refused_out")
        if reason.value == _NOT_AUTHORISED and "/up/" in topic:
            # Nothing that we are here to send can pass: better down than up in vain.
            self._end(LinkError(text, hint=_CHECK_ACL))
        else:
            self._refusal = text
            self._link.complain(text)

    def _on_answer(
        self, _c: object, _u: object, mid: int, reasons: list[ReasonCode], _p: object
    ) -> None:
        answer = self._answers.get(mid)
        if answer is not None and not answer.done():
            answer.set_result(reasons)

    def _on_message(self, _c: object, _u: object, message: paho.MQTTMessage) -> None:
        topic: bytes = message._topic  # its property raises for what is no UTF-8
        mid = message.mid if message.qos else None
        self._incoming(topic, bytes(message.payload), mid, retained=message.retain)

    def _incoming(
        self, topic: bytes, payload: bytes, mid: int | None, *, retained: bool = False
    ) -> None:
        self._heard += 1
        if mid is None:
            self._take(topic, payload, None, retained)
            return
        if self._pressed_on and len(self._undone) > self._settings.receive_window:
            self._link.stats.dropped_in += 1
            if self._link.role is Role.GATEWAY:
                self._skipped += 1
            else:  # a node's session keeps nothing for another time
                self._client.acknowledge(mid)
            return
        token = Token(self, mid)
        self._undone.append(token)
        if not self._take(topic, payload, token, retained):
            self.done(token)

    def _take(self, topic: bytes, payload: bytes, token: Token | None, retained: bool) -> bool:
        if retained:
            # Nothing of ours is retained on these topics: somebody left it there.
            self._link.count("retained_in")
            return False
        name: str | None = None
        with contextlib.suppress(UnicodeDecodeError):
            name = topic.decode()
        return self._link.take(name, payload, token)


def _chunks(filters: Iterable[str]) -> Iterator[list[str]]:
    every = iter(sorted(filters))
    while some := list(islice(every, _FILTERS)):
        yield some
