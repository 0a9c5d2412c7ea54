"""The situation of a window, as the configuration says: constants, the calendar, results.

No I/O but the loading of the domain template.
"""

from __future__ import annotations

import dataclasses
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from qis_edge.core.domain import Domain, Field, Situation
from qis_edge.core.errors import ConfigError
from qis_edge.core.outcome import Outcome, Value
from qis_edge.schema import (
    WORD,
    Flag,
    ListOf,
    MapOf,
    Number,
    Table,
    Text,
    Where,
    closest,
    did_you_mean,
    quoted,
    setting,
)

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_SEASONS = ("winter", "spring", "summer", "autumn")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_PARTS = ("night", "morning", "afternoon", "evening")

#: What a field may be taken from besides results, with each word that it can give.
CALENDAR: Mapping[str, tuple[str, ...]] = {
    "calendar.season": _SEASONS,
    "calendar.month": _MONTHS,
    "calendar.weekday": _DAYS,
    "calendar.day_type": ("workday", "weekend"),
    "calendar.day_part": _DAY_PARTS,
    "calendar.hour": tuple(f"{hour:02}" for hour in range(24)),
}

_FROM_RESULT = r"result\.[a-z0-9_]{1,64}"


@dataclass(frozen=True, slots=True)
class Place:
    """What of a place the calendar depends on.

    :param south: south of the equator, where the seasons are turned round.
    :param utc_offset: hours that local time is ahead of UTC. Fixed: a situation should not
        jump when clocks change for summer.
    """

    south: bool = False
    utc_offset: float = 0.0


