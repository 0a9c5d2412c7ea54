"""What the outbox takes and gives, and how its rows hold it.

An outcome's row is JSON, ``[kind, confidence, samples, results, summary]``: floats come
back exactly, and a person with an SQLite shell can read what a broken card still holds.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from qis_edge.core.errors import UsageError
from qis_edge.core.outcome import Kind, Label, Outcome, Value
from qis_edge.core.packet import MAX_SEQUENCE, MAX_TTL, Extensions
from qis_edge.core.priority import Priority
from qis_edge.core.receipt import Receipt

DEFAULT_TTL = 24 * 7
PLAIN = Extensions()


@dataclass(frozen=True, slots=True)
class Unclocked:
    """When an outcome was made, on a machine that does not know the time.

    :param boot: names this run of the machine (Linux: ``/proc/sys/kernel/random/boot_id``).
    :param monotonic: seconds since its boot at which the outcome's window began.
    """

    boot: str
    monotonic: float


@dataclass(frozen=True, slots=True)
class Pending:
    """An outcome to be kept; see :meth:`Outbox.append`."""

    outcome: Outcome
    fingerprint: bytes
    priority: int = Priority.NORMAL
    ttl: int = DEFAULT_TTL
    extensions: Extensions = PLAIN
    unclocked: Unclocked | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """Outcomes that could become a packet now; a policy may let them wait for more.

    :param count: how many of them the packet would carry.
    :param full: more are waiting than one packet carries.
    :param oldest: start of the first one, unix seconds.
    """

    fingerprint: bytes
    priority: Priority
    ttl: int
    count: int
    full: bool
    oldest: int


@dataclass(frozen=True, slots=True)
class Queued:
    """A packet in the outbox.

    :param priority: of its outcomes.
    :param count: how many outcomes.
    :param last_time: start of its newest outcome, unix seconds.
    :param expires: unix seconds after which nobody need route it.
    :param holders: how many gateways have said that they hold it.
    """

    raw: bytes = field(repr=False)
    store: bytes
    sequence: int
    priority: Priority
    count: int
    last_time: int
    expires: int
    holders: int
    position: tuple[int, int] = field(repr=False)

    @property
    def key(self) -> tuple[bytes, int]:
        """(store, sequence): what receipts know it by."""
        return self.store, self.sequence


@dataclass(frozen=True, slots=True)
class Aside:
    """Something that will never be sent by itself.

    :param at: unix seconds that the store then knew to have passed (its clock floor).
    :param key: (store, sequence) of a refused packet; ``None`` for an outcome that no
        packet can carry.
    :param reason: code of the refusal (``Reason``), 0 for an outcome.
    :param detail: what was said, for people.
    :param gateway: kid of who refused it, or ``b""``.
    :param count: how many outcomes.
    :param content: the packet, or the outcome's row.
    """

    at: int
    key: tuple[bytes, int] | None
    reason: int
    detail: str
    gateway: bytes
    priority: Priority
    count: int
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """A receipt whose tag was checked, and whose it is.

    :param gateway: its kid, 8 bytes.
    :param epoch: of its spool, 4 bytes.
    """

    gateway: bytes
    epoch: bytes
    receipt: Receipt


@dataclass(slots=True)
class Settled:
    """What receipts changed; keys are (store, sequence).

    :param done: need not be sent any more.
    :param refused: were put aside, with the reason's code.
    :param later: are to be sent again, after so many seconds.
    :param conflict: a gateway holds other content under our numbers: a new store began.
    """

    done: list[tuple[bytes, int]] = field(default_factory=list)
    refused: list[tuple[tuple[bytes, int], int]] = field(default_factory=list)
    later: list[tuple[tuple[bytes, int], int]] = field(default_factory=list)
    conflict: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened to the store and that its owner should know.

    :param at: unix seconds that the store then knew to have passed (its clock floor).
    :param code: stable, e.g. ``salvaged``, ``torn_log``, ``copied``, ``conflict``.
    """

    at: int
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Stats:
    """An outbox in numbers. All counts are kept, none is counted; they survive restarts.

    Every outcome made is in exactly one place: ``made == waiting + untimed +
    open_outcomes + held_outcomes + refused_outcomes + unpackable + evicted_receipted +
    evicted_expired + evicted_unsent + unreadable``.
    """

    store: bytes  # the store that packs now
    next_sequence: int
    stores: int  # how many there have been
    clock: int  # it is not earlier than this, unix seconds
    budget: int  # bytes; 0 where it is not known (a reader)
    bytes: int  # of the file that hold something
    made: int  # outcomes ever appended
    waiting: int  # outcomes to be packed
    untimed: int  # outcomes that first need to know their time
    packed: int  # outcomes ever packed (again after a conflict)
    packets: int  # packets ever made
    open_packets: int  # packets without enough receipts
    open_outcomes: int
    held_packets: int  # packets with their receipts, kept while there is room
    held_outcomes: int
    refused_packets: int  # packets that a gateway refused for good
    refused_outcomes: int
    unpackable: int  # outcomes that no packet can carry
    evicted_packets: int  # packets dropped for want of room, of any class
    evicted_receipted: int  # outcomes dropped for want of room: held by a gateway
    evicted_expired: int  # … never held, but past their ttl
    evicted_unsent: int  # … never held and not past it: lost to the budget
    unreadable: int  # outcomes lost to damage of the file

    def shown(self) -> dict[str, object]:
        """As ``status --json`` shows it."""
        return {
            "store": self.store.hex(),
            "made": self.made,
            "waiting": self.waiting + self.untimed,
            "packed": self.packed,
            "packets": self.packets,
            "unreceipted": self.open_packets,
            "held": self.held_packets,
            "refused": self.refused_packets,
            "evicted_receipted": self.evicted_receipted,
            "evicted_expired": self.evicted_expired,
            "evicted_unsent": self.evicted_unsent,
            "unreadable": self.unreadable,
            "conflicts": self.conflicts,
            "bytes": self.bytes,
            "budget": self.budget,
        }

    conflicts: int  # packets whose number a gateway knew with other content


