"""What the store's tests share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Label, Outcome, Value
from qis_edge.core.packet import Extensions, Packet, pack
from qis_edge.core.receipt import Receipt
from qis_edge.store import Outbox, Queued, Settled, Stats

ME = Identity.from_seed(bytes(range(32)))
OTHER = Identity.from_seed(bytes(32))
ADDRESS = bytes(range(32))
ELSEWHERE = bytes(range(1, 33))
T0 = 1_700_000_000
HOUR = 3600
GATEWAY, SECOND = b"gateway1", b"gateway2"
EPOCH = b"ep01"


def outcome(hour: int, **results: float | str | None) -> Outcome:
    """The outcome of an hour, recognisable by its time."""
    named: dict[Label, Value] = dict(results.items())
    named = named or {"temperature": 20.0 + hour % 10}
    return Outcome(T0 + hour * HOUR, results=named)


def hours(outcomes: Iterable[Outcome]) -> list[int]:
    """Which hours these are of."""
    return sorted((one.time - T0) // HOUR for one in outcomes)


def fill(box: Outbox, count: int, first: int = 0, address: bytes = ADDRESS) -> None:
    """Append the outcomes of some hours."""
    for hour in range(first, first + count):
        box.append(outcome(hour), address)


def pack_each(box: Outbox, count: int, first: int = 0) -> list[Packet]:
    """Append the outcomes of some hours, each packed alone."""
    made = []
    for hour in range(first, first + count):
        box.append(outcome(hour), ADDRESS)
        made += box.pack(ME)
    return made


def held(box: Outbox, store: bytes, *sequences: int, gateway: bytes = GATEWAY) -> Settled:
    """A receipt that says held."""
    return box.receipt(gateway, EPOCH, Receipt(store, held=sequences))


def open_keys(box: Outbox) -> list[tuple[bytes, int]]:
    """Every packet that still needs a receipt, page by page."""
    found: list[Queued] = []
    while page := box.unreceipted(3, found[-1] if found else None):
        found += page
    return [one.key for one in found]


def conserved(stats: Stats) -> bool:
    """Whether every outcome made is in exactly one place."""
    return stats.made == (
        stats.waiting
        + stats.untimed
        + stats.open_outcomes
        + stats.held_outcomes
        + stats.refused_outcomes
        + stats.unpackable
        + stats.evicted_receipted
        + stats.evicted_expired
        + stats.evicted_unsent
        + stats.unreadable
    )


def peer_packet(
    sequence: int,
    hour: int,
    *,
    peer: Identity = OTHER,
    address: bytes = ADDRESS,
    ttl: int = 24,
    summary: str | None = None,
) -> Packet:
    """A packet of a peer with one outcome."""
    return pack(
        [Outcome(T0 + hour * HOUR, results={"temperature": 1.0}, summary=summary)],
        identity=peer,
        fingerprint=address,
        store=b"peer",
        sequence=sequence,
        ttl=ttl,
        extensions=Extensions(),
    )


def files(directory: Path) -> set[str]:
    """The names in a directory."""
    return {path.name for path in directory.iterdir()}
