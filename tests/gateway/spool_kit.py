"""Packets for the spool's tests."""

from __future__ import annotations

from gateway.spool import Intake
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Extensions, Packet, pack

NODES = tuple(Identity.from_seed(bytes([number]) * 32) for number in range(1, 4))
STORES = (b"aaaa", b"bbbb")
ENGINE = "sqlite:routing.db"
START = 1_767_225_600


def packet(
    sequence: int,
    *,
    node: int = 0,
    store: bytes = STORES[0],
    value: float = 20.5,
    floor: int | None = None,
    vector: tuple[float, ...] | None = None,
) -> Packet:
    return pack(
        [Outcome(time=START + 3600 * (sequence % 10_000), results={"temperature": value})],
        identity=NODES[node],
        fingerprint=bytes([sequence % 5]) * 32,
        store=store,
        sequence=sequence,
        extensions=Extensions(floor=floor, vector=vector),
    )


def intake(sequence: int, *, received: float = START, route: bool = True, **how: object) -> Intake:
    return Intake(packet(sequence, **how), received, route)  # type: ignore[arg-type]  # passed on
