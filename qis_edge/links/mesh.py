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
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any

from qis_edge.core import airtime
from qis_edge.core.custody import Answered, Custody
from qis_edge.core.errors import DoesNotFit, LinkError, Reason, Refused, UsageError
from qis_edge.core.mesh.elision import Context
from qis_edge.core.mesh.framing import Answer as AnswerFrame
from qis_edge.core.mesh.framing import Missing, Unknown
from qis_edge.core.mesh.receiver import Asked, Limits, Message, Receiver
from qis_edge.core.mesh.repeats import Repeats
from qis_edge.core.mesh.sender import Sender, Timing
from qis_edge.core.packet import MAX_PACKET, Packet, unpack
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
from qis_edge.links.mesh_settings import MeshSettings
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
from qis_edge.links.ways import Key

__all__ = ["MeshLink", "MeshSettings", "MeshWay"]

log = logging.getLogger(__name__)

#: What an elided frame saves of a packet.
_ELIDED = 58
#: Received messages that wait for the receiver.
_WAITING = 256
#: A context travels whole again after so many seconds, or packets.
WHOLE_EVERY, WHOLE_AFTER = 6 * 3600.0, 12
#: What was on the air is not told to peers again within so many seconds.
_AGAIN = 3600.0
_REMEMBERED = 2048
#: Seconds until a radio that refuses for good is tried again, and one that has no room.
_BLOCKED, _NO_ROOM = 60.0, 2.0
#: The least time between two looks at machines that had nothing after all.
_LOOK = 0.5
_PACKET = b"\xd2\x84"

