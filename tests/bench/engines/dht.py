"""``dht:`` beside opendht itself in this process: values of addresses, on eight nodes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from gateway.routing import Entry
from gateway.routing.dht_node import Node
from tests.bench.engines.base import RawSqlite, Site
from tests.routing.dht import Nodes

NODES = 8
#: Values that the client puts at once, as the engine does: with more, some are lost.
WINDOW = 64
#: Addresses looked up at once, likewise.
GETS = 16


class RawDht:
    """Puts values and waits until all nodes have said so. Its queries are SQLite's."""

    def __init__(self, nodes: Nodes, view: RawSqlite) -> None:
        self._nodes = nodes
        self._client = self._joined()
        self._loop = asyncio.get_running_loop()
        self._keys: set[bytes] = set()
        self._count = 0
        self.view = view

    def _joined(self) -> Node:
        made = Node(self._nodes.network, "127.0.0.1", 0, self._nodes.lifetime)
        made.join("127.0.0.1", self._nodes.ports[0])
        return made

    async def ready(self) -> None:
        """The client knows the other nodes."""
        while await self._put(b"ready", b"ready", b"ready") < NODES - 1:  # noqa: ASYNC110 - the nodes get to know one another
            await asyncio.sleep(0.1)

    async def _put(self, fingerprint: bytes, number: bytes, raw: bytes) -> int:
        done: asyncio.Future[int] = self._loop.create_future()

        def tell(copies: int) -> None:
            self._loop.call_soon_threadsafe(done.set_result, copies)

        key = _key(fingerprint)
        self._keys.add(key)
        self._client.put(key, int.from_bytes(number[:8]), raw, tell)
        return await done

    async def deposit(self, entries: Sequence[Entry]) -> None:
        for start in range(0, len(entries), WINDOW):
            some = entries[start : start + WINDOW]
            copies = await asyncio.gather(*(self._put(e.fingerprint, e.id, e.raw) for e in some))
            assert min(copies) > 0
        self._count += len(entries)

    async def query(self, fingerprint: bytes, limit: int) -> int:
        return await self.view.query(fingerprint, limit)

    async def replay(self) -> int:
        """Look up every address, once more each time: nobody has it in memory."""
        found: set[int] = set()
        turns = asyncio.Semaphore(GETS)
        while len(found) < self._count:  # answers are lost now and then
            keys = self._keys - {_key(b"ready")}
            await asyncio.gather(*(self._get(key, found, turns) for key in keys))
        return len(found)

    async def _get(self, key: bytes, found: set[int], turns: asyncio.Semaphore) -> None:
        done: asyncio.Future[Any] = self._loop.create_future()

        def tell(ok: bool) -> None:
            self._loop.call_soon_threadsafe(done.set_result, ok)

        async with turns:
            self._client.get(key, lambda data: found.add(hash(data)), tell)
            await done

    def close(self) -> None:
        self._client.end()


def _key(fingerprint: bytes) -> bytes:
    return hashlib.sha256(b"raw" + fingerprint).digest()[:20]


@contextlib.asynccontextmanager
async def dht(folder: Path) -> AsyncIterator[Site]:
    nodes = Nodes(network="bench")
    view = RawSqlite(folder / "raw.db")
    raw = None
    try:
        await asyncio.to_thread(nodes.start, NODES)
        raw = RawDht(nodes, view)
        await raw.ready()
        # Lookups lose a few values: who is new looks again after ten seconds, and so on.
        yield Site(nodes.url(), raw, nodes.url("&reread=10"))
    finally:
        if raw is not None:
            raw.close()
        view.close()
        nodes.kill()
