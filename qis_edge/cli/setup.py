"""``qis-edge init`` and ``qis-edge check``."""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qis_edge.cli.program import OK, collecting, note, problem, show_check
from qis_edge.config import NodeConfig, default_path, default_state, is_root, load_node
from qis_edge.core.domain import Domain
from qis_edge.core.errors import ConfigError, QisError, UsageError
from qis_edge.core.identity import Identity
from qis_edge.drivers import load_callable, load_driver
from qis_edge.keys import FleetFile, read_key, write_key
from qis_edge.link_making import check_link
from qis_edge.schema import loads
from qis_edge.schema.text import sample, toml
from qis_edge.systemd_credentials import is_named
from qis_edge.terminal import plural

# --- init ------------------------------------------------------------------------------


def init(args: argparse.Namespace) -> int:
    """Make the key, the state folder and a configuration; nothing that is there is changed."""
    path = config_path(args.config, "edge")
    existing = load_node(path, full=False) if path.exists() else None
    domain_name = _domain_name(args.domain)
    domain = Domain.load(domain_name)
    fields = _fields(args.field, domain)
    state = existing.node.state if existing else state_folder(args, "edge", path)
    fleet = _fleet(args.fleet, state / "fleet.toml")
    make_folder(state)
    identity, made = key_at(existing.node.key_file if existing else state / "node.key", "node key")
    if not (state / "fleet.toml").exists():
        fleet.write(state / "fleet.toml")
    name = args.name or (existing.node.name if existing else host_name())
    if existing is None:
        values: dict[str, Any] = {
            "node": {"name": name},
            "situation": {"domain": domain_name},
            "links": _link_values(args.radio, fleet),
        }
        if (at := state_text(args, state, path)) is not None:
            values["node"]["state"] = at
        text = node_sample(values, domain, fields)
        write_config(path, text, NodeConfig)
    print(f"node    {existing.node.name if existing else name}")
    print(f"kid     {identity.kid.hex()}{'' if made else ' (the key was there already)'}")
    print(f"fleet   {fleet.site}, root {fleet.root.kid.hex()}")
    print(f"state   {state}")
    print(f"config  {path}{' (left as it was)' if existing else ''}")
    _next_steps(args, path, existing is None, [f for f in domain.fields if f.name not in fields])
    return OK


def config_path(given: Path | None, role: str) -> Path:
    """The configuration that is meant."""
    return given.expanduser() if given is not None else default_path(role)


def state_folder(args: argparse.Namespace, role: str, path: Path) -> Path:
    """Where a new configuration will have its state."""
    if args.state is not None:
        return Path(args.state).expanduser().absolute()
    if args.config is not None:
        return path.absolute().parent / "state"
    return Path(default_state(role)).expanduser()


def state_text(args: argparse.Namespace, state: Path, path: Path) -> str | None:
    """How the configuration says it; ``None`` where it is the default."""
    if args.state is None and args.config is None:
        return None
    here = path.absolute().parent
    return str(state.relative_to(here)) if state.is_relative_to(here) else str(state)


def make_folder(state: Path) -> None:
    """Make a state folder, and keep others out of it.

    :raises QisError: it cannot be made.
    """
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.chmod(0o700)
    except OSError as error:
        raise QisError(
            f"the state folder {state} cannot be made: {error.strerror}",
            hint="choose another with --state, or run this as the user that owns it",
        ) from error


def key_at(path: Path, what: str) -> tuple[Identity, bool]:
    """The key of a file, and whether it was made just now.

    :raises KeyFileError: what is there cannot be used; it is never written over.
    """
    if path.exists() or is_named(path):
        return read_key(path), False
    identity = Identity.generate()
    write_key(path, identity, what=what)
    return identity, True


def host_name() -> str:
    """This machine's name, as far as it may name a node."""
    found = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname().partition(".")[0])
    return found.strip("-._")[:40] or "node"


def write_config(path: Path, text: str, cls: type) -> None:
    """Write a new configuration.

    :raises QisError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise QisError(f"{path}: {error.strerror}") from error
    try:
        loads(cls, text, path, full=False)
    except ConfigError:
        path.unlink()  # a name given on the command line that no configuration may have
        raise


def _fleet(given: Path | None, pinned: Path) -> FleetFile:
    """The fleet to belong to; a root that is pinned stays."""
    held = FleetFile.read(pinned) if pinned.exists() else None
    if given is None:
        if held is None:
            raise UsageError(
                "is needed: it says which root to trust",
                field="--fleet",
                hint="qis-gateway init makes fleet.toml in the gateway's state folder; "
                "bring it here",
            )
        return held
    offered = FleetFile.read(given.expanduser())
    if held is not None and held.root != offered.root:
        raise QisError(
            f"this node belongs to another fleet: its root is {held.root.kid.hex()}, "
            f"that of {given} is {offered.root.kid.hex()}",
            hint=f"to leave that fleet for good, move {pinned.parent} away first",
        )
    return held or offered


def _domain_name(given: str) -> str:
    """A template's name as it is; its path so that it holds wherever it is read from."""
    is_path = "/" in given or given.endswith(".toml")
    return str(Path(given).expanduser().absolute()) if is_path else given


def _fields(given: Sequence[str], domain: Domain) -> dict[str, str]:
    known = {field.name: field for field in domain.fields}
    fields = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise UsageError(
                f"{text} is no field of {domain.name}",
                field="--field",
                hint=f"NAME=VALUE with one of {', '.join(known)}",
            )
        if value not in known[name].values:
            raise UsageError(
                f"{value} is not a value of {name}",
                field="--field",
                hint=f"one of {', '.join(known[name].values)}",
            )
        fields[name] = value
    return fields


