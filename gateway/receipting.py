"""Receipts that go out by themselves, over a link where they cost next to nothing.

They are made as the post can send them. While a broker pours out what it kept for us, its
acknowledgements of what we send stand in line behind all that, and there is little room:
then what is to be said to a node gathers, and one receipt says it of hundreds of packets.

In custody *routed* a receipt waits here until every routing engine has its packet.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from gateway.post import Post
from gateway.words import Origin, Words, origin_of
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.packet import Packet
from qis_edge.core.receipt import MacKeys
from qis_edge.links.base import down

log = logging.getLogger(__name__)

#: Receipts that wait for the routing engines. Beyond it the oldest goes: its node sends
#: again, and is answered when there is an answer.
MAX_OWED = 65_536


class _Owed(NamedTuple):
    """A packet whose receipt waits for the routing engines."""

    origin: Origin
    sequence: int
    id: bytes


class Receipting:
    """A :class:`gateway.custodian.Teller` that tells at the end of each batch.

    :param epoch: of the spool, 4 bytes.
    :param keys_of: the MAC keys shared with a node, by its kid; Refused where there are
        none any more.
    :param routed: whether *held* waits for the routing engines.
    """

    def __init__(
        self, post: Post, epoch: bytes, keys_of: Callable[[bytes], MacKeys], *, routed: bool
    ) -> None:
        self._post = post
        self._epoch = epoch
        self._keys_of = keys_of
        self._routed = routed
        self._owed: OrderedDict[int, _Owed] = OrderedDict()  # by position in the spool
        self._through = 0
        self._words = Words()
        post.more = self.tell

    @property
    def owed(self) -> int:
        """How many receipts wait for the routing engines."""
        return len(self._owed)

    def held(self, packet: Packet, position: int) -> None:
        """See :class:`gateway.custodian.Teller`."""
        if self._routed and position > self._through:
            self._owed[position] = _Owed(origin_of(packet), packet.sequence, packet.id)
            if len(self._owed) > MAX_OWED:
                self._owed.popitem(last=False)
        else:
            self._words.held(origin_of(packet), packet.sequence, packet.id)

    def refused(self, packet: Packet, reason: Reason) -> None:
        """See :class:`gateway.custodian.Teller`."""
        self._words.refused(origin_of(packet), packet.sequence, packet.id, reason)

    def later(self, packet: Packet, seconds: int) -> None:
        """See :class:`gateway.custodian.Teller`."""
        self._words.later(origin_of(packet), packet.sequence, packet.id, seconds)

    def routed_through(self, position: int) -> None:
        """See :class:`gateway.custodian.Teller`."""
        self._through = max(self._through, position)
        for at in [at for at in self._owed if at <= position]:
            self._words.held(*self._owed.pop(at))
        self.tell()

    def tell(self) -> None:
        """See :class:`gateway.custodian.Teller`."""
        while self._words and self._post.hungry:
            (kid, store), words = self._words.pop()
            try:
                key = self._keys_of(kid).to_node
            except Refused as refusal:  # its credential went meanwhile
                log.debug("no receipt for %s: %s", kid.hex(), refusal)
                continue
            for word in words:
                for raw in word.sealed(store, key, self._epoch):
                    self._post.answer(raw, down(kid))
        while self._words.packets > MAX_OWED:  # the link takes nothing: they will ask again
            self._words.pop()
