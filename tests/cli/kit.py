"""What the tests of the command lines share: a console, a site, and what is in its stores."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import gateway.cli
import qis_edge.cli
from gateway.fleet import Fleet
from gateway.routing import Context, Entry, open_engine
from gateway.spool import Intake, Spool
from qis_edge.control import ControlServer
from qis_edge.core.domain import Domain
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Kind, Outcome
from qis_edge.core.packet import Packet, pack
from qis_edge.keys import FleetFile, read_key
from qis_edge.store.outbox import Outbox

ROOT = Path(__file__).parents[2]
NOW = 1_795_000_000
WEATHER = Domain.load("weather")
HERE = WEATHER.situation(climate="cfa", terrain="coast", season="autumn")
FIELDS = ("--field", "climate=cfa", "--field", "terrain=coast")


class Console:
    """Calls a command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, program: str, *arguments: object) -> int:
        main = gateway.cli.main if program == "qis-gateway" else qis_edge.cli.main
        try:
            code = main([str(one) for one in arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        self.out, self.err = self._capsys.readouterr()
        assert "Traceback" not in self.err
        return code

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Site:
    """A gateway and a node, set up with their commands."""

    def __init__(self, console: Console, folder: Path) -> None:
        self.console = console
        self.folder = folder
        self.gateway_config = folder / "g" / "config.toml"
        self.node_config = folder / "n" / "config.toml"
        self.gateway_state = folder / "g" / "state"
        self.node_state = folder / "n" / "state"

    def gateway(self, verb: str, *arguments: object) -> int:
        return self.console(
            "qis-gateway", *verb.split(), "--config", self.gateway_config, *arguments
        )

    def node(self, verb: str, *arguments: object) -> int:
        return self.console("qis-edge", *verb.split(), "--config", self.node_config, *arguments)

    def set_up(self) -> None:
        assert self.gateway("init", "--name", "base", "--site", "north") == 0
        fleet = self.gateway_state / "fleet.toml"
        assert self.node("init", "--fleet", fleet, "--name", "field-1", *FIELDS) == 0

    def fleet(self) -> Fleet:
        root = FleetFile.read(self.gateway_state / "fleet.toml").root
        return Fleet(self.gateway_state / "fleet.db", root)

    def join(self) -> None:
        """With files."""
        request, credential = self.folder / "request", self.folder / "credential"
        assert self.node("enroll", "--request", request) == 0
        assert self.gateway("approve", "--request", request, "--out", credential) == 0
        assert self.node("enroll", "--credential", credential) == 0


@contextlib.contextmanager
def daemon(state: Path, **handlers: Callable[[Mapping[str, Any]], Any]) -> Iterator[None]:
    """A control socket as a running daemon has it."""
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    def coroutine(handler: Callable[[Mapping[str, Any]], Any]) -> Any:
        async def answer(args: Mapping[str, Any]) -> Any:
            return handler(args)

        return answer

    async def serve() -> None:
        async with ControlServer(state, {n: coroutine(one) for n, one in handlers.items()}):
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert started.wait(60)
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def command(module: str, *arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
        **more,
    )


def outcome(time: int, temperature: float = 3.5, **more: Any) -> Outcome:
    return Outcome(time=time, results={"temperature": temperature}, samples=60, **more)


def filled(ready: Site) -> None:
    """An outbox with a packet under way and an outcome that waits."""
    identity = read_key(ready.node_state / "node.key")
    outbox = Outbox.open(ready.node_state / "outbox.db", identity.public, budget=4_000_000)
    with contextlib.closing(outbox):
        outbox.append(outcome(NOW, summary="\x1b[31mred"), HERE.fingerprint)
        assert outbox.pack(identity, domain=WEATHER)
        outbox.append(outcome(NOW + 3600, kind=Kind.PARTIAL), HERE.fingerprint)


def packed(signer: Identity, sequence: int, summary: str) -> Packet:
    return pack(
        [outcome(NOW + sequence * 3600, 3.5 + sequence, summary=summary)],
        identity=signer,
        fingerprint=HERE.fingerprint,
        store=b"\x00\x00\x00\x01",
        sequence=sequence,
        domain=WEATHER,
    )


def deposited(ready: Site) -> Identity:
    """Two packets of the node in the spool and the routing layer, and one of a stranger."""
    ready.join()
    identity = read_key(ready.node_state / "node.key")
    packets = [
        packed(signer, n, "evil\x1b]0;title\x07 \u202etxt")
        for n, signer in enumerate([identity, identity, Identity.generate()])
    ]
    with contextlib.closing(Spool(ready.gateway_state / "spool.db")) as spool:
        spool.admit([Intake(packet, NOW) for packet in packets[:2]])

    async def deposit() -> None:
        engine = open_engine("sqlite:routing.db", Context(folder=ready.gateway_state))
        await engine.open()
        await engine.deposit([Entry.of(packet) for packet in packets])
        await engine.close()

    asyncio.run(deposit())
    return identity


#: Keys of ``--json`` whose own keys are data: names and reasons.
BY_NAME = {"refused", "results", "values", "fields", "strangers"}


def keys_of(value: Any, name: str = "") -> Iterator[str]:
    """Every key of what ``--json`` shows, dotted."""
    if isinstance(value, dict) and name.rpartition(".")[2] not in BY_NAME:
        for key, inner in value.items():
            yield f"{name}.{key}".lstrip(".")
            yield from keys_of(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner, name)


def check_documented(program: str, verb: str, shown: Any) -> None:
    """Every key is named where the page describes the verb."""
    page = (ROOT / "docs/commands.md").read_text()
    (chapter,) = re.findall(
        rf"^## `{program} {verb}`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL
    )
    if "as `qis-edge check`" in chapter or "as in `" in chapter:
        chapter = page
    for key in keys_of(shown):
        assert f"`{key.rpartition('.')[2]}`" in chapter, (verb, key)


#: What running daemons answer; ``test_running`` holds it against real ones.
RUNNING_NODE: dict[str, Any] = {
    "name": "field-1", "kid": "aa", "site": "north", "now": NOW, "clock_trusted": False,
    "clock_source": "system", "clock_steps": 0,
    "disk": "outbox.db: the disk is full",
    "started": NOW, "enrolled": True, "expires": NOW + 86400, "address": "bb",
    "links": [{"name": "mqtt", "url": "mqtt://h", "up": False, "connects": 0, "frames_in": 1,
               "frames_out": 1, "bytes_in": 1, "bytes_out": 1, "dropped_in": 0,
               "last_error": "refused \x1b[2J", "used": True}],
    "gateways": [{"kid": "cc", "epoch": "dd", "greeted": False}],
    "outbox": {"store": "ee", "made": 3, "waiting": 1, "packed": 2, "packets": 2,
               "unreceipted": 1, "held": 1, "refused": 0, "evicted_receipted": 6,
               "evicted_expired": 2, "evicted_unsent": 4, "unreadable": 1, "conflicts": 2,
               "bytes": 5000, "budget": 64000000},
    "custody": {"sent": 1, "resent": 0, "receipted": 1, "refused": 0, "in_flight": 0},
    "peers": {"packets": 5, "senders": 2, "heard": 5, "refused": {}},
    "estimates": {"made": 7, "hook_failures": 2, "doubtful": ["temperature"]},
    "sensors": [{"name": "roof", "driver": "system", "open": True, "reads": 3, "failures": 1,
                 "error": None}],
}  # fmt: skip


RUNNING_GATEWAY: dict[str, Any] = {
    "name": "base", "kid": "aa", "site": "north", "now": NOW, "started": NOW,
    "permitted_until": None, "disk": "spool.db: the disk is full", "clock_steps": 0,
    "links": [{"name": "mqtt", "url": "mqtt://h", "up": True, "connects": 1, "frames_in": 1,
               "frames_out": 1, "bytes_in": 1, "bytes_out": 1, "dropped_in": 0,
               "last_error": None, "extra": {"protocol": 5.0}}],
    "intake": {"new": 5, "known": 1, "stale": 0, "later": 0, "refused": {"signature": 2}},
    "downlink": {"answered": 1, "sent": 1, "published": 1, "dropped": 0},
    "spool": {"epoch": "aa", "packets": 5, "bytes": 700, "budget": 1000000},
    "engines": [{"url": "sqlite:routing.db", "ok": False, "packets": 5, "bytes": 4096,
                 "deposited": 5, "repeated": 0, "behind": 3, "detail": "disk full"}],
}  # fmt: skip