def calendar(source: str, time: float, place: Place) -> str:
    """The word of a source of :data:`CALENDAR` at a unix time.

    Seasons are the meteorological ones, of three whole months: winter begins in December,
    south of the equator in June. The parts of a day have six hours, the night from 0.
    """
    local = datetime.fromtimestamp(0, UTC) + timedelta(seconds=time, hours=place.utc_offset)
    index = {
        "calendar.season": (local.month % 12 // 3 + (2 if place.south else 0)) % 4,
        "calendar.month": local.month - 1,
        "calendar.weekday": local.weekday(),
        "calendar.day_type": int(local.weekday() >= 5),
        "calendar.day_part": local.hour // 6,
        "calendar.hour": local.hour,
    }[source]
    return CALENDAR[source][index]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSource:
    """Where the value of a categorical field comes from."""

    value: str | None = setting(WORD, None, "The value, for good.", example="coast")
    source: str | None = setting(
        Text(
            "|".join([*map(re.escape, CALENDAR), _FROM_RESULT]),
            what=", ".join(f'"{name}"' for name in CALENDAR) + ' or "result.<name>"',
        ),
        None,
        "The calendar at the node's place, or a result of the same window. A season has three "
        "whole months, a part of the day (``night``, ``morning``, ``afternoon``, ``evening``) "
        "six hours.",
        example="calendar.season",
        name="from",
    )
    bins: tuple[float, ...] = setting(
        ListOf(Number(-1e12, 1e12), most=255),
        [],
        "Where a number is cut, ascending. A number on an edge belongs to the upper bin. "
        "Without bins the result must be a word, which is then the value.",
        example=[0, 10, 20],
    )
    values: tuple[str, ...] = setting(
        ListOf(WORD, most=256),
        [],
        "The value of each bin, one more than edges; all of the field's values in the "
        "template's order, unless given.",
        example=["freezing", "cold", "mild", "warm"],
    )
    missing: str | None = setting(
        WORD, None, "The value where the result is missing.", example="unknown"
    )

    @staticmethod
    def normalise(value: object) -> object:
        """A bare word is the value."""
        return {"value": value} if isinstance(value, str) else value

    @property
    def result(self) -> str | None:
        """The result that it is taken from."""
        return _result_of(self.source)

    def check(self, where: Where) -> None:
        """What does not go together."""
        if (self.value is None) == (self.source is None):
            where.wrong("must have either value or from")
        if list(self.bins) != sorted(set(self.bins)):
            (where / "bins").wrong("must ascend")
        if self.result is None:
            for key in ("bins", "values", "missing"):
                if getattr(self, key):
                    (where / key).wrong('has a meaning only with from = "result.<name>"')
            return
        if self.missing is None:
            (where / "missing").wrong("is missing: which value holds where there is no result?")
        if self.values and len(self.values) != len(self.bins) + 1:
            (where / "values").wrong(
                f"{len(self.bins)} edges make {len(self.bins) + 1} bins, not {len(self.values)}"
            )

    def judge(self, field: Field, where: Where) -> None:
        """Report what the template's field does not allow."""
        given = [("missing", self.missing), *(("values", word) for word in self.values)]
        for at, word in [(where, self.value), *((where / key, word) for key, word in given)]:
            if word is not None and word not in field.values:
                at.wrong(
                    f"{quoted(word)} is not a value of {field.name}",
                    did_you_mean(word, field.values) or _one_of(field),
                )
        if self.source is not None and self.source in CALENDAR:
            unlisted = [word for word in CALENDAR[self.source] if word not in field.values]
            if unlisted:
                where.wrong(f"{self.source} gives {unlisted[0]}, which {field.name} cannot be")
        if self.bins and not self.values and len(self.bins) != len(field.values) - 1:
            count = len(field.values)
            (where / "bins").wrong(
                f"{field.name} has {count} values, which needs {count - 1} edges, "
                f"not {len(self.bins)}",
                "or say the value of each bin with values",
            )

    def at(self, field: Field, time: float, results: Mapping[str, Value], place: Place) -> str:
        """The value in a window: a constant, a word of the calendar, a bin, a word, or
        ``missing`` where the result is missing, of another kind or not listed."""
        if self.value is not None:
            return self.value
        if self.source is not None and self.source in CALENDAR:
            return calendar(self.source, time, place)
        found = results.get(self.result or "")
        fallback = self.missing or field.values[0]  # check() saw to it that there is one
        if isinstance(found, str):
            return found if found in field.values and not self.bins else fallback
        if found is None or not self.bins:
            return fallback
        return (self.values or field.values)[bisect_right(self.bins, found)]


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSource:
    """Where the value of a continuous field comes from."""

    value: float | None = setting(
        Number(-1e12, 1e12), None, "The value, for good, in the template's unit.", example=12.5
    )
    source: str | None = setting(
        Text(_FROM_RESULT, what='"result.<name>"'),
        None,
        "A result of the same window.",
        example="result.temperature",
        name="from",
    )

    @staticmethod
    def normalise(value: object) -> object:
        """A bare number is the value."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"value": value} if number else value

    @property
    def result(self) -> str | None:
        """The result that it is taken from."""
        return _result_of(self.source)

    def check(self, where: Where) -> None:
        """What does not go together."""
        if (self.value is None) == (self.source is None):
            where.wrong("must have either value or from")

    def at(self, results: Mapping[str, Value]) -> float | None:
        """The value in a window; ``None`` where its result is missing or no number."""
        if self.result is None:
            return self.value
        found = results.get(self.result)
        return None if isinstance(found, str) else found


@dataclass(frozen=True, slots=True, kw_only=True)
class SituationConfig:
    """What this node is about.

    Nodes in the same situation share an address, and through it what they know.
    """

    domain: str = setting(
        Text(least=1, most=300, what="the name of a domain template, or the path of one"),
        doc="The domain template: the name of an installed one (``weather``, ``air_quality``, "
        "``soil_moisture``), or the path of a TOML file.",
        example="weather",
    )
    south: bool = setting(Flag(), False, "Whether the node is south of the equator: seasons.")
    utc_offset: float = setting(
        Number(-14, 14), 0, "Hours by which local time is ahead of UTC, the same all the year."
    )
    fields: Mapping[str, FieldSource] = setting(
        MapOf(Table(FieldSource, what="a word or a table"), key=WORD),
        doc="The value of each field of the template: a word that never changes, or a table "
        "that says what it is taken ``from``.",
        example={"season": {"from": "calendar.season"}},
    )
    vector: Mapping[str, VectorSource] = setting(
        MapOf(Table(VectorSource, what="a number or a table"), key=WORD),
        {},
        "The continuous fields of the template, all or none: a number that never changes, or "
        "a table that says what it is taken ``from``.",
        example={"elevation": 12.5},
    )
    #: The template, where the configuration was read in full.
    template: Domain | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def place(self) -> Place:
        """What the calendar needs to know of the node's place."""
        return Place(self.south, self.utc_offset)

    def load_domain(self) -> Domain:
        """The template.

        :raises ConfigError: there is none such, or it is wrong.
        """
        return self.template if self.template is not None else Domain.load(self.domain)

    def at(self, domain: Domain, time: float, results: Mapping[str, Value]) -> Situation:
        """The situation of a window.

        :param time: the window's start, unix seconds.
        :param results: what was distilled, by result name.
        :returns: with its vector, unless a result that it needs is missing.
        """
        fields = {
            field.name: self.fields[field.name].at(field, time, results, self.place)
            for field in domain.fields
        }
        vector: dict[str, float] = {}
        for name, source in self.vector.items():
            if (number := source.at(results)) is not None:
                vector[name] = number
        whole = bool(vector) and len(vector) == len(self.vector)
        return domain.situation(fields, vector=vector if whole else None)

    def of(self, domain: Domain, outcome: Outcome) -> Situation:
        """The situation of the window that an outcome states."""
        results = {str(domain.name_of(label)): v for label, v in outcome.results.items()}
        return self.at(domain, outcome.time, results)

    @staticmethod
    def parts(made: dict[str, Any], where: Where) -> None:
        """The template's judgement of the fields."""
        name: str | None = made["domain"]
        if name is None:
            return
        if "/" in name or name.endswith(".toml"):
            made["domain"] = str(where.folder / name)
        if where.full and (domain := _template(made["domain"], where)) is not None:
            made["template"] = domain
            _judge_fields(domain, made["fields"] or {}, where / "fields")
            _judge_vector(domain, made["vector"] or {}, where / "vector")


def _template(name: str, where: Where) -> Domain | None:
    try:
        return Domain.load(name)
    except ConfigError as error:
        for problem in error.problems:
            if problem.line is None:
                (where / "domain").wrong(f"{quoted(name)}: {problem.message}", problem.suggestion)
            else:
                where.report.problems.append(problem)
    return None


def _judge_fields(domain: Domain, sources: Mapping[str, FieldSource | None], where: Where) -> None:
    known = {field.name: field for field in domain.fields}
    for name, source in sources.items():
        if (field := known.get(name)) is None:
            (where / name).wrong(
                f"{domain.name} has no such field", did_you_mean(name, list(known))
            )
        elif source is not None:
            source.judge(field, where / name)
    meant = {closest(name, list(known)) for name in sources if name not in known}
    for name, field in known.items():
        if name not in sources and name not in meant:
            (where / name).wrong("is missing", _one_of(field))


def _judge_vector(domain: Domain, sources: Mapping[str, VectorSource | None], where: Where) -> None:
    known = [field.name for field in domain.continuous]
    for name in sources:
        if name not in known:
            (where / name).wrong(
                f"{domain.name} has no such continuous field", did_you_mean(name, known)
            )
    for name in known:
        if sources and name not in sources:
            (where / name).wrong("is missing: a vector has all continuous fields or none")


def _result_of(source: str | None) -> str | None:
    if source is None or not source.startswith("result."):
        return None
    return source.removeprefix("result.")


def _one_of(field: Field) -> str:
    more = ", …" if len(field.values) > 12 else ""
    return f"must be one of {', '.join(field.values[:12])}{more}"
