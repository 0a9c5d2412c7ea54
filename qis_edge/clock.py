"""Clocks: the system's, or a simulated one that several processes share.

Only runtimes hold a clock; the core takes ``now`` as an argument.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol


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


async def sleep_until(clock: Clock, when: float) -> None:
    """Sleep until the clock shows ``when``; survives clocks that jump, by looking often."""
    while (left := when - clock.now()) > 0:  # noqa: ASYNC110 - a clock raises no events
        await asyncio.sleep(min(clock.real(left), 30.0))
