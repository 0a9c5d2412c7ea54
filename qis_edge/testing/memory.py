"""Links without a medium: :class:`MemoryMedium` carries frames within one event loop.

    medium = MemoryMedium(Faults(loss=0.3, duplicate=0.1), seed=7)
    node, gateway = medium.node(kid), medium.gateway(gateway_kid)
    await node.start()
    await gateway.start()
    await node.send(frame, UP)
    received = await gateway.receive()

It passes the suite that every link passes, and it does on demand what a medium does
unasked: loses, repeats, reorders and delays frames, goes away, and forgets.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from qis_edge.core.errors import LinkError, UsageError
from qis_edge.links.base import (
    BROKER_CADENCE,
    MAX_FRAME,
    Destination,
    Direction,
    LinkStats,
    Received,
    Role,
)
from qis_edge.links.wake import Wake


@dataclass(frozen=True, slots=True)
class Faults:
    """What a medium does to frames; drawn for each frame and each receiver.

    :param loss: probability that a frame is lost.
    :param duplicate: probability that it comes twice.
    :param reorder: probability that later frames overtake it.
    :param delay: seconds that every frame takes.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("loss", "duplicate", "reorder"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError("is a probability, 0..1", field=name)


@dataclass(slots=True)
class Carried:
    """What became of the frames, counted by receiver."""

    delivered: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0


class MemoryMedium:
    """The medium between :class:`MemoryLink` objects of one event loop.

    :param faults: what it does to frames; may be changed at any time.
    :param seed: the same seed and the same sends give the same faults.
    :param mtu: largest frame.
    :param window: frames that one link may have under way.
    :param receive_window: frames that a receiver may hold without :meth:`Link.done`.
    :param interval: seconds that a link asks for between two sends (``not_before``).
    :param mesh: like radio: frames name no sender, and nodes hear each other and all PEERS.

    As an MQTT broker does, it keeps frames for a gateway that is away, and gives a gateway
    again what it had not done with; :meth:`forget` loses both.
    """

    #: How far a reordered frame falls back at most, seconds.
    _SETBACK = 0.02

    def __init__(
        self,
        faults: Faults | None = None,
        *,
        seed: int = 0,
        mtu: int = MAX_FRAME,
        window: int = 20,
        receive_window: int = 200,
        interval: float = 0.0,
        mesh: bool = False,
    ) -> None:
        self.faults = faults or Faults()
        self.carried = Carried()
        self.mtu = mtu
        self.window = window
        self.receive_window = receive_window
        self.interval = interval
        self.mesh = mesh
        self.works = True
        self._random = random.Random(seed)  # noqa: S311 - faults are to be repeatable
        self._links: list[MemoryLink] = []

    def node(self, kid: bytes) -> MemoryLink:
        """A node's link, not started."""
        return self._add(Role.NODE, kid)

    def gateway(self, kid: bytes) -> MemoryLink:
        """A gateway's link, not started. One with the kid of an earlier, closed one takes
        over what is kept for it."""
        link = self._add(Role.GATEWAY, kid)
        for other in list(self._links):
            if other is not link and other.closed and other.kid == kid:
                link.inherit(other)
                self._links.remove(other)
        return link

    def _add(self, role: Role, kid: bytes) -> MemoryLink:
        link = MemoryLink(self, role, kid)
        self._links.append(link)
        return link

    def fail(self) -> None:
        """Go away: every link is down, and what was on its way is lost."""
        self.works = False
        for link in self._links:
            link.refresh()

    def heal(self) -> None:
        """Come back."""
        self.works = True
        for link in self._links:
            link.refresh()

    def forget(self) -> None:
        """Lose what is kept for gateways: what happens to a broker that is killed."""
        for link in self._links:
            link.forget()

    def inject(self, data: bytes, to: Destination, claimed: bytes | None = None) -> None:
        """A frame from a stranger, of any size, as if ``claimed`` had sent it."""
        for link in self._links:
            if self._reaches(to, link, None):
                link.deliver(data, to.direction, self._claim(to, claimed))

    # From the links.

    def carry(self, frame: bytes, to: Destination, sender: MemoryLink) -> None:
        """Bring a frame to all whom it reaches, with the present faults."""
        for link in self._links:
            if self._reaches(to, link, sender):
                self._bring(frame, to.direction, self._claim(to, sender.kid), link)

    def _claim(self, to: Destination, sender: bytes | None) -> bytes | None:
        if self.mesh or to.direction is Direction.PEERS:
            return None
        return sender if to.direction is Direction.UP else to.key

    def _reaches(self, to: Destination, link: MemoryLink, sender: MemoryLink | None) -> bool:
        if link is sender:
            return False
        if link.role is Role.GATEWAY:
            return to.direction is Direction.UP
        if to.direction is Direction.UP:
            return self.mesh
        if to.direction is Direction.DOWN:
            return link.kid == to.key
        return self.mesh or to.key in link.listening

    def _bring(
        self, frame: bytes, direction: Direction, claimed: bytes | None, link: MemoryLink
    ) -> None:
        if self._happens(self.faults.loss):
            self.carried.lost += 1
            return
        copies = 1
        if self._happens(self.faults.duplicate):
            self.carried.duplicated += 1
            copies = 2
        for _ in range(copies):
            setback = 0.0
            if self._happens(self.faults.reorder):
                self.carried.reordered += 1
                setback = self._SETBACK * self._random.random()
            self.carried.delivered += 1
            link.deliver_later(setback, frame, direction, claimed)

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._random.random() < probability


@dataclass(slots=True, eq=False)
class _Parcel:
    """A frame on the receiver's side, until it is done with."""

    data: bytes
    direction: Direction
    claimed: bytes | None


@dataclass(slots=True, eq=False)
class _Token:
    parcel: _Parcel
    generation: int


class MemoryLink:
    """One end of a :class:`MemoryMedium`; see :class:`qis_edge.links.base.Link`."""

    #: Frames kept for a receiver beyond its window; more are lost.
    _KEPT = 10_000

    def __init__(self, medium: MemoryMedium, role: Role, kid: bytes) -> None:
        self.name = f"memory-{role.value}-{kid.hex()}"
        self.url = "memory:"
        self.mtu = medium.mtu
        self.fits = self.mtu
        self.cadence = BROKER_CADENCE
        self.shared = False
        self.stats = LinkStats()
        self.role = role
        self.kid = kid
        self.closed = False
        self.listening: frozenset[bytes] = frozenset()
        self._medium = medium
        self._started = self._cut = self._up = False
        self._generation = 0
        self._under_way = 0
        self._last_send: float | None = None
        self._waiting: deque[_Parcel] = deque(maxlen=self._KEPT)
        self._undone: dict[_Parcel, None] = {}  # in the order in which they were given
        self._queue: deque[Received] = deque()
        self._arrived = Wake()
        self._wake = Wake()

    @property
    def up(self) -> bool:
        """Whether it is started, not closed, and the medium works for it."""
        return self._up

    @property
    def room(self) -> int:
        """The window less what is under way."""
        return max(0, self._medium.window - self._under_way) if self._up else 0

    @property
    def not_before(self) -> float:
        """An ``interval`` after the last send."""
        if self._last_send is None or not self._medium.interval:
            return 0.0
        return self._last_send + self._medium.interval

    def cost(self, size: int) -> float:
        """The bytes of the frame."""
        return float(size)

    def changed(self) -> Coroutine[Any, Any, None]:
        return self._wake.changed()

    async def start(self) -> None:
        self._started = True
        asyncio.get_running_loop().call_soon(self.refresh)

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.refresh()
        self._wake.end()
        self._arrived.end()

    async def send(self, frame: bytes, to: Destination) -> None:
        if (to.direction is Direction.UP) is not (self.role is Role.NODE):
            raise UsageError(f"a {self.role.value} does not send {to.direction.value}", field="to")
        if len(frame) > self.mtu:
            raise LinkError(f"{self.name}: {len(frame)} bytes, at most {self.mtu}")
        if not self._up:
            raise LinkError(f"{self.name} is down")
        if not self.room:
            raise LinkError(f"{self.name} has no room")
        self._under_way += 1
        self._last_send = time.monotonic()
        self.stats.frames_out += 1
        self.stats.bytes_out += len(frame)
        _later(self._medium.faults.delay, self._arrive, bytes(frame), to, self._generation)

    def _arrive(self, frame: bytes, to: Destination, generation: int) -> None:
        if generation != self._generation:
            return  # it went down with the link
        self._under_way -= 1
        self._medium.carry(frame, to, self)
        self._wake.notify()

    async def receive(self) -> Received:
        while not self._queue:
            if self.closed:
                raise LinkError(f"{self.name} is closed")
            await self._arrived.changed()
        return self._queue.popleft()

    async def done(self, received: Received) -> None:
        token = received.token
        if isinstance(token, _Token) and token.generation == self._generation:
            self._undone.pop(token.parcel, None)
            self._hand_out()

    async def listen(self, fingerprints: frozenset[bytes]) -> None:
        if self.role is Role.NODE:
            self.listening = fingerprints

    # For tests.

    def cut(self) -> None:
        """Lose the medium, alone; :meth:`restore` finds it again."""
        self._cut = True
        self.refresh()

    def restore(self) -> None:
        """Find the medium again."""
        self._cut = False
        self.refresh()

    # For the medium.

    def refresh(self) -> None:
        """Go up or down, as things are."""
        up = self._started and self._medium.works and not (self.closed or self._cut)
        if up == self._up:
            return
        self._up = up
        self._generation += 1
        self._under_way = 0
        if up:
            self.stats.connects += 1
            self.stats.last_error = None
            self._resume()
        else:
            self.stats.disconnects += 1
            self.stats.last_error = "the medium is away"
        self._wake.notify()

    def _resume(self) -> None:
        if self.role is Role.NODE:
            self.forget()
            return
        # What was not done with comes again, and so goes from the queue.
        self._queue.clear()
        self._waiting.extendleft(reversed(self._undone))
        self._undone.clear()
        self._hand_out()

    def forget(self) -> None:
        """Lose what is kept for this link."""
        self._waiting.clear()
        self._undone.clear()

    def inherit(self, other: MemoryLink) -> None:
        """What is kept for another is now kept for this one."""
        self._waiting.extend([*other._undone, *other._waiting])
        other.forget()

    def deliver_later(
        self, delay: float, data: bytes, direction: Direction, claimed: bytes | None
    ) -> None:
        """Deliver a frame after some seconds, unless it is a node that goes down before."""
        if delay > 0:
            _later(delay, self._deliver_if, self._generation, data, direction, claimed)
        else:
            self.deliver(data, direction, claimed)

    def _deliver_if(
        self, generation: int, data: bytes, direction: Direction, claimed: bytes | None
    ) -> None:
        if generation == self._generation or self.role is Role.GATEWAY:
            self.deliver(data, direction, claimed)

    def deliver(self, data: bytes, direction: Direction, claimed: bytes | None) -> None:
        """A frame arrives."""
        if not self._up and self.role is Role.NODE:
            return
        if len(data) > self.mtu:
            self.stats.dropped_in += 1
            return
        self._waiting.append(_Parcel(data, direction, claimed))
        self._hand_out()

    def _hand_out(self) -> None:
        while self._up and self._waiting and len(self._undone) < self._medium.receive_window:
            parcel = self._waiting.popleft()
            self._undone[parcel] = None
            token = _Token(parcel, self._generation)
            self._queue.append(Received(parcel.data, parcel.direction, parcel.claimed, token))
            self.stats.frames_in += 1
            self.stats.bytes_in += len(parcel.data)
            self._arrived.notify()


def _later(delay: float, call: Callable[..., None], *arguments: Any) -> None:
    loop = asyncio.get_running_loop()
    if delay > 0:
        loop.call_later(delay, call, *arguments)
    else:
        loop.call_soon(call, *arguments)
