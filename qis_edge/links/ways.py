"""How packets in custody go up a link.

Custody says which packets, a way how: over most links each is a frame, and is repeated
when its timer runs out (:class:`PlainWay`); a link with a better idea brings its own
(:class:`Carrier`).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol, runtime_checkable

from qis_edge.core.custody import BROKER, Answered, Custody
from qis_edge.core.errors import LinkError, Reason
from qis_edge.core.pacing import Pace
from qis_edge.core.packet import Packet
from qis_edge.links.base import UP, Link

log = logging.getLogger(__name__)

#: Seconds until something that the link did not take is tried again.
AGAIN = 1.0

#: (store, sequence)
Key = tuple[bytes, int]


class Way(Protocol):
    """One link's. It keeps its own time."""

    custody: Custody[Key]

    def offer(self, key: Key, raw: bytes, priority: int) -> tuple[Key, ...]:
        """Take on a packet; keys for which there is no room now."""
        ...

    def withdraw(self, key: Key) -> None:
        """Forget a packet."""
        ...

    def answered(
        self,
        gateway: bytes,
        *,
        held: Iterable[Key],
        refused: Iterable[tuple[Reason | int, Iterable[Key]]],
        later: Iterable[tuple[float, Iterable[Key]]],
    ) -> Answered[Key]:
        """A receipt was verified; as :meth:`Custody.answered`."""
        ...

    def heard(self, gateway: bytes) -> None:
        """A gateway said something authentic."""
        ...

    def lost(self, gateway: bytes) -> None:
        """What this gateway held counts no more."""
        ...

    def open(self) -> None:
        """There is somebody to send to."""
        ...

    def shut(self) -> None:
        """There is not."""
        ...

    def reopen(self) -> None:
        """The link was down meanwhile: what was under way may be lost."""
        ...

    @property
    def silent(self) -> bool:
        """Whether nobody answers."""
        ...

    async def send(self) -> float | None:
        """Send what can be sent now.

        :returns: monotonic seconds at which to call again, if nothing happens: a time in
            the past means at once.
        """
        ...


@runtime_checkable
class Carrier(Link, Protocol):
    """A link that has a way of its own."""

    def make_way(self, copies: int) -> Way:
        """The way; it is made once.

        :param copies: how many gateways must hold a packet.
        """
        ...

    @property
    def busy(self) -> bool:
        """Whether what was announced before has not gone out yet."""
        ...

    def learn(self, packet: Packet) -> None:
        """This packet of a peer was verified elsewhere: its like can be put together from
        what is heard of them from now on."""
        ...

    def announce(self, raw: bytes) -> bool:
        """Tell peers who listen a packet that nobody takes custody of now; whether there
        was room for it. It is ours, and signed."""
        ...


def make_way(link: Link, copies: int, window: int) -> Way:
    """A link's way.

    :param window: packets under way at most, where the link has no idea of its own.
    """
    if isinstance(link, Carrier):
        return link.make_way(copies)
    return PlainWay(link, replace(BROKER, window=window), copies)


class PlainWay:
    """Each packet is a frame."""

    def __init__(self, link: Link, pace: Pace, copies: int) -> None:
        self.custody: Custody[Key] = Custody(random.random, pace=pace, copies=copies)
        self._pace = pace
        self._link = link
        self._raw: dict[Key, bytes] = {}

    def offer(self, key: Key, raw: bytes, priority: int) -> tuple[Key, ...]:
        """See :class:`Way`."""
        self._raw[key] = raw
        dropped = self.custody.offer(key, priority, time.monotonic())
        self._drop(dropped)
        return dropped

    def withdraw(self, key: Key) -> None:
        """See :class:`Way`."""
        self.custody.withdraw(key)
        self._raw.pop(key, None)

    def answered(
        self,
        gateway: bytes,
        *,
        held: Iterable[Key],
        refused: Iterable[tuple[Reason | int, Iterable[Key]]],
        later: Iterable[tuple[float, Iterable[Key]]],
    ) -> Answered[Key]:
        """See :class:`Way`."""
        answered = self.custody.answered(
            gateway, time.monotonic(), held=held, refused=refused, later=later
        )
        self._drop((*answered.done, *(key for key, _ in answered.refused), *answered.dropped))
        return answered

    def _drop(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._raw.pop(key, None)

    def heard(self, gateway: bytes) -> None:
        """See :class:`Way`."""
        self.custody.heard(time.monotonic(), gateway)

    def lost(self, gateway: bytes) -> None:
        """See :class:`Way`."""
        self.custody.forget_gateway(gateway, time.monotonic())

    def open(self) -> None:
        """See :class:`Way`. A way that was left (its packets were withdrawn) begins anew,
        whatever silence it was left for."""
        if not self.custody.up and not len(self.custody):
            self.custody.retune(self._pace)
        self.custody.link_up(time.monotonic())

    def shut(self) -> None:
        """See :class:`Way`."""
        self.custody.link_down(time.monotonic())

    def reopen(self) -> None:
        """See :class:`Way`."""
        self.shut()
        self.open()

    @property
    def silent(self) -> bool:
        """See :class:`Way`."""
        return self.custody.silent

    async def send(self) -> float | None:
        """See :class:`Way`."""
        due = self.custody.due(time.monotonic(), self._link.room)
        for key in due:
            raw = self._raw.get(key)
            if raw is None:  # answered while the outbox was being looked through
                self.custody.withdraw(key)
                continue
            try:
                await self._link.send(raw, UP)
            except LinkError as error:
                log.debug("not sent: %s", error)
                return time.monotonic() + AGAIN
            self.custody.sent(key, time.monotonic())
        if due:
            return float("-inf")
        # Whatever is due, without room only the link can change anything.
        return self.custody.next_deadline() if self._link.room else None
