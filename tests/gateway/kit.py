"""What the tests of a gateway's parts share: a small fleet, nodes, and a link's other end."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from gateway.fleet import Fleet
from gateway.post import Post
from qis_edge.clock import Clock
from qis_edge.core.credential import GATEWAY, ISSUER, NODE, issue
from qis_edge.core.errors import LinkError
from qis_edge.core.identity import Identity
from qis_edge.core.messages import Message, decode
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Packet, pack
from qis_edge.core.receipt import MacKeys, mac_keys
from qis_edge.links.base import Destination, Role
from qis_edge.testing.memory import MemoryLink, MemoryMedium

NOW = 1_800_000_000
HOUR = 3600
ADDRESS = bytes(range(32))
_SERIALS = itertools.count(1)


class Fixed:
    """A clock that stands still."""

    def __init__(self, now: float = NOW) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    def real(self, seconds: float) -> float:
        return seconds


CLOCK: Clock = Fixed()


class Wire(MemoryLink):
    """A gateway's link to nobody: keeps what is sent."""

    def __init__(self, window: int = 1000) -> None:
        super().__init__(MemoryMedium(window=window), Role.GATEWAY, b"gateway!")
        self.sent: list[tuple[bytes, Destination]] = []
        self.broken = False

    async def send(self, frame: bytes, to: Destination) -> None:
        if self.broken:
            raise LinkError("broken")
        await super().send(frame, to)
        self.sent.append((frame, to))


class Letters(Post):
    """A post whose queue is what a test looks at."""

    def __init__(self) -> None:
        super().__init__(Wire())
        self.letters: list[tuple[bytes, Destination]] = []

    def answer(self, frame: bytes, to: Destination) -> None:
        self.letters.append((frame, to))

    def greet(self, frame: bytes, to: Destination) -> None:
        self.letters.append((frame, to))

    async def live(self, frame: bytes, to: Destination) -> None:
        self.letters.append((frame, to))

    async def packet(self, frame: bytes, to: Destination) -> None:
        self.letters.append((frame, to))

    def messages(self, to: bytes | None = None) -> list[Message]:
        """What was sent (to one key)."""
        return [decode(frame) for frame, where in self.letters if to in (None, where.key)]

    def said(self, to: bytes | None = None) -> Counter[str]:
        return Counter(type(one).__name__ for one in self.messages(to))


class People:
    """A fleet's file, its root, its gateway, and whoever a test lets in."""

    def __init__(self, folder: Path) -> None:
        self.root, self.gateway = Identity.generate(), Identity.generate()
        self.path = folder / "fleet.db"
        self.fleet = Fleet(self.path, self.root.public, NOW)
        self.let_in(self.gateway, (GATEWAY, ISSUER), self.root)

    def credential(
        self,
        who: Identity,
        scope: tuple[str, ...] = (NODE,),
        issuer: Identity | None = None,
        expires: int = NOW + 365 * 86400,
    ) -> bytes:
        return issue(
            issuer or self.gateway,
            subject="one",
            key=who.public,
            scope=scope,
            expires=expires,
            serial=next(_SERIALS).to_bytes(4),
        ).raw

    def let_in(
        self, who: Identity, scope: tuple[str, ...] = (NODE,), issuer: Identity | None = None
    ) -> Identity:
        self.fleet.add(self.credential(who, scope, issuer), NOW)
        return who

    def keys(self, node: Identity) -> MacKeys:
        """As the node computes them."""
        return mac_keys(node, gateway=self.gateway.public, node=node.public)

    def elsewhere(self) -> Fleet:
        """The same file, as the command line has it open."""
        return Fleet(self.path, self.root.public, NOW)


def packet_of(
    who: Identity,
    sequence: int = 1,
    *,
    at: int = NOW - HOUR,
    ttl: int = 24,
    where: bytes = ADDRESS,
    value: float = 20.0,
    store: bytes = b"abcd",
) -> Packet:
    outcome = Outcome(at, samples=1, results={"temperature": value})
    return pack([outcome], identity=who, fingerprint=where, store=store, sequence=sequence, ttl=ttl)


async def until(true: Callable[[], object], patience: float = 60.0) -> None:
    """Wait for something that another task does."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.005)
