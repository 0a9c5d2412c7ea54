"""Every key of ``--json`` is documented."""

from __future__ import annotations

from tests.cli.kit import HERE, Site, check_documented, deposited, filled


def test_what_a_node_shows_is_documented(ready: Site) -> None:
    filled(ready)
    for verb in ("check", "status", "queue", "enroll"):
        assert ready.node(verb, "--json") == 0
        check_documented("qis-edge", verb, ready.console.json)
    assert ready.node("run", "--test", "--json") == 0
    check_documented("qis-edge", "run", ready.console.json)


def test_what_a_gateway_shows_is_documented(ready: Site) -> None:
    deposited(ready)
    address = ("--fingerprint", HERE.fingerprint.hex())
    for verb, more in (("check", ()), ("status", ()), ("nodes", ()), ("query", address)):
        assert ready.gateway(verb, "--json", *more) == 0
        check_documented("qis-gateway", verb, ready.console.json)
