"""Several links of a node as one: the most preferred that works carries everything.

What :class:`qis_edge.core.failover.Chooser` decides is done here: frames go out over the
link in use, and come in over all. A change of the link in use looks to the others like a
new connection: what was under way is asked for or sent again, and gateways take it once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

from qis_edge.core.errors import LinkError
from qis_edge.core.failover import Chooser
from qis_edge.links.base import MAX_FRAME, Cadence, Destination, Link, LinkStats, Received
from qis_edge.links.wake import Wake

log = logging.getLogger(__name__)


def links_of(link: Link) -> tuple[Link, ...]:
    """The links that a link stands for: itself, or those of a switch."""
    return link.links if isinstance(link, Switch) else (link,)


class Switch:
    """See :class:`qis_edge.links.base.Link`.

    :param links: in the order of preference, each with a name of its own.
    :param after: seconds that the link in use may be down before another takes its place.
    :param settle: seconds that a preferred one must have been up to be used again.
    """

    mtu = MAX_FRAME

    def __init__(self, links: Sequence[Link], *, after: float = 30.0, settle: float = 60.0) -> None:
        self.links = tuple(links)
        self.name = "links"
        self._chooser = Chooser(len(links), time.monotonic(), after=after, settle=settle)
        self._connects = 0
        self._seen: tuple[int, int] = (0, 0)  # the link in use, and its connects
        self._changed = Wake()
        self._watchers: list[asyncio.Task[None]] = []
        self._queue: asyncio.Queue[Received | None] = asyncio.Queue(len(links))
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    # - the link in use

    @property
    def current(self) -> Link:
        """The link in use, up or not."""
        return self.links[self._chooser.current]

    @property
    def url(self) -> str:
        """Of the link in use."""
        return self.current.url

    @property
    def fits(self) -> int:
        """Of the link in use."""
        return self.current.fits

    @property
    def cadence(self) -> Cadence:
        """Of the link in use."""
        return self.current.cadence

    @property
    def shared(self) -> bool:
        """Of the link in use."""
        return self.current.shared

    @property
    def up(self) -> bool:
        """Of the link in use."""
        return self.current.up

    @property
    def room(self) -> int:
        """Of the link in use."""
        return self.current.room

    @property
    def not_before(self) -> float:
        """Of the link in use."""
        return self.current.not_before

    def cost(self, size: int) -> float:
        """Of the link in use."""
        return self.current.cost(size)

    @property
    def stats(self) -> LinkStats:
        """Of all together; ``connects`` counts every change of what is in use."""
        total = LinkStats(connects=self._connects, last_error=self.current.stats.last_error)
        for link in self.links:
            stats = link.stats
            for name in ("frames_out", "bytes_out", "frames_in", "bytes_in", "dropped_in"):
                setattr(total, name, getattr(total, name) + getattr(stats, name))
            total.disconnects += stats.disconnects
        return total

    # - what is known of them

    def silent(self) -> None:
        """Nobody answers over the link in use: another is used for a while, if one is up."""
        if len(self.links) > 1 and self.up:
            self._chooser.silent(self._chooser.current, time.monotonic())
            self._look()

    def answered(self, received: Received) -> None:
        """A gateway's authentic word came with this frame."""
        for index, link in enumerate(self.links):
            if link.name == received.link:
                self._chooser.answered(index, time.monotonic())

    def _look(self) -> None:
        """Decide anew, and tell those who wait if something changed."""
        now = time.monotonic()
        before = self._chooser.current
        for index, link in enumerate(self.links):
            (self._chooser.up if link.up else self._chooser.down)(index, now)
        index = self._chooser.choose(now)
        link = self.links[index]
        if index != before:
            log.info("%s is used now, in the place of %s", link.name, self.links[before].name)
        if link.up and (seen := (index, link.stats.connects)) != self._seen:
            self._seen = seen
            self._connects += 1
        self._changed.notify()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (at := self._chooser.next_deadline(now)) is not None and not self._closed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(at - now, self._look)

    async def _watch(self, link: Link) -> None:
        while not self._closed:
            change = link.changed()
            self._look()
            await change

    async def _bring(self, link: Link) -> None:
        with contextlib.suppress(LinkError):  # closed
            while True:
                received = await link.receive()
                await self._queue.put(replace(received, link=link.name))

    # - the link

    async def start(self) -> None:
        """See :class:`qis_edge.links.base.Link`."""
        if self._watchers or self._closed:
            return
        for link in self.links:
            await link.start()
        for link in self.links:
            self._watchers += [
                asyncio.create_task(self._watch(link), name=f"watch {link.name}"),
                asyncio.create_task(self._bring(link), name=f"hear {link.name}"),
            ]

    async def close(self) -> None:
        """See :class:`qis_edge.links.base.Link`."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self.links))
        self._changed.end()
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait(None)

    def changed(self) -> Coroutine[Any, Any, None]:
        """See :class:`qis_edge.links.base.Link`."""
        return self._changed.changed()

    async def send(self, frame: bytes, to: Destination) -> None:
        """See :class:`qis_edge.links.base.Link`."""
        await self.current.send(frame, to)

    async def receive(self) -> Received:
        """See :class:`qis_edge.links.base.Link`."""
        if self._closed and self._queue.empty():
            raise LinkError("closed")
        received = await self._queue.get()
        if received is None:
            raise LinkError("closed")
        return received

    async def done(self, received: Received) -> None:
        """See :class:`qis_edge.links.base.Link`."""
        for link in self.links:
            if link.name == received.link:
                await link.done(received)

    async def listen(self, fingerprints: frozenset[bytes]) -> None:
        """On all of them; see :class:`qis_edge.links.base.Link`."""
        for link in self.links:
            await link.listen(fingerprints)
