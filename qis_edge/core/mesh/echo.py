"""Pings answered: anybody may send them, so at a limited rate.

What waits to be sent is little and new: a pong that comes late says nothing.
"""

from __future__ import annotations

from collections import deque

from qis_edge.core.mesh.allowance import Allowance
from qis_edge.core.mesh.framing import Ping, Pong, Signal


class Echo:
    """The pongs of one receiver.

    :param most: pongs in a row, one more ``every`` so many seconds.
    :param waiting: pongs that may wait to be sent; the oldest goes for a new one.
    """

    def __init__(self, most: int, every: float, waiting: int) -> None:
        self.refused = 0  # pings past the allowance
        self._allowed = Allowance(most, every)
        self._out: deque[bytes] = deque(maxlen=waiting)

    def take(self, ping: Ping, heard: Signal | None, now: float) -> None:
        """A ping came in.

        :param heard: how, if that is known.
        """
        if self._allowed.take(now):
            self._out.append(Pong(ping.nonce, heard, self._allowed.left).encode())
        else:
            self.refused += 1

    def next(self) -> bytes | None:
        """The next pong to send, or ``None``."""
        return self._out.popleft() if self._out else None

    def __len__(self) -> int:
        return len(self._out)
