"""From the spool to one routing engine, in order, at the engine's own pace.

Each engine has its own task and its own position in the spool: one that is away holds up
no other, and goes on where it was when it comes back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gateway.routing import RoutingLayer
from gateway.spool import Spool
from qis_edge.core.errors import RoutingError, StoreCorrupt, StoreError
from qis_edge.links.backoff import Backoff
from qis_edge.links.outage import Outage
from qis_edge.worker import Disk

log = logging.getLogger(__name__)

#: Packets of one deposit.
SLICE = 500
#: Seconds between attempts while an engine is away: the first, and the longest.
RETRY_FIRST, RETRY_LONGEST = 0.5, 60.0


class Drain:
    """Brings one engine everything that the spool has for it.

    :param advanced: called with the spool's position after each deposit.
    """

    def __init__(
        self,
        engine: RoutingLayer,
        spool: Spool,
        disk: Disk,
        advanced: Callable[[int], None] | None = None,
    ) -> None:
        self.engine = engine
        self._spool = spool
        self._disk = disk
        self._advanced = advanced or (lambda _: None)
        self._more = asyncio.Event()
        self.opened = asyncio.Event()
        self._outage = Outage(log, f"routing engine {engine.url}")
        self.away: str | None = None
        self.deposited = 0
        self.repeated = 0  # deposited again, after a crash between deposit and advance

    def nudge(self) -> None:
        """There is more in the spool."""
        self._more.set()

    async def run(self) -> None:
        """Open the engine and drain for ever; survives the engine's absence."""
        backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        while True:
            try:
                await self.engine.open()
                url = self.engine.url
                position = await self._disk(self._spool.engage, url, self.engine.incarnation)
                self._advanced(position)
                self.opened.set()
                await self._drain(url, backoff)
            except RoutingError as error:
                self._outage.cause(f"is away: {error}", error.hint)
                self.away = str(error)
                await asyncio.sleep(backoff.next())
            except StoreCorrupt:
                raise
            except StoreError:  # of the spool; said already
                await asyncio.sleep(backoff.next())

    async def _drain(self, url: str, backoff: Backoff) -> None:
        while True:
            self._more.clear()
            while await self._deposit(url):
                self._works(backoff)
            self._works(backoff)
            await self._more.wait()

    async def _deposit(self, url: str) -> bool:
        """Bring it the next few packets; whether there were any."""
        pending = await self._disk(self._spool.pending, url, SLICE)
        if pending.entries:
            new = await self.engine.deposit(pending.entries)
            self.deposited += new
            self.repeated += len(pending.entries) - new
        if pending.through <= self._spool.routed_through([url]):
            return False
        await self._disk(self._spool.advance, url, pending.through)
        self._advanced(pending.through)
        return True

    def _works(self, backoff: Backoff) -> None:
        """It has taken all that it was given: being open alone means nothing."""
        if self._outage.lasting:
            self._outage.over("is back")
        self.away = None
        backoff.reset()
