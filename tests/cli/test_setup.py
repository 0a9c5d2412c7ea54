"""``init`` and ``check`` of both commands."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path

import pytest

from gateway.cli import setup
from qis_edge import link_making
from qis_edge.core.domain import Domain
from qis_edge.core.identity import Identity
from qis_edge.keys import FleetFile, read_key, write_key
from tests.cli.kit import FIELDS, ROOT, Site


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_of_a_gateway(site: Site) -> None:
    assert site.gateway("init", "--name", "base", "--site", "north") == 0
    state = site.gateway_state
    identity, root = read_key(state / "gateway.key"), read_key(state / "root.key")
    assert mode(state) == 0o700
    assert mode(state / "root.key") == mode(state / "gateway.key") == 0o600
    assert FleetFile.read(state / "fleet.toml") == FleetFile(
        root.public, "north", "mqtt://127.0.0.1:1883"
    )
    assert identity.kid.hex() in site.console.out
    assert f"move {state / 'root.key'} to a medium" in site.console.out
    with contextlib.closing(site.fleet()) as fleet:
        held = fleet.credential(identity.kid)
        assert held is not None
        assert held.scope == {"gateway", "issuer"}
        assert held.subject == "base"
    assert site.gateway("check") == 0


def test_init_of_a_gateway_again_changes_nothing(site: Site) -> None:
    site.gateway("init", "--name", "base")
    before = {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()}
    assert site.gateway("init", "--name", "other", "--site", "south") == 0
    assert "the site stays site" in site.console.err
    for path, content in before.items():
        if path.suffix not in (".db-shm", ".db-wal", ".db"):
            assert path.read_bytes() == content, path
    (site.gateway_state / "root.key").rename(site.folder / "root.key")
    assert site.gateway("init") == 0
    assert not (site.gateway_state / "root.key").exists()
    assert "move" not in site.console.out


def test_a_gateway_of_a_fleet_that_exists(site: Site) -> None:
    root = Identity.generate()
    write_key(site.folder / "root.key", root)
    assert site.gateway("init", "--root", site.folder / "root.key") == 0
    assert not (site.gateway_state / "root.key").exists()
    assert FleetFile.read(site.gateway_state / "fleet.toml").root == root.public
    assert site.gateway("check") == 0
    write_key(site.folder / "other.key", Identity.generate())
    assert site.gateway("init", "--root", site.folder / "other.key") == 1
    assert "belongs to another fleet" in site.console.err


def test_a_gateway_without_a_credential_needs_the_root(site: Site) -> None:
    site.gateway("init")
    (site.gateway_state / "root.key").rename(site.folder / "root.key")
    for path in site.gateway_state.glob("fleet.db*"):
        path.unlink()
    assert site.gateway("check") == 1
    assert site.gateway("init") == 1
    assert "fix: name it: qis-gateway init --root FILE" in site.console.err
    assert site.gateway("init", "--root", site.folder / "root.key") == 0
    assert site.gateway("check") == 0


def test_a_gateway_without_a_broker(site: Site) -> None:
    """Its fleet file names none, and nothing is said about one."""
    site.gateway("init")
    (site.gateway_state / "fleet.toml").unlink()
    text = f'[gateway]\nname = "base"\nstate = "{site.gateway_state}"\n'
    links = '[links.meshtastic]\nradio = "/dev/ttyUSB0"\n[links.serial]\nport = "/dev/ttyUSB1"\n'
    site.gateway_config.write_text(f"{text}[broker]\nembedded = false\n{links}")
    for path in site.gateway_state.glob("fleet.db*"):
        path.unlink()
    assert site.gateway("init") == 0
    assert "broker" not in site.console.out
    assert FleetFile.read(site.gateway_state / "fleet.toml").mqtt_url is None
    assert site.gateway("check") == 0
    assert "link: meshtastic:/dev/ttyUSB0" in site.console.out
    assert "link: serial:/dev/ttyUSB1" in site.console.out


@pytest.mark.parametrize(
    ("missing", "links", "subject", "cause"),
    [
        ("amqtt", "", "broker", "the embedded broker is not installed"),
        ("meshtastic", "[links.meshtastic]\n", "link", "needs a package that is not installed"),
    ],
)
def test_what_a_gateways_link_lacks_is_said(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    links: str,
    subject: str,
    cause: str,
) -> None:
    site.gateway("init")
    site.gateway_config.write_text(site.gateway_config.read_text() + "\n" + links)
    for module in (setup, link_making):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name == missing else name)
    assert site.gateway("check", "--json") == 1
    (problem,) = site.console.json["problems"]
    assert problem["subject"] == subject
    assert cause in problem["message"]


def test_brokers_of_a_new_gateway(site: Site) -> None:
    assert site.gateway("init", "--broker", "mqtts://broker.example") == 0
    fleet = FleetFile.read(site.gateway_state / "fleet.toml")
    assert fleet.mqtt_url == "mqtts://broker.example"
    other = Site(site.console, site.folder / "other")
    assert other.gateway("init", "--listen", "192.0.2.7:1884") == 0
    assert "anybody who reaches 192.0.2.7:1884 may connect" in site.console.err
    fleet = FleetFile.read(other.gateway_state / "fleet.toml")
    assert fleet.mqtt_url == "mqtt://192.0.2.7:1884"
    assert other.gateway("check") == 0
    third = Site(site.console, site.folder / "third")
    assert third.gateway("init", "--listen", "h:1", "--broker", "mqtt://h") == 2
    assert third.gateway("init", "--listen", "nonsense") == 2
    assert not third.gateway_config.exists()
    assert third.gateway("init", "--name", "a b") == 2
    assert not third.gateway_config.exists()


def test_init_of_a_node(ready: Site) -> None:
    state = ready.node_state
    assert mode(state) == 0o700
    assert mode(state / "node.key") == 0o600
    assert FleetFile.read(state / "fleet.toml") == FleetFile.read(
        ready.gateway_state / "fleet.toml"
    )
    assert ready.node("check") == 0
    assert "not enrolled yet" in ready.console.err


def test_init_of_a_node_again_changes_nothing(ready: Site) -> None:
    before = {path: path.read_bytes() for path in ready.node_state.parent.rglob("*.*")}
    assert ready.node("init") == 0
    assert "left as it was" in ready.console.out
    assert {path: path.read_bytes() for path in ready.node_state.parent.rglob("*.*")} == before


def test_a_node_stays_with_its_fleet(ready: Site) -> None:
    other = ready.folder / "other.toml"
    FleetFile(Identity.generate().public, "south").write(other)
    assert ready.node("init", "--fleet", other) == 1
    assert "belongs to another fleet" in ready.console.err


def test_what_init_needs_from_a_person(site: Site) -> None:
    assert site.node("init") == 2
    assert "--fleet: is needed" in site.console.err
    assert not site.node_state.exists()
    site.gateway("init")
    fleet = site.gateway_state / "fleet.toml"
    assert site.node("init", "--fleet", fleet, "--field", "climate=mild") == 2
    assert site.node("init", "--fleet", fleet, "--field", "weather=fine") == 2
    assert site.node("init", "--fleet", fleet, "--domain", "wether") == 2
    assert "did you mean" in site.console.err
    assert not site.node_config.exists()
    assert site.node("init", "--fleet", fleet) == 0
    assert "choose climate and terrain under [situation.fields]" in site.console.out
    assert site.node("check") == 2
    assert site.console.err.count("is missing") == 2


@pytest.mark.parametrize("domain", ["weather", "air_quality", "soil_moisture"])
def test_a_new_node_of_each_domain(site: Site, domain: str) -> None:
    site.gateway("init")
    fields: list[str] = []
    for field in Domain.load(domain).fields:
        fields += ["--field", f"{field.name}={field.values[0]}"]
    fleet = site.gateway_state / "fleet.toml"
    assert site.node("init", "--fleet", fleet, "--domain", domain, *fields) == 0
    assert site.node("check", "--json") == 0
    assert site.console.json == {"ok": True, "problems": []}


def test_a_node_of_a_template_of_ones_own(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "devices/domains/weather.toml").read_text().replace("weather", "hills")
    (site.folder / "hills.toml").write_text(text)
    site.gateway("init")
    monkeypatch.chdir(site.folder)
    fleet = site.gateway_state / "fleet.toml"
    assert site.node("init", "--fleet", fleet, "--domain", "./hills.toml", *FIELDS) == 0
    assert site.node("check") == 0
    assert ": hills (revision 1), 1 sensor\n" in site.console.out


def test_check_reads_the_password(ready: Site) -> None:
    secret = ready.folder / "password"
    secret.write_text("hunter2\n")
    secret.chmod(0o644)
    text = ready.node_config.read_text().replace(
        '#password_file = "mqtt.password"', f'password_file = "{secret}"\nusername = "me"'
    )
    ready.node_config.write_text(text)
    assert ready.node("check") == 2
    assert f"fix: chmod 600 {secret}" in ready.console.err
    assert "hunter2" not in ready.console.err + ready.console.out
    secret.chmod(0o600)
    assert ready.node("check") == 0


# --- check and run --test ------------------------------------------------------------------


def test_check_finds_everything(ready: Site) -> None:
    text = ready.node_config.read_text()
    text = text.replace('driver = "system"', 'driver = "replay"\nfile = "r.csv"\ncolumns.t = "x"')
    text = text.replace("cpu_temperature =", "t =")
    text = text.replace('#hook = "my_station:act"', 'hook = "no_such_module:act"')
    (ready.node_config.parent / "r.csv").write_text("time,temp\n")
    ready.node_config.write_text(text)
    ready.node_state.chmod(0o755)
    (ready.node_state / "node.key").chmod(0o644)
    assert ready.node("check", "--json") == 2
    found = {one["subject"]: one for one in ready.console.json["problems"]}
    assert set(found) == {"keys", "sensor replay", "config"}
    assert "chmod 600" in found["keys"]["fix"]
    assert "no column x" in found["sensor replay"]["message"]
    assert found["config"]["key"] == "synthesis.hook"
    (ready.node_state / "node.key").chmod(0o600)
    assert ready.node("check") == 2
    assert f"fix: chmod 700 {ready.node_state}" in ready.console.err


def test_check_without_keys(site: Site) -> None:
    site.gateway("init")
    site.node("init", "--fleet", site.gateway_state / "fleet.toml", *FIELDS)
    (site.node_state / "node.key").unlink()
    assert site.node("check") == 1
    assert "there is no key file" in site.console.err
