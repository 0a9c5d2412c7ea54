"""What comes in, and what the node makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from qis_edge.clock import SystemClock, boot_seconds
from qis_edge.core import receipt as receipts
from qis_edge.core.credential import RevocationList
from qis_edge.core.domain import Domain
from qis_edge.core.errors import StoreCorrupt, StoreError
from qis_edge.core.filling import Filling
from qis_edge.core.identity import Identity
from qis_edge.core.messages import (
    Hello,
    Position,
    Request,
    RevocationMessage,
    Wanted,
)
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Packet, unpack
from qis_edge.core.receipt import Receipt
from qis_edge.node.asking import Asking
from qis_edge.node.gateways import Gateways
from qis_edge.node.inbound import Inbound
from qis_edge.node.membership import Membership
from qis_edge.node.timekeeping import Timekeeper, boot_id
from qis_edge.node.uplink import Uplink
from qis_edge.store.forms import Unclocked
from qis_edge.store.inbox import Inbox
from qis_edge.store.outbox import Outbox
from qis_edge.worker import Disk
from tests.node.kit import ADDRESS, HOUR, NOW, Fleet, Wire, packet_of, until

#: A machine whose clock nobody set: it is seventy years behind.
LOST = SystemClock(-70 * 365 * 86400.0)


class Shifted(SystemClock):
    """The system's clock, shifted so that it is NOW."""

    def __init__(self) -> None:
        super().__init__(NOW - time.time())


class Bench:
    """The receiving half with everything that it touches, and a wire."""

    def __init__(
        self, *, enrolled: bool = True, gateway: bool = True, clock: bool = True, copies: int = 1
    ) -> None:
        self.fleet = Fleet()
        trust = self.fleet.trust(enrolled=enrolled, gateway=gateway)
        self.gateways = Gateways(self.fleet.me, trust)
        self.gateways.learn({}, None)
        self.membership = Membership(self.fleet.me, "field-1", trust)
        self.wire = Wire(self.fleet.me.kid)
        self.inbox = Inbox.in_memory()
        self.outbox = Outbox.in_memory(self.fleet.me.public, copies=copies)
        self.disk = Disk("test")
        self.clock = Timekeeper(Shifted() if clock else LOST, 0, synchronised=clock)
        self.uplink = Uplink(
            self.wire,
            self.outbox,
            self.disk,
            self.fleet.me,
            self.gateways,
            Domain.load("weather"),
            self.clock,
            window=32,
            filling=Filling((0.0, 0.0, 0.0), window=3600),
            copies=copies,
        )
        self.asking = Asking(
            self.wire,
            self.fleet.me,
            self.gateways,
            self.membership,
            self.inbox,
            self.disk,
            self.clock,
            silent=lambda: False,
        )
        self.heard: list[Packet] = []
        self.inbound = Inbound(
            self.wire,
            self.uplink,
            self.asking,
            self.fleet.me,
            self.gateways,
            self.membership,
            self.inbox,
            disk=self.disk,
            clock=self.clock,
            heard=self.heard.extend,
        )

    def said(self) -> Counter[str]:
        return Counter(type(one).__name__ for one in self.wire.messages())

    async def refused(self, reason: str, times: int = 1) -> None:
        await until(lambda: self.inbound.refused[reason] >= times)

    async def greet(self, **how: object) -> None:
        """The gateway answers our last hello."""
        nonce = next(one.nonce for one in self.wire.messages()[::-1] if isinstance(one, Hello))
        greeting = self.fleet.greeting(nonce, **how)  # type: ignore[arg-type] # passed on
        self.wire.bring(greeting.encode(self.fleet.keys().to_node, nonce))

    async def packed(self, count: int) -> list[Packet]:
        """What the uplink has sent, once it is so many packets."""
        await until(lambda: self.said()["PacketMessage"] >= count)
        return [unpack(raw) for raw in self.wire.sent if raw.startswith(b"\xd2\x84")]


