"""What is learned from our own readings: how each peer differs from us, and how our day goes.

Both learners take one value a window, in constant memory, and are robust: a single value
moves them by a bounded step, however wild it is.

:class:`Bias` is a peer's habitual difference from us, ``level + a·cos + b·sin`` of the time
of day (two places warm and cool with a different swing: on hourly temperatures of three
airports the daily term takes 6% off the error, on top of the level). The first
differences are kept until there are :data:`FIRST` of them, whose median is the start; from
then on each difference moves it by a share of the surprise, which is clipped at three
times the usual one. The share falls as 1/n, and stops falling after :data:`MEMORY`.

:class:`Course` is how our own readings usually change at each hour of the day. It carries a
peer's reading that is a few hours old forward to now. How far it can be relied upon is
learned too: the regression of real changes on expected ones, between 0 (it predicts
nothing, and changes nothing) and 1. On the same temperatures it takes a fifth off the
error of estimates from readings that are three hours old.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qis_edge.core.robust import median

DAY = 86_400
HOUR = 3_600
#: Seconds after which what was learned of a peer begins to be forgotten.
MEMORY = 4 * DAY
#: Differences that are collected before anything is said of a peer.
FIRST = 5
#: Surprises are clipped at so many times the usual one.
CLIP = 3.0
#: Standard deviation of a normal distribution over its mean absolute deviation.
SIGMA = 1.2533
_TURN = 2 * math.pi / DAY


def phase(time: float) -> tuple[float, float]:
    """Cosine and sine of the time of day, a whole turn."""
    angle = _TURN * (time % DAY)
    return math.cos(angle), math.sin(angle)


class Bias:
    """How far we are above a peer, by the time of day.

    :param window: seconds between values.
    :param floor: smallest difference that means anything, above 0: the resolution.
    """

    __slots__ = (
        "_cos", "_first", "_floor", "_level", "_most", "_scale", "_sin", "_window", "count",
        "variance",
    )  # fmt: skip

    def __init__(self, window: int, floor: float) -> None:
        self._window = window
        self._floor = floor
        self._most = max(FIRST, MEMORY // window)
        self._level = self._cos = self._sin = self._scale = 0.0
        self._first: list[float] = []
        #: Differences that were learned from, at most as many as fit into :data:`MEMORY`.
        self.count = 0
        #: Of what remains when the bias is taken away.
        self.variance = 0.0

    @property
    def learned(self) -> bool:
        """Whether anything can be said."""
        return self.count >= FIRST

    @property
    def spread(self) -> float:
        """Standard deviation of what remains when the bias is taken away."""
        return SIGMA * self._scale

    def at(self, time: float) -> float:
        """What to add to the peer's value; 0 as long as nothing was learned."""
        return self.at_phase(*phase(time))

    def at_phase(self, cos: float, sin: float) -> float:
        """The same, for a time of day as :func:`phase` has it."""
        return self._level + self._cos * cos + self._sin * sin

    def learn(self, difference: float, time: float, share: float = 1.0) -> None:
        """Take in one difference, ours minus theirs, both finite.

        :param share: how much of it to believe, 0..1.
        """
        if self.count < FIRST:
            self._begin(difference)
            return
        surprise = difference - self.at(time)
        step = max(-CLIP * self._scale, min(CLIP * self._scale, surprise)) * share
        self.count = min(self.count + 1, self._most)
        gain = 1 / self.count
        self._level += gain * step
        if self._window <= DAY // 4:
            # The day's swing starts from none and is believed as days go by.
            swing = 2 * step / (self.count + DAY / self._window)
            cos, sin = phase(time)
            self._cos += swing * cos
            self._sin += swing * sin
        # Surprises past twice the clip say that the scale is too small, not how much.
        beyond = min(abs(surprise), 2 * CLIP * self._scale) - self._scale
        self._scale = max(self._scale + gain * share * beyond, self._floor)
        self.variance = self.spread**2

    def _begin(self, difference: float) -> None:
        self._first.append(difference)
        self.count += 1
        if self.count == FIRST:
            self._level = median(self._first)
            self._scale = median([abs(value - self._level) for value in self._first])
            # A scale of nought would clip all that follows to nought.
            self._scale = max(self._scale, self._floor)
            self.variance = self.spread**2
            self._first = []

    def state(self) -> list[float]:
        """Numbers for :meth:`restored`: the count, then the first differences or what was
        learned from them."""
        if not self.learned:
            return [self.count, *self._first]
        learned = (self._level, self._cos, self._sin, self._scale)
        return [self.count, *(float(f"{value:.6g}") for value in learned)]

    @classmethod
    def restored(cls, window: int, floor: float, state: object) -> Bias:
        """From :meth:`state`. What makes no sense is as if nothing was learned."""
        made = cls(window, floor)
        numbers = finite(state)
        if numbers and numbers[0] == len(numbers) - 1 < FIRST:
            for value in numbers[1:]:
                made.learn(value, 0)
        elif len(numbers) == 5 and numbers[0] >= FIRST and numbers[4] > 0:
            made.count = min(int(numbers[0]), made._most)
            made._level, made._cos, made._sin, made._scale = numbers[1:]
            made.variance = made.spread**2
        return made


