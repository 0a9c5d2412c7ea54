"""What is installed, and how much memory there is."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import quote

from qis_edge.doctor.findings import Finding, error, notice, ok, warning
from qis_edge.terminal import size

OLDEST, NEWEST = (3, 11), (3, 13)
LIBRARIES = ("qis-edge", "cbor2", "paho-mqtt", "pynacl", "pyserial")
#: Bytes that a machine should have left, and the share of its limit that a daemon may take.
SHORT, NEAR = 50_000_000, 0.9


def check_versions(
    libraries: Sequence[str] = LIBRARIES, python: tuple[int, int] | None = None
) -> Iterator[Finding]:
    """Python, SQLite and the libraries that are used."""
    python = python or (sys.version_info[0], sys.version_info[1])
    found, missing = [f"Python {platform.python_version()}", f"SQLite {sqlite3.sqlite_version}"], []
    for name in libraries:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    machine = platform.machine()
    yield ok("versions", ", ".join((*found, platform.release(), machine)))
    if missing:
        yield error(
            "package-missing", f"not installed: {', '.join(missing)}", "pip install qis-edge"
        )
    if not OLDEST <= python <= NEWEST:
        yield warning(
            "python-untested",
            f"Python {python[0]}.{python[1]} was not tested",
            f"use Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}",
        )


# --- databases -------------------------------------------------------------------------


def check_database(
    path: Path, current: int, application: int | None = None, *, running: bool = False
) -> Iterator[Finding]:
    """Whether a database is one that this version reads. It is opened for reading only.

    :param current: the version of its schema that is written now.
    :param application: its application id, where it has one.
    """
    name = path.name
    if not path.exists():
        return
    try:
        found, identity = _pragmas(path)
    except sqlite3.Error as failure:
        yield error(
            "database-bad",
            f"{path} cannot be read: {failure}",
            "at its next start the daemon saves what can be read; "
            "if it does not start, move the file away",
            name,
        )
        return
    if (found, identity) == (0, 0):
        return  # made, and nothing written yet
    if application is not None and identity != application:
        yield error("database-bad", f"{path} is not a database of ours", "move the file away", name)
    elif found > current:
        yield error(
            "database-new",
            f"{path} was written by a newer version (schema {found}, this knows {current})",
            "upgrade this installation again, or restore the state folder of before",
            name,
        )
    elif found < current:
        why = "the running daemon is older: restart it" if running else "start the daemon"
        yield notice(
            "database-old", f"{path} has schema {found}, {current} is written now", why, name
        )
    else:
        yield ok("database", f"{path}: schema {found}", name)


def _pragmas(path: Path) -> tuple[int, int]:
    """Its schema's version and its application id."""
    place = f"file:{quote(str(path.absolute()))}?mode=ro"
    with contextlib.closing(sqlite3.connect(place, uri=True, timeout=5)) as connection:
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        (identity,) = connection.execute("PRAGMA application_id").fetchone()
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return int(found), int(identity)


# --- memory ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Group:
    """The memory of a control group, bytes."""

    used: int | None
    limit: int | None
    kills: int


def check_memory(pid: int | None, root: Path = Path("/")) -> Iterator[Finding]:
    """The memory of the machine and of the daemon.

    :param pid: the daemon's; ``None``: it does not run.
    :param root: what ``/proc`` and ``/sys`` are in.
    """
    left = _kib(root / "proc/meminfo", "MemAvailable")
    said = [] if left is None else [f"the machine has {size(left)} left"]
    if left is not None and left < SHORT:
        yield warning("memory-short", said[0], "see what takes it: ps aux --sort -rss")
    resident = None if pid is None else _kib(root / f"proc/{pid}/status", "VmRSS")
    if resident is not None:
        said.append(f"the daemon takes {size(resident)}")
    group = None if pid is None else _group(pid, root)
    if group is not None and group.limit is not None:
        said.append(f"its control group may have {size(group.limit)}")
        if group.used is not None and group.used > NEAR * group.limit:
            yield warning(
                "memory-limit",
                f"its control group has {size(group.used)} of {size(group.limit)}",
                "raise MemoryMax= in a drop-in (systemctl edit), or report what grows",
            )
    if group is not None and group.kills:
        yield warning(
            "memory-killed",
            f"{group.kills} times a process of its control group was killed for want of memory",
            "raise MemoryMax= in a drop-in (systemctl edit), or give the machine more",
        )
    if not _controlled(root):
        yield notice(
            "memory-uncontrolled",
            "the kernel's memory control group is off: MemoryMax= of a unit has no effect",
            "add cgroup_enable=memory to the kernel's command line "
            "(/boot/firmware/cmdline.txt on a Raspberry Pi)",
        )
    yield ok("memory", ", ".join(said) or "unknown")


def _controlled(root: Path) -> bool:
    text = _text(root / "sys/fs/cgroup/cgroup.controllers")
    return "memory" in text.split() or (root / "sys/fs/cgroup/memory").is_dir()


def _group(pid: int, root: Path) -> _Group | None:
    for line in _text(root / f"proc/{pid}/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        where = root / "sys/fs/cgroup"
        if not controllers:
            folder, used, limit = where / path.lstrip("/"), "memory.current", "memory.max"
        elif "memory" in controllers.split(","):
            folder = where / "memory" / path.lstrip("/")
            used, limit = "memory.usage_in_bytes", "memory.limit_in_bytes"
        else:
            continue
        if (folder / limit).exists():
            kills = re.search(r"^oom_kill (\d+)$", _text(folder / "memory.events"), re.MULTILINE)
            most = _number(folder / limit)
            huge = most is not None and most >= 1 << 60  # how version 1 says "none"
            return _Group(
                _number(folder / used), None if huge else most, int(kills[1]) if kills else 0
            )
    return None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _kib(path: Path, name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB$", _text(path), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# --- ports -----------------------------------------------------------------------------


def check_port(name: str, device: str) -> Finding:
    """A serial port that a link uses.

    :param name: of the link.
    :param device: its path.
    """
    path = Path(device)
    if not path.exists():
        return error(
            "port-missing",
            f"{device}: there is no such port",
            "is it plugged in? its names that last are in /dev/serial/by-id",
            name,
        )
    if not path.is_char_device():
        return error("port-missing", f"{device} is no port", "name the port of the radio", name)
    if not os.access(path, os.R_OK | os.W_OK):
        return error(
            "port-forbidden",
            f"{device}: no permission to use it",
            "put the user into the group that owns it, often dialout; for the service: "
            "service install writes a drop-in for it",
            name,
        )
    return ok("port", f"{device} is there", name)
