"""Mesh frames, read and written. Their home is ``docs/mesh.md``.

A frame's first byte is 0xB0 plus its type: the high half is magic and version in one
(0xB: QIS mesh, version 1), and what begins otherwise is a stranger's. Multi-byte numbers
are big-endian.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from qis_edge.core.checks import require
from qis_edge.core.errors import Reason, Refused

MAGIC = 0xB0
#: Most bytes that a frame may have, and what a sender makes of them by default.
MAX_FRAME = 231
DEFAULT_FRAME = 200
#: Less would not carry the smallest things.
MIN_FRAME = 48
MAX_MESSAGE = 512

CONTEXT_SIZE = 2
TAG_SIZE = 2
MAX_TILES = 16
#: Sequences that one poll can ask about.
POLL_SPAN = 32
#: Partly received things that one answer names.
MAX_PARTS = 8
TILE_HEAD = 2 + TAG_SIZE
POLL_SIZE = 12
NONCE_SIZE = 4
#: A ping without padding; with it, up to :data:`MAX_FRAME`.
PING_SIZE = 1 + NONCE_SIZE
PONG_SIZE = PING_SIZE + 4
MAX_HOPS = 7
#: Whoever hears a ping waits for one of so many slots before it answers.
PONG_SLOTS = 8
_ANSWER_HEAD = 5
#: Quarters of a dB, in one signed byte.
_MOST_SNR = 127
_NO_SIGNAL = b"\x80\x00\x0f"
_NO_HOPS = 0x0F


class Type(enum.IntEnum):
    """The low half of the first byte. ``ASK``: please answer when this one is dealt with."""

    ELIDED = 0
    ELIDED_ASK = 1
    WHOLE = 2
    WHOLE_ASK = 3
    TILE = 4
    TILE_ASK = 5
    POLL = 6
    ANSWER = 7
    MISSING = 8
    UNKNOWN = 9
    BATCH = 10
    PING = 11
    PONG = 12


@dataclass(frozen=True, slots=True)
class Elided:
    """A packet without what its context stands for.

    :param context: 2 bytes.
    :param rest: the rest of the payload, then the signature.
    """

    context: bytes
    rest: bytes
    ask: bool = False

    def encode(self) -> bytes:
        kind = Type.ELIDED_ASK if self.ask else Type.ELIDED
        return bytes((MAGIC | kind,)) + self.context + self.rest


@dataclass(frozen=True, slots=True)
class Whole:
    """A message as it is on every other link."""

    message: bytes
    ask: bool = False

    def encode(self) -> bytes:
        kind = Type.WHOLE_ASK if self.ask else Type.WHOLE
        return bytes((MAGIC | kind,)) + self.message


@dataclass(frozen=True, slots=True)
class Tile:
    """A piece of an ELIDED or WHOLE frame that is too long for the radio.

    :param tag: 2 bytes, the first of SHA-256 of what was cut up.
    :param index: 0..last.
    :param last: index of the last tile, 1..15.
    """

    tag: bytes
    index: int
    last: int
    body: bytes
    ask: bool = False

    def encode(self) -> bytes:
        kind = Type.TILE_ASK if self.ask else Type.TILE
        return bytes((MAGIC | kind,)) + self.tag + bytes((self.index << 4 | self.last,)) + self.body


@dataclass(frozen=True, slots=True)
class Poll:
    """Which of these do you have?

    :param context: of any packet of the store in question.
    :param round: 1..255; the answer repeats it.
    :param sequences: ascending, at least one, within 32 of the first.
    """

    context: bytes
    round: int
    sequences: tuple[int, ...]

    def encode(self) -> bytes:
        base = self.sequences[0]
        bits = sum(1 << sequence - base for sequence in self.sequences)
        numbers = base.to_bytes(4) + bits.to_bytes(4)
        return bytes((MAGIC | Type.POLL,)) + self.context + bytes((self.round,)) + numbers


@dataclass(frozen=True, slots=True)
class Part:
    """Something of which some tiles are here. ``have``: bit *i* is tile *i*."""

    tag: bytes
    have: int

    def encode(self) -> bytes:
        return self.tag + self.have.to_bytes(2)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the other side has of what was asked about: all that it does not name is missing.

    :param context: as it was asked.
    :param round: of the poll; 0 where a frame asked.
    :param parts: of these, only the missing tiles are wanted.
    :param messages: receipts.
    """

    context: bytes
    round: int
    parts: tuple[Part, ...] = ()
    messages: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        head = bytes((MAGIC | Type.ANSWER,)) + self.context + bytes((self.round, len(self.parts)))
        return head + b"".join(part.encode() for part in self.parts) + _packed(self.messages)


@dataclass(frozen=True, slots=True)
class Missing:
    """Of this I have some tiles, and want the others."""

    part: Part

    def encode(self) -> bytes:
        return bytes((MAGIC | Type.MISSING,)) + self.part.encode()


@dataclass(frozen=True, slots=True)
class Unknown:
    """This context says nothing to me: send one of its packets whole."""

    context: bytes

    def encode(self) -> bytes:
        return bytes((MAGIC | Type.UNKNOWN,)) + self.context


