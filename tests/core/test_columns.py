"""Columns come back as they went in, in few bytes, and expand to nothing unbounded."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core import columns
from qis_edge.core.errors import DoesNotFit, Reason, Refused

BIG = columns.MAX_NUMBER
ROW = st.none() | st.integers(-BIG, BIG) | st.integers(-300, 300)


@given(st.lists(ROW, min_size=1, max_size=60))
def test_numbers_come_back(values: list[int | None]) -> None:
    form = cbor2.loads(cbor2.dumps(columns.encode(values)))
    got = columns.decode(form, len(values), "x", low=-BIG, high=BIG, missing=True)
    assert got == values


@given(st.lists(st.none() | st.text("ab", max_size=3), min_size=1, max_size=30))
def test_words_come_back(values: list[str | None]) -> None:
    form = cbor2.loads(cbor2.dumps(columns.encode_texts(values)))
    assert columns.decode_texts(form, len(values), "x") == values


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ([5, 5, 5], 5),
        ([None, None], None),
        ([1, None], [1, None]),
        ([1, 2], [1, 1]),
        # plain: width 4, low 80 (zigzag a0 01), then the nibbles
        ([80, 95, 81, 90, 80, 95], bytes.fromhex("04a0010f1a0f")),
    ],
)
def test_forms(values: list[int | None], form: object) -> None:
    assert columns.encode(values) == form


def test_a_ramp_costs_no_bits() -> None:
    form = columns.encode([1000 + 7 * i for i in range(500)])
    assert isinstance(form, bytes)
    assert len(form) == 4  # head, first (2 bytes), the one difference; width 0


@given(st.binary(max_size=40), st.integers(1, 40))
def test_any_bytes_are_rows_or_refused(data: bytes, rows: int) -> None:
    try:
        values = columns.decode(data, rows, "x", low=-BIG, high=BIG, missing=True)
    except Refused as error:
        assert error.field == "x"
    else:
        assert len(values) == rows


def test_bounds_hold_after_adding_up() -> None:
    with pytest.raises(Refused) as caught:
        columns.decode([BIG, 1], 2, "x", low=-BIG, high=BIG)
    assert caught.value.reason is Reason.INTEGER


def test_a_missing_row_where_none_may_be() -> None:
    with pytest.raises(Refused) as caught:
        columns.decode([1, None], 2, "kind", low=0, high=3)
    assert (caught.value.reason, caught.value.field) == (Reason.TYPE, "kind")


@given(st.integers(-BIG, BIG), st.integers(-12, 12))
def test_scaling_is_exact(number: int, power: int) -> None:
    if abs(number) < 2**50:
        value = columns.from_scaled(number, power)
        assert columns.to_scaled(value, power, "x") == number


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 21.55, 1e300])
def test_what_does_not_fit_is_said(value: float) -> None:
    with pytest.raises(DoesNotFit, match=r"results\.t"):
        columns.to_scaled(value, -1, "results.t")


def test_float_noise_is_no_reason_to_refuse() -> None:
    assert columns.to_scaled(0.1 + 0.2, -1, "x") == 3
