"""Who gets how much of a full batch."""

from __future__ import annotations

from collections import Counter

import pytest

from gateway.shares import FORGIVEN, IN_A_ROW, Shares
from qis_edge.links.base import Direction, Received

FULL = 128
FLOODER, HONEST = b"flooder.", [b"node%04d" % number for number in range(20)]


def batch(flood: int, *, others: int, size: int = FULL) -> list[Received]:
    """So many frames of one, and the rest of others in turn, mixed."""
    kids = [FLOODER] * flood + [HONEST[n % others] for n in range(size - flood)]
    order = sorted(range(size), key=lambda n: n * 61 % size)
    return [Received(b"%d" % n, Direction.UP, kids[n], None) for n in order]


def taken(shares: Shares, frames: list[Received], now: float = 0.0) -> Counter[bytes | None]:
    within, beyond = shares.split(frames, now)
    assert len(within) + len(beyond) == len(frames)
    assert [one for one in frames if one in within] == list(within)
    return Counter(one.claimed for one in within)


def test_where_nobody_waits_everybody_gets_all() -> None:
    shares = Shares(FULL)
    frames = batch(127, others=1, size=127)
    for _ in range(20):
        assert shares.split(frames, 0.0) == (frames, ())


def test_honest_windows_are_within_their_share() -> None:
    shares = Shares(FULL)
    for _ in range(20):
        assert sum(taken(shares, batch(64, others=1)).values()) == FULL
        assert sum(taken(shares, batch(0, others=20)).values()) == FULL


def test_who_floods_is_held_to_a_small_share(caplog: pytest.LogCaptureFixture) -> None:
    shares = Shares(FULL)
    for number in range(30):
        found = taken(shares, batch(120, others=8), number * 0.01)
        assert sum(found[kid] for kid in HONEST) == 8
        assert found[FLOODER] == (FULL // 2 if number < IN_A_ROW else FULL // 16)
    assert caplog.text.count("floods") == 1
    assert f"qis-gateway revoke {FLOODER.hex()}" in caplog.text


def test_it_is_held_to_it_in_batches_that_are_not_full_too() -> None:
    shares = Shares(FULL)
    for _ in range(IN_A_ROW):
        taken(shares, batch(120, others=8))
    found = taken(shares, batch(50, others=10, size=60))
    assert (found[FLOODER], sum(found.values())) == (8, 18)
    frames = batch(0, others=20, size=100)
    assert shares.split(frames, 1.0) == (frames, ())


def test_who_exceeds_its_share_now_and_then_does_not_flood() -> None:
    shares = Shares(FULL)
    for number in range(30):
        found = taken(shares, batch(120 if number % IN_A_ROW else 60, others=8), number * 0.01)
        assert found[FLOODER] >= 60


def test_who_stops_is_forgiven(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    shares = Shares(FULL)
    for number in range(10):
        taken(shares, batch(120, others=8), number * 0.01)
    assert taken(shares, batch(64, others=8), 1.0)[FLOODER] == FULL // 16
    assert taken(shares, batch(64, others=8), 1.0 + FORGIVEN)[FLOODER] == 64
    assert caplog.text.count("floods no more") == 1
    frames = batch(100, others=1, size=101)
    assert shares.split(frames, 20.0) == (frames, ())


def test_where_nobody_says_who_sends_nothing_is_passed_over() -> None:
    frames = [Received(b"x", Direction.UP, None, None)] * FULL
    assert Shares(FULL).split(frames, 0.0) == (frames, ())
