"""``qis-gateway service install``, ``remove`` and ``show``."""

from __future__ import annotations

import argparse
from pathlib import Path

from gateway.config import load_gateway
from qis_edge.cli.service import install_service, remove_service, show_service
from qis_edge.link_config import LinksConfig


def look_at_gateway(path: Path) -> tuple[Path, LinksConfig]:
    """The state folder and the links of a gateway's configuration."""
    config = load_gateway(path, full=False)
    return config.gateway.state, config.links


def install(args: argparse.Namespace) -> int:
    """Make a service of the gateway."""
    return install_service(args, look_at_gateway)


def remove(args: argparse.Namespace) -> int:
    """Take the service away."""
    return remove_service(args)


def show(args: argparse.Namespace) -> int:
    """Print the unit."""
    return show_service(args, look_at_gateway)
