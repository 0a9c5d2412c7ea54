"""``qis-gateway config sample`` and ``qis-gateway config show``."""

from __future__ import annotations

import argparse

from gateway.config import GatewayConfig
from qis_edge.cli.configuring import print_sample, print_settings


def sample(args: argparse.Namespace) -> int:
    """Print a configuration of a gateway with everything explained."""
    del args
    return print_sample(GatewayConfig)


def show(args: argparse.Namespace) -> int:
    """Say what is set, and where."""
    return print_settings(args, GatewayConfig, "gateway")
