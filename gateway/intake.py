"""Intake: frames come in, packets are proved, made durable, and only then receipted.

Packets are taken in batches: one batch is verified in threads (libsodium releases the
interpreter's lock), committed to the spool in one transaction, and answered with one
receipt for each store that it names, or when a question comes. A frame is acknowledged to
its link after that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from gateway.shares import Shares
from qis_edge.core.cose import open_sign1
from qis_edge.core.errors import Reason, Refused, StoreCorrupt, StoreError
from qis_edge.core.identity import PublicKey
from qis_edge.core.messages import Message, PacketMessage, decode
from qis_edge.core.packet import MAX_PACKET, Packet, unpack
from qis_edge.links.base import Link, Question, Received
from qis_edge.links.batches import Batches

log = logging.getLogger(__name__)

#: Frames of one batch, at most.
BATCH = 128
#: Packets that one thread verifies in one go.
CHUNK = 16


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


class Intake:
    """The way in, for one link.

    :param ask: is given questions once all that came before them was taken.
    """

    def __init__(
        self,
        link: Link,
        desk: Desk,
        take: Take,
        counts: Counts,
        ask: Callable[[Question], None] | None = None,
    ) -> None:
        self._link = link
        self._desk = desk
        self._take = take
        self._counts = counts
        self._ask = ask
        self._shares = Shares(BATCH)
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="verify")

    async def run(self) -> None:
        """Take in frames until cancelled, or until the link is closed."""
        try:
            async with Batches(self._link, BATCH) as batches:
                while batch := await batches.next():
                    within, beyond = self._shares.split(batch, time.monotonic())
                    for received in beyond:
                        self._refuse(received, Refused(Reason.FLOODED, "frame"))
                    await self._handle(within)
                    for received in batch:
                        await self._link.done(received)
        finally:
            self._threads.shutdown(wait=False)

    async def _handle(self, batch: Sequence[Received]) -> None:
        """Everything else first: a credential may stand right before the first packet."""
        questions = [received.question for received in batch if received.question is not None]
        self._counts.frames += len(batch) - len(questions)
        packets: list[tuple[Received, bytes]] = []
        for received in batch:
            if received.question is not None:
                continue
            try:
                message = decode(received.data)
                if isinstance(message, PacketMessage):
                    packets.append((received, message.raw))
                else:
                    await self._desk.handle(message, received)
            except Refused as refusal:
                self._refuse(received, refusal)
            except StoreCorrupt:
                raise
            except StoreError:  # said already, and who said this will say it again
                self._counts.refused["store"] += 1
        if packets:
            await self._take(await self._prove(packets))
        if self._ask is not None:
            for question in questions:
                self._ask(question)

    async def _prove(self, frames: Sequence[tuple[Received, bytes]]) -> list[Packet]:
        known: list[tuple[Received, PublicKey]] = []
        for received, raw in frames:
            try:
                known.append((received, self._key(received, raw)))
            except Refused as refusal:
                self._refuse(received, refusal)
        loop = asyncio.get_running_loop()
        chunks = [known[i : i + CHUNK] for i in range(0, len(known), CHUNK)]
        proved: list[Packet] = []
        for chunk, results in zip(
            chunks,
            await asyncio.gather(
                *(loop.run_in_executor(self._threads, _verify, chunk) for chunk in chunks)
            ),
            strict=True,
        ):
            for (received, _), result in zip(chunk, results, strict=True):
                if isinstance(result, Refused):
                    self._refuse(received, result)
                else:
                    proved.append(result)
        return proved

    def _key(self, received: Received, raw: bytes) -> PublicKey:
        kid = open_sign1(raw, MAX_PACKET, "packet").kid
        if received.claimed is not None and received.claimed != kid:
            raise Refused(Reason.TOPIC, "topic", "of another key")
        return self._desk.node_key(kid)

    def _refuse(self, received: Received, refusal: Refused) -> None:
        self._counts.refused[refusal.reason.label] += 1
        log.debug("refused from %s: %s", (received.claimed or b"").hex(), refusal)
        self._desk.refused(received.claimed, refusal)


def _verify(chunk: Sequence[tuple[Received, PublicKey]]) -> list[Packet | Refused]:
    results: list[Packet | Refused] = []
    for received, key in chunk:
        try:
            results.append(unpack(received.data, key))
        except Refused as refusal:
            results.append(refusal)
    return results
