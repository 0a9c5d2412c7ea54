"""Where benchmarks put their figures: ``build/bench/<name>.json``, and on the screen."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDER = Path("build") / "bench"


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def write(
    name: str, figures: Mapping[str, object], *, limits: Mapping[str, float] | None = None
) -> None:
    """Write and print the figures; a limit is an upper bound.

    :raises SystemExit: with 1, a figure is over its limit (after everything was written).
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps({**figures, "machine": machine}, indent=2) + "\n")
    missed = []
    for key, value in figures.items():
        limit = (limits or {}).get(key)
        print(f"  {key:28} {value}" + (f"  (at most {limit:g})" if limit is not None else ""))
        if limit is not None and not (isinstance(value, int | float) and value <= limit):
            missed.append(key)
    print(f"  → {path}")
    if missed:
        raise SystemExit(f"over the limit: {', '.join(missed)}")
