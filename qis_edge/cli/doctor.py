"""``qis-edge doctor``, and what both doctors have in common."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from qis_edge.cli.joining import stored_standing
from qis_edge.cli.owner import act_as_owner
from qis_edge.cli.program import OK, PROBLEM, USAGE, WARNED, print_json, start_command
from qis_edge.cli.service import Look, look_at_node, service_of
from qis_edge.config import NodeConfig, load_node
from qis_edge.control import LOCK, request
from qis_edge.core.errors import ConfigError, LinkError, NotRunning, QisError, StoreError
from qis_edge.doctor.broker import Probe, check_broker
from qis_edge.doctor.clock import check_clock, synchronised
from qis_edge.doctor.disk import check_disk
from qis_edge.doctor.findings import Finding, Severity, error, notice, ok, warning, worst
from qis_edge.doctor.keys import check_credential, check_key, check_state
from qis_edge.doctor.machine import check_database, check_memory, check_port, check_versions
from qis_edge.keys import FleetFile, read_key
from qis_edge.link_config import LinksConfig, MqttConfig
from qis_edge.link_making import check_link
from qis_edge.service import install as units
from qis_edge.store.outbox import Outbox
from qis_edge.store.schema import INBOX, OUTBOX
from qis_edge.terminal import duration, harmless, plural, size

#: The share of a budget above which a queue is nearly full; seconds without a delivery after
#: which what waits is stale.
NEARLY, STALE = 0.9, 3 * 86400

Status = Mapping[str, Any]
C = TypeVar("C")


def doctor(args: argparse.Namespace) -> int:
    """Look at everything that may be wrong, whether the node runs or not."""
    return examine(args, load_node, lambda config: config.node.state, _node)


def examine(
    args: argparse.Namespace,
    load: Callable[..., C],
    state_of: Callable[[C], Path],
    look: Callable[[argparse.Namespace, C], Iterator[Finding]],
) -> int:
    """Read the configuration, look as the owner of the state folder, and show what was found;
    returns an exit status."""
    try:
        config, found = loaded(args, load)
    except ConfigError as failure:
        show(args, wrong(args, failure))
        return USAGE
    act_as_owner(state_of(config))
    return show(args, itertools.chain(found, look(args, config)))


def _node(args: argparse.Namespace, config: NodeConfig) -> Iterator[Finding]:
    state, now = config.node.state, config.clock.make().now()
    status, found = ask(args, state)
    yield from found
    floor = 0
    numbers: list[Finding] = []
    with contextlib.suppress(StoreError):
        if (state / "outbox.db").exists():
            with Outbox.inspect(state / "outbox.db") as outbox:
                stats = outbox.stats()
                floor = stats.clock
                queued = outbox.unreceipted(1)
            oldest = queued[0].last_time if queued else None
            numbers = list(_backlog(config, stats.shown(), oldest, now))
    yield from clock(config, floor, status)
    yield from check_state(state)
    yield from check_key(config.node.key_file, state, what="node")
    yield from whole("credential", lambda: [_standing(config, now)])
    left = max(0, config.outbox.budget + config.peers.keep - _used(state))
    yield from check_disk(state, wanted=left)
    yield from trouble(status)
    running = status is not None
    for name, schema in (("outbox.db", OUTBOX), ("inbox.db", INBOX)):
        yield from check_database(
            state / name, schema.version, schema.application_id, running=running
        )
    yield from numbers
    yield from whole("broker-settings", lambda: _links(config, status))
    yield from whole("service-outdated", lambda: unit(args, look_at_node))
    yield from check_versions()
    yield from check_memory(pid_of(state) if running else None)


def _standing(config: NodeConfig, now: float) -> Finding:
    standing = stored_standing(config)
    return check_credential(
        standing["expires"],
        now,
        held=bool(standing["enrolled"]),
        missing="qis-edge enroll says how to join",
        renew="qis-gateway approve, on the gateway, makes another for this node",
    )


def _links(config: NodeConfig, status: Status | None) -> Iterator[Finding]:
    fleet = FleetFile.read(config.node.state / "fleet.toml")
    kid = read_key(config.node.key_file).kid
    probe = Probe.node(fleet.site, kid)
    yield from links(config.links, fleet.mqtt_url, probe, status)


def _backlog(
    config: NodeConfig, stats: Mapping[str, Any], oldest: float | None, now: float
) -> Iterator[Finding]:
    """What the outbox holds.

    :param oldest: unix seconds of the oldest packet without a receipt.
    """
    lost, refused = stats["evicted_unsent"], stats["refused"]
    if lost:
        yield warning(
            "backlog-lost",
            f"{plural(lost, 'outcome')} were dropped for want of room, never delivered",
            "make outbox.budget larger, or mend the links: qis-edge status",
        )
    if refused:
        yield warning(
            "backlog-refused",
            f"{plural(refused, 'packet')} were refused by a gateway for good",
            "qis-edge queue says why",
        )
    budget = config.outbox.budget
    if stats["bytes"] > NEARLY * budget and not stats["held"]:
        yield warning(
            "backlog-full",
            f"the queue has {size(stats['bytes'])} of {size(budget)}, and nothing of it is held "
            "by a gateway: the least important outcomes are dropped next",
            "make outbox.budget larger, or mend the links: qis-edge status",
        )
    said = (
        f"{plural(stats['waiting'], 'outcome')} waiting, "
        f"{plural(stats['unreceipted'], 'packet')} without a receipt"
    )
    if oldest is not None and now - oldest > STALE:
        yield warning(
            "backlog-stale",
            f"{said}, the first of {duration(now - oldest)} ago",
            "see the links: qis-edge status",
        )
    else:
        yield ok("backlog", said)


# --- both ---------------------------------------------------------------------------------


def loaded(args: argparse.Namespace, load: Callable[..., C]) -> tuple[C, list[Finding]]:
    """The configuration, and what is wrong with it where the rest can be looked at still: a
    file that is missing, a driver, a secret that only the service has.

    :raises ConfigError: nothing can be done with it.
    """
    try:
        config = load(args.config)
    except ConfigError as failure:
        return load(args.config, full=False), wrong(args, failure)
    return config, [ok("config", "it is read, and nothing is wrong with it")]


def wrong(args: argparse.Namespace, failure: ConfigError) -> list[Finding]:
    """What is wrong with a configuration."""
    fix = failure.hint or f"{args.program} check says it again"
    return [
        notice("config", str(one), "start the service, or leave it", one.key)
        if "is handed over by systemd" in one.message
        else error("config-wrong", str(one), one.suggestion or fix, one.key)
        for one in failure.problems
    ]


def ask(args: argparse.Namespace, state: Path) -> tuple[Status | None, list[Finding]]:
    """What the daemon says, and that it does."""
    start = start_command(args)
    try:
        status: Status = request(state, "status", start=start)
    except NotRunning:
        fix = f"{start}, or as a service: {args.program} service install --now"
        return None, [notice("daemon-down", "the daemon is not running", fix)]
    except QisError as failure:
        fix = failure.hint or "its log may say why; restart it"
        return None, [error("daemon-silent", str(failure), fix)]
    return status, [ok("daemon", f"it runs, for {duration(time.time() - status['started'])}")]


def pid_of(state: Path) -> int | None:
    """The process of a running daemon."""
    with contextlib.suppress(OSError, ValueError):
        return int((state / LOCK).read_text(encoding="ascii"))
    return None


def whole(code: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check, or why it could not be made, as an error of ``code``."""
    try:
        yield from check()
    except QisError as failure:
        worse = {"credential": "credential-missing", "engine": "engine-away"}.get(code, code)
        yield error(worse, str(failure), failure.hint or "see the other findings")


