"""A place in the streams of a Redis server, as bytes that a view keeps."""

from __future__ import annotations

import struct
from typing import NamedTuple

#: Of the key that is drawn once for each log.
BORN_SIZE = 8
DOMAIN_SIZE = 8

_FORM = struct.Struct(f">B{BORN_SIZE}sQQ{DOMAIN_SIZE}s")
_VERSION = 1


class StreamId(NamedTuple):
    """Of an entry: the server's milliseconds, and a number within them."""

    ms: int
    number: int

    @classmethod
    def parse(cls, text: bytes) -> StreamId:
        """As the server says it."""
        ms, _, number = text.partition(b"-")
        return cls(int(ms), int(number))

    def __str__(self) -> str:
        return f"{self.ms}-{self.number}"


class Place(NamedTuple):
    """Where a reader stands.

    :param born: of the log that it is a place in.
    :param id: of the last entry read; ids ascend over all streams.
    :param domain: of the stream that this entry is in; empty at the beginning.
    """

    born: bytes
    id: StreamId = StreamId(0, 0)
    domain: bytes = b""

    def encode(self) -> bytes:
        """33 bytes; none for the beginning."""
        if not self.domain:
            return b""
        return _FORM.pack(_VERSION, self.born, *self.id, self.domain)

    @classmethod
    def decode(cls, data: bytes, born: bytes) -> Place:
        """The beginning, where it is a place in another log or none at all."""
        if len(data) != _FORM.size:
            return cls(born)
        version, where, ms, number, domain = _FORM.unpack(data)
        if version != _VERSION or where != born:
            return cls(born)
        return cls(born, StreamId(ms, number), domain)
