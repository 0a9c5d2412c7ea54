"""What strangers, hostile brokers and foreign gateways can do: nothing but be counted."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.routing import EVERYTHING
from gateway.station import Station
from qis_edge.core import receipt as receipts
from qis_edge.core.credential import GATEWAY, ISSUER, NODE, issue
from qis_edge.core.errors import Refused
from qis_edge.core.identity import Identity
from qis_edge.core.messages import Greeting, RevocationMessage, Wanted
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import pack, unpack
from qis_edge.core.receipt import Receipt, mac_keys
from qis_edge.links.base import UP, down, peers
from qis_edge.node.runtime import Node
from qis_edge.testing.memory import Faults, MemoryMedium
from tests.loop.site import (
    EPOCH,
    HOUR,
    YEAR,
    Site,
    drained,
    made_and_held,
    outbox_of,
    peers_of,
    site,
    spool_of,
    stats_of,
)

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "packets.json").read_text())
SIGNER = Identity.from_seed(bytes.fromhex(VECTORS["seed"]))
ADDRESS = bytes(range(32))


class Here:
    """A joined node, its gateway, and the medium between them."""

    def __init__(self, place: Site, station: Station, node: Node) -> None:
        assert place.medium is not None
        self.place, self.station, self.node, self.medium = place, station, node, place.medium
        self.epoch = station.spool.epoch

    async def quiet(self) -> None:
        """No more outcomes, and everything in custody."""
        await drained(self.place, self.node)

    def member(self, identity: Identity, name: str, expires: int = 0) -> None:
        """Let a key into the fleet."""
        credential = issue(
            self.station.identity,
            subject=name,
            key=identity.public,
            scope=NODE,
            expires=expires or int(time.time()) + YEAR,
            serial=b"\x00\x00\x00\x07",
        )
        self.station.fleet.add(credential.raw, None)

    def send(self, raw: bytes, claimed: bytes | None) -> None:
        """A frame to the gateway on the topic of some key."""
        self.medium.inject(raw, UP, claimed)

    async def counted(self, reason: str, times: int = 1) -> None:
        """Wait until the gateway has refused so many frames for this reason."""
        counts = self.station.counts.refused
        await self.place.wait(f"{reason} ({dict(counts)})", lambda: counts[reason] >= times)

    async def routed(self) -> set[bytes]:
        """Ids of the packets that the routing layer holds."""
        await self.place.wait(
            "routing",
            lambda: self.station.spool.routed_through() >= spooled(self.station),
        )
        found = await self.station.engines[0].query(EVERYTHING, limit=10_000)
        return {unpack(entry.raw).id for entry in found}


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    async with site(tmp_path, MemoryMedium(Faults())) as place:
        station, node = place.station(), place.node("ewr")
        place.start(station, node)
        await place.join(station, node)
        await place.wait("custody", lambda: made_and_held(node)[1] >= 3)
        station.counts.refused.clear()  # of its first hello, before it had joined
        yield Here(place, station, node)


def spooled(station: Station) -> int:
    with spool_of(station) as spool:
        return spool.status().packets


def held_of(station: Station, kid: bytes) -> list[int]:
    """The sequences of a node's store ``abcd`` that a gateway holds."""
    with spool_of(station) as spool:
        return list(spool.held(kid, b"abcd"))


def packet(identity: Identity, sequence: int = 1, **changes: Any) -> bytes:
    given: dict[str, Any] = {"time": EPOCH, "ttl": 24 * 7, "store": b"abcd", **changes}
    return pack(
        [Outcome(given["time"], results={"temperature": given.get("value", 1.0)})],
        identity=identity,
        fingerprint=ADDRESS,
        store=given["store"],
        sequence=sequence,
        ttl=given["ttl"],
    ).raw


# --- at the gateway ----------------------------------------------------------------------


