"""Shares: while more comes than is taken in, nobody takes the place of all others.

An honest node has at most a window of packets under way (``custody.window``), and sends no
more until they are answered. So where frames pile up, and most of them are of one sender,
it is that one who floods. Of a batch that is full a sender gets half; who wants more in
several such batches in a row heeds no answers, and gets a sixteenth for as long as it goes
on. What is over that is passed over before it costs anything. A batch that is not full is
nobody's at the expense of another.
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

    def split(
        self, batch: Sequence[Received], now: float
    ) -> tuple[Sequence[Received], Sequence[Received]]:
        """(what is within everybody's share, what is beyond it), each in order.

        :param now: monotonic seconds.
        """
        if len(batch) < self._full:
            return batch, ()
        counts = Counter(one.claimed for one in batch if one.claimed is not None)
        shares = {
            kid: share
            for kid, count in counts.items()
            if (share := self._share(kid, count, now)) < count
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

    def _share(self, kid: bytes, count: int, now: float) -> int:
        sender = self._senders.get(kid)
        if sender is not None and now >= sender.seen + FORGIVEN:
            del self._senders[kid]
            sender = None
        fair = self._full // SHARE
        floods = sender is not None and sender.floods
        share = self._full // FLOODING_SHARE if floods else fair
        if count <= share:
            if sender is not None and not floods:
                sender.row = 0
            return share
        if sender is None:
            sender = self._senders[kid] = _Sender()
            if len(self._senders) > _MOST:
                self._senders.popitem(last=False)
        sender.seen = now
        sender.row += 1
        if not floods and sender.row >= IN_A_ROW:
            sender.floods = True
            log.warning(
                "node %s floods: little of what it sends is taken while others wait; "
                "if it goes on: qis-gateway revoke %s",
                kid.hex(),
                kid.hex(),
            )
        return share
