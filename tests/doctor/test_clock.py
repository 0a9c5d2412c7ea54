"""The clock's check, with each way of being wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qis_edge.doctor.clock import BUILT, check_clock, synchronised

NOW = BUILT + 10_000_000


def codes(floor: int = 0, **more: Any) -> dict[str, str]:
    return {one.code: one.severity.label for one in check_clock(floor, **{"now": NOW, **more})}


def test_a_right_clock() -> None:
    assert codes(kept=True) == {"clock": "ok"}
    assert codes(kept=True, trusted=True, told=NOW + 1) == {"clock": "ok"}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"now": 100.0}, {"clock-not-set": "warning"}),
        ({"now": 100.0, "gateway": True}, {"clock-not-set": "error"}),
        ({"floor": NOW + 60}, {"clock-behind": "warning"}),
        ({"floor": NOW + 60, "gateway": True}, {"clock-behind": "error"}),
        ({"kept": False}, {"clock-not-synchronised": "warning"}),
        ({"kept": None}, {"clock-unknown": "notice"}),
        ({"kept": True, "told": NOW + 3600}, {"clock": "ok", "clock-offset": "notice"}),
        (
            {"now": 100.0, "trusted": False},
            {"clock-not-set": "error", "clock-untrusted": "warning"},
        ),
    ],
)
def test_a_wrong_clock(given: dict[str, Any], wanted: dict[str, str]) -> None:
    assert codes(**given) == wanted


def test_which_way_it_is_wrong() -> None:
    (_, ahead) = check_clock(0, now=NOW, kept=True, told=NOW - 3600)
    assert "1 h ahead of the time" in ahead.message
    assert all(one.fix for one in check_clock(0, now=1.0) if one.severity)


def test_who_says_that_it_is_kept_right(tmp_path: Path) -> None:
    (tmp_path / "synchronized").touch()
    assert synchronised(tmp_path) is True
    assert synchronised(tmp_path / "none") in (True, False, None)  # the kernel's word
