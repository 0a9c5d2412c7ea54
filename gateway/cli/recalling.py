"""``qis-gateway recall``: have the nodes send again what this gateway lost."""

from __future__ import annotations

import argparse
import contextlib
from datetime import UTC, datetime

from gateway.config import load_gateway
from gateway.spool import Spool
from qis_edge.cli.program import OK, start_command
from qis_edge.control import is_running
from qis_edge.core.errors import QisError, UsageError
from qis_edge.terminal import moment


def recall(args: argparse.Namespace) -> int:
    """Begin another epoch of the spool: the nodes send again what they still have."""
    since = 0 if args.since is None else _moment(args.since)
    config = load_gateway(args.config, full=False)
    state = config.gateway.state
    if is_running(state):
        raise QisError("the gateway is running", hint="stop it, do this, and start it again")
    if not (state / "spool.db").exists():
        raise QisError(
            f"there is no {state / 'spool.db'}",
            hint="nothing to do: nodes send again by themselves once a new one is begun",
        )
    with contextlib.closing(Spool(state / "spool.db")) as spool:
        spool.renew_epoch(since)
    what = f"what they made since {moment(since)} and" if since else "all that they"
    print(f"the nodes send again {what} still have, once they meet this gateway:")
    print(f"  {start_command(args)}")
    return OK


def _moment(text: str) -> int:
    """Unix seconds of a date, with or without a time, in UTC unless it says otherwise."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is not a date", field="--since", hint="2026-06-01 or 2026-06-01T12:00:00Z"
        ) from None
    return max(0, int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()))
