"""What goes first, and which outcomes do: a rule holds for what they state, or none does."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from qis_edge.core.checks import require
from qis_edge.core.outcome import Outcome


class Priority(enum.IntEnum):
    """What goes first, and what goes last when the disk budget is full."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    URGENT = 3

    @property
    def label(self) -> str:
        """The word for it, in configurations and for people."""
        return self.name.lower()


#: Their words, from the lowest on.
PRIORITIES = tuple(priority.label for priority in Priority)


@dataclass(frozen=True, slots=True)
class Rule:
    """Holds where a result is above a bound, or below one, or is a word.

    A missing result, or one of another type, is none of these.

    :param result: its name in the template.
    :param above: it holds for numbers greater than this …
    :param below: … and for numbers less than this, in the result's unit.
    :param equals: it holds for this word.
    """

    result: str
    priority: Priority
    above: float | None = None
    below: float | None = None
    equals: str | None = None

    def __post_init__(self) -> None:
        given = (self.above, self.below, self.equals)
        require(given != (None, None, None), "rule", "must have above, below or equals")

    def holds(self, outcome: Outcome) -> bool:
        """Whether it does for this outcome."""
        value = outcome.results.get(self.result)
        if value is None:
            return False
        if isinstance(value, str):
            return value == self.equals
        above = self.above is not None and value > self.above
        return above or (self.below is not None and value < self.below)


def priority_of(outcome: Outcome, rules: Iterable[Rule], usual: Priority) -> Priority:
    """The priority of the first rule that holds, or the usual one.

    :param outcome: with its results' names, as distilled.
    """
    return next((rule.priority for rule in rules if rule.holds(outcome)), usual)
