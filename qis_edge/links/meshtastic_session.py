"""One conversation with a Meshtastic radio, from the handshake to the loss of the line.

A :class:`Session` does no I/O and has no clock: bytes and time go in, bytes and events come
out, and it says when it wants to be asked again. Times are seconds of any steady clock.
"""

from __future__ import annotations

import enum
import secrets
from dataclasses import dataclass
from typing import Any, cast

from qis_edge.core.errors import UsageError
from qis_edge.links.meshtastic_stream import WAKE, Deframer, definitions, encode

BROADCAST = 0xFFFFFFFF
PRIVATE_APP = 256
#: Asks for the configuration without the other nodes.
NONCE = 69420
#: The most that the firmware parses; what it can send is less, and it says so.
MAX_PAYLOAD = 233
_ROUTING_APP, _TELEMETRY_APP = 5, 67


class Priority(enum.IntEnum):
    """A full queue drops lower ones first, without a word; so no higher than needed."""

    BACKGROUND = 10
    DEFAULT = 64


class Reason(enum.Enum):
    """Why a packet was not taken."""

    NOT_CONNECTED = "not connected"
    NO_ROOM = "no room in the radio's queue"
    QUEUE_FULL = "the radio's queue is full"
    DISABLED = "the radio may not send (is its region set?)"
    TOO_LARGE = "too large"
    DUTY_CYCLE = "the duty cycle is used up"
    NO_CHANNEL = "no such channel"
    NO_KEY = "the receiver's public key is unknown"
    OTHER = "refused"


@dataclass(frozen=True, slots=True)
class Taken:
    """The radio has it in its queue. If it reboots before it sent it, it is lost."""

    id: int


@dataclass(frozen=True, slots=True)
class Declined:
    """The radio does not have it. ``code`` is what it said, 0 if it was not asked."""

    reason: Reason
    code: int = 0


@dataclass(frozen=True, slots=True)
class Unknown:
    """It was written, and the radio may or may not have it."""

    id: int
    cause: str


Outcome = Taken | Declined | Unknown


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What to send. ``channel`` is an index; ``hop_limit`` ``None`` is the radio's own."""

    payload: bytes
    to: int = BROADCAST
    port: int = PRIVATE_APP
    channel: int = 0
    priority: Priority = Priority.DEFAULT
    want_ack: bool = False
    hop_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The handshake is complete."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of the packet that was under way."""

    id: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Heard:
    """A packet of somebody, for us or for all. ``hops`` is ``None`` where it is not known;
    ``time`` is Unix seconds by the radio's clock, 0 if it has none."""

    source: int
    to: int
    id: int
    port: int
    payload: bytes
    channel: int
    snr: float
    rssi: int
    hops: int | None
    time: int


@dataclass(frozen=True, slots=True)
class Report:
    """An ACK (``error`` 0) or a NAK of the mesh for a packet that was taken.

    ``error`` is Meshtastic's ``Routing.Error``; ``name`` its name. Of ``source``: the receiver
    is the real one, our own radio means an implicit ACK, or an error of its own.
    """

    id: int
    error: int
    name: str
    source: int


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What the radio says of the air: per cent of the last minute that it was busy, per cent
    of the last hour that the radio sent."""

    channel_utilization: float
    air_util_tx: float


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the radio wants people to know."""

    text: str


@dataclass(frozen=True, slots=True)
class Rebooted:
    """The radio started anew: what was in its queue is gone."""


@dataclass(frozen=True, slots=True)
class Dead:
    """Nothing more is to be expected of this line."""

    cause: str


