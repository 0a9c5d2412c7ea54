"""The page on domains, held to the code: its template is valid, its address is right."""

from __future__ import annotations

import re
from pathlib import Path

from qis_edge.core.domain import Domain
from qis_edge.core.fingerprint import plain
from qis_edge.core.template import MAX_CONTINUOUS, MAX_FIELDS, MAX_RESULTS, MAX_VALUES

PAGE = (Path(__file__).parents[2] / "docs" / "domains.md").read_text()


def test_the_template_of_the_page_is_valid() -> None:
    text = "\n".join(line[4:] for line in PAGE.splitlines() if line.startswith("    "))
    domain = Domain.parse(text)
    assert domain.name == "cellar"
    assert [result.name for result in domain.results] == ["temperature", "light"]


def test_the_address_of_the_page_is_right() -> None:
    (listed,) = re.findall(r"`\{(chief.*?)\}`", PAGE, re.DOTALL)
    fields = dict(pair.split(": ") for pair in re.split(r",\s+", listed))
    assert plain(fields).hex() in PAGE


def test_the_bounds_of_the_page_are_those_of_the_code() -> None:
    for bound in (
        f"1 to {MAX_FIELDS}",
        f"1 to {MAX_VALUES}",
        f"up to {MAX_CONTINUOUS}",
        f"up to {MAX_RESULTS}",
    ):
        assert bound in PAGE
