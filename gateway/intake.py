"""Intake: frames come in, packets are proved, made durable, and only then receipted.

Packets are taken in batches: one batch is verified beside the event loop, committed to the
spool in one transaction, and answered with a receipt for each store that it names, or when a
question comes. A frame is acknowledged to its link after that. While one batch is committed,
the next is opened and verified.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from gateway.prover import Prover
from gateway.shares import Shares
from qis_edge.core.errors import Reason, Refused, StoreCorrupt, StoreError
from qis_edge.core.identity import PublicKey
from qis_edge.core.messages import Message, PacketMessage, decode
from qis_edge.core.packet import Packet, signed, unpack
from qis_edge.links.base import Link, Question, Received
from qis_edge.links.batches import Batches

log = logging.getLogger(__name__)

#: Frames of one batch, at most; and from how many on they pile up (:mod:`gateway.shares`).
BATCH, PILED = 256, 128


@dataclass(slots=True)
class Counts:
    """What came in since the start: frames, and packets by what became of them."""

    frames: int = 0
    new: int = 0
    known: int = 0
    stale: int = 0
    later: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Desk(Protocol):
    """Who knows who is who, and answers everything that is not a packet."""

    def node_key(self, kid: bytes) -> PublicKey:
        """:raises Refused: this key may not send packets, now."""
        ...

    async def handle(self, message: Message, received: Received) -> None:
        """:raises Refused: the message is not acceptable.
        :raises StoreError: what it says cannot be written down now.
        """
        ...

    def refused(self, kid: bytes | None, refusal: Refused) -> None:
        """A frame that claims to be of ``kid`` was refused."""
        ...


#: Makes verified packets durable and answers those that need an answer.
Take = Callable[[Sequence[Packet]], Awaitable[None]]


class _Opened(NamedTuple):
    """A packet whose signature is yet to be checked."""

    received: Received
    packet: Packet
    key: PublicKey


class Intake:
    """The way in, for one link.

    :param ask: is given questions once all that came before them was taken.
    :param unreadable: is given packets of nodes whose outcomes cannot be read.
    """

    def __init__(
        self,
        link: Link,
        desk: Desk,
        take: Take,
        counts: Counts,
        ask: Callable[[Question], None] | None = None,
        unreadable: Callable[[Packet, Reason], None] | None = None,
    ) -> None:
        self._link = link
        self._desk = desk
        self._take = take
        self._counts = counts
        self._ask = ask
        self._unreadable = unreadable
        self._shares = Shares(PILED)
        self._prover = Prover()

    async def run(self) -> None:
        """Take in frames until cancelled, or until the link is closed.

        :raises StoreCorrupt: the spool or the fleet's file is damaged.
        """
        try:
            async with Batches(self._link, BATCH) as batches, asyncio.TaskGroup() as group:
                before: asyncio.Task[None] | None = None
                while batch := await batches.next():
                    within, beyond = self._shares.split(batch, time.monotonic())
                    for received in beyond:
                        self._refuse(received, Refused(Reason.FLOODED, "frame"))
                    opened = await self._open(within)
                    proof = group.create_task(self._prove(opened))
                    if before is not None:
                        await before
                    before = group.create_task(self._finish(batch, proof))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._prover.close()

    async def _finish(
        self, batch: Sequence[Received], proof: asyncio.Task[Sequence[Packet]]
    ) -> None:
        """Make durable what was proved, and be done with the batch."""
        if packets := await proof:
            await self._take(packets)
        for received in batch:
            if received.question is not None and self._ask is not None:
                self._ask(received.question)
        for received in batch:
            await self._link.done(received)

    async def _open(self, batch: Sequence[Received]) -> list[_Opened]:
        """Everything else first: a credential may stand right before the first packet."""
        frames: list[Received] = []
        for received in batch:
            if received.question is not None:
                continue
            self._counts.frames += 1
            try:
                message = decode(received.data)
                if isinstance(message, PacketMessage):
                    frames.append(received)
                else:
                    await self._desk.handle(message, received)
            except Refused as refusal:
                self._refuse(received, refusal)
            except StoreCorrupt:
                raise
            except StoreError:  # said already, and who said this will say it again
                self._counts.refused["store"] += 1
        opened: list[_Opened] = []
        for received in frames:
            try:
                packet = unpack(received.data)
            except Refused as refusal:
                self._refuse(received, refusal)
                self._tell_refused(received, refusal.reason)
                continue
            try:
                opened.append(_Opened(received, packet, self._key(received, packet.kid)))
            except Refused as refusal:
                self._refuse(received, refusal)
        return opened

    def _tell_refused(self, received: Received, reason: Reason) -> None:
        """What a node has signed and cannot be read here would come again and again: it is
        told. Where the frame or the signature is not good either, nobody knows whose it is."""
        if self._unreadable is None:
            return
        try:
            packet = unpack(received.data, lambda kid: self._key(received, kid), lazy=True)
        except Refused:
            return
        self._unreadable(packet, reason)

    async def _prove(self, opened: Sequence[_Opened]) -> Sequence[Packet]:
        claims = [(one.key.raw, signed(one.packet.raw)) for one in opened]
        proved: list[Packet] = []
        for one, good in zip(opened, await self._prover.prove(claims), strict=True):
            if good:
                proved.append(one.packet)
            else:
                self._refuse(one.received, Refused(Reason.SIGNATURE, "signature"))
        return proved

    def _key(self, received: Received, kid: bytes) -> PublicKey:
        if received.claimed is not None and received.claimed != kid:
            raise Refused(Reason.TOPIC, "topic", "of another key")
        return self._desk.node_key(kid)

    def _refuse(self, received: Received, refusal: Refused) -> None:
        self._counts.refused[refusal.reason.label] += 1
        log.debug("refused from %s: %s", (received.claimed or b"").hex(), refusal)
        self._desk.refused(received.claimed, refusal)
