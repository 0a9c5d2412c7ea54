"""The demo's processes: a broker, a gateway and three nodes, each with a folder of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.demo.journal import VARIABLE
from gateway.demo.scenario import DATA, DATA_PACKAGE, FIELDS, HOUR, STATIONS, Scenario
from qis_edge.control import request
from qis_edge.core.errors import QisError

SITE = "demo"
#: The gateway's routing engine, unless another is asked for.
ENGINE = "sqlite:routing.db"
#: Radios run so many times as fast as real ones; one frame in ten is lost on the way.
RADIO_RATE, LOSS = 80, 0.1
#: Who has which radio, in their order.
RADIOS = ("gateway", *STATIONS)
#: The node that has a broker as well.
BOTH = "JFK"
CHANNELS = ("temperature", "dewpoint", "humidity", "pressure", "wind_speed")
#: Seconds that anything may take that normally takes a moment.
PATIENCE = 30.0


@dataclass(slots=True)
class Process:
    """A command that can be started, killed and started again; its output goes to a file."""

    name: str
    command: Sequence[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    _running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it (again)."""
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                [sys.executable, "-m", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._running is not None and self._running.poll() is None

    @property
    def died(self) -> bool:
        """Whether it ended by itself."""
        return self._running is not None and not self.alive

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, by its process id, and wait until it has ended."""
        if self._running is None:
            return
        if self.alive:
            self._running.send_signal(number)
        try:
            self._running.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()
        self._running = None

    def tail(self, lines: int = 15) -> str:
        """The last lines of its output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Field:
    """Everything that runs, in one folder.

    :param engine: the URL of the gateway's routing engine.
    """

    def __init__(self, folder: Path, scenario: Scenario, engine: str = ENGINE) -> None:
        self.folder = folder
        self.scenario = scenario
        self.engine = engine
        self.port = free_port()
        self.broker = Process(
            "broker",
            ["gateway.broker", "--port", str(self.port)],
            folder / "broker.log",
        )
        self.radios = Process(
            "radios",
            [
                *("qis_edge", "radio-sim", "--radios", str(len(RADIOS))),
                *("--region", "EU_868", "--preset", "LONG_FAST", "--loss", str(LOSS)),
                *("--rate", str(RADIO_RATE), "--links", str(folder / "radios")),
            ],
            folder / "radios.log",
        )
        self.gateway = Process(
            "gateway",
            ["gateway", "run", "--config", str(self._config("gateway"))],
            folder / "gateway.log",
        )
        self.nodes = {
            station: Process(
                station,
                ["qis_edge", "run", "--config", str(self._config(station))],
                folder / f"{station}.log",
                {VARIABLE: str(self.journal(station))},
            )
            for station in STATIONS
        }

    def _links(self, name: str) -> str:
        """All are in reach of each other. Weeks go by in a minute here: nobody waits longer
        than a second or two."""
        links = (
            f'[links.meshtastic]\nradio = "{self.radio(name)}"\nhop_limit = 0\n'
            f"rate = {RADIO_RATE}\n"
        )
        if name in ("gateway", BOTH):
            links += f'[links.mqtt]\nurl = "mqtt://127.0.0.1:{self.port}"\nretry = "2s"\n'
            links += '[links]\nafter = "1s"\nsettle = "1s"\n'
        return links

    def radio(self, name: str) -> Path:
        """Where somebody's radio is."""
        return self.folder / "radios" / f"radio{RADIOS.index(name)}"

    def airtime(self) -> tuple[int, float]:
        """Frames and seconds on the air of all radios, once they have ended."""
        said = re.search(r"sent (\d+) \(([\d.]+) s on the air\)", self.radios.tail())
        return (int(said[1]), float(said[2])) if said else (0, 0.0)

    def state(self, name: str) -> Path:
        """The state folder of the gateway or of a node."""
        return self.folder / name / "state"

    def journal(self, station: str) -> Path:
        """Where a node writes its estimates."""
        return self.folder / station / "estimates.jsonl"

    def _config(self, name: str) -> Path:
        return self.folder / name / "config.toml"

    def processes(self) -> list[Process]:
        """All, in the order in which they are ended."""
        return [*self.nodes.values(), self.gateway, self.broker, self.radios]

    # - setting up

    def prepare(self, anchor: float) -> None:
        """Write configurations, and make keys with the commands that a user has.

        :raises QisError: a command failed.
        """
        clock = (
            f"[clock.simulate]\nepoch = {_moment(self.scenario.epoch)}\n"
            f"anchor = {anchor:.3f}\nrate = {self.scenario.rate:g}\n"
        )
        self._write("gateway", self._gateway_config() + clock)
        for station in STATIONS:
            self._write(station, self._node_config(station) + clock)

    def make_keys(self) -> None:
        """``init``, for the gateway and for each node."""
        self.command("gateway", "init", "--config", self._config("gateway"), "--site", SITE)
        fleet = self.state("gateway") / "fleet.toml"
        for station in STATIONS:
            self.command("qis_edge", "init", "--config", self._config(station), "--fleet", fleet)

    def approve(self, station: str) -> None:
        """Let a node join. :raises QisError: it has not asked."""
        self.command("gateway", "approve", station, "--config", self._config("gateway"))

    def permit(self, seconds: int) -> None:
        """Let nodes ask to join."""
        self.command("gateway", "permit", str(seconds), "--config", self._config("gateway"))

    def command(self, *arguments: object) -> str:
        """Run one of our commands to its end. :raises QisError: it failed."""
        done = subprocess.run(
            [sys.executable, "-m", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            words = " ".join(map(str, arguments))
            raise QisError(f"{words} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _write(self, name: str, text: str) -> None:
        path = self._config(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _gateway_config(self) -> str:
        return (
            '[gateway]\nname = "base"\nstate = "state"\n'
            "[broker]\nembedded = false\n"
            f"{self._links('gateway')}"
            f"[routing]\nengines = [{json.dumps(self.engine)}]\n"
        )

    def _node_config(self, station: str) -> str:
        fields = "".join(f'{name} = "{value}"\n' for name, value in FIELDS.items())
        columns = "".join(f'{channel} = "{channel}"\n' for channel in CHANNELS)
        fails = "".join(
            '[[sensor.fail]]\nchannel = "temperature"\n'
            f"from = {_moment(self.scenario.time(failure.span.begin))}\n"
            f"until = {_moment(self.scenario.time(failure.span.end))}\n"
            for failure in self.scenario.failures
            if failure.station == station
        )
        return (
            f'[node]\nname = "{station}"\nstate = "state"\n'
            f'[situation]\ndomain = "weather"\n[situation.fields]\n{fields}'
            f'season = {{ from = "calendar.season" }}\n'
            f'[[sensor]]\ndriver = "replay"\ninterval = "30min"\n'
            f'file = "{DATA_PACKAGE}:{DATA}"\nhistory = "{2 * HOUR}s"\n'
            f'where = {{ station = "{station}" }}\n'
            f"[sensor.columns]\n{columns}[sensor.channels]\n{columns}{fails}"
            '[distil]\nwindow = "1h"\nexpected = 1\n'
            '[synthesis]\nwait = "90min"\nhook = "gateway.demo.journal:write"\n'
            '[outbox]\nttl = "30d"\n'
            f"{self._links(station)}"
        )

    # - looking in

    def status(self, name: str) -> dict[str, Any] | None:
        """What a running process says of itself; ``None`` while it does not answer."""
        try:
            answer: dict[str, Any] = request(self.state(name), "status", timeout=5.0)
        except QisError:
            return None
        return answer

    def check(self) -> None:
        """:raises QisError: a process ended that nobody ended."""
        for process in self.processes():
            if process.died:
                raise QisError(f"{process.name} died:\n{process.tail()}")

    def wait(self, what: str, true: Any, patience: float = PATIENCE) -> None:
        """Wait until ``true()``. :raises QisError: it takes too long, or a process died."""
        deadline = time.monotonic() + patience
        while not true():
            self.check()
            if time.monotonic() > deadline:
                raise QisError(f"{what} took longer than {patience:g} s")
            time.sleep(0.1)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
