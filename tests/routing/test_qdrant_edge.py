"""Qdrant's embedded engine: held to the suite, killed, and written to by others."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import qdrant_edge as qd

from gateway.routing import (
    Entry,
    qdrant_edge,
)
from gateway.routing import qdrant_points as points
from gateway.testing import (
    DurableConformance,
    MediumConformance,
    OutageConformance,
    RoutingWorld,
)


class EdgeWorld(RoutingWorld):
    url = "qdrant+edge:routing.qdrant"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "routing.qdrant"
        self._held: qd.EdgeShard | None = None

    @property
    def _owner(self) -> qdrant_edge._Owner:
        return qdrant_edge._owners[self.path]

    async def write(self, entry: Entry, raw: bytes) -> None:
        # Somebody with access to the files, while the process that owns them is away.
        await self._owner._worker(self._owner._end)
        shard = qd.EdgeShard.load(str(self.path))
        entry = entry._replace(raw=raw)
        place = UUID(bytes=entry.id[: points.ID])
        payload = {**points.payload(entry, 7), "seq": entry.time % 1_000_000 + 1000}
        shard.update(
            qd.UpdateOperation.upsert_points(
                [qd.Point(place, dict(points.vectors(entry)), payload)]
            )
        )
        shard.close()

    async def fail(self) -> None:
        process = self._owner._process
        assert process is not None
        process.kill()
        process.wait()
        self._held = qd.EdgeShard.load(str(self.path))

    async def heal(self) -> None:
        assert self._held is not None
        self._held.close()


class TestQdrantEdge(DurableConformance, MediumConformance, OutageConformance):
    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[RoutingWorld]:
        yield EdgeWorld(folder)
