"""Settings from the environment: named like the setting, judged like the file, refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gateway import reference
from gateway.config import GatewayConfig, load_gateway
from qis_edge.config import NodeConfig, load_node, overlay, variables
from qis_edge.core.errors import ConfigError
from qis_edge.schema import load
from qis_edge.schema.text import headings
from tests.config.kit import GATEWAY, NODE

PASSWORD_FILE = "QIS_EDGE_LINKS__MQTT__PASSWORD_FILE"
PAGE = reference.PAGE.read_text(encoding="utf-8")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(NODE)
    return path


def wrong(path: Path, cls: type = NodeConfig, role: str = "edge") -> dict[str, tuple[str, Any]]:
    """File (or variable) → message and suggestion."""
    with pytest.raises(ConfigError) as error:
        load(cls, path, full=False, overlay=overlay(cls, role))
    return {one.file: (one.message, one.suggestion) for one in error.value.problems}


def test_it_is_laid_over_the_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = path.with_name("config.toml.d")
    folder.mkdir()
    (folder / "10.toml").write_text('[log]\nlevel = "error"\n[peers]\nbits = 100\n')
    given = {
        "LOG__LEVEL": "debug",
        "NODE__STATE": "here",
        "LINKS__MQTT__URL": "mqtt://other",
        "LINKS__PREFER": '["serial", "mqtt"]',
        "SYNTHESIS__EMIT": "true",
        "OUTBOX__BUDGET": "1 GB",
        "DISTIL__WINDOW": "10min",
        "CLOCK__SIMULATE__EPOCH": "2013-06-01T00:00:00Z",
        "CLOCK__SIMULATE__ANCHOR": "1000",
        "SITUATION__FIELDS": '{ terrain = "plain" }',
        "SENSOR": '[{ driver = "system", channels = { load = "humidity" } }]',
        "CUSTODY__COPIES": "",
    }
    for name, value in given.items():
        monkeypatch.setenv(f"QIS_EDGE_{name}", value)
    monkeypatch.setenv("QIS_EDGE_CONFIG", "/elsewhere.toml")
    monkeypatch.setenv("QIS_GATEWAY_LOG__LEVEL", "nonsense")
    config = load_node(path)
    assert config.log.level == "debug"
    assert config.peers.bits == 100
    assert config.node.state == path.parent / "here"
    assert config.links.mqtt is not None
    assert config.links.mqtt.url == "mqtt://other"
    assert config.links.prefer == ("serial", "mqtt")
    assert config.synthesis.emit
    assert config.outbox.budget == 10**9
    assert config.distil.window == 600
    assert config.clock.simulate is not None
    assert config.situation.fields["terrain"].value == "plain"
    assert config.situation.fields["climate"].value == "cfa"
    assert list(config.results) == ["temperature", "humidity"]  # arrays of tables are added to
    assert config.custody.copies == 1  # empty is not set


def test_a_gateways_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.toml").write_text(GATEWAY)
    monkeypatch.setenv("QIS_GATEWAY_ROUTING__ENGINES", '["memory:", "sqlite:r.db"]')
    monkeypatch.setenv("QIS_GATEWAY_BROKER__LISTEN", "127.0.0.1:1999")
    config = load_gateway(tmp_path / "c.toml")
    assert config.routing.engines == ("memory:", "sqlite:r.db")
    assert config.broker.listen == ("127.0.0.1", 1999)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("LINKS__MQTT__ULR", "did you mean QIS_EDGE_LINKS__MQTT__URL?"),
        ("LINKS_MQTT_URL", "did you mean QIS_EDGE_LINKS__MQTT__URL?"),
        ("links__mqtt__url", "did you mean QIS_EDGE_LINKS__MQTT__URL?"),
        ("LOGLEVEL", "did you mean QIS_EDGE_LOG__LEVEL?"),
        (
            "LINKS__MQTT__PASSWORD",
            f"a secret does not belong here: name a file that has it in {PASSWORD_FILE}",
        ),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suggestion: str
) -> None:
    monkeypatch.setenv(f"QIS_EDGE_{name}", "hunter2")
    assert wrong(path) == {f"$QIS_EDGE_{name}": ("is not a setting", suggestion)}


def test_all_that_is_wrong_is_said_at_once_with_its_variable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(NODE + "[peers]\nbitz = 1\n")
    monkeypatch.setenv("QIS_EDGE_OUTBOX__BUDGET", "64")
    monkeypatch.setenv("QIS_EDGE_SYNTHESIS__EMIT", "yes")
    monkeypatch.setenv("QIS_EDGE_CUSTODY__COPIES", "2\nwindow = 3")
    monkeypatch.setenv("QIS_EDGE_SENSOR", '[{ driver = "system" }]')
    monkeypatch.setenv("QIS_EDGE_WHAT", "1")
    found = wrong(path)
    assert set(found) == {
        str(path),
        "$QIS_EDGE_OUTBOX__BUDGET",
        "$QIS_EDGE_SYNTHESIS__EMIT",
        "$QIS_EDGE_CUSTODY__COPIES",
        "$QIS_EDGE_SENSOR",
        "$QIS_EDGE_WHAT",
    }
    assert found["$QIS_EDGE_SYNTHESIS__EMIT"][0] == "must be true or false"
    assert found["$QIS_EDGE_SENSOR"][0] == "is missing"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LINKS__MQTT__URL", "mqtt://user:hunter2@broker"),
        ("ROUTING__ENGINES", '["sqlite:a", "redis://:hunter2@host/0"]'),
    ],
)
def test_a_password_is_refused_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(GATEWAY)
    monkeypatch.setenv(f"QIS_GATEWAY_{name}", value)
    found = wrong(path, GatewayConfig, "gateway")
    assert found[f"$QIS_GATEWAY_{name}"][0].startswith("has a password in it")
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(("cls", "role"), [(NodeConfig, "edge"), (GatewayConfig, "gateway")])
def test_every_setting_has_a_variable_and_the_page_names_it(cls: type, role: str) -> None:
    named = variables(role).by_key(cls)
    for heading in headings(cls):
        own = [key for key in named if heading == key or heading.startswith(f"{key}.")]
        assert own or any(key.startswith(f"{heading}.") for key in named), heading
    for key, name in named.items():
        title = rf"^#+ `\[*{re.escape(key)}\]*`$"
        chapter = re.search(rf"{title}(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
        assert chapter is not None
        assert f"`{name}`" in chapter[1] or role == "gateway"  # the node's chapter comes first
    prefix = variables(role).prefix
    assert set(re.findall(rf"`({prefix}\w+)`", PAGE)) == {*named.values(), f"{prefix}CONFIG"}


def test_what_the_page_shows_can_be_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = re.findall(r"^(QIS_(?:EDGE|GATEWAY)_\w+)=(.+)$", PAGE, re.MULTILINE)
    assert len(shown) == 5
    for name, value in shown:
        monkeypatch.setenv(name, value.strip("'"))
    config = load_node(path, full=False)
    assert config.log.level == "debug"
    assert config.situation.fields["climate"].value == "cfb"
    path.write_text(GATEWAY)
    assert len(load_gateway(path, full=False).routing.engines) == 2
