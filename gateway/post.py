"""What goes out of a gateway over one link, as it has room: answers first, then packets.

Over a link that all share, where each frame costs all of them airtime, little may wait, and
nothing is said again that was just said.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

from qis_edge.core.errors import LinkError
from qis_edge.links.base import Destination, Link

log = logging.getLogger(__name__)

#: Answers that wait for room. Beyond it the oldest goes: who asked will ask again.
MAX_ANSWERS, MAX_SHARED_ANSWERS = 4096, 64
#: Answers that wait, below which more are made of what is to be said.
FEW_ANSWERS = 32
#: Packets that wait for room. Beyond it whoever brings more must wait.
MAX_PACKETS = 256
#: Live packets that wait for room on a shared link. Beyond it the oldest goes.
MAX_LIVE = 32
#: Frames that are remembered as said.
MAX_SAID = 2048


@dataclass(frozen=True, slots=True)
class _Letter:
    frame: bytes
    to: Destination
    until: float = math.inf  # monotonic; useless after that


class Post:
    """A queue before a link. Nothing in it is a promise: receipts and packets that are
    lost here are asked for again by the node that misses them."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._shared = link.shared
        #: Seconds within which an answer is not said twice, and a greeting is of use.
        self._repeat = link.cadence.patience / 10
        self._lasts = 0.4 * link.cadence.patience if self._shared else math.inf
        self._answers: OrderedDict[object, _Letter] = OrderedDict()
        self._packets: deque[_Letter] = deque()
        self._live: deque[_Letter] = deque()
        self._said: OrderedDict[bytes, float] = OrderedDict()
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._was_live = False
        self.dropped = 0
        #: Called when few answers wait: whoever has some to make may make them now.
        self.more: Callable[[], None] | None = None

    @property
    def hungry(self) -> bool:
        """Whether so few answers wait that new ones go out soon. What is not made before that
        can still say more."""
        return len(self._answers) < FEW_ANSWERS

    def answer(self, frame: bytes, to: Destination) -> None:
        """Queue a receipt or another short answer; never waits."""
        if not self.has_said(frame, self._repeat):
            self._queue(object(), _Letter(frame, to))

    def greet(self, frame: bytes, to: Destination) -> None:
        """Queue a greeting, in the place of an older one; never waits."""
        self._answers.pop(to, None)
        self._queue(to, _Letter(frame, to, time.monotonic() + self._lasts))

    def _queue(self, place: object, letter: _Letter) -> None:
        self._answers[place] = letter
        if len(self._answers) > (MAX_SHARED_ANSWERS if self._shared else MAX_ANSWERS):
            self._answers.popitem(last=False)
            self.dropped += 1
        self._filled.set()

    async def packet(self, frame: bytes, to: Destination) -> None:
        """Queue a peer's packet that was asked for; waits while the queue is full."""
        while len(self._packets) >= MAX_PACKETS:
            self._drained.clear()
            await self._drained.wait()
        self._packets.append(_Letter(frame, to))
        self._filled.set()

    async def live(self, frame: bytes, to: Destination) -> None:
        """Queue a peer's packet for all who listen; waits while the queue is full. On a
        shared link the oldest goes instead: what is new is worth more."""
        if not self._shared:
            await self.packet(frame, to)
            return
        self._live.append(_Letter(frame, to))
        if len(self._live) > MAX_LIVE:
            self._live.popleft()
            self.dropped += 1
        self._filled.set()

    def has_said(self, frame: bytes, within: float) -> bool:
        """On a shared link: whether this frame waits here, or went out to all in the last
        ``within`` seconds."""
        if not self._shared:
            return False
        if time.monotonic() - self._said.get(frame, -math.inf) < within:
            return True
        waiting = chain(self._answers.values(), self._packets, self._live)
        return any(letter.frame == frame for letter in waiting)

    def _note(self, frame: bytes) -> None:
        self._said[frame] = time.monotonic()
        self._said.move_to_end(frame)
        if len(self._said) > MAX_SAID:
            self._said.popitem(last=False)

    async def run(self) -> None:
        """Send for ever."""
        while True:
            if self.more is not None and self.hungry:
                self.more()
            if not (self._answers or self._packets or self._live):
                self._filled.clear()
                await self._filled.wait()
            if not (self._link.up and self._link.room > 0):
                await self._link.changed()
                continue
            letter = self._next()
            if letter.until < time.monotonic():
                self.dropped += 1
                continue
            try:
                await self._link.send(letter.frame, letter.to)
            except LinkError as error:
                self.dropped += 1
                log.debug("not sent: %s", error)
            else:
                if self._shared:
                    self._note(letter.frame)

    def _next(self) -> _Letter:
        """Answers, then packets: what is live and what was asked for in turn."""
        if self._answers:
            return self._answers.popitem(last=False)[1]
        self._was_live = bool(self._live) and not (self._was_live and self._packets)
        if self._was_live:
            return self._live.popleft()
        self._drained.set()
        return self._packets.popleft()
