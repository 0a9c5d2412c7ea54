"""``qis-edge radio ping``: what it shows, and what it says when something is wrong."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as File
from typing import Any

import pytest

from devices.radio_sim.channel import Path
from devices.radio_sim.ports import Pace, PtyPort
from qis_edge.cli.radio_ping_show import JsonShow, TextShow
from qis_edge.core.mesh.framing import Pong, Signal
from qis_edge.core.mesh.survey import Survey
from qis_edge.links.meshtastic_ping import (
    Away,
    Back,
    Event,
    Pinged,
    Pinger,
    Silence,
    Waiting,
)
from tests.cli.kit import ROOT, Console, check_documented
from tests.devices.radios import radios
from tests.links.test_meshtastic_ping import QUICK


class Radios:
    """Emulated radios in a thread of their own, where nobody waits for them."""

    def __init__(self, folder: File, **settings: Any) -> None:
        settings = {"region": "US", "hops": 0, **settings}
        self.channel, self.radios = radios(2, "SHORT_TURBO", **settings)
        self.paths = [str(folder / f"radio{index}") for index in range(2)]
        self._loop = asyncio.new_event_loop()
        self._ports: list[PtyPort] = []

    @contextmanager
    def running(self) -> Iterator[Radios]:
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        self.call(self._plug)
        try:
            yield self
        finally:
            self.call(self._stop)
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(10)
            self._loop.close()

    def call(self, what: Callable[[], None]) -> None:
        """Do it in that thread, and wait for it."""

        async def do() -> None:
            what()

        asyncio.run_coroutine_threadsafe(do(), self._loop).result(10)

    def _plug(self) -> None:
        self.pace = Pace(self.channel.simulation, 20)
        self.pace.start()
        for radio, path in zip(self.radios, self.paths, strict=True):
            port = PtyPort(radio, self.pace, link=File(path))
            port.plug()
            self._ports.append(port)

    def unplug(self) -> None:
        self.call(self._ports[0].unplug)

    def plug(self) -> None:
        self.call(self._ports[0].plug)

    def _stop(self) -> None:
        for port in self._ports:
            port.unplug()
        self.pace.stop()


@pytest.fixture
def two(tmp_path: File) -> Iterator[Radios]:
    with Radios(tmp_path).running() as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pinger, "settle", 0.02)
    monkeypatch.setattr(Pinger, "_patience", lambda *_: 0.3)


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "qis_edge", "radio", "ping", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=90)


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """What it says up to a line that has this."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if re.search(pattern, line):
            return text
    raise AssertionError(f"no {pattern!r} in: {text}")


def finish(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=90)[0]


