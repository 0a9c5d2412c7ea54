"""The MQTT link: frames through a broker, with paho-mqtt.

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
broker is told (MQTT 5) or configured (``max_inflight_messages``) how many frames may wait
for that. Not every broker heeds it: Mosquitto 2.0.11, draining what it kept for a gateway,
answers each acknowledgement with twenty more frames. So beyond its window the link stops
reading, and TCP holds the broker back. A receiver that stalls for longer would take the
connection's own packets with it: then the link reads on and lets surplus frames go. It does
not acknowledge them, and as soon as the receiver has caught up it reconnects for them.

**The event loop.** paho is driven by the loop itself, without a thread: its callbacks, our
state and the application share one thread, and nothing needs a lock. Only resolving the
name, connecting and the TLS handshake, which block, have a short-lived thread of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Coroutine
from itertools import islice
from typing import Any

from qis_edge.core.errors import LinkError, UsageError
from qis_edge.links.backoff import Backoff
from qis_edge.links.base import (
    BROKER_CADENCE,
    MAX_FRAME,
    Destination,
    Direction,
    LinkStats,
    Received,
    Role,
)
from qis_edge.links.mqtt_connection import Connection, OldProtocolError, Token
from qis_edge.links.mqtt_dial import RENEW, WANTS_CERTIFICATE, dial_aside, tls_context
from qis_edge.links.mqtt_settings import MqttSettings
from qis_edge.links.mqtt_topics import Topics
from qis_edge.links.outage import Outage
from qis_edge.links.wake import Wake
from qis_edge.terminal import moment

__all__ = ["MqttLink", "MqttSettings", "Role"]

_log = logging.getLogger(__name__)

#: A connection that lasted this many seconds was a good one: the next outage begins with
#: the shortest delay again. Shorter ones keep doubling it, or two clients that push each
#: other out would do so once a second for ever.
_GOOD = 10.0
#: So many shorter ones in a row are no accident.
_MANY_SHORT = 3
#: Seconds for the last words of :meth:`MqttLink.close`.
_GOODBYE = 2.0


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
        self.url = settings.url
        self.mtu = MAX_FRAME
        self.fits = self.mtu
        self.cadence = BROKER_CADENCE
        self.shared = False
        self.stats = LinkStats()
        self.settings = settings
        self.role = role
        self.topics = Topics(site)
        self.kid = kid
        # A frame up and a frame down have topics of nearly the same length.
        self._topic_size = len(self.topics.up(kid) if role is Role.NODE else self.topics.down(kid))
        self._mqtt5 = settings.protocol != "3.1.1"
        self._protocol_settled = settings.protocol != "auto"
        self._stepped_down = False
        self._forget = False
        self._listening: frozenset[str] = frozenset()
        self._queue: deque[Received] = deque()
        self._arrived = Wake()
        self._wake = Wake()
        self._outage = Outage(_log, f"{name} ({settings.url})")
        self._complaints: set[str] = set()
        self._backoff = Backoff(settings.retry_first, settings.retry_longest)
        self._live: Connection | None = None
        self._live_since = 0.0
        self._short_lives = 0
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
        rest = 2 + self._topic_size + 2 + (1 if self._mqtt5 else 0) + size
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
        self._read_secrets()
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
        if isinstance(token, Token):
            token.connection.done(token)

    async def listen(self, fingerprints: frozenset[bytes]) -> None:
        """Subscribe to exactly these addresses; returns when the broker has answered, at
        once while there is no connection (the next one subscribes)."""
        wanted = frozenset(self.topics.peers(fingerprint) for fingerprint in fingerprints)
        if self.role is Role.GATEWAY:
            return
        self._listening = wanted
        if self._live is not None:
            with contextlib.suppress(LinkError):  # lost meanwhile: the next one subscribes
                await self._live.follow()

    def _topic(self, to: Destination) -> str:
        if (to.direction is Direction.UP) is not (self.role is Role.NODE):
            raise UsageError(f"a {self.role.value} does not send {to.direction.value}", field="to")
        if to.direction is Direction.UP:
            return self.topics.up(self.kid)
        if to.direction is Direction.DOWN:
            return self.topics.down(to.key)
        return self.topics.peers(to.key)

    def _read_secrets(self) -> str | None:
        try:
            self.settings.check_key()
            return self.settings.read_password()
        except UsageError as error:
            raise LinkError(str(error), hint=error.hint) from error

    # The life of the link: one connection after the other.

    async def _run(self) -> None:
        while True:
            try:
                await self._one_connection()
            except OldProtocolError as error:
                if self._step_down(error):
                    continue
                self._failed(error)
            except LinkError as error:
                self._failed(error)
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end the link
                _log.exception("%s: internal error", self.name)
                self._failed(LinkError(f"internal error: {error!r}"))
            if not self._protocol_settled:
                self._mqtt5 = True
            await asyncio.sleep(self._backoff.next())

    async def _one_connection(self) -> None:
        """From dialling to the end.

        :raises LinkError: always: why it did not come about, or why it ended.
        """
        password = self._read_secrets()
        sock = await dial_aside(self.settings)
        clean = self.role is Role.NODE or self._forget
        self._forget = False
        connection = Connection(self, sock, mqtt5=self._mqtt5, clean=clean, password=password)
        try:
            await connection.open()
            self._connected(connection)
            await connection.live()
        finally:
            connection.abandon()

    def _connected(self, connection: Connection) -> None:
        if self._closed:
            raise LinkError("closed")
        self._live = connection
        self._live_since = time.monotonic()
        if not (self._mqtt5 or self._protocol_settled):
            self._protocol_settled = self._stepped_down
            self._stepped_down = True
        self.stats.connects += 1
        self.stats.last_error = None
        version, number = ("5", 5.0) if self._mqtt5 else ("3.1.1", 3.1)
        self.stats.extra["protocol"] = number
        self._outage.over(f"connected with MQTT {version}")
        self._wake.notify()

    def _failed(self, error: LinkError) -> None:
        if self._closed:
            return
        hint = error.hint
        if hint in (WANTS_CERTIFICATE, RENEW):
            hint = self._expired() or hint
        if hint is None and self._short_lives >= _MANY_SHORT:
            hint = "again and again: does another program use the same key, or user name?"
        self.stats.last_error = str(error)
        self._outage.cause(str(error), hint)

    def _expired(self) -> str | None:
        """What to do about a broker that ended TLS, if our certificate did: it may not say why,
        but we can look."""
        from qis_edge.links.certificate import ends  # needed rarely

        end = ends(self.settings.cert) if self.settings.cert is not None else None
        if end is None or end > time.time():
            return None
        return f"our certificate {self.settings.cert} ended on {moment(end)}: renew it"

    def _step_down(self, error: OldProtocolError) -> bool:
        """Whether to try 3.1.1 now. Where the broker said that it does not know MQTT 5 that
        is for good; where it only hung up or kept silent, when it has happened twice."""
        if not self._mqtt5 or self._protocol_settled:
            return False
        self._mqtt5 = False
        self._protocol_settled = error.sure
        return True

    # What a connection asks and tells.

    def needed(self) -> str:
        """The topic filter without which the link is of no use."""
        return self.topics.every_up if self.role is Role.GATEWAY else self.topics.down(self.kid)

    def listening(self) -> frozenset[str]:
        """The other topic filters."""
        return self._listening

    def lost(self, connection: Connection, error: LinkError) -> None:
        """A connection has ended."""
        if self._live is connection:
            self._live = None
            self.stats.last_error = str(error)
            self.stats.disconnects += 1
            if time.monotonic() - self._live_since >= _GOOD:
                self._backoff.reset()
                self._short_lives = 0
            else:
                self._short_lives += 1
        self._wake.notify()

    def complain(self, text: str) -> None:
        """Something is wrong that does not end the connection: say it once."""
        self.stats.last_error = text
        if text not in self._complaints and len(self._complaints) < Outage.MAX_CAUSES:
            self._complaints.add(text)
            _log.warning("%s: %s", self.name, text)

    def count(self, what: str) -> None:
        """One more of ``what`` in ``stats.extra``."""
        self.stats.extra[what] = self.stats.extra.get(what, 0.0) + 1

    def accepted(self, *, resumed: bool) -> None:
        """A session begins. If the broker kept the last one it gives again what we had not
        acknowledged, and what still waits here would only come twice."""
        if resumed:
            self._queue = deque(r for r in self._queue if r.token is None)
        surplus = max(0, len(self._queue) - self.settings.receive_window)
        self.stats.dropped_in += surplus
        self._queue = deque(islice(self._queue, surplus, None))

    def poisoned(self) -> None:
        """The broker would send it again with each connection: let the next session be new."""
        self._forget = True

    def room_changed(self) -> None:
        """The broker acknowledged something."""
        self._wake.notify()

    def take(self, topic: str | None, payload: bytes, token: Token | None) -> bool:
        """Queue what came in; False if it is of no use or there is no place for it."""
        parsed = self._parse(topic) if topic is not None else None
        # QoS 1 is bounded by what is not done with; QoS 0, which we never asked for, here.
        full = token is None and len(self._queue) >= 2 * self.settings.receive_window
        if parsed is None or full or len(payload) > self.mtu:
            self.stats.dropped_in += 1
            return False
        direction, key = parsed
        claimed = None if direction is Direction.PEERS else key
        self._queue.append(Received(payload, direction, claimed, token))
        self.stats.frames_in += 1
        self.stats.bytes_in += len(payload)
        self._arrived.notify()
        return True

    def _parse(self, topic: str) -> tuple[Direction, bytes] | None:
        """Whose topic it is, or ``None`` if none that we subscribed to."""
        parsed = self.topics.parse(topic)
        if parsed is None:
            return None
        if self.role is Role.GATEWAY:
            return parsed if parsed[0] is Direction.UP else None
        return parsed if topic == self.needed() or topic in self._listening else None
