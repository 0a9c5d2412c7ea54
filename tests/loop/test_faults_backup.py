"""A gateway whose disk was replaced by an old backup of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from qis_edge.testing.memory import MemoryMedium
from tests.loop.site import (
    assert_each_once,
    drained,
    made_and_held,
    routed,
    settled,
    site,
    stats_of,
)

PATIENCE = 60.0


@pytest.mark.parametrize(
    "what", [("spool.db",), ("spool.db", "routing.db"), ("",)], ids=["spool", "stores", "folder"]
)
async def test_nodes_send_again_what_an_old_backup_lacks(
    tmp_path: Path, what: Sequence[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station, node = here.station(), here.node("ewr", extra='[outbox]\nttl = "365d"\n')
        here.start(station, node)
        await here.join(station, node)
        await here.wait("custody", lambda: made_and_held(node)[1] >= 4, PATIENCE)
        await here.stop(station)
        state, backup = here.state("base"), tmp_path / "backup"
        shutil.copytree(state, backup)
        before = made_and_held(node)[1]
        station = here.station()
        here.start(station)
        await here.wait("more", lambda: made_and_held(node)[1] >= before + 4, PATIENCE)
        await drained(here, node)
        await settled(here, station)
        await here.stop(station)
        held = stats_of(node).held_packets
        for name in what:
            if name:
                shutil.copy(backup / name, state / name)
            else:
                state.rename(tmp_path / "lost")
                shutil.copytree(backup, state)
        again = here.station()
        here.start(again)
        node.asking.hello()  # which it says every few minutes
        await here.wait("what was lost", lambda: again.counts.new >= 1, PATIENCE)
        await here.wait("receipts", lambda: stats_of(node).held_packets == held, PATIENCE)
        await settled(here, again)
        assert len(await routed(state)) == held
        await assert_each_once(state, {node.identity.kid: made_and_held(node)[0]})
        assert caplog.text.count("is an older copy that was put back") == 1
        assert caplog.text.count("has a new spool") == 1
        # And that was that: the next start is like any other.
        await here.stop(again)
        caplog.clear()
        station = here.station()
        assert "older copy" not in caplog.text
        here.start(station)
