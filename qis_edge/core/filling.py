"""Waiting to fill a packet, where each packet costs airtime.

What outcomes of one situation share (address, signature, frame, question and answer) is paid
for once a packet. So outcomes wait for others, but not for longer than their priority allows,
and only while others can come. A candidate goes at once when

* its packet is full: more are waiting than it carries;
* its priority does not wait, as an urgent one's never does;
* its oldest outcome has waited as long as it may: a backlog never waits again;
* no other could come in time: windows are longer than what it may wait;
* it is dated further ahead than a window can be: the clock was set back, and nobody knows
  how long it has waited;
* no more outcomes are being made (:attr:`Filling.ended`).

An outcome waits from the end of its window on, by the node's clock. If that is set back
while it waits, it may wait once more as long; if it is set forward, less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from qis_edge.core.checks import require
from qis_edge.core.priority import Priority

#: Seconds that are waited beyond, so that what is made just then comes along.
MARGIN = 2.0
#: Seconds by which a window's end may lie in the future without the clock having been set.
AHEAD = 60.0


class Waiting(Protocol):
    """What is judged: outcomes that could become a packet now. The outbox's candidates are."""

    @property
    def priority(self) -> Priority:
        """See :class:`Priority`."""
        ...

    @property
    def full(self) -> bool:
        """Whether more are waiting than one packet carries."""
        ...

    @property
    def oldest(self) -> int:
        """Start of the oldest one's window, unix seconds."""
        ...


class Filling:
    """The policy: how long outcomes of each priority wait at most. Pure; time is told.

    :param longest: seconds for low, normal and high ones.
    :param window: seconds of a window: how often an outcome is made.
    """

    def __init__(self, longest: Sequence[float], *, window: float) -> None:
        require(len(longest) == Priority.URGENT, "longest", "must be of low, normal and high")
        require(all(0 <= wait < math.inf for wait in longest), "longest", "must be 0 or more")
        require(window > 0, "window", "must be more than 0")
        self._longest = (*(wait if wait >= window else 0.0 for wait in longest), 0.0)
        self._window = window
        #: Set it when no more outcomes are made: what waits then goes at once.
        self.ended = False

    def due(self, waiting: Waiting, now: float) -> float:
        """When it is to become a packet at the latest, unix seconds: ``now``, or later.

        :param now: unix seconds, by the node's clock.
        """
        longest = self._longest[waiting.priority]
        made = waiting.oldest + self._window
        if self.ended or waiting.full or not longest or made > now + AHEAD:
            return now
        return max(now, made + longest + MARGIN)

    def look(self, now: float) -> Look:
        """To ask of one candidate after the other, now."""
        return Look(self, now)


class Look:
    """One look through what waits: ``ready`` for :meth:`Outbox.pack`, and when to look again.

    >>> look = filling.look(clock.now())                                  # doctest: +SKIP
    >>> packets = outbox.pack(identity, ready=look.ready, max_packets=8)  # doctest: +SKIP
    >>> look.next_at                                                      # doctest: +SKIP
    """

    __slots__ = ("_filling", "_now", "next_at")

    def __init__(self, filling: Filling, now: float) -> None:
        self._filling = filling
        self._now = now
        #: Unix seconds at which the first of those that wait is due; ``None``: none waits.
        self.next_at: float | None = None

    def ready(self, waiting: Waiting) -> bool:
        """Whether it becomes a packet now."""
        due = self._filling.due(waiting, self._now)
        if due <= self._now:
            return True
        self.next_at = due if self.next_at is None else min(self.next_at, due)
        return False
