"""The air that emulated radios share: who hears whom, collisions, loss; and its clock.

An event simulation: time is a number of seconds that only :meth:`Simulation.advance` moves,
so a night passes in a moment, and the same seed and the same sends give the same night.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from qis_edge.core.airtime import PRESETS, RADIO_HEADER, time_on_air_ms
from qis_edge.core.errors import UsageError

BROADCAST = 0xFFFFFFFF
#: A frame this many dB over another survives their collision.
CAPTURE = 6.0


class Timer:
    """Something that will happen; :meth:`cancel` prevents it."""

    __slots__ = ("call", "due")

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """It will not happen."""
        self.call = None


class Simulation:
    """A clock and what is due by it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        #: Called when something was scheduled: whoever drives the clock looks again.
        self.on_schedule: Callable[[], None] | None = None

    def after(self, delay: float, call: Callable[[], None]) -> Timer:
        """Call something ``delay`` seconds from now."""
        timer = Timer(self.now + max(0.0, delay), call)
        heapq.heappush(self._due, (timer.due, next(self._order), timer))
        if self.on_schedule is not None:
            self.on_schedule()
        return timer

    @property
    def deadline(self) -> float | None:
        """When the next thing is due."""
        while self._due and self._due[0][2].call is None:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def advance(self, to: float) -> None:
        """Let everything happen that is due until ``to``; time does not go back."""
        while (due := self.deadline) is not None and due <= to:
            timer = heapq.heappop(self._due)[2]
            self.now = max(self.now, due)
            call, timer.call = timer.call, None
            if call is not None:
                call()
        self.now = max(self.now, to)

    def run(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self.advance(self.now + seconds)


@dataclass(frozen=True, slots=True)
class AirFrame:
    """A frame on the air. ``data`` is the serialised ``Data``; its secrecy is taken as given:
    ``secret`` names what one must have to read it, a channel or a pair of nodes."""

    source: int
    to: int
    id: int
    hop_limit: int
    hop_start: int
    want_ack: bool
    secret: str
    data: bytes
    relay: int
    overhead: int = 0  # bytes of a public-key message beside the data

    @property
    def size(self) -> int:
        """Bytes on the air."""
        return RADIO_HEADER + len(self.data) + self.overhead

    @property
    def key(self) -> tuple[int, int]:
        """What radios know it by."""
        return self.source, self.id

    def relayed(self, by: int) -> AirFrame:
        """The same, one hop on."""
        return replace(self, hop_limit=self.hop_limit - 1, relay=by & 0xFF)


@dataclass(frozen=True, slots=True)
class Path:
    """How one radio hears another.

    :param loss: probability that a frame is lost, on top of collisions; 1 is out of range
        for frames, though the energy still disturbs others and is sensed.
    :param snr: dB. :param rssi: dBm.
    :param heard: whether anything arrives at all.
    """

    loss: float = 0.0
    snr: float = 6.0
    rssi: int = -85
    heard: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.loss <= 1.0:
            raise UsageError("is a probability, 0..1", field="loss")


class Receiver(Protocol):
    """What the channel knows of a radio."""

    number: int

    def heard(self, frame: AirFrame, snr: float, rssi: int) -> None:
        """A frame arrived, whole."""
        ...

    @property
    def listening(self) -> bool:
        """Whether it is on."""
        ...


@dataclass(slots=True, eq=False)
class _Transmission:
    sender: Receiver
    frame: AirFrame
    begin: float
    end: float
    done: Callable[[], None]
    timer: Timer | None = None


@dataclass(slots=True)
class Carried:
    """What became of the frames; but for ``sent``, counted by receiver."""

    sent: int = 0
    delivered: int = 0
    lost: int = 0
    collided: int = 0
    deaf: int = 0  # the receiver was sending itself
    airtime: float = 0.0  # seconds


@dataclass(slots=True)
class _Station:
    radio: Receiver
    busy: deque[tuple[float, float]] = field(default_factory=deque)  # (begin, end), a minute


class Channel:
    """One frequency, one preset, and the radios on it.

    :param preset: a name of :data:`qis_edge.core.airtime.PRESETS`.
    :param loss: probability that a frame is lost on any path that :meth:`path` does not name.
    :param seed: of all that is random on it.
    """

    def __init__(
        self,
        preset: str = "LONG_FAST",
        *,
        loss: float = 0.0,
        seed: int = 0,
        simulation: Simulation | None = None,
    ) -> None:
        if preset not in PRESETS:
            raise UsageError(f"one of {', '.join(PRESETS)}", field="preset")
        self.preset = PRESETS[preset]
        #: Seconds of a contention slot: 2.25 symbols to sense, 7.6 ms to turn round.
        self.slot = 2.25 * self.preset.symbol_ms / 1000 + 0.0076
        self.simulation = simulation or Simulation()
        self.random = random.Random(seed)  # noqa: S311 - a night is to be repeatable
        self.carried = Carried()
        self.default = Path(loss=loss)
        self._paths: dict[tuple[int, int], Path] = {}
        self._stations: dict[int, _Station] = {}
        self._recent: deque[_Transmission] = deque()

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self.simulation.now

    def join(self, radio: Receiver) -> None:
        """A radio is here from now on.

        :raises UsageError: its number is taken.
        """
        if radio.number in self._stations:
            raise UsageError(f"!{radio.number:08x} is taken", field="number")
        self._stations[radio.number] = _Station(radio)

    def path(self, sender: int, receiver: int, path: Path | None, *, both: bool = True) -> None:
        """Say how ``receiver`` hears ``sender``, and the other way round too unless told
        otherwise; ``None`` is out of range."""
        path = path or Path(heard=False)
        self._paths[sender, receiver] = path
        if both:
            self._paths[receiver, sender] = path

    def between(self, sender: int, receiver: int) -> Path:
        """How ``receiver`` hears ``sender``."""
        return self._paths.get((sender, receiver), self.default)

    def airtime(self, frame: AirFrame) -> float:
        """Seconds that a frame takes."""
        return time_on_air_ms(frame.size, self.preset) / 1000

    def sensed(self, number: int) -> bool:
        """Whether a radio senses that somebody sends, itself included. It takes a slot to
        sense it: those who begin within one collide."""
        return any(
            one.end > self.now
            and (one.sender.number == number or one.begin + self.slot <= self.now)
            and self._reaches(one, number)
            for one in self._recent
        )

    def utilization(self, number: int, seconds: float = 60.0) -> float:
        """Per cent of the last ``seconds`` that a radio sent or heard something."""
        busy = self._stations[number].busy
        while busy and busy[0][1] <= self.now - seconds:
            busy.popleft()
        edge, total = self.now - seconds, 0.0
        for begin, end in busy:
            total += max(0.0, min(end, self.now) - max(begin, edge))
            edge = max(edge, end)
        return 100.0 * total / seconds

    def transmit(self, radio: Receiver, frame: AirFrame, done: Callable[[], None]) -> float:
        """A radio sends, whatever others do; ``done`` is called when it has.

        :returns: the airtime, seconds.
        """
        airtime = self.airtime(frame)
        one = _Transmission(radio, frame, self.now, self.now + airtime, done)
        self.carried.sent += 1
        self.carried.airtime += airtime
        self._recent.append(one)
        for number, station in self._stations.items():
            if self._reaches(one, number):
                station.busy.append((one.begin, one.end))
        one.timer = self.simulation.after(airtime, lambda: self._end(one))
        return airtime

    def silence(self, radio: Receiver) -> None:
        """A radio lost power: what it was sending reaches nobody."""
        for one in self._recent:
            if one.sender is radio and one.end > self.now:
                one.end = self.now
                if one.timer is not None:
                    one.timer.cancel()

    def _reaches(self, one: _Transmission, number: int) -> bool:
        sender = one.sender.number
        return sender == number or self.between(sender, number).heard

    def _end(self, one: _Transmission) -> None:
        for number, station in list(self._stations.items()):
            if number != one.sender.number and station.radio.listening:
                self._arrive(one, station.radio)
        one.done()
        # Longer than the longest frame of the slowest preset: no more overlap is possible.
        while self._recent and self._recent[0].end < self.now - 20.0:
            self._recent.popleft()

    def _arrive(self, one: _Transmission, to: Receiver) -> None:
        path = self.between(one.sender.number, to.number)
        if not path.heard:
            return
        for other in self._recent:
            if other is one or other.end <= one.begin or other.begin >= one.end:
                continue
            if other.sender is to:
                self.carried.deaf += 1
                return
            disturbance = self.between(other.sender.number, to.number)
            if disturbance.heard and path.snr < disturbance.snr + CAPTURE:
                self.carried.collided += 1
                return
        if self.random.random() < path.loss:
            self.carried.lost += 1
            return
        self.carried.delivered += 1
        to.heard(one.frame, path.snr, path.rssi)
