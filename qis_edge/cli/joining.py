"""``qis-edge enroll``: how a node joins its fleet, over the air or with files."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qis_edge.cli.letters import read_letter, write_letter
from qis_edge.cli.owner import act_as_owner
from qis_edge.cli.program import OK, PROBLEM, note, print_json, start_command
from qis_edge.config import NodeConfig, load_node
from qis_edge.control import is_running, request
from qis_edge.core.credential import NODE, Enrolment, TrustStore
from qis_edge.core.errors import NotRunning, QisError, Refused
from qis_edge.keys import FleetFile, read_key
from qis_edge.store.inbox import Inbox
from qis_edge.terminal import moment

#: Seconds between looks while waiting for approval.
LOOK = 1.0


def enroll(args: argparse.Namespace) -> int:
    """Join the fleet, or say where that stands."""
    config = load_node(args.config, full=False)
    if args.request is not None:
        return _request(config, args)
    letter = None if args.credential is None else read_letter(args.credential)
    act_as_owner(config.node.state)
    if letter is not None:
        _install(config, letter)
    found = _ask(config, args)
    if args.json:
        print_json(found)
    else:
        _show(found, args)
    return OK if found["enrolled"] or args.wait is None else PROBLEM


def _ask(config: NodeConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Where it stands; a running daemon asks the gateway again."""
    state = config.node.state
    start = start_command(args)
    try:
        found = _asked(state, start)
    except NotRunning:
        if args.wait is not None:
            raise
        return {"running": False, **stored_standing(config)}
    deadline = time.monotonic() + (args.wait or 0)
    while not found["enrolled"] and time.monotonic() < deadline:
        time.sleep(min(LOOK, max(0.0, deadline - time.monotonic())))
        found = _asked(state, start)
    return found


def _asked(state: Path, start: str) -> dict[str, Any]:
    return {"running": True, **request(state, "enroll", start=start)}


def _show(found: dict[str, Any], args: argparse.Namespace) -> None:
    if found["enrolled"]:
        until = f" until {moment(found['expires'])}" if found["expires"] is not None else ""
        print(f"enrolled as {found['name']} ({found['kid']}){until}")
        return
    print(f"not enrolled: {found['name']} ({found['kid']})")
    if not found["running"]:
        note(f"the daemon is not running: it asks to join when it is. {_starting(args)}")
    elif not found.get("link", True):
        print("the link is down: the wish to join is sent when it is up")
    else:
        print("it asks to join; on the gateway:")
    print(f"  qis-gateway permit 300 && qis-gateway approve {found['kid']}")


def _starting(args: argparse.Namespace) -> str:
    return f"Start it with: {start_command(args)}"


def _request(config: NodeConfig, args: argparse.Namespace) -> int:
    identity = read_key(config.node.key_file)
    enrolment = Enrolment.make(identity, config.node.name)
    write_letter(
        args.request,
        [
            f"The wish of the node {enrolment.name} ({identity.kid.hex()}) to join.",
            f"On the gateway: {_approving(args, enrolment)}",
        ],
        [enrolment.raw],
    )
    if args.json:
        print_json({"name": enrolment.name, "kid": identity.kid.hex(), "file": str(args.request)})
    else:
        print(f"wrote {args.request}; bring it to the gateway, and what it makes of it here:")
        print(f"  {_approving(args, enrolment)}")
        print(f"  qis-edge enroll --credential {enrolment.name}.credential")
    return OK


def _approving(args: argparse.Namespace, enrolment: Enrolment) -> str:
    return f"qis-gateway approve --request {args.request.name} --out {enrolment.name}.credential"


def _install(config: NodeConfig, messages: Sequence[bytes]) -> None:
    """Keep credentials that were brought here, after checking them against the pinned root.

    :raises QisError: they do not lead to the root, or are not about this node.
    """
    state = config.node.state
    identity = read_key(config.node.key_file)
    trust = TrustStore(FleetFile.read(state / "fleet.toml").root)
    now = config.clock.make().now()
    try:
        for raw in messages:
            trust.add(raw, None)
        trust.resolve(identity.kid, now, NODE)
    except Refused as refused:
        raise QisError(
            f"the credential cannot be used: {refused}",
            hint=f"it must be made for this node, {identity.kid.hex()}, and by its own fleet",
        ) from refused
    if is_running(state):
        for raw in messages:
            request(state, "credential", {"raw": raw.hex()})
        return
    inbox, _ = Inbox.open(state / "inbox.db")
    with contextlib.closing(inbox):
        for raw in messages:
            inbox.keep_credential(raw, int(now))


def stored_standing(config: NodeConfig) -> dict[str, Any]:
    """What the state folder says of this node's membership; as the daemon says it.

    :raises KeyFileError: there is no usable key.
    :raises StoreError: the inbox cannot be read.
    """
    state = config.node.state
    identity = read_key(config.node.key_file)
    fleet = FleetFile.read(state / "fleet.toml")
    trust = TrustStore(fleet.root)
    if (state / "inbox.db").exists():
        with Inbox.inspect(state / "inbox.db") as inbox:
            trust.restore(inbox.trust())
    try:
        trust.resolve(identity.kid, config.clock.make().now(), NODE)
        enrolled = True
    except Refused:
        enrolled = False
    credential = trust.credential(identity.kid)
    return {
        "kid": identity.kid.hex(),
        "site": fleet.site,
        "enrolled": enrolled,
        "name": credential.subject if credential is not None else config.node.name,
        "expires": credential.expires if credential is not None else None,
    }
