"""Custody: which packets to send now, until gateways have said that they hold them.

Nothing below keeps promises (a broker acknowledged 3,000 messages and delivered 1,020), so
a sender is clocked by custody receipts alone: a window of packets without an answer, a
timer for each, and nothing else. This machine sits above any link and knows none. It is
told what happened and when (monotonic seconds), and is asked what to send and when to ask
again::

    custody = Custody(random.Random().random)
    custody.link_up(now)
    while custody.room_for():            # pack only what can be sent
        custody.offer(key, priority, now)
    for key in custody.due(now, room):   # room: what the link takes now
        ...                              # send it, then:
        custody.sent(key, now)
    custody.answered(gateway, now, held=[...])   # a receipt that was verified
    custody.next_deadline()              # when to ask due() again, if nothing happens

How it paces itself is told in :mod:`qis_edge.core.pacing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic

from qis_edge.core.checks import require
from qis_edge.core.errors import Reason
from qis_edge.core.pacing import BROKER, MESH, K, Pace, Sender, State, Tracked

__all__ = ["BROKER", "MESH", "Answered", "Counters", "Custody", "Pace"]

#: How many windows of packets are kept track of that some gateways hold, but not enough.
_PARTLY_HELD = 64


@dataclass(frozen=True, slots=True)
class Answered(Generic[K]):
    """What an answer changed.

    :param done: are held by enough gateways, and are forgotten here.
    :param held: are newly held by this gateway, those that are done included.
    :param refused: (key, reason): never to be sent again, and forgotten here.
    :param postponed: will be due again later.
    :param dropped: some gateways hold them, but not enough, and there was no room to keep
        track of them any longer: offer them again later.
    :param unknown: how many keys waited for no answer of this gateway.
    """

    done: tuple[K, ...] = ()
    held: tuple[K, ...] = ()
    refused: tuple[tuple[K, Reason | int], ...] = ()
    postponed: tuple[K, ...] = ()
    dropped: tuple[K, ...] = ()
    unknown: int = 0


@dataclass(slots=True)
class Counters:
    """What happened since the machine was made, in packets."""

    sent: int = 0  # first transmissions
    resent: int = 0  # all others
    receipted: int = 0  # held by enough gateways
    refused: int = 0
    postponed: int = 0
    unknown: int = 0  # answers that nothing waited for: repeated ones, mostly


class Custody(Generic[K]):
    """The machine. Keys name packets: anything hashable.

    Each copy beyond the first is waited for apart, with a window and silences of its own:
    a second gateway that is away holds up nothing that the first can take.

    :param uniform: gives random numbers 0..1 for jitter, e.g. ``random.Random().random``.
    :param copies: how many gateways must hold a packet until it is done.
    """

    def __init__(
        self, uniform: Callable[[], float], *, pace: Pace = BROKER, copies: int = 1
    ) -> None:
        require(copies >= 1, "copies", "must be 1 or more")
        self.copies = copies
        self.counters = Counters()
        self._offered = 0
        # The packets that so many gateways hold: each stage waits for one more.
        self._stages: list[Sender[K]] = [
            Sender(uniform, pace, _capacity(pace, held)) for held in range(copies)
        ]
        self._holders: dict[K, frozenset[bytes]] = {}

    # --- packets come and go ------------------------------------------------------------

    def offer(
        self, key: K, priority: int, now: float, *, held_by: Iterable[bytes] = ()
    ) -> tuple[K, ...]:
        """Take on a packet. One that is known keeps its place; its priority may rise.

        :param priority: the greater, the sooner; from ``pace.urgent`` on it is urgent.
        :param held_by: kids of the gateways that hold it already, fewer than ``copies``.
        :returns: keys that there is no room for now, the least urgent and youngest (this
            one, perhaps): offer them again later. None of them if :meth:`room_for` said so.
        """
        known = self._find(key)
        if known is not None:
            known.priority = max(known.priority, priority)
            return ()
        holders = frozenset(held_by)
        require(len(holders) < self.copies, "held_by", "enough gateways hold it")
        self._offered += 1
        return self._add(Tracked(key, priority, self._offered, now), holders, now)

    def _add(self, packet: Tracked[K], holders: frozenset[bytes], now: float) -> tuple[K, ...]:
        if holders:
            self._holders[packet.key] = holders
        dropped = self._stages[len(holders)].add(packet, now)
        if dropped is None:
            return ()
        self._holders.pop(dropped, None)
        return (dropped,)

    def withdraw(self, key: K) -> bool:
        """Forget a packet (it was dropped from disk, say); whether it was known."""
        return self._remove(key) is not None

    def room_for(self, priority: int = 0, *, held: int = 0) -> int:
        """How many more packets of this priority are worth making: they could be sent.

        :param held: for packets that so many gateways hold already: how many more of
            them can be kept track of.
        """
        stage = self._stages[held]
        return stage.capacity - len(stage) if held else stage.room_for(priority)

    def _stage(self, key: K) -> Sender[K]:
        return self._stages[len(self._holders.get(key, ()))]

    def _find(self, key: K) -> Tracked[K] | None:
        return self._stage(key).get(key)

    def _remove(self, key: K) -> Tracked[K] | None:
        packet = self._stage(key).remove(key)
        self._holders.pop(key, None)
        return packet

    # --- sending ------------------------------------------------------------------------

    def due(self, now: float, room: int) -> list[K]:
        """What to send now, at most ``room`` of it: what nobody holds before what some
        hold; then urgent first; then oldest.

        Asking changes nothing but that timers are noticed; tell :meth:`sent` what was
        really sent.
        """
        taken: list[K] = []
        for stage in self._stages:
            taken += stage.due(now, room - len(taken))
        return taken

    def sent(self, key: K, now: float) -> None:
        """A packet went out. One that was answered in the meantime is passed over."""
        packet = self._find(key)
        if packet is None:
            return
        if packet.sends:
            self.counters.resent += 1
        else:
            self.counters.sent += 1
        self._stage(key).sent(packet, now)

    def again(self, keys: Iterable[K], now: float) -> int:
        """These did not arrive, as a link or a gateway knows: they are due at once, without
        waiting for their timers. How many of them are known."""
        return sum(self._stage(key).again([key], now) for key in keys)

    def next_deadline(self) -> float | None:
        """When :meth:`due` may next have something, or ``None``: nothing will be due before
        something else happens. A time in the past means now: if :meth:`due` gave less than
        there was room for, that is never so; if the link has no room, wait for the link."""
        times = [stage.next_deadline() for stage in self._stages]
        return min((time for time in times if time is not None), default=None)

    # --- what happens -------------------------------------------------------------------

    def answered(
        self,
        gateway: bytes,
        now: float,
        *,
        held: Iterable[K] = (),
        refused: Iterable[tuple[Reason | int, Iterable[K]]] = (),
        later: Iterable[tuple[float, Iterable[K]]] = (),
    ) -> Answered[K]:
        """A gateway said this in a receipt that was verified.

        Names are taken at their word and no further: keys that wait for no answer of this
        gateway change nothing and are counted.

        :param gateway: its kid.
        :param refused: (reason, keys).
        :param later: (seconds, keys).
        """
        unknown = self.counters.unknown
        news: list[K] = []
        done: list[K] = []
        dropped: list[K] = []
        for key in held:
            packet = self._awaited(key, gateway, now)
            if packet is None:
                continue
            news.append(key)
            holders = self._holders.get(key, frozenset()) | {gateway}
            self._remove(key)
            if len(holders) >= self.copies:
                done.append(key)
            else:
                # One transmission reaches every gateway: the next one's answer may come.
                packet.measurable = packet.sends == 1 and not packet.timed_out
                dropped += self._add(packet, holders, now)
        gone: list[tuple[K, Reason | int]] = []
        for reason, keys in refused:
            for key in keys:
                if self._awaited(key, gateway, now) is not None:
                    self._remove(key)
                    gone.append((key, reason))
        postponed: list[K] = []
        for seconds, keys in later:
            for key in keys:
                packet = self._awaited(key, gateway, now)
                if packet is not None:
                    self._stage(key).postpone(packet, seconds, now)
                    postponed.append(key)
        self.counters.receipted += len(done)
        self.counters.refused += len(gone)
        self.counters.postponed += len(postponed)
        self.heard(now, gateway)
        unknown = self.counters.unknown - unknown
        return Answered(
            tuple(done), tuple(news), tuple(gone), tuple(postponed), tuple(dropped), unknown
        )

    def _awaited(self, key: K, gateway: bytes, now: float) -> Tracked[K] | None:
        """The packet, if an answer of this gateway is news of it."""
        packet = self._find(key)
        if packet is None or gateway in self._holders.get(key, ()):
            self.counters.unknown += 1
            return None
        self._stage(key).answer(packet, now)
        return packet

    def heard(self, now: float, gateway: bytes | None = None) -> None:
        """A gateway said something authentic: silence ends, and what it held back is due.

        Receipts are heard by :meth:`answered`; tell of greetings here, and ask for them
        while it is :attr:`silent`.

        :param gateway: its kid; without it, nobody is taken to be back whose second or
            third copy is awaited.
        """
        self._stages[0].heard(now)
        if gateway is None:
            return
        for held, stage in enumerate(self._stages[1:], start=1):
            if any(len(h) == held and gateway not in h for h in self._holders.values()):
                stage.heard(now)

    def link_up(self, now: float) -> None:
        """The way is open. What was in flight may be lost: it is due at once, within the
        window and the link's room; into silence a probe goes first."""
        for stage in self._stages:
            stage.link_up(now)

    def link_down(self, now: float) -> None:  # noqa: ARG002 - every event says when
        """The way is closed. Timers stand still; nothing is due."""
        for stage in self._stages:
            stage.link_down()

    def forget_gateway(self, gateway: bytes, now: float = 0.0) -> int:
        """What this gateway held does not count any more (it lost its spool, or was
        revoked) and is due at once. How many packets it concerns; those that were done are
        not known here."""
        found = [key for key, holders in self._holders.items() if gateway in holders]
        for key in found:
            holders = self._holders[key] - {gateway}
            packet = self._remove(key)
            if packet is not None:
                packet.state = State.NEW
                packet.due_at = now
                self._add(packet, holders, now)
        return len(found)

    def retune(self, pace: Pace) -> None:
        """Go on over another kind of link: its pace, and nothing known of its round trips.
        Tell :meth:`link_down` before and :meth:`link_up` after."""
        for held, stage in enumerate(self._stages):
            stage.retune(pace, _capacity(pace, held))

    # --- looking in ---------------------------------------------------------------------

    @property
    def silent(self) -> bool:
        """Whether no gateway has been heard for so long that only probes go out."""
        return self._stages[0].silent

    @property
    def in_flight(self) -> int:
        """Packets in the window: sent, and held by nobody yet."""
        return self._stages[0].in_flight

    @property
    def timeout(self) -> float:
        """After so many seconds an answer is overdue, before doublings."""
        return self._stages[0].timeout

    @property
    def up(self) -> bool:
        """Whether the way is open."""
        return self._stages[0].up

    def __len__(self) -> int:
        return sum(len(stage) for stage in self._stages)

    def __contains__(self, key: K) -> bool:
        return self._find(key) is not None


def _capacity(pace: Pace, held: int) -> int:
    return _PARTLY_HELD * pace.window if held else pace.capacity
