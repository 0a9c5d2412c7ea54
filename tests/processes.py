"""Ending and pausing a process that a test started, by its process id."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any


def pause(process: subprocess.Popen[Any]) -> None:
    """SIGSTOP: its connections stay open and nobody answers, once this returns."""
    process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while not _stopped(process) and time.monotonic() < deadline:
        time.sleep(0.005)


def _stopped(process: subprocess.Popen[Any]) -> bool:
    """Whether all of its threads are."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/stat")
    return all(task.read_text().rpartition(") ")[2].startswith("T") for task in tasks)


def end(process: subprocess.Popen[Any], sign: signal.Signals) -> None:
    """Signal it, paused or not, and wait until it is gone; after a minute with SIGKILL."""
    process.send_signal(signal.SIGCONT)
    process.send_signal(sign)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
