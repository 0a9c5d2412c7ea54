"""docs/troubleshooting.md explains what the programs say, and nothing that they do not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SOURCES = [
    path
    for package in ("qis_edge", "gateway", "devices")
    for path in sorted((ROOT / package).rglob("*.py"))
    if not {"testing", "demo", "radio_sim"} & set(path.parts)
]
#: Errors that people meet at the medium, and that have no setting to name.
EXPLAINED = {"StoreError", "StoreCorrupt", "KeyFileError"}
#: What needs no row: it only carries another message, or says all there is to say.
CARRIERS = (
    "not closed in good order",
    "could not be saved",
    "an unfinished statement in a schema",
    "%s cannot be used: %s",
    "cannot be read: ",
    "trying again until it works",
)


def rows() -> list[list[str]]:
    """The quoted parts of each row's first cell."""
    found = []
    for line in PAGE.splitlines():
        cells = line.split(" | ")
        if line.startswith("| `"):
            found.append(re.findall(r"`([^`]+)`", cells[0]))
    return found


def literal(node: ast.AST) -> str | None:
    """A string or an f-string, its values as ``{}``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(v) or "{}" for v in node.values)
    return None


def strings() -> Iterator[str]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (text := literal(node)) is not None:
                yield text


def warnings() -> Iterator[str]:
    """What is logged as a warning or an error, and errors of disk and keys."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = ast.unparse(node.func)
            text = literal(node.args[0])
            logged = re.fullmatch(r"_?log(ger)?\.(warning|error)", called)
            if text is not None and (logged or called in EXPLAINED):
                yield text


def pieces(text: str) -> list[str]:
    """The words of a message between what is filled in."""
    return [piece.strip(" :;,()") for piece in re.split(r"%[sdr]|\{\}|%\.\d+f", text)]


def test_what_it_quotes_is_said() -> None:
    said = "\n".join(strings())
    quoted = [part for row in rows() for part in row]
    assert len(quoted) > 80
    assert [part for part in quoted if part not in said] == []


def test_every_warning_and_every_error_of_disk_and_keys_is_explained() -> None:
    quoted = [part for row in rows() for part in row]
    missing = [
        text
        for text in warnings()
        if any(len(piece) >= 8 for piece in pieces(text))
        and not any(part in text for part in quoted)
        and not any(carrier in text for carrier in CARRIERS)
    ]
    assert sorted(set(missing)) == []


def test_each_part_has_what_to_do() -> None:
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            assert len(line.split(" | ")[1]) > 20, line
