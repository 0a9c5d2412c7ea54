"""What an engine must do that is a log or a notifier and cannot look up by address.

A feed publishes packets and is read from a position; nothing else. Joined with a local
view it is a routing engine: ``ViewEngine(feed, context)`` in :mod:`gateway.routing.view`
answers ``query`` and ``follow``, and passes the feed's packets through ``Context.accept``.
``gateway.testing.FeedConformance`` is the suite for feeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from gateway.routing.base import Entry

#: A place in a feed's log: opaque, the feed's own. ``b""`` is the beginning.
Position = bytes
#: The most bytes of a position: it is kept with the view.
MAX_POSITION = 4096

#: About how much one chunk has at most: packets, and bytes of them.
CHUNK_PACKETS = 1000
CHUNK_BYTES = 512 * 1024
#: About how long ``fetch`` waits where there is nothing yet; seconds.
WAIT = 1.0


class Chunk(NamedTuple):
    """Part of a feed's log.

    :param raws: what was published, oldest first; whatever else somebody wrote there.
    :param position: behind all of ``raws``, where the next ``fetch`` goes on.
    :param end: whether there is nothing more now. Where the feed cannot tell, it says
        True once a ``fetch`` has waited in vain.
    """

    raws: tuple[bytes, ...]
    position: Position
    end: bool


class Feed(Protocol):
    """A log of packets, shared by gateways.

    It may give a packet more than once, or not at all to whoever published it until that one
    has connected anew, and need not order what several publish at once;
    what one ``publish`` took comes in its order as far as the engine's page promises.
    ``publish`` and ``fetch`` are called concurrently, each by one task at a time. All
    coroutines are of one event loop, none blocks it, and every wait can be cancelled
    without losing anything. Errors are ``RoutingError``, after which the same call may be
    made again: a feed connects anew by itself.
    """

    #: Canonical and without secrets: ``str(EngineUrl)``.
    url: str

    @property
    def incarnation(self) -> str:
        """Changes when the log has been lost, as soon as the feed knows; ``""`` where it
        cannot tell. Known after ``open``."""
        ...

    async def open(self) -> None:
        """Connect, make what is missing. Idempotent.

        :raises RoutingError: a refused login, a wrong address, or it is away.
        """
        ...

    async def close(self) -> None:
        """Let go. Idempotent; it may be opened again."""
        ...

    async def publish(self, entries: Sequence[Entry]) -> None:
        """Append these in their order; durable when it returns, in the sense of the
        engine's page. All or some may be there after an error: a repeat is safe.

        :raises RoutingError: it is away, within some seconds.
        """
        ...

    async def fetch(self, after: Position) -> Chunk:
        """The next chunk behind a position, at most about :data:`CHUNK_PACKETS` and
        :data:`CHUNK_BYTES`. Where there is nothing it waits for about :data:`WAIT`.

        A position that it does not know (a lost or trimmed log, garbage) is the beginning
        of what is still there. Positions survive ``close``, and other clients can use
        them.

        :raises RoutingError: it is away.
        """
        ...

    async def size(self) -> int | None:
        """About how many packets it holds; ``None`` where it cannot say cheaply.

        :raises RoutingError: it is away.
        """
        ...


@runtime_checkable
class ForgetfulFeed(Feed, Protocol):
    """A feed whose medium forgets what is not published again, so that the view is where
    packets are kept: what is deposited is on its disk when the deposit returns, and the view
    publishes again what it has until it expires."""

    #: Seconds after which a packet is to be published again.
    renewal: float

    async def renew(self, entries: Sequence[Entry]) -> None:
        """As ``publish``, at leisure; called while that runs.

        :raises RoutingError: it is away.
        """
        ...
