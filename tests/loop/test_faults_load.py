"""Backlogs, narrow links, hanging drivers, and ends that must be quick."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qis_edge.node import sensing
from qis_edge.testing.memory import MemoryMedium
from tests.loop.site import (
    Site,
    backlog,
    made_and_held,
    outbox_of,
    routed,
    settled,
    site,
    stats_of,
)
from tests.mosquitto import Mosquitto, running

BACKLOG = 2000


async def test_a_backlog_drains_with_bounded_queues(tmp_path: Path) -> None:
    await drain_backlog(tmp_path, MemoryMedium(), BACKLOG)


async def test_a_backlog_drains_over_a_narrow_link(tmp_path: Path) -> None:
    await drain_backlog(tmp_path, MemoryMedium(window=1, receive_window=4), 300)


async def drain_backlog(folder: Path, medium: MemoryMedium, packets: int) -> None:
    async with site(folder, medium) as here:
        station, node = here.station(), here.node("ewr", sensor="Silent")
        here.start(station, node)
        await here.join(station, node)
        await node.drain({})
        await node.disk(backlog, node, packets, each=True)
        node.uplink.poke()
        most = 0

        def done() -> bool:
            nonlocal most
            most = max(most, len(node.uplink._offered), len(node.uplink.custody))
            made, held = made_and_held(node)
            return made == held

        await here.wait("draining", done, 40)
        assert most <= node.uplink.custody._stages[0].capacity
        assert not node.uplink._offered
        await settled(here, station)
        assert len(await routed(here.state("base"))) == stats_of(node).packets >= packets
        assert station.fronts[0].post.dropped == 0
        counters = node.uplink.custody.counters
        assert counters.resent <= counters.sent / 10


async def test_a_broken_driver_is_said_once_and_harms_nobody(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station, node = here.station(), here.node("ewr", sensor="Broken")
        here.start(station, node)
        await here.join(station, node)
        await here.wait("looks", lambda: node.sensing.status()[0]["failures"] >= 3)
        assert node.sensing.status()[0]["error"] == "a driver's bug"
        # Windows without readings are stated: that is worth knowing.
        await here.wait("outcomes", lambda: made_and_held(node)[1] >= 2)


async def test_a_hanging_driver_does_not_keep_the_node_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensing, "CLOSING", 0.3)
    async with site(tmp_path, MemoryMedium()) as here:
        node = here.node("ewr", sensor="Hanging")
        here.start(node)
        await here.wait("its start", lambda: node.sensing.address)
        await asyncio.sleep(0.1)
        await asyncio.wait_for(here.stop(node), 6)
        here.node("ewr").outbox.close()  # nobody holds its lock any more


# --- processes -----------------------------------------------------------------------------


async def test_sigterm_while_sending_ends_in_good_order(tmp_path: Path) -> None:
    with running(Mosquitto(tmp_path / "broker")) as broker:
        async with site(tmp_path, broker.url) as here:
            gateway, node = here.gateway_config(), here.node_config("ewr")
            await joined_with_a_backlog(here)
            here.spawn("base", gateway)
            here.spawn("ewr", node)
            state = here.state("ewr")
            start = stats_of(state).held_packets
            await here.wait("sending", lambda: stats_of(state).held_packets > start)
            for name in ("ewr", "base"):
                process, began = here.processes[name], time.monotonic()
                process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait, 10) == 0, here.log(name)
                assert time.monotonic() - began < 5
            assert stats_of(state).held_packets < BACKLOG  # it was in the middle of it
            # Closed: the log was written back, and nothing is locked.
            with outbox_of(state) as reader:
                assert reader.stats().made >= BACKLOG
            assert not (state / "control.sock").exists()
            assert "Traceback" not in here.log("ewr") + here.log("base")


async def joined_with_a_backlog(here: Site) -> None:
    """A node that has joined, and has a lot to send when it is started again."""
    station, node = here.station(), here.node("ewr")
    here.start(station, node)
    await here.join(station, node)
    await node.drain({})
    await node.disk(backlog, node, BACKLOG, each=True)
    await here.stop(node, station)


def another(config: Path) -> subprocess.CompletedProcess[str]:
    """A second daemon with the same state folder."""
    return subprocess.run(
        [sys.executable, "-m", "qis_edge", "run", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


async def test_a_second_daemon_is_refused_and_a_hung_broker_delays_no_end(
    tmp_path: Path,
) -> None:
    with running(Mosquitto(tmp_path / "broker")) as broker:
        async with site(tmp_path, broker.url) as here:
            config = here.node_config("ewr")
            process = here.spawn("ewr", config)
            await here.wait("connecting", lambda: "connected" in here.log("ewr"))
            second = another(config)
            assert second.returncode == 1
            assert "in use by another process" in second.stderr
            assert "Traceback" not in second.stderr
            broker.pause()
            try:
                process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait, 8) == 0, here.log("ewr")
            finally:
                broker.resume()
