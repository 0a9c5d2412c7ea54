"""Frames: what is written is read, and what is not ours is refused by name."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core.errors import Reason, Refused, UsageError
from qis_edge.core.mesh.framing import (
    MAX_FRAME,
    PING_SIZE,
    POLL_SIZE,
    PONG_SIZE,
    Answer,
    Batch,
    Elided,
    Frame,
    Missing,
    Part,
    Ping,
    Poll,
    Pong,
    Signal,
    Tile,
    Unknown,
    Whole,
    answer_room,
    decode,
    decode_cut,
    packed_size,
)

PAGE = Path("docs") / "mesh.md"

two = st.binary(min_size=2, max_size=2)
parts = st.builds(Part, two, st.integers(1, 0xFFFF))
nonces = st.binary(min_size=4, max_size=4)
signals = st.builds(
    Signal,
    st.integers(-127, 127).map(lambda quarters: quarters / 4),
    st.integers(-255, 0),
    st.none() | st.integers(0, 7),
)
messages = st.lists(st.binary(min_size=1, max_size=60), max_size=3).map(tuple)


@st.composite
def polls(draw: st.DrawFn) -> Poll:
    base = draw(st.integers(0, 2**32 - 32))
    others = draw(st.sets(st.integers(1, 31)))
    return Poll(draw(two), draw(st.integers(1, 255)), (base, *(base + o for o in sorted(others))))


@st.composite
def tiles(draw: st.DrawFn) -> Tile:
    last = draw(st.integers(1, 15))
    body = draw(st.binary(min_size=1, max_size=MAX_FRAME - 4))
    return Tile(draw(two), draw(st.integers(0, last)), last, body, draw(st.booleans()))


frames = st.one_of(
    st.builds(Elided, two, st.binary(min_size=1, max_size=228), st.booleans()),
    st.builds(Whole, st.binary(min_size=1, max_size=230), st.booleans()),
    tiles(),
    polls(),
    st.builds(Answer, two, st.integers(0, 255), st.lists(parts, max_size=8).map(tuple), messages),
    st.builds(Missing, parts),
    st.builds(Unknown, two),
    st.builds(Batch, messages.filter(len)),
    st.builds(Ping, nonces, st.integers(0, MAX_FRAME - PING_SIZE)),
    st.builds(Pong, nonces, st.none() | signals, st.integers(0, 255), st.integers(0, 7)),
)


@given(frames)
def test_what_is_written_is_read(frame: Frame) -> None:
    data = frame.encode()
    assert len(data) <= MAX_FRAME
    assert decode(data) == frame


@given(st.binary(max_size=300))
def test_any_bytes_are_a_frame_or_refused(data: bytes) -> None:
    try:
        frame = decode(data)
    except Refused as refusal:
        assert refusal.field
    else:
        assert frame.encode() == data


@given(frames, st.data())
def test_a_cut_or_changed_frame_is_another_frame_or_refused(
    frame: Frame, data: st.DataObject
) -> None:
    whole = frame.encode()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + bytes((whole[at] ^ data.draw(st.integers(1, 255)),)) + whole[at + 1 :]
    for hostile in (whole[:at], changed):
        try:
            assert decode(hostile).encode() == hostile
        except Refused as refusal:
            assert refusal.field


@pytest.mark.parametrize(
    ("text", "reason", "field"),
    [
        ("", Reason.TRUNCATED, "frame"),
        ("00" * 232, Reason.OVERSIZED, "frame"),
        ("a0aabb01", Reason.MESSAGE, "frame"),
        ("bd", Reason.MESSAGE, "frame"),
        ("bf0102", Reason.MESSAGE, "frame"),
        ("b0aabb", Reason.TRUNCATED, "elided"),
        ("b2", Reason.TRUNCATED, "whole"),
        ("b4aabb02", Reason.TRUNCATED, "tile"),
        ("b4aabb0055", Reason.BOUNDS, "tile.index"),
        ("b4aabb3255", Reason.BOUNDS, "tile.index"),
        ("b6aabb010000000000", Reason.TRUNCATED, "poll"),
        ("b6aabb01000000000000000100", Reason.TRAILING, "poll"),
        ("b6aabb000000000000000001", Reason.BOUNDS, "poll.round"),
        ("b6aabb010000000000000002", Reason.NON_CANONICAL, "poll.sequences"),
        ("b6aabb01ffffffff00000003", Reason.INTEGER, "poll.sequences"),
        ("b7aabb01", Reason.TRUNCATED, "answer"),
        ("b7aabb0109", Reason.BOUNDS, "answer.parts"),
        ("b7aabb0101ccdd00", Reason.TRUNCATED, "answer.parts"),
        ("b7aabb0101ccdd0000", Reason.BOUNDS, "answer.parts"),
        ("b7aabb010003aabb", Reason.TRUNCATED, "answer.messages"),
        ("b8aabb0000", Reason.BOUNDS, "missing"),
        ("b8aabb000100", Reason.TRAILING, "missing"),
        ("b9aa", Reason.TRUNCATED, "unknown"),
        ("b9aabbcc", Reason.TRAILING, "unknown"),
        ("ba", Reason.TRUNCATED, "batch"),
        ("ba00", Reason.BOUNDS, "batch"),
        ("bb010203", Reason.TRUNCATED, "ping"),
        ("bb010203040001", Reason.NON_CANONICAL, "ping.padding"),
        ("bc01020304e37900", Reason.TRUNCATED, "pong"),
        ("bc01020304e379000000", Reason.TRAILING, "pong"),
        ("bc01020304e3790800", Reason.BOUNDS, "pong.hops"),
        ("bc01020304e3798000", Reason.BOUNDS, "pong.slot"),
        ("bc0102030480ff0000", Reason.NON_CANONICAL, "pong.signal"),
    ],
)
def test_refused_by_name(text: str, reason: Reason, field: str) -> None:
    with pytest.raises(Refused) as caught:
        decode(bytes.fromhex(text))
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_tiles_make_packets_and_messages_only() -> None:
    assert decode_cut(Whole(b"x" * 512).encode()) == Whole(b"x" * 512)
    for frame in (Unknown(b"ab"), Tile(b"ab", 0, 1, b"x")):
        with pytest.raises(Refused) as caught:
            decode_cut(frame.encode())
        assert caught.value.reason is Reason.TYPE
    with pytest.raises(Refused) as caught:
        decode_cut(Whole(b"x" * 513).encode())
    assert caught.value.reason is Reason.OVERSIZED


def test_a_poll_has_twelve_bytes() -> None:
    assert len(Poll(b"ab", 1, (5, 36)).encode()) == POLL_SIZE == 12


def test_a_message_past_a_frame_cannot_be_batched() -> None:
    with pytest.raises(UsageError):
        Batch((b"x" * 256,)).encode()


@given(st.floats(), st.integers(), st.none() | st.integers())
def test_any_signal_is_said_as_near_as_it_can_be(snr: float, rssi: int, hops: int | None) -> None:
    pong = decode(Pong(b"abcd", Signal(snr, rssi, hops)).encode())
    assert isinstance(pong, Pong)
    if not math.isfinite(snr):
        assert pong.heard is None
        return
    assert pong.heard is not None
    assert pong.heard.snr == pytest.approx(min(max(snr, -31.75), 31.75), abs=0.125)
    assert pong.heard.rssi == min(max(rssi, -255), 0)
    assert pong.heard.hops == (None if hops is None else min(max(hops, 0), 7))


def test_pings_are_as_long_as_one_likes_and_pongs_short() -> None:
    assert len(Ping(b"abcd").encode()) == PING_SIZE == 5
    assert len(Ping(b"abcd", 195).encode()) == 200
    for pong in (Pong(b"abcd"), Pong(b"abcd", Signal(0.0, 0), 1000), Pong(b"abcd", None, -1)):
        assert len(pong.encode()) == PONG_SIZE == 9


def test_an_answer_fills_its_room_exactly() -> None:
    room = answer_room(200, 2)
    message = b"m" * (room - 1)
    assert packed_size([message]) == room
    answer = Answer(b"ab", 1, (Part(b"cd", 1), Part(b"ef", 2)), (message,))
    assert len(answer.encode()) == 200


def test_the_examples_of_the_page_are_frames() -> None:
    blocks = re.findall(r"```hex\n(.*?)```", PAGE.read_text(), re.DOTALL)
    kinds = set()
    for block in blocks:
        text = "".join(line.split("#")[0] for line in block.splitlines())
        data = bytes.fromhex("".join(text.split()))
        frame = decode(data)
        assert frame.encode() == data
        kinds.add(type(frame))
    assert kinds == set(get_args(Frame))