async def test_every_malformed_packet_is_counted_and_not_stored(here: Here) -> None:
    here.member(SIGNER, "signer")
    await here.quiet()
    before = spooled(here.station)
    expected: dict[str, int] = {}
    for case in VECTORS["refused"]:
        raw = bytes.fromhex(case["raw"])
        if len(raw) <= 512:  # longer ones do not come through a link
            here.send(raw, SIGNER.kid)
            expected[case["reason"]] = expected.get(case["reason"], 0) + 1
    here.send(packet(SIGNER), SIGNER.kid)  # and a good one at the end
    await here.place.wait("the good one", lambda: here.station.counts.new > before)
    counted = dict(here.station.counts.refused)
    # Where not even a message can be made out, that is what is said.
    assert sum(counted.values()) == sum(expected.values())
    for reason in ("signature", "type", "bounds", "duplicate_key", "nesting", "integer"):
        assert counted[reason] == expected[reason], reason
    assert spooled(here.station) == before + 1


async def test_unknown_revoked_expired_and_misplaced_keys(here: Here) -> None:
    stranger, other, late = Identity.generate(), Identity.generate(), Identity.generate()
    here.member(other, "other")
    here.member(late, "late", expires=EPOCH - 1)
    here.send(packet(stranger), stranger.kid)
    await here.counted("unknown_key")
    here.send(packet(late), late.kid)
    await here.counted("expired")
    here.send(packet(other), here.node.identity.kid)
    await here.counted("topic")
    here.send(packet(other), other.kid)
    await here.place.wait("the honest one", lambda: held_of(here.station, other.kid) == [1])
    here.station.fleet.revoke([other.kid], here.place.root, time.time())
    here.send(packet(other, 2), other.kid)
    await here.counted("revoked")
    assert held_of(here.station, other.kid) == [1]
    assert not held_of(here.station, stranger.kid)


async def test_a_malleated_header_frames_nobody(here: Here) -> None:
    victim, attacker = Identity.generate(), Identity.generate()
    here.member(victim, "victim")
    here.member(attacker, "attacker")
    raw = packet(attacker)
    here.send(raw[:9] + victim.kid + raw[17:], victim.kid)
    await here.counted("signature")
    assert not held_of(here.station, victim.kid)


async def test_a_replay_is_receipted_again_and_deposited_once(here: Here) -> None:
    me = Identity.generate()
    here.member(me, "me")
    for _ in range(5):
        here.send(packet(me), me.kid)
    await here.place.wait("repeats", lambda: here.station.counts.known >= 4)
    routed = await here.routed()
    assert len([e for e in routed if e]) == here.station.counts.new


async def test_stale_is_held_but_not_routed(here: Here) -> None:
    me = Identity.generate()
    here.member(me, "me")
    here.send(packet(me, time=EPOCH - 1000 * HOUR, ttl=1), me.kid)
    await here.place.wait("the stale one", lambda: here.station.counts.stale == 1)
    await here.quiet()
    assert held_of(here.station, me.kid) == [1]
    stored = await here.station.engines[0].query(EVERYTHING, limit=10_000)
    assert me.kid not in {entry.kid for entry in stored}


async def test_a_date_in_the_future_is_for_later(here: Here) -> None:
    me = Identity.generate()
    here.member(me, "me")
    link = here.medium.node(me.kid)
    await link.start()
    here.send(packet(me, time=EPOCH + 10_000 * HOUR), me.kid)
    answer = receipts.parse((await link.receive()).data)
    assert answer.receipt.held == ()
    assert [sequences for _, sequences in answer.receipt.later] == [(1,)]
    assert here.station.counts.later == 1
    assert not held_of(here.station, me.kid)


