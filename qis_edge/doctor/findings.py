"""Findings, their codes, and the worst of them."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class Severity(enum.IntEnum):
    """How bad it is."""

    OK = 0
    NOTICE = 1  # good to know
    WARNING = 2  # it works, and will not for ever
    ERROR = 3  # it does not work, or data is in danger

    @property
    def label(self) -> str:
        """As ``--json`` has it."""
        return self.name.lower()


#: Every code and what it says. A code is never used for something else.
CODES = {
    "config": "the configuration is read",
    "config-wrong": "it cannot be used",
    "daemon": "the daemon runs",
    "daemon-down": "it does not",
    "daemon-silent": "it runs and does not answer",
    "clock": "the system's clock is synchronised",
    "clock-not-set": "it shows a time long past",
    "clock-behind": "it shows a time before what was recorded already",
    "clock-not-synchronised": "nobody keeps it right",
    "clock-unknown": "nobody says whether it is kept right",
    "clock-offset": "it differs from the time that a gateway told",
    "clock-untrusted": "the daemon does not know the time yet",
    "clock-simulated": "the configuration has a simulated clock",
    "key": "the key is good and private",
    "key-missing": "there is none",
    "key-exposed": "others may read or write it, or it is somebody else's",
    "key-unusable": "its file holds no key",
    "state-exposed": "others may look into the state folder",
    "root-key-here": "the fleet's root key is on this machine",
    "credential": "the credential is good",
    "credential-missing": "there is none: this machine is not of the fleet",
    "credential-ends": "it ends soon",
    "disk": "the disk has room and keeps what it is given",
    "disk-missing": "there is no state folder",
    "disk-full": "there is no room",
    "disk-short": "there is less room than the budget promises",
    "disk-inodes": "there is no room for names of files",
    "disk-read-only": "nothing can be written",
    "disk-volatile": "what is written is gone after a restart",
    "disk-unsafe": "the file system does not keep what it promised, or not like a disk",
    "disk-trouble": "the daemon cannot write",
    "disk-wear": "how worn the card or the eMMC is",
    "disk-worn": "it is near its end",
    "database": "a database can be read, and is of this version",
    "database-old": "it is brought up to date at the next start",
    "database-new": "it was written by a newer version",
    "database-bad": "it cannot be read",
    "broker": "the broker takes what we send",
    "broker-settings": "the settings of the link cannot work",
    "broker-name": "its name does not resolve",
    "broker-unreachable": "it cannot be connected to",
    "broker-tls": "TLS with it fails",
    "broker-certificate": "its certificate, or ours, ends soon or has ended",
    "broker-login": "it does not let us in",
    "broker-forbidden": "it does not let us use our topics",
    "broker-insecure": "a password is sent in the clear",
    "gateway-silent": "no gateway answered there",
    "port": "the radio or the serial line is there",
    "port-missing": "it is not",
    "port-forbidden": "we may not use it",
    "package-missing": "a package is not installed that the configuration needs",
    "link-down": "a link of the daemon's is down",
    "versions": "what is installed",
    "python-untested": "this Python was not tested",
    "memory": "memory",
    "memory-short": "the machine has little left",
    "memory-limit": "the daemon is near the limit of its control group",
    "memory-killed": "processes of its control group were killed for want of memory",
    "memory-uncontrolled": "the kernel does not enforce memory limits",
    "backlog": "what waits to be delivered",
    "backlog-lost": "outcomes were dropped for want of room",
    "backlog-refused": "packets were refused for good",
    "backlog-full": "the queue or the spool is nearly full",
    "backlog-stale": "nothing was delivered for long",
    "engine": "a routing engine works",
    "engine-away": "it does not",
    "engine-behind": "it lacks much of what came in",
    "service-outdated": "the unit is not as this version would install it",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found.

    :param code: of :data:`CODES`.
    :param about: which one of several: a link, an engine, a file; or "".
    :param fix: what to do, for all but what is well.
    """

    code: str
    severity: Severity
    message: str
    fix: str | None = None
    about: str = ""

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code

    def shown(self) -> dict[str, Any]:
        """As ``--json`` shows it."""
        return {
            "code": self.code,
            "severity": self.severity.label,
            "about": self.about or None,
            "message": self.message,
            "fix": self.fix,
        }


def ok(code: str, message: str, about: str = "") -> Finding:
    """All is well."""
    return Finding(code, Severity.OK, message, None, about)


def notice(code: str, message: str, fix: str | None = None, about: str = "") -> Finding:
    """Good to know."""
    return Finding(code, Severity.NOTICE, message, fix, about)


def warning(code: str, message: str, fix: str, about: str = "") -> Finding:
    """It will not be well for ever."""
    return Finding(code, Severity.WARNING, message, fix, about)


def error(code: str, message: str, fix: str, about: str = "") -> Finding:
    """It is not well."""
    return Finding(code, Severity.ERROR, message, fix, about)


def worst(findings: Iterable[Finding]) -> Severity:
    """The worst of them."""
    return max((one.severity for one in findings), default=Severity.OK)
