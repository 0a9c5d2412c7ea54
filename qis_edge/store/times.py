"""Outcomes that were made before their node knew the time.

Such an outcome has the name of its boot and the seconds since. Once the offset between
that and unix time is known, the outcomes of this boot get their exact time. Those of
earlier boots that never learned it get an estimate: a boot began no earlier than what
was known of the time when it did, and the boots before this one ended before it began.
The middle of what remains is taken, and half its width is the uncertainty that travels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from qis_edge.core.rows import MAX_TIME
from qis_edge.store.forms import Unclocked, check_of, extensions_of, extensions_text, group_key
from qis_edge.store.tables import Tables

_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Boot:
    """What is known of a boot.

    :param offset: unix seconds at its monotonic zero, ``None`` while unknown.
    :param uncertainty: of the offset, seconds.
    """

    id: int
    clock: int
    offset: float | None
    uncertainty: float


@dataclass(frozen=True, slots=True)
class Settlement:
    """How many outcomes got their time: exactly, or as an estimate."""

    exact: int
    estimated: int


def find_boot(tables: Tables, name: str) -> Boot | None:
    """A boot by name."""
    row = tables.db.row(
        "SELECT id, clock, offset, coalesce(uncertainty, 0.0) FROM boots WHERE name=?", (name,)
    )
    return None if row is None else Boot(*row)


def note_boot(tables: Tables, name: str) -> Boot:
    """A boot by name, noted when it is new."""
    found = find_boot(tables, name)
    if found is not None:
        return found
    made = tables.db.execute(
        "INSERT INTO boots (name, clock) VALUES (?, ?)", (name, tables.state.clock)
    )
    return Boot(int(made.lastrowid or 0), tables.state.clock, None, 0.0)


def add_untimed(
    tables: Tables,
    row: int,
    boot: Boot,
    unclocked: Unclocked,
    body: bytes,
    kind: tuple[bytes, int, int, str],
) -> None:
    """Keep an outcome until its time is known."""
    fingerprint, priority, ttl, extensions = kind
    tables.db.execute(
        "INSERT INTO untimed VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            priority,
            row,
            boot.id,
            float(unclocked.monotonic),
            fingerprint,
            ttl,
            extensions,
            body,
            check_untimed(row, boot.id, unclocked.monotonic, kind, body),
        ),
    )
    tables.state.untimed += 1


def check_untimed(
    row: int, boot: int, monotonic: float, kind: tuple[bytes, int, int, str], body: bytes
) -> int:
    """The checksum of such an outcome's row."""
    return check_of(group_key(*kind) + body, row, boot, float(monotonic))


def timed(boot: Boot, monotonic: float, extensions: str) -> tuple[int, str]:
    """The unix time of a moment of a boot whose offset is known, and the extensions that
    also say how uncertain it is."""
    moment = math.floor((boot.offset or 0.0) + monotonic + 0.5)
    time = min(max(moment, 0), MAX_TIME)
    if boot.uncertainty < 1.0:
        return time, extensions
    before = extensions_of(extensions)
    total = (before.time_uncertainty or 0) + math.ceil(boot.uncertainty)
    return time, extensions_text(replace(before, time_uncertainty=min(total, MAX_TIME)))


def settle(tables: Tables, name: str, offset: float, uncertainty: float) -> Settlement:
    """Give every outcome without a time its own. May be repeated; goes on where it was
    interrupted."""
    known = find_boot(tables, name)
    if known is None or not _tells_nothing_new(known, offset, uncertainty):
        with tables.change():
            boot = note_boot(tables, name)
            tables.db.execute(
                "UPDATE boots SET offset=?, uncertainty=? WHERE id=?",
                (float(offset), float(uncertainty), boot.id),
            )
    else:
        boot, offset = known, known.offset or 0.0
    if not tables.state.untimed:
        return Settlement(0, 0)
    boots, guessed = _estimated(tables, float(offset))
    exact = estimated = 0
    while True:
        with tables.change():
            moved = _settle_some(tables, boots)
        if not moved:
            break
        guesses = sum(1 for one in moved if one in guessed)
        exact, estimated = exact + len(moved) - guesses, estimated + guesses
    with tables.change():
        tables.db.execute("DELETE FROM boots WHERE id<>?", (boot.id,))
    return Settlement(exact, estimated)


def _tells_nothing_new(known: Boot, offset: float, uncertainty: float) -> bool:
    """Gateways tell the time often; what is as good already is not written again."""
    if known.offset is None or uncertainty < known.uncertainty:
        return False
    return abs(offset - known.offset) <= max(0.5, uncertainty)


def _settle_some(tables: Tables, boots: dict[int, Boot]) -> list[int]:
    """Returns the boots of those that were settled; none when there are none left."""
    rows = tables.db.rows(
        "SELECT priority, id, boot, monotonic, fingerprint, ttl, extensions, body, crc"
        " FROM untimed ORDER BY priority, id LIMIT ?",
        (_AT_ONCE,),
    )
    for priority, row, boot, monotonic, fingerprint, ttl, extensions, body, crc in rows:
        kind = (fingerprint, priority, ttl, extensions)
        if check_untimed(row, boot, monotonic, kind, body) != crc or boot not in boots:
            raise tables.db.damaged(f"outcome {row} is not what was written")
        time, text = timed(boots[boot], monotonic, extensions)
        tables.add_waiting(row, time, body, (fingerprint, priority, ttl, text))
        tables.db.execute("DELETE FROM untimed WHERE priority=? AND id=?", (priority, row))
        tables.state.untimed -= 1
        tables.state.clock = max(tables.state.clock, time if boots[boot].uncertainty < 1 else 0)
    return [row[2] for row in rows]


def _estimated(tables: Tables, now_offset: float) -> tuple[dict[int, Boot], set[int]]:
    """All boots, those that never learned the time with the best that can be said; and
    which those are."""
    lasted = dict(tables.db.rows("SELECT boot, max(monotonic) FROM untimed GROUP BY boot"))
    boots = {
        row[0]: Boot(*row)
        for row in tables.db.rows(
            "SELECT id, clock, offset, coalesce(uncertainty, 0.0) FROM boots ORDER BY id"
        )
    }
    unknown = [boot for boot in boots.values() if boot.offset is None]
    earliest = 0.0
    latest: dict[int, float] = {}
    end = now_offset
    for boot in reversed(unknown):
        end -= lasted.get(boot.id, 0.0)
        latest[boot.id] = end
    for boot in unknown:
        earliest = max(earliest, float(boot.clock))
        high = max(latest[boot.id], earliest)
        middle, half = (earliest + high) / 2, (high - earliest) / 2
        boots[boot.id] = Boot(boot.id, boot.clock, middle, max(half, 1.0))
        earliest += lasted.get(boot.id, 0.0)
    return boots, {boot.id for boot in unknown}
