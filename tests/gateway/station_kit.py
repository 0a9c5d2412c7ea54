"""A gateway for the tests of several links: its state, and what the command line does to it."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from gateway.config import load_gateway
from gateway.fleet import Fleet
from gateway.station import Station
from qis_edge.core.credential import NODE, RevocationList, issue
from qis_edge.core.identity import Identity
from qis_edge.core.receipt import MacKeys, mac_keys
from qis_edge.keys import read_key
from qis_edge.links.base import Link
from tests.loop.site import YEAR, Site

_SERIALS = itertools.count(100)


class Place(Site):
    """One gateway in a folder, with the machine's clock; nodes are only keys."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "mqtt://127.0.0.1:1")

    def station(self, *links: Link, extra: str = "") -> Station:  # type: ignore[override]  # of links
        """A gateway with these links."""
        return Station(load_gateway(self.gateway_config(extra=extra, clock=False)), links=links)

    def _fleet(self) -> Fleet:
        return Fleet(self.state("base") / "fleet.db", self.root.public, time.time())

    def let_in(self, who: Identity) -> Identity:
        """As ``approve`` does."""
        fleet = self._fleet()
        credential = issue(
            read_key(self.state("base") / "gateway.key"),
            subject=who.kid.hex(),
            key=who.public,
            scope=(NODE,),
            expires=int(time.time()) + YEAR // 2,
            serial=next(_SERIALS).to_bytes(4),
        )
        fleet.add(credential.raw, time.time())
        fleet.close()
        return who

    def list_of(self, *kids: bytes, number: int = 1) -> RevocationList:
        now = int(time.time())
        return RevocationList.issue(self.root, number=number, issued=now, kids=kids)

    def revoke(self, *kids: bytes) -> None:
        """As ``revoke`` does."""
        fleet = self._fleet()
        fleet.apply(self.list_of(*kids).raw)
        fleet.close()

    def keys(self, node: Identity, gateway: Identity) -> MacKeys:
        """As the node computes them."""
        return mac_keys(node, gateway=gateway.public, node=node.public)
