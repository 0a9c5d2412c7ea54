"""The uplink: from the outbox over a link into a gateway's custody.

Packets are made when they can be sent, and sent until a gateway's receipt says that it
holds them. The state machine is :class:`qis_edge.core.custody.Custody`; here it meets a
link, the outbox and the clock.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable, Sequence

from qis_edge.core import receipt as receipts
from qis_edge.core.custody import Custody, Pace
from qis_edge.core.errors import LinkError, Reason, Refused
from qis_edge.core.identity import Identity
from qis_edge.core.receipt import ReceiptMessage
from qis_edge.core.rows import Template
from qis_edge.links.base import UP, Link
from qis_edge.node.gateways import Gateway, Gateways
from qis_edge.store.forms import Answer, Queued
from qis_edge.store.outbox import Outbox
from qis_edge.worker import Worker

log = logging.getLogger(__name__)

#: Packets that are made in one commit.
AT_ONCE = 16

#: (store, sequence)
Key = tuple[bytes, int]


class Uplink:
    """Sends what waits, over one link.

    :param pace: of the link.
    :param copies: how many gateways must hold a packet.
    """

    def __init__(
        self,
        link: Link,
        outbox: Outbox,
        disk: Worker,
        identity: Identity,
        gateways: Gateways,
        domain: Template,
        *,
        pace: Pace,
        copies: int,
    ) -> None:
        self.link = link
        self.custody: Custody[Key] = Custody(random.random, pace=pace, copies=copies)
        self.outbox = outbox
        self._disk = disk
        self._identity = identity
        self._gateways = gateways
        self._domain = domain
        self._raw: dict[Key, bytes] = {}
        self._poked = asyncio.Event()
        self._old = True  # the outbox has packets that were not offered here yet
        self._after: Queued | None = None

    def poke(self) -> None:
        """Something changed: a new outcome, a receipt, a gateway that greeted."""
        self._poked.set()

    def start_over(self) -> None:
        """Look through the outbox again: packets that were done are so no longer."""
        self._old, self._after = True, None
        self.poke()

    # - sending

    async def run(self) -> None:
        """Send for ever."""
        while True:
            self._poked.clear()
            changed = asyncio.ensure_future(self.link.changed())
            try:
                if await self._step():
                    await self._wait(changed)
            finally:
                changed.cancel()

    async def _step(self) -> bool:
        """Send what can be sent now; whether that was all."""
        now = time.monotonic()
        if not self.link.up:
            self.custody.link_down(now)
            return True
        self.custody.link_up(now)
        if not self._gateways.greeted(None):
            return True  # nobody whose receipt we could check
        refilled = await self._refill()
        due = self.custody.due(time.monotonic(), self.link.room)
        for key in due:
            raw = self._raw.get(key)
            if raw is None:  # answered while the outbox was being looked through
                self.custody.withdraw(key)
                continue
            try:
                await self.link.send(raw, UP)
            except LinkError as error:
                log.debug("not sent: %s", error)
                return True
            self.custody.sent(key, time.monotonic())
        return not (refilled or due)

    async def _wait(self, changed: asyncio.Future[None]) -> None:
        deadline = self.custody.next_deadline()
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        poked = asyncio.ensure_future(self._poked.wait())
        # With timers that are due but no room, only the link or a poke can change that.
        if self.link.up and self.link.room == 0:
            timeout = None
        try:
            await asyncio.wait(
                (changed, poked), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            poked.cancel()

    async def _refill(self) -> bool:
        """Offer custody what it has room for; whether there was something."""
        room = min(self.custody.room_for(), AT_ONCE)
        if room <= 0:
            return False
        if self._old:
            queued = await self._disk(self.outbox.unreceipted, room, self._after)
            self._after = queued[-1] if queued else self._after
            self._old = len(queued) == room
            for one in queued:
                self._offer((one.store, one.sequence), one.raw, one.priority)
            return bool(queued)
        made = await self._disk(self._pack, room)
        for one in made:
            self._offer((one.store, one.sequence), one.raw, one.priority)
        return bool(made)

    def _pack(self, room: int) -> list[Queued]:
        """In the disk's thread."""
        packets = self.outbox.pack(
            self._identity, limit=self.link.mtu, max_packets=room, domain=self._domain
        )
        queued = [self.outbox.packet(packet.store, packet.sequence) for packet in packets]
        return [one for one in queued if one is not None]

    def _offer(self, key: Key, raw: bytes, priority: int) -> None:
        self._raw[key] = raw
        self._let_go(self.custody.offer(key, priority, time.monotonic()))

    def _let_go(self, keys: Iterable[Key]) -> None:
        """There is no room for these now: the outbox brings them again."""
        for key in keys:
            self._raw.pop(key, None)
            self._old, self._after = True, None

    # - receipts

    async def receipted(self, messages: Sequence[ReceiptMessage]) -> list[Refused]:
        """Take in receipts; those whose MAC is no known gateway's change nothing.

        :returns: why some were not believed.
        """
        gateways = self._gateways.greeted(None)
        believed, refused = await self._disk(self._believe, messages, gateways)
        now = time.monotonic()
        for one in believed:
            receipt = one.receipt
            answered = self.custody.answered(
                one.gateway,
                now,
                held=[(receipt.store, sequence) for sequence in receipt.held],
                refused=[
                    (code, [(receipt.store, sequence) for sequence in group])
                    for code, group in receipt.refused
                ],
                later=[
                    (seconds, [(receipt.store, sequence) for sequence in group])
                    for seconds, group in receipt.later
                ],
            )
            for key in (*answered.done, *(key for key, _ in answered.refused)):
                self._raw.pop(key, None)
            self._let_go(answered.dropped)
            for key, reason in answered.refused:
                log.warning(
                    "gateway %s refused packet %s/%d for good: %s",
                    one.gateway.hex(),
                    key[0].hex(),
                    key[1],
                    reason.label if isinstance(reason, Reason) else reason,
                )
        if believed:
            self.poke()
        return refused

    def _believe(
        self, messages: Iterable[ReceiptMessage], gateways: Sequence[Gateway]
    ) -> tuple[list[Answer], list[Refused]]:
        """Check receipts and commit what they say. In the disk's thread."""
        believed: list[Answer] = []
        refused: list[Refused] = []
        for message in messages:
            result = self._check(message, gateways)
            if isinstance(result, Refused):
                refused.append(result)
            else:
                believed.append(result)
        if believed:
            self.outbox.receipts(believed)
        return believed, refused

    def _check(self, message: ReceiptMessage, gateways: Sequence[Gateway]) -> Answer | Refused:
        """Receipts name no gateway: whose MAC fits, said it."""
        said = message.receipt
        ids = {sequence: self.outbox.packet_id(said.store, sequence) for sequence in said.named()}
        refusal = Refused(Reason.MAC, "receipt.tag", "no gateway has greeted")
        for gateway in gateways:
            try:
                receipts.verify(message, gateway.keys.to_node, gateway.epoch, ids.get)
            except Refused as error:
                refusal = error
                continue
            return Answer(gateway.kid, gateway.epoch, said)
        return refusal
