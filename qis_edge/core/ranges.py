"""Sets of sequence numbers: kept as runs, and as receipts write them.

:class:`Ranges` is what a gateway keeps per (node, store), for ever: weeks of backlog
come out of order, and the memory goes by the number of gaps, not of packets.
:func:`encode_set` and :func:`decode_set` are the wire form (``docs/wire-format.md``).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qis_edge.core.errors import Reason, Refused, UsageError

#: What a sequence number may be, at most.
MAX_SEQUENCE = 2**32 - 1
#: How many sequences one set on the wire may stand for.
MAX_EXPANDED = 4096


class Ranges:
    """A growing set of integers 0..``MAX_SEQUENCE``, as sorted disjoint runs.

    Runs that touch are one run, so equal sets have equal runs. Looking up and adding
    take O(log n) comparisons in n runs.
    """

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        """:param runs: (first, last) pairs, both included, in any order."""
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in runs:
            self.add_range(first, last)

    @classmethod
    def of(cls, sequences: Iterable[int]) -> Ranges:
        """The set of these integers, in any order."""
        made = cls()
        for sequence in sequences:
            made.add(sequence)
        return made

    @classmethod
    def from_list(cls, flat: Sequence[int]) -> Ranges:
        """Back from :meth:`to_list`.

        :raises UsageError: not ascending disjoint runs (field ``ranges``).
        """
        if len(flat) % 2:
            raise UsageError("an odd number of bounds", field="ranges")
        made = cls()
        before = -2
        for first, last in zip(flat[::2], flat[1::2], strict=True):
            if not before + 1 < first <= last <= MAX_SEQUENCE:
                raise UsageError("runs overlap, touch or run backwards", field="ranges")
            made._firsts.append(first)
            made._lasts.append(last)
            before = last
        return made

    def to_list(self) -> list[int]:
        """``[first, last, first, last, …]``, ascending."""
        return [bound for run in self.runs() for bound in run]

    def add(self, sequence: int) -> bool:
        """Whether ``sequence`` was new."""
        return self.add_range(sequence, sequence) == 1

    def add_range(self, first: int, last: int) -> int:
        """Add ``first``..``last``, both included; how many of them were new.

        :raises UsageError: outside 0..``MAX_SEQUENCE``, or backwards (field ``sequence``).
        """
        if not 0 <= first <= last <= MAX_SEQUENCE:
            raise UsageError(f"{first}..{last} is not a range of sequences", field="sequence")
        # Runs start..stop-1 overlap the new one or touch it.
        start = bisect_left(self._lasts, first - 1)
        stop = bisect_right(self._firsts, last + 1)
        known = 0
        low, high = first, last
        for run in range(start, stop):
            known += max(0, min(last, self._lasts[run]) - max(first, self._firsts[run]) + 1)
            low = min(low, self._firsts[run])
            high = max(high, self._lasts[run])
        self._firsts[start:stop] = [low]
        self._lasts[start:stop] = [high]
        return last - first + 1 - known

    def update(self, other: Ranges) -> int:
        """Add all of ``other``; how many were new."""
        return sum(self.add_range(first, last) for first, last in other.runs())

    def union(self, other: Ranges) -> Ranges:
        """A new set with what either has."""
        made = self.copy()
        made.update(other)
        return made

    __or__ = union

    def copy(self) -> Ranges:
        """An independent copy."""
        made = Ranges()
        made._firsts = self._firsts.copy()
        made._lasts = self._lasts.copy()
        return made

    def runs(self) -> Iterator[tuple[int, int]]:
        """(first, last) of each run, both included, ascending."""
        return zip(self._firsts, self._lasts, strict=True)

    def missing(self, first: int, below: int) -> Iterator[tuple[int, int]]:
        """(first, last) of each gap within ``first``..``below`` - 1, ascending."""
        at = first
        for run in range(bisect_left(self._lasts, first), len(self._firsts)):
            if self._firsts[run] >= below:
                break
            if self._firsts[run] > at:
                yield at, self._firsts[run] - 1
            at = self._lasts[run] + 1
        if at < below:
            yield at, below - 1

    def missing_below(self, below: int) -> Iterator[tuple[int, int]]:
        """(first, last) of each gap within 0..``below`` - 1, ascending."""
        return self.missing(0, below)

    @property
    def last(self) -> int | None:
        """The greatest member, or ``None``."""
        return self._lasts[-1] if self._lasts else None

    def __contains__(self, sequence: object) -> bool:
        if not isinstance(sequence, int):
            return False
        run = bisect_left(self._lasts, sequence)
        return run < len(self._firsts) and self._firsts[run] <= sequence

    def __iter__(self) -> Iterator[int]:
        for first, last in self.runs():
            yield from range(first, last + 1)

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.runs())

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ranges):
            return NotImplemented
        return self._firsts == other._firsts and self._lasts == other._lasts

    __hash__ = None  # type: ignore[assignment]  # mutable, as a set is

    def __repr__(self) -> str:
        runs = ", ".join(f"{a}" if a == b else f"{a}..{b}" for a, b in self.runs())
        return f"Ranges({runs})"


def encode_set(sequences: Iterable[int]) -> int | list[int]:
    """A sequence set as it goes into a message, before CBOR.

    One sequence is that integer. Others are ``[start, run, gap, run, …]``: the first
    sequence, how many follow one another from it on (itself included), how many are
    left out, and so on; the empty set is ``[]``.

    :raises UsageError: a sequence is out of bounds, or there are more than
        ``MAX_EXPANDED``.
    """
    ranges = Ranges.of(sequences)
    if len(ranges) > MAX_EXPANDED:
        raise UsageError(f"{len(ranges)} sequences, at most {MAX_EXPANDED}", field="sequences")
    if len(ranges) == 1:
        return next(iter(ranges))
    wire: list[int] = []
    end = 0  # one past the run before
    for first, last in ranges.runs():
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
