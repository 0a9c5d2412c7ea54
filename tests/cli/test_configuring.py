"""``config sample`` and ``config show``."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from gateway.config import GatewayConfig
from qis_edge.config import NodeConfig
from qis_edge.schema import loads
from tests.cli.kit import Console, Site, check_documented


@pytest.mark.parametrize(
    ("program", "cls"), [("qis-edge", NodeConfig), ("qis-gateway", GatewayConfig)]
)
def test_a_sample(console: Console, program: str, cls: type) -> None:
    assert console(program, "config", "sample") == 0
    loads(cls, console.out, Path("c.toml"), full=False)
    assert "# What is logged" in console.out


def test_show_says_what_is_set_and_where(ready: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ready.node_config.with_name("config.toml.d")
    folder.mkdir()
    (folder / "10.toml").write_text('\n[log]\nlevel = "error"\n')
    monkeypatch.setenv("QIS_EDGE_PEERS__BITS", "128")
    assert ready.node("config show", "--json") == 0
    shown = {one["key"]: one for one in ready.console.json["settings"]}
    check_documented("qis-edge", "config show", ready.console.json)
    assert shown["log.level"] == {
        "key": "log.level", "value": "error", "file": str(folder / "10.toml"), "line": 3,
    }  # fmt: skip
    assert shown["peers.bits"]["file"] == "$QIS_EDGE_PEERS__BITS"
    assert shown["sensor[1].driver"]["value"] == "system"
    assert "outbox.budget" not in shown  # it is at its default
    assert ready.node("config show") == 0
    assert f"{folder / '10.toml'}:3" in ready.console.out
    assert ready.gateway("config show") == 0
    assert "gateway.name" in ready.console.out


def test_show_leaves_secrets_out(ready: Site) -> None:
    text = ready.gateway_config.read_text()
    line = next(one for one in text.splitlines() if one.startswith("#engines"))
    urls = ["redis://app:hunter2@host/0", "nats://h?token=hunter3", "redis://b:x@hunter5/y@h"]
    text = text.replace(line, f"engines = {urls}".replace("'", '"'))
    ready.gateway_config.write_text(text)
    assert "hunter2" in str(tomllib.loads(text))
    assert ready.gateway("config show") == 0
    assert "hunter" not in ready.console.out
    assert "redis://app:…@host/0" in ready.console.out
    with ready.node_config.open("a") as file:
        file.write('[[sensor]]\ndriver = "a:b"\napi_key = "hunter4"\nchannels.a = "temperature"\n')
    assert ready.node("config show") == 0
    assert "hunter" not in ready.console.out
    assert "api_key" in ready.console.out


def test_show_of_what_is_wrong(ready: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIS_EDGE_PEERS__BITZ", "128")
    assert ready.node("config show") == 2
    assert "did you mean QIS_EDGE_PEERS__BITS?" in ready.console.err
