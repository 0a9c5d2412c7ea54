"""``qis-gateway init`` and ``qis-gateway check``."""

from __future__ import annotations

import argparse
import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gateway.cli.state import opened_fleet, root_of
from gateway.config import BrokerConfig, GatewayConfig, load_gateway
from gateway.fleet import VALIDITY, Fleet
from qis_edge.cli.program import OK, collecting, note, show_check
from qis_edge.cli.setup import (
    check_folder,
    config_path,
    host_name,
    key_at,
    make_folder,
    state_folder,
    state_text,
    write_config,
)
from qis_edge.config import is_root
from qis_edge.core.credential import GATEWAY, ISSUER, issue
from qis_edge.core.errors import QisError, Refused, UsageError
from qis_edge.core.identity import Identity
from qis_edge.keys import FleetFile, read_key
from qis_edge.link_making import check_link
from qis_edge.links.mqtt_settings import is_loopback
from qis_edge.schema.text import sample
from qis_edge.terminal import moment, plural

#: A gateway's credential is made anew when it ends within so many seconds.
RENEW = 90 * 86400
#: For how long a gateway's credential is good: seconds.
GATEWAY_VALIDITY = 5 * 365 * 86400

assert GATEWAY_VALIDITY >= VALIDITY + RENEW  # a node's may not end later than its issuer's


def init(args: argparse.Namespace) -> int:
    """Make keys, a fleet and a configuration; nothing that is there is changed."""
    path = config_path(args.config, "gateway")
    if path.exists():
        config, new = load_gateway(path, full=False), False
    else:
        config, new = _write_config(args, path), True
    state = config.gateway.state
    make_folder(state)
    fleet_file, root = _root(args, state)
    identity, _ = key_at(config.gateway.key_file, "gateway key")
    if fleet_file is None:
        if root is None:
            raise AssertionError("a fleet without a root")
        fleet_file = FleetFile(root.public, args.site or "site", _broker_url(config))
        fleet_file.write(state / "fleet.toml")
    elif args.site is not None and args.site != fleet_file.site:
        note(f"the site stays {fleet_file.site}: change it in {state / 'fleet.toml'}")
    expires = _credential(config, fleet_file, identity, root)
    print(f"gateway  {config.gateway.name}")
    print(f"kid      {identity.kid.hex()}, good until {moment(expires)}")
    print(f"fleet    {fleet_file.site}, root {fleet_file.root.kid.hex()}")
    if fleet_file.mqtt_url is not None:
        print(f"broker   {fleet_file.mqtt_url}")
    print(f"state    {state}")
    print(f"config   {path}{'' if new else ' (left as it was)'}")
    _next_steps(args, state)
    return OK


def _write_config(args: argparse.Namespace, path: Path) -> GatewayConfig:
    state = state_folder(args, "gateway", path)
    text = state_text(args, state, path)
    values: dict[str, Any] = {
        "gateway": {"name": args.name or host_name()}
        | ({"state": text} if text is not None else {})
    }
    if args.broker is not None:
        if args.listen is not None:
            raise UsageError("is for the embedded broker, not with --broker", field="--listen")
        values["broker"] = {"embedded": False}
        values["links"] = {"mqtt": {"url": args.broker}}
    elif args.listen is not None:
        host = args.listen.rpartition(":")[0].strip("[]")
        values["broker"] = {"listen": args.listen}
        if not is_loopback(host):
            values["broker"]["anonymous"] = True
            note(f"anybody who reaches {args.listen} may connect to the broker (anonymous = true)")
    if args.radio is not None:
        values["links"] = {**values.get("links", {}), "meshtastic": {"radio": args.radio}}
    write_config(path, sample(GatewayConfig, values), GatewayConfig)
    return load_gateway(path, full=False)


def _root(args: argparse.Namespace, state: Path) -> tuple[FleetFile | None, Identity | None]:
    """The fleet, if there is one, and its root key, if it is at hand; made where neither is."""
    pinned = state / "fleet.toml"
    fleet = FleetFile.read(pinned) if pinned.exists() else None
    if args.root is not None:
        root: Identity | None = read_key(args.root.expanduser())
    elif fleet is None:
        root, _ = key_at(state / "root.key", "root key")
    else:
        root = root_of(state, None)
    if fleet is not None and root is not None and root.public != fleet.root:
        raise QisError(
            f"this gateway belongs to another fleet: its root is {fleet.root.kid.hex()}, "
            f"not {root.kid.hex()}",
            hint=f"to leave that fleet for good, move {state} away first",
        )
    return fleet, root


