"""``python -m gateway.reference`` writes ``docs/configuration.md`` from the declarations."""

from __future__ import annotations

import inspect
from pathlib import Path

from gateway.config import GatewayConfig
from qis_edge.config import NodeConfig, variables
from qis_edge.drivers import load_driver
from qis_edge.schema.text import markdown, reference, setting_reference

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
#: The drivers that come along.
DRIVERS = ("replay", "system")

_INTRO = """\
# Configuration

<!-- Written by `python -m gateway.reference`; change the declarations, not this page. -->

A node reads one TOML file, a gateway another. `qis-edge init` and `qis-gateway init` write
them, with every setting explained in comments (`qis-edge config sample` and `qis-gateway config
sample` print them). `qis-edge check` and `qis-gateway check` name everything that is wrong at
once: file, line, key, and what was probably meant. `qis-edge config show` and `qis-gateway
config show` say what is set in the end, and where.

Which file is read: the one that `--config FILE` names; else the one that the environment names
(`QIS_EDGE_CONFIG`, `QIS_GATEWAY_CONFIG`); else, for root, `/etc/qis-edge/config.toml` or
`/etc/qis-gateway/config.toml`; else `~/.config/qis-edge/config.toml` or
`~/.config/qis-gateway/config.toml`.

- A *duration* is text with its unit: `"500ms"`, `"10s"`, `"5min"`, `"1h 30min"`, `"7d"`, `"2w"`.
- A *size* is text with its unit: `"64 MB"` is 64,000,000 bytes, `"64 MiB"` is 67,108,864.
- A *date* is a TOML date and time with its offset, such as `2013-06-01T00:00:00Z`.
- A *path* is relative to the folder of the file, and may begin with `~`.
- *Secrets* are never written here: a setting names the file that has one, and only its owner
  may read that file. Where a setting says so, `"credential:NAME"` is a secret that systemd hands
  to the service (`LoadCredential=NAME:FILE` in its unit); so it is in the URL of a routing engine
  (`password_file=credential:NAME`, and the like), and after `qis-gateway hub --tokens`.

## Several files, and the environment

Files `*.toml` in a folder `config.toml.d` beside the file are read after it, in the order of their
names. A later setting takes the place of an earlier one; `[[sensor]]` and other arrays of tables
are added to those before. So what a whole fleet shares can be one file, and what is special to a
machine another:

```text
/etc/qis-edge/config.toml
/etc/qis-edge/config.toml.d/10-farm.toml
/etc/qis-edge/config.toml.d/90-this-node.toml
```

The environment is read last, by the same rules. A setting's variable is its dotted name in
capitals with two underscores for each dot, after `QIS_EDGE_` or `QIS_GATEWAY_`:
`links.mqtt.url` of a node is `QIS_EDGE_LINKS__MQTT__URL`. It is named below with each setting.
Text is written as it is; numbers, dates, true and false, arrays and tables as TOML writes them;
arrays of tables, and tables whose keys are yours to choose, as a whole:

```sh
QIS_EDGE_LOG__LEVEL=debug
QIS_EDGE_LINKS__MQTT__URL=mqtts://broker.example
QIS_EDGE_PEERS__BITS=128
QIS_EDGE_SITUATION__FIELDS='{climate = "cfb", terrain = "plain"}'
QIS_GATEWAY_ROUTING__ENGINES='["sqlite:routing.db", "kafka://kafka.example"]'
```

A variable that is empty counts as not set. One that begins like these and names no setting is
refused, with the nearest that there is. No secret belongs in the environment, which other
processes can read: a URL with a password in it is refused there.
"""


def page() -> str:
    """The whole page."""
    named = variables("edge").by_key(NodeConfig)
    parts = [_INTRO, "## The node", "", reference(NodeConfig, named), "## Sensor drivers", ""]
    parts += [
        "What a `[[sensor]]` says besides its own settings goes to its driver. Others are added",
        "by packages with an entry point of the group `qis_edge.sensors`, or named as",
        "`module:factory`.",
        "",
    ]
    for name in DRIVERS:
        declared: type = load_driver(name).settings  # type: ignore[attr-defined] # ours have it
        doc = markdown(inspect.getdoc(declared) or "")
        parts += [f"### The driver `{name}`", "", *doc, "", setting_reference(declared, "sensor")]
    named = variables("gateway").by_key(GatewayConfig)
    parts += ["## The gateway", "", reference(GatewayConfig, named)]
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
