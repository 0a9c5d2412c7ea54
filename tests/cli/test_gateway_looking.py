"""``qis-gateway status``, ``nodes`` and ``query``."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

import pytest

from gateway.spool import Intake, Spool
from qis_edge.core.errors import Reason
from tests.cli.kit import FIELDS, HERE, NOW, RUNNING_GATEWAY, Site, daemon, deposited, packed


def test_status_of_a_stopped_gateway(ready: Site) -> None:
    assert ready.gateway("status", "--json") == 0
    assert ready.console.json == {**ready.console.json, "spool": None}
    deposited(ready)
    assert ready.gateway("status") == 0
    assert "running  no" in ready.console.out
    assert "2 packets" in ready.console.out
    assert "start it with: qis-gateway run --config" in ready.console.err
    assert ready.gateway("status", "--json") == 0
    assert ready.console.json["nodes"] == 1
    assert ready.console.json["spool"]["packets"] == 2


def test_status_of_a_running_gateway(ready: Site) -> None:
    with daemon(ready.gateway_state, status=lambda _: RUNNING_GATEWAY):
        assert ready.gateway("status", "--json") == 0
        counted = {"running": True, "nodes": 0, "waiting": 0}
        assert ready.console.json == {**RUNNING_GATEWAY, **counted}
        assert ready.gateway("status") == 0
    assert "5 new, 1 known already, 2 refused" in ready.console.out
    assert "warning  spool.db: the disk is full\n" in ready.console.out
    assert "2 refused: signature" in ready.console.out
    assert "sqlite:routing.db: 3 behind; disk full" in ready.console.out


def test_nodes_of_a_gateway(ready: Site) -> None:
    assert ready.gateway("nodes") == 0
    assert "no nodes yet" in ready.console.out
    identity = deposited(ready)
    with contextlib.closing(ready.fleet()) as fleet:
        fleet.accepted(identity.kid, NOW, 2)
        fleet.refused(identity.kid, Reason.SIGNATURE)
    assert ready.gateway("nodes") == 0
    assert re.search(r"field-1 +[0-9a-f]{16} .* 2 +0 +1 +good for", ready.console.out)
    twin = packed(identity, 0, "other")
    with contextlib.closing(Spool(ready.gateway_state / "spool.db")) as spool:
        spool.admit([Intake(twin, NOW)])
    assert ready.gateway("nodes") == 0
    assert "field-1 signed two contents under one number (1)" in ready.console.out
    assert ready.gateway("nodes", "--json") == 0
    (node,) = ready.console.json["nodes"]
    assert node["refused"] == {"signature": 1}
    assert node["equivocations"] == 1
    assert node["stores"] == [
        {"store": "00000001", "held": 2, "last": 1, "coming": 0, "given_up": 0}
    ]


def test_query(ready: Site) -> None:
    deposited(ready)
    fingerprint = HERE.fingerprint
    situation = ("--domain", "weather", *FIELDS, "--field", "season=autumn")
    assert ready.gateway("query", *situation) == 0
    lines = ready.console.out.splitlines()
    assert len(lines) == 4
    assert "(not a node now)" in lines[1]
    assert "field-1" in lines[2]
    assert "temperature 4.5" in lines[2]
    assert r"evil\x1b]0;title\x07 \u202etxt" in lines[2]
    assert "\x1b" not in ready.console.out
    assert ready.gateway("query", "--fingerprint", fingerprint.hex(), "--json") == 0
    shown = ready.console.json
    assert shown["fingerprint"] == fingerprint.hex()
    assert [one["good"] for one in shown["packets"]] == [False, True, True]
    assert shown["packets"][1]["outcomes"][0]["results"] == {"1": 4.5}
    assert ready.gateway("query", *situation[:6], "--json", "--limit", "2") == 0
    assert len(ready.console.json["packets"]) == 2
    assert ready.console.json["bits"] < 256
    assert ready.gateway("query", "--fingerprint", "00" * 32) == 0
    assert "nothing is known" in ready.console.out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--fingerprint", "xyz"),
        ("--fingerprint", "00" * 32, "--domain", "weather"),
        ("--fingerprint", "00" * 32, "--bits", "300"),
        ("--fingerprint", "00" * 32, "--limit", "0"),
        ("--domain", "wether"),
        ("--domain", "weather", "--field", "climate"),
        ("--domain", "weather", "--field", "climate=mild"),
        ("--domain", "weather", "--field", "terrain=coast"),
        ("--domain", "weather", "--field", "sky=blue"),
    ],
)
def test_query_is_asked_wrongly(ready: Site, arguments: Sequence[str]) -> None:
    assert ready.gateway("query", *arguments) == 2
    assert ready.console.err.startswith("error: ")
