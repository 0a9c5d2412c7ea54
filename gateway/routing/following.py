"""``follow`` for engines whose packets lie in a log with rising positions.

The engine reads slices of its log and says when there may be more; what a subscription
promises (no gap, no duplicate, exact changes of interest, live after replay) is here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gateway.routing.base import ALL_BITS, Batch, Cursor, Entry, Interest

if TYPE_CHECKING:
    from collections.abc import Callable


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
    """A :class:`gateway.routing.base.Subscription` of a :class:`Log`."""

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

    @property
    def cursor(self) -> Cursor:
        """See :class:`gateway.routing.base.Subscription`."""
        if self._position is None:
            return self._after or b""
        return self._log.cursor_at(self._position)

    def update(self, interests: frozenset[Interest]) -> None:
        """See :class:`gateway.routing.base.Subscription`."""
        self._interests = interests

    async def close(self) -> None:
        """See :class:`gateway.routing.base.Subscription`."""
        self.stop()

    def stop(self) -> None:
        """:meth:`close`, at once."""
        if not self._done.is_set():
            self._done.set()
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
            interests = self._interests
            found = await self._log.read(interests, self._position)
            if interests is not self._interests or self._done.is_set():
                continue  # the slice was read with interests of before
            self._position = found.position
            caught_up = found.end and not self._live
            self._live = self._live or found.end
            if found.entries or caught_up:
                return Batch(found.entries, self.cursor, self._live)
            if found.end:
                await self._wait(found.version)
        raise StopAsyncIteration

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
