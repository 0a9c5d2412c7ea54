"""Packets of a few nodes, small and large."""

from __future__ import annotations

from collections.abc import Sequence

from qis_edge.core.errors import Reason, Refused
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.outcome import Kind, Outcome
from qis_edge.core.packet import Extensions, Packet, pack, unpack
from qis_edge.core.receipt import Receipt, build, mac_keys

STORE = b"stor"
FINGERPRINT = bytes(range(32))
EPOCH = b"\x0a\x0b\x0c\x0d"
GATEWAY = Identity.from_seed(b"\xff" * 32)
NODES = [Identity.from_seed(bytes([number]) * 32) for number in range(1, 5)]
_KEYS = {node.kid: node.public for node in NODES}
TO_NODE = {
    node.kid: mac_keys(GATEWAY, gateway=GATEWAY.public, node=node.public).to_node for node in NODES
}


def key_of(kid: bytes) -> PublicKey:
    try:
        return _KEYS[kid]
    except KeyError:
        raise Refused(Reason.UNKNOWN_KEY, "kid") from None


def verify(raw: bytes) -> Packet:
    return unpack(raw, key_of)


def packet(
    sequence: int = 1,
    *,
    node: Identity = NODES[0],
    store: bytes = STORE,
    fingerprint: bytes = FINGERPRINT,
    words: int = 0,
    extensions: Extensions | None = None,
) -> Packet:
    """A packet of about 130 + ``words`` bytes."""
    summaries = [words // 2, words - words // 2] if words > 180 else [words]
    outcomes = [
        Outcome(
            time=1_700_000_000 + 3600 * number,
            kind=Kind.RESOLVED,
            confidence=0.9,
            samples=60,
            results={1: 21},
            summary="w" * size if size else None,
        )
        for number, size in enumerate(summaries)
    ]
    return pack(
        outcomes,
        identity=node,
        fingerprint=fingerprint,
        store=store,
        sequence=sequence,
        extensions=extensions,
    )


def receipt_for(packets: Sequence[Packet]) -> bytes:
    """The gateway holds these, of one store of one node."""
    held = tuple(sorted(p.sequence for p in packets))
    ids = {p.sequence: p.id for p in packets}
    return build(Receipt(packets[0].store, held), TO_NODE[packets[0].kid], EPOCH, ids)
