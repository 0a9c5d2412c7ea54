"""Brokers that are half there, slow, or away for a month: what that costs, and what is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qis_edge.links.base import Link
from qis_edge.links.mqtt import MqttLink
from tests.links.wire import Wire
from tests.loop.site import (
    assert_each_once,
    backlog,
    drained,
    made_and_held,
    settled,
    site,
    stats_of,
)
from tests.mosquitto import Mosquitto, running

PATIENCE = 60.0
#: A broker that is back is found soon.
QUICK = 'retry = "1s"\n'
LASTING = '[outbox]\nttl = "365d"\n'
MONTH = 30 * 24


def impatient(link: Link) -> None:
    """It notices within a second what it notices within half a minute."""
    assert isinstance(link, MqttLink)
    link.settings = replace(link.settings, keepalive=1, ack_timeout=0.5, connect_timeout=1.0)


@pytest.mark.parametrize("how", ["frozen", "cut"])
async def test_nothing_is_lost_over_a_connection_that_is_half_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """The broker hangs, or packets are dropped on the way: nobody hangs up."""
    caplog.set_level("INFO")
    with running(Mosquitto(tmp_path / "broker")) as broker:
        async with Wire(broker.port) as wire, site(tmp_path, wire.url, pace=0.2) as here:
            station = here.station(links=QUICK)
            node = here.node("ewr", extra=LASTING, links=QUICK)
            impatient(station.fronts[0].link)
            impatient(node.link)
            here.start(station, node)
            await here.join(station, node)
            await here.wait("custody", lambda: made_and_held(node)[1] >= 2, PATIENCE)
            if how == "frozen":
                broker.pause()
            else:
                wire.cut = True
            await here.wait("notice", lambda: not node.link.up, PATIENCE)
            error = (await node.status({}))["links"][0]["last_error"]
            assert "acknowledges nothing" in error or "fallen silent" in error
            made = stats_of(node).made
            await here.wait(
                "outcomes without it", lambda: stats_of(node).made >= made + 3, PATIENCE
            )
            if how == "frozen":
                broker.resume()
            else:
                wire.cut = False
            await drained(here, node)
            await settled(here, station)
            await assert_each_once(here.state("base"), {node.identity.kid: stats_of(node).made})
            words = [one.message for one in caplog.records if one.message.startswith("mqtt")]
            assert "connected with MQTT" in words[-1]
            # Each outage is said once for each cause, at either end.
            assert len(words) == len(set(words)) or len(words) <= 12, words


async def test_a_slow_broker_is_not_taken_for_a_dead_one(tmp_path: Path) -> None:
    """Some hundred bytes a second less than it takes to keep up, for a backlog."""
    with running(Mosquitto(tmp_path / "broker")) as broker:
        async with Wire(broker.port, rate=20_000) as wire, site(tmp_path, wire.url) as here:
            station, node = here.station(), here.node("ewr", extra=LASTING, sensor="Silent")
            here.start(station, node)
            await here.join(station, node)
            await node.drain({})
            await node.disk(backlog, node, 150, each=True)
            node.uplink.poke()
            await here.wait("draining", lambda: len(set(made_and_held(node))) == 1, PATIENCE)
            await settled(here, station)
            assert (await node.status({}))["links"][0]["connects"] == 1
            counters = node.uplink.counters
            assert counters.resent <= counters.sent  # it adapts to how long answers take
            await assert_each_once(here.state("base"), {node.identity.kid: stats_of(node).made})


async def test_a_broker_that_is_away_for_a_month(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An hour takes 4 ms: a month of outcomes waits, and goes in a few dozen packets."""
    caplog.set_level("INFO")
    broker = Mosquitto(tmp_path / "broker")
    async with site(tmp_path, broker.url, pace=0.004) as here:
        with running(broker):
            station = here.station(links=QUICK)
            node = here.node("ewr", extra=LASTING, links=QUICK, sensor="Steady")
            here.start(station, node)
            await here.join(station, node)
            await here.wait("custody", lambda: made_and_held(node)[1] >= 1, PATIENCE)
        await here.wait("notice", lambda: not node.link.up, PATIENCE)
        caplog.clear()
        before = stats_of(node)
        size = (node.config.node.state / "outbox.db").stat().st_size
        await here.wait("a month", lambda: stats_of(node).made >= before.made + MONTH, 2 * PATIENCE)
        await node.drain({})
        waited = stats_of(node)
        said = [one.message for one in caplog.records if "refuses connections" in one.message]
        assert len(said) <= 2  # of the node and of the gateway, once each
        status = await node.status({})
        assert status["outbox"]["waiting"] >= MONTH
        assert "refuses connections" in status["links"][0]["last_error"]
        # A month of hourly outcomes is some 50 KB of disk.
        grown = (node.config.node.state / "outbox.db").stat().st_size - size
        assert grown < 1_000_000
        with running(broker):
            await here.wait("draining", lambda: len(set(made_and_held(node))) == 1, PATIENCE)
            await settled(here, station)
            sent = stats_of(node).packets - waited.packets
            assert sent < stats_of(node).made / 8  # a backlog shrinks as it waits
            await assert_each_once(here.state("base"), {node.identity.kid: stats_of(node).made})
