"""What is fuzzed: each decoder of bytes that somebody else wrote, as a function of bytes.

A target returns where the bytes are refused in the way that the decoder promises, or accepted and
then hold what it promises of accepted ones. Whatever else it raises is a finding. Targets are pure:
the same bytes do the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from gateway.config import GatewayConfig
from gateway.routing import hub_wire, kafka, nats_reading, redis_places
from gateway.routing.feed import MAX_POSITION
from gateway.routing.url import EngineUrl
from qis_edge.config import NodeConfig
from qis_edge.core import cbor, checks, cobs, receipt
from qis_edge.core.cose import mac0, sign1
from qis_edge.core.credential import (
    CREDENTIAL_AAD,
    CWT_TAG,
    Credential,
    Enrolment,
    RevocationList,
    TrustStore,
)
from qis_edge.core.domain import Domain
from qis_edge.core.errors import (
    ConfigError,
    Reason,
    Refused,
    RoutingError,
    UsageError,
)
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.mesh import framing
from qis_edge.core.mesh.receiver import Receiver
from qis_edge.core.messages import (
    EnrolmentMessage,
    Hello,
    RevocationMessage,
    Wanted,
    decode,
)
from qis_edge.core.packet import MAX_PACKET, Packet, unpack
from qis_edge.core.ranges import decode_set, encode_set
from qis_edge.keys import FleetFile
from qis_edge.links import meshtastic_stream, mqtt_connection, serial_framing
from qis_edge.links.base import UP
from qis_edge.links.mqtt_dial import BufferedSocket
from qis_edge.links.mqtt_settings import MqttSettings
from qis_edge.links.mqtt_topics import Topics
from qis_edge.schema import loads

Target = Callable[[bytes], None]

ROOT = Identity.from_seed(b"\x11" * 32)
NODE = Identity.from_seed(b"\x22" * 32)
KEY = bytes(range(32))
EPOCH = b"\x0a\x0b\x0c\x0d"
NOW = 1_700_000_000.0
HERE = Path("config.toml")


def refusing(raw: bytes, read: Callable[[bytes], object]) -> None:
    """What is not acceptable is refused, and with a reason and a field."""
    try:
        read(raw)
    except Refused as error:
        assert isinstance(error.reason, Reason)
        assert error.field
        assert len(str(error)) < 2000


# --- what travels ----------------------------------------------------------------------


def item(data: bytes) -> None:
    """CBOR: what is accepted has one form, and that is the one that came."""

    def read(raw: bytes) -> None:
        assert cbor.dumps(cbor.loads(raw, "item")) == raw
        assert cbor.item_end(raw, 0, "item") == len(raw)

    refusing(data, read)


def packet(data: bytes) -> None:
    """A packet as it came, and a packet whose signed payload it is."""
    refusing(data, _packet)
    refusing(_signed(data)[:MAX_PACKET], _packet)


def _signed(payload: bytes) -> bytes:
    """Framed as a packet; the signature is none, for nobody asks."""
    head = bytes([0x58, len(payload)]) if len(payload) < 256 else b"\x59" + len(payload).to_bytes(2)
    start = bytes.fromhex("d28443a10132a10448") + NODE.kid
    return start + head + payload + b"\x58\x40" + bytes(64)


def _packet(raw: bytes) -> None:
    found = unpack(raw)
    assert found.raw == raw
    assert 1 <= found.count <= 512
    assert len(found.outcomes) == found.count
    assert found.expires >= found.last_time >= found.time
    assert unpack(raw, lazy=True).outcomes == found.outcomes
    try:
        unpack(raw, NODE.public)
    except Refused as error:
        assert error.reason is Reason.SIGNATURE
    else:
        raise AssertionError("a signature of zeros verifies")


def credential(data: bytes) -> None:
    """Credentials, revocation lists and wishes to join: as they came, and signed."""
    refusing(data, _credential)
    refusing(CWT_TAG + sign1(ROOT, data, CREDENTIAL_AAD), _credential)
    refusing(data, RevocationList.parse)
    refusing(sign1(ROOT, data, b"qis/revocation/1"), _revocation)
    refusing(data, Enrolment.open)
    refusing(CWT_TAG + sign1(NODE, data, b"qis/enrolment/1"), Enrolment.open)


def _credential(raw: bytes) -> None:
    parsed = Credential.parse(raw)
    store = TrustStore(ROOT.public)
    standing = store.add(raw, NOW)  # what is believed is signed by the root
    assert standing.key == parsed.key
    assert store.resolve(parsed.kid, NOW, next(iter(parsed.scope))) == parsed.key


def _revocation(raw: bytes) -> None:
    store = TrustStore(ROOT.public)
    if store.apply(raw):
        found = RevocationList.parse(raw)
        assert store.revocation_number == found.number
        for kid in found.kids:
            try:
                store.resolve(kid, NOW, "node")
            except Refused as error:
                assert error.reason in (Reason.REVOKED, Reason.UNKNOWN_KEY)


def receipts(data: bytes) -> None:
    """Receipts: as they came, and with a tag that is right."""
    refusing(data, receipt.parse)
    refusing(mac0(KEY, data, b""), _receipt)


def _receipt(raw: bytes) -> None:
    message = receipt.parse(raw)
    ids = {sequence: sequence.to_bytes(32) for sequence in message.receipt.named()}
    assert 1 <= len(ids) == len(message.receipt)
    again = receipt.build(message.receipt, KEY, EPOCH, ids)
    assert again[:-8] == raw[:-8]  # one form, but for the tag
    receipt.verify(receipt.parse(again), KEY, EPOCH, ids.get)
    parts = receipt.split(message.receipt, 40)
    assert sum(map(len, parts)) == len(message.receipt)


def messages(data: bytes) -> None:
    """Whatever a link may bring."""
    refusing(data, _message)
    refusing(mac0(KEY, data, b"", NODE.kid), _message)


def _message(raw: bytes) -> None:
    found = decode(raw)
    if isinstance(found, Hello | Wanted | RevocationMessage | EnrolmentMessage):
        assert found.encode() == raw


def sets(data: bytes) -> None:
    """The forms that messages share: sets of sequences, arrays, numbers."""

    def read(raw: bytes) -> None:
        form = cbor.loads(raw, "set")
        found = decode_set(form, "set")
        assert list(found) == sorted(set(found))
        assert cbor.dumps(encode_set(found)) == raw
        checks.ascending_kids(form, 32, "kids")

    refusing(data, read)


# --- links -----------------------------------------------------------------------------


def mesh(data: bytes) -> None:
    """Frames of a radio: one, and a conversation of several."""
    refusing(data, _frame)
    receiver = Receiver(_known, answers=True)
    now = 0.0
    for raw in _pieces(data):
        now += 1.0
        refusing(raw, lambda raw: receiver.take(raw[-1] % 3, raw, now))  # noqa: B023 - used at once
        answer = receiver.next(now)
        assert answer is None or len(answer) <= framing.MAX_FRAME
    assert receiver.partial() <= receiver.limits.partials


def _frame(raw: bytes) -> None:
    assert framing.decode(raw).encode() == raw


def _known(raw: bytes) -> Packet:
    """Anybody's packet will do: no fuzzer can sign."""
    return unpack(raw)


