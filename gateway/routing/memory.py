"""``memory:``: everything in this process, gone with it. For tests and for trying out.

``memory:NAME`` is shared by the engines of that name in one event loop, as a server is by
its clients, for as long as one of them lives.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from bisect import bisect_right, insort
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

from gateway.routing.base import (
    Context,
    EngineStatus,
    Entry,
    Interest,
    check_query,
)
from gateway.routing.following import Coverage, LogEngine, Slice
from gateway.routing.nearest import Candidate, nearest, to_bytes
from gateway.routing.url import EngineUrl
from qis_edge.core.errors import RoutingError

#: Entries that one slice of a log looks at.
SLICE = 500


class _Kept(NamedTuple):
    """Orders as answers do, oldest first."""

    time: int
    position: int
    entry: Entry


class _Store:
    """What the engines of one name share."""

    def __init__(self) -> None:
        self.token = os.urandom(8)
        self.last = 0
        self.log: list[tuple[int, Entry]] = []
        self.ids: set[bytes] = set()
        self.addresses: dict[bytes, list[_Kept]] = {}
        self.change = asyncio.Event()

    def add(self, entries: Sequence[Entry]) -> int:
        before = self.last
        for entry in entries:
            if entry.id in self.ids:
                continue
            self.last += 1
            self.ids.add(entry.id)
            self.log.append((self.last, entry))
            insort(
                self.addresses.setdefault(entry.fingerprint, []),
                _Kept(entry.time, self.last, entry),
                key=lambda kept: kept[:2],
            )
        if self.last > before:
            self.change.set()
            self.change = asyncio.Event()
        return self.last - before

    def expire(self, now: int) -> int:
        gone = {entry.fingerprint for _, entry in self.log if entry.expires <= now}
        if not gone:
            return 0
        before = len(self.log)
        self.log = [item for item in self.log if item[1].expires > now]
        self.ids = {entry.id for _, entry in self.log}
        for fingerprint in gone:
            kept = [k for k in self.addresses[fingerprint] if k.entry.expires > now]
            if kept:
                self.addresses[fingerprint] = kept
            else:
                del self.addresses[fingerprint]
        return before - len(self.log)

    def within(self, interest: Interest) -> list[list[_Kept]]:
        if (exact := self.addresses.get(interest.fingerprint)) and interest.bits == 256:
            return [exact]
        return [kept for key, kept in self.addresses.items() if interest.covers(key)]


_shared: WeakValueDictionary[str, _Store] = WeakValueDictionary()


class MemoryEngine(LogEngine):
    """See :class:`gateway.routing.base.RoutingLayer`."""

    def __init__(self, url: EngineUrl, context: Context | None = None) -> None:  # noqa: ARG002 - nothing here comes from others
        """:raises RoutingError: the URL names a host or has options."""
        super().__init__()
        url.only(())
        if url.hosts:
            raise RoutingError(f"{url}: has no host", hint="write memory: or memory:NAME")
        self.url = str(url)
        self._name = url.path
        self._store = _shared.get(self._name) if self._name else None
        if self._store is None:
            self._store = _Store()
            if self._name:
                _shared[self._name] = self._store
        self._token = self._store.token
        self._opened = False

    @property
    def _data(self) -> _Store:
        assert self._store is not None
        return self._store

    async def _last(self) -> int:
        return self._ready().last

    def _ready(self) -> _Store:
        if not self._opened:
            raise RoutingError(f"{self.url}: not open")
        return self._data

    async def open(self) -> None:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        self._opened = True

    async def close(self) -> None:
        """See :class:`gateway.routing.base.RoutingLayer`. What it holds stays with the object."""
        self._opened = False
        self._stop_following()

    async def deposit(self, entries: Sequence[Entry]) -> int:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        return self._ready().add(entries)

    async def query(
        self,
        interest: Interest,
        *,
        limit: int = 50,
        since: int | None = None,
        confidence: int = 0,
        vector: Sequence[float] | None = None,
    ) -> list[Entry]:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        check_query(limit, vector)
        found = [
            kept
            for address in self._ready().within(interest)
            for kept in address[0 if since is None else bisect_right(address, (since,)) :]
            if kept.entry.confidence >= confidence
        ]
        if vector is None:
            newest = heapq.nlargest(limit, found, key=lambda kept: kept[:2])
            return [kept.entry for kept in newest]
        by_position = {kept.position: kept.entry for kept in found}
        return [by_position[key] for key in nearest([_candidates(found)], vector, limit)]

    async def expire(self, now: int) -> int:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        return self._ready().expire(now)

    async def status(self) -> EngineStatus:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        detail = "" if self._opened else "not open"
        return EngineStatus(self.url, self._opened, len(self._data.log), detail=detail)

    # --- the log, for its subscriptions ------------------------------------------------

    async def read(self, interests: frozenset[Interest], after: int) -> Slice:
        """The next few hundred entries after a position."""
        store = self._ready()
        start = bisect_right(store.log, after, key=lambda item: item[0])
        looked = store.log[start : start + SLICE]
        end = start + len(looked) == len(store.log)
        coverage = Coverage(interests)
        return Slice(
            tuple(entry for _, entry in looked if entry.fingerprint in coverage),
            store.last if end else looked[-1][0],
            end,
            store.last,
        )

    async def changed(self, version: int) -> None:
        """Until something was deposited after that version."""
        if self._data.last == version:
            await self._data.change.wait()


def _candidates(found: Sequence[_Kept]) -> list[Candidate]:
    return [
        Candidate(
            None if k.entry.vector is None else to_bytes(k.entry.vector),
            k.time,
            k.position,
            k.position,
        )
        for k in found
    ]
