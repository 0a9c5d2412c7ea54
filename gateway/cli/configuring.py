"""``qis-gateway config sample`` and ``qis-gateway config show``."""

from __future__ import annotations

import argparse

from gateway.config import GatewayConfig
from qis_edge.cli.configuring import print_sample, show


def gateway_sample(args: argparse.Namespace) -> int:
    """Print a configuration of a gateway with everything explained."""
    del args
    return print_sample(GatewayConfig)


def gateway_show(args: argparse.Namespace) -> int:
    """Say what is set, and where."""
    return show(args, GatewayConfig, "gateway")
