"""Setting emulated radios up with the genuine Meshtastic library, as the command does it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import devices.radio_config.cli as command
from devices.radio_config import library
from devices.radio_config.library import Link, Timing
from devices.radio_config.settings import radio_sample
from qis_edge.cli import main
from qis_edge.core.errors import LinkError
from tests.cli.kit import ROOT, check_documented
from tests.devices.bench import RATE, Bench

#: No radio here needs the pauses, and all of them live faster.
FAST = dataclasses.replace(Timing().faster(RATE / 3), connect=10.0)


class Place:
    """A folder with a file in it, and the command."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.file = folder / "radio.toml"
        self.key = folder / "radio.psk"
        self.file.write_text('[lora]\nregion = "US"\npreset = "SHORT_TURBO"\n')
        self._capsys = capsys
        self.out = self.err = ""

    def configure(self, radio: object, *arguments: str) -> int:
        return self.run("configure", str(self.file), "--radio", str(radio), *arguments)

    def run(self, *arguments: str) -> int:
        code = main(["radio", *arguments])
        self.out, self.err = self._capsys.readouterr()
        if self.key.exists():
            key = base64.b64decode(self.key.read_text().split("\n")[-2] or "AAAA")
            for secret in (base64.b64encode(key).decode(), key.hex(), repr(key)[2:20]):
                assert secret not in self.out + self.err
        return code

    def add(self, text: str) -> None:
        self.file.write_text(self.file.read_text() + text)


@pytest.fixture
def place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Place:
    monkeypatch.setattr(command, "TIMING", FAST)
    return Place(tmp_path, capsys)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path, "LONG_FAST", region="UNSET") as one:
        yield one


def tcp(bench: Bench) -> str:
    return f"tcp:127.0.0.1:{bench.tcp.port}"


def test_a_radio_from_its_box_and_then_nothing_more_to_do(place: Place, bench: Bench) -> None:
    place.add('[device]\nname = "Gate"\n')
    assert place.configure(bench.pty.path, "--dry-run") == 1
    assert "lora.region: UNSET -> US" in place.out
    assert "channel.psk: differs" in place.out
    assert "a key would be drawn into it" in place.err
    assert not place.key.exists()
    assert bench.do(lambda: bench.one.settings.region) == "UNSET"

    assert place.configure(bench.pty.path) == 0
    assert place.out.splitlines()[-1] == "ok: the radio is as it is to be"
    assert "drew a key for the channel qis" in place.err
    assert place.key.stat().st_mode & 0o777 == 0o600
    settings = bench.one.settings
    assert (settings.region, settings.lora.modem_preset, settings.lora.tx_enabled) == ("US", 8, 1)
    assert (settings.channels[0].settings.name, settings.owner.long_name) == ("qis", "Gate")
    assert len(settings.channels[0].settings.psk) == 32
    assert settings.reboots == 1

    assert place.configure(bench.pty.path, "--json") == 0
    shown = json.loads(place.out)
    assert (shown["agrees"], shown["written"], shown["changes"]) == (True, False, [])
    assert shown["number"] == "!10000001"
    assert place.configure(bench.pty.path) == 0
    assert "already, nothing was written" in place.out
    assert (settings.reboots, place.err) == (1, "")


def test_relays_over_tcp_and_the_firmwares_own_ideas(place: Place, bench: Bench) -> None:
    place.add('[relay]\nrole = "ROUTER"\ntelemetry = "1h"\n')
    assert place.configure(tcp(bench), "--relay", "--name", "Hill", "--json") == 0
    shown = json.loads(place.out)
    check_documented("qis-edge", "radio configure", shown)
    assert (shown["name"], shown["written"], shown["differences"]) == ("Hill", True, [])
    changes = {one["setting"]: (one["was"], one["wanted"]) for one in shown["changes"]}
    assert changes["channel.psk"] == (None, None)
    assert changes["device.role"] == ("CLIENT", "ROUTER")
    settings = bench.other.settings
    # The role brings CORE_PORTNUMS_ONLY and an interval of its own; both were set after it.
    assert (settings.device.role, settings.device.rebroadcast_mode) == (2, 0)
    assert settings.modules["telemetry"].telemetry.device_update_interval == 3600
    assert settings.reboots == 1


def test_firmware_that_ignores_a_setting(place: Place, bench: Bench) -> None:
    bench.other.settings.ignores.update(("telemetry", "channel"))
    place.add('[device]\ntelemetry = "1h"\n')
    assert place.configure(tcp(bench)) == 1
    lines = place.err.splitlines()
    assert "error: device.telemetry: wanted 1 h, radio has off" in lines
    assert "error: channel.psk: differs" in lines
    assert lines[-1].startswith("fix: ")
    assert bench.other.settings.reboots == 2  # it was tried once more
    assert "writing what is still missing ..." in place.out


