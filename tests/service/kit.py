"""A service manager's end of the socket of sd_notify(3)."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path


class Manager:
    """Listens where a service is told to say how it is."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.heard: list[dict[str, str]] = []

    def close(self) -> None:
        self._socket.close()

    def listen(self, seconds: float) -> dict[str, str] | None:
        """The next message, if one comes in time."""
        self._socket.settimeout(max(seconds, 0.001))
        try:
            message = self._socket.recv(1 << 16).decode()
        except TimeoutError:
            return None
        said = dict(line.split("=", 1) for line in message.splitlines())
        self.heard.append(said)
        return said

    def until(self, key: str, seconds: float = 60.0) -> dict[str, str]:
        """The first message from now on that says ``key=1``."""
        return self.until_it(lambda said: said.get(key) == "1", seconds)

    def until_it(
        self, enough: Callable[[dict[str, str]], bool], seconds: float = 60.0
    ) -> dict[str, str]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            said = self.listen(end - time.monotonic())
            if said is not None and enough(said):
                return said
        raise AssertionError(f"heard only {self.heard[-5:]}")

    def drain(self) -> int:
        """Forget what has come already; how much that was."""
        count = 0
        while self.listen(0.001) is not None:
            count += 1
        return count


def manager_at(folder: Path) -> Manager:
    return Manager(str(folder / "notify"))
