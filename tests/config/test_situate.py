"""Situations of constants, the calendar and results."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from qis_edge.config import NodeConfig
from qis_edge.core.domain import Domain
from qis_edge.schema import loads
from qis_edge.situate import CALENDAR, FieldSource, Place, VectorSource, calendar
from tests.config.kit import NODE


@pytest.mark.parametrize(
    ("source", "time", "place", "word"),
    [
        ("calendar.season", "2013-12-01T00:00:00Z", Place(), "winter"),
        ("calendar.season", "2013-11-30T23:59:59Z", Place(), "autumn"),
        ("calendar.season", "2013-11-30T23:59:59Z", Place(utc_offset=1), "winter"),
        ("calendar.season", "2013-12-01T00:00:00Z", Place(south=True), "summer"),
        ("calendar.month", "2013-02-28T12:00:00Z", Place(), "feb"),
        ("calendar.weekday", "2026-11-21T12:00:00Z", Place(), "sat"),
        ("calendar.day_type", "2026-11-21T12:00:00Z", Place(), "weekend"),
        ("calendar.day_type", "2026-11-20T12:00:00Z", Place(), "workday"),
        ("calendar.day_part", "2026-11-21T05:59:59Z", Place(), "night"),
        ("calendar.day_part", "2026-11-21T05:59:59Z", Place(utc_offset=5.5), "morning"),
        ("calendar.hour", "2026-11-21T05:59:59Z", Place(utc_offset=-6), "23"),
    ],
)
def test_the_calendar(source: str, time: str, place: Place, word: str) -> None:
    assert calendar(source, datetime.fromisoformat(time).timestamp(), place) == word
    assert word in CALENDAR[source]


def test_a_situation_comes_from_constants_the_calendar_and_results() -> None:
    text = NODE.replace(
        'terrain = "coast"',
        'terrain = { from = "result.temperature", bins = [0.0, 10.5],'
        ' values = ["ridge", "slope", "valley"], missing = "water" }',
    )
    text += '[situation.vector]\nelevation = 100\nlatitude = { from = "result.temperature" }\n'
    config = loads(NodeConfig, text, Path("c.toml"))
    domain = config.situation.load_domain()

    def at(value: float | str | None) -> tuple[str, tuple[float, ...] | None]:
        made = config.situation.at(domain, 1357000000, {"temperature": value})
        assert made.fields["season"] == "winter"
        assert made.fields["climate"] == "cfa"
        return made.fields["terrain"], made.vector

    assert at(-0.1)[0] == "ridge"
    assert at(0)[0] == "slope"
    assert at(10.5)[0] == "valley"
    assert at(45.0)[1] is not None
    assert at(None) == ("water", None)
    assert at("word") == ("water", None)


def test_a_word_stands_for_itself() -> None:
    field = Domain.load("weather").fields[1]
    source = FieldSource(source="result.ground", missing="water")
    assert source.at(field, 0, {"ground": "ridge"}, Place()) == "ridge"
    assert source.at(field, 0, {"ground": "moon"}, Place()) == "water"
    assert source.at(field, 0, {"ground": 3.0}, Place()) == "water"
    assert source.at(field, 0, {}, Place()) == "water"
    assert VectorSource(value=2.0).at({}) == 2.0
