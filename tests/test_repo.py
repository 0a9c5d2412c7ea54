"""What the repository promises about itself: sizes, reasons, and commands that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST = 700  # lines of a module
OTHERS_WORDS = {"LICENSE"}

SUPPRESSION = re.compile(r"#\s*(?:noqa|type:\s*ignore)\b(.*)")
REASONED = re.compile(r"(?::\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*|\[[a-z-]+(?:,\s*[a-z-]+)*\])\W+\w+")
MACHINE = re.compile(r"(?<![\w.])/(?:work|root|Users|home/(?!pi\b|qis\b)\w+)/\w")
HOST = re.compile(
    r"(?:pypi|pythonhosted|piwheels|npmjs|crates|golang|maven|debian|raspberrypi|docker)"
    r"\.(?:org|io|com|net|dev)\b"
)


def tracked() -> list[Path]:
    """Every file of the repository; of its folders, where git does not answer."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        folders = ("qis_edge", "gateway", "devices", "tests", "docs", "tools")
        found = [ROOT / "README.md"]
        found += [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return [path for path in found if path.is_file() and path.suffix != ".pyc"]


FILES = tracked()
PYTHON = [path for path in FILES if path.suffix == ".py"]
PAGES = [path for path in FILES if path.suffix == ".md"]


def lines(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """(file:line, text) of what can be read as text."""
    for path in paths:
        if path.name in OTHERS_WORDS:
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", line


def test_there_is_something_to_look_at() -> None:
    assert len(PYTHON) > 20
    assert ROOT / "README.md" in PAGES


def test_no_module_is_too_long() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in PYTHON}
    assert {name: length for name, length in lengths.items() if length >= LONGEST} == {}


def suppressions_without_reason(found: Iterator[tuple[str, str]]) -> list[str]:
    return [
        place
        for place, line in found
        if (suppression := SUPPRESSION.search(line)) and not REASONED.match(suppression[1])
    ]


def test_what_is_suppressed_has_its_rule_and_its_reason() -> None:
    others = [path for path in PYTHON if path != Path(__file__)]
    assert suppressions_without_reason(lines(others)) == []


@pytest.mark.parametrize(
    ("line", "reasoned"),
    [
        ("x = 1  # noqa: S608 - the names are ours", True),
        ("x = 1  # noqa: S608, B007  the names are ours", True),
        ("x = 1  # type: ignore[attr-defined]  # the stubs lag behind", True),
        ("x = 1  # noqa", False),
        ("x = 1  # noqa: S608", False),
        ("x = 1  # type: ignore[attr-defined]", False),
        ("x = 1  # type: ignore  # the stubs lag behind", False),
    ],
)
def test_a_suppression_without_reason_is_seen(line: str, reasoned: bool) -> None:
    assert suppressions_without_reason(iter([("here", line)])) == ([] if reasoned else ["here"])


def test_no_path_of_one_machine_and_no_host_of_a_registry() -> None:
    others = [path for path in FILES if path != Path(__file__)]
    found = [place for place, line in lines(others) if MACHINE.search(line) or HOST.search(line)]
    assert found == []


@cache
def makes() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def verbs(command: str) -> str:
    """What the command's help says."""
    module = {"qis-edge": "qis_edge.cli", "qis-gateway": "gateway.cli"}[command]
    code = f"import sys; from {module} import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown() -> list[str]:
    """Every command line that a page shows: indented or fenced, or in backticks."""
    found: list[str] = []
    for page in PAGES:
        fenced = False
        for line in page.read_text().splitlines():
            if line.lstrip().startswith("```"):
                fenced = not fenced
            elif fenced or line.startswith("    "):
                found.append(line.strip().removeprefix("$ ").removeprefix("sudo "))
            found += re.findall(r"`([^`]+)`", line)
    return found


def test_every_make_target_that_is_shown_exists() -> None:
    wanted = {word[1] for line in shown() if (word := re.match(r"make ([a-z-]+)\b", line))}
    assert {"demo", "test"} <= wanted <= makes()


def test_every_verb_that_is_shown_exists() -> None:
    wanted = {
        (found[1], found[2])
        for line in shown()
        if (found := re.match(r"(?:\S*/)?(qis-edge|qis-gateway) ([a-z][a-z-]*)", line))
    }
    assert wanted
    missing = {(command, verb) for command, verb in wanted if verb not in verbs(command).split()}
    assert missing == set()


def test_the_licence_is_the_one_that_the_project_names() -> None:
    assert "Version 3, 29 June 2007" in (ROOT / "LICENSE").read_text()
    assert 'license = "GPL-3.0-or-later"' in (ROOT / "pyproject.toml").read_text()
