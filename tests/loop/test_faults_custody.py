"""Custody: what a receipt means, with one gateway or two, of which one is away or out."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gateway.fleet import Fleet
from gateway.station import Station
from qis_edge.core.messages import Greeting, RevocationMessage, decode
from qis_edge.node.runtime import Node
from qis_edge.testing.memory import MemoryMedium
from tests.loop.site import (
    Absence,
    Site,
    assert_each_once,
    backlog,
    deposited,
    drained,
    made_and_held,
    owed,
    record,
    settled,
    site,
    stats_of,
)

TWICE = "[custody]\ncopies = 2\n"


def reconnect(here: Site) -> None:
    """What is under way is sent again at once."""
    assert here.medium is not None
    here.medium.fail()
    here.medium.heal()


# --- what a receipt means ------------------------------------------------------------------


async def test_no_receipt_before_the_engines_have_it(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station, node = here.station(gateway='custody = "routed"\n'), here.node("ewr")
        engine = Absence(station)
        here.start(station, node)
        await here.join(station, node)
        await here.wait("intake", lambda: station.counts.new >= 5)
        for _ in range(2):
            known = station.counts.known
            reconnect(here)
            await here.wait("repeats", lambda: station.counts.known > known)  # noqa: B023 - at once
        assert made_and_held(node)[1] == 0
        # However often they come, each is owed one receipt.
        assert owed(station) <= station.counts.new
        assert (await deposited(here.state("base"))) == {}
        engine.away = False
        await drained(here, node)
        assert owed(station) == 0
        await assert_each_once(here.state("base"), {node.identity.kid: made_and_held(node)[0]})


async def test_what_was_owed_is_receipted_after_a_restart_too(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station, node = here.station(gateway='custody = "routed"\n'), here.node("ewr")
        Absence(station)
        here.start(station, node)
        await here.join(station, node)
        await here.wait("intake", lambda: station.counts.new >= 3)
        await here.stop(station)
        assert made_and_held(node)[1] == 0
        again = here.station(gateway='custody = "routed"\n')
        here.start(again)
        reconnect(here)
        await drained(here, node)
        await assert_each_once(here.state("base"), {node.identity.kid: made_and_held(node)[0]})


async def test_an_engine_that_comes_and_goes_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with site(tmp_path, MemoryMedium()) as here:
        station, node = here.station(), here.node("ewr")
        engine = Absence(station)
        here.start(station, node)
        await here.join(station, node)
        await here.wait("custody without it", lambda: made_and_held(node)[1] >= 5)
        here_for = time.monotonic() + 0.5
        await here.wait("some attempts", lambda: time.monotonic() > here_for)
        said = [one.message for one in caplog.records if "routing engine" in one.message]
        assert len(said) == 1
        assert "is away: away" in said[0]
        engine.away = False
        await settled(here, station)
        said = [one.message for one in caplog.records if "routing engine" in one.message]
        assert len(said) == 2
        assert "is back" in said[1]


# --- two gateways --------------------------------------------------------------------------


async def two(here: Site, node: Node) -> tuple[Station, Station]:
    """Two gateways of one fleet. The node joins at one; the other learns it from the node."""
    base, hill = here.station("base"), here.station("hill")
    here.start(base, hill, node)
    await here.join(base, node)
    await here.wait("both greetings", lambda: len(node.gateways.greeted(None)) == 2)
    return base, hill


async def test_two_copies_are_two_gateways(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        node = here.node("ewr", extra=TWICE)
        base, hill = await two(here, node)
        await here.wait("custody", lambda: made_and_held(node)[1] >= 5)
        await drained(here, node)
        assert len(node.uplink.custody) == 0
        for station in (base, hill):
            await settled(here, station)
            name = station.config.gateway.name
            await assert_each_once(here.state(name), {node.identity.kid: made_and_held(node)[0]})


async def test_one_of_two_gateways_is_away(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        node = here.node("ewr", extra=TWICE)
        base, hill = await two(here, node)
        await here.wait("custody", lambda: made_and_held(node)[1] >= 2)
        await here.stop(hill)
        new = base.counts.new
        await here.wait("the other goes on", lambda: base.counts.new >= new + 5)
        held = made_and_held(node)[1]
        await node.drain({})
        await here.wait("packing", lambda: stats_of(node).waiting == 0)
        assert held < made_and_held(node)[0]
        again = here.station("hill")
        here.start(again)
        reconnect(here)
        await drained(here, node)
        assert len(node.uplink.custody) == 0
        await settled(here, again)
        await assert_each_once(here.state("hill"), {node.identity.kid: made_and_held(node)[0]})


async def test_copies_are_counted_over_a_restart_of_the_node(tmp_path: Path) -> None:
    """One gateway's word is kept, the other's comes after the restart: that makes two."""
    async with site(tmp_path, MemoryMedium()) as here:
        node = here.node("ewr", extra=TWICE)
        base, hill = await two(here, node)
        await here.stop(hill)
        await here.wait("one copy", lambda: stats_of(node).open_packets >= 3)
        await node.drain({})
        await here.wait("the receipts", lambda: node.uplink.custody.in_flight == 0)
        await here.stop(node, base)
        again, other = here.node("ewr", extra=TWICE), here.station("hill")
        again.sensing.stop.set()
        here.start(again, other)
        await here.wait("the second copy", lambda: len(set(made_and_held(again))) == 1)
        await here.wait("the end of sending", lambda: len(again.uplink.custody) == 0)


async def test_an_absent_second_gateway_makes_no_storm(tmp_path: Path) -> None:
    """More packets than are kept track of are held by one of two."""
    async with site(tmp_path, MemoryMedium()) as here:
        node = here.node("ewr", extra="[custody]\ncopies = 2\nwindow = 2\n")
        base, hill = await two(here, node)
        await node.drain({})
        await here.stop(hill)
        await here.wait("the rest", lambda: base.counts.new >= stats_of(node).packets)
        count = 250  # at a window of 2, 128 are kept track of
        await node.disk(backlog, node, count, each=True)
        node.uplink.poke()
        await here.wait("one copy of all", lambda: stats_of(node).packets >= count)
        await here.wait("intake", lambda: base.counts.new >= count)
        counters = node.uplink.custody.counters
        before, until = counters.sent + counters.resent, time.monotonic() + 1.0
        await here.wait("a second", lambda: time.monotonic() > until)
        assert counters.sent + counters.resent < before + 140  # once more what is tracked
        here.start(again := here.station("hill"))
        reconnect(here)
        await here.wait("the second copies", lambda: len(set(made_and_held(node))) == 1, 40)
        await settled(here, again)


# --- a gateway that is out -----------------------------------------------------------------


def revoke(here: Site, station: Station, kid: bytes) -> None:
    """As the command line does it, over the file."""
    fleet = Fleet(station.fleet.path, here.root.public)
    fleet.revoke([kid], here.root, time.time())
    fleet.close()


async def test_a_revoked_gateway_deletes_nothing(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        node = here.node("ewr")
        base, hill = await two(here, node)
        await here.stop(base)
        held = made_and_held(node)[1]
        await here.wait("what only the other holds", lambda: made_and_held(node)[1] >= held + 5)
        base = here.station("base")
        here.start(base)
        revoke(here, base, hill.identity.kid)
        reconnect(here)
        await here.wait("the list", lambda: node.membership.revocation is not None)
        assert [one.kid for one in node.gateways.greeted(None)] == [base.identity.kid]
        # What the other one alone held goes to who is believed.
        await drained(here, node)
        made = made_and_held(node)[0]
        await settled(here, base)
        await assert_each_once(here.state("base"), {node.identity.kid: made})
        await here.stop(base)
        await node.disk(backlog, node, 3)
        node.uplink.poke()
        reconnect(here)
        until = time.monotonic() + 0.5
        await here.wait("half a second", lambda: time.monotonic() > until)
        assert made_and_held(node) == (made + 3, made)


async def test_the_list_comes_before_the_greeting(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        node = here.node("ewr")
        base, hill = await two(here, node)
        await here.stop(node)
        revoke(here, base, hill.identity.kid)
        await here.wait("the gateway's notice", lambda: base.fleet.revocation_number == 1)
        again = here.node("ewr")
        assert here.medium is not None
        frames = record(again.link)
        here.start(again)
        await here.wait("its greeting", lambda: any(g.greeted for g in again.gateways))
        messages = [decode(frame) for way, frame in frames if way == "in"]
        first = next(m for m in messages if isinstance(m, RevocationMessage | Greeting))
        of_base = [
            number
            for number, message in enumerate(messages)
            if isinstance(message, Greeting) and message.kid == base.identity.kid
        ]
        listed = [n for n, message in enumerate(messages) if isinstance(message, RevocationMessage)]
        assert listed[0] < of_base[0], first


async def test_nodes_carry_the_list_to_gateways_that_missed_it(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        node = here.node("ewr")
        base, hill = await two(here, node)
        outcast = b"outcast!"
        revoke(here, base, outcast)
        await here.wait("the list", lambda: node.membership.revocation is not None)
        node.asking.hello()
        await here.wait("the other's", lambda: hill.fleet.revocation_number == 1)
