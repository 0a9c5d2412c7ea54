"""Estimates: hooks, what is emitted, and what is remembered."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from qis_edge.core.packet import unpack
from qis_edge.keys import read_key
from qis_edge.node.estimating import ESTIMATE_TAG
from qis_edge.testing.memory import MemoryMedium
from tests.loop import hooks
from tests.loop.site import (
    assert_each_once,
    drained,
    made_and_held,
    outbox_of,
    peers_of,
    routed,
    settled,
    site,
    stats_of,
)
from tests.mosquitto import Mosquitto, running

HOUR = 3600


@pytest.fixture(autouse=True)
def fresh() -> None:
    hooks.kept.clear()


def synthesis(hook: str = "", *, emit: bool = False, wait: str = "30min") -> str:
    named = f'hook = "tests.loop.hooks:{hook}"\n' if hook else ""
    return f'[synthesis]\nwait = "{wait}"\n{named}emit = {str(emit).lower()}\n'


async def test_the_hook_gets_an_estimate_of_each_window(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station, jfk = here.station(), here.node("jfk", "JFK")
        ewr = here.node("ewr", extra=synthesis("keep"))
        here.start(station, ewr, jfk)
        await here.join(station, ewr, jfk)
        await here.wait("estimates", lambda: len(hooks.kept) >= 6)
        await drained(here, ewr)
        times = [estimate.time for estimate in hooks.kept]
        assert times == list(range(times[0], times[-1] + HOUR, HOUR))
        assert all(estimate.results["temperature"].value for estimate in hooks.kept)
        assert ewr.estimating.made == len(hooks.kept)


async def test_a_failing_hook_is_said_once_and_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station, ewr = here.station(), here.node("ewr", extra=synthesis("fail"))
        here.start(station, ewr)
        await here.join(station, ewr)
        await here.wait("failures", lambda: ewr.estimating.hook_failures >= 3)
        assert [one.message for one in caplog.records if "hook" in one.message] == [
            "the hook tests.loop.hooks:fail failed"
        ]
        assert (await ewr.status({}))["estimates"]["hook_failures"] >= 3
        await drained(here, ewr)


async def test_what_is_emitted_is_tagged_and_nobodys_voice(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station = here.station()
        # One without a sensor of its own says what the other says.
        parrot = here.node("parrot", extra=synthesis(emit=True), sensor="Silent")
        jfk = here.node("jfk", "JFK", extra=synthesis("keep", wait="3h"))
        here.start(station, parrot, jfk)
        await here.join(station, parrot, jfk)

        async def echoes() -> set[int]:
            found = [unpack(entry.raw) for entry in await routed(here.state("base"))]
            assert all(
                packet.kid == parrot.identity.kid
                for packet in found
                if ESTIMATE_TAG in packet.extensions.tags
            )
            return {
                outcome.time
                for packet in found
                if ESTIMATE_TAG in packet.extensions.tags
                for outcome in packet.outcomes
                if outcome.results
            }

        async def enough() -> bool:
            return len(await echoes()) >= 3

        await here.wait_for("echoes", enough)
        assert jfk.sensing.address is not None
        where = jfk.sensing.address
        await here.wait("hearing them", lambda: len(peers_of(jfk, where)) >= 6)
        hooks.kept.clear()
        await here.wait("estimates", lambda: len(hooks.kept) >= 4)
        assert {e.results["temperature"].contributors for e in hooks.kept} == {0}


async def test_what_was_learned_survives(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station, jfk = here.station(), here.node("jfk", "JFK")
        ewr = here.node("ewr", extra=synthesis())
        here.start(station, ewr, jfk)
        await here.join(station, ewr, jfk)
        await here.wait("estimates", lambda: ewr.estimating.made >= 6)
        await here.stop(ewr)
        state = ewr.estimating._synthesiser.state()
        assert state["bias"]
        again = here.node("ewr", extra=synthesis())
        assert again.estimating._synthesiser.state() == state
        here.start(again)
        await here.wait("peers", again.estimating._synthesiser.peers)


async def test_a_kill_states_no_window_twice_and_forgets_no_peer(tmp_path: Path) -> None:
    with running(Mosquitto(tmp_path / "broker")) as broker:
        async with site(tmp_path, broker.url, pace=0.1) as here:
            station, jfk = here.station(), here.node("jfk", "JFK")
            here.start(station, jfk)
            extra = synthesis()
            config = here.node_config("ewr", extra=extra)
            kid = read_key(here.state("ewr") / "node.key").kid
            process = here.spawn("ewr", config)
            await here.approve("base", jfk.identity.kid, kid)
            await here.wait("outcomes", lambda: made_and_held(here.state("ewr"))[1] >= 8)
            process.send_signal(signal.SIGKILL)
            process.wait()
            again = here.node("ewr", extra=extra)
            here.start(again)
            await here.wait(
                "peers", lambda: jfk.identity.kid in again.estimating._synthesiser.peers()
            )
            await here.wait("estimates", lambda: again.estimating.made >= 2)
            await drained(here, again)
            await settled(here, station)
            await assert_each_once(here.state("base"), {kid: stats_of(again).made})
            with outbox_of(again) as reader:
                assert not reader.waiting()
