"""``qis-gateway run``."""

from __future__ import annotations

import argparse

from gateway.config import load_gateway


def run(args: argparse.Namespace) -> int:
    """Run the gateway in the foreground, until SIGTERM or SIGINT."""
    config = load_gateway(args.config)
    from gateway.station import run_gateway  # heavy: a wrong configuration is said at once

    return run_gateway(config)
