"""What a routing engine is: where packets live by fingerprint.

Three verbs. ``deposit`` is durable and idempotent when it returns. ``query`` answers
with what an address holds. ``follow`` replays everything after a cursor and then goes on
live, without a gap and without a duplicate. Every engine, ours or a third party's,
passes ``gateway.testing.RoutingConformance``.

Packets are opaque to an engine except for :class:`Entry`'s columns. They were verified
before they were deposited. What an engine reads back from a medium that others can write
to is *not* trusted: it goes through :attr:`Context.accept`, which gives an entry or
refuses. An engine that is only a log or a notifier (it cannot look up by address) is
joined with a local store in :attr:`Context.folder` that answers queries and keeps the
cursors; that is its own affair and does not show here.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from qis_edge.core.errors import UsageError
from qis_edge.core.packet import AAD, FINGERPRINT_SIZE, Packet, unpack

if TYPE_CHECKING:
    from gateway.routing.url import EngineUrl

#: Opaque to everyone but the engine that made it. Bytes, at most ``MAX_CURSOR``: nodes
#: keep them and send them over slow links, so engines make them short.
Cursor = bytes
MAX_CURSOR = 64

#: Bits of a fingerprint.
ALL_BITS = 8 * FINGERPRINT_SIZE


class _Columns(NamedTuple):
    raw: bytes
    time: int
    expires: int
    confidence: int = 100
    vector: tuple[float, ...] | None = None


class Entry(_Columns):
    """A packet with what an engine may index. (A tuple, because queries make many; what its
    bytes say in a fixed place is read there when it is asked for.)

    :param raw: the signed packet, at most 512 bytes.
    :param time: unix seconds of its newest outcome: what *newest first* is by.
    :param expires: unix seconds from which it need not be kept.
    :param confidence: of its surest outcome, hundredths, 0..100.
    :param vector: the situation's continuous fields, if any.
    """

    @cached_property
    def id(self) -> bytes:
        """SHA-256 of ``raw``, 32 bytes: what idempotence is by.

        Not the packet's own id, which leaves out who signed: anybody in the fleet can sign
        the payload of another, and his copy must not take the place of the other's.
        """
        return hashlib.sha256(self.raw).digest()

    @property
    def kid(self) -> bytes:
        """Whose it says it is, 8 bytes; true once the signature was verified."""
        return framed_kid(self.raw)

    @property
    def fingerprint(self) -> bytes:
        """Its address, 32 bytes."""
        return framed_fingerprint(self.raw)

    @classmethod
    def of(cls, packet: Packet) -> Entry:
        """The entry of a packet at hand.

        :raises Refused: its columns are malformed (of a packet that was opened lazily).
        """
        return cls(
            packet.raw,
            packet.last_time,
            packet.expires,
            max(packet.rows.confidences),
            packet.extensions.vector,
        )

    @classmethod
    def parse(cls, raw: bytes) -> Entry:
        """The entry of bytes from a stranger. Everything but the signature is checked.

        :raises Refused: it is not exactly a packet.
        """
        return cls.of(unpack(raw))


#: Makes an entry of bytes that were read from where others can write, or raises
#: ``Refused``. An engine counts what was refused (``EngineStatus.refused``), drops it and
#: goes on. Called once for each packet, when it is first received. ``UNKNOWN_KEY`` may
#: change once a credential arrives: an engine that keeps a copy keeps such bytes aside,
#: bounded, and tries them again.
Accept = Callable[[bytes], Entry]


@dataclass(frozen=True, slots=True)
class Context:
    """What surrounds an engine.

    :param accept: see :data:`Accept`. A gateway's own checks the signature as well.
    :param folder: where relative paths begin and an engine may keep local files; made
        if missing. ``None``: the working directory, and no files but those it was told.
    :param name: of this gateway, for consumer groups and client ids, ``[a-z0-9-]{1,40}``.
    """

    accept: Accept = Entry.parse
    folder: Path | None = None
    name: str = "gateway"


@dataclass(frozen=True, slots=True)
class Interest:
    """The addresses that share the first ``bits`` of a fingerprint (256: that one; 0: all).

    The bits after them are cleared, so that equal interests compare equal.

    :raises UsageError: the fingerprint has not 32 bytes, or ``bits`` is outside 0..256.
    """

    fingerprint: bytes
    bits: int = ALL_BITS

    def __post_init__(self) -> None:
        """Check, and clear what does not count."""
        if len(self.fingerprint) != FINGERPRINT_SIZE:
            raise UsageError("must have 32 bytes", field="fingerprint")
        if not 0 <= self.bits <= ALL_BITS:
            raise UsageError(f"{self.bits} is outside 0..{ALL_BITS}", field="bits")
        if self.bits < ALL_BITS:
            shift = ALL_BITS - self.bits
            cleared = int.from_bytes(self.fingerprint) >> shift << shift
            object.__setattr__(self, "fingerprint", cleared.to_bytes(FINGERPRINT_SIZE))

    @property
    def last(self) -> bytes:
        """The greatest address within; the least is ``fingerprint`` itself."""
        ones = (1 << (ALL_BITS - self.bits)) - 1
        return (int.from_bytes(self.fingerprint) | ones).to_bytes(FINGERPRINT_SIZE)

    def covers(self, fingerprint: bytes) -> bool:
        """Whether an address lies within."""
        if self.bits == ALL_BITS:
            return fingerprint == self.fingerprint
        shift = ALL_BITS - self.bits
        return int.from_bytes(fingerprint) >> shift == int.from_bytes(self.fingerprint) >> shift


#: Every address.
EVERYTHING = Interest(bytes(FINGERPRINT_SIZE), 0)


@dataclass(frozen=True, slots=True)
class Batch:
    """What ``follow`` yields.

    :param entries: in the order in which the engine took them; none twice.
    :param cursor: where to go on after them.
    :param live: False while it still replays. Once True it stays so; an empty live batch
        says that there was nothing (more) to replay.
    """

    entries: tuple[Entry, ...]
    cursor: Cursor
    live: bool


class Subscription(Protocol):
    """A running ``follow``, for one consumer.

    Iterating raises ``RoutingError`` when the engine is away; follow again from
    :attr:`cursor` then. It ends after :meth:`close`, or when the engine is closed.
    """

    @property
    def cursor(self) -> Cursor:
        """Where it stands: all before was yielded, or was of no interest. At least the
        last batch's; further where what came since did not match. ``b""`` until it knows."""
        ...

    def __aiter__(self) -> AsyncIterator[Batch]:
        """The batches. Cancelling the wait for one loses nothing."""
        ...

    def update(self, interests: frozenset[Interest]) -> None:
        """Follow these instead, from :attr:`cursor` on: no later batch has anything else.
        What a new interest has before the cursor is not replayed: ``query``, asked after
        the update, gives it, and nothing falls in between."""
        ...

    async def close(self) -> None:
        """Stop. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What ``status`` of a gateway shows of one engine.

    :param url: without secrets.
    :param ok: whether it would take a deposit now.
    :param packets: how many it holds; ``None`` where it cannot say cheaply.
    :param size: bytes on this machine's disk, likewise.
    :param refused: packets read back since ``open`` that were not acceptable.
    :param detail: what a person should know, e.g. why it is not ok.
    :param behind: whether it has yet to read what was deposited elsewhere before now, so
        that queries may miss some of it.
    """

    url: str
    ok: bool
    packets: int | None
    size: int | None = None
    refused: int = 0
    detail: str = ""
    behind: bool = False


