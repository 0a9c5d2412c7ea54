"""What one node learned in one window: the unit that everything else carries."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from qis_edge.core.errors import UsageError

#: A result is named by its template's name (text), or, where the reader has no
#: template, by the small integer that stands for it on the wire.
Label = str | int
#: A number, a word, or missing.
Value = float | str | None

MAX_SUMMARY = 200
MAX_SAMPLES = 2**32 - 1


class Kind(enum.IntEnum):
    """How a window ended."""

    RESOLVED = 0  # the readings agree and there are enough of them
    PARTIAL = 1  # some readings were missing
    CONTRADICTED = 2  # the readings disagree more than they should
    OPEN = 3  # too little to say anything


@dataclass(frozen=True, slots=True)
class Outcome:
    """One distilled statement.

    :param time: start of the window, whole unix seconds.
    :param kind: how the window ended.
    :param confidence: 0..1; travels in steps of 0.01.
    :param samples: readings that went into it.
    :param results: label → number, word, or ``None`` for missing.
    :param summary: at most 200 characters of text, or ``None``.
    :raises UsageError: a field is outside its bounds; the error names it.
    """

    time: int
    kind: Kind = Kind.RESOLVED
    confidence: float = 1.0
    samples: int = 1
    results: Mapping[Label, Value] = field(default_factory=lambda: MappingProxyType({}))
    summary: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.time < 2**40:
            raise UsageError(f"{self.time} is not a unix time in seconds", field="time")
        if not 0.0 <= self.confidence <= 1.0:
            raise UsageError(f"{self.confidence} is outside 0..1", field="confidence")
        if not 0 <= self.samples <= MAX_SAMPLES:
            raise UsageError(f"{self.samples} is outside 0..2^32-1", field="samples")
        if self.summary is not None and len(self.summary) > MAX_SUMMARY:
            raise UsageError(
                f"{len(self.summary)} characters, at most {MAX_SUMMARY}", field="summary"
            )