_LASTING = {
    meshtastic_session.Reason.DISABLED: "run qis-edge radio configure",
    meshtastic_session.Reason.NO_CHANNEL: "set channel under [links.meshtastic]",
    meshtastic_session.Reason.TOO_LARGE: "set frame under [links.meshtastic]",
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
        self._blocked = float("-inf")
        self._seen = (0, 0)  # the client's connects and reboots
        self._was = (False, 0)  # up, and room
        self._held: bytes | None = None  # a frame that the radio did not take yet
        self._air_free = 0.0
        self._spent_ms = 0.0
        self._on_air: OrderedDict[bytes, float] = OrderedDict()
        self._whole: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        self._way: MeshWay | None = None
        self._small = Repeats(frame=settings.frame)
        self._bulk = Repeats(frame=settings.frame)
        self._receiver = Receiver(verify, answers=role is Role.GATEWAY, frame=settings.frame)
        self._tune(airtime.REGIONS["EU_868"], airtime.PRESETS["LONG_FAST"])

    def now(self) -> float:
        """The radio's time."""
        return time.monotonic() * self._rate

    # - the radio's law

    def _tune(self, region: airtime.Region, preset: airtime.Preset) -> None:
        if self.settings.duty_cycle is not None:
            region = replace(region, duty_cycle=self.settings.duty_cycle)
        self.region, self.preset = region, airtime.effective(preset, region)
        self.budget = airtime.Budget(region, self.now())
        self.timing = Timing.of(self.airtime, relays=self.settings.relays)
        self._receiver.limits = Limits.of(self.airtime, region.duty_cycle)
        if self._way is not None:
            self._way.retime(self.timing)

    def airtime(self, size: int) -> float:
        """Seconds that a frame of so many bytes is on the air."""
        return airtime.airtime_ms(size, self.preset) / 1000.0

    def _connected(self, radio: RadioInfo) -> None:
        """The radio told who it is, for the first time or anew."""
        self._held = None
        self._air_free = self.now()
        self._blocked = float("-inf")
        preset = airtime.PRESETS.get(radio.preset)
        region = airtime.REGIONS.get(radio.region)
        if radio.region == "UNSET":
            self._refuse("its region is not set", "run qis-edge radio configure")
            return
        if preset is None or region is None:
            what = f"preset {radio.preset!r}" if preset is None else f"region {radio.region!r}"
            log.warning("%s: unknown %s, taken for LONG_FAST at 10%%", self.name, what)
        region = region or airtime.Region(radio.region, 0.10, 250_000)
        preset = preset or airtime.PRESETS["LONG_FAST"]
        if (region.name, airtime.effective(preset, region)) != (self.region.name, self.preset):
            self._tune(region, preset)

    def _refuse(self, cause: str, hint: str | None) -> None:
        """The radio does not send for us, and will not soon."""
        self._blocked = self.now() + _BLOCKED
        self._stats.last_error = cause
        self._outage.cause(cause, hint)

    def _telemetry(self, told: Telemetry) -> None:
        self.budget.channel(told.channel_utilization / 100.0, self.now())

    # - the link

    @property
    def up(self) -> bool:
        """See :class:`qis_edge.links.base.Link`."""
        return self.client.up and self.now() >= self._blocked

    @property
    def room(self) -> int:
        """See :class:`qis_edge.links.base.Link`."""
        return min(self._small.room, self._bulk.room) if self.up else 0

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
        return pieces * airtime.airtime_ms(
            min(self.settings.frame, -(-left // pieces) + 4), self.preset
        )

    @property
    def stats(self) -> LinkStats:
        """Frames are the radio's; ``extra`` tells of the air: ``airtime_ms`` spent since the
        start, ``hour_ms`` in the last hour, ``left_ms`` that may be spent at once,
        ``hourly_ms`` that an hour allows, ``utilisation`` of the channel (0..1)."""
        stats, spending = self._stats, self.budget.state(self.now())
        radio, told = self.client.radio, self.client.telemetry
        stats.last_error = stats.last_error or self.client.stats.last_error
        stats.extra.update(
            airtime_ms=round(self._spent_ms),
            hour_ms=round(spending.spent_ms),
            left_ms=round(spending.left_ms),
            hourly_ms=round(spending.hourly_ms),
            utilisation=round(told.channel_utilization / 100.0, 4) if told else 0.0,
            radio=radio.number if radio else 0,
            reboots=self.client.stats.reboots,
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
        try:
            if to.direction is Direction.UP or not frame.startswith(_PACKET):
                self._small.send(frame, self.now())
            else:
                self._broadcast(frame, again=to.direction is Direction.DOWN)
        except DoesNotFit as error:
            raise LinkError(f"{self.name}: {error}") from error
        self._poked.notify()

    def _broadcast(self, raw: bytes, *, again: bool) -> None:
        """A packet for whoever listens, unless all heard it lately.

        :param again: somebody asks for it.
        """
        try:
            packet = unpack(raw)
        except Refused as refusal:
            raise LinkError(f"{self.name}: no packet: {refusal}") from refusal
        now = self.now()
        if self._was_on_air(packet.id, now) and not again:
            return
        name = Context.of(packet).name
        at, count = self._whole.get(name, (float("-inf"), 0))
        if now - at >= WHOLE_EVERY or count >= WHOLE_AFTER:
            self._bulk.send(raw, now)
            at, count = now, 0
        else:
            self._bulk.send_elided(packet, now)
        self._whole[name] = at, count + 1
        self._whole.move_to_end(name)
        if len(self._whole) > _REMEMBERED:
            self._whole.popitem(last=False)
        self._note_on_air(packet.id, now)

    def _was_on_air(self, packet_id: bytes, now: float) -> bool:
        return now - self._on_air.get(packet_id, float("-inf")) < _AGAIN

    def _note_on_air(self, packet_id: bytes, now: float) -> None:
        self._on_air[packet_id] = now
        self._on_air.move_to_end(packet_id)
        if len(self._on_air) > _REMEMBERED:
            self._on_air.popitem(last=False)

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
        self._way = MeshWay(self, copies, self._poked.notify)
        return self._way

    @property
    def busy(self) -> bool:
        """See :class:`qis_edge.links.ways.Carrier`."""
        return len(self._bulk) > 0

    def announce(self, raw: bytes) -> bool:
        """See :class:`qis_edge.links.ways.Carrier`."""
        if not self.up or self.busy:
            return False
        self._broadcast(raw, again=False)
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
            changed, poked = self.client.changed(), self._poked.changed()
            self._look()
            until = await self._send_some()
            self._tell()
            waits = [asyncio.ensure_future(wait) for wait in (changed, poked)]
            timeout = None if until is None else max(0.0, until - self.now()) / self._rate
            try:
                await asyncio.wait(waits, timeout=timeout, return_when="FIRST_COMPLETED")
            finally:
                for wait in waits:
                    wait.cancel()

    def _look(self) -> None:
        """Whether the radio came, went, or began anew."""
        seen = self.client.stats.connects, self.client.stats.reboots
        if self.client.up and seen != self._seen and self.client.radio is not None:
            self._seen = seen
            self._stats.connects += 1
            self._connected(self.client.radio)
        self._tell()

    def _tell(self) -> None:
        """Those who wait, if something changed for them."""
        was, self._was = self._was, (self.up, self.room)
        if self.up and not was[0]:
            self._stats.last_error = None
            self._outage.over(f"{self.preset.name} in {self.region.name}")
        elif was[0] and not self.up:
            self._stats.disconnects += 1
        if was != self._was:
            self._changed.notify()

    async def _send_some(self) -> float | None:
        """Give the radio what may go now. The radio's time of when to look again."""
        while self.client.up:
            now = self.now()
            if now < self._blocked:
                return self._blocked
            if not self.client.room:
                return None
            due = self._due(now)
            if due is None or due > now:
                return due
            longest = self.airtime(self.settings.frame)
            allowed = max(self._air_free - longest, self._allowed(now))
            if allowed > now:
                return allowed
            frame = self._held or self._next(now)
            if frame is None:
                return now + _LOOK
            if (later := await self._give(frame)) is not None:
                return later
        return None

    def _allowed(self, now: float) -> float:
        urgent = self._way is None or self._way.sender.urgent_waits(now)
        return self.budget.when(1000 * self.airtime(self.settings.frame), now, urgent=urgent)

    def _due(self, now: float) -> float | None:
        """When there is something to send."""
        times = [float("-inf")] if self._held or len(self._small) else []
        times += [at for at in (self._receiver.next_deadline(),) if at is not None]
        if self._way is not None and (at := self._way.sender.next_deadline()) is not None:
            times.append(at)
        if len(self._bulk):
            times.append(self._bulk_from(now))
        return min(times, default=None)

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

    async def _give(self, frame: bytes) -> float | None:
        """Give the radio a frame; when to go on, if not at once."""
        settings = self.settings
        outgoing = Outgoing(frame, channel=settings.channel, hop_limit=settings.hop_limit)
        self._held = frame
        outcome = await self.client.send(outgoing)
        now = self.now()
        if isinstance(outcome, Declined):
            return self._declined(outcome, now)
        self._held = None
        spent = self.airtime(len(frame))
        self.budget.spend(1000 * spent, now)
        self._spent_ms += 1000 * spent
        self._air_free = max(self._air_free, now) + spent
        if isinstance(outcome, Taken):
            self._stats.frames_out += 1
            self._stats.bytes_out += len(frame)
        return None

    def _declined(self, outcome: Declined, now: float) -> float:
        reason = outcome.reason
        if reason is meshtastic_session.Reason.DUTY_CYCLE:
            self.budget.refused(now)
            return now + _BLOCKED
        if reason not in _LASTING:
            return now + _NO_ROOM
        self._held = None
        self._refuse(f"the radio says: {reason.value}", _LASTING[reason])
        self._look()
        return self._blocked

    # - in

    async def _listen(self) -> None:
        with contextlib.suppress(LinkError):  # closed
            while True:
                heard = await self.client.receive()
                while len(self._waiting) >= _WAITING:
                    await self._taken.changed()
                self._hear(heard)

    def _hear(self, heard: Heard) -> None:
        stats = self._stats
        if heard.port != PRIVATE_APP or heard.channel != self.settings.channel:
            stats.dropped_in += 1
            return
        stats.frames_in += 1
        stats.bytes_in += len(heard.payload)
        try:
            events = self._receiver.take(heard.source, heard.payload, self.now())
        except Refused as refusal:
            stats.dropped_in += 1
            log.debug("%s: refused from !%08x: %s", self.name, heard.source, refusal)
            return
        # Another gateway's receipts are no news to a gateway.
        deaf = self._role is Role.GATEWAY and any(isinstance(e, AnswerFrame) for e in events)
        for event in () if deaf else events:
            self._event(event)
        self._poked.notify()

    def _event(self, event: Message | Asked | AnswerFrame | Missing | Unknown) -> None:
        now = self.now()
        direction = Direction.UP if self._role is Role.GATEWAY else Direction.DOWN
        match event:
            case Message():
                if event.packet is not None:
                    self._note_on_air(event.packet.id, now)
                self._bring(Received(event.raw, direction, link=self.name))
            case Asked():
                question = Question(event.stores, event.sequences, event)
                self._bring(Received(b"", direction, link=self.name, question=question))
            case Missing():
                if not (self._small.take(event, now) or self._bulk.take(event, now)):
                    self._answered(event, now)
            case _:
                self._answered(event, now)

    def _answered(self, event: AnswerFrame | Missing | Unknown, now: float) -> None:
        if self._way is not None:
            self._way.sender.take(event, now)

    def _bring(self, received: Received) -> None:
        self._waiting.append(received)
        self._arrived.notify()


class MeshWay:
    """See :class:`qis_edge.links.ways.Way`: bursts that ask, answers, polls."""

    def __init__(self, link: MeshLink, copies: int, poke: Callable[[], None]) -> None:
        self._now = link.now
        self._poke = poke
        self.custody: Custody[Key] = Custody(random.random, pace=link.timing.pace(), copies=copies)
        self.sender = Sender(
            self.custody,
            link.timing,
            random.random,
            frame=link.settings.frame,
            whole_every=WHOLE_EVERY,
        )

    def retime(self, timing: Timing) -> None:
        """The radio has another preset or region than was thought."""
        was_up = self.custody.up
        self.shut()
        self.sender.timing = timing
        self.custody.retune(timing.pace())
        if was_up:
            self.open()

    def offer(self, key: Key, raw: bytes, priority: int) -> tuple[Key, ...]:
        """See :class:`qis_edge.links.ways.Way`."""
        dropped = self.sender.offer(key, unpack(raw), priority, self._now())
        self._poke()
        return dropped

    def withdraw(self, key: Key) -> None:
        """See :class:`qis_edge.links.ways.Way`."""
        self.sender.withdraw(key)

    def answered(
        self,
        gateway: bytes,
        *,
        held: Iterable[Key],
        refused: Iterable[tuple[Reason | int, Iterable[Key]]],
        later: Iterable[tuple[float, Iterable[Key]]],
    ) -> Answered[Key]:
        """See :class:`qis_edge.links.ways.Way`."""
        answered = self.sender.answered(
            gateway, self._now(), held=held, refused=refused, later=later
        )
        self._poke()
        return answered

    def heard(self, gateway: bytes) -> None:
        """See :class:`qis_edge.links.ways.Way`."""
        self.custody.heard(self._now(), gateway)
        self.sender.heard(self._now())
        self._poke()

    def lost(self, gateway: bytes) -> None:
        """See :class:`qis_edge.links.ways.Way`."""
        self.custody.forget_gateway(gateway, self._now())
        self._poke()

    def open(self) -> None:
        """See :class:`qis_edge.links.ways.Way`."""
        if not self.custody.up:
            self.sender.link_up(self._now())
            self._poke()

    def shut(self) -> None:
        """See :class:`qis_edge.links.ways.Way`."""
        if self.custody.up:
            self.sender.link_down(self._now())

    def reopen(self) -> None:
        """See :class:`qis_edge.links.ways.Way`."""
        self.shut()
        self.open()

    @property
    def silent(self) -> bool:
        """See :class:`qis_edge.links.ways.Way`."""
        return self.sender.silent

    async def send(self) -> float | None:
        """The link sends by itself; see :class:`qis_edge.links.ways.Way`."""
        self._poke()
        return None


def _scaled(cadence: base.Cadence, rate: float) -> base.Cadence:
    """In real seconds."""
    return base.Cadence(
        *(
            seconds / rate
            for seconds in (
                cadence.hello,
                cadence.ungreeted,
                cadence.greeted,
                cadence.patience,
                cadence.longest_patience,
            )
        )
    )
