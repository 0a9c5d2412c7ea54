"""How much memory a node takes: its process, over MQTT, over a radio, and with both.

``qis-edge run`` with the weather template, a replayed sensor and an hour that takes 0.4 s,
beside a gateway and, in processes of their own, a broker and emulated radios on ptys
(LONG_FAST, sixty times as fast as real ones). It joins, sends two days' outcomes and hears
receipts, and is then looked at: ``rss`` is all that is resident, ``pss`` counts what it shares
with others in part, ``peak`` is the most that was ever resident. MiB. ``python`` is a bare
interpreter.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from gateway.demo.processes import free_port
from qis_edge.keys import read_key
from tests.bench import report
from tests.loop.site import Site, made_and_held

RATE, PACE = 60, 0.4
#: Outcomes in custody until it is looked at.
HELD = 48
PATIENCE = 120.0
LINKS = {"mqtt": ("mqtt",), "radio": ("meshtastic",), "both": ("mqtt", "meshtastic")}


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
    """A gateway and a node with some links."""

    def __init__(self, folder: Path, links: tuple[str, ...]) -> None:
        super().__init__(folder, f"mqtt://127.0.0.1:{free_port()}", pace=PACE)
        self.links = links

    def _config(self, name: str, text: str, *, clock: bool = True) -> Path:
        mqtt = f'[links.mqtt]\nurl = "{self.broker}"\n'
        assert mqtt in text
        radio = self.folder / "radios" / f"radio{int(name == 'node')}"
        found = {
            "mqtt": mqtt,
            "meshtastic": f'[links.meshtastic]\nradio = "{radio}"\nhop_limit = 0\nrate = {RATE}\n',
        }
        links = "".join(found[one] for one in self.links)
        return super()._config(name, text.replace(mqtt, links), clock=clock)

    def begin(self, name: str, *command: str) -> None:
        """Start something else that ends with the rest."""
        (self.folder / name).mkdir()
        with (self.folder / name / "log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    async def measure(self) -> dict[str, float]:
        """Let them join and send, and look."""
        port = self.broker.rpartition(":")[2]
        self.begin("broker", "gateway.broker", "--port", port)
        radios = ("--radios", "2", "--links", str(self.folder / "radios"), "--rate", str(RATE))
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


async def measure(links: tuple[str, ...]) -> dict[str, float]:
    """Of a node with these links."""
    with tempfile.TemporaryDirectory() as folder:
        field = Field(Path(folder), links)
        try:
            return await field.measure()
        finally:
            field.end_processes()


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


def main() -> None:
    figures = {name: asyncio.run(measure(links)) for name, links in LINKS.items()}
    report.write(
        "node-memory",
        {"python": bare(), **figures},
        limits={"mqtt.rss": 40, "radio.rss": 52, "both.rss": 52},
    )


if __name__ == "__main__":
    main()
