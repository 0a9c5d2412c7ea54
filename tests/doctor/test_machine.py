"""Memory, databases, versions and ports, with folders of /proc and /sys that are made up."""

from __future__ import annotations

import os
import pty
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest

from qis_edge.doctor.findings import Finding
from qis_edge.doctor.machine import check_database, check_memory, check_port, check_versions


def codes(found: Iterable[Finding]) -> dict[str, str]:
    return {one.code: one.severity.label for one in found}


def test_versions() -> None:
    (found,) = check_versions(python=(3, 11))
    assert found.severity == 0
    assert "cbor2" in found.message
    assert codes(check_versions(python=(3, 10)))["python-untested"] == "warning"
    assert codes(check_versions(python=(3, 14)))["python-untested"] == "warning"
    assert codes(check_versions(["no-such-thing"]))["package-missing"] == "error"


# --- databases ---------------------------------------------------------------------------


def database(path: Path, version: int, application: int = 7) -> Path:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA application_id={application}")
    connection.execute("CREATE TABLE a (b)")
    connection.execute(f"PRAGMA user_version={version}")
    connection.commit()
    connection.close()
    return path


def test_a_database(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    assert codes(check_database(path, 2, 7)) == {}
    database(path, 2)
    assert codes(check_database(path, 2, 7)) == {"database": "ok"}
    assert codes(check_database(path, 3, 7)) == {"database-old": "notice"}
    (running,) = check_database(path, 3, 7, running=True)
    assert "restart" in str(running.fix)
    assert codes(check_database(path, 1, 7)) == {"database-new": "error"}
    assert codes(check_database(path, 2, 8)) == {"database-bad": "error"}
    path.write_bytes(b"not a database" * 1000)
    assert codes(check_database(path, 2, 7)) == {"database-bad": "error"}
    path.write_bytes(b"")
    assert codes(check_database(path, 2, 7)) == {}


# --- memory ------------------------------------------------------------------------------


def machine(root: Path, *, left: int = 10**6, controllers: str = "cpu memory") -> Path:
    (root / "proc/7").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {left} kB\n")
    (root / "proc/7/status").write_text("Name:\tpython3\nVmRSS:\t   40000 kB\n")
    (root / "proc/7/cgroup").write_text("0::/system.slice/qis-edge.service\n")
    group = root / "sys/fs/cgroup/system.slice/qis-edge.service"
    group.mkdir(parents=True)
    (root / "sys/fs/cgroup/cgroup.controllers").write_text(controllers + "\n")
    (group / "memory.current").write_text("40000000\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.events").write_text("low 0\nhigh 0\noom 0\noom_kill 0\n")
    return group


def test_enough_memory(tmp_path: Path) -> None:
    machine(tmp_path)
    (found,) = check_memory(7, tmp_path)
    assert found.severity == 0
    assert "the daemon takes 41 MB" in found.message
    assert codes(check_memory(None, tmp_path)) == {"memory": "ok"}
    assert "memory" in codes(check_memory(os.getpid()))


def test_too_little_memory(tmp_path: Path) -> None:
    machine(tmp_path, left=1000)
    assert codes(check_memory(7, tmp_path))["memory-short"] == "warning"


def test_a_limit_that_is_near(tmp_path: Path) -> None:
    group = machine(tmp_path)
    (group / "memory.max").write_text("44000000\n")
    assert codes(check_memory(7, tmp_path))["memory-limit"] == "warning"
    (group / "memory.max").write_text("400000000\n")
    assert codes(check_memory(7, tmp_path)) == {"memory": "ok"}
    (group / "memory.events").write_text("oom_kill 3\n")
    assert codes(check_memory(7, tmp_path))["memory-killed"] == "warning"


def test_limits_that_nobody_enforces(tmp_path: Path) -> None:
    machine(tmp_path, controllers="cpu io")
    (found, _) = check_memory(7, tmp_path)
    assert found.code == "memory-uncontrolled"
    assert "cgroup_enable=memory" in str(found.fix)


def test_control_groups_of_the_first_version(tmp_path: Path) -> None:
    machine(tmp_path, controllers="")
    (tmp_path / "proc/7/cgroup").write_text("2:cpu:/x\n4:memory:/it\n1:name=systemd:/\n")
    group = tmp_path / "sys/fs/cgroup/memory/it"
    group.mkdir(parents=True)
    (group / "memory.usage_in_bytes").write_text("99\n")
    (group / "memory.limit_in_bytes").write_text("100\n")
    assert codes(check_memory(7, tmp_path)) == {"memory-limit": "warning", "memory": "ok"}
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert codes(check_memory(7, tmp_path)) == {"memory": "ok"}


# --- ports -------------------------------------------------------------------------------


def test_a_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    try:
        device = os.ttyname(slave)
        assert check_port("serial", device).code == "port"
        monkeypatch.setattr("os.access", lambda *_: False)
        assert check_port("serial", device).code == "port-forbidden"
    finally:
        os.close(master)
        os.close(slave)
    assert check_port("serial", str(tmp_path / "none")).code == "port-missing"
    assert check_port("serial", str(tmp_path)).code == "port-missing"
