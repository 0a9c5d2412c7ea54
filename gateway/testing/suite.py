"""What every routing engine does."""

# ruff: noqa: S311 - draws of tests are not secrets
from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal

import pytest
import pytest_asyncio

from gateway.routing import (
    EVERYTHING,
    Context,
    Cursor,
    Entry,
    Interest,
    RoutingLayer,
    Subscription,
    open_engine,
)
from gateway.routing.base import MAX_CURSOR, framed_id
from gateway.testing.entries import (
    ADDRESS,
    HOUR,
    NEIGHBOUR,
    SIBLING,
    START,
    STRANGER,
    accept,
    collect,
    entries_of,
    eventually,
    make_entry,
)
from qis_edge.core.errors import RoutingError, UsageError


class RoutingWorld(ABC):
    """A medium, and engines on it."""

    #: The URL of the medium and a folder, for suites that start processes.
    url: str
    folder: Path | None = None
    #: Whether each gateway has a folder of its own, because the medium is elsewhere and the
    #: folder has what a gateway keeps beside it. False where the folder is the medium.
    folder_each = False

    def folder_of(self, gateway: str) -> Path | None:
        """The folder of a gateway's engine."""
        if self.folder is None or not self.folder_each:
            return self.folder
        return self.folder / gateway

    def context(self, gateway: str = "gateway") -> Context:
        """What surrounds a gateway's engine: it verifies what it reads back."""
        return Context(accept=accept, folder=self.folder_of(gateway), name=gateway)

    def engine(self, gateway: str = "gateway") -> RoutingLayer:
        """An engine on this medium, not open: of this gateway."""
        return open_engine(self.url, self.context(gateway))

    async def write(self, entry: Entry, raw: bytes) -> None:
        """As a stranger who can write to the medium: put ``raw`` where a gateway would have
        put the packet of ``entry`` (which is not there)."""
        raise NotImplementedError

    async def fail(self) -> None:
        """Take the medium away. Deposits then fail within the suite's patience."""
        raise NotImplementedError

    async def heal(self) -> None:
        """Bring it back, with all that it had promised to keep."""
        raise NotImplementedError

    def intruder(self) -> RoutingLayer:
        """An engine whose login the medium refuses, not open."""
        raise NotImplementedError


class Engines:
    """Opens engines, and closes them at the end."""

    def __init__(self, world: RoutingWorld) -> None:
        self.world = world
        self._opened: list[RoutingLayer] = []

    async def open(self, gateway: str = "gateway") -> RoutingLayer:
        engine = self.world.engine(gateway)
        self._opened.append(engine)
        await engine.open()
        return engine

    async def close(self) -> None:
        for engine in self._opened:
            await engine.close()


