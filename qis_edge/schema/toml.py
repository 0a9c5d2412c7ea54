"""TOML files, read with the line of each key, so that an error can point at it.

:mod:`tomllib` gives values without places. A small scanner of the same grammar, run only
over text that tomllib accepted, gives each key its line. A folder ``<file>.d`` beside a
file holds further ``*.toml`` files, merged in the order of their names: tables are merged
key by key (the later file wins), tables in an array are added, other arrays are replaced.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qis_edge.core.errors import ConfigError, ConfigProblem

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TypeGuard

#: Where a value lies: keys of tables and indices of arrays of tables.
KeyPath = tuple[str | int, ...]

MAX_FILE = 1 << 20
_AT_LINE = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|(end of document))\)\s*$")


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file; ``line`` is ``None`` where only the file is known."""

    file: str
    line: int | None


@dataclass(slots=True)
class Document:
    """What one file and its ``.d`` folder say, and where they say it."""

    path: Path
    values: dict[str, Any]
    places: dict[KeyPath, Place] = field(default_factory=dict)

    def place(self, path: KeyPath) -> Place:
        """The place of a key, or of the nearest table around it."""
        for end in range(len(path), 0, -1):
            if (place := self.places.get(path[:end])) is not None:
                return place
        return Place(str(self.path), None)


def read_document(path: Path, *, hint: str | None = None) -> Document:
    """Read ``path`` and its ``.d`` folder.

    :raises ConfigError: a file is missing, unreadable or not TOML.
    """
    document = _read_one(path, hint)
    folder = path.with_name(path.name + ".d")
    if folder.is_dir():
        for extra in sorted(folder.glob("*.toml")):
            merge(document, _read_one(extra, None))
    return document


