"""The whole loop: sense, sign, store, forward, verify, spool, route, bring back."""

from __future__ import annotations

from pathlib import Path

from gateway.routing import EVERYTHING
from tests.loop.site import drained, made_and_held, site
from tests.mosquitto import Mosquitto, running


async def test_from_reading_to_peer(tmp_path: Path) -> None:
    with running(Mosquitto(tmp_path / "broker")) as broker:
        async with site(tmp_path, broker.url) as here:
            station, ewr, jfk = here.station(), here.node("ewr"), here.node("jfk", "JFK")
            here.start(station, ewr, jfk)
            await here.join(station, ewr, jfk)
            await here.wait("peers' packets", lambda: ewr.inbound.heard >= 5 <= jfk.inbound.heard)
            await drained(here, ewr, jfk)
            await here.wait("routing", lambda: station.drains[0].deposited >= station.counts.new)
            entries = await station.engines[0].query(EVERYTHING, limit=10_000)
            made = sum(made_and_held(node)[0] for node in (ewr, jfk))
            assert {entry.kid for entry in entries} == {ewr.identity.kid, jfk.identity.kid}
            assert len({entry.id for entry in entries}) == len(entries) == station.counts.new
            assert made >= len(entries)
            assert not station.counts.refused["signature"]
