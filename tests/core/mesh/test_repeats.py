"""Messages without custody: small ones share a frame, of long ones missing tiles go again."""

from __future__ import annotations

import pytest

from qis_edge.core.errors import DoesNotFit
from qis_edge.core.mesh.framing import Batch, Elided, Missing, Part, Tile, Whole, decode
from qis_edge.core.mesh.repeats import Repeats
from tests.core.mesh.kit import packet


def _all(repeats: Repeats, now: float) -> list[bytes]:
    frames = []
    while (frame := repeats.next(now)) is not None:
        assert len(frame) <= 200
        frames.append(frame)
    return frames


def test_small_messages_share_a_frame() -> None:
    repeats = Repeats()
    small = [bytes([n]) * 60 for n in range(1, 6)]
    for message in small:
        repeats.send(message, 0.0)
    frames = [decode(frame) for frame in _all(repeats, 0.0)]
    assert frames == [Batch(tuple(small[:3])), Batch(tuple(small[3:]))]


def test_one_message_is_sent_as_it_is() -> None:
    repeats = Repeats()
    repeats.send(b"m" * 199, 0.0)
    assert [decode(frame) for frame in _all(repeats, 0.0)] == [Whole(b"m" * 199)]


def test_a_long_message_is_cut_and_only_its_missing_tiles_go_again() -> None:
    repeats = Repeats(guard=10.0)
    repeats.send(b"m" * 500, 0.0)
    tiles = [decode(frame) for frame in _all(repeats, 0.0)]
    assert all(isinstance(tile, Tile) for tile in tiles)
    assert len(tiles) == 3
    assert isinstance(tiles[0], Tile)
    missing = Missing(Part(tiles[0].tag, 0b101))
    assert repeats.take(missing, 20.0)
    assert repeats.take(missing, 20.0)  # a second listener misses the same one
    assert [decode(frame) for frame in _all(repeats, 21.0)] == [tiles[1]]
    assert repeats.take(missing, 25.0)
    assert _all(repeats, 25.0) == []
    assert repeats.take(missing, 40.0)
    assert len(_all(repeats, 40.0)) == 1


def test_what_was_not_ours_or_is_long_past_is_not_repeated() -> None:
    repeats = Repeats()
    assert not repeats.take(Missing(Part(b"ab", 1)), 0.0)
    repeats.send(b"m" * 500, 0.0)
    tile = decode(_all(repeats, 0.0)[0])
    assert isinstance(tile, Tile)
    assert not repeats.take(Missing(Part(tile.tag, 1)), 700.0)


def test_a_packet_going_down_may_leave_out_its_context() -> None:
    repeats = Repeats()
    repeats.send_elided(packet(), 0.0)
    repeats.send_elided(packet(2, words=300), 0.0)
    frames = [decode(frame) for frame in _all(repeats, 0.0)]
    assert [type(frame) for frame in frames] == [Elided, Tile, Tile]


def test_a_full_queue_takes_no_more() -> None:
    repeats = Repeats()
    for _ in range(64):
        repeats.send(b"m", 0.0)
    assert repeats.room == 0
    with pytest.raises(DoesNotFit):
        repeats.send(b"m", 0.0)
    assert len(repeats) == 64


@pytest.mark.parametrize("size", [0, 513])
def test_what_is_no_message(size: int) -> None:
    with pytest.raises(DoesNotFit):
        Repeats().send(bytes(size), 0.0)


def test_whoever_asks_for_tiles_without_end_does_not_get_them() -> None:
    repeats = Repeats(guard=1.0)
    repeats.send(b"m" * 500, 0.0)
    tile = decode(_all(repeats, 0.0)[0])
    assert isinstance(tile, Tile)
    again = 0
    for second in range(2, 500, 2):
        repeats.take(Missing(Part(tile.tag, 1)), float(second))
        again += len(_all(repeats, float(second)))
    assert again == 4 * 3
