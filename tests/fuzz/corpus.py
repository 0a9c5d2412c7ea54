"""The inputs that are kept, one a line in base64: ``corpus/TARGET.txt``.

``corpus`` is what the fuzzer found to reach something new, pruned to little; ``findings`` is what
once broke a decoder, under a comment that says how. Both are replayed by ``test_corpus.py``.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from pathlib import Path

from tests.fuzz.targets import LONGEST, USUALLY

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
FINDINGS = HERE / "findings"
ROOT = HERE.parents[1]
#: Of each target's corpus.
MOST_BYTES = 24_000
MOST = 200


def kept(folder: Path, target: str) -> list[bytes]:
    """The inputs in a file, in order; none where there is no file."""
    path = folder / f"{target}.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [base64.b64decode(line, validate=True) for line in lines if not line.startswith("#")]


def keep(target: str, inputs: Iterable[bytes]) -> int:
    """Write a corpus anew, the short ones first, within its budget; gives how many it has."""
    chosen: list[bytes] = []
    left = MOST_BYTES
    for one in sorted(set(inputs), key=lambda one: (len(one), one)):
        if len(chosen) < MOST and len(one) <= left:
            chosen.append(one)
            left -= len(one)
    CORPUS.mkdir(exist_ok=True)
    text = "".join(base64.b64encode(one).decode() + "\n" for one in chosen)
    (CORPUS / f"{target}.txt").write_text(text)
    return len(chosen)


def seeds(target: str) -> list[bytes]:
    """What a fuzzer begins with besides the corpus: our own test vectors and files."""
    longest = LONGEST.get(target, USUALLY)
    found = [one for one in _SEEDS.get(target, list)() if len(one) <= longest]
    return [*found, *kept(FINDINGS, target)]


def words(target: str) -> list[str]:
    """Words of which a text is made that gets further than letters drawn at random."""
    if target not in _SAMPLES:
        return []
    text = b"\n".join(_SEEDS[target]()).decode("utf-8", "replace")
    marks = ["[[", "]]", '"""', " = ", " = [", " = {", "#", "2013-06-01T00:00:00Z", "-1e999", "nan"]
    found = re.findall(r"[a-z_]{3,30}|\[+[a-z_.]+\]+", text)
    return sorted({*found, *marks})[:400]


_SAMPLES = ("config", "template", "url")


def _vectors(*names: str) -> list[bytes]:
    found: list[bytes] = []
    for name in names:
        data = json.loads((ROOT / "tests" / "vectors" / f"{name}.json").read_text())
        for kind in ("valid", "read_only", "refused"):
            found += [bytes.fromhex(one["raw"]) for one in data[kind]]
    return found


def _payloads() -> list[bytes]:
    """What is within the framing, where a target frames it itself."""
    from qis_edge.core.cose import open_mac0, open_sign1
    from qis_edge.core.errors import Refused

    found = []
    for raw in _vectors("packets", "messages"):
        for start in (0, 2):  # bare, or behind the head of a control message or a tag
            for read in (open_sign1, open_mac0):
                try:
                    found.append(read(raw[start:], 512, "seed").payload)
                except Refused:
                    continue
    return found


def _frames() -> list[bytes]:
    from qis_edge.core.mesh import framing
    from tests.core.mesh import kit

    packet = kit.packet(words=100)
    frames = [
        framing.Whole(packet.raw).encode(),
        framing.Tile(b"ab", 0, 2, b"body").encode(),
        framing.Poll(b"ab", 1, (1, 2, 30)).encode(),
        framing.Answer(b"ab", 1, (framing.Part(b"cd", 5),), (b"\xd1receipt",)).encode(),
        framing.Missing(framing.Part(b"cd", 5)).encode(),
        framing.Unknown(b"ab").encode(),
        framing.Batch((b"one", b"two")).encode(),
        framing.Ping(b"nonc", 3).encode(),
        framing.Pong(b"nonc", framing.Signal(3.5, -90, 1), 2, 1).encode(),
    ]
    talk = b"".join(bytes([len(one) - 1]) + one for one in frames if len(one) <= 256)
    return [*frames, talk]


def _lines() -> list[bytes]:
    from qis_edge.links import meshtastic_stream, serial_framing
    from qis_edge.links.base import UP, down, peers

    found = [
        serial_framing.encode(bytes(range(size % 256)), to)
        for size, to in ((0, UP), (9, down(b"12345678")), (255, peers(bytes(32))))
    ]
    return [*found, meshtastic_stream.encode(b"message") * 2, b"log line\r\n\x94\xc3\x00"]


