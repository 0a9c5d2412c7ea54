"""Custody receipts: a gateway's authenticated word on what it holds.

A receipt is a COSE_Mac0 of 24 to 28 bytes for one packet or one run of packets. It names
an explicit set of sequence numbers of one store, each *held*, *refused* for good, or asked
for *later*, and its tag also covers the ids of those packets, which do not travel: it can
never mean other packets, nor another epoch of the gateway, nor the other direction. The
format's home is ``docs/wire-format.md``.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qis_edge.core import cbor, checks
from qis_edge.core.cose import Mac0, mac0, open_mac0
from qis_edge.core.errors import DoesNotFit, Reason, Refused, UsageError
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.ranges import MAX_EXPANDED, decode_set, encode_set

MAX_RECEIPT = 512
EPOCH_SIZE = 4
STORE_SIZE = 4
ID_SIZE = 32
MAX_SECONDS = 2**32 - 1
#: Greatest reason code that may travel; readers keep the codes that they do not know.
MAX_CODE = 255

AAD = b"qis/receipt/1"
_MAC_INFO = b"qis/mac/1"
_REASONS = {reason.value: reason for reason in Reason}

#: Sequence numbers, ascending, each once.
Sequences = tuple[int, ...]


# --- keys ------------------------------------------------------------------------------


class Way(enum.Enum):
    """Which way a MAC key protects."""

    TO_NODE = b"\x01"
    TO_GATEWAY = b"\x02"


@dataclass(frozen=True, slots=True)
class MacKeys:
    """The two keys that a node and a gateway share, 32 bytes each, one for each way."""

    to_node: bytes
    to_gateway: bytes

    def __repr__(self) -> str:
        return "MacKeys()"  # secrets show themselves to nobody


def mac_keys(identity: Identity, *, gateway: PublicKey, node: PublicKey) -> MacKeys:
    """Both keys of a pair, of which ``identity`` is one.

    :raises Refused: SECRET, the other's key is of small order.
    :raises UsageError: ``identity`` is neither of the two.
    """
    if identity.public not in (gateway, node):
        raise UsageError("is neither the gateway nor the node", field="identity")
    peer = node if identity.public == gateway else gateway
    secret = identity.shared_secret(peer)
    return MacKeys(*(_derive(secret, way, gateway, node) for way in Way))


def _derive(secret: bytes, way: Way, gateway: PublicKey, node: PublicKey) -> bytes:
    info = _MAC_INFO + way.value + gateway.thumbprint + node.thumbprint
    return hkdf_sha256(secret, info)


def hkdf_sha256(secret: bytes, info: bytes, salt: bytes = b"") -> bytes:
    """HKDF with SHA-256 (RFC 5869), one block: 32 bytes."""
    key = hmac.digest(salt or bytes(32), secret, "sha256")
    return hmac.digest(key, info + b"\x01", "sha256")


# --- what a receipt says ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a gateway says of packets of one store; each sequence at most once.

    :param store: 4 bytes.
    :param held: these are in its custody.
    :param refused: (reason, sequences): never send these again.
    :param later: (seconds, sequences): send these again, but not sooner.
    :raises UsageError: a sequence twice, or an argument out of bounds.
    """

    store: bytes
    held: Sequences = ()
    refused: tuple[tuple[Reason | int, Sequences], ...] = ()
    later: tuple[tuple[int, Sequences], ...] = ()

    def __post_init__(self) -> None:
        if len(self.store) != STORE_SIZE:
            raise UsageError("must be 4 bytes", field="store")
        named = list(self.named())
        if len(set(named)) != len(named):
            raise UsageError("a sequence is named twice", field="receipt")

    def named(self) -> Iterator[int]:
        """Every sequence, in the order in which the tag covers the packets' ids: held,
        then refused by code, then later by seconds, each ascending."""
        yield from sorted(self.held)
        for _, sequences in sorted(self.refused, key=lambda group: code_of(group[0])):
            yield from sorted(sequences)
        for _, sequences in sorted(self.later):
            yield from sorted(sequences)

    def __len__(self) -> int:
        return sum(1 for _ in self.named())


def code_of(reason: Reason | int) -> int:
    """The number that travels."""
    return reason.value if isinstance(reason, Reason) else reason


def reason_of(code: int) -> Reason | int:
    """The reason with this number; the number itself where we know none."""
    return _REASONS.get(code, code)


