"""The import budget: what a node loads, and what merely looking at the package loads."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import qis_edge

# All that a node may load from outside the standard library, and what those load in turn.
NODE_LIBRARIES = {"cbor2", "_cbor2", "nacl", "_sodium", "_cffi_backend", "paho", "serial"}
# What is for those who keep, send, wait or are asked, not for who packs and unpacks.
MACHINERY = {"argparse", "asyncio", "logging", "paho", "serial", "sqlite3", "ssl", "subprocess"}

LOAD = """
import importlib, json, sys
from pathlib import Path
installed = lambda module: "site-packages" in Path(getattr(module, "__file__", None) or "").parts
seen, new = set(sys.modules), {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    fresh, seen = set(sys.modules) - seen, set(sys.modules)
    new[name] = [[other.partition(".")[0], installed(sys.modules[other])] for other in fresh]
print(json.dumps(new))
"""


def load(*modules: str) -> dict[tuple[str, str], bool]:
    """Import the modules, one after the other, in a new interpreter.

    (module, top-level name that it was the first to load) → from outside the standard library
    and this project?
    """
    command = [sys.executable, "-c", LOAD, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[tuple[str, str], bool] = {}
    for module, names in json.loads(done.stdout).items():
        for name, installed in names:  # modules made at run time have no file: one that has, tells
            found[module, name] = found.get((module, name), False) or installed
    return found


def names(loaded: dict[tuple[str, str], bool]) -> set[str]:
    return {name for _, name in loaded}


def strangers(loaded: dict[tuple[str, str], bool], allowed: set[str]) -> list[tuple[str, str]]:
    """(module, what it loaded though it must not)."""
    inside = {"gateway", "devices", "tests"}
    return [
        (module, name)
        for (module, name), installed in loaded.items()
        if name in inside or (installed and name not in allowed)
    ]


def modules_of_the_node() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages(qis_edge.__path__, "qis_edge.")]
    others = ("qis_edge.testing", "qis_edge.__main__")  # for tests; runs when it is imported
    return [name for name in found if not name.startswith(others)]


def test_no_module_of_the_node_needs_what_a_node_does_not_install() -> None:
    modules = modules_of_the_node()
    assert {"qis_edge.core.packet", "qis_edge.node.runtime", "qis_edge.cli"} <= set(modules)
    assert strangers(load(*modules), NODE_LIBRARIES) == []


def test_the_front_door_loads_no_machinery() -> None:
    loaded = load("qis_edge")
    assert names(loaded) & MACHINERY == set()
    assert strangers(loaded, NODE_LIBRARIES) == []


def test_the_core_loads_no_machinery() -> None:
    core = [name for name in modules_of_the_node() if name.startswith("qis_edge.core")]
    assert names(load(*core)) & MACHINERY == set()


def test_the_gateways_command_answers_without_its_extras() -> None:
    assert names(load("gateway.cli")) & {"numpy", "amqtt", "devices"} == set()


def test_an_import_over_the_budget_is_named() -> None:
    found = strangers(load("qis_edge", "hypothesis", "gateway"), NODE_LIBRARIES)
    assert {("hypothesis", "hypothesis"), ("gateway", "gateway")} <= set(found)
