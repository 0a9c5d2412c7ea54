"""Nodes of a DHT on the loopback, each a process of its own, ended by its id."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.routing import dht as module

NODE = Path(module.__file__).with_name("dht_node.py")
PATIENCE = 60


class Nodes:
    """They know one another from their start."""

    def __init__(self, network: str = "test", lifetime: int = 3600) -> None:
        pytest.importorskip("opendht", reason="needs: opendht (pip install 'qis-edge[dht]')")
        self.network = network
        self.lifetime = lifetime
        self.ports: list[int] = []
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, count: int) -> None:
        """Some more."""
        if count and not self.ports:
            self._wait([self._start()])
            count -= 1
        self._wait([self._start() for _ in range(count)])

    def _start(self) -> subprocess.Popen[str]:
        places = [f"--join=127.0.0.1:{port}" for port in self.ports[:2]]
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", str(NODE), "--listen=127.0.0.1:0", *places),
                *(f"--network={self.network}", f"--lifetime={self.lifetime}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def _wait(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        deadline = time.monotonic() + PATIENCE
        for process in processes:
            assert process.stdout is not None
            left = max(deadline - time.monotonic(), 0)
            assert select.select([process.stdout], [], [], left)[0], "a node did not start"
            self.ports.append(int(process.stdout.readline().split()[-1]))

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def pause(self) -> None:
        """They say nothing any more when it returns."""
        for process in self._processes:
            process.send_signal(signal.SIGSTOP)
        for process in self._processes:
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)

    def resume(self) -> None:
        """They say again what they have to."""
        for process in self._processes:
            process.send_signal(signal.SIGCONT)

    def kill(self, which: slice = slice(None)) -> None:
        """With SIGKILL."""
        for process in self._processes[which]:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        del self._processes[which], self.ports[which]

    def url(self, options: str = "") -> str:
        """Of an engine that begins with the first of them."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports[:2])
        return (
            f"dht://{hosts}?network={self.network}&listen=127.0.0.1"
            f"&lifetime={self.lifetime}{options}"
        )
