"""The text of a domain template (TOML) and what it says, checked.

An expert writes a template once for a kind of work::

    name = "weather"
    revision = 1
    title = "Surface weather"
    scheme = "prefix"              # or "sha256"; see qis_edge.core.fingerprint

    [[field]]                      # the most important first
    name = "season"
    values = ["winter", "spring", "summer", "autumn"]
    ordinal = false                # whether neighbours in the list are alike
    weight = 1                     # its share of the address, relative to the other fields

    [[continuous]]                 # optional: fine differences between situations
    name = "elevation"
    unit = "m"
    low = -430
    high = 8849

    [[result]]                     # a number …
    name = "temperature"
    code = 1                       # stands for the name on the wire; below 24 costs 1 byte
    unit = "Cel"                   # UCUM
    resolution = 0.1               # a power of ten
    statistic = "mean"             # mean, median, minimum, maximum, last
    low = -90                      # what lies outside is a fault, not a reading
    high = 60
    tolerance = 2.5                # a window's readings that scatter more contradict each other

    [[result]]                     # … or a word
    name = "precipitation_type"
    code = 9
    words = ["none", "rain", "snow"]
    statistic = "last"             # last, mode
"""

from __future__ import annotations

import enum
import math
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeGuard

from qis_edge.core.errors import ConfigError, ConfigProblem
from qis_edge.core.fingerprint import PrefixScheme

#: Where a value lies: keys of tables and indices of arrays of tables.
KeyPath = tuple[str | int, ...]

NAME = re.compile(r"[a-z0-9_]{1,64}")
SCHEMES = ("prefix", "sha256")
MAX_FIELDS = 16
MAX_VALUES = 256
MAX_CONTINUOUS = 16  # as many as a packet's vector holds
MAX_RESULTS = 64  # as many as a packet's columns hold
MAX_CODE = 2**16 - 1
MAX_POWER = 12
#: No packet can carry a larger number, and squares of this one do not overflow.
MAX_NUMBER = 1e30
#: An argument of ``Domain.situation`` that no field may be called.
RESERVED = "vector"

_UNIT = re.compile(r"[!-~]{1,32}")


class Statistic(enum.Enum):
    """What stands for a window's readings."""

    MEAN = "mean"
    MEDIAN = "median"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    LAST = "last"
    MODE = "mode"  # words only: the most frequent, the latest of equals


NUMERIC_STATISTICS = tuple(s.value for s in Statistic if s is not Statistic.MODE)
WORD_STATISTICS = (Statistic.LAST.value, Statistic.MODE.value)


@dataclass(frozen=True, slots=True)
class Field:
    """A categorical field of a situation."""

    name: str
    values: tuple[str, ...]
    ordinal: bool = False
    weight: float = 1.0
    title: str = ""


