"""From raw readings to outcomes, one for each window of time.

A window is aligned to UTC: it starts at a whole multiple of its length since the epoch, so
that all nodes with windows of one length speak of the same time.

What a window's readings of one result become is that result's statistic: mean, median,
minimum, maximum or last; of words the last, or the most frequent (the latest of equals).
Readings outside the template's bounds, not finite, or of the wrong type are faults of the
sensor: they count as not received.

Kind and confidence follow from how much was received and how well it agrees. For each
result that the node should give, with *n* readings received, *expected* readings in a full
window, standard deviation *s* of the readings and the template's *tolerance*::

    coverage  = min(1, n / expected)
    agreement = 1 / (1 + (s / tolerance)²)                  1 without a tolerance
                share of the readings that are the word     for the most frequent word
                1                                           for the last word

    confidence = mean over the results of coverage · agreement

and the kind is the first of these that holds:

``open``
    the mean coverage is below 0.25: too little to say anything
``contradicted``
    a result has agreement below 0.5: its readings scatter more than the tolerance
``partial``
    a result has coverage below 0.8
``resolved``
    otherwise

A window without any reading is ``open``, with every result missing. After a gap of more
than :data:`MAX_EMPTY` windows (the machine slept, the clock was set) none are made up for
it. Where the clock was set back by more than a window, windows are begun anew from there,
and the same time may be stated twice; where it was set back by less, readings for windows
that are closed already are dropped and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from qis_edge.core.domain import Domain
from qis_edge.core.errors import QisError, UsageError
from qis_edge.core.outcome import Kind, Outcome, Value
from qis_edge.core.robust import median
from qis_edge.core.template import (
    NUMERIC_STATISTICS,
    WORD_STATISTICS,
    Result,
    Statistic,
    nearest,
)

OPEN_BELOW = 0.25
PARTIAL_BELOW = 0.8
CONTRADICTED_BELOW = 0.5
#: Windows without readings that are stated after a gap, at most.
MAX_EMPTY = 48
#: Windows that may be open at once: a sensor's clock may run ahead, a log be read at once.
MAX_OPEN = 4096
#: Values of one result and window that are kept for a median (more are thinned
#: evenly), and readings of one window for a function of the user.
MAX_KEPT = 2048


@dataclass(frozen=True, slots=True)
class Window:
    """What a distilling function of the user is given.

    :param time: start, unix seconds.
    :param length: seconds.
    :param expected: readings of a full window.
    :param readings: (unix time, values by result name), in order of arrival; what is outside
        the template's bounds is missing from them.
    """

    time: int
    length: int
    expected: int
    readings: Sequence[tuple[float, Mapping[str, Value]]]


class Distiller:
    """Turns one node's readings into outcomes. Pure: time comes with each call.

    :param window: length of a window, seconds.
    :param expected: readings of a full window; 1 or more.
    :param results: name of each result that the node gives → its statistic, or ``None`` for
        the template's.
    :param function: takes the place of the statistics and of the formula above.
    :raises UsageError: a result is not in the template, a statistic does not suit it, or a
        number is out of bounds.
    """

    def __init__(
        self,
        domain: Domain,
        *,
        window: int,
        expected: int,
        results: Mapping[str, Statistic | str | None],
        function: Callable[[Window], Outcome] | None = None,
    ) -> None:
        for number, name in ((window, "window"), (expected, "expected")):
            if number < 1:
                raise UsageError(f"{number}, must be at least 1", field=name)
        if not results:
            raise UsageError("at least one", field="results")
        self._domain = domain
        self._length = window
        self._expected = expected
        self._statistics = {
            name: (domain.result(name), _statistic(domain.result(name), chosen))
            for name, chosen in results.items()
        }
        self._function = function
        self._open: dict[int, _Readings] = {}
        self._current: int | None = None  # start of the oldest window that is not closed
        self.rejected = 0  # values that were faults of a sensor
        self.late = 0  # readings for windows that were closed already
        self.skipped = 0  # windows of gaps that were too long to be stated
        self.failures = 0  # windows in which the user's function failed
        self.last_error: str | None = None

    def feed(self, time: float, values: Mapping[str, Value]) -> bool:
        """Take one reading.

        :param time: unix seconds at which it holds.
        :param values: by result name; ``None`` where a channel failed.
        :returns: whether it will count (it was not late, and has a plausible value).
        :raises UsageError: it has a result that the node does not give.
        """
        good: dict[str, float | str] = {}
        for name, value in values.items():
            if name not in self._statistics:
                raise UsageError(
                    "the node does not give this result",
                    field=name,
                    hint=nearest(name, self._statistics),
                )
            if value is None:
                continue
            if self._statistics[name][0].plausible(value):
                good[name] = value
            else:
                self.rejected += 1
        if not good:
            return False
        if not 0 <= time < 2**40:
            self.rejected += len(good)
            return False
        start = self._start(time)
        if self._current is None:
            self._current = start
        if start < self._current:
            self.late += 1
            return False
        readings = self._open.get(start)
        if readings is None:
            if len(self._open) >= MAX_OPEN:
                self.rejected += len(good)
                return False
            readings = self._open[start] = _Readings(self._function is not None)
        readings.add(time, good)
        return True

    def next_deadline(self) -> float | None:
        """Unix seconds at which :meth:`roll` has something to do, or ``None`` before
        anything was fed or rolled."""
        return None if self._current is None else self._current + self._length

    def roll(self, now: float) -> list[Outcome]:
        """Close the windows that have ended by ``now`` (unix seconds): their outcomes, oldest
        first."""
        here = self._start(max(0.0, now))
        if self._current is None:
            self._current = here
        if here > self._current:
            starts = self._ended(self._current, here)
        elif here < self._current - self._length:  # the clock was set back
            starts = sorted(self._open)
        else:
            return []
        self._current = here
        return [self._close(start, self._open.pop(start, None)) for start in starts]

    # --- inside ------------------------------------------------------------------------

    def _start(self, time: float) -> int:
        return math.floor(time / self._length) * self._length

    def _ended(self, begin: int, end: int) -> list[int]:
        """The windows to state of those that start at ``begin`` or later, before ``end``."""
        filled = sorted(start for start in self._open if start < end)
        empty = (end - begin) // self._length - len(filled)
        if empty <= MAX_EMPTY:
            return list(range(begin, end, self._length))
        self.skipped += empty
        return filled

    def _close(self, start: int, readings: _Readings | None) -> Outcome:
        readings = readings or _Readings(False)
        outcome = None
        if self._function is not None:
            outcome = self._by_function(start, readings)
        return outcome if outcome is not None else self._by_formula(start, readings)

    def _by_function(self, start: int, readings: _Readings) -> Outcome | None:
        assert self._function is not None
        window = Window(start, self._length, self._expected, tuple(readings.kept or ()))
        try:
            outcome = self._function(window)
            if not isinstance(outcome, Outcome):
                raise UsageError(f"returned a {type(outcome).__name__}", field="function")
            return self._domain.quantise(replace(outcome, time=start))
        except Exception as error:  # noqa: BLE001 - a user's function may raise anything
            self.failures += 1
            self.last_error = str(error) if isinstance(error, QisError) else repr(error)
            return None

    def _by_formula(self, start: int, readings: _Readings) -> Outcome:
        results: dict[str | int, Value] = {}
        coverages: list[float] = []
        agreements: list[float] = []
        samples = 0
        for name, (result, statistic) in self._statistics.items():
            series = readings.series.get(name)
            if series is None:
                results[name] = None
                coverages.append(0.0)
                agreements.append(1.0)
                continue
            results[name] = series.value(statistic)
            samples = max(samples, series.count)
            coverages.append(min(1.0, series.count / self._expected))
            agreements.append(series.agreement(result, statistic))
        count = len(coverages)
        confidence = sum(c * a for c, a in zip(coverages, agreements, strict=True)) / count
        outcome = Outcome(
            time=start,
            kind=_kind(coverages, agreements),
            confidence=confidence,
            samples=samples,
            results=results,
        )
        return self._domain.quantise(outcome)


def _statistic(result: Result, chosen: Statistic | str | None) -> Statistic:
    if chosen is None:
        return result.statistic
    text = chosen.value if isinstance(chosen, Statistic) else chosen
    suitable = WORD_STATISTICS if result.words else NUMERIC_STATISTICS
    if text not in suitable:
        raise UsageError(
            f"{text!r} does not suit it", field=result.name, hint=f"one of {', '.join(suitable)}"
        )
    return Statistic(text)


def _kind(coverages: Sequence[float], agreements: Sequence[float]) -> Kind:
    if sum(coverages) / len(coverages) < OPEN_BELOW:
        return Kind.OPEN
    if min(agreements) < CONTRADICTED_BELOW:
        return Kind.CONTRADICTED
    if min(coverages) < PARTIAL_BELOW:
        return Kind.PARTIAL
    return Kind.RESOLVED


class _Readings:
    """What came for one window."""

    __slots__ = ("kept", "series")

    def __init__(self, keep: bool) -> None:
        self.series: dict[str, _Numbers | _Words] = {}
        self.kept: list[tuple[float, Mapping[str, Value]]] | None = [] if keep else None

    def add(self, time: float, values: Mapping[str, float | str]) -> None:
        for name, value in values.items():
            series = self.series.get(name)
            if series is None:
                series = self.series[name] = _Words() if isinstance(value, str) else _Numbers()
            series.add(time, value)
        if self.kept is not None and len(self.kept) < MAX_KEPT:
            self.kept.append((time, dict(values)))


class _Numbers:
    """The readings of one number."""

    __slots__ = (
        "_m2",
        "_stride",
        "count",
        "last",
        "last_time",
        "maximum",
        "mean",
        "minimum",
        "some",
    )

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._m2 = 0.0  # sum of squared deviations from the mean (Welford)
        self.minimum = math.inf
        self.maximum = -math.inf
        self.last = 0.0
        self.last_time = -math.inf
        self.some: list[float] = []  # every stride-th value, for the median
        self._stride = 1

    def add(self, time: float, value: float | str) -> None:
        value = float(value)
        if self.count % self._stride == 0:
            if len(self.some) == MAX_KEPT:
                self.some = self.some[::2]
                self._stride *= 2
            self.some.append(value)
        self.count += 1
        delta = value - self.mean
        self.mean += delta / self.count
        self._m2 += delta * (value - self.mean)
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)
        if time >= self.last_time:
            self.last, self.last_time = value, time

    def value(self, statistic: Statistic) -> float:
        if statistic is Statistic.MEDIAN:
            return median(self.some)
        return {
            Statistic.MEAN: self.mean,
            Statistic.MINIMUM: self.minimum,
            Statistic.MAXIMUM: self.maximum,
            Statistic.LAST: self.last,
        }[statistic]

    def agreement(self, result: Result, statistic: Statistic) -> float:
        del statistic  # the readings scatter whatever is made of them
        if result.tolerance is None:
            return 1.0
        return 1.0 / (1.0 + self._m2 / self.count / result.tolerance**2)


class _Words:
    """The readings of one word."""

    __slots__ = ("count", "counts", "last", "last_time")

    def __init__(self) -> None:
        self.count = 0
        self.counts: dict[str, tuple[int, float]] = {}  # how often, and when last
        self.last = ""
        self.last_time = -math.inf

    def add(self, time: float, value: float | str) -> None:
        word = str(value)
        self.count += 1
        often, when = self.counts.get(word, (0, -math.inf))
        self.counts[word] = (often + 1, max(when, time))
        if time >= self.last_time:
            self.last, self.last_time = word, time

    def value(self, statistic: Statistic) -> str:
        if statistic is Statistic.LAST:
            return self.last
        return max(self.counts, key=lambda word: self.counts[word])

    def agreement(self, result: Result, statistic: Statistic) -> float:
        del result
        if statistic is Statistic.LAST:
            return 1.0
        return self.counts[self.value(statistic)][0] / self.count
