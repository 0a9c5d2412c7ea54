"""Hubs on the loopback: processes of their own, and in this one."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from gateway.hub import Certificate, Hub, Listening, Tokens
from gateway.routing import Context, Entry, RoutingLayer, open_engine
from gateway.routing.base import Accept
from gateway.testing import RoutingWorld
from tests.mosquitto import free_port

TOKEN = "a-token-for-gateways-0123456789"
READER = "a-token-that-may-only-read-0123"
TOKENS = f"base {TOKEN}\nreader {READER} read\n"


class HubProcess:
    """``qis-gateway hub``, started and ended by its process id; the port stays the same."""

    def __init__(self, folder: Path, engine: str = "sqlite:routing.db", *more: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.tokens = tokens_of(folder, f"# who may ask\n\n{TOKENS}")
        self.engine = engine
        self.more = more
        self.process: subprocess.Popen[bytes] | None = None
        self._log = folder / "hub.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}?token={TOKEN}&timeout=3"

    def start(self) -> None:
        assert self.process is None
        place = f"127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "gateway", "hub", self.engine, "--listen", place]
        command += ["--tokens", str(self.tokens), "--state", str(self.folder), *self.more]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        said = self.log().count("the hub serves")
        deadline = time.monotonic() + 20
        while self.log().count("the hub serves") == said and time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        else:
            if time.monotonic() < deadline:
                return
        self.kill()
        raise RuntimeError(f"the hub did not start:\n{self.log()}")

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def stop(self) -> int:
        """SIGTERM. Returns its exit code."""
        process, self.process = self.process, None
        assert process is not None
        process.terminate()
        try:
            return process.wait(60)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()


class HubWorld(RoutingWorld):
    """Gateways that have nothing but a hub, which has SQLite.

    :param port: where it listens.
    :param state: of the hub.
    """

    def __init__(self, port: int, state: Path) -> None:
        self.url = f"http://127.0.0.1:{port}?token={TOKEN}&timeout=3"
        self._port = port
        self._state = state

    async def write(self, entry: Entry, raw: bytes) -> None:
        # With access to the hub's file: it drops what is not what it was deposited as.
        db = sqlite3.connect(self._state / "routing.db", isolation_level=None)
        with contextlib.closing(db):
            fingerprint = entry.fingerprint
            db.execute("INSERT OR IGNORE INTO buckets (fingerprint) VALUES (?)", (fingerprint,))
            db.execute(
                "INSERT INTO packets SELECT (SELECT max(seq) + 1 FROM packets), bucket, ?, ?, ?, "
                "?, ?, ? FROM buckets WHERE fingerprint = ?",
                (
                    *(entry.time, entry.expires, entry.confidence, entry.id[:16]),
                    *(b"\0\0\0\0\0\0\xf0\x3f" * 2, raw, fingerprint),
                ),
            )
            db.execute(
                "UPDATE facts SET value = (SELECT max(seq) FROM packets) WHERE name = 'last'"
            )

    def intruder(self) -> RoutingLayer:
        return open_engine(f"http://127.0.0.1:{self._port}?token=s3cret-and-wrong")


class HubProcessWorld(HubWorld):
    """The hub is a process, which can be killed."""

    def __init__(self, folder: Path) -> None:
        self.hub = HubProcess(folder / "hub", "sqlite:routing.db", "--keep")
        self.hub.start()
        super().__init__(self.hub.port, self.hub.folder)

    async def fail(self) -> None:
        await asyncio.to_thread(self.hub.kill)

    async def heal(self) -> None:
        await asyncio.to_thread(self.hub.start)


def tokens_of(folder: Path, text: str = TOKENS) -> Path:
    """The file of the hub's tokens."""
    path = folder / "hub.tokens"
    path.write_text(text)
    path.chmod(0o600)
    return path


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    engine: str = "memory:",
    check: Accept = Entry.parse,
    certificate: Certificate | None = None,
    **more: Any,
) -> AsyncIterator[tuple[Hub, str]]:
    """A hub in this process, and its address."""
    made = open_engine(engine, Context(check, folder, "hub"))
    hub = Hub(made, Tokens(tokens_of(folder)), check, **more)
    listening = Listening(hub, "127.0.0.1", 0, certificate)
    await hub.start()
    await listening.start()
    try:
        yield hub, f"{'https' if certificate else 'http'}://127.0.0.1:{listening.address[1]}"
    finally:
        await listening.close()
