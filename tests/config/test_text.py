"""Samples and the page are valid, complete and up to date."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gateway import reference
from gateway.config import GatewayConfig
from qis_edge.config import NodeConfig
from qis_edge.schema import loads
from qis_edge.schema.text import headings, sample


@pytest.mark.parametrize("cls", [NodeConfig, GatewayConfig])
def test_the_sample_is_valid(cls: type) -> None:
    loads(cls, sample(cls), Path("c.toml"), full=False)


@pytest.mark.parametrize("cls", [NodeConfig, GatewayConfig])
def test_the_sample_with_everything_taken_in_is_valid(cls: type, tmp_path: Path) -> None:
    text = re.sub(r"^#(?=[a-z\[])", "", sample(cls), flags=re.MULTILINE)
    text = text.replace("mqtt://localhost:1883", "mqtts://localhost:8883")
    assert not re.search(r"^#[^ ]", text, re.MULTILINE)
    made: Any = loads(cls, text, tmp_path / "c.toml", full=False)
    assert made.clock.simulate is not None
    assert made.links.mqtt is not None


@pytest.mark.parametrize("cls", [NodeConfig, GatewayConfig])
def test_the_sample_has_every_setting(cls: type) -> None:
    text = sample(cls)
    for name in headings(cls):
        if "<name>" not in name:
            assert re.search(
                rf"^#?(\[+{re.escape(name)}\]|{name.rpartition('.')[2]} = )", text, re.MULTILINE
            )


def test_a_sample_takes_values() -> None:
    text = sample(
        NodeConfig,
        {
            "node": {"name": 'n"1'.replace('"', "")},
            "sensor": [
                {"driver": "system", "disk": "/", "channels": {"load": "a"}},
                {"driver": "replay", "file": "x", "channels": {"b": {"result": "c"}}},
            ],
        },
        {"sensor": "Two of them."},
    )
    made = loads(NodeConfig, text, Path("c.toml"), full=False)
    assert made.node.name == "n1"
    assert [one.driver for one in made.sensors] == ["system", "replay"]
    assert made.sensors[0].settings == {"disk": "/"}
    assert made.sensors[1].channels["b"].result == "c"
    assert "# Two of them.\n[[sensor]]" in text


def test_the_page_is_up_to_date() -> None:
    """``python -m gateway.reference`` writes it anew."""
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page()


def test_every_setting_has_its_heading() -> None:
    page = reference.PAGE.read_text(encoding="utf-8")
    for name in [*headings(NodeConfig), *headings(GatewayConfig)]:
        assert re.search(rf"^#+ `\[*{re.escape(name)}\]*`$", page, re.MULTILINE), name
