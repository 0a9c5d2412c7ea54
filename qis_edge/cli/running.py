"""``qis-edge run`` and ``qis-edge run --test``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qis_edge.cli.owner import act_as_owner
from qis_edge.cli.program import OK, PROBLEM, complain, note, print_json
from qis_edge.cli.showing import outcome_form
from qis_edge.config import NodeConfig, SensorConfig, load_node
from qis_edge.core.domain import Domain, Situation
from qis_edge.core.errors import KeyFileError, SensorError, UsageError
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Extensions, Packet, pack
from qis_edge.drivers import load_driver
from qis_edge.keys import read_key
from qis_edge.sensor import Reading
from qis_edge.terminal import moment, pairs, table


def run(args: argparse.Namespace) -> int:
    """Run the node in the foreground, until SIGTERM or SIGINT."""
    if args.test:
        return _test(args)
    if args.json:
        raise UsageError("goes with --test", field="--json")
    config = load_node(args.config)
    act_as_owner(config.node.state)
    from qis_edge.node.runtime import run_node  # heavy: the test above does without it

    return run_node(config)


@dataclass(frozen=True, slots=True)
class _Look:
    """What one sensor gave."""

    config: SensorConfig
    units: Mapping[str, str]
    readings: Sequence[Reading]

    @property
    def name(self) -> str:
        return self.config.name or self.config.driver


def _test(args: argparse.Namespace) -> int:
    """Read once, and show what would come of it."""
    config = load_node(args.config)
    act_as_owner(config.node.state)
    domain = config.situation.load_domain()
    looks = _look(config)
    start = _window(config, looks)
    if start is None:
        complain("no sensor gave a reading", "a replay gives what is due by the node's clock")
        return PROBLEM
    outcome = _distil(config, domain, looks, start)
    situation = config.situation.of(domain, outcome)
    packet = pack(
        [domain.quantise(outcome)],
        identity=_identity(config),
        fingerprint=situation.fingerprint,
        store=bytes(4),
        sequence=0,
        ttl=config.outbox.ttl_hours,
        domain=domain,
        extensions=Extensions(vector=situation.vector),
    )
    if args.json:
        print_json(_plain(looks, outcome, situation, packet))
    else:
        _show(looks, outcome, situation, packet)
    return OK


def _look(config: NodeConfig) -> list[_Look]:
    """Each sensor, read once; what fails is said and passed over."""
    now = config.clock.make().now()
    looks = []
    for one in config.sensors:
        try:
            sensor = load_driver(one.driver)(one.settings)
            sensor.open()
            try:
                looks.append(_Look(one, sensor.channels, sensor.read(now)))
            finally:
                sensor.close()
        except SensorError as error:
            complain(f"sensor {one.name or one.driver}: {error}", error.hint)
    return looks


def _window(config: NodeConfig, looks: Sequence[_Look]) -> int | None:
    """The start of the window of the newest reading."""
    newest = max((r.time for look in looks for r in look.readings), default=None)
    if newest is None:
        return None
    return int(newest // config.distil.window) * config.distil.window


def _distil(config: NodeConfig, domain: Domain, looks: Sequence[_Look], start: int) -> Outcome:
    """The outcome of a window that has these readings, and is taken to be full with them."""
    end = start + config.distil.window
    inside = [
        [reading for reading in look.readings if start <= reading.time < end] for look in looks
    ]
    distiller = config.make_distiller(domain, expected=max(1, *map(len, inside)))
    distiller.roll(start)  # even if every value is missing or implausible
    for look, readings in zip(looks, inside, strict=True):
        for reading in readings:
            distiller.feed(reading.time, look.config.results(reading.values))
    (outcome,) = distiller.roll(end)
    if distiller.last_error is not None:
        complain(f"distil.function: {distiller.last_error}", "the statistics took its place")
    return outcome


def _identity(config: NodeConfig) -> Identity:
    try:
        return read_key(config.node.key_file)
    except KeyFileError as error:
        note(f"{error}: the packet is signed with a key that is thrown away")
        return Identity.generate()


def _show(looks: Sequence[_Look], outcome: Outcome, situation: Situation, packet: Packet) -> None:
    rows = [
        [look.name, name, reading.values.get(name), look.units.get(name), channel.result]
        for look in looks
        for reading in look.readings[-1:]
        for name, channel in look.config.channels.items()
    ]
    print(table(["sensor", "channel", "reading", "unit", "result"], rows))
    print("\noutcome, if this were all of the window")
    items: list[tuple[str, object]] = [
        ("time", moment(outcome.time)),
        ("kind", outcome.kind.name.lower()),
        ("confidence", outcome.confidence),
        ("samples", outcome.samples),
    ]
    items += [(str(name), value) for name, value in outcome.results.items()]
    if outcome.summary is not None:
        items.append(("summary", outcome.summary))
    items += [(name, value) for name, value in situation.fields.items()]
    items.append(("address", situation.fingerprint.hex()))
    print(pairs([(f"  {name}", value) for name, value in items]))
    print(f"\npacket, {len(packet.raw)} bytes; nothing was kept or sent")
    raw = packet.raw.hex()
    for at in range(0, len(raw), 64):
        print(f"  {raw[at : at + 64]}")


def _plain(
    looks: Sequence[_Look], outcome: Outcome, situation: Situation, packet: Packet
) -> dict[str, Any]:
    return {
        "readings": [
            {"sensor": look.name, "time": reading.time, "values": dict(reading.values)}
            for look in looks
            for reading in look.readings[-1:]
        ],
        "outcome": outcome_form(outcome),
        "fields": situation.fields,
        "address": situation.fingerprint,
        "bytes": len(packet.raw),
        "packet": packet.raw,
    }