def parse_document(text: str, path: Path) -> Document:
    """The document of one text.

    :raises ConfigError: it is not TOML.
    """
    try:
        values = tomllib.loads(text)
        lines = key_lines(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax(path, str(error), text) from None
    except (ValueError, RecursionError) as error:
        # tomllib lets these out: a number of thousands of digits, brackets nested too deep.
        # What it just manages may be too deep for the scanner, which asks it about keys.
        kind = "nested too deep" if isinstance(error, RecursionError) else "a number is too long"
        raise _unreadable(path, kind) from None
    return Document(path, values, {k: Place(str(path), n) for k, n in lines.items()})


def _read_one(path: Path, hint: str | None) -> Document:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise _unreadable(path, "there is no such file", hint) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise _unreadable(path, f"cannot be read ({reason or error})") from None
    if len(raw) > MAX_FILE:
        raise _unreadable(path, f"larger than {MAX_FILE} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = ConfigProblem(str(path), line, "TOML", "not UTF-8 text", "save it as UTF-8")
        raise ConfigError([problem]) from None
    return parse_document(text, path)


def _unreadable(path: Path, message: str, hint: str | None = None) -> ConfigError:
    return ConfigError([ConfigProblem(str(path), None, "file", message)], hint=hint)


def _syntax(path: Path, message: str, text: str) -> ConfigError:
    line: int | None = None
    if match := _AT_LINE.search(message):
        line = int(match[1]) if match[1] else text.count("\n") + 1
        where = f" at column {match[2]}" if match[2] else " at the end of the file"
        message = message[: match.start()] + where
    # The message may repeat a character of the text, never more of it.
    return ConfigError([ConfigProblem(str(path), line, "TOML", message)])


def merge(base: Document, extra: Document) -> None:
    """Lay ``extra`` over ``base``, in place."""
    moved: dict[KeyPath, KeyPath] = {}

    def tables(into: dict[str, Any], new: dict[str, Any], at: KeyPath, source: KeyPath) -> None:
        for key, value in new.items():
            here, there = (*at, key), (*source, key)
            old = into.get(key)
            if isinstance(old, dict) and isinstance(value, dict):
                moved[there] = here
                tables(old, value, here, there)
            elif _is_tables(old) and _is_tables(value):
                for index, item in enumerate(value):
                    moved[(*there, index)] = (*here, len(old))
                    old.append(item)
            else:
                moved[there] = here
                into[key] = value

    tables(base.values, extra.values, (), ())
    for path, place in extra.places.items():
        for end in range(len(path), 0, -1):
            if (target := moved.get(path[:end])) is not None:
                base.places[target + path[end:]] = place
                break


def _is_tables(value: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of each key and table header in ``text``, which must be valid TOML.

    Elements of an array of inline tables are numbered like those of an array of tables.
    """
    return _Scanner(text.replace("\r\n", "\n")).run()


_BLANK = re.compile(r"(?:[ \t]+|#[^\n]*)+")
_BLANK_LINES = re.compile(r"(?:[ \t\n]+|#[^\n]*)+")
_PART = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*'|[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?""""{0,2}'
    r"|'''.*?''''{0,2}"
    r"|\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[KeyPath, int] = {}
        self.arrays: dict[KeyPath, int] = {}
        self.table: KeyPath = ()
        self.seen = (0, 1)  # an offset and its line, so that lines are counted once

    def run(self) -> dict[KeyPath, int]:
        self._skip(_BLANK_LINES)
        while self.at < len(self.text):
            before = self.at
            self._statement()
            self._skip(_BLANK_LINES)
            if self.at == before:  # not TOML after all: better few lines than a hang
                break
        return self.lines

    def _statement(self) -> None:
        line = self._line()
        if self.text.startswith("[[", self.at):
            self.at += 2
            path = self._resolve(self._key())
            index = self.arrays.get(path, -1) + 1
            self.arrays[path] = index
            self.table = (*path, index)
            self._note(self.table, line)
            self.at += 2
        elif self.text.startswith("[", self.at):
            self.at += 1
            self.table = self._resolve(self._key(), whole=True)
            self._note(self.table, line)
            self.at += 1
        else:
            self._pair(self.table)

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        path = table + self._key()
        self._note(path, line)
        self._skip(_BLANK)
        self.at += 1  # the equals sign
        self._skip(_BLANK)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        if self.text.startswith("[", self.at):
            self._array(path)
        elif self.text.startswith("{", self.at):
            self._inline(path)
        elif match := _STRING.match(self.text, self.at) or _SCALAR.match(self.text, self.at):
            self.at = match.end()

    def _array(self, path: KeyPath) -> None:
        self.at += 1
        index = 0
        while True:
            self._skip(_BLANK_LINES)
            if self.at >= len(self.text) or self.text[self.at] == "]":
                break
            before = self.at
            self._note((*path, index), self._line())
            self._value((*path, index))
            self._skip(_BLANK_LINES)
            if self.text.startswith(",", self.at):
                self.at += 1
                index += 1
            if self.at == before:
                break
        self.at += 1

    def _inline(self, path: KeyPath) -> None:
        self.at += 1
        while True:
            self._skip(_BLANK_LINES)
            if self.at >= len(self.text) or self.text[self.at] == "}":
                break
            before = self.at
            self._pair(path)
            self._skip(_BLANK_LINES)
            if self.text.startswith(",", self.at):
                self.at += 1
            if self.at == before:
                break
        self.at += 1

    def _key(self) -> tuple[str, ...]:
        parts: list[str] = []
        while True:
            self._skip(_BLANK)
            match = _PART.match(self.text, self.at)
            if match is None:
                return tuple(parts)
            self.at = match.end()
            parts.append(_unquoted(match[0]))
            self._skip(_BLANK)
            if not self.text.startswith(".", self.at):
                return tuple(parts)
            self.at += 1

    def _resolve(self, keys: tuple[str, ...], *, whole: bool = False) -> KeyPath:
        """A header's keys with the index of each array of tables that they pass through."""
        path: KeyPath = ()
        for position, key in enumerate(keys):
            path = (*path, key)
            last = position == len(keys) - 1
            if path in self.arrays and (whole or not last):
                path = (*path, self.arrays[path])
        return path

    def _note(self, path: KeyPath, line: int) -> None:
        # Where a key has its line, so have those around it.
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                break
            self.lines[path[:end]] = line

    def _skip(self, pattern: re.Pattern[str]) -> None:
        if match := pattern.match(self.text, self.at):
            self.at = match.end()

    def _line(self) -> int:
        offset, line = self.seen
        line += self.text.count("\n", offset, self.at)
        self.seen = (self.at, line)
        return line


def _unquoted(part: str) -> str:
    if part[0] not in "\"'":
        return part
    return next(iter(tomllib.loads(part + " = 0")))
