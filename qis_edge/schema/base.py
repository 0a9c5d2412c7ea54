"""Declaring tables and settings, and parsing a document by their declarations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from qis_edge.core.errors import ConfigError, ConfigProblem
from qis_edge.schema.toml import Document, KeyPath, parse_document, read_document

T = TypeVar("T")


#: The default of a setting that has none.
REQUIRED: Final = object()
#: Items of an array, at most.
MOST = 64


class Wrong(Exception):
    """What is wrong with the value at hand. Raised by a type, reported by its container."""

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion


class Reported(Exception):
    """A part was wrong and is reported already; the whole has no value.

    ``partial`` is the whole with ``None`` for each part that was wrong, or ``None``: enough
    to judge the rest by.
    """

    def __init__(self, partial: Any = None) -> None:
        super().__init__()
        self.partial = partial


@dataclass(slots=True)
class Report:
    """What was found wrong so far.

    :param document: where the values come from.
    :param folder: what relative paths are relative to.
    :param full: look also at what lies outside the file: other files, drivers, templates.
    """

    document: Document
    folder: Path
    full: bool = True
    problems: list[ConfigProblem] = field(default_factory=list)

    def add(self, path: KeyPath, message: str, suggestion: str | None = None) -> None:
        """Report ``message`` at a key."""
        place = self.document.place(path)
        self.problems.append(
            ConfigProblem(place.file, place.line, dotted(path), message, suggestion)
        )


@dataclass(frozen=True, slots=True)
class Where:
    """The key that is being looked at."""

    report: Report
    path: KeyPath = ()

    def __truediv__(self, key: str | int) -> Where:
        return Where(self.report, (*self.path, key))

    @property
    def full(self) -> bool:
        """Whether what lies outside the file is looked at too."""
        return self.report.full

    @property
    def folder(self) -> Path:
        """What relative paths are relative to."""
        return self.report.folder

    def wrong(self, message: str, suggestion: str | None = None) -> None:
        """Report ``message`` at this key, and go on."""
        self.report.add(self.path, message, suggestion)


class Type:
    """What a value may be.

    ``nested`` types are written as tables of their own in the sample. ``in_toml``: an
    environment variable has its value as TOML writes it, not as bare text.
    """

    nested = False
    in_toml = False

    def parse(self, value: object, where: Where) -> Any:
        """The Python value of a TOML value.

        :raises Wrong: it is not one.
        :raises Reported: parts of it are not, and were reported.
        """
        raise NotImplementedError

    def describe(self) -> str:
        """What it must be, as a noun phrase with its article and bounds."""
        raise NotImplementedError

    def mismatch(self, value: object) -> Wrong:
        """The finding for a TOML value of another kind."""
        return Wrong(f"must be {self.describe()}, not {toml_kind(value)}")


@dataclass(frozen=True, slots=True)
class Setting:
    """One declared key.

    :param default: as TOML would write it, so that it is documented as it is typed.
    :param doc: whole sentences.
    :param example: shown in the sample where the default is none or tells too little.
    :param name: the key, where Python's name must differ.
    :param shown: the default in words, where it depends on the machine.
    """

    type: Type
    default: Any
    doc: str
    example: Any = None
    name: str | None = None
    shown: str | None = None

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is REQUIRED

    def fallback(self) -> Any:
        """The Python value of the default; for dataclasses built without a file."""
        if self.default is REQUIRED:
            raise TypeError(f"a value is required: {self.doc}")
        if self.default is None:
            return None
        here = Where(Report(Document(Path(), {}), Path(), full=False))
        return self.type.parse(self.default, here)


def setting(
    type_: Type,
    default: Any = REQUIRED,
    doc: str = "",
    *,
    example: Any = None,
    name: str | None = None,
    shown: str | None = None,
) -> Any:
    """A dataclass field that is a setting; see :class:`Setting`."""
    made = Setting(type_, default, doc, example, name, shown)
    return field(default_factory=made.fallback, metadata={"setting": made})


def leftover() -> Any:
    """A dataclass field that takes the keys which the table does not declare."""
    return field(default_factory=lambda: MappingProxyType({}), metadata={"leftover": True})


def settings_of(cls: type) -> list[tuple[str, str, Setting]]:
    """Attribute, key and declaration of each setting of a table, in order."""
    return [
        (f.name, made.name or f.name, made)
        for f in dataclasses.fields(cls)
        if isinstance(made := f.metadata.get("setting"), Setting)
    ]


def load(
    cls: type[T],
    path: Path,
    *,
    full: bool = True,
    hint: str | None = None,
    overlay: Callable[[Document], list[ConfigProblem]] | None = None,
) -> tuple[T, Document]:
    """Read a configuration file and its ``.d`` folder.

    :param full: look also at what lies outside the file: other files, drivers, templates.
    :param hint: what to do where the file is missing.
    :param overlay: lays more over what was read, and says what is wrong with that.
    :raises ConfigError: with all that is wrong.
    """
    document = read_document(path, hint=hint)
    problems = overlay(document) if overlay is not None else []
    return parse(cls, document, full=full, problems=problems), document


def loads(cls: type[T], text: str, path: Path, *, full: bool = True) -> T:
    """:func:`load` of a text; ``path`` is for its errors and relative paths."""
    return parse(cls, parse_document(text, path), full=full)


def from_mapping(cls: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass of values that come from no file; relative paths are the process's.

    :raises ConfigError: with all that is wrong.
    """
    return parse(cls, Document(Path("settings"), dict(values)), full=False)


