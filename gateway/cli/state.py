"""What the verbs have in common: the gateway's files, opened for a moment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from gateway.config import GatewayConfig
from gateway.fleet import Fleet
from gateway.routing import Entry
from gateway.routing.base import Accept
from qis_edge.core.credential import NODE
from qis_edge.core.errors import QisError
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.packet import unpack
from qis_edge.keys import FleetFile, read_key


def fleet_file_of(config: GatewayConfig) -> FleetFile:
    """The fleet that this gateway belongs to.

    :raises QisError: it was not set up yet.
    """
    path = config.gateway.state / "fleet.toml"
    if not path.exists():
        raise QisError(f"there is no {path}", hint="qis-gateway init makes it")
    return FleetFile.read(path)


@contextlib.contextmanager
def opened_fleet(
    config: GatewayConfig, fleet_file: FleetFile | None = None, *, read_only: bool = False
) -> Iterator[Fleet]:
    """The fleet's database, which the daemon may have open as well.

    :raises QisError: it was not set up yet, or cannot be used.
    """
    found = fleet_file if fleet_file is not None else fleet_file_of(config)
    path = config.gateway.state / "fleet.db"
    if read_only and not path.exists():
        raise QisError(f"there is no {path}", hint="qis-gateway init makes it")
    fleet = Fleet(path, found.root, config.clock.make().now(), read_only=read_only)
    with contextlib.closing(fleet):
        yield fleet


def acceptor(config: GatewayConfig, fleet: Fleet) -> Accept:
    """Verifies what an engine reads back, as a running gateway does: signed by a node that
    may send packets now."""
    clock = config.clock.make()

    def key(kid: bytes) -> PublicKey:
        return fleet.resolve(kid, clock.now(), NODE)

    def accept(raw: bytes) -> Entry:
        return Entry.of(unpack(raw, key))

    return accept


def root_of(state: Path, given: Path | None) -> Identity | None:
    """The root key from a file that was named, or from the state folder if it is still there.

    :raises KeyFileError: the file cannot be used.
    """
    if given is not None:
        return read_key(given.expanduser())
    path = state / "root.key"
    return read_key(path) if path.exists() else None
