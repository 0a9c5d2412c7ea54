"""Frames on a serial line: type, address, message and CRC-32, in COBS, between zeros.

The format's home is ``docs/serial.md``. Nothing here does I/O.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from qis_edge.core import cobs
from qis_edge.core.errors import Refused, UsageError
from qis_edge.links.base import MAX_FRAME, Destination, Direction

KID = 8
#: Leading bytes of a fingerprint that address PEERS, as many as in an MQTT topic.
ADDRESS = 16
_FINGERPRINT = 32
#: The first byte of a frame, where it goes, and the bytes of the address that follows. The
#: high half of the type is magic and version in one.
_TYPES = {
    0xC0: (Direction.UP, 0),
    0xC1: (Direction.DOWN, KID),
    0xC2: (Direction.PEERS, ADDRESS),
    0xC3: (Direction.DOWN, 0),  # to every node on the line
}
_CODES = {what: code for code, what in _TYPES.items()}
_CRC = 4
#: The longest frame, between its zeros.
_LONGEST = cobs.encoded_size(1 + ADDRESS + MAX_FRAME + _CRC)


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands between two zeros.

    :param address: nothing (UP, and DOWN to all nodes), a kid (DOWN), the first 16 bytes of a
        fingerprint (PEERS).
    :param message: it may be longer than a message can be, by a few bytes.
    """

    direction: Direction
    address: bytes
    message: bytes


def address_of(to: Destination) -> bytes:
    """What addresses a destination in a frame. DOWN without a kid goes to all nodes: the answer
    to one that did not say who it is.

    :raises UsageError: its key has the wrong length.
    """
    possible = {Direction.UP: (0,), Direction.DOWN: (KID, 0), Direction.PEERS: (_FINGERPRINT,)}
    if len(to.key) not in possible[to.direction]:
        raise UsageError(f"{len(to.key)} bytes are no key for {to.direction.value}", field="to")
    return to.key[:ADDRESS]


def encode(message: bytes, to: Destination) -> bytes:
    """A frame as it is written, its two zeros included.

    :raises UsageError: the message is over 512 bytes, or the key has the wrong length.
    """
    if len(message) > MAX_FRAME:
        raise UsageError(f"{len(message)} bytes, at most {MAX_FRAME}", field="message")
    address = address_of(to)
    content = bytes([_CODES[to.direction, len(address)]]) + address + message
    return b"\0" + cobs.encode(content + zlib.crc32(content).to_bytes(_CRC, "big")) + b"\0"


def wire_size(size: int, direction: Direction) -> int:
    """The most bytes that a message of ``size`` bytes is on the line."""
    address = max(length for way, length in _TYPES.values() if way is direction)
    return 2 + cobs.encoded_size(1 + address + size + _CRC)


class Deframer:
    """Bytes in, frames out; whatever comes, it is right again from the next zero on.

    It keeps at most one frame's bytes.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skipping = False  # what came since the last zero is too long for a frame
        #: Bytes that were part of no frame.
        self.garbage = 0
        #: Frames whose CRC is wrong.
        self.bad_crc = 0
        #: Frames that arrived whole and are of no type that we know.
        self.unknown = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes."""
        found = []
        *ended, rest = data.split(b"\0")
        for part in ended:
            self._add(part)
            if (frame := self._end()) is not None:
                found.append(frame)
        self._add(rest)
        return found

    def _add(self, part: bytes) -> None:
        if self._skipping:
            self.garbage += len(part)
        elif len(self._buffer) + len(part) > _LONGEST:
            self.garbage += len(self._buffer) + len(part)
            self._buffer.clear()
            self._skipping = True
        else:
            self._buffer += part

    def _end(self) -> Frame | None:
        encoded = bytes(self._buffer)
        self._buffer.clear()
        self._skipping = False
        if not encoded:
            return None
        try:
            whole = cobs.decode(encoded)
        except Refused:
            whole = b""
        if len(whole) < 1 + _CRC:
            self.garbage += len(encoded)
            return None
        content = whole[:-_CRC]
        if zlib.crc32(content).to_bytes(_CRC, "big") != whole[-_CRC:]:
            self.bad_crc += 1
            return None
        return self._parse(content)

    def _parse(self, content: bytes) -> Frame | None:
        direction, length = _TYPES.get(content[0], (None, 0))
        if direction is None or len(content) < 1 + length:
            self.unknown += 1
            return None
        return Frame(direction, content[1 : 1 + length], content[1 + length :])
