"""Entry points are found without what importlib.metadata loads, and are the same."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from qis_edge.plugins import Plugin, plugins


@pytest.mark.parametrize("group", ["qis_edge.domains", "qis_edge.sensors", "console_scripts"])
def test_what_is_installed_is_found(group: str) -> None:
    found = {one.name for one in plugins(group)}
    assert found == {point.name for point in entry_points(group=group)}


def test_an_entry_point_is_what_it_names() -> None:
    (weather,) = plugins("qis_edge.domains", "weather")
    assert 'name = "weather"' in weather.load()()
    assert Plugin("x", "os:path.join").load() is __import__("os").path.join
    assert plugins("qis_edge.domains", "nobody's") == []


def test_the_first_of_two_of_one_distribution_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, text in (
        (
            "a/Some_thing-1.0.dist-info",
            "[other]\nq = m:q\n[mine] \n# no\nx = m:one [extra]\n\ny=m:y\n",
        ),
        ("b/some.thing-2.0.dist-info", "[mine]\nx = m:two\n"),
        ("b/more-2.0.egg-info", "[mine]\nz = m\n"),
        ("b/broken-1.dist-info", "[mine]\n=\nnothing\n"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "entry_points.txt").write_text(text)
    (tmp_path / "b" / "bytes-1.dist-info").mkdir()
    (tmp_path / "b" / "bytes-1.dist-info" / "entry_points.txt").write_bytes(b"[mine]\nx = \xff\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / one) for one in ("none", "a", "b")])
    assert plugins("mine") == [Plugin("x", "m:one"), Plugin("y", "m:y"), Plugin("z", "m")]


def test_what_is_found_elsewhere_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qis_edge.plugins._beside_us", lambda _: iter(()))
    assert [one.value for one in plugins("qis_edge.sensors", "replay")] == [
        "devices.sensors.replay:Replay"
    ]


def test_it_costs_no_reader_of_mail() -> None:
    code = (
        "import sys\nfrom qis_edge import domains, drivers\n"
        "domains.load('weather'), drivers.load_driver('system')\n"
        "assert not {'importlib.metadata', 'email', 'zipfile'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
