"""``config sample`` and ``config show`` of both commands."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from typing import Any

from qis_edge.cli.program import OK, print_json
from qis_edge.config import NodeConfig, default_path, overlay
from qis_edge.schema import load, text
from qis_edge.schema.base import dotted
from qis_edge.schema.text import toml
from qis_edge.schema.toml import Document, KeyPath
from qis_edge.terminal import table

#: Of a URL, wherever it stands in a value: what begins its password, and the password, which
#: may have in it what should have been written as %40 or %2F.
_PASSWORD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^/?#\s:@]*:)\S+(?=@)")
_OPTION = re.compile(
    r"(?i)([?&][^=&\s]*(?:pass|secret|token|key|credential|auth|pwd)[^=&\s]*=)[^&\s]+"
)
_SECRET = re.compile(r"(?i)pass|secret|token|key|psk|pwd|credential")


def sample(args: argparse.Namespace) -> int:
    """Print a configuration of a node with everything explained."""
    del args
    return print_sample(NodeConfig)


def show(args: argparse.Namespace) -> int:
    """Say what is set, and where."""
    return print_settings(args, NodeConfig, "edge")


def print_sample(cls: type) -> int:
    """Print a sample of a configuration."""
    print(text.sample(cls), end="")
    return OK


def print_settings(args: argparse.Namespace, cls: type, role: str) -> int:
    """Print what the files and the environment set, each with its place.

    :raises ConfigError: something is wrong with it.
    """
    path = args.config.expanduser() if args.config is not None else default_path(role)
    _, document = load(cls, path, full=False, overlay=overlay(cls, role))
    found = list(settings(document))
    if args.json:
        print_json({"file": str(path), "settings": found})
        return OK
    rows = [[one["key"], toml(one["value"]), _place(one)] for one in found]
    print(table(["setting", "value", "set in"], rows))
    return OK


def _place(one: Mapping[str, Any]) -> str:
    return f"{one['file']}:{one['line']}" if one["line"] else str(one["file"])


def settings(document: Document) -> Iterator[dict[str, Any]]:
    """Every value of a document with its key and its place; without secrets."""
    for path, value in _leaves(document.values, ()):
        place = document.place(path)
        shown = _harmless(value, str(path[-1]))
        yield {"key": dotted(path), "value": shown, "file": place.file, "line": place.line}


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, value


def _harmless(value: Any, key: str) -> Any:
    """A value with what may be a secret left out: passwords within URLs, and what a key that
    is called like a secret has, unless it names a file."""
    if isinstance(value, list):
        return [_harmless(one, key) for one in value]
    if not isinstance(value, str):
        return value
    if _SECRET.search(key) and not key.endswith("_file") and not _names_file(value):
        return "…"
    return _OPTION.sub(r"\1…", _PASSWORD.sub(r"\1…", value))


def _names_file(value: str) -> bool:
    return value.startswith(("/", "~", ".", "credential:")) or value.endswith((".pem", ".key"))
