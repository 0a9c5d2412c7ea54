"""Clocks: the system's, or a simulated one that several processes share.

Only runtimes hold a clock; the core takes ``now`` as an argument.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

#: What the clock moves by more, against the seconds since boot, is a step: somebody set it.
STEP = 60.0


def boot_seconds() -> float:
    """Seconds since boot, suspensions included: nobody sets them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock(Protocol):
    """Seconds since the epoch, and a way to wait for them to pass."""

    def now(self) -> float:
        """Unix seconds."""
        ...

    def real(self, seconds: float) -> float:
        """How many real seconds pass while ``seconds`` of this clock do."""
        ...


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The machine's clock, shifted by what a gateway told (a node without a clock)."""

    offset: float = 0.0

    def now(self) -> float:
        return time.time() + self.offset

    def real(self, seconds: float) -> float:
        return seconds


@dataclass(frozen=True, slots=True)
class SimulatedClock:
    """``epoch`` was at the machine's time ``anchor``; since then it runs ``rate`` times as fast."""

    epoch: float
    anchor: float
    rate: float

    def now(self) -> float:
        return self.epoch + (time.time() - self.anchor) * self.rate

    def real(self, seconds: float) -> float:
        return seconds / self.rate


class Steps:
    """Notices that the machine's clock was set while we run.

    :param now: reads it, unix seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._zero = now() - boot_seconds()
        #: How often it was set, and by how much the last time, seconds.
        self.count = 0
        self.last = 0.0

    def look(self) -> float:
        """By how many seconds it was set since the last look: forward is positive, 0 is
        not at all. Nobody notices what is less than :data:`STEP`."""
        before, self._zero = self._zero, self._now() - boot_seconds()
        moved = self._zero - before
        if abs(moved) <= STEP:
            return 0.0
        self.count += 1
        self.last = moved
        return moved


async def sleep_until(clock: Clock, when: float) -> None:
    """Sleep until the clock shows ``when``; survives clocks that jump, by looking often."""
    while (left := when - clock.now()) > 0:  # noqa: ASYNC110 - a clock raises no events
        await asyncio.sleep(min(clock.real(left), 30.0))
