"""sd_notify(3): a service tells systemd how it is doing, by datagrams to a socket."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

log = logging.getLogger(__name__)

#: The most that a status line has; systemd itself would take 4 MiB.
_LONGEST = 500


@dataclass(slots=True)
class Notifier:
    """Who listens to us, if anybody does.

    :param address: of the socket, a path, or with ``@`` first an abstract name; ``None``
        where no service manager wants to be told.
    :param watchdog: seconds in which it wants to hear of us, or it ends us; ``None``: never.
    """

    address: str | None = None
    watchdog: float | None = None
    _failed: bool = False

    @classmethod
    def of(cls, environ: Mapping[str, str] | None = None) -> Notifier:
        """What the environment says (``NOTIFY_SOCKET``, ``WATCHDOG_USEC``, ``WATCHDOG_PID``)."""
        given = os.environ if environ is None else environ
        address = given.get("NOTIFY_SOCKET")
        if not address or address[0] not in "/@":
            return cls()
        meant = given.get("WATCHDOG_PID")
        microseconds = given.get("WATCHDOG_USEC", "")
        if (meant and meant != str(os.getpid())) or not microseconds.isdecimal():
            return cls(address)
        return cls(address, int(microseconds) / 1e6 or None)

    def ready(self, status: str = "") -> None:
        """It serves from now on."""
        self._send("READY=1", status)

    def alive(self, status: str = "") -> None:
        """It got something done since the last time."""
        self._send("WATCHDOG=1", status)

    def say(self, status: str) -> None:
        """One line on what it does."""
        self._send("", status)

    def stopping(self) -> None:
        """It ends."""
        self._send("STOPPING=1", "stopping")

    def _send(self, word: str, status: str) -> None:
        if self.address is None:
            return
        line = " ".join(status.split())[:_LONGEST]
        message = "\n".join(filter(None, (word, f"STATUS={line}" if line else "")))
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(message.encode(), name)
        except OSError as error:
            if not self._failed:
                log.warning("systemd cannot be told how we are: %s", error.strerror or error)
            self._failed = True
        else:
            self._failed = False
