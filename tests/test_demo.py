"""A short form of the demonstration: what ``make demo`` promises holds."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from gateway.demo.__main__ import main
from gateway.demo.scenario import FULL, HOUR, SHORT, STATIONS, Scenario, readings

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("scenario", [FULL, SHORT], ids=["full", "short"])
def test_the_scenario_is_as_hard_as_it_says(scenario: Scenario) -> None:
    assert scenario.learning >= 48
    after = scenario.hours - scenario.learning
    assert scenario.learning <= scenario.broker_down.begin
    assert 0 < len(scenario.broker_down) <= after / 4
    assert len(scenario.failures) >= 2
    for failure in scenario.failures:
        assert len(failure.span) >= 48
        assert scenario.learning <= failure.span.begin < failure.span.end <= scenario.hours
    truth = readings("temperature")
    times = range(scenario.epoch, scenario.time(scenario.hours), HOUR)
    for station in STATIONS:
        measured = sum((station, time) in truth for time in times)
        assert measured >= 0.97 * len(times), station


def test_the_short_demonstration(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.demo", "--short", "--build", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures["engine"] == "sqlite:routing.db"
    made = figures["made"]
    assert made >= 0.9 * SHORT.hours * len(STATIONS)
    assert (figures["packed"], figures["delivered"], figures["deposited"]) == (made, made, made)
    assert (figures["duplicates"], figures["lost"]) == (0, 0)
    assert 0 < figures["bytes_per_outcome"] < figures["json_bytes_per_outcome"]
    assert 0 < figures["airtime_per_outcome"] < figures["json_airtime_per_outcome"]
    assert figures["frames"] > 0
    assert figures["estimate_mae"] <= figures["hold_last_mae"] / 2
    assert math.isfinite(figures["hold_last_mae"])
    picture = ET.parse(tmp_path / "demo.svg").getroot()
    drawn = Counter(
        one.get("class") for one in picture.iter(f"{SVG}path") if "L" in one.get("d", "")
    )
    assert drawn == {"real": 3, "hidden": 2, "held": 2, "ours": 2, "n0": 1, "n1": 1, "n2": 1}
    assert "is killed (-9)" in done.stdout
    assert "error of the peers' estimate" in done.stdout


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        ("memory:", "memory: is gone with the gateway's process, so nobody can count"),
        ("sqlight:routing.db", "no routing engine is called 'sqlight'"),
        ("sqlite:", "must name a file"),
        ("mqtt://127.0.0.1", "the broker forgets what has expired"),
    ],
)
def test_an_engine_that_will_not_do_is_refused_before_anything_is_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str, why: str
) -> None:
    assert main(["--engine", engine, "--build", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "error: " in told
    assert why in told
    assert "fix: " in told
    assert list(tmp_path.iterdir()) == []
