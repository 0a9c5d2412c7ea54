"""What the tests of the emulated radio share."""

from __future__ import annotations

from typing import Any

from devices.radio_sim.channel import BROADCAST, Channel
from devices.radio_sim.radio import Radio, introduce
from devices.radio_sim.settings import Settings
from qis_edge.links.meshtastic_stream import definitions


class Host:
    """A host that speaks protobuf straight to a radio."""

    def __init__(self, radio: Radio, *, greet: bool = True) -> None:
        self.radio = radio
        if greet:
            self.say(want_config_id=69420)
            self.read()

    def say(self, **part: Any) -> None:
        self.radio.host(definitions().ToRadio(**part).SerializeToString())

    def send(self, payload: bytes, to: int = BROADCAST, port: int = 256, **more: Any) -> None:
        packet = definitions().MeshPacket(to=to, **{"hop_limit": 3, **more})
        packet.decoded.portnum = port
        packet.decoded.payload = payload
        self.say(packet=packet)

    def read(self) -> list[Any]:
        found = []
        while (message := self.radio.next_message()) is not None:
            found.append(definitions().FromRadio.FromString(message))
        return found

    def kinds(self) -> list[str]:
        return [message.WhichOneof("payload_variant") for message in self.read()]

    def statuses(self) -> list[tuple[int, int, int]]:
        """(id, res, free) of what was said, the rest dropped."""
        return [
            (one.queueStatus.mesh_packet_id, one.queueStatus.res, one.queueStatus.free)
            for one in self.read()
            if one.HasField("queueStatus")
        ]


def payloads(messages: list[Any], port: int = 256) -> list[bytes]:
    """What others sent on a port."""
    return [
        one.packet.decoded.payload
        for one in messages
        if one.HasField("packet") and one.packet.decoded.portnum == port
    ]


def reports(messages: list[Any]) -> list[tuple[int, int, int]]:
    """(id, error, source) of ACKs and NAKs."""
    return [
        (
            one.packet.decoded.request_id,
            definitions().Routing.FromString(one.packet.decoded.payload).error_reason,
            getattr(one.packet, "from"),
        )
        for one in messages
        if one.HasField("packet") and one.packet.decoded.portnum == 5
    ]


def radios(
    count: int, preset: str = "LONG_FAST", *, loss: float = 0.0, hops: int = 3, **settings: Any
) -> tuple[Channel, list[Radio]]:
    """Radios that know each other, numbered 0x10000001 and on."""
    channel = Channel(preset, loss=loss, seed=3)
    made = [
        Radio(channel, Settings(0x10000001 + i, preset=preset, hop_limit=hops, **settings))
        for i in range(count)
    ]
    introduce(*made)
    return channel, made
