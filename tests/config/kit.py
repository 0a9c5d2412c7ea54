"""Configurations to test with."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import GatewayConfig
from qis_edge.config import NodeConfig
from qis_edge.core.errors import ConfigError
from qis_edge.schema import loads

NODE = """\
[node]
name = "field-1"
[situation]
domain = "weather"
[situation.fields]
climate = "cfa"
terrain = "coast"
season = { from = "calendar.season" }
[[sensor]]
driver = "system"
[sensor.channels]
cpu_temperature = "temperature"
"""
GATEWAY = '[gateway]\nname = "base"\n'
SYSTEM = '[[sensor]]\ndriver = "system"\n'
BINNED = '{ from = "result.temperature", missing = "coast", '
REPLAY = '[[sensor]]\ndriver = "replay"\n'


def node(text: str = "", *, without: str = "", full: bool = True) -> NodeConfig:
    """The sound configuration above, with some of it left out and more put at its end."""
    return loads(NodeConfig, NODE.replace(without, "") + text, Path("c.toml"), full=full)


def problems(
    text: str, cls: type = NodeConfig, *, full: bool = True
) -> dict[str, tuple[int | None, str, str | None]]:
    """Key → line, message and suggestion of all that is wrong."""
    with pytest.raises(ConfigError) as error:
        loads(cls, text, Path("c.toml"), full=full)
    return {p.key: (p.line, p.message, p.suggestion) for p in error.value.problems}


def load_from(text: str) -> GatewayConfig:
    return loads(GatewayConfig, text, Path("c.toml"))