@contextlib.asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    await bench.wire.start()
    tasks = [
        asyncio.create_task(one)
        for one in (bench.inbound.run(), bench.asking.run(), bench.uplink.run())
    ]
    try:
        await until(lambda: bench.said()["Hello"])
        yield bench
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await bench.wire.close()
        await bench.disk(bench.inbox.close)
        await bench.disk(bench.outbox.close)
        bench.disk.close()


# --- packets -------------------------------------------------------------------------------


async def test_a_peers_packet_is_kept_and_told_once() -> None:
    async with running(Bench()) as bench:
        peer = Identity.generate()
        bench.membership.accept(bench.fleet.vouch(peer).raw, NOW)
        packet = packet_of(peer)
        bench.wire.bring(packet.raw)
        bench.wire.bring(packet.raw)
        await until(lambda: bench.inbound.repeated == 1)
        assert [one.id for one in bench.heard] == [packet.id]
        assert bench.inbound.heard == 1
        assert await bench.disk(bench.inbox.has, packet)


async def test_packets_that_are_not_acceptable_are_counted() -> None:
    async with running(Bench()) as bench:
        peer = Identity.generate()
        bench.membership.accept(bench.fleet.vouch(peer).raw, NOW)
        good = packet_of(peer)
        bench.wire.bring(good.raw[:-1] + bytes((good.raw[-1] ^ 1,)))
        bench.wire.bring(packet_of(peer, 2, time=NOW + 2 * HOUR).raw)
        bench.wire.bring(good.raw[:-3])
        bench.wire.bring(b"\xff" * 20)
        for reason in ("signature", "future", "truncated", "message"):
            await bench.refused(reason)
        assert bench.heard == []


async def test_what_has_expired_is_not_kept() -> None:
    async with running(Bench()) as bench:
        peer = Identity.generate()
        bench.membership.accept(bench.fleet.vouch(peer).raw, NOW)
        bench.wire.bring(packet_of(peer, time=NOW - 100 * HOUR, ttl=1).raw)
        bench.wire.bring(packet_of(peer, 2).raw)
        await until(lambda: bench.inbound.heard == 1)
        assert [one.sequence for one in bench.heard] == [2]


async def test_our_own_packets_are_no_news() -> None:
    async with running(Bench()) as bench:
        bench.wire.bring(packet_of(bench.fleet.me).raw)
        peer = Identity.generate()
        bench.membership.accept(bench.fleet.vouch(peer).raw, NOW)
        bench.wire.bring(packet_of(peer).raw)
        await until(lambda: bench.inbound.heard == 1)
        assert not bench.inbound.refused


async def test_packets_wait_for_their_senders_credential() -> None:
    async with running(Bench()) as bench:
        peer = Identity.generate()
        for sequence in (1, 2):
            bench.wire.bring(packet_of(peer, sequence).raw)
        await until(lambda: bench.said()["Wanted"] == 1)
        assert bench.heard == []
        credential = bench.fleet.vouch(peer)
        bench.wire.bring(credential.raw)
        await until(lambda: bench.inbound.heard == 2)
        assert credential.raw in await bench.disk(bench.inbox.trust)
        assert bench.membership.parked == frozenset()


async def test_packets_that_cannot_be_kept_are_losses() -> None:
    async with running(Bench()) as bench:
        peer = Identity.generate()
        bench.membership.accept(bench.fleet.vouch(peer).raw, NOW)

        def full(*_: object, **__: object) -> None:
            raise StoreError("full")

        vars(bench.inbox)["put"] = full
        bench.wire.bring(packet_of(peer).raw)
        await until(lambda: bench.asking.losses == 1)
        assert bench.inbound.refused["store"] == 1
        del vars(bench.inbox)["put"]
        bench.wire.bring(packet_of(peer).raw)
        await until(lambda: bench.inbound.heard == 1)


