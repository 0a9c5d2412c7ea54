"""How long a mesh takes for a week of hourly outcomes of 20 nodes, in emulated time.

20 nodes and a gateway, each with an emulated radio, LONG_FAST, in the EU (10% of an hour),
all in range of each other on a channel of their own: frames that overlap are lost, radios
sense before they send and are deaf while they do. Outcomes are real readings, packed as a
node does for this link; signatures, receipts, bursts, polls, budgets and the politeness of a
busy channel are real, time is not.

* ``outage``: the gateway was away for hours, all nodes have fallen silent, and it comes back;
* ``at once``: all nodes begin within a second, as after a power cut;
* ``apart``: they begin within ten minutes.

Each without and with a tenth of the frames lost on top of what collides, a few times over.
``hours`` is the median, from the beginning (the gateway's return) until every node has all
its receipts. ``hours_limit`` is what the channel takes, without a gap, for each packet once
and an answer to each node, and at least what the duty cycle makes of that (nothing, for a
week: what is saved up is enough); ``hours_polite`` is the same at the utilisation from which
on we wait. At the top are the figures of an outage without loss.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from devices.radio_sim.channel import BROADCAST, Channel, Timer
from devices.radio_sim.radio import Radio
from devices.radio_sim.settings import Settings
from qis_edge.core.airtime import (
    POLITE_UTILISATION,
    PRESETS,
    REGIONS,
    Bucket,
    Budget,
    airtime_ms,
)
from qis_edge.core.custody import Custody
from qis_edge.core.domain import Domain
from qis_edge.core.errors import Refused
from qis_edge.core.identity import Identity
from qis_edge.core.mesh.elision import elide
from qis_edge.core.mesh.framing import DEFAULT_FRAME, Answer, Missing, Unknown
from qis_edge.core.mesh.receiver import Asked, Limits, Message, Receiver
from qis_edge.core.mesh.sender import Sender, Timing
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Packet, how_many, pack, unpack
from qis_edge.core.receipt import Receipt, build, mac_keys, parse, verify
from qis_edge.links.mesh_broadcast import WHOLE_EVERY
from qis_edge.links.mesh_way import SPREAD
from qis_edge.links.meshtastic_stream import definitions
from tests.bench import report
from tests.bench.packet import days

NODES = 20
HOURS = 24 * 7
SEEDS = range(5)
#: What a packet may have so that its elided frame is one.
FITS = DEFAULT_FRAME + 58
#: Bytes of an answer with one receipt.
ANSWER = 40
FINGERPRINT = bytes(range(32))
EPOCH = b"\x0a\x0b\x0c\x0d"
GATEWAY = Identity.from_seed(bytes(31) + b"\x01")
GATEWAY_RADIO = 0x433D0000
IDENTITIES = [Identity.from_seed(bytes((index + 2,)) * 32) for index in range(NODES)]
PUBLIC = {one.kid: one.public for one in IDENTITIES}
TO_NODE = {
    one.kid: mac_keys(GATEWAY, gateway=GATEWAY.public, node=one.public).to_node
    for one in IDENTITIES
}
REGION, PRESET = REGIONS["EU_868"], PRESETS["LONG_FAST"]
PORT, TELEMETRY = 256, 67
#: Frames in the radio's queue with which it is given no more, and seconds between two looks.
QUEUED, LOOK = 2, 0.5


def airtime(size: int) -> float:
    """Seconds."""
    return airtime_ms(size, PRESET) / 1000


class Station:
    """A radio and its host, paced as the mesh link is."""

    #: Whether what it says is urgent.
    urgent = False

    def __init__(self, channel: Channel, number: int, receiver: Receiver) -> None:
        self.channel = channel
        self.receiver = receiver
        self.receiver.limits = Limits.of(airtime, REGION.duty_cycle)
        self.budget = Budget(REGION, channel.now)
        self._air_free = 0.0
        self._timer: Timer | None = None
        self._poked = False
        self.radio = Radio(channel, Settings(number, region=REGION.name, hop_limit=0))
        self._say(want_config_id=69420)
        self.radio.on_output = self.poke

    def heard(self, source: int, frame: bytes) -> None:
        """A frame came in."""
        raise NotImplementedError

    def due(self) -> float | None:
        """When there is something to send."""
        raise NotImplementedError

    def next(self, now: float) -> bytes | None:
        """It."""
        raise NotImplementedError

    @property
    def now(self) -> float:
        return self.channel.now

    def poke(self) -> None:
        """Something happened: look."""
        if not self._poked:
            self._poked = True
            self._wake(self.now)

    def _wake(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.channel.simulation.after(at - self.now, self._step)

    def _step(self) -> None:
        self._poked = False
        while (message := self.radio.next_message()) is not None:
            told = definitions().FromRadio.FromString(message)
            if told.HasField("packet"):
                self._packet(told.packet)
        at = self._send_some()
        if at is not None and not self._poked:
            self._wake(at)

    def _packet(self, packet: Any) -> None:
        data = packet.decoded
        if data.portnum == TELEMETRY:
            told = definitions("telemetry_pb2").Telemetry.FromString(data.payload)
            self.budget.channel(told.device_metrics.channel_utilization / 100, self.now)
        elif data.portnum == PORT:
            self.heard(getattr(packet, "from"), data.payload)

    def _send_some(self) -> float | None:
        """Give the radio what may go now; when to look again."""
        longest = airtime(DEFAULT_FRAME)
        while True:
            now = self.now
            due = self.due()
            if due is None or due > now:
                return due
            if 16 - self.radio.free >= QUEUED:
                return None  # it tells when it sends
            allowed = self.budget.when(1000 * longest, now, urgent=self.urgent)
            allowed = max(self._air_free - longest, allowed)
            if allowed > now:
                return allowed
            frame = self.next(now)
            if frame is None:
                return now + LOOK
            self.budget.spend(1000 * airtime(len(frame)), now)
            self._air_free = max(self._air_free, now) + airtime(len(frame))
            packet = definitions().MeshPacket(to=BROADCAST)
            packet.decoded.portnum, packet.decoded.payload = PORT, frame
            self._say(packet=packet)

    def _say(self, **part: Any) -> None:
        self.radio.host(definitions().ToRadio(**part).SerializeToString())


class Node(Station):
    """It has a week's packets; ``begin`` lets it send so many of them."""

    def __init__(self, channel: Channel, index: int, seed: int) -> None:
        super().__init__(channel, GATEWAY_RADIO + 1 + index, Receiver(unpack, answers=False))
        uniform = random.Random(f"{seed} {index}").random
        timing = Timing.of(airtime)
        self.sender: Sender[int] = Sender(
            Custody(uniform, pace=timing.pace()),
            timing,
            uniform,
            whole_every=WHOLE_EVERY,
            spread=SPREAD * airtime(DEFAULT_FRAME),
        )
        self.kid = IDENTITIES[index].kid
        packets = week(index)
        self.ids = {packet.sequence: packet.id for packet in packets}
        self.done_at: float | None = None
        self._later = list(reversed(packets))
        self._waiting: list[Packet] = []

    def begin(self, count: int = NODES * HOURS) -> None:
        """So many of its packets are there to be sent."""
        self._waiting = self._later[-count:] + self._waiting
        self._later = self._later[:-count]
        self.sender.link_up(self.now)
        self.poke()

    def heard(self, source: int, frame: bytes) -> None:
        try:
            events = self.receiver.take(source, frame, self.now)
        except Refused:
            return
        if not any(isinstance(event, Answer) for event in events):
            self.sender.overheard(self.now)
        for event in events:
            if isinstance(event, Message) and event.packet is None:
                self._receipt(event.raw)
            elif isinstance(event, Answer | Missing | Unknown):
                self.sender.take(event, self.now)
        self.poke()

    def _receipt(self, raw: bytes) -> None:
        message = parse(raw)
        try:
            verify(message, TO_NODE[self.kid], EPOCH, self.ids.get)
        except Refused:
            return  # a peer's
        self.sender.answered(GATEWAY.kid, self.now, held=message.receipt.held)
        if not (len(self.sender) or self._waiting or self._later) and self.done_at is None:
            self.done_at = self.now

    def due(self) -> float | None:
        while self._waiting and self.sender.custody.room_for():
            packet = self._waiting.pop()
            self.sender.offer(packet.sequence, packet, 0, self.now)
        return self.sender.next_deadline()

    def next(self, now: float) -> bytes | None:
        return self.sender.next(now)


