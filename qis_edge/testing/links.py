"""What every link must do: a suite to subclass.

    class TestMyLink(LinkConformance):
        def world(self, folder: Path) -> AbstractAsyncContextManager[LinkWorld]:
            return my_world(folder)

``my_world`` is an ``@asynccontextmanager`` that starts a medium, yields a :class:`LinkWorld`
on it, and takes it down; the suite closes the links. The medium under test is a good one:
what it is given arrives, or ``loses`` says otherwise. Needs pytest and pytest-asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import pytest_asyncio

from qis_edge.core.errors import LinkError, UsageError
from qis_edge.links.base import (
    MAX_FRAME,
    UP,
    Destination,
    Direction,
    Link,
    Received,
    down,
    peers,
)
from qis_edge.testing.memory import Carried, Faults, MemoryLink, MemoryMedium

__all__ = [
    "Carried",
    "Faults",
    "LinkConformance",
    "LinkWorld",
    "MemoryLink",
    "MemoryMedium",
    "receive_done",
    "send_when_possible",
    "until_down",
    "until_up",
]

NODE, OTHER_NODE = b"\x01node..\x01", b"\x02node..\x02"
GATEWAY, OTHER_GATEWAY = b"\x03gate..\x03", b"\x04gate..\x04"
ADDRESS, OTHER_ADDRESS = b"\xaa" * 32, b"\xbb" * 32


class LinkWorld(ABC):
    """A medium, and links to it."""

    @abstractmethod
    def node(self, kid: bytes) -> Link:
        """A node's link, not started."""

    @abstractmethod
    def gateway(self, kid: bytes) -> Link:
        """A gateway's link, not started."""

    @abstractmethod
    async def fail(self) -> None:
        """Take the medium away. Links notice by themselves."""

    @abstractmethod
    async def heal(self) -> None:
        """Bring it back, having forgotten everything if it likes."""


async def until_up(*links: Link, seconds: float = 60.0) -> None:
    """Wait until all of them are up."""
    await _until(links, up=True, seconds=seconds)


async def until_down(*links: Link, seconds: float = 60.0) -> None:
    """Wait until all of them are down."""
    await _until(links, up=False, seconds=seconds)


