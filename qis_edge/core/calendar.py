"""Parts of the calendar as words, for the fields of situations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_SEASONS = ("winter", "spring", "summer", "autumn")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_PARTS = ("night", "morning", "afternoon", "evening")

#: Each part with every word that it can give.
#:
#: ``season`` is the meteorological one, of three whole months (winter begins in December,
#: south of the equator in June). ``day_part`` has six hours: night from 0, morning from 6,
#: afternoon from 12, evening from 18.
PARTS: Mapping[str, tuple[str, ...]] = {
    "month": _MONTHS,
    "season": _SEASONS,
    "weekday": _DAYS,
    "day_type": ("workday", "weekend"),
    "day_part": _DAY_PARTS,
}


@dataclass(frozen=True, slots=True)
class Place:
    """What of a place the calendar depends on.

    :param south: south of the equator, where the seasons are turned round.
    :param utc_offset: minutes that local time is ahead of UTC. Fixed: a situation should not
        jump when clocks change for summer.
    """

    south: bool = False
    utc_offset: int = 0


def word(part: str, time: float, place: Place) -> str:
    """The word for ``part`` (a key of :data:`PARTS`) at a unix time."""
    local = datetime.fromtimestamp(0, UTC) + timedelta(seconds=time, minutes=place.utc_offset)
    if part == "month":
        return _MONTHS[local.month - 1]
    if part == "season":
        return _SEASONS[(local.month % 12 // 3 + (2 if place.south else 0)) % 4]
    if part == "weekday":
        return _DAYS[local.weekday()]
    if part == "day_type":
        return "weekend" if local.weekday() >= 5 else "workday"
    if part == "day_part":
        return _DAY_PARTS[local.hour // 6]
    raise KeyError(part)
