"""Templates: what they say, every mistake in them at once, and what they make of values."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge import Domain as FrontDoorDomain
from qis_edge import domains
from qis_edge.core.domain import Domain
from qis_edge.core.errors import ConfigError, ConfigProblem, DoesNotFit, UsageError
from qis_edge.core.outcome import Outcome
from qis_edge.core.template import Statistic

GOOD = """
name = "cellar"
revision = 2
title = "Wine cellars"

[[field]]
name = "wine"
values = ["red", "white"]

[[field]]
name = "size"
ordinal = true
weight = 2
values = ["small", "large"]

[[continuous]]
name = "depth"
unit = "m"
low = 0
high = 10

[[result]]
name = "temperature"
code = 1
unit = "Cel"
resolution = 0.1
statistic = "median"
low = -10
high = 50
tolerance = 1.5

[[result]]
name = "bottles"
code = 7
unit = "1"
resolution = 10

[[result]]
name = "light"
code = 9
words = ["off", "on"]
statistic = "mode"
"""
CELLAR = Domain.parse(GOOD)


def problems(text: str) -> list[ConfigProblem]:
    with pytest.raises(ConfigError) as caught:
        Domain.parse(text, "x.toml")
    return list(caught.value.problems)


# --- reading ---------------------------------------------------------------------------


def test_what_a_template_says() -> None:
    assert (CELLAR.name, CELLAR.revision, CELLAR.scheme) == ("cellar", 2, "prefix")
    assert [f.name for f in CELLAR.fields] == ["wine", "size"]
    assert [f.ordinal for f in CELLAR.fields] == [False, True]
    temperature, bottles, light = CELLAR.results
    assert (temperature.power, bottles.power, light.power) == (-1, 1, None)
    assert temperature.statistic is Statistic.MEDIAN
    assert bottles.statistic is Statistic.MEAN
    assert light.words == ("off", "on")
    assert temperature.tolerance == 1.5
    assert bottles.tolerance is None
    assert Domain.parse(GOOD) == CELLAR
    assert hash(CELLAR) == hash(Domain.parse(GOOD))


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ('"cellar"', '"Cellar 1"', "name", "not a name"),
        ('name = "cellar"', "", "name", "is missing"),
        ("revision = 2", "revision = -1", "revision", "whole number"),
        ("revision = 2", "revision = true", "revision", "whole number"),
        ("revision = 2", "", "revision", "whole number"),
        ("revision = 2", 'revision = 2\nscheme = "md5"', "scheme", "must be one of"),
        ("revision = 2", "revision = 2\nrevison = 1", "revison", 'did you mean "revision"?'),
        ('title = "Wine cellars"', "title = 5", "title", "line of text"),
        ('["red", "white"]', '["red", "Rosé"]', "field[1].values", "'Rosé' is not a word"),
        ('["red", "white"]', "[1, \"b\"]", "field[1].values", 'write "1"'),
        ('["red", "white"]', '["red", "red"]', "field[1].values", "2 times"),
        ('["red", "white"]', "[]", "field[1].values", "array of 1..256"),
        ('["red", "white"]', '"red"', "field[1].values", "array"),
        ('name = "wine"', 'name = "vector"', "field[1].name", "reserved"),
        ('name = "size"', 'name = "wine"', "field[2].name", "taken"),
        ('name = "size"', 'name = "depth"', "continuous[1].name", "taken"),
        ("ordinal = true", 'ordinal = "yes"', "field[2].ordinal", "true or false"),
        ("weight = 2", "weight = 0", "field[2].weight", "above 0"),
        ("weight = 2", "weight = 5000", "field", "cannot hold 2 values"),
        ("weight = 2", "weight = inf", "field[2].weight", "above 0"),
        ("weight = 2", "wieght = 2", "field[2].wieght", 'did you mean "weight"?'),
        ("high = 10\n", "high = 0\n", "continuous[1].high", "above low"),
        ("high = 10\n", "", "continuous[1].high", "must be a number"),
        ("resolution = 0.1", "resolution = 0.2", "result[1].resolution", "power of ten"),
        ("resolution = 0.1", "resolution = 1e-13", "result[1].resolution", "power of ten"),
        ("resolution = 0.1", "resolution = 0", "result[1].resolution", "power of ten"),
        ("resolution = 0.1", "", "result[1].resolution", "power of ten"),
        ('"median"', '"medain"', "result[1].statistic", 'did you mean "median"?'),
        ('"median"', '"mode"', "result[1].statistic", "must be one of"),
        ('"mode"', '"mean"', "result[3].statistic", "must be one of last, mode"),
        ("code = 7", "code = 1", "result[2].code", "taken"),
        ("code = 7", "code = 65536", "result[2].code", "0..65535"),
        ('name = "bottles"', 'name = "light"', "result[3].name", "taken"),
        ('unit = "Cel"', "", "result[1].unit", "UCUM"),
        ('unit = "Cel"', 'unit = "deg C"', "result[1].unit", "UCUM"),
        ("tolerance = 1.5", "tolerance = -1", "result[1].tolerance", "above 0"),
        ("high = 50", "high = -50", "result[1].high", "above low"),
        ("high = 50", "high = nan", "result[1].high", "must be a number"),
        ('["off", "on"]', '["off", "on"]\nunit = "1"', "result[3].unit", "no such key"),
        ("[[continuous]]", "[continuous]", "continuous", "[[continuous]]"),
        ("[[field]]", "[[feild]]", "field", "must be 1..16"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(old: str, new: str, key: str, words: str) -> None:
    assert old in GOOD
    found = problems(GOOD.replace(old, new))
    assert any(key == p.key and words in str(p) for p in found), [str(p) for p in found]
    if new.count("[[") == 0 and "continuous" not in new:
        assert len(found) == 1, [str(p) for p in found]


def test_all_mistakes_are_named_at_once_with_their_lines(tmp_path: Path) -> None:
    text = GOOD.replace("code = 7", "code = 1").replace("0.1", "0.3").replace("weight", "wait")
    path = tmp_path / "cellar.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        domains.load(str(path))
    found = {p.key: p.line for p in caught.value.problems}
    lines = text.splitlines()
    assert found == {
        "field[2].wait": lines.index("wait = 2") + 1,
        "result[1].resolution": lines.index("resolution = 0.3") + 1,
        "result[2].code": len(lines) - lines[::-1].index("code = 1"),
    }
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["name = ", "x = 1\nx = 2", "x = " + "9" * 5000, "x = " + "[" * 9999]
)
def test_what_is_not_toml_is_said_so(text: str) -> None:
    (problem,) = problems(text)
    assert problem.key == "TOML"


@given(st.text())
def test_no_text_is_more_than_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        Domain.parse(text)


_scalars = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(max_size=5).map(lambda s: s.replace('"', ""))
)


@given(
    st.sampled_from([line for line in GOOD.splitlines() if "=" in line]),
    st.one_of(_scalars, st.lists(_scalars, max_size=3)),
)
def test_no_value_is_more_than_a_config_error(line: str, value: object) -> None:
    def toml(item: object) -> str:
        if isinstance(item, list):
            return "[" + ", ".join(map(toml, item)) + "]"
        return str(item).lower() if not isinstance(item, str) else f'"{item}"'

    text = GOOD.replace(line, f"{line.partition('=')[0]}= {toml(value)}")
    try:
        Domain.parse(text)
    except ConfigError as error:
        assert error.problems


# --- situations ------------------------------------------------------------------------


def test_a_situation_needs_each_field_with_a_listed_value() -> None:
    here = CELLAR.situation(wine="red", size="small")
    assert here.fields == {"wine": "red", "size": "small"}
    assert here == CELLAR.situation({"size": "small", "wine": "red"})
    assert len(here.fingerprint) == 32
    with pytest.raises(UsageError) as caught:
        CELLAR.situation(wine="red")
    assert (caught.value.field, caught.value.hint) == ("size", "one of small, large")
    with pytest.raises(UsageError) as caught:
        CELLAR.situation(wine="red", size="smal")
    assert (caught.value.field, caught.value.hint) == ("size", 'did you mean "small"?')
    with pytest.raises(UsageError) as caught:
        CELLAR.situation(wine="red", size="small", wne="red")
    assert (caught.value.field, caught.value.hint) == ("wne", 'did you mean "wine"?')
    with pytest.raises(UsageError, match="1 is not listed"):
        CELLAR.situation({"wine": 1, "size": "small"})  # type: ignore[dict-item]  # the point


def test_the_vector_is_scaled_and_not_part_of_the_address() -> None:
    plain = CELLAR.situation(wine="red", size="small")
    deep = CELLAR.situation(wine="red", size="small", vector={"depth": 7.5})
    assert plain.vector is None
    assert deep.vector == (0.5,)
    assert CELLAR.situation(wine="red", size="small", vector=[1 / 3]).vector == (-0.933,)
    assert CELLAR.situation(wine="red", size="small", vector=[1e9]).vector == (1.0,)
    assert deep.fingerprint == plain.fingerprint
    assert deep != plain
    for vector, words in (
        ({"deep": 1.0}, "no such continuous"),
        ({}, "is missing"),
        ([1.0, 2.0], "must be 1"),
        ([math.nan], "not a number"),
    ):
        with pytest.raises(UsageError, match=words):
            CELLAR.situation(wine="red", size="small", vector=vector)


# --- results ---------------------------------------------------------------------------


def test_labels_and_names() -> None:
    assert CELLAR.label_of("bottles") == 7
    assert CELLAR.label_of(7) == 7
    assert CELLAR.label_of("corks") == "corks"
    assert CELLAR.name_of(7) == "bottles"
    assert CELLAR.name_of("bottles") == "bottles"
    assert CELLAR.name_of(99) == 99
    assert [CELLAR.power_of(n) for n in ("temperature", 7, "light", "corks")] == [-1, 1, None, None]
    assert CELLAR.result(9) is CELLAR.result("light")
    assert CELLAR.get("corks") is None
    with pytest.raises(UsageError) as caught:
        CELLAR.result("botles")
    assert caught.value.hint == 'did you mean "bottles"?'


def test_quantising_rounds_to_the_resolution() -> None:
    outcome = Outcome(
        5,
        confidence=0.123456,
        results={"temperature": 21.449999, "bottles": 128.0, "light": "on", "corks": 1.23456},
    )
    rounded = CELLAR.quantise(outcome)
    assert dict(rounded.results) == {
        "temperature": 21.4,
        "bottles": 130.0,
        "light": "on",
        "corks": 1.23456,
    }
    assert rounded.confidence == 0.12
    assert CELLAR.quantise(rounded) == rounded
    zero = CELLAR.quantise(Outcome(5, results={"temperature": -0.04})).results["temperature"]
    assert str(zero) == "0.0"
    assert dict(CELLAR.quantise(Outcome(5, results={1: None, 7: 4.9})).results) == {1: None, 7: 0.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_quantising_says_what_is_no_number(value: float) -> None:
    for name in ("temperature", "corks"):
        with pytest.raises(DoesNotFit) as caught:
            CELLAR.quantise(Outcome(5, results={name: value}))
        assert caught.value.field == f"results.{name}"


def test_a_number_where_a_word_belongs_does_not_fit() -> None:
    with pytest.raises(DoesNotFit, match="not a word"):
        CELLAR.quantise(Outcome(5, results={"light": 1.0}))


@given(st.floats(-1e6, 1e6), st.integers(-6, 3))
def test_rounding_is_to_the_nearest_multiple(value: float, power: int) -> None:
    text = GOOD.replace("resolution = 10\n", f"resolution = 1e{power}\n")
    result = Domain.parse(text).result("bottles")
    rounded = result.rounded(value)
    assert abs(rounded - value) <= 0.5000001 * 10.0**power
    assert abs(rounded * 10.0**-power - round(rounded * 10.0**-power)) < 1e-4
    assert result.rounded(rounded) == rounded


def test_what_is_plausible() -> None:
    temperature, bottles, light = CELLAR.results
    assert all(temperature.plausible(v) for v in (-10, 50.0, 0))
    for value in (-10.1, 51, math.nan, math.inf, "warm", None, True):
        assert not temperature.plausible(value)
    assert not bottles.plausible(math.inf)
    assert light.plausible("on")
    assert not light.plausible("dim")
    assert not light.plausible(1.0)


# --- finding ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weather", "air_quality", "soil_moisture"])
def test_shipped_templates_are_found_and_have_room(name: str) -> None:
    domain = FrontDoorDomain.load(name)
    assert domain.name == name
    assert name in domains.names()
    assert max(result.code for result in domain.results) < 24  # one byte on the wire
    assert (
        domain.fields[0].values[0]
        in domain.situation(
            {field.name: field.values[0] for field in domain.fields}
        ).fields.values()
    )


def test_stations_of_one_city_share_a_situation() -> None:
    weather = Domain.load("weather")
    here = weather.situation(climate="cfa", terrain="coast", season="spring")
    later = weather.situation(climate="cfa", terrain="coast", season="summer")
    assert weather.shared_fields(here.fingerprint, later.fingerprint) == 2


def test_what_is_not_found_is_said(tmp_path: Path) -> None:
    for name, words in (
        ("wether", 'did you mean "weather"?'),
        ("q", "installed are air_quality"),
        (str(tmp_path / "none.toml"), "no such file"),
        (str(tmp_path) + "/", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match="(?s)" + words.replace("?", r"\?")):
            Domain.load(name)
    (tmp_path / "broken.toml").write_text("name =")
    with pytest.raises(ConfigError, match="TOML"):
        Domain.load(str(tmp_path / "broken.toml"))
    (tmp_path / "latin.toml").write_bytes(b"title = '\xe9'")
    with pytest.raises(ConfigError, match="UTF-8"):
        Domain.load(str(tmp_path / "latin.toml"))
    (tmp_path / "big.toml").write_text("#" * 300_000)
    with pytest.raises(ConfigError, match="larger"):
        Domain.load(str(tmp_path / "big.toml"))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: 1 / 0, "failed"),
        (lambda: b"name = 1", "no text"),
        (lambda: "name = 1", "not a name"),
    ],
)
def test_a_package_whose_template_is_broken_is_named(
    function: Callable[[], object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Point:
        name = "broken"
        value = "somewhere:broken"

        def load(self) -> Callable[[], object]:
            return function

    monkeypatch.setattr("qis_edge.domains.plugins", lambda *_: [Point()])
    with pytest.raises(ConfigError, match=words) as caught:
        Domain.load("broken")
    assert "broken" in str(caught.value)


def test_a_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert Domain.load(str(path)) == CELLAR
