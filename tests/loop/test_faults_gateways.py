"""Two gateways at once under each policy, a routing layer that is away, and packets that
every gateway refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway import intake
from gateway.routing import Entry
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.packet import Packet, unpack
from qis_edge.testing.memory import MemoryMedium
from tests.loop.site import (
    Absence,
    Site,
    assert_each_once,
    deposited,
    drained,
    made_and_held,
    outbox_of,
    settled,
    site,
    stats_of,
)

PATIENCE = 60.0
#: A slow machine lets weeks go by here.
LASTING = '[outbox]\nttl = "365d"\n'


async def each_once_somewhere(here: Site, kid: bytes, made: int, *names: str) -> None:
    """No gateway has an outcome twice, and together they have all."""
    found: set[int] = set()
    for name in names:
        times = Counter(one.time for one in (await deposited(here.state(name))).get(kid, ()))
        assert not times or max(times.values()) == 1
        found |= times.keys()
    assert len(found) == made


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("custody", ["spool", "routed"])
async def test_two_gateways_of_which_one_comes_and_goes(
    tmp_path: Path, custody: str, copies: int
) -> None:
    """The engine of one is away for a while; the other is switched off and on."""
    policy = f'custody = "{custody}"\n'
    async with site(tmp_path, MemoryMedium()) as here:
        base, hill = here.station("base", gateway=policy), here.station("hill", gateway=policy)
        node = here.node("ewr", extra=f"[custody]\ncopies = {copies}\n{LASTING}")
        here.start(base, hill, node)
        await here.join(base, node)
        await here.wait("both greetings", lambda: len(node.gateways.greeted(None)) == 2, PATIENCE)
        await here.wait("custody", lambda: made_and_held(node)[1] >= 2, PATIENCE)
        engine = Absence(base)
        new = hill.counts.new
        await here.wait("more", lambda: hill.counts.new >= new + 3, PATIENCE)
        await here.stop(hill)
        engine.away = False
        new = base.counts.new
        await here.wait("more", lambda: base.counts.new >= new + 3, PATIENCE)
        hill = here.station("hill", gateway=policy)
        here.start(hill)
        assert here.medium is not None
        here.medium.fail()
        here.medium.heal()
        await drained(here, node)
        made = made_and_held(node)[0]
        for station in (base, hill):
            await settled(here, station)
        await each_once_somewhere(here, node.identity.kid, made, "base", "hill")
        if copies == 2:
            for name in ("base", "hill"):
                await assert_each_once(here.state(name), {node.identity.kid: made})


async def test_a_routing_layer_that_is_away_for_hours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An hour takes a tenth of a second. Custody goes on, and the spool keeps the order."""
    caplog.set_level("INFO")
    async with site(tmp_path, MemoryMedium()) as here:
        station, node = here.station(), here.node("ewr", extra=LASTING)
        here.start(station, node)
        await here.join(station, node)
        await here.wait("custody", lambda: made_and_held(node)[1] >= 2, PATIENCE)
        await settled(here, station)
        engine = Absence(station)
        before = made_and_held(node)[1]
        await here.wait("hours", lambda: made_and_held(node)[1] >= before + 12, PATIENCE)
        (shown,) = (await station.status({}))["engines"]
        assert not shown["ok"]
        assert shown["detail"] == "away"
        assert shown["behind"] >= 1
        waiting = (await station.disk(station.spool.pending, station.engines[0].url)).entries
        order: list[Entry] = []
        deposit = station.engines[0].deposit

        async def watching(entries: Sequence[Entry]) -> int:
            count = await deposit(entries)
            order.extend(entries)
            return count

        vars(station.engines[0])["deposit"] = watching
        engine.away = False
        await drained(here, node)
        await settled(here, station)
        assert waiting
        assert [one.raw for one in order[: len(waiting)]] == [one.raw for one in waiting]
        said = [one.message for one in caplog.records if "routing engine" in one.message]
        assert [("is away" in one, "is back" in one) for one in said] == [
            (True, False),
            (False, True),
        ]
        await assert_each_once(here.state("base"), {node.identity.kid: made_and_held(node)[0]})


# --- a packet that every gateway refuses ----------------------------------------------------


async def test_a_packet_that_every_gateway_refuses_is_put_aside_and_blocks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Signed well, and unreadable to gateways of this version; until they are renewed."""
    old = True

    def picky(raw: bytes, key: Any = None, *, lazy: bool = False) -> Packet:
        packet = unpack(raw, key, lazy=lazy)
        if old and not lazy and packet.sequence in (1, 3):
            raise Refused(Reason.BOUNDS, "columns")
        return packet

    monkeypatch.setattr(intake, "unpack", picky)
    async with site(tmp_path, MemoryMedium()) as here:
        base, hill, node = (
            here.station("base"),
            here.station("hill"),
            here.node("ewr", extra=LASTING),
        )
        here.start(base, hill, node)
        await here.join(base, node)
        await here.wait("custody", lambda: stats_of(node).held_packets >= 6, PATIENCE)
        assert stats_of(node).refused_packets == 2
        with outbox_of(node) as reader:
            assert sorted(one.key[1] for one in reader.aside() if one.key) == [1, 3]
            assert {one.reason for one in reader.aside()} == {Reason.BOUNDS.value}
        assert (await node.status({}))["outbox"]["refused"] == 2
        assert "packets of" in caplog.text
        assert "for good (bounds)" in caplog.text
        assert "Is that node newer than this gateway?" in caplog.text
        counters = node.uplink.counters
        assert counters.refused == 2
        # The gateways are renewed, and somebody says: queue --retry.
        old = False
        assert await node.retry({}) == {"retried": 2}
        await drained(here, node)
        made = made_and_held(node)[0]
        assert stats_of(node).refused_packets == 0
        for station in (base, hill):
            await settled(here, station)
        await each_once_somewhere(here, node.identity.kid, made, "base", "hill")


async def test_what_nobody_signed_is_answered_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(raw: bytes, key: Any = None, *, lazy: bool = False) -> Packet:
        if not lazy:
            raise Refused(Reason.BOUNDS, "columns")
        return unpack(raw[:-1] + bytes([raw[-1] ^ 1]), key, lazy=lazy)

    monkeypatch.setattr(intake, "unpack", picky)
    async with site(tmp_path, MemoryMedium()) as here:
        station, node = here.station(), here.node("ewr", extra=LASTING)
        here.start(station, node)
        await here.join(station, node)
        await here.wait("frames", lambda: station.counts.refused["bounds"] >= 3, PATIENCE)
        assert stats_of(node).refused_packets == 0
        assert node.uplink.counters.refused == 0