async def test_equivocation_is_refused_loudly(here: Here, caplog: pytest.LogCaptureFixture) -> None:
    me = Identity.generate()
    here.member(me, "me")
    link = here.medium.node(me.kid)
    await link.start()
    here.send(packet(me, value=1.0), me.kid)
    await link.receive()
    here.send(packet(me, value=2.0), me.kid)
    answer = receipts.parse((await link.receive()).data)
    assert [reason.label for reason, _ in answer.receipt.refused] == ["equivocation"]  # type: ignore[union-attr] # a known code
    assert "two contents" in caplog.text
    assert here.station.counts.refused["equivocation"] == 1


async def test_each_of_two_contents_is_answered_by_its_own_name(here: Here) -> None:
    """In one batch or in several: the one that is held stays held, and says so."""
    me = Identity.generate()
    here.member(me, "me")
    link = here.medium.node(me.kid)
    await link.start()
    first, second = packet(me, value=1.0), packet(me, value=2.0)
    for raw in (first, second, first, second):
        here.send(raw, me.kid)
    gateway = here.station.identity
    key = mac_keys(gateway, gateway=gateway.public, node=me.public).to_node
    held = refused = 0
    while held == 0 or refused == 0:
        answer = receipts.parse((await asyncio.wait_for(link.receive(), 10)).data)
        said = answer.receipt
        raw, other = (second, first) if said.refused else (first, second)
        receipts.verify(answer, key, here.epoch, {1: unpack(raw).id}.get)
        with pytest.raises(Refused):
            receipts.verify(answer, key, here.epoch, {1: unpack(other).id}.get)
        held, refused = held + bool(said.held), refused + bool(said.refused)


async def test_gateways_take_nothing_that_gateways_say(here: Here) -> None:
    """A node's own receipt, sent back up, is refused."""
    keys = mac_keys(
        here.node.identity, gateway=here.station.identity.public, node=here.node.identity.public
    )
    raw = receipts.build(Receipt(b"abcd", (1,)), keys.to_node, b"eeee", {1: bytes(32)})
    here.send(raw, here.node.identity.kid)
    await here.counted("scope")


# --- at the node -------------------------------------------------------------------------


async def test_forged_replayed_and_reflected_receipts_change_nothing(here: Here) -> None:
    node, gateway = here.node, here.station.identity
    here.medium.fail()
    await here.place.wait("a backlog", lambda: stats_of(node).waiting >= 3)
    await node.drain({})
    await here.place.stop(here.station)  # nobody answers any more
    here.medium.heal()
    await here.place.wait("packets", lambda: stats_of(node).open_packets >= 1)
    with outbox_of(node) as reader:
        (queued, *_) = reader.unreceipted(1)
        ids = {queued.sequence: reader.packet_id(queued.store, queued.sequence) or b""}
    said = Receipt(queued.store, (queued.sequence,))
    keys = mac_keys(gateway, gateway=gateway.public, node=node.identity.public)
    stranger = Identity.generate()
    foreign = mac_keys(stranger, gateway=stranger.public, node=node.identity.public)
    epoch = here.epoch
    for key, when, names in (
        (foreign.to_node, epoch, ids),  # forged: another key
        (os.urandom(32), epoch, ids),
        (keys.to_gateway, epoch, ids),  # reflected: the other way
        (keys.to_node, b"old!", ids),  # replayed: of an earlier epoch
        (keys.to_node, epoch, {queued.sequence: bytes(32)}),  # of other packets
    ):
        here.medium.inject(receipts.build(said, key, when, names), down(node.identity.kid))
    await here.place.wait("the refusals", lambda: node.inbound.refused["mac"] >= 5)
    assert stats_of(node).open_packets >= 1
    genuine = receipts.build(said, keys.to_node, epoch, ids)
    before = stats_of(node).held_packets
    here.medium.inject(genuine, down(node.identity.kid))
    await here.place.wait("the receipt", lambda: stats_of(node).held_packets > before)
    here.medium.inject(genuine, down(node.identity.kid))  # replayed: it says nothing new
    await here.place.wait("the repeat", lambda: node.uplink.custody.counters.unknown >= 1)
    assert stats_of(node).held_packets == before + 1


