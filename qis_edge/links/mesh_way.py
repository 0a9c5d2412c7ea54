"""How packets in custody go up a mesh: bursts that ask, answers, polls."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

from qis_edge.core.custody import Answered, Custody
from qis_edge.core.errors import Reason
from qis_edge.core.mesh.sender import Sender, Timing
from qis_edge.core.pacing import Pace
from qis_edge.core.packet import unpack
from qis_edge.links.mesh_broadcast import WHOLE_EVERY
from qis_edge.links.ways import Key

#: Bursts begin up to so many frames late, at random: windows end everywhere at once.
SPREAD = 4
#: Packets in a burst, or half as many where all of them would take longer than so many
#: seconds: none is answered for before the last has gone.
_WINDOW, _LONG = 16, 900.0


class MeshWay:
    """See :class:`qis_edge.links.ways.Way`. The link sends what :attr:`sender` has.

    :param share: of all time that may be spent on the air, 0..1.
    :param now: the link's time.
    :param poke: tells the link that something changed.
    :param frame: bytes that a frame may have.
    """

    def __init__(
        self,
        timing: Timing,
        share: float,
        copies: int,
        *,
        now: Callable[[], float],
        poke: Callable[[], None],
        frame: int,
    ) -> None:
        self._now = now
        self._poke = poke
        self._frame = frame
        self.custody: Custody[Key] = Custody(
            random.random, pace=_pace(timing, share, frame), copies=copies
        )
        self.sender = Sender(
            self.custody,
            timing,
            random.random,
            frame=frame,
            whole_every=WHOLE_EVERY,
            spread=SPREAD * timing.airtime(frame),
        )

    def retime(self, timing: Timing, share: float) -> None:
        """The radio has another preset or region than was thought."""
        was_up = self.custody.up
        self.shut()
        self.sender.timing = timing
        self.sender.spread = SPREAD * timing.airtime(self._frame)
        self.custody.retune(_pace(timing, share, self._frame))
        if was_up:
            self.open()

    def offer(self, key: Key, raw: bytes, priority: int) -> tuple[Key, ...]:
        """See :class:`qis_edge.links.ways.Way`."""
        dropped = self.sender.offer(key, unpack(raw), priority, self._now())
        self._poke()
        return dropped

    def withdraw(self, key: Key) -> None:
        """See :class:`qis_edge.links.ways.Way`."""
        self.sender.withdraw(key)

    def answered(
        self,
        gateway: bytes,
        *,
        held: Iterable[Key],
        refused: Iterable[tuple[Reason | int, Iterable[Key]]],
        later: Iterable[tuple[float, Iterable[Key]]],
    ) -> Answered[Key]:
        """See :class:`qis_edge.links.ways.Way`."""
        answered = self.sender.answered(
            gateway, self._now(), held=held, refused=refused, later=later
        )
        self._poke()
        return answered

    def heard(self, gateway: bytes) -> None:
        """See :class:`qis_edge.links.ways.Way`."""
        self.custody.heard(self._now(), gateway)
        self.sender.heard(self._now())
        self._poke()

    def lost(self, gateway: bytes) -> None:
        """See :class:`qis_edge.links.ways.Way`."""
        self.custody.forget_gateway(gateway, self._now())
        self._poke()

    def open(self) -> None:
        """See :class:`qis_edge.links.ways.Way`."""
        if not self.custody.up:
            self.sender.link_up(self._now())
            self._poke()

    def shut(self) -> None:
        """See :class:`qis_edge.links.ways.Way`."""
        if self.custody.up:
            self.sender.link_down(self._now())

    def reopen(self) -> None:
        """See :class:`qis_edge.links.ways.Way`."""
        self.shut()
        self.open()

    @property
    def silent(self) -> bool:
        """See :class:`qis_edge.links.ways.Way`."""
        return self.sender.silent

    async def send(self) -> float | None:
        """The link sends by itself; see :class:`qis_edge.links.ways.Way`."""
        self._poke()
        return None


def _pace(timing: Timing, share: float, frame: int) -> Pace:
    """Custody's own timers are a last resort, and must not run out while the frames of a
    burst wait for their share of the air."""
    each = timing.airtime(frame) / share
    window = _WINDOW if _WINDOW * each <= _LONG else _WINDOW // 2
    pace = timing.pace(window, frame)
    first = pace.first_timeout + 2 * window * each
    most = max(pace.most_timeout, 4 * first)
    return replace(pace, first_timeout=first, least_timeout=first, most_timeout=most)
