"""Pinging and answering over emulated radios: both ways, with loss, relays and mishaps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path as File
from typing import Any, NoReturn

import pytest

from devices.radio_sim.channel import Path
from devices.radio_sim.ports import Pace, PtyPort
from qis_edge.core.airtime import airtime_ms
from qis_edge.core.errors import LinkError, Reason, Refused
from qis_edge.core.mesh.framing import PING_SIZE, PONG_SIZE, Ping, Pong
from qis_edge.core.mesh.receiver import Limits, Receiver
from qis_edge.core.mesh.survey import Reply, Verdict
from qis_edge.links.backoff import Backoff
from qis_edge.links.base import Role
from qis_edge.links.mesh import MeshLink
from qis_edge.links.mesh_settings import MeshSettings
from qis_edge.links.meshtastic_client import MeshtasticClient
from qis_edge.links.meshtastic_ping import (
    Answerer,
    Away,
    Back,
    Event,
    Pinged,
    Pinger,
    Silence,
    Voice,
    Waiting,
    signal_of,
)
from qis_edge.links.meshtastic_session import Outgoing, Timings
from tests.devices.radios import radios

QUICK = Timings(ask=0.5, silence=2.0, handshake=6.0, answer=0.5, idle=1.0, poll=0.1, stall=0.1)
RATE = 20


class Field:
    """Emulated radios on ptys, and what hosts do with them."""

    def __init__(self, folder: File, count: int, preset: str, **settings: Any) -> None:
        settings = {"region": "US", "hops": 0, **settings}
        self.channel, self.radios = radios(count, preset, **settings)
        self.pace = Pace(self.channel.simulation, RATE)
        self.ptys = [
            PtyPort(radio, self.pace, link=folder / str(index))
            for index, radio in enumerate(self.radios)
        ]
        self.clients: list[MeshtasticClient] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.events: list[Event] = []

    async def client(self, index: int) -> MeshtasticClient:
        client = MeshtasticClient(self.ptys[index].path, timings=QUICK, backoff=Backoff(0.02, 0.1))
        self.clients.append(client)
        await client.start()
        await until(lambda: client.room > 0)
        return client

    async def pinger(self, index: int = 0, **more: Any) -> Pinger:
        voice = Voice(await self.client(index), 0, self.events.append)
        more = {"interval": 0.05, "patience": 0.4, **more}
        pinger = Pinger(voice, self.events.append, **more)
        pinger.settle = 0.02
        pinger.survey.slot /= RATE
        return pinger

    async def answerer(self, index: int, **more: Any) -> Answerer:
        """Answers in the background."""
        answerer = Answerer(Voice(await self.client(index), 0, ignore), ignore, **more)
        answerer._echo = Limits.of(self.airtime).echo()  # in the time of the radios
        self.run(answerer.run())
        return answerer

    async def gateway(self, index: int, limits: Limits | None = None) -> Receiver:
        """Answers as a gateway does, in the background, in the time of the radios."""
        client = await self.client(index)
        limits = limits or Limits.of(self.airtime)
        receiver = Receiver(nobody, answers=True, limits=limits)

        async def serve() -> None:
            loop = asyncio.get_running_loop()
            while True:
                heard = await client.receive()
                with suppress(Refused):
                    receiver.take(heard.source, heard.payload, loop.time(), signal_of(heard))
                while (due := receiver.next_deadline()) is not None:
                    await asyncio.sleep(max(0.0, due - loop.time()))
                    if (frame := receiver.next(loop.time())) is not None:
                        await client.send(Outgoing(frame))

        self.run(serve())
        return receiver

    def airtime(self, size: int) -> float:
        return airtime_ms(size, self.channel.preset) / 1000 / RATE

    def run(self, doing: Any) -> None:
        self.tasks.append(asyncio.create_task(doing))

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def field(
    folder: File, count: int = 2, preset: str = "SHORT_TURBO", **settings: Any
) -> AsyncIterator[Field]:
    one = Field(folder, count, preset, **settings)
    one.pace.start()
    for pty in one.ptys:
        pty.plug()
    try:
        yield one
    finally:
        for task in one.tasks:
            task.cancel()
        await asyncio.gather(*one.tasks, return_exceptions=True)
        for client in one.clients:
            await client.close()
        for pty in one.ptys:
            pty.unplug()
        one.pace.stop()


def nobody(_: bytes) -> NoReturn:
    raise Refused(Reason.UNKNOWN_KEY, "kid")


def ignore(_: Event) -> None: ...


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - of the simulation, which tells nobody
            await asyncio.sleep(0.01)


async def within(seconds: float, doing: Any) -> None:
    async with asyncio.timeout(seconds):
        await doing


async def test_every_answer_tells_both_ways(tmp_path: File) -> None:
    async with field(tmp_path) as here:
        one, two = here.radios
        here.channel.path(one.number, two.number, Path(snr=-3.25, rssi=-117), both=False)
        here.channel.path(two.number, one.number, Path(snr=4.0, rssi=-101), both=False)
        answerer = await here.answerer(1)
        pinger = await here.pinger(count=5, size=200)
        await within(20, pinger.run())
        replies = here.of(Reply)
        assert [reply.number for reply in replies] == [1, 2, 3, 4, 5]
        for reply in replies:
            assert reply.radio == two.number
            assert reply.there is not None
            assert reply.back is not None
            assert (reply.there.snr, reply.there.rssi) == (-3.25, -117)
            assert (reply.back.snr, reply.back.rssi) == (4.0, -101)
            assert reply.seconds > 0
        summary = pinger.summary()
        assert (summary.delivery, summary.sent) == (1.0, 5)
        assert summary.airtime_ms == pytest.approx(5 * 90, abs=10)
        (far,) = summary.reached
        assert far.margin == pytest.approx(-3.25 + 7.5)
        assert far.lopsided == pytest.approx(-7.25)
        assert (answerer.pings, answerer.answered) == (5, 5)
        assert list(answerer.heard) == [one.number]


async def test_several_gateways_answer_each_for_itself(tmp_path: File) -> None:
    async with field(tmp_path, 3) as here:
        for index, snr in ((1, 2.0), (2, 5.0)):
            path = Path(snr=snr, rssi=-100)
            here.channel.path(here.radios[0].number, here.radios[index].number, path)
            await here.gateway(index)
        pinger = await here.pinger(count=8)
        await within(30, pinger.run())
        summary = pinger.summary()
        assert summary.answered >= 6  # two answers may still meet on the air
        assert {one.radio for one in summary.reached} == {0x10000002, 0x10000003}


async def test_a_gateway_that_runs_answers(tmp_path: File) -> None:
    async with field(tmp_path) as here:
        settings = MeshSettings(radio=here.ptys[1].path, rate=RATE)
        link = MeshLink(settings, Role.GATEWAY, nobody)
        await link.start()
        try:
            await until(lambda: link.up)
            pinger = await here.pinger(count=3)
            await within(20, pinger.run())
        finally:
            await link.close()
        summary = pinger.summary()
        assert summary.answered == 3
        (reply, *_) = here.of(Reply)
        assert reply.there == reply.back  # both sides measured


@pytest.mark.parametrize("way", ["there", "back"])
async def test_a_way_that_fails_is_silence(tmp_path: File, way: str) -> None:
    async with field(tmp_path) as here:
        one, two = (radio.number for radio in here.radios)
        ends = (one, two) if way == "there" else (two, one)
        here.channel.path(*ends, None, both=False)
        answerer = await here.answerer(1)
        pinger = await here.pinger(count=3, interval=0.3)
        await within(20, pinger.run())
        assert here.of(Reply) == []
        assert [silence.number for silence in here.of(Silence)] == [1, 2, 3]
        assert pinger.summary().verdict is None
        # Only the other end's screen tells which way it is.
        assert answerer.pings == (0 if way == "there" else 3)


async def test_losses_are_counted(tmp_path: File) -> None:
    async with field(tmp_path, loss=0.3) as here:
        await here.answerer(1)
        pinger = await here.pinger(count=25, patience=0.2)
        await within(30, pinger.run())
        summary = pinger.summary()
        assert summary.counted == 25
        assert summary.answered == len({reply.number for reply in here.of(Reply)})
        assert 0.1 < summary.delivery < 0.9  # 0.49 to be expected
        assert summary.answered + len(here.of(Silence)) == 25


async def test_pings_leave_the_channel_free(tmp_path: File) -> None:
    async with field(tmp_path, preset="LONG_FAST", region="EU_868") as here:
        slow = await here.pinger(interval=None)
        assert 9 < slow.interval < 11
        assert (await here.pinger(1, interval=None, size=200)).interval > 20
    async with field(tmp_path) as here:
        assert (await here.pinger(interval=None)).interval == 1.0


async def test_relays_are_told(tmp_path: File) -> None:
    async with field(tmp_path, 3, hops=3) as here:
        here.channel.path(here.radios[0].number, here.radios[2].number, None)
        await here.answerer(2)
        pinger = await here.pinger(count=2, patience=1.0)
        await within(20, pinger.run())
        (far,) = pinger.summary().reached
        assert far.relayed
        assert (far.there.hops, far.back.hops) == (1, 1)


async def test_unplugged_in_the_middle_and_back(tmp_path: File) -> None:
    async with field(tmp_path) as here:
        await here.answerer(1)
        pinger = await here.pinger(count=10, patience=5.0)
        here.run(pinger.run())
        await until(lambda: len(here.of(Reply)) >= 3)
        here.channel.path(here.radios[0].number, here.radios[1].number, None)
        sent = pinger.summary().sent
        await until(lambda: pinger.summary().sent > sent)  # one that stays under way
        here.ptys[0].unplug()
        await until(lambda: bool(here.of(Away)))
        here.channel.path(here.radios[0].number, here.radios[1].number, Path())
        here.ptys[0].plug()
        await within(20, here.tasks[-1])
        assert here.of(Back)
        summary = pinger.summary()
        assert summary.sent == 10
        assert 3 <= summary.counted < 10
        assert summary.answered == summary.counted  # the plug is not the air's fault
        assert summary.verdict is Verdict.GOOD


async def test_who_answers_seldom_is_asked_seldom(tmp_path: File) -> None:
    async with field(tmp_path) as here:
        await here.gateway(1, replace(Limits.of(here.airtime), pongs=2, pong_every=0.8))
        pinger = await here.pinger(count=4)
        pinger.survey.every = 0.8
        await within(20, pinger.run())
        assert pinger.summary().delivery == 1.0
        assert any("share" in waiting.why for waiting in here.of(Waiting))


async def test_it_keeps_to_the_duty_cycle_and_says_so(tmp_path: File) -> None:
    async with field(tmp_path, preset="LONG_FAST", region="UA_868") as here:
        await here.answerer(1)
        pinger = await here.pinger(interval=0.01)
        here.run(pinger.run())
        await until(lambda: bool(here.of(Waiting)))
        (waiting,) = here.of(Waiting)
        assert "1% of each hour may be sent in UA_868" in waiting.why
        assert waiting.seconds > 1
        # A twelfth of the hour's share at once.
        assert pinger.summary().airtime_ms <= 36_000 * 0.9 / 12


async def test_a_radio_that_has_used_up_its_duty_cycle_is_waited_for(
    tmp_path: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Voice, "refused_for", 0.05)
    async with field(tmp_path, region="EU_868", preset="SHORT_FAST") as here:
        here.radios[0].refusals.append((9, True))
        await here.answerer(1)
        pinger = await here.pinger(count=1)
        await within(20, pinger.run())
        assert any("duty cycle is used up" in waiting.why for waiting in here.of(Waiting))
        assert pinger.summary().answered == 1


@pytest.mark.parametrize("refusal", [34, 6])
async def test_a_radio_that_never_sends_is_an_error(tmp_path: File, refusal: int) -> None:
    async with field(tmp_path) as here:
        here.radios[0].refusals.append((refusal, refusal == 6))
        pinger = await here.pinger(count=1)
        with pytest.raises(LinkError, match="does not send") as caught:
            await within(10, pinger.run())
        assert caught.value.hint


async def test_a_radio_without_a_region(tmp_path: File) -> None:
    async with field(tmp_path, region="UNSET") as here:
        with pytest.raises(LinkError, match="region") as caught:
            await here.pinger()
        assert "configure" in str(caught.value.hint)


async def test_strangers_on_the_channel_are_passed_over(tmp_path: File) -> None:
    async with field(tmp_path, 3) as here:
        stranger = await here.client(2)
        pinger = await here.pinger(count=1)
        here.run(pinger.run())
        for payload in (b"hello", b"\xbb", Pong(b"none").encode(), Ping(b"ping").encode()):
            await stranger.send(Outgoing(payload))
            await stranger.send(Outgoing(payload, port=257))
        await within(10, here.tasks[-1])
        assert here.of(Reply) == []
        assert [silence.number for silence in here.of(Silence)] == [1]


async def test_a_flood_of_pings_is_answered_in_part(tmp_path: File) -> None:
    async with field(tmp_path, preset="LONG_FAST", region="EU_868") as here:
        told: list[Event] = []
        voice = Voice(await here.client(1), 0, told.append)
        answerer = Answerer(voice, told.append)
        here.run(answerer.run())
        echo = answerer._echo
        for number in range(60):
            echo.take(Ping(number.to_bytes(4)), None, voice.now())
        assert echo.refused == 60 - 32
        flood = await here.client(0)
        await flood.send(Outgoing(Ping(b"more").encode()))
        await until(lambda: bool(told))
        (pinged,) = [event for event in told if isinstance(event, Pinged)]
        assert not pinged.answered
        assert pinged.size == PING_SIZE
        await until(lambda: answerer.answered == 4)  # those that waited, the newest
        assert answerer.airtime_ms == pytest.approx(4 * voice.airtime_ms(PONG_SIZE))
