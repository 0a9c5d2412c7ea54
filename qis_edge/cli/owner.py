"""Root acts as the user that a state folder belongs to.

A service keeps its keys from everybody else, root's commands included, and what root wrote
into its folder it could not write to again. So whoever looks as root looks as the service
does: with its rights and its groups.
"""

from __future__ import annotations

import os
from pathlib import Path

#: Where systemd puts the secrets of a unit that runs.
CREDENTIALS = Path("/run/credentials")


def find_credentials(program: str) -> None:
    """Take over what systemd handed to the service of a command, if we may see it: then
    ``credential:NAME`` means the same to both."""
    handed = CREDENTIALS / f"{program}.service"
    if "CREDENTIALS_DIRECTORY" not in os.environ and os.access(handed, os.R_OK | os.X_OK):
        os.environ["CREDENTIALS_DIRECTORY"] = str(handed)


def act_as_owner(state: Path) -> None:
    """Become the owner of a state folder for good, if this is root and the owner is not."""
    if os.geteuid() != 0:
        return
    try:
        found = state.stat()
    except OSError:
        return
    if found.st_uid == 0:
        return
    import pwd  # only root needs it

    try:
        name = pwd.getpwuid(found.st_uid).pw_name
        groups = os.getgrouplist(name, found.st_gid)
    except KeyError:
        groups = [found.st_gid]
    os.setgroups(groups)
    os.setgid(found.st_gid)
    os.setuid(found.st_uid)
