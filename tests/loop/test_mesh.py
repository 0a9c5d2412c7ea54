"""The whole loop over radios."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from qis_edge.links.switch import Switch
from qis_edge.node.runtime import Node
from tests.loop.mesh import MeshSite, mesh_link, plugged
from tests.loop.site import Site, assert_each_once, drained, made_and_held, settled
from tests.mosquitto import Mosquitto, running

STATIONS = ("EWR", "JFK", "LGA")


async def assert_delivered(here: Site, station: object, *nodes: Node) -> None:
    made = {node.identity.kid: made_and_held(node)[0] for node in nodes}
    await settled(here, station)  # type: ignore[arg-type]  # a station
    await assert_each_once(here.state("base"), made)


def more_frames(node: Node, than: int) -> bool:
    return mesh_link(node).stats.frames_out >= than + 3


def more_held(node: Node, than: int) -> bool:
    return made_and_held(node)[1] > than


async def test_from_reading_to_peer_over_the_air(tmp_path: Path) -> None:
    async with plugged(MeshSite(tmp_path, loss=0.1)) as here:
        station = here.station()
        nodes = [here.node(name.lower(), name) for name in STATIONS]
        here.start(station, *nodes)
        await here.join(station, *nodes)
        await here.wait(
            "peers' packets", lambda: all(node.inbound.heard >= 3 for node in nodes), 40
        )
        await here.wait("estimates", lambda: all(node.estimating.made for node in nodes), 40)
        await drained(here, *nodes)
        await assert_delivered(here, station, *nodes)
        for node in nodes:
            extra = mesh_link(node).stats.extra
            assert 0 < extra["hour_ms"] <= extra["hourly_ms"]


async def test_without_a_gateway_peers_are_overheard(tmp_path: Path) -> None:
    async with plugged(MeshSite(tmp_path, region="US")) as here:
        station = here.station()
        nodes = [here.node(name.lower(), name) for name in STATIONS]
        here.start(station, *nodes)
        await here.join(station, *nodes)
        await here.wait(
            "being of the fleet", lambda: all(n.membership.enrolled(None) for n in nodes)
        )
        await here.stop(station)
        heard = [node.inbound.heard for node in nodes]
        made = [node.estimating.made for node in nodes]
        await here.wait(
            "peers' packets",
            lambda: all(n.inbound.heard >= h + 5 for n, h in zip(nodes, heard, strict=True)),
            60,
        )
        await here.wait(
            "estimates",
            lambda: all(n.estimating.made >= m + 3 for n, m in zip(nodes, made, strict=True)),
            40,
        )
        again = here.station()  # and nothing of it is lost
        here.start(again)
        await drained(here, *nodes)
        await assert_delivered(here, again, *nodes)


async def test_from_the_broker_to_the_mesh_and_back(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path / "broker")
    with running(broker):
        async with plugged(MeshSite(tmp_path, broker.url, both=("base", "ewr"))) as here:
            station = here.station()
            ewr = here.node("ewr", links='[links]\nafter = "0.5s"\nsettle = "0.5s"\n')
            jfk = here.node("jfk", "JFK")
            here.start(station, ewr, jfk)
            await here.join(station, ewr, jfk)
            assert isinstance(ewr.link, Switch)
            assert ewr.link.current.name == "mqtt"
            switch = ewr.link
            for _ in range(2):
                mesh = mesh_link(ewr).stats.frames_out
                broker.kill()
                await here.wait("the mesh", lambda: switch.current.name == "meshtastic")
                await here.wait("frames", partial(more_frames, ewr, mesh))
                await here.wait("receipts", partial(more_held, ewr, made_and_held(ewr)[1]), 40)
                broker.start()
                await here.wait("the broker", lambda: switch.current.name == "mqtt", 40)
                await here.wait("receipts", partial(more_held, ewr, made_and_held(ewr)[1]))
            await drained(here, ewr, jfk)
            await assert_delivered(here, station, ewr, jfk)


async def test_a_broker_without_a_gateway_behind_it(tmp_path: Path) -> None:
    """It is up, and nobody answers there: the mesh is used."""
    with running(Mosquitto(tmp_path / "broker")) as broker:
        async with plugged(MeshSite(tmp_path, broker.url, both=("ewr",))) as here:
            station, ewr = here.station(), here.node("ewr")
            here.start(station, ewr)
            await here.join(station, ewr)
            await asyncio.sleep(0.5)
            await drained(here, ewr)
            await assert_delivered(here, station, ewr)
            assert ewr.link.name == "links"
