"""Secrets that systemd hands to a service: ``credential:NAME`` in the place of a path.

A unit says ``LoadCredential=NAME:FILE`` (or ``LoadCredentialEncrypted=``); the service then finds
the secret in ``$CREDENTIALS_DIRECTORY/NAME``, in memory that nobody else can read, and needs no
right to read ``FILE`` (systemd.exec(5)).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from qis_edge.core.errors import KeyFileError

PREFIX = "credential:"
#: As systemd has it: a file's name.
_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,255}")


def is_named(path: str | Path) -> bool:
    """Whether this names a credential, and not a file."""
    return str(path).startswith(PREFIX)


def well_formed(text: str) -> bool:
    """Whether this is ``credential:`` and a name as systemd takes it."""
    return is_named(text) and _NAME.fullmatch(text.removeprefix(PREFIX)) is not None


def find(path: str | Path) -> Path:
    """The file of ``credential:NAME``; any other path as it is.

    :raises KeyFileError: systemd handed over no such credential. The hint is the unit's line.
    """
    if not is_named(path):
        return Path(path)
    text = str(path)
    name = text.removeprefix(PREFIX)
    if not well_formed(text):
        raise KeyFileError(
            f"{PREFIX} is not followed by the name of a credential",
            hint="it has letters, digits, dots, dashes and underscores",
        )
    folder = _folder()
    if folder is None:
        raise KeyFileError(
            f"the credential {name} is handed over by systemd, and this does not run in its unit",
            hint=f"systemd-run --pipe --wait -p LoadCredential={name}:FILE COMMAND, as root",
        )
    found = folder / name
    if not found.exists():
        raise KeyFileError(
            f"systemd hands over no credential {name}",
            hint=f"under [Service] of the unit: LoadCredential={name}:FILE",
        )
    return found


def is_handed_over(path: Path) -> bool:
    """Whether systemd handed this file over: it sees to the access, by a mask that looks like
    the group's bits."""
    folder = _folder()
    return folder is not None and path.absolute().parent == folder


def _folder() -> Path | None:
    given = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(given).absolute() if given else None
