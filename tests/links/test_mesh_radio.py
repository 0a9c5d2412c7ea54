"""What the mesh link does when its radio refuses, when strangers send, and when nothing
happens."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core.airtime import PRESETS, airtime_ms
from qis_edge.core.errors import LinkError, UsageError
from qis_edge.core.mesh.framing import Ping, Pong, Signal, Whole, decode
from qis_edge.core.messages import Position
from qis_edge.links.base import UP, Link, Polled, Role, down, link_status, peers
from qis_edge.links.mesh import MeshLink, MeshSettings
from qis_edge.links.meshtastic_session import BROADCAST, Heard, RadioInfo, Telemetry
from qis_edge.links.ways import Carrier, Way
from qis_edge.testing.links import receive_done, until_down, until_up
from tests.core.mesh.kit import GATEWAY, packet, verify
from tests.devices.radios import Host
from tests.links.meshes import Air, Giver, Sniffer, on_air, pair, until

QUEUE_FULL, DISABLED, TOO_LARGE, DUTY_CYCLE = (32, False), (34, False), (7, True), (9, True)


@pytest.fixture
async def air(tmp_path: Path) -> AsyncIterator[Air]:
    async with on_air(Air(tmp_path)) as made:
        yield made


def heard(payload: bytes, *, port: int = 256, channel: int = 0, source: int = 7) -> Heard:
    return Heard(source, BROADCAST, 1, port, payload, channel, 5.0, -80, 0, 0)


def test_it_is_what_it_says(tmp_path: Path) -> None:
    link = MeshLink(MeshSettings(), Role.NODE, verify)
    assert isinstance(link, Link)
    assert isinstance(link, Carrier)
    assert isinstance(link, Polled)
    way: Way = link.make_way(1)
    assert not way.silent
    assert link.fits == 258


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("frame", [48, 200, 231])
def test_costs_rise_with_size_on_every_preset(preset: str, frame: int) -> None:
    link = MeshLink(MeshSettings(frame=frame), Role.NODE, verify)
    link._connected(RadioInfo(1, region="US", preset=preset))
    costs = [link.cost(size) for size in range(link.mtu + 1)]
    assert costs == sorted(costs)
    assert link.cost(link.fits) == airtime_ms(min(frame, 512 - 58), PRESETS[preset])


def test_the_law_is_the_radios_or_the_settings() -> None:
    link = MeshLink(MeshSettings(), Role.NODE, verify)
    budget = link.budget
    link._connected(RadioInfo(1, region="EU_868", preset="MEDIUM_FAST"))
    assert link.preset == PRESETS["MEDIUM_FAST"]
    assert link.budget is budget, "another preset saves up nothing"
    link._connected(RadioInfo(1, region="EU_868", preset="SHORT_TURBO"))
    assert link.preset == PRESETS["LONG_FAST"], "it is too wide there"
    link._connected(RadioInfo(1, region="UA_868", preset="LONG_FAST"))
    assert link.budget.hourly_ms == pytest.approx(32_400)
    bound = MeshLink(MeshSettings(duty_cycle=0.05), Role.NODE, verify)
    bound._connected(RadioInfo(1, region="US", preset="LONG_FAST"))
    assert bound.budget.hourly_ms == pytest.approx(162_000)


def test_what_is_not_known_of_a_radio_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    link = MeshLink(MeshSettings(), Role.NODE, verify)
    for _ in range(3):
        link._connected(RadioInfo(1, region="MOON", preset=""))
    assert link.preset == PRESETS["LONG_FAST"]
    assert link.region.duty_cycle == 0.01
    assert [record.message for record in caplog.records] == [
        "meshtastic: unknown region 'MOON', taken for one of 1%",
        "meshtastic: unknown preset '', taken for LONG_FAST",
    ]


@pytest.mark.parametrize(
    "wrong",
    [{"channel": 8}, {"frame": 40}, {"frame": 232}, {"relays": -1}, {"duty_cycle": 0.0},
     {"duty_cycle": 1.1}, {"hop_limit": 8}, {"rate": 0.0}],
)  # fmt: skip
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        MeshSettings(**wrong)
    assert caught.value.field == next(iter(wrong))


async def test_the_hop_limit_is_the_radios_or_the_settings(tmp_path: Path) -> None:
    async with on_air(Air(tmp_path, hop_limit=3)) as air:
        one, other = air.link(Role.NODE), air.link(Role.NODE, hop_limit=1)
        hops: list[int] = []
        transmit = air.channel.transmit

        def seen(radio: Any, frame: Any, done: Any) -> float:
            hops.append(frame.hop_start)
            return transmit(radio, frame, done)

        air.channel.transmit = seen  # type: ignore[method-assign]  # to look on
        for link in (one, other):
            await link.start()
            await until_up(link)
            await link.send(b"x", UP)
            await asyncio.sleep(0.05)
        assert set(hops[:1]) == {3}
        assert 1 in hops


# The radio refuses.


async def test_without_a_region_it_is_down_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with on_air(Air(tmp_path, region="UNSET", rate=500.0)) as air:
        node = air.link(Role.NODE)
        await node.start()
        await until(lambda: node.client.up)
        await asyncio.sleep(0.3)  # minutes
        assert not node.up
        assert node.room == 0
        assert node.stats.last_error == "its region is not set"
        with pytest.raises(LinkError):
            await node.send(b"x", UP)
        air.radios[0].reboot()
        await until(lambda: node.client.stats.reboots == 1 and node.client.up)
        await asyncio.sleep(0.1)
        assert not node.up
        said = [record.message for record in caplog.records if "region" in record.message]
        assert len(said) == 1
        assert "qis-edge radio configure" in said[0]
        lora = air.radios[0].settings.lora
        lora.region = type(lora).RegionCode.Value("US")
        air.radios[0].reboot()
        await until_up(node)
        assert node.stats.last_error is None
        assert (node.stats.connects, node.stats.disconnects) == (1, 0)


async def test_a_transmitter_that_is_off_is_no_way(tmp_path: Path) -> None:
    async with on_air(Air(tmp_path)) as air:
        port = air.radio()
        port.radio.settings.lora.tx_enabled = False
        node = air.link(Role.NODE, port)
        await node.start()
        await until(lambda: node.client.up)
        await asyncio.sleep(0.05)
        assert not node.up
        assert node.stats.last_error == "its transmitter is off"


async def test_a_radio_that_refuses_everything_is_down_until_it_takes_a_frame(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with on_air(Air(tmp_path, rate=500.0)) as air:
        giver, taker = await pair(air)
        air.radios[0].refusals.extend([DISABLED] * 3)
        giver.offer(*range(3))
        await until_down(giver.link)
        assert giver.link.stats.last_error == (
            "the radio says: the radio may not send (is its region set?)"
        )
        await until(lambda: len(giver.done) == 3)
        assert taker.sequences == [0, 1, 2]
        assert giver.link.stats.disconnects == 1
        assert giver.link.stats.last_error is None
        assert sum("may not send" in record.message for record in caplog.records) == 1


async def test_a_channel_that_the_radio_does_not_have(air: Air) -> None:
    node = air.link(Role.NODE, channel=3)
    await node.start()
    await until_up(node)
    await node.send(b"x", UP)
    await until_down(node)
    assert node.stats.last_error == "the radio says: no such channel"


async def test_one_frame_that_is_too_large_does_not_stop_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with on_air(Air(tmp_path, rate=500.0)) as air:
        giver, taker = await pair(air)
        air.radios[0].refusals.append(TOO_LARGE)
        giver.offer(*range(3))
        await until(lambda: len(giver.done) == 3)
        assert taker.sequences == [0, 1, 2]
        assert giver.link.stats.disconnects == 0
        assert sum("set frame" in record.message for record in caplog.records) == 1


async def test_a_used_up_duty_cycle_is_waited_for_ever_longer_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    async with on_air(Air(tmp_path, rate=400.0)) as air:
        giver, taker = await pair(air)
        air.radios[0].refusals.extend([DUTY_CYCLE] * 3)
        began = air.channel.now
        giver.offer(*range(5))
        await until(lambda: not air.radios[0].refusals)
        assert air.channel.now - began >= 60 + 120
        assert giver.link.up
        assert taker.sequences == []
        await until(lambda: len(giver.done) == 5)
        assert air.channel.now - began >= 60 + 120 + 240
        assert taker.sequences == list(range(5))
        assert giver.link.client.stats.declined == 3


async def test_a_full_queue_and_lost_statuses(air: Air) -> None:
    giver, taker = await pair(air)
    air.radios[0].refusals.extend([QUEUE_FULL] * 2)
    air.radios[0].status_loss = 0.3
    giver.offer(*range(12))
    await until(lambda: len(giver.done) == 12)
    assert taker.sequences == list(range(12))


async def test_on_a_busy_channel_it_waits_and_what_is_urgent_less(tmp_path: Path) -> None:
    async with on_air(Air(tmp_path)) as air:
        giver, taker = await pair(air)
        giver.link.budget.channel(0.30, giver.link.now())
        giver.offer(1)
        await asyncio.sleep(0.2)  # ten seconds
        assert taker.sequences == []
        giver.offer(2, priority=3)
        await until(lambda: taker.sequences[:1] == [2])
        giver.link._telemetry(Telemetry(10.0, 0.0))
        await until(lambda: sorted(giver.done) == [1, 2])


async def test_an_hour_never_has_more_airtime_than_the_law_allows(tmp_path: Path) -> None:
    async with on_air(Air(tmp_path, preset="LONG_FAST", region="EU_868", rate=2000.0)) as air:
        giver, taker = await pair(air)
        sniffer = Sniffer(air)
        offered = 0
        began = air.channel.now
        while air.channel.now - began < 2.5 * 3600:
            if len(giver.way.sender) < 16:
                giver.offer(offered, words=60)
                offered += 1
            await asyncio.sleep(0.001)
        for radio in air.radios:
            spent = [
                (at, airtime_ms(len(frame), air.channel.preset) / 1000)
                for number, at, frame in sniffer.frames
                if number == radio.number
            ]
            worst = max(
                sum(seconds for at, seconds in spent if start <= at < start + 3600)
                for start, _ in spent
            )
            assert worst <= 0.10 * 3600 * 0.9 + 2.2
        assert worst_of(giver.link) > 0.4 * 0.09 * 3600, "and not much less"
        assert not air.radios[0].refusals
        assert giver.link.client.stats.declined == 0
        assert len(taker.held) > 100


def worst_of(link: MeshLink) -> float:
    return link.stats.extra["hour_ms"] / 1000


# Others on the air.


async def test_strangers_and_garbage_are_counted_and_passed_over(air: Air) -> None:
    giver, taker = await pair(air)
    stranger = Host(air.radio().radio)
    before = taker.link.stats.frames_in
    for payload in (b"hello", b"\xb0", b"\xbf" + bytes(60), b"\xb0\x00\x00" + os.urandom(120)):
        stranger.send(payload)
    stranger.send(b"text", port=1)
    giver.offer(*range(3))
    await until(lambda: len(giver.done) == 3)
    await until(lambda: taker.link.stats.dropped_in >= 4)
    assert taker.sequences == [0, 1, 2]
    assert taker.heard == []
    assert taker.link.stats.frames_in - before >= 7


async def test_another_channel_of_the_radio_is_not_ours(air: Air) -> None:
    giver, taker = await pair(air)
    for radio in air.radios:
        radio.settings.channels[1].role = 2
        radio.settings.channels[1].settings.psk = bytes(range(16))
        radio.settings.channels[1].settings.name = "other"
    Host(air.radios[0], greet=False).send(Whole(packet(9).raw).encode(), channel=1)
    await until(lambda: taker.link.stats.dropped_in == 1)
    giver.offer(1)
    await until(lambda: giver.done == [1])
    assert taker.sequences == [1]


async def test_pings_are_answered_with_how_they_were_heard(air: Air) -> None:
    await pair(air)
    sniffer = Sniffer(air)
    Host(air.radio().radio).send(Ping(b"nonc").encode())
    await until(lambda: "Pong" in sniffer.kinds(air.radios[1]))
    pong = next(p for p in map(decode, sniffer.of(air.radios[1])) if isinstance(p, Pong))
    assert (pong.nonce, pong.heard) == (b"nonc", Signal(6.0, -85, 0))
    await asyncio.sleep(0.05)
    assert "Pong" not in sniffer.kinds(air.radios[0]), "only gateways answer"


FRAMES = st.one_of(
    st.binary(max_size=233),
    st.builds(
        lambda kind, rest: bytes([0xB0 + kind]) + rest, st.integers(0, 13), st.binary(max_size=80)
    ),
)


@given(st.lists(st.tuples(FRAMES, st.integers(0, 3)), max_size=12), st.sampled_from(Role))
def test_whatever_comes_in_the_link_stands(frames: list[tuple[bytes, int]], role: Role) -> None:
    link = MeshLink(MeshSettings(), role, verify)
    if role is Role.NODE:
        way = link.make_way(1)
        way.offer((b"stor", 1), packet(1).raw, 1)
        way.open()
        way.sender.next(link.now())
    for payload, source in frames:
        link._hear(heard(payload, source=source))
    assert link.stats.frames_in == len(frames)
    for _ in range(64):
        link._next(link.now())


async def test_who_does_not_fetch_stops_the_receiving(air: Air) -> None:
    _, gateway = air.link(Role.NODE), air.link(Role.GATEWAY)
    await gateway.start()
    await until_up(gateway)
    total = 700
    for number in range(total):
        gateway.client._take_in(heard(Whole(b"m" + number.to_bytes(2)).encode()))
        if number % 10 == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    assert len(gateway._waiting) == 256
    dropped = gateway.stats.dropped_in
    assert 150 <= dropped <= total - 512
    got = await receive_done(gateway, total - dropped)
    assert [one.data for one in got] == [b"m" + n.to_bytes(2) for n in range(total - dropped)]


# Telling peers.


async def test_what_is_announced_is_heard_by_peers_and_gateways(air: Air) -> None:
    giver, taker = await pair(air)
    other = Giver(air.link(Role.NODE))
    assert not other.link.announce(packet(5).raw), "it is down"
    await other.link.start()
    await until_up(other.link)
    giver.way.shut()
    assert giver.link.announce(packet(5).raw)
    assert giver.link.busy
    assert not giver.link.announce(packet(6).raw), "one at a time"
    await until(lambda: not giver.link.busy)
    assert giver.link.announce(packet(6).raw)
    await until(lambda: other.heard == [packet(5).raw, packet(6).raw])
    await until(lambda: taker.sequences == [5, 6])


async def test_what_was_on_the_air_is_not_told_again_unless_asked_for(air: Air) -> None:
    giver, taker = await pair(air)
    sniffer = Sniffer(air)
    giver.offer(1)
    await until(lambda: giver.done == [1])
    await taker.link.send(packet(1).raw, peers(packet(1).fingerprint))
    await taker.link.send(packet(2).raw, peers(packet(2).fingerprint))
    await until(lambda: giver.heard == [packet(2).raw])
    await taker.link.send(packet(1).raw, down(b"a node.."))
    await until(lambda: len(giver.heard) == 2)
    said = [kind for kind in sniffer.kinds(air.radios[1]) if kind != "Answer"]
    assert len(said) == 2


async def test_greetings_are_not_held_up_by_packets_for_peers(tmp_path: Path) -> None:
    async with on_air(Air(tmp_path, preset="LONG_FAST", region="EU_868", rate=50.0)) as air:
        giver, taker = await pair(air)
        for number in range(100):
            assert taker.link.room > 0
            await taker.link.send(packet(number, words=60).raw, peers(bytes(32)))
        await taker.link.send(b"greeting", down(b"a node.."))
        await until(lambda: b"greeting" in giver.heard)
        assert len(giver.heard) <= 4
        assert taker.link.stats.extra["dropped_out"] > 30


async def test_a_position_does_not_overtake_the_packets_before_it(air: Air) -> None:
    giver, taker = await pair(air)
    position = Position(GATEWAY.kid, b"cursor", True).encode(bytes(32))
    sent = [packet(number, words=330).raw for number in range(3)] + [position]
    for frame in sent:
        await taker.link.send(frame, down(b"a node.."))
    await taker.link.send(b"greeting", down(b"a node.."))
    await until(lambda: len(giver.heard) == 5)
    assert giver.heard[0] == b"greeting"
    assert giver.heard[1:] == sent


async def test_what_is_known_of_a_peer_from_elsewhere_helps_to_hear_it(air: Air) -> None:
    giver, _ = await pair(air)
    other = air.link(Role.NODE)
    await other.start()
    await until_up(other)
    giver.offer(1)
    await until(lambda: giver.done == [1])
    late = air.link(Role.NODE)
    later = air.link(Role.NODE)
    for link in (late, later):
        await link.start()
        await until_up(link)
    late.learn(packet(1))
    giver.offer(2)
    await until(lambda: giver.done == [1, 2])
    assert [r.data for r in await receive_done(late, 1)] == [packet(2).raw]
    assert later.stats.extra["unrestored"] == 1


# Nothing happens.


async def test_it_sleeps_when_there_is_nothing_to_do(tmp_path: Path) -> None:
    async with on_air(Air(tmp_path, rate=1.0)) as air:
        giver, taker = await pair(air)
        giver.offer(1)
        await until(lambda: giver.done == [1])
        await asyncio.sleep(0.3)
        turns = 0
        for link in (giver.link, taker.link):
            look = link._look

            def counted(look: object = look) -> None:
                nonlocal turns
                turns += 1
                look()  # type: ignore[operator]  # a bound method

            link._look = counted  # type: ignore[method-assign]  # to count
        cpu = time.process_time()
        await asyncio.sleep(1.0)
        assert turns <= 2
        assert time.process_time() - cpu < 0.2


async def test_a_machine_that_has_nothing_after_all_is_asked_again_slowly(
    air: Air, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, taker = await pair(air)
    asked = 0

    def nothing(now: float) -> None:
        nonlocal asked
        asked += 1

    monkeypatch.setattr(taker.link._receiver, "next_deadline", lambda: float("-inf"))
    monkeypatch.setattr(taker.link._receiver, "next", nothing)
    taker.link._poked.notify()
    began = taker.link.now()
    await asyncio.sleep(0.3)
    assert 1 <= asked <= 2 + 2 * (taker.link.now() - began)


def test_status_tells_of_the_air(tmp_path: Path) -> None:
    status = link_status(MeshLink(MeshSettings(radio="tcp:radio"), Role.NODE, verify))
    assert status["url"] == "meshtastic:tcp:radio"
    extra = status["extra"]
    assert isinstance(extra, dict)
    assert extra["hourly_ms"] == 324_000
    assert set(extra) >= {"airtime_ms", "hour_ms", "left_ms", "utilisation", "reboots", "waiting"}
