"""The built wheel in an empty environment, and the golden vectors on each cbor2 that we allow."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tomllib
import venv
import zipfile
from email.parser import Parser
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from qis_edge.store.schema import INBOX, OUTBOX
from tests.store.kit import ME

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

ENTRY_POINTS = """
import tomllib
from importlib.metadata import entry_points
for name in ("weather", "air_quality", "soil_moisture"):
    (template,) = entry_points(group="qis_edge.domains", name=name)
    assert tomllib.loads(template.load()())["name"] == name
assert [point.load() for point in entry_points(group="qis_edge.sensors")]
here = []
for point in entry_points(group="qis_edge.routing"):
    try:
        point.load()
    except ModuleNotFoundError as error:  # of its extra
        assert error.name.partition(".")[0] not in ("qis_edge", "gateway"), error
    else:
        here.append(point.name)
assert {"memory", "sqlite"} <= set(here), here
"""

PUBLIC_WAY_IN = """
import gateway, qis_edge
from qis_edge import Domain, Identity, Kind, Outcome, pack, unpack
me = Identity.generate()
outcome = Outcome(1_700_000_000, Kind.RESOLVED, 0.9, 60, {"t": 21.5})
packet = pack([outcome], identity=me, fingerprint=bytes(32), store=bytes(4), sequence=0)
assert list(unpack(packet.raw, me.public).outcomes) == [outcome]
print(qis_edge.__file__, gateway.__file__)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What the command printed; the test fails with all of it when the command did."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{printed}"
    return printed


