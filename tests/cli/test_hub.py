"""``qis-gateway hub --fleet``: what of a gateway's fleet makes a hub refuse packets."""

from __future__ import annotations

import pytest

from gateway.cli.hub import _opened, checker
from gateway.routing import Entry
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.identity import Identity
from qis_edge.keys import read_key
from tests.cli.kit import Site, deposited, packed


def test_what_is_certainly_wrong_is_refused(ready: Site) -> None:
    deposited(ready)
    identity = read_key(ready.node_state / "node.key")
    good = packed(identity, 10, "")
    stranger = packed(Identity.generate(), 10, "")
    with _opened(ready.gateway_state) as fleet:
        check = checker(fleet)
        assert check(good.raw) == Entry.of(good)
        # Nobody here knows who signed it; another gateway of the fleet may.
        assert check(stranger.raw) == Entry.of(stranger)
        with pytest.raises(Refused) as caught:
            check(good.raw[:-1] + bytes([good.raw[-1] ^ 1]))
        assert caught.value.reason is Reason.SIGNATURE


def test_a_node_that_left_is_refused_once_the_fleet_is_looked_at(ready: Site) -> None:
    deposited(ready)
    good = packed(read_key(ready.node_state / "node.key"), 10, "")
    with _opened(ready.gateway_state) as fleet:
        check = checker(fleet)
        check(good.raw)
        assert ready.gateway("revoke", "field-1") == 0
        fleet.refresh()
        with pytest.raises(Refused) as caught:
            check(good.raw)
        assert caught.value.reason is Reason.REVOKED
