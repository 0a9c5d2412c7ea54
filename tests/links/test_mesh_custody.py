"""Packets in custody over emulated radios: what goes up, what is asked, what is sent again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from devices.radio_sim.channel import Path as Way
from qis_edge.core.airtime import PRESETS, REGIONS
from qis_edge.core.mesh.framing import Poll, decode
from qis_edge.links.base import Question, Role
from qis_edge.links.mesh import MeshLink, MeshSettings
from qis_edge.links.meshtastic_session import RadioInfo
from qis_edge.testing.links import until_down, until_up
from tests.core.mesh.kit import GATEWAY, STORE, packet, verify
from tests.links.meshes import Air, Giver, Sniffer, Taker, on_air, pair, until


@pytest.fixture
async def air(tmp_path: Path) -> AsyncIterator[Air]:
    async with on_air(Air(tmp_path)) as made:
        yield made


async def test_packets_go_up_are_asked_about_and_settled(air: Air) -> None:
    giver, taker = await pair(air)
    sniffer = Sniffer(air)
    giver.offer(*range(40))
    await until(lambda: len(giver.done) == 40)
    assert taker.sequences == list(range(40))
    assert len(giver.way.custody) == len(giver.way.sender) == 0
    # Each question came behind the packets before it.
    asked: list[int] = []
    for entry in taker.log:
        if isinstance(entry, Question):
            assert set(entry.sequences) <= set(asked)
        else:
            asked.append(entry)
    # One whole packet, which teaches the rest; no polls where nothing is lost.
    kinds = sniffer.kinds(air.radios[0])
    assert kinds == ["Whole"] + ["Elided"] * 39
    assert giver.link.stats.extra["polls"] == 0
    assert all(len(frame) <= 200 for _, _, frame in sniffer.frames)
    assert giver.link.stats.frames_out == 40 == taker.link.stats.frames_in
    assert giver.link.stats.bytes_out == sum(map(len, sniffer.of(air.radios[0])))


async def test_long_packets_go_in_tiles(air: Air) -> None:
    giver, taker = await pair(air)
    giver.offer(*range(6), words=330)
    await until(lambda: len(giver.done) == 6)
    assert taker.sequences == list(range(6))


async def test_lost_frames_are_sent_again_and_each_packet_comes_once(tmp_path: Path) -> None:
    async with on_air(Air(tmp_path, loss=0.3, collisions=True, rate=200.0)) as air:
        giver, taker = await pair(air)
        giver.offer(*range(20))
        giver.offer(*range(20, 30), words=300)
        await until(lambda: len(giver.done) == 30)
        came = [entry for entry in taker.log if isinstance(entry, int)]
        assert sorted(came) == list(range(30))
        assert air.channel.carried.lost > 5


async def test_what_a_gateway_could_not_take_comes_again(air: Air) -> None:
    giver, taker = await pair(air)
    taker.holds = False
    giver.offer(*range(5))
    await until(lambda: taker.log.count(0) >= 2)
    taker.holds = True
    await until(lambda: len(giver.done) == 5)


def reached(taker: Taker, count: int) -> bool:
    return len(taker.sequences) >= count


def came_back(link: MeshLink, times: int) -> bool:
    return link.up and link.stats.connects > times


@pytest.mark.parametrize("native_usb", [False, True])
async def test_a_reboot_loses_what_was_in_the_radio_and_nothing_else(
    tmp_path: Path, native_usb: bool
) -> None:
    async with on_air(Air(tmp_path, preset="LONG_FAST", rate=100.0)) as air:
        giver, taker = await pair(air)
        radio = air.radios[0]
        air.ports[0]._native_usb = native_usb
        giver.offer(*range(16))
        for times, count in ((1, 3), (2, 9)):
            await until(partial(reached, taker, count))
            assert len(radio._queue) <= 2, "one on the air, one that waits, and one just given"
            assert radio._queue or radio._sending
            radio.reboot()
            await until(partial(came_back, giver.link, times))
        await until(lambda: len(giver.done) == 16)
        assert taker.sequences == list(range(16))
        assert giver.link.stats.connects == 3
        assert giver.link.stats.disconnects == 2


async def test_unplugged_in_the_middle_and_back(air: Air) -> None:
    giver, taker = await pair(air)
    giver.offer(*range(30))
    await until(lambda: len(taker.sequences) >= 3)
    air.ports[0].unplug()
    await until_down(giver.link)
    assert giver.link.room == 0
    giver.offer(30)
    await asyncio.sleep(0.1)
    air.ports[0].plug()
    await until(lambda: len(giver.done) == 31)
    assert taker.sequences == list(range(31))


async def test_a_gateway_that_is_away_is_asked_ever_less_and_found_when_it_is_back(
    air: Air,
) -> None:
    giver, _ = await pair(air)
    sniffer = Sniffer(air)
    air.radios[1].power_off()
    giver.offer(*range(3))
    await until(lambda: giver.way.silent)
    before = len(sniffer.of(air.radios[0]))
    assert sniffer.kinds(air.radios[0])[:3] == ["Whole", "Elided", "Elided"]
    assert set(sniffer.kinds(air.radios[0])[3:]) == {"Poll"}
    # What is urgent goes into the silence, at once, and once.
    giver.offer(7, priority=3)
    await until(lambda: len(sniffer.of(air.radios[0])) > before, 1.0)
    assert "Elided" in sniffer.kinds(air.radios[0])[before:]
    air.radios[1].power_on()
    await until(lambda: len(giver.done) == 4)


async def test_the_beginning_of_a_silence_is_told(air: Air) -> None:
    node = air.link(Role.NODE)
    await node.start()
    await until_up(node)
    giver = Giver(node)
    giver.offer(1)
    told = 0

    async def watch() -> None:
        nonlocal told
        while not giver.way.silent:
            await node.changed()
            told += giver.way.silent

    await asyncio.wait_for(watch(), 10)
    assert told == 1


async def test_urgent_ones_go_first(tmp_path: Path) -> None:
    async with on_air(Air(tmp_path, preset="LONG_FAST", rate=100.0)) as air:
        giver, taker = await pair(air)
        giver.offer(*range(10))
        await until(lambda: 0 in taker.log)
        giver.offer(77, priority=3)
        await until(lambda: len(giver.done) == 11)
        came = [entry for entry in taker.log if isinstance(entry, int)]
        assert came.index(77) <= 5


async def test_every_gateway_answers_and_none_takes_anothers_answer(air: Air) -> None:
    node = air.link(Role.NODE)
    gateways = [air.link(Role.GATEWAY), air.link(Role.GATEWAY)]
    for link in (node, *gateways):
        await link.start()
    await until_up(node, *gateways)
    giver, takers = Giver(node), [Taker(link) for link in gateways]
    giver.offer(*range(8))
    await until(lambda: len(giver.done) == 8)
    await until(lambda: all(taker.sequences == list(range(8)) for taker in takers))
    await asyncio.sleep(0.1)
    assert [taker.heard for taker in takers] == [[], []]


@pytest.mark.parametrize(("region", "preset"), [("UA_868", "LONG_FAST"), ("EU_868", "LONG_SLOW")])
async def test_where_little_may_be_sent_nothing_is_sent_twice(
    tmp_path: Path, region: str, preset: str
) -> None:
    async with on_air(Air(tmp_path, preset=preset, region=region, rate=4000.0)) as air:
        giver, taker = await pair(air)
        giver.offer(*range(20), words=60)
        await until(lambda: len(giver.done) == 20)
        assert air.channel.now > 1500
        assert giver.way.custody.counters.resent == 0
        assert taker.link.stats.extra["duplicates"] == 0


async def test_timers_are_those_of_the_radios_preset(tmp_path: Path) -> None:
    async with on_air(Air(tmp_path, preset="MEDIUM_FAST", region="EU_868")) as air:
        node = air.link(Role.NODE)
        way = node.make_way(1)
        slow = way.custody.timeout
        assert node.preset == PRESETS["LONG_FAST"], "until it is known"
        await node.start()
        await until_up(node)
        assert (node.preset, node.region) == (PRESETS["MEDIUM_FAST"], REGIONS["EU_868"])
        assert way.sender.timing == node.timing
        assert way.custody.timeout < slow
        assert node.cost(100) < 400
        # It is configured anew, and reboots.
        lora = air.radios[0].settings.lora
        lora.modem_preset = type(lora).ModemPreset.Value("SHORT_TURBO")
        air.radios[0].reboot()
        await until(lambda: node.preset == PRESETS["LONG_FAST"])  # too wide for the region
        lora.region = type(lora).RegionCode.Value("US")
        air.radios[0].reboot()
        await until(lambda: node.preset == PRESETS["SHORT_TURBO"])
        assert node.region == REGIONS["US"]
        assert node.budget.hourly_ms == pytest.approx(0.9 * 3_600_000)


async def test_what_was_offered_before_the_radio_was_there_goes_up(air: Air) -> None:
    port = air.radio()
    port.unplug()
    node, gateway = air.link(Role.NODE, port), air.link(Role.GATEWAY)
    giver, taker = Giver(node), Taker(gateway)
    giver.offer(*range(5))
    await node.start()
    await gateway.start()
    await until_up(gateway)
    port.plug()
    await until(lambda: len(giver.done) == 5)
    assert taker.sequences == list(range(5))


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_whatever_happens_to_the_radios_everything_arrives(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    async with on_air(Air(tmp_path, loss=0.15, collisions=True, rate=200.0)) as air:
        giver, taker = await pair(air)
        offered = 0
        for _ in range(25):
            for _ in range(dice.randrange(4)):
                if len(giver.way.sender) < 16:
                    giver.offer(
                        offered, priority=dice.choice((1, 1, 3)), words=dice.choice((0, 300))
                    )
                    offered += 1
            port = dice.choice(air.ports)
            match dice.randrange(6):
                case 0:
                    port.unplug()
                case 1:
                    port.radio.reboot()
                case 2:
                    port.radio.refusals.append(dice.choice(((32, False), (9, True), (0, False))))
                case 3:
                    port.say(bytes(dice.randbytes(40)))
                case _:
                    for one in air.ports:
                        one.plug()
            await asyncio.sleep(dice.uniform(0.0, 0.1))
        await air.heal()
        await until(lambda: len(giver.done) == offered, 30)
        assert taker.sequences == list(range(offered))
        assert offered > 20


async def test_two_copies_are_two_gateways(air: Air) -> None:
    node, gateway = air.link(Role.NODE), air.link(Role.GATEWAY)
    for link in (node, gateway):
        await link.start()
        await until_up(link)
    giver, taker = Giver(node, copies=2), Taker(gateway)
    giver.offer(1, 2)
    await until(lambda: len(giver.way.custody._holders) == 2)
    assert taker.sequences == [1, 2]
    assert giver.done == []
    giver.way.lost(GATEWAY.kid)
    await until(lambda: len(giver.way.custody._holders) == 2)  # it says so again
    keys = [(STORE, 1), (STORE, 2)]
    answered = giver.way.answered(b"another.", held=keys, refused=(), later=())
    assert set(answered.done) == set(keys)
    assert len(giver.way.sender) == 0


async def test_a_gateways_word_ends_a_silence_and_what_was_sent_is_asked_about(air: Air) -> None:
    giver, _ = await pair(air)
    air.channel.path(air.radios[0].number, air.radios[1].number, None)
    giver.offer(1)
    await until(lambda: giver.way.silent)
    air.channel.path(air.radios[0].number, air.radios[1].number, Way())
    polls = giver.link.stats.extra["polls"]
    giver.way.heard(GATEWAY.kid)
    assert not giver.way.silent
    await until(lambda: giver.link.stats.extra["polls"] == polls + 1, 0.3)
    await until(lambda: giver.done == [1])


async def test_what_is_withdrawn_goes_no_more(air: Air) -> None:
    giver, taker = await pair(air)
    giver.way.shut()
    giver.offer(1, 2, 3)
    giver.way.withdraw((STORE, 2))
    giver.way.open()
    await until(lambda: giver.done == [1, 3])
    assert taker.sequences == [1, 3]


async def test_a_radio_that_is_configured_anew_in_the_middle(air: Air) -> None:
    giver, taker = await pair(air)
    timing, timeout = giver.way.sender.timing, giver.way.custody.timeout
    giver.offer(*range(16))
    await until(lambda: len(taker.sequences) >= 2)
    lora = air.radios[0].settings.lora
    lora.modem_preset = type(lora).ModemPreset.Value("LONG_FAST")  # and the air as before
    air.radios[0].reboot()
    await until(lambda: len(giver.done) == 16)
    assert giver.way.sender.timing != timing
    assert giver.way.custody.timeout > timeout


def test_a_way_that_is_open_stays_so_with_other_timers() -> None:
    link = MeshLink(MeshSettings(), Role.NODE, verify)
    way = link.make_way(1)
    way.open()
    way.offer((STORE, 1), packet(1).raw, 1)
    way.sender.spread = 0.0
    assert way.sender.next(link.now()) is not None
    link._connected(RadioInfo(1, region="US", preset="SHORT_FAST"))
    assert way.custody.up
    assert way.sender.timing == link.timing
    poll = way.sender.next(link.now())
    assert poll is not None
    assert isinstance(decode(poll), Poll), "what was sent is asked about"
