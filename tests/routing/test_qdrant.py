"""A Qdrant server's engine, held to the suite: on a double with Qdrant's own engine behind
the REST API, and on the server that QDRANT_URL names."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from gateway.routing import Entry
from gateway.routing import qdrant_points as points
from gateway.testing import (
    DurableConformance,
    MediumConformance,
    OutageConformance,
    RoutingWorld,
)

SERVER = os.environ.get("QDRANT_URL", "").rstrip("/")
KEY = "an API key"


class Double:
    """The double's process."""

    def __init__(self, folder: Path, key: str = KEY) -> None:
        self._folder = folder
        self._folder.mkdir()
        self._key = key
        self.port = 0
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("qdrant_server.py")),
                *(str(self._folder), str(self.port), self._key),
            ],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class QdrantWorld(RoutingWorld):
    folder_each = True

    def __init__(self, folder: Path, base: str, key: str, collection: str) -> None:
        self.folder = folder
        (folder / "key").write_text(key)
        self.collection = collection
        self.url = f"{base.replace('http', 'qdrant', 1)}/{collection}?timeout=5"
        if key:
            self.url += f"&api_key_file={folder / 'key'}"
        self._at = f"{base}/collections/{collection}"
        self._headers = {"api-key": key} if key else {}

    def ask(self, method: str, rest: str, form: object = None) -> None:
        httpx.request(method, self._at + rest, json=form, headers=self._headers).raise_for_status()

    async def write(self, entry: Entry, raw: bytes) -> None:
        entry = entry._replace(raw=raw)
        payload = points.payload(entry, 7) | {"stamp": 17_672_256_000_000}
        point = {
            "id": str(UUID(bytes=entry.id[: points.ID])),
            "vector": points.vectors(entry),
            "payload": payload,
        }
        self.ask("PUT", "/points?wait=true", {"points": [point]})


class DoubleWorld(QdrantWorld):
    def __init__(self, folder: Path) -> None:
        self.double = Double(folder / "server")
        super().__init__(folder, f"http://127.0.0.1:{self.double.port}", KEY, "qis")

    async def fail(self) -> None:
        self.double.kill()

    async def heal(self) -> None:
        self.double.start()


@pytest.fixture
def asked(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Qdrant itself answered all queries."""
    yield
    said = [record.getMessage() for record in caplog.get_records("call")]
    assert not [text for text in said if text.startswith("the view answers queries")]


@pytest.mark.usefixtures("asked")
class TestQdrant(DurableConformance, MediumConformance, OutageConformance):
    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[RoutingWorld]:
        world = DoubleWorld(folder)
        try:
            yield world
        finally:
            world.double.kill()


@pytest.mark.usefixtures("asked")
@pytest.mark.skipif(not SERVER, reason="QDRANT_URL names no server to test with")
class TestQdrantServer(DurableConformance, MediumConformance):
    patience = 30.0

    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[RoutingWorld]:
        key = os.environ.get("QDRANT_API_KEY", "")
        world = QdrantWorld(folder, SERVER, key, f"test-{uuid4()}")
        try:
            yield world
        finally:
            world.ask("DELETE", "")
