"""What came of it: every figure is counted from the files that the run left behind."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from gateway.demo import journal
from gateway.demo.processes import Field
from gateway.demo.scenario import HOUR, STATIONS, Scenario, readings
from gateway.routing import EVERYTHING, Context, Entry, RoutingLayer, open_engine
from gateway.routing.view import ViewEngine
from qis_edge.core.airtime import MAX_PAYLOAD, PRESETS, airtime_ms
from qis_edge.core.domain import Domain
from qis_edge.core.errors import RoutingError
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Packet, unpack
from qis_edge.keys import read_key
from qis_edge.store.outbox import Outbox

#: Seconds that reading the engine's own log may take.
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Outcomes, bytes, seconds of airtime, and errors in °C."""

    made: int
    packed: int
    delivered: int
    deposited: int
    duplicates: int
    lost: int
    packets: int
    bytes_per_outcome: float
    packet_bytes_per_outcome: float
    json_bytes_per_outcome: float
    frames: int
    airtime_per_outcome: float
    json_airtime_per_outcome: float
    estimate_mae: float
    hold_last_mae: float
    failed_hours: int
    estimated_hours: int
    failures: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """As ``build/demo.json`` has it."""
        return asdict(self)


async def measure(field: Field, bytes_in: int) -> Figures:
    """Count.

    :param bytes_in: what the gateway took in over the link, hellos and repeats included.
    """
    made = packed = delivered = 0
    for station in STATIONS:
        with Outbox.inspect(field.state(station) / "outbox.db") as outbox:
            stats = outbox.stats()
        made += stats.made
        packed += stats.packed
        delivered += stats.held_outcomes
    packets = await _deposited(field)
    seen: Counter[tuple[bytes, int, tuple[str, ...]]] = Counter()
    texts, json_air = 0, 0.0
    domain = Domain.load("weather")
    for packet in packets:
        for outcome in packet.named(domain):
            seen[packet.kid, outcome.time, packet.extensions.tags] += 1
            texts += len(text := as_json(packet, outcome))
            json_air += airtime_of(len(text))
    outcomes = sum(seen.values())
    frames, on_air = field.airtime()
    failures = [_one_failure(field, index) for index in range(len(field.scenario.failures))]
    errors = [error for one in failures for error in one.pop("errors")]
    estimated = [(ours, held) for ours, held in errors if ours is not None]
    return Figures(
        made=made,
        packed=packed,
        delivered=delivered,
        deposited=len(seen),
        duplicates=outcomes - len(seen),
        lost=made - len(seen),
        packets=len(packets),
        bytes_per_outcome=_mean([bytes_in / len(seen)]) if seen else 0.0,
        packet_bytes_per_outcome=sum(len(p.raw) for p in packets) / max(1, outcomes),
        json_bytes_per_outcome=texts / max(1, outcomes),
        frames=frames,
        airtime_per_outcome=round(on_air / max(1, len(seen)), 3),
        json_airtime_per_outcome=round(json_air / max(1, outcomes), 3),
        estimate_mae=_mean([ours for ours, _ in estimated]),
        hold_last_mae=_mean([held for _, held in estimated]),
        failed_hours=len(errors),
        estimated_hours=len(estimated),
        failures=failures,
    )


async def _deposited(field: Field) -> list[Packet]:
    """What the engine holds of this run's nodes, their signatures checked."""
    engine = open_engine(field.engine, Context(folder=field.state("gateway")))
    if isinstance(engine, ViewEngine):  # what counts is what a newcomer reads in the log
        engine = open_engine(field.engine, Context(folder=field.folder / "newcomer"))
    await engine.open()
    try:
        async with asyncio.timeout(PATIENCE):
            entries = await _everything(engine)
    except TimeoutError:
        raise RoutingError(f"{engine.url}: reading it took more than {PATIENCE:g} s") from None
    finally:
        await engine.close()
    identities = [read_key(field.state(station) / "node.key") for station in STATIONS]
    keys = {identity.kid: identity.public for identity in identities}
    return [unpack(entry.raw, keys[entry.kid]) for entry in entries if entry.kid in keys]


async def _everything(engine: RoutingLayer) -> list[Entry]:
    while (status := await engine.status()).behind:
        if not status.ok:
            raise RoutingError(f"{engine.url}: {status.detail}")
        await asyncio.sleep(0.1)
    found: list[Entry] = []
    subscription = engine.follow(frozenset([EVERYTHING]))
    try:
        async for batch in subscription:
            found += batch.entries
            if batch.live:
                break
    finally:
        await subscription.close()
    return found


def as_json(packet: Packet, outcome: Outcome) -> bytes:
    """The same content, unsigned, one outcome a message, as compact JSON."""
    form = {
        "node": packet.kid.hex(),
        "sequence": packet.sequence,
        "fingerprint": packet.fingerprint.hex(),
        "time": outcome.time,
        "kind": outcome.kind.name.lower(),
        "confidence": outcome.confidence,
        "samples": outcome.samples,
        "ttl": packet.ttl,
        "results": dict(outcome.results),
    }
    return json.dumps(form, separators=(",", ":")).encode()


def airtime_of(size: int) -> float:
    """Seconds on the air of a message in as few frames as it needs."""
    pieces = -(-size // MAX_PAYLOAD)
    preset = PRESETS["LONG_FAST"]
    return sum(
        airtime_ms(min(MAX_PAYLOAD, size - MAX_PAYLOAD * piece), preset) / 1000
        for piece in range(pieces)
    )


def _one_failure(field: Field, index: int) -> dict[str, Any]:
    """Errors of the estimates made while one thermometer was out, against the readings
    that were withheld, next to holding the last own value."""
    scenario: Scenario = field.scenario
    failure = scenario.failures[index]
    truth = readings("temperature")
    times = range(scenario.time(failure.span.begin), scenario.time(failure.span.end), HOUR)
    before = [t for s, t in truth if s == failure.station and t < times[0]]
    last = truth[failure.station, max(before)]
    estimates = {
        line["time"]: line["values"].get("temperature")
        for line in journal.read(field.journal(failure.station))
    }
    errors: list[tuple[float | None, float]] = []
    for time in times:
        real = truth.get((failure.station, time))
        if real is not None:
            ours = estimates.get(time)
            errors.append((None if ours is None else abs(ours - real), abs(last - real)))
    return {
        "station": failure.station,
        "hours": len(errors),
        "estimated": sum(1 for ours, _ in errors if ours is not None),
        "estimate_mae": _mean([ours for ours, _ in errors if ours is not None]),
        "hold_last_mae": _mean([held for ours, held in errors if ours is not None]),
        "errors": errors,
    }


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 3) if values else float("nan")
