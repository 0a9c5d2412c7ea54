"""What goes out of a gateway: answers first, then peers' packets, as the link has room."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from qis_edge.core.errors import LinkError
from qis_edge.links.base import Destination, Link

log = logging.getLogger(__name__)

#: Answers that wait for room. Beyond it the oldest goes: who asked will ask again.
MAX_ANSWERS = 4096
#: Packets that wait for room. Beyond it whoever brings more must wait.
MAX_PACKETS = 256


class Post:
    """A queue before a link. Nothing in it is a promise: receipts and packets that are
    lost here are asked for again by the node that misses them."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._answers: deque[tuple[bytes, Destination]] = deque(maxlen=MAX_ANSWERS)
        self._packets: deque[tuple[bytes, Destination]] = deque()
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self.dropped = 0

    def answer(self, frame: bytes, to: Destination) -> None:
        """Queue a receipt or another short answer; never waits."""
        if len(self._answers) == MAX_ANSWERS:
            self.dropped += 1
        self._answers.append((frame, to))
        self._filled.set()

    async def packet(self, frame: bytes, to: Destination) -> None:
        """Queue a peer's packet; waits while the queue is full."""
        while len(self._packets) >= MAX_PACKETS:
            self._drained.clear()
            await self._drained.wait()
        self._packets.append((frame, to))
        self._filled.set()

    async def run(self) -> None:
        """Send for ever."""
        while True:
            if not (self._answers or self._packets):
                self._filled.clear()
                await self._filled.wait()
            if not (self._link.up and self._link.room > 0):
                await self._link.changed()
                continue
            queue = self._answers or self._packets
            frame, to = queue.popleft()
            try:
                await self._link.send(frame, to)
            except LinkError as error:
                self.dropped += 1
                log.debug("not sent: %s", error)
            if queue is self._packets:
                self._drained.set()
