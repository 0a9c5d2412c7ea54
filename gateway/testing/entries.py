"""Signed packets for tests, and patience with those who carry them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from gateway.routing import Batch, Entry, Subscription
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Extensions, pack, unpack

#: The node whose packets the suites deposit.
NODE = Identity.from_seed(b"a node that takes part in a test")
#: Another node of the fleet.
NEIGHBOUR = Identity.from_seed(b"another node, of the same fleet.")
STORE = b"test"
#: Two addresses whose first 64 bits agree, and one of another domain.
ADDRESS = b"\x5a" * 32
SIBLING = b"\x5a" * 8 + b"\xa5" * 24
STRANGER = b"\xc3" * 32
#: 2026-01-01T00:00:00Z.
START = 1_767_225_600
HOUR = 3600


def make_entry(
    number: int,
    *,
    fingerprint: bytes = ADDRESS,
    time: int | None = None,
    ttl: int = 24,
    confidence: float = 0.9,
    vector: tuple[float, ...] | None = None,
    outcomes: int = 1,
    identity: Identity = NODE,
) -> Entry:
    """A signed packet, as an engine gets it; the same arguments make the same packet.

    :param number: its sequence number.
    :param time: of its newest outcome, unix seconds; ``None``: ``number`` hours after ``START``.
    :param ttl: hours.
    :param vector: travels in thousandths.
    """
    newest = START + number * HOUR if time is None else time
    return Entry.of(
        pack(
            [
                Outcome(
                    time=newest - HOUR * back,
                    confidence=confidence,
                    samples=60,
                    results={"temperature": (number * 7 + back) % 400 / 10},
                )
                for back in range(outcomes)
            ],
            identity=identity,
            fingerprint=fingerprint,
            store=STORE,
            sequence=number,
            ttl=ttl,
            extensions=Extensions(vector=vector),
        )
    )


def accept(raw: bytes) -> Entry:
    """As a gateway's: with the signature, of :data:`NODE` or :data:`NEIGHBOUR`.

    :raises Refused: somebody else's, or no packet.
    """
    return Entry.of(unpack(raw, _key_of))


def _key_of(kid: bytes) -> PublicKey:
    for node in (NODE, NEIGHBOUR):
        if kid == node.kid:
            return node.public
    raise Refused(Reason.UNKNOWN_KEY, "kid")


async def eventually(condition: Callable[[], object], seconds: float) -> None:
    """Wait until an async or plain condition holds.

    :raises TimeoutError: it did not.
    """
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.02)


async def collect(
    subscription: Subscription, count: int, seconds: float, *, live: bool = False
) -> list[Batch]:
    """The next batches, until they have at least ``count`` entries (and one was live).

    :raises TimeoutError: they did not come.
    """
    batches: list[Batch] = []
    found = 0
    async with asyncio.timeout(seconds):
        async for batch in subscription:
            batches.append(batch)
            found += len(batch.entries)
            if found >= count and (batch.live or not live):
                break
    return batches


def entries_of(batches: Iterable[Batch]) -> list[Entry]:
    """What is in batches, in order."""
    return [entry for batch in batches for entry in batch.entries]
