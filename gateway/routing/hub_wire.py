"""What a hub and its clients say to each other: bodies of requests and answers.

Deterministic CBOR, as everywhere here. Each side takes the other for a stranger: whatever
is not exactly as described is refused. ``docs/routing/https.md`` has the table.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from gateway.routing.base import ALL_BITS, MAX_CURSOR, Cursor, Interest
from qis_edge.core.cbor import dumps, loads
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.packet import FINGERPRINT_SIZE, MAX_PACKET

#: Of this protocol; part of the paths.
VERSION = 1
#: The content type of all bodies but those of errors, which are text.
CBOR = "application/cbor"

#: Packets of one deposit, and bytes of any request.
MAX_DEPOSIT = 1000
MAX_BODY = 1 << 20
#: Packets that one answer has at most, whatever was asked.
MAX_LIMIT = 10_000
MAX_ANSWER = MAX_LIMIT * (MAX_PACKET + 3) + 4096
#: Interests of one follower; components of a vector.
MAX_INTERESTS = 20_000
MAX_VECTOR = 4096
#: Seconds that a hub holds a poll back at most while there is nothing.
MAX_WAIT = 30
#: Characters of an incarnation, of a detail.
MAX_INCARNATION = 64
MAX_DETAIL = 500

_FAR = (1 << 63) - 1  # numbers of SQLite, and of most engines


class Question(NamedTuple):
    """A query, as ``RoutingLayer.query`` takes it."""

    interest: Interest
    limit: int
    since: int | None = None
    confidence: int = 0
    vector: Sequence[float] | None = None

    def encode(self) -> bytes:
        """As a request's body."""
        return dumps(
            {
                "interest": _pair(self.interest),
                "limit": min(self.limit, MAX_LIMIT),
                "since": None if self.since is None else min(max(self.since, 0), _FAR),
                "confidence": min(max(self.confidence, 0), 101),
                "vector": None
                if self.vector is None
                else struct.pack(f"<{len(self.vector)}d", *self.vector),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Question:
        """:raises Refused: it is no query."""
        found = _Record(data, "query")
        return cls(
            _interest(found["interest"]),
            found.number("limit", MAX_LIMIT),
            found.optional("since"),
            found.number("confidence", 101),
            _vector(found["vector"]),
        )


class Poll(NamedTuple):
    """One step of a follow.

    :param wait: seconds to hold the answer back while there is nothing; 0 while replaying.
    """

    interests: frozenset[Interest]
    after: Cursor | None
    wait: int

    def encode(self) -> bytes:
        """As a request's body."""
        return dumps(
            {
                "interests": sorted(_pair(interest) for interest in self.interests),
                "after": self.after,
                "wait": self.wait,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Poll:
        """:raises Refused: it is no poll."""
        found = _Record(data, "follow")
        pairs = found["interests"]
        if type(pairs) is not list:
            raise Refused(Reason.TYPE, "interests")
        if len(pairs) > MAX_INTERESTS:
            raise Refused(Reason.BOUNDS, "interests")
        after = None if found["after"] is None else found.octets("after", MAX_CURSOR)
        return cls(frozenset(map(_interest, pairs)), after, found.number("wait", MAX_WAIT))


class Page(NamedTuple):
    """An answer with packets; the last two are of a follow."""

    raws: tuple[bytes, ...]
    cursor: Cursor = b""
    live: bool = True

    def encode(self) -> bytes:
        """As an answer's body."""
        return dumps({"packets": list(self.raws), "cursor": self.cursor, "live": self.live})

    @classmethod
    def decode(cls, data: bytes) -> Page:
        """:raises Refused: it is no such answer."""
        found = _Record(data, "page")
        raws = packets(found["packets"], MAX_LIMIT)
        return cls(raws, found.octets("cursor", MAX_CURSOR), found.flag("live"))


class Receipt(NamedTuple):
    """What became of a deposit.

    :param new: packets that the hub had not.
    :param refused: (place in the deposit, code of the :class:`Reason`) of those that it does
        not take, ever.
    """

    new: int
    refused: tuple[tuple[int, int], ...] = ()

    def encode(self) -> bytes:
        """As an answer's body."""
        return dumps({"new": self.new, "refused": [list(pair) for pair in self.refused]})

    @classmethod
    def decode(cls, data: bytes) -> Receipt:
        """:raises Refused: it is no such answer."""
        found = _Record(data, "receipt")
        refused = found["refused"]
        if type(refused) is not list or len(refused) > MAX_DEPOSIT:
            raise Refused(Reason.TYPE, "refused")
        for pair in refused:
            if type(pair) is not list or [type(item) for item in pair] != [int, int]:
                raise Refused(Reason.TYPE, "refused")
        return cls(found.number("new", MAX_DEPOSIT), tuple((at, why) for at, why in refused))


class Report(NamedTuple):
    """How a hub is, in the sense of ``EngineStatus``."""

    incarnation: str
    ok: bool
    packets: int | None
    detail: str = ""
    behind: bool = False
    refused: int = 0

    def encode(self) -> bytes:
        """As an answer's body."""
        return dumps({"hub": VERSION, **self._asdict(), "detail": self.detail[:MAX_DETAIL]})

    @classmethod
    def decode(cls, data: bytes) -> Report:
        """:raises Refused: it is no such answer."""
        found = _Record(data, "status")
        if found.number("hub", _FAR) != VERSION:
            raise Refused(Reason.BOUNDS, "hub")
        return cls(
            found.text("incarnation", MAX_INCARNATION),
            found.flag("ok"),
            found.optional("packets"),
            found.text("detail", MAX_DETAIL),
            found.flag("behind"),
            found.number("refused", _FAR),
        )


def deposit(raws: Sequence[bytes]) -> bytes:
    """The body of a deposit: nothing but the packets."""
    return dumps(list(raws))


def deposited(data: bytes) -> tuple[bytes, ...]:
    """The packets of such a body, not looked at. :raises Refused: it is none."""
    return packets(loads(data, "deposit", max_depth=2), MAX_DEPOSIT)


def packets(value: object, most: int) -> tuple[bytes, ...]:
    """:raises Refused: that is no array of at most so many byte strings."""
    if type(value) is not list or any(type(raw) is not bytes for raw in value):
        raise Refused(Reason.TYPE, "packets")
    if len(value) > most:
        raise Refused(Reason.BOUNDS, "packets", f"{len(value)} are more than {most}")
    return tuple(value)


class _Record:
    """A map with names. Names that nobody asks for are let through: later versions."""

    def __init__(self, data: bytes, field: str) -> None:
        found = loads(data, field, max_depth=4)
        if type(found) is not dict:
            raise Refused(Reason.TYPE, field)
        self._found: dict[Any, Any] = found

    def __getitem__(self, name: str) -> Any:
        if name not in self._found:
            raise Refused(Reason.TYPE, name, "is missing")
        return self._found[name]

    def number(self, name: str, most: int) -> int:
        value = self[name]
        if type(value) is not int:
            raise Refused(Reason.TYPE, name)
        if not 0 <= value <= most:
            raise Refused(Reason.BOUNDS, name)
        return value

    def optional(self, name: str) -> int | None:
        return None if self[name] is None else self.number(name, _FAR)

    def flag(self, name: str) -> bool:
        value = self[name]
        if type(value) is not bool:
            raise Refused(Reason.TYPE, name)
        return value

    def text(self, name: str, most: int) -> str:
        value = self[name]
        if type(value) is not str:
            raise Refused(Reason.TYPE, name)
        if len(value) > most:
            raise Refused(Reason.BOUNDS, name)
        return value

    def octets(self, name: str, most: int) -> bytes:
        value = self[name]
        if type(value) is not bytes:
            raise Refused(Reason.TYPE, name)
        if len(value) > most:
            raise Refused(Reason.BOUNDS, name)
        return value


def _pair(interest: Interest) -> list[Any]:
    return [interest.fingerprint, interest.bits]


def _interest(value: object) -> Interest:
    if type(value) is not list or [type(item) for item in value] != [bytes, int]:
        raise Refused(Reason.TYPE, "interest")
    fingerprint, bits = value
    if len(fingerprint) != FINGERPRINT_SIZE or not 0 <= bits <= ALL_BITS:
        raise Refused(Reason.BOUNDS, "interest")
    return Interest(fingerprint, bits)


def _vector(value: object) -> tuple[float, ...] | None:
    if value is None:
        return None
    if type(value) is not bytes or len(value) % 8:
        raise Refused(Reason.TYPE, "vector")
    if len(value) > 8 * MAX_VECTOR:
        raise Refused(Reason.BOUNDS, "vector")
    return struct.unpack(f"<{len(value) // 8}d", value)
