"""Is the time right?"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from pathlib import Path

from qis_edge.doctor.findings import Finding, error, notice, ok, warning
from qis_edge.terminal import duration, moment

#: Nobody runs this before it was written: 2026-01-01.
BUILT = 1_767_225_600
#: Seconds by which the system's clock may differ from what a gateway told.
TOLERANCE = 5.0
_UNSYNC = 0x40  # STA_UNSYNC of adjtimex(2)
_FIX = "let systemd-timesyncd or chrony keep it: timedatectl set-ntp true"


class _Timex(ctypes.Structure):
    """The beginning of struct timex."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    )


def synchronised(marks: Path = Path("/run/systemd/timesync")) -> bool | None:
    """Whether the system's clock is kept right: by what systemd-timesyncd left, or by what
    the kernel was told (by chrony, ntpd); ``None``: nobody says."""
    if marks.is_dir() and (marks / "synchronized").exists():
        return True
    answer = _Timex()
    try:
        told = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(answer))
    except (OSError, AttributeError):
        return None
    return None if told < 0 else not answer.status & _UNSYNC


def check_clock(
    floor: int,
    *,
    now: float | None = None,
    kept: bool | None = None,
    trusted: bool | None = None,
    told: float | None = None,
    gateway: bool = False,
) -> Iterator[Finding]:
    """The system's clock.

    :param floor: unix seconds that have surely passed.
    :param now: what it shows; it is looked at unless given.
    :param kept: whether it is synchronised, if somebody says so.
    :param trusted: whether the running daemon knows the time; ``None``: it does not run.
    :param told: what the daemon takes the time to be, at ``now``.
    :param gateway: others take the time from this machine.
    """
    now = time.time() if now is None else now
    bad = error if gateway or trusted is False else warning
    later = "" if gateway else "; a node takes it from its gateway, and dates later what it saw"
    if now < BUILT:
        yield bad("clock-not-set", f"the system's clock shows {moment(now)}{later}", _FIX)
    elif now < floor - TOLERANCE:
        yield bad(
            "clock-behind",
            f"the system's clock shows {moment(now)}, and {moment(floor)} has passed "
            f"already{later}",
            _FIX,
        )
    elif kept:
        yield ok("clock", f"{moment(now)}, synchronised")
    elif kept is None:
        yield notice("clock-unknown", "nobody says whether the clock is synchronised", _FIX)
    else:
        yield warning("clock-not-synchronised", f"{moment(now)}, not synchronised{later}", _FIX)
    if trusted is False:
        yield warning(
            "clock-untrusted",
            "the daemon does not know the time yet: outcomes wait until a gateway tells it",
            "wait until a link is up, or set the clock",
        )
    elif told is not None and abs(told - now) > TOLERANCE:
        yield notice(
            "clock-offset",
            f"the system's clock is {duration(abs(told - now))} "
            f"{'behind' if told > now else 'ahead of'} the time that the daemon goes by",
            _FIX,
        )
