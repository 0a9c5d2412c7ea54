"""Qdrant's embedded engine: held to the suite, killed, and written to by others."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO
from uuid import UUID

import pytest
import qdrant_edge as qd

from gateway.routing import (
    EVERYTHING,
    Context,
    Entry,
    Interest,
    RoutingLayer,
    open_engine,
    qdrant_edge,
    qdrant_shard,
)
from gateway.routing import qdrant_points as points
from gateway.routing.base import framed_id
from gateway.testing import (
    DurableConformance,
    MediumConformance,
    RoutingWorld,
    SpoolConformance,
    UrlConformance,
    collect,
    depositor,
    make_entry,
)
from gateway.testing.entries import ADDRESS, HOUR, SIBLING, START, entries_of
from qis_edge.core.errors import RoutingError


class EdgeWorld(RoutingWorld):
    url = "qdrant+edge:routing.qdrant"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "routing.qdrant"
        self._held: IO[bytes] | None = None

    @property
    def _owner(self) -> qdrant_edge._Owner:
        return qdrant_edge._owners[self.path]

    async def write(self, entry: Entry, raw: bytes) -> None:
        # Somebody with access to the files, while the process that owns them is away.
        await self._owner._worker(self._owner._end)
        shard = qd.EdgeShard.load(str(self.path))
        place = UUID(bytes=entry.id[: points.ID])
        payload = {
            **points.payload(entry, 7),
            "raw": base64.b64encode(raw).decode(),
            "seq": entry.time % 1_000_000 + 1000,
        }
        shard.update(
            qd.UpdateOperation.upsert_points(
                [qd.Point(place, dict(points.vectors(entry)), payload)]
            )
        )
        shard.close()

    async def fail(self) -> None:
        process = self._owner._process
        assert process is not None
        process.kill()
        process.wait()
        self._held = (self.path / qdrant_shard.LOCK).open("ab")
        fcntl.flock(self._held, fcntl.LOCK_EX)

    async def heal(self) -> None:
        assert self._held is not None
        self._held.close()


class TestQdrantEdge(DurableConformance, MediumConformance, SpoolConformance):
    patience = 60.0  # each deposit waits for the disk, which others keep busy

    @pytest.fixture(autouse=True)
    def brief(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(qdrant_edge, "FIRST_WAIT", 3.0)
        monkeypatch.setattr(qdrant_edge, "AGAIN_WAIT", 0.3)

    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[RoutingWorld]:
        yield EdgeWorld(folder)


class TestQdrantEdgeUrl(UrlConformance):
    right = "qdrant+edge:routing.qdrant"
    wrong = (
        ("qdrant+edge:", "must name a folder"),
        ("qdrant+edge://host/x", "qdrant://host:6333"),
        ("qdrant+edge:x?sync=1", "unknown option 'sync'"),
    )
    modules = ("qdrant_edge",)
    command = "pip install 'qis-edge[qdrant-edge]'"


# --- what is its own -------------------------------------------------------------------


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[RoutingLayer]:
    engine = open_engine("qdrant+edge:routing.qdrant", Context(folder=folder))
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


def process_of(folder: Path) -> qdrant_edge._Owner:
    return qdrant_edge._owners[folder / "routing.qdrant"]


async def test_of_equally_near_ones_the_newest_come(tmp_path: Path) -> None:
    vectors = {0: (2.0, 2.0), 1: (3.0, 3.0), 2: (0.1, 0.1), 3: (-1.0, 2.0)}
    entries = [make_entry(n, vector=vectors[n % 4]) for n in range(400)]
    twins = [entry for n, entry in enumerate(entries) if n % 4 != 3]
    async with opened(tmp_path) as engine:
        await engine.deposit(entries)
        for interest in (Interest(ADDRESS), Interest(ADDRESS, 64), EVERYTHING):
            found = await engine.query(interest, limit=30, vector=(5, 5))
            assert found == twins[:-31:-1]


async def test_prefixes_of_every_length_are_found(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        entries = [make_entry(1), make_entry(2, fingerprint=SIBLING)]
        bits = [0, 1, 31, 32, 33, 63, 64, 65, 111, 112, 113, 160, 208, 255, 256]
        for number, bit in enumerate(bits[:-1], 3):  # differ in just this bit
            address = int.from_bytes(ADDRESS) ^ 1 << 255 - bit
            entries.append(make_entry(number, fingerprint=address.to_bytes(32)))
        await engine.deposit(entries)
        for length in bits:
            interest = Interest(ADDRESS, length)
            expected = [e for e in reversed(entries) if interest.covers(e.fingerprint)]
            assert await engine.query(interest) == expected, length
            subscription = engine.follow(frozenset([interest]))
            found = entries_of(await collect(subscription, 0, 15, live=True))
            assert found == expected[::-1], length
            await subscription.close()


async def test_very_many_interests_are_followed(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        addresses = [number.to_bytes(32) for number in range(400)]
        entries = [make_entry(n, fingerprint=address) for n, address in enumerate(addresses)]
        await engine.deposit(entries)
        for step in (2, 20):  # more, and fewer, than the shard sorts out
            subscription = engine.follow(frozenset(Interest(a) for a in addresses[::step]))
            batches = await collect(subscription, 400 // step, 15, live=True)
            assert entries_of(batches) == entries[::step]
            await subscription.close()


async def test_the_shards_process_is_killed_in_the_middle(tmp_path: Path) -> None:
    kept: list[Entry] = []
    async with opened(tmp_path) as engine:
        subscription = engine.follow(frozenset([EVERYTHING]))
        followed: list[Entry] = []
        for kill in range(3):
            entries = [make_entry(kill * 1000 + number) for number in range(300)]

            async def deposit(entries: list[Entry], delay: float) -> None:
                for start in range(0, 300, 10):
                    if start == 90:
                        process = process_of(tmp_path)._process
                        assert process is not None
                        asyncio.get_running_loop().call_later(delay, process.kill)
                    await engine.deposit(entries[start : start + 10])
                    kept.extend(entries[start : start + 10])

            with pytest.raises(RoutingError, match="signal 9"):
                await deposit(entries, 0.005 * kill)
            followed += entries_of(await collect(subscription, 90, 60))
            # The depositor says it again; it is started again.
            await engine.deposit(entries)
            kept.extend(entry for entry in entries if entry not in kept)
        batches = await collect(subscription, 900 - len(followed), 60)
        assert sorted([*followed, *entries_of(batches)]) == sorted(kept)
        await subscription.close()
        assert set(await engine.query(EVERYTHING, limit=2000)) == set(kept)


async def test_another_process_is_told_who_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant_edge, "FIRST_WAIT", 0.1)
    program = [sys.executable, "-m", depositor.__name__, "qdrant+edge:routing.qdrant"]
    other = await asyncio.create_subprocess_exec(
        *program, str(tmp_path), "0", stdout=asyncio.subprocess.PIPE
    )
    assert other.stdout is not None
    await other.stdout.readline()
    engine = open_engine("qdrant+edge:routing.qdrant", Context(folder=tmp_path))
    with pytest.raises(RoutingError, match="in use by another process") as caught:
        await engine.open()
    assert "one process at a time" in (caught.value.hint or "")
    for _ in range(20):  # who has it is not disturbed
        assert await other.stdout.readline()
    other.kill()
    await other.communicate()
    monkeypatch.setattr(qdrant_edge, "FIRST_WAIT", 5.0)
    await engine.open()
    assert await engine.query(EVERYTHING, limit=1)
    await engine.close()


async def test_the_loop_goes_on_while_it_works(tmp_path: Path) -> None:
    entries = [make_entry(number, vector=(1.0, 1.0)) for number in range(3000)]
    async with opened(tmp_path) as engine:
        depositing = asyncio.create_task(engine.deposit(entries))
        turns, took = 0, time.monotonic()
        while not depositing.done():
            await asyncio.sleep(0.001)
            turns += 1
        took = time.monotonic() - took
        assert turns > took / 0.1  # it holds up whoever is in its process for all of that
        assert await depositing == 3000


async def test_numbers_are_used_once_even_after_all_expired(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        await engine.deposit([make_entry(n, ttl=1, time=START) for n in range(10)])
        cursor, born = await engine.cursor(), engine.incarnation
        assert await engine.expire(START + HOUR) == 10
    async with opened(tmp_path) as engine:
        assert engine.incarnation == born
        assert await engine.cursor() == cursor
        fresh = [make_entry(number) for number in range(20, 30)]
        await engine.deposit(fresh)
        subscription = engine.follow(frozenset([EVERYTHING]), cursor)
        assert entries_of(await collect(subscription, 10, 60)) == fresh
        await subscription.close()


def test_points_of_the_first_version_are_still_read(tmp_path: Path) -> None:
    shard = qdrant_shard.Shard(tmp_path / "shard", 1)
    then = make_entry(1)
    id_then = framed_id(then.raw)
    assert id_then is not None
    point = qd.Point(
        UUID(bytes=id_then[: points.ID]), {}, {**points.payload(then, 1), "seq": shard.last + 1}
    )
    shard._update(qd.UpdateOperation.upsert_points([point]))
    shard.last += 1
    shard.deposit([make_entry(2)])
    (raws, *_), _, _ = shard.slice(None, 0)
    assert list(raws) == [then.raw, make_entry(2).raw]
    assert shard.status()[2] == 0
    shard.close()


async def test_a_shard_that_was_begun_anew_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        await engine.deposit([make_entry(number) for number in range(5)])
        born, cursor = engine.incarnation, await engine.cursor()
    (tmp_path / "routing.qdrant").rename(tmp_path / "away")
    async with opened(tmp_path) as engine:
        assert engine.incarnation != born
        await engine.deposit([make_entry(number) for number in range(9)])
        subscription = engine.follow(frozenset([EVERYTHING]), cursor)
        assert len(entries_of(await collect(subscription, 9, 60))) == 9
        await subscription.close()


async def test_damage_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        await engine.deposit([make_entry(1)])
    (tmp_path / "routing.qdrant" / "edge_config.json").write_text("{")
    engine = open_engine("qdrant+edge:routing.qdrant", Context(folder=tmp_path))
    with pytest.raises(RoutingError) as caught:
        await engine.open()
    assert "move it away" in (caught.value.hint or "")
    assert not (await engine.status()).ok


def test_what_expired_gives_its_space_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdrant_shard, "TIDY_LEAST", 1500)
    monkeypatch.setattr(qdrant_shard, "EXPIRE_SLICE", 5000)
    shard = qdrant_shard.Shard(tmp_path / "shard", 1)
    rows = [make_entry(n, ttl=n // 1500 + 1, time=START) for n in range(2000)]
    assert shard.deposit(rows) == (2000, 2000)
    assert not shard.tidy()
    before = shard.status()[1]
    assert shard.expire(START + HOUR) == 1500
    assert shard.tidy()
    packets, after, refused = shard.status()
    assert (packets, refused) == (500, 0)
    assert after < before
    asked = [ADDRESS, 256, None, 0]
    assert [len(column) for column in shard.newest(asked, 1000)] == [500] * 5
    assert [len(column) for column in shard.slice(None, 0)[0]] == [500] * 5
    shard.close()
