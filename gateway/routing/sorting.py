"""Tells packets from what is none, on a thread of its own: signatures take time."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from gateway.routing.base import Accept, Entry
from qis_edge.core.errors import Reason, Refused
from qis_edge.worker import Worker

#: Packets that one step on the verifying thread takes.
ACCEPT_SLICE = 100
#: Packets of our own that are known when they come back, without verifying them.
MAX_OURS = 20_000


class Sorted(NamedTuple):
    """What ``accept`` made of bytes."""

    entries: list[Entry]
    unknown: list[Entry]
    refused: int


class Sorter:
    """Accepts packets on a thread of its own: signatures take time."""

    def __init__(self, accept: Accept) -> None:
        self._accept = accept
        self._worker: Worker | None = None
        self._ours: dict[bytes, Entry] = {}
        self._order: deque[bytes] = deque()

    def know(self, entries: Sequence[Entry]) -> None:
        """These are our own: they need no check when they come back as they are."""
        for entry in entries[-MAX_OURS:]:
            if entry.raw not in self._ours:
                self._ours[entry.raw] = entry
                self._order.append(entry.raw)
        while len(self._order) > MAX_OURS:
            self._ours.pop(self._order.popleft(), None)

    async def sort(self, raws: Sequence[bytes]) -> Sorted:
        found = Sorted([], [], 0)
        for start in range(0, len(raws), ACCEPT_SLICE):
            part = raws[start : start + ACCEPT_SLICE]
            ours = [self._ours.get(raw) for raw in part]
            if None not in ours:
                found.entries.extend(entry for entry in ours if entry is not None)
                continue
            if self._worker is None:
                self._worker = Worker("routing-accept")
            more = await self._worker(self._sort, part, ours)
            found = Sorted(
                found.entries + more.entries,
                found.unknown + more.unknown,
                found.refused + more.refused,
            )
        return found

    def _sort(self, raws: Sequence[bytes], ours: Sequence[Entry | None]) -> Sorted:
        entries: list[Entry] = []
        unknown: list[Entry] = []
        for raw, own in zip(raws, ours, strict=True):
            try:
                entries.append(own or self._accept(raw))
            except Refused as refused:
                if refused.reason is Reason.UNKNOWN_KEY:
                    with contextlib.suppress(Refused):
                        unknown.append(Entry.parse(raw))
        return Sorted(entries, unknown, len(raws) - len(entries) - len(unknown))

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None
