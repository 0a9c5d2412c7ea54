"""What the README says can be done, is done; what it says is said, is said."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mosquitto import free_port

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "README.md").read_text()
PROGRAMS = Path(sys.executable).parent


def section(title: str) -> str:
    """The text under a heading, up to the next of its level or above."""
    level = len(title) - len(title.lstrip("#"))
    rest = PAGE.split(f"\n{title}\n", 1)[1]
    return re.split(rf"\n#{{1,{level}}} ", rest)[0]


def commands(text: str) -> list[str]:
    """The lines of its shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


class Terminal:
    """Types commands; the daemons among them go on in the background."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "HOME": str(folder),
        }

    def type(self, line: str) -> str:
        """Run one line; gives what it prints."""
        line, redirected, file = line.partition(" > ")
        words = shlex.split(line)
        if words[:2] == ["qis-gateway", "init"]:
            words += ["--listen", f"127.0.0.1:{self.port}"]  # the usual port may be taken
        if (words[1] == "run" and "--test" not in words) or "--answer" in words:
            self.start(words)
            return ""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        if redirected:
            (self.folder / file).write_text(done.stdout)
        return done.stdout

    def start(self, words: list[str]) -> None:
        """A daemon."""
        with (self.folder / f"{words[0]}.log").open("wb") as log:
            self.daemons.append(
                subprocess.Popen(
                    words,
                    cwd=self.folder,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def end(self) -> list[int]:
        """Stop the daemons; gives their exit codes."""
        for daemon in self.daemons:
            daemon.terminate()
        return [daemon.wait(60) for daemon in self.daemons]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path)
    yield opened
    for daemon in opened.daemons:
        with contextlib.suppress(ProcessLookupError):
            daemon.kill()
        daemon.wait()


def test_a_stranger_can_follow_it_to_a_node_and_a_gateway(terminal: Terminal) -> None:
    for line in commands(section("### A gateway")):
        terminal.type(line)
    node = commands(section("### A node"))
    for line in node[:-1]:
        said = terminal.type(line)
    assert "packet" in said
    config = terminal.folder / "node" / "config.toml"
    text = config.read_text()
    before = '#window = "1h"'
    assert before in text
    config.write_text(
        text.replace(before, 'window = "1s"').replace('#interval = "1min"', 'interval = "1s"')
    )
    terminal.type(node[-1])
    joining = commands(section("### Joining"))
    terminal.type(joining[0])
    approve_when_it_asks(terminal, joining[1])
    assert "enrolled" in terminal.type(joining[2])
    status, queue, nodes, query = commands(section("### Looking"))
    deadline = time.monotonic() + 30
    while "porch" not in terminal.type(query):
        assert time.monotonic() < deadline, terminal.type(status)
        time.sleep(0.5)
    assert "enrolled" in terminal.type(status)
    assert "porch" in terminal.type(nodes)
    assert terminal.end() == [0, 0]
    for line in (status, queue, nodes, query):  # works while they are stopped
        assert terminal.type(line)


#: How many times as fast as real ones the radios of the test run.
RATE = 20


def test_a_stranger_can_go_from_two_radios_to_packets(terminal: Terminal) -> None:
    page = section("### Over LoRa")
    (sim,) = re.findall(r"`(qis-edge radio-sim [^`]*)`", page)
    terminal.start([*shlex.split(sim), "--rate", str(RATE)])
    lines = commands(page)
    radios = [terminal.folder / "radios" / f"radio{number}" for number in (0, 1)]
    wait_until(lambda: all(radio.exists() for radio in radios))
    for line in lines[:3]:
        terminal.type(line)
    assert (terminal.folder / "radio.psk").stat().st_mode & 0o077 == 0
    terminal.type(lines[3])
    assert "answered" in terminal.type(lines[4])
    answering = terminal.daemons.pop()  # the radio is the gateway's now
    answering.terminate()
    answering.wait(60)
    for line in lines[5:]:
        if " run " in line:
            configure_for_a_rehearsal(terminal.folder / line.split()[-1])
        terminal.type(line)
    joining = commands(section("### Joining"))
    terminal.type(joining[0])
    approve_when_it_asks(terminal, joining[1])
    assert "enrolled" in terminal.type(joining[2])
    query = commands(section("### Looking"))[-1]
    wait_until(lambda: "porch" in terminal.type(query))
    status = commands(section("### Looking"))[0]
    assert "airtime" in terminal.type(status)
    assert terminal.end() == [0, 0, 0]


def configure_for_a_rehearsal(config: Path) -> None:
    """Windows of seconds, no broker, and the emulated radios' pace."""
    text = config.read_text()
    changes = [("#rate = 1", f"rate = {RATE}")]
    if "gateway" in config.name:
        changes.append(("#embedded = true", "embedded = false"))
    else:
        changes.append(('#window = "1h"', 'window = "5s"'))
        changes.append(('#interval = "1min"', 'interval = "1s"'))
        changes.append(('#normal = "30min"', 'normal = "0s"'))
    for before, after in changes:
        assert before in text
        text = text.replace(before, after, 1)
    config.write_text(re.sub(r"^\[links\.mqtt\]", "#[links.mqtt]", text, flags=re.MULTILINE))


def wait_until(true: Callable[[], object], patience: float = 90.0) -> None:
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def approve_when_it_asks(terminal: Terminal, line: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            terminal.type(line)
        except AssertionError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        else:
            return


def test_its_python_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1)[1].strip() == "{'temperature': 3.9}"


def test_the_messages_that_it_explains_are_said() -> None:
    quoted = re.findall(r"^\| `([^`]+)` \|", section("## Troubleshooting"), re.MULTILINE)
    assert len(quoted) >= 8
    sources = "\n".join(
        path.read_text() for name in ("qis_edge", "gateway") for path in (ROOT / name).rglob("*.py")
    )
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)
    assert [text for text in quoted if text not in joined] == []


def test_what_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_it_shows_what_the_demonstration_prints() -> None:
    from gateway.demo.scenario import FULL

    shown = section("## What one sees")
    assert f"{FULL.hours // 24} days at three airports" in shown
    for text in (
        "lost ",
        "duplicates ",
        "airtime per outcome",
        "error of the peers' estimate",
        "bytes per outcome",
    ):
        assert text in shown
