"""How fast a gateway takes in what a broker has kept for it, next to the least that this needs.

As after an outage: a real Mosquitto (with the settings of ``docs/mosquitto.conf`` on queues)
has queued packets of 40 nodes for the gateway's session, one of each node in turn: the worst
order for receipts, of which each names packets of one node. Then ``qis-gateway run`` starts,
in a process of its own, with its default configuration: it takes them, makes them durable,
receipts them, acknowledges them to the broker, and deposits them in its routing layer besides.
Who listens on the nodes' topics notes when which receipts came; afterwards each is verified,
and every packet must have been receipted as held.

``rate`` is packets a second from the first receipts to the last. ``ratio`` is that over
``bare_rate``: one thread that decodes each packet with cbor2, verifies it with PyNaCl and
inserts it, 100 to a transaction, into SQLite (``synchronous=FULL``). ``paho_rate``: paho-mqtt
receives the same messages from the same broker, acknowledges and counts them and does nothing
else; ``paho_ratio`` is ``rate`` over that. Rounds of all three in turn, the best of each: the
machine has other things to do, and each round is a few seconds. Broker and gateway share the
machine's two cores; the bare loop has one to itself.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cbor2
from nacl.signing import VerifyKey
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.fleet import Fleet
from gateway.spool import Spool
from qis_edge.core import receipt as receipts
from qis_edge.core.credential import NODE, issue
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import AAD, Packet, pack
from qis_edge.core.receipt import mac_keys
from qis_edge.keys import read_key
from tests.bench import report
from tests.loop.site import YEAR, Site
from tests.mosquitto import Mosquitto, running

NODES, EACH, ROUNDS = 40, 500, 3
PATIENCE = 120.0
BROKER = (
    "allow_anonymous true",
    "max_inflight_messages 800",
    "max_queued_messages 0",
    "max_queued_bytes 268435456",
    "log_dest none",
)
COUNTER = "counter"


class Wire:
    """The least MQTT 3.1.1 client: it costs next to nothing while others are measured."""

    def __init__(self, port: int, name: str) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = name.encode()
        body = b"\x00\x04MQTT\x04\x02\x00\x00" + len(client).to_bytes(2) + client
        self._ask(bytes((0x10, len(body))) + body, 4)

    def _ask(self, packet: bytes, answer: int) -> None:
        self._sock.sendall(packet)
        while answer:
            answer -= len(self._sock.recv(answer))

    def subscribe(self, topic: str) -> None:
        """At QoS 0."""
        body = b"\x00\x01" + len(topic).to_bytes(2) + topic.encode() + b"\x00"
        self._ask(bytes((0x82, len(body))) + body, 5)

    def publish(self, frames: Sequence[tuple[str, bytes]]) -> None:
        """At QoS 1; returns when the broker has acknowledged all."""
        data = b"".join(
            self._publish(topic, frame, number % 65_535 + 1)
            for number, (topic, frame) in enumerate(frames)
        )
        self._sock.setblocking(False)
        sent, acks = 0, 4 * len(frames)
        while sent < len(data) or acks:
            writers = [self._sock] if sent < len(data) else []
            readable, writable, _ = select.select([self._sock], writers, [], PATIENCE)
            if writable:
                sent += self._sock.send(data[sent : sent + 65_536])
            if readable:
                acks -= len(self._sock.recv(65_536))
        self._sock.setblocking(True)

    @staticmethod
    def _publish(topic: str, frame: bytes, mid: int) -> bytes:
        body = len(topic).to_bytes(2) + topic.encode() + mid.to_bytes(2) + frame
        size = len(body)
        return bytes((0x32, size & 0x7F | 0x80, size >> 7)) + body

    def listen(self, until: threading.Event) -> list[tuple[float, bytes]]:
        """What comes and when, until nothing has come for a while after ``until``."""
        heard: list[tuple[float, bytes]] = []
        while True:
            if select.select([self._sock], [], [], 0.5)[0]:
                heard.append((time.monotonic(), self._sock.recv(1 << 20)))
            elif until.is_set():
                return heard

    def close(self) -> None:
        self._sock.close()


def published(stream: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, str, bytes]]:
    """(time, topic, payload) of each PUBLISH at QoS 0 in what was heard."""
    data = b""
    for moment, piece in stream:
        data += piece
        at = 0
        while (end := _packet_end(data, at)) is not None:
            start, stop = end
            size = int.from_bytes(data[start : start + 2])
            if data[at] >> 4 == 3:
                topic = data[start + 2 : start + 2 + size].decode()
                yield moment, topic, data[start + 2 + size : stop]
            at = stop
        data = data[at:]


def _packet_end(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the body of the packet at ``at`` begins and ends, if it is all there."""
    size = shift = 0
    for place in range(at + 1, min(at + 5, len(data))):
        size |= (data[place] & 0x7F) << shift
        shift += 7
        if data[place] < 0x80:
            stop = place + 1 + size
            return (place + 1, stop) if stop <= len(data) else None
    return None


