"""The mesh link: messages over a Meshtastic radio.

The machines of :mod:`qis_edge.core.mesh` say what goes into which frame; here they meet a
radio, its airtime and the event loop. One loop sends: answers first, then short messages,
then packets in custody, then what is sent for peers to hear. A frame is given to the radio
when its budget allows, and when no more than one waits in the radio before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from qis_edge.core import airtime
from qis_edge.core.errors import LinkError, Refused, UsageError
from qis_edge.core.mesh.elision import Context
from qis_edge.core.mesh.framing import Answer as AnswerFrame
from qis_edge.core.mesh.framing import Missing, Signal, Unknown
from qis_edge.core.mesh.receiver import Asked, Limits, Message, Receiver
from qis_edge.core.mesh.repeats import Repeats
from qis_edge.core.mesh.sender import Timing
from qis_edge.core.messages import Position, decode
from qis_edge.core.packet import MAX_PACKET, Packet
from qis_edge.links import base, meshtastic_session
from qis_edge.links.base import (
    MESH_CADENCE,
    Destination,
    Direction,
    LinkStats,
    Question,
    Received,
    Role,
)
from qis_edge.links.mesh_broadcast import PACKET, Broadcasts
from qis_edge.links.mesh_settings import MeshSettings
from qis_edge.links.mesh_way import MeshWay
from qis_edge.links.meshtastic_client import MeshtasticClient
from qis_edge.links.meshtastic_session import (
    PRIVATE_APP,
    Declined,
    Heard,
    Outgoing,
    RadioInfo,
    Taken,
    Telemetry,
)
from qis_edge.links.outage import Outage
from qis_edge.links.wake import Wake

__all__ = ["MeshLink", "MeshSettings", "MeshWay"]

log = logging.getLogger(__name__)

#: What an elided frame saves of a packet.
_ELIDED = 58
#: Received messages that wait for the receiver.
_WAITING = 256
#: Seconds until a radio that refuses is tried again, doubled each time that its duty cycle
#: is used up; and one that has no room.
_BLOCKED, _LONGEST_BLOCKED, _NO_ROOM = 60.0, 600.0, 2.0
#: The least time between two looks at machines that had nothing after all.
_LOOK = 0.5

#: Why a radio sends nothing at all, and what helps.
_BARRED = {
    meshtastic_session.Reason.DISABLED: "run qis-edge radio configure",
    meshtastic_session.Reason.NO_CHANNEL: "set channel under [links.meshtastic]",
    meshtastic_session.Reason.NO_KEY: None,
    meshtastic_session.Reason.OTHER: None,
}


class MeshLink:
    """See :class:`qis_edge.links.base.Link`, ``Polled`` and ``ways.Carrier``.

    Times within are seconds of the radio's time: real ones, but for an emulated radio.

    :param verify: ``unpack`` with the keys that are known; raises ``Refused``.
    :param client: in the place of one for ``settings.radio``.
    """

    mtu = MAX_PACKET
    shared = True

    def __init__(
        self,
        settings: MeshSettings,
        role: Role,
        verify: Callable[[bytes], Packet],
        *,
        client: MeshtasticClient | None = None,
    ) -> None:
        self.settings = settings
        self.name = "meshtastic"
        self.url = f"meshtastic:{settings.radio}"
        self.fits = min(MAX_PACKET, settings.frame + _ELIDED)
        self.cadence = _scaled(MESH_CADENCE, settings.rate)
        self.client = client or MeshtasticClient(settings.radio)
        self.client.on_telemetry = self._telemetry
        self._role = role
        self._stats = LinkStats()
        self._rate = settings.rate
        self._outage = Outage(log, self.name)
        self._waiting: deque[Received] = deque()
        self._arrived, self._changed, self._taken, self._poked = Wake(), Wake(), Wake(), Wake()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self._up = False
        self._barred = False  # the radio sends nothing at all, as it says
        self._blocked = 0.0  # until then nothing is given to it
        self._block = _BLOCKED  # how long the next time
        self._error: str | None = None
        self._said: set[str] = set()
        self._seen = (0, 0)  # the client's connects and reboots
        self._was: tuple[bool, int, bool] = (False, 0, False)  # up, room, silent
        self._held: bytes | None = None  # a frame that the radio did not take yet
        self._air_free = 0.0
        self._most_room = 0  # in the radio's queue
        self._spent_ms = 0.0
        self._dropped = 0
        self._way: MeshWay | None = None
        self._small = Repeats(frame=settings.frame)
        self._bulk = Broadcasts(frame=settings.frame)
        self._verify = verify
        self._receiver = self._make_receiver(Limits())
        # Until the radio has told: what is slow and bound.
        self.region = self._lawful(airtime.REGIONS["EU_868"])
        self.budget = airtime.Budget(self.region, self.now())
        self._tune(self.region, airtime.PRESETS["LONG_FAST"])

    def now(self) -> float:
        """The radio's time."""
        return time.monotonic() * self._rate

    # - the radio's law

    def _lawful(self, region: airtime.Region) -> airtime.Region:
        share = self.settings.duty_cycle
        return region if share is None else replace(region, duty_cycle=share)

    def _tune(self, region: airtime.Region, preset: airtime.Preset) -> None:
        """By this law from now on; of what was heard, the contexts stay known."""
        if region != self.region:
            self.region = region
            self.budget = airtime.Budget(region, self.now())
        self.preset = preset
        self.timing = Timing.of(self.airtime, relays=self.settings.relays)
        known = self._receiver.contexts
        self._receiver = self._make_receiver(Limits.of(self.airtime, region.duty_cycle))
        self._receiver.contexts = known
        if self._way is not None:
            self._way.retime(self.timing, self._share())

    def _share(self) -> float:
        return self.budget.hourly_ms / (1000.0 * airtime.HOUR)

    def _make_receiver(self, limits: Limits) -> Receiver:
        answers = self._role is Role.GATEWAY
        return Receiver(self._verify, answers=answers, frame=self.settings.frame, limits=limits)

    def airtime(self, size: int) -> float:
        """Seconds that a frame of so many bytes is on the air."""
        return airtime.airtime_ms(size, self.preset) / 1000.0

    def _connected(self, radio: RadioInfo) -> None:
        """The radio told who it is, for the first time or anew."""
        self._held = self._error = None
        self._air_free = self._blocked = self.now()
        self._most_room = 0
        self._block = _BLOCKED
        self._barred = False
        if radio.region == "UNSET" or not radio.tx_enabled:
            what = "its transmitter is off" if radio.region != "UNSET" else "its region is not set"
            self._bar(what, _BARRED[meshtastic_session.Reason.DISABLED])
            return
        region = self._lawful(airtime.region_named(radio.region))
        if radio.region not in airtime.REGIONS:
            share = f"{100 * region.duty_cycle:g}%"
            self._warn(f"unknown region {radio.region!r}, taken for one of {share}")
        if radio.preset not in airtime.PRESETS:
            self._warn(f"unknown preset {radio.preset!r}, taken for LONG_FAST")
        preset = airtime.effective_preset(radio.region, radio.preset)
        if (region, preset) != (self.region, self.preset):
            self._tune(region, preset)

    def _bar(self, cause: str, hint: str | None) -> None:
        """The radio does not send for us, and will not soon."""
        self._barred = True
        self._error = cause
        self._outage.cause(cause, hint)

    def _warn(self, text: str) -> None:
        """Once."""
        if text not in self._said:
            self._said.add(text)
            log.warning("%s: %s", self.name, text)

    def _telemetry(self, told: Telemetry) -> None:
        self.budget.channel(told.channel_utilization / 100.0, self.now())

    # - the link

    @property
    def up(self) -> bool:
        """See :class:`qis_edge.links.base.Link`."""
        return self._up

    @property
    def room(self) -> int:
        """See :class:`qis_edge.links.base.Link`. Packets for all to hear take no room of
        others: too many of them drive out each other."""
        return self._small.room if self._up else 0

    @property
    def not_before(self) -> float:
        """See :class:`qis_edge.links.base.Link`: it has its own queue."""
        return 0.0

    def cost(self, size: int) -> float:
        """Milliseconds of airtime; see :class:`qis_edge.links.base.Link`."""
        left = max(1, size - _ELIDED)
        if left <= self.settings.frame:
            return airtime.airtime_ms(left, self.preset)
        pieces = -(-left // (self.settings.frame - 4))
        return pieces * airtime.airtime_ms(-(-left // pieces) + 4, self.preset)

    @property
    def stats(self) -> LinkStats:
        """Frames are the radio's. ``extra`` tells of the air, in milliseconds: ``airtime_ms``
        spent since the start, ``hour_ms`` in the last hour, ``left_ms`` that may be spent at
        once, ``hourly_ms`` that an hour allows; ``utilisation`` of the channel (0..1)."""
        stats, spending = self._stats, self.budget.state(self.now())
        radio, told = self.client.radio, self.client.telemetry
        stats.last_error = self._error or self.client.stats.last_error
        stats.dropped_in = self._dropped + self.client.stats.dropped
        stats.extra.update(
            airtime_ms=round(self._spent_ms),
            hour_ms=round(spending.spent_ms),
            left_ms=round(spending.left_ms),
            hourly_ms=round(spending.hourly_ms),
            utilisation=round(told.channel_utilization / 100.0, 4) if told else 0.0,
            radio=radio.number if radio else 0,
            reboots=self.client.stats.reboots,
            waiting=len(self._small) + len(self._bulk),
            dropped_out=self._bulk.dropped,
            duplicates=self._receiver.duplicates,
            unrestored=self._receiver.unrestored,
            polls=self._way.sender.polls if self._way else 0,
        )
        return stats

    async def start(self) -> None:
        """See :class:`qis_edge.links.base.Link`."""
        if self._tasks or self._closed:
            return
        await self.client.start()
        self._tasks = [
            asyncio.create_task(self._pump(), name="mesh out"),
            asyncio.create_task(self._listen(), name="mesh in"),
        ]

    async def close(self) -> None:
        """See :class:`qis_edge.links.base.Link`."""
        self._closed = True
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.client.close()
        self._tell()
        for wake in (self._arrived, self._changed, self._taken, self._poked):
            wake.end()

    def changed(self) -> Coroutine[Any, Any, None]:
        """See :class:`qis_edge.links.base.Link`."""
        return self._changed.changed()

    async def listen(self, fingerprints: frozenset[bytes]) -> None:
        """Everything is heard; see :class:`qis_edge.links.base.Link`."""

    async def send(self, frame: bytes, to: Destination) -> None:
        """See :class:`qis_edge.links.base.Link`."""
        if (to.direction is Direction.UP) != (self._role is Role.NODE):
            raise UsageError(f"a {self._role.value} cannot send there", field="to")
        if not 0 < len(frame) <= self.mtu:
            raise LinkError(f"{self.name}: {len(frame)} bytes, not 1..{self.mtu}")
        if not self.room:
            raise LinkError(f"{self.name} is {'full' if self.up else 'down'}")
        if to.direction is not Direction.UP and self._goes_with_packets(frame):
            self._bulk.send(frame, to)
        else:
            self._small.send(frame, self.now())
        self._poked.notify()

    def _goes_with_packets(self, frame: bytes) -> bool:
        """Packets, and what must not overtake them."""
        if frame.startswith(PACKET):
            return True
        try:
            return len(self._bulk) > 0 and isinstance(decode(frame), Position)
        except Refused:
            return False

    async def receive(self) -> Received:
        """See :class:`qis_edge.links.base.Link`."""
        while not self._waiting:
            if self._closed:
                raise LinkError(f"{self.name} is closed")
            await self._arrived.changed()
        received = self._waiting.popleft()
        self._taken.notify()
        return received

    async def done(self, received: Received) -> None:
        """A radio remembers nothing; see :class:`qis_edge.links.base.Link`."""

    # - what only this link has

    def make_way(self, copies: int) -> MeshWay:
        """See :class:`qis_edge.links.ways.Carrier`."""
        self._way = MeshWay(
            self.timing,
            self._share(),
            copies,
            now=self.now,
            poke=self._poked.notify,
            frame=self.settings.frame,
        )
        return self._way

    @property
    def busy(self) -> bool:
        """See :class:`qis_edge.links.ways.Carrier`."""
        return len(self._bulk) > 0

    def announce(self, raw: bytes) -> bool:
        """See :class:`qis_edge.links.ways.Carrier`."""
        if not self.up or self.busy:
            return False
        self._bulk.send(raw, Destination(Direction.PEERS))
        self._poked.notify()
        return True

    def learn(self, packet: Packet) -> None:
        """This packet of a peer was verified elsewhere: its context is known from now on."""
        self._receiver.contexts.learn(Context.of(packet))

    def reply(self, question: Question, receipts: Sequence[bytes]) -> None:
        """See :class:`qis_edge.links.base.Polled`."""
        assert isinstance(question.token, Asked)
        self._receiver.answer(question.token, receipts, self.now())
        self._poked.notify()

    def forget(self, packet_id: bytes) -> None:
        """See :class:`qis_edge.links.base.Polled`."""
        self._receiver.forget(packet_id)

    # - out

    async def _pump(self) -> None:
        while True:
            try:
                await self._turn()
            except Exception:  # what is wrong with one frame must not end the link
                log.exception("%s: internal error", self.name)
                await asyncio.sleep(1.0)

    async def _turn(self) -> None:
        """Send what may go, and wait for a reason to look again."""
        waits = [asyncio.ensure_future(w.changed()) for w in (self.client, self._poked)]
        try:
            self._look()
            until = await self._send_some()
            self._tell()
            timeout = None if until is None else max(0.0, until - self.now()) / self._rate
            await asyncio.wait(waits, timeout=timeout, return_when="FIRST_COMPLETED")
        finally:
            for wait in waits:
                wait.cancel()

    def _look(self) -> None:
        """Whether the radio came, went, or began anew."""
        seen = self.client.stats.connects, self.client.stats.reboots
        if self.client.up and seen != self._seen and self.client.radio is not None:
            self._seen = seen
            if self._up:  # it was away for a moment
                self._set_up(False)
            self._connected(self.client.radio)
        self._tell()

    def _tell(self) -> None:
        """Those who wait, if something changed for them."""
        up = self.client.up and not self._barred and not self._closed
        if up != self._up:
            self._set_up(up)
        silent = self._way is not None and self._way.silent
        was, self._was = self._was, (self._up, self.room, silent)
        if was != self._was:
            self._changed.notify()

    def _set_up(self, up: bool) -> None:
        self._up = up
        if up:
            self._stats.connects += 1
            self._outage.over(f"{self.preset.name} in {self.region.name}")
        else:
            self._stats.disconnects += 1
        self._changed.notify()

    async def _send_some(self) -> float | None:
        """Give the radio what may go now. The radio's time of when to look again."""
        while self.client.up:
            now = self.now()
            if self._barred and self._held is None:
                return None  # until it is configured, and begins anew
            if now < self._blocked:
                return self._blocked
            if not self.client.room:
                return None
            due = self._due(now)
            if due is None or due > now:
                return due
            allowed = max(self._radio_ready(), self._allowed(now))
            if allowed > now:
                return allowed
            frame = self._held or self._next(now)
            if frame is None:
                return now + _LOOK
            await self._give(frame)
        return None

    def _radio_ready(self) -> float:
        """When the radio should be given the next frame: while one is on the air, one more.
        It takes longer than its airtime where others send, and tells of its queue; what it
        tells is lost at times, so it is not waited for forever."""
        self._most_room = max(self._most_room, self.client.room)
        longest = self.airtime(self.settings.frame)
        crowded = self._most_room - self.client.room >= 2
        return self._air_free + (2 * longest if crowded else -longest)

    def _allowed(self, now: float) -> float:
        urgent = self._way is None or self._way.sender.urgent_waits(now)
        return self.budget.when(1000 * self.airtime(self.settings.frame), now, urgent=urgent)

    def _due(self, now: float) -> float | None:
        """When there is something to send: a time in the past means now."""
        if self._held is not None or len(self._small):
            return -math.inf
        times = [self._receiver.next_deadline()]
        if self._way is not None:
            sender = self._way.sender
            # What is urgent waits for no answer where none comes.
            now_urgent = sender.silent and sender.urgent_waits(now)
            times.append(-math.inf if now_urgent else sender.next_deadline())
        if len(self._bulk):
            times.append(self._bulk_from(now))
        return min((at for at in times if at is not None), default=None)

    def _bulk_from(self, now: float) -> float:
        """What nobody takes custody of leaves half of what is saved up to the others."""
        return self.budget.when(self.budget.hourly_ms / 24, now)

    def _next(self, now: float) -> bytes | None:
        frame = self._receiver.next(now) or self._small.next(now)
        if frame is None and self._way is not None:
            frame = self._way.sender.next(now)
        if frame is None and len(self._bulk) and self._bulk_from(now) <= now:
            frame = self._bulk.next(now)
        return frame

    async def _give(self, frame: bytes) -> None:
        """Give the radio a frame; if it does not take it, the frame is held."""
        settings = self.settings
        outgoing = Outgoing(frame, channel=settings.channel, hop_limit=settings.hop_limit)
        self._held = frame
        outcome = await self.client.send(outgoing)
        now = self.now()
        if isinstance(outcome, Declined):
            self._declined(outcome.reason, now)
            return
        self._held = None
        # If it may have it, it counts.
        spent = self.airtime(len(frame))
        self.budget.spend(1000 * spent, now)
        self._spent_ms += 1000 * spent
        self._air_free = max(self._air_free, now) + spent
        if isinstance(outcome, Taken):
            self._stats.frames_out += 1
            self._stats.bytes_out += len(frame)
            self._barred, self._error, self._block = False, None, _BLOCKED

    def _declined(self, reason: meshtastic_session.Reason, now: float) -> None:
        if reason is meshtastic_session.Reason.TOO_LARGE:
            # Others may pass.
            self._held = None
            self._error = "the radio says that our frames are too large"
            self._warn(f"{self._error}: set frame under [links.meshtastic]")
            self._blocked = now + _BLOCKED
        elif reason is meshtastic_session.Reason.DUTY_CYCLE:
            self.budget.refused(now)
            self._blocked = now + self._block
            self._block = min(2 * self._block, _LONGEST_BLOCKED)
        elif reason in _BARRED:
            self._bar(f"the radio says: {reason.value}", _BARRED[reason])
            self._blocked = now + _BLOCKED
            self._tell()
        else:
            self._blocked = now + _NO_ROOM

    # - in

    async def _listen(self) -> None:
        with contextlib.suppress(LinkError):  # closed
            while True:
                heard = await self.client.receive()
                while len(self._waiting) >= _WAITING:
                    await self._taken.changed()
                try:
                    self._hear(heard)
                except Exception:
                    log.exception("%s: internal error with %s", self.name, heard.payload.hex())

    def _hear(self, heard: Heard) -> None:
        stats = self._stats
        if heard.port != PRIVATE_APP or heard.channel != self.settings.channel:
            self._dropped += 1
            return
        stats.frames_in += 1
        stats.bytes_in += len(heard.payload)
        try:
            signal = Signal(heard.snr, heard.rssi, heard.hops)
            events = self._receiver.take(heard.source, heard.payload, self.now(), signal)
        except Refused as refusal:
            self._dropped += 1
            log.debug("%s: refused from !%08x: %s", self.name, heard.source, refusal)
            return
        answer = any(isinstance(event, AnswerFrame) for event in events)
        if self._way is not None and not answer:  # a peer speaks, and wants an answer
            self._way.sender.overheard(self.now())
        # Another gateway's receipts are no news to a gateway.
        for event in () if self._role is Role.GATEWAY and answer else events:
            self._event(event)
        self._poked.notify()

    def _event(self, event: Message | Asked | AnswerFrame | Missing | Unknown) -> None:
        now = self.now()
        direction = Direction.UP if self._role is Role.GATEWAY else Direction.DOWN
        match event:
            case Message():
                if event.packet is not None:
                    self._bulk.heard(event.packet, now)
                self._bring(Received(event.raw, direction, link=self.name))
            case Asked():
                question = Question(event.stores, event.sequences, event)
                self._bring(Received(b"", direction, link=self.name, question=question))
            case Missing():
                if not (self._small.take(event, now) or self._bulk.take(event, now)):
                    self._answered(event, now)
            case Unknown():
                self._bulk.unknown(event.context, now)
                self._answered(event, now)
            case AnswerFrame():
                self._answered(event, now)

    def _answered(self, event: AnswerFrame | Missing | Unknown, now: float) -> None:
        if self._way is not None:
            self._way.sender.take(event, now)

    def _bring(self, received: Received) -> None:
        self._waiting.append(received)
        self._arrived.notify()


def _scaled(cadence: base.Cadence, rate: float) -> base.Cadence:
    """In real seconds."""
    return replace(
        cadence,
        hello=cadence.hello / rate,
        ungreeted=cadence.ungreeted / rate,
        greeted=cadence.greeted / rate,
        patience=cadence.patience / rate,
        longest_patience=cadence.longest_patience / rate,
        pace=cadence.pace / rate,
    )
