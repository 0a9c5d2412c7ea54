"""Both services under a real systemd, which boots in namespaces of its own over a copy of this
machine's files: nothing of it is changed. Only on demand, by root, where systemd is installed:

    QIS_SYSTEMD=1 make pytest ARGS=tests/service/test_machine.py
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.kit import ROOT

SYSTEMD = Path("/lib/systemd/systemd")
PYTHON = Path("/usr/bin/python3")  # not in a home folder, which services do not see
BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount -t sysfs sys sys
mount --rbind /dev dev
mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs run run
mkdir -p run/lock qis-old
ip link set lo up
printf '[Unit]\\nDefaultDependencies=no\\nAllowIsolate=yes\\n' > etc/systemd/system/qis-test.target
mkdir -p opt/qis-test
for name in qis-edge:qis_edge qis-gateway:gateway; do
    printf '#!/bin/sh\\nexport PYTHONPATH=%s\\nexec %s -P -m %s "$@"\\n' "$2" "$3" "${name#*:}" \
        > "opt/qis-test/${name%:*}"
    chmod 755 "opt/qis-test/${name%:*}"
done
pivot_root . qis-old
umount -l /qis-old
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --unit=qis-test.target --log-target=null --show-status=0
"""

pytestmark = pytest.mark.skipif(
    not os.environ.get("QIS_SYSTEMD"), reason="only on demand: QIS_SYSTEMD=1"
)


class Machine:
    """A machine that systemd runs. Commands are run in it by root."""

    def __init__(self, folder: Path) -> None:
        packages = sysconfig.get_paths()["purelib"]
        self.process = subprocess.Popen(
            ["unshare", "-m", "-p", "-f", "-n", "-u", "-i", "-C", "--kill-child", "sh", "-c", BOOT,
             "sh", folder, f"{ROOT}:{packages}", PYTHON],
        )  # fmt: skip
        self.until(lambda: self.leader() is not None)
        self.until(lambda: "running" in self.run("systemctl", "is-system-running", check=False))

    def leader(self) -> int | None:
        """The process that is the first in there."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        found = children.read_text().split()
        ready = found and SYSTEMD.name in Path(f"/proc/{found[0]}/cmdline").read_text()
        return (
            int(found[0])
            if ready and "sh" not in Path(f"/proc/{found[0]}/comm").read_text()
            else None
        )

    def run(self, *command: object, check: bool = True) -> str:
        inside = ["nsenter", "-t", str(self.leader()), "-m", "-p", "-n", "-u", "-i", "-C"]
        clean = ["env", "-i", "PATH=/opt/qis-test:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
        done = subprocess.run(
            [*inside, *clean, *map(str, command)],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 0 or not check, f"{command}\n{said}"
        return said

    def pid(self, name: str) -> int:
        return int(self.run("systemctl", "show", "-p", "MainPID", "--value", name))

    def until(self, enough: Callable[[], bool], seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None
            if enough():
                return
            time.sleep(0.2)
        raise AssertionError("it takes too long")

    def close(self) -> None:
        leader = self.leader()
        if leader is not None:
            os.kill(leader, signal.SIGKILL)
        self.process.kill()
        self.process.wait(60)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    version = subprocess.run(
        [PYTHON, "-c", "import sys; print(*sys.version_info[:2])"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if os.geteuid() != 0 or not SYSTEMD.exists() or not shutil.which("nsenter"):
        pytest.skip("needs root, and systemd")
    if version.stdout.split() != [str(part) for part in sys.version_info[:2]]:
        pytest.skip("the packages here are for another Python than the machine's")
    made = Machine(tmp_path_factory.mktemp("machine"))
    try:
        yield made
    finally:
        made.close()


def command(name: str) -> tuple[str, str]:
    return ("--command", f"/opt/qis-test/{name}")


def test_a_fleet_of_services(machine: Machine) -> None:
    """From nothing to a node that is of the fleet, as the page on installing says."""
    machine.run("qis-gateway", "init", "--name", "base", "--site", "farm")
    machine.run("qis-gateway", "service", "install", "--now", *command("qis-gateway"))
    fleet = "/var/lib/qis-gateway/fleet.toml"
    fields = ("--field", "climate=cfb", "--field", "terrain=plain")
    machine.run("qis-edge", "init", "--fleet", fleet, "--name", "porch", *fields)
    machine.run("qis-edge", "service", "install", "--now", "--serial", *command("qis-edge"))
    for name in ("qis-edge", "qis-gateway"):
        assert machine.run("systemctl", "is-active", name).strip() == "active"
        status = machine.run("cat", f"/proc/{machine.pid(name)}/status")
        assert "Seccomp:\t2\n" in status
        assert "CapBnd:\t0000000000000000\n" in status
        owner = machine.run("stat", "-c", "%U", f"/var/lib/{name}", f"/var/lib/{name}/control.sock")
        assert owner.split() == [name, name]
    machine.run("qis-gateway", "permit", "600")
    machine.until(lambda: "porch" in machine.run("qis-gateway", "nodes"))
    machine.run("qis-gateway", "approve", "porch")
    assert "enrolled as porch" in machine.run("qis-edge", "enroll", "--wait", "60")
    found = machine.run("qis-edge", "doctor", check=False)
    assert "ok       credential" in found
    assert "ok       broker (mqtt)" in found
    owners = machine.run("find", "/var/lib/qis-edge", "!", "-user", "qis-edge")
    assert owners == ""  # of what root's commands touched


def test_a_key_that_is_handed_over(machine: Machine) -> None:
    folder = "/etc/systemd/system/qis-edge.service.d"
    machine.run(
        "sh", "-ec",
        "systemctl stop qis-edge; mv /var/lib/qis-edge/node.key /etc/qis-edge/; "
        "chown root: /etc/qis-edge/node.key; "
        "sed -i 's/^#key = \"credential:/key = \"credential:/' /etc/qis-edge/config.toml; "
        "printf '[Service]\\nLoadCredential=node.key:/etc/qis-edge/node.key\\n' "
        f"> {folder}/50.conf; "
        "systemctl daemon-reload; systemctl start qis-edge",
    )  # fmt: skip
    assert "enrolled   yes" in machine.run("qis-edge", "status")
    found = machine.run("qis-edge", "doctor", check=False)
    assert "/run/credentials/qis-edge.service/node.key" in found


def test_a_node_that_hangs_is_started_anew(machine: Machine) -> None:
    folder = "/etc/systemd/system/qis-edge.service.d"
    machine.run(
        "sh", "-ec",
        f"printf '[Service]\\nWatchdogSec=8\\nRestartSec=1\\n' > {folder}/60.conf; "
        "systemctl daemon-reload; systemctl restart qis-edge",
    )  # fmt: skip
    before = machine.pid("qis-edge")
    assert before > 1
    machine.run("kill", "-STOP", before)
    machine.until(lambda: machine.pid("qis-edge") not in (0, before))
    machine.until(
        lambda: machine.run("systemctl", "is-active", "qis-edge", check=False).strip() == "active"
    )
    said = machine.run("journalctl", "-u", "qis-edge", "-o", "cat", "--no-pager")
    assert "Fatal Python error: Aborted" in said  # where it hung


def test_it_is_taken_away(machine: Machine) -> None:
    for name in ("qis-edge", "qis-gateway"):
        machine.run(name, "service", "remove")
        assert "could not be found" in machine.run("systemctl", "status", name, check=False)
        machine.run("test", "-d", f"/var/lib/{name}")
