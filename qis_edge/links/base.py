"""What a link is: a way to the other side that carries frames and promises nothing.

A link takes frames and yields frames. A frame is one message of
``docs/wire-format.md``, whole (a link that must cut it up puts it together again on the
other side). Nothing a link says is proof of delivery or of who sent a frame: custody
receipts are the one, signatures and MACs the other. Every link, real or double, passes
``qis_edge.testing.links``.
"""

from __future__ import annotations

import enum
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

#: The largest frame of all, in bytes. A link's ``mtu`` is never more.
MAX_FRAME = 512


class Direction(enum.Enum):
    """Where a frame goes, seen from the base station."""

    UP = "up"  # node → every gateway in reach
    DOWN = "down"  # gateway → one node
    PEERS = "peers"  # gateway → every node that listens to an address


class Role(enum.Enum):
    """Which end of a link somebody is."""

    NODE = "node"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to send a frame.

    ``key`` is empty for UP (the link knows its own node), the node's kid (8 bytes) for
    DOWN (empty: to all nodes, where the link claims no senders), the fingerprint (32 bytes)
    for PEERS.
    """

    direction: Direction
    key: bytes = b""


UP = Destination(Direction.UP)


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often a node speaks of its own accord, besides packets. Seconds.

    :param hello: between the first two hellos; then twice that, and so on.
    :param ungreeted: between hellos at most, while no gateway greets.
    :param greeted: between hellos after a greeting.
    :param patience: for the answer to a request, the first time.
    :param longest_patience: and at most.
    :param jitter: hellos come later by up to this share, at random; the first within
        ``hello`` seconds, where it is more than 0: many begin at the same moment.
    :param pace: how many times as long other questions wait for an answer.
    """

    hello: float = 1.0
    ungreeted: float = 60.0
    greeted: float = 600.0
    patience: float = 30.0
    longest_patience: float = 600.0
    jitter: float = 0.0
    pace: float = 1.0


#: Where a few dozen bytes cost nothing.
BROKER_CADENCE = Cadence()
#: Where each costs half a second of a channel that all share.
MESH_CADENCE = Cadence(15.0, 1800.0, 6 * 3600.0, 300.0, 2 * 3600.0, 0.5, 3.0)


def down(kid: bytes) -> Destination:
    """To the node with this kid."""
    return Destination(Direction.DOWN, kid)


def peers(fingerprint: bytes) -> Destination:
    """To every node that listens to this fingerprint."""
    return Destination(Direction.PEERS, fingerprint)


@dataclass(frozen=True, slots=True)
class Question:
    """A node asks a gateway what became of packets; not authenticated.

    :param stores: (kid, store): nearly always one.
    :param sequences: ascending.
    :param token: the link's own.
    """

    stores: tuple[tuple[bytes, bytes], ...]
    sequences: tuple[int, ...]
    token: object = None


@dataclass(frozen=True, slots=True)
class Received:
    """A frame that came in.

    ``claimed`` is the kid that the link's addressing names (an MQTT topic), or ``None``
    where it names none (a radio): never proof. ``token`` goes back to :meth:`Link.done`.
    ``link`` names the link it came over, where several are one. ``question``: ``data`` is
    empty, and receipts about all that came before are wanted (:class:`Polled`).
    """

    data: bytes
    direction: Direction
    claimed: bytes | None = None
    token: object = None
    link: str = ""
    question: Question | None = None


