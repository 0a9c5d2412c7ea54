"""What peers say, made into estimates; what was learned, and what a restart has of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from qis_edge.core.errors import StoreCorrupt, StoreError
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Extensions, Packet, pack
from qis_edge.core.synthesis import Estimate
from qis_edge.node import estimating as module
from qis_edge.node.estimating import ESTIMATE_TAG, Estimating
from qis_edge.node.runtime import Node
from qis_edge.testing.memory import MemoryMedium
from tests.loop import hooks
from tests.loop.site import HOUR, Site
from tests.node.kit import ADDRESS

HOOK = '[synthesis]\nhook = "tests.loop.hooks:{}"\n'


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Callable[..., Node]]:
    """Makes nodes of one folder, each after the one before."""
    site = Site(tmp_path, MemoryMedium(), pace=3600.0)  # as time goes: a slow machine is none later
    made: list[Node] = []

    def make(hook: str = "") -> Node:
        for node in made:
            shut(node)
        made.clear()
        made.append(site.node("one", extra=HOOK.format(hook) if hook else ""))
        return made[-1]

    hooks.kept.clear()
    yield make
    for node in made:
        shut(node)


def shut(node: Node) -> None:
    node.outbox.close()
    node.inbox.close()
    node.disk.close()


def said(who: Identity, when: int, value: float, *tags: str) -> Packet:
    return pack(
        [Outcome(when, confidence=0.9, samples=4, results={"temperature": value})],
        identity=who,
        fingerprint=ADDRESS,
        store=b"abcd",
        sequence=when // HOUR,
        extensions=Extensions(tags=tags),
    )


def windows(node: Node, count: int) -> list[int]:
    """The starts of the last so many, oldest first."""
    last = int(node.clock.now()) // HOUR * HOUR - HOUR
    return [last - HOUR * back for back in reversed(range(count))]


def own(when: int, value: float) -> Outcome:
    return Outcome(when, confidence=0.9, samples=4, results={"temperature": value})


def told(estimating: Estimating, node: Node, peer: Identity, count: int = 60) -> None:
    """A peer that is always two degrees warmer than we are."""
    for when in windows(node, count):
        value = 15.0 + when // HOUR % 24 / 4
        estimating.measured(own(when, value))
        estimating.heard([said(peer, when, value + 2.0)])


async def test_a_peer_speaks_for_us_when_we_are_silent(place: Callable[..., Node]) -> None:
    node, peer = place(), Identity.generate()
    told(node.estimating, node, peer)
    when = windows(node, 1)[0] + HOUR
    node.estimating.heard([said(peer, when, 22.0)])
    made = await node.estimating.estimate(when)
    assert made.results["temperature"].contributors == 1
    assert made.results["temperature"].value == pytest.approx(20.0, abs=1.5)
    assert node.estimating.made == 1


async def test_estimates_of_others_are_no_voices(place: Callable[..., Node]) -> None:
    node, peer = place(), Identity.generate()
    (when,) = windows(node, 1)
    node.estimating.heard([said(peer, when, 22.0, ESTIMATE_TAG)])
    assert (await node.estimating.estimate(when)).results == {}
    assert node.estimating.made == 0


async def test_the_hook_has_a_thread_of_its_own(place: Callable[..., Node]) -> None:
    node, peer = place("keep"), Identity.generate()
    (when,) = windows(node, 1)
    node.estimating.heard([said(peer, when, 22.0)])
    threads: list[int] = []

    def hook(made: Estimate) -> None:
        threads.append(threading.get_ident())
        hooks.keep(made)

    vars(node.estimating)["_hook"] = hook
    made = await node.estimating.estimate(when)
    assert hooks.kept == [made]
    assert threads != [threading.get_ident()]
    assert (await node.estimating.estimate(when - 500 * HOUR)).results == {}
    assert len(hooks.kept) == 1  # nothing to be told


async def test_a_hook_that_works_again_may_fail_again(
    place: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    node, peer = place("fail"), Identity.generate()
    (when,) = windows(node, 1)
    node.estimating.heard([said(peer, when, 22.0)])
    broken = node.estimating._hook
    for hook in (broken, broken, hooks.keep, broken):
        vars(node.estimating)["_hook"] = hook
        await node.estimating.estimate(when)
    assert node.estimating.hook_failures == 3
    assert len([one for one in caplog.records if "the hook" in one.message]) == 2


async def test_a_hook_that_hangs_does_not_keep_us(
    place: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOOK_PATIENCE", 0.05)
    node, peer = place("keep"), Identity.generate()
    (when,) = windows(node, 1)
    node.estimating.heard([said(peer, when, 22.0)])
    never = threading.Event()
    vars(node.estimating)["_hook"] = lambda _: never.wait()
    waiting = asyncio.create_task(node.estimating.estimate(when))
    await asyncio.sleep(0.01)
    waiting.cancel()
    began = time.monotonic()
    await node.estimating.close()
    assert time.monotonic() - began < 2
    never.set()


# --- keeping -------------------------------------------------------------------------------


async def test_what_was_learned_is_kept_now_and_then(place: Callable[..., Node]) -> None:
    node, peer = place(), Identity.generate()
    told(node.estimating, node, peer)
    for when in windows(node, module.SAVE_EVERY):
        await node.estimating.estimate(when)
    learned = node.estimating._synthesiser.state()
    assert learned["bias"]
    assert place().estimating._synthesiser.state()["bias"].keys() == learned["bias"].keys()


async def test_what_came_since_is_gone_through_again(place: Callable[..., Node]) -> None:
    node, peer = place(), Identity.generate()
    await node.estimating.save()
    for when in windows(node, 4):
        node.inbox.keep_own(ADDRESS, [own(when, 15.0)])
        node.inbox.put([said(peer, when, 17.0)], now=when)
    again = place()
    assert again.estimating._synthesiser.peers() == {}
    await again.estimating.recall(ADDRESS)
    assert again.estimating._synthesiser.peers() == {peer.kid: windows(again, 1)[0]}


async def test_a_packet_that_did_not_survive_the_disk_is_passed_over(
    place: Callable[..., Node],
) -> None:
    node, peer = place(), Identity.generate()
    first, second = windows(node, 2)
    for when in (first, second):
        node.inbox.put([said(peer, when, 17.0)], now=when)
    raw = bytearray(said(peer, second, 17.0).raw)
    begin = raw.index(b"\x84", 30)  # somewhere in the columns
    raw[begin : begin + 1] = b"\x9f"
    node.inbox._db.execute("UPDATE packets SET raw=? WHERE time=?", (bytes(raw), second))
    again = place()
    await again.estimating.recall(ADDRESS)
    assert set(again.estimating._synthesiser.peers()) <= {peer.kid}


@pytest.mark.parametrize("rubbish", [b"{", b"[1, 2]", b"\xff\xfe", b'{"through": "x"}'])
async def test_what_cannot_be_read_is_learned_anew(
    place: Callable[..., Node], caplog: pytest.LogCaptureFixture, rubbish: bytes
) -> None:
    place().inbox.keep_peer_states({b"": rubbish})
    assert place().estimating._synthesiser.state()["bias"] == {}
    assert "learning anew" in caplog.text


async def test_a_disk_that_does_not_write_stops_no_estimate(place: Callable[..., Node]) -> None:
    node, peer = place(), Identity.generate()
    (when,) = windows(node, 1)
    node.estimating.heard([said(peer, when, 22.0)])

    def full(_: object) -> None:
        raise StoreError("full")

    vars(node.inbox)["keep_peer_states"] = full
    for _ in range(module.SAVE_EVERY + 1):
        assert (await node.estimating.estimate(when)).results
    with pytest.raises(StoreError):
        await node.estimating.close()


async def test_damage_is_for_nobody_to_pass_over(place: Callable[..., Node]) -> None:
    node = place()

    def damaged(_: object) -> None:
        raise StoreCorrupt("damaged")

    vars(node.inbox)["keep_peer_states"] = damaged
    (when,) = windows(node, 1)
    for _ in range(module.SAVE_EVERY - 1):
        await node.estimating.estimate(when)
    with pytest.raises(StoreCorrupt):
        await node.estimating.estimate(when)