@dataclass(frozen=True, slots=True)
class ReceiptMessage:
    """A receipt as it came in: well formed, and *not* to be believed before :func:`verify`."""

    receipt: Receipt
    mac: Mac0


# --- making ----------------------------------------------------------------------------


def build(
    receipt: Receipt,
    key: bytes,
    epoch: bytes,
    ids: Mapping[int, bytes],
    limit: int = MAX_RECEIPT,
) -> bytes:
    """Make one message.

    :param key: 32 bytes, the key of the way gateway → node.
    :param epoch: 4 bytes, of the gateway's spool.
    :param ids: sequence → packet id (32 bytes) for each one named.
    :raises DoesNotFit: over ``limit`` bytes or ``MAX_EXPANDED`` sequences; see :func:`split`.
    :raises UsageError: it names nothing, or an argument is out of bounds.
    """
    payload = _payload(receipt)
    size = _size(payload)
    if size > limit:
        raise DoesNotFit(f"{size} bytes, at most {limit}", field="receipt")
    return mac0(key, payload, _aad(epoch, receipt, ids.get))


def build_all(
    receipt: Receipt,
    key: bytes,
    epoch: bytes,
    ids: Mapping[int, bytes],
    limit: int = MAX_RECEIPT,
) -> list[bytes]:
    """Make as many messages as it takes for each to have at most ``limit`` bytes.

    :raises: as :func:`build`; DoesNotFit where not even one sequence fits.
    """
    return [build(part, key, epoch, ids, limit) for part in split(receipt, limit)]


def split(receipt: Receipt, limit: int = MAX_RECEIPT) -> list[Receipt]:
    """Receipts that say the same together and fit ``limit`` bytes each.

    :raises DoesNotFit: not even one sequence fits.
    """
    items = [(0, 0, sequence) for sequence in sorted(receipt.held)]
    items += _flat(1, ((code_of(reason), group) for reason, group in receipt.refused))
    items += _flat(2, receipt.later)
    parts: list[Receipt] = []
    while items:
        fitting = _how_many(receipt.store, items, limit)
        parts.append(_gather(receipt.store, items[:fitting]))
        del items[:fitting]
    return parts


def _flat(kind: int, groups: Any) -> list[tuple[int, int, int]]:
    return sorted((kind, number, sequence) for number, group in groups for sequence in group)


def _gather(store: bytes, items: list[tuple[int, int, int]]) -> Receipt:
    """Back from (0 held | 1 refused | 2 later, code or seconds, sequence)."""
    held: list[int] = []
    refused: dict[int, list[int]] = {}
    later: dict[int, list[int]] = {}
    for kind, number, sequence in items:
        group = held if kind == 0 else (refused, later)[kind - 1].setdefault(number, [])
        group.append(sequence)
    return Receipt(
        store,
        tuple(held),
        tuple((reason_of(code), tuple(group)) for code, group in refused.items()),
        tuple((seconds, tuple(group)) for seconds, group in later.items()),
    )


def _how_many(store: bytes, items: list[tuple[int, int, int]], limit: int) -> int:
    """How many leading items fit: the size never shrinks as they grow in number."""

    def fits(count: int) -> bool:
        return _size(_payload(_gather(store, items[:count]))) <= limit

    low, high = 0, min(len(items), MAX_EXPANDED) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if low == 0:
        raise DoesNotFit(f"not one sequence fits {limit} bytes", field="limit")
    return low


def _payload(receipt: Receipt) -> bytes:
    if len(receipt) == 0:
        raise UsageError("it names nothing", field="receipt")
    if len(receipt) > MAX_EXPANDED:
        raise DoesNotFit(f"{len(receipt)} sequences, at most {MAX_EXPANDED}", field="receipt")
    refused = [(code_of(reason), group) for reason, group in receipt.refused]
    form: list[object] = [receipt.store, encode_set(receipt.held)]
    if refused or receipt.later:
        form.append(_groups(refused, MAX_CODE, "refused"))
    if receipt.later:
        form.append(_groups(receipt.later, MAX_SECONDS, "later"))
    return cbor.dumps(form)


def _groups(groups: Any, high: int, field: str) -> list[object]:
    numbers = [number for number, _ in groups]
    if len(set(numbers)) != len(numbers) or not all(group for _, group in groups):
        raise UsageError("two groups alike, or an empty one", field=field)
    if not all(0 <= number <= high for number in numbers):
        raise UsageError(f"outside 0..{high}", field=field)
    return [[number, encode_set(group)] for number, group in sorted(groups)]


