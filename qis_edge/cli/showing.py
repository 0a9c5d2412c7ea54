"""What both commands show in the same way: a daemon's status, links, outcomes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qis_edge.cli.program import note, start_command
from qis_edge.control import request
from qis_edge.core.errors import NotRunning
from qis_edge.core.outcome import Outcome
from qis_edge.terminal import plural


def ask_status(
    args: argparse.Namespace, state: Path, stored: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What a running daemon says of itself, or else ``stored``, what its state folder says."""
    try:
        return {"running": True, **request(state, "status", start=start_command(args))}
    except NotRunning as error:
        found = {"running": False, **stored()}
        if not args.json:
            note(f"{error}, this is what its state folder says; {error.hint}")
        return found


def clock_rows(found: Mapping[str, Any]) -> list[tuple[str, object]]:
    """What is wrong with a running daemon's clock, and what to do."""
    if found.get("clock_source") == "nobody":
        said = "the time is not known: outcomes wait for it (timedatectl status, or a gateway)"
        return [("warning", said)]
    if steps := found.get("clock_steps"):
        said = f"the system's clock was set {plural(steps, 'time')} since the start"
        return [("warning", f"{said}: timedatectl status")]
    return []


def link_rows(link: Mapping[str, Any]) -> list[tuple[str, object]]:
    """A link of a running daemon, what keeps it down, and what it spent of its airtime."""
    standing = "up" if link["up"] else "down"
    if not link.get("used", True):
        standing += ", not in use"
    rows: list[tuple[str, object]] = [("link", f"{link['url']} is {standing}")]
    if link["last_error"] and not link["up"]:
        rows.append(("", link["last_error"]))
    if (extra := link.get("extra", {})) and "hourly_ms" in extra:
        rows.append(("airtime", _airtime(extra)))
    return rows


def _airtime(extra: Mapping[str, float]) -> str:
    spent, left, hourly = (extra[key] / 1000 for key in ("hour_ms", "left_ms", "hourly_ms"))
    return (
        f"{spent:.1f} s in the last hour of {hourly:.0f} s allowed, {left:.1f} s at once; "
        f"the channel is busy {extra['utilisation']:.0%} of the time"
    )


def outcome_form(outcome: Outcome) -> dict[str, Any]:
    """An outcome as ``--json`` shows it."""
    return {
        "time": outcome.time,
        "kind": outcome.kind.name.lower(),
        "confidence": outcome.confidence,
        "samples": outcome.samples,
        "results": {str(name): value for name, value in outcome.results.items()},
        "summary": outcome.summary,
    }


def results_text(outcome: Outcome) -> str:
    """Its results in one line."""
    return ", ".join(
        f"{name} {'-' if value is None else f'{value:g}' if isinstance(value, float) else value}"
        for name, value in outcome.results.items()
    )
