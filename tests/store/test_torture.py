"""SIGKILL at random points: nothing acknowledged is lost, no number has two contents."""

from __future__ import annotations

import os
from pathlib import Path

from tests.store.torture import torture

KILLS = int(os.environ.get("QIS_TORTURE_KILLS", "25"))
SEED = int.from_bytes(os.urandom(4))


def test_an_outbox_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    report = torture(tmp_path, KILLS, SEED)
    assert report.clean, (SEED, report)
    assert report.kills == KILLS
    assert report.outcomes > KILLS  # it did come to work
    assert report.packets > KILLS
