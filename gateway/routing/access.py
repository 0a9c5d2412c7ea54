"""What URLs of engines on servers have in common: a login, TLS, numbers."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import NamedTuple

from gateway.routing.url import EngineUrl
from qis_edge.core.errors import RoutingError

#: The options of :func:`tls_of`.
TLS_OPTIONS = ("tls", "ca", "cert", "cert_key")

_FLAGS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


class Tls(NamedTuple):
    """Files in PEM form. ``None``: the system's authorities, no certificate of our own."""

    ca: str | None
    cert: str | None
    key: str | None

    def context(self) -> ssl.SSLContext:
        """Servers are checked, name and certificate.

        :raises OSError: a file cannot be read or holds something else.
        """
        made = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            made.load_cert_chain(self.cert, self.key)
        return made


def tls_of(url: EngineUrl) -> Tls | None:
    """What ``tls=yes``, ``ca=``, ``cert=`` and ``cert_key=`` say.

    :raises RoutingError: ``tls`` is neither yes nor no, or an option needs another.
    """
    wanted = flag_of(url, "tls")
    given = [name for name in TLS_OPTIONS[1:] if name in url.options]
    if not wanted:
        if given:
            raise RoutingError(f"{url}: {given[0]} needs tls=yes")
        return None
    if "cert_key" in url.options and "cert" not in url.options:
        raise RoutingError(f"{url}: cert_key needs cert")
    return Tls(*(url.file(name) for name in TLS_OPTIONS[1:]))


def password_of(url: EngineUrl) -> str | None:
    """The password of the login, or of the option ``password`` or ``password_file``.

    :raises RoutingError: both are given, or the file cannot be read.
    """
    given = url.option("password")
    if given is not None and url.password is not None:
        raise RoutingError(f"{url}: the password is given twice")
    return url.password if given is None else given


def flag_of(url: EngineUrl, name: str) -> bool:
    """An option that is yes or no; no where it is not given."""
    found = _FLAGS.get(url.options.get(name, "no"))
    if found is None:
        raise RoutingError(f"{url}: {name} must be yes or no")
    return found


def number_of(url: EngineUrl, name: str, default: int, low: int, high: int) -> int:
    """An option that is a whole number from ``low`` to ``high``."""
    text = url.options.get(name, str(default))
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise RoutingError(f"{url}: {name} must be a whole number from {low} to {high}")
    return int(text)


def hosts_of(url: EngineUrl, port: int, example: str) -> Sequence[tuple[str, int]]:
    """The servers, each with its port.

    :raises RoutingError: none is named.
    """
    if not url.hosts:
        raise RoutingError(f"{url}: no server is named", hint=f"for example {example}")
    return [(name, port if given is None else given) for name, given in url.hosts]