@dataclass(slots=True)
class LinkStats:
    """What a link did since it was made; frames and bytes of frames, not of transport."""

    frames_out: int = 0
    bytes_out: int = 0
    frames_in: int = 0
    bytes_in: int = 0
    dropped_in: int = 0  # came in while the receiver's queue was full, or oversized
    connects: int = 0
    disconnects: int = 0
    last_error: str | None = None
    extra: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class Link(Protocol):
    """The interface. All coroutines are of one event loop; none blocks it.

    A link may carry what nobody sent (a broker has other users, a channel has
    neighbours): frames longer than ``mtu`` and frames on addresses that are not ours are
    dropped and counted in ``stats.dropped_in``; what comes out of :meth:`receive` is still
    to be parsed and verified.
    """

    name: str
    #: Largest message in bytes that it carries (512 unless the medium says less).
    mtu: int

    @property
    def url(self) -> str:
        """Where it leads, for people: no password in it."""
        ...

    @property
    def fits(self) -> int:
        """Largest packet that it carries well: longer ones cost much more (on a mesh: what
        one radio frame takes)."""
        ...

    @property
    def cadence(self) -> Cadence:
        """How often a node speaks of its own accord here."""
        ...

    @property
    def shared(self) -> bool:
        """Whether everybody hears everything (a radio): much of what comes in is meant for
        others."""
        ...

    @property
    def stats(self) -> LinkStats:
        """What it did since it was made."""
        ...

    @property
    def up(self) -> bool:
        """Whether frames can be sent now."""
        ...

    @property
    def room(self) -> int:
        """How many frames it takes now (back-pressure); 0 while it is down."""
        ...

    @property
    def not_before(self) -> float:
        """Monotonic seconds before which nothing should be sent (0: at once)."""
        ...

    def cost(self, size: int) -> float:
        """What sending a message of ``size`` bytes costs, in the medium's own unit
        (bytes on the wire for MQTT, milliseconds of airtime on a mesh). Convex or
        stepped, never decreasing; policy compares costs of one link only."""
        ...

    async def start(self) -> None:
        """Begin to connect, and keep connecting for ever with backoff. Returns at once.

        :raises LinkError: the settings can never work.
        """
        ...

    async def close(self) -> None:
        """Say goodbye and stop, within a few seconds whatever the medium does. Idempotent.
        A :meth:`receive` that waits then raises."""
        ...

    async def send(self, frame: bytes, to: Destination) -> None:
        """Hand one frame to the medium. Returns when the medium's queue has it; what the
        link still holds when it goes down is forgotten (custody above sends it again).

        :raises LinkError: the link is down, has no room, or the frame is over ``mtu``.
        :raises UsageError: this end of the link cannot send there.
        """
        ...

    async def receive(self) -> Received:
        """The next frame that came in. Cancellation safe.

        :raises LinkError: the link was closed and nothing is left.
        """
        ...

    async def done(self, received: Received) -> None:
        """What ``received`` carried is durable or disposed of: the medium may forget it.

        Call it once for each frame, in any order; until then the frame counts against the
        link's receive window, and a window of frames that are never done stops the link.
        Again, or for a frame of an earlier connection, it does nothing.
        """
        ...

    def changed(self) -> Coroutine[Any, Any, None]:
        """Wait until :attr:`up` or :attr:`room` may have changed since *this call* (not
        since the first ``await``, so a task made of it misses nothing). Cancellation safe;
        a closed link's returns at once."""
        ...

    async def listen(self, fingerprints: frozenset[bytes]) -> None:
        """Nodes: hear the PEERS traffic of exactly these fingerprints (32 bytes each)
        from now on and after each reconnect. A no-op where everything is heard."""
        ...


@runtime_checkable
class Polled(Link, Protocol):
    """A gateway's link on which nodes ask for receipts, and none goes out unasked."""

    def reply(self, question: Question, receipts: Sequence[bytes]) -> None:
        """Answer a question; what was received before it is durable.

        :param receipts: sealed, at most 190 bytes each; none, if nothing is held.
        """
        ...

    def forget(self, packet_id: bytes) -> None:
        """This packet was not taken into custody: bring it again when it comes again."""
        ...


def link_status(link: Link) -> dict[str, object]:
    """A link as ``status --json`` shows it."""
    stats = link.stats
    return {
        "name": link.name,
        "url": link.url,
        "up": link.up,
        "connects": stats.connects,
        "frames_in": stats.frames_in,
        "frames_out": stats.frames_out,
        "bytes_in": stats.bytes_in,
        "bytes_out": stats.bytes_out,
        "dropped_in": stats.dropped_in,
        "last_error": stats.last_error,
        **({"extra": dict(stats.extra)} if stats.extra else {}),
    }
