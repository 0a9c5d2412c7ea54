"""Pings over a radio: :class:`Pinger` asks who hears us, :class:`Answerer` tells those who ask.

Both keep to the region's duty cycle and stay with the radio when it is unplugged and comes
back. What happens is told as it happens, to a function that must not block.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from qis_edge.core.airtime import Budget, airtime_ms, effective_preset, region_named
from qis_edge.core.errors import LinkError, Refused
from qis_edge.core.mesh.framing import (
    DEFAULT_FRAME,
    NONCE_SIZE,
    PING_SIZE,
    PONG_SIZE,
    PONG_SLOTS,
    Frame,
    Ping,
    Pong,
    Signal,
    decode,
)
from qis_edge.core.mesh.receiver import Limits
from qis_edge.core.mesh.survey import Measured, Reply, Summary, Survey
from qis_edge.links.meshtastic_client import MeshtasticClient
from qis_edge.links.meshtastic_session import (
    PRIVATE_APP,
    Declined,
    Heard,
    Outgoing,
    Reason,
    Taken,
    Telemetry,
)

#: What waits for less is not worth telling, seconds.
_SHORT = 0.5
#: Until a radio without room, or away, is looked at again, seconds.
_LOOK = 1.0

#: From one ping to the next, unless told otherwise: seconds, and multiples of the airtime of
#: a ping and a pong. Each may be relayed once, and a fifth of the channel is enough to take.
_BETWEEN, _SPARE = 1.0, 10.0

_CONFIGURE = "set it up: qis-edge radio configure"
#: Why a radio will not send, now or later, and what helps.
_NEVER = {
    Reason.DISABLED: _CONFIGURE,
    Reason.NO_CHANNEL: "name a channel that it has: --channel",
    Reason.TOO_LARGE: "use a smaller --size",
    Reason.NO_KEY: None,
    Reason.OTHER: None,
}


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing is sent for a while."""

    seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class Away:
    """The radio is lost. It is waited for."""

    cause: str


@dataclass(frozen=True, slots=True)
class Back:
    """And here it is again."""


@dataclass(frozen=True, slots=True)
class Silence:
    """Nobody answered this ping in time."""

    number: int


@dataclass(frozen=True, slots=True)
class Pinged:
    """Somebody pings us.

    :param size: bytes of the ping. :param answered: ``False``: they ask too often.
    """

    radio: int
    heard: Signal
    size: int
    answered: bool


Event = Waiting | Away | Back | Silence | Pinged | Reply
Tell = Callable[[Event], None]


def signal_of(heard: Heard) -> Signal:
    """How a packet was heard."""
    return Signal(heard.snr, heard.rssi, heard.hops)


