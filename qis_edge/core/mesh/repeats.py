"""Sending what nobody takes custody of: credentials, requests, lists, packets going down.

Small messages share a frame, long ones are cut into tiles, and whoever misses tiles says
so: they are kept for a while, and only the missing ones go again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from qis_edge.core.checks import require
from qis_edge.core.errors import DoesNotFit
from qis_edge.core.mesh.elision import elide
from qis_edge.core.mesh.fragments import cut
from qis_edge.core.mesh.framing import (
    DEFAULT_FRAME,
    MAX_FRAME,
    MAX_MESSAGE,
    MIN_FRAME,
    Batch,
    Missing,
    Tile,
    Whole,
    packed_size,
)
from qis_edge.core.packet import Packet

#: Cut-up messages that are kept for repetition, and for how long.
_KEPT = 16
_KEEP = 600.0
#: Frames that may wait; more are not taken.
_QUEUE = 64
#: A message's tiles go again so many times its own number at most, whoever asks.
_REPEATS = 4


@dataclass(slots=True)
class _Kept:
    """A message that was cut up. ``left``: how many of its tiles may still go again."""

    at: float
    tiles: tuple[Tile, ...]
    left: int


class Repeats:
    """A queue of messages that becomes frames.

    :param frame: bytes that a frame may have.
    :param guard: seconds within which a tile does not go twice: several listeners may
        miss the same one.
    """

    def __init__(self, *, frame: int = DEFAULT_FRAME, guard: float = 10.0) -> None:
        require(MIN_FRAME <= frame <= MAX_FRAME, "frame", f"must be {MIN_FRAME}..{MAX_FRAME}")
        self._frame = frame
        self._guard = guard
        self._messages: deque[bytes] = deque()
        self._frames: deque[bytes] = deque()
        self._tiles: deque[Tile] = deque()
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._went: dict[tuple[bytes, int], float] = {}

    @property
    def room(self) -> int:
        """How many more messages it takes."""
        return max(0, _QUEUE - len(self._messages) - len(self._frames) - len(self._tiles))

    def send(self, message: bytes, now: float) -> None:
        """Queue a message of any kind, 1..512 bytes.

        :raises DoesNotFit: empty, too long, or the queue is full.
        """
        if not 0 < len(message) <= MAX_MESSAGE:
            raise DoesNotFit(f"{len(message)} bytes, not 1..{MAX_MESSAGE}", field="message")
        self._check_room()
        if len(message) < self._frame:
            self._messages.append(message)
        else:
            self._cut(Whole(message).encode(), now)

    def send_elided(self, packet: Packet, now: float) -> None:
        """Queue a packet whose context its listeners know (they heard it whole lately).

        :raises DoesNotFit: the queue is full.
        """
        self._check_room()
        elided = elide(packet)
        data = elided.encode() if elided else Whole(packet.raw).encode()
        if len(data) <= self._frame:
            self._frames.append(data)
        else:
            self._cut(data, now)

    def _check_room(self) -> None:
        if not self.room:
            raise DoesNotFit(f"{_QUEUE} messages wait already", field="message")

    def _cut(self, data: bytes, now: float) -> None:
        tiles = cut(data, self._frame)
        self._kept[tiles[0].tag] = _Kept(now, tiles, _REPEATS * len(tiles))
        self._kept.move_to_end(tiles[0].tag)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        self._tiles.extend(tiles)

    def take(self, missing: Missing, now: float) -> bool:
        """Somebody misses tiles: queue those again; whether they are ours."""
        self._expire(now)
        kept = self._kept.get(missing.part.tag)
        if kept is None:
            return False
        waiting = set(self._tiles)
        for tile in kept.tiles:
            recent = now - self._went.get((tile.tag, tile.index), float("-inf")) < self._guard
            there = missing.part.have >> tile.index & 1
            if kept.left > 0 and not (there or recent or tile in waiting):
                kept.left -= 1
                self._tiles.append(tile)
        return True

    def _expire(self, now: float) -> None:
        for tag in [tag for tag, kept in self._kept.items() if now - kept.at >= _KEEP]:
            del self._kept[tag]
        self._went = {key: at for key, at in self._went.items() if now - at < self._guard}

    def next(self, now: float) -> bytes | None:
        """The next frame, or ``None``. It is taken to go on air now."""
        self._expire(now)
        if self._frames:
            return self._frames.popleft()
        if self._messages:
            return self._small()
        if self._tiles:
            tile = self._tiles.popleft()
            self._went[tile.tag, tile.index] = now
            return tile.encode()
        return None

    def _small(self) -> bytes:
        """One message alone, or as many as share a frame."""
        taken = [self._messages.popleft()]
        while self._messages and 1 + packed_size((*taken, self._messages[0])) <= self._frame:
            taken.append(self._messages.popleft())
        return Batch(tuple(taken)).encode() if len(taken) > 1 else Whole(taken[0]).encode()

    def __len__(self) -> int:
        return len(self._messages) + len(self._frames) + len(self._tiles)