@dataclass(frozen=True, slots=True)
class Continuous:
    """A continuous field; -1 at ``low``, +1 at ``high`` in a situation's vector."""

    name: str
    low: float
    high: float
    unit: str = "1"
    title: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """Something that outcomes state: a number, or one of some words.

    :param power: the resolution as a power of ten; ``None`` for words.
    :param low: lowest plausible value; numbers only, as are ``high`` and ``tolerance``.
    :param tolerance: standard deviation of one window's readings above which they
        contradict each other; ``None``: they never do.
    :param words: what it may be, or empty for a number.
    """

    name: str
    code: int
    unit: str = "1"
    power: int | None = 0
    statistic: Statistic = Statistic.MEAN
    low: float = -MAX_NUMBER
    high: float = MAX_NUMBER
    tolerance: float | None = None
    words: tuple[str, ...] = ()
    title: str = ""

    def plausible(self, value: object) -> bool:
        """Whether a value is of the right type, finite and within the bounds (or words)."""
        if isinstance(value, str):
            return value in self.words
        if self.words or isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high  # false of NaN

    def rounded(self, value: float) -> float:
        """The nearest multiple of the resolution (ties to the even digit); never ``-0.0``.

        :raises ValueError: it is not finite, or the result is one of words.
        """
        if self.power is None or not math.isfinite(value):
            raise ValueError(f"{value!r} is not a finite number for {self.name}")
        if self.power <= 0:
            return round(value, -self.power) + 0.0
        unit: int = 10**self.power
        return float(round(value / unit) * unit)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a template says."""

    name: str
    revision: int
    scheme: str
    title: str
    fields: tuple[Field, ...]
    continuous: tuple[Continuous, ...]
    results: tuple[Result, ...]


def nearest(word: str, choices: Collection[str]) -> str | None:
    """``did you mean …?`` for a word that is not among the choices, or ``None``."""
    import difflib  # 2 ms that only a mistake costs

    close = difflib.get_close_matches(word, choices, n=1)
    return f'did you mean "{close[0]}"?' if close else None


def read(text: str, source: str, lines: Mapping[KeyPath, int] | None = None) -> Contents:
    """Read a template.

    :param source: what errors call it: a file or a name.
    :param lines: the line of each key, where known.
    :raises ConfigError: with all that is wrong with it.
    """
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of a number of thousands of digits
        match = re.search(r"\(at line (\d+)", str(error))
        line = int(match[1]) if match else None
        raise ConfigError([ConfigProblem(source, line, "TOML", str(error))]) from None
    reader = _Reader(source, lines or {})
    contents = reader.contents(values)
    if reader.problems:
        raise ConfigError(reader.problems)
    return contents


class _Reader:
    """Collects problems; what it returns is meaningful only when there are none."""

    def __init__(self, source: str, lines: Mapping[KeyPath, int]) -> None:
        self.source = source
        self.lines = lines
        self.problems: list[ConfigProblem] = []

    def contents(self, values: Mapping[str, Any]) -> Contents:
        known = ("name", "revision", "scheme", "title", "field", "continuous", "result")
        self.unknown(values, known, ())
        contents = Contents(
            name=self.name(values, ()),
            revision=self.integer(values, "revision", (), 0, 2**32 - 1),
            scheme=self.choice(values, "scheme", (), SCHEMES, "prefix"),
            title=self.text(values, "title", ()),
            fields=tuple(
                self.field(table, ("field", n))
                for n, table in enumerate(self.tables(values, "field", 1, MAX_FIELDS))
            ),
            continuous=tuple(
                self.continuous(table, ("continuous", n))
                for n, table in enumerate(self.tables(values, "continuous", 0, MAX_CONTINUOUS))
            ),
            results=tuple(
                self.result(table, ("result", n))
                for n, table in enumerate(self.tables(values, "result", 1, MAX_RESULTS))
            ),
        )
        categorical = [field.name for field in contents.fields]
        self.unique(categorical, "field", "name")
        continuous = [field.name for field in contents.continuous]
        self.unique(continuous, "continuous", "name", taken=categorical)
        self.unique([r.name for r in contents.results], "result", "name")
        self.unique([r.code for r in contents.results], "result", "code")
        if not self.problems and contents.scheme == "prefix":
            self.prefix(contents)
        return contents

    def prefix(self, contents: Contents) -> None:
        """Whether the fields fit into an address."""
        fields = [(field.name, field.values, field.weight) for field in contents.fields]
        try:
            PrefixScheme(contents.name, contents.revision, fields)
        except ValueError as error:
            self.wrong(("field",), str(error), "give it more weight, or use fewer fields")

    # --- the parts ---------------------------------------------------------------------

    def field(self, table: Mapping[str, Any], at: KeyPath) -> Field:
        known = ("name", "values", "ordinal", "weight", "title")
        self.unknown(table, known, at)
        name = self.name(table, at)
        if name == RESERVED:
            self.wrong((*at, "name"), f'"{name}" is reserved', "call it something else")
        values = self.words(table, "values", at, 1)
        ordinal = table.get("ordinal", False)
        if not isinstance(ordinal, bool):
            self.wrong((*at, "ordinal"), "must be true or false")
        weight = self.number(table, "weight", at, default=1.0, low=0.0, open_low=True)
        title = self.text(table, "title", at)
        return Field(name, values, ordinal is True, weight, title)

    def continuous(self, table: Mapping[str, Any], at: KeyPath) -> Continuous:
        self.unknown(table, ("name", "low", "high", "unit", "title"), at)
        low = self.number(table, "low", at)
        high = self.number(table, "high", at)
        if low >= high:
            self.wrong((*at, "high"), "must be above low")
        return Continuous(
            self.name(table, at),
            low,
            high,
            self.unit(table, at, "1"),
            self.text(table, "title", at),
        )

    def result(self, table: Mapping[str, Any], at: KeyPath) -> Result:
        name = self.name(table, at)
        code = self.integer(table, "code", at, 0, MAX_CODE)
        title = self.text(table, "title", at)
        if "words" in table:
            self.unknown(table, ("name", "code", "words", "statistic", "title"), at)
            statistic = self.choice(table, "statistic", at, WORD_STATISTICS, "last")
            words = self.words(table, "words", at, 2)
            return Result(
                name, code, power=None, statistic=Statistic(statistic), words=words, title=title
            )
        known = ("name", "code", "unit", "resolution", "statistic", "low", "high", "tolerance",
                 "words", "title")  # fmt: skip
        self.unknown(table, known, at)
        low = self.number(table, "low", at, default=-MAX_NUMBER)
        high = self.number(table, "high", at, default=MAX_NUMBER)
        if low >= high:
            self.wrong((*at, "high"), "must be above low")
        tolerance = self.number(table, "tolerance", at, default=0.0, low=0.0, open_low=True)
        return Result(
            name,
            code,
            self.unit(table, at, None),
            self.power(table, at),
            Statistic(self.choice(table, "statistic", at, NUMERIC_STATISTICS, "mean")),
            low,
            high,
            tolerance if "tolerance" in table else None,
            title=title,
        )

    # --- single values -----------------------------------------------------------------

    def wrong(self, at: KeyPath, message: str, suggestion: str | None = None) -> None:
        line = next(
            (self.lines[at[:end]] for end in range(len(at), 0, -1) if at[:end] in self.lines), None
        )
        self.problems.append(ConfigProblem(self.source, line, _key(at), message, suggestion))

    def unknown(self, table: Mapping[str, Any], known: Collection[str], at: KeyPath) -> None:
        for key in table:
            if key not in known:
                self.wrong((*at, key), "there is no such key", nearest(key, known))

    def tables(self, values: Mapping[str, Any], key: str, low: int, high: int) -> list[Any]:
        found = values.get(key, [])
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            self.wrong((key,), f"must be tables, each headed [[{key}]]")
            return []
        if not low <= len(found) <= high:
            self.wrong((key,), f"there are {len(found)}, must be {low}..{high}")
        return found[:high]

    def name(self, table: Mapping[str, Any], at: KeyPath) -> str:
        value = table.get("name")
        if value is None:
            self.wrong((*at, "name"), "is missing")
        elif not isinstance(value, str) or not NAME.fullmatch(value):
            self.wrong((*at, "name"), f"{value!r} is not a name: a-z, 0-9 and _, at most 64")
        else:
            return value
        return ""

    def words(self, table: Mapping[str, Any], key: str, at: KeyPath, low: int) -> tuple[str, ...]:
        found = table.get(key)
        if not isinstance(found, list) or not low <= len(found) <= MAX_VALUES:
            self.wrong((*at, key), f"must be an array of {low}..{MAX_VALUES} words")
            return ()
        for word in found:
            if not isinstance(word, str) or not NAME.fullmatch(word):
                hint = f'write "{word}"' if isinstance(word, int | float) else None
                self.wrong((*at, key), f"{word!r} is not a word: a-z, 0-9 and _, at most 64", hint)
            elif found.count(word) > 1:
                self.wrong((*at, key), f'"{word}" is there {found.count(word)} times')
                break
        return tuple(word for word in found if isinstance(word, str))

    def text(self, table: Mapping[str, Any], key: str, at: KeyPath) -> str:
        value = table.get(key, "")
        if isinstance(value, str) and len(value) <= 200 and value.isprintable():
            return value
        self.wrong((*at, key), "must be a line of text, at most 200 characters")
        return ""

    def unit(self, table: Mapping[str, Any], at: KeyPath, default: str | None) -> str:
        value = table.get("unit", default)
        if isinstance(value, str) and _UNIT.fullmatch(value):
            return value
        self.wrong((*at, "unit"), "must be a unit in UCUM", '"1" where there is none')
        return "1"

    def integer(self, table: Mapping[str, Any], key: str, at: KeyPath, low: int, high: int) -> int:
        value = table.get(key)
        if type(value) is int and low <= value <= high:
            return value
        self.wrong((*at, key), f"must be a whole number {low}..{high}")
        return low

    def number(
        self,
        table: Mapping[str, Any],
        key: str,
        at: KeyPath,
        *,
        default: float | None = None,
        low: float = -MAX_NUMBER,
        open_low: bool = False,
    ) -> float:
        if default is not None and key not in table:
            return default
        value = table.get(key)
        if _is_number(value) and (value > low if open_low else value >= low):
            return float(value)
        self.wrong(
            (*at, key), f"must be a number above {low:g}" if open_low else "must be a number"
        )
        return math.nan  # compares false with everything: no second problem for one mistake

    def choice(
        self, table: Mapping[str, Any], key: str, at: KeyPath, choices: Sequence[str], default: str
    ) -> str:
        value = table.get(key, default)
        if value in choices:
            return str(value)
        hint = nearest(value, choices) if isinstance(value, str) else None
        self.wrong((*at, key), f"must be one of {', '.join(choices)}", hint)
        return default

    def power(self, table: Mapping[str, Any], at: KeyPath) -> int:
        value = table.get("resolution")
        if _is_number(value) and value > 0:
            _, digits, exponent = Decimal(str(value)).normalize().as_tuple()
            if digits == (1,) and isinstance(exponent, int) and abs(exponent) <= MAX_POWER:
                return exponent
        self.wrong((*at, "resolution"), "must be a power of ten, such as 0.1 or 10")
        return 0

    def unique(
        self,
        items: Sequence[str | int],
        table: str,
        key: str,
        *,
        taken: Sequence[str | int] = (),
    ) -> None:
        for n, item in enumerate(items):
            if item != "" and (item in items[:n] or item in taken):
                self.wrong((table, n, key), f"{item!r} is taken by an earlier one")


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and -MAX_NUMBER <= value <= MAX_NUMBER


def _key(at: KeyPath) -> str:
    """``field[2].values``: tables of an array are counted from 1, as people do."""
    text = ""
    for part in at:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text
