"""The hook of the demo's nodes: writes down each estimate as it was made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

#: Names the file to write to.
VARIABLE = "QIS_DEMO_JOURNAL"


def write(estimate: Any) -> None:
    """Append one line: the window's start and the values of the results."""
    values = {str(name): one.value for name, one in estimate.results.items()}
    with Path(os.environ[VARIABLE]).open("a") as file:
        file.write(json.dumps({"time": estimate.time, "values": values}) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines; one that a kill cut short is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