class Gateway(Station):
    """It takes custody of everything, while it listens."""

    urgent = True

    def __init__(self, channel: Channel) -> None:
        receiver = Receiver(lambda raw: unpack(raw, PUBLIC.__getitem__), answers=True)
        super().__init__(channel, GATEWAY_RADIO, receiver)
        self.listens = True
        self.ids: dict[tuple[bytes, int], bytes] = {}
        self.duplicates = 0

    def heard(self, source: int, frame: bytes) -> None:
        if not self.listens:
            return
        try:
            events = self.receiver.take(source, frame, self.now)
        except Refused:
            return
        for event in events:
            if isinstance(event, Message) and event.packet:
                place = event.packet.kid, event.packet.sequence
                self.duplicates += place in self.ids
                self.ids[place] = event.packet.id
            elif isinstance(event, Asked):
                self._asked(event)
        self.poke()

    def _asked(self, asked: Asked) -> None:
        receipts = []
        for kid, store in asked.stores:
            ids = {s: found for s in asked.sequences if (found := self.ids.get((kid, s)))}
            if ids:
                receipts.append(build(Receipt(store, tuple(ids)), TO_NODE[kid], EPOCH, ids))
        self.receiver.answer(asked, receipts, self.now)

    def due(self) -> float | None:
        return self.receiver.next_deadline()

    def next(self, now: float) -> bytes | None:
        return self.receiver.next(now)


