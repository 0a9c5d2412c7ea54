"""COBS: the paper's rules, as examples and as properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core.cobs import decode, encode, encoded_size
from qis_edge.core.errors import Reason, Refused

UP_TO_FE = bytes(range(1, 255))
#: Bytes with runs that reach past a group, and zeros at every kind of place.
DATA = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.integers(250, 260).map(lambda size: b"\x07" * size),
        st.just(b"\0"),
    ),
    max_size=8,
).map(b"".join)


@pytest.mark.parametrize(
    ("data", "encoded"),
    [
        (b"", "01"),
        (b"\0", "0101"),
        (b"\0\0", "010101"),
        (b"\0\x11\0", "01021101"),
        (b"\x11\x22\0\x33", "031122 0233"),
        (b"\x11\x22\x33\x44", "0511223344"),
        (b"\x11\0\0\0", "0211010101"),
        (UP_TO_FE, "ff" + UP_TO_FE.hex()),
        (b"\0" + UP_TO_FE, "01ff" + UP_TO_FE.hex()),
        (UP_TO_FE + b"\xff", "ff" + UP_TO_FE.hex() + "02ff"),
        (UP_TO_FE + b"\0", "ff" + UP_TO_FE.hex() + "0101"),
        (UP_TO_FE[1:] + b"\xff\0", "ff" + UP_TO_FE[1:].hex() + "ff" + "0101"),
        (UP_TO_FE[1:] + b"\0\x01", "fe" + UP_TO_FE[1:].hex() + "0201"),
    ],
)
def test_examples(data: bytes, encoded: str) -> None:
    assert encode(data) == bytes.fromhex(encoded)
    assert decode(bytes.fromhex(encoded)) == data


def test_a_group_of_254_may_be_followed_by_nothing_or_by_01() -> None:
    assert decode(b"\xff" + UP_TO_FE + b"\x01") == UP_TO_FE


@given(DATA)
def test_any_bytes_come_back_without_a_zero_and_no_longer_than_promised(data: bytes) -> None:
    encoded = encode(data)
    assert 0 not in encoded
    assert len(encoded) <= encoded_size(len(data))
    assert decode(encoded) == data


@pytest.mark.parametrize("size", [0, 1, 253, 254, 255, 508, 509, 1000])
def test_the_promised_size_is_reached_where_there_are_no_zeros(size: int) -> None:
    assert len(encode(b"x" * size)) == encoded_size(size)


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        ("", Reason.TRUNCATED),
        ("02", Reason.TRUNCATED),
        ("0511", Reason.TRUNCATED),
        ("ff" + "11" * 253, Reason.TRUNCATED),
        ("00", Reason.BOUNDS),
        ("031100", Reason.BOUNDS),
    ],
)
def test_what_is_no_encoding_is_refused(encoded: str, reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        decode(bytes.fromhex(encoded))
    assert caught.value.reason is reason
    assert caught.value.field == "cobs"


@given(st.binary(max_size=600))
def test_arbitrary_bytes_are_refused_or_decode_to_fewer(encoded: bytes) -> None:
    try:
        assert len(decode(encoded)) < len(encoded)
    except Refused as refusal:
        assert refusal.field == "cobs"
