"""Packets for the spool's tests, and a process that fills a spool until it is killed.

    python tests/gateway/spool_kit.py PATH SEED

admits batches (new, repeated and out of order), drains and trims; each packet's number is
printed once ``admit`` has returned.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from gateway.spool import Intake, Spool
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Extensions, Packet, pack

NODES = tuple(Identity.from_seed(bytes([number]) * 32) for number in range(1, 4))
STORES = (b"aaaa", b"bbbb")
ENGINE = "sqlite:routing.db"
START = 1_767_225_600
#: Numbers of the torture: (origin, sequence) by a number is ``origin_of``.
NUMBERS = 30_000


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


def numbered(number: int) -> Packet:
    """The packet of a number of the torture: four stores, each with its own sequences."""
    return packet(number // 4, node=number % 2, store=STORES[number // 2 % 2])


def fill(path: Path, seed: int) -> None:
    draw = random.Random(seed)
    spool = Spool(path, engines=[ENGINE], retention=1, budget=1 << 20)
    out = sys.stdout
    while True:
        start = draw.randrange(NUMBERS)
        numbers = [min(start + draw.randrange(40), NUMBERS) for _ in range(draw.randrange(1, 30))]
        spool.admit([Intake(numbered(number), START) for number in numbers])
        out.write("".join(f"{number}\n" for number in numbers))
        out.flush()
        if draw.random() < 0.3:
            pending = spool.pending(ENGINE, draw.randrange(1, 60))
            spool.advance(ENGINE, pending.through)
            out.write("".join(f"routed {entry.id.hex()}\n" for entry in pending.entries))
            out.flush()
        if draw.random() < 0.1:
            spool.trim(START + draw.randrange(3))


if __name__ == "__main__":
    fill(Path(sys.argv[1]), int(sys.argv[2]))
