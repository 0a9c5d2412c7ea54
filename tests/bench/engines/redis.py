"""``redis:`` beside redis-py: a stream for each domain, a pipeline for each batch."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import redis.asyncio as client

from gateway.routing import Entry
from tests.bench.engines.base import RawSqlite, Site
from tests.routing.test_redis import Redis


class RawRedis:
    """Its queries are SQLite's, as the engine's are."""

    def __init__(self, port: int, view: RawSqlite) -> None:
        # Its types tell neither bytes from text nor now from later.
        self._client: Any = client.Redis(port=port, protocol=2)
        self._domains: set[bytes] = set()
        self.view = view

    async def deposit(self, entries: Sequence[Entry]) -> None:
        pipe = self._client.pipeline(transaction=True)
        for entry in entries:
            domain = entry.fingerprint[:8]
            self._domains.add(domain)
            pipe.xadd(b"raw:" + domain.hex().encode(), {b"p": entry.raw})
        await pipe.execute()

    async def query(self, fingerprint: bytes, limit: int) -> int:
        return await self.view.query(fingerprint, limit)

    async def replay(self) -> int:
        places: dict[bytes, bytes] = {
            b"raw:" + domain.hex().encode(): b"0" for domain in self._domains
        }
        count = 0
        while found := await self._client.xread(places, count=500):
            for name, entries in found:
                count += len(entries)
                places[name] = entries[-1][0]
        return count

    async def close(self) -> None:
        await self._client.aclose()


@contextlib.asynccontextmanager
async def redis(folder: Path) -> AsyncIterator[Site]:
    server = Redis(folder / "server")
    view = RawSqlite(folder / "raw.db")
    server.start()
    raw = RawRedis(server.port, view)
    try:
        yield Site(server.url(), raw)
    finally:
        await raw.close()
        view.close()
        server.kill()
