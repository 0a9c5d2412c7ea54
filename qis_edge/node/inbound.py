"""What comes in over a link, and what the node makes of it.

Every frame is somebody's claim. Receipts, greetings and positions are believed by the MAC
of a gateway whose credential leads to our root, credentials and revocation lists by their
signatures, packets by the signature of a peer of our fleet. All else is counted and
dropped.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

from qis_edge.core.cose import open_sign1
from qis_edge.core.credential import GATEWAY
from qis_edge.core.errors import Reason, Refused, StoreCorrupt, StoreError
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.messages import (
    CredentialMessage,
    Greeting,
    Message,
    PacketMessage,
    Position,
    RevocationMessage,
    Wanted,
    decode,
)
from qis_edge.core.packet import MAX_PACKET, Packet, unpack
from qis_edge.core.receipt import ReceiptMessage
from qis_edge.links.base import Link, Received
from qis_edge.links.batches import Batches
from qis_edge.links.switch import Switch, links_of
from qis_edge.links.ways import Carrier
from qis_edge.node.asking import Asking
from qis_edge.node.gateways import Gateway, Gateways
from qis_edge.node.membership import Membership, is_ours
from qis_edge.node.timekeeping import Timekeeper, boot_id
from qis_edge.node.uplink import Uplink
from qis_edge.store.inbox import Inbox
from qis_edge.worker import Disk

log = logging.getLogger(__name__)

#: Frames of one batch.
BATCH = 64
#: A packet dated further ahead of us than this many seconds is not believed; and clocks
#: that differ by more are worth a warning.
FUTURE_TOLERANCE = 600
#: What is wrong with messages to and of others, as they are overheard on a radio.
MEANT_FOR_OTHERS = frozenset({Reason.MAC, Reason.REPLAYED, Reason.SCOPE})
#: Seconds between hellos that strangers' questions bring about.
HELLO_EVERY = 30.0


class Inbound:
    """The receiving half of a node, for one link.

    :param heard: is given peers' packets that were new.
    """

    def __init__(
        self,
        link: Link,
        uplink: Uplink,
        asking: Asking,
        identity: Identity,
        gateways: Gateways,
        membership: Membership,
        inbox: Inbox,
        *,
        disk: Disk,
        clock: Timekeeper,
        heard: Callable[[Sequence[Packet]], None],
    ) -> None:
        self._link = link
        self._links = links_of(link)
        self._shared = any(one.shared for one in self._links)
        self._uplink = uplink
        self._asking = asking
        self._identity = identity
        self._gateways = gateways
        self._membership = membership
        self._inbox = inbox
        self._disk = disk
        self._clock = clock
        self._tell = heard
        self._hello_at = 0.0
        self._warned = False
        #: Whether there may be outcomes without a time though the time is known.
        self.time_owed = False
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
                    if isinstance(message, Position):
                        # It speaks of the packets before it: they go to the disk first.
                        before, packets = packets, []
                        await self._take_packets(before)
                    await self._handle(message)
                    if isinstance(message, Greeting | Position):
                        self._answered(received)
            except Refused as refusal:
                if not (self._shared and refusal.reason in MEANT_FOR_OTHERS):
                    self._count(refusal)
            except StoreCorrupt:
                raise
            except StoreError:  # said already, and who said this will say it again
                self.refused["store"] += 1
        await self._take_packets(packets)
        await self._take_receipts(receipts)

    def _answered(self, received: Received) -> None:
        if isinstance(self._link, Switch):
            self._link.answered(received)

    def _count(self, refusal: Refused) -> None:
        self.refused[refusal.reason.label] += 1
        log.debug("refused: %s", refusal)

    async def _take_receipts(self, receipts: Sequence[ReceiptMessage]) -> None:
        for unbelieved in await self._uplink.receipted(receipts) if receipts else ():
            self._count(unbelieved)
            self._gateways.doubt(time.monotonic())
            self._asking.poke()

    async def _handle(self, message: Message) -> None:
        match message:
            case Greeting():
                await self._greeted(message)
            case Position():
                self._gateways.position(message, self._clock.known)
                await self._asking.answered(message)
            case Wanted():
                await self._wanted(message)
            case CredentialMessage():
                await self.credential(message.raw)
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
                self._membership.park(kid, raw, time.monotonic())
                self._asking.poke()
        if not known:
            return
        try:
            new, refused = await self._disk(self._verify_and_keep, known)
        except StoreCorrupt:
            raise
        except StoreError:  # said already; the next request brings them again
            self._asking.losses += 1
            self.refused["store"] += len(known)
            return
        self._learn(new)
        self._tell(new)
        self.heard += len(new)
        self.repeated += len(known) - len(new) - len(refused)
        for unacceptable in refused:
            self._count(unacceptable)

    def _learn(self, new: Sequence[Packet]) -> None:
        for link in self._links:
            if isinstance(link, Carrier):
                for packet in new:
                    link.learn(packet)

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
        monotonic = time.monotonic()
        try:
            known = self._clock.known
            gateway, ago = self._gateways.greet(
                greeting, monotonic, known, settled=self._membership.enrolled(known)
            )
        except Refused as refusal:
            if is_ours(refusal):
                self._membership.miss(greeting.kid, monotonic)
                self._asking.poke()
            raise
        # It was said somewhere between our hello and now, and gives whole seconds.
        if self._clock.learn(greeting.time + ago / 2, max(1.0, ago / 2), gateway.kid):
            log.info("the time is known now, from gateway %s", gateway.kid.hex())
            self.time_owed = True
            await self.settle_time()
        self._compare_clocks(greeting, gateway)
        anew = await self._new_epoch(gateway, greeting)
        self._uplink.heard(gateway.kid)
        self._asking.request(gateway.kid, anew=anew)
        ours = self._membership.revocation
        if ours is not None and greeting.revocation < ours.number:
            await self._asking.send(RevocationMessage(ours).encode())
        seen = int(self._clock.now())
        await self._disk(self._inbox.met_gateway, gateway.kid, gateway.epoch, seen)
        if not self._membership.enrolled(self._clock.known):
            # It knows us, but its word of that got lost: ask again.
            await self._present()

    async def settle_time(self) -> None:
        """The time has become known: outcomes that were made without it get theirs."""
        outbox, clock = self._uplink.outbox, self._clock
        await self._disk(outbox.settle, boot_id(), clock.boot_offset, clock.uncertainty)
        await self._disk(outbox.set_clock, int(clock.now()))
        self.time_owed = False
        self._uplink.poke()

    def _compare_clocks(self, greeting: Greeting, gateway: Gateway) -> None:
        ahead = self._clock.now() - greeting.time
        if abs(ahead) > FUTURE_TOLERANCE and not self._warned:
            log.warning(
                "our clock is %d s %s that of gateway %s: one of the two is wrong",
                abs(ahead),
                "ahead of" if ahead > 0 else "behind",
                gateway.kid.hex(),
            )
        self._warned = abs(ahead) > FUTURE_TOLERANCE

    async def _new_epoch(self, gateway: Gateway, greeting: Greeting) -> bool:
        """Whether its spool is another: then what that one held alone is sent again."""
        before = gateway.epoch
        if not before:
            gateway.epoch = greeting.epoch
            self._uplink.met()
        if gateway.epoch == greeting.epoch:
            return False
        await self._disk(self._inbox.forget_cursors, gateway.kid)
        count = await self._disk(
            self._uplink.outbox.resend, gateway.kid, greeting.since, epoch=greeting.epoch
        )
        gateway.epoch = greeting.epoch
        self._uplink.lost(gateway.kid)
        log.warning(
            "gateway %s has a new spool: %d packets that it held are sent again",
            gateway.kid.hex(),
            count,
        )
        return True

    # - who is who

    async def _wanted(self, wanted: Wanted) -> None:
        """Anybody can ask this; a gateway that does knows nothing of us."""
        if self._identity.kid not in wanted.kids:
            return
        await self._present()
        now = time.monotonic()
        if self._membership.enrolled(self._clock.known) and now >= self._hello_at:
            self._hello_at = now + HELLO_EVERY
            self._asking.hello()

    async def _present(self) -> None:
        for raw in self._membership.present(self._clock.known, time.monotonic()):
            await self._asking.send(raw)

    async def credential(self, raw: bytes) -> None:
        """A credential came, over a link or by hand. :raises Refused: it is not good."""
        enrolled = self._membership.enrolled(self._clock.known)
        credential, news = self._membership.accept(raw, self._clock.known)
        if news and GATEWAY in credential.scope:
            self._gateways.add(credential)
        if news and (GATEWAY in credential.scope or not enrolled):
            self._asking.hello()
        waiting = self._membership.unpark(credential.kid)
        try:
            if news:
                now = int(self._clock.now())
                await self._disk(self._inbox.keep_credential, credential.raw, now)
        finally:
            await self._take_packets(waiting)
            await self._asking.settle()

    async def _revocation(self, raw: bytes) -> None:
        made = self._membership.revoke(raw)
        if made is None:
            return
        for kid in made.kids:
            self._asking.forget(kid)
            self._membership.unpark(kid)
        for kid in made.kids:
            await self._disk(self._inbox.forget_sender, kid)
            # What it said that it held is worth nothing.
            count = await self._disk(self._uplink.outbox.resend, kid)
            self._uplink.lost(kid)
            if count:
                log.warning("gateway %s is out: %d packets are sent again", kid.hex(), count)
        await self._disk(self._inbox.keep_revocation, raw)
