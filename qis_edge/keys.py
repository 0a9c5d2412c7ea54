"""Key files and fleet files: who this machine is, and whose root it trusts.

A key file is a line of 64 hex digits, an Ed25519 seed, under a comment that says what it
is. Only its owner may read it: one that others can read is refused, for its key may be
known to them. It is written once and never overwritten.

A fleet file is TOML and no secret. It pins the fleet's root key on a node::

    [fleet]
    root = "…64 hex digits…"
    site = "north-field"

    [mqtt]
    url = "mqtts://broker.example:8883"
"""

# ruff: noqa: RUF009 - the calls in these dataclasses make fields
from __future__ import annotations

import errno
import os
import re
import shlex
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qis_edge.core.errors import KeyFileError
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.schema import NAME, Scalar, Table, Url, Wrong, load, loads, setting
from qis_edge.schema.text import toml
from qis_edge.systemd_credentials import find, is_handed_over

_MAX_KEY_FILE = 4096
_HEX_KEY = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


# --- key files -------------------------------------------------------------------------


def write_key(path: Path, identity: Identity, *, what: str = "key") -> None:
    """Write a new key file that only its owner can read; durable when it returns.

    :param what: for the comment in it: "node key", "root key".
    :raises KeyFileError: there is a file already, or it cannot be written.
    """
    text = (
        f"# QIS Edge {what} {identity.kid.hex()}. Secret: who reads this can sign as it.\n"
        f"# public: {identity.public.raw.hex()}\n"
        f"{identity.seed.hex()}\n"
    )
    try:
        _place(path, text.encode(), 0o600, os.link)
    except FileExistsError:
        raise KeyFileError(
            f"{path} exists already", hint="a key is never overwritten: move it away first"
        ) from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}") from None


def read_key(path: Path) -> Identity:
    """The identity in a key file. A link to one will do, and so will ``credential:NAME``.

    :raises KeyFileError: it is missing, belongs to somebody else, can be read by others, or
        holds no key. The hint is what to do.
    """
    path = find(path)
    try:
        # Not blocking: opening a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise KeyFileError(f"there is no key file {path}", hint="init makes one") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise KeyFileError(f"{path} cannot be read: {reason}") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise KeyFileError(f"{path} is not a file")
        _check_owner(path, found)
        raw = os.read(descriptor, _MAX_KEY_FILE + 1)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    return Identity.from_seed(_parse_key(path, raw))


def _check_owner(path: Path, found: os.stat_result) -> None:
    """Of what was opened, not of what the path names by now. Root may use a service's key:
    one that belongs to whom its folder belongs to."""
    if is_handed_over(path):
        return
    quoted = shlex.quote(str(path))
    services = os.geteuid() == 0 and found.st_uid == path.parent.stat().st_uid
    if found.st_uid != os.geteuid() and not services:
        raise KeyFileError(
            f"{path} belongs to user {found.st_uid}, and this runs as user {os.geteuid()}",
            hint=f"chown {os.geteuid()} {quoted}",
        )
    if found.st_mode & _OTHERS:
        mode = stat.S_IMODE(found.st_mode)
        raise KeyFileError(
            f"{path} can be read or written by others (mode {mode:04o})",
            hint=f"chmod 600 {quoted}",
        )


def _parse_key(path: Path, raw: bytes) -> bytes:
    lines = raw.decode("ascii", "replace").splitlines() if len(raw) <= _MAX_KEY_FILE else []
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if len(keys) != 1 or _HEX_KEY.fullmatch(keys[0]) is None:
        # It may be a secret that was mistyped: what it holds is not repeated.
        empty = "it is empty" if not raw else "a line of 64 hex digits is expected"
        raise KeyFileError(
            f"{path} is not a key file: {empty}",
            hint="restore it from a copy, or move it away and init anew",
        )
    return bytes.fromhex(keys[0])


# --- the fleet file --------------------------------------------------------------------


class _Root(Scalar):
    """A public key in hex."""

    def describe(self) -> str:
        return "a public key of 64 hex digits"

    def read(self, value: object) -> PublicKey:
        if not isinstance(value, str) or _HEX_KEY.fullmatch(value) is None:
            raise self.mismatch(value)
        key = PublicKey(bytes.fromhex(value))
        if not key.sound:
            raise Wrong("is no key that can prove anything", "copy it again from the gateway")
        return key


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fleet:
    root: PublicKey = setting(_Root(), doc="The fleet's root key.")
    site: str = setting(NAME, doc="The part of the fleet that shares a broker's topics.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mqtt:
    url: str | None = setting(
        Url("mqtt", "mqtts", what="a URL like mqtts://broker.example:8883"), None, "The broker."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tables:
    fleet: _Fleet = setting(Table(_Fleet), doc="Whose fleet it is.")
    mqtt: _Mqtt = setting(Table(_Mqtt), {}, "How to reach it.")


@dataclass(frozen=True, slots=True)
class FleetFile:
    """What a machine needs to know of its fleet. None of it is secret.

    :param root: what every credential must lead to.
    :param site: names the topics: letters, digits, dots, dashes and underscores.
    :param mqtt_url: the broker, ``mqtt://`` or ``mqtts://``, without a password.
    """

    root: PublicKey
    site: str
    mqtt_url: str | None = None

    @classmethod
    def read(cls, path: Path) -> FleetFile:
        """:raises ConfigError: it is missing, or with everything that is wrong in it."""
        tables, _ = load(_Tables, path, hint="init makes it")
        return cls._of(tables)

    @classmethod
    def parse(cls, text: str, path: Path) -> FleetFile:
        """:param path: for the errors.
        :raises ConfigError: with everything that is wrong.
        """
        return cls._of(loads(_Tables, text, path))

    @classmethod
    def _of(cls, tables: _Tables) -> FleetFile:
        fleet = tables.fleet
        return cls(fleet.root, fleet.site, tables.mqtt.url)

    def text(self) -> str:
        """The TOML. :raises ConfigError: a field is not what it must be."""
        lines = [
            "# A QIS Edge fleet: whoever has this file can check who belongs to it.",
            "[fleet]",
            f"root = {toml(self.root.raw.hex())}",
            f"site = {toml(self.site)}",
        ]
        if self.mqtt_url is not None:
            lines += ["", "[mqtt]", f"url = {toml(self.mqtt_url)}"]
        text = "\n".join(lines) + "\n"
        self.parse(text, Path("fleet.toml"))
        return text

    def write(self, path: Path) -> None:
        """Write it, in place of an earlier one; durable when it returns.

        :raises ConfigError: a field is not what it must be.
        :raises KeyFileError: it cannot be written.
        """
        replace_file(path, self.text().encode())


# --- durable files ---------------------------------------------------------------------


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` in place of what is there, all of it or nothing; durable when it returns.

    :raises KeyFileError: it cannot be written.
    """
    try:
        _place(path, data, 0o644, os.replace)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}") from None


def _place(path: Path, data: bytes, mode: int, name: Callable[[Path, Path], None]) -> None:
    """Write a file beside ``path``, then give it that name: by ``os.replace``, or by
    ``os.link``, which fails where the name is taken. No reader ever sees half of it, and
    nothing is left of one that failed.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    fresh.unlink(missing_ok=True)  # of a process that had our number and was killed
    try:
        _create(fresh, data, mode)
        name(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _create(path: Path, data: bytes, mode: int) -> None:
    """A new file whose content is durable."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)  # whatever the umask took or left
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make names in it durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that knows no such thing
            raise
    finally:
        os.close(descriptor)
