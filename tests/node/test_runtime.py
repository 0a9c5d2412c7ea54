"""A node as a whole: what it opens, what it answers, and how it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qis_edge.config import load_node
from qis_edge.control import request
from qis_edge.core.errors import ConfigError, KeyFileError, LinkError, QisError, StoreError
from qis_edge.core.outcome import Outcome
from qis_edge.node.runtime import Node
from qis_edge.node.timekeeping import BUILT
from qis_edge.store.forms import Unclocked
from qis_edge.testing.memory import MemoryMedium
from tests.loop.site import EPOCH, Site, stats_of
from tests.node.kit import Fleet


@pytest.fixture
def place(tmp_path: Path) -> Site:
    return Site(tmp_path, MemoryMedium())


async def ended(place: Site, node: Node) -> None:
    place.start(node)
    await place.wait("its start", lambda: node.sensing.address)
    await place.stop(node)


async def test_it_can_be_asked_while_it_runs(place: Site) -> None:
    node = place.node("one")
    place.start(node)
    state = node.config.node.state
    await place.wait("its start", (state / "control.sock").exists)
    status = await asyncio.to_thread(request, state, "status")
    assert status["kid"] == node.identity.kid.hex()
    assert status["enrolled"] is False
    assert status["disk"] is None
    assert (await asyncio.to_thread(request, state, "drain")) == {"draining": True}
    assert node.sensing.stop.is_set()
    await place.stop(node)
    assert not (state / "control.sock").exists()


async def test_it_closes_what_it_opened(place: Site) -> None:
    for _ in range(3):
        await ended(place, place.node("one"))
    log = place.state("one") / "outbox.db-wal"
    assert not log.exists() or not log.stat().st_size


async def test_two_do_not_share_a_state(place: Site) -> None:
    node = place.node("one")
    with pytest.raises(StoreError, match="in use by another process"):
        place.node("one")
    await ended(place, node)


async def test_one_that_cannot_be_made_holds_nothing(
    place: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: Node) -> None:
        raise LinkError("the settings can never work")

    with monkeypatch.context() as patch:
        patch.setattr(Node, "_assemble", wrong)
        with pytest.raises(LinkError):
            place.node("one")
    await ended(place, place.node("one"))


async def test_one_that_cannot_start_closes_too(
    place: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = place.node("one")

    async def wrong() -> None:
        raise LinkError("a certificate cannot be used")

    vars(node.link)["start"] = wrong
    with pytest.raises(LinkError, match="certificate"):
        await node.run(asyncio.Event())
    await ended(place, place.node("one"))


async def test_its_key_must_be_there(place: Site) -> None:
    config = place.node_config("one")
    (place.state("one") / "node.key").unlink()
    with pytest.raises((KeyFileError, ConfigError)):
        Node(load_node(config))


async def test_what_the_outbox_knows_of_the_time_is_used(place: Site) -> None:
    node = place.node("one")
    assert node.clock.trusted
    assert stats_of(node).clock == pytest.approx(EPOCH, abs=48 * 3600)
    await ended(place, node)


async def test_outcomes_of_a_boot_without_a_clock_get_a_time(place: Site) -> None:
    """That boot never learned it; this one knows it from the start."""
    node = place.node("one", clock=False)
    lost = Unclocked("another-boot", 100.0)
    node.outbox.append(Outcome(0, results={"temperature": 1.0}), bytes(32), unclocked=lost)
    await ended(place, node)
    again = place.node("one", clock=False)
    assert again.inbound.time_owed
    place.start(again)
    await place.wait("their time", lambda: stats_of(again).untimed == 0)
    await place.stop(again)


async def test_a_credential_is_brought_by_hand(place: Site) -> None:
    node = place.node("one")
    fleet = Fleet()
    fleet.root, fleet.me = place.root, node.identity
    place.start(node)
    await place.wait("its start", lambda: node.sensing.address)
    gateway = fleet.vouch(fleet.gateway, ("gateway", "issuer"), place.root, BUILT * 2)
    ours = fleet.vouch(node.identity, expires=BUILT * 2)
    with pytest.raises(QisError, match="not a credential of this fleet"):
        await node.credential({"raw": ours.raw.hex()})  # its issuer is not known yet
    for wrong in ("", "zz", Fleet().credential.raw.hex()):
        with pytest.raises(QisError, match="not a credential"):
            await node.credential({"raw": wrong})
    await node.credential({"raw": gateway.raw.hex()})
    assert (await node.credential({"raw": ours.raw.hex()}))["enrolled"] is True
    await place.stop(node)
    again = place.node("one")  # and it was kept
    assert again.membership.enrolled(again.clock.known)
    await ended(place, again)
