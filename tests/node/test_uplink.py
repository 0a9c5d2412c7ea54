"""From the outbox into custody: what is sent, and what an answer changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from qis_edge.clock import SystemClock
from qis_edge.core import receipt as receipts
from qis_edge.core.credential import GATEWAY, RevocationList, TrustStore
from qis_edge.core.domain import Domain
from qis_edge.core.errors import Reason, StoreCorrupt, StoreError
from qis_edge.core.filling import Filling
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import unpack
from qis_edge.core.priority import Priority
from qis_edge.core.receipt import Receipt, ReceiptMessage
from qis_edge.node import uplink
from qis_edge.node.gateways import Gateways
from qis_edge.node.timekeeping import Timekeeper
from qis_edge.node.uplink import Uplink
from qis_edge.store.outbox import Outbox
from qis_edge.worker import Disk
from tests.node.kit import ADDRESS, HOUR, NOW, Fleet, Wire, until

EPOCH = b"ep-1"


class Bench:
    """An uplink between an outbox in memory and a wire."""

    def __init__(self, *, copies: int = 1, window: int = 8, others: int = 0) -> None:
        self.fleet = Fleet()
        self.trust: TrustStore = self.fleet.trust()
        self.others = [Identity.generate() for _ in range(others)]
        for other in self.others:
            made = self.fleet.vouch(other, (GATEWAY,), self.fleet.root)
            self.trust.add(made.raw, NOW)
        self.gateways = Gateways(self.fleet.me, self.trust)
        self.wire = Wire(self.fleet.me.kid)
        self.outbox = Outbox.in_memory(self.fleet.me.public, copies=copies)
        self.disk = Disk("test")
        self.uplink = Uplink(
            self.wire,
            self.outbox,
            self.disk,
            self.fleet.me,
            self.gateways,
            Domain.load("weather"),
            Timekeeper(SystemClock(), 0, synchronised=False),
            window=window,
            filling=Filling((0.0, 0.0, 0.0), window=HOUR),
            copies=copies,
        )

    def greeted(self) -> None:
        everybody = (self.fleet.gateway, *self.others)
        self.gateways.learn({one.kid: EPOCH for one in everybody}, None)

    async def append(self, count: int, *, each: bool = True) -> None:
        for number in range(count):
            where = number.to_bytes(32) if each else ADDRESS
            outcome = Outcome(NOW + number * HOUR, results={"temperature": 1.0})
            await self.disk(self.outbox.append, outcome, where)
        self.uplink.poke()

    def receipt(self, gateway: Identity | None = None, epoch: bytes = EPOCH, **of: Any) -> Any:
        """A receipt for what was sent: ``held``, ``refused`` or ``later``; all is held."""
        packets = {packet.sequence: packet for packet in map(unpack, self.wire.sent)}
        store = next(iter(packets.values())).store
        said = Receipt(store, **(of or {"held": tuple(sorted(packets))}))
        ids = {sequence: packet.id for sequence, packet in packets.items()}
        key = self.fleet.keys(gateway).to_node
        return receipts.parse(receipts.build(said, key, epoch, ids))

    async def answered(self, message: ReceiptMessage) -> list[Reason]:
        return [one.reason for one in await self.uplink.receipted([message])]

    async def held(self) -> int:
        return (await self.disk(self.outbox.stats)).held_packets


@contextlib.asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    await bench.wire.start()
    task = asyncio.create_task(bench.uplink.run())
    try:
        yield bench
    finally:
        if task.done():
            task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bench.wire.close()
        await bench.disk(bench.outbox.close)
        bench.disk.close()


async def steps(bench: Bench, seconds: float) -> int:
    """How often the uplink looks at what is to be done in some time."""
    count = 0
    step = bench.uplink._step

    async def counting() -> float | None:
        nonlocal count
        count += 1
        return await step()

    vars(bench.uplink)["_step"] = counting
    bench.uplink.poke()
    await asyncio.sleep(seconds)
    return count


async def test_nothing_is_packed_before_a_gateway_greets() -> None:
    async with running(Bench()) as bench:
        await bench.append(3)
        await asyncio.sleep(0.05)
        assert bench.wire.sent == []
        assert (await bench.disk(bench.outbox.stats)).packets == 0
        bench.greeted()
        bench.uplink.poke()
        await until(lambda: len(bench.wire.sent) == 3)


async def test_a_receipt_ends_it() -> None:
    async with running(Bench()) as bench:
        bench.greeted()
        await bench.append(5)
        await until(lambda: len(bench.wire.sent) == 5)
        assert await bench.answered(bench.receipt()) == []
        assert await bench.held() == 5
        assert len(bench.uplink.custody) == 0
        assert not bench.uplink._offered
        assert await steps(bench, 0.1) <= 3


async def test_forged_receipts_change_nothing() -> None:
    async with running(Bench()) as bench:
        bench.greeted()
        await bench.append(2)
        await until(lambda: len(bench.wire.sent) == 2)
        assert await bench.answered(bench.receipt(Identity.generate())) == [Reason.MAC]
        assert await bench.answered(bench.receipt(epoch=b"old!")) == [Reason.MAC]
        assert await bench.held() == 0
        assert len(bench.uplink.custody) == 2


async def test_a_receipt_of_what_was_never_sent_costs_one_look() -> None:
    async with running(Bench()) as bench:
        bench.greeted()
        said = Receipt(b"none", tuple(range(500)))
        ids = dict.fromkeys(range(500), bytes(32))
        raw = receipts.build(said, bench.fleet.keys().to_node, EPOCH, ids)
        looks = 0
        find = bench.outbox.packet_id

        def counting(store: bytes, sequence: int) -> bytes | None:
            nonlocal looks
            looks += 1
            return find(store, sequence)

        vars(bench.outbox)["packet_id"] = counting
        assert await bench.answered(receipts.parse(raw)) == [Reason.MAC]
        assert looks == 1


async def test_refused_for_good_is_said_once_for_all(caplog: pytest.LogCaptureFixture) -> None:
    async with running(Bench()) as bench:
        bench.greeted()
        await bench.append(5)
        await until(lambda: len(bench.wire.sent) == 5)
        sequences = tuple(sorted(unpack(raw).sequence for raw in bench.wire.sent))
        await bench.answered(bench.receipt(refused=((Reason.SCOPE, sequences),)))
        assert (await bench.disk(bench.outbox.stats)).refused_packets == 5
        assert not bench.uplink._offered
        (said,) = [one.getMessage() for one in caplog.records]
        assert "refused 5 packets" in said
        assert "scope" in said


async def test_later_is_later() -> None:
    async with running(Bench()) as bench:
        bench.greeted()
        await bench.append(1)
        await until(lambda: len(bench.wire.sent) == 1)
        (sequence,) = [unpack(raw).sequence for raw in bench.wire.sent]
        await bench.answered(bench.receipt(later=((600, (sequence,)),)))
        assert bench.uplink.custody.counters.postponed == 1
        assert len(bench.uplink.custody) == 1


async def test_a_gateway_that_is_revoked_in_the_middle_makes_no_turmoil() -> None:
    async with running(Bench()) as bench:
        bench.greeted()
        await bench.append(3)
        await until(lambda: len(bench.wire.sent) == 3)
        fleet = bench.fleet
        made = RevocationList.issue(fleet.root, number=1, issued=NOW, kids=[fleet.gateway.kid])
        bench.trust.apply(made.raw)
        bench.uplink.lost(fleet.gateway.kid)
        assert await steps(bench, 0.2) <= 3
        assert await bench.answered(bench.receipt()) == [Reason.MAC]
        assert await bench.held() == 0


async def test_what_was_under_way_is_sent_again_after_a_reconnection() -> None:
    """Also where the link was down so shortly that nobody saw it."""
    async with running(Bench()) as bench:
        bench.greeted()
        await bench.append(2)
        await until(lambda: len(bench.wire.sent) == 2)
        bench.wire.cut()
        bench.wire.restore()
        await until(lambda: len(bench.wire.sent) == 4)
        assert bench.wire.sent[2:] == bench.wire.sent[:2]


async def test_a_link_that_takes_nothing_is_not_pestered() -> None:
    async with running(Bench()) as bench:
        bench.greeted()
        bench.wire.broken = True
        await bench.append(2)
        assert await steps(bench, 0.2) <= 4
        bench.wire.broken = False
        await until(lambda: len(bench.wire.sent) == 2)


async def test_another_round_begins_at_the_beginning() -> None:
    """Though a page of the last one is under way."""
    bench = Bench(window=2)
    bench.greeted()
    await bench.append(9)
    for _ in range(9):
        await bench.disk(bench.uplink._pack, 1)
    page = bench.outbox.unreceipted
    begun = 0

    def unreceipted(limit: int, after: Any = None) -> Any:
        nonlocal begun
        begun += 1
        if begun == 2:  # while the second page is read, a gateway loses what it held
            bench.uplink.start_over()
        return page(limit, after)

    vars(bench.outbox)["unreceipted"] = unreceipted
    async with running(bench):
        while (await bench.held()) < 9:
            await until(lambda: len(bench.uplink.custody) > 0)
            await bench.answered(bench.receipt())
            bench.wire.sent.clear()
            await until(lambda: bench.wire.sent or not bench.uplink._old)
            if not bench.wire.sent:
                break
        assert await bench.held() == 9


async def test_receipts_that_cannot_be_written_are_as_if_never_said() -> None:
    async with running(Bench()) as bench:
        bench.greeted()
        await bench.append(2)
        await until(lambda: len(bench.wire.sent) == 2)

        def full(*_: object) -> None:
            raise StoreError("full")

        vars(bench.outbox)["receipts"] = full
        assert await bench.answered(bench.receipt()) == []
        assert len(bench.uplink.custody) == 2
        assert bench.disk.trouble == "full"
        del vars(bench.outbox)["receipts"]
        await bench.answered(bench.receipt())
        assert await bench.held() == 2
        assert bench.disk.trouble is None


async def test_a_disk_that_does_not_write_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplink, "AGAIN", 0.02)
    async with running(Bench()) as bench:
        bench.greeted()
        tries = 0
        pack = bench.outbox.pack

        def hesitant(*given: Any, **named: Any) -> Any:
            nonlocal tries
            tries += 1
            if tries < 4:
                raise StoreError("full")
            return pack(*given, **named)

        vars(bench.outbox)["pack"] = hesitant
        await bench.append(2)
        await until(lambda: len(bench.wire.sent) == 2)


async def test_damage_is_for_nobody_to_pass_over() -> None:
    bench = Bench()
    bench.greeted()
    await bench.append(1)

    def damaged(*_: object, **__: object) -> None:
        raise StoreCorrupt("damaged")

    vars(bench.outbox)["pack"] = damaged
    await bench.wire.start()
    with pytest.raises(StoreCorrupt):
        await asyncio.wait_for(bench.uplink.run(), 5)
    await bench.wire.close()
    await bench.disk(bench.outbox.close)
    bench.disk.close()


# --- copies --------------------------------------------------------------------------------


async def test_two_copies_of_which_one_was_told_before_a_restart() -> None:
    async with running(Bench(copies=2, others=1)) as bench:
        bench.greeted()
        await bench.append(3)
        await until(lambda: len(bench.wire.sent) == 3)
        first = bench.receipt()
        # As an earlier run took it in: the outbox knows, custody does not.
        await bench.disk(bench.uplink._believe, [first], bench.gateways.greeted(None))
        await bench.answered(bench.receipt(bench.others[0]))
        assert await bench.held() == 3
        assert len(bench.uplink.custody) == 0
        assert not bench.uplink._offered


async def test_what_cannot_be_kept_track_of_is_not_sent_round_and_round() -> None:
    """128 packets can wait for their second copy at a window of two; there are 200."""
    async with running(Bench(copies=2, others=1, window=2)) as bench:
        bench.greeted()
        await bench.append(200)
        quiet = 0
        while quiet < 50:  # whatever comes is answered by the first gateway alone
            quiet += 1
            if bench.wire.sent:
                await bench.answered(bench.receipt())
                bench.wire.sent.clear()
                quiet = 0
            await asyncio.sleep(0.001)
        stats = await bench.disk(bench.outbox.stats)
        assert stats.open_packets == stats.packets == 200
        counters = bench.uplink.custody.counters
        before = counters.sent + counters.resent
        await asyncio.sleep(0.2)
        assert counters.sent + counters.resent <= before + 2


async def test_what_is_urgent_has_places_of_its_own() -> None:
    async with running(Bench(window=8)) as bench:
        bench.greeted()
        await bench.append(20)
        await until(lambda: len(bench.wire.sent) == 8)
        outcome = Outcome(NOW, results={"temperature": 99.0})
        await bench.disk(partial(bench.outbox.append, outcome, ADDRESS, priority=Priority.URGENT))
        bench.uplink.poke()
        await until(lambda: len(bench.wire.sent) == 9)
        await asyncio.sleep(0.05)
        assert len(bench.wire.sent) == 9
        assert unpack(bench.wire.sent[-1]).fingerprint == ADDRESS
