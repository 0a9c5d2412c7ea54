"""Disks that are full, or read-only, or damaged: what was acknowledged is not lost, what is
wrong is said once, and the daemon goes on by itself."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway import custodian
from gateway.station import Station
from qis_edge.core.errors import RoutingError, StoreCorrupt
from qis_edge.node import sensing
from qis_edge.node.runtime import Node
from qis_edge.store.database import Database
from qis_edge.testing.memory import MemoryMedium
from tests import disks
from tests.loop.site import (
    EPOCH,
    HOUR,
    Absence,
    Site,
    assert_each_once,
    backlog,
    deposited,
    drained,
    made_and_held,
    outbox_of,
    peers_of,
    routed,
    settled,
    site,
    spool_of,
    stats_of,
)

#: A slow machine lets a week go by here.
LASTING = '[outbox]\nttl = "365d"\n'
MODULES = {"ewr": "qis_edge", "base": "gateway"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensing, "RETRY_FIRST", 0.05)
    monkeypatch.setattr(sensing, "RETRY_LONGEST", 0.1)
    monkeypatch.setattr(custodian, "FAULT_LATER", 0)
    monkeypatch.setattr(custodian, "FULL_LATER", 0)


async def forbid(where: Node | Station, database: Database) -> None:
    """As on a medium that was mounted read-only."""
    await where.disk(database.execute, "PRAGMA query_only=ON")


async def allow(where: Node | Station, database: Database) -> None:
    await where.disk(database.execute, "PRAGMA query_only=OFF")


def said(caplog: pytest.LogCaptureFixture, *words: str) -> list[str]:
    return [
        one.getMessage()
        for one in caplog.records
        if any(word in one.getMessage() for word in words)
    ]


# --- nodes ---------------------------------------------------------------------------------


async def test_a_node_waits_for_a_disk_that_does_not_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with site(tmp_path, MemoryMedium()) as here:
        station, ewr, jfk = here.station(), here.node("ewr"), here.node("jfk", "JFK")
        here.start(station, ewr, jfk)
        await here.join(station, ewr, jfk)
        await here.wait("custody", lambda: made_and_held(ewr)[1] >= 3)
        await forbid(ewr, ewr.outbox._db)
        made = stats_of(ewr).made
        await here.wait("trouble", lambda: ewr.disk.trouble)
        heard = ewr.inbound.heard
        await here.wait("peers all the same", lambda: ewr.inbound.heard >= heard + 4)
        status = await ewr.status({})
        assert "cannot be written" in status["disk"]
        assert stats_of(ewr).made == made
        await allow(ewr, ewr.outbox._db)
        await here.wait("what was not written", lambda: stats_of(ewr).made >= made + 4)
        await here.wait("its end", lambda: ewr.disk.trouble is None)
        assert len(said(caplog, "cannot be written")) == 1
        assert len(said(caplog, "works again")) == 1
        await drained(here, ewr, jfk)
        await settled(here, station)
        await assert_each_once(here.state("base"), {ewr.identity.kid: stats_of(ewr).made})
        times = [o.time for o in (await deposited(here.state("base")))[ewr.identity.kid]]
        assert sorted(times) == list(range(min(times), max(times) + HOUR, HOUR))


async def test_a_full_disk_is_said_to_be_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tmp_path, MemoryMedium(), pace=0.03) as here:
        ewr = here.node("ewr")
        await ewr.disk(ewr.outbox._db.execute, "PRAGMA max_page_count=1")
        here.start(ewr)
        await here.wait("trouble", lambda: ewr.disk.trouble)
        assert "the disk is full" in (ewr.disk.trouble or "")
        assert "free some space" in said(caplog, "the disk is full")[0]
        before = stats_of(ewr).made
        await ewr.disk(ewr.outbox._db.execute, "PRAGMA max_page_count=1000000")
        await here.wait("more", lambda: stats_of(ewr).made >= before + 3)


async def test_receipts_that_cannot_be_written_come_again(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station, ewr = here.station(), here.node("ewr")
        here.start(station, ewr)
        await here.join(station, ewr)
        await here.wait("custody", lambda: made_and_held(ewr)[1] >= 3)
        take = ewr.uplink._believe
        forbidden = 0

        def late(*given: object) -> object:
            nonlocal forbidden
            forbidden += 1
            ewr.outbox._db.execute("PRAGMA query_only=ON")
            try:
                return take(*given)  # type: ignore[arg-type] # passed on
            finally:
                ewr.outbox._db.execute("PRAGMA query_only=OFF")

        vars(ewr.uplink)["_believe"] = late
        await here.wait("receipts", lambda: forbidden >= 3)
        held = made_and_held(ewr)[1]
        assert ewr.disk.trouble
        del vars(ewr.uplink)["_believe"]
        await drained(here, ewr)
        assert made_and_held(ewr)[1] > held


async def test_a_position_does_not_pass_packets_that_could_not_be_kept(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station, ewr = here.station(), here.node("ewr")
        here.start(station, ewr)
        await here.join(station, ewr)
        await here.wait("a past", lambda: made_and_held(ewr)[1] >= 5)
        await drained(here, ewr)
        await settled(here, station)
        jfk = here.node("jfk", "JFK")
        await forbid(jfk, jfk.inbox._db)
        here.start(jfk)
        await here.join(station, jfk)
        await here.wait("losses", lambda: jfk.asking.losses)
        assert jfk.sensing.address is not None
        where = jfk.sensing.address
        assert peers_of(jfk, where) == []
        await allow(jfk, jfk.inbox._db)
        jfk.asking.request(station.identity.kid, anew=True)
        of_peer = [e for e in await routed(here.state("base")) if e.kid == ewr.identity.kid]
        await here.wait("all of them", lambda: len(peers_of(jfk, where)) == len(of_peer))


async def test_a_damaged_outbox_ends_the_node_and_the_next_start_mends_it(
    tmp_path: Path,
) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        ewr = here.node("ewr")
        here.start(ewr)
        await here.wait("outcomes", lambda: stats_of(ewr).made >= 2)

        def damaged(*_: object) -> None:
            raise ewr.outbox._db.damaged("a test")

        vars(ewr.outbox)["append_many"] = damaged
        error = await here.ended(ewr)
        assert isinstance(error, StoreCorrupt)
        assert error.hint is not None
        made = stats_of(ewr).made
        again = here.node("ewr")  # nobody holds its lock any more
        here.start(again)
        await here.wait("more", lambda: stats_of(again).made > made)


# --- gateways ------------------------------------------------------------------------------


async def test_a_gateway_that_cannot_write_gives_no_receipt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station, ewr = here.station(), here.node("ewr")
        here.start(station, ewr)
        await here.join(station, ewr)
        await here.wait("custody", lambda: made_and_held(ewr)[1] >= 3)
        await forbid(station, station.spool._db)
        await here.wait("putting off", lambda: station.counts.later >= 3)
        frozen = made_and_held(ewr)[1]
        later = station.counts.later
        await here.wait("more", lambda: station.counts.later >= later + 3)
        assert made_and_held(ewr)[1] == frozen
        assert (await station.status({}))["disk"]
        await allow(station, station.spool._db)
        await drained(here, ewr)
        assert len(said(caplog, "cannot be written")) == 1
        await settled(here, station)
        await assert_each_once(here.state("base"), {ewr.identity.kid: stats_of(ewr).made})


async def test_a_damaged_spool_ends_the_gateway_and_the_next_start_mends_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bits that turn over in what no engine has yet: the node is asked for it again."""
    async with site(tmp_path, MemoryMedium()) as here:
        station, ewr = here.station(), here.node("ewr", extra=LASTING)
        absence = Absence(station)
        here.start(station, ewr)
        await here.join(station, ewr)
        await here.wait("custody", lambda: made_and_held(ewr)[1] >= 5)
        epoch = station.spool.epoch
        (missing,) = await station.disk(
            station.spool._db.row, "SELECT time FROM packets WHERE position = 2"
        )
        break_row = "UPDATE packets SET raw = raw || x'00' WHERE position = 2"
        await station.disk(station.spool._db.execute, break_row)
        absence.away = False
        for drain in station.drains:
            drain.nudge()
        error = await here.ended(station)
        assert isinstance(error, StoreCorrupt)
        assert "carries over what can be read" in (error.hint or "")
        again = here.station()
        (line,) = said(caplog, "the spool was damaged")
        assert "1 could not be read or verified" in line
        assert "spool.db.aside-1" in line
        assert again.spool.epoch != epoch
        here.start(again)

        async def came_again() -> bool:  # a node that sends hears that there is a new spool
            found = await deposited(here.state("base"))
            return missing in {outcome.time for outcome in found.get(ewr.identity.kid, ())}

        await here.wait_for("what was damaged", came_again, 90)
        await drained(here, ewr)
        await settled(here, again)
        await assert_each_once(here.state("base"), {ewr.identity.kid: stats_of(ewr).made})
        assert not again.spool.equivocations()


