"""What only some media can be asked: to outlive a process, to be written to, to be away."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import pytest

from gateway.routing import EVERYTHING, Entry, Interest, RoutingLayer
from gateway.testing import depositor
from gateway.testing.entries import ADDRESS, collect, entries_of, eventually, make_entry
from gateway.testing.suite import Engines, RoutingConformance, RoutingWorld
from qis_edge.core.errors import RoutingError


class DurableConformance(RoutingConformance):
    """For engines whose medium outlives the process that deposits."""

    #: How often a depositing process is killed.
    kills = 3

    @pytest.mark.asyncio
    async def test_who_opens_it_later_finds_everything(self, engines: Engines) -> None:
        entries = [make_entry(number, vector=(1.0, number / 8)) for number in range(50)]
        first = await engines.open()
        await first.deposit(entries[:30])
        subscription = first.follow(frozenset([EVERYTHING]))
        before = await collect(subscription, 30, self.patience)
        await first.deposit(entries[30:])
        await first.close()
        second = await engines.open()
        assert second.incarnation == first.incarnation
        assert await second.query(Interest(ADDRESS), limit=100) == entries[::-1]
        assert await second.deposit(entries) == 0
        later = second.follow(frozenset([EVERYTHING]), before[-1].cursor)
        assert entries_of(await collect(later, 20, self.patience, live=True)) == entries[30:]
        await later.close()

    @pytest.mark.asyncio
    async def test_a_killed_depositor_loses_nothing_that_it_was_told_is_kept(
        self, engines: Engines
    ) -> None:
        kept: list[int] = []
        for kill in range(self.kills):
            kept += await self._deposit_until_killed(engines.world, kill)
        assert kept
        engine = await engines.open()
        wanted = {make_entry(number).id for number in kept}
        await eventually(lambda: self._finds(engine, wanted), self.patience)
        assert await engine.deposit([make_entry(number) for number in kept]) == 0

    async def _finds(self, engine: RoutingLayer, wanted: set[bytes]) -> bool:
        """Whether these are there, and nothing twice."""
        found = await engine.query(EVERYTHING, limit=100 * self.kills * 500)
        ids = [entry.id for entry in found]
        assert len(ids) == len(set(ids))
        return wanted <= set(ids)

    async def _deposit_until_killed(self, world: RoutingWorld, kill: int) -> list[int]:
        """The numbers of which the process said that they were deposited."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(
                "-m",
                depositor.__name__,
                world.url,
                str(world.folder_of("gateway") or ""),
                str(kill * 100_000),
            ),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        kept: list[int] = []
        try:
            async with asyncio.timeout(self.patience):
                enough = 40 + 23 * kill
                while len(kept) < enough:
                    kept.append(int(await process.stdout.readline()))
        finally:
            process.kill()
            rest, _ = await process.communicate()
        # The last line may have been cut.
        return kept + [int(line) for line in rest.split(b"\n")[:-1]]


class MediumConformance(RoutingConformance):
    """For engines that read back from where others can write: give ``RoutingWorld.write``."""

    @pytest.mark.asyncio
    async def test_what_others_wrote_there_is_dropped_and_counted(self, engines: Engines) -> None:
        engine = await engines.open()
        good = [make_entry(number, vector=(1.0, 1.0)) for number in range(20)]
        await engine.deposit(good[:10])
        bad = make_entry(100, vector=(1.0, 1.0))
        flipped = bytearray(bad.raw)
        flipped[40] ^= 1
        hostile = [b"", b"\0", b"no packet", bad.raw[:-1], bad.raw + b"\0", bytes(flipped)]
        for offset, raw in enumerate(hostile):
            await engines.world.write(make_entry(100 + offset, vector=(1.0, 1.0)), raw)
        await engine.deposit(good[10:])
        await eventually(lambda: self.holds(engine, good), self.patience)
        for interest in (Interest(ADDRESS), Interest(ADDRESS, 64)):
            assert await engine.query(interest, limit=3) == good[:-4:-1]
        assert len(await engine.query(Interest(ADDRESS), limit=12, vector=(1, 1))) == 12
        subscription = engine.follow(frozenset([EVERYTHING]))
        assert entries_of(await collect(subscription, 20, self.patience, live=True)) == good
        await subscription.close()
        await eventually(lambda: self._refused(engine, len(hostile)), self.patience)
        assert (await engine.status()).ok

    @staticmethod
    async def _refused(engine: RoutingLayer, count: int) -> bool:
        return (await engine.status()).refused >= count


class OutageConformance(RoutingConformance):
    """For engines that can be away: give ``RoutingWorld.fail`` and ``heal``."""

    @pytest.mark.asyncio
    async def test_it_goes_away_and_comes_back(self, engines: Engines) -> None:
        engine = await engines.open()
        entries = [make_entry(number) for number in range(30)]
        await engine.deposit(entries[:10])
        cursor = await engine.cursor()
        await engines.world.fail()
        for _ in range(2):
            with pytest.raises(RoutingError):
                await asyncio.wait_for(engine.deposit(entries[10:20]), self.patience)
        assert not (await engine.status()).ok
        await engines.world.heal()
        # The depositor says it again until it is taken, as the gateway's spool does.
        await eventually(lambda: self._deposited(engine, entries[10:20]), self.patience)
        await engine.deposit(entries[20:])
        assert (await engine.status()).ok
        await eventually(lambda: self.holds(engine, entries), self.patience)
        subscription = engine.follow(frozenset([EVERYTHING]), cursor)
        assert entries_of(await collect(subscription, 20, self.patience, live=True)) == entries[10:]
        await subscription.close()
        # Not only this gateway has kept it.
        there = await engines.open("there")
        await eventually(lambda: self.holds(there, entries), self.patience)

    @staticmethod
    async def _deposited(engine: RoutingLayer, entries: Sequence[Entry]) -> bool:
        try:
            await engine.deposit(entries)
        except RoutingError:
            return False
        return True