class RoutingLayer(Protocol):
    """The interface. Engines are made by :func:`gateway.routing.open_engine` from a URL.

    Errors are ``RoutingError``: a refused login or a wrong address from ``open``; an
    engine that is away from any verb, after which the same call may be made again, on
    the same object. All coroutines are of one event loop, and none blocks it.
    """

    #: Without secrets; the same for the same place, so that it can name it in a store.
    url: str

    @property
    def incarnation(self) -> str:
        """Changes when the engine has lost everything that it held (a new file, a new
        cluster), so that a depositor begins anew; ``""`` where it cannot tell. Known
        after ``open``."""
        ...

    async def open(self) -> None:
        """Connect, make what is missing. Idempotent."""
        ...

    async def close(self) -> None:
        """Let go; running subscriptions end. Idempotent. It may be opened again."""
        ...

    async def deposit(self, entries: Sequence[Entry]) -> int:
        """Keep these; returns how many were new. All or nothing where the engine can; a
        repeat of the call is always safe. Entries are taken in their order."""
        ...

    async def query(
        self,
        interest: Interest,
        *,
        limit: int = 50,
        since: int | None = None,
        confidence: int = 0,
        vector: Sequence[float] | None = None,
    ) -> list[Entry]:
        """What an address (or a prefix) holds, at most ``limit``. What this object has
        deposited is seen when ``deposit`` returns, what other gateways did soon after.

        Newest first by ``Entry.time`` (ties: last deposited first). With a vector:
        nearest first by cosine (ties: newest first); entries without one, or with one of
        another length, come last.

        :param since: only entries whose time is at or after it.
        :param confidence: only entries at least this sure, hundredths.
        :raises UsageError: ``limit`` is negative, or the vector has no direction.
        """
        ...

    def follow(self, interests: frozenset[Interest], after: Cursor | None = None) -> Subscription:
        """Everything deposited after the cursor, in order, then live.

        ``None`` is the beginning, and so is a cursor that the engine does not know (of
        another engine, of a database since lost, garbage): a node that kept one must
        miss nothing and can break nothing. What expired meanwhile is not replayed.
        """
        ...

    async def cursor(self) -> Cursor:
        """Where a ``follow`` that wants only what is new should begin."""
        ...

    async def expire(self, now: int) -> int:
        """Drop what expired at or before ``now``; returns how many. An engine that lets
        its medium expire by itself, or whose hub does, may return 0."""
        ...

    async def status(self) -> EngineStatus:
        """Never raises ``RoutingError``: an engine that is away says so in the status."""
        ...


