"""How well a place is reached: pings, their pongs, and what to make of them.

No I/O and no clock: ``now`` is monotonic seconds and always an argument. Loss is a ping that
nobody answered in time; its way there, or the way back, failed. A late answer is still one.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from qis_edge.core.mesh.framing import Pong, Signal

#: Pings whose answers are still told apart, the newest.
REMEMBERED = 64
#: Radios that are told apart, and measurements kept of each, the newest.
MOST_RADIOS = 64
MOST_MEASUREMENTS = 10_000
#: dB that the ways differ by before it is worth a word.
LOPSIDED = 6.0


class Verdict(enum.Enum):
    """What a place is good for, and from which delivery (0..1) and margin (dB) on.

    The margin is how far the weakest tenth of the signals stays above what a radio still
    understands. Rain, leaves, people and passing vehicles cost a few dB each: ten in hand
    last through the year.
    """

    GOOD = ("good", 0.95, 10.0)
    FAIR = ("fair", 0.80, 5.0)
    POOR = ("poor", 0.50, float("-inf"))
    BAD = ("bad", 0.0, float("-inf"))

    @property
    def label(self) -> str:
        """In a word."""
        return self.value[0]

    @property
    def delivery(self) -> float:
        """The least share of pings answered."""
        return self.value[1]

    @property
    def margin(self) -> float:
        """The least margin, dB."""
        return self.value[2]

    @classmethod
    def of(cls, delivery: float, margin: float | None) -> Verdict:
        """Of a place. Without a margin (signals unknown) delivery alone counts."""
        for one in cls:
            if delivery >= one.delivery and (margin is None or margin >= one.margin):
                return one
        return cls.BAD


@dataclass(frozen=True, slots=True)
class Spread:
    """Where the values lie: a tenth is below ``low``, half below ``middle``, a tenth above
    ``high``."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """``None`` of no values."""
        ordered = sorted(values)
        if not ordered:
            return None
        return cls(*(_quantile(ordered, share) for share in (0.1, 0.5, 0.9)))


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the nearest two, in proportion."""
    at = share * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


@dataclass(frozen=True, slots=True)
class Reply:
    """A pong to a ping of ours.

    :param number: of the ping, from 1.
    :param seconds: there and back, waiting in both radios included, not that for a slot.
    :param there: how the ping was heard there. :param back: how the pong was heard here.
    :param late: after the ping had been given up.
    """

    number: int
    radio: int
    seconds: float
    there: Signal | None
    back: Signal | None
    late: bool
    slot: int


@dataclass(frozen=True, slots=True)
class Way:
    """One direction: what arrived of it."""

    snr: Spread | None
    rssi: Spread | None
    hops: int  # the most


@dataclass(frozen=True, slots=True)
class Reached:
    """One radio that answered.

    :param seconds: the least, the mean and the most of the round trips.
    :param margin: dB over the limit that nine tenths of the signals have, on the worse way.
    """

    radio: int
    answered: int
    delivery: float
    seconds: tuple[float, float, float]
    there: Way
    back: Way
    margin: float | None
    verdict: Verdict

    @property
    def relayed(self) -> bool:
        """Whether others passed frames on: signals are those of the last of them."""
        return self.there.hops > 0 or self.back.hops > 0

    @property
    def lopsided(self) -> float | None:
        """By how many dB the way there is better than the way back, if that is a lot."""
        if self.relayed or self.there.snr is None or self.back.snr is None:
            return None
        difference = self.there.snr.middle - self.back.snr.middle
        return difference if abs(difference) >= LOPSIDED else None


@dataclass(frozen=True, slots=True)
class Summary:
    """All of it.

    :param sent: pings given to the radio. :param counted: of those, the ones that were
        answered or given up; not those still under way, nor those under way when the radio
        was lost.
    :param answered: pings that at least one radio answered.
    :param reached: the best first.
    """

    sent: int
    counted: int
    answered: int
    airtime_ms: float
    limit: float
    reached: tuple[Reached, ...]

    @property
    def delivery(self) -> float:
        """The share of pings that somebody answered."""
        return self.answered / self.counted if self.counted else 0.0

    @property
    def verdict(self) -> Verdict | None:
        """Of the place: with what its best radio has in hand; ``None``: nobody answered."""
        if not self.reached:
            return None
        return Verdict.of(self.delivery, self.reached[0].margin)


@dataclass(slots=True)
class _Ping:
    number: int
    sent_at: float
    given_up: bool = False
    void: bool = False
    radios: set[int] = field(default_factory=set)

    @property
    def open(self) -> bool:
        return not (self.given_up or self.void or self.radios)


def _measurements() -> deque[float]:
    return deque(maxlen=MOST_MEASUREMENTS)


@dataclass(slots=True)
class Measured:
    """Measurements of one direction."""

    snr: deque[float] = field(default_factory=_measurements)
    rssi: deque[float] = field(default_factory=_measurements)
    hops: int = 0

    def note(self, signal: Signal | None) -> None:
        """A frame was heard like this, if that is known."""
        if signal is not None:
            self.snr.append(signal.snr)
            self.rssi.append(signal.rssi)
            self.hops = max(self.hops, signal.hops or 0)

    def way(self) -> Way:
        """What there is to say of it."""
        return Way(Spread.of(self.snr), Spread.of(self.rssi), self.hops)


