"""Figures of a bench: written, and held to their bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import report


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    return tmp_path


def test_figures_are_written_with_the_machine(folder: Path) -> None:
    report.write("one", {"a": 1, "b": {"c": 2.5}}, limits={"a": 1}, floors={"b.c": 2.5})
    written = json.loads((folder / "one.json").read_text())
    assert written.pop("machine")
    assert written == {"a": 1, "b": {"c": 2.5}}


@pytest.mark.parametrize(
    ("figures", "limits", "floors"),
    [
        ({"a": 2}, {"a": 1}, {}),
        ({"a": {"b": 2}}, {"a.b": 1}, {}),
        ({"a": 1}, {}, {"a": 2}),
        ({"a": None}, {"a": 1}, {}),
        ({"a": 1}, {"gone": 1}, {}),
        ({"a": 1}, {}, {"gone": 1}),
    ],
)
def test_what_is_out_of_bounds_fails_after_it_was_written(
    folder: Path, figures: dict[str, object], limits: dict[str, float], floors: dict[str, float]
) -> None:
    with pytest.raises(SystemExit, match="out of bounds"):
        report.write("one", figures, limits=limits, floors=floors)
    assert (folder / "one.json").exists()


def test_what_could_not_be_measured_meets_its_floor() -> None:
    report.write("one", {"a": None, "why": "no such package"}, floors={"a": 15})


def test_a_quantile_is_one_of_the_values() -> None:
    assert report.quantile([4, 1, 3, 2], 0.5) == 2
    assert report.quantile([4, 1, 3, 2], 0.9) == 4
