"""``qdrant+edge:`` beside Qdrant's embedded engine, called in this process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import UUID

import qdrant_edge as qd

from gateway.routing import Entry
from gateway.routing import qdrant_points as points
from gateway.routing.qdrant_shard import Shard
from tests.bench.engines.base import Site


class RawEdge:
    """The same points in a shard with the same indexes."""

    def __init__(self, path: Path) -> None:
        self._shard = Shard(path, 1)._shard
        self._last = 0

    async def deposit(self, entries: Sequence[Entry]) -> None:
        made = []
        for entry in entries:
            self._last += 1
            made.append(
                qd.Point(
                    UUID(bytes=entry.id[: points.ID]),
                    dict(points.vectors(entry)),
                    {**points.payload(entry, self._last), "seq": self._last},
                )
            )
        self._shard.update(qd.UpdateOperation.upsert_points(made))
        self._shard.flush()

    def _scroll(self, condition: qd.FieldCondition, limit: int, order: qd.OrderBy) -> int:
        found, _ = self._shard.scroll(
            qd.ScrollRequest(
                limit=limit,
                filter=qd.Filter(must=[condition]),
                with_payload=True,
                with_vector=False,
                order_by=order,
            )
        )
        return len([record.payload for record in found])

    async def query(self, fingerprint: bytes, limit: int) -> int:
        address = qd.FieldCondition("address", match=qd.MatchValue(fingerprint.hex()))
        return self._scroll(address, limit, qd.OrderBy("order", qd.Direction.Desc))

    async def replay(self) -> int:
        count = 0
        order = qd.OrderBy("seq", qd.Direction.Asc)
        while True:
            after = qd.FieldCondition("seq", range=qd.RangeFloat(gt=count))
            found = self._scroll(after, 1000, order)
            count += found
            if found < 1000:
                return count


@contextlib.asynccontextmanager
async def qdrant_edge(folder: Path) -> AsyncIterator[Site]:
    yield Site("qdrant+edge:points", RawEdge(folder / "raw"))
