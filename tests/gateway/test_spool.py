"""The spool: what was admitted stays, in order, once, whatever happens to the process."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import spool as spool_module
from gateway.routing import Entry
from gateway.routing.base import framed_id
from gateway.spool import Admission, EngineState, Intake, Spool, Verdict
from qis_edge.core.errors import StoreCorrupt, StoreError, UsageError
from qis_edge.core.packet import Packet
from qis_edge.core.ranges import MAX_SEQUENCE, runs_of
from tests.gateway.spool_kit import ENGINE, NODES, START, STORES, intake, packet

OTHER = "kafka://broker/topic"
DAY = 86_400


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


@pytest.fixture
def spool(path: Path) -> Iterator[Spool]:
    with_it = Spool(path, engines=[ENGINE])
    yield with_it
    with_it.close()


def verdicts(answers: list[Admission]) -> list[Verdict]:
    return [answer.verdict for answer in answers]


def drain(spool: Spool, engine: str, limit: int = 7) -> list[Entry]:
    found: list[Entry] = []
    while True:
        pending = spool.pending(engine, limit)
        assert len(pending.entries) <= limit
        found += pending.entries
        if pending.through == spool.routed_through([engine]):
            return found
        spool.advance(engine, pending.through)


# --- admission -------------------------------------------------------------------------


def test_a_packet_is_new_once(spool: Spool) -> None:
    first = spool.admit([intake(0), intake(1), intake(0)])
    assert verdicts(first) == [Verdict.NEW, Verdict.NEW, Verdict.KNOWN]
    assert [answer.position for answer in first] == [1, 2, 1]
    assert spool.admit([intake(1), intake(2)]) == [(Verdict.KNOWN, 2), (Verdict.NEW, 3)]
    assert spool.admit([]) == []


def test_stores_and_nodes_number_for_themselves(spool: Spool) -> None:
    batch = [intake(0, node=node, store=store) for node in range(3) for store in STORES]
    assert verdicts(spool.admit(batch)) == [Verdict.NEW] * 6
    assert verdicts(spool.admit(batch)) == [Verdict.KNOWN] * 6


def test_what_it_knows_outlives_it(path: Path) -> None:
    for _ in range(2):
        spool = Spool(path)
        spool.admit([intake(sequence) for sequence in (5, 6, 9, MAX_SEQUENCE)])
        spool.close()
    spool = Spool(path)
    held = spool.held(NODES[0].kid, STORES[0])
    assert held == {5, 6, 9, MAX_SEQUENCE}
    assert spool.held(NODES[1].kid, STORES[0]) == set()
    assert spool.status().packets == 4
    spool.close()


def test_two_contents_under_one_number_are_an_equivocation(spool: Spool) -> None:
    spool.admit([intake(7)])
    answers = spool.admit([intake(7, value=1.0), intake(8), intake(8, value=2.0), intake(7)])
    assert answers == [
        (Verdict.EQUIVOCATION, 0),
        (Verdict.NEW, 2),
        (Verdict.EQUIVOCATION, 0),
        (Verdict.KNOWN, 1),
    ]
    first, second = spool.equivocations()
    assert (first.kid, first.store, first.sequence) == (NODES[0].kid, STORES[0], 7)
    assert (first.held, first.other) == (packet(7).raw, packet(7, value=1.0).raw)
    assert (second.held, second.other) == (packet(8).raw, packet(8, value=2.0).raw)
    assert [framed_id(entry.raw) for entry in drain(spool, ENGINE)] == [packet(7).id, packet(8).id]


def test_proofs_of_equivocation_are_bounded(spool: Spool) -> None:
    spool.admit([intake(1), intake(1, node=1)])
    spool.admit([intake(1, value=value) for value in range(40)])
    spool.admit([intake(1, node=1, value=1.0)])
    proofs = spool.equivocations()
    assert len(proofs) == spool_module.MAX_PROOFS + 1
    assert proofs[-1].kid == NODES[1].kid


@settings(max_examples=40)
@given(
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 1), st.integers(0, 24)), max_size=12), max_size=8
    ),
    reopen=st.sets(st.integers(0, 7)),
)
def test_ranges_agree_with_sets(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[list[tuple[int, int]]],
    reopen: set[int],
) -> None:
    path = tmp_path_factory.mktemp("spool") / "spool.db"
    spool = Spool(path)
    model: dict[int, set[int]] = {0: set(), 1: set()}
    for number, batch in enumerate(batches):
        expected = []
        for node, sequence in batch:
            expected.append(Verdict.KNOWN if sequence in model[node] else Verdict.NEW)
            model[node].add(sequence)
        intakes = [Intake(_cached(node, sequence), START) for node, sequence in batch]
        assert verdicts(spool.admit(intakes)) == expected
        if number in reopen:
            spool.close()
            spool = Spool(path)
    for node, held in model.items():
        assert spool.held(NODES[node].kid, STORES[0]) == held
    # One row a run: touching runs were joined as they grew.
    rows = sqlite3.connect(path)
    (count,) = rows.execute("SELECT count(*) FROM ranges").fetchone()
    rows.close()
    assert count == sum(len(runs_of(held)) for held in model.values())
    spool.close()


_made = {(node, sequence): packet(sequence, node=node) for node in (0, 1) for sequence in range(25)}


def _cached(node: int, sequence: int) -> Packet:
    return _made[node, sequence]


def test_a_batch_that_fails_leaves_nothing(spool: Spool) -> None:
    spool.admit([intake(0)])
    database = spool._db  # the disk cannot be filled here
    database.execute(f"PRAGMA max_page_count={database.number('PRAGMA page_count') + 2}")
    batch = [intake(sequence, node=1) for sequence in range(200)]
    with pytest.raises(StoreError, match="disk is full") as caught:
        spool.admit(batch)
    assert "gateway" in (caught.value.hint or "")
    assert spool.status().packets == 1
    database.execute("PRAGMA max_page_count=100000")
    assert verdicts(spool.admit(batch)) == [Verdict.NEW] * 200
    assert spool.held(NODES[1].kid, STORES[0]) == set(range(200))


def test_a_commit_is_synced_and_an_advance_need_not_be(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    execute = spool._db.execute

    def watch(sql: str, arguments: object = ()) -> sqlite3.Cursor:
        if sql == "COMMIT":
            seen.append(spool._db.number("PRAGMA synchronous"))
        return execute(sql, arguments)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(spool._db, "execute", watch)
    spool.admit([intake(0)])
    spool.advance(ENGINE, 1)
    spool.admit([intake(1)])
    full, normal = 2, 1
    assert seen == [full, normal, full]
    assert spool._db.value("PRAGMA journal_mode") == "wal"


# --- engines ---------------------------------------------------------------------------


def test_an_engine_gets_everything_in_order(spool: Spool) -> None:
    sequences = random.Random(1).sample(range(50), 50)
    batch = [intake(s, vector=(s / 8, -1.0) if s % 3 else None) for s in sequences]
    for start in range(0, 50, 9):
        spool.admit(batch[start : start + 9])
    assert drain(spool, ENGINE) == [Entry.of(one.packet) for one in batch]
    assert spool.pending(ENGINE) == ((), 50)


def test_what_is_not_routed_is_held_and_passed_over(spool: Spool) -> None:
    spool.admit([intake(sequence, route=sequence == 3) for sequence in range(9)])
    assert [framed_id(entry.raw) for entry in drain(spool, ENGINE, limit=2)] == [packet(3).id]
    assert spool.routed_through() == 9
    assert spool.held(NODES[0].kid, STORES[0]) == set(range(9))


def test_what_rotted_on_the_disk_is_passed_on_to_nobody(spool: Spool, path: Path) -> None:
    spool.admit([intake(sequence) for sequence in range(5)])
    stranger = sqlite3.connect(path)
    stranger.execute("UPDATE packets SET raw = zeroblob(100) WHERE position = 3")
    stranger.commit()
    with pytest.raises(StoreCorrupt, match="packet 3 is not what was written") as caught:
        drain(spool, ENGINE)
    assert "the next start sets the file aside" in (caught.value.hint or "")
    # Of a file that an earlier version wrote that is not known: it holds up nothing.
    stranger.execute("UPDATE packets SET crc = NULL")
    stranger.commit()
    stranger.close()
    found = [framed_id(entry.raw) for entry in drain(spool, ENGINE)]
    assert found == [packet(sequence).id for sequence in (0, 1, 3, 4)]


def test_how_far_they_are_is_told_on_any_thread(spool: Spool) -> None:
    """While the spool's own thread waits for the disk, too."""
    spool.admit([intake(0)])
    blocker = sqlite3.connect(spool.path, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    worker = threading.Thread(target=spool.advance, args=(ENGINE, 1))
    worker.start()
    try:
        assert spool.routed_through() == 0
        assert worker.is_alive()
    finally:
        blocker.close()
        worker.join()
    assert spool.routed_through() == 1


def test_each_engine_goes_at_its_own_pace(path: Path) -> None:
    spool = Spool(path, engines=[ENGINE, OTHER])
    spool.admit([intake(sequence) for sequence in range(10)])
    spool.advance(ENGINE, 10)
    spool.advance(OTHER, 4)
    spool.advance(OTHER, 2)  # never back
    spool.close()
    spool = Spool(path, engines=[ENGINE, OTHER])
    assert (spool.engage(ENGINE), spool.engage(OTHER)) == (10, 4)
    assert len(spool.pending(OTHER).entries) == 6
    assert spool.routed_through() == 4
    assert spool.routed_through([ENGINE]) == 10
    assert spool.status().engines == (
        EngineState(OTHER, active=True, position=4, behind=6),
        EngineState(ENGINE, active=True, position=10, behind=0),
    )
    spool.close()


def test_without_engines_everything_counts_as_routed(path: Path) -> None:
    spool = Spool(path)
    spool.admit([intake(0), intake(1)])
    assert spool.routed_through() == 2
    with pytest.raises(UsageError, match="not an active"):
        spool.pending(ENGINE)
    with pytest.raises(UsageError, match="not an active"):
        spool.routed_through([ENGINE])
    spool.close()


def test_a_new_engine_begins_at_the_oldest_retained(spool: Spool) -> None:
    spool.retention = DAY
    spool.admit([intake(0, received=START), intake(1, received=START + DAY)])
    spool.advance(ENGINE, 2)
    assert spool.trim(START + DAY + 1) == 1
    spool.activate([ENGINE, OTHER])
    assert [framed_id(entry.raw) for entry in drain(spool, OTHER)] == [packet(1).id]


def test_an_engine_that_lost_everything_begins_anew(spool: Spool) -> None:
    spool.admit([intake(0), intake(1)])
    assert spool.engage(ENGINE, "born-1") == 0
    spool.advance(ENGINE, 2)
    assert spool.engage(ENGINE, "born-1") == 2
    assert spool.engage(ENGINE, "") == 2
    assert spool.engage(ENGINE, "born-2") == 0
    assert len(drain(spool, ENGINE)) == 2


def test_an_engine_that_was_taken_away_holds_up_nothing(spool: Spool) -> None:
    spool.retention = 0
    spool.activate([ENGINE, OTHER])
    spool.admit([intake(0), intake(1)])
    spool.advance(ENGINE, 2)
    spool.advance(OTHER, 1)
    assert spool.trim(START + 1) == 1
    spool.activate([ENGINE])
    assert spool.trim(START + 1) == 1
    spool.admit([intake(2)])
    spool.activate([ENGINE, OTHER])  # it comes back where it was
    assert [framed_id(entry.raw) for entry in drain(spool, OTHER)] == [packet(2).id]


# --- trimming --------------------------------------------------------------------------


def test_what_is_young_or_needed_stays(spool: Spool) -> None:
    spool.retention = DAY
    spool.admit([intake(sequence, received=START + sequence * 3600) for sequence in range(48)])
    later = START + 47 * 3600
    assert spool.trim(later) == 0  # no engine has them
    spool.advance(ENGINE, 10)
    assert spool.trim(later) == 10
    spool.advance(ENGINE, 48)
    assert spool.trim(later) == 13  # those of hours 10 to 22
    assert spool.trim(later) == 0
    assert spool.status().packets == 25
    assert spool.held(NODES[0].kid, STORES[0]) == set(range(48))


def test_the_budget_drops_the_oldest_that_may_go(path: Path) -> None:
    spool = Spool(path, engines=[ENGINE], budget=3000)
    batch = [intake(sequence) for sequence in range(40)]
    spool.admit(batch)
    assert spool.status().size > 6000
    assert spool.trim(START) == 0
    assert spool.full
    spool.advance(ENGINE, 5)
    assert not spool.full  # some of it may go
    assert spool.trim(START) == 5
    assert spool.full
    spool.advance(ENGINE, 40)
    while spool.trim(START):
        pass
    assert not spool.full
    status = spool.status()
    assert 2500 < status.size <= 3000
    assert spool.admit(batch[:1]) == [(Verdict.KNOWN, 0)]
    assert spool.admit(batch[-1:]) == [(Verdict.KNOWN, 40)]
    spool.close()


def test_trimming_goes_in_slices(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "TRIM_SLICE", 4)
    spool.retention = 0
    spool.admit([intake(sequence) for sequence in range(10)])
    spool.advance(ENGINE, 10)
    assert [spool.trim(START + 1) for _ in range(4)] == [4, 4, 2, 0]
    assert spool.status().size == 0


def test_a_clock_that_was_ahead_holds_up_nothing(spool: Spool) -> None:
    spool.retention = DAY
    spool.admit([intake(0, received=START + 3650 * DAY), intake(1)])
    spool.advance(ENGINE, 2)
    assert spool.trim(START + 2 * DAY) == 1
    assert spool.admit([intake(0), intake(1)]) == [(Verdict.KNOWN, 1), (Verdict.KNOWN, 0)]


def test_positions_are_never_used_twice(path: Path) -> None:
    spool = Spool(path, engines=[ENGINE], retention=0)
    spool.admit([intake(0), intake(1)])
    spool.advance(ENGINE, 2)
    assert spool.trim(START + 1) == 2
    spool.close()
    spool = Spool(path, engines=[ENGINE], retention=0)
    assert spool.admit([intake(2)]) == [(Verdict.NEW, 3)]
    assert len(spool.pending(ENGINE).entries) == 1
    spool.close()


def test_a_packet_that_was_trimmed_is_still_known(spool: Spool) -> None:
    spool.retention = 0
    spool.admit([intake(0)])
    spool.advance(ENGINE, 1)
    spool.trim(START + 1)
    # What it was is forgotten, so that another content is not recognised any more.
    assert spool.admit([intake(0), intake(0, value=3.0)]) == [(Verdict.KNOWN, 0)] * 2
    assert spool.pending(ENGINE).entries == ()


# --- what it tells ---------------------------------------------------------------------


def test_gaps_are_told_from_what_will_never_come(spool: Spool) -> None:
    spool.admit([intake(sequence) for sequence in (2, 3, 7, 9)])
    spool.admit([intake(20, node=1, floor=25)])
    one, other = spool.stores()
    if one.kid != NODES[0].kid:
        one, other = other, one
    assert (one.held, one.last, one.floor, one.coming, one.given_up) == (4, 9, 0, 6, 0)
    assert (other.held, other.last, other.floor, other.coming, other.given_up) == (1, 20, 25, 0, 24)
    spool.admit([intake(10, floor=5), intake(11, floor=4)])
    (one,) = [each for each in spool.stores() if each.kid == NODES[0].kid]
    # 0, 1 and 4 are gone; 5, 6 and 8 may come.
    assert (one.held, one.last, one.floor, one.coming, one.given_up) == (6, 11, 5, 3, 3)


def test_the_epoch_is_of_the_spool(path: Path, tmp_path: Path) -> None:
    spool, another = Spool(path), Spool(tmp_path / "another.db")
    epoch = spool.epoch
    assert len(epoch) == 4
    assert epoch != another.epoch
    assert spool.since == 0
    another.close()
    spool.close()
    spool = Spool(path)
    assert spool.epoch == epoch
    renewed = spool.renew_epoch(START)
    assert (spool.epoch, spool.since) == (renewed, START)
    assert renewed != epoch
    spool.close()
    spool = Spool(path)
    assert (spool.epoch, spool.since) == (renewed, START)
    assert spool.status().epoch == renewed
    spool.close()


def test_one_gateway_at_a_time_writes_others_look(spool: Spool, path: Path) -> None:
    spool.admit([intake(0)])
    with pytest.raises(StoreError, match="in use"):
        Spool(path)
    reader = Spool(path, read_only=True)
    assert reader.epoch == spool.epoch
    assert reader.status().packets == 1
    assert reader.held(NODES[0].kid, STORES[0]) == {0}
    spool.admit([intake(1)])
    assert reader.status().packets == 2
    with pytest.raises(StoreError):
        reader.admit([intake(2)])
    reader.close()


def test_a_spool_that_cannot_be_opened_can_be_tried_again(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        Spool(tmp_path / "missing" / "spool.db")
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    for _ in range(2):  # and the lock was let go
        with pytest.raises(StoreCorrupt) as caught:
            Spool(path)
        assert "the next start sets the file aside" in (caught.value.hint or "")


def test_a_log_whose_end_was_damaged_is_noticed(path: Path, tmp_path: Path) -> None:
    """What was receipted last may be gone: a new epoch brings it back from the nodes."""
    spool = Spool(path)
    for sequence in range(20):
        spool.admit([intake(sequence)])
    log = path.with_name("spool.db-wal").read_bytes()
    base = path.read_bytes()
    spool.close()
    for name, damage in (("whole", 0), ("damaged", 0xFF)):
        copy = tmp_path / name
        copy.write_bytes(base)
        broken = log[:-1000] + bytes([log[-1000] ^ damage]) + log[-999:]
        copy.with_name(f"{name}-wal").write_bytes(broken)
        spool = Spool(copy)
        assert spool.torn == bool(damage)
        assert spool.status().packets == (19 if damage else 20)
        spool.close()
