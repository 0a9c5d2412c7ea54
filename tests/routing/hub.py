"""Real hubs, each a process of its own on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from gateway.routing import Entry, RoutingLayer, open_engine
from gateway.testing import RoutingWorld
from tests.mosquitto import free_port

TOKEN = "a-token-for-gateways-0123456789"
READER = "a-token-that-may-only-read-0123"


class HubProcess:
    """``qis-gateway hub``, started and ended by its process id; the port stays the same."""

    def __init__(self, folder: Path, engine: str = "sqlite:routing.db", *more: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.tokens = folder / "hub.tokens"
        self.tokens.write_text(f"# who may ask\n\nbase {TOKEN}\nreader {READER} read\n")
        self.tokens.chmod(0o600)
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
            return process.wait(10)
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
    """Gateways that have nothing but a hub, which has SQLite."""

    def __init__(self, folder: Path) -> None:
        self.hub = HubProcess(folder / "hub", "sqlite:routing.db", "--keep")
        self.hub.start()
        self.url = self.hub.url

    async def write(self, entry: Entry, raw: bytes) -> None:
        # With access to the hub's file: it drops what is not what it was deposited as.
        db = sqlite3.connect(self.hub.folder / "routing.db", isolation_level=None)
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

    async def fail(self) -> None:
        await asyncio.to_thread(self.hub.kill)

    async def heal(self) -> None:
        await asyncio.to_thread(self.hub.start)

    def intruder(self) -> RoutingLayer:
        return open_engine(f"http://127.0.0.1:{self.hub.port}?token=s3cret-and-wrong")
