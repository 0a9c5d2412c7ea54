"""The genuine Meshtastic library does not notice that the radios are emulated."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from meshtastic.serial_interface import SerialInterface
from meshtastic.tcp_interface import TCPInterface
from pubsub import pub

from devices.radio_sim.ports import Pace
from devices.radio_sim.radio import Radio
from qis_edge.core.errors import UsageError
from qis_edge.links.meshtastic_stream import Deframer, definitions, encode
from tests.devices.bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as one:
        yield one


class Ear:
    """What a library's interface publishes."""

    def __init__(self, topic: str = "meshtastic.receive") -> None:
        self.heard: queue.Queue[dict[str, Any]] = queue.Queue()
        pub.subscribe(self._hear, topic)  # keeps a weak reference: of this object's method

    def _hear(self, packet: dict[str, Any], interface: Any) -> None:
        self.heard.put(packet)

    def next(self, port: str) -> dict[str, Any]:
        while True:
            packet = self.heard.get(timeout=60)
            if packet["decoded"]["portnum"] == port:
                return packet


def test_the_library_over_serial_and_tcp(bench: Bench) -> None:
    ear = Ear()
    with (
        contextlib.closing(SerialInterface(bench.pty.path)) as serial,
        contextlib.closing(TCPInterface("127.0.0.1", portNumber=bench.tcp.port)) as tcp,
    ):
        assert serial.myInfo.my_node_num == bench.one.number
        assert tcp.getMyNodeInfo()["user"]["id"] == "!10000002"
        assert set(serial.nodes) == {"!10000001", "!10000002"}
        assert serial.localNode.localConfig.lora.hop_limit == 3
        assert serial.metadata.firmware_version == "2.7.26.54e0d8d"

        serial.sendText("wind from the west")
        packet = ear.next("TEXT_MESSAGE_APP")
        assert (packet["fromId"], packet["decoded"]["text"]) == ("!10000001", "wind from the west")
        assert (packet["rxSnr"], packet["hopStart"]) == (6.0, 3)

        tcp.sendData(bytes(range(231)), portNum=256)
        packet = ear.next("PRIVATE_APP")
        assert (packet["fromId"], packet["decoded"]["payload"]) == ("!10000002", bytes(range(231)))

        acks: queue.Queue[Any] = queue.Queue()
        serial.sendData(
            b"for you",
            destinationId=bench.other.number,
            portNum=256,
            wantAck=True,
            onResponse=acks.put,
            onResponseAckPermitted=True,
        )
        assert ear.next("PRIVATE_APP")["decoded"]["payload"] == b"for you"
        ack = acks.get(timeout=60)
        assert (ack["fromId"], ack["decoded"]["routing"]["errorReason"]) == ("!10000002", "NONE")
        serial.sendHeartbeat()


def test_the_library_configures_and_the_radio_reboots(bench: Bench) -> None:
    with contextlib.closing(SerialInterface(bench.pty.path)) as serial:
        node = serial.localNode
        node.beginSettingsTransaction()
        node.localConfig.lora.hop_limit = 5
        node.writeConfig("lora")
        node.setOwner("North gate", "NG")
        node.channels[1].role = 2
        node.channels[1].settings.name = "field"
        node.channels[1].settings.psk = bytes(range(32))
        node.writeChannel(1)
        node.commitSettingsTransaction()
        bench.until(lambda: bench.one.settings.reboots == 1)
        # The library starts its handshake anew when the radio says that it rebooted.
        bench.until(lambda: bench.one.host_present and not bench.one.waiting)
        end = time.monotonic() + 10
        while not (serial.myInfo and serial.getLongName() == "North gate"):
            assert time.monotonic() < end
            time.sleep(0.02)
    with contextlib.closing(SerialInterface(bench.pty.path)) as serial:
        assert serial.localNode.localConfig.lora.hop_limit == 5
        assert serial.localNode.channels[1].settings.psk == bytes(range(32))


def test_one_tcp_client_at_a_time(bench: Bench) -> None:
    async def clients() -> tuple[bytes, int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.tcp.port)
        other, second = await asyncio.open_connection("127.0.0.1", bench.tcp.port)
        second.write(encode(definitions().ToRadio(want_config_id=69420).SerializeToString()))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        deframer, count = Deframer(), 0
        while count < 40:
            count += len(deframer.feed(await other.read(100)))
        for one in (writer, second):
            one.close()
            with contextlib.suppress(ConnectionError):
                await one.wait_closed()
        return b"", count

    assert asyncio.run(clients()) == (b"", 40)
    bench.until(lambda: not bench.other.host_present)


def test_a_pty_is_unplugged_and_comes_back(bench: Bench) -> None:
    def greet(port: int) -> int:
        os.write(port, encode(definitions().ToRadio(want_config_id=1).SerializeToString()))
        deframer, count = Deframer(), 0
        while count < 41:
            count += len(deframer.feed(os.read(port, 64)))
        return count

    for _ in range(2):
        port = os.open(bench.pty.path, os.O_RDWR | os.O_NOCTTY)
        assert greet(port) == 41
        bench.do(bench.pty.unplug)
        assert not Path(bench.pty.path).exists()
        with contextlib.suppress(OSError):
            assert os.read(port, 64) == b""
        os.close(port)
        assert not bench.one.host_present
        bench.do(bench.pty.plug)


def test_what_is_slow_to_read_costs_nothing(bench: Bench) -> None:
    port = os.open(bench.pty.path, os.O_RDWR | os.O_NOCTTY)
    request = encode(definitions().ToRadio(want_config_id=69421).SerializeToString())
    bench.do(lambda: many_nodes(bench.one, 400))  # far more than a pty's buffer
    os.write(port, request)
    deframer = Deframer()
    messages: list[bytes] = []
    while len(messages) < 403:
        time.sleep(0.001)
        messages += deframer.feed(os.read(port, 256))
    assert definitions().FromRadio.FromString(messages[-1]).config_complete_id == 69421
    assert deframer.outside == 0
    os.close(port)


def many_nodes(radio: Radio, count: int) -> None:
    known = next(iter(radio.known.values()))
    for number in range(1, count + 1):
        radio.known[number] = known


def test_a_rate_is_more_than_nothing(bench: Bench) -> None:
    with pytest.raises(UsageError):
        Pace(bench.channel.simulation, 0)
