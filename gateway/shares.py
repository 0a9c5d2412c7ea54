"""Shares: while more comes than is taken in, nobody takes the place of all others.

An honest node has at most a window of packets under way (``custody.window``), and sends no
more until they are answered. So where frames pile up, and most of them are of one sender,
it is that one who floods. Of a batch that is full a sender gets half; who wants more in
several such batches in a row heeds no answers, and gets a sixteenth of a full one of every
batch, for as long as it goes on. What is over that is passed over before it costs much. Of
others, a batch that is not full is taken whole.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from qis_edge.links.base import Received

log = logging.getLogger(__name__)

#: A sender's share of a full batch is one in so many; and of one who floods.
SHARE, FLOODING_SHARE = 2, 16
#: Full batches in a row that a sender must exceed until it is said to flood.
IN_A_ROW = 4
#: Seconds without a surplus after which it floods no more.
FORGIVEN = 10.0
#: Senders that are remembered.
_MOST = 1024


@dataclass(slots=True)
class _Sender:
    row: int = 0
    floods: bool = False
    seen: float = 0.0


class Shares:
    """For one link. Pure: time is an argument.

    :param full: frames of a full batch.
    """

    def __init__(self, full: int) -> None:
        self._full = full
        self._senders: OrderedDict[bytes, _Sender] = OrderedDict()
        self._flooding: set[bytes] = set()

    def split(
        self, batch: Sequence[Received], now: float
    ) -> tuple[Sequence[Received], Sequence[Received]]:
        """(what is within everybody's share, what is beyond it), each in order.

        :param now: monotonic seconds.
        """
        full = len(batch) >= self._full
        for kid in [kid for kid in self._flooding if self._is_over(kid, now)]:
            self._forget(kid)
        if not full and not self._flooding:
            return batch, ()
        counts = Counter(one.claimed for one in batch if one.claimed is not None)
        shares = {
            kid: share
            for kid, count in counts.items()
            if (share := self._share(kid, count, now, full)) < count
        }
        if not shares:
            return batch, ()
        within: list[Received] = []
        beyond: list[Received] = []
        for one in batch:
            left = shares.get(one.claimed) if one.claimed is not None else None
            if left is None or one.claimed is None:
                within.append(one)
            elif left > 0:
                shares[one.claimed] = left - 1
                within.append(one)
            else:
                beyond.append(one)
        return within, beyond

    def _share(self, kid: bytes, count: int, now: float, full: bool) -> int:
        if self._is_over(kid, now):
            self._forget(kid)
        sender = self._senders.get(kid)
        if sender is not None and sender.floods:
            share = self._full // FLOODING_SHARE
            if count > share:
                sender.seen = now
            return share
        share = self._full // SHARE
        if not full or count <= share:
            if sender is not None and full:
                sender.row = 0
            return max(share, count)
        if sender is None:
            sender = self._senders[kid] = _Sender()
            if len(self._senders) > _MOST:
                self._forget(next(iter(self._senders)))
        sender.seen = now
        sender.row += 1
        if sender.row >= IN_A_ROW:
            self._floods(kid, sender)
        return share

    def _is_over(self, kid: bytes, now: float) -> bool:
        sender = self._senders.get(kid)
        return sender is not None and now >= sender.seen + FORGIVEN

    def _floods(self, kid: bytes, sender: _Sender) -> None:
        sender.floods = True
        self._flooding.add(kid)
        log.warning(
            "node %s floods: little of what it sends is taken while it goes on; "
            "if that is no mistake: qis-gateway revoke %s",
            kid.hex(),
            kid.hex(),
        )

    def _forget(self, kid: bytes) -> None:
        if self._senders.pop(kid).floods:
            self._flooding.discard(kid)
            log.info("node %s floods no more", kid.hex())
