"""What time it is, on a machine that may not know.

A board without a battery clock wakes up in the past. Until somebody who knows has told
(the system's time synchronisation, or a gateway's greeting), outcomes are kept with the
boot and its monotonic clock, and get their true time later.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from pathlib import Path

from qis_edge.clock import STEP, Clock, Steps, SystemClock, boot_seconds

#: Nobody runs this before it was written: 2026-01-01.
BUILT = 1_767_225_600
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIMESYNC = Path("/run/systemd/timesync")
#: A gateway's time that differs by less changes nothing, seconds.
TOLERANCE = 2.0
#: Seconds after which whoever sleeps looks at the clock again.
_LOOK = 30.0


def boot_id() -> str:
    """Names this boot of the machine."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"


class Timekeeper:
    """The node's clock, and whether it may be believed. It is a :class:`qis_edge.clock.Clock`.

    The system's clock is believed where it was set from outside. Otherwise time is counted
    from the boot, so that nobody's setting of the system's clock moves it: from what is
    known to have passed at first, from what a gateway told later.

    :param clock: the configured one; a simulated clock is always believed.
    :param floor: unix seconds that have surely passed.
    :param synchronised: whether the system's clock was set from outside; ``None`` looks.
    """

    def __init__(self, clock: Clock, floor: int, *, synchronised: bool | None = None) -> None:
        self._clock = clock
        self._given = synchronised
        self._simulated = not isinstance(clock, SystemClock)
        self._floor = floor
        #: How often the system's clock was set since we run, whether it rules or not.
        self.steps = Steps(lambda: self._clock.now())  # noqa: PLW0108 - the clock may be another one later
        self._teller = b""  # who told the time; nobody in particular while this is empty
        self._stepped = asyncio.Event()
        #: Seconds by which it may be wrong.
        self.uncertainty = 0.0
        #: How often it was set by more than a little.
        self.era = 0
        #: Unix seconds at this boot's monotonic zero; ``None`` where the system's clock rules.
        self.offset: float | None = None
        self.trusted = self._simulated or self._system_is_right(floor)
        if not self.trusted:
            self.offset = max(clock.now(), float(floor)) - boot_seconds()

    def _system_is_right(self, floor: int) -> bool:
        known = _synchronised() if self._given is None else self._given
        # Where nobody says whether it was set, it must at least not contradict what we know.
        return known is not False and self._clock.now() >= (BUILT if known else max(floor, BUILT))

    def now(self) -> float:
        """Unix seconds."""
        return self._clock.now() if self.offset is None else self.offset + boot_seconds()

    def real(self, seconds: float) -> float:
        """See :class:`qis_edge.clock.Clock`."""
        return self._clock.real(seconds)

    @property
    def known(self) -> float | None:
        """The time where it may be believed, for judging credentials."""
        return self.now() if self.trusted else None

    # - learning

    def learn(self, seconds: float, uncertainty: float, teller: bytes = b"") -> bool:
        """Somebody told the time; whether that was news.

        A system's clock that was set from outside is left alone. A clock that was told may
        be corrected, or told more exactly, by who told it, and by nobody else: two gateways
        that disagree must not push it to and fro.

        :param seconds: unix seconds, now.
        :param teller: kid of the gateway, which proved itself.
        """
        if self.offset is None:
            return False
        if self.trusted:
            another = self._teller not in (b"", teller)
            alike = abs(seconds - self.now()) <= max(TOLERANCE, uncertainty)
            if another or (alike and uncertainty > self.uncertainty / 2):
                return False
        self._set(seconds - boot_seconds(), uncertainty, teller)
        return True

    def look(self) -> bool:
        """Look whether the system's clock was set from outside since; whether we now know
        the time by it."""
        moved = 0.0 if self._simulated else self.steps.look()
        if self.offset is None or self._given is not None:
            return False
        known = _synchronised()
        if known is None:
            # Nobody says whether it was set; but it was, just now, and to what may be true.
            known = bool(moved) and not self.trusted and self._clock.now() >= self._floor
        if not known or self._clock.now() < BUILT:
            return False
        self._set(None, 0.0, b"")
        return True

    @property
    def confirmed(self) -> bool:
        """Whether the system's time synchronisation says that its clock is right."""
        return (_synchronised() if self._given is None else self._given) is True

    @property
    def source(self) -> str:
        """Who says what time it is: ``simulated``, ``system``, ``gateway`` or ``nobody``."""
        if self._simulated:
            return "simulated"
        if self.offset is None:
            return "system"
        return "gateway" if self.trusted else "nobody"

    def _set(self, offset: float | None, uncertainty: float, teller: bytes) -> None:
        before, untrusted = self.now(), not self.trusted
        self.offset, self.uncertainty, self._teller = offset, uncertainty, teller
        self.trusted = True
        if untrusted or abs(self.now() - before) > STEP:
            self.era += 1
            self._stepped.set()
            self._stepped = asyncio.Event()

    @property
    def doubt(self) -> int | None:
        """Whole seconds by which it may be wrong, to be told to others; ``None`` below one."""
        return math.ceil(self.uncertainty) if self.uncertainty >= 1 else None

    @property
    def boot_offset(self) -> float:
        """Unix seconds at the monotonic zero of this boot."""
        return self.now() - boot_seconds()

    # - waiting

    async def sleep_until(self, when: float) -> None:
        """Until it shows ``when``, or is set. (That the system's clock was set back by
        somebody else is noticed within half a minute.)"""
        stepped = self._stepped
        last = now = self.now()
        while last <= now < when and not stepped.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self.real(when - now), _LOOK)):
                    await stepped.wait()
            last, now = now, self.now()


def _synchronised() -> bool | None:
    """What systemd-timesyncd says; ``None`` where it does not run."""
    if not _TIMESYNC.is_dir():
        return None
    return (_TIMESYNC / "synchronized").exists()