def _credential(
    config: GatewayConfig, fleet_file: FleetFile, identity: Identity, root: Identity | None
) -> int:
    """See to it that the gateway has a good credential; unix seconds at which it ends."""
    now = config.clock.make().now()
    with opened_fleet(config, fleet_file) as fleet:
        expires = _good_until(fleet, identity, now)
        if expires is not None and (expires > now + RENEW or root is None):
            return expires
        if root is None:
            raise QisError(
                "this gateway has no good credential, and the root key is not here",
                hint="name it: qis-gateway init --root FILE",
            )
        made = issue(
            root,
            subject=config.gateway.name,
            key=identity.public,
            scope=(GATEWAY, ISSUER),
            expires=int(now) + GATEWAY_VALIDITY,
            serial=os.urandom(8),
        )
        fleet.add(made.raw, now)
        return made.expires


def _good_until(fleet: Fleet, identity: Identity, now: float) -> int | None:
    try:
        fleet.resolve(identity.kid, now, GATEWAY)
    except Refused:
        return None
    held = fleet.credential(identity.kid)
    return held.expires if held is not None else None


def _broker_url(config: GatewayConfig) -> str | None:
    """The broker as nodes reach it, where there is one."""
    if config.links.mqtt is not None and config.links.mqtt.url is not None:
        return config.links.mqtt.url
    if not config.broker.embedded:
        return None
    host, port = config.broker.listen
    if is_loopback(host):
        return config.broker.url
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not listened to
        host = socket.gethostname()
    return BrokerConfig(listen=(host, port)).url


def _next_steps(args: argparse.Namespace, state: Path) -> None:
    where = f" --config {args.config}" if args.config is not None else ""
    print("\nnext:")
    if (state / "root.key").exists():
        print(f"  move {state / 'root.key'} to a medium that is kept offline;")
        print("  it is needed to revoke, to renew this gateway and to add others")
    if is_root() and not where:
        print("  qis-gateway service install --now")
    else:
        print(f"  qis-gateway run{where}")
    print(f"  give {state / 'fleet.toml'} to each node: qis-edge init --fleet fleet.toml")
    print(f"  qis-gateway permit 600{where}, then qis-gateway approve NODE{where}")


# --- check -----------------------------------------------------------------------------


def check(args: argparse.Namespace) -> int:
    """Say all that is wrong with the configuration, the keys, the fleet, the engines."""
    problems: list[dict[str, Any]] = []
    good: list[str] = []
    config: GatewayConfig | None = None
    with collecting(problems, "config"):
        config = load_gateway(config_path(args.config, "gateway"))
        good.append(f"{config.path}: {plural(len(config.routing.engines), 'routing engine')}")
    if config is not None:
        _check_keys(config, problems, good)
        for name in config.served.names:
            with collecting(problems, "broker" if name == "mqtt" else "link"):
                _check_link(config, name, good)
    return show_check(problems, good, as_json=args.json)


def _check_keys(config: GatewayConfig, problems: list[dict[str, Any]], good: list[str]) -> None:
    state = config.gateway.state
    with collecting(problems, "keys"):
        identity = read_key(config.gateway.key_file)
        fleet_file = FleetFile.read(state / "fleet.toml")
        check_folder(state, problems)
        if (state / "root.key").exists():
            note(f"the fleet's root key is here: move {state / 'root.key'} offline")
        now = config.clock.make().now()
        with opened_fleet(config, fleet_file, read_only=True) as fleet:
            expires = _good_until(fleet, identity, now)
        if expires is None:
            raise QisError(
                "this gateway has no good credential",
                hint="qis-gateway init makes one where the root key is",
            )
        if expires <= now + RENEW:
            note(
                f"the gateway's credential ends on {moment(expires)}: qis-gateway init --root FILE"
            )
        good.append(f"{state}: key {identity.kid.hex()}, fleet {fleet_file.site}")


def _check_link(config: GatewayConfig, name: str, good: list[str]) -> None:
    where = check_link(config.served, name, broker=config.broker_url)
    if name == "mqtt" and config.broker.embedded and find_spec("amqtt") is None:
        raise QisError(
            "the embedded broker is not installed",
            hint="pip install 'qis-edge[gateway]', or run Mosquitto and set embedded = false",
        )
    good.append(f"link: {where}")