@dataclass(frozen=True, slots=True)
class Batch:
    """Several small messages in one frame."""

    messages: tuple[bytes, ...]

    def encode(self) -> bytes:
        return bytes((MAGIC | Type.BATCH,)) + _packed(self.messages)


@dataclass(frozen=True, slots=True)
class Ping:
    """Does somebody hear this?

    :param nonce: 4 bytes; the pong repeats them.
    :param padding: so many zeros follow, to try how far long frames reach.
    """

    nonce: bytes
    padding: int = 0

    def encode(self) -> bytes:
        return bytes((MAGIC | Type.PING,)) + self.nonce + bytes(self.padding)


@dataclass(frozen=True, slots=True)
class Signal:
    """How a radio heard a frame.

    :param snr: dB.
    :param rssi: dBm.
    :param hops: how often the frame was relayed, and what was heard is the last relay;
        ``None``: the radio does not know.
    """

    snr: float
    rssi: int
    hops: int | None = None

    def encode(self) -> bytes:
        """SNR in quarters of a dB and RSSI, each as near as its byte comes, and hops."""
        if not math.isfinite(self.snr):
            return _NO_SIGNAL
        snr = round(min(max(4 * self.snr, -_MOST_SNR), _MOST_SNR))
        rssi = min(max(-self.rssi, 0), 255)
        hops = _NO_HOPS if self.hops is None else min(max(self.hops, 0), MAX_HOPS)
        return bytes((snr & 0xFF, rssi, hops))


@dataclass(frozen=True, slots=True)
class Pong:
    """I do.

    :param nonce: the ping's.
    :param heard: how the ping was heard; ``None``: nobody knows.
    :param left: pings that would be answered at once now, 255 or more as 255.
    :param slot: 0..7; so many airtimes of a pong it waited, so that two who hear a ping
        do not answer at once.
    """

    nonce: bytes
    heard: Signal | None = None
    left: int = 0
    slot: int = 0

    def encode(self) -> bytes:
        snr, rssi, hops = _NO_SIGNAL if self.heard is None else self.heard.encode()
        left = min(max(self.left, 0), 255)
        head = bytes((MAGIC | Type.PONG,)) + self.nonce
        return head + bytes((snr, rssi, self.slot << 4 | hops, left))


Frame = Elided | Whole | Tile | Poll | Answer | Missing | Unknown | Batch | Ping | Pong


def packed_size(messages: Iterable[bytes]) -> int:
    """How many bytes messages take in an answer or a batch."""
    return sum(1 + len(message) for message in messages)


def answer_room(frame: int, parts: int) -> int:
    """How many packed bytes an answer has room for beside so many parts."""
    return frame - _ANSWER_HEAD - parts * (TAG_SIZE + 2)


def _packed(messages: tuple[bytes, ...]) -> bytes:
    require(all(0 < len(m) < 256 for m in messages), "messages", "1..255 bytes each")
    return b"".join(bytes((len(message),)) + message for message in messages)


# --- reading ---------------------------------------------------------------------------


def decode(data: bytes) -> Frame:
    """The frame that these bytes are.

    :raises Refused: MESSAGE (not ours, or a type that we do not know), OVERSIZED,
        TRUNCATED, TRAILING, BOUNDS, NON_CANONICAL; the field says where.
    """
    if not data:
        raise Refused(Reason.TRUNCATED, "frame")
    if len(data) > MAX_FRAME:
        raise Refused(Reason.OVERSIZED, "frame", f"{len(data)} bytes, at most {MAX_FRAME}")
    return _decode(data)


def decode_cut(data: bytes) -> Elided | Whole:
    """The frame that was cut into tiles: longer than a radio carries, of two types only.

    :raises Refused: as :func:`decode`; TYPE, it is of another type.
    """
    frame = _decode(data)
    if not isinstance(frame, Elided | Whole):
        raise Refused(Reason.TYPE, "tiles", "neither a packet nor a message")
    return frame


def _decode(data: bytes) -> Frame:
    read = _READERS.get(data[0] ^ MAGIC)
    if read is None:
        raise Refused(Reason.MESSAGE, "frame", f"begins with {data[:1].hex()}")
    return read(data)


def _elided(data: bytes) -> Elided:
    _at_least(data, 1 + CONTEXT_SIZE + 1, "elided")
    return Elided(data[1:3], data[3:], _asks(data))


def _whole(data: bytes) -> Whole:
    _at_least(data, 2, "whole")
    _at_most(data, 1 + MAX_MESSAGE, "whole")
    return Whole(data[1:], _asks(data))


def _asks(data: bytes) -> bool:
    return bool(data[0] & 1)


def _tile(data: bytes) -> Tile:
    _at_least(data, TILE_HEAD + 1, "tile")
    index, last = data[3] >> 4, data[3] & 0x0F
    if last == 0 or index > last:
        raise Refused(Reason.BOUNDS, "tile.index", f"{index} of 0..{last}")
    return Tile(data[1:3], index, last, data[TILE_HEAD:], _asks(data))


