"""Keeping the outbox within its bytes: what goes first when there is no more room.

In this order: packets that a gateway holds, oldest first; then what is past its ttl; then
the least important, and of those the oldest. Nothing goes before there is a need.
"""

from __future__ import annotations

from dataclasses import dataclass

from qis_edge.store.tables import Group, PacketRow, Tables

#: No budget is smaller: the file's own structure takes some dozen KiB.
SMALLEST = 256 * 1024

_PACKETS, _OUTCOMES = 16, 64  # at a time


@dataclass(slots=True)
class Dropped:
    """Outcomes that went, by class."""

    receipted: int = 0
    expired: int = 0
    unsent: int = 0


def make_room(tables: Tables, budget: int, now: int) -> Dropped:
    """Drop until the file holds a little less than ``budget`` bytes.

    :param now: what is past its ttl at this time counts as expired, unix seconds.
    """
    dropped = Dropped()
    target = budget - max(budget // 64, 8 * 1024)
    with tables.change() as state:
        while tables.db.used() > target:
            if not (
                _drop_held(tables, dropped)
                or _drop_expired_packets(tables, now, dropped)
                or _drop_expired_outcomes(tables, now, dropped)
                or _drop_least_important(tables, dropped)
            ):
                break
        state.evicted_receipted += dropped.receipted
        state.evicted_expired += dropped.expired
        state.evicted_unsent += dropped.unsent
        tables.trim_stubs()
    return dropped


def _drop_packets(tables: Tables, rows: list[PacketRow]) -> int:
    for row in rows:
        tables.remove_packet(row)
    tables.state.evicted_packets += len(rows)
    return sum(row.outcomes for row in rows)


def _drop_held(tables: Tables, dropped: Dropped) -> bool:
    rows = tables.packets("WHERE rank=-1 ORDER BY id LIMIT ?", (_PACKETS,))
    dropped.receipted += _drop_packets(tables, rows)
    return bool(rows)


def _drop_expired_packets(tables: Tables, now: int, dropped: Dropped) -> bool:
    rows = tables.packets("WHERE expires<=? ORDER BY expires LIMIT ?", (now, _PACKETS))
    dropped.expired += _drop_packets(tables, rows)
    return bool(rows)


def _drop_expired_outcomes(tables: Tables, now: int, dropped: Dropped) -> bool:
    group = tables.expired_group(now)
    if group is None:
        return False
    gone = []
    for row, time, _ in tables.waiting_rows(group, _OUTCOMES):
        if time + group.ttl * 3600 > now:
            break
        gone.append(row)
    tables.remove_waiting(group, gone, leading=True)
    dropped.expired += len(gone)
    return True


def _drop_least_important(tables: Tables, dropped: Dropped) -> bool:
    for priority in range(4):
        rows = tables.packets("WHERE rank=? ORDER BY id LIMIT ?", (priority, _PACKETS))
        if rows:
            dropped.unsent += _drop_packets(tables, rows)
            return True
        if group := tables.next_group(priority, -1):
            dropped.unsent += _drop_oldest(tables, group)
            return True
        if gone := _drop_untimed(tables, priority):
            dropped.unsent += gone
            return True
    return False


def _drop_oldest(tables: Tables, group: Group) -> int:
    """Of a group's outcomes those that are older than any of the next group."""
    following = tables.next_group(group.priority, group.head)
    rows = [row for row, _, _ in tables.waiting_rows(group, _OUTCOMES)]
    if following is not None:
        rows = [row for row in rows if row < following.head]
    tables.remove_waiting(group, rows, leading=True)
    return len(rows)


def _drop_untimed(tables: Tables, priority: int) -> int:
    rows = tables.db.rows(
        "SELECT id FROM untimed WHERE priority=? ORDER BY id LIMIT ?", (priority, _OUTCOMES)
    )
    tables.db.execute_many(
        "DELETE FROM untimed WHERE priority=? AND id=?", [(priority, row) for (row,) in rows]
    )
    tables.state.untimed -= len(rows)
    return len(rows)
