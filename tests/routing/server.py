"""A server of the distribution, started by a test on a free port of the loopback.

Each is a child of its own and is ended by its process id.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mosquitto import free_port
from tests.processes import end, pause


def require(program: str) -> str:
    """The program's path; skips the test where there is none."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"needs: {program} (make deps, or: sudo apt install {program})")
    return found


class Server:
    """``port`` and what is in ``folder`` stay the same over restarts."""

    program: str

    def __init__(self, folder: Path) -> None:
        self.path = require(self.program)
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def arguments(self) -> Sequence[str]:
        """Of the program."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it takes work; asked until it does."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def start(self) -> None:
        """Start it and wait until it is ready."""
        assert self.process is None, "it runs already"
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.path, *self.arguments()],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.ready():
                return
            time.sleep(0.01)
        self.kill()
        raise RuntimeError(f"{self.program} did not start:\n{(self.folder / 'log').read_text()}")

    def stop(self) -> None:
        """End it in good order, if it runs."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: its connections stay open and nobody answers."""
        assert self.process is not None
        pause(self.process)

    def resume(self) -> None:
        """Let a paused one go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def _end(self, sign: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is not None:
            end(process, sign)
