"""What is said to all who listen: in order, in few bytes, and not again and again."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import pytest

from qis_edge.core.errors import LinkError
from qis_edge.core.mesh.elision import Context
from qis_edge.core.mesh.framing import Elided, Missing, Part, Tile, Whole, decode
from qis_edge.core.packet import Packet
from qis_edge.links.base import Destination, down, peers
from qis_edge.links.mesh_broadcast import CAPACITY, WHOLE_AFTER, WHOLE_EVERY, Broadcasts
from tests.core.mesh.kit import NODES, packet

ALL = peers(bytes(32))
ONE, OTHER = down(b"one....."), down(b"other...")


def said(queue: Broadcasts, now: float = 0.0) -> list[object]:
    found: list[object] = []
    while (frame := queue.next(now)) is not None:
        found.append(decode(frame))
    return found


def say(queue: Broadcasts, packet: Packet, to: Destination = ALL, now: float = 0.0) -> list[object]:
    queue.send(packet.raw, to)
    return said(queue, now)


def test_a_context_is_told_whole_at_first_and_now_and_then() -> None:
    queue = Broadcasts()
    whole = [isinstance(say(queue, packet(n))[0], Whole) for n in range(2 * WHOLE_AFTER + 1)]
    assert [n for n, is_whole in enumerate(whole) if is_whole] == [0, WHOLE_AFTER, 2 * WHOLE_AFTER]
    assert isinstance(say(queue, packet(99), now=WHOLE_EVERY - 1)[0], Elided)
    assert isinstance(say(queue, packet(100), now=WHOLE_EVERY)[0], Whole)
    assert isinstance(say(queue, packet(100, node=NODES[1]))[0], Whole), "each context by itself"


def test_a_context_that_a_gateway_does_not_know_goes_whole_again_but_not_at_any_rate() -> None:
    queue = Broadcasts()
    name = Context.of(packet(1)).name
    queue.unknown(name, 0.0)
    assert isinstance(say(queue, packet(1))[0], Whole)
    queue.unknown(b"??", 100.0)
    assert isinstance(say(queue, packet(2), now=100.0)[0], Elided)
    queue.unknown(name, 100.0)
    assert isinstance(say(queue, packet(3), now=100.0)[0], Whole)
    for second in range(150, 160):
        queue.unknown(name, second)
        assert isinstance(say(queue, packet(second), now=second)[0], Elided)


def test_who_asks_is_told_the_context_whoever_heard_it_before() -> None:
    queue = Broadcasts()
    say(queue, packet(1))
    assert isinstance(say(queue, packet(2), ONE)[0], Whole)
    assert isinstance(say(queue, packet(3), ONE)[0], Elided)
    assert isinstance(say(queue, packet(4), OTHER)[0], Whole)
    assert isinstance(say(queue, packet(5))[0], Elided)


def test_what_was_on_the_air_is_not_told_to_all_for_an_hour() -> None:
    queue = Broadcasts()
    queue.heard(packet(1), 0.0)
    assert say(queue, packet(1), now=3599.0) == []
    assert len(say(queue, packet(1), now=3600.0)) == 1
    assert say(queue, packet(1), now=3700.0) == []


def test_heard_while_it_waits_it_is_not_told() -> None:
    queue = Broadcasts()
    queue.send(packet(1).raw, ALL)
    queue.send(packet(2).raw, ALL)
    queue.heard(packet(1), 1.0)
    assert len(said(queue, 2.0)) == 1


def test_who_asks_is_told_even_so_but_not_twice_in_a_row() -> None:
    queue = Broadcasts()
    queue.heard(packet(1), 0.0)
    assert len(say(queue, packet(1), ONE, 1.0)) == 1
    assert say(queue, packet(1), OTHER, 2.0) == [], "all heard it"
    assert len(say(queue, packet(1), ONE, 61.0)) == 1


def test_the_same_does_not_wait_twice() -> None:
    queue = Broadcasts()
    for to in (ALL, ONE, OTHER, ALL):
        queue.send(packet(1).raw, to)
    assert len(queue) == 1


def test_all_goes_in_order_whatever_its_length() -> None:
    queue = Broadcasts()
    for number, words in enumerate((300, 0, 330, 10)):
        queue.send(packet(number, words=words).raw, ONE)
    queue.send(b"position", ONE)
    frames = said(queue)
    assert [kind for kind, _ in groupby(map(type, frames))] == [Tile, Elided, Tile, Elided, Whole]
    assert frames[-1] == Whole(b"position")


def test_missing_tiles_go_again() -> None:
    queue = Broadcasts()
    tiles = say(queue, packet(1, words=330))
    first = tiles[0]
    assert isinstance(first, Tile)
    assert not queue.take(Missing(Part(b"??", 1)), 20.0)
    assert queue.take(Missing(Part(first.tag, 0b110)), 20.0)
    assert said(queue, 20.0) == [first]


def test_too_many_drive_out_the_oldest_and_what_was_asked_for_last() -> None:
    queue = Broadcasts()
    for number in range(5):
        queue.send(packet(number).raw, ONE)
    for number in range(5, CAPACITY + 15):
        queue.send(packet(number).raw, ALL)
    assert len(queue) == CAPACITY
    assert queue.dropped == 15
    for number in range(200, 200 + CAPACITY):
        queue.send(packet(number).raw, ONE)
    assert len(queue) == CAPACITY
    assert queue.dropped == 15 + CAPACITY


def test_what_only_looks_like_a_packet_is_not_taken() -> None:
    with pytest.raises(LinkError):
        Broadcasts().send(b"\xd2\x84nonsense", ALL)


def test_memory_is_bounded() -> None:
    queue, made = Broadcasts(), packet(1)
    for number in range(3000):
        queue.heard(replace(made, id=number.to_bytes(32)), float(number))
    assert len(queue._heard) == 2048
    for number in range(2100):
        assert queue._is_due_whole((number.to_bytes(2), b""), 0.0)
    assert len(queue._whole) == 2048
