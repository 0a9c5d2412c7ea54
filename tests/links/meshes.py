"""Mesh links on emulated radios, and both ends of custody over them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from devices.radio_sim.channel import Channel
from devices.radio_sim.ports import Pace, PtyPort
from devices.radio_sim.radio import Radio, introduce
from devices.radio_sim.settings import Settings
from qis_edge.core.errors import LinkError
from qis_edge.core.mesh.framing import decode
from qis_edge.core.packet import Packet
from qis_edge.core.receipt import parse
from qis_edge.links.backoff import Backoff
from qis_edge.links.base import Direction, Link, Question, Role
from qis_edge.links.mesh import MeshLink, MeshSettings
from qis_edge.links.meshtastic_client import MeshtasticClient
from qis_edge.links.meshtastic_session import Timings
from qis_edge.links.meshtastic_stream import definitions
from qis_edge.testing.links import LinkWorld, until_up
from tests.core.mesh.kit import GATEWAY, STORE, packet, receipt_for, verify

#: A radio that answers at all answers at once; so silence may be short here.
QUICK = Timings(ask=0.5, silence=2.0, handshake=6.0, answer=0.5, idle=5.0, poll=0.1, stall=0.1)


class WideChannel(Channel):
    """Radios that may all send at once."""

    def _arrive(self, one: Any, to: Any) -> None:
        path = self.between(one.sender.number, to.number)
        if path.heard and self.random.random() >= path.loss:
            self.carried.delivered += 1
            to.heard(one.frame, path.snr, path.rssi)


class Air(LinkWorld):
    """Emulated radios on ptys, and links to them.

    :param rate: how many times as fast as real time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        preset: str = "SHORT_TURBO",
        rate: float = 50.0,
        loss: float = 0.0,
        collisions: bool = False,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.rate = rate
        made = Channel if collisions else WideChannel
        self.channel = made(preset, loss=loss, seed=5)
        self.pace = Pace(self.channel.simulation, rate)
        self.radios: list[Radio] = []
        self.ports: list[PtyPort] = []
        self.links: list[MeshLink] = []
        self._settings = {"preset": preset, "region": "US", "hop_limit": 0, **settings}
        self._broken = False
        self._ports_of: dict[bytes, PtyPort] = {}

    def radio(self, **settings: Any) -> PtyPort:
        """One more radio, on a port."""
        number = len(self.radios)
        radio = Radio(self.channel, Settings(0x10000001 + number, **{**self._settings, **settings}))
        introduce(*self.radios, radio)
        self.radios.append(radio)
        port = PtyPort(radio, self.pace, link=self.folder / f"radio{number}")
        self.ports.append(port)
        if not self._broken:
            port.plug()
        return port

    def link(
        self,
        role: Role,
        port: PtyPort | None = None,
        *,
        knows: Callable[[bytes], Packet] = verify,
        **settings: Any,
    ) -> MeshLink:
        """A link, on a radio of its own unless told otherwise."""
        port = port or self.radio()
        client = MeshtasticClient(port.path, timings=QUICK, backoff=Backoff(0.02, 0.1))
        made = MeshSettings(**{"radio": port.path, "rate": self.rate, **settings})
        link = MeshLink(made, role, knows, client=client)
        self.links.append(link)
        return link

    def of(self, link: MeshLink) -> Radio:
        """The radio of a link."""
        return next(p.radio for p in self.ports if p.path == link.settings.radio)

    def node(self, kid: bytes) -> Link:
        return self.link(Role.NODE)

    def gateway(self, kid: bytes) -> Link:
        if kid not in self._ports_of:
            self._ports_of[kid] = self.radio()
        return self.link(Role.GATEWAY, self._ports_of[kid])

    async def fail(self) -> None:
        self._broken = True
        for port in self.ports:
            port.unplug()

    async def heal(self) -> None:
        self._broken = False
        for port in self.ports:
            port.plug()