def test_a_radio_that_vanishes_while_it_restarts(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "usb"
    folder.mkdir()
    with Bench(folder, native_usb=True) as bench:
        assert place.configure(bench.pty.path) == 0
        assert bench.one.settings.reboots == 1

        bench.one.boot_time = 1e6
        place.add("[device]\nposition = true\n")
        place.file.write_text(place.file.read_text().replace("[lora]", "[lora]\nhop_limit = 1"))
        monkeypatch.setattr(command, "TIMING", Timing(pause=0.02, restart=5, back=0.2, retry=0.1))
        assert place.configure(bench.pty.path) == 1
        assert "error: the radio did not come back after its restart" in place.err
        assert "fix: plug it in anew" in place.err


def test_a_radio_that_does_not_restart(
    place: Place, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.other.reboot = lambda: None  # type: ignore[method-assign]  # firmware that forgets it
    monkeypatch.setattr(command, "TIMING", Timing(pause=0.02, restart=0.3, back=0.3, retry=0.1))
    assert place.configure(tcp(bench)) == 1
    assert "the radio did not restart" in place.err


def test_a_radio_that_does_not_count_its_restarts(
    place: Place, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Link.read
    monkeypatch.setattr(Link, "read", lambda self: dataclasses.replace(read(self), reboots=5))
    monkeypatch.setattr(command, "TIMING", dataclasses.replace(FAST, back=1.0))
    assert place.configure(tcp(bench)) == 0
    assert bench.other.settings.reboots == 1


def test_a_radio_that_is_unplugged_while_it_is_written_to(
    place: Place, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Link._write

    def unplugged(self: Link, section: str, *rest: Any) -> None:
        write(self, section, *rest)
        bench.do(bench.pty.unplug)
        while self._interface.isConnected.is_set():
            threading.Event().wait(0.01)

    monkeypatch.setattr(Link, "_write", unplugged)
    assert place.configure(bench.pty.path) == 1
    assert "was lost while it was set up" in place.err
    assert "fix: take the radio's power away" in place.err
    bench.do(bench.one.reboot)
    bench.until(lambda: bench.one.on)
    assert bench.one.settings.region == "UNSET"


def test_ctrl_c_commits_what_was_written(place: Place, bench: Bench) -> None:
    arguments = ["radio", "configure", str(place.file), "--radio", bench.pty.path]
    with subprocess.Popen(
        [sys.executable, "-m", "qis_edge", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any("writing" in line for line in process.stdout)
        bench.until(lambda: bench.one.settings.region == "US")
        process.send_signal(signal.SIGINT)
        told, said = process.communicate(timeout=90)
    assert process.returncode == 130
    assert "interrupted: the radio keeps what was written" in told
    assert "Traceback" not in said
    bench.until(lambda: bench.one.settings.reboots == 1 and bench.one.on)
    assert bench.one.settings.region == "US"
    assert bench.one.settings.channels[0].settings.name == ""


def test_ctrl_c_is_told(place: Place, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Link, "write", interrupted)
    assert place.configure(tcp(bench)) == 130
    assert place.out.splitlines()[-1].startswith("interrupted: ")


def test_a_radio_that_gets_another_number(
    place: Place, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, numbers = Link.read, iter([1, 2])
    monkeypatch.setattr(Link, "write", lambda *_: bench.do(bench.other.reboot))
    monkeypatch.setattr(
        Link, "read", lambda self: dataclasses.replace(read(self), number=next(numbers, 3))
    )
    place.configure(tcp(bench))
    assert "note: its number is !00000003 now" in place.err


@pytest.mark.parametrize(("what", "words"), [("managed", "is managed"), ("licensed", "encrypt")])
def test_radios_that_refuse(place: Place, bench: Bench, what: str, words: str) -> None:
    if what == "managed":
        bench.other.settings.configs["security"].security.is_managed = True
    else:
        bench.other.settings.owner.is_licensed = True
    assert place.configure(tcp(bench)) == 1
    assert words in place.err
    assert bench.other.settings.reboots == 0


# What can be wrong before a radio is spoken to.


def test_ports_that_cannot_be_had(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.configure("/dev/nowhere") == 1
    assert "there is no /dev/nowhere" in place.err
    assert place.configure(place.file) == 1
    assert "is no serial port" in place.err
    assert place.configure("tcp:127.0.0.1:1") == 1
    assert "tcp:127.0.0.1:1" in place.err
    master, slave = os.openpty()
    name = os.ttyname(slave)
    fcntl.flock(slave, fcntl.LOCK_EX)
    try:
        assert place.configure(name) == 1
        assert f"error: {name} is in use by another program" in place.err
        assert "fix: if that is a node" in place.err
        fcntl.flock(slave, fcntl.LOCK_UN)
        monkeypatch.setattr(command, "TIMING", Timing(connect=0.7))
        assert place.configure(name) == 1
        assert f"error: {name} does not answer" in place.err
    finally:
        os.close(master)
        os.close(slave)

    def forbidden(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(library.os, "open", forbidden)  # type: ignore[attr-defined]  # its import
    with pytest.raises(LinkError, match="permission denied") as error:
        library._check_port(name if Path(name).exists() else "/dev/null")
    assert "user" in str(error.value.hint)


@pytest.mark.parametrize(("found", "words"), [([], "no radio"), (["/dev/a", "/dev/b"], "2 serial")])
def test_radios_that_are_not_found(
    place: Place, monkeypatch: pytest.MonkeyPatch, found: list[str], words: str
) -> None:
    monkeypatch.setattr("qis_edge.links.meshtastic_wire.find_radios", lambda: found)
    assert place.configure("auto") == 1
    assert words in place.err


def test_a_library_that_is_missing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "meshtastic.serial_interface", None)
    assert place.configure("/dev/null") == 1
    assert "fix: pip install 'qis-edge[mesh]'" in place.err


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (SystemExit(1), r"x \(the Meshtastic library ended with SystemExit\)"),
        (ValueError("secret"), r"x \(the Meshtastic library ended with ValueError\)"),
        (OSError(5, "Input/output error"), "x: Input/output error"),
        (OSError("Could not exclusively lock port"), "x: it is in use by another program"),
    ],
)
def test_whatever_the_library_raises(raised: BaseException, words: str) -> None:
    def fail() -> None:
        raise raised

    with pytest.raises(LinkError, match=f"^{words}$"):
        library._within(5, fail, "x")
    release = threading.Event()
    with pytest.raises(LinkError, match="late"):
        library._within(0.01, release.wait, "late")
    release.set()


def test_the_library_is_not_heard(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("meshtastic")
    before = logger.disabled, logger.propagate, logger.level
    with library.quiet():
        print("key")
        print("key", file=sys.stderr)
        logger.error("key")
        logging.getLogger("meshtastic.node").error("key")
    assert capsys.readouterr() == ("", "")
    assert (logger.disabled, logger.propagate, logger.level) == before


# Without a radio.


def test_a_sample_and_a_key(place: Place) -> None:
    assert place.run("configure", "--sample") == 0
    assert place.out == radio_sample()
    assert place.run("configure", str(place.file), "--new-key") == 0
    assert str(place.key) in place.out
    assert place.run("configure", str(place.file), "--new-key") == 1
    assert "exists already" in place.err
    place.key.unlink()
    assert place.run("configure", str(place.file), "--new-key", "--json") == 0
    check_documented("qis-edge", "radio configure", json.loads(place.out))


def test_mistakes(place: Place) -> None:
    assert place.configure("auto", "--name", " ") == 2
    assert "--name" in place.err
    for arguments in (["--dry-run", "--new-key"], ["--sample", "--new-key"]):
        with contextlib.suppress(SystemExit):
            assert place.configure("auto", *arguments) == 2
    place.key.touch(0o600)
    place.key.write_text("\n\n")
    assert place.configure("auto") == 1
    assert "is not a key file" in place.err
    raw = bytearray(32)
    raw[0] = 0x08 ^ ord("q") ^ ord("i") ^ ord("s")
    place.key.write_text(base64.b64encode(raw).decode() + "\n")
    assert place.configure("auto") == 2
    assert "one of Meshtastic's own channels" in place.err


def test_a_list(place: Place, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_radios", lambda: [tcp(bench), "/dev/nowhere"])
    assert place.run("list", "--json") == 1
    shown = json.loads(place.out)
    check_documented("qis-edge", "radio list", shown)
    assert shown["radios"][0]["region"] == "UNSET"
    assert shown["radios"][0]["channels"] == [{"index": 0, "name": ""}]
    assert "there is no" in shown["radios"][1]["error"]
    assert place.run("list", "--radio", tcp(bench)) == 0
    assert "!10000002 Emulated 0002, firmware 2.7.26" in place.out
    assert "UNSET, LONG_FAST, CLIENT, channels: 0 (public)" in place.out
    assert place.run("list", "--radio", "/dev/nowhere") == 1
    monkeypatch.setattr(command, "find_radios", list)
    assert place.run("list") == 0
    assert place.err == "note: no radio is plugged in\n"
