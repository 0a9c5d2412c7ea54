"""Frames in batches: whatever a link has brought by the time somebody looks."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Self

from qis_edge.core.errors import LinkError
from qis_edge.links.base import Link, Received


class Batches:
    """Takes frames off a link as they come, a bounded number ahead of its reader.

    :param most: frames of one batch; twice as many may wait here, the rest in the link.
    """

    def __init__(self, link: Link, most: int) -> None:
        self._link = link
        self._most = most
        self._waiting: deque[Received] = deque()
        self._arrived = asyncio.Event()
        self._slots = asyncio.Semaphore(2 * most)
        self._pump: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._pump = asyncio.create_task(self._take())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._pump is not None:
            self._pump.cancel()

    async def _take(self) -> None:
        try:
            while True:
                await self._slots.acquire()
                self._waiting.append(await self._link.receive())
                self._arrived.set()
        except LinkError:  # closed
            pass
        finally:
            self._arrived.set()

    async def next(self) -> list[Received]:
        """At least one frame, at most a batch; empty once the link is closed."""
        assert self._pump is not None
        while not self._waiting:
            if self._pump.done():
                return []
            self._arrived.clear()
            await self._arrived.wait()
        batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        for _ in batch:
            self._slots.release()
        return batch
