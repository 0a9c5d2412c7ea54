"""What a link is: a way to the other side that carries frames and promises nothing.

A link takes frames and yields frames. A frame is one message of
``docs/wire-format.md``, whole (a link that must cut it up puts it together again on the
other side). Nothing a link says is proof of delivery or of who sent a frame: custody
receipts are the one, signatures and MACs the other. Every link, real or double, passes
``qis_edge.testing.links``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


class Direction(enum.Enum):
    """Where a frame goes, seen from the base station."""

    UP = "up"  # node → every gateway in reach
    DOWN = "down"  # gateway → one node
    PEERS = "peers"  # gateway → every node that listens to an address


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to send a frame.

    ``key`` is empty for UP (the link knows its own node), the node's kid (8 bytes) for
    DOWN, the fingerprint (32 bytes) for PEERS.
    """

    direction: Direction
    key: bytes = b""


UP = Destination(Direction.UP)


def down(kid: bytes) -> Destination:
    """To the node with this kid."""
    return Destination(Direction.DOWN, kid)


def peers(fingerprint: bytes) -> Destination:
    """To every node that listens to this fingerprint."""
    return Destination(Direction.PEERS, fingerprint)


@dataclass(frozen=True, slots=True)
class Received:
    """A frame that came in.

    ``claimed`` is the kid that the link's addressing names (an MQTT topic), or ``None``
    where it names none (a radio): never proof. ``token`` goes back to :meth:`Link.done`.
    """

    data: bytes
    direction: Direction
    claimed: bytes | None = None
    token: object = None


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
    """The interface. All coroutines are of one event loop; none blocks it."""

    name: str
    #: Largest message in bytes that it carries (512 unless the medium says less).
    mtu: int
    stats: LinkStats

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
        """Say goodbye and stop. Idempotent."""
        ...

    async def send(self, frame: bytes, to: Destination) -> None:
        """Hand one frame to the medium. Returns when the medium's queue has it.

        :raises LinkError: the link is down, has no room, or the frame is over ``mtu``.
        """
        ...

    async def receive(self) -> Received:
        """The next frame that came in. Cancellation safe."""
        ...

    async def done(self, received: Received) -> None:
        """What ``received`` carried is durable or disposed of: the medium may forget it.
        A token of an earlier connection is ignored."""
        ...

    async def changed(self) -> None:
        """Wait until :attr:`up` or :attr:`room` may have changed. Cancellation safe."""
        ...

    async def listen(self, fingerprints: frozenset[bytes]) -> None:
        """Nodes: hear the PEERS traffic of exactly these fingerprints (32 bytes each)
        from now on and after each reconnect. A no-op where everything is heard."""
        ...