def clock(
    config: Any, floor: int, status: Status | None, *, gateway: bool = False
) -> Iterator[Finding]:
    """The clock of either role."""
    if config.clock.simulate is not None:
        yield notice("clock-simulated", "the configuration has a simulated clock: a rehearsal")
        return
    yield from check_clock(
        floor,
        kept=synchronised(),
        trusted=None if status is None else status.get("clock_trusted"),
        told=None if status is None else status.get("now"),
        gateway=gateway,
    )


def unit(args: argparse.Namespace, look: Look, root: Path = Path("/")) -> Iterator[Finding]:
    """Whether the unit, where there is one of ours, is as it would be installed now."""
    if not units.present(args.program, root):
        return
    asked = argparse.Namespace(program=args.program, config=args.config, command=None, serial=False)
    for path, text in service_of(asked, look, root).files().items():
        place = root / path
        if not place.exists() or place.read_text(encoding="utf-8") != text:
            yield notice(
                "service-outdated",
                f"{place} is not as this installation would write it",
                f"{args.program} service install",
                path.name,
            )


def trouble(status: Status | None) -> Iterator[Finding]:
    """What keeps a running daemon from writing."""
    if status is not None and status.get("disk"):
        yield error("disk-trouble", str(status["disk"]), "it goes on by itself once that is mended")


