"""A node's way up: packets into frames, and what gateways answer into custody.

Custody (:mod:`qis_edge.core.custody`) says which packets; this machine says which bytes,
and when to be quiet. It sends a *burst* (all that custody's window takes), asks in the
burst's last frame what arrived, and waits. No answer: it *polls*, 12 bytes, less and less
often. The answer settles the burst: what it does not name goes again (of a packet cut into
tiles, only the missing ones), and the next burst begins. Nothing is resent on a guess, and
while nobody answers only polls go out, and what is urgent and new.

Many nodes wait for the same moment: a window's end, power, a gateway that comes back. So a
burst begins after a draw, and a burst or poll not in the middle of a peer's; what is urgent
does not wait. An answer to a peer tells a silent node that somebody is there. ::

    sender.offer(key, packet, priority, now)
    while frame := sender.next(now):      # as long as the radio and the budget have room
        ...                               # send it
    sender.take(frame, now)               # Answer, Missing or Unknown, from the receiver
    sender.overheard(now)                 # a frame of somebody else, not an answer
    sender.answered(gateway, now, held=[...])   # receipts that were verified
    sender.next_deadline()
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Generic

from qis_edge.core.checks import require
from qis_edge.core.custody import Answered, Custody
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.mesh.elision import Context, elide
from qis_edge.core.mesh.fragments import cut
from qis_edge.core.mesh.framing import (
    DEFAULT_FRAME,
    MAX_FRAME,
    MIN_FRAME,
    POLL_SIZE,
    POLL_SPAN,
    Answer,
    Elided,
    Missing,
    Poll,
    Tile,
    Unknown,
    Whole,
)
from qis_edge.core.pacing import K, Pace
from qis_edge.core.packet import Packet
from qis_edge.core.receipt import parse

#: Bytes that a usual answer has.
_ANSWER = 64
#: Questions without an answer after which nobody seems to be there.
_SILENT_AFTER = 5
#: How many times ``spread`` a burst or poll gives way to peers.
_GIVES_WAY = 10


@dataclass(frozen=True, slots=True)
class Timing:
    """What a sender waits for, from airtime. Seconds.

    :param airtime: of a frame of so many bytes.
    :param turnaround: what radios and relays add to an answer, both ways.
    :param most_wait: between polls, at most.
    """

    airtime: Callable[[int], float]
    turnaround: float
    most_wait: float = 900.0

    @classmethod
    def of(cls, airtime: Callable[[int], float], *, relays: int = 0) -> Timing:
        """:param relays: between node and gateway: each sends every frame once more."""
        # A radio waits for a free channel, and draws lots with the others: a few frames.
        longest = airtime(DEFAULT_FRAME)
        turnaround = 1.0 + 2 * longest + relays * (longest + 2 * airtime(_ANSWER))
        # A node that nobody answers spends a six hundredth of its time on asking, at most.
        most_wait = min(max(600 * airtime(POLL_SIZE), 8 * turnaround), 900.0)
        return cls(airtime, turnaround, most_wait)

    @property
    def answer(self) -> float:
        """From the end of a question on air until its answer should be here."""
        return self.airtime(_ANSWER) + self.turnaround

    def pace(self, window: int = 16, frame: int = DEFAULT_FRAME) -> Pace:
        """For the custody of such a link. Its own timers are a last resort: they must not
        run out while bursts and polls go their way."""
        require(window >= 8, "window", "must be 8 or more")
        burst = 2 * window * self.airtime(frame) + 32 * (self.answer + self.airtime(POLL_SIZE))
        most = max(self.most_wait, 4 * burst)
        return Pace(window=window, first_timeout=burst, least_timeout=burst, most_timeout=most)


@dataclass(slots=True)
class _Entry:
    """A packet that was offered."""

    packet: Packet
    priority: int
    context: bytes
    elided: Elided | None
    whole: bool = False  # the next time it travels whole
    tiles: tuple[Tile, ...] = ()  # as it went last
    missing: tuple[Tile, ...] = ()  # of these; empty: all of it
    sends: int = 0

    @property
    def place(self) -> tuple[bytes, int]:
        return self.packet.store, self.packet.sequence


class Sender(Generic[K]):
    """The machine.

    :param custody: made with ``timing.pace()``; this machine alone offers, sends and
        settles with it.
    :param uniform: gives random numbers 0..1 for jitter.
    :param frame: bytes that a frame may have.
    :param urgent: the priority from which on a packet is urgent.
    :param whole_every: after so many seconds a context travels whole again, for peers who
        listen and do not know it yet; never, unless given.
    :param spread: a burst begins up to so many seconds late, at random: windows end at the
        same moment everywhere.
    """

    def __init__(
        self,
        custody: Custody[K],
        timing: Timing,
        uniform: Callable[[], float],
        *,
        frame: int = DEFAULT_FRAME,
        urgent: int = 3,
        whole_every: float | None = None,
        spread: float = 0.0,
    ) -> None:
        require(MIN_FRAME <= frame <= MAX_FRAME, "frame", f"must be {MIN_FRAME}..{MAX_FRAME}")
        self.custody = custody
        self.timing = timing
        self.polls = 0
        self._uniform = uniform
        self._frame = frame
        self._urgent = urgent
        self._whole_every = whole_every
        self.spread = spread
        self._begin_at: float | None = None  # of the burst that is to come
        self._entries: dict[K, _Entry] = {}
        self._queue: deque[Elided | Whole | Tile] = deque()
        self._outstanding: dict[K, None] = {}  # sent, and no answer speaks of them yet
        self._stores: dict[bytes, bytes] = {}  # by context, of what is or was outstanding
        self._polled: frozenset[tuple[bytes, int]] = frozenset()
        self._round = 0
        self._unanswered = 0  # questions in a row
        self._waiting = False
        self._wait_until = 0.0
        self._air_free = 0.0
        self._quiet_until = float("-inf")  # peers are in the middle of something
        self._stirred_at = float("-inf")  # by an answer to a peer
        self._whole_at: dict[bytes, float] = {}

    # --- packets ------------------------------------------------------------------------

    def offer(
        self, key: K, packet: Packet, priority: int, now: float, *, held_by: Iterable[bytes] = ()
    ) -> tuple[K, ...]:
        """Take on a packet; as :meth:`Custody.offer`, which says what it returns."""
        dropped = self.custody.offer(key, priority, now, held_by=held_by)
        if priority >= self._urgent:
            self._begin_at = None
        if key in self.custody and key not in self._entries:
            name = Context.of(packet).name
            self._entries[key] = _Entry(packet, priority, name, elide(packet))
        for gone in dropped:
            self._forget(gone)
        return dropped

    def withdraw(self, key: K) -> bool:
        """Forget a packet; whether it was known."""
        self._forget(key)
        return self.custody.withdraw(key)

    def _forget(self, key: K) -> None:
        self._entries.pop(key, None)
        self._outstanding.pop(key, None)

    # --- out ----------------------------------------------------------------------------

    def next(self, now: float) -> bytes | None:
        """The next frame, or ``None``: nothing now. It is taken to go on air after those
        that were given out before it."""
        if not self.custody.up:
            return None
        if not self._outstanding:
            self._waiting = False
        urgent = self._waiting and not self._queue and self._fill_urgent(now)
        if self._waiting and not self._queue:
            return self._poll(now) if now >= self._after_peers(self._wait_until) else None
        if not self._queue and not self._outstanding and not self._begins(now):
            return None
        if not self._queue and not self._fill_due(now):
            if self._outstanding:
                self._wait(now)  # nothing is left that could ask in its last frame
            return None
        frame = self._queue.popleft()
        last = not self._queue and (urgent or not self.custody.due(now, 1))
        data = (replace(frame, ask=True) if last else frame).encode()
        self._on_air(len(data), now)
        if last:
            self._unanswered += 1
            self._wait(now)
        return data

    def _begins(self, now: float) -> bool:
        """Whether a burst may begin."""
        if self.spread > 0 and not self.urgent_waits(now):
            if self._begin_at is None and self.custody.due(now, 1):
                self._begin_at = now + self.spread * self._uniform()
            if self._begin_at is None or now < self._after_peers(self._begin_at):
                return False
        self._begin_at = None
        return True

    def _after_peers(self, due: float) -> float:
        """When what could begin then may begin."""
        return max(due, min(self._quiet_until, due + _GIVES_WAY * self.spread))

    def _fill_due(self, now: float) -> bool:
        """Frames of the packet that is to go next; whether there is one."""
        while keys := self.custody.due(now, 1):
            if keys[0] in self._entries:
                self._fill(keys[0], now)
                return True
            self.custody.withdraw(keys[0])  # it was never offered here
        return False

    def _fill_urgent(self, now: float) -> bool:
        """Into silence, what is urgent and was never sent goes anyway, once."""
        if not self.silent:
            return False
        for key, entry in self._entries.items():
            if not entry.sends and entry.priority >= self._urgent:
                self._fill(key, now)
                return True
        return False

    def _fill(self, key: K, now: float) -> None:
        entry = self._entries[key]
        self._queue.extend(entry.missing or self._frames(entry, now))
        entry.missing = ()
        entry.sends += 1
        if not self._outstanding:
            self._stores.clear()
        self._stores[entry.context] = entry.place[0]
        self._outstanding[key] = None
        self.custody.sent(key, now)

    def _frames(self, entry: _Entry, now: float) -> tuple[Elided | Whole | Tile, ...]:
        frame: Elided | Whole = entry.elided or Whole(entry.packet.raw)
        if entry.whole or self._is_due_whole(entry.context, now):
            frame = Whole(entry.packet.raw)
            entry.whole = False
            self._whole_at[entry.context] = now
        data = frame.encode()
        entry.tiles = cut(data, self._frame) if len(data) > self._frame else ()
        return entry.tiles or (frame,)

    def _is_due_whole(self, context: bytes, now: float) -> bool:
        last = self._whole_at.get(context, float("-inf"))
        return self._whole_every is not None and now - last >= self._whole_every

    def _poll(self, now: float) -> bytes | None:
        """Ask about what was sent: as many of one store as a poll can name."""
        for key in [key for key in self._outstanding if key not in self.custody]:
            self._forget(key)
        if not self._outstanding:
            self._waiting = False
            return self.next(now)
        entries = sorted(
            (self._entries[key] for key in self._outstanding), key=lambda entry: entry.place
        )
        first = entries[0]
        store, base = first.place
        polled = [e for e in entries if e.place[0] == store and e.place[1] < base + POLL_SPAN]
        self._polled = frozenset(entry.place for entry in polled)
        self._round = self._round % 255 + 1
        sequences = tuple(entry.place[1] for entry in polled)
        data = Poll(first.context, self._round, sequences).encode()
        self.polls += 1
        self._unanswered += 1
        self._on_air(len(data), now)
        self._wait(now)
        return data

    def _on_air(self, size: int, now: float) -> None:
        self._air_free = max(self._air_free, now) + self.timing.airtime(size)

    def _wait(self, now: float) -> None:
        """Be quiet until an answer should be here: longer, the longer nobody answers."""
        self._waiting = True
        doublings = min(max(0, self._unanswered - _SILENT_AFTER), 32)
        plain = min(self.timing.answer * 2.0**doublings, self.timing.most_wait)
        self._wait_until = max(self._air_free, now) + plain * (1 + self._uniform() / 4)

    def next_deadline(self) -> float | None:
        """When :meth:`next` may next have something, if nothing else happens: a time in
        the past means now."""
        if not self.custody.up:
            return None
        if self._queue:
            return float("-inf")
        if self._waiting and self._outstanding:
            return self._after_peers(self._wait_until)
        if self._outstanding:
            return float("-inf")
        if self._begin_at is None:
            return self.custody.next_deadline()
        return self._after_peers(self._begin_at)

    def urgent_waits(self, now: float) -> bool:
        """Whether what goes next is urgent."""
        due = self.custody.due(now, 1)
        return bool(due) and due[0] in self and self._entries[due[0]].priority >= self._urgent

    @property
    def silent(self) -> bool:
        """Whether so many questions had no answer that nobody seems to be there."""
        return self._unanswered >= _SILENT_AFTER

    # --- in -----------------------------------------------------------------------------

    def take(self, frame: Answer | Missing | Unknown, now: float) -> None:
        """A gateway says something about what we sent. None of it is authenticated, and
        none of it is proof of custody: it only tells what to send again. What is in an
        answer's receipts is verified above, and comes back in :meth:`answered`."""
        if isinstance(frame, Answer):
            self._settle(frame, now)
        elif isinstance(frame, Missing):
            self._missing(frame, now)
        else:
            self._unknown(frame, now)

    def _settle(self, answer: Answer, now: float) -> None:
        store = self._stores.get(answer.context)
        if store is None:
            self._stirred(now)
        if not self._waiting or store is None or answer.round not in (0, self._round):
            return
        named = _named(answer)
        parts = {part.tag: part.have for part in answer.parts}
        for key in list(self._outstanding):
            entry = self._entries[key]
            covered = entry.place in self._polled if answer.round else entry.place[0] == store
            if not covered:
                continue
            del self._outstanding[key]
            if entry.place in named:
                continue
            if entry.tiles and (have := parts.get(entry.tiles[0].tag)):
                entry.missing = _without(entry.tiles, have)
            self.custody.again([key], now)
        self._unanswered = 0
        self._waiting = bool(self._outstanding)
        self._wait_until = now

    def _stirred(self, now: float) -> None:
        """A peer was answered: somebody is there. Believed now and then, anybody can say it."""
        if not self.silent or now - self._stirred_at < self.timing.most_wait:
            return
        self._stirred_at = now
        self._unanswered = _SILENT_AFTER
        soon = now + self.timing.turnaround + self.spread * self._uniform()
        self._wait_until = min(self._wait_until, soon)

    def overheard(self, now: float) -> None:
        """Somebody else sent a frame that was not an answer: more may come."""
        if self.spread > 0:
            self._quiet_until = now + self.timing.turnaround + self.spread * self._uniform()

    def _missing(self, missing: Missing, now: float) -> None:
        for key in self._outstanding if self._waiting else ():
            entry = self._entries[key]
            if entry.tiles and entry.tiles[0].tag == missing.part.tag:
                entry.missing = _without(entry.tiles, missing.part.have)
                self._resend(key, now)
                return

    def _unknown(self, unknown: Unknown, now: float) -> None:
        context = unknown.context
        if any(self._entries[key].context == context for key in self._outstanding):
            self._unanswered = min(self._unanswered, 1)  # somebody is there
        if now - self._whole_at.get(context, float("-inf")) < 2 * self.timing.answer:
            return
        for key in self._outstanding:
            entry = self._entries[key]
            if entry.context == context and not entry.whole:
                entry.whole = True
                entry.missing = ()
                self._resend(key, now)
                return

    def _resend(self, key: K, now: float) -> None:
        """This one goes again without an answer; the others are asked about with it."""
        del self._outstanding[key]
        self.custody.again([key], now)
        self._waiting = False

    def answered(
        self,
        gateway: bytes,
        now: float,
        *,
        held: Iterable[K] = (),
        refused: Iterable[tuple[Reason | int, Iterable[K]]] = (),
        later: Iterable[tuple[float, Iterable[K]]] = (),
    ) -> Answered[K]:
        """A receipt was verified; as :meth:`Custody.answered`."""
        result = self.custody.answered(gateway, now, held=held, refused=refused, later=later)
        for key in (*result.done, *(key for key, _ in result.refused), *result.dropped):
            self._forget(key)
        for key in (*result.held, *result.postponed):
            self._outstanding.pop(key, None)
        if result.held:
            self._unanswered = 0
        return result

    def heard(self, now: float) -> None:
        """A gateway said something else that is authentic: silence ends, and what was sent
        is asked about."""
        if self.silent:
            self._unanswered = 0
            self._wait_until = now

    # --- the link -----------------------------------------------------------------------

    def link_up(self, now: float) -> None:
        """The way is open: what was sent before is asked about first."""
        if self.custody.up:
            return
        self.custody.link_up(now)
        self._queue.clear()
        self._air_free = now
        self._unanswered = 0
        self._waiting = bool(self._outstanding)
        self._wait_until = now

    def link_down(self, now: float) -> None:
        """The way is closed."""
        self.custody.link_down(now)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries


def _named(answer: Answer) -> set[tuple[bytes, int]]:
    """(store, sequence) of all that an answer's receipts speak of."""
    named: set[tuple[bytes, int]] = set()
    for message in answer.messages:
        try:
            receipt = parse(message).receipt
        except Refused:
            continue
        named.update((receipt.store, sequence) for sequence in receipt.named())
    return named


def _without(tiles: tuple[Tile, ...], have: int) -> tuple[Tile, ...]:
    return tuple(tile for tile in tiles if not have >> tile.index & 1)
