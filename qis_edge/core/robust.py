"""Combining values into one: robust for numbers, by weight for words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

#: Standard deviations beyond which a value counts less.
HUBER = 1.5


def median(values: Sequence[float]) -> float:
    """The median of at least one value."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """The value with half of the weight on either side; between two, their middle.

    At least one value, every weight above 0.
    """
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
    deviations from it count less, in proportion to their distance.

    At least one value, every weight above 0.

    :param deviations: standard deviation of each value, above 0.
    """
    if len(values) == 1:
        return values[0]
    centre = weighted_median(values, weights)
    small = 1e-3 * min(deviations)
    for _ in range(20):
        total = moment = 0.0
        for value, weight, deviation in zip(values, weights, deviations, strict=True):
            distance = abs(value - centre)
            if distance > HUBER * deviation:
                weight *= HUBER * deviation / distance
            total += weight
            moment += weight * (value - centre)
        centre += moment / total
        if abs(moment) <= small * total:
            break
    return centre


def most_weight(votes: Iterable[tuple[str, float]]) -> tuple[str, float] | None:
    """The word with the most weight (the first in the alphabet of equals) and its share;
    ``None`` where there is no weight."""
    totals: dict[str, float] = {}
    for word, weight in votes:
        totals[word] = totals.get(word, 0.0) + weight
    total = math.fsum(totals.values())
    if total <= 0:
        return None
    best = max(sorted(totals), key=totals.__getitem__)
    return best, totals[best] / total
