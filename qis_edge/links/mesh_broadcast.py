"""What a mesh link says to whoever listens, and nobody takes custody of: packets, mostly.

They go one after another, in the order in which they came; only when its turn has come is
decided whether a packet is still to be said, and whether it may go without what its context
stands for.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from qis_edge.core.errors import LinkError, Refused
from qis_edge.core.mesh.elision import Context
from qis_edge.core.mesh.framing import DEFAULT_FRAME, Missing
from qis_edge.core.mesh.repeats import Repeats
from qis_edge.core.packet import Packet, unpack
from qis_edge.links.base import Destination, Direction

PACKET = b"\xd2\x84"
#: A context travels whole again after so many seconds, or packets.
WHOLE_EVERY, WHOLE_AFTER = 6 * 3600.0, 12
#: What was on the air is not told to all again within so many seconds, and what went out
#: not even to one who asks for it.
_AGAIN, _JUST = 3600.0, 60.0
_REMEMBERED = 2048
#: Messages that may wait. Beyond it the oldest goes: what is new is worth more.
CAPACITY = 64


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A message, and what it is if it is a packet. ``asked``: by this node, if not empty."""

    raw: bytes
    packet: Packet | None
    asked: bytes


class Broadcasts:
    """The queue.

    :param frame: bytes that a frame may have.
    """

    def __init__(self, *, frame: int = DEFAULT_FRAME) -> None:
        self.dropped = 0  # for want of room
        self._repeats = Repeats(frame=frame)
        self._queue: deque[_Waiting] = deque()
        self._heard: OrderedDict[bytes, float] = OrderedDict()  # on the air, by anybody
        self._sent: OrderedDict[bytes, float] = OrderedDict()  # by us
        self._whole: OrderedDict[tuple[bytes, bytes], tuple[float, int]] = OrderedDict()

    def send(self, message: bytes, to: Destination) -> None:
        """Queue a message; for one node, it is taken to have been asked for.

        :raises LinkError: it looks like a packet, and is none.
        """
        asked = to.key if to.direction is Direction.DOWN else b""
        packet = None
        if message.startswith(PACKET):
            try:
                packet = unpack(message)
            except Refused as refusal:
                raise LinkError(f"no packet: {refusal}") from refusal
            if any(waiting.raw == message for waiting in self._queue):
                return
        self._queue.append(_Waiting(message, packet, asked))
        if len(self._queue) > CAPACITY:
            oldest = next((one for one in self._queue if not one.asked), self._queue[0])
            self._queue.remove(oldest)
            self.dropped += 1

    def heard(self, packet: Packet, now: float) -> None:
        """Somebody sent this packet on the air."""
        _note(self._heard, _name(packet), now)

    def take(self, missing: Missing, now: float) -> bool:
        """Somebody misses tiles: as :meth:`Repeats.take`."""
        return self._repeats.take(missing, now)

    def unknown(self, context: bytes, now: float) -> None:
        """A gateway does not know this context: it goes whole the next time, if it has not
        just done so."""
        at, _ = self._whole.get((context, b""), (now, 0))
        if now - at >= _JUST:
            del self._whole[context, b""]

    def next(self, now: float) -> bytes | None:
        """The next frame, or ``None``. It is taken to go on air now."""
        while (frame := self._repeats.next(now)) is None and self._queue:
            self._begin(self._queue.popleft(), now)
        return frame

    def _begin(self, waiting: _Waiting, now: float) -> None:
        packet = waiting.packet
        if packet is None:
            self._repeats.send(waiting.raw, now)
            return
        seen, within = (self._sent, _JUST) if waiting.asked else (self._heard, _AGAIN)
        if now - seen.get(_name(packet), float("-inf")) < within:
            return
        if self._is_due_whole((Context.of(packet).name, waiting.asked), now):
            self._repeats.send(packet.raw, now)
        else:
            self._repeats.send_elided(packet, now)
        self.heard(packet, now)
        _note(self._sent, _name(packet), now)

    def _is_due_whole(self, key: tuple[bytes, bytes], now: float) -> bool:
        """Who asks may be new here, and know less than those who listened all the time."""
        at, count = self._whole.get(key, (float("-inf"), 0))
        due = now - at >= WHOLE_EVERY or count >= WHOLE_AFTER
        self._whole[key] = (now, 1) if due else (at, count + 1)
        self._whole.move_to_end(key)
        if len(self._whole) > _REMEMBERED:
            self._whole.popitem(last=False)
        return due

    def __len__(self) -> int:
        return len(self._queue) + len(self._repeats)


def _name(packet: Packet) -> bytes:
    return packet.kid + packet.id  # an id is of what was signed, whoever signed it


def _note(seen: OrderedDict[bytes, float], name: bytes, now: float) -> None:
    seen[name] = now
    seen.move_to_end(name)
    if len(seen) > _REMEMBERED:
        seen.popitem(last=False)
