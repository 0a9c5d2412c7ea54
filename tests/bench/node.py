"""How much memory a node takes, and how soon after its start something is durable.

**Memory**: ``qis-edge run`` with the weather template, a replayed sensor and an hour that takes
0.4 s, over MQTT (with TLS and a certificate of its own, at a Mosquitto configured as in
``docs/mosquitto.conf``; ``plain``: without TLS), over a radio, and with both. Beside it a
gateway and, in processes of their own, the broker and emulated radios on ptys (LONG_FAST,
sixty times as fast as real ones). It joins, sends two days' outcomes and hears receipts, and
is then looked at: ``rss`` is all that is resident, ``pss`` counts what it shares with others
in part, ``peak`` is the most that was ever resident. MiB. ``python`` is a bare interpreter.

**Start**: ``start_s`` is from the start of the process ``qis-edge run``, as installed, to the
commit of the first outcome that it makes (to when another process can read it), on a node
that has run before and finds readings due; the best of several. ``start_cpu_s`` is what it
has spent of a processor by then, ``bare_start_s`` the same for an interpreter that does
nothing. The machine has other things to do; a node has not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gateway.demo.processes import free_port
from qis_edge.keys import read_key
from tests.bench import report
from tests.links.test_mqtt_mosquitto import Authority, documented
from tests.loop.site import Site, made_and_held
from tests.mosquitto import running

RATE, PACE = 60, 0.4
#: Seconds that an hour takes where the start is measured: whatever it finds, a window is over
#: soon, and what is measured is not the wait for its end.
QUICK = 0.05
#: Outcomes in custody until it is looked at.
HELD = 48
PATIENCE = 120.0
LINKS = {
    "mqtt": ("mqtt",),
    "plain": ("mqtt",),
    "radio": ("meshtastic",),
    "both": ("mqtt", "meshtastic"),
}
#: Starts of which the best counts.
STARTS = 12


def memory(pid: int) -> dict[str, float]:
    """What the kernel says of a process, MiB."""
    said = Path(f"/proc/{pid}/status").read_text() + Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {
        key: int(match[1]) / 1024
        for key, name in (("rss", "VmRSS"), ("pss", "Pss"), ("peak", "VmHWM"))
        if (match := re.search(rf"^{name}:\s+(\d+) kB", said, re.MULTILINE))
    }
    return {key: round(value, 1) for key, value in found.items()}


class Field(Site):
    """A gateway and a node with some links.

    :param authority: of the broker's certificate and of theirs; ``None``: without TLS.
    """

    def __init__(
        self,
        folder: Path,
        links: tuple[str, ...],
        broker: str,
        authority: Authority | None,
        pace: float,
    ) -> None:
        super().__init__(folder, broker, pace=pace)
        self.links = links
        self.authority = authority

    def _config(self, name: str, text: str, *, clock: bool = True) -> Path:
        mqtt = f'[links.mqtt]\nurl = "{self.broker}"\n'
        assert mqtt in text
        radio = self.folder / "radios" / f"radio{int(name == 'node')}"
        found = {
            "mqtt": mqtt + self._certificate(name),
            "meshtastic": f'[links.meshtastic]\nradio = "{radio}"\nhop_limit = 0\nrate = {RATE}\n',
        }
        links = "".join(found[one] for one in self.links)
        return super()._config(name, text.replace(mqtt, links), clock=clock)

    def _certificate(self, name: str) -> str:
        if self.authority is None:
            return ""

        user = "gateway"  # as docs/mosquitto.acl has it
        if name == "node":
            user = read_key(self.state(name) / "node.key").kid.hex()
        cert, key = self.authority.issue(user)
        return f'ca = "{self.authority.ca}"\ncert = "{cert}"\nkey = "{key}"\n'

    def begin(self, name: str, *command: str) -> None:
        """Start something else that ends with the rest."""
        (self.folder / name).mkdir()
        with (self.folder / name / "log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    async def measure(self) -> dict[str, float]:
        """Let them join and send, and look."""
        if self.authority is None:
            self.begin("broker", "gateway.broker", "--port", self.broker.rpartition(":")[2])
        radios = ("--radios", "2", "--links", str(self.folder / "radios"), "--rate", str(RATE))
        if "meshtastic" in self.links:
            self.begin("radios", "qis_edge", "radio-sim", "--preset", "LONG_FAST", *radios)
        gateway, node = self.gateway_config("base"), self.node_config("node")
        self.spawn("base", gateway)
        process = self.spawn("node", node)
        kid = read_key(self.state("node") / "node.key").kid
        outbox = self.state("node") / "outbox.db"
        await self.wait("starting", outbox.exists, PATIENCE)
        await self.approve("base", kid)

        def held() -> int:
            return made_and_held(self.state("node"))[1]

        await self.wait("sending", lambda: held() >= HELD, PATIENCE)
        return {**memory(process.pid), "outcomes": held()}

    def starts(self) -> dict[str, float]:
        """How soon its first outcome is durable, of a node that ran before."""
        config = self.node_config("node")
        best = {"start_s": 1e9, "start_cpu_s": 1e9}
        for number in range(STARTS + 1):
            time.sleep(1.0)  # so that there are readings of hours that are over
            seconds, spent = self._start(config)
            if number:  # the first time there were no stores
                best["start_s"] = min(best["start_s"], seconds)
                best["start_cpu_s"] = min(best["start_cpu_s"], spent)
        return {key: round(value, 3) for key, value in best.items()}

    def _start(self, config: Path) -> tuple[float, float]:
        outbox = self.state("node") / "outbox.db"
        before = made(outbox)
        with (self.folder / "node" / "log").open("ab") as log:
            began = time.monotonic()
            process = subprocess.Popen(
                [*COMMAND, "run", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            while made(outbox) <= before:
                if process.poll() is not None or time.monotonic() > began + PATIENCE:
                    raise SystemExit(f"it makes no outcome:\n{self.log('node')}")
                time.sleep(0.002)
            seconds = time.monotonic() - began
            return seconds, processor(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)


#: As installed, beside the interpreter.
_SCRIPT = Path(sys.executable).parent / "qis-edge"
COMMAND = [str(_SCRIPT)] if _SCRIPT.exists() else [sys.executable, "-m", "qis_edge"]


def made(outbox: Path) -> int:
    """Outcomes that were ever made, as another process sees it; 0 before there is a store."""
    if not outbox.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{outbox}?mode=ro", uri=True)) as db:
        try:
            return int(db.execute("SELECT made FROM state").fetchone()[0])
        except (sqlite3.OperationalError, TypeError):  # it is being made
            return 0


def processor(pid: int) -> float:
    """Seconds that a process has spent of a processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def field(links: tuple[str, ...], *, tls: bool, pace: float = PACE) -> Iterator[Field]:
    """With its broker, for a while."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as ending:
        folder, authority = Path(name), None
        broker = f"mqtt://127.0.0.1:{free_port()}"
        if tls:
            (folder / "certs").mkdir()
            authority = Authority(folder / "certs")
            mosquitto = ending.enter_context(running(documented(folder / "mosquitto", authority)))
            broker = f"mqtts://localhost:{mosquitto.port}"
        made = Field(folder, links, broker, authority, pace)
        ending.callback(made.end_processes)
        yield made


def bare() -> dict[str, float]:
    """Of an interpreter."""
    command = [sys.executable, "-c", "print(flush=True), input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        found = memory(process.pid)
        process.stdin.write(b"\n")
        process.stdin.close()
    return found


def bare_start() -> float:
    """Seconds from the start to the end of an interpreter that does nothing; the best."""
    best = 1e9
    for _ in range(STARTS):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", ""], check=True)
        best = min(best, time.monotonic() - began)
    return round(best, 3)


def main() -> None:
    report.precedence()
    figures: dict[str, object] = {}
    with field(("mqtt",), tls=True, pace=QUICK) as one:
        figures |= one.starts()
    figures["bare_start_s"] = bare_start()
    for name, links in LINKS.items():
        with field(links, tls=name != "plain" and "mqtt" in links) as one:
            figures[name] = asyncio.run(one.measure())
    report.write(
        "node",
        {**figures, "python": bare()},
        limits={
            "start_s": 0.5,
            "mqtt.rss": 38,
            "radio.rss": 52,
            "both.rss": 52,
        },
    )


if __name__ == "__main__":
    main()