class Course:
    """How our own readings of one result change in the course of a day.

    :param window: seconds between readings.
    """

    __slots__ = ("_counts", "_expected", "_lag", "_noise", "_points", "_rates", "_seen", "_window")

    def __init__(self, window: int) -> None:
        self._window = window
        self._rates = [0.0] * 24  # change per second in each hour of the day
        self._counts = [0] * 24
        self._expected = 0.0  # sums of the regression of real on expected changes
        self._seen = 0.0
        self._noise = -1.0  # mean change a window that the course does not explain
        # Judged on changes over two hours, or two windows where those are longer.
        self._lag = min(max(2, round(2 * HOUR / window)), 120) * window
        #: Time → reading, and the change over the lag that was expected then.
        self._points: dict[int, tuple[float, float]] = {}

    @property
    def reliance(self) -> float:
        """How much of an expected change to believe, 0..1."""
        return max(0.0, min(1.0, self._expected / self._seen)) if self._seen > 0 else 0.0

    def learn(self, time: int, value: float) -> None:
        """Take in one reading of ours, finite, at the start of its window. Readings come
        in order of time; one that does not is passed over."""
        if self._points and time <= next(reversed(self._points)):
            return
        if self._window <= DAY // 4:
            if (past := self._points.get(time - self._lag)) is not None:
                self._judge(value - past[0], past[1])
            if (before := self._points.get(time - self._window)) is not None:
                self._change(time, value - before[0])
        self._points[time] = (value, self._sum(time, time + self._lag))
        while next(iter(self._points)) < time - self._lag:
            del self._points[next(iter(self._points))]

    def _judge(self, change: float, expected: float) -> None:
        """Compare a change over the lag with what was expected before it began."""
        if self._noise > 0:
            limit = CLIP * self._noise * math.sqrt(self._lag / self._window)
            change = max(expected - limit, min(expected + limit, change))
        fade = max(0.5, 1 - 0.01 * self._window / HOUR)
        self._expected = fade * self._expected + change * expected
        self._seen = fade * self._seen + expected * expected

    def _change(self, time: int, change: float) -> None:
        usual = self._sum(time - self._window, time)
        if self._noise < 0:
            self._noise = abs(change)
        limit = CLIP * self._noise if self._noise > 0 else abs(change)
        step = max(-limit, min(limit, change - usual))
        gain = 0.0
        # The hours that lie between the middles of the two windows, or the one hour.
        for middle in range(time - self._window, time, min(self._window, HOUR)):
            hour = (middle + min(self._window, HOUR) // 2) // HOUR % 24
            self._counts[hour] = min(self._counts[hour] + 1, 10**6)
            gain = min(1.0, max(1 / self._counts[hour], 0.1 * self._window / HOUR))
            self._rates[hour] += gain * step / self._window
        rest = min(abs(change - self.reliance * usual), 2 * CLIP * self._noise or abs(change))
        self._noise += max(0.02, gain / 5) * (rest - self._noise)

    def carry(self, since: float, until: float) -> float:
        """What to add to a value of ``since`` so that it stands for ``until``."""
        return self.reliance * self._sum(since, until) if since != until else 0.0

    def drift(self, seconds: float) -> float:
        """Variance of the change in so many seconds that the course does not explain."""
        return (SIGMA * max(self._noise, 0.0)) ** 2 * abs(seconds) / self._window

    def _sum(self, since: float, until: float) -> float:
        if since > until:
            return -self._sum(until, since)
        total, at = 0.0, since
        if until - since > DAY:  # whole days add up to what a day adds up to
            at = until - (until - since) % DAY
            total = sum(self._rates) * HOUR * ((at - since) // DAY)
        while at < until:
            end = min(until, (at // HOUR + 1) * HOUR)
            total += self._rates[int(at // HOUR) % 24] * (end - at)
            at = end
        return total

    def state(self) -> dict[str, Any]:
        """Numbers for :meth:`restored`."""
        rates = [float(f"{rate:.4g}") for rate in self._rates]
        sums = [float(f"{value:.6g}") for value in (self._expected, self._seen, self._noise)]
        return {"rates": rates, "counts": list(self._counts), "sums": sums}

    @classmethod
    def restored(cls, window: int, state: object) -> Course:
        """From :meth:`state`. What makes no sense is as if nothing was learned."""
        made = cls(window)
        if not isinstance(state, Mapping):
            return made
        rates, counts, sums = (finite(state.get(key)) for key in ("rates", "counts", "sums"))
        if len(rates) == len(counts) == 24 and len(sums) == 3 and min(counts) >= 0:
            made._rates = rates
            made._counts = [int(count) for count in counts]
            made._expected, made._seen, made._noise = sums
        return made


def finite(state: object) -> list[float]:
    """A list of finite numbers, or an empty one where it is not that."""
    if not isinstance(state, list | tuple):
        return []
    numbers = [float(v) for v in state if isinstance(v, int | float) and abs(v) < 1e18]
    return numbers if len(numbers) == len(state) else []
