"""At the way in: nodes that flood, and nodes that sign what nobody can read."""

from __future__ import annotations

from gateway.intake import PILED, Intake
from qis_edge.core import cbor, cose
from qis_edge.core.errors import Reason
from qis_edge.core.identity import Identity
from qis_edge.core.packet import AAD, Packet
from tests.gateway.kit import packet_of, until
from tests.gateway.test_intake import Bench, running


async def test_while_frames_pile_up_others_lose_nothing_to_who_floods() -> None:
    bench, honest = Bench(), Identity.generate()
    bench.desk.known[honest.kid] = honest.public
    bench.hold.clear()  # a disk that is slow
    async with running(bench):
        await until(lambda: bench.wire.up)
        for number in range(40 * PILED):
            kid = honest.kid if number % 16 == 7 else bench.node.kid
            raw = packet_of(honest if kid == honest.kid else bench.node, number).raw
            bench.bring(raw, kid)
            if number == 2 * PILED:
                bench.hold.set()
        await until(lambda: len(bench.done) == 40 * PILED, 60)
    taken = [packet.kid for batch in bench.taken for packet in batch]
    assert taken.count(honest.kid) == 40 * PILED // 16
    assert taken.count(bench.node.kid) < 40 * PILED * 15 // 16 / 2
    passed_over = bench.counts.refused[Reason.FLOODED.label]
    assert passed_over == 40 * PILED - len(taken)
    # It is seen whose they were, in `qis-gateway nodes`.
    assert set(bench.desk.blamed) == {(bench.node.kid, Reason.FLOODED)}


async def test_what_is_signed_and_unreadable_is_told_and_nothing_else_is() -> None:
    bench = Bench()
    told: list[tuple[bytes, Reason]] = []

    def unreadable(packet: Packet, reason: Reason) -> None:
        told.append((packet.id, reason))

    bench.intake = Intake(bench.wire, bench.desk, bench._take, bench.counts, unreadable=unreadable)
    stranger = Identity.generate()
    async with running(bench):
        await until(lambda: bench.wire.up)
        good, bad = packet_of(bench.node, 1), damaged(bench.node, 2)
        for raw in (
            bad,
            bad[:-1] + bytes([bad[-1] ^ 1]),  # whoever made this
            damaged(stranger, 3),
            good.raw,
        ):
            bench.bring(raw)
        await until(lambda: len(bench.done) == 4)
    assert [one.id for batch in bench.taken for one in batch] == [good.id]
    assert len(told) == 1
    assert bench.counts.refused[told[0][1].label] == 3


def damaged(who: Identity, sequence: int) -> bytes:
    """A packet whose signature is good, and whose columns say more than they have."""
    whole = packet_of(who, sequence)
    payload = cbor.loads(cose.open_sign1(whole.raw, 512, "packet").payload, "payload")
    payload[5] = [10_000, *payload[5][1:]]
    return cose.sign1(who, cbor.dumps(payload), AAD)
