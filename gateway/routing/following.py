"""``follow`` for engines whose packets lie in a log with rising positions.

The engine reads slices of its log and says when there may be more; what a subscription
promises (no gap, no duplicate, exact changes of interest, live after replay) is here, and
so are its cursors: the log's token, then the position.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

from gateway.routing.base import ALL_BITS, Batch, Cursor, Entry, Interest

#: Bytes of a cursor that name the log; the position behind them has 1 to 8.
TOKEN = 4


class Slice(NamedTuple):
    """Part of a log.

    :param entries: those of interest, in order.
    :param position: how far was looked; the next slice begins after it.
    :param end: whether there was nothing after ``position``.
    :param version: of the log when it was read; goes back into :meth:`Log.changed`.
    """

    entries: tuple[Entry, ...]
    position: int
    end: bool
    version: int


class Coverage:
    """Interests, ready to be asked about many addresses: a follower may have thousands."""

    def __init__(self, interests: frozenset[Interest]) -> None:
        self._prefixes: dict[int, set[int]] = {}
        for interest in interests:
            shift = ALL_BITS - interest.bits
            known = self._prefixes.setdefault(shift, set())
            known.add(int.from_bytes(interest.fingerprint) >> shift)

    @property
    def everything(self) -> bool:
        """Whether every address is covered."""
        return ALL_BITS in self._prefixes

    def __contains__(self, fingerprint: bytes) -> bool:
        number = int.from_bytes(fingerprint)
        return any(number >> shift in known for shift, known in self._prefixes.items())


class Log(Protocol):
    """What an engine does for its subscriptions."""

    async def begin(self, after: Cursor | None) -> int:
        """The position of a cursor; of the beginning where it is unknown."""
        ...

    def cursor_at(self, position: int) -> Cursor:
        """The cursor of a position that :meth:`begin` or :meth:`read` gave."""
        ...

    async def read(self, interests: frozenset[Interest], after: int) -> Slice:
        """A bounded slice; without entries where nothing in it was of interest."""
        ...

    async def changed(self, version: int) -> None:
        """Wait until the log may be of another version. May return for no reason."""
        ...


class LogSubscription:
    """A :class:`gateway.routing.base.Subscription` of a :class:`Log`.

    While it replays, the next slice is read ahead, from the second batch on: who takes one
    batch alone, as a hub does for a poll, has nothing read in vain. A read outlives a wait
    that is cancelled, and goes to the next one.
    """

    def __init__(
        self,
        log: Log,
        interests: frozenset[Interest],
        after: Cursor | None,
        closed: Callable[[LogSubscription], None],
    ) -> None:
        """:param closed: called once, when the subscription is closed."""
        self._log = log
        self._interests = interests
        self._after = after
        self._position: int | None = None
        self._live = False
        self._done = asyncio.Event()
        self._closed = closed
        self._reading: asyncio.Task[Slice] | None = None
        self._took_one = False

    @property
    def cursor(self) -> Cursor:
        """See :class:`gateway.routing.base.Subscription`."""
        if self._position is None:
            return self._after or b""
        return self._log.cursor_at(self._position)

    def update(self, interests: frozenset[Interest]) -> None:
        """See :class:`gateway.routing.base.Subscription`."""
        self._interests = interests
        self._drop()

    async def close(self) -> None:
        """See :class:`gateway.routing.base.Subscription`."""
        self.stop()

    def stop(self) -> None:
        """:meth:`close`, at once."""
        if not self._done.is_set():
            self._done.set()
            self._drop()
            self._closed(self)

    def __aiter__(self) -> LogSubscription:
        return self

    async def __anext__(self) -> Batch:
        """The next batch. The position moves only when nothing is awaited any more before
        the batch is returned, so a cancelled wait loses nothing."""
        while not self._done.is_set():
            if self._position is None:
                self._position = await self._log.begin(self._after)
                continue
            reading = self._reading = self._reading or self._read(self._position)
            if not reading.done():
                await asyncio.wait([reading])
            if self._reading is not reading:
                continue  # closed, or of interests of before
            self._reading = None
            found = reading.result()
            self._position = found.position
            caught_up = found.end and not self._live
            self._live = self._live or found.end
            if not found.end and self._took_one:
                self._reading = self._read(found.position)
            if found.entries or caught_up:
                self._took_one = True
                return Batch(found.entries, self.cursor, self._live)
            if found.end:
                await self._wait(found.version)
        raise StopAsyncIteration

    def _read(self, after: int) -> asyncio.Task[Slice]:
        reading = asyncio.create_task(self._log.read(self._interests, after))
        reading.add_done_callback(_seen)
        return reading

    def _drop(self) -> None:
        """Nobody wants what is being read."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    async def _wait(self, version: int) -> None:
        """Until the log changed or the subscription was closed."""
        waits = [
            asyncio.ensure_future(self._log.changed(version)),
            asyncio.ensure_future(self._done.wait()),
        ]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in done:
                wait.result()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


def _seen(reading: asyncio.Task[Slice]) -> None:
    """Of a read that nobody waits for any more, nobody needs to hear."""
    if not reading.cancelled():
        reading.exception()


class LogEngine(ABC):
    """The part of an engine that has a log: what follows it, and its cursors."""

    def __init__(self) -> None:
        self._following: set[LogSubscription] = set()
        #: What the log is known by: 8 random bytes, or none before it was ever open.
        self._token = b""

    @abstractmethod
    def _ready(self) -> object:
        """:raises RoutingError: it is not open."""

    @abstractmethod
    async def _last(self) -> int:
        """The log's last position. :raises RoutingError: it is not open, or away."""

    @abstractmethod
    async def read(self, interests: frozenset[Interest], after: int) -> Slice:
        """See :class:`Log`."""

    @abstractmethod
    async def changed(self, version: int) -> None:
        """See :class:`Log`."""

    @property
    def incarnation(self) -> str:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        return self._token.hex()

    def follow(
        self, interests: frozenset[Interest], after: Cursor | None = None
    ) -> LogSubscription:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        self._ready()
        subscription = LogSubscription(self, interests, after, self._following.discard)
        self._following.add(subscription)
        return subscription

    def _stop_following(self) -> None:
        for subscription in list(self._following):
            subscription.stop()

    async def cursor(self) -> Cursor:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        return self.cursor_at(await self._last())

    def cursor_at(self, position: int) -> Cursor:
        """See :class:`Log`."""
        size = max((position.bit_length() + 7) // 8, 1)
        return self._token[:TOKEN] + position.to_bytes(size)

    async def begin(self, after: Cursor | None) -> int:
        """See :class:`Log`. 0 where the cursor is of another log, or of a future that this
        one has lost."""
        if not after or after[:TOKEN] != self._token[:TOKEN] or len(after) > TOKEN + 8:
            return 0
        position = int.from_bytes(after[TOKEN:])
        return position if position <= await self._last() else 0
