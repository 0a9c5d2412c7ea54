"""Custody: what nodes are told, and that nothing is promised before it is so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway import custodian as module
from gateway import receipting
from gateway.custodian import Custodian
from gateway.intake import Counts
from gateway.post import FEW_ANSWERS, _Letter
from gateway.receipting import Receipting
from gateway.spool import Spool
from qis_edge.core import receipt as receipts
from qis_edge.core.errors import Reason, Refused, StoreCorrupt, StoreError
from qis_edge.core.identity import Identity
from qis_edge.core.packet import Packet
from qis_edge.core.receipt import Receipt, ReceiptMessage
from qis_edge.links.base import down
from qis_edge.worker import Disk
from tests.gateway.kit import CLOCK, HOUR, NOW, Letters, People, packet_of

ENGINE = "sqlite:routing.db"


class Bench:
    def __init__(self, folder: Path, *, routed: bool = False) -> None:
        self.people = People(folder)
        self.node = self.people.let_in(Identity.generate())
        self.spool = Spool(folder / "spool.db", engines=[ENGINE])
        self.disk = Disk("test")
        self.post = Letters()
        self.counts = Counts()
        self.arrived = 0
        self.accepted: list[bytes] = []
        self.gone: set[bytes] = set()
        self.teller = Receipting(self.post, self.spool.epoch, self._keys_of, routed=routed)
        self.custodian = Custodian(
            self.spool,
            self.disk,
            self.teller,
            CLOCK,
            self.counts,
            arrived=self._arrived,
            accepted=lambda kid, now, count: self.accepted.append(kid),
        )

    def _keys_of(self, kid: bytes) -> receipts.MacKeys:
        if kid != self.node.kid or kid in self.gone:
            raise Refused(Reason.UNKNOWN_KEY, "kid")
        return self.people.keys(self.node)

    def _arrived(self) -> None:
        self.arrived += 1

    async def take(self, *packets: Packet) -> None:
        await self.custodian.take(packets)

    def told(self, *of: Packet) -> list[Receipt]:
        """What the node has been told, each checked as the node does; and forgets it."""
        ids = {packet.sequence: packet.id for packet in of}
        found = []
        for message in self.post.messages(self.node.kid):
            assert isinstance(message, ReceiptMessage)
            key = self.people.keys(self.node).to_node
            receipts.verify(message, key, self.spool.epoch, ids.get)
            found.append(message.receipt)
        self.post.letters.clear()
        return found

    def close(self) -> None:
        self.disk.close()
        self.spool.close()
        self.people.fleet.close()


Make = Callable[..., Bench]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Bench] = []

    def maker(**how: bool) -> Bench:
        made.append(Bench(tmp_path, **how))
        return made[-1]

    yield maker
    for bench in made:
        bench.close()


async def test_what_is_new_and_what_is_known_is_held(make: Make) -> None:
    bench = make()
    packets = [packet_of(bench.node, sequence) for sequence in (1, 2, 5)]
    await bench.take(*packets)
    assert [one.held for one in bench.told(*packets)] == [(1, 2, 5)]
    assert (bench.counts.new, bench.arrived) == (3, 1)
    await bench.take(*packets)
    assert [one.held for one in bench.told(*packets)] == [(1, 2, 5)]
    assert (bench.counts.known, bench.arrived) == (3, 1)
    assert bench.accepted == [bench.node.kid] * 6


async def test_what_cannot_go_out_yet_is_said_together(make: Make) -> None:
    """While the post has enough to send, receipts gather; one then names them all."""
    bench = make()
    packets = [packet_of(bench.node, sequence) for sequence in range(1, 9)]
    bench.post._answers.update({number: _Letter(b"", down(b"")) for number in range(FEW_ANSWERS)})
    for packet in packets:
        await bench.take(packet)
    assert bench.told() == []
    bench.post._answers.popitem()
    assert bench.post.more is not None
    bench.post.more()
    assert [one.held for one in bench.told(*packets)] == [tuple(range(1, 9))]
    bench.post.more()
    assert bench.told() == []


async def test_what_is_never_said_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipting, "MAX_OWED", 4)
    bench = make()
    bench.post._answers.update({number: _Letter(b"", down(b"")) for number in range(FEW_ANSWERS)})
    old = [packet_of(bench.node, sequence) for sequence in range(3)]
    new = [packet_of(bench.node, sequence, store=b"efgh") for sequence in range(3)]
    await bench.take(*old)
    await bench.take(*new)
    bench.post._answers.clear()
    bench.teller.tell()
    assert [(one.store, one.held) for one in bench.told(*new)] == [(b"efgh", (0, 1, 2))]


async def test_each_store_is_spoken_of_apart(make: Make) -> None:
    bench = make()
    one, two = packet_of(bench.node, 1), packet_of(bench.node, 1, store=b"efgh")
    await bench.take(one, two)
    stores = set()
    for letter in bench.post.messages():
        assert isinstance(letter, ReceiptMessage)
        stores.add(letter.receipt.store)
    assert stores == {b"abcd", b"efgh"}


async def test_nothing_is_said_before_the_commit(make: Make) -> None:
    bench = make()
    admit, said_before = bench.spool.admit, -1

    def admitting(batch: object) -> object:
        nonlocal said_before
        said_before = len(bench.post.letters)
        return admit(batch)  # type: ignore[arg-type] # passed on

    vars(bench.spool)["admit"] = admitting
    await bench.take(packet_of(bench.node))
    assert said_before == 0
    assert len(bench.post.letters) == 1


async def test_stale_is_held_and_the_future_is_for_later(make: Make) -> None:
    bench = make()
    stale = packet_of(bench.node, 1, at=NOW - 100 * HOUR, ttl=1)
    soon = packet_of(bench.node, 2, at=NOW + 3000)
    far = packet_of(bench.node, 3, at=NOW + 100 * HOUR)
    await bench.take(stale, soon, far)
    (said,) = bench.told(stale, soon, far)
    assert said.held == (1,)
    assert said.later == ((3000, (2,)), (module.LONGEST_LATER, (3,)))
    assert (bench.counts.stale, bench.counts.later, bench.counts.new) == (1, 2, 1)
    assert bench.spool.pending(ENGINE).entries == ()  # it is not routed


async def test_two_contents_under_one_number(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    bench = make()
    one, two = packet_of(bench.node, 1, value=1.0), packet_of(bench.node, 1, value=2.0)
    await bench.take(one)
    bench.told(one)
    for _ in range(5):
        await bench.take(two)
        (said,) = bench.told(two)
        assert (said.held, said.refused) == ((), ((Reason.EQUIVOCATION, (1,)),))
    assert bench.counts.refused["equivocation"] == 5
    assert caplog.text.count("signed two contents") == 1  # and not each time that it tries


async def test_two_contents_in_one_batch_are_each_named_by_their_own_id(make: Make) -> None:
    bench = make()
    one, two = packet_of(bench.node, 1, value=1.0), packet_of(bench.node, 1, value=2.0)
    await bench.take(one, two)
    first, second = bench.post.letters
    bench.post.letters[:] = [first]
    assert [(said.held, said.refused) for said in bench.told(one)] == [((1,), ())]
    bench.post.letters[:] = [second]
    refused = ((Reason.EQUIVOCATION, (1,)),)
    assert [(said.held, said.refused) for said in bench.told(two)] == [((), refused)]


# --- routed --------------------------------------------------------------------------------


async def test_routed_waits_for_the_engines(make: Make) -> None:
    bench = make(routed=True)
    packets = [packet_of(bench.node, sequence) for sequence in (1, 2, 3)]
    await bench.take(*packets)
    assert bench.told() == []
    bench.teller.routed_through(2)
    assert [one.held for one in bench.told(*packets)] == [(1, 2)]
    bench.teller.routed_through(3)
    assert [one.held for one in bench.told(*packets)] == [(3,)]
    assert bench.teller.owed == 0
    await bench.take(*packets)  # again: the engines have them
    assert [one.held for one in bench.told(*packets)] == [(1, 2, 3)]


async def test_repeats_while_the_engines_are_away_cost_nothing(make: Make) -> None:
    bench = make(routed=True)
    packets = [packet_of(bench.node, sequence) for sequence in (1, 2, 3)]
    for _ in range(20):
        await bench.take(*packets)
    assert bench.teller.owed == 3
    bench.teller.routed_through(3)
    assert [one.held for one in bench.told(*packets)] == [(1, 2, 3)]


async def test_what_is_owed_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipting, "MAX_OWED", 4)
    bench = make(routed=True)
    packets = [packet_of(bench.node, sequence) for sequence in range(1, 11)]
    await bench.take(*packets)
    assert bench.teller.owed == 4
    bench.teller.routed_through(10)
    assert [one.held for one in bench.told(*packets)] == [(7, 8, 9, 10)]
    await bench.take(packets[0])  # who was forgotten asks again
    assert [one.held for one in bench.told(*packets)] == [(1,)]


async def test_who_is_gone_gets_no_receipt(make: Make) -> None:
    bench = make(routed=True)
    await bench.take(packet_of(bench.node))
    bench.gone.add(bench.node.kid)
    bench.teller.routed_through(1)
    assert bench.post.letters == []


# --- disks ---------------------------------------------------------------------------------


async def test_what_cannot_be_written_is_for_later(make: Make) -> None:
    bench = make()

    def full(_: object) -> None:
        raise StoreError("full")

    vars(bench.spool)["admit"] = full
    packet = packet_of(bench.node)
    await bench.take(packet)
    (said,) = bench.told(packet)
    assert (said.held, said.later) == ((), ((module.FAULT_LATER, (1,)),))
    assert (bench.counts.later, bench.counts.new, bench.arrived) == (1, 0, 0)
    del vars(bench.spool)["admit"]
    await bench.take(packet)
    assert [one.held for one in bench.told(packet)] == [(1,)]


async def test_a_full_spool_is_said_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    bench = make()
    first = packet_of(bench.node, 1)
    await bench.take(first)
    bench.told(first)
    bench.spool.budget = 0
    for sequence in (2, 3):
        packet = packet_of(bench.node, sequence)
        await bench.take(packet)
        (said,) = bench.told(packet)
        assert said.later == ((module.FULL_LATER, (sequence,)),)
    assert caplog.text.count("the spool is full") == 1
    bench.spool.advance(ENGINE, 1)
    while bench.spool.trim(NOW):
        pass
    await bench.take(packet)
    assert [one.held for one in bench.told(packet)] == [(3,)]


async def test_damage_is_for_nobody_to_pass_over(make: Make) -> None:
    bench = make()

    def damaged(_: object) -> None:
        raise StoreCorrupt("damaged")

    vars(bench.spool)["admit"] = damaged
    with pytest.raises(StoreCorrupt):
        await bench.take(packet_of(bench.node))
    assert bench.post.letters == []