async def test_a_damaged_routing_database_is_told_and_holds_up_no_custody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be all that there is of years: it is left for its owner to move away."""
    async with site(tmp_path, MemoryMedium()) as here:
        (tmp_path / "base" / "state").mkdir(parents=True)
        routing = tmp_path / "base" / "state" / "routing.db"
        routing.write_bytes(b"rubble" * 1000)
        station, ewr = here.station(), here.node("ewr")
        here.start(station, ewr)
        await here.join(station, ewr)
        await here.wait("custody all the same", lambda: made_and_held(ewr)[1] >= 3)
        (engine,) = (await station.status({}))["engines"]
        assert not engine["ok"]
        assert "damaged" in engine["detail"]
        await here.wait("the word", lambda: said(caplog, "is away", "damaged"))
        routing.rename(routing.with_suffix(".aside"))
        await drained(here, ewr)
        await settled(here, station)
        await assert_each_once(here.state("base"), {ewr.identity.kid: stats_of(ewr).made})


async def test_a_full_spool_asks_nodes_to_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station, ewr = here.station(), here.node("ewr")
        engine, away = station.engines[0], True
        deposit = engine.deposit

        async def sometimes(entries: object) -> int:
            if away:
                raise RoutingError("away")
            return await deposit(entries)  # type: ignore[arg-type] # passed on

        vars(engine)["deposit"] = sometimes
        here.start(station, ewr)
        await here.join(station, ewr)
        await here.wait("custody", lambda: made_and_held(ewr)[1] >= 3)
        station.spool.budget = 0
        await here.wait("putting off", lambda: station.counts.later >= 3)
        frozen = spooled(here)
        await here.wait("more", lambda: station.counts.later >= 8)
        assert spooled(here) == frozen
        assert len(said(caplog, "the spool is full")) == 1
        away = False
        await drained(here, ewr)
        await settled(here, station)
        await assert_each_once(here.state("base"), {ewr.identity.kid: stats_of(ewr).made})


def spooled(here: Site) -> int:
    with spool_of(here.state("base")) as spool:
        return spool.status().packets


async def test_a_fleet_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        station, ewr = here.station(), here.node("ewr")
        here.start(station, ewr)
        await here.join(station, ewr)
        await station.fleet_disk(station.fleet._db.execute, "PRAGMA query_only=ON")
        jfk = here.node("jfk", "JFK")
        here.start(jfk)
        await here.wait("trouble", lambda: station.fleet_disk.trouble)
        held = made_and_held(ewr)[1]
        await here.wait("custody", lambda: made_and_held(ewr)[1] >= held + 3)
        await station.fleet_disk(station.fleet._db.execute, "PRAGMA query_only=OFF")
        await here.join(station, jfk)
        await here.wait("its end", lambda: station.fleet_disk.trouble is None)


async def test_the_end_is_orderly_on_a_full_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tmp_path, MemoryMedium()) as here:
        ewr = here.node("ewr")
        here.start(ewr)
        await here.wait("outcomes", lambda: stats_of(ewr).made >= 2)
        await forbid(ewr, ewr.outbox._db)
        await forbid(ewr, ewr.inbox._db)
        await here.wait("trouble", lambda: ewr.disk.trouble)
        await asyncio.wait_for(here.stop(ewr), 5)
        assert said(caplog, "could not be saved")
        here.node("ewr").outbox.close()  # nobody holds its lock any more


# --- real ones -----------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["ewr", "base"])
async def test_a_disk_that_is_really_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, whose: str
) -> None:
    caplog.set_level("INFO")
    with disks.small_disk(tmp_path / whose, "3m") as place:
        async with site(tmp_path, MemoryMedium()) as here:
            station, ewr = here.station(), here.node("ewr", extra=LASTING)
            here.start(station, ewr)
            await here.join(station, ewr)
            await here.wait("custody", lambda: made_and_held(ewr)[1] >= 3)
            disk = ewr.disk if whose == "ewr" else station.disk
            ballast = disks.fill(place)
            await here.wait("trouble", lambda: disk.trouble, 60)
            assert "the disk is full" in (disk.trouble or "")
            assert any("free some space" in line for line in said(caplog, "the disk is full"))
            held = made_and_held(ewr)[1]
            ballast.unlink()
            await here.wait("more", lambda: made_and_held(ewr)[1] >= held + 5, 60)
            await here.wait("its end", lambda: disk.trouble is None, 60)
            await drained(here, ewr)
            await settled(here, station)
            await assert_each_once(here.state("base"), {ewr.identity.kid: stats_of(ewr).made})
            times = [o.time for o in (await deposited(here.state("base")))[ewr.identity.kid]]
            assert sorted(times) == list(range(min(times), max(times) + HOUR, HOUR))


def started(module: str, config: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, "run", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


@pytest.mark.parametrize("whose", ["ewr", "base"])
async def test_starting_on_a_disk_that_is_read_only(tmp_path: Path, whose: str) -> None:
    with disks.small_disk(tmp_path / whose, "3m") as place:
        async with site(tmp_path, "mqtt://127.0.0.1:1") as here:
            config = here.gateway_config() if whose == "base" else here.node_config("ewr")
            store = here.state(whose) / ("spool.db" if whose == "base" else "outbox.db")
            log = tmp_path / f"{whose}.log"
            for how in "ro", "rw":
                disks.remount(place, how)
                process = here.processes[whose] = started(MODULES[whose], config, log)
                if how == "ro":
                    assert await asyncio.to_thread(process.wait, 60) not in (0, -11)
                    words = log.read_text()
                    assert "Traceback" not in words
                    assert "read-only" in words.lower()
                    assert "not mounted read-only" in words  # what to do about it
                else:
                    await here.wait("its store", store.exists, 60)
            here.end_processes()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Every commit takes a while, and as long as this is not set."""
    execute, gate = Database.execute, threading.Event()
    gate.set()

    def slowly(self: Database, sql: str, arguments: Sequence[object] = ()) -> sqlite3.Cursor:
        if sql == "COMMIT" or sql.startswith("INSERT INTO arrivals"):
            time.sleep(0.02)
            assert gate.wait(120)
        return execute(self, sql, arguments)

    monkeypatch.setattr(Database, "execute", slowly)
    return gate


