"""The MQTT link: frames through a broker, with paho-mqtt. The only module that loads it.

MQTT 5, or 3.1.1 where the broker knows no more; QoS 1 throughout. The topics are in
:mod:`qis_edge.links.mqtt_topics`.

**Nothing is believed.** A broker's PUBACK says that it took a frame, not that anybody will
get it: with its default settings Mosquitto acknowledges thousands of frames for an absent
gateway and keeps one thousand. It only opens the send window again. Frames that were on
their way when the connection ended are forgotten here; custody receipts, and the timers of
those who wait for them, decide what is sent again.

**Sessions.** A gateway has a persistent session under a fixed client id: for a while the
broker keeps for it what arrives while it restarts, and gives it again what it had not done
with. A node's session is clean: what a broker could keep for a node that is away are
receipts (sent again when asked) and peers' packets (replayed from its cursor), and a fleet
of queues for nodes that never come back is how brokers run full.

**Acknowledging.** What came in is acknowledged to the broker by :meth:`MqttLink.done`, in
the order in which it came (MQTT 5 section 4.6), so after the commit, never before. The
broker is told (MQTT 5) or configured (``max_inflight_messages``) how many frames may be
under way; a broker that ignores it loses the surplus, counted in ``dropped_in``.

**The event loop.** paho is driven by the loop itself, without a thread: its callbacks, our
state and the application share one thread, and nothing needs a lock. Only resolving the
name, connecting and the TLS handshake, which block, have a short-lived thread of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from qis_edge.core.errors import LinkError, UsageError
from qis_edge.links.backoff import Backoff
from qis_edge.links.base import MAX_FRAME, Destination, Direction, LinkStats, Received, Role
from qis_edge.links.mqtt_dial import BufferedSocket, dial_aside, explain_tls, tls_context
from qis_edge.links.mqtt_settings import MqttSettings
from qis_edge.links.mqtt_topics import Topics
from qis_edge.links.outage import Outage
from qis_edge.links.wake import Wake

__all__ = ["MqttLink", "MqttSettings", "Role"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_V5 = MQTTProtocolVersion.MQTTv5
_V311 = MQTTProtocolVersion.MQTTv311
_QOS = 1
_ONLINE, _OFFLINE = b"online", b"offline"

#: A connection that lasted this many seconds was a good one: the next outage begins with
#: the shortest delay again. Shorter ones keep doubling it, or two clients that push each
#: other out would do so once a second for ever.
_GOOD = 10.0
#: Seconds for the last words of :meth:`MqttLink.close`.
_GOODBYE = 2.0
#: Packets read in one go before the loop's other tasks have their turn.
_TURN = 128
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
_HINTS = {
    _BAD_CLIENT_ID: "the broker wants client ids of its own kind",
    _BAD_LOGIN: "check user and password (or password_file)",
    _NOT_AUTHORISED: "check user and password, and the broker's ACL",
    _TAKEN_OVER: "is a second daemon running with the same key?",
}


@dataclass(slots=True, eq=False)
class _Token:
    """One frame that came in on one connection: what :meth:`MqttLink.done` is given back."""

    connection: _Connection
    mid: int
    done: bool = False


class _OldProtocolError(LinkError):
    """The broker seems not to speak MQTT 5. ``sure`` if it said so itself."""

    def __init__(self, message: str, *, sure: bool) -> None:
        super().__init__(message)
        self.sure = sure


class MqttLink:
    """Frames through an MQTT broker; see :class:`qis_edge.links.base.Link`.

    :param settings: where the broker is.
    :param role: NODE publishes up, hears its own down and the addresses it listens to;
        GATEWAY hears every up, publishes down and to addresses.
    :param site: the topics' site: 1 to 64 of ``A-Z a-z 0-9 _ -``.
    :param kid: our own key id, 8 bytes.
    :param name: what logs call it.
    :raises UsageError: a parameter is malformed.

    ``stats.extra``: ``protocol`` (5.0 or 3.1), ``refused_out`` (frames that the broker
    answered with a refusal), ``no_subscribers`` (frames that nobody was subscribed to; both
    MQTT 5 only), ``refused_subscriptions``, ``retained_in`` (retained frames: ignored).
    """

    def __init__(
        self, settings: MqttSettings, role: Role, site: str, kid: bytes, *, name: str = "mqtt"
    ) -> None:
        self.name = name
        self.mtu = MAX_FRAME
        self.stats = LinkStats()
        self.settings = settings
        self.role = role
        self.topics = Topics(site)
        self.kid = kid
        # A frame up and a frame down have topics of nearly the same length.
        self._topic_size = len(self.topics.up(kid) if role is Role.NODE else self.topics.down(kid))
        self._protocol = _V311 if settings.protocol == "3.1.1" else _V5
        self._protocol_settled = settings.protocol != "auto"
        self._stepped_down = False
        self._listening: frozenset[str] = frozenset()
        self._queue: deque[Received] = deque()
        self._arrived = Wake()
        self._wake = Wake()
        self._outage = Outage(_log, f"{name} ({settings.url})")
        self._complaints: set[str] = set()
        self._backoff = Backoff(settings.retry_first, settings.retry_longest)
        self._live: _Connection | None = None
        self._runner: asyncio.Task[None] | None = None
        self._closed = False

    # What it is like now.

    @property
    def up(self) -> bool:
        """Connected, subscribed, and not about to end."""
        return self._live is not None

    @property
    def room(self) -> int:
        """The send window less the frames that the broker has not acknowledged."""
        return self._live.room if self._live is not None else 0

    @property
    def not_before(self) -> float:
        """Always 0: a broker has no duty cycle."""
        return 0.0

    def cost(self, size: int) -> float:
        """Bytes of the PUBLISH packet, topic and header included (not TLS, TCP or IP)."""
        # The topic and its length, the packet id, and in MQTT 5 the empty properties.
        rest = 2 + self._topic_size + 2 + (1 if self._protocol == _V5 else 0) + size
        return 1.0 + (1 if rest < 128 else 2) + rest

    def changed(self) -> Coroutine[Any, Any, None]:
        """See :meth:`Link.changed`."""
        return self._wake.changed()

    # Beginning and end.

    async def start(self) -> None:
        """Begin to connect, and keep at it. Again, it does nothing.

        :raises LinkError: a certificate or the password file cannot be used.
        """
        if self._runner is not None or self._closed:
            return
        # Read here so that what can never work is said at once; read again at each
        # connect, so that a renewed certificate or password needs no restart.
        self._read_password()
        tls_context(self.settings)
        self._runner = asyncio.create_task(self._run(), name=f"{self.name}-link")

    async def close(self) -> None:
        """Say that we go offline, disconnect, stop. Idempotent."""
        if self._closed:
            return
        self._closed = True
        live, self._live = self._live, None
        try:
            if live is not None:
                await live.goodbye(_GOODBYE)
        finally:
            if self._runner is not None:
                self._runner.cancel()
                await asyncio.wait([self._runner])
            self._wake.end()
            self._arrived.end()

    # Frames.

    async def send(self, frame: bytes, to: Destination) -> None:
        """Publish one frame; see :meth:`Link.send`."""
        topic = self._topic(to)
        if len(frame) > self.mtu:
            raise LinkError(f"{self.name}: {len(frame)} bytes, at most {self.mtu}")
        if self._live is None:
            raise LinkError(f"{self.name} is down: {self.stats.last_error or 'not connected yet'}")
        if self._live.room <= 0:
            raise LinkError(f"{self.name} has no room")
        self._live.publish(topic, frame)
        self.stats.frames_out += 1
        self.stats.bytes_out += len(frame)

    async def receive(self) -> Received:
        """The next frame; see :meth:`Link.receive`."""
        while not self._queue:
            if self._closed:
                raise LinkError(f"{self.name} is closed")
            await self._arrived.changed()
        return self._queue.popleft()

    async def done(self, received: Received) -> None:
        """Acknowledge to the broker, once those before it are done too."""
        token = received.token
        if isinstance(token, _Token):
            token.connection.done(token)

    async def listen(self, fingerprints: frozenset[bytes]) -> None:
        """Subscribe to exactly these addresses; returns when the broker has answered, at
        once while there is no connection (the next one subscribes)."""
        wanted = frozenset(self.topics.peers(fingerprint) for fingerprint in fingerprints)
        if self.role is Role.GATEWAY:
            return
        added, gone = wanted - self._listening, self._listening - wanted
        self._listening = wanted
        if self._live is None:
            return
        with contextlib.suppress(LinkError):  # lost meanwhile: the next connection subscribes
            await self._live.unsubscribe(gone)
            await self._live.subscribe(added)

    def _topic(self, to: Destination) -> str:
        if (to.direction is Direction.UP) is not (self.role is Role.NODE):
            raise UsageError(f"a {self.role.value} does not send {to.direction.value}", field="to")
        if to.direction is Direction.UP:
            return self.topics.up(self.kid)
        if to.direction is Direction.DOWN:
            return self.topics.down(to.key)
        return self.topics.peers(to.key)

    def _read_password(self) -> str | None:
        try:
            return self.settings.read_password()
        except UsageError as error:
            raise LinkError(str(error), hint=error.hint) from error

    # The life of the link: one connection after the other.

    async def _run(self) -> None:
        while True:
            try:
                await self._one_connection()
            except _OldProtocolError as error:
                if self._step_down(error):
                    continue
                self._failed(error)
            except LinkError as error:
                self._failed(error)
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end the link
                _log.exception("%s: internal error", self.name)
                self._failed(LinkError(f"internal error: {error!r}"))
            if not self._protocol_settled:
                self._protocol = _V5
            await asyncio.sleep(self._backoff.next())

    async def _one_connection(self) -> None:
        """From dialling to the end.

        :raises LinkError: always: why it did not come about, or why it ended.
        """
        password = self._read_password()
        sock = await dial_aside(self.settings)
        connection = _Connection(self, sock, self._protocol, password)
        began = time.monotonic()
        try:
            await connection.open()
            self._connected(connection)
            began = time.monotonic()
            await connection.live()
        finally:
            connection.abandon()
            if self._live is connection:
                self._live = None
                self.stats.disconnects += 1
                if time.monotonic() - began >= _GOOD:
                    self._backoff.reset()
            self._wake.notify()

    def _connected(self, connection: _Connection) -> None:
        if self._closed:
            raise LinkError("closed")
        self._live = connection
        if self._protocol == _V311 and not self._protocol_settled:
            self._protocol_settled = self._stepped_down
            self._stepped_down = True
        self.stats.connects += 1
        self.stats.last_error = None
        version, number = ("5", 5.0) if self._protocol == _V5 else ("3.1.1", 3.1)
        self.stats.extra["protocol"] = number
        self._outage.over(f"connected with MQTT {version}")
        self._wake.notify()

    def _failed(self, error: LinkError) -> None:
        if not self._closed:
            self.stats.last_error = str(error)
            self._outage.cause(str(error), error.hint)

    def _step_down(self, error: _OldProtocolError) -> bool:
        """Whether to try 3.1.1 now. Where the broker said that it does not know MQTT 5 that
        is for good; where it only hung up or kept silent, when it has happened twice."""
        if self._protocol == _V311 or self._protocol_settled:
            return False
        self._protocol = _V311
        self._protocol_settled = error.sure
        return True

    # What a connection asks and tells.

    def needed(self) -> str:
        """The topic filter without which the link is of no use."""
        return self.topics.every_up if self.role is Role.GATEWAY else self.topics.down(self.kid)

    def listening(self) -> frozenset[str]:
        """The other topic filters."""
        return self._listening

    def complain(self, text: str) -> None:
        """Something is wrong that does not end the connection: say it once."""
        self.stats.last_error = text
        if text not in self._complaints and len(self._complaints) < Outage.MAX_CAUSES:
            self._complaints.add(text)
            _log.warning("%s: %s", self.name, text)

    def count(self, what: str) -> None:
        """One more of ``what`` in ``stats.extra``."""
        self.stats.extra[what] = self.stats.extra.get(what, 0.0) + 1

    def resumed(self) -> None:
        """The broker kept our session, so it gives again what we had not acknowledged: what
        still waits here from the last connection would only come twice."""
        self._queue = deque(r for r in self._queue if r.token is None)

    def room_changed(self) -> None:
        """The broker acknowledged something."""
        self._wake.notify()

    def take(self, message: paho.MQTTMessage, token: _Token | None) -> bool:
        """Queue what came in; False if it is of no use or there is no place for it."""
        if message.retain:
            # Nothing of ours is retained on these topics: somebody left it there.
            self.count("retained_in")
            return False
        parsed = self._parse(message)
        full = len(self._queue) >= 2 * self.settings.receive_window
        if parsed is None or full or len(message.payload) > self.mtu:
            self.stats.dropped_in += 1
            return False
        direction, key = parsed
        claimed = None if direction is Direction.PEERS else key
        self._queue.append(Received(bytes(message.payload), direction, claimed, token))
        self.stats.frames_in += 1
        self.stats.bytes_in += len(message.payload)
        self._arrived.notify()
        return True

    def _parse(self, message: paho.MQTTMessage) -> tuple[Direction, bytes] | None:
        """Whose topic it is, or ``None`` if none that we subscribed to."""
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return None
        parsed = self.topics.parse(topic)
        if parsed is None:
            return None
        if self.role is Role.GATEWAY:
            return parsed if parsed[0] is Direction.UP else None
        return parsed if topic == self.needed() or topic in self._listening else None


class _Client(paho.Client):
    """paho's client on a socket that is connected already."""

    def __init__(self, sock: BufferedSocket, **options: Any) -> None:
        self._given = sock
        super().__init__(CallbackAPIVersion.VERSION2, **options)

    def _create_socket(self) -> BufferedSocket:
        return self._given


