"""``doctor`` of both commands: everything is looked at, and the worst decides."""

from __future__ import annotations

import os
import re
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.spool import Intake, Spool
from qis_edge.cli import doctor as doctors
from qis_edge.cli.owner import act_as_owner
from qis_edge.cli.service import TITLES, look_at_node
from qis_edge.core.errors import KeyFileError, Reason
from qis_edge.core.receipt import Receipt
from qis_edge.doctor import broker
from qis_edge.doctor.findings import CODES, Severity, notice, ok, worst
from qis_edge.keys import read_key
from qis_edge.service import install as units
from qis_edge.store.outbox import Outbox
from tests.cli.kit import (
    NOW,
    ROOT,
    RUNNING_GATEWAY,
    RUNNING_NODE,
    Site,
    check_documented,
    command,
    daemon,
    filled,
    packed,
)
from tests.mosquitto import Mosquitto, free_port, running


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs from machine to machine is well."""
    monkeypatch.setattr(broker, "GREETING", 0.2)
    monkeypatch.setattr(doctors, "synchronised", lambda: True)
    monkeypatch.setattr(doctors, "check_disk", lambda *_, **__: [ok("disk", "there is room")])


@pytest.fixture
def there(ready: Site, tmp_path: Path) -> Iterator[Mosquitto]:
    """The node's broker."""
    with running(Mosquitto(tmp_path / "broker")) as made:
        text = ready.node_config.read_text()
        text = text.replace('#url = "mqtt://localhost:1883"', f'url = "{made.url}"')
        ready.node_config.write_text(text)
        yield made


def found(site: Site) -> dict[str, str]:
    """Code → severity of what was found; several of one code are of its worst."""
    shown = site.console.json
    assert shown["worst"] == max(
        (one["severity"] for one in shown["findings"]), key=lambda word: Severity[word.upper()]
    )
    assert all(one["code"] in CODES for one in shown["findings"])
    ranked = sorted(shown["findings"], key=lambda one: Severity[one["severity"].upper()])
    return {one["code"]: one["severity"] for one in ranked}


def test_a_node_that_is_well(ready: Site, there: Mosquitto) -> None:
    ready.join()
    filled(ready)
    assert ready.node("doctor", "--json") in (0, 4)
    check_documented("qis-edge", "doctor", ready.console.json)
    assert {"config", "clock", "key", "credential", "disk", "database", "broker", "versions",
            "memory", "daemon-down"} <= set(found(ready))  # fmt: skip
    assert not [code for code, how in found(ready).items() if how == "error"]
    ready.node("doctor")
    assert "ok       key (node): " in ready.console.out
    assert "fix: qis-edge run" in ready.console.out


def test_a_node_that_is_not_well(ready: Site) -> None:
    text = ready.node_config.read_text()
    url = f'url = "mqtt://127.0.0.1:{free_port()}"'
    ready.node_config.write_text(text.replace('#url = "mqtt://localhost:1883"', url))
    ready.node_state.chmod(0o755)
    (ready.node_state / "outbox.db").write_bytes(b"not a database" * 1000)
    assert ready.node("doctor", "--json") == 1
    bad = {code for code, how in found(ready).items() if how == "error"}
    assert bad >= {"state-exposed", "credential-missing", "database-bad", "broker-unreachable"}
    (ready.node_state / "node.key").unlink()
    assert ready.node("doctor", "--json") == 1
    assert found(ready)["key-missing"] == "error"


def test_what_waits(ready: Site, there: Mosquitto) -> None:
    ready.join()
    filled(ready)
    identity = read_key(ready.node_state / "node.key")
    outbox = Outbox.open(ready.node_state / "outbox.db", identity.public, budget=4_000_000)
    with closing(outbox):
        (packet,) = outbox.unreceipted()
        said = Receipt(packet.store, refused=((Reason.BOUNDS, (packet.sequence,)),))
        outbox.receipt(b"gateway.", b"\1\2\3\4", said)
    assert ready.node("doctor", "--json") == 4
    assert found(ready)["backlog-refused"] == "warning"


def backlog(**more: Any) -> dict[str, str]:
    class Config:
        class outbox:  # noqa: N801 - named as the settings are
            budget = 1000

    stats = {"evicted_unsent": 0, "refused": 0, "bytes": 10, "held": 0, "waiting": 1,
             "unreceipted": 2, **more}  # fmt: skip
    oldest = stats.pop("oldest", None)
    made = doctors._backlog(Config, stats, oldest, NOW)  # type: ignore[arg-type] # what it reads
    return {one.code: one.severity.label for one in made}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"backlog": "ok"}),
        ({"evicted_unsent": 3}, {"backlog-lost": "warning", "backlog": "ok"}),
        ({"bytes": 950}, {"backlog-full": "warning", "backlog": "ok"}),
        ({"bytes": 950, "held": 9}, {"backlog": "ok"}),
        ({"oldest": NOW - 10 * 86400}, {"backlog-stale": "warning"}),
        ({"oldest": NOW - 3600}, {"backlog": "ok"}),
    ],
)
def test_a_queue(given: dict[str, Any], wanted: dict[str, str]) -> None:
    assert backlog(**given) == wanted


