"""Sequence sets: runs, and their form on the wire."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qis_edge.core.errors import Reason, Refused, UsageError
from qis_edge.core.ranges import (
    MAX_EXPANDED,
    MAX_SEQUENCE,
    decode_set,
    encode_set,
    runs_of,
)

sequence_sets = st.one_of(
    st.sets(st.integers(0, 60), min_size=1, max_size=40),
    st.sets(st.integers(0, MAX_SEQUENCE), min_size=1, max_size=10),
)


@settings(max_examples=150)
@given(st.lists(st.integers(0, 60)))
def test_runs_are_the_set_again_and_neither_overlap_nor_touch(sequences: list[int]) -> None:
    runs = runs_of(sequences)
    assert [n for first, last in runs for n in range(first, last + 1)] == sorted(set(sequences))
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(runs))


@settings(max_examples=150)
@given(sequence_sets)
def test_the_wire_form_is_the_same_set_again(sequences: set[int]) -> None:
    wire = encode_set(sequences)
    assert decode_set(wire, "held") == tuple(sorted(sequences))


@pytest.mark.parametrize(
    ("sequences", "wire"),
    [
        ([7], 7),
        ([], []),
        ([0, 1, 2], [0, 3]),
        ([5, 3, 4, 9], [3, 3, 3, 1]),
        ([0, 2], [0, 1, 1, 1]),
        (range(MAX_EXPANDED), [0, MAX_EXPANDED]),
    ],
)
def test_the_wire_form_is_this(sequences: list[int], wire: object) -> None:
    assert encode_set(sequences) == wire
    assert list(decode_set(wire, "held")) == sorted(sequences)


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        ("7", Reason.TYPE),
        (True, Reason.TYPE),
        (-1, Reason.TYPE),
        (None, Reason.TYPE),
        ([1], Reason.TYPE),
        ([1, 2, 3], Reason.TYPE),
        ([1, -2], Reason.TYPE),
        ([1, True], Reason.TYPE),
        ([1, [2]], Reason.TYPE),
        ({0: 1}, Reason.TYPE),
        ([7, 1], Reason.NON_CANONICAL),
        ([7, 0], Reason.NON_CANONICAL),
        ([7, 2, 0, 2], Reason.NON_CANONICAL),
        ([7, 2, 1, 0], Reason.NON_CANONICAL),
        ([0, MAX_EXPANDED + 1], Reason.BOUNDS),
        ([0, 2**64 - 1], Reason.BOUNDS),
        ([0, 4000, 5, 97], Reason.BOUNDS),
        (MAX_SEQUENCE + 1, Reason.INTEGER),
        ([MAX_SEQUENCE, 2], Reason.INTEGER),
        ([0, 1, MAX_SEQUENCE, 1], Reason.INTEGER),
    ],
)
def test_what_is_no_set_is_refused(wire: object, reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        decode_set(wire, "held")
    assert (refused.value.reason, refused.value.field) == (reason, "held")


def test_too_many_to_encode_is_our_mistake() -> None:
    with pytest.raises(UsageError, match="at most 4096"):
        encode_set(range(MAX_EXPANDED + 1))


@pytest.mark.parametrize("sequences", [[-1, 3], [MAX_SEQUENCE + 1]])
def test_what_is_no_sequence_is_our_mistake(sequences: list[int]) -> None:
    with pytest.raises(UsageError, match="no sequences"):
        encode_set(sequences)
