"""The scripts behind ``make``: what they choose, and what they say where they may not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
NO_VENV = """case $2 in *ensurepip*) exit 1;; *'"%d.%d"'*) echo 3.11;; esac"""
TOO_OLD = "exit 1"
FINE = "exit 0"


class Machine:
    """A folder of commands of our own in front of the machine's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.has("id", "echo 1000")
        self.has("sudo", "exit 1")

    def has(self, command: str, body: str) -> None:
        path = self.folder / command
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run(self, script: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", TOOLS / script, *arguments],
            env={**os.environ, "PYTHON": "", "PATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.strip(), done.stderr.strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def pythons(machine: Machine, **bodies: str) -> None:
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        machine.has(name, bodies.get(name.replace(".", "_"), TOO_OLD))


def test_the_first_python_that_will_do_is_chosen(machine: Machine) -> None:
    pythons(machine, python3_12=FINE, python3_11=FINE)
    assert machine.run("python.sh") == (0, "python3.12", "")


def test_one_that_makes_environments_comes_first(machine: Machine) -> None:
    pythons(machine, python3=NO_VENV, python3_11=FINE)
    assert machine.run("python.sh") == (0, "python3.11", "")
    pythons(machine, python3=NO_VENV)
    assert machine.run("python.sh") == (0, "python3", "")


def test_a_machine_without_a_python_is_told_what_to_do(machine: Machine) -> None:
    pythons(machine)
    status, chosen, said = machine.run("python.sh")
    assert (status, chosen) == (1, "")
    assert "3.11 or newer" in said
    assert "make PYTHON=" in said


def test_the_users_python_is_taken_or_refused(machine: Machine) -> None:
    machine.has("mine", FINE)
    assert machine.run("python.sh", PYTHON="mine") == (0, "mine", "")
    machine.has("mine", TOO_OLD)
    status, _, said = machine.run("python.sh", PYTHON="mine")
    assert status == 1
    assert "mine is not a Python 3.11" in said


def test_who_may_not_install_is_told_the_command(machine: Machine) -> None:
    pythons(machine, python3=NO_VENV)
    status, _, said = machine.run("deps.sh", "venv")
    assert status == 1
    assert "python3.11-venv" in said
    assert said.endswith("sudo make deps")


def test_nothing_is_installed_where_nothing_is_missing(machine: Machine) -> None:
    pythons(machine, python3=FINE)
    for program in ("mosquitto", "redis-server", "nats-server", "strace"):
        machine.has(program, FINE)
    machine.has("apt-get", "echo called >&2; exit 1")
    assert machine.run("deps.sh") == (0, "", "")