def test_two_people_with_two_radios(
    two: Radios, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine answers later than the air would: here, none is given up for that.
    monkeypatch.setattr(Pinger, "_patience", lambda *_: 60.0)
    one, other = (radio.number for radio in two.radios)
    two.channel.path(one, other, Path(snr=-5.5, rssi=-119), both=False)
    two.channel.path(other, one, Path(snr=2.0, rssi=-104), both=False)
    with running("--radio", two.paths[1], "--answer") as answerer:
        read_until(answerer, "here")
        ping = ("radio", "ping", "--radio", two.paths[0], "--count", 3, "--interval", 0.05)
        assert console("qis-edge", *ping) == 0
        lines = console.out.splitlines()
        assert "!10000001" in lines[0]
        assert "SHORT_TURBO in US: a ping of 5 bytes every 0.1 s" in lines[0]
        assert [line.split()[0] for line in lines[2:5]] == ["1", "2", "3"]
        for line in lines[2:5]:
            assert re.search(
                r"!10000002 +\d\.\d\d s +-5\.50 dB +-119 dBm +2\.00 dB +-104 dBm", line
            )
        assert "3 pings, 3 of 3 answered (100%)" in console.out
        assert "this place is poor: 100% answered, 9 frames of 10 were 2.0 dB" in console.out
        assert "what is heard there is 8 dB weaker than here" in console.out
        assert "20 pings or more would say more than 3" in console.out
        assert console("qis-edge", *ping, "--json", "--size", 200) == 0
        said = finish(answerer)
    events = [json.loads(line) for line in console.out.splitlines()]
    assert [event["event"] for event in events] == ["begin", *["reply"] * 3, "summary"]
    assert events[0]["size"] == 200
    assert events[1]["there"] == {"snr": -5.5, "rssi": -119, "hops": None}
    assert events[-1]["verdict"] == "poor"
    assert events[-1]["delivery"] == 1.0
    for event in events:
        check_documented("qis-edge", "radio ping", event)
    assert answerer.returncode == 0
    assert "6 pings heard, 6 answered" in said
    assert re.search(r"!10000001 +6 +-5\.5/-5\.5/-5\.5 +-119/-119/-119", said)


def test_nobody_answers(two: Radios, console: Console) -> None:
    code = console(
        "qis-edge", "radio", "ping", "--radio", two.paths[0], "--count", 4, "--interval", 0.05
    )
    assert code == 1
    assert console.out.count("nobody") == 4
    assert "4 pings, 0 of 4 answered (0%)" in console.out
    assert console.err.count("key") == 2  # once early, once at the end
    for word in ("region", "preset", "channel", "gateway", "--answer"):
        assert word in console.err


def test_unplugged_in_the_middle_and_ended_by_a_signal(two: Radios) -> None:
    with (
        running("--radio", two.paths[1], "--answer") as answerer,
        running("--radio", two.paths[0], "--interval", 0.1) as pinger,
    ):
        read_until(answerer, "here")
        read_until(pinger, r"!10000002.* s ")
        two.unplug()
        assert "unplugged" in read_until(pinger, "the radio is away")
        two.plug()
        read_until(pinger, "the radio is back")
        read_until(pinger, r"!10000002.* s ")
        assert "this place is" in finish(pinger)
        assert pinger.returncode == 0


def test_a_port_that_another_program_uses(two: Radios, console: Console) -> None:
    port = os.open(two.paths[0], os.O_RDWR | os.O_NOCTTY)
    try:
        fcntl.flock(port, fcntl.LOCK_EX)
        assert console("qis-edge", "radio", "ping", "--radio", two.paths[0]) == 1
    finally:
        os.close(port)
    assert "another program uses it" in console.err
    assert "stop it for the test" in console.err


@pytest.mark.parametrize("radio", ["/dev/no-such-port", "no-such-radio", "tcp:127.0.0.1:1"])
def test_a_radio_that_is_not_there(console: Console, radio: str) -> None:
    assert console("qis-edge", "radio", "ping", "--radio", radio) == 1
    assert "--radio" in console.err


def test_a_line_on_which_nobody_speaks(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qis_edge.links.meshtastic_client.Timings", lambda: QUICK)
    master, slave = os.openpty()
    try:
        assert console("qis-edge", "radio", "ping", "--radio", os.ttyname(slave)) == 1
    finally:
        os.close(master)
        os.close(slave)
    assert "does not answer" in console.err
    assert "Meshtastic's firmware" in console.err


def test_a_radio_without_a_region(tmp_path: File, console: Console) -> None:
    with Radios(tmp_path, region="UNSET").running() as unset:
        assert console("qis-edge", "radio", "ping", "--radio", unset.paths[0]) == 1
    assert "region is not set" in console.err
    assert "qis-edge radio configure" in console.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--count", 0), ("--interval", 0), ("--interval", 1e9), ("--interval", "nan"),
        ("--size", 4), ("--size", 232), ("--channel", 8), ("--channel", -1),
        ("--answer", "--size", 9), ("--answer", "--interval", 2),
    ],
)  # fmt: skip
def test_arguments_out_of_bounds(console: Console, arguments: tuple[object, ...]) -> None:
    assert console("qis-edge", "radio", "ping", *arguments) == 2
    assert str(arguments[-2]) in console.err or str(arguments[1]) in console.err


def test_every_event_is_told_and_documented(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = [
        Waiting(12.5, "the channel is busy"), Away("it was unplugged"), Back(), Silence(7),
        Pinged(0x11, Signal(1.0, -90, None), 5, answered=False),
    ]  # fmt: skip
    for event in events:
        TextShow().event(event)
    text = capsys.readouterr().out
    for part in ("waiting 12 s", "channel is busy", "it was unplugged", "is back", "7  nobody"):
        assert part in text
    assert "!00000011" in text
    assert "too often" in text
    for event in events:
        JsonShow().event(event)
    for line in capsys.readouterr().out.splitlines():
        check_documented("qis-edge", "radio ping", json.loads(line))


def test_a_survey_that_was_relayed_lossy_and_lopsided(capsys: pytest.CaptureFixture[str]) -> None:
    survey = Survey(10.0, 20.0)
    for number in range(30):
        survey.sent(number.to_bytes(4), number * 20.0, 500.0)
        if number % 2:
            heard = Pong(number.to_bytes(4), Signal(5.0, -80, 2), 9)
            survey.heard(0x11, heard, Signal(6.0, -80, 1), number * 20.0 + 1)
        survey.expired(number * 20.0 + 15)
    TextShow().end(survey.summary(-17.5))
    text = capsys.readouterr().out
    assert "30 pings, 15 of 30 answered (50%), 15 s of airtime" in text
    assert "over relays" in text
    assert "this place is poor" in text
    assert "signals are strong and yet pings are lost" in text
    assert "or more would say more" not in text


def test_nothing_was_sent_and_so_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    TextShow().end(Survey(1.0, 1.0).summary(-7.5))
    out, err = capsys.readouterr()
    assert "0 pings" in out
    assert err == ""