def test_a_node_that_runs(ready: Site, there: Mosquitto) -> None:
    ready.join()
    told = {**RUNNING_NODE, "started": time.time() - 60, "now": time.time() - 900}
    with daemon(ready.node_state, status=lambda _: told):
        assert ready.node("doctor", "--json") == 1
    codes = found(ready)
    assert codes["daemon"] == "ok"
    assert codes["disk-trouble"] == "error"
    assert codes["clock-untrusted"] == "warning"
    assert codes["link-down"] == "warning"
    with daemon(ready.node_state):
        assert ready.node("doctor", "--json") == 1
    assert found(ready)["daemon-silent"] == "error"


def test_a_rehearsal(ready: Site) -> None:
    with ready.node_config.open("a") as file:
        file.write("[clock.simulate]\nepoch = 2013-01-01T00:00:00Z\nanchor = 1000\n")
    ready.node("doctor", "--json")
    assert found(ready)["clock-simulated"] == "notice"
    assert "clock" not in found(ready)


def test_a_configuration_that_is_wrong(ready: Site) -> None:
    ready.node_config.write_text("[node]\nnam = 1\n")
    assert ready.node("doctor", "--json") == 2
    assert set(found(ready)) == {"config-wrong"}
    ready.gateway_config.write_text("[gateway]\nnam = 1\n")
    assert ready.gateway("doctor") == 2
    assert "config-wrong (gateway.nam): " in ready.console.out


