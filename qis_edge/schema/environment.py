"""Settings from the environment, laid over what the files say.

A setting's name there is its dotted name in capitals, after the program's prefix, with two
underscores for each dot: ``links.mqtt.url`` of a node is ``QIS_EDGE_LINKS__MQTT__URL``. Text
is written as it is; what else TOML knows (numbers, true and false, arrays, tables) is written
as TOML writes it. Arrays of tables, and tables with keys of one's own choice, are given as a
whole. Others can read the environment of a process: what holds a password is refused.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qis_edge.core.errors import ConfigProblem
from qis_edge.schema.base import Table, Type, did_you_mean, dotted, settings_of
from qis_edge.schema.toml import Document, KeyPath, Place, merge

#: A password in a URL, wherever it stands in a value.
_PASSWORD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s\"']*:[^/?#\s\"'@]+@")


@dataclass(frozen=True, slots=True)
class Variables:
    """Which environment variables are settings.

    :param prefix: what their names begin with, such as ``QIS_EDGE_``.
    :param reserved: names with this prefix that mean something else.
    """

    prefix: str
    reserved: Collection[str] = ()

    def names(self, cls: type) -> dict[str, tuple[KeyPath, Type]]:
        """Each variable with the key that it stands for, in the order of the declarations."""
        return dict(self._names(cls, ()))

    def _names(self, cls: type, path: KeyPath) -> Iterator[tuple[str, tuple[KeyPath, Type]]]:
        for _, key, declared in settings_of(cls):
            here = (*path, key)
            if isinstance(declared.type, Table):
                yield from self._names(declared.type.cls, here)
            else:
                name = self.prefix + "__".join(str(part).upper() for part in here)
                yield name, (here, declared.type)

    def by_key(self, cls: type) -> dict[str, str]:
        """Each variable by the dotted name of its setting."""
        return {dotted(path): name for name, (path, _) in self.names(cls).items()}

    def apply(
        self, cls: type, document: Document, environ: Mapping[str, str]
    ) -> list[ConfigProblem]:
        """Lay what ``environ`` says over a document, in place; what is wrong with it.

        Variables that are empty count as not set.
        """
        known = self.names(cls)
        problems: list[ConfigProblem] = []
        for name in sorted(environ):
            if not name.startswith(self.prefix) or name in self.reserved or not environ[name]:
                continue
            if name not in known:
                problems.append(_unknown(name, known))
                continue
            path, kind = known[name]
            try:
                value = _value(environ[name], kind)
            except ValueError as error:
                problems.append(ConfigProblem(f"${name}", None, dotted(path), *error.args))
                continue
            merge(document, _laid(path, value, Place(f"${name}", None)))
        return problems


def _unknown(name: str, known: Collection[str]) -> ConfigProblem:
    near = did_you_mean(name, list(known))
    if f"{name}_FILE" in known:
        near = f"a secret does not belong here: name a file that has it in {name}_FILE"
    return ConfigProblem(f"${name}", None, "environment", "is not a setting", near)


def _value(text: str, kind: Type) -> Any:
    """:raises ValueError: message and suggestion; the text is not repeated."""
    if _PASSWORD.search(text):
        raise ValueError(
            "has a password in it, and others can read the environment",
            "put it into a file and name that",
        )
    if not kind.in_toml:
        return text
    try:
        found = tomllib.loads(f"value = {text}\n")
    except (ValueError, RecursionError):
        found = {}
    if set(found) != {"value"}:
        raise ValueError(f"must be {kind.describe()}", "written as TOML writes it")
    return found["value"]


def _laid(path: KeyPath, value: Any, place: Place) -> Document:
    """The document of one setting."""
    places = {path[:end]: place for end in range(1, len(path) + 1)}
    if isinstance(value, list):
        places |= {(*path, index): place for index in range(len(value))}
    for key in reversed(path):
        value = {key: value}
    return Document(Path(place.file), value, places)