class Voice:
    """Frames given to a radio that is connected, when its law allows.

    :param channel: index of the radio's channel.
    :raises LinkError: it may not send at all.
    """

    #: Seconds to wait when the radio says that its duty cycle is used up.
    refused_for = 30.0

    def __init__(self, client: MeshtasticClient, channel: int, tell: Tell) -> None:
        radio = client.radio
        if radio is None or radio.region == "UNSET":
            raise LinkError("the radio's region is not set: it does not send", hint=_CONFIGURE)
        if not radio.tx_enabled:
            raise LinkError("the radio's transmitter is off", hint=_CONFIGURE)
        self.client = client
        self.region = region_named(radio.region)
        self.preset = effective_preset(radio.region, radio.preset)
        self.budget = Budget(self.region, self.now())
        self.hops = radio.hop_limit
        self._channel = channel
        self._tell = tell
        client.on_telemetry = self._telemetry

    def now(self) -> float:
        """Monotonic seconds."""
        return asyncio.get_running_loop().time()

    def airtime_ms(self, size: int) -> float:
        """Milliseconds that a frame of so many bytes is on the air."""
        return airtime_ms(size, self.preset)

    def seconds(self, size: int) -> float:
        """The same in seconds."""
        return self.airtime_ms(size) / 1000

    async def say(self, frame: bytes) -> float | None:
        """Give it to the radio as soon as that may be.

        :returns: when it was given; ``None``: the radio may or may not have it.
        :raises LinkError: the radio will not send it.
        """
        ms = self.airtime_ms(len(frame))
        while True:
            await self._connected()
            await self._allowed(ms)
            at = self.now()
            outcome = await self.client.send(Outgoing(frame, channel=self._channel))
            if isinstance(outcome, Declined):
                await self._declined(outcome)
                continue
            self.budget.spend(ms, at)
            return at if isinstance(outcome, Taken) else None

    async def next_frame(self) -> tuple[Heard, Frame]:
        """The next frame that somebody sent on the channel. Strangers' are passed over."""
        while True:
            heard = await self.client.receive()
            if heard.port != PRIVATE_APP or heard.channel != self._channel:
                continue
            with contextlib.suppress(Refused):
                return heard, decode(heard.payload)

    async def _connected(self) -> None:
        if self.client.up:
            return
        self._tell(Away(self.client.stats.last_error or "the radio is lost"))
        while not self.client.up:
            await self._changed()
        self._tell(Back())

    async def _allowed(self, ms: float) -> None:
        told = False
        while (wait := self.budget.when(ms, self.now()) - self.now()) > 0:
            if wait > _SHORT and not told:
                told = True
                self._tell(Waiting(wait, self._why(ms)))
            await asyncio.sleep(wait)

    def _why(self, ms: float) -> str:
        if self.budget.state(self.now()).left_ms < ms:
            return f"{self.region.duty_cycle:.0%} of each hour may be sent in {self.region.name}"
        return "the channel is busy"

    async def _declined(self, declined: Declined) -> None:
        if declined.reason in _NEVER:
            why = declined.reason.value
            raise LinkError(f"the radio does not send: {why}", hint=_NEVER[declined.reason])
        if declined.reason is Reason.DUTY_CYCLE:
            self.budget.refused(self.now())
            self._tell(Waiting(self.refused_for, "the radio says that its duty cycle is used up"))
            await asyncio.sleep(self.refused_for)
        else:
            await self._changed()

    async def _changed(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK):
                await self.client.changed()

    def _telemetry(self, told: Telemetry) -> None:
        self.budget.channel(told.channel_utilization / 100, self.now())


