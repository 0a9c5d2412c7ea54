"""Node and gateway over a channel that loses, repeats, reorders, cuts and corrupts frames."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qis_edge.core.errors import Refused
from qis_edge.core.packet import Packet
from tests.bench import mesh_loss
from tests.core.mesh.kit import packet

NODE = mesh_loss.NODE


def backlog(count: int, words: Sequence[int]) -> list[Packet]:
    return [
        packet(n, node=NODE, store=mesh_loss.STORE, words=words[n % len(words)])
        for n in range(1, count + 1)
    ]


class Rough(mesh_loss.Simulation):
    """Frames that are not lost may come twice, late, short or changed."""

    def __init__(
        self, packets: Sequence[Packet], loss: float, mischief: float, rng: random.Random
    ) -> None:
        super().__init__(packets, mesh_loss.independent(rng, loss), rng)
        # Weeks of silence may lie between two copies: a spool would know the second.
        self.gateway.limits = replace(self.gateway.limits, remember=float("inf"))
        self._rng = rng
        self._mischief = mischief
        self._late: list[tuple[int, bytes]] = []
        self.refused = 0

    def _transmit(self, frame: bytes, way: int) -> None:
        seconds = mesh_loss.airtime(len(frame))
        self.now += seconds
        self.run.frames += 1
        self.run.air += seconds
        arriving = [] if self._lost(way) else [(way, frame)]
        if arriving and self._rng.random() < self._mischief:
            arriving = self._spoil(way, frame)
        if self._late and self._rng.random() < 0.3:
            arriving.append(self._late.pop(self._rng.randrange(len(self._late))))
        for to, data in arriving:
            try:
                (self._down if to else self._up)(data)
            except Refused as refusal:
                assert refusal.field
                self.refused += 1

    def _spoil(self, way: int, frame: bytes) -> list[tuple[int, bytes]]:
        at = self._rng.randrange(len(frame))
        match self._rng.randrange(4):
            case 0:
                return [(way, frame), (way, frame)]
            case 1:
                self._late.append((way, frame))
                return []
            case 2:
                return [(way, frame[:at])]
            case _:
                flipped = frame[at] ^ (1 << self._rng.randrange(8))
                return [(way, frame[:at] + bytes((flipped,)) + frame[at + 1 :])]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.1, 0.3, 0.5]),
    mischief=st.sampled_from([0.0, 0.2, 0.5]),
    words=st.lists(st.sampled_from([0, 60, 150, 330]), min_size=1, max_size=4),
)
def test_everything_arrives_exactly_once(
    seed: int, loss: float, mischief: float, words: list[int]
) -> None:
    packets = backlog(24, words)
    transfer = Rough(packets, loss, mischief, random.Random(seed))
    run = transfer.go()
    assert run.delivered == run.sent == 24
    assert run.duplicates == 0
    assert transfer.ids == {p.sequence: p.id for p in packets}
    assert len(transfer.sender) == 0


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("words", [0, 60, 330])
def test_what_a_backlog_costs(loss: float, words: int) -> None:
    packets = backlog(200, [words])
    rng = random.Random(7)
    run = mesh_loss.Simulation(packets, mesh_loss.independent(rng, loss), rng).go()
    assert run.delivered == 200
    assert run.duplicates == 0
    # 200 packets scatter more than 1,000.
    assert run.air <= 1.25 * mesh_loss.needed(packets) / (1 - loss)


def test_nothing_is_resent_on_a_channel_that_loses_nothing() -> None:
    packets = backlog(64, [60])
    rng = random.Random(1)
    transfer = mesh_loss.Simulation(packets, lambda _: False, rng)
    transfer.go()
    # The first whole packet teaches the context; the rest goes once.
    assert transfer.sender.custody.counters.resent == 1
    assert transfer.gateway.duplicates <= 1
    assert transfer.sender.polls == 0
