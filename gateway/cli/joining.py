"""``qis-gateway permit``, ``approve`` and ``revoke``: who belongs to the fleet.

All of them work on the fleet's database, whether the daemon runs or not: it looks there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gateway.cli.state import opened_fleet, root_of
from gateway.config import GatewayConfig, load_gateway
from gateway.fleet import Fleet
from qis_edge.cli.letters import read_letter, write_letter
from qis_edge.cli.program import OK, note, start_command
from qis_edge.control import is_running
from qis_edge.core.credential import Enrolment, RevocationList
from qis_edge.core.errors import QisError, Refused, UsageError
from qis_edge.keys import read_key
from qis_edge.terminal import duration, harmless, moment, plural


def permit(args: argparse.Namespace) -> int:
    """Let nodes ask to join for a while."""
    if not 0 <= args.seconds <= 7 * 86400:
        raise UsageError("must be from 0 to 604800 (a week)", field="SECONDS")
    config = load_gateway(args.config, full=False)
    clock = config.clock.make()
    with opened_fleet(config) as fleet:
        if args.seconds == 0:
            fleet.permit(0)
            print("nobody may ask to join any more")
        else:
            fleet.permit(clock.now() + args.seconds / clock.real(1.0))
            print(f"nodes may ask to join for {duration(args.seconds)}; who does:")
            print("  qis-gateway nodes")
    _say_if_stopped(config, args)
    return OK


def approve(args: argparse.Namespace) -> int:
    """Make a node of one who asks to join, here or with a file."""
    if (args.node is None) == (args.request is None):
        raise UsageError("give either a node or --request FILE", field="NODE")
    config = load_gateway(args.config, full=False)
    issuer = read_key(config.gateway.key_file)
    now = config.clock.make().now()
    with opened_fleet(config) as fleet:
        if args.request is not None:
            enrolment = _enrolment(args.request)
            credential = fleet.approve_enrolment(enrolment, issuer, now, name=args.name)
        else:
            credential = fleet.approve(args.node, issuer, now, name=args.name)
        chain = fleet.chain(credential.kid)
    name, kid = credential.subject, credential.kid.hex()
    print(f"{name} ({kid}) is a node of the fleet until {moment(credential.expires)}")
    if args.out is not None:
        words = [
            f"Credential of the node {name} ({kid}), and of the gateway that made it.",
            f"On the node: qis-edge enroll --credential {args.out.name}",
        ]
        write_letter(args.out, words, chain)
        print(f"wrote {args.out}; on the node: qis-edge enroll --credential {args.out.name}")
    return OK


def _enrolment(path: Path) -> Enrolment:
    messages = read_letter(path)
    try:
        if len(messages) == 1:
            return Enrolment.open(messages[0])
        reason = "it has several messages"
    except Refused as refused:
        reason = str(refused)
    raise QisError(
        f"{path} is no enrolment: {reason}", hint="on the node: qis-edge enroll --request FILE"
    )


def revoke(args: argparse.Namespace) -> int:
    """Take keys out of the fleet, or take in a list of those that are out."""
    if bool(args.nodes) == (args.list is not None):
        raise UsageError("give either nodes or --list FILE", field="NODE")
    config = load_gateway(args.config, full=False)
    state = config.gateway.state
    now = config.clock.make().now()
    with opened_fleet(config) as fleet:
        if args.list is not None:
            made = _take_list(fleet, args.list)
        else:
            made = fleet.revoke(args.nodes, root_of(state, args.root), now)
        names = {one.kid: one.name for one in fleet.nodes()}
    print(f"revocation list {made.number} of {moment(made.issued)}:")
    for kid in sorted(made.kids):
        print(f"  {kid.hex()}  {harmless(names.get(kid, ''))}".rstrip())
    if args.out is not None:
        _write_list(args.out, made)
    _say_if_stopped(config, args)
    return OK


def _take_list(fleet: Fleet, path: Path) -> RevocationList:
    messages: Sequence[bytes] = read_letter(path)
    try:
        made = RevocationList.parse(messages[0])
        if not fleet.apply(messages[0]):
            note(f"list {made.number} is no news here: number {fleet.revocation_number} is known")
    except Refused as refused:
        raise QisError(f"{path} is no revocation list of this fleet: {refused}") from refused
    return made


def _write_list(path: Path, made: RevocationList) -> None:
    words = [
        f"Revocation list {made.number}, {plural(len(made.kids), 'key')}.",
        f"On each gateway: qis-gateway revoke --list {path.name}",
    ]
    write_letter(path, words, [made.raw])
    print(f"wrote {path}; on other gateways: qis-gateway revoke --list {path.name}")


def _say_if_stopped(config: GatewayConfig, args: argparse.Namespace) -> None:
    if not is_running(config.gateway.state):
        note(f"the gateway is not running; start it with: {start_command(args)}")