def _publishes() -> list[bytes]:
    def publish(topic: bytes, payload: bytes, more: bytes) -> bytes:
        body = len(topic).to_bytes(2) + topic + b"\0\7" + more + payload
        size = len(body)
        head = bytes([size]) if size < 128 else bytes([size & 0x7F | 0x80, size >> 7])
        return b"\x32" + head + body

    topic = b"qis/v1/s/up/0011223344556677"
    return [
        publish(topic, b"x" * 20, b"") * 2,
        publish(topic, b"y" * 300, b"\0") + b"\xd0\0",
        publish(topic, b"", b"\5\x01\1\1\1\1"),
        b"\x40\x02\0\1\x20\x02\0\0",
    ]


def _hub() -> list[bytes]:
    from gateway.routing import hub_wire
    from gateway.routing.base import Interest

    interest = Interest(bytes(32), 64)
    return [
        hub_wire.Question(interest, 50, 1, 10, (1.0, 2.0)).encode(),
        hub_wire.Poll(frozenset({interest}), b"cursor", 30).encode(),
        hub_wire.Page((b"packet",), b"cursor", live=False).encode(),
        hub_wire.Receipt(1, ((0, 12),)).encode(),
        hub_wire.Report("abc", ok=True, packets=3).encode(),
        hub_wire.deposit([b"packet", b"other"]),
    ]


def _cursors() -> list[bytes]:
    from gateway.routing import kafka, nats_reading, redis_places

    born = bytes(8)
    spots = {
        "rest": nats_reading.Spot(b"mark", 7, b"chek"),
        "00" * 8: nats_reading.Spot(b"mark", 1 << 40, b"chek"),
    }
    offsets = {"qis.rest": kafka.Place(b"m" * kafka.MARK, [3, 0, 1 << 40])}
    return [
        nats_reading.encode(born, spots),
        nats_reading.encode(born, spots)[9:],
        redis_places.Place(born, redis_places.StreamId(5, 6), b"domain" + bytes(2)).encode(),
        redis_places.Place(born, redis_places.StreamId(5, 6), b"domain" + bytes(2)).encode()[9:],
        kafka.encode(offsets, "qis"),
    ]


def _configs() -> list[bytes]:
    from gateway.config import GatewayConfig
    from qis_edge.config import NodeConfig
    from qis_edge.schema.text import sample

    node = """
[node]
name = "field-1"
[situation]
domain = "weather"
fields = { climate = "cfb", season = { from = "calendar.season" } }
[[sensor]]
driver = "system"
channels = { cpu = "temperature", x = { result = "y", statistic = "mean" } }
[links.mqtt]
url = "mqtts://broker.example"
password_file = "p"
username = "u"
[[priority]]
result = "temperature"
above = 35.0
"""
    gateway = '[gateway]\nname = "g"\n[routing]\nengines = ["sqlite:a.db", "memory:"]\n'
    samples = [sample(NodeConfig), sample(GatewayConfig)]
    cut = [text[at : at + 2000] for text in samples for at in range(0, len(text), 2000)]
    return [text.encode() for text in (node, gateway, *cut)]


def _templates() -> list[bytes]:
    folder = ROOT / "devices" / "domains"
    fleet = b'[fleet]\nroot = "' + b"8a" * 32 + b'"\nsite = "farm"\n[mqtt]\nurl = "mqtt://h"\n'
    return [fleet, *(path.read_bytes()[:4096] for path in sorted(folder.glob("*.toml")))]


def _urls() -> list[bytes]:
    return [
        b"sqlite:routing.db",
        b"kafka://user:secret@a:9092,b/topic?acks=all&password_file=x",
        b"https://[::1]:8443/path?token=abc",
        b"mqtts://name:pass@broker.example:8883",
        b"qis/v1/site/up/0011223344556677",
    ]


_SEEDS = {
    "cbor": lambda: [*_vectors("packets", "messages"), *_payloads()],
    "packet": lambda: [*_vectors("packets"), *_payloads()],
    "credential": lambda: [*_vectors("messages"), *_payloads()],
    "receipt": lambda: [*_vectors("messages"), *_payloads()],
    "messages": lambda: [*_vectors("messages", "packets"), *_payloads()],
    "sets": lambda: [bytes.fromhex(text) for text in ("07", "86070118 5c0a185a01", "80", "820402")],
    "mesh": _frames,
    "serial": _lines,
    "radio": _lines,
    "mqtt": _publishes,
    "hub": _hub,
    "cursor": _cursors,
    "config": _configs,
    "template": _templates,
    "url": _urls,
}
