"""A gateway as a whole: what it opens, what it answers, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from gateway import station as module
from gateway.config import load_gateway
from gateway.spool import Spool
from gateway.station import Station
from qis_edge.control import request
from qis_edge.core.errors import (
    ConfigError,
    LinkError,
    QisError,
    RoutingError,
    StoreCorrupt,
    StoreError,
)
from qis_edge.testing.memory import MemoryMedium
from tests.gateway.kit import packet_of
from tests.loop.site import Site, drained, made_and_held, settled, stats_of


@pytest.fixture
def place(tmp_path: Path) -> Site:
    return Site(tmp_path, MemoryMedium())


async def ended(place: Site, station: Station) -> None:
    place.start(station)
    await place.wait("its start", lambda: station.fronts[0].link.up)
    await place.stop(station)


async def test_it_can_be_asked_while_it_runs(place: Site) -> None:
    station, node = place.station(), place.node("ewr")
    place.start(station, node)
    await place.join(station, node)
    await place.wait("custody", lambda: made_and_held(node)[1] >= 2)
    await drained(place, node)
    await settled(place, station)
    status = await asyncio.to_thread(request, station.config.gateway.state, "status")
    assert status["kid"] == station.identity.kid.hex()
    assert status["intake"]["new"] == stats_of(node).packets
    (engine,) = status["engines"]
    assert engine["ok"]
    assert engine["packets"] == status["intake"]["new"]
    assert engine["behind"] == 0
    assert status["disk"] is None
    await place.stop()
    assert not (station.config.gateway.state / "control.sock").exists()


async def test_it_closes_what_it_opened(place: Site) -> None:
    for _ in range(3):
        await ended(place, place.station())


async def test_two_do_not_share_a_state(place: Site) -> None:
    station = place.station()
    with pytest.raises(StoreError, match="in use by another process"):
        place.station()
    await ended(place, station)


async def test_one_that_cannot_be_made_holds_nothing(
    place: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: Station, links: object) -> None:
        raise LinkError("the settings can never work")

    with monkeypatch.context() as patch:
        patch.setattr(Station, "_assemble", wrong)
        with pytest.raises(LinkError):
            place.station()
    await ended(place, place.station())


async def test_its_own_credential_must_be_good(place: Site) -> None:
    config = place.gateway_config()
    (place.state("base") / "fleet.db").unlink()
    with pytest.raises(QisError, match="this gateway's own credential is not good") as error:
        Station(load_gateway(config))
    assert "qis-gateway init" in (error.value.hint or "")


async def test_one_whose_broker_cannot_listen_closes_too(place: Site) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        text = place.gateway_config().read_text()
        port = taken.getsockname()[1]
        embedded = f'embedded = true\nlisten = "127.0.0.1:{port}"'
        path = place.folder / "base" / "config.toml"
        path.write_text(text.replace("embedded = false", embedded))
        station = Station(load_gateway(path))
        with pytest.raises((QisError, OSError)):
            await station.run(asyncio.Event())
    await ended(place, place.station())


async def test_a_spool_that_lost_its_end_begins_another_epoch(
    place: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    station = place.station()
    epoch = station.spool.epoch
    await ended(place, station)
    make = Spool.__init__

    def torn(self: Spool, *given: object, **named: object) -> None:
        make(self, *given, **named)  # type: ignore[arg-type] # passed on
        self.torn = True

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "__init__", torn)
        station = place.station()
    assert station.spool.epoch != epoch
    assert station.spool.since == 0
    assert "the end of the spool's log was lost" in caplog.text
    await ended(place, station)


async def test_housekeeping_goes_on_whatever_fails(
    place: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOUSEKEEPING", 0.01)
    station = place.station()
    trimmed = expired = 0

    def full(_: float) -> int:
        nonlocal trimmed
        trimmed += 1
        raise StoreError("full")

    async def away(_: int) -> int:
        nonlocal expired
        expired += 1
        raise RoutingError("away")

    vars(station.spool)["trim"] = full
    vars(station.engines[0])["expire"] = away
    place.start(station)
    await place.wait("rounds", lambda: trimmed >= 3 <= expired)
    await place.stop(station)


async def test_damage_ends_it(place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOUSEKEEPING", 0.01)
    station = place.station()

    def damaged(_: float) -> int:
        raise StoreCorrupt("damaged")

    vars(station.spool)["trim"] = damaged
    place.start(station)
    assert isinstance(await place.ended(station), StoreCorrupt)
    await ended(place, place.station())


async def test_packets_that_others_deposit_are_proved(place: Site) -> None:
    """An engine that several can write to asks about what it did not get from here."""
    station, node = place.station(), place.node("ewr")
    place.start(station, node)
    await place.join(station, node)
    packet = packet_of(node.identity, at=int(station.clock.now()))
    assert station._accept(packet.raw).raw == packet.raw
    flipped = packet.raw[:-1] + bytes((packet.raw[-1] ^ 1,))
    with pytest.raises(QisError, match="signature"):
        station._accept(flipped)
    await place.stop()


EMBEDDED = "[broker]\nembedded = true\n"
NONE = "[broker]\nembedded = false\n"
MQTT = '[links.mqtt]\nurl = "mqtt://127.0.0.1:1"\n'
RADIO = '[links.meshtastic]\nradio = "/dev/null"\n'
LINE = '[links.serial]\nport = "/dev/null"\n'


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (EMBEDDED, ["mqtt"]),
        (EMBEDDED + RADIO, ["mqtt", "meshtastic"]),
        (NONE + RADIO, ["meshtastic"]),
        (NONE + MQTT + RADIO + LINE, ["mqtt", "serial", "meshtastic"]),
    ],
)
async def test_it_serves_every_link_that_there_is(place: Site, text: str, names: list[str]) -> None:
    path = place.gateway_config()
    path.write_text('[gateway]\nname = "base"\nstate = "state"\n' + text)
    station = Station(load_gateway(path))
    assert [front.link.name.partition(" ")[0] for front in station.fronts] == names
    await station._close()


def test_it_must_be_said_where_the_broker_is(place: Site) -> None:
    path = place.gateway_config()
    for text in (NONE, NONE + RADIO + "[links.mqtt]\n"):
        path.write_text('[gateway]\nname = "base"\nstate = "state"\n' + text)
        with pytest.raises(ConfigError, match="must say where the broker is"):
            load_gateway(path)


def test_a_fleet_file_is_needed(place: Site) -> None:
    config = place.gateway_config()
    (place.state("base") / "fleet.toml").unlink()
    with pytest.raises(QisError):
        Station(load_gateway(config))
