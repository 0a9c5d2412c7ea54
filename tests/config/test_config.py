"""Configurations that are right: defaults, units, paths, folders, links."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest

from gateway.config import GatewayConfig
from qis_edge.clock import SimulatedClock, SystemClock
from qis_edge.config import default_path, load_node
from qis_edge.core.domain import Domain
from qis_edge.core.errors import UsageError
from qis_edge.core.filling import MARGIN
from qis_edge.core.outcome import Outcome
from qis_edge.core.priority import Priority
from qis_edge.schema import load
from qis_edge.store.forms import Candidate
from tests.config.kit import GATEWAY, NODE, load_from, node


def test_a_small_configuration_has_every_default() -> None:
    config = node()
    assert config.node.name == "field-1"
    assert config.distil.window == 3600
    assert config.expected == 60
    assert config.outbox.budget == 64_000_000
    assert config.outbox.ttl_hours == 168
    assert config.links.mqtt is None
    assert config.peers.bits == 256
    assert isinstance(config.clock.make(), SystemClock)
    assert config.results == {"temperature": None}
    assert config.situation.template == Domain.load("weather")


def test_values_come_in_their_units() -> None:
    config = node(
        '[distil]\nwindow = "1h 30min"\nexpected = 3\nfunction = "a.b:c"\n'
        '[outbox]\nbudget = "1.5 MiB"\nttl = "2w"\n'
        "[clock.simulate]\nepoch = 2013-06-01T02:00:00+02:00\nanchor = 1000.5\nrate = 60\n"
    )
    assert config.distil.window == 5400
    assert config.expected == 3
    assert config.distil.function == "a.b:c"
    assert config.outbox.budget == 3 * 2**19
    assert config.outbox.ttl_hours == 336
    assert config.clock.make() == SimulatedClock(1370044800.0, 1000.5, 60.0)


def test_dataclasses_can_be_made_without_a_file() -> None:
    made = GatewayConfig(gateway=load_from(GATEWAY).gateway)
    assert made.spool == load_from(GATEWAY).spool
    with pytest.raises(TypeError, match="required"):
        GatewayConfig()


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    (tmp_path / "readings.csv").write_text("time,temp\n")
    path = tmp_path / "config.toml"
    path.write_text(
        '[node]\nname = "a"\nstate = "state"\n'
        + NODE.partition("\n")[2].partition("\n")[2].partition("[[sensor]]")[0]
        + '[[sensor]]\ndriver = "replay"\nfile = "readings.csv"\n'
        'columns = { t = "temp" }\nchannels.t = "temperature"\n'
        '[links.mqtt]\nurl = "mqtts://broker"\nca = "ca.pem"\n'
    )
    config = load_node(path)
    assert config.node.state == tmp_path / "state"
    assert config.links.mqtt is not None
    assert config.links.mqtt.ca == tmp_path / "ca.pem"
    assert config.sensors[0].settings["file"] == str(tmp_path / "readings.csv")
    assert config.path == path


def test_links_give_their_settings() -> None:
    config = node('[links.mqtt]\nurl = "mqtt://h:1"\nusername = "u"\nkeepalive = "1min"\n')
    assert config.links.mqtt is not None
    made = config.links.mqtt.settings()
    assert (made.host, made.port, made.user, made.keepalive) == ("h", 1, "u", 60)
    without = node("[links.mqtt]\n").links.mqtt
    assert without is not None
    assert without.settings("mqtt://other").host == "other"
    with pytest.raises(UsageError, match="url: is missing"):
        without.settings()


def test_a_folder_of_further_files(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(NODE)
    folder = tmp_path / "config.toml.d"
    folder.mkdir()
    (folder / "20-later.toml").write_text('[log]\nlevel = "debug"\n[peers]\nbits = 100\n')
    (folder / "10-site.toml").write_text(
        '[log]\nlevel = "error"\n[situation.fields]\nterrain = "plain"\n'
        '[[sensor]]\ndriver = "system"\nchannels.load = "humidity"\n'
    )
    (folder / "ignored.txt").write_text("not TOML")
    config = load_node(path)
    assert config.log.level == "debug"
    assert config.peers.bits == 100
    assert config.situation.fields["terrain"].value == "plain"
    assert config.situation.fields["climate"].value == "cfa"
    assert list(config.results) == ["temperature", "humidity"]


def test_default_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QIS_EDGE_CONFIG", raising=False)
    monkeypatch.setattr("qis_edge.config.is_root", lambda: True)
    assert default_path("edge") == Path("/etc/qis-edge/config.toml")
    monkeypatch.setattr("qis_edge.config.is_root", lambda: False)
    monkeypatch.setenv("HOME", "/home/ada")
    assert default_path("gateway") == Path("/home/ada/.config/qis-gateway/config.toml")
    monkeypatch.setenv("QIS_EDGE_CONFIG", "/tmp/other.toml")
    assert default_path("edge") == Path("/tmp/other.toml")


def test_what_was_parsed_cannot_be_changed() -> None:
    config = node()
    assert isinstance(config.situation.fields, MappingProxyType)
    with pytest.raises(AttributeError):
        config.node.name = "other"  # type: ignore[misc]  # it is frozen: that is the test


def test_load_gives_the_document(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(GATEWAY)
    made, document = load(GatewayConfig, path)
    assert made.gateway.name == "base"
    assert document.place(("gateway", "name")).line == 2


# --- priorities and packing ----------------------------------------------------------------


def test_outcomes_are_normal_unless_said() -> None:
    config = node()
    assert config.priority_of(Outcome(0, results={"temperature": 60.0})) is Priority.NORMAL
    assert node('[distil]\npriority = "low"\n').priority_of(Outcome(0)) is Priority.LOW


def test_rules_of_priority() -> None:
    config = node(
        '[[priority]]\nresult = "temperature"\nabove = 35\nbelow = -20.5\n'
        '[[priority]]\nresult = "temperature"\nabove = 30\npriority = "high"\n'
    )
    given = {
        value: config.priority_of(Outcome(0, results={"temperature": value}))
        for value in (-21.0, -20.5, 30.0, 31.0, 35.0, 35.1)
    }
    assert given == {
        -21.0: Priority.URGENT,
        -20.5: Priority.NORMAL,
        30.0: Priority.NORMAL,
        31.0: Priority.HIGH,
        35.0: Priority.HIGH,
        35.1: Priority.URGENT,
    }


def test_the_longest_waits() -> None:
    filling = node('[distil]\nwindow = "1min"\n[packing]\nnormal = "10min"\n').make_filling()

    def wait(priority: Priority) -> float:
        return filling.due(Candidate(bytes(32), priority, 1, 1, False, 940), 1000) - 1000 - MARGIN

    assert wait(Priority.NORMAL) == 600
    assert wait(Priority.LOW) == 12 * 3600
    assert wait(Priority.HIGH) == wait(Priority.URGENT) == -MARGIN


def test_hourly_outcomes_do_not_wait_unless_said() -> None:
    filling = node().make_filling()
    candidate = Candidate(bytes(32), Priority.NORMAL, 1, 1, False, 0)
    assert filling.due(candidate, 3600) == 3600