# --- gateways ------------------------------------------------------------------------------


async def test_a_greeting_opens_the_way() -> None:
    async with running(Bench()) as bench:
        await bench.asking.attend(((ADDRESS, 256),))
        await bench.greet()
        await until(lambda: bench.said()["Request"] == 1)
        known = await bench.disk(bench.inbox.gateway, bench.fleet.gateway.kid)
        assert known is not None
        assert known.epoch == b"ep-1"


async def test_a_gateway_nobody_knows_is_asked_for() -> None:
    async with running(Bench(gateway=False, enrolled=False)) as bench:
        await bench.greet()
        await bench.refused("unknown_key")
        await until(lambda: bench.said()["Wanted"] == 1)
        hellos = bench.said()["Hello"]
        bench.wire.bring(bench.fleet.gateway_credential.raw)
        await until(lambda: bench.said()["Hello"] > hellos)  # at once
        await bench.greet()
        await until(lambda: any(one.greeted for one in bench.gateways))


async def test_a_clock_that_is_lost_is_told_the_time() -> None:
    async with running(Bench(clock=False)) as bench:
        assert bench.clock.known is None
        row = Unclocked(boot_id(), boot_seconds() - 100)
        await bench.disk(
            bench.outbox.append, Outcome(0, results={"temperature": 1.0}), ADDRESS, unclocked=row
        )
        await bench.greet()
        await until(lambda: bench.clock.known is not None)
        assert abs(bench.clock.now() - NOW) < 5
        (packet,) = await bench.packed(1)
        assert abs(packet.time - (NOW - 100)) <= 3
        assert not bench.inbound.time_owed


async def test_time_that_could_not_be_settled_is_owed() -> None:
    async with running(Bench(clock=False)) as bench:

        def full(*_: object) -> None:
            raise StoreError("full")

        vars(bench.outbox)["settle"] = full
        await bench.greet()
        await until(lambda: bench.inbound.refused["store"] == 1)
        assert bench.clock.known is not None
        assert bench.inbound.time_owed
        del vars(bench.outbox)["settle"]
        await bench.inbound.settle_time()
        assert not bench.inbound.time_owed


async def test_clocks_that_differ_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async with running(Bench()) as bench:
        for number in range(1, 4):
            await bench.greet(time=NOW - 7200)
            bench.asking.hello()
            await until(lambda: bench.said()["Hello"] > number)  # noqa: B023 - at once
        assert len([one for one in caplog.records if "our clock is" in one.message]) == 1
        assert abs(bench.clock.now() - NOW) < 60


async def test_a_new_epoch_brings_everything_back(caplog: pytest.LogCaptureFixture) -> None:
    async with running(Bench()) as bench:
        await bench.greet()
        await bench.disk(bench.outbox.append, Outcome(NOW - HOUR, results={"a": 1.0}), ADDRESS)
        bench.uplink.poke()
        (packet,) = await bench.packed(1)
        said = Receipt(packet.store, (packet.sequence,))
        key, ids = bench.fleet.keys().to_node, {packet.sequence: packet.id}
        bench.wire.bring(receipts.build(said, key, b"ep-1", ids))
        await until(lambda: bench.uplink.custody.counters.receipted == 1)
        bench.asking.hello()
        await until(lambda: bench.said()["Hello"] == 2)
        await bench.greet(epoch=b"ep-2")
        again = await bench.packed(2)
        assert [one.raw for one in again] == [packet.raw] * 2
        assert "has a new spool: 1 packets" in caplog.text
        # The old epoch's receipts are worth nothing now, and make us ask who is there.
        bench.gateways._doubted_at = -1000.0
        hellos = bench.said()["Hello"]
        bench.wire.bring(receipts.build(said, key, b"ep-1", ids))
        await bench.refused("mac")
        await until(lambda: bench.said()["Hello"] > hellos)


