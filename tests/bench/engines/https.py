"""``https:`` beside aiohttp, each with a hub of its own that has SQLite.

Plain HTTP on the loopback: TLS would take the same of both.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp

from gateway.routing import EVERYTHING, Entry, Interest
from gateway.routing import hub_wire as wire
from tests.bench.engines.base import Site
from tests.routing.hub import TOKEN, HubProcess


class RawHttp:
    """The same requests. It takes answers as they are, but for the framing of packets."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}/v{wire.VERSION}"
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": wire.CBOR}
        )

    async def _ask(self, name: str, body: bytes) -> bytes:
        async with self._session.post(f"{self._base}/{name}", data=body) as answer:
            answer.raise_for_status()
            return await answer.read()

    async def deposit(self, entries: Sequence[Entry]) -> None:
        await self._ask("deposit", wire.deposit([entry.raw for entry in entries]))

    async def query(self, fingerprint: bytes, limit: int) -> int:
        body = wire.Question(Interest(fingerprint), limit).encode()
        return len(wire.Page.decode(await self._ask("query", body)).raws)

    async def replay(self) -> int:
        count, after, live = 0, None, False
        while not live:
            poll = wire.Poll(frozenset([EVERYTHING]), after, 0)
            page = wire.Page.decode(await self._ask("follow", poll.encode()))
            count, after, live = count + len(page.raws), page.cursor, page.live
        return count

    async def close(self) -> None:
        await self._session.close()


@contextlib.asynccontextmanager
async def https(folder: Path) -> AsyncIterator[Site]:
    hubs = [HubProcess(folder / name, "sqlite:routing.db", "--keep") for name in ("hub", "raw-hub")]
    raw = None
    try:
        for hub in hubs:
            await asyncio.to_thread(hub.start)
        raw = RawHttp(hubs[1].port)
        yield Site(hubs[0].url, raw)
    finally:
        if raw is not None:
            await raw.close()
        for hub in hubs:
            hub.kill()
