"""Voices: what peers say of a result, and how much each is worth.

The inner part of :mod:`qis_edge.core.synthesis`, which tells what it is for. A thousand
peers are heard for each estimate: so what is done for each of them is written out in one
loop, and what is the same for many of them is worked out once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from qis_edge.core.calibration import DAY, FIRST, Bias, Course, phase
from qis_edge.core.domain import Result
from qis_edge.core.outcome import Label, Outcome, Value
from qis_edge.core.robust import median
from qis_edge.core.trust import NEUTRAL, OUT, Score, Trust, faded

#: Seconds after which a value says nothing of now.
OLDEST = 7 * DAY
#: Outcomes of a peer that are kept, the newest.
KEPT = 8
#: Standard deviations of a stranger, in those of the worst peer that we know.
STRANGER = 3.0


class Voice(NamedTuple):
    """One value that enters an estimate."""

    weight: float  # quality / variance
    value: float
    variance: float
    quality: float  # trust · confidence · samples/(samples + 1)
    freshness: float  # 1, less what drift adds to the variance


class Age(NamedTuple):
    """What there is to know of the values of one result that are of one window."""

    seconds: int  # how far the window is from ours
    cos: float
    sin: float
    added: float  # what our course adds since
    drift: float
    least: float  # of the variance: drift and resolution


#: A value of a peer whose bias is known: weight, value, variance, quality, bias, age.
Heard = tuple[float, float, float, float, Bias, Age]


class Number:
    """A numeric result while it is estimated, and what peers say of it."""

    __slots__ = ("ages", "course", "high", "known", "low", "name", "result", "strangers")

    def __init__(self, result: Result, course: Course) -> None:
        self.result, self.course = result, course
        self.name, self.low, self.high = result.name, result.low, result.high
        #: By the start of a window.
        self.ages: dict[int, Age] = {}
        self.known: list[Heard] = []
        #: (value, drift, quality) of peers whose bias is not known.
        self.strangers: list[tuple[float, float, float]] = []

    def age(self, since: int, slot: int) -> Age:
        """Of values of a window."""
        if (known := self.ages.get(since)) is not None:
            return known
        drift = self.course.drift(slot - since)
        made = self.ages[since] = Age(
            abs(slot - since),
            *phase(since),
            self.course.carry(since, slot),
            drift,
            resolution(self.result) ** 2 + drift,
        )
        return made


class Peer:
    """What is known of one peer."""

    __slots__ = ("biases", "recent")

    def __init__(self) -> None:
        self.biases: dict[str, Bias] = {}
        #: (start of the window, outcome, quality), in order of time, the newest :data:`KEPT`.
        self.recent: list[tuple[int, Outcome, float]] = []

    def hear(self, slot: int, outcome: Outcome) -> bool:
        """Keep an outcome. :returns: False where there was one of the same window already,
        which it replaces."""
        recent = self.recent
        fresh = True
        samples = outcome.samples or 1
        heard = (slot, outcome, (outcome.confidence or 0.01) * samples / (samples + 1))
        if not recent or slot > recent[-1][0]:
            recent.append(heard)
        else:
            others = [one for one in recent if one[0] != slot]
            fresh = len(others) == len(recent)
            recent[:] = sorted([*others, heard], key=lambda one: one[0])
        if len(recent) > KEPT:
            del recent[0]
        return fresh

    def newest(self, result: Result, slot: int) -> tuple[int, float | str, float] | None:
        """The newest plausible value at or before a window, else the nearest after it, with
        its window and its quality; not one that is more than :data:`OLDEST` from it."""
        found = None
        for since, outcome, quality in reversed(self.recent):
            if since < slot - OLDEST:
                break
            value = outcome.results.get(result.name)
            if since <= slot + OLDEST and value is not None and result.plausible(value):
                found = since, value, quality
                if since <= slot:
                    break
        return found


_NOT_JUDGED: Mapping[str, Score] = {}
#: The newest outcome of a peer: results, the peer's biases, quality, kid, peer, its scores,
#: and the score below which a look at the others is due.
_Row = tuple[
    Mapping[Label, Value], Mapping[str, Bias], float, bytes, Peer, Mapping[str, Score], float
]


def listen(
    numbers: Iterable[Number], peers: Mapping[bytes, Peer], trusted: Trust, slot: int, when: float
) -> None:
    """Hear all that peers say of these results. There may be a thousand of them."""
    #: Start of a window → what peers said of it who said nothing of a later one.
    latest: dict[int, list[_Row]] = {}
    scores = trusted.scores
    for kid, peer in peers.items():
        if peer.recent:
            since, outcome, quality = peer.recent[-1]
            judged = scores.get(kid, _NOT_JUDGED)
            row = outcome.results, peer.biases, quality, kid, peer, judged, OUT * len(judged)
            if (rows := latest.get(since)) is None:
                rows = latest[since] = []
            rows.append(row)
    for number in numbers:
        for since, rows in latest.items():
            _listen_to(number, since, rows, trusted, slot, when)


def _listen_to(
    number: Number, since: int, rows: list[_Row], trusted: Trust, slot: int, when: float
) -> None:
    name, low, high = number.name, number.low, number.high
    latest = age = number.age(since, slot)
    usable = since <= slot and latest.seconds <= OLDEST
    keep, weight, least, first = number.known.append, trusted.weight, latest.least, FIRST
    judged, fade = when, 1.0
    for results, biases, quality, kid, peer, scores, doubtful in rows:
        # What is written out here is trust.weight: a call would take most of the time.
        if (score := scores.get(name)) is not None:
            trust, time = score
            if time < when:
                if time != judged:
                    judged, fade = time, faded(time, when)
                trust = NEUTRAL + (trust - NEUTRAL) * fade
            if trust < doubtful and weight(kid, name, when) <= 0.0:
                continue
        elif (trust := weight(kid, name, when)) <= 0.0:
            continue
        value = results.get(name)
        if usable and type(value) is float and low <= value <= high:
            age = latest
        else:
            if (newest := peer.newest(number.result, slot)) is None:
                continue
            age = number.age(newest[0], slot)
            value, quality = float(newest[1]), newest[2]
            if age.seconds > OLDEST:
                continue
        quality *= trust
        bias = biases.get(name)
        if bias is None or bias.count < first:
            number.strangers.append((value + age.added, age.drift, quality))
        else:
            total = bias.variance + (least if age is latest else age.least)
            keep((quality / total, value, total, quality, bias, age))


def of_strangers(
    result: Result, strangers: list[tuple[float, float, float]], worst: float
) -> list[Voice]:
    """Voices of peers whose bias is not known.

    :param worst: the largest variance of those whose bias is known; 0: there are none.
    """
    if not strangers:
        return []
    values = [value for value, _, _ in strangers]
    if worst > 0:
        deviation = STRANGER * math.sqrt(worst)
    elif len(values) > 1:
        middle = median(values)
        deviation = 1.5 * median([abs(value - middle) for value in values])
    else:
        deviation = result.tolerance or 0.0
    variance = max(deviation, resolution(result)) ** 2
    return [voice_of(value, variance, drift, quality) for value, drift, quality in strangers]


def known_voice(
    weight: float, value: float, variance: float, quality: float, bias: Bias, age: Age
) -> Voice:
    """What was heard of a peer whose bias is known, as a voice."""
    corrected = value + bias.at_phase(age.cos, age.sin) + age.added
    return Voice(weight, corrected, variance, quality, 1 - age.drift / variance)


def voice_of(value: float, variance: float, drift: float, quality: float) -> Voice:
    """A value of this variance when it was new."""
    total = variance + drift
    return Voice(quality / total, value, total, quality, variance / total)


def resolution(result: Result) -> float:
    """The smallest difference that means anything."""
    return float(10.0 ** (result.power or 0))
