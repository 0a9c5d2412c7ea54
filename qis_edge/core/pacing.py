"""When to send what has no answer yet: one window, one timer for each packet.

:class:`Sender` knows no link, no packet and no clock; times are monotonic seconds, told by
the caller. It waits for *one* answer to each packet. :class:`qis_edge.core.custody.Custody`
makes custody of it.

*Timers* follow measured round trips (RFC 6298). Only packets sent exactly once are measured
(Karn's algorithm). A timeout doubles the packet's next one, and at most once per round trip
that of all packets, until a round trip is measured again.

*Silence*: after a few such doublings without a word from the other side only one packet at
a time goes out as a probe, another each time and ever more rarely, besides what is urgent
and was never sent. A word ends it, and what waited is due at once.

*States*: a packet is NEW until it is sent, SENT until it is answered, and POSTPONED while
the other side wants it later; then it is SENT again.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from qis_edge.core.checks import require

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Pace:
    """How a sender behaves on a kind of link. Times in seconds.

    :param window: packets without an answer at most (a quarter more for urgent ones).
    :param first_timeout: before a round trip was measured.
    :param least_timeout: never resend sooner.
    :param most_timeout: nor wait longer (jitter adds up to a quarter).
    :param longest_later: a postponement is no longer than this.
    :param urgent: the priority from which on a packet is urgent.
    :param silent_after: doublings without a word that make a silence.
    :param patience: timeouts of its own after which a packet leaves the window to others.
    """

    window: int = 64
    first_timeout: float = 3.0
    least_timeout: float = 1.0
    most_timeout: float = 300.0
    longest_later: float = 86400.0
    urgent: int = 3
    silent_after: int = 3
    patience: int = 5

    def __post_init__(self) -> None:
        require(self.window >= 1, "window", "must be 1 or more")
        ordered = 0 < self.least_timeout <= self.first_timeout <= self.most_timeout
        require(ordered, "first_timeout", "must lie between least_timeout and most_timeout")

    @property
    def reserve(self) -> int:
        """How far urgent packets may go past the window."""
        return max(1, self.window // 4)

    @property
    def capacity(self) -> int:
        """How many packets without a holder are kept track of."""
        return 4 * self.window + self.reserve


#: Over a broker.
BROKER = Pace()
#: Over a radio mesh of a few hundred bytes a second.
MESH = Pace(window=8, first_timeout=30.0, least_timeout=8.0, most_timeout=3600.0)


class State(enum.Enum):
    """Where a packet stands."""

    NEW = enum.auto()
    SENT = enum.auto()
    POSTPONED = enum.auto()


@dataclass(slots=True)
class Tracked(Generic[K]):
    """A packet as a sender knows it."""

    key: K
    priority: int
    order: int  # of being offered
    due_at: float
    state: State = State.NEW
    sends: int = 0
    sent_at: float = 0.0
    measurable: bool = False  # sent exactly once, and its timer has not run out
    timed_out: bool = False  # that its timer ran out was noticed
    timeouts: int = 0  # its own, outside silences


def _rank(packet: Tracked[K]) -> tuple[int, int]:
    """Urgent first, then oldest."""
    return -packet.priority, packet.order


class Sender(Generic[K]):
    """Keys name packets: anything hashable.

    :param uniform: gives random numbers 0..1 for jitter.
    :param capacity: packets kept track of at most.
    """

    def __init__(self, uniform: Callable[[], float], pace: Pace, capacity: int) -> None:
        self.pace = pace
        self.capacity = capacity
        self.up = False
        self._uniform = uniform
        self._packets: dict[K, Tracked[K]] = {}
        self._forget_path()

    def _forget_path(self) -> None:
        self._mean: float | None = None  # SRTT
        self._deviation = 0.0  # RTTVAR
        self._doublings = 0  # of every timeout, since a round trip was last measured
        self._doubled_at = float("-inf")
        self._unheard = 0  # doublings, probes and lost links since a word was last heard
        self._sent_unheard = False
        self._last_sent = float("-inf")
        self._probe_at = float("-inf")

    # --- packets come and go ------------------------------------------------------------

    def add(self, packet: Tracked[K], now: float) -> K | None:
        """Take on a packet. One that was SENT stays so while there is a place for it in the
        window.

        :returns: what had to go for want of room: the least urgent, then youngest.
        """
        packet.timeouts = 0
        if packet.state is State.SENT:
            if self.silent or self.in_flight >= self._window(packet.priority):
                packet.state = State.NEW
                packet.due_at = max(packet.due_at, now)
            else:
                self._sent_unheard = True
        self._packets[packet.key] = packet
        if len(self._packets) <= self.capacity:
            return None
        last = max(self._packets.values(), key=_rank).key
        del self._packets[last]
        return last

    def get(self, key: K) -> Tracked[K] | None:
        """What is known of a packet."""
        return self._packets.get(key)

    def remove(self, key: K) -> Tracked[K] | None:
        """Forget a packet."""
        return self._packets.pop(key, None)

    def room_for(self, priority: int) -> int:
        """How many more packets of this priority could be sent."""
        packets = self._packets.values()
        if not self.up or (self.silent and packets and priority < self.pace.urgent):
            return 0
        new = sum(1 for packet in packets if packet.state is State.NEW)
        places = self._window(priority) - self.in_flight - new
        return max(0, min(places, self.capacity - len(packets)))

    def _window(self, priority: int) -> int:
        return self.pace.window + (self.pace.reserve if priority >= self.pace.urgent else 0)

    def _counts(self, packet: Tracked[K]) -> bool:
        """Whether it takes a place in the window."""
        return packet.state is State.SENT and packet.timeouts <= self.pace.patience

    @property
    def in_flight(self) -> int:
        """Packets in the window."""
        return sum(1 for packet in self._packets.values() if self._counts(packet))

    # --- sending ------------------------------------------------------------------------

    def due(self, now: float, room: int) -> list[K]:
        """What to send now, at most ``room`` of it. Timers are noticed, nothing else."""
        if not self.up or room <= 0:
            return []
        self._notice_timeouts(now)
        ready = sorted((p for p in self._packets.values() if p.due_at <= now), key=_rank)
        if self.silent:
            return self._into_silence(now, ready)[:room]
        return self._within_window(ready)[:room]

    def _within_window(self, ready: list[Tracked[K]]) -> list[K]:
        """Those that have a place in the window, had one, or still find one."""
        taken: list[K] = []
        places = self.in_flight
        for packet in ready:
            if packet.state is not State.SENT:
                if places >= self._window(packet.priority):
                    continue
                places += 1
            taken.append(packet.key)
        return taken

    def _into_silence(self, now: float, ready: list[Tracked[K]]) -> list[K]:
        """What is urgent and was never sent; or one probe, when it is time."""
        taken = self._within_window([packet for packet in ready if self._goes_anyway(packet)])
        if not taken and now >= self._probe_at:
            awaited = [p for p in self._packets.values() if not self._rests(p, now)]
            # Another each time: this one may be the reason why nobody answers.
            awaited.sort(key=lambda packet: (-packet.priority, packet.sent_at, packet.order))
            taken = [packet.key for packet in awaited[:1]]
        return taken

    def _goes_anyway(self, packet: Tracked[K]) -> bool:
        return packet.sends == 0 and packet.priority >= self.pace.urgent

    def _rests(self, packet: Tracked[K], now: float) -> bool:
        return packet.state is State.POSTPONED and packet.due_at > now

    def sent(self, packet: Tracked[K], now: float) -> None:
        """A packet went out."""
        if self.silent and now >= self._probe_at:
            self._unheard += 1
            self._probe_at = now + self._timeout(self._unheard)
        packet.measurable = packet.sends == 0
        packet.sends += 1
        packet.state = State.SENT
        packet.sent_at = now
        packet.timed_out = False
        packet.due_at = now + self._timeout(max(packet.timeouts, self._doublings))
        self._sent_unheard = True
        self._last_sent = now

    def again(self, keys: Iterable[K], now: float) -> int:
        """These did not arrive: they are due at once. How many of them are known."""
        found = [packet for key in keys if (packet := self._packets.get(key))]
        for packet in found:
            self._make_due(packet, now)
        return len(found)

    def _make_due(self, packet: Tracked[K], when: float) -> None:
        packet.due_at = min(packet.due_at, when)
        packet.measurable = False
        packet.timed_out = True

    def next_deadline(self) -> float | None:
        """When :meth:`due` may next have something, or ``None``: not before something else
        happens. A time in the past means now, if the link has room."""
        if not self.up or not self._packets:
            return None
        packets = self._packets.values()
        places = self.in_flight
        placed = [
            packet
            for packet in packets
            if packet.state is State.SENT or places < self._window(packet.priority)
        ]
        if not self.silent:
            return min((packet.due_at for packet in placed), default=None)
        rests = [packet.due_at for packet in packets if packet.state is State.POSTPONED]
        awaits = len(rests) < len(packets)
        probe_at = self._probe_at if awaits else max(self._probe_at, min(rests))
        urgent = (packet.due_at for packet in placed if self._goes_anyway(packet))
        return min([probe_at, *urgent])

    # --- timers -------------------------------------------------------------------------

    @property
    def timeout(self) -> float:
        """RTO of RFC 6298: after so many seconds an answer is overdue, before doublings."""
        if self._mean is None:
            return self.pace.first_timeout
        estimate = self._mean + 4 * self._deviation
        return min(max(estimate, self.pace.least_timeout), self.pace.most_timeout)

    def _timeout(self, doublings: int) -> float:
        plain = min(self.timeout * 2.0 ** min(doublings, 32), self.pace.most_timeout)
        return plain * (1 + self._uniform() / 4)

    def _measure(self, seconds: float) -> None:
        """RFC 6298 section 2."""
        if self._mean is None:
            self._mean, self._deviation = seconds, seconds / 2
        else:
            self._deviation += (abs(self._mean - seconds) - self._deviation) / 4
            self._mean += (seconds - self._mean) / 8
        self._doublings = 0

    def _notice_timeouts(self, now: float) -> None:
        for packet in self._packets.values():
            if packet.state is not State.SENT or packet.due_at > now or packet.timed_out:
                continue
            packet.timed_out = True
            packet.measurable = False
            if self.silent:
                continue  # says nothing about this packet
            packet.timeouts += 1
            # What was sent before the last doubling is part of the same bad luck.
            if packet.sent_at >= self._doubled_at:
                self._doubled_at = now
                self._doublings += 1
                self._unheard += 1
                self._probe_at = now

    @property
    def silent(self) -> bool:
        """Whether nobody has been heard for so long that only probes go out."""
        return self._unheard >= self.pace.silent_after

    # --- what happens -------------------------------------------------------------------

    def answer(self, packet: Tracked[K], now: float) -> None:
        """It was answered: that is a round trip, if it was sent once."""
        if packet.measurable:
            self._measure(now - packet.sent_at)
            packet.measurable = False

    def postpone(self, packet: Tracked[K], seconds: float, now: float) -> None:
        """The other side wants it later."""
        wait = min(max(seconds, self.pace.least_timeout), self.pace.longest_later)
        packet.state = State.POSTPONED
        packet.due_at = now + wait * (1 + self._uniform() / 10)
        packet.timeouts = 0

    def heard(self, now: float) -> None:
        """The other side said something: silence ends, and what it held back is due."""
        was_silent = self.silent
        self._unheard = 0
        self._sent_unheard = False
        if was_silent:
            for packet in self._sent_ones():
                packet.due_at = min(packet.due_at, max(now, packet.sent_at + self.timeout))

    def link_up(self, now: float) -> None:
        """The way is open; what was in flight may be lost. Into silence a probe goes first."""
        if self.up:
            return
        self.up = True
        self._doublings = 0
        if self.silent:
            # A link that comes and goes must not make probes frequent.
            self._probe_at = min(self._probe_at, max(now, self._last_sent + 8 * self.timeout))
        for packet in self._sent_ones():
            self._make_due(packet, now)
            packet.timeouts = 0

    def link_down(self) -> None:
        """The way is closed. Timers stand still; nothing is due."""
        if self.up and self._sent_unheard:
            self._unheard += 1
            self._sent_unheard = False
        self.up = False

    def _sent_ones(self) -> list[Tracked[K]]:
        return [packet for packet in self._packets.values() if packet.state is State.SENT]

    def retune(self, pace: Pace, capacity: int) -> None:
        """Another kind of link: its pace, and nothing known of its round trips."""
        self.pace = pace
        self.capacity = capacity
        self._forget_path()

    def __len__(self) -> int:
        return len(self._packets)