def _pieces(data: bytes) -> Iterator[bytes]:
    """The frames in a text of them: a byte of length before each."""
    at = 0
    while at < len(data):
        size = data[at] + 1
        yield data[at + 1 : at + 1 + size] or b"\0"
        at += 1 + size


def serial(data: bytes) -> None:
    """A serial line: whatever came before, however it is cut, a frame is found."""
    try:
        plain = cobs.decode(data)
    except Refused:
        pass
    else:
        assert cobs.decode(cobs.encode(plain)) == plain
    assert cobs.decode(cobs.encode(data)) == data
    whole, bytewise = serial_framing.Deframer(), serial_framing.Deframer()
    found = whole.feed(data)
    assert found == [frame for byte in data for frame in bytewise.feed(bytes([byte]))]
    assert (whole.garbage, whole.bad_crc) == (bytewise.garbage, bytewise.bad_crc)
    after = serial_framing.encode(b"message", UP)
    assert whole.feed(b"\0" + after)[-1].message == b"message"


def radio(data: bytes) -> None:
    """A radio's own stream, over serial or TCP."""
    whole, bytewise = meshtastic_stream.Deframer(), meshtastic_stream.Deframer()
    found = whole.feed(data)
    assert found == [one for byte in data for one in bytewise.feed(bytes([byte]))]
    assert whole.waiting <= 4 + 512
    assert whole.outside + whole.waiting + sum(4 + len(one) for one in found) == len(data)
    whole.stalled()
    whole.lines()


