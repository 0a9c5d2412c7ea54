"""Tiles: any order, any repetition; bounded memory, whatever arrives."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qis_edge.core.errors import DoesNotFit, Reason, Refused
from qis_edge.core.mesh.fragments import Reassembly, cut
from qis_edge.core.mesh.framing import MAX_PARTS, Part, Tile

LONG = bytes(range(256)) * 2


@settings(max_examples=60)
@given(st.binary(min_size=232, max_size=513), st.integers(48, 231), st.randoms())
def test_tiles_in_any_order_make_what_was_cut(data: bytes, frame: int, random: Random) -> None:
    tiles = list(cut(data, frame))
    assert all(len(tile.encode()) <= frame for tile in tiles)
    random.shuffle(tiles)
    reassembly = Reassembly()
    repeated = [tile for tile in tiles[:-1] for _ in range(2)]
    for tile in repeated:
        assert reassembly.take(1, tile, 0.0, known=False) is None
    assert reassembly.take(1, tiles[-1], 0.0, known=False) == data
    assert len(reassembly) == 0


def test_what_fits_a_frame_or_no_message_is_not_cut() -> None:
    for size in (200, 514):
        with pytest.raises(DoesNotFit):
            cut(bytes(size), 200)
    assert len(cut(bytes(201), 200)) == 2
    assert len(cut(bytes(513), 48)) <= 16


def test_a_wrong_tile_is_noticed_at_the_end_and_costs_one_attempt() -> None:
    first, second, third = cut(LONG, 200)
    reassembly = Reassembly()
    reassembly.take(1, Tile(first.tag, 0, 2, b"wrong"), 0.0, known=True)
    reassembly.take(1, second, 0.0, known=True)
    with pytest.raises(Refused) as caught:
        reassembly.take(1, third, 0.0, known=True)
    assert caught.value.reason is Reason.NON_CANONICAL
    for tile in (first, second):
        assert reassembly.take(1, tile, 1.0, known=True) is None
    assert reassembly.take(1, third, 1.0, known=True) == LONG


def test_more_than_any_message_is_refused_before_it_is_whole() -> None:
    reassembly = Reassembly()
    for index in range(2):
        reassembly.take(1, Tile(b"ab", index, 15, bytes(227)), 0.0, known=True)
    with pytest.raises(Refused) as caught:
        reassembly.take(1, Tile(b"ab", 2, 15, bytes(227)), 0.0, known=True)
    assert caught.value.reason is Reason.OVERSIZED
    assert len(reassembly) == 0


def test_what_is_missing_is_told_as_bits() -> None:
    tiles = cut(LONG, 100)
    reassembly = Reassembly()
    for index in (0, 2, 5):
        reassembly.take(7, tiles[index], 0.0, known=True)
    assert reassembly.parts(7) == (Part(tiles[0].tag, 0b100101),)
    assert reassembly.parts(8) == ()


def test_strangers_never_take_the_room_of_the_known() -> None:
    reassembly = Reassembly(capacity=8, per_radio=4)
    mine = [cut(bytes([n]) * 400, 200) for n in range(4)]
    for tiles in mine:
        reassembly.take(1, tiles[0], 0.0, known=True)
    for number in range(1000):
        tile = Tile(number.to_bytes(2), 0, 2, b"x")
        reassembly.take(1000 + number % 50, tile, 0.0, known=False)
        assert len(reassembly) <= 16
    for tiles in mine:
        for tile in tiles[1:-1]:
            reassembly.take(1, tile, 0.0, known=True)
        assert reassembly.take(1, tiles[-1], 0.0, known=True) is not None


def test_one_stranger_does_not_drive_out_another() -> None:
    reassembly = Reassembly(capacity=8, per_radio=4)
    first, second, third = cut(LONG, 200)
    reassembly.take(1, first, 0.0, known=False)
    for number in range(1000):
        reassembly.take(2, Tile(number.to_bytes(2), 0, 2, b"x"), 0.0, known=False)
    reassembly.take(1, second, 0.0, known=False)
    assert reassembly.take(1, third, 0.0, known=False) == LONG


def test_what_began_among_strangers_goes_on_there() -> None:
    reassembly = Reassembly()
    first, second, third = cut(LONG, 200)
    reassembly.take(1, first, 0.0, known=False)
    reassembly.take(1, second, 0.0, known=True)
    assert reassembly.take(1, third, 0.0, known=True) == LONG


def test_an_unfinished_one_is_forgotten_in_the_end() -> None:
    reassembly = Reassembly(patience=100.0)
    reassembly.take(1, cut(LONG, 200)[0], 0.0, known=True)
    reassembly.take(2, cut(LONG[::-1], 200)[0], 99.0, known=True)
    assert len(reassembly) == 2
    reassembly.take(3, Tile(b"zz", 0, 1, b"x"), 150.0, known=True)
    assert reassembly.parts(1) == ()
    assert len(reassembly) == 2


def test_missing_tiles_are_asked_for_ever_more_rarely_and_then_no_more() -> None:
    reassembly = Reassembly()
    tiles = cut(LONG, 200)
    reassembly.take(1, tiles[1], 0.0, known=True)
    asked = []
    while (due := reassembly.next_overdue(10.0, 3)) is not None:
        assert reassembly.overdue(due - 0.01, 10.0, 3) is None
        assert reassembly.overdue(due, 10.0, 3) == Part(tiles[0].tag, 0b010)
        asked.append(due)
    assert asked == [10.0, 30.0, 70.0]
    reassembly.take(1, tiles[0], 80.0, known=True)
    assert reassembly.next_overdue(10.0, 3) == 90.0
    reassembly.asked(1, 85.0)
    assert reassembly.next_overdue(10.0, 3) == 95.0


def test_an_answer_names_so_many_parts_at_most() -> None:
    reassembly = Reassembly()
    for number in range(12):
        reassembly.take(1, Tile(bytes((number, 0)), 0, 1, b"x"), 0.0, known=True)
    parts = reassembly.parts(1)
    assert len(parts) == MAX_PARTS
    assert parts[0].tag == bytes((11, 0))
