"""The types of single settings: text, numbers, durations, sizes, paths, URLs, dates."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qis_edge.core.errors import KeyFileError
from qis_edge.schema.base import Scalar, Type, Where, Wrong, did_you_mean
from qis_edge.systemd_credentials import find, is_named, well_formed
from qis_edge.terminal import harmless

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_BYTES = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(ms|s|min|m|h|d|w)\s*")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kKMGT]?i?B)")
_HOOK = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Text(Scalar):
    """Text in one line.

    :param pattern: what the whole of it must match; ``what`` says so in words.
    """

    def __init__(
        self, pattern: str | None = None, *, what: str = "text", least: int = 1, most: int = 200
    ) -> None:
        self.pattern = re.compile(pattern) if pattern else None
        self.what = what
        self.least = least
        self.most = most

    def describe(self) -> str:
        """See :class:`Type`."""
        return self.what

    def read(self, value: object) -> Any:
        """See :class:`Type`."""
        if not isinstance(value, str):
            raise self.mismatch(value)
        if not self.least <= len(value) <= self.most:
            raise Wrong(f"must have {self.least} to {self.most} characters, it has {len(value)}")
        if _CONTROLS.search(value):
            raise Wrong("must not have control characters or line breaks")
        if self.pattern is not None and not self.pattern.fullmatch(value):
            raise Wrong(f"must be {self.what}, not {quoted(value)}")
        return value


#: What a node, a gateway or a site may be called.
NAME = Text(
    r"[A-Za-z0-9][A-Za-z0-9._-]*",
    what="a name of letters, digits, dots, dashes and underscores",
    most=40,
)
#: A channel, a result, a field of a situation.
WORD = Text(r"[a-z0-9_]+", what="lower-case letters, digits and underscores", most=64)


class Flag(Scalar):
    """True or false."""

    in_toml = True

    def describe(self) -> str:
        """See :class:`Type`."""
        return "true or false"

    def read(self, value: object) -> Any:
        """See :class:`Type`."""
        if not isinstance(value, bool):
            raise self.mismatch(value)
        return value


class Number(Scalar):
    """A finite number within bounds; whole ones only with ``whole``."""

    in_toml = True

    def __init__(self, least: float, most: float, *, whole: bool = False) -> None:
        self.least = least
        self.most = most
        self.whole = whole

    def describe(self) -> str:
        """See :class:`Type`."""
        kind = "a whole number" if self.whole else "a number"
        bounded = max(abs(self.least), abs(self.most)) < 1e12
        return f"{kind} from {self.least} to {self.most}" if bounded else kind

    def read(self, value: object) -> Any:
        """See :class:`Type`."""
        kinds = int if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise self.mismatch(value)
        if not self.least <= value <= self.most:  # not so for NaN either
            shown = f"{value:.6g}" if abs(value) < 1e300 else "that"
            raise Wrong(f"{shown} is outside {self.least} to {self.most}")
        return value if self.whole else float(value)


def whole(least: int, most: int) -> Number:
    """A whole number within bounds."""
    return Number(least, most, whole=True)


class Choice(Scalar):
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def describe(self) -> str:
        """See :class:`Type`."""
        *most, last = (f'"{word}"' for word in self.words)
        return f"{', '.join(most)} or {last}" if most else last

    def read(self, value: object) -> Any:
        """See :class:`Type`."""
        if not isinstance(value, str):
            raise self.mismatch(value)
        if value not in self.words:
            raise Wrong(f"{quoted(value)} is not known", did_you_mean(value, self.words))
        return value


class Duration(Scalar):
    """A length of time such as ``"10s"``, ``"1h"`` or ``"1h 30min"``, in seconds.

    The result is an ``int`` with ``whole`` and a ``float`` without.
    """

    def __init__(self, least: str, most: str, *, whole: bool = False) -> None:
        self.bounds = (least, most)
        self.least = _seconds(least) or 0.0
        self.most = _seconds(most) or 0.0
        self.whole = whole

    def describe(self) -> str:
        """See :class:`Type`."""
        least, most = self.bounds
        return f'a duration like "10s", "5min", "1h" or "7d", from {least} to {most}'

    def read(self, value: object) -> Any:
        """See :class:`Type`."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            shown = f"{value:g}" if abs(value) < 1e9 else "10"
            raise Wrong("must be a duration with its unit, in quotes", f'such as "{shown}s"')
        if not isinstance(value, str):
            raise self.mismatch(value)
        seconds = _seconds(value)
        if seconds is None:
            raise Wrong(f"{quoted(value)} is not a duration", 'write "10s", "5min", "1h" or "7d"')
        if not self.least <= seconds <= self.most:
            raise Wrong(f"{quoted(value)} is outside {self.bounds[0]} to {self.bounds[1]}")
        if not self.whole:
            return float(seconds)
        if seconds != int(seconds):
            raise Wrong(f"{quoted(value)} is not in whole seconds")
        return int(seconds)


def _seconds(text: str) -> float | None:
    total, at = 0.0, 0
    stripped = text.strip()
    while match := _DURATION.match(stripped, at):
        total += float(match[1]) * _SECONDS[match[2]]
        at = match.end()
    return total if at and at == len(stripped) else None


