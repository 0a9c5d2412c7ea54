"""Both command lines: what they say, their exit codes, and that nothing is a traceback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import gateway.cli
import qis_edge.cli
from gateway.fleet import Fleet
from gateway.routing import Context, Entry, open_engine
from gateway.spool import Intake, Spool
from qis_edge import __version__
from qis_edge.control import ControlServer
from qis_edge.core.credential import Credential, Enrolment, RevocationList
from qis_edge.core.domain import Domain
from qis_edge.core.errors import QisError, Reason
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Kind, Outcome
from qis_edge.core.packet import pack
from qis_edge.core.receipt import Receipt
from qis_edge.keys import FleetFile, read_key, write_key
from qis_edge.store.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[1]
NOW = 1_795_000_000
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
        return self.console("qis-gateway", verb, "--config", self.gateway_config, *arguments)

    def node(self, verb: str, *arguments: object) -> int:
        return self.console("qis-edge", verb, "--config", self.node_config, *arguments)

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


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Console:
    for name in ("QIS_EDGE_CONFIG", "QIS_GATEWAY_CONFIG", "QIS_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return Console(capsys)


@pytest.fixture
def site(console: Console, tmp_path: Path) -> Site:
    return Site(console, tmp_path)


@pytest.fixture
def ready(site: Site) -> Site:
    site.set_up()
    return site


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
        assert started.wait(10)
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


# --- the command line itself ---------------------------------------------------------------


@pytest.mark.parametrize("program", ["qis-edge", "qis-gateway"])
def test_version_and_help(console: Console, program: str) -> None:
    assert console(program, "--version") == 0
    assert console.out == f"{program} {__version__}\n"
    assert console(program, "--help") == 0
    assert "verbs" in console.out
    assert console(program) == 2
    assert console(program, "dance") == 2
    assert console(program, "status", "--loudly") == 2


@pytest.mark.parametrize(
    ("program", "module"), [("qis-edge", qis_edge.cli), ("qis-gateway", gateway.cli)]
)
def test_every_verb_and_option_is_documented(console: Console, program: str, module: Any) -> None:
    page = (ROOT / "docs/commands.md").read_text()
    chapters = dict(re.findall(r"^## `([^`]+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    for verb in module.VERBS:
        chapter = chapters.pop(f"{program} {verb.name}")
        console(program, verb.name, "--help")
        for option in set(re.findall(r"--[a-z]+", console.out)) - {"--help", "--config"}:
            assert option in chapter, (verb.name, option)
    assert not [title for title in chapters if title.startswith(program + " ")]


@pytest.mark.parametrize("module", ["qis_edge", "gateway"])
def test_as_a_process(module: str) -> None:
    done = command(module, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    done = command(module, "status", "--config", "/nonexistent/c.toml")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == (
        "error: /nonexistent/c.toml: file: there is no such file"
    )
    assert done.stderr.splitlines()[1].startswith("fix: ")


def test_starting_is_light() -> None:
    heavy = {"asyncio", "sqlite3", "paho", "amqtt", "numpy", "ssl", "tomllib", "socket"}
    code = (
        "import sys, qis_edge; before = set(sys.modules)\n"
        "import qis_edge.cli, gateway.cli; qis_edge.cli.parser(), gateway.cli.parser()\n"
        "print(*set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not {name.partition(".")[0] for name in done.stdout.split()} & heavy


def test_a_reader_that_has_had_enough(ready: Site) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    arguments = ["nodes", "--json", "--config", str(ready.gateway_config)]
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=ROOT,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (KeyboardInterrupt(), 130, ""),
        (QisError("bad \x1b[31m", hint="do\nthis"), 1, "error: bad \\x1b[31m\nfix: do\\x0athis\n"),
        (OSError(28, "No space left on device", "/x"), 1, "error: /x: No space left on device\n"),
        (RuntimeError("oops"), 1, "error: internal error: RuntimeError: oops\nfix: "),
    ],
)
def test_whatever_goes_wrong_is_said_in_words(
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    code: int,
    words: str,
) -> None:
    def fail(_: object) -> int:
        raise raised

    monkeypatch.setattr("qis_edge.cli.looking.status", fail)
    assert console("qis-edge", "status") == code
    assert console.err.startswith(words)
    if isinstance(raised, RuntimeError):
        monkeypatch.setenv("QIS_DEBUG", "1")
        with pytest.raises(RuntimeError):
            console("qis-edge", "status")


def test_the_configuration_of_the_environment(ready: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIS_GATEWAY_CONFIG", str(ready.gateway_config))
    assert ready.console("qis-gateway", "nodes") == 0


def test_a_bad_configuration_is_told_whole(ready: Site) -> None:
    text = ready.node_config.read_text() + "\n[peers]\nbitz = 1\n[outboxx]\n"
    ready.node_config.write_text(text.replace("[peers]\n\n", ""))
    ready.node_config.write_text("[node]\nnam = 1\n[situation]\n[x]\n")
    for verb in ("status", "queue", "run", "enroll", "check"):
        assert ready.node(verb) == 2
        lines = ready.console.err.splitlines()
        assert f"error: {ready.node_config}:2: node.nam: unknown key" in "\n".join(lines)
        assert sum(line.startswith("error: ") for line in lines) >= 4


# --- init ----------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_of_a_gateway(site: Site) -> None:
    assert site.gateway("init", "--name", "base", "--site", "north") == 0
    state = site.gateway_state
    identity, root = read_key(state / "gateway.key"), read_key(state / "root.key")
    assert mode(state) == 0o700
    assert mode(state / "root.key") == mode(state / "gateway.key") == 0o600
    assert FleetFile.read(state / "fleet.toml") == FleetFile(
        root.public, "north", None, "mqtt://127.0.0.1:1883"
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
    assert "<Domain hills/1>" in site.console.out


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


def replaying(ready: Site) -> None:
    """The node replays one reading of 2013."""
    (ready.node_config.parent / "r.csv").write_text(
        "time,temp\n2013-01-01T00:00:00Z,1\n2013-01-01T05:00:00Z,3.86\n"
    )
    text = ready.node_config.read_text()
    text = text.replace(
        'driver = "system"', 'driver = "replay"\nfile = "r.csv"\ncolumns.t = "temp"'
    )
    ready.node_config.write_text(text.replace("cpu_temperature =", "t ="))


def test_run_test_shows_the_packet_and_keeps_nothing(ready: Site) -> None:
    replaying(ready)
    before = set(ready.node_state.iterdir())
    assert ready.node("run", "--test") == 0
    assert "temperature  3.9" in ready.console.out or "3.86" in ready.console.out
    assert re.search(r"packet, \d+ bytes; nothing was kept or sent\n  d284", ready.console.out)
    assert ready.node("run", "--test", "--json") == 0
    shown = ready.console.json
    assert shown["outcome"]["time"] == 1357016400
    assert shown["outcome"]["kind"] == "resolved"
    assert shown["fields"] == {"climate": "cfa", "terrain": "coast", "season": "winter"}
    assert shown["bytes"] == len(shown["packet"]) // 2 <= 512
    assert set(ready.node_state.iterdir()) == before


def test_run_test_without_a_key(ready: Site) -> None:
    replaying(ready)
    (ready.node_state / "node.key").unlink()
    assert ready.node("run", "--test") == 0
    assert "signed with a key that is thrown away" in ready.console.err


def test_run_test_without_readings(ready: Site) -> None:
    replaying(ready)
    (ready.node_config.parent / "r.csv").write_text("time,temp\n")
    assert ready.node("run", "--test") == 1
    assert "no sensor gave a reading" in ready.console.err
    assert ready.node("run", "--json") == 2


def test_run_hands_over_to_the_runtime(ready: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def role(config: object) -> int:
        return {"NodeConfig": 0, "GatewayConfig": 1}[type(config).__name__]

    monkeypatch.setattr("qis_edge.node.runtime.run_node", role)
    monkeypatch.setattr("gateway.station.run_gateway", role)
    assert ready.node("run") == 0
    assert ready.gateway("run") == 1


# --- joining -------------------------------------------------------------------------------


def test_joining_with_files(ready: Site) -> None:
    assert ready.node("enroll") == 0
    assert "not enrolled: field-1" in ready.console.out
    ready.join()
    assert ready.console.out.startswith("enrolled as field-1")
    assert ready.node("status", "--json") == 0
    assert ready.console.json["enrolled"] is True
    assert ready.node("check") == 0
    assert ready.gateway("nodes", "--json") == 0
    (node,) = ready.console.json["nodes"]
    assert node["name"] == "field-1"
    assert node["kid"] == read_key(ready.node_state / "node.key").kid.hex()


def test_a_credential_of_others_is_not_installed(ready: Site) -> None:
    request, credential = ready.folder / "r", ready.folder / "c"
    stranger = Enrolment.make(Identity.generate(), "stranger")
    request.write_text(stranger.raw.hex())
    assert ready.gateway("approve", "--request", request, "--out", credential) == 0
    assert ready.node("enroll", "--credential", credential) == 1
    assert "cannot be used" in ready.console.err
    other = Site(ready.console, ready.folder / "other")
    other.set_up()
    assert other.node("enroll", "--request", request) == 0
    assert other.gateway("approve", "--request", request, "--out", credential) == 0
    assert ready.node("enroll", "--credential", credential) == 1
    assert ready.node("enroll", "--credential", ready.folder / "none") == 1
    credential.write_text("# nothing\n")
    assert ready.node("enroll", "--credential", credential) == 1
    assert "is no such file" in ready.console.err


def test_enroll_asks_the_daemon_and_waits(ready: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qis_edge.cli.joining.LOOK", 0.01)
    assert ready.node("enroll", "--wait", "1") == 3
    assert "fix: start it with: qis-edge run --config" in ready.console.err
    asked = []

    def enroll(_: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(1)
        done = len(asked) > 3
        return {"kid": "aa", "enrolled": done, "name": "f", "expires": None, "link": True}

    with daemon(ready.node_state, enroll=enroll):
        assert ready.node("enroll") == 0
        assert "qis-gateway permit 300 && qis-gateway approve aa" in ready.console.out
        assert ready.node("enroll", "--wait", "0") == 1
        assert ready.node("enroll", "--wait", "30") == 0
        assert len(asked) == 4


def test_a_running_daemon_installs_a_credential_itself(ready: Site) -> None:
    request, credential = ready.folder / "r", ready.folder / "c"
    ready.node("enroll", "--request", request)
    ready.gateway("approve", "--request", request, "--out", credential)
    given: list[Mapping[str, Any]] = []
    standing = {"kid": "aa", "enrolled": True, "name": "f", "expires": None, "link": True}
    with daemon(ready.node_state, credential=given.append, enroll=lambda _: standing):
        assert ready.node("enroll", "--credential", credential) == 0
    kids = [Credential.parse(bytes.fromhex(one["raw"])).kid for one in given]
    assert kids == [
        read_key(ready.gateway_state / "gateway.key").kid,
        read_key(ready.node_state / "node.key").kid,
    ]
    assert not (ready.node_state / "inbox.db").exists()


def test_permit_and_approve(ready: Site) -> None:
    kid = read_key(ready.node_state / "node.key").kid.hex()
    assert ready.gateway("approve", "field-1") == 2
    assert ready.gateway("permit", "300") == 0
    assert "the gateway is not running; start it with: qis-gateway run" in ready.console.err
    enrolment = Enrolment.make(read_key(ready.node_state / "node.key"), "field-1")
    with contextlib.closing(ready.fleet()) as fleet:
        import time

        assert fleet.permitted(time.time())
        assert fleet.enrol(enrolment, time.time())
    assert ready.gateway("nodes") == 0
    assert "ask to join" in ready.console.out
    assert ready.gateway("nodes", "--json") == 0
    assert ready.console.json["waiting"][0]["kid"] == kid
    assert ready.gateway("approve", kid[:6], "--name", "vineyard") == 0
    assert f"vineyard ({kid}) is a node of the fleet until" in ready.console.out
    assert ready.gateway("permit", "0") == 0
    with contextlib.closing(ready.fleet()) as fleet:
        assert not fleet.permitted(time.time())
    assert ready.gateway("permit", "-1") == 2
    assert ready.gateway("permit", "nan") == 2
    assert ready.gateway("permit", "soon") == 2


def test_approve_takes_no_name_twice(ready: Site) -> None:
    ready.join()
    request = ready.folder / "r"
    request.write_text(Enrolment.make(Identity.generate(), "field-1").raw.hex())
    assert ready.gateway("approve", "--request", request) == 2
    assert "is the name of the node" in ready.console.err
    assert ready.gateway("approve", "--request", request, "--name", "field-2") == 0
    assert ready.gateway("approve") == 2
    assert ready.gateway("approve", "field-1", "--request", request) == 2
    request.write_text("d284")
    assert ready.gateway("approve", "--request", request) == 1
    assert "is no enrolment" in ready.console.err


def test_revoke(ready: Site) -> None:
    ready.join()
    kid = read_key(ready.node_state / "node.key").kid
    revocations = ready.folder / "list"
    assert ready.gateway("revoke", "nobody") == 2
    assert ready.gateway("revoke") == 2
    (ready.gateway_state / "root.key").rename(ready.folder / "root.key")
    assert ready.gateway("revoke", "field-1") == 2
    assert "signed by the fleet's root key, which is not here" in ready.console.err
    root = ready.folder / "root.key"
    assert ready.gateway("revoke", "field-1", "--root", root, "--out", revocations) == 0
    assert kid.hex() in ready.console.out
    made = RevocationList.parse(bytes.fromhex(revocations.read_text().splitlines()[-1]))
    assert (made.number, set(made.kids)) == (1, {kid})
    assert ready.gateway("nodes") == 0
    assert "revoked" in ready.console.out
    request = ready.folder / "request"
    assert ready.gateway("approve", "--request", request) == 1
    assert "was revoked" in ready.console.err

    other = Site(ready.console, ready.folder / "other")
    assert other.gateway("init", "--root", root) == 0
    assert other.gateway("revoke", "--list", revocations) == 0
    with contextlib.closing(other.fleet()) as fleet:
        assert fleet.revocation_number == 1
    assert other.gateway("revoke", "--list", revocations) == 0
    assert "is no news here" in other.console.err
    stranger = Site(ready.console, ready.folder / "stranger")
    assert stranger.gateway("init") == 0
    assert stranger.gateway("revoke", "--list", revocations) == 1


# --- looking -------------------------------------------------------------------------------


def outcome(time: int, temperature: float = 3.5, **more: Any) -> Outcome:
    return Outcome(time=time, results={"temperature": temperature}, samples=60, **more)


def filled(ready: Site) -> None:
    """An outbox with a packet under way and an outcome that waits."""
    identity = read_key(ready.node_state / "node.key")
    here = Domain.load("weather").situation(climate="cfa", terrain="coast", season="autumn")
    outbox = Outbox.open(ready.node_state / "outbox.db", identity.public, budget=4_000_000)
    with contextlib.closing(outbox):
        outbox.append(outcome(NOW, summary="\x1b[31mred"), here.fingerprint)
        assert outbox.pack(identity, domain=Domain.load("weather"))
        outbox.append(outcome(NOW + 3600, kind=Kind.PARTIAL), here.fingerprint)


def test_status_of_a_stopped_node(ready: Site) -> None:
    assert ready.node("status") == 0
    assert "running   no" in ready.console.out
    assert "the daemon is not running" in ready.console.err
    assert f"start it with: qis-edge run --config {ready.node_config}" in ready.console.err
    filled(ready)
    assert ready.node("status", "--json") == 0
    shown = ready.console.json
    assert ready.console.err == ""
    assert shown["running"] is False
    assert shown["outbox"]["made"] == 2
    assert shown["outbox"]["waiting"] == 1
    assert shown["outbox"]["unreceipted"] == 1
    assert shown["outbox"]["budget"] == 64_000_000


def test_status_of_a_node_that_was_never_set_up(ready: Site) -> None:
    (ready.node_state / "node.key").unlink()
    assert ready.node("status") == 1
    assert "there is no key file" in ready.console.err


RUNNING_NODE: dict[str, Any] = {
    "name": "field-1", "kid": "aa", "site": "north", "now": NOW, "clock_trusted": False,
    "started": NOW, "enrolled": True, "expires": NOW + 86400, "address": "bb",
    "link": {"name": "mqtt", "url": "mqtt://h", "up": False, "frames_in": 1, "frames_out": 1,
             "bytes_in": 1, "bytes_out": 1, "last_error": "refused \x1b[2J"},
    "gateways": [{"kid": "cc", "epoch": "dd", "greeted": False}],
    "outbox": {"store": "ee", "made": 3, "waiting": 1, "packed": 2, "packets": 2,
               "unreceipted": 1, "held": 1, "refused": 0, "evicted_unsent": 4, "bytes": 5000,
               "budget": 64000000},
    "custody": {"sent": 1, "resent": 0, "receipted": 1, "refused": 0, "in_flight": 0},
    "peers": {"packets": 5, "senders": 2, "heard": 5, "refused": {}},
    "estimates": 7,
    "sensors": [{"name": "roof", "driver": "system", "open": True, "reads": 3, "failures": 1,
                 "error": None}],
}  # fmt: skip


def test_status_of_a_running_node(ready: Site) -> None:
    with daemon(ready.node_state, status=lambda _: RUNNING_NODE):
        assert ready.node("status", "--json") == 0
        assert ready.console.json == {"running": True, **RUNNING_NODE}
        assert ready.node("status") == 0
    out = ready.console.out
    assert "enrolled   yes, for 1 d\n" in out
    assert "(not yet trusted)" in out
    assert r"refused \x1b[2J" in out
    assert "4 outcomes for want of room" in out
    assert "\x1b" not in out


def test_status_of_a_daemon_that_fails(ready: Site) -> None:
    with daemon(ready.node_state):
        assert ready.node("status") == 1
    assert "does not know 'status'" in ready.console.err


def test_queue(ready: Site) -> None:
    assert ready.node("queue") == 0
    assert "nothing was ever queued" in ready.console.out
    assert ready.node("queue", "--json") == 0
    assert ready.console.json["outbox"] is None
    filled(ready)
    assert ready.node("queue") == 0
    assert "1 outcome waiting" in ready.console.out
    assert "without a receipt" in ready.console.out
    assert "temperature 3.5" in ready.console.out
    assert "\x1b" not in ready.console.out
    assert "nothing is sent" in ready.console.err
    assert ready.node("queue", "--json", "--limit", "5") == 0
    shown = ready.console.json
    assert shown["waiting"][0]["kind"] == "partial"
    assert shown["waiting"][0]["results"] == {"temperature": 3.5}
    assert shown["unreceipted"][0]["sequence"] == 0
    assert shown["unreceipted"][0]["holders"] == 0


def test_queue_shows_what_was_refused_and_what_happened(ready: Site) -> None:
    (ready.node_state / "outbox.db").write_bytes(b"not a database" * 1000)
    filled(ready)
    identity = read_key(ready.node_state / "node.key")
    outbox = Outbox.open(ready.node_state / "outbox.db", identity.public, budget=4_000_000)
    with contextlib.closing(outbox):
        (packet,) = outbox.unreceipted()
        said = Receipt(packet.store, refused=((Reason.BOUNDS, (packet.sequence,)),))
        outbox.receipt(b"gateway.", b"\1\2\3\4", said)
    assert ready.node("queue") == 0
    assert "put aside: not sent again by itself" in ready.console.out
    assert re.search(r"notice: \S+ \S+ \w+", ready.console.out)
    assert ready.node("queue", "--json") == 0
    (refused,) = ready.console.json["refused"]
    assert refused["reason"] == "bounds"
    assert refused["gateway"] == b"gateway.".hex()
    assert refused["sequence"] == packet.sequence
    assert ready.console.json["notices"][0]["text"]


def test_queue_beside_a_running_daemon(ready: Site) -> None:
    filled(ready)
    identity = read_key(ready.node_state / "node.key")
    outbox = Outbox.open(ready.node_state / "outbox.db", identity.public, budget=4_000_000)
    with contextlib.closing(outbox), daemon(ready.node_state):
        assert ready.node("queue", "--json") == 0
        assert ready.console.json["running"] is True


def test_a_damaged_store_is_said(ready: Site) -> None:
    (ready.node_state / "outbox.db").write_bytes(b"not a database" * 100)
    for verb in ("status", "queue"):
        assert ready.node(verb) == 1
        assert ready.console.err.startswith(("error:", "note:"))


def deposited(ready: Site) -> tuple[Identity, bytes]:
    """Two packets of the node in the spool and the routing layer, and one of a stranger."""
    ready.join()
    identity = read_key(ready.node_state / "node.key")
    weather = Domain.load("weather")
    here = weather.situation(climate="cfa", terrain="coast", season="autumn")
    packets = [
        pack(
            [outcome(NOW + n * 3600, 3.5 + n, summary="evil\x1b]0;title\x07 \u202etxt")],
            identity=signer,
            fingerprint=here.fingerprint,
            store=b"\x00\x00\x00\x01",
            sequence=n,
            domain=weather,
        )
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
    return identity, here.fingerprint


def test_status_of_a_stopped_gateway(ready: Site) -> None:
    assert ready.gateway("status", "--json") == 0
    assert ready.console.json == {**ready.console.json, "spool": None}
    deposited(ready)
    assert ready.gateway("status") == 0
    assert "running  no" in ready.console.out
    assert "2 packets" in ready.console.out
    assert "start it with: qis-gateway run --config" in ready.console.err
    assert ready.gateway("status", "--json") == 0
    assert ready.console.json["nodes"] == 1
    assert ready.console.json["spool"]["packets"] == 2


RUNNING_GATEWAY: dict[str, Any] = {
    "name": "base", "kid": "aa", "site": "north", "now": NOW, "started": NOW,
    "permitted_until": None,
    "link": {"name": "mqtt", "url": "mqtt://h", "up": True, "frames_in": 1, "frames_out": 1,
             "bytes_in": 1, "bytes_out": 1, "dropped_in": 0, "last_error": None},
    "intake": {"new": 5, "known": 1, "stale": 0, "later": 0, "refused": {"signature": 2}},
    "downlink": {"answered": 1, "sent": 1, "published": 1, "dropped": 0},
    "spool": {"epoch": "aa", "packets": 5, "bytes": 700, "budget": 1000000},
    "engines": [{"url": "sqlite:routing.db", "ok": False, "packets": 5, "bytes": 4096,
                 "deposited": 5, "repeated": 0, "behind": 3, "detail": "disk full"}],
}  # fmt: skip


def test_status_of_a_running_gateway(ready: Site) -> None:
    with daemon(ready.gateway_state, status=lambda _: RUNNING_GATEWAY):
        assert ready.gateway("status", "--json") == 0
        counted = {"running": True, "nodes": 0, "waiting": 0}
        assert ready.console.json == {**RUNNING_GATEWAY, **counted}
        assert ready.gateway("status") == 0
    assert "5 new, 1 known already, 2 refused" in ready.console.out
    assert "2 refused: signature" in ready.console.out
    assert "sqlite:routing.db: 3 behind; disk full" in ready.console.out


def test_nodes_of_a_gateway(ready: Site) -> None:
    assert ready.gateway("nodes") == 0
    assert "no nodes yet" in ready.console.out
    identity, _ = deposited(ready)
    with contextlib.closing(ready.fleet()) as fleet:
        fleet.accepted(identity.kid, NOW, 2, skew=1.5)
        fleet.refused(identity.kid, Reason.SIGNATURE)
    assert ready.gateway("nodes") == 0
    assert re.search(r"field-1 +[0-9a-f]{16} .* 2 +0 +1 +good for", ready.console.out)
    assert ready.gateway("nodes", "--json") == 0
    (node,) = ready.console.json["nodes"]
    assert node["refused"] == {"signature": 1}
    assert node["stores"] == [
        {"store": "00000001", "held": 2, "last": 1, "coming": 0, "given_up": 0}
    ]


def test_query(ready: Site) -> None:
    _, fingerprint = deposited(ready)
    situation = ("--domain", "weather", *FIELDS, "--field", "season=autumn")
    assert ready.gateway("query", *situation) == 0
    lines = ready.console.out.splitlines()
    assert len(lines) == 4
    assert "(not a node now)" in lines[1]
    assert "field-1" in lines[2]
    assert "temperature 4.5" in lines[2]
    assert r"evil\x1b]0;title\x07 \u202etxt" in lines[2]
    assert "\x1b" not in ready.console.out
    assert ready.gateway("query", "--fingerprint", fingerprint.hex(), "--json") == 0
    shown = ready.console.json
    assert shown["fingerprint"] == fingerprint.hex()
    assert [one["good"] for one in shown["packets"]] == [False, True, True]
    assert shown["packets"][1]["outcomes"][0]["results"] == {"1": 4.5}
    assert ready.gateway("query", *situation[:6], "--json", "--limit", "2") == 0
    assert len(ready.console.json["packets"]) == 2
    assert ready.console.json["bits"] < 256
    assert ready.gateway("query", "--fingerprint", "00" * 32) == 0
    assert "nothing is known" in ready.console.out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--fingerprint", "xyz"),
        ("--fingerprint", "00" * 32, "--domain", "weather"),
        ("--fingerprint", "00" * 32, "--bits", "300"),
        ("--fingerprint", "00" * 32, "--limit", "0"),
        ("--domain", "wether"),
        ("--domain", "weather", "--field", "climate"),
        ("--domain", "weather", "--field", "climate=mild"),
        ("--domain", "weather", "--field", "terrain=coast"),
        ("--domain", "weather", "--field", "sky=blue"),
    ],
)
def test_query_is_asked_wrongly(ready: Site, arguments: Sequence[str]) -> None:
    assert ready.gateway("query", *arguments) == 2
    assert ready.console.err.startswith("error: ")


# --- the documented form -------------------------------------------------------------------


def test_every_key_of_the_json_is_documented(ready: Site) -> None:
    page = (ROOT / "docs/commands.md").read_text()
    deposited(ready)
    filled(ready)
    by_name = {"refused", "results", "values", "fields", "strangers"}

    def keys(value: Any, name: str = "") -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                if name not in by_name:
                    yield key
                yield from keys(inner, key)
        elif isinstance(value, list):
            for inner in value:
                yield from keys(inner)

    def documented(program: str, verb: str, shown: Any) -> None:
        (chapter,) = re.findall(
            rf"^## `{program} {verb}`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL
        )
        if "as `qis-edge check`" in chapter or "as in `status`" in chapter:
            chapter = page
        for key in keys(shown):
            assert f"`{key}`" in chapter, (verb, key)

    for verb, extra in (("check", ()), ("status", ()), ("queue", ()), ("enroll", ())):
        assert ready.node(verb, "--json", *extra) == 0
        documented("qis-edge", verb, ready.console.json)
    assert ready.node("run", "--test", "--json") == 0
    documented("qis-edge", "run", ready.console.json)
    documented("qis-edge", "status", RUNNING_NODE)
    address = ("--fingerprint", deposited_address())
    for verb, more in (("check", ()), ("status", ()), ("nodes", ()), ("query", address)):
        assert ready.gateway(verb, "--json", *more) == 0
        documented("qis-gateway", verb, ready.console.json)
    documented("qis-gateway", "status", RUNNING_GATEWAY)


def deposited_address() -> str:
    weather = Domain.load("weather")
    return weather.situation(climate="cfa", terrain="coast", season="autumn").fingerprint.hex()


# --- for real ------------------------------------------------------------------------------


def test_a_daemon_for_real_is_asked_and_stopped(ready: Site) -> None:
    """A node whose broker is away: it runs, says so, keeps what it senses, and ends."""
    text = ready.node_config.read_text()
    text = text.replace('#window = "1h"', 'window = "1s"').replace(
        '#interval = "1min"', 'interval = "500ms"'
    )
    text = text.replace("cpu_temperature =", "load =")
    text = text.replace('#url = "mqtt://localhost:1883"', 'url = "mqtt://127.0.0.1:9"')
    ready.node_config.write_text(text)
    arguments = ["run", "--config", str(ready.node_config)]
    process = subprocess.Popen(
        [sys.executable, "-m", "qis_edge", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(600):
            assert process.poll() is None
            if ready.node("status", "--json") == 0 and ready.console.json["running"]:
                shown = ready.console.json
                if shown["outbox"]["made"] >= 2:
                    break
            threading.Event().wait(0.05)
        assert shown["link"]["up"] is False
        assert shown["sensors"][0]["failures"] == 0
        second = command("qis_edge", *arguments)
        assert second.returncode == 1
        assert "error: " in second.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert ready.node("status", "--json") == 0
    assert ready.console.json["running"] is False
    assert ready.console.json["outbox"]["made"] >= 2