async def test_an_epoch_is_not_passed_over_before_its_loss_is_written_down() -> None:
    async with running(Bench()) as bench:
        await bench.greet()
        await until(lambda: bench.gateways.greeted(NOW))

        def full(*_: object, **__: object) -> None:
            raise StoreError("full")

        vars(bench.outbox)["resend"] = full
        bench.asking.hello()
        await until(lambda: bench.said()["Hello"] == 2)
        await bench.greet(epoch=b"ep-2")
        await until(lambda: bench.inbound.refused["store"] == 1)
        (gateway,) = bench.gateways.greeted(NOW)
        assert gateway.epoch == b"ep-1"
        del vars(bench.outbox)["resend"]
        bench.asking.hello()
        await until(lambda: bench.said()["Hello"] == 3)
        await bench.greet(epoch=b"ep-2")
        await until(lambda: gateway.epoch == b"ep-2")


async def test_a_position_is_for_what_came_before_it() -> None:
    async with running(Bench()) as bench:
        await bench.asking.attend(((ADDRESS, 256),))
        await bench.greet()
        await until(lambda: bench.said()["Request"] == 1)
        peer = Identity.generate()
        bench.membership.accept(bench.fleet.vouch(peer).raw, NOW)
        bench.wire.bring(packet_of(peer).raw)
        said = Position(bench.fleet.gateway.kid, b"here", complete=True)
        bench.wire.bring(said.encode(bench.fleet.keys().to_node))
        scope = bench.asking._scope()
        kid = bench.fleet.gateway.kid

        async def cursor() -> bytes | None:
            return await bench.disk(bench.inbox.cursor, kid, scope)

        for _ in range(200):
            if await cursor():
                break
            await asyncio.sleep(0.005)
        assert await cursor() == b"here"
        assert bench.inbound.heard == 1


async def test_what_only_nodes_say_is_refused() -> None:
    async with running(Bench()) as bench:
        stranger = Identity.generate()
        bench.wire.bring(Hello(stranger.kid, b"nonce--1").encode())
        request = Request(stranger.kid, bench.fleet.me.kid, ((ADDRESS, 256),), None, 5)
        bench.wire.bring(request.encode(bytes(32)))
        await bench.refused("scope", 2)


# --- who is who ----------------------------------------------------------------------------


async def test_who_is_asked_for_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Bench()) as bench:
        await bench.greet()
        await until(lambda: bench.gateways.greeted(NOW))
        hellos = bench.said()["Hello"]
        bench.wire.bring(Wanted((b"somebody",)).encode())
        bench.wire.bring(Wanted((bench.fleet.me.kid,)).encode())
        await until(lambda: bench.said()["CredentialMessage"] == 2)
        # Who asks does not know us: it is greeted, but not as often as anybody likes.
        await until(lambda: bench.said()["Hello"] == hellos + 1)
        for _ in range(50):
            bench.wire.bring(Wanted((bench.fleet.me.kid,)).encode())
        await bench.refused("flooded", 40)
        assert bench.said()["Hello"] == hellos + 1
        assert bench.said()["CredentialMessage"] <= 20


