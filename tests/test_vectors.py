"""Golden messages are data: raw bytes, what they mean, or why they are refused.

This file runs on the oldest and the newest cbor2 that we allow, so it imports the core only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qis_edge.core.errors import Refused
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Kind, Outcome
from qis_edge.core.packet import Extensions, Packet, pack, unpack
from qis_edge.core.receipt import mac_keys
from tests.vectors.forms import Reader, Writer

FOLDER = Path(__file__).parent / "vectors"
VECTORS = json.loads((FOLDER / "packets.json").read_text())
MESSAGES = json.loads((FOLDER / "messages.json").read_text())
ME = Identity.from_seed(bytes.fromhex(VECTORS["seed"]))


def named(cases: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in cases]


# --- packets ---------------------------------------------------------------------------


def outcome(form: dict[str, Any]) -> Outcome:
    return Outcome(
        form["time"],
        Kind[form["kind"].upper()],
        form["confidence"],
        form["samples"],
        dict(form["results"]),
        form["summary"],
    )


def assert_means(packet: Packet, form: dict[str, Any]) -> None:
    assert packet.kid.hex() == form["kid"]
    assert packet.id.hex() == form["id"]
    assert packet.fingerprint.hex() == form["fingerprint"]
    assert packet.store.hex() == form["store"]
    assert (packet.sequence, packet.ttl, packet.count) == (
        form["sequence"],
        form["ttl"],
        form["count"],
    )
    assert packet.extensions == extensions(form)
    outcomes = packet.outcomes
    if len(form["outcomes"]) < packet.count:
        outcomes = (outcomes[0], outcomes[-1])
    assert outcomes == tuple(outcome(o) for o in form["outcomes"])


def extensions(form: dict[str, Any]) -> Extensions:
    vector = form["vector"]
    return Extensions(
        None if vector is None else tuple(vector),
        tuple(form["tags"]),
        form["time_uncertainty"],
        form["floor"],
    )


@pytest.mark.parametrize("case", named(VECTORS["valid"] + VECTORS["read_only"]))
def test_reads(case: dict[str, Any]) -> None:
    packet = unpack(bytes.fromhex(case["raw"]), ME.public)
    assert_means(packet, case["packet"])


@pytest.mark.parametrize("case", named(VECTORS["valid"]))
def test_writes(case: dict[str, Any]) -> None:
    form = case["packet"]
    packet = unpack(bytes.fromhex(case["raw"]))
    again = pack(
        packet.outcomes,
        identity=ME,
        fingerprint=packet.fingerprint,
        store=packet.store,
        sequence=packet.sequence,
        ttl=packet.ttl,
        extensions=extensions(form),
    )
    assert again.raw.hex() == case["raw"]


@pytest.mark.parametrize("case", named(VECTORS["refused"]))
def test_refuses(case: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        unpack(bytes.fromhex(case["raw"]), ME.public)
    assert caught.value.reason.label == case["reason"]
    assert caught.value.field == case["field"]


# --- the other messages ----------------------------------------------------------------

KINDS = {
    "credential",
    "enrolment",
    "revocation",
    "hello",
    "wanted",
    "greeting",
    "receipt",
    "request",
    "position",
}


@pytest.mark.parametrize("name", MESSAGES["keys"])
def test_keys(name: str) -> None:
    key = MESSAGES["keys"][name]
    public = Identity(bytes.fromhex(key["seed"])).public
    assert public.raw.hex() == key["public"]
    assert public.thumbprint.hex() == key["thumbprint"]
    assert public.kid.hex() == key["kid"]


def test_the_keys_of_macs() -> None:
    gateway, node = (
        Identity(bytes.fromhex(MESSAGES["keys"][name]["seed"])) for name in ("gateway", "node")
    )
    assert node.shared_secret(gateway.public).hex() == MESSAGES["mac"]["secret"]
    for one in (gateway, node):
        keys = mac_keys(one, gateway=gateway.public, node=node.public)
        assert keys.to_node.hex() == MESSAGES["mac"]["to_node"]
        assert keys.to_gateway.hex() == MESSAGES["mac"]["to_gateway"]


def test_every_kind_is_there() -> None:
    assert {case["kind"] for case in MESSAGES["valid"]} == KINDS
    refused = {case["name"].partition(":")[0] for case in MESSAGES["refused"]}
    assert refused >= KINDS


@pytest.mark.parametrize("case", named(MESSAGES["valid"] + MESSAGES["read_only"]))
def test_reads_messages(case: dict[str, Any]) -> None:
    read = Reader(MESSAGES).read(bytes.fromhex(case["raw"]))
    assert read == (case["kind"], case["message"])


@pytest.mark.parametrize("case", named(MESSAGES["valid"]))
def test_writes_messages(case: dict[str, Any]) -> None:
    assert Writer(MESSAGES).write(case["kind"], case["message"]).hex() == case["raw"]


@pytest.mark.parametrize("case", named(MESSAGES["refused"]))
def test_refuses_messages(case: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        Reader(MESSAGES).read(bytes.fromhex(case["raw"]))
    assert caught.value.reason.label == case["reason"]
    assert caught.value.field == case["field"]
