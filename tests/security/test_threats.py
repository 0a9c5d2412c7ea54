"""What docs/security.md says that somebody can do, where no other test shows it."""

from __future__ import annotations

import re
import sqlite3
import tomllib
from pathlib import Path

import pytest

from qis_edge.core.errors import Reason, Refused, UsageError
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import pack, unpack
from qis_edge.core.receipt import Receipt, build, mac_keys, parse, verify
from qis_edge.keys import read_key
from tests.cli.kit import Console, Site, filled

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
GATEWAY, THIEF, OTHER = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3))
EPOCH = b"\x01\x02\x03\x04"


def packet_of(signer: Identity) -> bytes:
    return pack(
        [Outcome(time=1_700_000_000, samples=1, results={"temperature": 3.5}, summary="seen")],
        identity=signer,
        fingerprint=bytes(32),
        store=bytes(4),
        sequence=1,
    ).raw


def test_everybody_can_read_a_packet() -> None:
    """Without any key."""
    (outcome,) = unpack(packet_of(OTHER)).outcomes
    assert outcome.results == {"temperature": 3.5}
    assert outcome.summary == "seen"


def test_who_has_a_nodes_key_speaks_as_it_and_to_it_and_to_nobody_else() -> None:
    assert unpack(packet_of(THIEF), THIEF.public).kid == THIEF.kid
    with pytest.raises(Refused) as refused:
        unpack(packet_of(THIEF), OTHER.public)
    assert refused.value.reason is Reason.SIGNATURE
    # It computes what it shares with a gateway, and so can say what that gateway would say …
    stolen = mac_keys(THIEF, gateway=GATEWAY.public, node=THIEF.public)
    ids = {1: bytes(32)}
    forged = build(Receipt(bytes(4), (1,)), stolen.to_node, EPOCH, ids)
    at_the_node = mac_keys(THIEF, gateway=GATEWAY.public, node=THIEF.public)
    verify(parse(forged), at_the_node.to_node, EPOCH, ids.get)
    # … but to no other node, with whose gateway it shares nothing.
    at_another = mac_keys(OTHER, gateway=GATEWAY.public, node=OTHER.public)
    with pytest.raises(Refused) as refused:
        verify(parse(forged), at_another.to_node, EPOCH, ids.get)
    assert refused.value.reason is Reason.MAC
    with pytest.raises(UsageError):
        mac_keys(THIEF, gateway=GATEWAY.public, node=OTHER.public)


def test_a_card_has_the_key_and_what_waits_and_nobody_elses_secrets(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    site = Site(Console(capsys), tmp_path)
    site.set_up()
    site.join()
    filled(site)
    assert read_key(site.node_state / "node.key").sign(b"anything")
    database = sqlite3.connect(site.node_state / "outbox.db")
    try:
        assert b"red" in b"".join(
            bytes(value, "utf-8") if isinstance(value, str) else bytes(value)
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")
            for row in database.execute(f"SELECT * FROM {table}")
            for value in row
            if isinstance(value, str | bytes)
        )
    finally:
        database.close()
    others = [read_key(site.gateway_state / name).seed for name in ("gateway.key", "root.key")]
    for path in (tmp_path / "n").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(seed in data or seed.hex().encode() in data for seed in others), path


def test_a_root_key_that_was_left_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    site = Site(Console(capsys), tmp_path)
    site.set_up()
    site.gateway("check")
    assert "root key is here" in site.console.out + site.console.err
    (site.gateway_state / "root.key").rename(tmp_path / "offline.key")
    site.gateway("check")
    assert "root key is here" not in site.console.out + site.console.err


def test_every_adversary_has_what_it_can_and_what_it_cannot_do() -> None:
    chapters = re.findall(r"^## (Who has .*)\n((?:(?!## ).*\n)*)", PAGE, re.MULTILINE)
    assert len(chapters) >= 8
    for title, text in chapters:
        assert "- *Can" in text, title
        if "template" not in title:
            assert "- *Cannot*" in text, title


def test_every_dependency_of_a_node_is_counted() -> None:
    """The page says how many may go bad; the project file names them."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    words = ("no", "one", "two", "three", "four", "five", "six")
    assert f"There are {words[len(project['dependencies'])]} on a node" in PAGE


@pytest.mark.parametrize("name", ["qis-edge", "qis-gateway"])
def test_a_service_that_crashes_leaves_no_memory_with_keys(name: str) -> None:
    folder = Path(__file__).parents[2] / "qis_edge" / "service" / "units"
    assert "\nLimitCORE=0\n" in (folder / f"{name}.service").read_text()