async def test_who_has_not_joined_asks_to(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with running(Bench(enrolled=False, gateway=False)) as bench:
        bench.wire.bring(Wanted((bench.fleet.me.kid,)).encode())
        await until(lambda: bench.said()["EnrolmentMessage"] == 1)
        bench.wire.bring(bench.fleet.gateway_credential.raw)
        bench.wire.bring(bench.fleet.credential.raw)
        await until(lambda: bench.membership.enrolled(NOW))
        kept = [bench.fleet.gateway_credential.raw, bench.fleet.credential.raw]
        await until(lambda: bench.said()["Hello"] >= 2)
        assert await bench.disk(bench.inbox.trust) == kept


async def test_an_approval_that_got_lost_is_asked_for_again() -> None:
    """The gateway knows us, we know it, but our credential has not come."""
    async with running(Bench(enrolled=False)) as bench:
        await bench.greet()
        await until(lambda: bench.said()["EnrolmentMessage"] == 1)


async def test_a_credential_that_leads_nowhere_is_refused() -> None:
    async with running(Bench()) as bench:
        bench.wire.bring(Fleet().credential.raw)
        await bench.refused("chain")
        assert await bench.disk(bench.inbox.trust) == []


async def test_a_revoked_peer_is_forgotten_and_a_revoked_gateway_holds_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(Bench()) as bench:
        await bench.greet()
        peer = Identity.generate()
        bench.membership.accept(bench.fleet.vouch(peer).raw, NOW)
        packet = packet_of(peer)
        bench.wire.bring(packet.raw)
        await until(lambda: bench.inbound.heard == 1)
        await bench.disk(bench.outbox.append, Outcome(NOW - HOUR, results={"a": 1.0}), ADDRESS)
        bench.uplink.poke()
        (ours,) = await bench.packed(1)
        said = Receipt(ours.store, (ours.sequence,))
        key, ids = bench.fleet.keys().to_node, {ours.sequence: ours.id}
        bench.wire.bring(receipts.build(said, key, b"ep-1", ids))
        await until(lambda: bench.uplink.custody.counters.receipted == 1)
        out = [peer.kid, bench.fleet.gateway.kid]
        made = RevocationList.issue(bench.fleet.root, number=1, issued=NOW, kids=out)
        bench.wire.bring(RevocationMessage(made).encode())
        await until(lambda: "packets are sent again" in caplog.text)
        for _ in range(200):
            if await bench.disk(lambda: bench.inbox.revocation_number) == 1:
                break
            await asyncio.sleep(0.005)
        assert not await bench.disk(bench.inbox.has, packet)
        assert (await bench.disk(bench.outbox.stats)).open_packets == 1
        bench.wire.bring(receipts.build(said, key, b"ep-1", ids))
        await bench.refused("mac")
        assert (await bench.disk(bench.outbox.stats)).held_packets == 0


async def test_a_gateway_that_missed_the_list_is_given_it() -> None:
    async with running(Bench()) as bench:
        made = RevocationList.issue(bench.fleet.root, number=3, issued=NOW, kids=[b"outcast!"])
        bench.wire.bring(RevocationMessage(made).encode())
        await until(lambda: bench.membership.revocation is not None)
        await bench.greet(revocation=2)
        await until(lambda: bench.said()["RevocationMessage"] == 1)
        bench.asking.hello()
        hellos = bench.said()["Hello"]
        await until(lambda: bench.said()["Hello"] > hellos)
        await bench.greet(revocation=3)
        await asyncio.sleep(0.05)
        assert bench.said()["RevocationMessage"] == 1


# --- damage --------------------------------------------------------------------------------


def damage(bench: Bench, what: str) -> None:
    def damaged(*_: object, **__: object) -> None:
        raise StoreCorrupt("damaged")

    vars(bench.inbox)[what] = damaged


@pytest.mark.parametrize(
    ("what", "bring"),
    [
        ("put", lambda bench, peer: packet_of(peer).raw),
        ("keep_credential", lambda bench, _: bench.fleet.vouch(Identity.generate()).raw),
    ],
)
async def test_damage_is_for_nobody_to_pass_over(
    what: str, bring: Callable[[Bench, Identity], bytes]
) -> None:
    bench = Bench()
    peer = Identity.generate()
    bench.membership.accept(bench.fleet.vouch(peer).raw, NOW)
    damage(bench, what)
    await bench.wire.start()
    await asyncio.sleep(0.01)
    bench.wire.bring(bring(bench, peer))
    with pytest.raises(StoreCorrupt):
        await asyncio.wait_for(bench.inbound.run(), 5)
    await bench.wire.close()
    await bench.disk(bench.inbox.close)
    await bench.disk(bench.outbox.close)
    bench.disk.close()
