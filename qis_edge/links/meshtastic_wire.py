"""The line to a Meshtastic radio: a serial port or a TCP connection, and finding radios."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any, Protocol

from serial.tools.list_ports import comports

from qis_edge.core.errors import LinkError
from qis_edge.links import tty
from qis_edge.links.tty import PATIENCE, Receiver, open_tty

__all__ = ["Receiver", "Wire", "connect", "find_radios", "resolve", "tcp_address"]

BAUD = 115200
TCP_PORT = 4403
#: USB vendors that make little else (Adafruit's and Espressif's ids), and ones of debug probes
#: and serial adapters that are no radios.
_RADIO_VENDORS = frozenset({0x239A, 0x303A})
_OTHER_VENDORS = frozenset({0x1366, 0x0483, 0x1915, 0x0925, 0x04B4})


class Wire(Protocol):
    """An open line. Neither method waits."""

    def write(self, data: bytes) -> None:
        """Send, as soon as the line takes it."""
        ...

    def close(self) -> None:
        """Hang up. Idempotent."""
        ...


def find_radios() -> list[str]:
    """The serial ports on which radios may be, the most likely first; names of
    ``/dev/serial/by-id`` where there are. It may take a moment: call it in a thread."""
    ports = [port for port in comports() if port.vid is not None]
    likely = [port for port in ports if port.vid in _RADIO_VENDORS]
    possible = [port for port in ports if port.vid not in _RADIO_VENDORS | _OTHER_VENDORS]
    return [_lasting_name(port.device) for port in likely or possible]


def _lasting_name(device: str) -> str:
    with contextlib.suppress(OSError):
        for link in sorted(tty.BY_ID.iterdir()):
            if link.resolve() == Path(device).resolve():
                return str(link)
    return device


def resolve(address: str) -> str:
    """The device of a serial address: ``auto``, or as for :func:`qis_edge.links.tty.resolve`.

    :raises LinkError: there is none, or it could be several.
    """
    if address != "auto":
        return tty.resolve(address)
    found = find_radios()
    if len(found) == 1:
        return found[0]
    if not found:
        raise LinkError("no radio is plugged in")
    raise LinkError(
        f"{len(found)} serial ports could be meant: {', '.join(found)}",
        hint="name the port of the radio",
    )


async def connect(address: str, receiver: Receiver) -> Wire:
    """Open the line to a radio.

    :param address: ``tcp:HOST`` or ``tcp:HOST:PORT``, or as for :func:`resolve`.
    :raises LinkError: it cannot be opened now.
    """
    if address.startswith("tcp:"):
        return await _connect_tcp(address, receiver)
    return await open_tty(address, BAUD, receiver, find=resolve)


async def _connect_tcp(address: str, receiver: Receiver) -> Wire:
    host, port = tcp_address(address)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PATIENCE):
            _, wire = await loop.create_connection(lambda: _TcpWire(receiver), host, port)
    except TimeoutError:
        raise LinkError(f"{host}:{port} does not answer") from None
    except OSError as error:
        raise LinkError(f"{host}:{port}: {error.strerror or error}") from error
    return wire


def tcp_address(address: str) -> tuple[str, int]:
    """Host and port of a ``tcp:`` address.

    :raises LinkError: it is none.
    """
    host, colon, port = address.removeprefix("tcp:").removeprefix("//").rpartition(":")
    if not colon or port.endswith("]"):
        host, port = f"{host}{colon}{port}", str(TCP_PORT)
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise LinkError(f"{address}: not a TCP address", hint="tcp:HOST or tcp:HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


class _TcpWire(asyncio.Protocol):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._transport: Any = None
        self._open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._open:
            self._receiver.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._open:
            self._open = False
            self._receiver.wire_lost(str(exc) if exc else "the radio hung up")

    def write(self, data: bytes) -> None:
        if self._open and data:
            self._transport.write(data)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._transport.close()
            # A peer that reads nothing would keep it open for as long as bytes wait.
            asyncio.get_running_loop().call_later(1.0, self._transport.abort)
