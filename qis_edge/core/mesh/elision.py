"""Elision: two bytes stand for what both sides know of a packet.

A node's packets of one store at one address all begin alike: the COSE framing, the kid,
the fingerprint and the store. Their *context*, the first two bytes of SHA-256 over kid,
fingerprint and store, is sent instead: 61 bytes become 2. Contexts collide, and anybody
can write one: the receiver tries those that match, and the signature decides.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from qis_edge.core import cbor
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.identity import KID_SIZE, SIGNATURE_SIZE
from qis_edge.core.mesh.framing import CONTEXT_SIZE, Elided
from qis_edge.core.packet import FINGERPRINT_SIZE, MAX_PACKET, STORE_SIZE, Packet

_HEAD = bytes.fromhex("d28443a10132a10448")  # a COSE_Sign1 as we write it, up to the kid
_SIGNATURE_HEAD = b"\x58\x40"
_FINGERPRINT_HEAD = b"\x58\x20"
_STORE_HEAD = b"\x44"
#: Elements of a payload that an elided packet still has, without and with extensions, and
#: the array's first byte that goes with them.
_ARRAYS = {4: b"\x86", 5: b"\x87"}
#: From the array's head to the end of the store.
_LEAD = 1 + len(_FINGERPRINT_HEAD) + FINGERPRINT_SIZE + len(_STORE_HEAD) + STORE_SIZE


@dataclass(frozen=True, slots=True)
class Context:
    """What a packet's leading bytes say."""

    kid: bytes
    fingerprint: bytes
    store: bytes

    @classmethod
    def of(cls, packet: Packet) -> Context:
        """The context of a packet."""
        return cls(packet.kid, packet.fingerprint, packet.store)

    @property
    def name(self) -> bytes:
        """Its two bytes."""
        digest = hashlib.sha256(self.kid + self.fingerprint + self.store).digest()
        return digest[:CONTEXT_SIZE]


def elide(packet: Packet) -> Elided | None:
    """The packet without what its context stands for.

    ``None``: it has another form than the one that would be restored (it was signed under
    the other number of the algorithm); such a packet travels whole.
    """
    context = Context.of(packet)
    payload_at = len(_HEAD) + KID_SIZE
    payload_head = 2 if packet.raw[payload_at : payload_at + 1] == b"\x58" else 3
    tail = packet.raw[payload_at + payload_head + _LEAD : -SIGNATURE_SIZE - len(_SIGNATURE_HEAD)]
    rest = tail + packet.raw[-SIGNATURE_SIZE:]
    try:
        same = restore(context, rest) == packet.raw
    except Refused:
        same = False
    return Elided(context.name, rest) if same else None


def restore(context: Context, rest: bytes) -> bytes:
    """The packet as it was signed, if it was this context's; nothing of it is verified.

    :raises Refused: TRUNCATED, OVERSIZED, BOUNDS, or what is wrong with the payload.
    """
    if len(rest) <= SIGNATURE_SIZE:
        raise Refused(Reason.TRUNCATED, "elided")
    tail, signature = rest[:-SIGNATURE_SIZE], rest[-SIGNATURE_SIZE:]
    lead = _FINGERPRINT_HEAD + context.fingerprint + _STORE_HEAD + context.store
    payload = _array_head(tail) + lead + tail
    raw = b"".join((_HEAD, context.kid, cbor.dumps(payload), _SIGNATURE_HEAD, signature))
    if len(raw) > MAX_PACKET:
        raise Refused(Reason.OVERSIZED, "elided", f"{len(raw)} bytes, at most {MAX_PACKET}")
    return raw


def _array_head(tail: bytes) -> bytes:
    """As many elements as the tail has, and those that were left out."""
    at = count = 0
    while at < len(tail):
        at = cbor.item_end(tail, at, "elided")
        count += 1
        if count > max(_ARRAYS):
            break
    if count not in _ARRAYS:
        raise Refused(Reason.BOUNDS, "elided", f"{count} elements")
    return _ARRAYS[count]


class Contexts:
    """The contexts that verified, bounded: what was used longest ago is forgotten.

    :param capacity: contexts in all.
    :param per_key: contexts of one key: a fleet's own node cannot drive out the others.
    """

    def __init__(self, capacity: int = 1024, per_key: int = 32) -> None:
        self._capacity = capacity
        self._per_key = per_key
        self._names: OrderedDict[Context, bytes] = OrderedDict()
        self._by_name: dict[bytes, dict[Context, None]] = {}
        self._by_kid: dict[bytes, OrderedDict[Context, None]] = {}

    def learn(self, context: Context) -> bool:
        """A packet of this context verified just now; whether that is new."""
        mine = self._by_kid.setdefault(context.kid, OrderedDict())
        mine[context] = None
        mine.move_to_end(context)
        if context in self._names:
            self._names.move_to_end(context)
            return False
        self._names[context] = context.name
        self._by_name.setdefault(context.name, {})[context] = None
        if len(mine) > self._per_key:
            self._forget(next(iter(mine)))
        if len(self._names) > self._capacity:
            self._forget(next(iter(self._names)))
        return True

    def _forget(self, context: Context) -> None:
        name = self._names.pop(context)
        del self._by_name[name][context]
        if not self._by_name[name]:
            del self._by_name[name]
        del self._by_kid[context.kid][context]
        if not self._by_kid[context.kid]:
            del self._by_kid[context.kid]

    def match(self, name: bytes) -> tuple[Context, ...]:
        """The contexts of this name, the youngest first."""
        return tuple(reversed(self._by_name.get(name, {})))

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, context: object) -> bool:
        return context in self._names