class Size(Scalar):
    """A number of bytes such as ``"64 MB"`` (10⁶) or ``"64 MiB"`` (2²⁰)."""

    def __init__(self, least: str, most: str) -> None:
        self.bounds = (least, most)
        self.least = _bytes(least) or 0
        self.most = _bytes(most) or 0

    def describe(self) -> str:
        """See :class:`Type`."""
        return f'a size like "64 MB" or "1 GB", from {self.bounds[0]} to {self.bounds[1]}'

    def read(self, value: object) -> Any:
        """See :class:`Type`."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise Wrong("must be a size with its unit, in quotes", 'such as "64 MB"')
        if not isinstance(value, str):
            raise self.mismatch(value)
        count = _bytes(value)
        if count is None:
            raise Wrong(f"{quoted(value)} is not a size", 'write "500 kB", "64 MB" or "1 GB"')
        if not self.least <= count <= self.most:
            raise Wrong(f"{quoted(value)} is outside {self.bounds[0]} to {self.bounds[1]}")
        return count


def _bytes(text: str) -> int | None:
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2] not in _BYTES:
        return None
    return round(float(match[1]) * _BYTES[match[2]])


class File(Type):
    """A path; relative ones are relative to the folder of the configuration file.

    :param exists: it must be there (looked at only when the configuration is checked in full).
    :param credential: it may be a secret that systemd hands over, ``credential:NAME``. One that
        is not at hand stays as it is written where the configuration is not checked in full.
    """

    def __init__(
        self, *, exists: bool = False, credential: bool = False, what: str = "a path"
    ) -> None:
        self.exists = exists
        self.credential = credential
        self.what = f"{what}, or credential:NAME" if credential else what

    def describe(self) -> str:
        """See :class:`Type`."""
        return self.what

    def parse(self, value: object, where: Where) -> Any:
        """See :class:`Type`."""
        if not isinstance(value, str):
            raise self.mismatch(value)
        if not value or _CONTROLS.search(value):
            raise Wrong("must be a path, neither empty nor with control characters")
        if self.credential and is_named(value):
            return _handed_over(value, where)
        try:
            path = where.folder / Path(value).expanduser()
            missing = self.exists and where.full and not path.exists()
        except (RuntimeError, ValueError) as error:  # no such user's home; surrogates
            raise Wrong("is not a path") from error
        except OSError as error:
            raise Wrong(f"cannot be looked at ({error.strerror})") from error
        if missing:
            raise Wrong(f"there is no {harmless(path, limit=300)}")
        return path


def _handed_over(value: str, where: Where) -> Path:
    try:
        return find(value)
    except KeyFileError as error:
        if where.full or not well_formed(value):
            raise Wrong(str(error), error.hint) from None
    return Path(value)


class Url(Scalar):
    """A URL without a password in it. Messages never repeat it."""

    def __init__(self, *schemes: str, what: str) -> None:
        self.schemes = schemes
        self.what = what

    def describe(self) -> str:
        """See :class:`Type`."""
        return self.what

    def read(self, value: object) -> Any:
        """See :class:`Type`."""
        from urllib.parse import urlsplit  # light, but not every verb needs it

        if not isinstance(value, str):
            raise self.mismatch(value)
        if _CONTROLS.search(value) or " " in value or len(value) > 500:
            raise Wrong("is not a URL", f"must be {self.what}")
        scheme = value.partition(":")[0]
        if ":" not in value:
            raise Wrong("is not a URL: it has no scheme", f"must be {self.what}")
        if scheme not in self.schemes:
            shown = quoted(scheme) if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]{0,20}", scheme) else ""
            raise Wrong(
                f"is a URL of an unknown scheme {shown}".rstrip(),
                did_you_mean(scheme, self.schemes) if shown else f"must be {self.what}",
            )
        try:
            parts = urlsplit(value)
            _ = parts.port
        except ValueError:
            raise Wrong("has a host or port that is not one", f"must be {self.what}") from None
        if parts.password is not None:
            raise Wrong("has a password in it", "put it into a file and set password_file")
        return value


class Hook(Scalar):
    """A Python callable, ``"module:function"``; it is imported when it is needed."""

    def describe(self) -> str:
        """See :class:`Type`."""
        return 'a Python callable, "module:function"'

    def read(self, value: object) -> Any:
        """See :class:`Type`."""
        if not isinstance(value, str):
            raise self.mismatch(value)
        if len(value) > 200 or not _HOOK.fullmatch(value):
            raise Wrong(f"{quoted(value)} is not a Python callable", 'write "module:function"')
        return value


class Listen(Scalar):
    """Where a server listens: ``"host:port"``, as a pair."""

    def describe(self) -> str:
        """See :class:`Type`."""
        return 'an address like "127.0.0.1:1883" or "[::1]:1883"'

    def read(self, value: object) -> Any:
        """See :class:`Type`."""
        if not isinstance(value, str):
            raise self.mismatch(value)
        match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})", value)
        if match is None or not 0 <= int(match[3]) <= 65535:
            raise Wrong(f"{quoted(value)} is not an address and port", "such as 127.0.0.1:1883")
        return (match[1] or match[2], int(match[3]))


class Moment(Scalar):
    """A point in time: a TOML date and time with its offset, or unix seconds. A float."""

    in_toml = True

    def describe(self) -> str:
        """See :class:`Type`."""
        return "a date and time such as 2013-06-01T00:00:00Z"

    def read(self, value: object) -> Any:
        """See :class:`Type`."""
        if isinstance(value, str):
            value = _datetime(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            moment = float(value) if abs(value) < 2**40 else math.nan
        elif isinstance(value, datetime):
            if value.tzinfo is None:
                raise Wrong("has no offset from UTC", "end it with Z for UTC")
            moment = value.astimezone(UTC).timestamp()
        else:
            raise self.mismatch(value)
        if not 0 <= moment < 2**40:
            raise Wrong("is outside the years that unix time counts from 1970")
        return moment


def _datetime(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise Wrong(f"{quoted(text)} is not a date and time", "2013-06-01T00:00:00Z") from None


def quoted(value: str) -> str:
    """A value for a message: harmless, bounded, in quotes."""
    return f'"{harmless(value, limit=60)}"'
