"""What both command lines have in common: help, exit codes, errors in words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest

import gateway.cli
import qis_edge.cli
from qis_edge import __version__
from qis_edge.cli.program import full_names
from qis_edge.core.errors import QisError
from tests.cli.kit import ROOT, Console, Site, command


@pytest.mark.parametrize("program", ["qis-edge", "qis-gateway"])
def test_version_and_help(console: Console, program: str) -> None:
    assert console(program, "--version") == 0
    assert console.out == f"{program} {__version__}\n"
    assert console(program, "--help") == 0
    assert "verbs" in console.out
    assert console(program) == 2
    assert console(program, "dance") == 2
    assert console(program, "status", "--loudly") == 2


def test_a_group_of_verbs(console: Console) -> None:
    assert console("qis-edge", "radio", "--help") == 0
    assert {"configure", "list", "ping"} <= set(console.out.split())
    assert console("qis-edge", "radio") == 2
    assert console("qis-edge", "radio", "dance") == 2


@pytest.mark.parametrize(
    ("program", "module"), [("qis-edge", qis_edge.cli), ("qis-gateway", gateway.cli)]
)
def test_every_verb_and_option_is_documented(console: Console, program: str, module: Any) -> None:
    page = (ROOT / "docs/commands.md").read_text()
    chapters = dict(re.findall(r"^## `([^`]+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    for verb in full_names(module.VERBS):
        chapter = chapters.pop(f"{program} {verb}")
        assert console(program, *verb.split(), "--help") == 0
        for option in set(re.findall(r"--[a-z-]+", console.out)) - {"--help", "--config"}:
            assert option in chapter, (verb, option)
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
