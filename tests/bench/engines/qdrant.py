"""``qdrant:`` beside qdrant-client, on the server that ``QDRANT_URL`` names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import UUID, uuid4

from qdrant_client import AsyncQdrantClient
from qdrant_client import models as qm

from gateway.routing import Entry
from gateway.routing import qdrant_points as points
from tests.bench.engines.base import Absent, Site


class RawQdrant:
    """The same points, in a collection with the same indexes."""

    def __init__(self, client: AsyncQdrantClient, collection: str) -> None:
        self._client = client
        self._collection = collection
        self._last = 0

    async def make(self) -> None:
        size = qm.VectorParams(size=points.SIZE, distance=qm.Distance.COSINE)
        await self._client.create_collection(self._collection, {points.VECTOR: size})
        kinds = [
            *((name, qm.PayloadSchemaType.KEYWORD) for name in points.KEYWORDS),
            *((name, qm.PayloadSchemaType.INTEGER) for name in (*points.INTEGERS, "seq")),
        ]
        for name, kind in kinds:
            await self._client.create_payload_index(self._collection, name, kind)

    async def deposit(self, entries: Sequence[Entry]) -> None:
        made = []
        for entry in entries:
            self._last += 1
            payload = {**points.payload(entry, self._last), "seq": self._last}
            made.append(
                qm.PointStruct(
                    id=str(UUID(bytes=entry.id[: points.ID])),
                    vector={name: list(value) for name, value in points.vectors(entry).items()},
                    payload=payload,
                )
            )
        await self._client.upsert(self._collection, made, wait=True)

    async def _scroll(self, condition: qm.FieldCondition, limit: int, order: qm.OrderBy) -> int:
        found, _ = await self._client.scroll(
            self._collection,
            qm.Filter(must=[condition]),
            limit,
            order_by=order,
            with_payload=True,
        )
        return len(found)

    async def query(self, fingerprint: bytes, limit: int) -> int:
        address = qm.FieldCondition(key="address", match=qm.MatchValue(value=fingerprint.hex()))
        order = qm.OrderBy(key="order", direction=qm.Direction.DESC)
        return await self._scroll(address, limit, order)

    async def replay(self) -> int:
        count = 0
        while True:
            after = qm.FieldCondition(key="seq", range=qm.Range(gt=count))
            found = await self._scroll(after, 1000, qm.OrderBy(key="seq"))
            count += found
            if found < 1000:
                return count


@contextlib.asynccontextmanager
async def qdrant(folder: Path) -> AsyncIterator[Site]:
    base = os.environ.get("QDRANT_URL", "").rstrip("/")
    if not base:
        raise Absent("a server, named by QDRANT_URL")
    client = AsyncQdrantClient(base)
    names = [f"qis-bench-{uuid4().hex[:8]}" for _ in range(2)]
    raw = RawQdrant(client, names[1])
    try:
        await raw.make()
        yield Site(f"{base.replace('http', 'qdrant', 1)}/{names[0]}", raw)
    finally:
        for name in names:
            await client.delete_collection(name)
        await client.close()