@asynccontextmanager
async def on_air(air: Air) -> AsyncIterator[Air]:
    """Let its time pass; close its links in the end."""
    air.pace.start()
    try:
        yield air
    finally:
        for link in air.links:
            await link.close()
        await air.fail()
        air.pace.stop()


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Look every few milliseconds."""
    async with asyncio.timeout(seconds):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


class Taker:
    """A gateway over a mesh link: holds what comes, answers questions."""

    def __init__(self, link: MeshLink, *, holds: bool = True) -> None:
        self.link = link
        self.holds = holds
        self.held: dict[tuple[bytes, bytes, int], Packet] = {}
        self.heard: list[bytes] = []  # everything else
        self.log: list[int | Question] = []  # sequences and questions as they came
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        with contextlib.suppress(LinkError):
            while True:
                received = await self.link.receive()
                assert received.direction is Direction.UP
                if received.question is not None:
                    self._asked(received.question)
                elif received.data.startswith(b"\xd2\x84"):
                    packet = verify(received.data)
                    self.log.append(packet.sequence)
                    if self.holds:
                        self.held[packet.kid, packet.store, packet.sequence] = packet
                    else:
                        self.link.forget(packet.id)
                else:
                    self.heard.append(received.data)

    def _asked(self, question: Question) -> None:
        self.log.append(question)
        receipts = []
        for place in question.stores:
            keys = [(*place, sequence) for sequence in question.sequences]
            if found := [self.held[key] for key in keys if key in self.held]:
                receipts.append(receipt_for(found))
        self.link.reply(question, receipts)

    @property
    def sequences(self) -> list[int]:
        return sorted(sequence for _, _, sequence in self.held)


class Giver:
    """A node over a mesh link: has packets, and believes receipts."""

    def __init__(self, link: MeshLink, copies: int = 1) -> None:
        self.link = link
        self.way = link.make_way(copies)
        self.done: list[int] = []
        self.heard: list[bytes] = []  # all but receipts
        self._connects = 0
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._run())]

    def offer(self, *sequences: int, priority: int = 1, words: int = 0) -> None:
        for sequence in sequences:
            made = packet(sequence, words=words)
            assert self.way.offer((STORE, sequence), made.raw, priority) == ()

    async def _watch(self) -> None:
        while not self.link._closed:
            change = self.link.changed()
            if not self.link.up:
                self.way.shut()
            else:
                if self._connects != self.link.stats.connects:
                    self._connects = self.link.stats.connects
                    self.way.reopen()
                self.way.open()
                await self.way.send()
            await change

    async def _run(self) -> None:
        with contextlib.suppress(LinkError):
            while True:
                received = await self.link.receive()
                assert (received.direction, received.question) == (Direction.DOWN, None)
                message = received.data
                if not message.startswith(bytes.fromhex("d18443a10104a0")):
                    self.heard.append(message)
                    continue
                receipt = parse(message).receipt
                held = [(receipt.store, sequence) for sequence in receipt.held]
                answered = self.way.answered(GATEWAY.kid, held=held, refused=(), later=())
                self.done += [sequence for _, sequence in answered.done]


class Sniffer:
    """What is on the air: (radio, seconds, frame of ours) in order."""

    def __init__(self, air: Air) -> None:
        self.frames: list[tuple[int, float, bytes]] = []
        self._transmit = air.channel.transmit
        self._channel = air.channel
        air.channel.transmit = self._seen  # type: ignore[method-assign]  # to look on

    def _seen(self, radio: Any, frame: Any, done: Callable[[], None]) -> float:
        data = definitions().Data.FromString(frame.data)
        if data.portnum == 256:
            self.frames.append((radio.number, self._channel.now, data.payload))
        return self._transmit(radio, frame, done)

    def of(self, radio: Radio) -> list[bytes]:
        return [frame for number, _, frame in self.frames if number == radio.number]

    def kinds(self, radio: Radio) -> list[str]:
        return [type(decode(frame)).__name__ for frame in self.of(radio)]


async def pair(air: Air, **settings: Any) -> tuple[Giver, Taker]:
    """A node and a gateway, both up."""
    node, gateway = air.link(Role.NODE, **settings), air.link(Role.GATEWAY, **settings)
    await node.start()
    await gateway.start()
    await until_up(node, gateway)
    return Giver(node), Taker(gateway)