Event = Ready | Settled | Heard | Report | Telemetry | Notice | Rebooted | Dead


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds.

    :param ask: between two requests for the configuration while the radio is silent.
    :param silence: of the radio while it owes an answer, after which the line is dead.
    :param handshake: the most that the handshake may take.
    :param answer: for the answer to a packet, before it is asked for.
    :param idle: without a word of the radio before it is asked whether it is there.
    :param poll: between two questions for room in a queue that has none.
    :param stall: for the rest of a frame, after which it counts as garbage.
    """

    ask: float = 3.0
    silence: float = 10.0
    handshake: float = 60.0
    answer: float = 3.0
    idle: float = 60.0
    poll: float = 2.0
    stall: float = 1.0


class State(enum.Enum):
    """Where a session stands."""

    CONFIGURING = "configuring"
    READY = "ready"
    DEAD = "dead"


@dataclass(slots=True)
class RadioInfo:
    """What the handshake told of the radio."""

    number: int = 0
    name: str = ""
    firmware: str = ""
    region: str = "UNSET"
    preset: str = ""
    hop_limit: int = 3
    tx_enabled: bool = True


@dataclass(slots=True)
class _UnderWay:
    id: int
    to: int
    since: float
    asked: bool = False


class Session:
    """The state machine.

    :param now: when it begins; what it says first is at once in :meth:`data_to_send`.
    :param keep_free: places of the radio's queue that are left to the radio itself.
    """

    def __init__(self, now: float, timings: Timings | None = None, keep_free: int = 3) -> None:
        self.now = now
        self.timings = timings or Timings()
        self.keep_free = keep_free
        self.telemetry: Telemetry | None = None
        self._deframer = Deframer(_makes_sense)
        self._out = bytearray(WAKE)
        self._under_way: _UnderWay | None = None
        self._events: list[Event] = []
        self._last_bytes = self._last_message = self._last_status = now
        self._began = self._asked = now
        self.state = State.CONFIGURING
        self.radio = RadioInfo()
        #: Places in the radio's queue, as far as it said.
        self.free: int | None = None
        # When it was asked for a status that it owes, at first and at last.
        self._beats: tuple[float, float] | None = None
        self._configure()

    # What the owner of the line does.

    def data_to_send(self) -> bytes:
        """Bytes to write now."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Bytes came."""
        self.now = max(self.now, now)
        self._last_bytes = self.now
        for message in self._deframer.feed(data):
            self._message(message)
        return self._take()

    def lost(self, cause: str, now: float) -> list[Event]:
        """The line is gone."""
        self.now = max(self.now, now)
        self._die(cause)
        return self._take()

    @property
    def deadline(self) -> float | None:
        """When to call :meth:`tick`."""
        if self.state is State.DEAD:
            return None
        return min(due for due, _ in self._dues())

    def tick(self, now: float) -> list[Event]:
        """Time passed."""
        self.now = max(self.now, now)
        if not self._over():
            for due, do in self._dues():
                if due <= self.now and not self._over():
                    do()
        return self._take()

    @property
    def room(self) -> int:
        """Packets that may be submitted: none, as long as one is under way."""
        if self.state is not State.READY or self._under_way is not None or self.free is None:
            return 0
        return max(0, self.free - self.keep_free)

    def submit(self, packet: Outgoing, now: float) -> int:
        """Send a packet; a :class:`Settled` with the id that this returns will come.

        :raises UsageError: there is no :attr:`room`, or the packet can never be sent.
        """
        check(packet)
        if not self.room:
            raise UsageError("no room now", field="packet")
        self.now = max(self.now, now)
        mesh = definitions()
        message = mesh.MeshPacket(
            to=packet.to,
            id=1 + secrets.randbelow(0xFFFFFFFF),
            channel=packet.channel,
            want_ack=packet.want_ack,
            priority=int(packet.priority),
            hop_limit=self.radio.hop_limit if packet.hop_limit is None else packet.hop_limit,
        )
        message.decoded.portnum = packet.port
        message.decoded.payload = packet.payload
        self._say(packet=message)
        self._under_way = _UnderWay(message.id, packet.to, self.now)
        return int(message.id)

    @property
    def garbage(self) -> int:
        """Bytes that were part of no message; log text is among them."""
        return self._deframer.outside

    def log_lines(self) -> list[str]:
        """Log text of the radio since the last call."""
        return self._deframer.lines()

    # Time.

    def _dues(self) -> list[tuple[float, Any]]:
        timings = self.timings
        dues: list[tuple[float, Any]] = []
        if self._deframer.waiting:
            dues.append((self._last_bytes + timings.stall, self._stalled))
        if self.state is State.CONFIGURING:
            dues.append((self._last_message + timings.silence, self._silent))
            dues.append((self._began + timings.handshake, self._silent))
            dues.append((self._asked + timings.ask, self._ask))
            return dues
        if self._beats is not None:
            dues.append((self._beats[0] + timings.silence, self._silent))
            dues.append((self._beats[1] + timings.answer, self._beat))  # answers get dropped
            return dues
        dues.append((self._last_message + timings.idle, self._beat))
        if self._under_way is not None:
            dues.append((self._under_way.since + timings.answer, self._beat))
        elif not self.room:
            dues.append((self._last_status + timings.poll, self._beat))
        return dues

    def _over(self) -> bool:
        return self.state is State.DEAD

    def _stalled(self) -> None:
        self._last_bytes = self.now
        for message in self._deframer.stalled():
            self._message(message)

    def _silent(self) -> None:
        began = "" if self.state is State.READY else " the handshake"
        self._die(f"the radio does not answer{began}")

    def _ask(self) -> None:
        if self._last_message > self._asked:
            self._asked = self._last_message  # it is at it
            return
        self._say(want_config_id=NONCE)
        self._asked = self.now

    def _beat(self) -> None:
        if self._under_way is not None:
            self._under_way.asked = True
        self._beats = (self._beats[0] if self._beats else self.now, self.now)
        self._say(heartbeat=definitions().Heartbeat())

    # What the radio says.

    def _message(self, data: bytes) -> None:
        if self.state is State.DEAD:
            return
        message = definitions().FromRadio.FromString(data)
        kind = message.WhichOneof("payload_variant")
        self._last_message = self.now
        if kind == "queueStatus":
            self._status(message.queueStatus)
        elif kind == "packet":
            self._packet(message.packet)
        elif kind == "rebooted":
            self._rebooted()
        elif kind == "config_complete_id":
            self._complete(message.config_complete_id)
        elif kind == "clientNotification":
            self._events.append(Notice(message.clientNotification.message))
        else:
            self._told(kind, message)

    def _told(self, kind: str | None, message: Any) -> None:
        if kind == "my_info":
            self.radio.number = message.my_info.my_node_num
        elif kind == "node_info" and message.node_info.num == self.radio.number:
            self.radio.name = message.node_info.user.long_name
        elif kind == "metadata":
            self.radio.firmware = message.metadata.firmware_version
        elif kind == "config" and message.config.HasField("lora"):
            lora = message.config.lora
            self.radio.region = _name(lora, "region")
            self.radio.preset = _name(lora, "modem_preset") if lora.use_preset else ""
            self.radio.hop_limit = lora.hop_limit
            self.radio.tx_enabled = lora.tx_enabled

    def _configure(self) -> None:
        """Begin the handshake."""
        self.state = State.CONFIGURING
        self.radio = RadioInfo()
        self.free = None
        self._began = self._last_message = self._asked = self._last_status = self.now
        self._beats = None
        self._say(want_config_id=NONCE)

    def _complete(self, nonce: int) -> None:
        if nonce != NONCE or self.state is not State.CONFIGURING:
            return  # another client's, or a second answer to a request made twice
        if not self.radio.number:
            self._asked = self.now
            self._say(want_config_id=NONCE)  # my_info was garbled
            return
        self.state = State.READY
        self._events.append(Ready())
        self._beat()  # to learn how much room there is

    def _rebooted(self) -> None:
        self._settle_unknown("the radio rebooted")
        self._events.append(Rebooted())
        self._configure()

    def _status(self, status: Any) -> None:
        if self.state is not State.READY:
            return
        self.free = status.free
        self._last_status = self.now
        under_way = self._under_way
        if under_way is not None and status.mesh_packet_id == under_way.id:
            self._settle(_outcome(status.res, under_way))
        if status.mesh_packet_id == 0:
            asked = under_way is not None and under_way.asked
            self._beats = None
            if asked and self._under_way is not None:
                # It answers in order, and has dropped the answer to the packet.
                self._settle_unknown("the radio did not say whether it took it")

    def _packet(self, packet: Any) -> None:
        source = getattr(packet, "from")
        if not packet.HasField("decoded"):
            return  # of a channel that the radio cannot read
        data = packet.decoded
        if data.portnum == _ROUTING_APP:
            self._routing(source, data)
        elif source == self.radio.number:
            if data.portnum == _TELEMETRY_APP:
                self._metrics(data.payload)
        elif packet.to in (self.radio.number, BROADCAST):
            self._events.append(
                Heard(
                    source=source,
                    to=packet.to,
                    id=packet.id,
                    port=data.portnum,
                    payload=data.payload,
                    channel=packet.channel,
                    snr=packet.rx_snr,
                    rssi=packet.rx_rssi,
                    hops=packet.hop_start - packet.hop_limit if packet.hop_start else None,
                    time=packet.rx_time,
                )
            )

    def _routing(self, source: int, data: Any) -> None:
        routing = _parsed("mesh_pb2", "Routing", data.payload)
        if routing is None or not data.request_id:
            return
        if routing.WhichOneof("variant") != "error_reason":
            return
        error = routing.error_reason
        under_way = self._under_way
        if under_way is not None and data.request_id == under_way.id:
            # The QueueStatus was dropped, and this tells as much.
            taken = source != self.radio.number or error in (0, _error("MAX_RETRANSMIT"))
            self._settle(Taken(under_way.id) if taken else _declined(error))
        name = _name(routing, "error_reason")
        self._events.append(Report(data.request_id, error, name, source))

    def _metrics(self, payload: bytes) -> None:
        telemetry = _parsed("telemetry_pb2", "Telemetry", payload)
        if telemetry is None or not telemetry.HasField("device_metrics"):
            return
        metrics = telemetry.device_metrics
        self.telemetry = Telemetry(metrics.channel_utilization, metrics.air_util_tx)
        self._events.append(self.telemetry)

    # Ends.

    def _settle(self, outcome: Outcome) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            self._events.append(Settled(under_way.id, outcome))

    def _settle_unknown(self, cause: str) -> None:
        if self._under_way is not None:
            self._settle(Unknown(self._under_way.id, cause))

    def _die(self, cause: str) -> None:
        if self.state is State.DEAD:
            return
        self.state = State.DEAD
        self._settle_unknown(cause)
        self._events.append(Dead(cause))

    def _say(self, **part: Any) -> None:
        self._out += encode(definitions().ToRadio(**part).SerializeToString())

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def check(packet: Outgoing) -> None:
    """See that a packet can be put into words.

    :raises UsageError: it cannot.
    """
    if not 0 < len(packet.payload) <= MAX_PAYLOAD:
        raise UsageError(f"1 to {MAX_PAYLOAD} bytes", field="payload")
    for name, most in (("to", BROADCAST), ("port", 511), ("channel", 7)):
        if not 0 <= getattr(packet, name) <= most:
            raise UsageError(f"0 to {most}", field=name)
    if packet.hop_limit is not None and not 0 <= packet.hop_limit <= 7:
        raise UsageError("0 to 7", field="hop_limit")