class _Wire:
    """A socket on which a broker has said something, once."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def recv(self, size: int) -> bytes:
        if not self._data:
            raise BlockingIOError
        found, self._data = self._data[:size], self._data[size:]
        return found


def mqtt(data: bytes) -> None:
    """A broker's stream, as far as it is not left to paho: what is taken stood there."""
    for mqtt5 in (False, True):
        sock = BufferedSocket(_Wire(data), largest=4096)  # type: ignore[arg-type] # enough of one
        client = mqtt_connection._Client(sock)
        at = 0
        while (found := client.take_publish(mqtt5=mqtt5)) is not None:
            topic, payload, mid = found
            assert topic
            assert 1 <= mid <= 65535
            body = len(topic).to_bytes(2) + topic + mid.to_bytes(2) + b"\0" * mqtt5 + payload
            start = data.index(body, at)
            assert data[at] == 0x32
            assert start - at in (2, 3)  # the type, and one or two bytes of length
            at = start + len(body)
        assert at <= len(data)


# --- the gateway -----------------------------------------------------------------------


def hub(data: bytes) -> None:
    """Requests to a hub, and its answers."""
    for kind in (
        hub_wire.Question,
        hub_wire.Poll,
        hub_wire.Page,
        hub_wire.Receipt,
        hub_wire.Report,
    ):
        refusing(data, partial(_hub, kind))
    refusing(data, lambda raw: hub_wire.deposit(hub_wire.deposited(raw)) == raw)


def _hub(
    kind: type[
        hub_wire.Question | hub_wire.Poll | hub_wire.Page | hub_wire.Receipt | hub_wire.Report
    ],
    raw: bytes,
) -> None:
    found = kind.decode(raw)
    again = found.encode()
    assert kind.decode(again).encode() == again


def cursor(data: bytes) -> None:
    """Places in an engine's log, which nodes and hubs' clients send back: they are read as what
    they are, or as the beginning."""
    born = bytes(8)
    for head in (b"", b"\1" + born, b"\2" + born):
        raw = head + data
        spots = nats_reading.decode(raw, born)
        assert nats_reading.decode(nats_reading.encode(born, spots), born) == spots
        place = redis_places.Place.decode(raw, born)
        assert redis_places.Place.decode(place.encode(), born) == place
        offsets = kafka.decode(raw, "qis")
        again = kafka.encode(offsets, "qis")
        assert len(again) <= MAX_POSITION
        assert kafka.encode(kafka.decode(again, "qis"), "qis") == again


# --- what people write -----------------------------------------------------------------


def config(data: bytes) -> None:
    """Configurations of nodes and gateways: all that is wrong, with its line."""
    text = data.decode("utf-8", "replace")
    last = text.count("\n") + 1
    for cls in (NodeConfig, GatewayConfig):
        try:
            loads(cls, text, HERE, full=False)
        except ConfigError as error:
            assert error.problems
            for problem in error.problems:
                assert problem.line is None or 1 <= problem.line <= last
                assert len(str(problem)) < 2000


def template(data: bytes) -> None:
    """Domain templates and fleet files."""
    text = data.decode("utf-8", "replace")
    try:
        Domain.parse(text)
    except ConfigError as error:
        assert error.problems
    try:
        found = FleetFile.parse(text, HERE)
    except ConfigError as error:
        assert error.problems
    else:
        assert FleetFile.parse(found.text(), HERE) == found


def url(data: bytes) -> None:
    """URLs of engines and brokers, topics, keys: what is shown of them hides what is secret."""
    text = data.decode("utf-8", "replace")
    try:
        found = EngineUrl.parse(text)
    except RoutingError as error:
        assert error.args
    else:
        assert EngineUrl.parse(str(found)).scheme == found.scheme
        if found.password and len(found.password) > 8 and found.password not in str(found):
            assert found.password not in repr(found)
    try:
        settings = MqttSettings.from_url(text)
    except UsageError as error:
        assert error.field
    else:
        assert settings.password is None or repr(settings).count("password=") == 0
    Topics("site").parse(text)
    try:
        PublicKey(data)
    except Refused as error:
        assert error.reason is Reason.TYPE


TARGETS: dict[str, Target] = {
    "cbor": item,
    "packet": packet,
    "credential": credential,
    "receipt": receipts,
    "messages": messages,
    "sets": sets,
    "mesh": mesh,
    "serial": serial,
    "radio": radio,
    "mqtt": mqtt,
    "hub": hub,
    "cursor": cursor,
    "config": config,
    "template": template,
    "url": url,
}
#: The longest input of each, in bytes.
LONGEST = {"config": 4096, "template": 4096, "hub": 2048, "mesh": 1500, "serial": 1500}
USUALLY = 600
