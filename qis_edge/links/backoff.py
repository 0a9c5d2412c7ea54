"""How long to wait before the next attempt."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Doubling delays with jitter, so that a fleet does not come back as one.

    :param first: seconds before the second attempt, on average.
    :param longest: the most seconds, on average.
    :param uniform: random float in a range; replaced in tests.

    The delay is 0.5 to 1.5 times ``first * 2**n``, and no more than 1.5 times ``longest``.
    """

    def __init__(
        self,
        first: float = 1.0,
        longest: float = 120.0,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._first = first
        self._longest = longest
        self._uniform = uniform
        self._step = first

    def next(self) -> float:
        """Seconds to wait now; the next will be longer."""
        step = self._step
        self._step = min(step * 2, self._longest)
        return step * self._uniform(0.5, 1.5)

    def reset(self) -> None:
        """It worked: begin anew."""
        self._step = self._first
