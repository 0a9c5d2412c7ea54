"""The outbox against a model of a few sets, over whatever order of operations."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qis_edge.core.errors import Reason
from qis_edge.core.packet import Packet
from qis_edge.core.receipt import Receipt
from qis_edge.store import Outbox, Unclocked
from tests.store.kit import ADDRESS, ELSEWHERE, EPOCH, HOUR, ME, T0, conserved, outcome

Key = tuple[bytes, int]
GATEWAYS = st.sampled_from([b"gateway1", b"gateway2"])


class Model(RuleBasedStateMachine):
    """An outcome is known by its number, which is its only result."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "outbox.db"
        self.box = Outbox.open(self.path, ME.public)
        self.made = 0
        self.waiting: set[int] = set()
        self.untimed: set[int] = set()
        self.packets: dict[Key, Packet] = {}
        self.holders: dict[Key, set[bytes]] = {}
        self.refused: set[Key] = set()
        self.replaced: set[Key] = set()

    def teardown(self) -> None:
        self.box.close()
        self.folder.cleanup()

    def numbers(self, packet: Packet) -> set[int]:
        return {int(str(one.results["n"]).removesuffix(".0")) for one in packet.outcomes}

    def open_keys(self) -> set[Key]:
        return {
            key
            for key in self.packets
            if not self.holders[key] and key not in self.refused | self.replaced
        }

    # --- what may happen ---------------------------------------------------------------

    @rule(
        address=st.sampled_from([ADDRESS, ELSEWHERE]),
        priority=st.integers(0, 3),
        ttl=st.sampled_from([24, 48]),
    )
    def append(self, address: bytes, priority: int, ttl: int) -> None:
        number = self.made
        self.box.append(outcome(number, n=number), address, priority=priority, ttl=ttl)
        self.waiting.add(number)
        self.made += 1

    @rule(second=st.integers(0, 10_000))
    def append_unclocked(self, second: int) -> None:
        number = self.made
        self.box.append(
            outcome(number, n=number), ADDRESS, unclocked=Unclocked("boot", float(second))
        )
        known = self.box.boot_offset("boot")
        (self.untimed if known is None else self.waiting).add(number)
        self.made += 1

    @rule()
    def settle(self) -> None:
        self.box.settle("boot", float(T0 - HOUR))
        self.waiting |= self.untimed
        self.untimed = set()

    @rule(limit=st.integers(130, 512), most=st.integers(1, 3))
    def pack(self, limit: int, most: int) -> None:
        for packet in self.box.pack(ME, limit=limit, max_packets=most):
            key = (packet.store, packet.sequence)
            assert key not in self.packets
            assert self.numbers(packet) <= self.waiting
            self.waiting -= self.numbers(packet)
            self.packets[key] = packet
            self.holders[key] = set()

    @precondition(lambda self: self.packets)
    @rule(data=st.data(), gateway=GATEWAYS)
    def hold(self, data: st.DataObject, gateway: bytes) -> None:
        keys = data.draw(st.lists(st.sampled_from(sorted(self.packets)), max_size=4, unique=True))
        for store, sequence in keys:
            self.box.receipt(gateway, EPOCH, Receipt(store, held=(sequence,)))
            if (store, sequence) not in self.replaced:
                self.holders[store, sequence].add(gateway)
                self.refused.discard((store, sequence))

    @precondition(lambda self: self.packets)
    @rule(
        data=st.data(),
        gateway=GATEWAYS,
        reason=st.sampled_from([Reason.BOUNDS, Reason.EQUIVOCATION]),
    )
    def refuse(self, data: st.DataObject, gateway: bytes, reason: Reason) -> None:
        key = data.draw(st.sampled_from(sorted(self.packets)))
        was_open = key in self.open_keys()
        receipt = Receipt(key[0], refused=((reason, (key[1],)),))
        settled = self.box.receipt(gateway, EPOCH, receipt)
        if not was_open:
            assert not settled.refused
        elif (
            reason is Reason.EQUIVOCATION
            and self.box.packet(*key) is None
            and not any(aside.key == key for aside in self.box.aside())
        ):
            self.replaced.add(key)
            self.waiting |= self.numbers(self.packets[key])
        else:
            self.refused.add(key)

    @rule(gateway=GATEWAYS, hours=st.integers(0, 30))
    def resend(self, gateway: bytes, hours: int) -> None:
        since = T0 + hours * HOUR
        self.box.resend(gateway, since=since)
        for key, packet in self.packets.items():
            if packet.last_time >= since:
                self.holders[key].discard(gateway)

    @rule()
    def retry(self) -> None:
        assert self.box.retry() == len(self.refused)
        self.refused = set()

    @rule()
    def restart(self) -> None:
        self.box.close()
        self.box = Outbox.open(self.path, ME.public)

    # --- what always holds -------------------------------------------------------------

    @invariant()
    def everything_is_in_its_place(self) -> None:
        stats = self.box.stats()
        assert conserved(stats)
        assert stats.made == self.made
        assert stats.waiting == len(self.waiting)
        assert stats.untimed == len(self.untimed)
        assert stats.refused_packets == len(self.refused)
        queued = self.box.unreceipted(1000)
        assert {one.key for one in queued} == self.open_keys()
        assert len(queued) == stats.open_packets
        for one in queued:
            assert one.raw == self.packets[one.key].raw
        order = [(-one.priority, one.position[1]) for one in queued]
        assert order == sorted(order)
        shown = {round(float(str(one.results["n"]))) for _, _, one in self.box.waiting(1000)}
        assert shown == self.waiting


Model.TestCase.settings = settings(max_examples=40, stateful_step_count=35, deadline=None)
TestModel = Model.TestCase
