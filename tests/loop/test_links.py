"""A gateway at several links: who is on one hears who is on another, and none holds up others."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.config import load_gateway
from gateway.station import Station
from qis_edge.control import request
from qis_edge.core.mesh.framing import Poll, Whole
from qis_edge.core.messages import Hello, Wanted
from qis_edge.keys import read_key
from qis_edge.links.base import Destination, Direction, Link, Received, Role, down
from qis_edge.links.mesh import MeshLink
from qis_edge.links.meshtastic_client import MeshtasticClient
from qis_edge.links.meshtastic_session import Outgoing
from qis_edge.node.runtime import Node
from qis_edge.testing.memory import MemoryLink, MemoryMedium
from tests.loop.mesh import MeshSite, mesh_link, plugged
from tests.loop.site import (
    Absence,
    Site,
    assert_each_once,
    count,
    drained,
    made_and_held,
    record,
    settled,
    site,
)


class Crossing:
    """Two media that meet only in the gateway."""

    def __init__(self, here: Site) -> None:
        self.here = here
        self.media = MemoryMedium(), MemoryMedium()

    def station(self, *more: Link, extra: str = "") -> Station:
        config = load_gateway(self.here.gateway_config(gateway=extra))
        kid = read_key(config.gateway.state / "gateway.key").kid
        return Station(config, links=[*(one.gateway(kid) for one in self.media), *more])

    def node(self, name: str, medium: MemoryMedium, station: str = "EWR") -> Node:
        self.here.node_config(name, station)
        kid = read_key(self.here.state(name) / "node.key").kid
        return self.here.node(name, station, link=medium.node(kid))


class Stuck(MemoryLink):
    """A link that takes one frame for ever, and brings more than anybody can handle."""

    def __init__(self) -> None:
        super().__init__(MemoryMedium(), Role.GATEWAY, b"stuck\x00\x00\x01")
        self.asked = 0

    async def send(self, frame: bytes, to: Destination) -> None:
        self.asked += 1
        await asyncio.Event().wait()

    async def done(self, received: Received) -> None:
        await asyncio.Event().wait()


async def test_who_is_on_one_link_hears_who_is_on_another(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        cross = Crossing(here)
        station = cross.station()
        nodes = [
            cross.node("ewr", cross.media[0]),
            cross.node("jfk", cross.media[1], "JFK"),
        ]
        here.start(station, *nodes)
        await here.join(station, *nodes)
        await here.wait("peers", lambda: all(node.inbound.heard >= 3 for node in nodes))
        status = await asyncio.to_thread(request, station.config.gateway.state, "status")
        assert [link["up"] for link in status["links"]] == [True, True]
        assert status["downlink"]["published"] >= 2
        await drained(here, *nodes)
        await settled(here, station)
        # Over the link of each, only what is for it.
        frames = [link["frames_out"] for link in status["links"]]
        assert all(frames)
        made = {node.identity.kid: made_and_held(node)[0] for node in nodes}
        await assert_each_once(here.state("base"), made)


async def test_a_link_that_is_stuck_holds_up_no_other(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        cross = Crossing(here)
        stuck = Stuck()
        station, node = cross.station(stuck), cross.node("ewr", cross.media[1])
        here.start(station, node)
        await here.join(station, node)
        front = station.fronts[2]
        for number in range(300):
            front.post.answer(b"answer %d" % number, down(b"somebody"))
            stuck.deliver(b"\xff", Direction.UP, None)
        cross.media[0].fail()  # and another is down
        before = made_and_held(node)[1]
        await here.wait("custody", lambda: made_and_held(node)[1] >= before + 5)
        assert stuck.asked == 1
        await drained(here, node)


async def test_a_node_goes_on_over_another_link(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        cross = Crossing(here)
        station = cross.station(extra='custody = "routed"\n')
        jfk = cross.node("jfk", cross.media[1], "JFK")
        for medium in cross.media:
            ewr = cross.node("ewr", medium)
            here.start(*(() if medium is cross.media[1] else (station, jfk)), ewr)
            if medium is cross.media[0]:
                await here.join(station, ewr, jfk)
            before = made_and_held(ewr)[1]
            await here.wait("custody", lambda: made_and_held(ewr)[1] >= before + 3)  # noqa: B023 - at once
            await here.wait("peers", lambda: ewr.inbound.heard >= 2)  # noqa: B023 - at once
            if medium is cross.media[0]:
                await here.stop(ewr)
        listening = [set(front.downlink._interests) for front in station.fronts]
        assert listening == [set(), {jfk.identity.kid, ewr.identity.kid}]
        await drained(here, ewr, jfk)
        await settled(here, station)
        made = {node.identity.kid: made_and_held(node)[0] for node in (ewr, jfk)}
        await assert_each_once(here.state("base"), made)


async def test_what_goes_wrong_with_one_link_is_shown(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        cross = Crossing(here)
        station = cross.station()
        here.start(station)
        await here.wait("the start", lambda: station.fronts[0].link.up)
        cross.media[1].fail()
        status = await asyncio.to_thread(request, station.config.gateway.state, "status")
        assert [link["up"] for link in status["links"]] == [True, False]
        assert status["links"][1]["last_error"] == "the medium is away"


async def test_over_radio_too_routed_means_routed(tmp_path: Path) -> None:
    async with plugged(MeshSite(tmp_path, region="US", preset="SHORT_FAST")) as here:
        station, node = here.station(gateway='custody = "routed"\n'), here.node("ewr")
        engine = Absence(station)
        here.start(station, node)
        await here.join(station, node)
        await here.wait("intake", lambda: station.counts.new >= 3)
        await here.wait("polls", lambda: mesh_link(node).stats.extra["polls"] >= 2)
        assert made_and_held(node)[1] == 0
        engine.away = False
        await here.wait("receipts", lambda: made_and_held(node)[1] >= 3, 40)
        await drained(here, node)
        await settled(here, station)
        await assert_each_once(here.state("base"), {node.identity.kid: made_and_held(node)[0]})


async def test_a_flood_on_the_channel_costs_little_and_stops_nobody(tmp_path: Path) -> None:
    """Somebody says hello in a node's name, asks for credentials, and polls, all the time."""
    async with plugged(MeshSite(tmp_path, region="US", preset="SHORT_FAST")) as here:
        station, node = here.station(), here.node("ewr")
        here.start(station, node)
        await here.join(station, node)
        await here.wait("receipts", lambda: made_and_held(node)[1] >= 2)
        link, me = station.fronts[0].link, node.identity.kid
        assert isinstance(link, MeshLink)
        said = record(link)
        began, held = link.now(), made_and_held(node)[1]
        stranger = MeshtasticClient(here.port("stranger").path)
        await stranger.start()
        await here.wait("its radio", lambda: stranger.up)
        for number in range(150):
            hello = Hello(me, number.to_bytes(8)).encode()
            for frame in (Whole(hello), Whole(Wanted((me,)).encode()), Poll(b"xx", 1, (1,))):
                await stranger.send(Outgoing(frame.encode(), hop_limit=0))
            await asyncio.sleep(2 / here.rate)
        await stranger.close()
        minutes = (link.now() - began) / 60
        assert station.counts.refused["flooded"] >= 100
        said_by_kind = count(said, "out")
        assert said_by_kind["Greeting"] <= 5 + minutes
        assert said_by_kind["CredentialMessage"] <= 2 * (1 + minutes)
        await here.wait("receipts", lambda: made_and_held(node)[1] >= held + 3)
        await drained(here, node)
