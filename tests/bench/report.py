"""Where benchmarks put their figures: ``build/bench/<name>.json``, and on the screen."""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

FOLDER = Path("build") / "bench"
#: As for nice(1).
_PRIORITY = -15


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def precedence() -> None:
    """Go before whatever else the machine does, with all that is started from here, where we
    may (as root): what is measured is us, not who else is here.

    Linux divides the processors among sessions first: so this one has a priority too.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
        group = Path("/proc/self/autogroup")
        before = group.read_text().rpartition(" ")[2].strip()
        group.write_text(str(_PRIORITY))
        atexit.register(group.write_text, before)


def flat(figures: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    """(key, figure), nested ones as ``outer.inner``."""
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{key}.")
        else:
            yield above + key, value


def write(
    name: str,
    figures: Mapping[str, object],
    *,
    limits: Mapping[str, float] | None = None,
    floors: Mapping[str, float] | None = None,
) -> None:
    """Write and print the figures, nested ones by ``outer.inner``.

    :param limits: upper bounds.
    :param floors: lower bounds; a figure that is ``None`` was not measured, and meets them.
    :raises SystemExit: with 1, a figure is out of bounds (after everything was written).
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps({**figures, "machine": machine}, indent=2) + "\n")
    found = dict(flat(figures))
    most, least = limits or {}, floors or {}
    missed = [key for key in (*most, *least) if key not in found]
    for key, value in found.items():
        number = value if isinstance(value, int | float) else None
        bounds = [f"at most {most[key]:g}"] if key in most else []
        bounds += [f"at least {least[key]:g}"] if key in least else []
        print(f"  {key:28} {value}" + (f"  ({', '.join(bounds)})" if bounds else ""))
        over = key in most and not (number is not None and number <= most[key])
        under = key in least and value is not None and not (number or 0) >= least[key]
        if over or under:
            missed.append(key)
    print(f"  → {path}")
    if missed:
        raise SystemExit(f"out of bounds: {', '.join(missed)}")
