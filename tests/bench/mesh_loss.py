"""What a backlog costs on a lossy mesh: airtime of everything, both ways.

1,000 packets of a day each, and of an outcome each, go up over LONG_FAST while frames are
lost, independently or in bursts, in both directions; a week of one outcome an hour is
reported apart. Signatures and receipts are real; the channel is simulated: one frame at a
time, each as long on air as the formula says. ``airtime_ratio`` is all airtime (data,
repeats, polls, answers) over airtime(frames needed) / (1 − loss).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qis_edge.core.airtime import PRESETS, airtime_ms
from qis_edge.core.custody import Custody
from qis_edge.core.domain import Domain
from qis_edge.core.errors import Refused
from qis_edge.core.identity import Identity
from qis_edge.core.mesh.elision import elide
from qis_edge.core.mesh.fragments import cut
from qis_edge.core.mesh.framing import DEFAULT_FRAME, Answer, Missing, Unknown
from qis_edge.core.mesh.receiver import Asked, Message, Receiver
from qis_edge.core.mesh.sender import Sender, Timing
from qis_edge.core.packet import Packet, pack, unpack
from qis_edge.core.receipt import Receipt, build, mac_keys, parse, verify
from tests.bench import report
from tests.bench.packet import days

PACKETS = 1000
SEED = 3
RADIO = 0x433D1A07
STORE = b"\x01\x02\x03\x04"
FINGERPRINT = bytes(range(32))
EPOCH = b"\x0a\x0b\x0c\x0d"
PRESET = PRESETS["LONG_FAST"]
NODE = Identity.from_seed(bytes(32))
GATEWAY = Identity.from_seed(bytes(31) + b"\x01")
KEYS = mac_keys(NODE, gateway=GATEWAY.public, node=NODE.public)

#: Given the direction (0 up, 1 down): whether a frame is lost.
Loss = Callable[[int], bool]


def airtime(size: int) -> float:
    """Seconds."""
    return airtime_ms(size, PRESET) / 1000


def independent(rng: random.Random, loss: float) -> Loss:
    return lambda _: rng.random() < loss


def in_bursts(rng: random.Random, loss: float, length: float = 5.0) -> Loss:
    """Gilbert's model: bursts of ``length`` frames on average, ``loss`` of all lost."""
    bad = [False, False]
    leave = 1 / length
    enter = leave * loss / (1 - loss)

    def lost(way: int) -> bool:
        bad[way] = rng.random() < (1 - leave if bad[way] else enter)
        return bad[way]

    return lost


@dataclass
class Run:
    """What became of a simulated transfer.

    :param air: seconds, of both sides.
    """

    sent: int
    delivered: int = 0
    duplicates: int = 0
    frames: int = 0
    air: float = 0.0
    seconds: float = 0.0


class Simulation:
    """A node, a gateway, and air in between that carries one frame at a time."""

    def __init__(
        self, packets: Sequence[Packet], lost: Loss, rng: random.Random, *, every: float = 0.0
    ) -> None:
        """:param every: seconds from one packet to the next; 0: all are there at once."""
        timing = Timing.of(airtime)
        self.now = 0.0
        self.run = Run(len(packets))
        self.sender: Sender[int] = Sender(
            Custody(rng.random, pace=timing.pace()), timing, rng.random
        )
        self.gateway = Receiver(lambda raw: unpack(raw, NODE.public), answers=True)
        self.node = Receiver(unpack, answers=False)
        self.waiting = list(reversed(packets))
        self.delays: list[float] = []  # seconds from being made to its receipt
        self._made = {packet.sequence: every * n for n, packet in enumerate(packets)}
        self.ids: dict[int, bytes] = {}
        self._known = {packet.sequence: packet.id for packet in packets}
        self._lost = lost

    def go(self, most: float = 1e6) -> Run:
        """Until everything is receipted, or ``most`` seconds are over."""
        self.sender.link_up(self.now)
        while self.now < most and (self.waiting or len(self.sender)):
            self._offer()
            if frame := self.gateway.next(self.now):
                self._transmit(frame, 1)
            elif frame := self.sender.next(self.now):
                self._transmit(frame, 0)
            else:
                self._sleep()
        self.run.seconds = self.now
        return self.run

    def _offer(self) -> None:
        while self.waiting and self.sender.custody.room_for():
            if self._made[self.waiting[-1].sequence] > self.now:
                break
            packet = self.waiting.pop()
            self.sender.offer(packet.sequence, packet, 0, self.now)

    def _sleep(self) -> None:
        made = self._made[self.waiting[-1].sequence] if self.waiting else None
        if made is not None and made <= self.now:
            made = None  # it waits for a place in the window
        ends = (self.sender.next_deadline(), self.gateway.next_deadline(), made)
        end = min(end for end in ends if end is not None)
        self.now = max(end, self.now + 0.001)

    def _transmit(self, frame: bytes, way: int) -> None:
        seconds = airtime(len(frame))
        self.run.frames += 1
        self.run.air += seconds
        self.now += seconds
        if not self._lost(way):
            (self._down if way else self._up)(frame)

    def _up(self, frame: bytes) -> None:
        for event in self.gateway.take(RADIO, frame, self.now):
            if isinstance(event, Message) and event.packet:
                self.run.duplicates += event.packet.sequence in self.ids
                self.ids[event.packet.sequence] = event.packet.id
                self.run.delivered = len(self.ids)
            elif isinstance(event, Asked):
                self._answer(event)

    def _answer(self, asked: Asked) -> None:
        held = tuple(sequence for sequence in asked.sequences if sequence in self.ids)
        receipts = []
        if held:
            receipts.append(build(Receipt(STORE, held), KEYS.to_node, EPOCH, self.ids))
        self.gateway.answer(asked, receipts, self.now)

    def _down(self, frame: bytes) -> None:
        for event in self.node.take(1, frame, self.now):
            if isinstance(event, Message):
                self._receipt(event.raw)
            elif isinstance(event, Answer | Missing | Unknown):
                self.sender.take(event, self.now)

    def _receipt(self, raw: bytes) -> None:
        message = parse(raw)
        try:
            verify(message, KEYS.to_node, EPOCH, self._known.get)
        except Refused:
            return
        result = self.sender.answered(GATEWAY.kid, self.now, held=message.receipt.held)
        self.delays += [self.now - self._made[sequence] for sequence in result.done]


