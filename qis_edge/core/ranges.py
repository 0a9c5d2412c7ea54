"""Sets of sequence numbers as runs, and as receipts write them (``docs/wire-format.md``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qis_edge.core.errors import Reason, Refused, UsageError

#: What a sequence number may be, at most.
MAX_SEQUENCE = 2**32 - 1
#: How many sequences one set on the wire may stand for.
MAX_EXPANDED = 4096


def runs_of(sequences: Iterable[int]) -> list[tuple[int, int]]:
    """(first, last) of each run of consecutive sequences, both included, ascending.

    :param sequences: in any order, repeats allowed.
    """
    runs: list[tuple[int, int]] = []
    for sequence in sorted(set(sequences)):
        if runs and runs[-1][1] == sequence - 1:
            runs[-1] = (runs[-1][0], sequence)
        else:
            runs.append((sequence, sequence))
    return runs


def encode_set(sequences: Iterable[int]) -> int | list[int]:
    """A sequence set as it goes into a message, before CBOR.

    One sequence is that integer. Others are ``[start, run, gap, run, …]``: the first
    sequence, how many follow one another from it on (itself included), how many are
    left out, and so on; the empty set is ``[]``.

    :raises UsageError: a sequence is out of bounds, or there are more than
        ``MAX_EXPANDED``.
    """
    runs = runs_of(sequences)
    if runs and not 0 <= runs[0][0] <= runs[-1][1] <= MAX_SEQUENCE:
        raise UsageError(f"{runs[0][0]}..{runs[-1][1]} are no sequences", field="sequences")
    count = sum(last - first + 1 for first, last in runs)
    if count > MAX_EXPANDED:
        raise UsageError(f"{count} sequences, at most {MAX_EXPANDED}", field="sequences")
    if count == 1:
        return runs[0][0]
    wire: list[int] = []
    end = 0  # one past the run before
    for first, last in runs:
        wire += (first - end if wire else first, last - first + 1)
        end = last + 1
    return wire


def decode_set(item: Any, field: str) -> tuple[int, ...]:
    """The sequences, ascending, that ``item`` (decoded CBOR) stands for.

    :raises Refused: TYPE, INTEGER (past ``MAX_SEQUENCE``), NON_CANONICAL (one sequence
        in the list form, a run or gap of 0) or BOUNDS (more than ``MAX_EXPANDED``;
        nothing is expanded before that is known).
    """
    if _is_uint(item):
        return (_bounded(item, field),)
    if not isinstance(item, list) or len(item) % 2 or not all(map(_is_uint, item)):
        raise Refused(Reason.TYPE, field, "not a sequence set")
    if not item:
        return ()
    if 0 in item[1:] or item[1:] == [1]:
        raise Refused(Reason.NON_CANONICAL, field)
    if sum(item[1::2]) > MAX_EXPANDED:
        raise Refused(Reason.BOUNDS, field, f"more than {MAX_EXPANDED} sequences")
    _bounded(sum(item) - 1, field)
    sequences: list[int] = []
    end = 0
    for gap, run in zip(item[::2], item[1::2], strict=True):
        first = end + gap
        end = first + run
        sequences.extend(range(first, end))
    return tuple(sequences)


def _is_uint(item: object) -> bool:
    # CBOR's true and false decode to bool, which Python counts among the integers.
    return type(item) is int and item >= 0


def _bounded(sequence: int, field: str) -> int:
    if sequence > MAX_SEQUENCE:
        raise Refused(Reason.INTEGER, field, f"past {MAX_SEQUENCE}")
    return sequence