class Pinger:
    """Asks, and keeps count. One ping is answered or given up before the next one goes: pings
    must not meet their own answers on the air.

    :param size: bytes of each ping, :data:`PING_SIZE` or more.
    :param interval: seconds from one to the next, at least; ``None``: by airtime, so that
        the channel stays free enough for answers not to wait.
    :param count: how many; ``None``: until it is cancelled.
    :param patience: seconds until one is given up; ``None``: by airtime.
    """

    #: Seconds after an answer for which others' are waited for, beside their slots.
    settle = 0.5

    def __init__(
        self,
        voice: Voice,
        tell: Tell,
        *,
        size: int = PING_SIZE,
        interval: float | None = None,
        count: int | None = None,
        patience: float | None = None,
    ) -> None:
        self.size = size
        self._voice = voice
        self._tell = tell
        both = voice.seconds(size) + voice.seconds(PONG_SIZE)
        #: Seconds from one ping to the next, at least.
        self.interval = interval or max(_BETWEEN, _SPARE * both)
        self._count = count
        limits = Limits.of(voice.seconds, voice.region.duty_cycle)
        patience = patience or self._patience(limits.pong_slot)
        self.survey = Survey(patience, limits.pong_every, limits.pong_slot)
        self._settled_at = 0.0
        self._poked = asyncio.Event()
        self._breaks = self._lost_so_far()

    def _patience(self, slot: float) -> float:
        """There and back over all relays, with somebody else's frame in the way each time."""
        seconds = self._voice.seconds
        legs = (self._voice.hops + 1) * (seconds(self.size) + seconds(PONG_SIZE))
        return 2.0 + legs + 2 * seconds(DEFAULT_FRAME) + PONG_SLOTS * slot

    def summary(self) -> Summary:
        """What there is to say now."""
        return self.survey.summary(self._voice.preset.snr_limit)

    async def run(self) -> None:
        """Ping until ``count`` is reached.

        :raises LinkError: the radio will not send.
        """
        hearing = asyncio.create_task(self._hear())
        try:
            await self._ask()
        finally:
            hearing.cancel()

    async def _hear(self) -> None:
        while True:
            heard, frame = await self._voice.next_frame()
            if not isinstance(frame, Pong):
                continue
            now = self._voice.now()
            reply = self.survey.heard(heard.source, frame, signal_of(heard), now)
            if reply is not None:
                slots = PONG_SLOTS + 1 - reply.slot  # those that others may still use
                self._settled_at = now + self.settle + slots * self.survey.slot
                self._tell(reply)
                self._poked.set()

    async def _ask(self) -> None:
        number = 0
        while self._count is None or number < self._count:
            await self._allowance()
            ping = Ping(secrets.token_bytes(NONCE_SIZE), self.size - PING_SIZE)
            at = await self._voice.say(ping.encode())
            self._notice()
            if at is None:
                continue  # it counts for nothing
            number = self.survey.sent(ping.nonce, at, self._voice.airtime_ms(self.size))
            await self._pause(0.0 if number == self._count else at + self.interval)

    async def _allowance(self) -> None:
        """Until whoever answers has answers left."""
        now = self._voice.now()
        when = self.survey.not_before(now)
        if when - now > _SHORT:
            self._tell(Waiting(when - now, "who answers keeps to its own share of the airtime"))
        while (now := self._voice.now()) < when:
            await self._sleep(when)

    async def _pause(self, until: float) -> None:
        """Until then, and until what was sent is settled."""
        self._notice()
        while self.survey.open() or self._voice.now() < max(until, self._settled_at):
            await self._sleep(max(until, self._settled_at))

    async def _sleep(self, until: float) -> None:
        """Until then, or until something happens, but only for a look: the radio may be lost."""
        now = self._voice.now()
        waits = [_LOOK]
        if until > now:
            waits.append(until - now)
        if (deadline := self.survey.next_deadline()) is not None:
            waits.append(max(0.0, deadline - now))
        self._poked.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(waits)):
                await self._poked.wait()
        self._notice()

    def _notice(self) -> None:
        breaks = self._lost_so_far()
        if breaks != self._breaks:
            self._breaks = breaks
            self.survey.broken()
        for number in self.survey.expired(self._voice.now()):
            self._tell(Silence(number))

    def _lost_so_far(self) -> tuple[int, int]:
        stats = self._voice.client.stats
        return stats.disconnects, stats.reboots


class Answerer:
    """The other end: answers pings with all the airtime that there is.

    :param count: pings to answer; ``None``: until it is cancelled.
    """

    #: Radios that are told apart.
    MOST_RADIOS = 64

    def __init__(self, voice: Voice, tell: Tell, *, count: int | None = None) -> None:
        #: What was heard, by radio.
        self.heard: dict[int, Measured] = {}
        self.pings = self.answered = 0
        self.airtime_ms = 0.0
        self._voice = voice
        self._tell = tell
        self._count = count
        limits = Limits.of(voice.seconds, voice.region.duty_cycle)
        # A quarter of the airtime is what a gateway gives; here there is nothing else to say.
        self._echo = replace(limits, pong_every=limits.pong_every / 3).echo()
        self._poked = asyncio.Event()

    async def run(self) -> None:
        """Answer until ``count`` is reached.

        :raises LinkError: the radio will not send.
        """
        hearing = asyncio.create_task(self._hear())
        try:
            while self._count is None or self.answered < self._count:
                await self._answer()
        finally:
            hearing.cancel()

    async def _hear(self) -> None:
        while True:
            heard, frame = await self._voice.next_frame()
            if not isinstance(frame, Ping):
                continue
            signal = signal_of(heard)
            answered = self._echo.take(frame, signal, self._voice.now())
            self.pings += 1
            if heard.source in self.heard or len(self.heard) < self.MOST_RADIOS:
                self.heard.setdefault(heard.source, Measured()).note(signal)
            self._tell(Pinged(heard.source, signal, len(heard.payload), answered))
            self._poked.set()

    async def _answer(self) -> None:
        self._poked.clear()
        pong = self._echo.next(self._voice.now())
        if pong is None:
            due = self._echo.next_deadline()
            wait = None if due is None else max(0.0, due - self._voice.now())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._poked.wait()
            return
        await self._voice.say(pong)
        self.answered += 1
        self.airtime_ms += self._voice.airtime_ms(len(pong))