async def test_a_foreign_gateway_gets_nothing_deleted_and_nobody_adopted(tmp_path: Path) -> None:
    async with site(tmp_path, MemoryMedium()) as place:
        foreign = place.station("foreign", root=Identity.generate())
        node = place.node("ewr")
        place.start(foreign, node)
        foreign.fleet.permit(foreign.clock.now() + YEAR)
        await place.wait("the wish to join", foreign.fleet.waiting)
        foreign.fleet.approve(node.identity.kid, foreign.identity, foreign.clock.now())
        for kid in (foreign.identity.kid, node.identity.kid):
            for raw in foreign.fleet.chain(kid):
                assert place.medium is not None
                place.medium.inject(raw, down(node.identity.kid))
        await place.wait("the refusals", lambda: node.inbound.refused["chain"] >= 2)
        await place.wait("outcomes", lambda: stats_of(node).made >= 3)
        stats = stats_of(node)
        assert not node.membership.enrolled(None)
        assert (stats.waiting, stats.packets, stats.held_packets) == (stats.made, 0, 0)


async def test_what_is_injected_downwards_is_counted(here: Here) -> None:
    node = here.node
    await here.quiet()
    me = node.identity.kid
    stranger, peer = Identity.generate(), Identity.generate()
    here.member(peer, "peer")
    address = node.sensing.address or b""
    good = packet(peer, time=EPOCH)
    flipped = good[:-1] + bytes((good[-1] ^ 1,))
    revocation = here.station.fleet.revoke([os.urandom(8)], here.place.root, time.time())
    raw_list = RevocationMessage(revocation).encode()
    for raw in (
        b"",
        b"\xff" * 40,
        packet(stranger),
        flipped,
        packet(peer, 3, time=EPOCH + 10_000 * HOUR),
        raw_list[:-1] + bytes((raw_list[-1] ^ 1,)),
        Greeting(here.station.identity.kid, 0, b"zzzz", 0, 0).encode(bytes(32), bytes(8)),
    ):
        here.medium.inject(raw, down(me))
    refused = node.inbound.refused
    await here.place.wait(
        "refusals",
        lambda: {"truncated", "message", "signature", "future", "replayed"} <= set(refused),
    )
    assert node.clock.now() > EPOCH  # a forged greeting tells no time
    assert peers_of(node, ADDRESS) == []
    here.medium.inject(good, peers(address))
    await here.place.wait("the good one", lambda: peers_of(node, ADDRESS))


async def test_floods_of_questions_are_not_all_answered(here: Here) -> None:
    await here.quiet()
    me = here.node.identity.kid
    sent = here.station.fronts[0].link.stats.frames_out
    for _ in range(300):
        here.send(Wanted((me,)).encode(), os.urandom(8))  # strangers: one bucket each …
        here.send(Wanted((me,)).encode(), me)  # … and one asker
    await here.counted("flooded", 200)
    await here.place.wait("answers", lambda: here.station.fronts[0].link.stats.frames_out > sent)
    with pytest.raises(Refused):
        here.station.fronts[0].desk.node_key(os.urandom(8))


async def test_a_new_epoch_brings_back_what_the_gateway_lost(here: Here) -> None:
    """The gateway comes back without its spool: the node sends what it still has."""
    await here.quiet()
    held = stats_of(here.node).held_packets
    assert held
    await here.place.stop(here.station)
    state = here.station.config.gateway.state
    for path in (*state.glob("spool.db*"), *state.glob("routing.db*")):
        path.unlink()
    again = here.place.station()
    here.place.start(again)
    here.node.asking.hello()  # which it says every few minutes
    await here.place.wait("everything again", lambda: again.counts.new >= held)
    await here.place.wait("receipts", lambda: stats_of(here.node).held_packets == held)
    assert {GATEWAY, ISSUER} <= next(iter(again.fleet.valid(GATEWAY, None))).scope
