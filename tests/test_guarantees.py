"""Each guarantee and each claim about security names the tests that show it, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("guarantees", "security")
}
#: Suites that every engine and every link passes are shipped.
FOLDERS = ("tests", "gateway/testing", "qis_edge/testing")


def names() -> set[str]:
    """The name of every test."""
    return {
        node.name
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_guarantee_names_a_test(page: str) -> None:
    guarantees = re.findall(r"^- .*\n(?:  .*\n)*", PAGES[page], re.MULTILINE)
    assert len(guarantees) > 20
    assert [one for one in guarantees if "`test_" not in one] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_tests_exist(page: str) -> None:
    assert set(re.findall(r"`(test_\w+)`", PAGES[page])) - names() == set()
