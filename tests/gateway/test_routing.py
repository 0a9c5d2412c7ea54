"""The engines that come with the package, held to the suite, and what is theirs alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gateway.routing
from gateway.routing import (
    EVERYTHING,
    Context,
    Entry,
    Interest,
    RoutingLayer,
    open_engine,
    schemes,
    sqlite,
)
from gateway.routing.base import framed_id, is_framed
from gateway.routing.following import Coverage
from gateway.routing.sqlite import SqliteEngine
from gateway.routing.url import EngineUrl
from gateway.testing import (
    DurableConformance,
    MediumConformance,
    RoutingConformance,
    RoutingWorld,
    SpoolConformance,
    UrlConformance,
    collect,
    eventually,
    make_entry,
)
from gateway.testing.entries import ADDRESS, NEIGHBOUR, SIBLING, STRANGER
from qis_edge.core.errors import Reason, Refused, RoutingError, UsageError
from qis_edge.core.packet import unpack

#: Seconds that a single thing may take.
PATIENCE = 60.0


class MemoryWorld(RoutingWorld):
    def __init__(self, name: str) -> None:
        self.url = f"memory:{name}"
        self._anchor = open_engine(self.url)  # what is shared lives as long as an engine does


class TestMemory(RoutingConformance):
    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[RoutingWorld]:
        yield MemoryWorld(folder.name)


class SqliteWorld(RoutingWorld):
    """Its engines wait for each other as long as a busy disk takes, but not for who has taken
    the database away."""

    def __init__(self, folder: Path) -> None:
        self.url = "sqlite:routing.db?busy=60"
        self.folder = folder
        self._busy = 60.0
        self._engines: list[SqliteEngine] = []
        self._lock: sqlite3.Connection | None = None

    def connect(self) -> sqlite3.Connection:
        assert self.folder is not None
        return sqlite3.connect(self.folder / "routing.db", isolation_level=None, timeout=60)

    def engine(self, gateway: str = "gateway") -> RoutingLayer:
        engine = super().engine(gateway)
        assert isinstance(engine, SqliteEngine)
        engine._busy = self._busy
        self._engines.append(engine)
        return engine

    async def _wait_for_others(self, seconds: float) -> None:
        self._busy = seconds
        pragma = f"PRAGMA busy_timeout={round(seconds * 1000)}"
        for engine in self._engines:
            engine._busy = seconds
            if engine._file is not None:
                await engine._write(lambda file: file.writer.execute(pragma))

    async def write(self, entry: Entry, raw: bytes) -> None:
        db = self.connect()
        db.execute("INSERT OR IGNORE INTO buckets (fingerprint) VALUES (?)", (entry.fingerprint,))
        db.execute(
            "INSERT INTO packets "
            "SELECT (SELECT max(seq) + 1 FROM packets), bucket, ?, ?, ?, ?, ?, ? "
            "FROM buckets WHERE fingerprint = ?",
            (
                entry.time,
                entry.expires,
                entry.confidence,
                entry.id[:16],
                b"\0\0\0\0\0\0\xf0\x3f" * 2,
                raw,
                entry.fingerprint,
            ),
        )
        db.execute("UPDATE facts SET value = (SELECT max(seq) FROM packets) WHERE name = 'last'")
        db.close()

    async def fail(self) -> None:
        await self._wait_for_others(0.2)
        self._lock = self.connect()
        self._lock.execute("BEGIN EXCLUSIVE")

    async def heal(self) -> None:
        assert self._lock is not None
        self._lock.close()
        await self._wait_for_others(60)


class TestSqlite(DurableConformance, MediumConformance, SpoolConformance):
    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[RoutingWorld]:
        yield SqliteWorld(folder)


class TestSqliteUrl(UrlConformance):
    right = "sqlite:routing.db"
    wrong = (
        ("sqlite:", "must name a file"),
        ("sqlite://host/file", "must name a file"),
        ("sqlite:x?sync=1", "unknown option 'sync'"),
        ("sqlite:x?busy=soon", "busy must be"),
    )


class TestMemoryUrl(UrlConformance):
    right = "memory:x"
    wrong = (("memory://host", "has no host"), ("memory:x?y=1", "unknown option 'y'"))


# --- the interface ---------------------------------------------------------------------


def test_an_entry_has_what_the_packet_says() -> None:
    entry = make_entry(3, vector=(0.5, -1.25), outcomes=4, confidence=0.42, ttl=2)
    parsed = Entry.parse(entry.raw)
    assert parsed == entry
    assert parsed.confidence == 42
    assert parsed.vector == (0.5, -1.25)
    assert parsed.expires == parsed.time + 2 * 3600


def test_an_entry_of_a_stranger_is_checked_but_for_its_signature() -> None:
    raw = make_entry(1).raw
    unsigned = raw[:-1] + bytes([raw[-1] ^ 1])
    assert Entry.parse(unsigned) == make_entry(1)._replace(raw=unsigned)
    with pytest.raises(Refused) as caught:
        Entry.parse(raw[:-1])
    assert caught.value.reason is Reason.TRUNCATED


@pytest.mark.parametrize("outcomes", [1, 2, 24, 100])
def test_the_framing_alone_tells_id_kid_and_address(outcomes: int) -> None:
    entry = make_entry(1, outcomes=outcomes)
    packet = unpack(entry.raw)
    assert is_framed(entry.raw)
    assert framed_id(entry.raw) == packet.id
    assert entry.kid == packet.kid
    assert entry.fingerprint == packet.fingerprint
    older = entry.raw.replace(bytes.fromhex("a10132"), bytes.fromhex("a10127"), 1)
    assert is_framed(older)
    assert framed_id(older) == unpack(older).id != packet.id


def test_whatever_differs_in_a_packet_makes_another_entry() -> None:
    raw = make_entry(1).raw
    places = (9, 40, len(raw) - 1)  # of the kid, of the payload, of the signature
    changed = [raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :] for place in places]
    ids = {make_entry(1)._replace(raw=one).id for one in [raw, *changed]}
    assert len(ids) == 4


@given(st.binary(max_size=600))
def test_the_framing_of_anything_is_survived(raw: bytes) -> None:
    found = framed_id(raw)
    assert found is None or len(found) == 32


@given(
    st.sets(st.tuples(st.binary(min_size=32, max_size=32), st.integers(0, 256)), max_size=6),
    st.binary(min_size=32, max_size=32),
)
def test_a_coverage_agrees_with_its_interests(
    wanted: set[tuple[bytes, int]], address: bytes
) -> None:
    interests = frozenset(Interest(fingerprint, bits) for fingerprint, bits in wanted)
    near = [interest.last for interest in interests] + [i.fingerprint for i in interests]
    coverage = Coverage(interests)
    for fingerprint in [address, *near]:
        assert (fingerprint in coverage) == any(i.covers(fingerprint) for i in interests)
    assert coverage.everything == any(interest.bits == 0 for interest in interests)


def test_interests_of_one_prefix_are_one() -> None:
    assert Interest(ADDRESS, 64) == Interest(SIBLING, 64)
    assert Interest(ADDRESS, 65) != Interest(SIBLING, 65)
    assert Interest(STRANGER, 0) == EVERYTHING
    assert Interest(ADDRESS, 12).last == bytes.fromhex("5a5f") + b"\xff" * 30
    for bad in ((b"short", 256), (ADDRESS, 257), (ADDRESS, -1)):
        with pytest.raises(UsageError):
            Interest(*bad)


# --- URLs and engines by name ----------------------------------------------------------


def test_a_url_is_taken_apart_and_shown_without_its_secrets(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    url = EngineUrl.parse(
        f"Kafka://us%40er:pa%3Ass@a:9092,[::1]:9093/x%20y?b=2&a=1&api_key=s3cret&token_file={secret}"
    )
    assert (url.scheme, url.user, url.password) == ("kafka", "us@er", "pa:ss")
    assert url.hosts == (("a", 9092), ("::1", 9093))
    assert (url.host, url.port, url.path) == ("a", 9092, "/x y")
    assert url.option("token") == "s3cret"
    assert url.option("a") == "1"
    assert url.option("c", "d") == "d"
    assert str(url) == "kafka://us%40er@a:9092,[::1]:9093/x%20y?a=1&b=2"
    for shown in (str(url), repr(url)):
        assert "s3cret" not in shown
        assert "pa" not in shown
    assert EngineUrl.parse(str(url)).hosts == url.hosts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "routing.db",
        ":x",
        "1:x",
        "x y:z",
        "a://h:99999/",
        "a://h:pa:ss@/",
        "a:b?c",
        "a:?b=1&b=2",
    ],
)
def test_what_is_no_url_is_said_without_showing_it(text: str) -> None:
    with pytest.raises(RoutingError) as caught:
        EngineUrl.parse(text)
    assert "pa:ss" not in str(caught.value)


def test_an_option_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    url = EngineUrl.parse(f"x:?token_file={tmp_path}/missing")
    with pytest.raises(RoutingError, match="token_file cannot be read"):
        url.option("token")
    with pytest.raises(RoutingError, match="both"):
        EngineUrl.parse("x:?token=a&token_file=b").option("token")


def test_an_unknown_scheme_names_those_that_are_there() -> None:
    assert {"memory", "sqlite"} <= set(schemes())
    with pytest.raises(RoutingError, match="kafak") as caught:
        open_engine("kafak://host")
    assert all(f"{name}:" in (caught.value.hint or "") for name in ("memory", "sqlite"))


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (" [kafka,fast]", "qis-edge[kafka,fast]"),
        (" [qdrant-edge]", "qis-edge[qdrant-edge]"),
        ("", "qis-edge[kafka]"),
    ],
)
def test_a_missing_extra_names_the_command(
    monkeypatch: pytest.MonkeyPatch, named: str, told: str
) -> None:
    value = f"qis_edge_no_such_module.kafka:Engine{named}"
    points = EntryPoints([EntryPoint("kafka", value, "qis_edge.routing")])
    monkeypatch.setattr(gateway.routing, "entry_points", lambda group: points.select(group=group))
    with pytest.raises(RoutingError, match="qis_edge_no_such_module is missing") as caught:
        open_engine("kafka://host")
    assert caught.value.hint == f"pip install '{told}'"


# --- memory: and sqlite: ---------------------------------------------------------------


async def test_memory_without_a_name_is_nobody_elses() -> None:
    one, other = open_engine("memory:"), open_engine("memory:")
    await one.open()
    await other.open()
    await one.deposit([make_entry(1)])
    assert await other.query(EVERYTHING) == []
    await one.close()
    await other.close()


@contextlib.asynccontextmanager
async def sqlite_engine(
    folder: Path, url: str = "sqlite:routing.db"
) -> AsyncIterator[RoutingLayer]:
    engine = open_engine(url, Context(folder=folder))
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


async def test_another_process_is_noticed_soon(tmp_path: Path) -> None:
    async with sqlite_engine(tmp_path) as here, sqlite_engine(tmp_path) as there:
        subscription = there.follow(frozenset([EVERYTHING]))
        await collect(subscription, 0, PATIENCE, live=True)
        waits = []
        for number in range(5):
            await here.deposit([make_entry(number)])
            deposited = time.monotonic()
            await collect(subscription, 1, PATIENCE)
            waits.append(time.monotonic() - deposited)
        assert min(waits) < 20 * sqlite.POLL  # the best of five: machines are busy


async def test_a_database_that_was_begun_anew_says_so(tmp_path: Path) -> None:
    async with sqlite_engine(tmp_path) as engine:
        await engine.deposit([make_entry(number) for number in range(5)])
        born, cursor = engine.incarnation, await engine.cursor()
    (tmp_path / "routing.db").unlink()
    async with sqlite_engine(tmp_path) as engine:
        assert engine.incarnation != born
        await engine.deposit([make_entry(number) for number in range(9)])
        subscription = engine.follow(frozenset([EVERYTHING]), cursor)
        batches = await collect(subscription, 9, PATIENCE)
        assert sum(len(batch.entries) for batch in batches) == 9


async def test_a_cursor_of_what_was_lost_is_the_beginning(tmp_path: Path) -> None:
    async with sqlite_engine(tmp_path) as engine:
        await engine.deposit([make_entry(1)])
    backup = tmp_path / "backup"
    shutil.copy(tmp_path / "routing.db", backup)
    async with sqlite_engine(tmp_path) as engine:
        await engine.deposit([make_entry(2)])
        cursor = await engine.cursor()
    shutil.copy(backup, tmp_path / "routing.db")
    async with sqlite_engine(tmp_path) as engine:
        subscription = engine.follow(frozenset([EVERYTHING]), cursor)
        assert (await collect(subscription, 1, PATIENCE))[0].entries == (make_entry(1),)


async def test_a_file_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    entries = [make_entry(number, identity=NEIGHBOUR) for number in range(4)]
    with contextlib.closing(sqlite3.connect(tmp_path / "routing.db", isolation_level=None)) as db:
        db.executescript(sqlite.SCHEMA.migrations[0])
        db.execute(f"PRAGMA application_id={sqlite.SCHEMA.application_id}")
        db.execute("PRAGMA user_version=1")
        db.execute("INSERT INTO buckets (fingerprint) VALUES (?)", (ADDRESS,))
        for entry in entries:
            raw = entry.raw if entry != entries[2] else entry.raw[:-70]  # a disk has lost some
            id_then = framed_id(entry.raw)
            assert id_then is not None
            db.execute(
                "INSERT INTO packets VALUES (NULL, 1, ?, ?, ?, ?, NULL, ?)",
                (entry.time, entry.expires, entry.confidence, id_then[: sqlite.ID_STORED], raw),
            )
        db.execute("UPDATE facts SET value = 4 WHERE name IN ('packets', 'last')")
    async with sqlite_engine(tmp_path) as engine:
        kept = [entries[3], entries[1], entries[0]]
        assert await engine.query(Interest(ADDRESS)) == kept
        assert (await engine.status()).refused == 1
        assert await engine.deposit([*kept, make_entry(1)]) == 1


async def test_who_knows_how_to_write_there_makes_nobody_stumble(tmp_path: Path) -> None:
    world = SqliteWorld(tmp_path)
    async with sqlite_engine(tmp_path) as engine:
        good = make_entry(1)
        await engine.deposit([good])
        ours = make_entry(2)
        texts = (b"", ours.raw[:9], ours.raw[:17], ours.raw[:60])
        for number, raw in enumerate(texts, 3):  # each with the id that it would have
            with contextlib.closing(world.connect()) as db:
                db.execute(
                    "INSERT INTO packets VALUES (?, 1, ?, ?, 90, ?, NULL, ?)",
                    (number, ours.time, ours.expires, good._replace(raw=raw).id[:16], raw),
                )
                db.execute("UPDATE facts SET value = ? WHERE name = 'last'", (number,))
        for interest in (Interest(ADDRESS), Interest(ADDRESS, 8), EVERYTHING):
            assert await engine.query(interest) == [good]
        subscription = engine.follow(frozenset([EVERYTHING]))
        assert (await collect(subscription, 1, PATIENCE, live=True))[0].entries == (good,)
        assert (await engine.status()).refused >= len(texts)


async def test_a_cursor_is_short(tmp_path: Path) -> None:
    async with sqlite_engine(tmp_path) as engine:
        await engine.deposit([make_entry(number) for number in range(300)])
        assert len(await engine.cursor()) == 6


async def test_a_file_that_is_none_of_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "routing.db").write_bytes(b"important notes, no database" * 400)
    engine = open_engine("sqlite:routing.db", Context(folder=tmp_path))
    with pytest.raises(RoutingError) as caught:
        await engine.open()
    assert caught.value.hint
    assert (tmp_path / "routing.db").read_bytes().startswith(b"important notes")
    foreign = sqlite3.connect(tmp_path / "other.db")
    foreign.execute("CREATE TABLE t (x)")
    foreign.close()
    with pytest.raises(RoutingError, match="not a routing database"):
        await open_engine("sqlite:other.db", Context(folder=tmp_path)).open()


async def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    engine = open_engine("sqlite:missing/routing.db", Context(folder=tmp_path))
    with pytest.raises(RoutingError, match="cannot be opened") as caught:
        await engine.open()
    assert "directory" in (caught.value.hint or "")
    (tmp_path / "missing").mkdir()
    await engine.open()
    await engine.close()


async def test_damage_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    async with sqlite_engine(tmp_path) as engine:
        await engine.deposit([make_entry(number) for number in range(500)])
    path = tmp_path / "routing.db"
    pages = path.stat().st_size // 4096
    with path.open("r+b") as file:
        for page in range(2, pages):
            file.seek(page * 4096)
            file.write(os.urandom(64))
    async with sqlite_engine(tmp_path) as engine:
        with pytest.raises(RoutingError, match="damaged") as caught:
            await engine.query(EVERYTHING)
        assert "move it away" in (caught.value.hint or "")


async def test_a_full_disk_is_an_error_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sqlite_engine(tmp_path) as engine:
        await engine.deposit([make_entry(0)])
        writer = engine._file.writer  # type: ignore[attr-defined]  # the disk cannot be filled here
        writer.execute(f"PRAGMA max_page_count={writer.number('PRAGMA page_count') + 5}")
        entries = [make_entry(number) for number in range(1, 400)]
        with pytest.raises(RoutingError, match="disk is full"):
            await engine.deposit(entries)
        status = await engine.status()
        assert not status.ok
        assert "disk is full" in status.detail
        assert await engine.query(EVERYTHING) == [make_entry(0)]
        writer.execute("PRAGMA max_page_count=100000")
        assert await engine.deposit(entries) == len(entries)
        assert (await engine.status()).ok


async def test_a_deposit_that_was_abandoned_is_whole(tmp_path: Path) -> None:
    async with sqlite_engine(tmp_path) as engine:
        entries = [make_entry(number) for number in range(200)]
        depositing = asyncio.create_task(engine.deposit(entries))
        await asyncio.sleep(0)
        depositing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await depositing
        found = await engine.query(EVERYTHING, limit=1000)
        assert len(found) in (0, 200)


async def test_queries_go_on_while_somebody_else_writes(tmp_path: Path) -> None:
    world = SqliteWorld(tmp_path)
    engine = world.engine()
    await engine.open()
    await engine.deposit([make_entry(1)])
    await world.fail()
    assert await engine.query(EVERYTHING) == [make_entry(1)]
    await world.heal()
    await engine.close()


async def test_very_many_interests_are_followed(tmp_path: Path) -> None:
    async with sqlite_engine(tmp_path) as engine:
        addresses = [number.to_bytes(32) for number in range(400)]
        subscription = engine.follow(frozenset(Interest(a) for a in addresses[::2]))
        await collect(subscription, 0, PATIENCE, live=True)
        entries = [make_entry(n, fingerprint=address) for n, address in enumerate(addresses)]
        await engine.deposit(entries[:200])
        first = await collect(subscription, 100, PATIENCE)
        await engine.deposit(entries[200:])
        second = await collect(subscription, 100, PATIENCE)
        found = [entry for batch in first + second for entry in batch.entries]
        assert found == entries[::2]


async def test_a_follower_far_behind_skips_what_it_does_not_want(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "SLICE", 10)
    monkeypatch.setattr(sqlite, "WINDOW", 50)
    async with sqlite_engine(tmp_path) as engine:
        entries = [
            make_entry(number, fingerprint=ADDRESS if number % 90 < 15 else STRANGER)
            for number in range(400)
        ]
        await engine.deposit(entries)
        wanted = [entry for entry in entries if entry.fingerprint == ADDRESS]
        subscription = engine.follow(frozenset([Interest(ADDRESS)]))
        batches = await collect(subscription, len(wanted), PATIENCE, live=True)
        assert [entry for batch in batches for entry in batch.entries] == wanted
        assert max(len(batch.entries) for batch in batches) <= 10
        await eventually(lambda: subscription.cursor == batches[-1].cursor, PATIENCE)


async def test_what_was_read_ahead_is_dropped_with_its_interests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "SLICE", 10)
    async with sqlite_engine(tmp_path) as engine:
        addresses = (ADDRESS, STRANGER)
        entries = [make_entry(n, fingerprint=addresses[n % 2]) for n in range(200)]
        await engine.deposit(entries)
        subscription = engine.follow(frozenset([Interest(ADDRESS)]))
        batches = aiter(subscription)
        before = [await anext(batches) for _ in range(4)]
        assert [entry for batch in before for entry in batch.entries] == entries[:80:2]
        subscription.update(frozenset([Interest(STRANGER)]))
        after = await collect(subscription, 60, PATIENCE, live=True)
        assert [entry for batch in after for entry in batch.entries] == entries[79::2]


async def test_a_follower_is_told_of_trouble_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sqlite_engine(tmp_path) as engine:
        subscription = engine.follow(frozenset([EVERYTHING]))
        await collect(subscription, 0, PATIENCE, live=True)
        waiting = asyncio.ensure_future(anext(aiter(subscription)))
        await asyncio.sleep(0)

        async def fails() -> int:
            raise RoutingError("the disk reports an error")

        monkeypatch.setattr(engine._watch, "_version", fails)  # type: ignore[attr-defined]  # no disk fails on demand
        with pytest.raises(RoutingError, match="disk reports"):
            await asyncio.wait_for(waiting, PATIENCE)
        monkeypatch.undo()
        await engine.deposit([make_entry(1)])
        assert (await collect(subscription, 1, PATIENCE))[0].entries == (make_entry(1),)


async def test_addresses_may_be_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "MAX_BUCKETS", 3)
    async with sqlite_engine(tmp_path) as engine:
        for start in range(0, 12, 4):
            entries = [
                make_entry(number, fingerprint=bytes([number % 5]) * 32)
                for number in range(start, start + 4)
            ]
            assert await engine.deposit(entries) == 4
        found = await engine.query(Interest(bytes([2]) * 32))
        assert found == [make_entry(number, fingerprint=bytes([2]) * 32) for number in (7, 2)]


async def test_without_numpy_only_vectors_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine("memory:")
    await engine.open()
    await engine.deposit([make_entry(1)])
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert await engine.query(EVERYTHING) == [make_entry(1)]
    with pytest.raises(RoutingError, match="numpy") as caught:
        await engine.query(EVERYTHING, vector=(1.0,))
    assert "pip install" in (caught.value.hint or "")
    await engine.close()
