"""What operations cost, counted in steps and bytes, not in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qis_edge.core.receipt import Receipt
from qis_edge.store import Answer, Inbox, Outbox, Pending, Position
from tests.store.kit import (
    ADDRESS,
    ELSEWHERE,
    EPOCH,
    GATEWAY,
    ME,
    T0,
    fill,
    held,
    outcome,
    pack_each,
    peer_packet,
)

FEW, MANY = 3_000, 60_000


def steps(box: Outbox, act: Callable[[], object]) -> int:
    """How many steps of SQLite's machine something takes."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return 0

    box._db._connection.set_progress_handler(tick, 1)
    try:
        act()
    finally:
        box._db._connection.set_progress_handler(None, 1)
    return count


def with_backlog(count: int) -> Outbox:
    """Waiting outcomes, 500 at each address, and packets open and held in proportion."""
    box = Outbox.in_memory(ME.public, budget=1 << 30)
    store = pack_each(box, count // 10)[0].store
    held(box, store, *range(0, count // 10, 2))
    addresses = [n.to_bytes(32) for n in range(1, 1 + count // 500)]
    box.append_many(
        Pending(outcome(n, x=n * 7919 % 1000 / 10), addresses[n % len(addresses)])
        for n in range(count)
    )
    return box


@pytest.fixture(scope="module")
def backlogs() -> Iterator[tuple[Outbox, Outbox]]:
    with with_backlog(FEW) as few, with_backlog(MANY) as many:
        yield few, many


def receipt_for_next(box: Outbox) -> None:
    one = box.unreceipted(1)[0]
    box.receipt(GATEWAY, EPOCH, Receipt(one.store, held=(one.sequence,)))


@pytest.mark.parametrize(
    "act",
    [
        lambda box: box.append(outcome(7), bytes(32)),
        lambda box: box.append(outcome(7), ELSEWHERE),
        lambda box: box.pack(ME, max_packets=1),
        lambda box: box.pack(ME, max_packets=5, limit=200),
        lambda box: box.unreceipted(32),
        receipt_for_next,
        lambda box: box.stats(),
        lambda box: box.waiting(10),
        lambda box: box.packet_id(box.stats().store, 3),
    ],
    ids=["append", "new group", "pack", "pack 5", "unreceipted", "receipt", "stats", "list", "id"],
)
def test_twenty_times_the_backlog_costs_no_more(
    backlogs: tuple[Outbox, Outbox], act: Callable[[Outbox], object]
) -> None:
    few, many = (steps(box, lambda box=box: act(box)) for box in backlogs)  # type: ignore[misc]  # a default argument has no type
    assert many <= 1.3 * few + 20


def written() -> int:
    """Bytes that this process has handed to files so far (Linux)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


def test_waiting_for_a_link_writes_nothing(tmp_path: Path) -> None:
    with Outbox.open(tmp_path / "outbox.db", ME.public) as box:
        store = pack_each(box, 3)[0].store
        fill(box, 5)
        held(box, store, 0)
        box.settle("boot", 1e9)
        box.set_clock(2_000_000_000)
        before = written()
        for second in range(10):
            box.settle("boot", 1e9 + 0.1)
            box.set_clock(2_000_000_000 + second)
            box.unreceipted()
            box.stats()
            box.pack(ME, ready=lambda _: False)
            held(box, store, 0)
            box.receipt(GATEWAY, EPOCH, Receipt(store, later=((60, (1, 2)),)))
            box.packet_id(store, 1)
        assert written() == before


def test_a_quiet_inbox_writes_nothing(tmp_path: Path) -> None:
    box, _ = Inbox.open(tmp_path / "inbox.db")
    with box:
        packet = peer_packet(1, 1)
        position = Position(GATEWAY, b"cursor")
        box.put([packet], now=T0, position=position)
        box.met_gateway(GATEWAY, EPOCH, T0)
        before = written()
        for second in range(10):
            box.put([packet], now=T0, position=position)
            box.met_gateway(GATEWAY, EPOCH, T0 + second)
            box.expire(T0)
            box.query(ADDRESS)
            box.stats()
        assert written() == before


def test_draining_a_backlog_writes_little(tmp_path: Path) -> None:
    """A month of hourly outcomes, packed and receipted in batches, checkpoints included."""
    count = 3000
    box = Outbox.open(tmp_path / "outbox.db", ME.public)
    for start in range(0, count, 100):
        box.append_many(Pending(outcome(n), ADDRESS) for n in range(start, start + 100))
    box._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = written()
    while packets := box.pack(ME, limit=200, max_packets=16):
        box.receipts(
            Answer(GATEWAY, EPOCH, Receipt(packet.store, held=(packet.sequence,)))
            for packet in packets
        )
    assert box.stats().held_outcomes == count
    box.close()
    assert (written() - before) / count <= 1024


def test_draining_packets_of_single_outcomes_writes_little(tmp_path: Path) -> None:
    """The hardest case: each outcome has an address of its own."""
    count = 2000
    box = Outbox.open(tmp_path / "outbox.db", ME.public)
    box.append_many(Pending(outcome(n), n.to_bytes(32)) for n in range(count))
    box._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = written()
    while packets := box.pack(ME, max_packets=64):
        box.receipts(
            Answer(GATEWAY, EPOCH, Receipt(packet.store, held=(packet.sequence,)))
            for packet in packets
        )
    assert box.stats().held_outcomes == count
    box.close()
    assert (written() - before) / count <= 4096
