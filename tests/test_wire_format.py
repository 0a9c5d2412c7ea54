"""The specification and the code say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

from qis_edge.core.errors import Reason

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "wire-format.md").read_text()


def test_the_worked_example_is_a_golden_packet() -> None:
    block = PAGE.split("### Worked example")[1].split("\n## ")[0]
    lines = [line for line in block.splitlines() if line.startswith("    ")]
    written = "".join(re.sub(r"#.*", "", line).replace(" ", "") for line in lines)
    vectors = json.loads((ROOT / "tests" / "vectors" / "packets.json").read_text())
    assert written == vectors["valid"][0]["raw"]


def test_every_reason_is_listed_with_its_code() -> None:
    table = dict(re.findall(r"^\| (\d+) \| ([a-z_]+) \|", PAGE, re.MULTILINE))
    assert table == {str(reason.value): reason.label for reason in Reason}
