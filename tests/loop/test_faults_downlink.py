"""The downlink: what comes late, what was missed, what nobody knows, and nothing too often."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway import desk
from qis_edge.core.domain import Domain
from qis_edge.core.identity import Identity
from qis_edge.core.messages import Position, decode
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import pack
from qis_edge.links.base import Cadence, down, peers
from qis_edge.node import membership
from qis_edge.node.runtime import Node
from qis_edge.testing import memory
from qis_edge.testing.memory import MemoryLink, MemoryMedium
from tests.loop.site import (
    EPOCH,
    Site,
    count,
    drained,
    made_and_held,
    peers_of,
    record,
    routed,
    settled,
    site,
)


def address(node: Node) -> bytes:
    assert node.sensing.address is not None
    return node.sensing.address


async def seconds(here: Site, duration: float) -> None:
    until = time.monotonic() + duration
    await here.wait("time", lambda: time.monotonic() > until)


def packet(identity: Identity, where: bytes, sequence: int = 1) -> bytes:
    return pack(
        [Outcome(EPOCH + 60 * sequence, results={"temperature": 1.0})],
        identity=identity,
        fingerprint=where,
        store=b"abcd",
        sequence=sequence,
    ).raw


# --- what comes late -----------------------------------------------------------------------


async def test_a_late_joiner_gets_the_newest_then_only_what_it_missed(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station = here.station(extra="[downlink]\nlimit = 4\n")
        ewr, jfk = here.node("ewr"), here.node("jfk", "JFK")
        here.start(station, ewr)
        await here.join(station, ewr)
        await here.wait("a past", lambda: made_and_held(ewr)[1] >= 10)
        await drained(here, ewr)
        await settled(here, station)
        here.start(jfk)
        await here.join(station, jfk)
        where = address(jfk)
        await here.wait("the newest", lambda: len(peers_of(jfk, where)) >= 4)
        await seconds(here, 0.3)
        newest = sorted((entry.time for entry in await routed(here.state("base"))), reverse=True)
        assert len(peers_of(jfk, where)) == 4
        heard = [time for time in newest if time >= newest[3]]
        assert len(heard) == 4

        # An outage: exactly what was missed comes, once, and nothing else.
        await drained(here, jfk)
        await here.stop(jfk)
        await here.stop(ewr)
        again = here.node("ewr")
        here.start(again)
        before = made_and_held(again)[1]
        await here.wait("more", lambda: made_and_held(again)[1] >= before + 5)
        await drained(here, again)
        await settled(here, station)
        missed = {
            (entry.kid, entry.time)
            for entry in await routed(here.state("base"))
            if entry.time > newest[0] and entry.kid == again.identity.kid
        }
        back = here.node("jfk", "JFK")
        back.sensing.stop.set()
        frames = record(back.link)
        here.start(back)
        await here.wait("what was missed", lambda: back.inbound.heard >= len(missed))
        await seconds(here, 0.3)
        assert count(frames, "in")["PacketMessage"] == back.inbound.heard == len(missed)
        assert back.inbound.repeated == 0
        assert count(frames, "out")["Request"] == 1


async def test_a_gateway_that_restarts_learns_anew_who_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "NUDGE_AFTER", 0.1)
    async with site(tmp_path, MemoryMedium()) as here:
        station, ewr, jfk = here.station(), here.node("ewr"), here.node("jfk", "JFK")
        here.start(station, ewr, jfk)
        await here.join(station, ewr, jfk)
        await here.wait("peers", lambda: ewr.inbound.heard >= 2 <= jfk.inbound.heard)
        await here.stop(station)
        again = here.station()
        here.start(again)
        before = ewr.inbound.heard, jfk.inbound.heard
        await here.wait("live packets again", lambda: again.fronts[0].downlink.published >= 3)
        await here.wait(
            "peers", lambda: ewr.inbound.heard > before[0] and jfk.inbound.heard > before[1]
        )


# --- near situations -----------------------------------------------------------------------


async def test_wider_interests_come_down_alone(tmp_path: Path) -> None:
    bits = Domain.load("weather").prefix_bits(2)
    async with site(tmp_path, MemoryMedium()) as here:
        station, summer = here.station(), here.node("summer", season='"summer"')
        autumn = here.node("autumn", "JFK", extra=f"[peers]\nbits = {bits}\n")
        exact = here.node("exact", "LGA")
        here.start(station, summer, autumn, exact)
        await here.join(station, summer, autumn, exact)
        far = address(summer)
        await here.wait("another season", lambda: len(peers_of(autumn, far)) >= 3)
        assert isinstance(autumn.link, MemoryLink)
        assert autumn.link.listening == {address(autumn)}
        assert autumn.inbound.repeated == 0  # what is live comes one way, not two
        assert peers_of(exact, far) == []


async def test_another_season_is_asked_for_and_listened_to(tmp_path: Path) -> None:
    winter = int(datetime(2013, 12, 1, tzinfo=UTC).timestamp())
    async with site(tmp_path, MemoryMedium(), epoch=winter - 8 * 3600) as here:
        calendar = '{ from = "calendar.season" }'
        station = here.station()
        ewr, jfk = here.node("ewr", season=calendar), here.node("jfk", "JFK", season=calendar)
        here.start(station, ewr, jfk)
        frames = record(jfk.link)
        await here.join(station, ewr, jfk)
        await here.wait("peers", lambda: jfk.inbound.heard >= 2)
        autumn = address(jfk)
        assert count(frames, "out")["Request"] == 1
        await here.wait("winter", lambda: address(jfk) != autumn)
        assert isinstance(jfk.link, MemoryLink)
        await here.wait("its peers", lambda: len(peers_of(jfk, address(jfk))) >= 3)
        assert jfk.link.listening == {address(jfk)}
        assert count(frames, "out")["Request"] == 2


# --- who is that? --------------------------------------------------------------------------


async def test_unknown_senders_are_asked_for_once_and_then_used(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station, ewr = here.station(), here.node("ewr")
        here.start(station, ewr)
        await here.join(station, ewr)
        await here.wait("a past", lambda: made_and_held(ewr)[1] >= 5)
        await drained(here, ewr)
        await settled(here, station)
        jfk = here.node("jfk", "JFK")
        frames = record(jfk.link)
        here.start(jfk)
        await here.join(station, jfk)
        of_peer = [e for e in await routed(here.state("base")) if e.kid == ewr.identity.kid]
        await here.wait("all of them", lambda: jfk.inbound.heard >= len(of_peer))
        assert len(peers_of(jfk, address(jfk))) == len(of_peer)
        assert count(frames, "out")["Wanted"] <= 2  # for the gateway, and for the peer
        assert jfk.membership.parked == frozenset()

        # The position waited for them: it is kept now.
        async def kept() -> bytes | None:
            scope = jfk.asking._scope()
            return await jfk.disk(jfk.inbox.cursor, station.identity.kid, scope)

        await here.wait_for("the cursor", kept)


async def test_a_flood_of_unknown_senders_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "ASK_AGAIN", 0.3)
    async with site(tmp_path, medium := MemoryMedium()) as here:
        station, ewr, jfk = here.station(), here.node("ewr"), here.node("jfk", "JFK")
        here.start(station, ewr, jfk)
        await here.join(station, ewr, jfk)
        await here.wait("peers", lambda: jfk.inbound.heard >= 1)
        frames = record(jfk.link)
        where = address(jfk)
        for number in range(300):
            medium.inject(packet(Identity.generate(), where, number + 1), peers(where))
            if not number % 30:
                await asyncio.sleep(0)
        await here.wait("parking", lambda: jfk.membership.dropped >= 300 - membership.PARKED_KEYS)
        assert len(jfk.membership.parked) <= membership.PARKED_KEYS
        heard = jfk.inbound.heard
        await here.wait("peers all the same", lambda: jfk.inbound.heard >= heard + 3)
        # Those who nobody knows are asked for a few times, together, and given up.
        await here.wait("giving up", lambda: not jfk.membership.parked)
        assert count(frames, "out")["Wanted"] <= 20
        jfk.asking.hello()
        await here.wait("no request under way", lambda: not under_way(jfk))
        await seconds(here, 0.2)
        assert not under_way(jfk)


def under_way(node: Node) -> bool:
    return any(one.scope is not None for one in node.asking._requests.values())


# --- nothing too often ---------------------------------------------------------------------


async def test_an_idle_node_says_one_hello_and_one_request_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "BROKER_CADENCE", Cadence(hello=0.1, greeted=0.3))  # 10 minutes
    async with site(tmp_path, MemoryMedium()) as here:
        station, node = here.station(), here.node("ewr")
        here.start(station, node)
        await here.join(station, node)
        await drained(here, node)
        await seconds(here, 0.3)  # its approval is noticed
        up, down = record(node.link), record(station.fronts[0].link)
        await seconds(here, 1.6)
        said = count(up, "out")
        assert 3 <= said.pop("Hello") <= 7
        assert 3 <= said.pop("Request") <= 7
        assert not said, said
        answers = count(down, "out")
        assert 3 <= answers.pop("Greeting") <= 7
        assert 3 <= answers.pop("Position") <= 7
        assert not answers, answers


async def test_a_request_without_an_answer_is_made_ever_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "BROKER_CADENCE", Cadence(hello=0.1, patience=0.1))
    async with site(tmp_path, MemoryMedium()) as here:
        station, node = here.station(), here.node("ewr")

        async def nothing(kid: bytes, asked: object) -> None:
            """An engine that is away, seen from the node."""

        monkeypatch.setattr(station.fronts[0].downlink, "_answer", nothing)
        frames = record(node.link)
        here.start(station, node)
        await here.join(station, node)
        await seconds(here, 1.5)
        assert 2 <= count(frames, "out")["Request"] <= 6


async def test_a_replayed_position_moves_no_cursor(tmp_path: Path) -> None:
    async with site(tmp_path, medium := MemoryMedium()) as here:
        station, ewr, jfk = here.station(), here.node("ewr"), here.node("jfk", "JFK")
        frames = record(jfk.link)
        here.start(station, ewr, jfk)
        await here.join(station, ewr, jfk)
        await here.wait("a position", lambda: count(frames, "in")["Position"] >= 1)
        await here.wait("peers", lambda: jfk.inbound.heard >= 3)
        await drained(here, ewr, jfk)
        await settled(here, station)

        async def cursor() -> bytes | None:
            return await jfk.disk(jfk.inbox.cursor, station.identity.kid, jfk.asking._scope())

        first = await cursor()
        jfk.asking.hello()
        await here.wait("the next", lambda: count(frames, "in")["Position"] >= 2)
        await here.wait("its end", lambda: not under_way(jfk))
        now = await cursor()
        assert now != first
        old = next(f for way, f in frames if way == "in" and isinstance(decode(f), Position))
        medium.inject(old, down(jfk.identity.kid))
        await here.wait("its coming", lambda: count(frames, "in")["Position"] >= 3)
        await seconds(here, 0.1)
        assert await cursor() == now
