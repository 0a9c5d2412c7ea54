"""``qdrant+edge:PATH``: Qdrant's engine embedded, in a folder on this machine.

The shard belongs to one process at a time, a small one beside the gateway (see
:mod:`gateway.routing.qdrant_shard`), which the engines of one path in one gateway share.
``seq`` numbers the packets in the order in which that process took them: what followers go
by. A deposit is synced to the disk before it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cbor2

from gateway.routing.base import (
    Context,
    EngineStatus,
    Entry,
    Interest,
    check_query,
)
from gateway.routing.following import Coverage, LogEngine, Slice
from gateway.routing.url import EngineUrl
from qis_edge.core.errors import RoutingError
from qis_edge.worker import Worker

#: Interests that the shard itself sorts out; with more, every packet is looked at here.
FEW_INTERESTS = 64

#: Seconds to wait for another process that has the shard open: the gateway of before may
#: still be syncing. And where the process was lost, when nobody else should have it.
FIRST_WAIT = 5.0
AGAIN_WAIT = 1.0

_SHARD = "gateway.routing.qdrant_shard"


class QdrantEdgeEngine(LogEngine):
    """See :class:`gateway.routing.base.RoutingLayer`."""

    def __init__(self, url: EngineUrl, context: Context | None = None) -> None:
        """:raises RoutingError: there is no path, there is a host or an option, or the
        embedded engine is not installed.
        """
        super().__init__()
        # Only the other process loads it: it takes 35 MB.
        if importlib.util.find_spec("qdrant_edge") is None:
            raise RoutingError(
                "qdrant+edge: the module qdrant_edge is missing",
                hint="pip install 'qis-edge[qdrant-edge]'",
            )
        url.only(())
        if url.hosts or not url.path:
            raise RoutingError(
                f"{url}: must name a folder",
                hint="write qdrant+edge:routing.qdrant; for a server, qdrant://host:6333",
            )
        folder = (context or Context()).folder
        self.url = str(url)
        self.path = ((folder or Path()) / url.path).absolute()
        self._owner: _Owner | None = None
        self._opening = asyncio.Lock()
        self._error = ""

    async def _last(self) -> int:
        return self._ready().last

    def _ready(self) -> _Owner:
        if self._owner is None:
            raise RoutingError(f"{self.url}: not open")
        return self._owner

    async def _ask(self, verb: str, *arguments: Any) -> Any:
        return await self._ready().ask(self.url, verb, *arguments)

    # --- the interface -----------------------------------------------------------------

    async def open(self) -> None:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        async with self._opening:
            if self._owner is not None:
                return
            owner = _Owner.of(self.path)
            try:
                self._token = await owner.start(self.url)
            except BaseException:
                await owner.leave()
                raise
            self._owner = owner

    async def close(self) -> None:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        async with self._opening:
            self._stop_following()
            owner, self._owner = self._owner, None
            if owner is not None:
                await owner.leave()

    async def deposit(self, entries: Sequence[Entry]) -> int:
        """See :class:`gateway.routing.base.RoutingLayer`. Synced to the disk."""
        owner = self._ready()
        if not entries:
            return 0
        try:
            added: int = (await owner.ask(self.url, "deposit", [list(e) for e in entries]))[0]
        except RoutingError as error:
            self._error = str(error)
            raise
        self._error = ""
        return added

    async def query(
        self,
        interest: Interest,
        *,
        limit: int = 50,
        since: int | None = None,
        confidence: int = 0,
        vector: Sequence[float] | None = None,
    ) -> list[Entry]:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        check_query(limit, vector)
        asked = [interest.fingerprint, interest.bits, since, confidence]
        if vector is None:
            return _entries(await self._ask("newest", asked, limit))
        values = [float(value) for value in vector]
        return _entries(await self._ask("nearest", asked, limit, values))

    async def expire(self, now: int) -> int:
        """See :class:`gateway.routing.base.RoutingLayer`. In slices, between which others come."""
        dropped = 0
        while count := await self._ask("expire", now):
            dropped += count
        if dropped:
            await self._ask("sync")
            await self._ask("tidy")
        return dropped

    async def status(self) -> EngineStatus:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        try:
            packets, size, refused = await self._ask("status")
        except RoutingError as error:
            return EngineStatus(self.url, ok=False, packets=None, detail=str(error))
        return EngineStatus(self.url, not self._error, packets, size, refused, self._error)

    # --- the log, for its subscriptions ------------------------------------------------

    async def read(self, interests: frozenset[Interest], after: int) -> Slice:
        """The next few hundred entries after a position."""
        owner = self._ready()
        version = owner.version
        coverage = Coverage(interests)
        few = len(interests) <= FEW_INTERESTS and not coverage.everything
        asked = [[one.fingerprint, one.bits] for one in interests] if few else None
        columns, position, end = await self._ask("slice", asked, after)
        entries = _entries(columns)
        if not few and not coverage.everything:
            entries = [entry for entry in entries if entry.fingerprint in coverage]
        return Slice(tuple(entries), position, end, version)

    async def changed(self, version: int) -> None:
        """Until something was deposited after that version."""
        owner = self._ready()
        if owner.version == version:
            await owner.change.wait()


class _Owner:
    """The process of a shard, for all engines of its path in this one. It is started anew
    when it was lost."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._users = 0
        self._loop = asyncio.get_running_loop()
        self._worker = Worker("qdrant-edge")
        self._process: subprocess.Popen[bytes] | None = None
        self._token = b""
        #: The last number of the log.
        self.last = 0
        #: Another after each deposit that brought something.
        self.version = 0
        self.change = asyncio.Event()

    @classmethod
    def of(cls, path: Path) -> _Owner:
        """Of a path, one more user of it: :meth:`leave` when done."""
        owner = _owners.get(path)
        if owner is None:
            owner = _owners[path] = cls(path)
        owner._users += 1
        return owner

    async def leave(self) -> None:
        """The last user's leaving ends the process, once it has synced."""
        self._users -= 1
        if self._users:
            return
        if _owners.get(self._path) is self:
            del _owners[self._path]
        await self._worker(self._end)
        self._worker.close()

    async def start(self, url: str) -> bytes:
        """The shard's token; starts its process where there is none."""
        await self._worker(self._running, url)
        return self._token

    async def ask(self, url: str, verb: str, *arguments: Any) -> Any:
        """What the shard answers. It is asked even if the caller is cancelled.

        :raises RoutingError: it could not do that, or its process was lost.
        """
        return await self._worker(self._exchange, url, verb, *arguments)

    # --- on the worker's thread --------------------------------------------------------

    def _exchange(self, url: str, verb: str, *arguments: Any) -> Any:
        process = self._running(url)
        answer = self._converse(process, url, [verb, *arguments])
        if verb == "deposit":
            added, self.last = answer
            if added:
                self._loop.call_soon_threadsafe(self._changed)
        return answer

    def _running(self, url: str) -> subprocess.Popen[bytes]:
        if self._process is None:
            wait = AGAIN_WAIT if self._token else FIRST_WAIT
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", _SHARD, str(self._path), str(wait)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            except OSError as error:
                raise RoutingError(f"{url}: {error.strerror}") from error
            self._process = process
            self._token, self.last = self._converse(process, url, None, end=True)
        return self._process

    def _converse(
        self, process: subprocess.Popen[bytes], url: str, message: Any, *, end: bool = False
    ) -> Any:
        """:param end: end the process where it says no."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if message is not None:
                _send(process.stdin, message)
            good, answer = _receive(process.stdout)
        except (OSError, EOFError) as error:
            code = self._end()
            raise RoutingError(
                f"{url}: the process that owns the shard ended ({_how(code)})",
                hint="it is started again with the next call",
            ) from error
        except BaseException:
            self._end()  # whatever is said next would answer another question
            raise
        if not good:
            if end:
                self._end()
            raise RoutingError(f"{url}: {answer}", hint=_hint(answer))
        return answer

    def _end(self) -> int:
        """Close its input, wait for its end; how it ended."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(OSError):  # what was not sent
            process.__exit__(None, None, None)
        return process.wait()

    # --- on the loop -------------------------------------------------------------------

    def _changed(self) -> None:
        self.version += 1
        self.change.set()
        self.change = asyncio.Event()


#: By path.
_owners: dict[Path, _Owner] = {}


def _send(sink: Any, message: Any) -> None:
    body = cbor2.dumps(message)
    sink.write(len(body).to_bytes(4) + body)
    sink.flush()


def _receive(source: Any) -> Any:
    """:raises EOFError: the other process has ended."""
    head = source.read(4)
    size = int.from_bytes(head)
    body = source.read(size) if len(head) == 4 else b""
    if len(head) < 4 or len(body) < size:
        raise EOFError
    return cbor2.loads(body)


def _entries(columns: Sequence[Sequence[Any]]) -> list[Entry]:
    if not columns:
        return []
    *others, vectors = columns
    read = [None if one is None else tuple(map(float, one)) for one in vectors]
    return [Entry._make(row) for row in zip(*others, read, strict=True)]


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"code {code}"


def _hint(answer: str) -> str:
    if answer == "in use by another process":
        return "one process at a time may have it open; several gateways share a qdrant: server"
    return (
        "check the folder and the space on its disk; if the shard is damaged, move it away: "
        "the gateway deposits anew what its spool still has"
    )
