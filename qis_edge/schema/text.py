"""What the declarations say for people: a commented sample, and the reference in Markdown.

In a sample, prose begins with ``# `` and a setting at its default with ``#``: taking that
one character away makes the setting one's own.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from qis_edge.schema.base import MapOf, Setting, Table, Tables, Type, settings_of, toml_kind

_WIDTH = 88


def sample(
    cls: type,
    values: Mapping[str, Any] | None = None,
    remarks: Mapping[str, str] | None = None,
) -> str:
    """A commented sample, valid as it stands.

    :param values: settings to write out, as TOML values: nested mappings, and lists of
        mappings for arrays of tables. Required ones without a value get their example.
    :param remarks: further words for people, by the dotted name of a table.
    """
    return "\n".join(_Sample(remarks or {}).file(cls, values or {})) + "\n"


class _Sample:
    def __init__(self, remarks: Mapping[str, str]) -> None:
        self.remarks = remarks

    def file(self, cls: type, values: Mapping[str, Any]) -> Iterator[str]:
        yield from _prose(inspect.getdoc(cls) or "")
        for _, key, declared in settings_of(cls):
            yield from self.nested(declared, key, values.get(key), live=True, explain=True)

    def nested(
        self, declared: Setting, path: str, given: Any, *, live: bool, explain: bool
    ) -> Iterator[str]:
        """The lines of a setting that is a table, an array of tables or a map."""
        kind = declared.type
        wanted = given is not None or declared.required
        if isinstance(kind, Table):
            alive = live and (wanted or declared.default is not None)
            yield from self.table(kind.cls, f"[{path}]", given or {}, live=alive, explain=explain)
        elif isinstance(kind, Tables):
            blocks = given if given is not None else (declared.example or [{}])
            for number, block in enumerate(blocks):
                yield from self.table(
                    kind.table.cls,
                    f"[[{path}]]",
                    block,
                    live=live and wanted,
                    explain=explain and number == 0,
                )
        else:
            yield from self.map(declared, path, given, live=live and wanted, explain=explain)

    def map(
        self, declared: Setting, path: str, given: Any, *, live: bool, explain: bool
    ) -> Iterator[str]:
        mark = "" if live else "#"
        yield ""
        if explain:
            yield from _prose(declared.doc)
            yield from self.remark(path)
        yield f"{mark}[{path}]"
        for key, value in (given if given is not None else declared.example or {}).items():
            yield f"{mark}{toml_key(key)} = {toml(value)}"

    def table(
        self, cls: type, header: str, given: Mapping[str, Any], *, live: bool, explain: bool
    ) -> Iterator[str]:
        mark, path = "" if live else "#", header.strip("[]")
        yield ""
        if explain:
            yield from _prose(inspect.getdoc(cls) or "")
            yield from self.remark(path)
        yield mark + header
        declared = settings_of(cls)
        for number, (_, key, each) in enumerate(declared):
            if not each.type.nested:
                if number and explain:
                    yield ""
                yield from _line(key, each, given, live=live, explain=explain)
        known = {key for _, key, _ in declared}
        for key, value in given.items():
            if key not in known:
                yield f"{mark}{toml_key(key)} = {toml(value)}"
        for _, key, each in declared:
            if each.type.nested and (explain or key in given):
                below = f"{path}.{key}"
                yield from self.nested(each, below, given.get(key), live=live, explain=explain)

    def remark(self, path: str) -> Iterator[str]:
        for line in self.remarks.get(path, "").splitlines():
            yield f"# {line}".rstrip()


def _line(
    key: str, declared: Setting, given: Mapping[str, Any], *, live: bool, explain: bool
) -> Iterator[str]:
    if explain:
        yield from _prose(declared.doc)
    if key in given:
        yield ("" if live else "#") + f"{key} = {toml(given[key])}"
    elif explain or declared.required:
        value = declared.default
        if declared.required or value is None:
            value = declared.example
        yield ("" if live and declared.required else "#") + f"{key} = {toml(value)}"


def _prose(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        plain = re.sub(r"``([^`]*)``", r"\1", " ".join(paragraph.split()))
        for line in textwrap.wrap(plain, _WIDTH, break_long_words=False, break_on_hyphens=False):
            yield f"# {line}"


def reference(cls: type, variables: Mapping[str, str] | None = None) -> str:
    """The reference of a configuration file in Markdown: tables have headings of the third
    level, settings of the fourth.

    :param variables: the environment variable of each setting, by its dotted name.
    """
    named = variables or {}
    return "\n".join(
        line for _, key, each in settings_of(cls) for line in _chapter(each, key, named)
    )


def setting_reference(cls: type, path: str) -> str:
    """The settings of one table alone, as :func:`reference` writes them."""
    return "\n".join(_settings(cls, path, {}))


def headings(cls: type) -> list[str]:
    """The dotted name of every table and setting, in order."""
    found = re.findall(r"^#+ `\[*([^`\]]+)\]*`$", reference(cls), re.MULTILINE)
    return [str(name) for name in found]


def _chapter(declared: Setting, path: str, named: Mapping[str, str]) -> Iterator[str]:
    kind = declared.type
    cls = _table_within(kind)
    if isinstance(kind, Table | Tables) and cls is not None:
        title = f"[[{path}]]" if isinstance(kind, Tables) else f"[{path}]"
        yield from (f"### `{title}`", "", *markdown(inspect.getdoc(cls) or ""), "")
        if path in named:
            yield from (f"In the environment, all of them: `{named[path]}`.", "")
        yield from _settings(cls, path, named)
        return
    yield from (f"#### `{path}`", "", *markdown(declared.doc), "")
    yield from (*markdown(_facts(declared)), "")
    if path in named:
        yield from (f"In the environment: `{named[path]}`.", "")
    if cls is not None:
        yield from _settings(cls, f"{path}.<name>", named)


def _settings(cls: type, path: str, named: Mapping[str, str]) -> Iterator[str]:
    declared = settings_of(cls)
    for _, key, each in sorted(declared, key=lambda one: one[2].type.nested):
        yield from _chapter(each, f"{path}.{key}", named)


def _table_within(kind: Type) -> type | None:
    if isinstance(kind, Table):
        return kind.cls
    if isinstance(kind, Tables):
        return kind.table.cls
    if isinstance(kind, MapOf):
        return _table_within(kind.item)
    return None


def _facts(declared: Setting) -> str:
    what = re.sub(r'"[^"]+"', lambda quoted: f"``{quoted[0]}``", declared.type.describe())
    text = f"{what[0].upper()}{what[1:]}."
    if declared.required:
        text += " Required."
    elif declared.shown is not None:
        text += f" Default: {declared.shown}."
    elif declared.default is None:
        text += " Default: none."
    else:
        text += f" Default: ``{toml(declared.default)}``."
    if declared.example is not None:
        text += f" Example: ``{toml(declared.example)}``."
    return text


def markdown(text: str) -> Iterator[str]:
    """The lines of a docstring's paragraphs, in Markdown."""
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            yield ""
        plain = re.sub(r"``([^`]*)``", r"`\1`", " ".join(paragraph.split()))
        # What is in backticks is kept on one line.
        whole = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), plain)
        for line in textwrap.wrap(whole, 96, break_long_words=False, break_on_hyphens=False):
            yield line.replace("\0", " ")


def toml(value: object) -> str:
    """A value as TOML writes it in one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _toml_text(value)
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{toml_key(k)} = {toml(v)}" for k, v in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, int | float):
        return repr(value)
    raise TypeError(f"no TOML for {toml_kind(value)}")


def toml_key(key: str) -> str:
    """A key as TOML writes it."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_text(key)


def _toml_text(value: str) -> str:
    def escaped(match: re.Match[str]) -> str:
        return f"\\{match[0]}" if match[0] in '"\\' else f"\\u{ord(match[0]):04x}"

    return '"' + re.sub(r'["\\\x00-\x1f\x7f]', escaped, value) + '"'