def test_ports_and_packages(ready: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ready.node_config.read_text()
    text = text.replace("[links.mqtt]", '[links.meshtastic]\nradio = "/dev/no-such-radio"')
    ready.node_config.write_text(text)
    ready.node("doctor", "--json")
    assert found(ready)["port-missing"] == "error"
    monkeypatch.setattr("qis_edge.link_making.find_spec", lambda _: None)
    ready.node("doctor", "--json")
    assert found(ready)["package-missing"] == "error"


# --- the gateway's -----------------------------------------------------------------------


def test_a_gateway(ready: Site) -> None:
    assert ready.gateway("doctor", "--json") == 4
    check_documented("qis-gateway", "doctor", ready.console.json)
    codes = found(ready)
    assert codes["root-key-here"] == "warning"
    assert codes["broker"] == "notice"  # its own, which runs with it
    assert codes["engine"] == codes["credential"] == codes["key"] == "ok"
    (ready.gateway_state / "root.key").unlink()
    assert ready.gateway("doctor", "--json") == 0


def test_a_gateway_that_is_not_well(ready: Site) -> None:
    text = ready.gateway_config.read_text()
    text = text.replace("#embedded = true", "embedded = false")
    url = f'[links.mqtt]\nurl = "mqtt://127.0.0.1:{free_port()}"'
    text = text.replace("#[links.mqtt]", url)
    line = next(one for one in text.splitlines() if one.startswith("#engines"))
    engine = f"redis://127.0.0.1:{free_port()}"
    text = text.replace(line, f'engines = ["sqlite:routing.db", "{engine}"]')
    ready.gateway_config.write_text(text)
    (ready.gateway_state / "fleet.db").unlink()
    assert ready.gateway("doctor", "--json") == 1
    codes = found(ready)
    assert codes["broker-unreachable"] == codes["credential-missing"] == "error"
    assert codes["engine-away"] == "error"


def test_engines_of_a_gateway_that_runs(ready: Site) -> None:
    engines = [{**RUNNING_GATEWAY["engines"][0], "behind": 5000}]
    told = {**RUNNING_GATEWAY, "started": time.time(), "now": time.time(), "engines": engines}
    with daemon(ready.gateway_state, status=lambda _: told):
        assert ready.gateway("doctor", "--json") == 1
    codes = found(ready)
    assert codes["engine-away"] == "error"
    assert codes["engine-behind"] == "warning"
    assert codes["disk-trouble"] == "error"


def test_a_spool_that_fills(ready: Site) -> None:
    ready.join()
    identity = read_key(ready.node_state / "node.key")
    text = ready.gateway_config.read_text().replace('#budget = "1 GB"', 'budget = "16 MB"')
    ready.gateway_config.write_text(text)
    with closing(Spool(ready.gateway_state / "spool.db", engines=["sqlite:routing.db"])) as spool:
        spool.admit([Intake(packed(identity, n, "x"), NOW) for n in range(3)])
        spool._db.execute("UPDATE facts SET value=15900000 WHERE name='bytes'")
    ready.gateway("doctor", "--json")
    assert found(ready)["backlog-full"] == "warning"


# --- what they have in common --------------------------------------------------------------


def test_every_code_is_documented() -> None:
    page = (ROOT / "docs/commands.md").read_text()
    listed = dict(re.findall(r"^\| `([a-z-]+)` \| ([^|]+?) \|$", page, re.MULTILINE))
    assert {code: listed.get(code) for code in CODES} == CODES


def test_every_code_is_used_and_used_codes_exist() -> None:
    folders = ("qis_edge/doctor", "qis_edge/cli", "gateway/cli")
    text = "".join(
        path.read_text()
        for folder in folders
        for path in (ROOT / folder).glob("*.py")
        if path.name != "findings.py"
    )
    assert {code for code in CODES if f'"{code}"' not in text} == set()


def test_a_unit_of_an_earlier_version(ready: Site, tmp_path: Path) -> None:
    args = Namespace(program="qis-edge", config=None)

    def found_now() -> list[str]:
        made = list(doctors.unit(args, look_at_node, tmp_path / "root"))
        assert {one.code for one in made} <= {"service-outdated"}
        return [one.about for one in made]

    assert found_now() == []  # none at all
    command = units.own_command("qis-edge", "qis_edge")
    made = units.Service(
        name="qis-edge",
        title=TITLES["qis-edge"],
        config=Path("/etc/qis-edge/config.toml"),
        state=Path("/var/lib/qis-edge"),
        command=command,
        systemd=units.systemd_version(),
    )
    units.write(made, tmp_path / "root")
    assert found_now() == []
    units.write(replace(made, command=("/old/place/qis-edge",)), tmp_path / "root")
    assert found_now() == ["qis-edge.service"]


def test_the_worst_decides() -> None:
    assert worst([]) is Severity.OK
    assert worst([ok("disk", ""), notice("disk-wear", "")]) is Severity.NOTICE


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_root_acts_as_the_owner_of_the_state(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, 12345, 12346)
    process = os.fork()
    if process == 0:
        act_as_owner(state)
        right = (os.geteuid(), os.getegid(), os.getgroups()) == (12345, 12346, [12346])
        os._exit(0 if right else 1)
    assert os.waitpid(process, 0)[1] == 0
    act_as_owner(tmp_path)  # root's own
    act_as_owner(tmp_path / "gone")
    assert os.geteuid() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder away")
def test_root_looks_at_a_services_folder(ready: Site, tmp_path: Path) -> None:
    """A service keeps its keys from all others. What root's commands write there is its own."""
    ready.join()
    tmp_path.chmod(0o755)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)
    for path in (ready.node_state, *ready.node_state.rglob("*")):
        os.chown(path, 12345, 12345)
    assert read_key(ready.node_state / "node.key")  # root may use it where it is
    for verb in ("status", "queue", "enroll", "doctor"):
        done = command("qis_edge", verb, "--config", ready.node_config)
        assert "belongs to user" not in done.stdout + done.stderr, verb
        assert "key-exposed" not in done.stdout
    assert {path.stat().st_uid for path in ready.node_state.rglob("*")} == {12345}
    os.chown(ready.node_state / "node.key", 12346, 12346)
    with pytest.raises(KeyFileError, match="belongs to user 12346"):
        read_key(ready.node_state / "node.key")


def test_secrets_that_only_the_service_has(ready: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    text = ready.node_config.read_text()
    text = text.replace('#username = "field-1"', 'username = "field-1"')
    text = text.replace('#password_file = "mqtt.password"', 'password_file = "credential:p"')
    text = text.replace('#url = "mqtt://localhost:1883"', 'url = "mqtt://localhost:1883"')
    ready.node_config.write_text(text)
    ready.node("doctor", "--json")
    assert found(ready)["broker"] == "notice"
    assert found(ready)["config"] == "notice"
    handed = ready.folder / "credentials" / "qis-edge.service"
    handed.mkdir(parents=True)
    (handed / "p").write_text("secret\n")
    (handed / "p").chmod(0o600)
    monkeypatch.setattr("qis_edge.cli.owner.CREDENTIALS", handed.parent)
    ready.node("doctor", "--json")
    assert found(ready)["config"] == "ok"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
