"""The table and the plot of the routing engines' figures."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from gateway.routing import schemes
from tests.bench.engines import page
from tests.bench.routing import ENGINES, Turns

GOOD: dict[str, Any] = {
    "deposit_ratio": 0.8,
    "deposit_latency_ratio": 1.25,
    "query_ratio": 2.5,
    "replay_ratio": 12.34,
    "rss_mib": 30.4,
}
FIGURES: dict[str, dict[str, Any]] = {
    "sqlite": GOOD,
    "redis": {**GOOD, "rebuild_ratio": 0.5},
    "qdrant": {"absent": "a server, named by QDRANT_URL"},
}


def test_the_table_has_each_engine_and_says_what_was_not_measured() -> None:
    *_, sqlite, redis, qdrant = page.table(FIGURES).splitlines()
    assert sqlite == "| `sqlite:` | 0.80 | 1.25 | 2.50 | 12.3 |  | 30 MiB |"
    assert redis == "| `redis:` | 0.80 | 1.25 | 2.50 | 12.3 | 0.50 | 30 MiB |"
    assert "not measured: needs a server, named by QDRANT_URL" in qdrant
    columns = {line.count("|") for line in page.table(FIGURES).splitlines()}
    assert columns == {8}


def test_the_plot_has_a_dot_for_each_figure_and_tells_those_that_miss_their_bound() -> None:
    root = ET.fromstring(page.plot(FIGURES))
    dots = [one.get("class") for one in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert sorted(dots, key=str) == ["good"] * 6 + ["over"] * 2
    texts = {one.text for one in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"sqlite", "redis", "2.5", "0.081"} <= texts
    assert "qdrant" not in texts


def test_only_what_is_between_the_marks_is_written() -> None:
    text = f"before\n{page.BEGIN}old\n{page.END}after\n"
    assert page.between(text, "new\n") == f"before\n{page.BEGIN}new\n{page.END}after\n"
    with pytest.raises(ValueError, match="not found"):
        page.between("no marks", "new\n")


def test_what_is_published_has_every_engine_that_is_measured() -> None:
    text = (page.FOLDER / "README.md").read_text()
    table = text[text.index(page.BEGIN) : text.index(page.END)]
    found = re.findall(r"^\| `([a-z+]+):` \|", table, re.MULTILINE)
    assert found == list(ENGINES)
    plot = (page.FOLDER / "engines.svg").read_text()
    shown = [name for name in found if f"`{name}:` | not measured" not in table]
    assert re.findall(r'<text x="0" y="[\d.]+">([a-z+]+)</text>', plot) == shown


def test_every_engine_that_comes_with_the_package_is_measured() -> None:
    others = {"http", "mqtts"}  # other schemes of an engine that is measured
    assert set(ENGINES) >= set(schemes()) - others


async def test_turns_change_who_is_first_and_leave_out_the_first() -> None:
    order: list[str] = []

    async def engine() -> None:
        order.append("engine")

    async def raw() -> None:
        order.append("raw")

    turns = Turns()
    for _ in range(3):
        await turns.take(engine, raw)
    assert order == ["raw", "engine", "engine", "raw", "raw", "engine"]
    turns.engine, turns.raw = [100.0, 3.0, 5.0, 8.0], [1.0, 1.0, 1.0, 2.0]
    assert turns.ratio == 4.0
    assert turns.seconds == 5.0
