"""News of the fleet: over which links they go, and to whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway import watch as module
from gateway.front import Front
from qis_edge.core.errors import Reason, Refused, StoreCorrupt, StoreError
from qis_edge.core.identity import Identity
from qis_edge.core.messages import (
    CredentialMessage,
    Hello,
    Message,
    Request,
    RevocationMessage,
    Wanted,
    decode,
)
from qis_edge.links.base import Direction, Received
from tests.gateway.kit import ADDRESS, NOW, Wire, until
from tests.gateway.mesh_kit import Air
from tests.gateway.station_kit import Place


class Bench:
    """A gateway at two brokers and a radio, which does not run: what waits can be seen."""

    def __init__(self, folder: Path) -> None:
        self.place = Place(folder)
        self.station = self.place.station(Wire(), Wire(), Air())
        self.first, self.second, self.air = self.station.fronts

    async def hello(self, front: Front, who: Identity) -> None:
        raw = Hello(who.kid, b"nonce--1").encode()
        await front.desk.handle(decode(raw), Received(raw, Direction.UP))
        front.post._answers.clear()


def waiting(front: Front, to: bytes | None = None) -> list[Message]:
    """What is to go out over a link (to one key)."""
    letters = front.post._answers.values()
    return [decode(one.frame) for one in letters if to in (None, one.to.key)]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.station._close()


async def test_an_approval_is_told_where_the_node_asked(bench: Bench) -> None:
    node = Identity.generate()
    bench.second.desk._is_present(node.kid)
    bench.place.let_in(node)
    await bench.station.watch.refresh()
    assert [type(one) for one in waiting(bench.second, node.kid)] == [CredentialMessage] * 2
    assert waiting(bench.first) == waiting(bench.air) == []


async def test_one_who_was_heard_nowhere_is_told_everywhere(bench: Bench) -> None:
    node = Identity.generate()
    bench.place.let_in(node)
    await bench.station.watch.refresh()
    for front in bench.station.fronts:
        assert [type(one) for one in waiting(front, node.kid)] == [CredentialMessage] * 2


async def test_a_list_goes_to_each_where_it_was_heard(bench: Bench) -> None:
    nodes = [bench.place.let_in(Identity.generate()) for _ in range(5)]
    await bench.station.watch.refresh()
    for front, node in zip((bench.first, bench.second, bench.air, bench.air), nodes, strict=False):
        await bench.hello(front, node)
    for front in bench.station.fronts:
        front.post._answers.clear()
    bench.place.revoke(nodes[0].kid)
    await bench.station.watch.refresh()
    told = [[node for node in nodes if waiting(front, node.kid)] for front in bench.station.fronts]
    assert told[0] == [nodes[4]]  # the first is out, and the last was heard nowhere
    assert told[1] == [nodes[1], nodes[4]]
    assert [type(one) for one in waiting(bench.air)] == [RevocationMessage]  # once for all
    with pytest.raises(Refused) as error:
        bench.first.desk.node_key(nodes[0].kid)
    assert error.value.reason is Reason.REVOKED


async def test_a_list_that_came_over_one_link_goes_out_over_all(
    bench: Bench,
) -> None:
    node, other = (bench.place.let_in(Identity.generate()) for _ in range(2))
    await bench.station.watch.refresh()
    await bench.hello(bench.first, node)
    await bench.hello(bench.air, other)
    made = bench.place.list_of(b"outcast!")
    raw = RevocationMessage(made).encode()
    await bench.air.desk.handle(decode(raw), Received(raw, Direction.UP))
    assert waiting(bench.first, node.kid) == [RevocationMessage(made)]
    assert waiting(bench.air).count(RevocationMessage(made)) == 1
    assert RevocationMessage(made) not in waiting(bench.second)


async def test_a_gateway_that_is_out_says_so_in_its_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.place.revoke(bench.station.identity.kid)
    await bench.station.watch.refresh()
    assert "this gateway's own key was revoked" in caplog.text


async def test_who_is_out_is_forgotten_on_every_link(bench: Bench) -> None:
    node = bench.place.let_in(Identity.generate())
    await bench.station.watch.refresh()
    for front in bench.station.fronts:
        front.downlink.request(request_of(bench, node))
    bench.place.revoke(node.kid)
    await bench.station.watch.refresh()
    assert [len(front.downlink._interests) for front in bench.station.fronts] == [0, 0, 0]


def request_of(bench: Bench, node: Identity) -> Request:
    return Request(node.kid, bench.station.identity.kid, ((ADDRESS, 256),), None, 10)


async def test_a_node_that_asks_elsewhere_has_moved(bench: Bench) -> None:
    node = bench.place.let_in(Identity.generate())
    await bench.station.watch.refresh()
    keys = bench.place.keys(node, bench.station.identity)
    raw = request_of(bench, node).encode(keys.to_gateway)
    for front in (bench.first, bench.air, bench.second):
        await front.desk.handle(decode(raw), Received(raw, Direction.UP))
        listening = [one for one in bench.station.fronts if one.downlink._interests]
        assert listening == [front]


async def test_nudges_go_over_the_link_that_the_node_uses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFRESH", 0.01)
    node = bench.place.let_in(Identity.generate())
    bench.second.desk._nudge_after = 0.0
    bench.second.desk.accepted(node.kid, NOW, 1)
    watching = asyncio.create_task(bench.station.watch.run())
    await until(lambda: Wanted((node.kid,)) in waiting(bench.second))
    assert [one for one in waiting(bench.first) if isinstance(one, Wanted)] == []
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_watching_survives_a_disk_that_does_not_write(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFRESH", 0.01)
    error: StoreError = StoreError("locked")
    failures = 0
    refresh = bench.station.fleet.refresh

    def locked(_: object) -> None:
        nonlocal failures
        failures += 1
        raise error

    vars(bench.station.fleet)["refresh"] = locked
    watching = asyncio.create_task(bench.station.watch.run())
    await until(lambda: failures >= 3)
    assert not watching.done()
    error = StoreCorrupt("damaged")
    with pytest.raises(StoreCorrupt):
        await asyncio.wait_for(watching, 5)
    vars(bench.station.fleet)["refresh"] = refresh
