"""A domain: what situations there are in one kind of work, and what outcomes state.

    domain = Domain.load("weather")
    here = domain.situation(climate="cfa", terrain="coast", ...)
    here.fingerprint                     # 32 bytes: the address that it shares

The template's text is described in :mod:`qis_edge.core.template`, the addresses in
:mod:`qis_edge.core.fingerprint`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from qis_edge.core import fingerprint as address
from qis_edge.core import template
from qis_edge.core.errors import DoesNotFit, UsageError
from qis_edge.core.outcome import Label, Outcome, Value
from qis_edge.core.template import Continuous, Field, KeyPath, Result, nearest

__all__ = ["Continuous", "Domain", "Field", "Result", "Situation"]

#: Steps in which a vector travels.
_VECTOR_DIGITS = 3


@dataclass(frozen=True)
class Domain:
    """What a template says. Made by :meth:`parse` or :meth:`load`.

    Labels may be given as names or as codes wherever a result is asked for.
    """

    name: str
    revision: int
    scheme: str
    title: str
    fields: tuple[Field, ...]
    continuous: tuple[Continuous, ...]
    results: tuple[Result, ...]

    _loader: ClassVar[Callable[[str], Domain] | None] = None

    @classmethod
    def parse(
        cls, text: str, source: str = "template", *, lines: Mapping[KeyPath, int] | None = None
    ) -> Domain:
        """A domain from the text of its template.

        :param source: what errors call the text: a file or a name.
        :param lines: the line of each key, where known, for errors.
        :raises ConfigError: with all that is wrong with the template.
        """
        said = template.read(text, source, lines)
        return cls(
            said.name,
            said.revision,
            said.scheme,
            said.title,
            said.fields,
            said.continuous,
            said.results,
        )

    @classmethod
    def load(cls, name: str) -> Domain:
        """An installed template by its name, or one in a file by its path.

        :raises ConfigError: there is none such, or it is wrong.
        """
        if cls._loader is None:  # only where the package's front door was gone round
            raise UsageError("nothing was installed that finds templates", field="name")
        return cls._loader(name)

    @classmethod
    def install_loader(cls, loader: Callable[[str], Domain]) -> None:
        """Say how :meth:`load` finds templates, which takes I/O that is not done here."""
        cls._loader = loader

    def __repr__(self) -> str:
        return f"<Domain {self.name}/{self.revision}>"

    # --- situations --------------------------------------------------------------------

    def situation(
        self,
        fields: Mapping[str, str] | None = None,
        /,
        *,
        vector: Mapping[str, float] | Sequence[float] | None = None,
        **named: str,
    ) -> Situation:
        """A situation from the values of all its fields.

        :param vector: the continuous fields in their units, by name or in the template's
            order; all of them or none. What lies outside their bounds is moved to the bound.
        :raises UsageError: a field is missing or unknown, or its value is not listed.
        """
        given = {**(fields or {}), **named}
        known = {field.name: field for field in self.fields}
        for name in given:
            if name not in known:
                raise UsageError(
                    f"{self.name} has no such field", field=str(name), hint=nearest(name, known)
                )
        values: list[str] = []
        for name, field in known.items():
            if name not in given:
                raise UsageError("is missing", field=name, hint=f"one of {', '.join(field.values)}")
            value = given[name]
            if value not in field.values:
                # A number is never taken for a word: 1, 1.0 and "1" must not differ.
                close = nearest(value, field.values) if isinstance(value, str) else None
                raise UsageError(
                    f"{value!r} is not listed in {self.name}",
                    field=name,
                    hint=close or f"one of {', '.join(field.values)}",
                )
            values.append(value)
        return Situation(self, tuple(values), self._vector(vector))

    def _vector(
        self, given: Mapping[str, float] | Sequence[float] | None
    ) -> tuple[float, ...] | None:
        if given is None:
            return None
        names = [field.name for field in self.continuous]
        if isinstance(given, Mapping):
            if unknown := next((name for name in given if name not in names), None):
                raise UsageError(
                    f"{self.name} has no such continuous field",
                    field=f"vector.{unknown}",
                    hint=nearest(unknown, names),
                )
            if missing := next((name for name in names if name not in given), None):
                raise UsageError("is missing", field=f"vector.{missing}")
            given = [given[name] for name in names]
        if len(given) != len(names):
            raise UsageError(f"{len(given)} numbers, must be {len(names)}", field="vector")
        if not names:
            return None
        scaled = []
        for value, field in zip(given, self.continuous, strict=True):
            if not math.isfinite(value):
                raise UsageError(f"{value} is not a number", field=f"vector.{field.name}")
            share = (min(max(value, field.low), field.high) - field.low) / (field.high - field.low)
            scaled.append(round(2 * share - 1, _VECTOR_DIGITS) + 0.0)
        return tuple(scaled)

    def shared_fields(self, a: bytes, b: bytes) -> int | None:
        """In how many leading fields two addresses agree; ``None`` where that cannot be told:
        one is not of this domain, or the scheme is ``sha256`` and they differ."""
        if self._prefix is not None:
            return self._prefix.shared_fields(a, b)
        return len(self.fields) if a == b else None

    def prefix_bits(self, count: int) -> int:
        """How many leading bits of their addresses situations share at least when their
        first ``count`` fields agree.

        :raises UsageError: the scheme is ``sha256`` (no part of an address means anything).
        """
        if self._prefix is None:
            raise UsageError("has no prefixes to widen to", field=f"scheme of {self.name}")
        if not 0 <= count <= len(self.fields):
            raise UsageError(f"{count}, must be 0..{len(self.fields)}", field="count")
        return self._prefix.prefix_bits(count)

    def recognise(self, fingerprint: bytes) -> Situation | None:
        """The situation behind an address, or ``None`` where it is not of this domain or
        cannot be read (``sha256``). Its vector is not in the address."""
        fields = self._prefix.read(fingerprint) if self._prefix else None
        return None if fields is None else self.situation(fields)

    @cached_property
    def _prefix(self) -> address.PrefixScheme | None:
        if self.scheme != "prefix":
            return None
        fields = [(field.name, field.values, field.weight) for field in self.fields]
        return address.PrefixScheme(self.name, self.revision, fields)

    # --- results -----------------------------------------------------------------------

    def result(self, label: Label) -> Result:
        """What the template says of a result.

        :raises UsageError: it says nothing of it.
        """
        found = self._by_label.get(label)
        if found is None:
            names = [result.name for result in self.results]
            raise UsageError(
                f"{self.name} has no such result",
                field=str(label),
                hint=nearest(str(label), names) or f"one of {', '.join(names)}",
            )
        return found

    def get(self, label: Label) -> Result | None:
        """What the template says of a result, or ``None`` where it says nothing of it."""
        return self._by_label.get(label)

    def label_of(self, name: Label) -> Label:
        """The code of a result; a label that is not in the template stays as it is."""
        found = self._by_label.get(name)
        return name if found is None else found.code

    def name_of(self, label: Label) -> Label:
        """The name of a result; a label that is not in the template stays as it is."""
        found = self._by_label.get(label)
        return label if found is None else found.name

    def power_of(self, name: Label) -> int | None:
        """A result's resolution as a power of ten; ``None`` where it is one of words or not
        in the template."""
        found = self._by_label.get(name)
        return None if found is None else found.power

    def quantise(self, outcome: Outcome) -> Outcome:
        """The outcome with its numbers rounded to the template's resolution, and its
        confidence to hundredths. Words, missing values and results that the template does
        not know stay as they are.

        :raises DoesNotFit: a number is not finite, or is where a word belongs.
        """
        rounded = {name: self._rounded(name, value) for name, value in outcome.results.items()}
        return replace(outcome, results=rounded, confidence=round(outcome.confidence, 2))

    def _rounded(self, name: Label, value: Value) -> Value:
        if value is None or isinstance(value, str):
            return value
        if not math.isfinite(value):
            raise DoesNotFit(f"{value} is not a finite number", field=f"results.{name}")
        found = self._by_label.get(name)
        if found is None:
            return value
        if found.power is None:
            raise DoesNotFit(f"{value} is a number, not a word", field=f"results.{name}")
        return found.rounded(value)

    @cached_property
    def _by_label(self) -> dict[Label, Result]:
        found: dict[Label, Result] = {result.name: result for result in self.results}
        found.update((result.code, result) for result in self.results)
        return found


@dataclass(frozen=True)
class Situation:
    """Made by :meth:`Domain.situation`.

    :param values: one of each field, in the template's order.
    :param vector: the continuous fields, -1..1 each in steps of 0.001, or ``None``. It is
        not part of the address.
    """

    domain: Domain
    values: tuple[str, ...]
    vector: tuple[float, ...] | None = None

    @property
    def fields(self) -> dict[str, str]:
        """Value by name of field."""
        return {f.name: v for f, v in zip(self.domain.fields, self.values, strict=True)}

    @cached_property
    def fingerprint(self) -> bytes:
        """The address, 32 bytes."""
        scheme = self.domain._prefix
        return address.plain(self.fields) if scheme is None else scheme.fingerprint(self.fields)

    def neighbours(self) -> tuple[Situation, ...]:
        """The situations that are one step away in one ordinal field."""
        found = []
        for n, field in enumerate(self.domain.fields):
            if field.ordinal:
                here = field.values.index(self.values[n])
                for step in (here - 1, here + 1):
                    if 0 <= step < len(field.values):
                        values = (*self.values[:n], field.values[step], *self.values[n + 1 :])
                        found.append(Situation(self.domain, values, self.vector))
        return tuple(found)

    def widen(self, bits: int = address.BITS) -> tuple[tuple[bytes, int], ...]:
        """The addresses to ask for, each as (fingerprint, leading bits), this one first, then
        those of the neighbouring values of the ordinal fields that lie within ``bits`` (what
        lies behind them is covered anyway).

        :param bits: how many leading bits must agree; 256 asks for single addresses. See
            :meth:`Domain.prefix_bits`.
        :raises UsageError: ``bits`` is not 256 and the scheme is ``sha256``.
        """
        if not 0 <= bits <= address.BITS:
            raise UsageError(f"{bits}, must be 0..{address.BITS}", field="bits")
        if bits < address.BITS:
            self.domain.prefix_bits(0)  # refuses a scheme that has none
        distinct: dict[bytes, bytes] = {}
        for situation in (self, *self.neighbours()):
            whole = situation.fingerprint
            distinct.setdefault(address.masked(whole, bits), whole)
        return tuple((whole, bits) for whole in distinct.values())