@cache
def week(index: int) -> list[Packet]:
    """A node's packets of 168 outcomes: of one of the stations, and one of its weeks."""
    domain = Domain.parse((Path("devices") / "domains" / "air_quality.toml").read_text())
    stations: dict[str, list[Outcome]] = {}
    for (station, _), outcomes in sorted(days().items()):
        stations.setdefault(station, []).extend(outcomes)
    which, number = index % len(stations), index // len(stations)
    rest = stations[sorted(stations)[which]][HOURS * number :][:HOURS]
    packets: list[Packet] = []
    while rest:
        store, sequence = bytes((index,)) * 4, 1 + len(packets)
        count = how_many(
            rest,
            fingerprint=FINGERPRINT,
            store=store,
            sequence=sequence,
            domain=domain,
            limit=FITS,
        )
        packet = pack(
            rest[:count],
            identity=IDENTITIES[index],
            fingerprint=FINGERPRINT,
            store=store,
            sequence=sequence,
            domain=domain,
            limit=FITS,
        )
        packets.append(packet)
        rest = rest[count:]
    return packets


class Site:
    """The channel and everybody on it."""

    def __init__(self, loss: float, seed: int) -> None:
        self.channel = Channel(PRESET.name, loss=loss, seed=seed)
        self._rng = random.Random(seed)
        self.gateway = Gateway(self.channel)
        self.nodes: list[Node] = []
        for index in range(NODES):
            self.channel.simulation.run(self._rng.random() * 6)  # radios start one by one
            self.nodes.append(Node(self.channel, index, seed))

    def run(self, scenario: str) -> dict[str, float]:
        """The figures of one run.

        :raises SystemExit: not everything was delivered within two days.
        """
        simulation = self.channel.simulation
        silence = self._fall_silent() if scenario == "outage" else 0.0
        begin, before = simulation.now, replace(self.channel.carried)
        answered = self.gateway.radio.stats.airtime
        polled = sum(node.sender.polls for node in self.nodes)
        spread = {"outage": 0.0, "at once": 1.0, "apart": 600.0}[scenario]
        for node in self.nodes:
            simulation.after(spread * self._rng.random(), node.begin)
        while any(node.done_at is None for node in self.nodes):
            simulation.run(1.0)
            if simulation.now > begin + 48 * 3600:
                raise SystemExit(f"{scenario}: not everything was delivered")
        if self.gateway.ids != {(n.kid, s): i for n in self.nodes for s, i in n.ids.items()}:
            raise SystemExit("what was delivered is not what was sent")
        done = [((node.done_at or 0.0) - begin) / 3600 for node in self.nodes]
        carried = self.channel.carried
        collided = carried.collided - before.collided
        heard = NODES * (carried.sent - before.sent)
        return {
            "hours": max(done),
            "hours_median_node": statistics.median(done),
            "hours_first_node": min(done),
            "delivered": len(self.gateway.ids),
            "duplicates": self.gateway.duplicates,
            "airtime_s": carried.airtime - before.airtime,
            "gateway_airtime_s": self.gateway.radio.stats.airtime - answered,
            "polls": sum(node.sender.polls for node in self.nodes) - polled,
            "collided_share": collided / heard,
            "silent_airtime_share": silence,
        }

    def _fall_silent(self) -> float:
        """Three hours without a gateway; the share of the last that a node sent."""
        self.gateway.listens = False
        for node in self.nodes:
            self._after(self._rng.random() * 3600, node)
        self.channel.simulation.run(3 * 3600)
        self.gateway.listens = True
        spent = [node.budget.state(node.now).spent_ms for node in self.nodes]
        return statistics.mean(spent) / 3_600_000

    def _after(self, seconds: float, node: Node) -> None:
        self.channel.simulation.after(seconds, lambda: node.begin(1))


