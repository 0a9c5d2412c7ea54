"""What a backlog costs on a lossy mesh: airtime of everything, both ways.

1,000 packets of a day each go up over LONG_FAST while frames are lost, independently or in
bursts (of five frames on average), in both directions. Apart from them: as many packets of
an outcome each (``singles``), and a week of one outcome an hour (``sparse``). Signatures and
receipts are real; the channel is simulated: one frame at a time, each as long on air as the
formula says. ``airtime_ratio`` is all airtime (data, repeats, polls, answers) over
airtime(frames needed) / (1 − loss); ``frames_lost`` is the share that really was.
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
#: Shares of frames that are lost, in each direction.
LOSSES = (0.0, 0.1, 0.3, 0.5)
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
    lost: int = 0
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
        if self._lost(way):
            self.run.lost += 1
        else:
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


def outcome_of(simulation: Simulation, loss: float, least: float) -> dict[str, object]:
    """The figures of a transfer.

    :param least: seconds on air of the frames needed.
    """
    run = simulation.go()
    return {
        "sent": run.sent,
        "delivered": run.delivered,
        "duplicates": run.duplicates,
        "airtime_ratio": round(run.air / (least / (1 - loss)), 3),
        "frames_lost": round(run.lost / run.frames, 3),
    }


def backlogs(hours: int) -> dict[str, object]:
    """1,000 packets of so many outcomes each, per loss rate."""
    packets = backlog(PACKETS, hours)
    least = needed(packets)
    figures: dict[str, object] = {}
    for model, name in ((independent, "{:.0%}"), (in_bursts, "{:.0%} in bursts")):
        for loss in LOSSES if model is independent else LOSSES[1:]:
            rng = random.Random(SEED)
            simulation = Simulation(packets, model(rng, loss), rng)
            figures[name.format(loss)] = outcome_of(simulation, loss, least)
            if simulation.ids != {packet.sequence: packet.id for packet in packets}:
                raise SystemExit("what was delivered is not what was sent")
            if len(simulation.sender):
                raise SystemExit("the sender does not know that it is delivered")
    return figures


def sparse() -> dict[str, object]:
    """A week of one outcome an hour: each packet is a burst of its own."""
    packets = backlog(168, 1)
    least = needed(packets)
    figures: dict[str, object] = {}
    for loss in LOSSES:
        rng = random.Random(SEED)
        simulation = Simulation(packets, independent(rng, loss), rng, every=3600.0)
        figures[f"{loss:.0%}"] = {
            **outcome_of(simulation, loss, least),
            "receipt_s_p90": round(report.quantile(simulation.delays, 0.9)),
        }
    return figures


def main() -> None:
    figures = {**backlogs(24), "singles": backlogs(1), "sparse": sparse()}
    limits: dict[str, float] = {}
    floors: dict[str, float] = {}
    for key, _ in report.flat(figures):
        if key.endswith(".duplicates"):
            limits[key] = 0
        elif key.endswith(".delivered"):
            floors[key] = 168 if key.startswith("sparse.") else PACKETS
        elif key.endswith(".airtime_ratio") and not key.startswith("sparse.") and "50%" not in key:
            limits[key] = 1.20
    report.write("mesh-loss", figures, limits=limits, floors=floors)


if __name__ == "__main__":
    main()
