"""``qis-gateway run``."""

from __future__ import annotations

import argparse

from gateway.config import load_gateway
from qis_edge.cli.owner import act_as_owner


def run(args: argparse.Namespace) -> int:
    """Run the gateway in the foreground, until SIGTERM or SIGINT."""
    config = load_gateway(args.config)
    act_as_owner(config.gateway.state)
    from gateway.station import run_gateway  # heavy: a wrong configuration is said at once

    return run_gateway(config)
