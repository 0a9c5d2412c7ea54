"""What a gateway's spool is promised by an engine that comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from gateway import drain as draining
from gateway.drain import Drain
from gateway.routing import EVERYTHING, Entry, RoutingLayer
from gateway.spool import Intake, Spool
from gateway.testing.entries import (
    ADDRESS,
    SIBLING,
    START,
    STRANGER,
    collect,
    entries_of,
    eventually,
    make_entry,
)
from gateway.testing.media import OutageConformance
from gateway.testing.suite import Engines
from qis_edge.core.packet import unpack
from qis_edge.worker import Disk


class Spooling:
    """A real spool, and the task that drains it into an engine, as in a gateway."""

    def __init__(self, folder: Path, engine: RoutingLayer) -> None:
        self.engine = engine
        self._path = folder / "spool.db"
        self._disk = Disk("spooling")
        self._start()

    def _start(self) -> None:
        self.spool = Spool(self._path, engines=[self.engine.url])
        self.drain = Drain(self.engine, self.spool, self._disk)
        self._task = asyncio.create_task(self.drain.run())

    async def admit(self, entries: Sequence[Entry]) -> None:
        """Packets come in from nodes."""
        batch = [Intake(unpack(entry.raw), START) for entry in entries]
        await self._disk(self.spool.admit, batch)
        self.drain.nudge()

    @property
    def waiting(self) -> int:
        """How many the engine does not have yet."""
        return self.spool.status().engines[0].behind

    async def behind(self) -> int:
        """:attr:`waiting`, on the spool's own thread."""
        return await self._disk(lambda: self.waiting)

    async def empty(self) -> bool:
        """Whether the engine has everything."""
        return await self.behind() == 0

    async def stop(self) -> None:
        """The gateway stops, wherever it is."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._disk(self.spool.close)

    async def restart(self) -> None:
        """The gateway stops and starts; what it had not noted as deposited comes again."""
        await self.stop()
        await self.engine.close()
        self._start()

    async def close(self) -> None:
        """For good."""
        await self.stop()
        self._disk.close()


class SpoolConformance(OutageConformance):
    """For engines that can be away: with a real spool and drain before them."""

    #: Packets that wait in the spool, and how many of them one deposit has.
    waiting, slice = 400, 20

    @contextlib.asynccontextmanager
    async def spooling(
        self, engines: Engines, folder: Path, patch: pytest.MonkeyPatch
    ) -> AsyncIterator[Spooling]:
        """A gateway with a spool, on the medium."""
        patch.setattr(draining, "SLICE", self.slice)
        patch.setattr(draining, "RETRY_FIRST", 0.05)
        patch.setattr(draining, "RETRY_LONGEST", 0.2)
        made = Spooling(folder, await engines.open("here"))
        try:
            yield made
        finally:
            await made.close()

    def packets(self, first: int, count: int) -> list[Entry]:
        """Of three addresses, mixed."""
        return [
            make_entry(number, fingerprint=(ADDRESS, SIBLING, STRANGER)[number * 7 % 3])
            for number in range(first, first + count)
        ]

    async def assert_followed(
        self, engine: RoutingLayer, entries: Sequence[Entry], order: str = "log"
    ) -> None:
        """Following from the beginning gives exactly these, in their order."""
        subscription = engine.follow(frozenset([EVERYTHING]))
        batches = await collect(subscription, len(entries), self.patience, live=True)
        with contextlib.suppress(TimeoutError):  # one that comes twice comes soon after
            batches += await collect(subscription, 1, self.quiet)
        await subscription.close()
        self.check_order(entries_of(batches), entries, order)

    @pytest.mark.asyncio
    async def test_away_in_the_middle_of_a_deposit_the_spool_holds(
        self, engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entries = self.packets(0, self.waiting)
        async with self.spooling(engines, tmp_path, monkeypatch) as gateway:
            await gateway.admit(entries[: self.waiting // 2])
            await eventually(lambda: gateway.drain.deposited >= self.slice, self.patience)
            await engines.world.fail()  # while it deposits
            await gateway.admit(entries[self.waiting // 2 :])
            await eventually(lambda: gateway.drain.away, self.patience)
            assert await gateway.behind() > 0
            await engines.world.heal()
            await eventually(gateway.empty, self.patience)
            assert gateway.drain.away is None
            await self.assert_followed(gateway.engine, entries)
            # Whoever comes later finds the same.
            there = await engines.open("there")
            await self.assert_followed(there, entries, self.order)

    @pytest.mark.asyncio
    async def test_a_gateway_that_starts_while_it_is_away_waits_for_it(
        self, engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entries = self.packets(0, self.slice * 3)
        async with self.spooling(engines, tmp_path, monkeypatch) as gateway:
            await gateway.admit(entries[: self.slice])
            await eventually(gateway.empty, self.patience)
            await engines.world.fail()
            await gateway.restart()
            await gateway.admit(entries[self.slice :])
            await eventually(lambda: gateway.drain.away, self.patience)
            await engines.world.heal()
            await eventually(gateway.empty, self.patience)
            await self.assert_followed(gateway.engine, entries)

    @pytest.mark.asyncio
    async def test_what_was_deposited_but_not_noted_comes_again_and_is_there_once(
        self, engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entries = self.packets(0, self.slice * 4)
        async with self.spooling(engines, tmp_path, monkeypatch) as gateway:
            await eventually(gateway.drain.opened.is_set, self.patience)
            await gateway.engine.deposit(entries[: self.slice + 5])  # and then it was killed
            await gateway.restart()
            await gateway.admit(entries)
            await eventually(gateway.empty, self.patience)
            assert gateway.drain.repeated == self.slice + 5
            assert gateway.drain.deposited == len(entries) - self.slice - 5
            await self.assert_followed(gateway.engine, entries)