def frame_s(packet: Packet) -> float:
    """Seconds on air of its elided frame."""
    elided = elide(packet)
    assert elided is not None
    return airtime(len(elided.encode()))


def least() -> list[float]:
    """Seconds on air of what is needed: each node's packets, and the gateway's answers."""
    nodes = [sum(map(frame_s, week(index))) for index in range(NODES)]
    return [*nodes, NODES * airtime(ANSWER)]


def hours_limit() -> float:
    """See the top."""
    hourly = Budget(REGION, 0.0).hourly_ms / 1000
    saved = Bucket(hourly, 0.0).size
    duty = max(0.0, *((seconds - saved) * 3600 / (hourly - saved) for seconds in least()))
    return max(sum(least()), duty) / 3600


def measure(scenario: str, loss: float) -> dict[str, object]:
    """The medians of some runs, and the worst of what must not be."""
    runs = [Site(loss, seed).run(scenario) for seed in SEEDS]

    def median(key: str) -> float:
        return statistics.median(run[key] for run in runs)

    figures: dict[str, object] = {
        "hours": round(median("hours"), 3),
        "hours_limit": round(hours_limit(), 3),
        "ratio": round(median("hours") / hours_limit(), 2),
        "hours_worst": round(max(run["hours"] for run in runs), 3),
        "hours_first_node": round(median("hours_first_node"), 3),
        "hours_median_node": round(median("hours_median_node"), 3),
        "delivered": min(run["delivered"] for run in runs),
        "duplicates": max(run["duplicates"] for run in runs),
        "airtime_ratio": round(median("airtime_s") / sum(least()), 2),
        "gateway_airtime_s": round(median("gateway_airtime_s")),
        "polls": round(median("polls")),
        "collided_share": round(median("collided_share"), 3),
    }
    if scenario == "outage":
        figures["silent_airtime_share"] = round(median("silent_airtime_share"), 4)
    return figures


def main() -> None:
    packets = sum(len(week(index)) for index in range(NODES))
    found = {
        f"{scenario}{f', {loss:.0%} lost' if loss else ''}": measure(scenario, loss)
        for scenario in ("outage", "at once", "apart")
        for loss in (0.0, 0.1)
    }
    report.write(
        "mesh-backlog",
        {
            "nodes": NODES,
            "outcomes": NODES * HOURS,
            "packets": packets,
            "hours_polite": round(hours_limit() / POLITE_UTILISATION, 3),
            **found.pop("outage"),
            **found,
        },
        limits={key: 0 for key, _ in report.flat(found) if key.endswith("duplicates")}
        | {"duplicates": 0},
        floors={key: packets for key, _ in report.flat(found) if key.endswith("delivered")}
        | {"delivered": packets},
    )


if __name__ == "__main__":
    main()
