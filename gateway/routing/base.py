"""What a routing engine is: where packets live by fingerprint.

Three verbs. ``deposit`` is durable and idempotent when it returns. ``query`` answers
with what an address holds. ``follow`` replays everything after a cursor and then goes on
live, without a gap and without a duplicate. Every engine, ours or a third party's,
passes ``gateway.testing.RoutingConformance``.

Packets are opaque to an engine except for :class:`Entry`'s columns. They were verified
before they were deposited. What an engine reads back from a medium that others can write
to is *not* trusted: the engine hands it to :class:`Entry` through ``Entry.parse``, which
checks everything but the signature, and the caller verifies what it first receives.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

#: Opaque to everyone but the engine that made it. Bytes, at most 64.
Cursor = bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A packet with what an engine may index.

    :param raw: the signed packet, at most 512 bytes.
    :param id: SHA-256 of its Sig_structure, 32 bytes: what idempotence is by.
    :param fingerprint: its address, 32 bytes.
    :param time: unix seconds of its newest outcome: what *newest first* is by.
    :param expires: unix seconds after which it need not be kept.
    :param vector: the situation's continuous fields, if any.
    """

    raw: bytes
    id: bytes
    fingerprint: bytes
    time: int
    expires: int
    vector: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Interest:
    """The addresses that share the first ``bits`` of a fingerprint (256: that one)."""

    fingerprint: bytes
    bits: int = 256

    def covers(self, fingerprint: bytes) -> bool:
        """Whether an address lies within."""
        if self.bits == 256:
            return fingerprint == self.fingerprint
        shift = 256 - self.bits
        return int.from_bytes(fingerprint) >> shift == int.from_bytes(self.fingerprint) >> shift


@dataclass(frozen=True, slots=True)
class Batch:
    """What ``follow`` yields: entries in deposit order, and the cursor after the last.

    ``live`` is False while it still replays. An empty batch with ``live`` set tells the
    follower that it has caught up.
    """

    entries: tuple[Entry, ...]
    cursor: Cursor
    live: bool


class Subscription(Protocol):
    """A running ``follow``."""

    def __aiter__(self) -> AsyncIterator[Batch]: ...

    def update(self, interests: frozenset[Interest]) -> None:
        """Follow these instead, from where it stands now. Entries of a new interest that
        lie before the present cursor are not replayed: ``query`` gives those."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What ``status`` of a gateway shows of one engine."""

    url: str  # without secrets
    ok: bool
    packets: int | None
    detail: str = ""


class RoutingLayer(Protocol):
    """The interface. Engines are made by :func:`gateway.routing.open_engine` from a URL.

    Errors are :class:`qis_edge.core.errors.RoutingError`: a wrong URL, a refused login or
    a missing extra (naming the pip command) from ``open``; an engine that is away from any
    verb, after which the same call may be made again.
    """

    url: str

    async def open(self) -> None:
        """Connect, make what is missing. Idempotent."""
        ...

    async def close(self) -> None: ...

    async def deposit(self, entries: Sequence[Entry]) -> int:
        """Keep these; returns how many were new. All or nothing where the engine can;
        a repeat of the call is always safe."""
        ...

    async def query(
        self,
        interest: Interest,
        *,
        limit: int = 50,
        since: int | None = None,
        vector: Sequence[float] | None = None,
    ) -> list[Entry]:
        """What an address (or a prefix) holds: newest first by ``Entry.time`` (ties: last
        deposited first), or nearest first by cosine where a vector is given (entries without a vector
        come last). ``since``: only entries whose time is at or after it."""
        ...

    def follow(
        self, interests: frozenset[Interest], after: Cursor | None = None
    ) -> Subscription:
        """Everything deposited after the cursor (``None``: from the beginning), in order,
        then live."""
        ...

    async def cursor(self) -> Cursor:
        """Where a ``follow`` that wants only what is new should begin."""
        ...

    async def expire(self, now: int) -> int:
        """Drop what expired at or before ``now``; returns how many."""
        ...

    async def status(self) -> EngineStatus: ...
