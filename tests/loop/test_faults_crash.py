"""Brokers, nodes and gateways that are killed with -9 in the middle of their work."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.broker import EmbeddedBroker
from qis_edge.control import request
from qis_edge.core.errors import NotRunning
from qis_edge.keys import read_key
from qis_edge.node import runtime
from qis_edge.store import opening
from qis_edge.testing.memory import MemoryMedium
from tests.loop.site import (
    Site,
    assert_each_once,
    drained,
    made_and_held,
    outbox_of,
    routed,
    settled,
    site,
    spool_of,
    stats_of,
)
from tests.mosquitto import Mosquitto, free_port, running

#: A broker that is back is found soon.
SOON = 'retry = "1s"\n'


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_broker_that_loses_what_it_acknowledged(tmp_path: Path, protocol: str) -> None:
    links = f'protocol = "{protocol}"\n{SOON}'
    with running(Mosquitto(tmp_path / "broker")) as broker:

        async def again() -> None:
            broker.restart()

        await lose_the_broker(tmp_path, broker.url, links, again)


async def test_an_embedded_broker_that_forgets(tmp_path: Path) -> None:
    port = free_port()
    brokers = [EmbeddedBroker("127.0.0.1", port)]
    await brokers[0].start()

    async def again() -> None:
        await brokers[-1].stop()
        brokers.append(EmbeddedBroker("127.0.0.1", port))
        await brokers[-1].start()

    try:
        await lose_the_broker(tmp_path, f"mqtt://127.0.0.1:{port}", SOON, again)
    finally:
        await brokers[-1].stop()


async def lose_the_broker(
    folder: Path, url: str, links: str, again: Callable[[], Awaitable[None]]
) -> None:
    async with site(folder, url, pace=0.05) as here:
        station = here.station(links=links)
        lasting = '[outbox]\nttl = "365d"\n'  # a slow machine lets a week go by here
        ewr = here.node("ewr", extra=lasting, links=links)
        jfk = here.node("jfk", "JFK", extra=lasting, links=links)
        here.start(station, ewr, jfk)
        await here.join(station, ewr, jfk)
        for _ in range(2):
            before = made_and_held(ewr)[1]
            await here.wait("custody", lambda: made_and_held(ewr)[1] >= before + 5)  # noqa: B023 - at once
            await again()
        link = station.fronts[0].link
        await here.wait("reconnecting", lambda: link.up and ewr.link.up and jfk.link.up)
        await drained(here, ewr, jfk)
        await settled(here, station)
        made = {node.identity.kid: made_and_held(node)[0] for node in (ewr, jfk)}
        await assert_each_once(here.state("base"), made)


async def test_a_node_that_is_killed(tmp_path: Path) -> None:
    with running(Mosquitto(tmp_path / "broker")) as broker:
        async with site(tmp_path, broker.url, pace=0.1) as here:
            station = here.station()
            here.start(station)
            config = here.node_config("ewr")
            kid = read_key(here.state("ewr") / "node.key").kid
            made = 0
            for round_ in range(3):
                process = here.spawn("ewr", config)
                if not round_:
                    await here.approve("base", kid)
                await here.wait("outcomes", lambda: made_of(here, "ewr") >= made + 5)  # noqa: B023 - at once
                process.send_signal(signal.SIGKILL)
                process.wait()
                made = made_of(here, "ewr")
            await finish(here, "ewr", config)
            await settled(here, station)
            await assert_each_once(here.state("base"), {kid: made_of(here, "ewr")})


async def test_a_gateway_that_is_killed_under_load(tmp_path: Path) -> None:
    with running(Mosquitto(tmp_path / "broker")) as broker:
        async with site(tmp_path, broker.url, pace=0.05) as here:
            config = here.gateway_config()
            ewr, jfk = here.node("ewr"), here.node("jfk", "JFK")
            here.start(ewr, jfk)
            for round_ in range(3):
                process = here.spawn("base", config)
                if not round_:
                    await here.approve("base", ewr.identity.kid, jfk.identity.kid)
                before = made_and_held(ewr)[1]
                await here.wait("custody", lambda: made_and_held(ewr)[1] >= before + 5)  # noqa: B023 - at once
                process.send_signal(signal.SIGKILL)
                process.wait()
            here.spawn("base", config)
            await drained(here, ewr, jfk)
            made = {node.identity.kid: made_and_held(node)[0] for node in (ewr, jfk)}
            await here.wait("routing", lambda: not behind(here.state("base")))
            await assert_each_once(here.state("base"), made)


@pytest.mark.parametrize("exact", [False, True], ids=["copied files", "an image"])
async def test_a_card_that_was_cloned_is_noticed(
    tmp_path: Path, exact: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of copied files the node notices by itself; of an image of the whole card, on a board
    that cannot be told from the other, the gateway does, and neither loses anything."""
    if exact:
        monkeypatch.setattr(opening, "inode_of", lambda _: 1)
        monkeypatch.setattr(runtime, "machine_name", lambda: "")
    async with site(tmp_path, MemoryMedium(), pace=0.05) as here:
        station, ewr = here.station(), here.node("ewr")
        here.start(station, ewr)
        await here.join(station, ewr)
        await here.wait("custody", lambda: made_and_held(ewr)[1] >= 5)
        await drained(here, ewr)
        await here.stop(ewr)
        shutil.copytree(here.state("ewr"), here.state("twin"))
        (here.state("twin") / "control.sock").unlink(missing_ok=True)
        before = stats_of(ewr)
        for name in "ewr", "twin":
            # The one goes on where it was, and then the other does, under the same numbers.
            node = here.node(name, "EWR" if name == "ewr" else "JFK")
            here.start(node)
            await here.wait("more", lambda: made_and_held(node)[1] >= before.made + 5)  # noqa: B023 - at once
            await drained(here, node)
            await here.stop(node)
        await settled(here, station)
        with outbox_of(here.state("twin")) as box:
            codes = [notice.code for notice in box.notices()]
            twin = box.stats()
        assert codes == (["conflict"] if exact else ["copied"])
        assert twin.store != stats_of(here.state("ewr")).store == before.store
        told = [one.getMessage() for one in caplog.records if one.name.startswith("gateway")]
        accused = [line for line in told if "signed two contents" in line]
        assert len(accused) == exact
        with spool_of(here.state("base")) as spool:
            assert bool(spool.equivocations()) == bool(twin.conflicts) == exact
        # Whatever either was told to be held is there, and nothing else.
        both = held_of(here.state("ewr")) | held_of(here.state("twin"))
        assert {entry.raw for entry in await routed(here.state("base"))} == both


def held_of(state: Path) -> set[bytes]:
    with outbox_of(state) as box:
        return {raw for (raw,) in box._db.rows("SELECT raw FROM packets WHERE rank < 0")}


def behind(state: Path) -> int:
    """How many packets a gateway's engines have yet to take."""
    with spool_of(state) as spool:
        return max(engine.behind for engine in spool.status().engines)


def made_of(here: Site, name: str) -> int:
    state = here.state(name)
    return stats_of(state).made if (state / "outbox.db").exists() else 0


async def finish(here: Site, name: str, config: Path) -> None:
    """Start a node for the last time, and let it deliver all that it has."""
    process = here.spawn(name, config)
    state = here.state(name)

    async def told() -> bool:
        try:
            await asyncio.to_thread(request, state, "drain", timeout=5.0)
        except NotRunning:  # yet: its predecessor left its socket behind
            return False
        return True

    await here.wait_for("the daemon", told)
    await here.wait("draining", lambda: len(set(made_and_held(state))) == 1, 40)
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 10) == 0, here.log(name)
