"""Frames of the serial line: whatever happens to the bytes, no wrong frame comes out, and the
next zero sets everything right."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core import cobs
from qis_edge.core.errors import UsageError
from qis_edge.core.messages import Hello, Wanted, decode
from qis_edge.core.receipt import ReceiptMessage
from qis_edge.links.base import UP, Destination, Direction, down, peers
from qis_edge.links.serial_framing import Deframer, Frame, address_of, encode, wire_size
from tests.links.serial_bus import framed

PAGE = Path("docs") / "serial.md"
KID = bytes.fromhex("d88fd6959db81c93")
MESSAGES = st.binary(max_size=512)
DESTINATIONS = st.one_of(
    st.just(UP),
    st.binary(min_size=8, max_size=8).map(down),
    st.just(down(b"")),
    st.binary(min_size=32, max_size=32).map(peers),
)
SENT = st.tuples(MESSAGES, DESTINATIONS)


def as_frame(message: bytes, to: Destination) -> Frame:
    return Frame(to.direction, address_of(to), message)


@given(st.lists(SENT, max_size=5), st.lists(st.integers(0, 3000), max_size=8))
def test_frames_come_back_however_the_bytes_are_cut(
    sent: list[tuple[bytes, Destination]], cuts: list[int]
) -> None:
    line = b"".join(encode(*one) for one in sent)
    deframer = Deframer()
    found = []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(line)], strict=True):
        found += deframer.feed(line[start:end])
    assert found == [as_frame(*one) for one in sent]
    assert (deframer.garbage, deframer.bad_crc, deframer.unknown) == (0, 0, 0)


@given(SENT)
def test_a_frame_is_no_longer_than_promised(sent: tuple[bytes, Destination]) -> None:
    message, to = sent
    frame = encode(message, to)
    assert len(frame) <= wire_size(len(message), to.direction)
    assert frame[0] == frame[-1] == 0
    assert 0 not in frame[1:-1]


def test_the_longest_is_taken() -> None:
    message = b"\x11" * 512
    for to in (UP, down(b""), down(b"\x22" * 8), peers(b"\x33" * 32)):
        line = encode(message, to)
        if to.key or to is UP:
            assert len(line) == wire_size(512, to.direction)
        assert Deframer().feed(line) == [as_frame(message, to)]


@given(SENT, st.data())
def test_damage_yields_nothing_and_the_next_frame_is_whole(
    sent: tuple[bytes, Destination], data: st.DataObject
) -> None:
    line = bytearray(encode(*sent))
    places = st.integers(0, len(line) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=6, unique=True)):
        line[place] ^= data.draw(st.integers(1, 255))
    deframer = Deframer()
    found = deframer.feed(bytes(line))
    # Damage outside the two zeros, or that leaves the same content, is none.
    assert found in ([], [as_frame(*sent)])
    assert deframer.feed(encode(b"next", UP))[-1:] == [as_frame(b"next", UP)]


@given(SENT, SENT, st.data())
def test_what_is_cut_off_yields_nothing_and_the_next_frame_is_whole(
    sent: tuple[bytes, Destination], after: tuple[bytes, Destination], data: st.DataObject
) -> None:
    line = encode(*sent)
    part = line[: data.draw(st.integers(0, len(line) - 2))]
    if data.draw(st.booleans()):
        part = line[data.draw(st.integers(2, len(line))) :]
    assert Deframer().feed(part + encode(*after)) == [as_frame(*after)]


@given(SENT, SENT, SENT)
def test_two_frames_whose_zeros_got_lost_are_none(
    one: tuple[bytes, Destination], two: tuple[bytes, Destination], after: tuple[bytes, Destination]
) -> None:
    merged = encode(*one)[:-1] + encode(*two)[1:]
    assert Deframer().feed(merged + encode(*after)) == [as_frame(*after)]


@given(st.lists(st.binary(max_size=700), max_size=6), SENT)
def test_garbage_yields_nothing_and_is_counted(
    garbage: list[bytes], sent: tuple[bytes, Destination]
) -> None:
    deframer = Deframer()
    for piece in garbage:
        assert deframer.feed(piece) == []
    assert deframer.feed(encode(*sent)) == [as_frame(*sent)]
    counted = deframer.garbage > 0 or deframer.bad_crc > 0
    assert counted is any(piece.strip(b"\0") for piece in garbage)


def test_what_has_no_end_takes_no_memory() -> None:
    deframer = Deframer()
    for _ in range(100):
        assert deframer.feed(b"\x55" * 1000) == []
        assert len(deframer._buffer) <= 600
    assert deframer.feed(b"\0" + encode(b"next", UP)) == [as_frame(b"next", UP)]
    assert deframer.garbage == 100_000


def test_the_middle_of_a_frame_that_is_too_long_is_not_taken_for_one() -> None:
    inner = encode(b"inner", UP)
    assert Deframer().feed(b"\x55" * 600 + inner[1:]) == []
    deframer = Deframer()
    assert deframer.feed(b"\x55" * 600) == []
    assert deframer.feed(inner[1:]) == []
    assert deframer.feed(inner) == [as_frame(b"inner", UP)]


@pytest.mark.parametrize(
    "content",
    [
        b"\xc4message",
        b"\x00message",
        b"\xc1short",
        b"\xc2" + bytes(15),
    ],
)
def test_whole_frames_of_no_known_type_are_counted(content: bytes) -> None:
    deframer = Deframer()
    assert deframer.feed(framed(content)) == []
    assert (deframer.unknown, deframer.garbage, deframer.bad_crc) == (1, 0, 0)


def test_counts_tell_garbage_from_damage() -> None:
    deframer = Deframer()
    line = bytearray(encode(b"message", UP))
    line[4] ^= 1
    deframer.feed(bytes(line))
    assert (deframer.garbage, deframer.bad_crc) == (0, 1)
    deframer.feed(b"\xffhello\0")
    assert (deframer.garbage, deframer.bad_crc) == (6, 1)


def test_empty_frames_are_nothing() -> None:
    deframer = Deframer()
    assert deframer.feed(bytes(1000)) == []
    assert (deframer.garbage, deframer.bad_crc) == (0, 0)


def test_a_message_may_be_empty() -> None:
    assert Deframer().feed(encode(b"", UP)) == [Frame(Direction.UP, b"", b"")]


@pytest.mark.parametrize(
    ("message", "to", "field"),
    [
        (bytes(513), UP, "message"),
        (b"", down(bytes(7)), "to"),
        (b"", peers(bytes(16)), "to"),
        (b"", Destination(Direction.UP, b"key"), "to"),
    ],
)
def test_what_cannot_be_framed(message: bytes, to: Destination, field: str) -> None:
    with pytest.raises(UsageError) as caught:
        encode(message, to)
    assert caught.value.field == field


def content(message: bytes, to: Destination) -> bytes:
    """What a frame carries, with its CRC."""
    return cobs.decode(encode(message, to)[1:-1])


# - the page that others implement from


def examples() -> dict[str, bytes]:
    """Name, in the first line → bytes."""
    found = {}
    for block in re.findall(r"```hex\n# (.*?)```", PAGE.read_text(), re.DOTALL):
        name, _, lines = block.partition("\n")
        found[name] = bytes.fromhex(re.sub(r"#.*|\s", "", lines))
    return found


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("a node's hello", UP, Hello),
        ("a receipt", down(KID), ReceiptMessage),
        ("a gateway wants a credential", down(b""), Wanted),
    ],
)
def test_an_example_of_the_page_is_a_frame(
    name: str, to: Destination, message: type[object]
) -> None:
    line = examples()[name]
    (frame,) = Deframer().feed(line)
    assert isinstance(decode(frame.message), message)
    assert frame == as_frame(frame.message, to)
    assert encode(frame.message, to) == line


def test_every_example_is_looked_at() -> None:
    assert len(examples()) == 3


def test_what_the_page_says_of_types_and_sizes() -> None:
    page = PAGE.read_text()
    types = re.findall(r"^\| `(c\d)` \| (node|gateway) ", page, re.MULTILINE)
    sent = (UP, down(KID), peers(bytes(32)), down(b""))
    assert types == [
        (f"{content(b'', to)[0]:02x}", "node" if to is UP else "gateway") for to in sent
    ]
    assert f"The longest frame has {wire_size(512, Direction.PEERS)} bytes" in page
    assert "`cbf43926`" in page
    assert zlib.crc32(b"123456789") == 0xCBF43926