_BY_NAME = {
    "TOO_LARGE": Reason.TOO_LARGE,
    "DUTY_CYCLE_LIMIT": Reason.DUTY_CYCLE,
    "NO_CHANNEL": Reason.NO_CHANNEL,
    "PKI_UNKNOWN_PUBKEY": Reason.NO_KEY,
    "PKI_SEND_FAIL_PUBLIC_KEY": Reason.NO_KEY,
}
# QueueStatus.res has numbers of its own that are routing errors too; in answer to a broadcast
# they can only be these.
_RES = {32: Reason.QUEUE_FULL, 34: Reason.DISABLED}


def _outcome(res: int, under_way: _UnderWay) -> Outcome:
    if res == 0:
        return Taken(under_way.id)
    if res == 32 or under_way.to == BROADCAST:
        reason = _RES.get(res)
        if reason is not None:
            return Declined(reason, res)
    return _declined(res)


def _declined(error: int) -> Declined:
    routing = definitions().Routing.Error
    name = routing.Name(error) if error in routing.values() else ""
    return Declined(_BY_NAME.get(name, Reason.OTHER), error)


def _error(name: str) -> int:
    return int(definitions().Routing.Error.Value(name))


def _name(message: Any, field_name: str) -> str:
    """An enum field's value by name; one that a newer firmware knows, by number."""
    values = message.DESCRIPTOR.fields_by_name[field_name].enum_type.values_by_number
    number = getattr(message, field_name)
    return str(values[number].name) if number in values else str(number)


def _parsed(module: str, kind: str, data: bytes) -> Any | None:
    """A message, or ``None`` if the bytes are none."""
    message = getattr(definitions(module), kind)()
    try:
        message.ParseFromString(data)
    except _decode_error():
        return None
    return message


def _decode_error() -> type[Exception]:
    # Not at the top: a node without a radio does not have it.
    from google.protobuf.message import DecodeError

    return cast("type[Exception]", DecodeError)


def _makes_sense(data: bytes) -> bool:
    message = _parsed("mesh_pb2", "FromRadio", data)
    return message is not None and message.WhichOneof("payload_variant") is not None
