"""A wire between a client and a broker: it can be cut without a word, and be slow."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self


class Wire:
    """Forwards connections to a port of the loopback; its own is :attr:`port`.

    While it is :attr:`cut`, nothing comes through in either direction and nobody is told, as
    where a router forgot a connection or a modem has no signal.

    :param rate: bytes a second that come through, each way of each connection.
    """

    def __init__(self, to: int, *, rate: float = float("inf")) -> None:
        self._to = to
        self.rate = rate
        self.port = 0
        #: Connections that were made so far.
        self.connections = 0
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """How a client finds it."""
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def cut(self) -> bool:
        """Whether nothing comes through."""
        return not self._whole.is_set()

    @cut.setter
    def cut(self, value: bool) -> None:
        if value:
            self._whole.clear()
        else:
            self._whole.set()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        ends = [writer]
        try:
            await self._whole.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
            ends.append(back)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, back))
                both.create_task(self._pump(there, writer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for end in ends:
                end.close()
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await end.wait_closed()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(1024):
            await self._whole.wait()
            sink.write(data)
            await sink.drain()
            if self.rate != float("inf"):
                await asyncio.sleep(len(data) / self.rate)
        raise ConnectionResetError  # the other way ends too