async def _until(links: Iterable[Link], *, up: bool, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        for link in links:
            while True:
                change = link.changed()
                if link.up == up:
                    change.close()
                    break
                await change


async def send_when_possible(link: Link, frame: bytes, to: Destination = UP) -> None:
    """Send as a well-behaved caller does: when there is room, and not before ``not_before``."""
    while True:
        change = link.changed()
        if link.room and (wait := link.not_before - time.monotonic()) <= 0:
            change.close()
            await link.send(frame, to)
            return
        if link.room:
            change.close()
            await asyncio.sleep(wait)
        else:
            await change


async def receive_done(link: Link, count: int, seconds: float = 60.0) -> list[Received]:
    """The next frames, each done with as it comes."""
    found = []
    async with asyncio.timeout(seconds):
        for _ in range(count):
            received = await link.receive()
            await link.done(received)
            found.append(received)
    return found


class LinkConformance(ABC):
    """Subclass it, say what the medium promises, and give :meth:`world`."""

    #: Frames of one sender arrive in the order in which they were sent.
    ordered = True
    #: ``Received.claimed`` names the sender of UP frames.
    claims = True
    #: Nodes hear only what is theirs (on a radio they hear everything).
    selective = True
    #: Nodes are told what was for all who listen (on a radio it all came DOWN).
    addressed = True
    #: Counts what it was given (and not the frames that the medium makes of it).
    counts_given = True
    #: A gateway that comes back is given again what it was not done with.
    redelivers = True
    #: Some frames are lost although the medium is whole.
    loses = False
    #: Frames for the longer tests: fewer for media that take seconds for each.
    many = 200
    #: Seconds that a single thing may take.
    patience = 60.0
    #: Seconds after which what has not come is not coming.
    quiet = 0.3

    @abstractmethod
    def world(self, folder: Path) -> AbstractAsyncContextManager[LinkWorld]:
        """A fresh medium with nothing on it."""

    @pytest_asyncio.fixture
    async def links(self, tmp_path: Path) -> AsyncIterator[_Links]:
        async with self.world(tmp_path) as world:
            links = _Links(world, self.patience)
            try:
                yield links
            finally:
                await links.close()

    # The frames.

    @pytest.mark.asyncio
    async def test_what_a_node_sends_up_reaches_the_gateway(self, links: _Links) -> None:
        node, gateway = await links.pair()
        await send_when_possible(node, b"reading")
        received = await links.next(gateway)
        assert received.data == b"reading"
        assert received.direction is Direction.UP
        if self.claims:
            assert received.claimed == NODE

    @pytest.mark.asyncio
    async def test_every_gateway_hears_a_node(self, links: _Links) -> None:
        node, gateway = await links.pair()
        other = await links.start(links.world.gateway(OTHER_GATEWAY))
        await send_when_possible(node, b"reading")
        assert (await links.next(gateway)).data == b"reading"
        assert (await links.next(other)).data == b"reading"

    @pytest.mark.asyncio
    async def test_what_goes_down_reaches_the_node_it_is_for(self, links: _Links) -> None:
        node, gateway = await links.pair()
        other = await links.start(links.world.node(OTHER_NODE))
        await send_when_possible(gateway, b"receipt", down(NODE))
        received = await links.next(node)
        assert (received.data, received.direction) == (b"receipt", Direction.DOWN)
        if self.selective:
            await self.nothing_comes(other)

    @pytest.mark.asyncio
    async def test_peers_frames_reach_those_who_listen(self, links: _Links) -> None:
        node, gateway = await links.pair()
        other = await links.start(links.world.node(OTHER_NODE))
        await node.listen(frozenset([ADDRESS]))
        await send_when_possible(gateway, b"packet", peers(ADDRESS))
        received = await links.next(node)
        assert received.data == b"packet"
        assert received.direction is (Direction.PEERS if self.addressed else Direction.DOWN)
        if self.selective:
            await self.nothing_comes(other)

    @pytest.mark.asyncio
    async def test_what_is_listened_to_can_change(self, links: _Links) -> None:
        node, gateway = await links.pair()
        await node.listen(frozenset([ADDRESS]))
        await node.listen(frozenset([OTHER_ADDRESS]))
        await send_when_possible(gateway, b"old", peers(ADDRESS))
        await send_when_possible(gateway, b"new", peers(OTHER_ADDRESS))
        found = await receive_done(node, 1 if self.selective else 2, self.patience)
        assert b"new" in [received.data for received in found]
        await node.listen(frozenset())
        await send_when_possible(gateway, b"new", peers(OTHER_ADDRESS))
        if self.selective:
            await self.nothing_comes(node)

    @pytest.mark.asyncio
    async def test_listening_before_the_start_counts(self, links: _Links) -> None:
        node = links.world.node(NODE)
        await node.listen(frozenset([ADDRESS]))
        gateway = links.world.gateway(GATEWAY)
        await links.start(node, gateway)
        await send_when_possible(gateway, b"packet", peers(ADDRESS))
        assert (await links.next(node)).data == b"packet"

    @pytest.mark.asyncio
    async def test_many_frames_arrive(self, links: _Links) -> None:
        node, gateway = await links.pair()
        sent = [number.to_bytes(4, "big") * 10 for number in range(self.many)]
        pump = asyncio.create_task(_send_all(node, sent))
        try:
            found = [r.data for r in await receive_done(gateway, len(sent), self.patience)]
        finally:
            pump.cancel()
        if self.ordered:
            assert found == sent
        elif not self.loses:
            assert sorted(found) == sent

    # Sizes.

    @pytest.mark.asyncio
    async def test_a_frame_of_the_full_size_arrives_whole(self, links: _Links) -> None:
        node, gateway = await links.pair()
        assert 1 <= node.mtu <= MAX_FRAME
        frame = bytes(number % 251 for number in range(node.mtu))
        await send_when_possible(node, frame)
        assert (await links.next(gateway)).data == frame

    @pytest.mark.asyncio
    async def test_a_larger_one_is_not_taken(self, links: _Links) -> None:
        node, _ = await links.pair()
        with pytest.raises(LinkError):
            await node.send(bytes(node.mtu + 1), UP)
        assert node.stats.frames_out == 0

    @pytest.mark.asyncio
    async def test_cost_never_falls_with_size(self, links: _Links) -> None:
        node = links.world.node(NODE)
        costs = [node.cost(size) for size in range(node.mtu + 1)]
        assert costs[0] > 0 or costs[1] > 0
        assert costs == sorted(costs)

    # Where frames can go.

    @pytest.mark.asyncio
    async def test_only_nodes_send_up(self, links: _Links) -> None:
        _, gateway = await links.pair()
        with pytest.raises(UsageError):
            await gateway.send(b"frame", UP)

    @pytest.mark.asyncio
    @pytest.mark.parametrize("to", [down(OTHER_NODE), peers(ADDRESS)])
    async def test_only_gateways_send_down(self, links: _Links, to: Destination) -> None:
        node, _ = await links.pair()
        with pytest.raises(UsageError):
            await node.send(b"frame", to)

    # Up and down.

    @pytest.mark.asyncio
    async def test_before_the_start_it_is_down(self, links: _Links) -> None:
        node = links.world.node(NODE)
        assert not node.up
        assert node.room == 0
        with pytest.raises(LinkError):
            await node.send(b"frame", UP)

    @pytest.mark.asyncio
    async def test_starting_again_changes_nothing(self, links: _Links) -> None:
        node, gateway = await links.pair()
        await node.start()
        await send_when_possible(node, b"frame")
        assert (await links.next(gateway)).data == b"frame"
        assert node.stats.connects == 1

    @pytest.mark.asyncio
    async def test_a_medium_that_fails_is_noticed_and_said(self, links: _Links) -> None:
        node, gateway = await links.pair()
        assert node.stats.last_error is None
        await links.world.fail()
        await until_down(node, gateway, seconds=self.patience)
        assert node.room == 0
        assert node.stats.disconnects == 1
        with pytest.raises(LinkError):
            await node.send(b"frame", UP)
        assert node.stats.last_error

    @pytest.mark.asyncio
    async def test_it_comes_back_by_itself(self, links: _Links) -> None:
        node, gateway = await links.pair()
        await node.listen(frozenset([ADDRESS]))
        await links.world.fail()
        await until_down(node, gateway, seconds=self.patience)
        await links.world.heal()
        await until_up(node, gateway, seconds=self.patience)
        await send_when_possible(node, b"up")
        await send_when_possible(gateway, b"down", down(NODE))
        await send_when_possible(gateway, b"peers", peers(ADDRESS))
        assert (await links.next(gateway)).data == b"up"
        found = {received.data for received in await receive_done(node, 2, self.patience)}
        assert found == {b"down", b"peers"}
        assert node.stats.connects == 2

    @pytest.mark.asyncio
    async def test_a_medium_may_be_absent_at_the_start(self, links: _Links) -> None:
        await links.world.fail()
        node = links.world.node(NODE)
        gateway = links.world.gateway(GATEWAY)
        links.made += [node, gateway]
        await node.start()
        await gateway.start()
        await asyncio.sleep(self.quiet)
        assert not node.up
        await links.world.heal()
        await until_up(node, gateway, seconds=self.patience)
        await send_when_possible(node, b"frame")
        assert (await links.next(gateway)).data == b"frame"

    # Room.

    @pytest.mark.asyncio
    async def test_room_runs_out_and_comes_back(self, links: _Links) -> None:
        node, gateway = await links.pair()
        sent = 0
        while node.room and sent < self.many:
            before = node.room
            await node.send(b"frame", UP)
            sent += 1
            assert node.room <= before or node.room > 0
        if not node.room:
            with pytest.raises(LinkError):
                await node.send(b"frame", UP)
        drain = asyncio.create_task(receive_done(gateway, sent, self.patience))
        async with asyncio.timeout(self.patience):
            while not node.room:
                await node.changed()
        if self.loses:
            drain.cancel()
        else:
            assert len(await drain) == sent

    # Waiting for changes.

    @pytest.mark.asyncio
    async def test_a_change_between_the_call_and_the_waiting_is_not_missed(
        self, links: _Links
    ) -> None:
        node, _ = await links.pair()
        change = node.changed()
        await links.world.fail()
        await until_down(node, seconds=self.patience)
        async with asyncio.timeout(1):
            await change

    @pytest.mark.asyncio
    async def test_waiting_for_a_change_can_be_given_up(self, links: _Links) -> None:
        node, _ = await links.pair()
        given_up = asyncio.create_task(node.changed())
        kept = asyncio.create_task(node.changed())
        await asyncio.sleep(0)
        given_up.cancel()
        await links.world.fail()
        await asyncio.wait_for(kept, self.patience)

    # Receiving.

    @pytest.mark.asyncio
    async def test_giving_up_a_receive_loses_nothing(self, links: _Links) -> None:
        node, gateway = await links.pair()
        sent = [number.to_bytes(2, "big") for number in range(self.many // 4)]
        pump = asyncio.create_task(_send_all(node, sent))
        found: list[bytes] = []
        async with asyncio.timeout(self.patience):
            while len(found) < len(sent):
                task = asyncio.create_task(gateway.receive())
                await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    received = await task
                    await gateway.done(received)
                    found.append(received.data)
                await asyncio.sleep(0.001)
        await pump
        assert sorted(found) == sent

    @pytest.mark.asyncio
    async def test_done_again_is_harmless(self, links: _Links) -> None:
        node, gateway = await links.pair()
        await send_when_possible(node, b"one")
        received = await links.next(gateway)
        await gateway.done(received)
        await gateway.done(received)
        await gateway.done(Received(b"", Direction.UP, None, object()))
        await send_when_possible(node, b"two")
        assert (await links.next(gateway)).data == b"two"

    @pytest.mark.asyncio
    async def test_done_in_any_order(self, links: _Links) -> None:
        node, gateway = await links.pair()
        for number in range(6):
            await send_when_possible(node, bytes([number]))
        held = [await asyncio.wait_for(gateway.receive(), self.patience) for _ in range(6)]
        for received in reversed(held):
            await gateway.done(received)
        await send_when_possible(node, b"next")
        assert (await links.next(gateway)).data == b"next"

    @pytest.mark.asyncio
    async def test_done_for_an_earlier_connection_does_nothing(self, links: _Links) -> None:
        node, gateway = await links.pair()
        await send_when_possible(node, b"before")
        stale = await asyncio.wait_for(gateway.receive(), self.patience)
        await links.world.fail()
        await until_down(node, gateway, seconds=self.patience)
        await gateway.done(stale)
        await links.world.heal()
        await until_up(node, gateway, seconds=self.patience)
        await send_when_possible(node, b"after")
        await gateway.done(stale)
        async with asyncio.timeout(self.patience):
            while (await links.next(gateway)).data != b"after":
                pass

    @pytest.mark.asyncio
    async def test_a_successor_is_given_what_was_not_done_with(self, links: _Links) -> None:
        node, gateway = await links.pair()
        for frame in (b"done", b"not done", b"not received"):
            await send_when_possible(node, frame)
        await links.next(gateway)
        undone = await asyncio.wait_for(gateway.receive(), self.patience)
        assert undone.data == b"not done"
        await asyncio.sleep(self.quiet)  # let the acknowledgement of the first one go out
        await gateway.close()
        await send_when_possible(node, b"sent meanwhile")
        await asyncio.sleep(self.quiet)
        heir = await links.start(links.world.gateway(GATEWAY))
        await send_when_possible(node, b"sent later")
        found = []
        while (frame := (await links.next(heir)).data) != b"sent later":
            found.append(frame)
        if self.redelivers:
            assert found == [b"not done", b"not received", b"sent meanwhile"]
        else:
            assert b"done" not in found

    # Closing.

    @pytest.mark.asyncio
    async def test_closing_ends_everything(self, links: _Links) -> None:
        node, gateway = await links.pair()
        waiting = asyncio.create_task(gateway.receive())
        change = asyncio.create_task(gateway.changed())
        await asyncio.sleep(0)
        await gateway.close()
        await gateway.close()
        with pytest.raises(LinkError):
            await asyncio.wait_for(waiting, self.patience)
        with pytest.raises(LinkError):
            await asyncio.wait_for(gateway.receive(), self.patience)
        await asyncio.wait_for(change, self.patience)
        await asyncio.wait_for(gateway.changed(), self.patience)
        assert not gateway.up
        assert gateway.room == 0
        with pytest.raises(LinkError):
            await gateway.send(b"frame", down(NODE))
        assert node.up

    @pytest.mark.asyncio
    async def test_what_had_come_in_can_be_received_after_closing(self, links: _Links) -> None:
        node, gateway = await links.pair()
        await send_when_possible(node, b"frame")
        await asyncio.sleep(self.quiet)
        assert gateway.stats.frames_in == 1
        await gateway.close()
        received = await asyncio.wait_for(gateway.receive(), self.patience)
        assert received.data == b"frame"
        await gateway.done(received)

    @pytest.mark.asyncio
    async def test_closing_before_the_start(self, links: _Links) -> None:
        node = links.world.node(NODE)
        await node.close()
        await node.start()
        await asyncio.sleep(self.quiet)
        assert not node.up

    @pytest.mark.asyncio
    async def test_closing_while_the_medium_is_away(self, links: _Links) -> None:
        node, gateway = await links.pair()
        await links.world.fail()
        await until_down(node, gateway, seconds=self.patience)
        await asyncio.wait_for(node.close(), self.patience)

    # What it counts.

    @pytest.mark.asyncio
    async def test_it_counts_frames_and_their_bytes(self, links: _Links) -> None:
        node, gateway = await links.pair()
        for frame in (b"one", b"three"):
            await send_when_possible(node, frame)
        await receive_done(gateway, 2, self.patience)
        out = node.stats.frames_out, node.stats.bytes_out
        assert (gateway.stats.frames_in, gateway.stats.bytes_in) == out
        assert out == (2, 8) if self.counts_given else out > (0, 8)
        assert (node.stats.connects, node.stats.disconnects) == (1, 0)

    async def nothing_comes(self, link: Link) -> None:
        """Nothing arrives within ``quiet`` seconds."""
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(link.receive(), self.quiet)


class _Links:
    """The links that one test makes."""

    def __init__(self, world: LinkWorld, patience: float) -> None:
        self.world = world
        self.made: list[Link] = []
        self._patience = patience

    async def pair(self) -> tuple[Link, Link]:
        """A node and a gateway, both up."""
        node, gateway = self.world.node(NODE), self.world.gateway(GATEWAY)
        await self.start(node, gateway)
        return node, gateway

    async def start(self, *links: Link) -> Link:
        """Start these and wait until they are up; gives back the first."""
        self.made += links
        for link in links:
            await link.start()
        await until_up(*links, seconds=self._patience)
        return links[0]

    async def next(self, link: Link) -> Received:
        """The next frame, done with."""
        return (await receive_done(link, 1, self._patience))[0]

    async def close(self) -> None:
        for link in self.made:
            await link.close()


async def _send_all(link: Link, frames: Iterable[bytes]) -> None:
    for frame in frames:
        await send_when_possible(link, frame)