def parse(
    cls: type[T],
    document: Document,
    *,
    full: bool = True,
    problems: Iterable[ConfigProblem] = (),
) -> T:
    """The dataclass of a document.

    :param problems: that were found in it already.
    :raises ConfigError: with all that is wrong, in the order of files and lines.
    """
    report = Report(document, document.path.absolute().parent, full, list(problems))
    try:
        made = cast("T", Table(cls).parse(document.values, Where(report)))
    except Reported:
        made = None
    if report.problems or made is None:
        main = str(document.path)
        raise ConfigError(
            sorted(report.problems, key=lambda p: (p.file != main, p.file, p.line or 0))
        )
    return made


class Scalar(Type):
    """A type whose values need no place to be judged."""

    def parse(self, value: object, where: Where) -> Any:  # noqa: ARG002 - the interface
        """See :class:`Type`."""
        return self.read(value)

    def read(self, value: object) -> Any:
        """The Python value of a TOML value.

        :raises Wrong: it is not one.
        """
        raise NotImplementedError


class Table(Type):
    """A table whose keys are the settings of a dataclass.

    The dataclass may have these, all optional:

    ``normalise(value)``, static: turns a shorthand (say, a bare string) into the table that
    it stands for.

    ``parts(made, where)``, static: judges what was parsed, by attribute, even if other parts
    of the table are wrong (these are ``None`` or have ``None`` within). It may put further
    attributes into ``made``.

    ``check(self, where)``: judges the whole, which exists only where every part is right.
    """

    nested = True

    def __init__(self, cls: type, *, what: str = "a table") -> None:
        self.cls = cls
        self.what = what
        self.settings = settings_of(cls)
        self.rest = next(
            (f.name for f in dataclasses.fields(cls) if f.metadata.get("leftover")), None
        )

    def describe(self) -> str:
        """See :class:`Type`."""
        return self.what

    def parse(self, value: object, where: Where) -> Any:
        """See :class:`Type`."""
        if (normalise := getattr(self.cls, "normalise", None)) is not None:
            value = normalise(value)
        if not isinstance(value, Mapping):
            wrong = self.mismatch(value)
            if isinstance(value, list) and value and isinstance(value[0], Mapping):
                key = dotted(where.path)
                wrong.suggestion = f"write [{key}] instead of [[{key}]]"
            raise wrong
        before = len(where.report.problems)
        made = {
            attribute: self._one(key, declared, value, where)
            for attribute, key, declared in self.settings
        }
        known = [key for _, key, _ in self.settings]
        extra = {key: item for key, item in value.items() if key not in known}
        if self.rest is not None:
            made[self.rest] = MappingProxyType(extra)
        else:
            for key, item in extra.items():
                kind = "table" if isinstance(item, Mapping) else "key"
                (where / key).wrong(f"unknown {kind}", did_you_mean(key, known))
        if (parts := getattr(self.cls, "parts", None)) is not None:
            parts(made, where)
        if len(where.report.problems) > before:
            raise Reported
        whole = self.cls(**made)
        if (check := getattr(whole, "check", None)) is not None:
            check(where)
            if len(where.report.problems) > before:
                raise Reported
        return whole

    def _one(self, key: str, declared: Setting, value: Mapping[str, Any], where: Where) -> Any:
        here = where / key
        if key in value:
            given = value[key]
        elif declared.required:
            if not self._misspelt(key, value):
                here.wrong("is missing", f"must be {declared.type.describe()}")
            return None
        elif declared.default is None:
            return None
        else:
            given = declared.default
        try:
            return declared.type.parse(given, here)
        except Wrong as wrong:
            here.wrong(wrong.message, wrong.suggestion)
        except Reported as reported:
            return reported.partial
        return None

    def _misspelt(self, key: str, value: Mapping[str, Any]) -> bool:
        """Whether an unknown key is reported as meant to be this one; once is enough."""
        known = [name for _, name, _ in self.settings]
        unknown = [name for name in value if name not in known]
        return self.rest is None and any(closest(name, known) == key for name in unknown)


