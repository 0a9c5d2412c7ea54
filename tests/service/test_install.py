"""Units: what they say, how far they are hardened, and how they come and go."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qis_edge.core.errors import QisError
from qis_edge.service import install
from qis_edge.service.install import Service
from tests.cli.kit import Console, Site

NAMES = ("qis-edge", "qis-gateway")
#: What `systemd-analyze security` may find at most, of 10; with serial ports, too.
EXPOSURE = 2.0


def service(name: str = "qis-edge", **more: Any) -> Service:
    values: dict[str, Any] = {
        "title": "A title",
        "config": Path(f"/etc/{name}/config.toml"),
        "state": Path("/var/lib") / name,
        "command": (sys.executable,),
        **more,
    }
    return Service(name=name, **values)


def unit_text(made: Service) -> str:
    return made.files()[install.UNITS / made.unit]


def analyze(*arguments: object) -> str:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is for machines that systemd runs")
    done = subprocess.run(
        [tool, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("serial", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_hardened(tmp_path: Path, name: str, serial: bool) -> None:
    install.write(service(name, serial=serial), tmp_path)
    said = analyze("security", "--offline=true", f"--root={tmp_path}", f"{name}.service")
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= EXPOSURE, said


@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_no_fault_with_it(tmp_path: Path, name: str) -> None:
    install.write(service(name, serial=True, state=Path("/data/it")), tmp_path)
    said = analyze("verify", "--man=no", tmp_path / install.UNITS / f"{name}.service")
    assert name not in said


@pytest.mark.parametrize("name", NAMES)
def test_what_it_promises(name: str) -> None:
    lines = unit_text(service(name)).splitlines()
    for line in (
        "Type=notify",
        "WatchdogSec=3min",
        "Restart=always",
        "StartLimitIntervalSec=0",
        f"StateDirectory={name}",
        f"User={name}",
        f"ExecStart={sys.executable} run --config /etc/{name}/config.toml",
        f"#LoadCredential=mqtt.password:/etc/{name}/mqtt.password",
    ):
        assert line in lines


def test_paths_that_systemd_would_read_otherwise() -> None:
    text = unit_text(service(config=Path("/etc/my qis/100%.toml"), command=("/opt/a$b/run",)))
    assert 'ExecStart=/opt/a$$b/run run --config "/etc/my qis/100%%.toml"' in text


def test_what_comes_only_where_it_is_wanted() -> None:
    plain = service().files()
    assert [path.name for path in plain] == ["qis-edge.service", "qis-edge.conf"]
    full = service(serial=True, systemd=254, state=Path("/data/qis")).files()
    drop_ins = {path.name: text for path, text in full.items() if path.parent.suffix == ".d"}
    assert set(drop_ins) >= {"10-serial.conf", "20-backoff.conf", "30-state.conf"}
    assert "DeviceAllow=char-ttyUSB rw" in drop_ins["10-serial.conf"]
    assert "RestartMaxDelaySec=5min" in drop_ins["20-backoff.conf"]
    assert "ReadWritePaths=/data/qis" in drop_ins["30-state.conf"]
    assert "20-backoff.conf" not in {p.name for p in service(systemd=253).files()}


def test_it_is_written_brought_up_to_date_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / install.UNITS / "qis-edge.service.d"
    install.write(service(serial=True), tmp_path)
    (folder / "override.conf").write_text("[Service]\nNice=5\n")
    assert (folder / "10-serial.conf").exists()
    install.write(service(command=("/opt/new/run",)), tmp_path)
    assert not (folder / "10-serial.conf").exists()  # no longer used
    assert "/opt/new/run" in (tmp_path / install.UNITS / "qis-edge.service").read_text()
    removed = install.erase("qis-edge", tmp_path)
    assert len(removed) == 2
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [folder / "override.conf"]  # not ours
    (folder / "override.conf").unlink()
    install.write(service(serial=True), tmp_path)
    install.erase("qis-edge", tmp_path)
    assert not folder.exists()
    assert install.erase("qis-edge", tmp_path) == []


def test_what_somebody_else_wrote_stays(tmp_path: Path) -> None:
    path = tmp_path / install.UNITS / "qis-edge.service"
    path.parent.mkdir(parents=True)
    path.write_text("[Service]\nExecStart=/bin/true\n")
    with pytest.raises(QisError, match="written by somebody else"):
        install.write(service(), tmp_path)
    assert install.erase("qis-edge", tmp_path) == []
    assert "/bin/true" in path.read_text()


def test_what_the_service_could_not_see() -> None:
    with pytest.raises(QisError, match="is in a home folder") as error:
        service(command=("/home/pi/qis/bin/qis-edge",)).check()
    assert "/opt/qis" in str(error.value.hint)
    with pytest.raises(QisError, match=r"configuration .* is in a home folder"):
        service(config=Path("/root") / "c.toml").check_places()
    with pytest.raises(QisError, match=r"state folder .* is in a home folder"):
        service(state=Path("/home/pi/state")).check_places()
    service().check_places()


def test_a_tool_that_fails_is_named() -> None:
    with pytest.raises(QisError, match="exit code 3"):
        install.call([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(QisError, match="its own words"):
        install.call([sys.executable, "-c", "raise SystemExit('its own words')"])
    with pytest.raises(QisError, match="no-such-tool"):
        install.call(["no-such-tool"])


# --- the verbs ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_into_a_root_folder_and_out_of_it(console: Console, tmp_path: Path, name: str) -> None:
    arguments = ("--root", tmp_path, "--command", f"/opt/qis/bin/{name}")
    assert console(name, "service", "install", *arguments, "--dry-run") == 0
    assert f"{name}.service" in console.out
    assert list(tmp_path.iterdir()) == []
    assert console(name, "service", "install", *arguments) == 0
    assert f"systemctl enable --now {name}" in console.out
    assert f"{name} init, as root, makes it" in console.err
    unit = tmp_path / "etc/systemd/system" / f"{name}.service"
    assert f"ExecStart=/opt/qis/bin/{name} run" in unit.read_text()
    assert console(name, "service", "remove", "--root", tmp_path, "--dry-run") == 0
    assert unit.exists()
    assert console(name, "service", "remove", "--root", tmp_path) == 0
    assert f"kept: /etc/{name}, /var/lib/{name}" in console.out
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert console(name, "service", "remove", "--root", tmp_path) == 0
    assert "there is no service" in console.err


def test_the_configuration_says_what_it_needs(ready: Site, tmp_path: Path) -> None:
    root = tmp_path / "root"
    place = root / "etc/qis-edge/config.toml"
    place.parent.mkdir(parents=True)
    text = ready.node_config.read_text().replace('state = "state"', 'state = "/data/qis"')
    place.write_text(text.replace("[links.mqtt]", '[links.meshtastic]\nradio = "/dev/ttyUSB0"'))
    arguments = ("service", "install", "--root", root, "--command", "/opt/qis/bin/qis-edge")
    assert ready.console("qis-edge", *arguments) == 0
    assert "chown -R qis-edge: /data/qis" in ready.console.err
    folder = root / "etc/systemd/system/qis-edge.service.d"
    assert (folder / "10-serial.conf").exists()
    assert "ReadWritePaths=/data/qis" in (folder / "30-state.conf").read_text()
    place.write_text("[node]\n")
    assert ready.console("qis-edge", *arguments) == 2
    assert "qis-edge check says" in ready.console.err


def test_show_prints_what_would_be_installed(console: Console, tmp_path: Path) -> None:
    shown = ("service", "show", "--config", tmp_path / "c.toml", "--command", "/x/y", "--serial")
    assert console("qis-gateway", *shown) == 0
    assert console.out.startswith("# /etc/systemd/system/qis-gateway.service\n")
    assert f"ExecStart=/x/y run --config {tmp_path}/c.toml" in console.out
    assert "DeviceAllow=char-ttyUSB rw" in console.out


def test_without_systemd_or_root(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is run by something else; then as somebody who may not."""
    command = ("service", "install", "--command", "/opt/qis/bin/qis-edge")
    is_dir = Path.is_dir
    for there, words in ((False, "not run by systemd"), (True, "only root may")):
        monkeypatch.setattr("os.geteuid", lambda: 1000)
        monkeypatch.setattr(
            Path,
            "is_dir",
            lambda self, there=there: there if self.name == "system" else is_dir(self),
        )
        assert console("qis-edge", *command) == 1
        assert words in console.err


def test_what_is_run_on_a_machine_with_systemd(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tools are called in an order that works; here they are only written down."""
    called: list[str] = []
    monkeypatch.setattr(install, "call", lambda command: called.append(" ".join(command)))
    monkeypatch.setattr("qis_edge.cli.service._require_systemd", lambda _: None)
    written: list[Path] = []
    write = install.write

    def note(made: Service, _: Path) -> list[Path]:
        written.extend(write(made, tmp_path))
        return written

    monkeypatch.setattr(install, "write", note)
    monkeypatch.setattr(install, "present", lambda *_: written)
    monkeypatch.setattr(install, "erase", lambda name, _: written)
    command = ("--config", tmp_path / "c.toml", "--command", "/opt/qis/bin/qis-edge")
    assert console("qis-edge", "service", "install", *command, "--now") == 0
    assert called == [
        "systemd-sysusers /etc/sysusers.d/qis-edge.conf",
        "systemctl daemon-reload",
        "systemctl enable qis-edge.service",
        "systemctl restart qis-edge.service",
    ]
    called.clear()
    assert console("qis-edge", "service", "remove") == 0
    assert called == [
        "systemctl disable --now qis-edge.service",
        "systemctl daemon-reload",
    ]