class EngineFactory(Protocol):
    """What an entry point of the group ``qis_edge.routing`` names; its name is the scheme.

    An engine that needs an extra imports it here, not before. It does no I/O yet.

    :raises RoutingError: the URL is wrong; the message names what and the hint the form.
    """

    def __call__(self, url: EngineUrl, context: Context) -> RoutingLayer:
        """Make the engine."""
        ...


def check_query(limit: int, vector: Sequence[float] | None) -> None:
    """Refuse what no engine can answer, alike in all of them.

    :raises UsageError: see :meth:`RoutingLayer.query`.
    """
    if limit < 0:
        raise UsageError(f"{limit} is negative", field="limit")
    if vector is not None:
        norm = sum(value * value for value in vector)
        if not 0 < norm < float("inf"):
            raise UsageError("has no direction", field="vector")


# --- reading back fast -----------------------------------------------------------------

#: A packet's first 9 bytes.
HEADS = frozenset((bytes.fromhex("d28443a10132a10448"), bytes.fromhex("d28443a10127a10448")))
_KID_END = 17
_TAIL = 66  # the signature and its head
#: What precedes the payload in the Sig_structure, by a packet's head.
_STRUCTURES = {
    head: b"\x84\x6aSignature1" + head[2:6] + bytes((0x40 | len(AAD),)) + AAD for head in HEADS
}
#: Where the address of a packet may begin: behind the heads of the payload, of its array
#: and of the fingerprint itself, which take 2 or 3, 1 and 2 bytes.
FINGERPRINT_AT = (_KID_END + 5, _KID_END + 6)
#: What has fewer bytes lacks one of the parts that have a fixed place.
LEAST = FINGERPRINT_AT[0] + FINGERPRINT_SIZE + _TAIL


def is_framed(raw: bytes) -> bool:
    """Whether bytes begin as a packet does. Of what was a packet when it was written, and
    is read back from a disk that may have failed."""
    return len(raw) >= LEAST and raw[:9] in HEADS


def framed_id(raw: bytes) -> bytes | None:
    """The packet's own id, of which receipts speak, by its framing alone; ``None``: no packet
    begins so. The unsigned kid and the signature do not enter it.
    """
    structure = _STRUCTURES.get(raw[:9])
    if structure is None:
        return None
    return hashlib.sha256(structure + raw[_KID_END:-_TAIL]).digest()


def framed_fingerprint(raw: bytes) -> bytes:
    """The address of a packet whose framing is known to be right."""
    start = FINGERPRINT_AT[raw[_KID_END] != 0x58]
    return raw[start : start + FINGERPRINT_SIZE]


def framed_kid(raw: bytes) -> bytes:
    """The kid of a packet whose framing is known to be right."""
    return raw[_KID_END - 8 : _KID_END]