class Base(Site):
    """A gateway, a broker and the keys of many nodes."""

    def __init__(self, folder: Path, broker: Mosquitto) -> None:
        super().__init__(folder, broker.url)
        self.port = broker.port
        self.config = self.gateway_config("base", clock=False)
        self.gateway = read_key(self.state("base") / "gateway.key")
        self.nodes = [Identity.generate() for _ in range(NODES)]
        self._let_in()
        self._next = 0

    def _let_in(self) -> None:
        fleet = Fleet(self.state("base") / "fleet.db", self.root.public, time.time())
        for number, node in enumerate(self.nodes):
            credential = issue(
                self.gateway,
                subject=f"n{number}",
                key=node.public,
                scope=(NODE,),
                expires=int(time.time()) + YEAR // 2,
                serial=(number + 100).to_bytes(4),
            )
            fleet.add(credential.raw, time.time())
        fleet.close()

    def packets(self) -> list[tuple[str, Packet]]:
        """New ones of all nodes, one of each in turn, with their topics."""
        first, self._next = self._next, self._next + EACH
        now = int(time.time()) - 3 * EACH * ROUNDS
        return [
            (
                f"qis/v1/test/up/{node.kid.hex()}",
                pack(
                    [Outcome(now + sequence, results={1: 12.0, 2: 21.5, 3: -3.1}, samples=60)],
                    identity=node,
                    fingerprint=bytes(31) + bytes((number,)),
                    store=b"\x01\x02\x03\x04",
                    sequence=sequence,
                ),
            )
            for sequence in range(first, first + EACH)
            for number, node in enumerate(self.nodes)
        ]

    def begin(self) -> subprocess.Popen[bytes]:
        return self.spawn("base", self.config)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """In good order: the broker keeps its session."""
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        del self.processes["base"]

    def spooled(self) -> int:
        with contextlib.closing(Spool(self.state("base") / "spool.db", read_only=True)) as spool:
            return spool.status().packets

    def introduce(self) -> None:
        """Let the gateway subscribe, so that the broker keeps a session for it."""
        process = self.begin()
        deadline = time.monotonic() + PATIENCE
        while "connected with" not in self.log("base"):
            assert time.monotonic() < deadline, self.log("base")
            time.sleep(0.05)
        self.end(process)

    def take_in(self, sent: Sequence[Packet]) -> float:
        """Packets a second that the gateway took in of what the broker has kept for it."""
        ear, all_in = Wire(self.port, "ear"), threading.Event()
        ear.subscribe("qis/v1/test/down/#")
        heard: list[tuple[float, bytes]] = []
        listening = threading.Thread(target=lambda: heard.extend(ear.listen(all_in)))
        before = self.spooled()
        process = self.begin()
        listening.start()
        deadline = time.monotonic() + PATIENCE
        while self.spooled() < before + len(sent):
            assert time.monotonic() < deadline, self.log("base")
            time.sleep(0.25)
        all_in.set()
        listening.join()
        self.end(process)
        ear.close()
        return self._rate(sent, heard)

    def _rate(self, sent: Sequence[Packet], heard: list[tuple[float, bytes]]) -> float:
        with contextlib.closing(Spool(self.state("base") / "spool.db", read_only=True)) as spool:
            epoch = spool.epoch
        gateway = self.gateway.public
        keys = {
            node.kid: mac_keys(node, gateway=gateway, node=node.public).to_node
            for node in self.nodes
        }
        ids = {(packet.kid, packet.sequence): packet.id for packet in sent}
        missing = set(ids)
        counts: dict[float, int] = {}
        for moment, topic, frame in published(heard):
            kid = bytes.fromhex(topic.rpartition("/")[2])
            if not frame.startswith(b"\xd1\x84\x43\xa1\x01\x04\xa0"):
                continue  # not a receipt: the gateway also asks who is there
            message = receipts.parse(frame)
            receipts.verify(message, keys[kid], epoch, lambda number: ids.get((kid, number)))  # noqa: B023 - asked at once
            named = {(kid, number) for number in message.receipt.held}
            counts[moment] = counts.get(moment, 0) + len(named)
            missing -= named
        assert not missing, f"{len(missing)} of {len(ids)} were not receipted"
        moments = sorted(counts)
        seconds = moments[-1] - moments[0]
        return (sum(counts.values()) - counts[moments[0]]) / seconds


