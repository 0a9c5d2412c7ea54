"""``run`` and ``run --test``."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.kit import (
    ROOT,
    RUNNING_GATEWAY,
    RUNNING_NODE,
    Site,
    check_documented,
    command,
    keys_of,
)
from tests.mosquitto import free_port


def replaying(ready: Site) -> None:
    """The node replays one reading of 2013."""
    (ready.node_config.parent / "r.csv").write_text(
        "time,temp\n2013-01-01T00:00:00Z,1\n2013-01-01T05:00:00Z,3.86\n"
    )
    text = ready.node_config.read_text()
    text = text.replace(
        'driver = "system"', 'driver = "replay"\nfile = "r.csv"\ncolumns.t = "temp"'
    )
    ready.node_config.write_text(text.replace("cpu_temperature =", "t ="))


def test_run_test_shows_the_packet_and_keeps_nothing(ready: Site) -> None:
    replaying(ready)
    before = set(ready.node_state.iterdir())
    assert ready.node("run", "--test") == 0
    assert "temperature  3.9" in ready.console.out or "3.86" in ready.console.out
    assert re.search(r"packet, \d+ bytes; nothing was kept or sent\n  d284", ready.console.out)
    assert ready.node("run", "--test", "--json") == 0
    shown = ready.console.json
    assert shown["outcome"]["time"] == 1357016400
    assert shown["outcome"]["kind"] == "resolved"
    assert shown["fields"] == {"climate": "cfa", "terrain": "coast", "season": "winter"}
    assert shown["bytes"] == len(shown["packet"]) // 2 <= 512
    assert set(ready.node_state.iterdir()) == before


def fail(_: object) -> None:
    """A distilling function of somebody's."""
    raise RuntimeError("no such thing")


def test_run_test_says_what_the_function_fails_with(ready: Site) -> None:
    replaying(ready)
    text = ready.node_config.read_text()
    own = f'function = "{__name__}:fail"'
    ready.node_config.write_text(text.replace('#function = "my_station:distil"', own))
    assert ready.node("run", "--test", "--json") == 0
    assert "error: distil.function: RuntimeError('no such thing')" in ready.console.err
    assert ready.console.json["outcome"]["results"] == {"temperature": 3.9}


def test_run_test_without_a_key(ready: Site) -> None:
    replaying(ready)
    (ready.node_state / "node.key").unlink()
    assert ready.node("run", "--test") == 0
    assert "signed with a key that is thrown away" in ready.console.err


def test_run_test_without_readings(ready: Site) -> None:
    replaying(ready)
    (ready.node_config.parent / "r.csv").write_text("time,temp\n")
    assert ready.node("run", "--test") == 1
    assert "no sensor gave a reading" in ready.console.err
    assert ready.node("run", "--json") == 2


def test_run_hands_over_to_the_runtime(ready: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def role(config: object) -> int:
        return {"NodeConfig": 0, "GatewayConfig": 1}[type(config).__name__]

    monkeypatch.setattr("qis_edge.node.runtime.run_node", role)
    monkeypatch.setattr("gateway.station.run_gateway", role)
    assert ready.node("run") == 0
    assert ready.gateway("run") == 1


@contextlib.contextmanager
def started(module: str, config: Path) -> Iterator[subprocess.Popen[str]]:
    """A daemon in a process of its own, ended as a service manager ends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, "run", "--config", str(config)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def asked(
    status: Callable[[str, str], int],
    ready: Site,
    process: subprocess.Popen[str],
    enough: Callable[[Any], bool],
) -> Any:
    """What ``status --json`` shows as soon as it is ``enough``."""
    for _ in range(600):
        assert process.poll() is None
        if status("status", "--json") == 0 and ready.console.json["running"]:
            shown = ready.console.json
            if enough(shown):
                return shown
        threading.Event().wait(0.05)
    raise AssertionError("it takes too long")


def test_a_node_for_real_is_asked_and_stopped(ready: Site) -> None:
    """Its broker is away: it runs, says so, keeps what it senses, and ends."""
    text = ready.node_config.read_text()
    text = text.replace('#window = "1h"', 'window = "1s"').replace(
        '#interval = "1min"', 'interval = "500ms"'
    )
    text = text.replace("cpu_temperature =", "load =")
    text = text.replace('#url = "mqtt://localhost:1883"', 'url = "mqtt://127.0.0.1:9"')
    ready.node_config.write_text(text)
    with started("qis_edge", ready.node_config) as process:
        shown = asked(ready.node, ready, process, lambda now: now["outbox"]["made"] >= 2)
        assert shown["links"][0]["up"] is False
        assert shown["sensors"][0]["failures"] == 0
        told = {key for key in keys_of(RUNNING_NODE) if not key.startswith("gateways.")}
        assert set(keys_of(shown)) == told | {"running"}
        check_documented("qis-edge", "status", shown)
        second = command("qis_edge", "run", "--config", ready.node_config)
        assert second.returncode == 1
        assert "error: " in second.stderr
    assert ready.node("status", "--json") == 0
    assert ready.console.json["running"] is False
    assert ready.console.json["outbox"]["made"] >= 2


def test_readings_of_the_window_under_way_end_with_the_process(ready: Site) -> None:
    text = ready.node_config.read_text().replace('#window = "1h"', 'window = "31d"')
    text = text.replace('#interval = "1min"', 'interval = "100ms"')
    ready.node_config.write_text(text.replace("cpu_temperature =", "load ="))
    with started("qis_edge", ready.node_config) as process:
        asked(ready.node, ready, process, lambda now: now["sensors"][0]["reads"] >= 2)
    assert ready.node("status", "--json") == 0
    assert ready.console.json["outbox"]["made"] == 0


def test_a_gateway_for_real_is_asked_and_stopped(ready: Site) -> None:
    text = ready.gateway_config.read_text()
    listen = f'listen = "127.0.0.1:{free_port()}"'
    ready.gateway_config.write_text(text.replace('#listen = "127.0.0.1:1883"', listen))
    with started("gateway", ready.gateway_config) as process:
        shown = asked(ready.gateway, ready, process, lambda now: bool(now["links"][0]["up"]))
        assert set(keys_of(shown)) == {*keys_of(RUNNING_GATEWAY), "running", "nodes", "waiting"}
        check_documented("qis-gateway", "status", shown)
    assert ready.gateway("status", "--json") == 0
    assert ready.console.json["running"] is False
