"""Every error of QIS Edge, in one tree.

Two branches matter most. :class:`UsageError` says that *we* (or the program that calls
us) did something wrong: it is a bug or a bad setting and is raised through.
:class:`Refused` says that *somebody else's bytes* are not acceptable: it may be caught,
counted by its :class:`Reason` and dropped, and nothing else may.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class QisError(Exception):
    """The root of the tree. ``hint`` says what to do next; the command line prints it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(QisError, ValueError):
    """We were called wrongly. ``field`` names the argument or the value at fault."""

    def __init__(self, message: str, *, field: str, hint: str | None = None) -> None:
        super().__init__(f"{field}: {message}", hint=hint)
        self.field = field


class DoesNotFit(UsageError):
    """A value or a packet does not fit its resolution, its bounds or the size limit."""


class Reason(enum.Enum):
    """Why received bytes were refused: a stable code (wire) and a stable name (counters).

    The codes travel in receipts (``docs/wire-format.md``) and are never renumbered.
    """

    TRUNCATED = 1  # the bytes end before the message does
    OVERSIZED = 2  # longer than the message may be
    TRAILING = 3  # bytes after the end of the message
    INDEFINITE = 4  # an indefinite-length item
    TYPE = 5  # an item of a type that does not belong there
    DUPLICATE_KEY = 6  # a map with one key twice
    NON_CANONICAL = 7  # not the deterministic encoding of RFC 8949 section 4.2.1
    INTEGER = 8  # an integer past its bounds (never past 64 bits)
    NESTING = 9  # nested deeper than any message of ours
    BOUNDS = 10  # a count, power, width or length past its bounds
    HEADER = 11  # COSE headers other than the exact ones
    SIGNATURE = 12  # the signature does not verify
    MAC = 13  # the authentication tag does not verify
    UNKNOWN_KEY = 14  # nobody we know signs with this key
    REVOKED = 15  # the key was revoked
    EXPIRED = 16  # the credential is past its end, or not yet begun
    CHAIN = 17  # the credential does not lead to the fleet's root
    SCOPE = 18  # the key is not entitled to do this
    TOPIC = 19  # it came on a topic of another key
    EQUIVOCATION = 20  # two contents under one (node, store, sequence)
    FUTURE = 21  # dated in the future
    REPLAYED = 22  # an old message that has had its day (nonce, number or epoch)
    SECRET = 23  # an all-zero shared secret (a key of small order)
    MESSAGE = 24  # no message of ours begins like this
    FLOODED = 25  # more of it than we are willing to take

    @property
    def label(self) -> str:
        """The name as counters and logs write it, e.g. ``non_canonical``."""
        return self.name.lower()


class Refused(QisError):
    """Received bytes are not acceptable: ``reason`` says why, ``field`` says where."""

    def __init__(self, reason: Reason, field: str, detail: str = "") -> None:
        text = f"{field}: {reason.label.replace('_', ' ')}"
        super().__init__(f"{text} ({detail})" if detail else text)
        self.reason = reason
        self.field = field
        self.detail = detail


class KeyFileError(QisError):
    """A key file is missing, readable by others, or not a key."""


class StoreError(QisError):
    """A store cannot do its work: disk full, read-only, corrupt, locked, too new."""


class StoreCorrupt(StoreError):
    """A store's file is damaged; it was left where it is for inspection."""


class LinkError(QisError):
    """A link cannot do what was asked of it, now."""


class RoutingError(QisError):
    """A routing engine refused, is misconfigured or is away."""


class NotRunning(QisError):
    """The daemon that should answer is not running."""


class SensorError(QisError):
    """A sensor could not be read, or was configured wrongly."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong in a configuration file."""

    file: str
    line: int | None
    key: str
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        text = f"{place}: {self.key}: {self.message}"
        return f"{text} ({self.suggestion})" if self.suggestion else text


class ConfigError(QisError):
    """A configuration is not usable: ``problems`` has all that is wrong with it at once."""

    def __init__(self, problems: Sequence[ConfigProblem], *, hint: str | None = None) -> None:
        super().__init__("\n".join(str(p) for p in problems), hint=hint)
        self.problems = tuple(problems)
