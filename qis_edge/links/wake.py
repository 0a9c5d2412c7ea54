"""A wake-up for those who watch a state: what :meth:`Link.changed` is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Wake:
    """Waiters sleep until the next :meth:`notify` after their *call* of :meth:`changed`.

    The call itself takes note of where things stand, not the first ``await``: whoever
    looks at the state, calls, and only later gets round to waiting misses nothing.
    """

    def __init__(self) -> None:
        self._count = 0
        self._ended = False
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Something may have changed: wake everyone."""
        self._count += 1
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def end(self) -> None:
        """Nothing will change any more: wake everyone, now and from now on."""
        self._ended = True
        self.notify()

    def changed(self) -> Coroutine[Any, Any, None]:
        """Wait for the next :meth:`notify` after this call."""
        return self._past(self._count)

    async def _past(self, count: int) -> None:
        if self._ended or self._count != count:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