class Tables(Type):
    """An array of tables."""

    nested = True
    in_toml = True

    def __init__(self, cls: type, *, least: int = 0) -> None:
        self.table = Table(cls)
        self.least = least

    def describe(self) -> str:
        """See :class:`Type`."""
        return "an array of tables"

    def parse(self, value: object, where: Where) -> Any:
        """See :class:`Type`."""
        if isinstance(value, Mapping):
            key = dotted(where.path)
            raise Wrong("must be an array of tables", f"write [[{key}]] instead of [{key}]")
        if not isinstance(value, list):
            raise self.mismatch(value)
        if not self.least <= len(value) <= MOST:
            raise Wrong(f"needs {self.least} to {MOST} of these, there are {len(value)}")
        return _items(self.table, value, where)


class ListOf(Type):
    """An array of values of one type."""

    in_toml = True

    def __init__(self, item: Type, *, least: int = 0, most: int = MOST) -> None:
        self.item = item
        self.least = least
        self.most = most

    def describe(self) -> str:
        """See :class:`Type`."""
        return f"an array; each of its values is {self.item.describe()}"

    def parse(self, value: object, where: Where) -> Any:
        """See :class:`Type`."""
        if not isinstance(value, list | tuple):
            raise self.mismatch(value)
        if not self.least <= len(value) <= self.most:
            raise Wrong(f"needs {self.least} to {self.most} values, there are {len(value)}")
        return _items(self.item, value, where)


class MapOf(Type):
    """A table with keys of the user's choice and values of one type."""

    nested = True
    in_toml = True

    def __init__(self, item: Type, *, key: Type | None = None, least: int = 0) -> None:
        self.item = item
        self.key = key
        self.least = least

    def describe(self) -> str:
        """See :class:`Type`."""
        return f"a table; each of its values is {self.item.describe()}"

    def parse(self, value: object, where: Where) -> Any:
        """See :class:`Type`."""
        if not isinstance(value, Mapping):
            raise self.mismatch(value)
        if len(value) < self.least:
            raise Wrong("must not be empty", f"each of its values is {self.item.describe()}")
        for key in value:
            if self.key is not None:
                try:
                    self.key.parse(key, where / key)
                except Wrong as wrong:
                    (where / key).wrong(f"the name of this key {wrong.message}", wrong.suggestion)
        try:
            return MappingProxyType(dict(_each(self.item, value.items(), where)))
        except Reported as reported:
            raise Reported(MappingProxyType(dict(reported.partial))) from None


def _each(item: Type, values: Any, where: Where) -> list[tuple[Any, Any]]:
    """Parse each value and report each that is wrong.

    :returns: key and value of each, in order.
    :raises Reported: one was wrong; ``partial`` is the list with ``None`` for its value.
    """
    made: list[tuple[str | int, Any]] = []
    failed = False
    for key, value in values:
        here = where / key
        parsed = None
        try:
            parsed = item.parse(value, here)
        except Wrong as wrong:
            here.wrong(wrong.message, wrong.suggestion)
            failed = True
        except Reported as reported:
            parsed = reported.partial
            failed = True
        made.append((key, parsed))
    if failed:
        raise Reported(made)
    return made


def _items(item: Type, values: Sequence[Any], where: Where) -> tuple[Any, ...]:
    try:
        return tuple(value for _, value in _each(item, enumerate(values), where))
    except Reported as reported:
        raise Reported(tuple(value for _, value in reported.partial)) from None


def dotted(path: KeyPath) -> str:
    """``("sensor", 0, "driver")`` as ``sensor[1].driver``: people count from one."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        else:
            text += ("." if text else "") + printable_key(part)
    return text or "file"


def printable_key(key: str) -> str:
    """A key as TOML writes it, harmless and of bounded length."""
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    if bare and len(key) <= 64:
        return key
    from qis_edge.terminal import harmless  # only odd keys need it

    return f'"{harmless(key, limit=64)}"'


def toml_kind(value: object) -> str:
    """What a TOML value is, for messages; never the value itself."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "an array"
    names = {str: "text", int: "a whole number", float: "a number"}
    return names.get(type(value), "a date or time")


def closest(word: str, known: Sequence[str]) -> str | None:
    """The known word that ``word`` is probably meant to be."""
    import difflib  # only mistakes need it

    lowered = {name.lower(): name for name in known}
    if (exact := lowered.get(word.lower().replace("-", "_"))) is not None:
        return exact
    found = difflib.get_close_matches(word[:64].lower(), list(lowered), 1, 0.6)
    return lowered[found[0]] if found else None


def did_you_mean(word: str, known: Sequence[str]) -> str | None:
    """A suggestion: the nearest known word, or all of them where they are few."""
    if (near := closest(word, known)) is not None:
        return f"did you mean {near}?"
    if known and len(known) <= 12:
        return f"known here: {', '.join(known)}"
    return None
