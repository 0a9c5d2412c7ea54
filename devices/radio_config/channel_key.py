"""The secret key of a channel: drawing it, keeping it in a file, and the channel's hash.

A key file is one line, the key in base64 as Meshtastic's apps show it, under a comment that
says what it is. Only its owner may read it. Who copies it lets other radios onto the channel.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import hmac
import os
import shlex
import stat
from collections.abc import Callable
from functools import reduce
from operator import xor
from pathlib import Path

from qis_edge.core.errors import KeyFileError, UsageError

KEY_SIZE = 32
#: Sizes that the firmware takes as they are: AES-128 and AES-256.
_SIZES = (16, KEY_SIZE)
_MOST = 4096  # bytes of a key file

#: Hashes of the presets' own channels with the key that everybody has. Firmware 2.8 drops what
#: bears the hash of such a channel and does not decode with its key.
WELL_KNOWN = frozenset({0x08, 0x0E, 0x18, 0x1F, 0x6E, 0x70, 0x76, 0x77})


class ChannelKey:
    """A key. It is compared, never shown."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) not in _SIZES:
            raise UsageError(f"{len(raw)} bytes, 16 or 32 are possible", field="key")
        self._raw = bytes(raw)

    @property
    def raw(self) -> bytes:
        """The bytes that the radio gets."""
        return self._raw

    def is_key(self, other: bytes) -> bool:
        """Whether a radio has this key."""
        return hmac.compare_digest(self._raw, other)

    def __repr__(self) -> str:
        return "ChannelKey(...)"


def channel_hash(name: str, key: bytes) -> int:
    """The byte by which radios tell channels apart: all bytes of name and key, XORed.

    As ``Channels::generateHash`` of Meshtastic's firmware (``src/mesh/Channels.cpp``) has it
    for a channel that has a name and a key of 16 or 32 bytes.
    """
    return reduce(xor, name.encode() + key, 0)


def check_hash(name: str, key: ChannelKey) -> None:
    """Refuse what firmware would take for a well-known channel.

    :raises UsageError: the hash is one of :data:`WELL_KNOWN`. It does not say which.
    """
    if channel_hash(name, key.raw) in WELL_KNOWN:
        raise UsageError(
            f"radios would take {name} with this key for one of Meshtastic's own channels",
            field="channel.name",
            hint="change the name by one letter, or move the key away and draw another",
        )


def draw(name: str, random: Callable[[int], bytes] = os.urandom) -> ChannelKey:
    """A new key whose hash with ``name`` is no well-known one."""
    while True:
        key = ChannelKey(random(KEY_SIZE))
        if channel_hash(name, key.raw) not in WELL_KNOWN:
            return key


def write(path: Path, key: ChannelKey, name: str) -> None:
    """Write a new key file that only its owner can read; durable when it returns.

    :param name: of the channel, for the comment.
    :raises KeyFileError: there is a file already, or it cannot be written.
    """
    text = (
        f"# The key of the radio channel {name}. Secret: who has it reads and sends there.\n"
        f"# Copy it to wherever radios of the same channel are set up.\n"
        f"{base64.b64encode(key.raw).decode()}\n"
    )
    try:
        _create(path, text.encode())
    except FileExistsError:
        raise KeyFileError(
            f"{path} exists already", hint="a key is never overwritten: move it away first"
        ) from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}") from None


def _create(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        os.fchmod(descriptor, 0o600)  # whatever the umask took
        os.write(descriptor, data)
        os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    finally:
        os.close(descriptor)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that knows no such thing
            raise
    finally:
        os.close(folder)


def read(path: Path) -> ChannelKey:
    """The key in a file.

    :raises KeyFileError: it is missing, belongs to somebody else, can be read by others, or
        holds no key. No message repeats what it holds.
    """
    try:
        # Not blocking: opening a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise KeyFileError(
            f"there is no key file {path}", hint="copy it here, or draw one with --new-key"
        ) from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
    try:
        _check_access(path, os.fstat(descriptor))
        raw = os.read(descriptor, _MOST)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    return _parse(path, raw)


def _check_access(path: Path, found: os.stat_result) -> None:
    """Of what was opened, not of what the path names by now."""
    quoted = shlex.quote(str(path))
    if not stat.S_ISREG(found.st_mode):
        raise KeyFileError(f"{path} is not a file")
    if found.st_uid != os.geteuid():
        raise KeyFileError(
            f"{path} belongs to user {found.st_uid}, and this runs as user {os.geteuid()}",
            hint=f"chown {os.geteuid()} {quoted}",
        )
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = stat.S_IMODE(found.st_mode)
        raise KeyFileError(
            f"{path} can be read or written by others (mode {mode:04o})",
            hint=f"chmod 600 {quoted}",
        )


def _parse(path: Path, raw: bytes) -> ChannelKey:
    lines = [line.strip() for line in raw.splitlines()]
    keys = [line for line in lines if line and not line.startswith(b"#")]
    try:
        if len(keys) != 1:
            raise ValueError
        return ChannelKey(base64.b64decode(keys[0], validate=True))
    except (binascii.Error, ValueError):
        raise KeyFileError(
            f"{path} is not a key file: one line with the base64 of 32 bytes is expected",
            hint="copy it again, or move it away and draw another with --new-key",
        ) from None
