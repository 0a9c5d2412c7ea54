"""``service install``, ``remove`` and ``show`` of both commands."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from qis_edge.cli.program import OK, note
from qis_edge.config import NodeConfig, load_node
from qis_edge.core.errors import ConfigError, QisError
from qis_edge.link_config import LinksConfig
from qis_edge.service import install as units

TITLES = {"qis-edge": "QIS Edge field node", "qis-gateway": "QIS Edge gateway"}
MODULES = {"qis-edge": "qis_edge", "qis-gateway": "gateway"}

#: Reads a configuration: its state folder and its links.
Look = Callable[[Path], tuple[Path, LinksConfig]]


# --- the node's ---------------------------------------------------------------------------


def look_at_node(path: Path) -> tuple[Path, LinksConfig]:
    """The state folder and the links of a node's configuration."""
    config: NodeConfig = load_node(path, full=False)
    return config.node.state, config.links


def install(args: argparse.Namespace) -> int:
    """Make a service of the node."""
    return install_service(args, look_at_node)


def remove(args: argparse.Namespace) -> int:
    """Take the service away."""
    return remove_service(args)


def show(args: argparse.Namespace) -> int:
    """Print the unit."""
    return show_service(args, look_at_node)


# --- both ---------------------------------------------------------------------------------


def service_of(args: argparse.Namespace, look: Look, root: Path = Path("/")) -> units.Service:
    """The service that is meant, by its configuration where there is one.

    :raises ConfigError: it is wrong.
    """
    name = args.program
    config = Path(args.config or f"/etc/{name}/config.toml").expanduser().absolute()
    own = Path("/var/lib") / name
    state, serial = own, False
    at = root / config.relative_to("/")
    if at.exists():
        state, links = look(at)
        if root != Path("/") and state.is_relative_to(root):  # a path relative to the file
            state = Path("/") / state.relative_to(root)
        if state == Path("~/.local/state").expanduser() / name:
            state = own  # this user's default; the service has its own
        serial = links.serial is not None or (
            links.meshtastic is not None and not links.meshtastic.radio.startswith("tcp:")
        )
    command = (
        (str(args.command.absolute()),)
        if args.command is not None
        else units.own_command(name, MODULES[name])
    )
    return units.Service(
        name=name,
        title=TITLES[name],
        config=config,
        state=state,
        serial=serial or args.serial,
        command=command,
        systemd=units.systemd_version(),
    )


def show_service(args: argparse.Namespace, look: Look) -> int:
    """Print every file as it would be written."""
    service = service_of(args, look)
    for path, text in service.files().items():
        print(f"# /{path}\n{text}")
    return OK


def install_service(args: argparse.Namespace, look: Look) -> int:
    """Write the files, and tell systemd."""
    root = (args.root or Path("/")).absolute()
    try:
        service = service_of(args, look, root)
    except ConfigError as error:
        error.hint = f"{args.program} check says what is wrong with it"
        raise
    if args.command is None:
        service.check()
    service.check_places()
    here = args.root is None
    commands = _after_install(service, now=args.now) if here else []
    if args.dry_run:
        for path in service.files():
            print(f"write   {root / path}")
        for command in commands:
            print(f"run     {' '.join(command)}")
        return OK
    if here:
        _require_systemd(args)
    for path in units.write(service, root):
        print(f"wrote   {root / path}")
    for command in commands:
        units.call(command)
        print(f"ran     {' '.join(command)}")
    _next(service, root, now=args.now)
    return OK


def _after_install(service: units.Service, *, now: bool) -> list[list[str]]:
    users = f"/{units.SYSUSERS / service.name}.conf"
    commands = [["systemd-sysusers", users], ["systemctl", "daemon-reload"]]
    if now:
        commands += [["systemctl", "enable", service.unit], ["systemctl", "restart", service.unit]]
    return commands


def _require_systemd(args: argparse.Namespace) -> None:
    if not Path("/run/systemd/system").is_dir():
        raise QisError(
            "this machine is not run by systemd",
            hint=f"let your own supervisor run: {args.program} run; or prepare another "
            "machine's files with --root DIR",
        )
    if os.geteuid() != 0:
        raise QisError("only root may change services", hint="run it with sudo, or as root")


def _next(service: units.Service, root: Path, *, now: bool) -> None:
    if not (root / service.config.relative_to("/")).exists():
        note(f"there is no {service.config} yet: {service.name} init, as root, makes it")
    if service.state != service.own_state:
        note(f"the state must be the service's: chown -R {service.name}: {service.state}")
    if now:
        return
    print("\nnext:")
    print(f"  systemctl enable --now {service.name}")
    print(f"  systemctl status {service.name}; journalctl -u {service.name}")


def remove_service(args: argparse.Namespace) -> int:
    """End the service and remove its files; what it knows and is stays."""
    root = (args.root or Path("/")).absolute()
    name = args.program
    here = args.root is None
    found = units.present(name, root)
    if not found:
        note(f"there is no service {name} that service install made")
        return OK
    before = [["systemctl", "disable", "--now", f"{name}.service"]] if here else []
    after = [["systemctl", "daemon-reload"]] if here else []
    if args.dry_run:
        for command in before:
            print(f"run     {' '.join(command)}")
        for path in found:
            print(f"remove  {root / path}")
        for command in after:
            print(f"run     {' '.join(command)}")
        return OK
    if here:
        _require_systemd(args)
    for command in before:
        units.call(command)
        print(f"ran     {' '.join(command)}")
    for path in units.erase(name, root):
        print(f"removed {root / path}")
    for command in after:
        units.call(command)
        print(f"ran     {' '.join(command)}")
    print(f"\nkept: /etc/{name}, /var/lib/{name} (keys and queues) and the user {name}")
    return OK
