"""The URL of an engine: what it says, and what of it may be shown.

``scheme://user:password@host:port/path?option=value``; file engines also take
``scheme:path``. An option may be given as ``option_file=PATH`` instead, whose content is
then its value: that keeps secrets out of the configuration. ``PATH`` may be ``credential:NAME``,
which systemd hands over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from qis_edge.core.errors import KeyFileError, RoutingError, UsageError
from qis_edge.systemd_credentials import find, is_handed_over

_SCHEME = re.compile(r"[a-z][a-z0-9.-]*(\+[a-z0-9.-]+)?")
_WORD = re.compile(r"passw|secret|token|api_key|pwd", re.IGNORECASE)
_SECRET = re.compile(r"pass|secret|token|key|credential|auth|pwd", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EngineUrl:
    """A URL, taken apart; ``repr`` and ``str`` show no secret.

    :param scheme: lower case, e.g. ``sqlite``, ``qdrant+edge``.
    :param hosts: (name, port or ``None``) of each server named; engines whose clients
        take several have them separated by commas.
    :param path: unquoted; with its leading slash where there are hosts.
    :param options: of the query, by name; a name is given once.
    """

    scheme: str
    user: str | None
    password: str | None
    hosts: tuple[tuple[str, int | None], ...]
    path: str
    options: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> EngineUrl:
        """:raises RoutingError: it is no URL; the text is not shown, it may hold secrets."""
        scheme, colon, _ = text.partition(":")
        scheme = scheme.lower()
        if not colon or not _SCHEME.fullmatch(scheme):
            raise RoutingError(
                "a routing engine is given as a URL that begins with its scheme",
                hint="for example sqlite:routing.db",
            )
        authority, path, query = _split(text[len(scheme) + 1 :])
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        except ValueError as error:
            raise RoutingError(f"{scheme}: the URL is malformed ({_first_words(error)})") from None
        options = dict(pairs)
        if len(options) < len(pairs):
            raise RoutingError(f"{scheme}: an option is given twice")
        user, password, hosts = _authority(scheme, authority)
        return cls(scheme, user, password, hosts, unquote(path), options)

    @property
    def host(self) -> str:
        """The first host's name, or ``""``."""
        return self.hosts[0][0] if self.hosts else ""

    @property
    def port(self) -> int | None:
        """The first host's port, if given."""
        return self.hosts[0][1] if self.hosts else None

    def only(self, known: Iterable[str]) -> None:
        """:raises RoutingError: an option is not among those that the engine knows."""
        known = sorted(known)
        for name in self.options:
            if name.removesuffix("_file") not in known and name not in known:
                raise RoutingError(
                    f"{self}: unknown option {name!r}",
                    hint=f"it takes {', '.join(known)}" if known else "it takes no options",
                )

    def option(self, name: str, default: str | None = None) -> str | None:
        """An option's value, read from the file where one is named.

        :raises RoutingError: both forms are given, the file cannot be read, or others can
            read it.
        """
        file = self.options.get(f"{name}_file")
        if file is None:
            return self.options.get(name, default)
        if name in self.options:
            raise RoutingError(f"{self}: both {name} and {name}_file are given")
        try:
            path = find(file)
            loose = path.stat().st_mode & 0o077 and not is_handed_over(path)
            text = path.read_text(encoding="utf-8").strip()
        except KeyFileError as error:
            raise RoutingError(f"{self}: {name}_file: {error}", hint=error.hint) from None
        except (OSError, UnicodeDecodeError) as error:
            raise RoutingError(
                f"{self}: {name}_file cannot be read ({_first_words(error)})",
                hint="check that it exists and who may read it",
            ) from error
        if loose:
            raise RoutingError(
                f"{self}: {name}_file can be read by others", hint=f"chmod 600 {path}"
            )
        return text

    def file(self, name: str) -> str | None:
        """The path that an option names.

        :raises RoutingError: systemd handed over no such credential.
        """
        given = self.options.get(name)
        try:
            return None if given is None else str(find(given))
        except KeyFileError as error:
            raise RoutingError(f"{self}: {name}: {error}", hint=error.hint) from None

    @property
    def has_secret(self) -> bool:
        """Whether a secret stands in the URL itself."""
        return self.password is not None or any(
            _WORD.search(name) and not name.endswith(("_file", "location")) for name in self.options
        )

    def __str__(self) -> str:
        """Canonical and without secrets: what ``RoutingLayer.url`` is."""
        netloc = ",".join(
            (f"[{name}]" if ":" in name else name) + (f":{port}" if port is not None else "")
            for name, port in self.hosts
        )
        if self.user:
            netloc = f"{quote(self.user)}@{netloc}"
        shown = sorted(item for item in self.options.items() if not _SECRET.search(item[0]))
        query = f"?{urlencode(shown)}" if shown else ""
        slashes = "//" if self.hosts else ""
        return f"{self.scheme}:{slashes}{netloc}{quote(self.path)}{query}"

    def __repr__(self) -> str:
        return f"EngineUrl({str(self)!r})"


def typed(text: str, field: str) -> str:
    """A URL from the command line, as it is.

    :raises UsageError: it holds a secret, and everybody on this machine can read command lines.
    :raises RoutingError: it is no URL.
    """
    if EngineUrl.parse(text).has_secret:
        raise UsageError(
            "has a secret in it, and others can read the command line",
            field=field,
            hint="name a file that has it: password_file=PATH, token_file=PATH and the like",
        )
    return text


def _split(rest: str) -> tuple[str, str, str]:
    """What follows the scheme as (authority, path, query). ``urlsplit`` would refuse
    several hosts where one is an IPv6 address; a fragment means nothing to any engine."""
    rest = rest.partition("#")[0]
    rest, _, query = rest.partition("?")
    if not rest.startswith("//"):
        return "", rest, query
    authority, slash, path = rest[2:].partition("/")
    return authority, slash + path, query


def _authority(
    scheme: str, netloc: str
) -> tuple[str | None, str | None, tuple[tuple[str, int | None], ...]]:
    login, at, places = netloc.rpartition("@")
    user, _, password = login.partition(":")
    if at and not places:
        raise RoutingError(f"{scheme}: there is a login, but no host")
    hosts = tuple(_host(scheme, place) for place in places.split(",")) if places else ()
    return (
        unquote(user) if at and user else None,
        unquote(password) if password else None,
        hosts,
    )


def _host(scheme: str, place: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(f"//{place}")
        name, port = parts.hostname, parts.port
    except ValueError as error:
        raise RoutingError(f"{scheme}: {_first_words(error)}") from None
    if not name:
        raise RoutingError(f"{scheme}: a host has no name")
    return name, port


def _first_words(error: Exception) -> str:
    """What went wrong, without the value, which may be a secret."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return re.split(r"[:'\"]", str(error))[0].strip()
