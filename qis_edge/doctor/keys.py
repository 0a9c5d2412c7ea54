"""Keys, who may read them, and the credential that makes them worth something."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from qis_edge.core.errors import KeyFileError
from qis_edge.doctor.findings import Finding, error, notice, ok, warning
from qis_edge.keys import read_key
from qis_edge.terminal import duration, moment

#: Seconds before its end from which a credential is told about, and warned of.
SOON, NEAR = 90 * 86400, 30 * 86400


def check_state(state: Path) -> Iterator[Finding]:
    """Whether others may look into a state folder."""
    try:
        mode = state.stat().st_mode
    except OSError:
        return  # the disk's checks say so
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield error(
            "state-exposed", f"others may look into {state} (mode {stat.S_IMODE(mode):04o})",
            f"chmod 700 {state}",
        )  # fmt: skip


def check_key(path: Path, state: Path, *, what: str) -> Iterator[Finding]:
    """A key file; its content is looked at where we may.

    :param what: whose key it is: "node" or "gateway".
    """
    if str(path).startswith("credential:"):
        yield notice("key", f"{path} is handed over by systemd, to the service alone", about=what)
        return
    try:
        found = path.stat()
    except OSError:
        yield error(
            "key-missing",
            f"there is no key file {path}",
            "restore it from a copy, or make a new one with init: to its fleet it is "
            "another machine then",
            what,
        )
        return
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield error(
            "key-exposed",
            f"{path} can be read or written by others (mode {stat.S_IMODE(found.st_mode):04o})",
            f"chmod 600 {path}; if somebody may have read it, revoke it and make another",
            what,
        )
        return
    owner = state.stat().st_uid if state.exists() else os.geteuid()
    if found.st_uid != owner:
        yield error(
            "key-exposed",
            f"{path} belongs to user {found.st_uid}, the state folder to user {owner}",
            f"chown {owner} {path}",
            what,
        )
        return
    try:
        identity = read_key(path)
    except KeyFileError as failure:
        yield error("key-unusable", str(failure), failure.hint or "restore it from a copy", what)
    else:
        yield ok("key", f"{path}: {identity.kid.hex()}", what)


def check_root_key(state: Path) -> Iterator[Finding]:
    """A fleet's root key belongs on no machine that runs."""
    if (state / "root.key").exists():
        yield warning(
            "root-key-here",
            f"the fleet's root key is here: whoever takes over this machine has the fleet "
            f"({state / 'root.key'})",
            "move it to a medium that is kept offline; revoke --root FILE uses it there",
        )


def check_credential(
    expires: int | None, now: float, *, held: bool, missing: str, renew: str
) -> Finding:
    """A credential, and for how long it is good.

    :param expires: unix seconds at which it ends, if ever.
    :param held: whether there is one that is good now.
    :param missing: what to do where there is none; ``renew``: where it ends soon.
    """
    if not held:
        if expires is not None and expires <= now:
            return error("credential-missing", f"the credential ended {moment(expires)}", renew)
        return error("credential-missing", "this machine is not of its fleet", missing)
    if expires is None:
        return ok("credential", "it has no end")
    left = expires - now
    said = f"it ends {moment(expires)}, in {duration(left)}"
    if left < NEAR:
        return warning("credential-ends", said, renew)
    return notice("credential-ends", said, renew) if left < SOON else ok("credential", said)
