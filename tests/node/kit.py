"""What the tests of a node's parts share: a small fleet, and a link that tells what was sent."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from qis_edge.core.credential import GATEWAY, ISSUER, NODE, Credential, TrustStore, issue
from qis_edge.core.errors import LinkError
from qis_edge.core.identity import Identity
from qis_edge.core.messages import Greeting, Message, decode
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Packet, pack
from qis_edge.core.receipt import MacKeys, mac_keys
from qis_edge.links.base import Destination, Direction, Role
from qis_edge.testing.memory import MemoryLink, MemoryMedium

NOW = 1_800_000_000
HOUR = 3600
ADDRESS = bytes(range(32))
_SERIALS = itertools.count(1)


class Fleet:
    """A root, one gateway, and a node: us."""

    def __init__(self) -> None:
        self.root, self.gateway, self.me = (Identity.generate() for _ in range(3))
        self.gateway_credential = self.vouch(self.gateway, (GATEWAY, ISSUER), self.root)
        self.credential = self.vouch(self.me)

    def vouch(
        self,
        who: Identity,
        scope: tuple[str, ...] = (NODE,),
        issuer: Identity | None = None,
        expires: int = NOW + 365 * 86400,
    ) -> Credential:
        """A credential, of the gateway unless said."""
        return issue(
            issuer or self.gateway,
            subject="one",
            key=who.public,
            scope=scope,
            expires=expires,
            serial=next(_SERIALS).to_bytes(4),
        )

    def trust(self, *, enrolled: bool = True, gateway: bool = True) -> TrustStore:
        """What we believe."""
        store = TrustStore(self.root.public)
        if gateway or enrolled:
            store.add(self.gateway_credential.raw, NOW)
        if enrolled:
            store.add(self.credential.raw, NOW)
        return store

    def keys(self, gateway: Identity | None = None) -> MacKeys:
        """What a gateway and we share, as the gateway computes it."""
        other = gateway or self.gateway
        return mac_keys(other, gateway=other.public, node=self.me.public)

    def greeting(
        self,
        nonce: bytes,
        *,
        gateway: Identity | None = None,
        time: int = NOW,
        epoch: bytes = b"ep-1",
        since: int = 0,
        revocation: int = 0,
    ) -> Greeting:
        """As it arrives."""
        other = gateway or self.gateway
        said = Greeting(other.kid, time, epoch, since, revocation)
        arrived = decode(said.encode(self.keys(other).to_node, nonce))
        assert isinstance(arrived, Greeting)
        return arrived


def packet_of(
    who: Identity,
    sequence: int = 1,
    *,
    time: int = NOW - HOUR,
    ttl: int = 24,
    where: bytes = ADDRESS,
    value: float = 20.0,
) -> Packet:
    """One outcome, one packet."""
    outcome = Outcome(time, samples=1, results={"temperature": value})
    return pack(
        [outcome], identity=who, fingerprint=where, store=b"abcd", sequence=sequence, ttl=ttl
    )


class Wire(MemoryLink):
    """A node's link to nobody: keeps what is sent, takes what a test brings."""

    def __init__(self, kid: bytes) -> None:
        super().__init__(MemoryMedium(), Role.NODE, kid)
        self.sent: list[bytes] = []
        self.broken = False

    async def send(self, frame: bytes, to: Destination) -> None:
        if self.broken:
            raise LinkError("broken")
        await super().send(frame, to)
        self.sent.append(frame)

    def bring(self, raw: bytes, direction: Direction = Direction.DOWN) -> None:
        """A frame comes in."""
        self.deliver(raw, direction, None)

    def messages(self) -> list[Message]:
        """What was sent, decoded."""
        return [decode(frame) for frame in self.sent]


async def until(true: Callable[[], object], patience: float = 60.0) -> None:
    """Wait for something that another task does."""
    for _ in range(round(patience / 0.005)):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")
