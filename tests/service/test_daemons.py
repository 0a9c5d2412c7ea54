"""Real daemons, with a socket in the place of systemd's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.kit import ROOT, Site
from tests.mosquitto import free_port
from tests.service.kit import Manager, manager_at


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with contextlib.closing(manager_at(tmp_path)) as made:
        yield made


@contextlib.contextmanager
def running(
    module: str, config: Path, manager: Manager, watchdog: float
) -> Iterator[subprocess.Popen[str]]:
    told = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(int(watchdog * 1e6))}
    process = subprocess.Popen(
        [sys.executable, "-m", module, "run", "--config", str(config)],
        cwd=ROOT,
        env={**os.environ, **told, "PYTHONPATH": str(config.parent)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def ended(process: subprocess.Popen[str], manager: Manager) -> None:
    process.send_signal(signal.SIGTERM)
    manager.until("STOPPING")
    assert process.wait(60) == 0


def test_a_node_says_when_it_serves_and_lives_and_ends(ready: Site, manager: Manager) -> None:
    text = ready.node_config.read_text()
    text = text.replace('#url = "mqtt://localhost:1883"', 'url = "mqtt://127.0.0.1:9"')
    ready.node_config.write_text(text)
    with running("qis_edge", ready.node_config, manager, 120) as process:
        manager.until("READY")
        assert ready.node("status", "--json") == 0  # what says that it serves answers
        assert ready.console.json["running"] is True
        said = manager.until("WATCHDOG")["STATUS"]
        assert said == (
            "mqtt://127.0.0.1:9 is down; 0 outcomes waiting, 0 packets without a receipt"
        )
        ended(process, manager)


def test_a_gateway_says_when_it_serves_and_lives_and_ends(ready: Site, manager: Manager) -> None:
    text = ready.gateway_config.read_text()
    listen = f'listen = "127.0.0.1:{free_port()}"'
    ready.gateway_config.write_text(text.replace('#listen = "127.0.0.1:1883"', listen))
    with running("gateway", ready.gateway_config, manager, 120) as process:
        manager.until("READY")
        assert ready.gateway("status", "--json") == 0
        assert ready.console.json["running"] is True
        assert "0 packets in the spool" in manager.until("WATCHDOG")["STATUS"]
        ended(process, manager)


def test_a_node_that_hangs_says_no_more_and_where_it_hung(ready: Site, manager: Manager) -> None:
    """A user's function that blocks for ever, on the loop. SIGABRT is what systemd sends."""
    mark = ready.node_config.parent / "hangs"
    (ready.node_config.parent / "mine.py").write_text(
        "import pathlib, time\n"
        "def distil(*_, **__):\n"
        f"    pathlib.Path({str(mark)!r}).touch()\n"
        "    time.sleep(600)\n"
    )
    text = ready.node_config.read_text().replace('#window = "1h"', 'window = "1s"')
    text = text.replace('#interval = "1min"', 'interval = "100ms"')
    text = text.replace('#function = "my_station:distil"', 'function = "mine:distil"')
    ready.node_config.write_text(text.replace("cpu_temperature =", "load ="))
    with running("qis_edge", ready.node_config, manager, 2) as process:
        manager.until("READY")
        for _ in range(1200):
            if mark.exists():
                break
            assert process.poll() is None
            time.sleep(0.05)
        manager.drain()
        assert manager.listen(4) is None  # twice the limit
        process.send_signal(signal.SIGABRT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGABRT
        assert 'mine.py", line 4 in distil' in errors