def _size(payload: bytes) -> int:
    """What the whole message takes: framing 16, tag included, and the payload's head."""
    size = len(payload)
    return 16 + size + (1 if size < 24 else 2 if size < 256 else 3)


# --- reading ---------------------------------------------------------------------------


def parse(raw: bytes) -> ReceiptMessage:
    """Check the form of a message.

    :raises Refused: anything that is not exactly right; the field says where.
    """
    return from_mac0(open_mac0(raw, MAX_RECEIPT, "receipt"))


def from_mac0(mac: Mac0) -> ReceiptMessage:
    """The receipt in a framing that was opened already. :raises Refused: as :func:`parse`."""
    if mac.kid is not None:
        raise Refused(Reason.HEADER, "receipt.unprotected", "a receipt names no key")
    form = checks.array(cbor.loads(mac.payload, "receipt"), 2, 4, "receipt")
    store = checks.bstr(form[0], STORE_SIZE, STORE_SIZE, "receipt.store")
    held = decode_set(form[1], "receipt.held")
    refused = _read_groups(form[2], MAX_CODE, "receipt.refused") if len(form) > 2 else ()
    later = _read_groups(form[3], MAX_SECONDS, "receipt.later") if len(form) > 3 else ()
    # What is empty at the end is left out.
    if (len(form) == 3 and not refused) or (len(form) == 4 and not later):
        raise Refused(Reason.NON_CANONICAL, "receipt")
    named = [*held]
    for _, sequences in (*refused, *later):
        named += sequences
        if len(named) > MAX_EXPANDED:
            raise Refused(Reason.BOUNDS, "receipt", f"more than {MAX_EXPANDED} sequences")
    if not named:
        raise Refused(Reason.BOUNDS, "receipt", "it names nothing")
    if len(set(named)) != len(named):
        raise Refused(Reason.DUPLICATE_KEY, "receipt", "a sequence is named twice")
    reasons = tuple((reason_of(code), sequences) for code, sequences in refused)
    return ReceiptMessage(Receipt(store, held, reasons, later), mac)


def _read_groups(item: object, high: int, field: str) -> tuple[tuple[int, Sequences], ...]:
    """``[[number, set], …]``: numbers ascending, sets not empty."""
    groups: list[tuple[int, Sequences]] = []
    total = 0
    for pair in checks.array(item, 0, MAX_RECEIPT, field):
        number, sequences = checks.array(pair, 2, 2, field)
        number = checks.uint(number, high, field)
        if groups and number <= groups[-1][0]:
            alike = number == groups[-1][0]
            raise Refused(Reason.DUPLICATE_KEY if alike else Reason.NON_CANONICAL, field)
        group = decode_set(sequences, field)
        total += len(group)
        if not group or total > MAX_EXPANDED:
            raise Refused(Reason.BOUNDS, field)
        groups.append((number, group))
    return tuple(groups)


def verify(
    message: ReceiptMessage, key: bytes, epoch: bytes, id_of: Callable[[int], bytes | None]
) -> None:
    """Whether the gateway that shares ``key`` said this, of these packets, in this epoch.

    :param id_of: sequence → packet id (32 bytes), ``None`` where we never sent it.
    :raises Refused: MAC; the field is ``receipt.tag``, or ``receipt.ids`` where it names a
        packet that is not known, which leaves nothing to check the tag by.
    """
    message.mac.verify(key, _aad(epoch, message.receipt, id_of, received=True), "receipt.tag")


def _aad(
    epoch: bytes,
    receipt: Receipt,
    id_of: Callable[[int], bytes | None],
    *,
    received: bool = False,
) -> bytes:
    if len(epoch) != EPOCH_SIZE:
        raise UsageError("must be 4 bytes", field="epoch")
    ids = hashlib.sha256()
    for sequence in receipt.named():
        packet_id = id_of(sequence)
        if packet_id is None:
            if received:
                raise Refused(Reason.MAC, "receipt.ids", f"no packet {sequence} was sent")
            raise UsageError(f"there is none for {sequence}", field="ids")
        if len(packet_id) != ID_SIZE:
            raise UsageError("a packet id has 32 bytes", field="ids")
        ids.update(packet_id)
    return AAD + epoch + ids.digest()