def pip(*arguments: str | Path, cwd: Path) -> None:
    """Run pip; without an index and a cache there is nothing to test with, and it says so."""
    try:
        run(sys.executable, "-m", "pip", *arguments, cwd=cwd, PIP_USER="0")
    except AssertionError as failure:
        pytest.fail(f"pip found no package index, and not all in its cache.\n{failure}")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT),
        cwd=folder,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def node(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment with the wheel and no extras."""
    folder = tmp_path_factory.mktemp("a node")
    venv.create(folder / "venv")
    commands = folder / "venv" / "bin"
    pip("--python", commands / "python", "install", "-q", wheel, cwd=folder)
    return commands


def test_it_has_our_packages_and_nothing_else(files: dict[str, bytes]) -> None:
    tops = {name.partition("/")[0] for name in files}
    assert tops == {"qis_edge", "gateway", "devices", f"qis_edge-{PROJECT['version']}.dist-info"}
    kinds = {Path(name).suffix for name in files if ".dist-info/" not in name}
    assert kinds <= {".py", ".typed", ".toml", ".csv", ".gz", ".md", ".service", ".conf"}
    assert not [name for name in files if "test" in Path(name).parts]


@pytest.mark.parametrize(
    "name",
    [
        "qis_edge/py.typed",
        "gateway/py.typed",
        "devices/py.typed",
        "devices/domains/weather.toml",
        "devices/domains/air_quality.toml",
        "devices/domains/soil_moisture.toml",
        "gateway/testing/__init__.py",
        "qis_edge/testing/links.py",
        "qis_edge/service/units/qis-edge.service",
        "qis_edge/service/units/qis-gateway.service",
    ],
)
def test_what_others_need_ships(files: dict[str, bytes], name: str) -> None:
    assert name in files


def test_the_licence_is_stated_and_included(files: dict[str, bytes]) -> None:
    info = f"qis_edge-{PROJECT['version']}.dist-info"
    metadata = Parser().parsestr(files[f"{info}/METADATA"].decode())
    assert metadata["License-Expression"] == "GPL-3.0-or-later"
    assert b"GNU GENERAL PUBLIC LICENSE" in files[f"{info}/licenses/LICENSE"]


def test_the_environment_has_only_what_a_node_needs(node: Path) -> None:
    (packages,) = node.parent.glob("lib/python*/site-packages")
    found = {folder.name.partition("-")[0].lower() for folder in packages.glob("*.dist-info")}
    assert found == {"qis_edge", "cbor2", "paho_mqtt", "pynacl", "cffi", "pycparser", "pyserial"}


@pytest.mark.parametrize("command", ["qis-edge", "qis-gateway"])
def test_the_commands_answer(node: Path, tmp_path: Path, command: str) -> None:
    assert PROJECT["version"] in run(node / command, "--version", cwd=tmp_path)
    assert "run" in run(node / command, "--help", cwd=tmp_path)


def test_the_public_way_in_works_outside_the_checkout(node: Path, tmp_path: Path) -> None:
    printed = run(node / "python", "-I", "-c", PUBLIC_WAY_IN, cwd=tmp_path)
    assert str(ROOT) not in printed


def test_templates_drivers_and_engines_are_found(node: Path, tmp_path: Path) -> None:
    run(node / "python", "-I", "-c", ENTRY_POINTS, cwd=tmp_path)


# --- a machine's life: installed, set up, upgraded, removed ---------------------------------


def sound(place: Path) -> tuple[int, ...]:
    """The version of a database's schema, after SQLite has looked at all of it."""
    with contextlib.closing(sqlite3.connect(place)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        version: tuple[int, ...] = connection.execute("PRAGMA user_version").fetchone()
    return version


#: Opens a database that an earlier version wrote, with the installed package alone.
UPGRADE = """
import sys
from pathlib import Path
from qis_edge.core.identity import Identity
from qis_edge.store.inbox import Inbox
from qis_edge.store.outbox import Outbox
folder, seed = Path(sys.argv[1]), bytes.fromhex(sys.argv[2])
with Outbox.open(folder / "outbox.db", Identity.from_seed(seed).public) as outbox:
    stats = outbox.stats()
    assert stats.made and stats.open_packets, stats
inbox, news = Inbox.open(folder / "inbox.db")
assert inbox.stats().packets and not news, (inbox.stats(), news)
inbox.close()
"""


def test_an_upgrade_takes_over_what_an_earlier_version_kept(node: Path, tmp_path: Path) -> None:
    """Real files of the first schema, opened by the installed wheel; nothing is lost."""
    for kind in ("outbox", "inbox"):
        shutil.copy(ROOT / "tests/store/old" / f"{kind}-1.db", tmp_path / f"{kind}.db")
    run(node / "python", "-I", "-c", UPGRADE, tmp_path, ME.seed.hex(), cwd=tmp_path)
    assert sound(tmp_path / "outbox.db") == (OUTBOX.version,)
    assert sound(tmp_path / "inbox.db") == (INBOX.version,)
    assert not list(tmp_path.glob("*.damaged*"))


@pytest.fixture(scope="module")
def life(node: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet and a node, set up with the installed commands."""
    tmp_path = tmp_path_factory.mktemp("life")
    gateway = ("--config", tmp_path / "g" / "config.toml")
    run(node / "qis-gateway", "init", "--name", "base", *gateway, cwd=tmp_path)
    fleet = tmp_path / "g" / "state" / "fleet.toml"
    fields = ("--field", "climate=cfb", "--field", "terrain=plain")
    config = ("--config", tmp_path / "n" / "config.toml")
    arguments = ("--fleet", fleet, "--name", "porch", *fields, *config)
    run(node / "qis-edge", "init", *arguments, cwd=tmp_path)
    return tmp_path


def test_the_installed_commands_set_a_node_up(node: Path, life: Path) -> None:
    config = ("--config", life / "n" / "config.toml")
    assert "nothing was kept or sent" in run(node / "qis-edge", "run", "--test", *config, cwd=life)
    run(node / "qis-edge", "check", *config, cwd=life)
    shown = run(node / "qis-edge", "config", "show", *config, cwd=life)
    assert re.search(r"^node\.name +\"porch\"", shown, re.MULTILINE)
    script = run(node / "qis-edge", "completion", "bash", cwd=life)
    assert "complete -o filenames -F _qis_edge qis-edge" in script


@pytest.mark.parametrize("command", ["qis-edge", "qis-gateway"])
def test_the_service_comes_and_goes(node: Path, tmp_path: Path, command: str) -> None:
    """Into the root folder of an image, with the units of the wheel."""
    root = tmp_path / "root"
    program = ("--command", node / command)
    run(node / command, "service", "install", "--root", root, *program, cwd=tmp_path)
    unit = (root / "etc/systemd/system" / f"{command}.service").read_text()
    assert f"ExecStart={node / command} run" in unit.replace('"', "")
    assert "Type=notify" in unit
    run(node / command, "service", "remove", "--root", root, cwd=tmp_path)
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_removal_leaves_configuration_and_state_alone(wheel: Path, life: Path) -> None:
    """What pip takes away is the package: nothing of it was written anywhere else."""
    venv.create(life / "venv")
    python = life / "venv" / "bin" / "python"
    pip("--python", python, "install", "-q", "--no-deps", wheel, cwd=life)
    before = {path for path in life.rglob("*") if not path.is_relative_to(life / "venv")}
    pip("--python", python, "uninstall", "-q", "-y", "qis-edge", cwd=life)
    left = [path for path in (life / "venv").rglob("*") if "qis" in path.name]
    (packages,) = (life / "venv").glob("lib/python*/site-packages")
    left += [packages / name for name in ("gateway", "devices") if (packages / name).exists()]
    assert left == []
    assert {path for path in life.rglob("*") if not path.is_relative_to(life / "venv")} == before
    assert {path.name for path in (life / "n").rglob("*") if path.is_file()} == {
        "config.toml",
        "fleet.toml",
        "node.key",
    }


@pytest.mark.parametrize("end", ["oldest", "newest"])
def test_the_golden_vectors_on_each_cbor2(tmp_path: Path, end: str) -> None:
    (requirement,) = [line for line in PROJECT["dependencies"] if line.startswith("cbor2")]
    lowest = re.fullmatch(r"cbor2>=([\d.]+),<\d+", requirement)
    assert lowest is not None
    wanted = f"cbor2=={lowest[1]}" if end == "oldest" else requirement
    pip("install", "-q", "--no-deps", "--target", tmp_path, wanted, cwd=tmp_path)
    (info,) = tmp_path.glob("cbor2-*.dist-info")
    version = Distribution.at(info).version
    assert end == "newest" or version.startswith(lowest[1])

    used = "import cbor2; print(cbor2.__file__)"
    assert str(tmp_path) in run(sys.executable, "-c", used, cwd=ROOT, PYTHONPATH=str(tmp_path))
    pytest_ = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    tests = ("tests/test_vectors.py", "tests/core/test_cbor.py")
    print(run(*pytest_, *tests, cwd=ROOT, PYTHONPATH=str(tmp_path)))