def _make_encoder() -> Callable[[object], str]:
    """:meth:`json.JSONEncoder.encode` makes its C part anew for each call, which costs as
    much as the encoding: here it is made once, where the interpreter lets us."""
    encoder = json.JSONEncoder(
        separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
    )
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return encoder.encode
    text = json.encoder.encode_basestring
    encode = make(None, encoder.default, text, None, ":", ",", False, False, False)
    join = "".join
    return lambda value: join(encode(value, 0))


_ENCODE = _make_encoder()
_TEXT = {str}


def body_of(outcome: Outcome) -> bytes:
    """An outcome without its time, as a row holds it.

    :raises UsageError: a result is not a finite number, a word or missing.
    """
    results: Any = outcome.results
    if not _TEXT.issuperset(map(type, results)):
        results = list(results.items())
    elif type(results) is not dict:
        results = dict(results)
    try:
        return _ENCODE(
            [outcome.kind, outcome.confidence, outcome.samples, results, outcome.summary]
        ).encode()
    except (TypeError, ValueError) as error:
        raise UsageError(f"cannot be kept: {error}", field="results") from None


def outcome_of(time: int, body: bytes) -> Outcome:
    """Back from :func:`body_of`. :raises ValueError: it is none of ours."""
    kind, confidence, samples, results, summary = json.loads(body)
    pairs = results.items() if isinstance(results, dict) else results
    named: dict[Label, Value] = dict(pairs)
    return Outcome(time, Kind(kind), confidence, samples, named, summary)


def extensions_text(extensions: Extensions) -> str:
    """Extensions as a row holds them (without the floor, which is the packer's)."""
    return "{}" if extensions is PLAIN else _extensions_text(extensions)


@lru_cache(maxsize=256)
def _extensions_text(extensions: Extensions) -> str:
    form: dict[str, Any] = {}
    if extensions.vector is not None:
        form["vector"] = [float(value) for value in extensions.vector]
    if extensions.tags:
        form["tags"] = list(extensions.tags)
    if extensions.time_uncertainty is not None:
        form["time_uncertainty"] = extensions.time_uncertainty
    try:
        return _ENCODE(form)
    except (TypeError, ValueError) as error:
        raise UsageError(f"cannot be kept: {error}", field="extensions") from None


@lru_cache(maxsize=256)
def extensions_of(text: str) -> Extensions:
    """Back from :func:`extensions_text`."""
    form = json.loads(text)
    return Extensions(
        vector=tuple(form["vector"]) if "vector" in form else None,
        tags=tuple(form.get("tags", ())),
        time_uncertainty=form.get("time_uncertainty"),
    )


def group_key(fingerprint: bytes, priority: int, ttl: int, extensions: str) -> bytes:
    """What outcomes of one packet have in common, in 16 bytes."""
    rest = f"{priority} {ttl} {extensions}".encode()
    return hashlib.blake2b(fingerprint + rest, digest_size=16).digest()


def check_of(content: bytes, *numbers: float) -> int:
    """A row's checksum: SQLite does not notice a flipped bit within a row, which may also make
    something else than bytes of what it holds. No row has -1."""
    if type(content) is not bytes:
        return -1
    return zlib.crc32(content, zlib.crc32(repr(numbers).encode()))


def packet_number(store: int, sequence: int) -> int:
    """A packet's row id: in order of age."""
    return store << 32 | sequence


def sequence_of(number: int) -> int:
    """The sequence in a row id."""
    return number & MAX_SEQUENCE


def validate(pending: Pending) -> None:
    """:raises UsageError: naming what is wrong."""
    if len(pending.fingerprint) != 32:
        raise UsageError("must be 32 bytes", field="fingerprint")
    if not Priority.LOW <= pending.priority <= Priority.URGENT:
        raise UsageError(f"{pending.priority} is outside 0..3", field="priority")
    if not 0 <= pending.ttl <= MAX_TTL:
        raise UsageError(f"must be 0..{MAX_TTL} hours", field="ttl")
