"""The framing of Meshtastic's stream protocol."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core.errors import UsageError
from qis_edge.links.meshtastic_stream import MAX_MESSAGE, START, WAKE, Deframer, encode

# Messages that hold no beginning of a frame, and garbage that holds none.
MESSAGES = st.binary(min_size=1, max_size=MAX_MESSAGE).filter(lambda data: b"\x94" not in data)
GARBAGE = st.binary(max_size=40).filter(lambda data: b"\x94" not in data)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def feed(deframer: Deframer, parts: list[bytes]) -> list[bytes]:
    return [message for part in parts for message in deframer.feed(part)]


@given(st.lists(st.binary(min_size=1, max_size=MAX_MESSAGE), max_size=5), st.lists(st.integers(0)))
def test_messages_come_whole_however_they_are_split(messages: list[bytes], cuts: list[int]) -> None:
    deframer = Deframer()
    data = WAKE + b"".join(encode(message) for message in messages)
    assert feed(deframer, split(data, cuts)) == messages
    assert deframer.outside == len(WAKE)
    assert deframer.waiting == 0


@given(st.lists(st.tuples(GARBAGE, MESSAGES), max_size=5), st.lists(st.integers(0)))
def test_garbage_between_frames_costs_none(
    parts: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    deframer = Deframer()
    data = b"".join(garbage + encode(message) for garbage, message in parts)
    assert feed(deframer, split(data, cuts)) == [message for _, message in parts]
    assert deframer.outside == sum(len(garbage) for garbage, _ in parts)


@given(MESSAGES, MESSAGES, st.data())
def test_a_frame_that_was_cut_off_costs_nothing_but_itself(
    lost: bytes, kept: bytes, data: st.DataObject
) -> None:
    whole = encode(lost)
    cut = data.draw(st.integers(0, len(whole) - 1))
    deframer = Deframer(lambda message: message == kept)
    found = deframer.feed(whole[:cut] + encode(kept))
    while deframer.waiting:
        found += deframer.stalled()
    assert found == [kept]


@given(st.binary(max_size=2000), st.lists(st.integers(0)))
def test_no_bytes_break_it(data: bytes, cuts: list[int]) -> None:
    one, other = Deframer(), Deframer()
    assert feed(one, split(data, cuts)) == other.feed(data)
    while other.waiting:
        other.stalled()
    assert other.feed(encode(b"after")) == [b"after"]


def test_false_starts() -> None:
    for false in (b"\x94", b"\x94\x94", START + b"\x00\x00", START + b"\x02\x01", b"\x94\xc3\x94"):
        assert Deframer().feed(false + encode(b"message")) == [b"message"], false


def test_log_text_is_kept_in_lines() -> None:
    deframer = Deframer()
    assert feed(deframer, [b"INFO | boo", b"ted\r\n", encode(b"x"), b"\xffnext\nrest"]) == [b"x"]
    assert deframer.lines() == ["INFO | booted", "�next"]
    assert deframer.lines() == []
    deframer.feed(b"y" * 100_000 + b"\n" * 100)
    assert sum(map(len, deframer.lines())) < 20_000


def test_what_is_no_message_is_not_framed() -> None:
    for wrong in (b"", bytes(MAX_MESSAGE + 1)):
        with pytest.raises(UsageError):
            encode(wrong)
    assert Deframer().feed(encode(bytes(MAX_MESSAGE))) == [bytes(MAX_MESSAGE)]


def test_definitions_come_without_the_library_and_beside_it() -> None:
    code = """
import sys
from qis_edge.links.meshtastic_stream import definitions
mesh = definitions()
assert "meshtastic" not in sys.modules and "pubsub" not in sys.modules, "heavy"
import meshtastic.tcp_interface
assert meshtastic.mesh_pb2 is mesh
assert definitions("telemetry_pb2").Telemetry
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
