"""Combining voices into one value: robust for numbers, by weight for words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

#: Standard deviations beyond which a voice counts less.
HUBER = 1.5
#: Newest values of a peer that are kept of each result.
KEPT = 8


def weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """The value with half of the weight on either side; between two, their middle.

    At least one value, every weight above 0."""
    ordered = sorted(zip(values, weights, strict=True))
    half = math.fsum(weights) / 2
    total = 0.0
    for n, (value, weight) in enumerate(ordered):
        total += weight
        if total > half * (1 + 1e-12):
            return value
        if total >= half * (1 - 1e-12) and n + 1 < len(ordered):
            return (value + ordered[n + 1][0]) / 2
    return ordered[-1][0]


def huber_mean(
    values: Sequence[float], weights: Sequence[float], deviations: Sequence[float]
) -> float:
    """Huber's weighted mean: values more than :data:`HUBER` of their own standard
    deviations from it count as if they were just there.

    :param deviations: standard deviation of each value, above 0.
    """
    if len(values) == 1:
        return values[0]
    centre = weighted_median(values, weights)
    for _ in range(5):
        total = moment = 0.0
        for value, weight, deviation in zip(values, weights, deviations, strict=True):
            distance = abs(value - centre)
            limit = HUBER * deviation
            if distance > limit:
                weight *= limit / distance
            total += weight
            moment += weight * value
        moved = moment / total - centre
        centre += moved
        if abs(moved) < 1e-3 * deviations[0]:
            break
    return centre


def most_weight(votes: Iterable[tuple[str, float]]) -> tuple[str, float] | None:
    """The word with the most weight (the first in the alphabet of equals) and its share;
    ``None`` where there is no weight."""
    totals: dict[str, float] = {}
    for word, weight in votes:
        totals[word] = totals.get(word, 0.0) + weight
    total = sum(totals.values())
    if total <= 0:
        return None
    best = max(sorted(totals), key=totals.__getitem__)
    return best, totals[best] / total


class Recent:
    """The newest values of one result from one source, with the window each is of."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        #: (start of the window, value, quality 0..1), in order of time.
        self._kept: list[tuple[int, float | str, float]] = []

    def hear(self, slot: int, value: float | str, quality: float) -> bool:
        """Keep a value. :returns: False where there was one of the same window already,
        which it replaces."""
        kept = self._kept
        fresh = True
        if not kept or slot > kept[-1][0]:
            kept.append((slot, value, quality))
        else:
            fresh = all(one[0] != slot for one in kept)
            others = [one for one in kept if one[0] != slot]
            kept[:] = sorted([*others, (slot, value, quality)], key=lambda one: one[0])
        if len(kept) > KEPT:
            del kept[0]
        return fresh

    def at(self, slot: int) -> tuple[int, float | str, float] | None:
        """The newest value at or before a window; the nearest after it where there is none."""
        for one in reversed(self._kept):
            if one[0] <= slot:
                return one
        return self._kept[0] if self._kept else None