class _Connection:
    """One connection, from the connected socket to its end; never used again.

    Each has its own paho client: nothing of an earlier connection is left in it, so
    nothing is sent twice by paho itself, and no packet id of then is taken for one of now.
    """

    def __init__(
        self,
        link: MqttLink,
        sock: socket.socket,
        protocol: MQTTProtocolVersion,
        password: str | None,
    ) -> None:
        self._link = link
        self._settings = link.settings
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._sock = BufferedSocket(sock)
        self._fd = sock.fileno()
        self._ended: asyncio.Future[LinkError] = self._loop.create_future()
        self._accepted: asyncio.Future[tuple[ReasonCode, Properties | None]] = (
            self._loop.create_future()
        )
        self._answers: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._unacked: dict[int, str] = {}  # packet id → topic
        self._progress = time.monotonic()
        self._window = self._settings.window
        self._undone: deque[_Token] = deque()
        self._writing = False
        self._client = self._make_client(password)

    def _make_client(self, password: str | None) -> _Client:
        link, settings = self._link, self._settings
        prefix = "qis-gw-" if link.role is Role.GATEWAY else "qis-"
        options: dict[str, Any] = {"client_id": prefix + link.kid.hex(), "manual_ack": True}
        if self._protocol != _V5:
            options["clean_session"] = link.role is Role.NODE
        client = _Client(self._sock, protocol=self._protocol, reconnect_on_failure=False, **options)
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
        client.on_socket_close = self._on_close
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
        self._loop.add_reader(self._fd, self._readable)
        reason, properties = await self._answer(self._accepted, "CONNECT")
        self._check_accepted(reason, properties)
        needed = self._link.needed()
        refused = await self.subscribe([needed])
        if refused is not None:
            text = f"the broker does not let us subscribe to {needed}: {refused}"
            raise LinkError(text, hint=_CHECK_ACL)
        await self.subscribe(self._link.listening())
        self._say(_ONLINE)

    def _connect(self) -> None:
        settings, gateway = self._settings, self._link.role is Role.GATEWAY
        options: dict[str, Any] = {}
        if self._protocol == _V5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho's
            properties.ReceiveMaximum = settings.receive_window
            if gateway:
                properties.SessionExpiryInterval = settings.session_expiry
            options = {"clean_start": not gateway, "properties": properties}
        self._client.connect(settings.host, settings.port, settings.keepalive, **options)

    def _check_accepted(self, reason: ReasonCode, properties: Properties | None) -> None:
        if reason.value == _BAD_PROTOCOL:
            raise _OldProtocolError("the broker does not speak MQTT 5", sure=True)
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

    async def subscribe(self, filters: Iterable[str]) -> ReasonCode | None:
        """Subscribe; returns a refusal, if there was one.

        :raises LinkError: the connection ended, or there was no answer in time.
        """
        # Retained frames are not wanted: handling 2 is "do not send them".
        wish: Any = SubscribeOptions(qos=_QOS, retainHandling=2) if self._protocol == _V5 else _QOS
        refused: ReasonCode | None = None
        for some in _chunks(filters):
            _, mid = self._client.subscribe([(name, wish) for name in some])
            codes = await self._answer_to(mid, "SUBSCRIBE")
            for name, code in zip(some, codes, strict=False):
                if code.value >= _FAILURE:
                    refused = code
                    self._link.count("refused_subscriptions")
                    self._link.complain(f"the broker does not let us subscribe to {name}: {code}")
        return refused

    async def unsubscribe(self, filters: Iterable[str]) -> None:
        """Unsubscribe.

        :raises LinkError: the connection ended, or there was no answer in time.
        """
        for some in _chunks(filters):
            _, mid = self._client.unsubscribe(some)
            await self._answer_to(mid, "UNSUBSCRIBE")

    def done(self, token: _Token) -> None:
        """Acknowledge this and what was only waiting for it."""
        token.done = True
        while self._undone and self._undone[0].done:
            mid = self._undone.popleft().mid
            if not self._ended.done():
                self._client.ack(mid, _QOS)

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
        self._client.on_message = None
        self._client.on_publish = None
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
        await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        if self._ended.done():
            raise self._ended.result()
        text = f"the broker has not answered our {packet} for {seconds:.0f} s"
        if self._protocol == _V5 and not self._accepted.done():
            raise _OldProtocolError(text, sure=False)  # some wait for the rest of a packet
        raise LinkError(text)

    def _end(self, error: LinkError) -> None:
        """It is over, for this reason; the first one counts."""
        if not self._ended.done():
            self._ended.set_result(error)
            self._on_close()

    # The socket.

    def _readable(self) -> None:
        for _ in range(_TURN):
            if self._ended.done():
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

    def _flush(self) -> None:
        self._writing = False
        if self._ended.done():
            return
        try:
            self._client.loop_write()
            everything = self._sock.flush()
        except (OSError, ValueError) as error:
            self._end(self._lost(f"the connection broke: {error}"))
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

    def _on_close(self, *_: object) -> None:
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)

    def _lost(self, text: str) -> LinkError:
        """The reason, or a better one if TLS knows it."""
        if isinstance(self._sock.error, ssl.SSLError):
            return explain_tls(self._sock.error, f"{self._settings.host}:{self._settings.port}")
        return LinkError(text)

    # paho's callbacks, all on the loop's thread.

    def _on_connect(
        self, _c: object, _u: object, flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.value < _FAILURE and flags.session_present:
            self._link.resumed()
        if not self._accepted.done():
            self._accepted.set_result((reason, properties))

    def _on_disconnect(
        self, _c: object, _u: object, flags: Any, reason: ReasonCode, _p: object
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            hint = _HINTS.get(reason.value)
            self._end(LinkError(f"the broker ended the connection: {reason}", hint=hint))
        elif str(reason) == "Keep alive timeout":
            self._end(LinkError("the broker has fallen silent"))
        elif self._accepted.done() or self._sock.error is not None:
            self._end(self._lost("the connection was lost"))
        elif self._protocol == _V5:
            self._end(_OldProtocolError("the broker hung up on MQTT 5", sure=False))
        else:
            self._end(LinkError("the broker hung up without an answer"))

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
            self._link.complain(text)

    def _on_answer(
        self, _c: object, _u: object, mid: int, reasons: list[ReasonCode], _p: object
    ) -> None:
        answer = self._answers.get(mid)
        if answer is not None and not answer.done():
            answer.set_result(reasons)

    def _on_message(self, _c: object, _u: object, message: paho.MQTTMessage) -> None:
        if message.qos == 0:
            self._link.take(message, None)
            return
        if len(self._undone) >= self._settings.receive_window:
            # A broker that heeds no window. Acknowledged out of turn, so that memory stays
            # bounded here and there; whoever sent it will send it again.
            self._link.stats.dropped_in += 1
            self._client.ack(message.mid, message.qos)
            return
        token = _Token(self, message.mid)
        self._undone.append(token)
        if not self._link.take(message, token):
            self.done(token)


def _chunks(filters: Iterable[str]) -> Iterator[list[str]]:
    every = iter(sorted(filters))
    while some := list(islice(every, _FILTERS)):
        yield some