def links(
    config: LinksConfig, broker: str | None, probe: Probe, status: Status | None
) -> Iterator[Finding]:
    """Every link: what it needs, whether a running daemon has it up, and the broker itself.

    :param broker: its URL where the configuration has none.
    """
    for name in config.names:
        try:
            if name == "mqtt":
                settings = (config.mqtt or MqttConfig()).settings(broker)
            else:
                check_link(config, name, broker=broker)
        except QisError as failure:
            code = "package-missing" if "not installed" in str(failure) else "broker-settings"
            yield error(code, str(failure), failure.hint or "see its settings", name)
            continue
        yield from check_broker(settings, probe) if name == "mqtt" else _port(config, name)
    for one in () if status is None else status["links"]:
        if not one["up"]:
            yield warning(
                "link-down",
                f"{one['url']} is down: {one['last_error'] or 'not connected yet'}",
                "the daemon goes on trying; see the other findings",
                one["name"],
            )


def _port(config: LinksConfig, name: str) -> Iterator[Finding]:
    from qis_edge.links.tty import resolve  # loads pyserial: only who has a port needs it

    assert config.meshtastic is not None or config.serial is not None
    if name == "serial" and config.serial is not None:
        device = config.serial.port
    else:
        device = config.meshtastic.radio if config.meshtastic is not None else ""
    if device.startswith("tcp:") or device == "auto":
        yield ok("port", f"{device}: found when it is used", name)
        return
    try:
        yield check_port(name, resolve(device))
    except LinkError as failure:
        yield error("port-missing", str(failure), failure.hint or "is it plugged in?", name)


def _used(state: Path) -> int:
    """Bytes that the stores take already."""
    used = 0
    for path in state.glob("*.db*"):
        with contextlib.suppress(OSError):
            used += path.stat().st_size
    return used


# --- showing ------------------------------------------------------------------------------


def show(args: argparse.Namespace, findings: Iterable[Finding]) -> int:
    """Print findings as they come, and return the exit code of the worst."""
    found = []
    for one in findings:
        found.append(one)
        if not args.json:
            _show_one(one)
    bad = worst(found)
    if args.json:
        print_json(
            {"worst": bad.label, "findings": [one.shown() for one in found]},
        )
    return {Severity.ERROR: PROBLEM, Severity.WARNING: WARNED}.get(bad, OK)


def _show_one(one: Finding) -> None:
    about = f" ({harmless(one.about)})" if one.about else ""
    print(f"{one.severity.label:8} {one.code}{about}: {harmless(one.message)}")
    if one.fix and one.severity is not Severity.OK:
        print(f"{'':8} fix: {harmless(one.fix)}")
