"""What time it is, on a machine that may not know.

A board without a battery clock wakes up in the past. Until somebody who knows has told
(the system's time synchronisation, or a gateway's greeting), outcomes are kept with the
boot and its monotonic clock, and get their true time later.
"""

from __future__ import annotations

import time
from pathlib import Path

from qis_edge.clock import Clock, SystemClock

#: Nobody runs this before it was written: 2026-01-01.
BUILT = 1_767_225_600
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIMESYNC = Path("/run/systemd/timesync")
#: A gateway's time that differs by less changes nothing, seconds.
TOLERANCE = 2.0


def boot_id() -> str:
    """Names this boot of the machine."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"


def boot_seconds() -> float:
    """Seconds since boot, suspensions included: what outcomes without a clock carry."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Timekeeper:
    """The node's clock, and whether it may be believed. It is a :class:`qis_edge.clock.Clock`.

    :param clock: the configured one; a simulated clock is always believed.
    :param floor: unix seconds that have surely passed.
    :param synchronised: whether the system's clock was set from outside; ``None`` looks.
    """

    def __init__(self, clock: Clock, floor: int, *, synchronised: bool | None = None) -> None:
        self._clock = clock
        self.uncertainty = 0.0
        simulated = not isinstance(clock, SystemClock)
        if synchronised is None:
            synchronised = _is_synchronised()
        self.trusted = simulated or (synchronised and clock.now() >= max(floor, BUILT))
        self._floor = floor

    def now(self) -> float:
        """Unix seconds; never before the floor while nobody has told the time."""
        now = self._clock.now()
        return now if self.trusted else max(now, float(self._floor))

    def real(self, seconds: float) -> float:
        """See :class:`qis_edge.clock.Clock`."""
        return self._clock.real(seconds)

    @property
    def known(self) -> float | None:
        """The time where it may be believed, for judging credentials."""
        return self.now() if self.trusted else None

    def learn(self, seconds: float, uncertainty: float) -> bool:
        """A gateway told the time; whether that was news.

        A clock that is believed is left alone: it is the system's to keep.
        """
        if self.trusted:
            return False
        self._clock = SystemClock(seconds - time.time())
        self.uncertainty = uncertainty
        self.trusted = True
        return True

    @property
    def offset(self) -> float:
        """Unix seconds at the monotonic zero of this boot."""
        return self.now() - boot_seconds()


def _is_synchronised() -> bool:
    """What systemd-timesyncd says; where it does not run, the clock is taken as set."""
    if not _TIMESYNC.is_dir():
        return True
    return (_TIMESYNC / "synchronized").exists()
