"""The watchdog is fed by what gets done, never by a timer alone.

A daemon names what must move for it to be alive: workers that must answer a question (each
works through its queue in order, so one that is stuck in a call never comes to it), and loops
whose rounds must go on. Only when all of it has moved does systemd hear of us; otherwise it
ends the daemon after ``WatchdogSec=`` and starts it anew. What is away outside (a broker, a
gateway, a routing engine, a full disk) is no reason: a restart would mend none of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from qis_edge.core.errors import QisError, StoreCorrupt
from qis_edge.service.notify import Notifier

log = logging.getLogger(__name__)

#: Seconds between status lines where there is no watchdog.
PACE = 30.0

#: Asks a worker something; returns what there is to say of it, or "".
Answer = Callable[[], Awaitable[str]]


class Supervisor:
    """Tells systemd how a daemon is doing, from when it serves until it ends.

    :param answers: by name, what must answer.
    :param rounds: by name, a count that must grow.
    :param slowest: seconds that a round may always take, however short the watchdog's limit.
    """

    def __init__(
        self,
        answers: Mapping[str, Answer],
        rounds: Mapping[str, Callable[[], int]],
        notifier: Notifier | None = None,
        *,
        slowest: float = 15.0,
    ) -> None:
        self._slowest = slowest
        self._notifier = Notifier.of() if notifier is None else notifier
        self._answers = answers
        self._rounds = rounds
        now = time.monotonic()
        self._moved = {name: (count(), now) for name, count in rounds.items()}
        self._silent: set[str] = set()

    async def run(self) -> None:
        """Until it is cancelled."""
        if self._notifier.address is None:
            await asyncio.Event().wait()
        limit = self._notifier.watchdog
        self._notifier.ready("serving")
        try:
            while True:
                said = await self._ask()
                if limit is None:
                    self._notifier.say(said)
                elif self._all_move(max(limit / 2, self._slowest)):
                    self._notifier.alive(said)
                await asyncio.sleep(PACE if limit is None else min(limit / 4, PACE))
        finally:
            self._notifier.stopping()

    async def _ask(self) -> str:
        """What all of them say, when all of them have answered, however long that takes."""
        said = []
        for name, answer in self._answers.items():
            asked = asyncio.ensure_future(answer())
            try:
                await self._wait(name, asked)
            finally:
                asked.cancel()
            try:
                said.append(asked.result())
            except StoreCorrupt:
                raise
            except QisError as error:  # an answer, too
                said.append(str(error))
        return "; ".join(filter(None, said))

    async def _wait(self, name: str, asked: asyncio.Future[str]) -> None:
        """Until it is done; say it where that takes so long that the end is near."""
        limit = self._notifier.watchdog
        done, _ = await asyncio.wait([asked], timeout=None if limit is None else limit / 2)
        if not done:
            self._stuck(name)
            await asyncio.wait([asked])
        if name in self._silent:
            self._silent.discard(name)
            log.info("%s answers again", name)

    def _all_move(self, patience: float) -> bool:
        now = time.monotonic()
        moving = True
        for name, count in self._rounds.items():
            before, since = self._moved[name]
            if (current := count()) != before:
                self._moved[name] = (current, now)
                if name in self._silent:
                    self._silent.discard(name)
                    log.info("%s goes on", name)
            elif now - since > patience:
                self._stuck(name)
                moving = False
        return moving

    def _stuck(self, name: str) -> None:
        if name not in self._silent:
            self._silent.add(name)
            log.error("%s is stuck: systemd will start this daemon anew if it stays so", name)
