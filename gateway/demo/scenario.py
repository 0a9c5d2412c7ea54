"""What happens when, in hours of the simulated clock since its epoch."""

from __future__ import annotations

import csv
import importlib.resources
from dataclasses import dataclass, replace
from datetime import UTC, datetime

HOUR = 3600
DATA = "weather-nyc-2013.csv"
DATA_PACKAGE = "gateway.demo_data"
STATIONS = ("EWR", "JFK", "LGA")
#: The situation that all three share; the season comes from the calendar.
FIELDS = {"climate": "cfa", "terrain": "coast"}


@dataclass(frozen=True, slots=True)
class Span:
    """From one hour up to, not including, another."""

    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Failure:
    """A station's thermometer gives nothing for a while."""

    station: str
    span: Span


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run.

    :param epoch: unix seconds at which the simulated clock starts.
    :param hours: how long it runs.
    :param seconds_per_hour: real seconds that one simulated hour takes.
    :param learning: hours in which nothing goes wrong.
    :param broker_down: when the broker is dead.
    :param killed: which station's node is killed, when, and when it is started again.
    :param failures: when thermometers fail, each for 48 hours or more.
    """

    epoch: int
    hours: int
    seconds_per_hour: float
    learning: int
    broker_down: Span
    killed: tuple[str, Span]
    failures: tuple[Failure, ...]

    @property
    def rate(self) -> float:
        """Simulated seconds in a real one."""
        return HOUR / self.seconds_per_hour

    def time(self, hour: int) -> int:
        """Unix seconds of an hour."""
        return self.epoch + hour * HOUR


FULL = Scenario(
    epoch=int(datetime(2013, 9, 5, tzinfo=UTC).timestamp()),
    hours=12 * 24,
    seconds_per_hour=0.2,
    learning=60,
    broker_down=Span(124, 164),
    killed=("LGA", Span(194, 206)),
    failures=(
        Failure("EWR", Span(64, 124)),
        Failure("LGA", Span(132, 192)),
        Failure("JFK", Span(212, 272)),
    ),
)

#: For the tests: the same, with one failure less.
SHORT = replace(
    FULL,
    hours=7 * 24,
    learning=48,
    broker_down=Span(104, 122),
    killed=("JFK", Span(156, 164)),
    failures=(Failure("EWR", Span(50, 100)), Failure("LGA", Span(106, 156))),
)


def readings(column: str) -> dict[tuple[str, int], float]:
    """(station, unix time) → what was really measured."""
    found: dict[tuple[str, int], float] = {}
    text = importlib.resources.files(DATA_PACKAGE).joinpath(DATA).read_text()
    for row in csv.DictReader(text.splitlines()):
        if row[column]:
            time = int(datetime.fromisoformat(row["time"]).timestamp())
            found[row["station"], time] = float(row[column])
    return found
