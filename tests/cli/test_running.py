"""``run`` and ``run --test``."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading

import pytest

from tests.cli.kit import ROOT, Site, command


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


def test_a_daemon_for_real_is_asked_and_stopped(ready: Site) -> None:
    """A node whose broker is away: it runs, says so, keeps what it senses, and ends."""
    text = ready.node_config.read_text()
    text = text.replace('#window = "1h"', 'window = "1s"').replace(
        '#interval = "1min"', 'interval = "500ms"'
    )
    text = text.replace("cpu_temperature =", "load =")
    text = text.replace('#url = "mqtt://localhost:1883"', 'url = "mqtt://127.0.0.1:9"')
    ready.node_config.write_text(text)
    arguments = ["run", "--config", str(ready.node_config)]
    process = subprocess.Popen(
        [sys.executable, "-m", "qis_edge", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(600):
            assert process.poll() is None
            if ready.node("status", "--json") == 0 and ready.console.json["running"]:
                shown = ready.console.json
                if shown["outbox"]["made"] >= 2:
                    break
            threading.Event().wait(0.05)
        assert shown["link"]["up"] is False
        assert shown["sensors"][0]["failures"] == 0
        second = command("qis_edge", *arguments)
        assert second.returncode == 1
        assert "error: " in second.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert ready.node("status", "--json") == 0
    assert ready.console.json["running"] is False
    assert ready.console.json["outbox"]["made"] >= 2