async def test_a_slow_disk_holds_up_only_what_waits_for_it(
    tmp_path: Path, slow: threading.Event
) -> None:
    """A card takes seconds to sync, now and then: the daemons go on, and nothing is lost."""
    async with site(tmp_path, MemoryMedium()) as here:
        station, ewr = here.station(), here.node("ewr", extra=LASTING)
        here.start(station, ewr)
        await here.join(station, ewr)
        await here.wait("custody", lambda: made_and_held(ewr)[1] >= 3, 60)
        for _ in range(2):
            slow.clear()
            try:
                before = made_and_held(ewr)
                reads = reads_of(ewr)
                await here.wait("readings", lambda: reads_of(ewr) >= reads + 10, 60)  # noqa: B023 - at once
                assert made_and_held(ewr)[0] <= before[0] + 1
            finally:
                slow.set()
            await here.wait("custody", lambda: made_and_held(ewr)[1] >= before[1] + 5, 60)  # noqa: B023 - as above
        await drained(here, ewr)
        await settled(here, station)
        await assert_each_once(here.state("base"), {ewr.identity.kid: stats_of(ewr).made})
        times = [o.time for o in (await deposited(here.state("base")))[ewr.identity.kid]]
        assert sorted(times) == list(range(min(times), max(times) + HOUR, HOUR))


def reads_of(node: Node) -> int:
    return sum(int(one["reads"]) for one in node.sensing.status())


async def test_a_budget_that_is_reached_is_in_the_status(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody comes to fetch: what was dropped is counted and said."""
    async with site(tmp_path, MemoryMedium()) as here:
        ewr = here.node("ewr", extra='[outbox]\nbudget = "1MB"\nttl = "365d"\n')
        backlog(ewr, 25_000)
        here.start(ewr)
        await here.wait("outcomes", lambda: stats_of(ewr).made > 25_000)
        shown = (await ewr.status({}))["outbox"]
        stats = stats_of(ewr)
        # Those that were made more than a year ago are past their time, and there were enough.
        assert shown["evicted_expired"] == stats.evicted_expired > 100
        assert shown["evicted_unsent"] == 0
        assert stats.made == stats.waiting + stats.open_outcomes + stats.evicted_expired
        assert shown["bytes"] <= 1_000_000
        assert said(caplog, "no more room: dropped")
        with outbox_of(ewr) as box:
            assert {notice.code for notice in box.notices()} <= {"evicted"}
            oldest = min(one.time for _, _, one in box.waiting(10**6))
        assert oldest == EPOCH - (25_000 - stats.evicted_expired) * HOUR  # the oldest went
