"""One encoding of each value, and a name for each way to miss it."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core import cbor
from qis_edge.core.errors import Reason, Refused, UsageError

INTEGERS = st.integers(-(2**64), 2**64 - 1)
ITEMS = st.recursive(
    INTEGERS | st.binary(max_size=20) | st.text(max_size=10) | st.none() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(INTEGERS | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=12,
)


@given(ITEMS)
def test_what_is_written_is_read(item: object) -> None:
    data = cbor.dumps(item)
    assert cbor.loads(data, "x", max_depth=20) == item


@given(ITEMS)
def test_plain_cbor_can_read_it(item: object) -> None:
    assert cbor2.loads(cbor.dumps(item)) == item


def test_keys_stand_in_bytewise_order() -> None:
    # 300 is 19 012c and -1 is 20: RFC 8949 orders by bytes, RFC 7049 by length first.
    assert cbor.dumps({-1: 0, 300: 0, "a": 0}).hex() == "a319012c002000616100"


@given(ITEMS, st.data())
def test_a_prefix_is_truncated(item: object, data: st.DataObject) -> None:
    raw = cbor.dumps(item)
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(Refused) as caught:
        cbor.loads(raw[:cut], "x", max_depth=20)
    assert caught.value.reason is Reason.TRUNCATED


@given(st.binary(max_size=64))
def test_any_bytes_are_one_value_or_refused(data: bytes) -> None:
    try:
        value = cbor.loads(data, "x")
    except Refused as error:
        assert error.field == "x"
    else:
        assert cbor.dumps(value) == data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", Reason.TRUNCATED),
        ("0000", Reason.TRAILING),
        ("1817", Reason.NON_CANONICAL),
        ("190017", Reason.NON_CANONICAL),
        ("1a0000ffff", Reason.NON_CANONICAL),
        ("1b00000000ffffffff", Reason.NON_CANONICAL),
        ("5803616263", Reason.NON_CANONICAL),
        ("9f00ff", Reason.INDEFINITE),
        ("bf0000ff", Reason.INDEFINITE),
        ("5f4100ff", Reason.INDEFINITE),
        ("ff", Reason.INDEFINITE),
        ("1c", Reason.TYPE),
        ("c100", Reason.TYPE),
        ("c24100", Reason.INTEGER),
        ("d81c80", Reason.TYPE),
        ("f93c00", Reason.TYPE),
        ("fb3ff0000000000000", Reason.TYPE),
        ("f7", Reason.TYPE),
        ("f820", Reason.TYPE),
        ("61ff", Reason.TYPE),
        ("a2000000", Reason.TRUNCATED),
        ("a20100f500", Reason.TYPE),
        ("a1f600", Reason.TYPE),
        ("a1800000", Reason.TYPE),
        ("a200000000", Reason.DUPLICATE_KEY),
        ("a201000000", Reason.NON_CANONICAL),
        ("a3010002000100", Reason.DUPLICATE_KEY),
        ("9bffffffffffffffff", Reason.TRUNCATED),
        ("bbffffffffffffffff", Reason.TRUNCATED),
        ("5bffffffffffffffff", Reason.TRUNCATED),
        ("81" * 9 + "00", Reason.NESTING),
    ],
)
def test_refusals(data: str, reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        cbor.loads(bytes.fromhex(data), "thing")
    assert caught.value.reason is reason
    assert "thing" in str(caught.value)


def test_nesting_up_to_the_bound_is_fine() -> None:
    assert cbor.loads(bytes.fromhex("81" * 8 + "00"), "x") == [[[[[[[[0]]]]]]]]


@pytest.mark.parametrize("item", [1.5, {1, 2}, [1.0], {1: 2.5}])
def test_no_floats_are_written(item: object) -> None:
    with pytest.raises(UsageError):
        cbor.dumps(item)
