"""Packets that were verified, the last few, so that none is verified again and again."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence

from gateway.routing.base import Accept, Entry
from qis_edge.core.errors import Refused
from qis_edge.worker import Worker

#: How many are remembered: some 12 MB.
MAX_KNOWN = 20_000
#: Packets that one step on the verifying thread takes.
ACCEPT_SLICE = 100


class Verified:
    """Accepts packets on a thread of its own, each once as far as memory goes."""

    def __init__(self, accept: Accept) -> None:
        self._accept = accept
        self._known: OrderedDict[bytes, Entry] = OrderedDict()
        self._worker: Worker | None = None

    def know(self, entries: Sequence[Entry]) -> None:
        """These are verified."""
        self._known.update((entry.raw, entry) for entry in entries[-MAX_KNOWN:])
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    async def __call__(self, raws: Sequence[bytes]) -> list[Entry]:
        """Those that can be believed, in their order, each once."""
        once = dict.fromkeys(raws)
        found = list(map(self._known.get, once))
        if None in found:
            unknown = [raw for raw, entry in zip(once, found, strict=True) if entry is None]
            fresh = {entry.raw: entry for entry in await self._verify(unknown)}
            found = [entry or fresh.get(raw) for raw, entry in zip(once, found, strict=True)]
            self.know(list(fresh.values()))
        return [entry for entry in found if entry is not None]

    async def _verify(self, raws: Sequence[bytes]) -> list[Entry]:
        good: list[Entry] = []
        for start in range(0, len(raws), ACCEPT_SLICE):
            # Another one after each await: it may have been closed, and opened again.
            self._worker = self._worker or Worker("routing-accept")
            good += await self._worker(self._sort, raws[start : start + ACCEPT_SLICE])
        return good

    def _sort(self, raws: Sequence[bytes]) -> list[Entry]:
        good = []
        for raw in raws:
            with contextlib.suppress(Refused):
                good.append(self._accept(raw))
        return good

    def close(self) -> None:
        """End the thread."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
