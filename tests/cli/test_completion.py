"""Completion, asked of the shells themselves where they are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import gateway.cli
import qis_edge.cli
from qis_edge.cli.completion import SHELLS, Node, nodes, script
from qis_edge.cli.program import full_names
from tests.cli.kit import Console

PROGRAMS = {"qis-edge": qis_edge.cli, "qis-gateway": gateway.cli}


def tree(program: str) -> list[Node]:
    return list(nodes(PROGRAMS[program].parser()))


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_verb_and_option_is_known(program: str) -> None:
    known = {" ".join(node.words): node for node in tree(program)}
    for verb in full_names(PROGRAMS[program].VERBS):
        assert "--help" in {one.name for one in known[verb].options}
    for shell in SHELLS:
        text = script(shell, program, tree(program))
        for node in tree(program):
            for name, _ in node.verbs:
                assert name in text
            for option in node.options:
                assert option.name.removeprefix("--") in text


def run(shell: str, code: str, folder: Path) -> list[str]:
    """What a shell says to a script of ours, in a folder of its own."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    plain = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run(
        [found, *plain, "-c", code],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "TERM": "dumb"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


def completed(shell: str, line: str, folder: Path) -> set[str]:
    """What a shell offers at the end of a command line."""
    program = line.split(maxsplit=1)[0]
    place = folder / "script"
    place.write_text(script(shell, program, tree(program)))
    function = "_" + program.replace("-", "_")
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    if shell == "fish":
        said = run(shell, f"source {place}; complete -C '{line}'", folder)
        return {one.split("\t")[0] for one in said}
    if shell == "bash":
        code = (
            f"source {place}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
            f'{function}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        )
        return set(filter(None, run(shell, code, folder)))
    code = (  # what zsh's own functions would be told, where no terminal is
        "compdef() { :; }; _files() { print -l -- *(N); }; compadd() { print -l -- $@; }; "
        "_describe() { local name=${@[-1]}; print -l -- ${(P)name%%:*}; }; "
        f"source {place}; words=({quoted}); CURRENT={len(words)}; {function}"
    )
    return {one for one in run(shell, code, folder) if one and one.startswith(words[-1])}


@pytest.mark.parametrize("shell", SHELLS)
def test_what_is_offered(shell: str, tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").touch()
    assert completed(shell, "qis-edge ra", tmp_path) == {"radio", "radio-sim"}
    assert completed(shell, "qis-edge radio p", tmp_path) == {"ping"}
    assert completed(shell, "qis-edge radio ping --an", tmp_path) == {"--answer"}
    assert completed(shell, "qis-edge service install --", tmp_path) >= {"--now", "--root"}
    assert completed(shell, "qis-edge completion z", tmp_path) == {"zsh"}
    assert completed(shell, "qis-gateway do", tmp_path) == {"doctor"}
    assert "--json" in completed(shell, "qis-gateway doctor --", tmp_path)
    assert completed(shell, "qis-edge init --name check --fl", tmp_path) == {"--fleet"}
    assert "fleet.toml" in completed(shell, "qis-edge init --fleet fl", tmp_path)
    assert "fleet.toml" not in completed(shell, "qis-edge init --domain fl", tmp_path)
    assert "fleet.toml" in completed(shell, "qis-edge radio configure fl", tmp_path)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_sound(console: Console, shell: str, tmp_path: Path) -> None:
    for program in PROGRAMS:
        assert console(program, "completion", shell) == 0
        assert console.out == script(shell, program, tree(program))
        (tmp_path / program).write_text(console.out)
        run(shell, f"{shell} -n {tmp_path / program}", tmp_path)
    assert console("qis-edge", "completion", "tcsh") == 2
