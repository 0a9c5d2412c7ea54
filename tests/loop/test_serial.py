"""The whole loop over a serial line: every outcome in custody, deposited once."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from gateway.config import load_gateway
from gateway.station import Station
from qis_edge.control import request
from qis_edge.keys import read_key
from qis_edge.links.serial_line import SerialLink
from qis_edge.node.runtime import Node
from tests.links.serial_bus import SerialWorld, serial_world
from tests.loop.site import (
    Site,
    assert_each_once,
    deposited,
    drained,
    made_and_held,
    settled,
    site,
)

NOWHERE = "mqtt://127.0.0.1:1"


def station_on(here: Site, world: SerialWorld) -> Station:
    config = load_gateway(here.gateway_config())
    kid = read_key(config.gateway.state / "gateway.key").kid
    return Station(config, link=world.gateway(kid))


def node_on(here: Site, world: SerialWorld, name: str, airport: str) -> Node:
    here.node_config(name, airport)
    kid = read_key(here.state(name) / "node.key").kid
    return here.node(name, airport, link=world.node(kid))


def damaged(link: SerialLink) -> float:
    return sum(link.stats.extra.get(what, 0) for what in ("bad_crc", "garbage"))


async def test_two_nodes_and_a_gateway_on_a_line_that_becomes_noisy(tmp_path: Path) -> None:
    chance = random.Random(2)
    bad = 0.0

    def noise(data: bytes) -> bytes:
        return bytes(byte if chance.random() >= bad else chance.randrange(256) for byte in data)

    (tmp_path / "line").mkdir()
    async with serial_world(tmp_path / "line", noise) as world, site(tmp_path, NOWHERE) as here:
        station = station_on(here, world)
        nodes = [node_on(here, world, "ewr", "EWR"), node_on(here, world, "jfk", "JFK")]
        here.start(station, *nodes)
        await here.join(station, *nodes)
        await here.wait("peers", lambda: all(node.inbound.heard >= 2 for node in nodes))
        bad = 0.001  # one frame in five does not arrive
        before = [made_and_held(node)[1] for node in nodes]
        await here.wait(
            "custody",
            lambda: all(
                made_and_held(node)[1] > held + 10 for node, held in zip(nodes, before, strict=True)
            ),
        )
        assert sum(damaged(link) for link in world.made) > 0
        await drained(here, *nodes)
        await settled(here, station)
        made = {node.identity.kid: made_and_held(node)[0] for node in nodes}
        await assert_each_once(here.state("base"), made)
        await here.stop()  # while there is a line


def over_serial(config: Path, port: Path) -> Path:
    """The same configuration with a serial line in the place of the broker."""
    text = config.read_text()
    assert f'[links.mqtt]\nurl = "{NOWHERE}"\n' in text
    config.write_text(
        text.replace(
            f'[links.mqtt]\nurl = "{NOWHERE}"\n',
            f'[links.serial]\nport = "{port}"\nbaud = 230400\n',
        )
    )
    return config


async def test_as_it_is_configured_with_a_cable_that_is_pulled(tmp_path: Path) -> None:
    """Real processes, each with a port that its configuration names."""
    (tmp_path / "line").mkdir()
    async with serial_world(tmp_path / "line") as world, site(tmp_path, NOWHERE) as here:
        ends = {name: world.bus.port() for name in ("base", "ewr")}
        gateway = over_serial(here.gateway_config(), ends["base"].path)
        node = over_serial(here.node_config("ewr"), ends["ewr"].path)
        here.spawn("base", gateway)
        here.spawn("ewr", node)
        kid = read_key(here.state("ewr") / "node.key").kid
        await here.approve("base", kid)
        await here.wait("custody", lambda: made_and_held(here.state("ewr"))[1] > 2)
        ends["ewr"].unplug()
        held = made_and_held(here.state("ewr"))[1]
        await here.wait("more", lambda: made_and_held(here.state("ewr"))[0] > held + 5)
        ends["ewr"].plug()
        await here.wait("all of it", lambda: made_and_held(here.state("ewr"))[1] > held + 5)
        status = await asyncio.to_thread(request, here.state("ewr"), "status")
        assert [link["url"] for link in status["links"]] == [f"serial:{ends['ewr'].path}"]
        assert here.log("ewr").count("was unplugged") == 1
        here.processes["ewr"].terminate()
        assert await asyncio.to_thread(here.processes["ewr"].wait, 20) == 0
        made, held = made_and_held(here.state("ewr"))
        assert held > 7

        async def times() -> list[int]:
            return [outcome.time for outcome in (await deposited(here.state("base")))[kid]]

        async def enough() -> bool:
            return len(await times()) >= held

        await here.wait_for("routing", enough)
        assert len(set(await times())) == len(await times()) <= made
