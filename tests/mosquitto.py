"""The distribution's Mosquitto, started by a test on a free port of the loopback.

    broker = Mosquitto(tmp_path)
    broker.start()
    ...
    broker.stop()

Each broker is a child of its own and is ended by its process id.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.processes import end, pause

#: Debian puts the broker where only root's path looks.
MOSQUITTO = shutil.which(
    "mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
)
MISSING = "needs: mosquitto (make deps, or: sudo apt install mosquitto)"


def require_mosquitto() -> str:
    """The broker's path; skips the test where there is none."""
    if MOSQUITTO is None:
        pytest.skip(MISSING)
    return MOSQUITTO


def free_port() -> int:
    """A port of the loopback that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Mosquitto:
    """One broker. ``port`` stays the same over restarts.

    :param folder: where its configuration and log go.
    :param lines: lines of ``mosquitto.conf`` in place of ``allow_anonymous true``.
    :param persistent: keep its state on disk over restarts (of :meth:`stop`, not of
        :meth:`kill`, which loses what was not yet saved).
    """

    def __init__(
        self,
        folder: Path,
        lines: Iterable[str] = ("allow_anonymous true",),
        *,
        persistent: bool = False,
    ) -> None:
        self.path = require_mosquitto()
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._log = folder / "mosquitto.log"
        self._conf = folder / "mosquitto.conf"
        folder.mkdir(parents=True, exist_ok=True)
        head = ["set_tcp_nodelay true", f"listener {self.port} 127.0.0.1"]
        if os.geteuid() == 0:
            head.insert(0, f"user {getpass.getuser()}")  # or it gives up what reads the folder
        if persistent:
            head += ["persistence true", f"persistence_location {folder}/"]
        self._conf.write_text("\n".join([*head, *lines, ""]))

    @property
    def url(self) -> str:
        """How a client finds it."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it listens."""
        assert self.process is None, "it runs already"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.path, "-v", "-c", str(self._conf)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.02)
        text = self.log()
        self.kill()
        raise RuntimeError(f"mosquitto did not start:\n{text}")

    def stop(self) -> None:
        """End it in good order, if it runs."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL: without persistence, all that it acknowledged is gone."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """:meth:`kill` and :meth:`start`, on the same port."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: its connections stay open and nobody answers."""
        assert self.process is not None
        pause(self.process)

    def resume(self) -> None:
        """Let a paused one go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def log(self) -> str:
        """What it has logged since it was first started."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _end(self, sign: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is not None:
            end(process, sign)


@contextlib.contextmanager
def running(broker: Mosquitto) -> Iterator[Mosquitto]:
    """Started, and ended whatever happens, the quick way."""
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()