def count(port: int, expected: int) -> float:
    """Messages a second that paho receives and counts. ``expected`` 0: subscribe only."""
    times: list[float] = []
    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id=COUNTER, protocol=MQTTProtocolVersion.MQTTv5
    )

    def on_connect(*_: object) -> None:
        client.subscribe("qis/v1/test/up/#", qos=1)

    def on_subscribe(*_: object) -> None:
        if not expected:
            client.disconnect()

    def on_message(*_: object) -> None:
        times.append(time.monotonic())
        if len(times) == expected:
            client.disconnect()

    client.on_connect = on_connect
    client.on_message = on_message
    client.on_subscribe = on_subscribe
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho's
    properties.ReceiveMaximum = 800
    properties.SessionExpiryInterval = 3600
    client.connect("127.0.0.1", port, clean_start=False, properties=properties)
    client.loop_forever()
    return (len(times) - 1) / (times[-1] - times[0]) if expected else 0.0


def bare(folder: Path, packets: Sequence[Packet], nodes: Sequence[Identity]) -> float:
    """Packets a second that one thread decodes, verifies and inserts, 100 to a commit."""
    keys = {node.kid: VerifyKey(node.public.raw) for node in nodes}
    head = b"\x84\x6aSignature1\x43\xa1\x01\x32" + cbor2.dumps(AAD)
    path = folder / "bare.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE IF NOT EXISTS packets (kid BLOB, store BLOB, sequence, raw BLOB)")
    frames = [packet.raw for packet in packets]
    began = time.monotonic()
    for first in range(0, len(frames), 100):
        db.execute("BEGIN")
        for raw in frames[first : first + 100]:
            _, unprotected, payload, signature = cbor2.loads(raw).value
            _, store, sequence, *_ = cbor2.loads(payload)
            kid = unprotected[4]
            keys[kid].verify(head + cbor2.dumps(payload), signature)
            db.execute("INSERT INTO packets VALUES (?, ?, ?, ?)", (kid, store, sequence, raw))
        db.execute("COMMIT")
    seconds = time.monotonic() - began
    db.close()
    return len(frames) / seconds


def main() -> None:
    report.precedence()
    found: dict[str, list[float]] = {"rate": [], "paho_rate": [], "bare_rate": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running(Mosquitto(folder / "broker", BROKER)) as broker:
            base = Base(folder, broker)
            try:
                base.introduce()
                count(broker.port, 0)
                for _ in range(ROUNDS):
                    frames = base.packets()
                    packets = [packet for _, packet in frames]
                    found["bare_rate"].append(bare(folder, packets, base.nodes))
                    feeder = Wire(broker.port, "feeder")
                    feeder.publish([(topic, packet.raw) for topic, packet in frames])
                    feeder.close()
                    found["rate"].append(base.take_in(packets))
                    found["paho_rate"].append(count(broker.port, len(packets)))
                    print("  ", {key: round(values[-1]) for key, values in found.items()})
            finally:
                base.end_processes()
    best = {key: round(max(values)) for key, values in found.items()}
    report.write(
        "gateway",
        {
            "ratio": round(best["rate"] / best["bare_rate"], 3),
            "paho_ratio": round(best["rate"] / best["paho_rate"], 3),
            **best,
            "packets": NODES * EACH,
            "nodes": NODES,
            "rounds": ROUNDS,
        },
        floors={"ratio": 0.6},
    )


if __name__ == "__main__":
    main()
