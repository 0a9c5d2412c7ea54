"""The units of both roles: what they say on this machine, putting them in place, taking
them away.

Everything is text in the package (``units/``), filled in here. What else belongs to a unit
comes as drop-ins of ours beside those of the machine's owner, which are never touched.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from qis_edge.core.errors import QisError

UNITS = Path("etc/systemd/system")
SYSUSERS = Path("etc/sysusers.d")
#: Whoever wrote a file that says so may write it again, or remove it.
MARK = "service install` wrote this file"
#: The first systemd that knows RestartSteps=.
BACKOFF_SINCE = 254
#: ProtectHome= hides these.
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One role as a service of this machine.

    :param name: of the command, the unit and the user: ``qis-edge`` or ``qis-gateway``.
    :param title: what it is, for people.
    :param config: the configuration that it runs with.
    :param state: the state folder that this says.
    :param serial: whether it uses serial ports.
    :param command: what is run.
    :param systemd: version of the service manager; 0: unknown.
    """

    name: str
    title: str
    config: Path
    state: Path
    serial: bool = False
    command: tuple[str, ...] = ()
    systemd: int = 0

    @property
    def unit(self) -> str:
        """The unit's name."""
        return f"{self.name}.service"

    @property
    def own_state(self) -> Path:
        """What systemd makes for it."""
        return Path("/var/lib") / self.name

    def files(self) -> dict[Path, str]:
        """Every file with its text; paths from the root folder."""
        values = {
            "NAME": self.name,
            "TITLE": self.title,
            "COMMAND": " ".join(_escaped(word) for word in self.command),
            "CONFIG": _escaped(str(self.config)),
        }
        folder = UNITS / f"{self.unit}.d"
        found = {UNITS / self.unit: _filled(f"{self.name}.service", values)}
        drop_ins = {
            "10-serial.conf": ("serial.conf", self.serial),
            "20-backoff.conf": ("backoff.conf", self.systemd >= BACKOFF_SINCE),
            "30-state.conf": ("state.conf", self.state != self.own_state),
        }
        for name, (template, wanted) in drop_ins.items():
            if wanted:
                text = _filled(template, {**values, "STATE": _escaped(str(self.state))})
                found[folder / name] = self._marked(text)
        users = _filled("sysusers.conf", values)
        found[SYSUSERS / f"{self.name}.conf"] = self._marked(users)
        return found

    def _marked(self, text: str) -> str:
        return f"# `{self.name} {MARK}.\n{text}"

    def check(self) -> None:
        """:raises QisError: it cannot run as it is."""
        hint = (
            "install it where every user may read it: python3 -m venv /opt/qis && "
            "/opt/qis/bin/pip install qis-edge; or name a command with --command"
        )
        for path in (Path(self.command[0]), Path(sys.prefix), Path(sys.base_prefix)):
            if _at_home(path):
                raise QisError(
                    f"{path} is in a home folder, which the service does not see (ProtectHome=yes)",
                    hint=hint,
                )

    def check_places(self) -> None:
        """:raises QisError: the configuration or the state are where it does not see them."""
        for what, path in (("configuration", self.config), ("state folder", self.state)):
            if _at_home(path):
                raise QisError(
                    f"the {what} {path} is in a home folder, which the service does not see "
                    "(ProtectHome=yes)",
                    hint=f"{self.name} init, run as root, makes one in /etc/{self.name} and "
                    f"{self.own_state}",
                )


def _at_home(path: Path) -> bool:
    return any(path.absolute().is_relative_to(home) for home in HOMES)


def _filled(name: str, values: dict[str, str]) -> str:
    text = (files("qis_edge.service") / "units" / name).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda word: values[word[1]], text)


def _escaped(word: str) -> str:
    """A word of a unit: no specifier, no variable, in quotes where it must be."""
    word = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if re.search(r"[\s\"';]", word) else word


def own_command(name: str, module: str) -> tuple[str, ...]:
    """How this very installation is called.

    :param name: of the command.
    :param module: to be run where there is no command beside the interpreter.
    """
    beside = Path(sys.executable).parent / name
    return (str(beside),) if beside.exists() else (sys.executable, "-m", module)


def systemd_version() -> int:
    """Of this machine's; 0 where there is none."""
    command = shutil.which("systemctl")
    if command is None:
        return 0
    try:
        said = subprocess.run(
            [command, "--version"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.match(r"systemd (\d+)", said.stdout)
    return int(found[1]) if found else 0


# --- putting in place and taking away --------------------------------------------------


def write(service: Service, root: Path) -> list[Path]:
    """Put a service's files under ``root``, and remove those that it does not need now.

    :returns: what was written.
    :raises QisError: somebody else's file is in the way, or it cannot be written.
    """
    wanted = service.files()
    for path in wanted:
        if (root / path).exists() and not ours(root / path):
            raise QisError(
                f"{root / path} is there and was written by somebody else",
                hint="move it away first",
            )
    try:
        for path, text in wanted.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
            (root / path).chmod(0o644)
        for path in present(service.name, root):
            if path not in wanted:
                (root / path).unlink()
    except OSError as error:
        raise QisError(
            f"{error.filename or root}: {error.strerror}", hint="run it as root: sudo"
        ) from error
    return list(wanted)


def present(name: str, root: Path) -> list[Path]:
    """The files of ours that are there, from the root folder."""
    folder = root / UNITS / f"{name}.service.d"
    candidates = [root / UNITS / f"{name}.service", *sorted(folder.glob("*.conf"))]
    candidates.append(root / SYSUSERS / f"{name}.conf")
    return [path.relative_to(root) for path in candidates if path.is_file() and ours(path)]


def erase(name: str, root: Path) -> list[Path]:
    """Remove a service's files; what the machine's owner put beside them stays.

    :returns: what was removed.
    :raises QisError: it cannot be removed.
    """
    found = present(name, root)
    folder = root / UNITS / f"{name}.service.d"
    try:
        for path in found:
            (root / path).unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise QisError(
            f"{error.filename or root}: {error.strerror}", hint="run it as root: sudo"
        ) from error
    return found


def ours(path: Path) -> bool:
    """Whether ``service install`` wrote a file."""
    try:
        return MARK in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def call(command: Sequence[str]) -> None:
    """Run a tool of systemd's.

    :raises QisError: it is not there, or it failed; with what it said.
    """
    shown = shlex.join(command)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QisError(f"{shown}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise QisError(f"{shown}: {said[-1] if said else f'exit code {done.returncode}'}")
