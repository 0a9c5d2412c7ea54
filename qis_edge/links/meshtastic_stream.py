"""The stream protocol of Meshtastic radios: frames on a serial line or a TCP connection.

A frame is ``94 C3``, a 16-bit big-endian length of at most 512, and a protobuf message.
Every other byte is log text of the radio. Both ends speak the same framing. Nothing here
does I/O.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from qis_edge.core.errors import LinkError, UsageError

START = b"\x94\xc3"
HEADER = 4
#: The longest message in a frame, bytes.
MAX_MESSAGE = 512
#: What a host writes first: it wakes a sleeping radio, and ends a frame that was cut off.
WAKE = b"\xc3" * 32


def encode(message: bytes) -> bytes:
    """The frame of a message.

    :raises UsageError: it is empty or longer than :data:`MAX_MESSAGE`.
    """
    if not 0 < len(message) <= MAX_MESSAGE:
        raise UsageError(f"{len(message)} bytes, 1 to {MAX_MESSAGE} are possible", field="message")
    return START + len(message).to_bytes(2, "big") + message


class Deframer:
    """Bytes in, messages out; finds its way back after any garbage.

    :param accept: whether a message makes sense; without it, every message does.

    After a false start (a second byte that is no ``C3``, a length of 0 or over 512, a message
    that is not accepted) it looks again from the byte after the ``94``, so a frame that garbage
    touches is not lost with it.

    A garbled length makes it wait for bytes that belong to later frames; :meth:`stalled`,
    called when a line that should speak is silent, gives such a frame up and looks again
    inside it.
    """

    #: Log text kept of an unfinished line, bytes.
    MAX_LINE = 256
    #: Finished lines kept until :meth:`lines` fetches them.
    MAX_LINES = 32

    def __init__(self, accept: Callable[[bytes], bool] | None = None) -> None:
        self._accept = accept
        self._buffer = bytearray()
        self._line = bytearray()
        self._lines: list[str] = []
        #: Bytes that were part of no frame.
        self.outside = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that ``data`` completes."""
        self._buffer += data
        found = []
        while (message := self._next()) is not None:
            found.append(message)
        return found

    def stalled(self) -> list[bytes]:
        """Give up the frame that is awaited; the messages that were hidden in it."""
        found: list[bytes] = []
        while self._buffer and not found:
            self._outside(self._buffer[:1])
            del self._buffer[:1]
            found = self.feed(b"")
        return found

    def lines(self) -> list[str]:
        """Log lines of the radio since the last call."""
        lines, self._lines = self._lines, []
        return lines

    @property
    def waiting(self) -> int:
        """Bytes of an unfinished frame."""
        return len(self._buffer)

    def _next(self) -> bytes | None:
        buffer = self._buffer
        while buffer:
            start = buffer.find(START[0])
            if start < 0:
                start = len(buffer)
            if start:
                self._outside(buffer[:start])
                del buffer[:start]
                continue
            if len(buffer) >= 2 and buffer[1] != START[1]:
                self._skip()
                continue
            if len(buffer) < HEADER:
                return None
            length = int.from_bytes(buffer[2:HEADER], "big")
            if not 0 < length <= MAX_MESSAGE:
                self._skip()
                continue
            if len(buffer) < HEADER + length:
                return None
            message = bytes(buffer[HEADER : HEADER + length])
            if self._accept is not None and not self._accept(message):
                self._skip()
                continue
            del buffer[: HEADER + length]
            return message
        return None

    def _skip(self) -> None:
        self._outside(self._buffer[:1])
        del self._buffer[:1]

    def _outside(self, text: bytes | bytearray) -> None:
        self.outside += len(text)
        for part in text.splitlines(keepends=True):
            self._line += part
            if part.endswith((b"\n", b"\r")) or len(self._line) > self.MAX_LINE:
                line = self._line[: self.MAX_LINE].decode("utf-8", "replace").strip()
                self._line.clear()
                if line and len(self._lines) < self.MAX_LINES:
                    self._lines.append(line)


@cache
def definitions(name: str = "mesh_pb2") -> Any:
    """A module of Meshtastic's message definitions, such as ``mesh_pb2``.

    Only the definitions are loaded: the library around them would cost a node 11 MiB more and
    a thread that it has no use for. ``Any``: the modules make their classes when loaded.

    :raises LinkError: the package ``meshtastic`` is not installed.
    """
    try:
        if "meshtastic" in sys.modules:
            return importlib.import_module(f"meshtastic.protobuf.{name}")
        return _without_library(f"meshtastic.protobuf.{name}")
    except ModuleNotFoundError as error:
        raise LinkError(
            f"a Meshtastic radio needs a package that is not installed ({error.name})",
            hint="pip install 'qis-edge[mesh]'",
        ) from error


def _without_library(name: str) -> ModuleType:
    spec = importlib.util.find_spec("meshtastic")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(name="meshtastic")
    empty = ModuleType("meshtastic")
    empty.__path__ = list(spec.submodule_search_locations)
    # For as long as the definitions load; who imports the library itself later gets it whole.
    sys.modules["meshtastic"] = empty
    try:
        return importlib.import_module(name)
    finally:
        if sys.modules.get("meshtastic") is empty:
            del sys.modules["meshtastic"]