def _link_values(radio: str | None, fleet: FleetFile) -> dict[str, Any]:
    """A broker, unless there is a radio and the fleet knows no broker."""
    if radio is None:
        return {"mqtt": {}}
    mesh = {"meshtastic": {"radio": radio}}
    return mesh if fleet.mqtt_url is None else {"mqtt": {}, **mesh}


def node_sample(values: dict[str, Any], domain: Domain, fields: dict[str, str]) -> str:
    """The configuration of a new node. What only a person can know is left to be filled in."""
    sources: dict[str, Any] = {}
    for field in domain.fields:
        if field.name in fields:
            sources[field.name] = fields[field.name]
        elif field.name == "season":
            sources[field.name] = {"from": "calendar.season"}
    remarks = {
        "sensor": "The machine itself stands in here until a sensor is connected: what it gives\n"
        "as the result below is nothing that others should learn from."
    }
    values = {
        **values,
        "situation": {**values["situation"], "fields": sources},
        "sensor": [{"driver": "system", "channels": {"cpu_temperature": _stand_in(domain)}}],
    }
    text = sample(NodeConfig, values, remarks)
    choices = "".join(
        f"#{field.name} = {toml(field.values[0])}  # {', '.join(field.values)}\n"
        for field in domain.fields
        if field.name not in sources
    )
    return text.replace("[situation.fields]\n", f"[situation.fields]\n{choices}", 1)


def _stand_in(domain: Domain) -> str:
    """The result that the machine's temperature stands in for."""
    numeric = [result for result in domain.results if not result.words]
    warm = [result for result in numeric if result.unit == "Cel"]
    return (warm or numeric or list(domain.results))[0].name


def _next_steps(args: argparse.Namespace, path: Path, new: bool, missing: Sequence[Any]) -> None:
    where = f" --config {args.config}" if args.config is not None else ""
    choose = [field.name for field in missing if field.name != "season"]
    print("\nnext:")
    if new and choose:
        print(f"  choose {' and '.join(choose)} under [situation.fields] of {path}")
    if new:
        print(f"  say under [[sensor]] of {path} what is connected")
    print(f"  qis-edge check{where}")
    print(f"  qis-edge run --test{where}")
    if is_root() and not where:
        print("  qis-edge service install --now")
    else:
        print(f"  qis-edge run{where}")


# --- check -----------------------------------------------------------------------------


def check(args: argparse.Namespace) -> int:
    """Say all that is wrong with the configuration, the keys, the template, the sensors."""
    problems: list[dict[str, Any]] = []
    good: list[str] = []
    path = config_path(args.config, "edge")
    config: NodeConfig | None = None
    with collecting(problems, "config"):
        config = load_node(path)
        domain, sensors = config.situation.load_domain(), len(config.sensors)
        good.append(
            f"{config.path}: {domain.name} (revision {domain.revision}), "
            f"{plural(sensors, 'sensor')}"
        )
    if config is not None:
        _check_state(config, problems, good)
        _check_sensors(config, problems, good)
        _check_hooks(config, problems)
    return show_check(problems, good, as_json=args.json)


def _check_state(config: NodeConfig, problems: list[dict[str, Any]], good: list[str]) -> None:
    from qis_edge.cli.joining import stored_standing  # loads the store

    state = config.node.state
    before = len(problems)
    with collecting(problems, "keys"):
        identity = read_key(config.node.key_file)
        fleet = FleetFile.read(state / "fleet.toml")
        good.append(f"{state}: key {identity.kid.hex()}, fleet {fleet.site}")
        check_folder(state, problems)
        for name in config.links.names:
            with collecting(problems, "config"):
                where = check_link(config.links, name, broker=fleet.mqtt_url)
                good.append(f"link: {where}")
    if len(problems) == before:
        with collecting(problems, "store"):
            standing = stored_standing(config)
            if standing["enrolled"]:
                good.append(f"enrolled as {standing['name']}")
            else:
                note("this node is not enrolled yet: qis-edge enroll says how")


def check_folder(state: Path, problems: list[dict[str, Any]]) -> None:
    """Others must not look into a state folder."""
    mode = state.stat().st_mode & 0o777
    if mode & 0o077:
        problems.append(
            problem("keys", f"others may look into the state folder {state}", f"chmod 700 {state}")
        )
    if not os.access(state, os.W_OK):
        problems.append(problem("keys", f"the state folder {state} cannot be written to"))


def _check_sensors(config: NodeConfig, problems: list[dict[str, Any]], good: list[str]) -> None:
    for one in config.sensors:
        name = one.name or one.driver
        found: list[dict[str, Any]] = []
        with collecting(found, f"sensor {name}"):
            sensor = load_driver(one.driver)(one.settings)
            try:
                sensor.open()
            finally:
                sensor.close()
            good.append(f"sensor {name} opens")
        problems += [{**each, "message": f"sensor {name}: {each['message']}"} for each in found]


def _check_hooks(config: NodeConfig, problems: list[dict[str, Any]]) -> None:
    named = {"distil.function": config.distil.function, "synthesis.hook": config.synthesis.hook}
    for key, hook in named.items():
        if hook is not None:
            found: list[dict[str, Any]] = []
            with collecting(found, "config"):
                load_callable(hook)
            problems += [{**each, "key": key, "file": str(config.path)} for each in found]