def needed(packets: Sequence[Packet]) -> float:
    """Seconds on air of the frames that carry these packets, each once."""
    total = 0.0
    for packet in packets:
        elided = elide(packet)
        assert elided is not None
        data = elided.encode()
        if len(data) <= DEFAULT_FRAME:
            total += airtime(len(data))
        else:
            total += sum(airtime(len(tile.encode())) for tile in cut(data, DEFAULT_FRAME))
    return total


def backlog(count: int, hours: int = 24) -> list[Packet]:
    """Packets of real readings, ``hours`` of a station each."""
    domain = Domain.parse((Path("devices") / "domains" / "air_quality.toml").read_text())
    found = list(days().values())
    return [
        pack(
            found[number % len(found)][:hours],
            identity=NODE,
            fingerprint=FINGERPRINT,
            store=STORE,
            sequence=1000 + number,
            domain=domain,
        )
        for number in range(count)
    ]


def sparse() -> dict[str, object]:
    """A week of one outcome an hour: each packet is a burst of its own."""
    packets = backlog(168, 1)
    least = needed(packets)
    figures: dict[str, object] = {}
    for loss in (0.0, 0.1, 0.3, 0.5):
        rng = random.Random(SEED)
        simulation = Simulation(packets, independent(rng, loss), rng, every=3600.0)
        run = simulation.go()
        ratio = run.air / (least / (1 - loss))
        figures[f"sparse_{loss:.0%}_delivered"] = run.delivered
        figures[f"sparse_{loss:.0%}_airtime_ratio"] = round(ratio, 3)
        figures[f"sparse_{loss:.0%}_receipt_s_p90"] = round(report.quantile(simulation.delays, 0.9))
    return figures


def main() -> None:
    figures: dict[str, object] = {}
    limits: dict[str, float] = {}
    for kind, hours in (("days", 24), ("singles", 1)):
        packets = backlog(PACKETS, hours)
        least = needed(packets)
        scenarios = [(f"{loss:.0%}", loss, independent) for loss in (0.0, 0.1, 0.3, 0.5)]
        scenarios += [(f"{loss:.0%}_bursts", loss, in_bursts) for loss in (0.1, 0.3, 0.5)]
        for name, loss, model in scenarios:
            rng = random.Random(SEED)
            run = Simulation(packets, model(rng, loss), rng).go()
            key = f"{kind}_{name}"
            ratio = round(run.air / (least / (1 - loss)), 3)
            figures[f"{key}_sent"] = run.sent
            figures[f"{key}_delivered"] = run.delivered
            figures[f"{key}_duplicates"] = run.duplicates
            figures[f"{key}_airtime_ratio"] = ratio
            limits[f"{key}_duplicates"] = 0
            if loss <= 0.3:
                limits[f"{key}_airtime_ratio"] = 1.20
            if run.delivered != run.sent:
                raise SystemExit(f"{key}: {run.delivered} of {run.sent} were delivered")
    figures |= sparse()
    report.write("mesh_loss", figures, limits=limits)


if __name__ == "__main__":
    main()
