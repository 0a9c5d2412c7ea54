"""Receipts that are asked for: what is held, refused and put off, and to whom it is said."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway import answering as module
from gateway.answering import Answering
from gateway.custodian import FULL_LATER, Custodian
from gateway.desk import Pairs
from gateway.intake import Counts, Intake
from gateway.spool import Intake as Admit
from gateway.spool import Spool
from qis_edge.core.credential import NODE
from qis_edge.core.errors import Reason, StoreCorrupt, StoreError
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.messages import Message
from qis_edge.core.packet import Packet
from qis_edge.core.receipt import Receipt
from qis_edge.links.base import Direction, Polled, Question, Received
from qis_edge.worker import Disk
from tests.gateway.kit import CLOCK, NOW, People, packet_of, until
from tests.gateway.mesh_kit import Air, believed

ENGINE = "sqlite:routing.db"


class Desk:
    """Who is who; nothing else is said to it here."""

    def __init__(self, people: People) -> None:
        self._fleet = people.fleet

    def node_key(self, kid: bytes) -> PublicKey:
        return self._fleet.resolve(kid, NOW, NODE)

    async def handle(self, message: Message, received: Received) -> None:
        raise AssertionError(message)

    def refused(self, kid: bytes | None, refusal: object) -> None:
        pass


class Bench:
    def __init__(self, folder: Path, *, routed: bool = False) -> None:
        self.people = People(folder)
        self.node = self.people.let_in(Identity.generate())
        self.spool = Spool(folder / "spool.db", engines=[ENGINE])
        self.disk = Disk("test")
        self.air = Air()
        self.counts = Counts()
        desk = Desk(self.people)
        keys_of = Pairs(self.people.gateway, self.people.fleet)
        self.teller = Answering(
            self.air, self.spool, self.disk, desk.node_key, keys_of, routed=routed
        )
        self.custodian = Custodian(
            self.spool,
            self.disk,
            self.teller,
            CLOCK,
            self.counts,
            arrived=lambda: None,
            accepted=lambda *_: None,
        )
        self.intake = Intake(self.air, desk, self.custodian.take, self.counts, self.teller.ask)

    async def take(self, *packets: Packet) -> None:
        await self.custodian.take(packets)

    async def ask(self, *sequences: int, who: bytes = b"", store: bytes = b"abcd") -> list[bytes]:
        """The receipts that answer a question."""
        before = len(self.air.replies)
        self.teller.ask(Question(((who or self.node.kid, store),), sequences))
        await until(lambda: len(self.air.replies) > before)
        return self.air.replies[-1][1]

    async def told(self, *of: Packet, ask: tuple[int, ...] = ()) -> list[Receipt]:
        """What a node with these packets is told of them."""
        sealed = await self.ask(*(ask or sorted({packet.sequence for packet in of})))
        return believed(sealed, self.people.keys(self.node), self.spool.epoch, *of)

    def close(self) -> None:
        self.disk.close()
        self.spool.close()
        self.people.fleet.close()


@contextlib.asynccontextmanager
async def running(folder: Path, **how: Any) -> AsyncIterator[Bench]:
    bench = Bench(folder, **how)
    assert isinstance(bench.air, Polled)
    await bench.air.start()
    tasks = [asyncio.create_task(one) for one in (bench.teller.run(), bench.intake.run())]
    try:
        yield bench
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await bench.air.close()
        bench.close()


# --- held ----------------------------------------------------------------------------------


async def test_what_is_held_is_said_when_asked_and_not_before(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        packets = [packet_of(bench.node, sequence) for sequence in (1, 2, 5)]
        await bench.take(*packets)
        assert bench.air.sent == []
        assert bench.air.replies == []
        (said,) = await bench.told(*packets, ask=(1, 2, 3, 4, 5, 6))
        assert (said.held, said.refused, said.later) == ((1, 2, 5), (), ())
        assert bench.air.forgotten == []


async def test_all_that_came_before_the_question_is_in_the_answer(tmp_path: Path) -> None:
    """Over the link, in one batch, whatever the disk takes."""
    async with running(tmp_path) as bench:
        packets = [packet_of(bench.node, sequence) for sequence in range(1, 31)]
        await until(lambda: bench.air.up)
        for packet in packets:
            bench.air.deliver(packet.raw, Direction.UP, None)
        bench.air.ask(bench.node, *range(1, 33))
        await until(lambda: bench.air.replies)
        sealed = bench.air.replies[0][1]
        (said,) = believed(sealed, bench.people.keys(bench.node), bench.spool.epoch, *packets)
        assert said.held == tuple(range(1, 31))
        assert bench.counts.frames == 30


async def test_what_came_over_another_link_is_held_too(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        packet = packet_of(bench.node, 7)
        bench.spool.admit([Admit(packet, NOW)])
        assert [said.held for said in await bench.told(packet)] == [(7,)]


async def test_nothing_is_said_of_what_never_came(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        assert await bench.ask(1, 2, 3) == []
        await bench.take(packet_of(bench.node, 1))
        assert await bench.ask(1, store=b"efgh") == []
        assert await bench.ask(1, who=b"nobody!!") == []


async def test_who_is_out_is_answered_with_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        packet = packet_of(bench.node)
        await bench.take(packet)
        assert await bench.told(packet)
        bench.people.fleet.revoke([bench.node.kid], bench.people.root, NOW)
        assert await bench.ask(1) == []


async def test_what_was_trimmed_is_named_by_the_packet_at_hand(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        packet = packet_of(bench.node)
        bench.spool.admit([Admit(packet, NOW)])
        bench.spool.advance(ENGINE, 1)
        while bench.spool.trim(NOW + 10**9):
            pass
        assert await bench.ask(1) == []  # what it was is not known any more …
        await bench.take(packet)  # … until it comes again
        assert [said.held for said in await bench.told(packet)] == [(1,)]


async def test_an_answer_keeps_within_its_size(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        packets = [packet_of(bench.node, 1000 * number) for number in range(1, 65)]
        await bench.take(*packets)
        sealed = await bench.ask(*(packet.sequence for packet in packets))
        assert len(sealed) > 1
        assert max(map(len, sealed)) <= module.RECEIPT
        said = believed(sealed, bench.people.keys(bench.node), bench.spool.epoch, *packets)
        assert sum(len(one.held) for one in said) == 64


# --- refused, and put off ------------------------------------------------------------------


async def test_two_contents_each_have_a_receipt_of_their_own(tmp_path: Path) -> None:
    """The one who has the other content believes what is said of the rest, too."""
    async with running(tmp_path) as bench:
        rest = [packet_of(bench.node, sequence) for sequence in (1, 2)]
        one, two = packet_of(bench.node, 3, value=1.0), packet_of(bench.node, 3, value=2.0)
        await bench.take(*rest, one)
        await bench.take(two)
        said = await bench.told(*rest, one)
        assert [(each.held, each.refused) for each in said] == [((1, 2), ()), ((3,), ())]
        said = await bench.told(*rest, two)
        refused = ((Reason.EQUIVOCATION, (3,)),)
        assert [(each.held, each.refused) for each in said] == [((1, 2), ()), ((), refused)]


async def test_what_is_put_off_is_to_be_handed_up_again(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        packet, soon = packet_of(bench.node, 1), packet_of(bench.node, 2, at=NOW + 3000)
        admit = bench.spool.admit

        def full(_: object) -> None:
            raise StoreError("full")

        vars(bench.spool)["admit"] = full
        await bench.take(packet, soon)
        assert bench.air.forgotten == [soon.id, packet.id]
        (said,) = await bench.told(packet, soon)
        assert said.held == ()
        assert {group: seconds for seconds, group in said.later} == {
            (1,): module.LEAST_LATER,
            (2,): 3000,
        }
        vars(bench.spool)["admit"] = admit
        await bench.take(packet)
        (said,) = await bench.told(packet)
        assert (said.held, said.later) == ((1,), ())


async def test_while_the_spool_is_full_nodes_are_asked_to_wait(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.take(packet_of(bench.node, 1))
        bench.spool.budget = 0
        packet = packet_of(bench.node, 2)
        await bench.take(packet)
        (said,) = await bench.told(packet)
        assert said.later == ((FULL_LATER, (2,)),)


async def test_when_it_was_to_come_again_nothing_is_said_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as bench:
        packet = packet_of(bench.node, 1)
        bench.teller.later(packet, 100)
        assert await bench.told(packet)
        monkeypatch.setattr(module, "LEAST_LATER", 0)
        bench.teller.later(packet, 0)
        assert await bench.ask(1) == []


# --- routed --------------------------------------------------------------------------------


async def test_routed_waits_a_little_for_the_engines(tmp_path: Path) -> None:
    async with running(tmp_path, routed=True) as bench:
        packets = [packet_of(bench.node, sequence) for sequence in (1, 2)]
        await bench.take(*packets)
        asked = asyncio.create_task(bench.told(*packets))
        await asyncio.sleep(0.05)
        bench.teller.routed_through(1)
        await asyncio.sleep(0.05)
        assert not asked.done()
        bench.teller.routed_through(2)
        assert [said.held for said in await asked] == [(1, 2)]


async def test_routed_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    async with running(tmp_path, routed=True) as bench:
        packets = [packet_of(bench.node, sequence) for sequence in (1, 2)]
        await bench.take(*packets)
        bench.teller.routed_through(1)
        (said,) = await bench.told(*packets)
        assert (said.held, said.later) == ((1,), ((module.ROUTED_LATER, (2,)),))
        assert bench.air.forgotten == []  # the spool has it
        bench.teller.routed_through(2)
        assert [said.held for said in await bench.told(*packets)] == [(1, 2)]


# --- bounds --------------------------------------------------------------------------------


async def test_a_question_is_work_within_bounds(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        looked: list[int] = []
        ids = bench.spool.ids

        def looking(kid: bytes, store: bytes, sequences: Any) -> Any:
            looked.append(len(sequences))
            return ids(kid, store, sequences)

        vars(bench.spool)["ids"] = looking
        stores = tuple((bench.node.kid, number.to_bytes(4)) for number in range(100))
        bench.teller.ask(Question(stores, tuple(range(10_000))))
        await until(lambda: bench.air.replies)
        assert looked == [module.MAX_SEQUENCES] * module.MAX_STORES


async def test_questions_that_wait_are_few(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for number in range(100):
        bench.teller.ask(Question(((bench.node.kid, b"abcd"),), (number,)))
    assert bench.teller.dropped == 100 - module.MAX_QUESTIONS
    running = asyncio.create_task(bench.teller.run())
    await until(lambda: len(bench.air.replies) == module.MAX_QUESTIONS)
    assert bench.air.replies[-1][0].sequences == (99,)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    bench.close()


async def test_what_is_remembered_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_DECISIONS", 3)
    monkeypatch.setattr(module, "MAX_ORIGINS", 2)
    bench = Bench(tmp_path)
    for store in (b"aaaa", b"bbbb", b"cccc"):
        for sequence in range(10):
            bench.teller.later(packet_of(bench.node, sequence, store=store), 100)
    known = bench.teller._decisions._of
    assert list(known) == [(bench.node.kid, b"bbbb"), (bench.node.kid, b"cccc")]
    assert [[sequence for sequence, _ in one] for one in known.values()] == [[7, 8, 9]] * 2
    bench.close()


# --- disks ---------------------------------------------------------------------------------


async def test_where_the_disk_does_not_read_nothing_is_said(tmp_path: Path) -> None:
    """An empty answer would have everything sent again."""
    async with running(tmp_path) as bench:
        packet = packet_of(bench.node)
        await bench.take(packet)

        def broken(*_: object) -> None:
            raise StoreError("cannot be read")

        vars(bench.spool)["ids"] = broken
        bench.teller.ask(Question(((bench.node.kid, b"abcd"),), (1,)))
        await asyncio.sleep(0.05)
        assert bench.air.replies == []
        del vars(bench.spool)["ids"]
        assert [said.held for said in await bench.told(packet)] == [(1,)]


async def test_damage_is_for_nobody_to_pass_over(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    def damaged(*_: object) -> None:
        raise StoreCorrupt("damaged")

    vars(bench.spool)["ids"] = damaged
    bench.teller.ask(Question(((bench.node.kid, b"abcd"),), (1,)))
    with pytest.raises(StoreCorrupt):
        await asyncio.wait_for(bench.teller.run(), 5)
    bench.close()
