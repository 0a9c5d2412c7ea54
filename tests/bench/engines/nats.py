"""``nats:`` beside nats-py: a stream for each domain, a subject for each address."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from nats.aio.client import Client
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from gateway.routing import Entry
from tests.bench.engines.base import RawSqlite, Site
from tests.routing.server import Server


class Nats(Server):
    program = "nats-server"

    def arguments(self) -> Sequence[str]:
        return ("-js", "-sd", str(self.folder / "js"), "-a", "127.0.0.1", "-p", str(self.port))


class RawNats:
    """Publishes at once and waits for all acknowledgements. Its queries are SQLite's."""

    def __init__(self, connection: Client, view: RawSqlite) -> None:
        self._connection = connection
        self._js = connection.jetstream()
        self._streams: set[str] = set()
        self.view = view

    async def deposit(self, entries: Sequence[Entry]) -> None:
        for domain in {entry.fingerprint[:8].hex() for entry in entries} - self._streams:
            await self._js.add_stream(name=f"raw-{domain}", subjects=[f"raw.{domain}.*"])
            self._streams.add(domain)
        waits = [
            await self._js.publish_async(
                f"raw.{entry.fingerprint[:8].hex()}.{entry.fingerprint.hex()}", entry.raw
            )
            for entry in entries
        ]
        await asyncio.gather(*waits)

    async def query(self, fingerprint: bytes, limit: int) -> int:
        return await self.view.query(fingerprint, limit)

    async def replay(self) -> int:
        count = 0
        for domain in self._streams:
            stream = f"raw-{domain}"
            here = (await self._js.stream_info(stream)).state.messages
            config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE)
            reader = await self._js.pull_subscribe(f"raw.{domain}.*", stream=stream, config=config)
            while here > 0:
                with contextlib.suppress(NatsTimeout):
                    found = len(await reader.fetch(min(here, 500), timeout=2))
                    count, here = count + found, here - found
            await reader.unsubscribe()
        return count


@contextlib.asynccontextmanager
async def nats(folder: Path) -> AsyncIterator[Site]:
    server = Nats(folder / "server")
    view = RawSqlite(folder / "raw.db")
    await asyncio.to_thread(server.start)
    try:
        connection = Client()
        await connection.connect(f"nats://127.0.0.1:{server.port}")
        yield Site(f"nats://127.0.0.1:{server.port}", RawNats(connection, view))
        await connection.close()
    finally:
        view.close()
        server.kill()
