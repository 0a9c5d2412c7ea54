"""What comes in over a link, and what the node answers.

Every frame is somebody's claim. Receipts, greetings and positions are believed by the MAC
of a gateway whose credential leads to our root, credentials and revocation lists by their
signatures, packets by the signature of a peer of our fleet. All else is counted and
dropped.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence

from qis_edge.core.cose import open_sign1
from qis_edge.core.errors import LinkError, Reason, Refused
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.messages import (
    MAX_INTERESTS,
    NONCE_SIZE,
    CredentialMessage,
    Greeting,
    Message,
    PacketMessage,
    Position,
    Request,
    RevocationMessage,
    Wanted,
    decode,
)
from qis_edge.core.packet import MAX_PACKET, Packet, unpack
from qis_edge.core.receipt import ReceiptMessage
from qis_edge.links.base import UP, Link, Received
from qis_edge.links.batches import Batches
from qis_edge.node.gateways import Gateway, Gateways
from qis_edge.node.membership import Membership, is_ours
from qis_edge.node.timekeeping import Timekeeper, boot_id
from qis_edge.node.uplink import Uplink
from qis_edge.store import inbox as inboxes
from qis_edge.store.inbox import Inbox
from qis_edge.worker import Worker

log = logging.getLogger(__name__)

#: Frames of one batch.
BATCH = 64
#: Packets that one answer to a request may bring.
REQUEST_LIMIT = 500
#: Seconds between requests to one gateway while nothing else calls for one.
REQUEST_EVERY = 600.0
#: Seconds to wait for the position that ends an answer before asking again.
REQUEST_PATIENCE = 30.0
#: A packet dated further ahead of us than this many seconds is not believed.
FUTURE_TOLERANCE = 600

Interests = tuple[tuple[bytes, int], ...]


class Inbound:
    """The receiving half of a node, for one link.

    :param heard: is given peers' packets that were new.
    """

    def __init__(
        self,
        link: Link,
        uplink: Uplink,
        identity: Identity,
        gateways: Gateways,
        membership: Membership,
        inbox: Inbox,
        disk: Worker,
        clock: Timekeeper,
        *,
        heard: Callable[[Sequence[Packet]], None],
    ) -> None:
        self._link = link
        self._uplink = uplink
        self._identity = identity
        self._gateways = gateways
        self._membership = membership
        self._inbox = inbox
        self._disk = disk
        self._clock = clock
        self._tell = heard
        self._interests: Interests = ()
        self._requested: dict[bytes, float] = {}
        self._hello = asyncio.Event()
        self.refused: Counter[str] = Counter()
        self.heard = 0  # peers' packets that were new
        self.repeated = 0

    # - receiving

    async def run(self) -> None:
        """Take in frames for ever."""
        async with Batches(self._link, BATCH) as batches:
            while batch := await batches.next():
                await self._take(batch)
                for received in batch:
                    await self._link.done(received)

    async def _take(self, batch: Sequence[Received]) -> None:
        receipts: list[ReceiptMessage] = []
        packets: list[bytes] = []
        for received in batch:
            try:
                message = decode(received.data)
                if isinstance(message, ReceiptMessage):
                    receipts.append(message)
                elif isinstance(message, PacketMessage):
                    packets.append(message.raw)
                else:
                    if isinstance(message, Position) and packets:
                        # It speaks of the packets before it: they go to the disk first.
                        await self._take_packets(packets)
                        packets = []
                    await self._handle(message)
            except Refused as refusal:
                self._count(refusal)
        if receipts:
            for unbelieved in await self._uplink.receipted(receipts):
                self._count(unbelieved)
        if packets:
            await self._take_packets(packets)

    def _count(self, refusal: Refused) -> None:
        self.refused[refusal.reason.label] += 1
        log.debug("refused: %s", refusal)

    async def _handle(self, message: Message) -> None:
        match message:
            case Greeting():
                await self._greeted(message)
            case Position():
                await self._position(message)
            case Wanted():
                await self._wanted(message)
            case CredentialMessage():
                await self._credential(message.raw)
            case RevocationMessage():
                await self._revocation(message.list.raw)
            case _:  # hellos, enrolments and requests are a node's to say
                raise Refused(Reason.SCOPE, "message", f"{type(message).__name__} from a gateway")

    # - peers' packets

    async def _take_packets(self, raws: Sequence[bytes]) -> None:
        known: list[tuple[bytes, PublicKey]] = []
        for raw in raws:
            try:
                kid = open_sign1(raw, MAX_PACKET, "packet").kid
                if kid == self._identity.kid:
                    continue  # ours, as others hear it
                known.append((raw, self._membership.key(kid, self._clock.known)))
            except Refused as refusal:
                if not is_ours(refusal):
                    self._count(refusal)
                    continue
                self._membership.park(kid, raw)
                if question := self._membership.ask(kid, time.monotonic()):
                    await self._send(question)
        if known:
            new, refused = await self._disk(self._verify_and_keep, known)
            self._tell(new)
            self.heard += len(new)
            self.repeated += len(known) - len(new) - len(refused)
            for unacceptable in refused:
                self._count(unacceptable)

    def _verify_and_keep(
        self, known: Sequence[tuple[bytes, PublicKey]]
    ) -> tuple[list[Packet], list[Refused]]:
        """In the disk's thread: what was new, and what is not acceptable."""
        now = self._clock.now()
        packets: list[Packet] = []
        refusals: list[Refused] = []
        for raw, key in known:
            try:
                packet = unpack(raw, key)
                if self._clock.trusted and packet.last_time > now + FUTURE_TOLERANCE:
                    raise Refused(Reason.FUTURE, "time")
                packets.append(packet)
            except Refused as refusal:
                refusals.append(refusal)
        fresh = [packet for packet in packets if packet.expires > now]
        return self._inbox.put(fresh, now=int(now)), refusals

    # - gateways

    async def _greeted(self, greeting: Greeting) -> None:
        try:
            enrolled = self._membership.enrolled(self._clock.known)
            gateway = self._gateways.greet(
                greeting, time.monotonic(), self._clock.known, settled=enrolled
            )
        except Refused as refusal:
            if is_ours(refusal) and (
                question := self._membership.ask(greeting.kid, time.monotonic())
            ):
                await self._send(question)
                return
            raise
        if self._clock.learn(greeting.time, 1.0):
            log.info("the time is known now, from gateway %s", gateway.kid.hex())
            uncertainty = self._clock.uncertainty
            await self._disk(self._uplink.outbox.settle, boot_id(), self._clock.offset, uncertainty)
            await self._disk(self._uplink.outbox.set_clock, greeting.time)
        await self._new_epoch(gateway, greeting)
        await self._disk(
            self._inbox.met_gateway, gateway.kid, gateway.epoch, int(self._clock.now())
        )
        self._uplink.custody.heard(time.monotonic(), gateway.kid)
        self._uplink.poke()
        await self._request(gateway)
        if not enrolled:  # it knows us, but its word of that got lost: ask again
            for raw in self._membership.present(self._clock.known):
                await self._send(raw)

    async def _new_epoch(self, gateway: Gateway, greeting: Greeting) -> None:
        before, gateway.epoch = gateway.epoch, greeting.epoch
        if not before or before == greeting.epoch:
            return
        count = await self._disk(
            self._uplink.outbox.resend, gateway.kid, greeting.since, epoch=greeting.epoch
        )
        await self._disk(self._inbox.forget_cursors, gateway.kid)
        self._uplink.custody.forget_gateway(gateway.kid)
        log.warning(
            "gateway %s has a new spool: %d packets that it held are sent again",
            gateway.kid.hex(),
            count,
        )
        self._uplink.start_over()

    async def _position(self, position: Position) -> None:
        gateway = self._gateways.position(position, self._clock.known)
        self._requested.pop(gateway.kid, None)
        if self._membership.parked:
            # Packets still wait for a credential, in memory only: asked for again later.
            self._requested[gateway.kid] = time.monotonic() + REQUEST_PATIENCE
            return
        mark = inboxes.Position(gateway.kid, position.cursor, self._scope())
        await self._disk(self._inbox.put, [], now=int(self._clock.now()), position=mark)
        if position.complete:
            self._requested[gateway.kid] = time.monotonic() + REQUEST_EVERY
        else:
            await self._request(gateway)

    async def _wanted(self, wanted: Wanted) -> None:
        if self._identity.kid in wanted.kids:
            for raw in self._membership.present(self._clock.known):
                await self._send(raw)

    async def _credential(self, raw: bytes) -> None:
        enrolled = self._membership.enrolled(self._clock.known)
        credential = self._membership.accept(raw, self._clock.known)
        self._gateways.add(credential)
        if self._membership.enrolled(self._clock.known) and not enrolled:
            self._gateways.hello_soon()
        self._hello.set()
        waiting = self._membership.unpark(credential.kid)
        if waiting:
            await self._take_packets(waiting)
            if not self._membership.parked:  # positions that had to wait for it
                self._requested = dict.fromkeys(self._requested, time.monotonic())

    async def _revocation(self, raw: bytes) -> None:
        made = self._membership.revoke(raw)
        for kid in made.kids if made is not None else ():
            await self._disk(self._inbox.forget_sender, kid)
            self._uplink.custody.forget_gateway(kid)

    # - asking

    async def attend(self, interests: Interests) -> None:
        """Hear of these addresses from now on: the first is our own."""
        if interests == self._interests:
            return
        self._interests = interests
        await self._link.listen(frozenset(address for address, _ in interests))
        for gateway in self._gateways.greeted(self._clock.known):
            await self._request(gateway)

    def _scope(self) -> bytes:
        """Names the interests: a cursor is good for these only."""
        form = b"".join(address + bits.to_bytes(2) for address, bits in self._interests)
        return hashlib.sha256(form).digest()[:8]

    async def _request(self, gateway: Gateway) -> None:
        if not self._interests or not self._membership.enrolled(self._clock.known):
            return
        cursor = await self._disk(self._inbox.cursor, gateway.kid, self._scope())
        request = Request(
            self._identity.kid, gateway.kid, self._interests[:MAX_INTERESTS], cursor, REQUEST_LIMIT
        )
        self._requested[gateway.kid] = time.monotonic() + REQUEST_PATIENCE
        await self._send(request.encode(gateway.keys.to_gateway))

    async def greet(self) -> None:
        """Say hello when it is time, and ask again for what got lost, for ever."""
        was_up = False
        while True:
            now = time.monotonic()
            if self._link.up and not was_up:
                self._gateways.hello_soon()
                await self._link.listen(frozenset(address for address, _ in self._interests))
            was_up = self._link.up
            if was_up and now >= self._gateways.hello_at:
                await self._send(self._gateways.hello(now, os.urandom(NONCE_SIZE)))
            if was_up:
                for gateway in self._gateways.greeted(self._clock.known):
                    if now >= self._requested.get(gateway.kid, now + 1):
                        await self._request(gateway)
            await self._pause(self._gateways.hello_at - time.monotonic())

    async def _pause(self, seconds: float) -> None:
        """Until then, or until the link or a credential changes something."""
        self._hello.clear()
        changed = asyncio.ensure_future(self._link.changed())
        called = asyncio.ensure_future(self._hello.wait())
        timeout = min(max(seconds, 0.05), 5.0) if self._link.up else None
        try:
            await asyncio.wait((changed, called), timeout=timeout, return_when="FIRST_COMPLETED")
        finally:
            changed.cancel()
            called.cancel()

    async def _send(self, frame: bytes) -> None:
        """Send if the link takes it now; whatever this is, it is said again in time."""
        try:
            await self._link.send(frame, UP)
        except LinkError as error:
            log.debug("not sent: %s", error)