@dataclass(slots=True)
class _Radio:
    answered: int = 0
    seconds: deque[float] = field(default_factory=_measurements)
    there: Measured = field(default_factory=Measured)
    back: Measured = field(default_factory=Measured)
    heard_at: float = 0.0
    left: float = 0.0  # pings that it will answer, by what it said last
    left_at: float = 0.0

    def count_down(self, every: float, now: float) -> None:
        """Another ping goes to it."""
        self.left = max(0.0, self.left_by(every, now) - 1)
        self.left_at = now

    def left_by(self, every: float, now: float) -> float:
        return self.left + max(0.0, now - self.left_at) / every


class Survey:
    """Keeps count.

    :param patience: seconds after which a ping is given up.
    :param every: seconds until a gateway that answers no more pings answers one again.
    :param slot: seconds of a slot that gateways wait for.
    """

    def __init__(self, patience: float, every: float, slot: float = 0.0) -> None:
        self.patience = patience
        self.every = every
        self.slot = slot
        self._pings: OrderedDict[bytes, _Ping] = OrderedDict()
        self._radios: dict[int, _Radio] = {}
        self._sent = self._answered = self._lost = 0
        self._airtime_ms = 0.0

    # --- what happens ---------------------------------------------------------------------

    def sent(self, nonce: bytes, now: float, ms: float) -> int:
        """A ping went out, and costs so much airtime. Returns its number."""
        self._sent += 1
        self._airtime_ms += ms
        self._pings[nonce] = _Ping(self._sent, now)
        if len(self._pings) > REMEMBERED:
            _, oldest = self._pings.popitem(last=False)
            self._lost += oldest.open
        for radio in self._radios.values():
            radio.count_down(self.every, now)
        return self._sent

    def heard(self, radio: int, pong: Pong, signal: Signal | None, now: float) -> Reply | None:
        """A pong came in; ``None``: it answers no ping of ours, or not for the first time."""
        ping = self._pings.get(pong.nonce)
        if ping is None or radio in ping.radios:
            return None
        if radio not in self._radios and len(self._radios) >= MOST_RADIOS:
            return None
        if not ping.radios:
            self._answered += 1
            self._lost -= ping.given_up
        ping.radios.add(radio)
        reply = Reply(
            number=ping.number,
            radio=radio,
            seconds=max(0.0, now - ping.sent_at - pong.slot * self.slot),
            there=pong.heard,
            back=signal,
            late=ping.given_up or ping.void,
            slot=pong.slot,
        )
        found = self._radios.setdefault(radio, _Radio())
        found.answered += 1
        found.seconds.append(reply.seconds)
        found.there.note(pong.heard)
        found.back.note(signal)
        found.heard_at = found.left_at = now
        found.left = pong.left
        return reply

    def expired(self, now: float) -> list[int]:
        """Pings that are given up now."""
        found = []
        for ping in self._pings.values():
            if ping.open and now - ping.sent_at >= self.patience:
                ping.given_up = True
                self._lost += 1
                found.append(ping.number)
        return found

    def broken(self) -> None:
        """Our own radio was lost: pings under way say nothing."""
        for ping in self._pings.values():
            if ping.open:
                ping.void = True

    # --- when -----------------------------------------------------------------------------

    def open(self) -> bool:
        """Whether a ping is under way that nobody answered yet."""
        return any(ping.open for ping in self._pings.values())

    def next_deadline(self) -> float | None:
        """When the next ping is given up."""
        dues = [ping.sent_at + self.patience for ping in self._pings.values() if ping.open]
        return min(dues, default=None)

    def not_before(self, now: float) -> float:
        """When all that answered lately will answer another ping: ``now``, or later."""
        when = now
        for radio in self._radios.values():
            if now - radio.heard_at < 2 * max(self.every, self.patience):
                lacking = 1 - radio.left_by(self.every, now)
                when = max(when, now + lacking * self.every)
        return when

    # --- what comes of it -----------------------------------------------------------------

    def summary(self, limit: float) -> Summary:
        """What there is to say now.

        :param limit: dB of SNR down to which a radio understands.
        """
        counted = self._answered + self._lost
        reached = [_reached(number, one, counted, limit) for number, one in self._radios.items()]
        reached.sort(key=_quality, reverse=True)
        return Summary(self._sent, counted, self._answered, self._airtime_ms, limit, tuple(reached))


def _quality(one: Reached) -> tuple[float, float]:
    return one.delivery, float("-inf") if one.margin is None else one.margin


def _reached(number: int, radio: _Radio, counted: int, limit: float) -> Reached:
    there, back = radio.there.way(), radio.back.way()
    lows = [way.snr.low for way in (there, back) if way.snr is not None]
    margin = min(lows) - limit if lows else None
    seconds = radio.seconds
    delivery = radio.answered / counted if counted else 0.0
    return Reached(
        radio=number,
        answered=radio.answered,
        delivery=delivery,
        seconds=(min(seconds), sum(seconds) / len(seconds), max(seconds)),
        there=there,
        back=back,
        margin=margin,
        verdict=Verdict.of(delivery, margin),
    )
