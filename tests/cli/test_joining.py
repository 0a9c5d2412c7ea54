"""``enroll``, ``permit``, ``approve`` and ``revoke``, over the air and with files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import pytest

from qis_edge.core.credential import Credential, Enrolment, RevocationList
from qis_edge.core.identity import Identity
from qis_edge.keys import read_key
from tests.cli.kit import Site, daemon


def test_joining_with_files(ready: Site) -> None:
    assert ready.node("enroll") == 0
    assert "not enrolled: field-1" in ready.console.out
    ready.join()
    assert ready.console.out.startswith("enrolled as field-1")
    assert ready.node("status", "--json") == 0
    assert ready.console.json["enrolled"] is True
    assert ready.node("check") == 0
    assert ready.gateway("nodes", "--json") == 0
    (node,) = ready.console.json["nodes"]
    assert node["name"] == "field-1"
    assert node["kid"] == read_key(ready.node_state / "node.key").kid.hex()


def test_a_credential_of_others_is_not_installed(ready: Site) -> None:
    request, credential = ready.folder / "r", ready.folder / "c"
    stranger = Enrolment.make(Identity.generate(), "stranger")
    request.write_text(stranger.raw.hex())
    assert ready.gateway("approve", "--request", request, "--out", credential) == 0
    assert ready.node("enroll", "--credential", credential) == 1
    assert "cannot be used" in ready.console.err
    other = Site(ready.console, ready.folder / "other")
    other.set_up()
    assert other.node("enroll", "--request", request) == 0
    assert other.gateway("approve", "--request", request, "--out", credential) == 0
    assert ready.node("enroll", "--credential", credential) == 1
    assert ready.node("enroll", "--credential", ready.folder / "none") == 1
    credential.write_text("# nothing\n")
    assert ready.node("enroll", "--credential", credential) == 1
    assert "is no such file" in ready.console.err


def test_enroll_asks_the_daemon_and_waits(ready: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qis_edge.cli.joining.LOOK", 0.01)
    assert ready.node("enroll", "--wait", "1") == 3
    assert "fix: start it with: qis-edge run --config" in ready.console.err
    asked = []

    def enroll(_: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(1)
        done = len(asked) > 3
        return {"kid": "aa", "enrolled": done, "name": "f", "expires": None, "link": True}

    with daemon(ready.node_state, enroll=enroll):
        assert ready.node("enroll") == 0
        assert "qis-gateway permit 300 && qis-gateway approve aa" in ready.console.out
        assert ready.node("enroll", "--wait", "0") == 1
        assert ready.node("enroll", "--wait", "30") == 0
        assert len(asked) == 4


def test_a_running_daemon_installs_a_credential_itself(ready: Site) -> None:
    request, credential = ready.folder / "r", ready.folder / "c"
    ready.node("enroll", "--request", request)
    ready.gateway("approve", "--request", request, "--out", credential)
    given: list[Mapping[str, Any]] = []
    standing = {"kid": "aa", "enrolled": True, "name": "f", "expires": None, "link": True}
    with daemon(ready.node_state, credential=given.append, enroll=lambda _: standing):
        assert ready.node("enroll", "--credential", credential) == 0
    kids = [Credential.parse(bytes.fromhex(one["raw"])).kid for one in given]
    assert kids == [
        read_key(ready.gateway_state / "gateway.key").kid,
        read_key(ready.node_state / "node.key").kid,
    ]
    assert not (ready.node_state / "inbox.db").exists()


def test_permit_and_approve(ready: Site) -> None:
    kid = read_key(ready.node_state / "node.key").kid.hex()
    assert ready.gateway("approve", "field-1") == 2
    assert ready.gateway("permit", "300") == 0
    assert "the gateway is not running; start it with: qis-gateway run" in ready.console.err
    enrolment = Enrolment.make(read_key(ready.node_state / "node.key"), "field-1")
    with contextlib.closing(ready.fleet()) as fleet:
        assert fleet.permitted(time.time())
        assert fleet.enrol(enrolment, time.time())
    assert ready.gateway("nodes") == 0
    assert "ask to join" in ready.console.out
    assert ready.gateway("nodes", "--json") == 0
    assert ready.console.json["waiting"][0]["kid"] == kid
    assert ready.gateway("approve", kid[:6], "--name", "vineyard") == 0
    assert f"vineyard ({kid}) is a node of the fleet until" in ready.console.out
    assert ready.gateway("permit", "0") == 0
    with contextlib.closing(ready.fleet()) as fleet:
        assert not fleet.permitted(time.time())
    assert ready.gateway("permit", "-1") == 2
    assert ready.gateway("permit", "nan") == 2
    assert ready.gateway("permit", "soon") == 2


def test_approve_takes_no_name_twice(ready: Site) -> None:
    ready.join()
    request = ready.folder / "r"
    request.write_text(Enrolment.make(Identity.generate(), "field-1").raw.hex())
    assert ready.gateway("approve", "--request", request) == 2
    assert "is the name of the node" in ready.console.err
    assert ready.gateway("approve", "--request", request, "--name", "field-2") == 0
    assert ready.gateway("approve") == 2
    assert ready.gateway("approve", "field-1", "--request", request) == 2
    request.write_text("d284")
    assert ready.gateway("approve", "--request", request) == 1
    assert "is no enrolment" in ready.console.err


def test_revoke(ready: Site) -> None:
    ready.join()
    kid = read_key(ready.node_state / "node.key").kid
    revocations = ready.folder / "list"
    assert ready.gateway("revoke", "nobody") == 2
    assert ready.gateway("revoke") == 2
    (ready.gateway_state / "root.key").rename(ready.folder / "root.key")
    assert ready.gateway("revoke", "field-1") == 2
    assert "signed by the fleet's root key, which is not here" in ready.console.err
    root = ready.folder / "root.key"
    assert ready.gateway("revoke", "field-1", "--root", root, "--out", revocations) == 0
    assert kid.hex() in ready.console.out
    made = RevocationList.parse(bytes.fromhex(revocations.read_text().splitlines()[-1]))
    assert (made.number, set(made.kids)) == (1, {kid})
    assert ready.gateway("nodes") == 0
    assert "revoked" in ready.console.out
    request = ready.folder / "request"
    assert ready.gateway("approve", "--request", request) == 2
    assert "was revoked" in ready.console.err

    other = Site(ready.console, ready.folder / "other")
    assert other.gateway("init", "--root", root) == 0
    assert other.gateway("revoke", "--list", revocations) == 0
    with contextlib.closing(other.fleet()) as fleet:
        assert fleet.revocation_number == 1
    assert other.gateway("revoke", "--list", revocations) == 0
    assert "is no news here" in other.console.err
    stranger = Site(ready.console, ready.folder / "stranger")
    assert stranger.gateway("init") == 0
    assert stranger.gateway("revoke", "--list", revocations) == 1
