from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qis_edge.core.errors import Reason, Refused, UsageError
from qis_edge.core.ranges import (
    MAX_EXPANDED,
    MAX_SEQUENCE,
    Ranges,
    decode_set,
    encode_set,
)

small = st.integers(0, 60)
runs = st.lists(
    st.tuples(small, st.integers(0, 8)).map(lambda run: (run[0], sum(run))), max_size=15
)
sequence_sets = st.one_of(
    st.sets(small, min_size=1, max_size=40),
    st.sets(st.integers(0, MAX_SEQUENCE), min_size=1, max_size=10),
)


@settings(max_examples=150)
@given(runs)
def test_it_is_the_set_of_its_runs(given_runs: list[tuple[int, int]]) -> None:
    plain: set[int] = set()
    ranges = Ranges()
    for first, last in given_runs:
        new = set(range(first, last + 1)) - plain
        assert ranges.add_range(first, last) == len(new)
        plain |= new
    assert list(ranges) == sorted(plain)
    assert len(ranges) == len(plain)
    assert bool(ranges) == bool(plain)
    assert ranges.last == max(plain, default=None)
    assert all((n in ranges) == (n in plain) for n in range(-1, 80))
    assert ranges == Ranges.of(plain) == Ranges.from_list(ranges.to_list()) == Ranges(given_runs)
    bounds = ranges.to_list()
    assert bounds == sorted(bounds)
    # Runs neither overlap nor touch.
    assert all(b + 1 < a for b, a in zip(bounds[1::2], bounds[2::2], strict=False))


@settings(max_examples=100)
@given(st.sets(small), small, small)
def test_missing_is_the_complement(plain: set[int], first: int, below: int) -> None:
    ranges = Ranges.of(plain)
    gaps = [n for low, high in ranges.missing(first, below) for n in range(low, high + 1)]
    assert gaps == [n for n in range(first, below) if n not in plain]
    assert list(ranges.missing_below(below)) == list(ranges.missing(0, below))


@settings(max_examples=50)
@given(st.sets(small), st.sets(small))
def test_union_leaves_its_parts_alone(left: set[int], right: set[int]) -> None:
    a, b = Ranges.of(left), Ranges.of(right)
    assert set(a | b) == left | right
    assert (set(a), set(b)) == (left, right)
    assert a.update(b) == len(right - left)
    assert set(a) == left | right


def test_adding_says_whether_it_was_new() -> None:
    ranges = Ranges()
    assert ranges.add(5)
    assert not ranges.add(5)
    assert ranges.add_range(4, 6) == 2
    assert repr(ranges | Ranges.of([9])) == "Ranges(4..6, 9)"


def test_a_million_in_order_are_one_run() -> None:
    ranges = Ranges()
    ranges.add_range(0, 999_999)
    ranges.add(1_000_000)
    assert ranges.to_list() == [0, 1_000_000]
    assert "5" not in ranges
    assert ranges != {5}


@pytest.mark.parametrize(("first", "last"), [(-1, 3), (4, 3), (0, MAX_SEQUENCE + 1)])
def test_what_is_no_range_is_our_mistake(first: int, last: int) -> None:
    with pytest.raises(UsageError, match="sequence"):
        Ranges().add_range(first, last)


@pytest.mark.parametrize(
    "flat", [[1], [3, 2], [0, 4, 5, 6], [0, 4, 2, 9], [-1, 2], [0, MAX_SEQUENCE + 1]]
)
def test_a_stored_list_is_checked(flat: list[int]) -> None:
    with pytest.raises(UsageError, match="ranges"):
        Ranges.from_list(flat)


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
