"""An emulated Meshtastic radio: what a host says to it, what it says to the host and the air.

It has no I/O and no clock of its own: messages of the stream protocol come in by
:meth:`Radio.host`, go out by :meth:`Radio.next_message`, and time is the channel's. What it
does was measured on firmware 2.7.26; ``docs/radio-sim.md`` says what it leaves out.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from devices.radio_sim.channel import BROADCAST, AirFrame, Channel, Timer
from devices.radio_sim.settings import Known, Settings
from qis_edge.core.airtime import MAX_ON_AIR, RADIO_HEADER
from qis_edge.links.meshtastic_stream import definitions

QUEUE = 16
#: The firmware's buffer for a payload; a message with a longer one is not even parsed.
MAX_PAYLOAD = 233
#: Bytes of ``Data`` in a frame of 255, by channel and with a public key.
MAX_DATA = MAX_ON_AIR - RADIO_HEADER
PUBLIC_KEY_OVERHEAD = 12
TRANSMISSIONS = 3
RECENT_FROM_HOST = 20
SEEN = 200
# Values of QueueStatus.res beside the routing errors.
RES_UNKNOWN, RES_DISABLED = 32, 34
_HOUR = 3600.0
_NEVER_BY_PUBLIC_KEY = frozenset({3, 4, 5, 70})  # POSITION, NODEINFO, ROUTING, TRACEROUTE
#: What CORE_PORTNUMS_ONLY passes on: Meshtastic's own applications.
_CORE = frozenset({1, 3, 4, 5, 6, 7, 8, 11, 12, 65, 67, 70})
#: Roles that pass a frame on even if others have.
_ALWAYS = ("ROUTER", "REPEATER", "ROUTER_LATE")
_ROUTING, _ADMIN, _NODEINFO, _TELEMETRY = 5, 6, 4, 67
_ACK_PRIORITY, _RELIABLE, _DEFAULT, _BACKGROUND = 120, 70, 64, 10


@dataclass(slots=True)
class _Queued:
    frame: AirFrame
    priority: int
    order: int
    not_before: float = 0.0
    relay: bool = False


@dataclass(slots=True)
class _Pending:
    """A packet of ours that wants an ACK."""

    frame: AirFrame
    priority: int
    left: int
    timer: Timer


@dataclass(slots=True)
class RadioStats:
    """What a radio did since it was made."""

    sent: int = 0
    relayed: int = 0
    received: int = 0
    duplicates: int = 0
    dropped_to_host: int = 0  # for want of room, packets
    evicted: int = 0  # from its queue by higher priorities
    repeated_by_host: int = 0
    statuses_dropped: int = 0
    airtime: float = 0.0  # seconds


class Radio:
    """One radio on a channel.

    :param receive_limit: packets kept for the host; 8 on classic ESP32, 16 or 32 on others.
    :param boot_time: seconds that a reboot takes.
    :param status_loss: probability that a QueueStatus is dropped, beside those for which its
        queue of 2 has no room.

    Configure it by :attr:`settings`. ``on_output`` is called when :meth:`next_message` has
    something new, ``on_power`` with whether it is on.
    """

    STATUSES = 2

    def __init__(
        self,
        channel: Channel,
        settings: Settings,
        *,
        receive_limit: int = 32,
        boot_time: float = 2.0,
        status_loss: float = 0.0,
    ) -> None:
        self.channel = channel
        self.settings = settings
        self.number = settings.number
        self.receive_limit = receive_limit
        self.boot_time = boot_time
        self.status_loss = status_loss
        self.stats = RadioStats()
        self.on = True
        self.known: dict[int, Known] = {}
        #: Results for the host's next sends, in place of what would become of them:
        #: (res of the QueueStatus, whether a NAK of that number comes too).
        self.refusals: deque[tuple[int, bool]] = deque()
        self.on_output: Callable[[], None] | None = None
        self.on_power: Callable[[bool], None] | None = None
        self._order = 0
        self._began = 0.0
        self._sent_airtime: deque[tuple[float, float]] = deque()
        self._reset()
        channel.join(self)
        self._telemetry_timer = channel.simulation.after(60.0, self._telemetry)

    def _reset(self) -> None:
        self.host_present = False
        self._answers: deque[bytes] = deque()
        self._statuses: deque[bytes] = deque()
        self._notices: deque[bytes] = deque(maxlen=4)
        self._packets: deque[bytes] = deque()
        self._queue: list[_Queued] = []
        self._pending: dict[int, _Pending] = {}
        self._recent: deque[int] = deque(maxlen=RECENT_FROM_HOST)
        self._seen: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._sending = False
        self._wait: Timer | None = None

    # Power.

    @property
    def listening(self) -> bool:
        """Whether it is on."""
        return self.on

    def power_off(self) -> None:
        """Everything in its queues is lost."""
        if not self.on:
            return
        self.on = False
        self.settings.power_lost()
        self.channel.silence(self)
        for pending in self._pending.values():
            pending.timer.cancel()
        for timer in (self._wait, self._telemetry_timer):
            if timer is not None:
                timer.cancel()
        self._reset()
        if self.on_power is not None:
            self.on_power(False)

    def power_on(self) -> None:
        """Start; a host on a serial line is told."""
        if self.on:
            return
        self.on = True
        self.settings.reboots += 1
        self._began = self.channel.now
        self._telemetry_timer = self.channel.simulation.after(60.0, self._telemetry)
        if self.on_power is not None:
            self.on_power(True)
        self._answers.append(self._from_radio(rebooted=True))
        self._output()

    def reboot(self) -> None:
        """Off, and on again after :attr:`boot_time`."""
        self.power_off()
        self.channel.simulation.after(self.boot_time, self.power_on)

    # The host.

    def host(self, message: bytes) -> None:
        """A message of the stream protocol came from the host; malformed ones are ignored."""
        if not self.on:
            return
        to_radio = definitions().ToRadio()
        try:
            to_radio.ParseFromString(message)
        except DecodeError:
            return
        kind = to_radio.WhichOneof("payload_variant")
        if kind == "want_config_id":
            self._answers.clear()
            others = self.known.values()
            self._answers.extend(self.settings.handshake(to_radio.want_config_id, others))
            self.host_present = True
        elif kind == "heartbeat":
            self._status(0, 0)
        elif kind == "disconnect":
            self.host_gone()
        elif kind == "packet" and len(to_radio.packet.decoded.payload) <= MAX_PAYLOAD:
            self._from_host(to_radio.packet)
        self._output()

    def host_gone(self) -> None:
        """The host hung up; packets are kept for the next."""
        self.host_present = False
        self._answers.clear()
        self._statuses.clear()

    def next_message(self) -> bytes | None:
        """The next message to the host, taken off its queue."""
        if self._answers:
            return self._answers.popleft()
        if not self.host_present:
            return None
        for queue in (self._statuses, self._notices, self._packets):
            if queue:
                return queue.popleft()
        return None

    @property
    def free(self) -> int:
        """Room in the queue to the air."""
        return QUEUE - len(self._queue)

    @property
    def waiting(self) -> int:
        """Packets kept for the host."""
        return len(self._packets)

    @property
    def air_util_tx(self) -> float:
        """Per cent of the last hour that it sent."""
        sent = self._sent_airtime
        while sent and sent[0][0] <= self.channel.now - _HOUR:
            sent.popleft()
        return 100.0 * sum(airtime for _, airtime in sent) / _HOUR

    def spend(self, seconds: float) -> None:
        """Count airtime as spent now, as if others' traffic had been relayed."""
        self._sent_airtime.append((self.channel.now, seconds))

    def answer(self, request: int, error: int, *, source: int | None = None) -> None:
        """Tell the host an ACK (0) or a NAK for one of its packets, from this radio unless
        ``source`` says otherwise."""
        self._to_host(self._routing_packet(request, error, source or self.number))

    def _from_host(self, packet: Any) -> None:
        packet.id = packet.id or self._new_id()
        if packet.id in self._recent:
            self.stats.repeated_by_host += 1
            return
        self._recent.append(packet.id)
        if packet.to == self.number:
            self._status(0, packet.id)
            self._local(packet)
            return
        if self.refusals:
            res, nak = self.refusals.popleft()
        elif not self.settings.lora.region or not self.settings.lora.tx_enabled:
            res, nak = RES_DISABLED, False
        elif self.air_util_tx >= self.settings.duty_cycle:
            res, nak = self._error("DUTY_CYCLE_LIMIT"), True
        else:
            res, nak = self._send_for_host(packet)
        self._status(res, packet.id)
        if nak:
            self.answer(packet.id, res)
        if res == self._error("DUTY_CYCLE_LIMIT"):
            self._notify(packet.id, "Duty cycle limit exceeded. You can send again later.")

    def _send_for_host(self, packet: Any) -> tuple[int, bool]:
        frame, error = self._encode(packet)
        if frame is None:
            return error, True
        priority = packet.priority or (_RELIABLE if packet.want_ack else _DEFAULT)
        if not self._enqueue(frame, priority):
            return RES_UNKNOWN, False
        self._remember(frame.key)
        if frame.want_ack:
            self._expect_ack(frame, priority, TRANSMISSIONS - 1)
        return 0, False

    def _encode(self, packet: Any) -> tuple[AirFrame | None, int]:
        if not packet.decoded.HasField("bitfield"):
            packet.decoded.bitfield = 1
        data = packet.decoded.SerializeToString()
        secret, overhead = self.settings.secret(packet.channel), 0
        if packet.to != BROADCAST and packet.decoded.portnum not in _NEVER_BY_PUBLIC_KEY:
            known = self.known.get(packet.to)
            if known is None or known.user is None or not known.user.public_key:
                return None, self._error("PKI_SEND_FAIL_PUBLIC_KEY")
            secret, overhead = self._pair(packet.to), PUBLIC_KEY_OVERHEAD
        if secret is None:
            return None, self._error("NO_CHANNEL")
        if len(data) + overhead > MAX_DATA:
            return None, self._error("TOO_LARGE")
        hops = min(packet.hop_limit, 7)
        return AirFrame(
            source=self.number,
            to=packet.to,
            id=packet.id,
            hop_limit=hops,
            hop_start=hops,
            want_ack=packet.want_ack,
            secret=secret,
            data=data,
            relay=self.number & 0xFF,
            overhead=overhead,
        ), 0

    def _local(self, packet: Any) -> None:
        """The host speaks to the radio itself."""
        if packet.want_ack:
            self.answer(packet.id, 0)
        if packet.decoded.portnum != _ADMIN:
            return
        request = definitions("admin_pb2").AdminMessage()
        try:
            request.ParseFromString(packet.decoded.payload)
        except DecodeError:
            return
        answer, reboot = self.settings.administer(request)
        if answer is not None:
            data = self._data(_ADMIN, answer, request=packet.id)
            self._to_host(self._packet(data, source=self.number, to=self.number))
        if reboot is not None:
            self.channel.simulation.after(reboot, self.reboot)

    # To the air.

    def _enqueue(self, frame: AirFrame, priority: int, delay: float = 0.0) -> bool:
        if len(self._queue) >= QUEUE:
            last = max(self._queue, key=lambda one: (-one.priority, one.order))
            if last.priority >= priority:
                return False
            self._queue.remove(last)
            self.stats.evicted += 1
        self._order += 1
        relay = frame.source != self.number
        queued = _Queued(frame, priority, self._order, self.channel.now + delay, relay)
        self._queue.append(queued)
        self._contend()
        return True

    def _contend(self) -> None:
        """Wait a random number of slots, then send if the air is free."""
        if self._sending or not self._queue:
            return
        if self._wait is not None:
            self._wait.cancel()
        ready = max(0.0, min(one.not_before for one in self._queue) - self.channel.now)
        self._wait = self.channel.simulation.after(ready + self._slots(), self._try)

    def _slots(self) -> float:
        busy = self.channel.utilization(self.number)
        window = 3 + round(5 * min(busy, 100.0) / 100)
        return self.channel.random.randrange(2**window) * self.channel.slot

    def _try(self) -> None:
        self._wait = None
        ready = [one for one in self._queue if one.not_before <= self.channel.now]
        if not ready or self.channel.sensed(self.number):
            self._contend()
            return
        queued = min(ready, key=lambda one: (-one.priority, one.order))
        self._queue.remove(queued)
        self._sending = True
        airtime = self.channel.transmit(self, queued.frame, self._sent)
        self._sent_airtime.append((self.channel.now, airtime))
        self.stats.airtime += airtime
        self.stats.sent += 1
        self.stats.relayed += queued.relay
        if not queued.relay:
            self._status(0, queued.frame.id)
            self._output()

    def _sent(self) -> None:
        self._sending = False
        if self.on:
            self._contend()

    def _expect_ack(self, frame: AirFrame, priority: int, left: int) -> None:
        wait = 2 * self.channel.airtime(frame) + 56 * self.channel.slot + 4.5
        timer = self.channel.simulation.after(wait, lambda: self._no_ack(frame.id))
        self._pending[frame.id] = _Pending(frame, priority, left, timer)

    def _no_ack(self, identifier: int) -> None:
        pending = self._pending.pop(identifier)
        if not pending.left:
            self.answer(identifier, self._error("MAX_RETRANSMIT"))
            return
        self._enqueue(pending.frame, pending.priority)
        self._expect_ack(pending.frame, pending.priority, pending.left - 1)

    def _acked(self, identifier: int) -> _Pending | None:
        pending = self._pending.pop(identifier, None)
        if pending is not None:
            pending.timer.cancel()
            self._queue = [one for one in self._queue if one.frame.id != identifier]
        return pending

    # From the air.

    def heard(self, frame: AirFrame, snr: float, rssi: int) -> None:
        """A frame arrived, whole."""
        self.stats.received += 1
        if frame.source == self.number:
            self._heard_own(frame)
            return
        if frame.key in self._seen:
            self.stats.duplicates += 1
            self._heard_again(frame)
            return
        self._remember(frame.key)
        known = self.known.setdefault(frame.source, Known(frame.source))
        known.snr, known.last_heard = snr, self._time()
        if frame.to in (self.number, BROADCAST):
            self._deliver(frame, snr, rssi)
        if frame.to != self.number:
            self._relay(frame, snr)

    def _heard_own(self, frame: AirFrame) -> None:
        # An implicit ACK. Of a direct message the host hears nothing by it.
        if self._acked(frame.id) is not None and frame.to == BROADCAST:
            self.answer(frame.id, 0)

    def _heard_again(self, frame: AirFrame) -> None:
        if frame.to == self.number and frame.want_ack and frame.hop_limit == frame.hop_start:
            self._acknowledge(frame, 0)
        elif frame.relay != frame.source & 0xFF and not self._has_role(*_ALWAYS):
            # Somebody else has relayed it.
            self._queue = [one for one in self._queue if one.frame.key != frame.key]

    def _deliver(self, frame: AirFrame, snr: float, rssi: int) -> None:
        index = 0 if frame.secret == self._pair(frame.source) else None
        if index is None:
            index = self.settings.channel_of(frame.secret)
        if index is None:
            if frame.to == self.number and frame.want_ack:
                self._acknowledge(frame, self._error("NO_CHANNEL"))
            return
        data = definitions().Data.FromString(frame.data)
        if frame.to == self.number:
            self._answered(frame, data)
        if data.portnum == _NODEINFO:
            self._met(frame.source, data.payload)
        packet = self._packet(data, source=frame.source, to=frame.to, identifier=frame.id)
        packet.channel = index
        packet.rx_time, packet.rx_snr, packet.rx_rssi = self._time(), snr, rssi
        packet.hop_limit, packet.hop_start = frame.hop_limit, frame.hop_start
        packet.want_ack = frame.want_ack
        packet.relay_node = frame.relay
        packet.pki_encrypted = frame.overhead > 0
        packet.transport_mechanism = definitions().MeshPacket.TRANSPORT_LORA
        self._to_host(packet)

    def _met(self, number: int, payload: bytes) -> None:
        user = definitions().User()
        with contextlib.suppress(DecodeError):
            user.ParseFromString(payload)
            self.known[number].user = user

    def _answered(self, frame: AirFrame, data: Any) -> None:
        """Something was for us alone: ACK it, and see whether it is an answer to us."""
        if data.portnum == _ROUTING:
            self._acked(data.request_id)
            return
        if frame.want_ack:
            self._acknowledge(frame, 0)
        if data.want_response:
            self._acknowledge(frame, self._error("NO_RESPONSE"))

    def _acknowledge(self, frame: AirFrame, error: int) -> None:
        packet = self._routing_packet(frame.id, error, self.number, to=frame.source)
        packet.hop_limit = self.settings.lora.hop_limit
        answer, _ = self._encode(packet)
        if answer is not None:
            self._enqueue(answer, _ACK_PRIORITY)

    def _relay(self, frame: AirFrame, snr: float) -> None:
        device = self.settings.device
        roles, modes = type(device).Role, type(device).RebroadcastMode
        readable = self.settings.channel_of(frame.secret) is not None
        if frame.hop_limit < 1 or device.role == roles.Value("CLIENT_MUTE"):
            return
        if device.rebroadcast_mode == modes.Value("NONE"):
            return
        local = (modes.Value("LOCAL_ONLY"), modes.Value("KNOWN_ONLY"))
        if device.rebroadcast_mode in local and not readable:
            return
        core = device.rebroadcast_mode == modes.Value("CORE_PORTNUMS_ONLY")
        if core and readable and definitions().Data.FromString(frame.data).portnum not in _CORE:
            return
        window = 3 + round(5 * (min(max(snr, -20.0), 10.0) + 20.0) / 30)
        first = self._has_role("ROUTER", "REPEATER")
        slots = self.channel.random.randrange(2 * window if first else 2**window)
        if self._has_role("ROUTER_LATE"):
            slots += 16 + 2**8  # after all others
        elif not first:
            slots += 16
        self._enqueue(frame.relayed(self.number), _BACKGROUND, slots * self.channel.slot)

    def _has_role(self, *names: str) -> bool:
        device = self.settings.device
        return device.role in map(type(device).Role.Value, names)

    def announce(self) -> None:
        """Broadcast who this is, as radios do every few hours."""
        data = self._data(_NODEINFO, self.settings.owner)
        packet = self._packet(data, source=self.number, to=BROADCAST)
        packet.hop_limit = self.settings.lora.hop_limit
        frame, _ = self._encode(packet)
        if frame is not None and self.settings.lora.region:
            self._remember(frame.key)
            self._enqueue(frame, _BACKGROUND)

    # Messages.

    def _to_host(self, packet: Any) -> None:
        if len(self._packets) >= self.receive_limit:
            self.stats.dropped_to_host += 1
            return
        self._packets.append(self._from_radio(packet=packet))
        self._output()

    def _status(self, res: int, identifier: int) -> None:
        if not self.host_present:
            return
        status = definitions().QueueStatus(
            res=res, free=self.free, maxlen=QUEUE, mesh_packet_id=identifier
        )
        full = len(self._statuses) >= self.STATUSES
        if full or self.channel.random.random() < self.status_loss:
            self.stats.statuses_dropped += 1
            return
        self._statuses.append(self._from_radio(queueStatus=status))

    def _notify(self, identifier: int, text: str) -> None:
        notice = definitions().ClientNotification(
            reply_id=identifier, time=self._time(), level="WARNING", message=text
        )
        self._notices.append(self._from_radio(clientNotification=notice))

    def _telemetry(self) -> None:
        self._telemetry_timer = self.channel.simulation.after(60.0, self._telemetry)
        if self._packets:
            return
        telemetry = definitions("telemetry_pb2").Telemetry(time=self._time())
        metrics = telemetry.device_metrics
        metrics.battery_level = 101  # powered from outside
        metrics.channel_utilization = self.channel.utilization(self.number)
        metrics.air_util_tx = self.air_util_tx
        metrics.uptime_seconds = int(self.channel.now - self._began)
        data = self._data(_TELEMETRY, telemetry)
        self._to_host(self._packet(data, source=self.number, to=BROADCAST))

    def _routing_packet(
        self, request: int, error: int, source: int, *, to: int | None = None
    ) -> Any:
        routing = definitions().Routing(error_reason=error)
        data = self._data(_ROUTING, routing, request=request)
        return self._packet(data, source=source, to=self.number if to is None else to)

    @staticmethod
    def _data(port: int, message: Any, *, request: int = 0) -> Any:
        data = definitions().Data(portnum=port, payload=message.SerializeToString(), bitfield=1)
        if request:
            data.request_id = request
        return data

    def _packet(self, data: Any, *, source: int, to: int, identifier: int | None = None) -> Any:
        packet = definitions().MeshPacket(to=to, id=identifier or self._new_id())
        setattr(packet, "from", source)  # a keyword
        packet.decoded.CopyFrom(data)
        return packet

    @staticmethod
    def _from_radio(**part: Any) -> bytes:
        return bytes(definitions().FromRadio(**part).SerializeToString())

    @staticmethod
    def _error(name: str) -> int:
        return int(definitions().Routing.Error.Value(name))

    def _pair(self, other: int) -> str:
        return f"pair {min(self.number, other)} {max(self.number, other)}"

    def _new_id(self) -> int:
        return self.channel.random.randrange(1, 1 << 32)

    def _remember(self, key: tuple[int, int]) -> None:
        self._seen[key] = None
        while len(self._seen) > SEEN:
            self._seen.popitem(last=False)

    #: Unix time at which emulated clocks begin: 2026-01-01.
    EPOCH = 1767225600

    def _time(self) -> int:
        return self.EPOCH + int(self.channel.now)

    def _output(self) -> None:
        if self.on_output is not None:
            self.on_output()


def introduce(*radios: Radio) -> None:
    """Let radios know each other's names and keys, as if they had met."""
    for one in radios:
        for other in radios:
            if other is not one:
                one.known[other.number] = Known(other.number, other.settings.owner)