class RoutingConformance(ABC):
    """What every engine does."""

    #: Seconds that a single thing may take.
    patience = 60.0
    #: Seconds after which what has not come is not coming.
    quiet = 0.3
    #: Packets for the longer tests.
    many = 1500
    #: ``expire`` drops what expired (and does not leave that to the medium).
    expires = True
    #: In which order a gateway finds what another deposited: that of the ``log``, within
    #: each ``address``, or ``none``. Its own deposits have their order.
    order: Literal["log", "address", "none"] = "log"

    @abstractmethod
    def world(self, folder: Path) -> AbstractAsyncContextManager[RoutingWorld]:
        """A fresh medium with nothing on it."""

    @pytest_asyncio.fixture
    async def engines(self, tmp_path: Path) -> AsyncIterator[Engines]:
        """Opens engines on a fresh medium."""
        async with self.world(tmp_path) as world:
            engines = Engines(world)
            try:
                yield engines
            finally:
                await engines.close()

    @pytest_asyncio.fixture
    async def engine(self, engines: Engines) -> RoutingLayer:
        """An open engine on a fresh medium."""
        return await engines.open()

    # - opening and closing

    @pytest.mark.asyncio
    async def test_nothing_works_before_it_is_open(self, engines: Engines) -> None:
        engine = engines.world.engine()
        with pytest.raises(RoutingError):
            await engine.deposit([make_entry(1)])
        with pytest.raises(RoutingError):
            await engine.query(Interest(ADDRESS))
        assert not (await engine.status()).ok

    @pytest.mark.asyncio
    async def test_it_opens_and_closes_more_than_once(self, engine: RoutingLayer) -> None:
        await engine.open()
        born = engine.incarnation
        await engine.deposit([make_entry(1)])
        await engine.close()
        await engine.close()
        assert not (await engine.status()).ok
        await engine.open()
        assert engine.incarnation == born
        assert await engine.deposit([make_entry(2)]) == 1
        assert (await engine.status()).ok

    @pytest.mark.asyncio
    async def test_its_status_says_what_it_holds(self, engine: RoutingLayer) -> None:
        await engine.deposit([make_entry(number) for number in range(3)])
        await engine.deposit([make_entry(1), make_entry(7)])
        status = await engine.status()
        assert status.ok
        assert status.url == engine.url
        assert status.packets in (4, None)
        assert status.refused == 0

    # - deposit

    @pytest.mark.asyncio
    async def test_a_deposit_says_how_many_were_new(self, engine: RoutingLayer) -> None:
        first = [make_entry(number) for number in range(5)]
        assert await engine.deposit(first) == 5
        assert await engine.deposit(first) == 0
        assert await engine.deposit([*first, make_entry(5), make_entry(5)]) == 1
        assert await engine.deposit([]) == 0
        assert len(await engine.query(Interest(ADDRESS))) == 6

    @pytest.mark.asyncio
    async def test_what_was_deposited_comes_back_as_it_was(self, engine: RoutingLayer) -> None:
        deposited = [
            make_entry(1),
            make_entry(2, vector=(0.125, -3.0), confidence=0.31),
            make_entry(3, outcomes=24),
            make_entry(4, outcomes=100),
            make_entry(2**32 - 1, time=START + 9 * HOUR, ttl=0),
        ]
        await engine.deposit(deposited)
        assert await engine.query(Interest(ADDRESS)) == deposited[::-1]
        subscription = engine.follow(frozenset([EVERYTHING]))
        assert entries_of(await collect(subscription, 5, self.patience)) == deposited
        await subscription.close()

    @pytest.mark.asyncio
    async def test_what_two_have_signed_is_kept_of_both(self, engine: RoutingLayer) -> None:
        # The same payload, so the same id of the packet: anybody can sign another's.
        copies = [make_entry(1, identity=NEIGHBOUR) for _ in range(2)]
        own = make_entry(1)
        assert framed_id(own.raw) == framed_id(copies[0].raw)
        assert await engine.deposit(copies) == 1
        assert await engine.deposit([own]) == 1
        assert await engine.deposit([*copies, own]) == 0
        assert await engine.query(Interest(ADDRESS)) == [own, copies[0]]
        subscription = engine.follow(frozenset([EVERYTHING]))
        found = entries_of(await collect(subscription, 2, self.patience, live=True))
        assert sorted(found) == sorted([own, copies[0]])
        await subscription.close()

    # - query

    @pytest.mark.asyncio
    async def test_the_newest_come_first_whenever_they_came(self, engine: RoutingLayer) -> None:
        entries = [make_entry(number) for number in range(40)]
        shuffled = random.Random(5).sample(entries, len(entries))
        for start in range(0, 40, 7):
            await engine.deposit(shuffled[start : start + 7])
        assert await engine.query(Interest(ADDRESS)) == entries[::-1]
        assert await engine.query(Interest(ADDRESS), limit=3) == entries[:-4:-1]
        assert await engine.query(Interest(ADDRESS), limit=1) == entries[-1:]
        assert await engine.query(Interest(ADDRESS), limit=0) == []

    @pytest.mark.asyncio
    async def test_of_the_same_time_the_last_deposited_comes_first(
        self, engine: RoutingLayer
    ) -> None:
        entries = [make_entry(number, time=START) for number in (4, 1, 9, 2, 7)]
        await engine.deposit(entries[:2])
        await engine.deposit(entries[2:])
        assert await engine.query(Interest(ADDRESS)) == entries[::-1]
        assert await engine.query(Interest(ADDRESS, 8), limit=2) == entries[:-3:-1]

    @pytest.mark.asyncio
    async def test_an_address_holds_only_its_own(self, engine: RoutingLayer) -> None:
        here, there = make_entry(1), make_entry(2, fingerprint=SIBLING)
        await engine.deposit([here, there])
        assert await engine.query(Interest(ADDRESS)) == [here]
        assert await engine.query(Interest(SIBLING)) == [there]
        assert await engine.query(Interest(STRANGER)) == []

    @pytest.mark.asyncio
    async def test_since_includes_its_second(self, engine: RoutingLayer) -> None:
        entries = [make_entry(number) for number in range(10)]
        await engine.deposit(entries)
        since = entries[6].time
        for interest in (Interest(ADDRESS), Interest(ADDRESS, 64)):
            assert await engine.query(interest, since=since) == entries[:5:-1]
            assert await engine.query(interest, since=since + 1) == entries[:6:-1]
            assert await engine.query(interest, since=0, limit=2) == entries[:-3:-1]
            assert await engine.query(interest, since=entries[-1].time + 1) == []

    @pytest.mark.asyncio
    async def test_those_that_are_not_sure_enough_are_left_out(self, engine: RoutingLayer) -> None:
        entries = [make_entry(number, confidence=number / 10) for number in range(10)]
        await engine.deposit(entries)
        for interest in (Interest(ADDRESS), Interest(ADDRESS, 64)):
            assert await engine.query(interest, confidence=70) == entries[:6:-1]
            assert await engine.query(interest, confidence=70, limit=1) == entries[-1:]
            assert await engine.query(interest, confidence=91) == []

    @pytest.mark.asyncio
    async def test_a_prefix_takes_in_more(self, engine: RoutingLayer) -> None:
        here = make_entry(1)
        sibling = make_entry(2, fingerprint=SIBLING)
        stranger = make_entry(3, fingerprint=STRANGER)
        await engine.deposit([stranger, here, sibling])
        assert await engine.query(Interest(ADDRESS, 256)) == [here]
        assert await engine.query(Interest(ADDRESS, 65)) == [here]
        assert await engine.query(Interest(ADDRESS, 64)) == [sibling, here]
        # 0x5a and 0xc3 differ in their first bit.
        assert await engine.query(Interest(ADDRESS, 1)) == [sibling, here]
        assert await engine.query(Interest(ADDRESS, 0)) == [stranger, sibling, here]
        assert await engine.query(Interest(ADDRESS, 64), limit=1) == [sibling]

    @pytest.mark.asyncio
    async def test_a_prefix_is_newest_first_over_its_addresses(self, engine: RoutingLayer) -> None:
        draw = random.Random(11)
        entries = [
            make_entry(
                number,
                fingerprint=ADDRESS[:8] + bytes([draw.randrange(30)]) * 24,
                time=START + HOUR * draw.randrange(20),
            )
            for number in range(200)
        ]
        await engine.deposit(entries)
        backwards = entries[::-1]  # of the same time, the last deposited comes first
        last_first = sorted(backwards, key=lambda entry: -entry.time)
        interest = Interest(ADDRESS, 64)
        assert await engine.query(interest, limit=200) == last_first
        assert await engine.query(interest, limit=17) == last_first[:17]

    @pytest.mark.asyncio
    async def test_the_nearest_come_first_for_a_vector(self, engine: RoutingLayer) -> None:
        right, up, left = (
            make_entry(number, vector=vector)
            for number, vector in enumerate([(1.0, 0.1), (0.2, 2.0), (-5.0, 0.0)])
        )
        await engine.deposit([left, up, right])
        assert await engine.query(Interest(ADDRESS), vector=(3, 0)) == [right, up, left]
        assert await engine.query(Interest(ADDRESS), vector=(0, 0.001)) == [up, right, left]
        assert await engine.query(Interest(ADDRESS), vector=(0, 1), limit=1) == [up]
        assert await engine.query(Interest(ADDRESS, 8), vector=(-1, 0), limit=2) == [left, up]

    @pytest.mark.asyncio
    async def test_without_a_like_vector_they_come_last(self, engine: RoutingLayer) -> None:
        opposite = make_entry(1, vector=(-1.0, 0.0))
        bare = make_entry(2)
        longer = make_entry(3, vector=(1.0, 0.0, 0.0))
        nowhere = make_entry(4, vector=(0.0, 0.0))
        older_twin = make_entry(5, vector=(2.0, 2.0))
        twin = make_entry(6, vector=(1.0, 1.0))
        far = make_entry(7, fingerprint=STRANGER, vector=(1.0, 0.0))
        everything = [opposite, bare, longer, nowhere, older_twin, twin, far]
        await engine.deposit(everything)
        expected = [twin, older_twin, opposite, nowhere, longer, bare]
        found = await engine.query(Interest(ADDRESS), vector=(1, 0))
        assert found == expected
        assert await engine.query(Interest(ADDRESS), vector=(1, 0), limit=4) == expected[:4]
        assert await engine.query(
            Interest(ADDRESS), vector=(1, 0), since=bare.time, confidence=90
        ) == [twin, older_twin, nowhere, longer, bare]

    @pytest.mark.asyncio
    async def test_what_cannot_be_asked_is_refused(self, engine: RoutingLayer) -> None:
        with pytest.raises(UsageError):
            await engine.query(Interest(ADDRESS), limit=-1)
        for vector in ((0.0, 0.0), (), (float("nan"),), (float("inf"), 1.0)):
            with pytest.raises(UsageError):
                await engine.query(Interest(ADDRESS), vector=vector)

    # - follow

    @pytest.mark.asyncio
    async def test_following_nothing_is_live_at_once(self, engine: RoutingLayer) -> None:
        subscription = engine.follow(frozenset([Interest(ADDRESS)]))
        (batch,) = await collect(subscription, 0, self.patience, live=True)
        assert batch.live
        assert batch.entries == ()
        await subscription.close()

    @pytest.mark.asyncio
    async def test_it_replays_in_order_and_goes_on_live(self, engine: RoutingLayer) -> None:
        entries = [make_entry(number) for number in range(self.many)]
        shuffled = random.Random(2).sample(entries, len(entries))
        await engine.deposit(shuffled[:-2])
        subscription = engine.follow(frozenset([Interest(ADDRESS)]))
        replayed = await collect(subscription, len(entries) - 2, self.patience, live=True)
        assert entries_of(replayed) == shuffled[:-2]
        assert [batch.live for batch in replayed] == sorted(batch.live for batch in replayed)
        for entry in shuffled[-2:]:
            await engine.deposit([entry])
            (batch,) = await collect(subscription, 1, self.patience)
            assert batch.live
            assert batch.entries == (entry,)
        await subscription.close()

    @pytest.mark.asyncio
    async def test_only_what_is_of_interest_comes(self, engine: RoutingLayer) -> None:
        entries = [
            make_entry(number, fingerprint=(ADDRESS, SIBLING, STRANGER)[number % 3])
            for number in range(12)
        ]
        await engine.deposit(entries)
        for interests, expected in (
            ({Interest(ADDRESS)}, entries[::3]),
            ({Interest(ADDRESS, 64)}, [e for e in entries if e.fingerprint != STRANGER]),
            ({Interest(ADDRESS), Interest(STRANGER, 200)}, [*entries[::3], *entries[2::3]]),
            ({Interest(ADDRESS), Interest(ADDRESS, 8)}, [*entries[::3], *entries[1::3]]),
            (set(), []),
        ):
            subscription = engine.follow(frozenset(interests))
            found = entries_of(await collect(subscription, 0, self.patience, live=True))
            assert found == sorted(expected, key=entries.index)
            await subscription.close()

    @pytest.mark.asyncio
    async def test_who_wants_only_what_is_new_gets_only_that(self, engine: RoutingLayer) -> None:
        await engine.deposit([make_entry(1)])
        cursor = await engine.cursor()
        assert len(cursor) <= MAX_CURSOR
        await engine.deposit([make_entry(2)])
        subscription = engine.follow(frozenset([EVERYTHING]), cursor)
        assert entries_of(await collect(subscription, 1, self.patience)) == [make_entry(2)]
        await subscription.close()

    @pytest.mark.asyncio
    async def test_who_comes_late_gets_exactly_what_was_missed(self, engines: Engines) -> None:
        engine = await engines.open()
        entries = [make_entry(number) for number in range(self.many)]
        await engine.deposit(entries[: self.many // 3])
        subscription = engine.follow(frozenset([Interest(ADDRESS)]))
        before = await collect(subscription, self.many // 3, self.patience)
        await subscription.close()
        await engine.deposit(entries[self.many // 3 : -1])
        later = engine.follow(frozenset([Interest(ADDRESS)]), before[-1].cursor)
        missed = await collect(later, self.many * 2 // 3 - 1, self.patience, live=True)
        await engine.deposit(entries[-1:])
        live = await collect(later, 1, self.patience)
        await later.close()
        assert entries_of([*before, *missed, *live]) == entries

    @pytest.mark.asyncio
    async def test_every_cursor_is_a_place_to_go_on(self, engine: RoutingLayer) -> None:
        entries = [
            make_entry(number, fingerprint=(ADDRESS, STRANGER)[number % 5 == 0])
            for number in range(self.many)
        ]
        expected = [entry for entry in entries if entry.fingerprint == ADDRESS]
        for start in range(0, self.many, 400):
            await engine.deposit(entries[start : start + 400])
        subscription = engine.follow(frozenset([Interest(ADDRESS)]))
        batches = await collect(subscription, len(expected), self.patience, live=True)
        cursors = [batch.cursor for batch in batches] + [subscription.cursor]
        await subscription.close()
        seen = 0
        for batch, cursor in zip([*batches, None], cursors, strict=True):
            seen += len(batch.entries) if batch is not None else 0
            assert len(cursor) <= MAX_CURSOR
            again = engine.follow(frozenset([Interest(ADDRESS)]), cursor)
            rest = await collect(again, 0, self.patience, live=True)
            await again.close()
            assert entries_of(rest) == expected[seen:]

    @pytest.mark.asyncio
    async def test_the_cursor_moves_past_what_is_of_no_interest(self, engine: RoutingLayer) -> None:
        subscription = engine.follow(frozenset([Interest(ADDRESS)]))
        await collect(subscription, 0, self.patience, live=True)
        start = subscription.cursor
        waiting = asyncio.ensure_future(anext(aiter(subscription)))
        await engine.deposit([make_entry(1, fingerprint=STRANGER)])
        await eventually(lambda: subscription.cursor != start, self.patience)
        assert not waiting.done()
        await subscription.close()
        with pytest.raises(StopAsyncIteration):
            await waiting
        later = engine.follow(frozenset([EVERYTHING]), subscription.cursor)
        assert entries_of(await collect(later, 0, self.patience, live=True)) == []
        await later.close()

    @pytest.mark.asyncio
    async def test_a_cursor_that_it_does_not_know_is_the_beginning(
        self, engine: RoutingLayer
    ) -> None:
        entries = [make_entry(number) for number in range(3)]
        await engine.deposit(entries)
        known = await engine.cursor()
        flipped = bytes([known[0] ^ 0x80]) + known[1:] if known else b"\x80"
        foreign: list[Cursor] = [b"", b"\0", flipped, bytes(MAX_CURSOR), b"\xff" * MAX_CURSOR]
        for cursor in foreign:
            subscription = engine.follow(frozenset([EVERYTHING]), cursor)
            assert entries_of(await collect(subscription, 3, self.patience)) == entries, cursor
            await subscription.close()

    @pytest.mark.asyncio
    async def test_interests_change_while_following(self, engine: RoutingLayer) -> None:
        first = make_entry(1)
        await engine.deposit([first, make_entry(2, fingerprint=STRANGER)])
        subscription = engine.follow(frozenset([Interest(ADDRESS)]))
        assert entries_of(await collect(subscription, 1, self.patience, live=True)) == [first]
        # While it waits: the change is for what comes after, not for what lies behind.
        waiting = asyncio.ensure_future(anext(aiter(subscription)))
        await asyncio.sleep(0)
        subscription.update(frozenset([Interest(STRANGER)]))
        third = make_entry(3, fingerprint=STRANGER)
        await engine.deposit([make_entry(4), third])
        async with asyncio.timeout(self.patience):
            assert (await waiting).entries == (third,)
        subscription.update(frozenset([EVERYTHING]))
        both = [make_entry(5), make_entry(6, fingerprint=STRANGER)]
        await engine.deposit(both)
        assert entries_of(await collect(subscription, 2, self.patience)) == both
        await subscription.close()

    @pytest.mark.asyncio
    async def test_interests_change_while_a_batch_is_under_way(self, engine: RoutingLayer) -> None:
        subscription = engine.follow(frozenset([Interest(ADDRESS)]))
        await collect(subscription, 0, self.patience, live=True)
        here, there = make_entry(1), make_entry(2, fingerprint=STRANGER)
        await engine.deposit([here, there])
        waiting = asyncio.ensure_future(anext(aiter(subscription)))
        await asyncio.sleep(0)
        before = waiting.done()  # it may be that quick
        subscription.update(frozenset([Interest(STRANGER)]))
        async with asyncio.timeout(self.patience):
            assert (await waiting).entries == ((here,) if before else (there,))
        await subscription.close()

    @pytest.mark.asyncio
    async def test_a_wait_that_is_cancelled_loses_nothing(self, engine: RoutingLayer) -> None:
        subscription = engine.follow(frozenset([EVERYTHING]))
        found: list[Entry] = []
        iterator = aiter(subscription)
        depositing = asyncio.create_task(self._trickle(engine, 40))
        async with asyncio.timeout(self.patience):
            while len(found) < 40:
                waiting = asyncio.ensure_future(anext(iterator))
                await asyncio.sleep(0.002)
                if not waiting.done():
                    waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    found += (await waiting).entries
        await depositing
        assert found == [make_entry(number) for number in range(40)]
        await subscription.close()

    @staticmethod
    async def _trickle(engine: RoutingLayer, count: int) -> None:
        for number in range(count):
            await engine.deposit([make_entry(number)])

    @pytest.mark.asyncio
    async def test_closing_ends_what_follows(self, engine: RoutingLayer) -> None:
        closed, abandoned = (engine.follow(frozenset([EVERYTHING])) for _ in range(2))
        for subscription in (closed, abandoned):
            await collect(subscription, 0, self.patience, live=True)
        waiting = [asyncio.ensure_future(anext(aiter(s))) for s in (closed, abandoned)]
        await asyncio.sleep(0)
        await closed.close()
        await closed.close()
        await engine.close()
        for future in waiting:
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(future, self.patience)

    # - several at once

    @pytest.mark.asyncio
    async def test_two_gateways_share_it(self, engines: Engines) -> None:
        here, there = await engines.open("here"), await engines.open("there")
        assert here.url == there.url
        subscription = there.follow(frozenset([Interest(ADDRESS)]))
        await collect(subscription, 0, self.patience, live=True)
        entries = [make_entry(number) for number in range(10)]
        await here.deposit(entries[:5])
        found = entries_of(await collect(subscription, 5, self.patience))
        self.check_order(found, entries[:5], self.order)
        await there.deposit(entries)
        assert entries_of(await collect(subscription, 5, self.patience)) == entries[5:]
        for engine in (here, there):
            await eventually(functools.partial(self.holds, engine, entries), self.patience)
        await here.deposit(entries)
        with pytest.raises(TimeoutError):
            await collect(subscription, 1, self.quiet)
        await subscription.close()

    @pytest.mark.asyncio
    async def test_a_gateway_that_comes_later_finds_everything_and_goes_on(
        self, engines: Engines
    ) -> None:
        here = await engines.open("here")
        entries = [
            make_entry(number, fingerprint=(ADDRESS, SIBLING, STRANGER)[number * 7 % 3])
            for number in range(self.many // 3 + 20)
        ]
        for start in range(0, self.many // 3, 100):
            await here.deposit(entries[start : start + 100])
        there = await engines.open("there")
        subscription = there.follow(frozenset([EVERYTHING]))
        batches = await collect(subscription, self.many // 3, self.patience)
        for start in range(self.many // 3, len(entries), 5):
            await here.deposit(entries[start : start + 5])
        missing = len(entries) - len(entries_of(batches))
        batches += await collect(subscription, missing, self.patience)
        self.check_order(entries_of(batches), entries, self.order)
        with pytest.raises(TimeoutError):
            await collect(subscription, 1, self.quiet)
        await subscription.close()

    @staticmethod
    def check_order(found: Sequence[Entry], entries: Sequence[Entry], order: str) -> None:
        """Exactly these, each once, as far in their order as the engine has one."""
        assert sorted(entry.id for entry in found) == sorted(entry.id for entry in entries)
        if order == "log":
            assert found == list(entries)
        for address in {entry.fingerprint for entry in entries} if order == "address" else ():
            of_it = [entry for entry in entries if entry.fingerprint == address]
            assert [entry for entry in found if entry.fingerprint == address] == of_it

    @staticmethod
    async def holds(engine: RoutingLayer, entries: Sequence[Entry]) -> bool:
        found = await engine.query(Interest(ADDRESS), limit=len(entries) + 1)
        return found == list(entries)[::-1]

    @pytest.mark.asyncio
    async def test_nobody_misses_anything_while_many_deposit(self, engines: Engines) -> None:
        gateways = [await engines.open(name) for name in ("here", "there")]
        entries = [make_entry(number) for number in range(300)]
        draw = random.Random(3)
        early = [gateway.follow(frozenset([EVERYTHING])) for gateway in gateways]
        late: list[Subscription] = []

        async def deposit(gateway: RoutingLayer, mine: list[Entry]) -> None:
            while mine:
                count = draw.randint(1, 20)
                await gateway.deposit(mine[:count])
                mine = mine[count // 2 :] if count > 1 else mine[1:]  # half of them twice
                if draw.random() < 0.2 and len(late) < 4:
                    late.append(gateway.follow(frozenset([EVERYTHING])))

        await asyncio.gather(
            *(deposit(gateway, draw.sample(entries, 200)) for gateway in gateways),
            *(deposit(gateway, entries[start::2]) for start, gateway in enumerate(gateways)),
        )
        orders = []
        for subscription in [*early, *late]:
            found = entries_of(await collect(subscription, 300, self.patience, live=True))
            orders.append([entry.id for entry in found])
            await subscription.close()
        for order in orders:
            assert sorted(order) == sorted(entry.id for entry in entries)

    @pytest.mark.asyncio
    @pytest.mark.parametrize("seed", [1, 2, 3])
    async def test_it_agrees_with_a_list(self, engine: RoutingLayer, seed: int) -> None:
        draw = random.Random(seed)
        addresses = [ADDRESS, SIBLING, STRANGER]
        pool = [
            make_entry(
                number,
                fingerprint=draw.choice(addresses),
                time=START + HOUR * draw.randrange(12),
                confidence=draw.randrange(5) / 4,
            )
            for number in range(60)
        ]
        model: list[Entry] = []
        for _ in range(60):
            chosen = draw.choices(pool, k=draw.randrange(6))
            fresh = [entry for entry in dict.fromkeys(chosen) if entry not in model]
            assert await engine.deposit(chosen) == len(fresh)
            model += fresh
            interest = Interest(draw.choice(addresses), draw.choice([0, 1, 64, 65, 256]))
            since = draw.choice([None, START + HOUR * draw.randrange(12)])
            sure, limit = draw.choice([0, 50, 100]), draw.randrange(1, 20)
            expected = sorted(
                (
                    entry
                    for entry in reversed(model)
                    if interest.covers(entry.fingerprint)
                    and entry.time >= (since or 0)
                    and entry.confidence >= sure
                ),
                key=lambda entry: -entry.time,
            )[:limit]
            found = await engine.query(interest, limit=limit, since=since, confidence=sure)
            assert found == expected

    # - expiry

    @pytest.mark.asyncio
    async def test_what_expired_goes(self, engine: RoutingLayer) -> None:
        if not self.expires:
            return
        short = [make_entry(number, ttl=1, time=START) for number in range(10)]
        long = [make_entry(number, ttl=48, time=START) for number in range(10, 15)]
        subscription = engine.follow(frozenset([EVERYTHING]))
        await engine.deposit([*short, *long])
        await collect(subscription, 15, self.patience)
        assert await engine.expire(START + HOUR - 1) == 0
        assert await engine.expire(START + HOUR) == 10
        assert await engine.expire(START + HOUR) == 0
        assert await engine.query(Interest(ADDRESS)) == long[::-1]
        assert (await engine.status()).packets in (5, None)
        again = engine.follow(frozenset([EVERYTHING]))
        assert entries_of(await collect(again, 5, self.patience, live=True)) == long
        await again.close()
        # Numbers of the log are not used twice: who followed on misses nothing.
        assert await engine.expire(START + 48 * HOUR) == 5
        fresh = [make_entry(number) for number in range(20, 23)]
        await engine.deposit(fresh)
        assert entries_of(await collect(subscription, 3, self.patience)) == fresh
        await subscription.close()

    @pytest.mark.asyncio
    async def test_others_come_in_between_while_much_expires(self, engine: RoutingLayer) -> None:
        if not self.expires:
            return
        await engine.deposit([make_entry(n, ttl=1, time=START) for n in range(self.many)])
        expiring = asyncio.create_task(engine.expire(START + HOUR))
        entry = make_entry(self.many)
        await engine.deposit([entry])
        assert await expiring == self.many
        assert await engine.query(Interest(ADDRESS)) == [entry]
