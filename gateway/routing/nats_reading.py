"""Reading several JetStream streams at once: places in them, and what their consumers give.

Each stream has a consumer of ours, in the server's memory, which is asked for a number of
messages and sends them as they come. What has come waits here until somebody fetches it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg

from gateway.routing.feed import CHUNK_BYTES, CHUNK_PACKETS

#: Bytes of a fingerprint that are its domain.
DOMAIN_SIZE = 8
BORN_SIZE = 8
#: The stream of domains beyond the limit, among those that are named by a domain in hex.
REST = "rest"
#: Seconds for which one question for messages holds.
ASKED = 10
#: Seconds more after which a consumer that says nothing is given up.
LATE = 5.0
#: A question is for no fewer messages, however many streams there are.
LEAST_ASKED = 50

_HEAD = struct.Struct(f">B{BORN_SIZE}s?")
_SPOT = struct.Struct(f">{DOMAIN_SIZE}s4sQ4s")
_VERSION = 2


def short(text: str | bytes) -> bytes:
    """4 bytes by which it is known again."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).digest()[:4]


class Spot(NamedTuple):
    """Where a reader stands in a stream.

    :param mark: of the stream: one that was made anew has another.
    :param seq: of the last message read.
    :param check: of its content: after a loss, another may have its number.
    """

    mark: bytes
    seq: int
    check: bytes


#: By what a stream is named by: a domain, or :data:`REST`.
Spots = dict[str, Spot]


def encode(born: bytes, spots: Mapping[str, Spot]) -> bytes:
    """A position: the log's key, and 24 bytes for each stream. None for the beginning."""
    if not spots:
        return b""
    names = sorted(spots, reverse=True)  # the rest is the first
    parts = [
        _SPOT.pack(bytes(DOMAIN_SIZE) if name == REST else bytes.fromhex(name), *spots[name])
        for name in names
    ]
    return _HEAD.pack(_VERSION, born, REST in spots) + b"".join(parts)


def decode(position: bytes, born: bytes) -> Spots:
    """The beginning, where it is a place in another log or none at all."""
    if len(position) < _HEAD.size or (len(position) - _HEAD.size) % _SPOT.size:
        return {}
    version, where, rest = _HEAD.unpack_from(position)
    if version != _VERSION or where != born:
        return {}
    found: Spots = {}
    for domain, *spot in _SPOT.iter_unpack(position[_HEAD.size :]):
        found[REST if rest and not found else domain.hex()] = Spot(*spot)
    return found


class Reader:
    """A consumer on the server, and what it has sent.

    :param number: of the reader; what its questions are answered to ends in it.
    :param pending: how many messages it has yet to send.
    """

    def __init__(self, number: int, stream: str, consumer: str, mark: bytes, seq: int) -> None:
        self.number = number
        self.stream = stream
        self.consumer = consumer
        self.mark = mark
        self.pending = 0
        self.waiting: deque[tuple[int, bytes]] = deque()
        #: It skipped something, or the server does not know it any more.
        self.broken = False
        #: How many it was asked for and has not sent yet, and when that was.
        self.asked = 0
        self.asked_at = 0.0
        self._seq = seq
        self._delivered = 0

    def take(self, tokens: list[str], raw: bytes) -> None:
        """A message, with the tokens of its reply: …, stream's number, its own, time, pending."""
        seq, delivered, pending = int(tokens[-4]), int(tokens[-3]), int(tokens[-1])
        if delivered != self._delivered + 1 or seq <= self._seq:
            self.broken = True
            return
        self._seq, self._delivered, self.pending = seq, delivered, pending
        self.asked = max(self.asked - 1, 0)
        self.waiting.append((seq, raw))


class Readers:
    """Those of one connection.

    :param inbox: the beginning of the subjects that they are answered to.
    """

    def __init__(self, inbox: str) -> None:
        self.inbox = inbox
        #: Something came, or whoever waits has to look what happened.
        self.news = asyncio.Event()
        self._by_name: dict[str, Reader] = {}
        self._by_number: dict[str, Reader] = {}
        self._by_consumer: dict[str, Reader] = {}
        self._numbers = 0

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def number(self) -> int:
        """Of another reader."""
        self._numbers += 1
        return self._numbers

    def add(self, name: str, reader: Reader) -> None:
        """Of the stream that is named by ``name``."""
        self._by_name[name] = reader
        self._by_number[str(reader.number)] = reader
        self._by_consumer[reader.consumer] = reader

    def forget(self) -> None:
        """Begin somewhere else: what their consumers still send is of no interest."""
        self._by_name.clear()
        self._by_number.clear()
        self._by_consumer.clear()

    @property
    def broken(self) -> bool:
        """Whether one is."""
        return any(reader.broken for reader in self._by_name.values())

    @property
    def waiting(self) -> bool:
        """Whether anything has come."""
        return any(reader.waiting for reader in self._by_name.values())

    @property
    def end(self) -> bool:
        """Whether there is nothing more, for all that is known."""
        return not any(reader.waiting or reader.pending for reader in self._by_name.values())

    async def ask(self, client: Client) -> None:
        """Those that have sent what they were asked for, for more."""
        count = max(CHUNK_PACKETS // max(len(self._by_name), 1), LEAST_ASKED)
        request = json.dumps({"batch": count, "expires": ASKED * 10**9}).encode()
        now = time.monotonic()
        for reader in list(self._by_name.values()):
            if reader.asked and now - reader.asked_at > ASKED + LATE:
                reader.broken = True
            elif not reader.asked and len(reader.waiting) < count:
                reader.asked, reader.asked_at = count, now
                await client.publish(
                    f"$JS.API.CONSUMER.MSG.NEXT.{reader.stream}.{reader.consumer}",
                    request,
                    f"{self.inbox}.{reader.number}",
                )

    async def take(self, message: Msg) -> None:
        """Called by the client, in order."""
        tokens = message.reply.split(".")
        if len(tokens) >= 9 and tokens[1] == "ACK":
            # Newer servers say their domain and account before the stream, and noise at the end.
            tokens = tokens[:9] if len(tokens) == 9 else tokens[2:11]
            if (reader := self._by_consumer.get(tokens[3])) is not None:
                reader.take(tokens, message.data)
                self.news.set()
            return
        status = (message.headers or {}).get("Status", "")
        found = self._by_number.get(message.subject.rpartition(".")[2])
        if found is not None and status != "100":  # a heartbeat
            found.asked = 0
            found.broken = found.broken or status not in ("404", "408")  # none there, none came
            self.news.set()

    def chunk(self, spots: Spots) -> tuple[bytes, ...]:
        """What has come, about as much as a chunk has; ``spots`` is moved behind it."""
        raws: list[bytes] = []
        room = CHUNK_BYTES
        for name, reader in self._fullest():
            last = None
            while reader.waiting and len(raws) < CHUNK_PACKETS and room > 0:
                last = reader.waiting.popleft()
                raws.append(last[1])
                room -= len(last[1])
            if last is not None:
                spots[name] = Spot(reader.mark, last[0], short(last[1]))
        return tuple(raws)

    def _fullest(self) -> Iterable[tuple[str, Reader]]:
        return sorted(self._by_name.items(), key=lambda item: -len(item[1].waiting))
