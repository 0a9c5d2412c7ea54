"""``dht:`` on real nodes: held to the suite, a third of them killed, written to by strangers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.routing import Context, Entry, dht
from gateway.routing.dht import DhtFeed
from gateway.routing.url import EngineUrl
from gateway.testing import (
    DurableConformance,
    MediumConformance,
    RoutingWorld,
    SpoolConformance,
    UrlConformance,
)
from tests.routing.dht import Nodes


class DhtWorld(RoutingWorld):
    folder_each = True

    def __init__(self, folder: Path, nodes: Nodes) -> None:
        self.folder = folder
        self.nodes = nodes
        self._stranger: DhtFeed | None = None

    @property
    def url(self) -> str:  # type: ignore[override] # known once they run
        return self.nodes.url()

    async def write(self, entry: Entry, raw: bytes) -> None:
        if self._stranger is None:
            self._stranger = DhtFeed(EngineUrl.parse(self.url), Context())
            await self._stranger.open()
        process = await self._stranger._running()
        key = self._stranger._address_key(entry.fingerprint)
        number = int.from_bytes(entry.id[:8])
        assert await process.put([dht._Value(key, number, raw)]) != [0]

    async def close(self) -> None:
        if self._stranger is not None:
            await self._stranger.close()
        self.nodes.kill()

    async def fail(self) -> None:
        self.nodes.signal(signal.SIGSTOP)

    async def heal(self) -> None:
        self.nodes.signal(signal.SIGCONT)


@contextlib.asynccontextmanager
async def running(folder: Path, count: int, *, lifetime: int = 3600) -> AsyncIterator[DhtWorld]:
    world = DhtWorld(folder, Nodes(lifetime=lifetime))
    try:
        await asyncio.to_thread(world.nodes.start, count)
        yield world
    finally:
        await world.close()


class TestDht(DurableConformance, MediumConformance, SpoolConformance):
    order = "none"
    patience = 60.0
    many = 600

    @pytest.fixture(autouse=True)
    def _quick(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """The library takes up to 20 s to be sure that nobody is there."""
        if "away" in request.node.name:
            monkeypatch.setattr(dht, "PATIENCE", 4.0)
            monkeypatch.setattr(dht, "FIRST_ANSWER", 2.0)

    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[RoutingWorld]:
        async with running(folder, 3) as world:
            yield world


class TestDhtUrl(UrlConformance):
    right = "dht://base.example,[::1]:4223?network=north&listen=0.0.0.0:4222"
    wrong = (
        ("dht://u:s3cret@a", "knows no logins"),
        ("dht://a/north", "takes no path"),
        ("dht:north", "takes no path"),
        ("dht:?sync=1", "unknown option 'sync'"),
        ("dht:?network=", "network must be"),
        ("dht:?network=a%20b", "network must be"),
        ("dht:?listen=here:there", "listen must be"),
        ("dht:?listen=:70000", "listen must be"),
        ("dht:?copies=9", "copies must be"),
        ("dht:?lifetime=5", "lifetime must be"),
        ("dht:?reread=soon", "reread must be"),
    )
    modules = ("opendht",)
    command = "pip install 'qis-edge[dht]'"
    nobody = "dht://127.0.0.1:9?listen=127.0.0.1"

    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dht, "FIRST_ANSWER", 1.0)
