"""Secrets stay where they were put: not in what is printed, logged, stored, or shown by ``ps``.

Every secret that there is, is planted; the real commands and daemons run, in good order and in
bad, as talkative as they can be; then everything that they wrote is searched.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.mosquitto import Mosquitto, free_port, require_mosquitto, running
from tests.security.authority import Authority

PROGRAMS = Path(sys.executable).parent
#: What is readable by its owner alone, by the end of the name.
GOOD, BAD, ANY = "good", "bad", "any"
OURS_ALONE = (".key", ".psk", "-key.pem", ".password", ".tokens", ".token", "control.sock")


class Place:
    """A folder, what was planted in it, and everything that was said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secrets: dict[str, str] = {}
        self.meant: set[Path] = set()  # files that have a secret by intention
        self.said: dict[str, str] = {}
        self.seen: dict[str, str] = {}  # of /proc
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
        }

    def plant(self, name: str, path: Path | None = None, form: str = "{}\n") -> str:
        """A secret of a name, in a file if one is named."""
        secret = f"canary{name}{os.urandom(12).hex()}"
        self.secrets[name] = secret
        if path is not None:
            path.write_text(form.format(secret))
            path.chmod(0o600)
            self.meant.add(path)
        return secret

    def note_key(self, path: Path) -> None:
        """The secret in a key file: our own, or PEM."""
        lines = [one for one in path.read_text().splitlines() if one and not one.startswith("#")]
        secret = lines[1] if lines[0].startswith("-----") else lines[-1]
        assert len(secret) >= 40
        self.secrets[f"{path.parent.name}/{path.name}"] = secret
        self.meant.add(path)

    def type(self, *words: object, code: str = GOOD, **environment: str) -> str:
        """Run a command; gives what it says.

        :param code: whether it ends well.
        """
        line = " ".join(map(str, words))
        done = subprocess.run(
            [str(word) for word in words],
            cwd=self.folder,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        said = done.stdout + done.stderr
        self.said[f"{len(self.said)}: {line}"] = said
        assert code == ANY or (code == GOOD) == (done.returncode == 0), f"{line}\n{said}"
        assert "Traceback" not in said, said
        return said

    def start(self, *words: object) -> None:
        """A daemon, which logs to a file."""
        with (self.folder / f"{len(self.daemons)}.log").open("wb") as log:
            self.daemons.append(
                subprocess.Popen(
                    [str(word) for word in words],
                    cwd=self.folder,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def log(self, number: int) -> str:
        return (self.folder / f"{number}.log").read_text(errors="replace")

    def look(self) -> None:
        """What others see of the daemons, and of what they started."""
        for daemon in self.daemons:
            for pid in (daemon.pid, *_children(daemon.pid)):
                for what in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        found = Path(f"/proc/{pid}/{what}").read_bytes()
                        self.seen[f"{what} of {pid}"] = found.replace(b"\0", b" ").decode()

    def end(self) -> None:
        for daemon in self.daemons:
            daemon.send_signal(signal.SIGTERM)
        assert [daemon.wait(60) for daemon in self.daemons] == [0] * len(self.daemons)

    def leaks(self) -> list[str]:
        """Where a secret is and should not be."""
        forms = {form: name for name, secret in self.secrets.items() for form in _forms(secret)}
        pattern = re.compile(b"|".join(re.escape(form) for form in forms))

        def found_in(data: bytes) -> set[str]:
            return {forms[match[0]] for match in pattern.finditer(data)}

        texts = [*self.said.items(), *self.seen.items()]
        found = [f"{place}: {name}" for place, text in texts for name in found_in(text.encode())]
        for path in self.folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and path not in self.meant:
                found += [f"{path}: {name}" for name in found_in(path.read_bytes())]
        return found


def _forms(secret: str) -> Iterator[bytes]:
    """How a secret may look where it should not be."""
    raw = secret.encode()
    yield raw
    yield raw.hex().encode()
    yield base64.b64encode(raw).rstrip(b"=")[:-2]
    yield base64.urlsafe_b64encode(raw).rstrip(b"=")[:-2]
    if quote(secret, safe="") != secret:
        yield quote(secret, safe="").encode()
    with contextlib.suppress(ValueError):  # a key in hex: as it is in memory, and in base64
        key = bytes.fromhex(secret)
        yield key
        yield repr(key).encode()[2:-1]
        yield base64.b64encode(key).rstrip(b"=")[:-2]


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(one) for one in found]
    return []


def until(true: Callable[[], object], said: Callable[[], str], patience: float = 90) -> None:
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, said()
        time.sleep(0.2)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for daemon in made.daemons:
        with contextlib.suppress(ProcessLookupError):
            daemon.kill()
        daemon.wait()


def broker_with_everything(
    place: Place, authority: Authority, passwords: dict[str, str]
) -> Mosquitto:
    """Mosquitto that wants a certificate and a password."""
    users = place.folder / "users"
    users.write_text("".join(f"{name}:{word}\n" for name, word in passwords.items()))
    subprocess.run(["mosquitto_passwd", "-U", str(users)], check=True, capture_output=True)
    return Mosquitto(
        place.folder / "mosquitto",
        [
            f"cafile {authority.ca}",
            f"certfile {authority.folder / 'broker.pem'}",
            f"keyfile {authority.folder / 'broker-key.pem'}",
            "require_certificate true",
            "allow_anonymous false",
            f"password_file {users}",
        ],
    )


def configure(path: Path, port: int, who: str, login: tuple[Path, Path], more: str) -> None:
    """The broker's address, everything that it wants, and a talkative log."""
    text = path.read_text()
    cut = re.split(r"\n\[links\.mqtt\]\n", text)[0]
    folder = path.parent
    path.write_text(
        f"{cut}\n[links.mqtt]\n"
        f'url = "mqtts://localhost:{port}"\nusername = "{who}"\n'
        f'password_file = "{folder}/mqtt.password"\nca = "{folder.parent}/authority/qis-ca.pem"\n'
        f'cert = "{login[0]}"\nkey = "{login[1]}"\n\n[log]\nlevel = "debug"\n{more}'
    )


def test_no_secret_leaves_the_place_where_it_was_put(place: Place) -> None:
    require_mosquitto()
    folder = place.folder
    authority = Authority(folder / "authority")
    node, gateway = folder / "node" / "config.toml", folder / "gateway" / "config.toml"
    for one in (node, gateway):
        one.parent.mkdir()
    words = {
        who: place.plant(f"mqtt{who}", folder / who / "mqtt.password")
        for who in ("node", "gateway")
    }
    with running(broker_with_everything(place, authority, words)) as broker:
        hub = _set_up(place, authority, broker.port)
        _live(place, hub)
        _err(place, hub)
        _radio(place)
        place.look()
        place.end()
    for path in (*folder.rglob("*.key"), *folder.rglob("*-key.pem")):
        assert path in place.meant
    assert len(place.secrets) >= 12
    assert place.leaks() == []
    loose = [
        str(path)
        for path in folder.rglob("*")
        if path.name.endswith(OURS_ALONE) and path.lstat().st_mode & 0o077
    ]
    assert loose == []
    for state in (node.parent / "state", gateway.parent / "state"):
        assert state.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("shown", ["{}", "x{}y", "https://u:{}@h"])
def test_a_leak_would_be_seen(place: Place, shown: str) -> None:
    secret = place.plant("one", place.folder / "one.password")
    assert place.leaks() == []
    place.type("echo", shown.format(secret))
    assert len(place.leaks()) == 1
    place.said.clear()
    database = place.folder / "state.db"
    for form in (secret, secret.encode().hex(), base64.b64encode(secret.encode()).decode()):
        database.write_bytes(b"\0" * 100 + shown.format(form).encode() + b"\0")
        assert place.leaks() == [f"{database}: one"]


def test_what_ps_shows_is_looked_at(place: Place) -> None:
    shown, hidden = place.plant("shown"), place.plant("hidden")
    place.environment["SECRET"] = hidden
    place.start(sys.executable, "-c", "import time; time.sleep(1000)", shown)
    place.look()
    assert {leak.split()[0] for leak in place.leaks()} == {"cmdline", "environ"}


def test_no_command_takes_a_secret_that_ps_would_show(place: Place) -> None:
    for words in (
        ("hub", "redis://u:canary@h", "--tokens", "f"),
        ("hub", "https://h?token=canary", "--tokens", "f"),
        ("copy", "sqlite:a.db", "redis://u:canary@h"),
        ("copy", "qdrant://h?api_key=canary", "sqlite:a.db"),
    ):
        said = place.type("qis-gateway", *words, code=BAD)
        assert "others can read the command line" in said
        assert "canary" not in said
    said = place.type(
        "qis-gateway", "init", "--broker", "mqtts://u:canary@h", "--config", "c.toml", code=BAD
    )
    assert "has a password in it" in said
    assert "canary" not in said


def _set_up(place: Place, authority: Authority, port: int) -> int:
    """Keys, configurations, a hub; gives the hub's port."""
    folder = place.folder
    node, gateway = folder / "node" / "config.toml", folder / "gateway" / "config.toml"
    place.type(
        "qis-gateway",
        "init",
        "--name",
        "base",
        "--site",
        "farm",
        "--config",
        gateway,
        "--broker",
        f"mqtts://localhost:{port}",
    )
    place.type(
        "qis-edge",
        "init",
        "--fleet",
        folder / "gateway/state/fleet.toml",
        "--name",
        "porch",
        "--field",
        "climate=cfb",
        "--field",
        "terrain=plain",
        "--config",
        node,
    )
    for name in ("node/state/node.key", "gateway/state/gateway.key", "gateway/state/root.key"):
        place.note_key(folder / name)
    logins = {"node": authority.node(b"\0" * 8), "gateway": authority.gateway()}
    for path in (*(key for _, key in logins.values()), *authority.folder.glob("*-key.pem")):
        place.note_key(path)
    hub = free_port()
    token = place.plant("hub")
    (folder / "hub.tokens").write_text(f"base {token}\n")
    (folder / "hub.token").write_text(f"{token}\n")
    for name in ("hub.tokens", "hub.token"):
        (folder / name).chmod(0o600)
        place.meant.add(folder / name)
    place.start(
        "qis-gateway",
        "hub",
        "sqlite:hub.db",
        "--tokens",
        "hub.tokens",
        "--listen",
        f"127.0.0.1:{hub}",
    )
    dead = [
        f"redis://user:{place.plant('redis')}@127.0.0.1:{free_port()}",
        f"nats://user:{place.plant('nats')}@127.0.0.1:{free_port()}",
        f"http://127.0.0.1:{free_port()}?token={place.plant('inline')}",
    ]
    engines = ["sqlite:routing.db", f"http://127.0.0.1:{hub}?token_file={folder}/hub.token", *dead]
    text = node.read_text()
    for before, after in (
        ('#window = "1h"', 'window = "1s"'),
        ('#interval = "1min"', 'interval = "1s"'),
    ):
        assert before in text
        text = text.replace(before, after)
    node.write_text(text)
    configure(node, port, "node", logins["node"], "")
    configure(
        gateway, port, "gateway", logins["gateway"], f"[routing]\nengines = {json.dumps(engines)}\n"
    )
    place.meant.add(gateway)  # it has passwords within URLs, since somebody wrote them there
    return hub


def _live(place: Place, hub: int) -> None:
    """Everything that is done with a site that is well."""
    folder = place.folder
    edge = ("--config", folder / "node/config.toml")
    base = ("--config", folder / "gateway/config.toml")
    place.type("qis-gateway", "check", *base)
    place.start("qis-gateway", "run", *base)
    place.type("qis-edge", "run", "--test", *edge)
    place.start("qis-edge", "run", *edge)
    for words in (("permit", "600"), ("nodes",)):
        place.type("qis-gateway", *words, *base)

    def approved() -> bool:
        return "is a node of the fleet" in place.type(
            "qis-gateway", "approve", "porch", *base, code=ANY
        )

    until(lambda: _tries(approved), lambda: place.log(1) + place.log(2))
    place.type("qis-edge", "enroll", "--wait", "90", *edge)
    query = (
        "qis-gateway",
        "query",
        "--domain",
        "weather",
        "--field",
        "climate=cfb",
        "--field",
        "terrain=plain",
        *base,
    )
    until(lambda: "porch" in place.type(*query), lambda: place.log(1) + place.log(2))
    place.type("qis-edge", "check", *edge)
    for verb in (("status",), ("queue",), ("config", "show"), ("doctor",)):
        for form in ((), ("--json",)):
            place.type("qis-edge", *verb, *edge, *form, code=ANY)
            if verb[0] != "queue":
                place.type("qis-gateway", *verb, *base, *form, code=ANY)
    place.type(
        "qis-gateway",
        "copy",
        "sqlite:routing.db",
        f"http://127.0.0.1:{hub}?token_file={folder}/hub.token",
        *base,
        code=ANY,
    )
    place.look()


def _err(place: Place, hub: int) -> None:
    """Everything that is done wrong."""
    folder = place.folder
    bad = folder / "bad"
    bad.mkdir()
    shutil.copytree(folder / "node" / "state", bad / "state", ignore=lambda *_: ["control.sock"])
    key = bad / "state" / "node.key"
    place.meant.add(key)
    good = (folder / "node" / "config.toml").read_text()
    config = ("--config", bad / "config.toml")
    spoiled = {
        "password in the URL": good.replace("mqtts://", f"mqtts://me:{place.plant('url')}@"),
        "a secret in the place of a path": good.replace(
            'password_file = "', f'password = "{place.plant("misplaced")}"\npassword_file = "'
        ),
        "a secret in the place of a file": re.sub(
            r'password_file = ".*"', 'password_file = "/nonexistent"', good
        ),
        "not TOML": good + f"\nkey = {place.plant('toml')}\n",
    }
    for text in spoiled.values():
        (bad / "config.toml").write_text(text)
        place.meant.add(bad / "config.toml")
        for verb in (("check",), ("run",), ("config", "show")):
            place.type("qis-edge", *verb, *config, code=ANY)
    (bad / "config.toml").write_text(good.replace(str(folder / "node"), str(bad)))
    shutil.copy(folder / "node" / "mqtt.password", bad)
    place.meant.add(bad / "mqtt.password")
    key.chmod(0o644)
    place.type("qis-edge", "check", *config, code=BAD)
    key.chmod(0o600)
    key.write_text(key.read_text()[:-3] + "zz\n")  # mistyped
    place.type("qis-edge", "check", *config, code=BAD)
    place.type("qis-edge", "run", *config, code=BAD)
    wrong = place.plant("wrongtoken", folder / "wrong.token")
    assert wrong
    base = ("--config", folder / "gateway/config.toml")
    place.type(
        "qis-gateway",
        "copy",
        "sqlite:routing.db",
        f"http://127.0.0.1:{hub}?token_file={folder}/wrong.token",
        *base,
        code=BAD,
    )
    place.type(
        "qis-gateway",
        "check",
        *base,
        code=BAD,
        QIS_GATEWAY_ROUTING__ENGINES=f'["redis://u:{place.plant("environ")}@h"]',
    )


def _radio(place: Place) -> None:
    """The channel's key, from its drawing to a radio that is set up with it."""
    folder = place.folder
    place.start("qis-edge", "radio-sim", "--radios", "1", "--links", "radios", "--rate", "20")
    until((folder / "radios" / "radio0").exists, lambda: place.log(3))
    (folder / "radio.toml").write_text(place.type("qis-edge", "radio", "configure", "--sample"))
    place.type("qis-edge", "radio", "configure", "radio.toml", "--radio", "radios/radio0")
    place.note_key(folder / "radio.psk")
    place.type("qis-edge", "radio", "list", code=ANY)
    (folder / "radio.psk").chmod(0o644)
    place.type("qis-edge", "radio", "configure", "radio.toml", "--radio", "radios/radio0", code=ANY)
    (folder / "radio.psk").chmod(0o600)


def _tries(what: Callable[[], bool]) -> bool:
    with contextlib.suppress(AssertionError):
        return what()
    return False