def _poll(data: bytes) -> Poll:
    _exactly(data, POLL_SIZE, "poll")
    if data[3] == 0:
        raise Refused(Reason.BOUNDS, "poll.round", "0 is for frames that ask")
    base, bits = int.from_bytes(data[4:8]), int.from_bytes(data[8:12])
    if not bits & 1:
        raise Refused(Reason.NON_CANONICAL, "poll.sequences", "it must ask about the first")
    if base + bits.bit_length() > 2**32:
        raise Refused(Reason.INTEGER, "poll.sequences", "past 2^32-1")
    sequences = tuple(base + bit for bit in range(POLL_SPAN) if bits >> bit & 1)
    return Poll(data[1:3], data[3], sequences)


def _answer(data: bytes) -> Answer:
    _at_least(data, _ANSWER_HEAD, "answer")
    count = data[4]
    if count > MAX_PARTS:
        raise Refused(Reason.BOUNDS, "answer.parts", f"{count}, at most {MAX_PARTS}")
    end = _ANSWER_HEAD + count * (TAG_SIZE + 2)
    _at_least(data, end, "answer.parts")
    starts = range(_ANSWER_HEAD, end, TAG_SIZE + 2)
    parts = tuple(_part(data, at, "answer.parts") for at in starts)
    return Answer(data[1:3], data[3], parts, _unpacked(data, end, "answer.messages"))


def _missing(data: bytes) -> Missing:
    _exactly(data, 1 + TAG_SIZE + 2, "missing")
    return Missing(_part(data, 1, "missing"))


def _unknown(data: bytes) -> Unknown:
    _exactly(data, 1 + CONTEXT_SIZE, "unknown")
    return Unknown(data[1:])


def _batch(data: bytes) -> Batch:
    _at_least(data, 2, "batch")
    return Batch(_unpacked(data, 1, "batch"))


def _ping(data: bytes) -> Ping:
    _at_least(data, PING_SIZE, "ping")
    if any(data[PING_SIZE:]):
        raise Refused(Reason.NON_CANONICAL, "ping.padding", "not zero")
    return Ping(data[1:PING_SIZE], len(data) - PING_SIZE)


def _pong(data: bytes) -> Pong:
    _exactly(data, PONG_SIZE, "pong")
    slot, hops = data[-2] >> 4, data[-2] & 0x0F
    if slot >= PONG_SLOTS:
        raise Refused(Reason.BOUNDS, "pong.slot", f"{slot} of 0..{PONG_SLOTS - 1}")
    heard = _signal(data[PING_SIZE:-2] + bytes((hops,)))
    return Pong(data[1:PING_SIZE], heard, data[-1], slot)


def _signal(data: bytes) -> Signal | None:
    if data == _NO_SIGNAL:
        return None
    snr = int.from_bytes(data[:1], signed=True)
    if snr < -_MOST_SNR:
        raise Refused(Reason.NON_CANONICAL, "pong.signal", "half known")
    hops = None if data[2] == _NO_HOPS else data[2]
    if hops is not None and hops > MAX_HOPS:
        raise Refused(Reason.BOUNDS, "pong.hops", f"{hops}, at most {MAX_HOPS}")
    return Signal(snr / 4, -data[1], hops)


def _part(data: bytes, at: int, field: str) -> Part:
    have = int.from_bytes(data[at + 2 : at + 4])
    if have == 0:
        raise Refused(Reason.BOUNDS, field, "a part of which nothing is there")
    return Part(data[at : at + TAG_SIZE], have)


def _unpacked(data: bytes, at: int, field: str) -> tuple[bytes, ...]:
    messages = []
    while at < len(data):
        size = data[at]
        if size == 0:
            raise Refused(Reason.BOUNDS, field, "an empty message")
        message = data[at + 1 : at + 1 + size]
        if len(message) < size:
            raise Refused(Reason.TRUNCATED, field)
        messages.append(message)
        at += 1 + size
    return tuple(messages)


def _at_least(data: bytes, size: int, field: str) -> None:
    if len(data) < size:
        raise Refused(Reason.TRUNCATED, field, f"{len(data)} bytes, at least {size}")


def _at_most(data: bytes, size: int, field: str) -> None:
    if len(data) > size:
        raise Refused(Reason.OVERSIZED, field, f"{len(data)} bytes, at most {size}")


def _exactly(data: bytes, size: int, field: str) -> None:
    _at_least(data, size, field)
    if len(data) > size:
        raise Refused(Reason.TRAILING, field)


_READERS: Mapping[int, Callable[[bytes], Frame]] = {
    Type.ELIDED: _elided,
    Type.ELIDED_ASK: _elided,
    Type.WHOLE: _whole,
    Type.WHOLE_ASK: _whole,
    Type.TILE: _tile,
    Type.TILE_ASK: _tile,
    Type.POLL: _poll,
    Type.ANSWER: _answer,
    Type.MISSING: _missing,
    Type.UNKNOWN: _unknown,
    Type.BATCH: _batch,
    Type.PING: _ping,
    Type.PONG: _pong,
}
