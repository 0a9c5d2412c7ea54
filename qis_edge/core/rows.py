"""Outcomes as columns, and back: the sixth element of a packet's payload.

    one outcome    [kind, confidence, samples, series, ? summary]
    more of them   [count, intervals, kinds, confidences, samples, series, ? summaries]

``series`` maps a label (the small integer that a template gives a result, or its name) to
one series. A numeric series carries its power of ten: an integer or a byte string is a
column at power 0, ``[power, column]`` is any other. Text, ``[words, column]`` and ``null``
are series of words and of nothing. CDDL is in ``docs/wire-format.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate, pairwise
from typing import Protocol

from qis_edge.core import cbor, columns
from qis_edge.core.columns import MAX_ROWS, Row
from qis_edge.core.errors import DoesNotFit, Reason, Refused
from qis_edge.core.outcome import MAX_SAMPLES, Kind, Label, Outcome, Value

MAX_POWER = 12
MAX_SERIES = 64
MAX_LABEL = 64
MAX_LABEL_CODE = 2**16 - 1
MAX_INTERVAL = 2**32 - 1
MAX_TIME = 2**40 - 1


class Template(Protocol):
    """What the packer wants to know of a domain."""

    def label_of(self, name: Label) -> Label:
        """The label on the wire of a result."""
        ...

    def power_of(self, name: Label) -> int | None:
        """Its resolution as a power of ten; ``None`` where it is not in the template."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """The columns of one packet, expanded and checked.

    :param times: start of each outcome, unix seconds, ascending.
    :param confidences: hundredths, 0..100.
    :param series: label → one value a row.
    """

    times: tuple[int, ...]
    kinds: tuple[int, ...]
    confidences: tuple[int, ...]
    samples: tuple[int, ...]
    series: Mapping[Label, Sequence[Value]]
    summaries: Sequence[str | None]

    def outcomes(self) -> Iterator[Outcome]:
        """Row by row. A result that a row lacks is there as ``None``."""
        for row, time in enumerate(self.times):
            yield Outcome(
                time=time,
                kind=Kind(self.kinds[row]),
                confidence=self.confidences[row] / 100,
                samples=self.samples[row],
                results={label: values[row] for label, values in self.series.items()},
                summary=self.summaries[row],
            )


# --- encoding --------------------------------------------------------------------------


def encode(outcomes: Sequence[Outcome], template: Template | None = None) -> bytes:
    """The columns of 1..512 outcomes in ascending order of time, as CBOR.

    Results are encoded at the template's resolution; without one, at the coarsest power
    of ten that holds them all.

    :raises DoesNotFit: a value, a label or the number of rows; the error names it.
    """
    if len(outcomes) == 1:
        return _encode_one(outcomes[0], template)
    if not 0 < len(outcomes) <= MAX_ROWS:
        raise DoesNotFit(f"{len(outcomes)}, must be 1..{MAX_ROWS}", field="outcomes")
    intervals = [after.time - before.time for before, after in pairwise(outcomes)]
    if min(intervals) < 0:
        raise DoesNotFit("not in order of time", field="time")
    if max(intervals) > MAX_INTERVAL:
        raise DoesNotFit(f"more than {MAX_INTERVAL} seconds apart", field="time")
    form: list[object] = [
        len(outcomes),
        columns.encode(intervals),
        columns.encode([int(outcome.kind) for outcome in outcomes]),
        columns.encode([round(outcome.confidence * 100) for outcome in outcomes]),
        columns.encode([outcome.samples for outcome in outcomes]),
        _encode_series(outcomes, template),
    ]
    summaries = columns.encode_texts([outcome.summary for outcome in outcomes])
    return cbor.dumps(form if summaries is None else [*form, summaries])


def _encode_one(outcome: Outcome, template: Template | None) -> bytes:
    """What most packets hold, where each column is its only value. They are made one at a
    time and signed in 20 µs: so this is written out."""
    dumps, kind, results = cbor.dumps, outcome.kind, outcome.results
    if not 0 <= kind <= 3:
        raise DoesNotFit(f"{kind} is no kind", field="kind")
    if type(outcome.samples) is not int:
        raise DoesNotFit("not an integer", field="samples")
    if len(results) > MAX_SERIES:
        raise DoesNotFit(f"{len(results)} results, at most {MAX_SERIES}", field="results")
    series: dict[bytes, bytes] = {}
    for name, value in results.items():
        field = f"results.{name}"
        if template is None:
            label, power = name, None
        else:
            label, power = template.label_of(name), template.power_of(name)
        if type(label) is not int or not 0 <= label <= MAX_LABEL_CODE:
            _check_label(label, field)
        code = dumps(label)
        if code in series:
            raise DoesNotFit(f"given twice, as label {label} too", field=field)
        if type(value) is float and power is not None:
            number = dumps(columns.to_scaled(value, power, field))
            series[code] = b"\x82" + dumps(power) + number if power else number
        else:
            series[code] = dumps(_one_series([value], power, field))
    summary = outcome.summary
    return b"".join(
        [
            b"\x84" if summary is None else b"\x85",
            dumps(int(kind)),
            dumps(round(outcome.confidence * 100)),
            dumps(outcome.samples),
            cbor.head(0xA0, len(series)),
            *[part for pair in sorted(series.items()) for part in pair],
            b"" if summary is None else dumps(summary),
        ]
    )


def _encode_series(outcomes: Sequence[Outcome], template: Template | None) -> dict[Label, object]:
    names: dict[Label, None] = {}
    for outcome in outcomes:
        names.update(dict.fromkeys(outcome.results))
    if len(names) > MAX_SERIES:
        raise DoesNotFit(f"{len(names)} results, at most {MAX_SERIES}", field="results")
    series: dict[Label, object] = {}
    for name in names:
        label = template.label_of(name) if template else name
        field = f"results.{name}"
        _check_label(label, field)
        if label in series:
            raise DoesNotFit(f"given twice, as label {label} too", field=field)
        power = template.power_of(name) if template else None
        series[label] = _one_series([o.results.get(name) for o in outcomes], power, field)
    return series


def _check_label(label: Label, field: str) -> None:
    if isinstance(label, str):
        if not 0 < len(label) <= MAX_LABEL:
            raise DoesNotFit(f"a name has 1..{MAX_LABEL} characters", field=field)
    elif isinstance(label, bool) or not 0 <= label <= MAX_LABEL_CODE:
        raise DoesNotFit(f"code {label} is outside 0..{MAX_LABEL_CODE}", field=field)


def _one_series(values: Sequence[Value], power: int | None, field: str) -> object:
    present = [value for value in values if value is not None]
    words = [value for value in present if isinstance(value, str)]
    if words:
        if len(words) < len(present):
            raise DoesNotFit("numbers and words in one series", field=field)
        if max(map(len, words)) > columns.MAX_TEXT:
            raise DoesNotFit(f"more than {columns.MAX_TEXT} characters", field=field)
        return columns.encode_texts([v if isinstance(v, str) else None for v in values])
    numbers = [None if v is None else float(v) for v in values]
    if power is None:
        power = _coarsest_power([number for number in numbers if number is not None], field)
    column = columns.encode(
        [None if v is None else columns.to_scaled(v, power, field) for v in numbers]
    )
    if column is None:
        return None
    return column if power == 0 and not isinstance(column, list) else [power, column]


def _coarsest_power(numbers: Sequence[float], field: str) -> int:
    powers = []
    for number in numbers:
        exponent = Decimal(repr(number)).normalize().as_tuple().exponent
        if not isinstance(exponent, int):
            raise DoesNotFit(f"{number} is not a finite number", field=field)
        if number:
            powers.append(exponent)
    power = min(powers, default=0)
    if abs(power) > MAX_POWER:
        raise DoesNotFit(f"needs a resolution of 1e{power}", field=field, hint="round it first")
    return min(power, 0) if power <= 2 else power


# --- decoding --------------------------------------------------------------------------


def decode(form: object, time: int) -> Rows:
    """Check and expand the columns of a packet whose first outcome is at ``time``.

    :raises Refused: TYPE, BOUNDS, INTEGER, TRUNCATED, TRAILING or NON_CANONICAL, with the
        column's name as the field.
    """
    if not isinstance(form, list):
        raise Refused(Reason.TYPE, "columns")
    if len(form) == 4 and (one := _decode_single(form, time)) is not None:
        return one
    if len(form) in (4, 5):
        rows, rest = 1, form
        times: tuple[int, ...] = (time,)
    elif len(form) in (6, 7):
        rows = _count(form[0])
        steps = _whole(form[1], rows - 1, "intervals", MAX_INTERVAL)
        times, rest = tuple(accumulate(steps, initial=time)), form[2:]
    else:
        raise Refused(Reason.BOUNDS, "columns", f"{len(form)} of them")
    if times[-1] > MAX_TIME:
        raise Refused(Reason.INTEGER, "time")
    summaries = columns.decode_texts(rest[4], rows, "summary") if len(rest) == 5 else [None] * rows
    return Rows(
        times=times,
        kinds=_whole(rest[0], rows, "kind", max(Kind)),
        confidences=_whole(rest[1], rows, "confidence", 100),
        samples=_whole(rest[2], rows, "samples", MAX_SAMPLES),
        series=_decode_series(rest[3], rows),
        summaries=summaries,
    )


def _decode_single(form: list[object], time: int) -> Rows | None:
    """One outcome of numbers, as nearly all are; ``None``: look closer, or it is refused."""
    kind, confidence, samples, results = form
    # Types exactly: CBOR's true and false decode to bool, which is a kind of int.
    if (
        type(kind) is not int
        or type(confidence) is not int
        or type(samples) is not int
        or type(results) is not dict
        or not (0 <= kind <= 3 and 0 <= confidence <= 100 and 0 <= samples <= MAX_SAMPLES)
        or not (time <= MAX_TIME and len(results) <= MAX_SERIES)
    ):
        return None
    series: dict[Label, Sequence[Value]] = {}
    for label, one in results.items():
        power, number = one if type(one) is list and len(one) == 2 else (0, one)
        if (
            type(label) is not int
            or type(power) is not int
            or type(number) is not int
            or not (0 <= label <= MAX_LABEL_CODE and -MAX_POWER <= power <= MAX_POWER)
            or not -columns.MAX_NUMBER <= number <= columns.MAX_NUMBER
        ):
            return None
        series[label] = [columns.from_scaled(number, power)]
    return Rows((time,), (kind,), (confidence,), (samples,), series, [None])


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refused(Reason.TYPE, "count")
    if not 2 <= value <= MAX_ROWS:
        raise Refused(Reason.BOUNDS, "count", f"{value}, must be 2..{MAX_ROWS}")
    return value


def _whole(column: object, rows: int, field: str, high: int) -> tuple[int, ...]:
    values = columns.decode(column, rows, field, low=0, high=high)
    return tuple(value for value in values if value is not None)


def _decode_series(form: object, rows: int) -> dict[Label, Sequence[Value]]:
    if not isinstance(form, dict):
        raise Refused(Reason.TYPE, "results")
    if len(form) > MAX_SERIES:
        raise Refused(Reason.BOUNDS, "results", f"{len(form)} of them")
    series: dict[Label, Sequence[Value]] = {}
    for label, one in form.items():
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise Refused(Reason.TYPE, "results", "a label")
        if isinstance(label, str):
            in_bounds = 0 < len(label) <= MAX_LABEL
        else:
            in_bounds = 0 <= label <= MAX_LABEL_CODE
        if not in_bounds:
            raise Refused(Reason.BOUNDS, "results", "a label")
        series[label] = _decode_one(one, rows, f"results.{label}")
    return series


def _decode_one(form: object, rows: int, field: str) -> Sequence[Value]:
    power = 0
    if form is None or isinstance(form, str):
        return columns.decode_texts(form, rows, field)
    if isinstance(form, list):
        if len(form) != 2:
            raise Refused(Reason.TYPE, field)
        if isinstance(form[0], list):
            return columns.decode_texts(form, rows, field)
        power, form = form
        if isinstance(power, bool) or not isinstance(power, int):
            raise Refused(Reason.TYPE, f"{field}.power")
        if abs(power) > MAX_POWER:
            raise Refused(Reason.BOUNDS, f"{field}.power", f"{power}")
    low, high = -columns.MAX_NUMBER, columns.MAX_NUMBER
    numbers: list[Row] = columns.decode(form, rows, field, low=low, high=high, missing=True)
    return columns.map_present(numbers, lambda number: columns.from_scaled(number, power))
