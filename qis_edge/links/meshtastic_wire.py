"""The line to a Meshtastic radio: a serial port or a TCP connection, and finding radios."""

from __future__ import annotations

import asyncio
import contextlib
import os
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import serial
from serial.tools.list_ports import comports

from qis_edge.core.errors import LinkError

BAUD = 115200
TCP_PORT = 4403
#: Seconds that opening may take.
PATIENCE = 10.0
BY_ID = Path("/dev/serial/by-id")
#: USB vendors that make little else (Adafruit's and Espressif's ids), and ones of debug probes
#: and serial adapters that are no radios.
_RADIO_VENDORS = frozenset({0x239A, 0x303A})
_OTHER_VENDORS = frozenset({0x1366, 0x0483, 0x1915, 0x0925, 0x04B4})


class Receiver(Protocol):
    """Who is told what happens on a wire."""

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        ...

    def wire_lost(self, cause: str) -> None:
        """The wire is gone, and not because :meth:`Wire.close` was called. Told once."""
        ...


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
        for link in sorted(BY_ID.iterdir()):
            if link.resolve() == Path(device).resolve():
                return str(link)
    return device


def resolve(address: str) -> str:
    """The device of a serial address: ``auto``, a path, or part of a name in
    ``/dev/serial/by-id``.

    :raises LinkError: there is none, or it could be several.
    """
    if address == "auto":
        found = find_radios()
        what = "no radio is plugged in"
    elif "/" in address:
        return address
    else:
        found = []
        with contextlib.suppress(OSError):
            found = [str(link) for link in sorted(BY_ID.iterdir()) if address in link.name]
        what = f"no serial port is called {address}"
    if len(found) == 1:
        return found[0]
    if not found:
        raise LinkError(what)
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
    opening = asyncio.get_running_loop().run_in_executor(None, _open_serial, address)
    try:
        port = await asyncio.wait_for(asyncio.shield(opening), PATIENCE)
    except (TimeoutError, asyncio.CancelledError) as error:
        opening.add_done_callback(_close_late)
        if isinstance(error, TimeoutError):
            raise LinkError(f"{address} does not open") from None
        raise
    return _SerialWire(port, receiver)


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


def _open_serial(address: str) -> serial.Serial:
    device = resolve(address)
    try:
        port = serial.Serial(device, BAUD, timeout=0, write_timeout=0, exclusive=True)
    except (OSError, ValueError, termios.error) as error:
        # pyserial's own error is an OSError; a file that is no terminal raises termios'.
        raise LinkError(f"{device}: {_why(error)}") from error
    with contextlib.suppress(OSError, termios.error):
        # A radio that sees the line hang up when we close it would reboot.
        settings = termios.tcgetattr(port)
        settings[2] &= ~termios.HUPCL
        termios.tcsetattr(port, termios.TCSANOW, settings)
    return port


def _why(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if isinstance(error, BlockingIOError) or "exclusively lock" in str(error):
        return "another program uses it"
    if isinstance(number, int):
        return os.strerror(number)
    return "is no serial port" if isinstance(error, termios.error) else str(error)


def _close_late(opening: asyncio.Future[serial.Serial]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


class _SerialWire:
    #: Bytes that may wait for a line that takes none; a session never has so many under way.
    _MOST = 65536

    def __init__(self, port: serial.Serial, receiver: Receiver) -> None:
        self._port = port
        self._fd: int = port.fileno()
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._out = bytearray()
        self._open = True
        os.set_blocking(self._fd, False)
        self._loop.add_reader(self._fd, self._read)

    def write(self, data: bytes) -> None:
        if not self._open or not data:
            return
        waiting = bool(self._out)
        self._out += data
        if len(self._out) > self._MOST:
            self._lose("the port takes no bytes")
        elif not waiting:
            self._write()
            if self._open and self._out:
                self._loop.add_writer(self._fd, self._write)

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        with contextlib.suppress(OSError, termios.error):
            # Otherwise closing waits for what a dead line will never take.
            termios.tcflush(self._fd, termios.TCOFLUSH)
        with contextlib.suppress(OSError):
            self._port.close()

    def _read(self) -> None:
        self._try(self._read_some)

    def _read_some(self) -> None:
        data = os.read(self._fd, 4096)
        if data:
            self._receiver.data_received(data)
        else:
            self._lose("it was unplugged")

    def _write(self) -> None:
        self._try(self._write_some)
        if not self._out and self._open:
            self._loop.remove_writer(self._fd)

    def _write_some(self) -> None:
        del self._out[: os.write(self._fd, self._out)]

    def _try(self, do: Callable[[], None]) -> None:
        try:
            do()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._lose(f"it was unplugged ({error.strerror or error})")

    def _lose(self, cause: str) -> None:
        if self._open:
            self.close()
            # Later: whoever writes is not called back in the middle of it.
            self._loop.call_soon(self._receiver.wire_lost, cause)


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
