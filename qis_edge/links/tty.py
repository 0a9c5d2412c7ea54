"""Serial ports: named, opened and driven by the event loop, which none of it blocks."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import serial

from qis_edge.core.errors import LinkError

BY_ID = Path("/dev/serial/by-id")
#: Seconds that opening may take.
PATIENCE = 10.0


class Receiver(Protocol):
    """Who is told what happens on a line."""

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        ...

    def wire_lost(self, cause: str) -> None:
        """The line is gone, and not because :meth:`TtyWire.close` was called. Told once."""
        ...


def resolve(port: str) -> str:
    """The device of a port: a path, or part of a name in ``/dev/serial/by-id``.

    :raises LinkError: there is none, or it could be several.
    """
    if "/" in port:
        return port
    found: list[str] = []
    with contextlib.suppress(OSError):
        found = [str(link) for link in sorted(BY_ID.iterdir()) if port in link.name]
    if len(found) == 1:
        return found[0]
    if not found:
        raise LinkError(f"no serial port is called {port}", hint=f"is it plugged in? see {BY_ID}")
    raise LinkError(
        f"{len(found)} serial ports could be meant: {', '.join(found)}",
        hint="name one of them whole",
    )


async def open_tty(
    port: str,
    baud: int,
    receiver: Receiver,
    *,
    written: Callable[[], None] | None = None,
    find: Callable[[str], str] = resolve,
) -> TtyWire:
    """Open a serial port, raw, 8N1, without flow control, for this program alone.

    :param port: as for :func:`resolve`.
    :param written: called when all that was written is with the operating system, after it
        was not.
    :param find: tells the device of a port; called in a thread.
    :raises LinkError: it cannot be opened now.
    """
    opening = asyncio.get_running_loop().run_in_executor(None, _open, port, baud, find)
    try:
        # Not wait_for: in Python 3.11 it forgets a cancellation that comes with the result.
        await asyncio.wait([opening], timeout=PATIENCE)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_late)
        raise
    if not opening.done():
        opening.add_done_callback(_close_late)
        raise LinkError(f"{port} does not open")
    return TtyWire(opening.result(), receiver, written)


def _open(port: str, baud: int, find: Callable[[str], str]) -> serial.Serial:
    device = find(port)
    try:
        line = serial.Serial(device, baud, timeout=0, write_timeout=0, exclusive=True)
    except (OSError, ValueError, termios.error) as error:
        raise _explained(device, baud, error) from error
    try:
        _adjust(line.fileno())
    except termios.error as error:
        line.close()
        raise _explained(device, baud, error) from error
    return line


def _adjust(fd: int) -> None:
    """What pyserial leaves as it finds it."""
    settings = termios.tcgetattr(fd)
    # A break is not to signal anybody or to empty the queues, and no bit is to be cut off.
    settings[0] &= ~(termios.BRKINT | termios.ISTRIP | termios.INPCK)
    # A device that sees the line hang up when we close it may reboot.
    settings[2] &= ~termios.HUPCL
    # So that a read of nothing means that the device is gone, and only that.
    settings[6][termios.VMIN] = 1
    termios.tcsetattr(fd, termios.TCSANOW, settings)


def _explained(device: str, baud: int, error: Exception) -> LinkError:
    """Why a port does not open, in words, whatever pyserial makes of it."""
    number = getattr(error, "errno", None)
    if number in (errno.EAGAIN, errno.EBUSY) or "exclusively lock" in str(error):
        return LinkError(f"{device}: another program uses it", hint=f"see: fuser -v {device}")
    if number in (errno.EACCES, errno.EPERM):
        return LinkError(
            f"{device}: no permission to open it",
            hint="let its user be in the group that owns the device, often dialout",
        )
    if number in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return LinkError(f"{device}: there is no such port", hint="is it plugged in?")
    if isinstance(error, ValueError):  # pyserial, when a driver does not take a speed
        return LinkError(f"{device}: does not do {baud} baud")
    not_a_tty = isinstance(error, termios.error) or "configure port" in str(error)
    if not_a_tty or number in (errno.ENOTTY, errno.EINVAL, errno.EISDIR):
        return LinkError(f"{device}: is no serial port")
    return LinkError(f"{device}: {os.strerror(number) if isinstance(number, int) else error}")


def _close_late(opening: asyncio.Future[serial.Serial]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


class TtyWire:
    """An open port. No method waits."""

    #: Bytes that may wait for a line that takes none; whoever writes keeps far below.
    MOST = 65536

    def __init__(
        self, port: serial.Serial, receiver: Receiver, all_written: Callable[[], None] | None = None
    ) -> None:
        self._port = port
        self._fd: int = port.fileno()
        self._receiver = receiver
        self._all_written = all_written
        self._loop = asyncio.get_running_loop()
        self._out = bytearray()
        self._open = True
        #: Bytes that the operating system has taken.
        self.written = 0
        os.set_blocking(self._fd, False)
        self._loop.add_reader(self._fd, self._read)

    @property
    def unwritten(self) -> int:
        """Bytes that the operating system has not taken."""
        return len(self._out)

    def write(self, data: bytes) -> None:
        """Send, as soon as the line takes it."""
        if not self._open or not data:
            return
        waiting = bool(self._out)
        self._out += data
        if len(self._out) > self.MOST:
            self.lose("the port takes no bytes")
        elif not waiting:
            self._try(self._write)
            if self._open and self._out:
                self._loop.add_writer(self._fd, self._writable)

    def close(self) -> None:
        """Hang up; what has not left is dropped. Idempotent."""
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

    def lose(self, cause: str) -> None:
        """Hang up because it is of no use; the receiver is told."""
        if self._open:
            self.close()
            # Later: whoever writes is not called back in the middle of it.
            self._loop.call_soon(self._receiver.wire_lost, cause)

    def _read(self) -> None:
        self._try(self._read_some)

    def _read_some(self) -> None:
        data = os.read(self._fd, 4096)
        if data:
            self._receiver.data_received(data)
        else:
            self.lose("it was unplugged")

    def _writable(self) -> None:
        self._try(self._write)
        if self._open and not self._out:
            self._loop.remove_writer(self._fd)
            if self._all_written is not None:
                self._all_written()

    def _write(self) -> None:
        sent = os.write(self._fd, self._out)
        self.written += sent
        del self._out[:sent]

    def _try(self, do: Callable[[], None]) -> None:
        try:
            do()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self.lose(f"it was unplugged ({error.strerror or error})")
