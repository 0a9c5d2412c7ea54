"""Pings answered: anybody may send them, so at a limited rate.

Several hear the same ping at the same moment: each waits for a slot of its own before it
answers. What waits is little and new: a pong that comes late says nothing.
"""

from __future__ import annotations

import hashlib
from collections import deque

from qis_edge.core.mesh.allowance import Allowance
from qis_edge.core.mesh.framing import PONG_SLOTS, Ping, Pong, Signal


class Echo:
    """The pongs of one receiver. Times in seconds.

    :param most: pongs in a row, one more ``every`` so many seconds.
    :param waiting: pongs that may wait to be sent; the oldest goes for a new one.
    :param slot: how long a slot is: the airtime of a pong.
    """

    def __init__(self, most: int, every: float, waiting: int, slot: float) -> None:
        self.refused = 0  # pings past the allowance
        self._allowed = Allowance(most, every)
        self._slot = slot
        self._out: deque[tuple[float, Pong]] = deque(maxlen=waiting)  # with when it is due

    def take(self, ping: Ping, heard: Signal | None, now: float) -> bool:
        """A ping came in; whether it is answered.

        :param heard: how, if that is known.
        """
        if not self._allowed.take(now):
            self.refused += 1
            return False
        slot = _slot(ping, heard)
        pong = Pong(ping.nonce, heard, self._allowed.left, slot)
        self._out.append((now + slot * self._slot, pong))
        return True

    def next(self, now: float) -> bytes | None:
        """A pong to send now, or ``None``."""
        for item in self._out:
            if item[0] <= now:
                self._out.remove(item)
                return item[1].encode()
        return None

    def next_deadline(self) -> float | None:
        """When :meth:`next` has something."""
        return min((due for due, _ in self._out), default=None)

    def __len__(self) -> int:
        return len(self._out)


def _slot(ping: Ping, heard: Signal | None) -> int:
    """0..7, by chance: no two radios hear a ping alike."""
    how = b"" if heard is None else heard.encode()
    return hashlib.sha256(ping.nonce + how).digest()[0] % PONG_SLOTS
