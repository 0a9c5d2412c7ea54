"""How much may be said to people whom nobody can check."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Allowance:
    """So many frames in a row, and one more every so many seconds.

    :param most: frames in a row.
    :param every: seconds until there is another.
    """

    most: int
    every: float
    _left: float = field(init=False)
    _at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._left = self.most

    @property
    def left(self) -> int:
        """How many there were after the last :meth:`take`."""
        return int(self._left)

    def take(self, now: float) -> bool:
        """One frame, if there is one left."""
        self._left = min(self.most, self._left + max(0.0, now - self._at) / self.every)
        self._at = max(self._at, now)
        if self._left < 1:
            return False
        self._left -= 1
        return True
