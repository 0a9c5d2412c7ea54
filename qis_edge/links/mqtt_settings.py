"""How to reach an MQTT broker. Light: the config reads this without loading paho."""

from __future__ import annotations

import ipaddress
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from qis_edge.core.errors import KeyFileError, UsageError
from qis_edge.systemd_credentials import find, is_handed_over

PORT = 1883
TLS_PORT = 8883

#: What ``protocol`` may be: ``auto`` tries MQTT 5 first.
PROTOCOLS = ("auto", "5", "3.1.1")


@dataclass(frozen=True, slots=True)
class MqttSettings:
    """Where the broker is, and how to speak with it.

    :param host: name or address.
    :param port: 1883, or 8883 with TLS, unless given.
    :param tls: encrypt, and verify the broker's certificate.
    :param ca: PEM file of the authorities to believe; the system's unless given.
    :param cert: PEM file of our certificate (chain), for brokers that ask for one.
    :param key: PEM file of its key, if it is not in ``cert``.
    :param server_name: the name in the broker's certificate, if it is not ``host``.
    :param user: user name. An ACL by name wants a node's kid here (``docs/mosquitto.acl``).
    :param password: its password. Never shown by ``repr`` and never logged.
    :param password_file: file whose first line is the password; only its owner may read it.
    :param insecure: allow a password to travel in the clear to another machine.
    :param protocol: ``auto``, ``5`` or ``3.1.1``.
    :param keepalive: seconds of silence after which the other side is asked whether it
        lives; a dead one is noticed after at most twice that.
    :param connect_timeout: seconds for each of reaching the broker and its answer.
    :param ack_timeout: seconds in which at least one waiting frame must be acknowledged.
    :param window: frames handed to the broker and not yet acknowledged by it, at most.
    :param receive_window: frames that came in and are not yet done with, at most.
    :param session_expiry: seconds for which the broker keeps frames for a gateway that is
        away (MQTT 5; a broker of 3.1.1 has a setting of its own).
    :param retry_first: seconds before the second attempt to connect.
    :param retry_longest: the most seconds between two attempts.
    :raises UsageError: a value is out of bounds or two do not go together.
    """

    host: str = "localhost"
    port: int = 0
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None
    insecure: bool = False
    protocol: str = "auto"
    keepalive: int = 30
    connect_timeout: float = 20.0
    ack_timeout: float = 30.0
    window: int = 100
    receive_window: int = 200
    session_expiry: int = 3600
    retry_first: float = 1.0
    retry_longest: float = 120.0

    def __post_init__(self) -> None:
        if not self.host or any(c.isspace() or c in "/@?#" for c in self.host):
            raise UsageError(f"{self.host!r} is not a host", field="host")
        if self.port == 0:
            object.__setattr__(self, "port", TLS_PORT if self.tls else PORT)
        _within("port", self.port, 1, 65535)
        _within("keepalive", self.keepalive, 1, 65535)
        _within("window", self.window, 1, 10_000)
        _within("receive_window", self.receive_window, 1, 10_000)
        _within("session_expiry", self.session_expiry, 0, 2**32 - 1)
        for name in ("connect_timeout", "ack_timeout", "retry_first", "retry_longest"):
            _within(name, getattr(self, name), 0.01, 86_400)
        if self.protocol not in PROTOCOLS:
            known = ", ".join(PROTOCOLS)
            raise UsageError(f"{self.protocol!r} is none of {known}", field="protocol")
        self._check_tls()
        self._check_password()

    def _check_tls(self) -> None:
        for name in ("ca", "cert", "key", "server_name"):
            if getattr(self, name) is not None and not self.tls:
                raise UsageError("has no meaning without TLS", field=name, hint="use mqtts://")
        if self.key is not None and self.cert is None:
            raise UsageError("a key without its certificate", field="key", hint="set cert too")

    def _check_password(self) -> None:
        if self.password is not None and self.password_file is not None:
            raise UsageError("both password and password_file are given", field="password_file")
        if not self.has_password:
            return
        if self.user is None:
            raise UsageError("a password without a user name", field="user")
        if not (self.tls or self.insecure or is_loopback(self.host)):
            raise UsageError(
                f"a password would travel to {self.host} in the clear",
                field="tls",
                hint="use mqtts://, or set insecure = true if that network is trusted",
            )

    @property
    def has_password(self) -> bool:
        """Whether a password is set, here or in a file."""
        return self.password is not None or self.password_file is not None

    @property
    def url(self) -> str:
        """The broker's URL, without secrets: for people and logs."""
        scheme = "mqtts" if self.tls else "mqtt"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"

    @classmethod
    def from_url(cls, url: str, **others: Any) -> MqttSettings:
        """Settings from ``mqtt://[user[:password]@]host[:port]`` (``mqtts://`` for TLS),
        and whatever else is given by name, which has precedence.

        :raises UsageError: not such a URL (field ``url``), or a value is not acceptable.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or 0
        except ValueError:
            # The URL may hold a password: it is not repeated.
            raise UsageError("its host or port is not one", field="url", hint=_EXAMPLE) from None
        if parts.scheme not in ("mqtt", "mqtts"):
            raise UsageError("begins with neither mqtt:// nor mqtts://", field="url", hint=_EXAMPLE)
        if not parts.hostname:
            raise UsageError("names no host", field="url", hint=_EXAMPLE)
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise UsageError("has something after host and port", field="url", hint=_EXAMPLE)
        tls = parts.scheme == "mqtts"
        found: dict[str, Any] = {"host": parts.hostname, "port": port, "tls": tls}
        if parts.username:
            found["user"] = unquote(parts.username)
        if parts.password:
            found["password"] = unquote(parts.password)
        return cls(**(found | others))

    def read_password(self) -> str | None:
        """The password, from wherever it is kept.

        :raises UsageError: the file is missing, empty, or can be read by others.
        """
        if self.password_file is None:
            return self.password
        try:
            path = find(self.password_file)
        except KeyFileError as error:
            raise UsageError(str(error), field="password_file", hint=error.hint) from None
        try:
            mode = path.stat().st_mode
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "is not text"
            raise UsageError(f"{path}: {why}", field="password_file") from error
        if stat.S_IMODE(mode) & 0o077 and not is_handed_over(path):
            raise UsageError(
                f"{path} can be read by others", field="password_file", hint=f"chmod 600 {path}"
            )
        password = text.splitlines()[0] if text else ""
        if not password:
            raise UsageError(f"{path} has no password in its first line", field="password_file")
        return password

    def check_key(self) -> None:
        """See that the key of our certificate is ours alone; a missing file is not judged here.

        :raises UsageError: others can read it.
        """
        name, path = ("key", self.key) if self.key is not None else ("cert", self.cert)
        if path is None or is_handed_over(path):
            return
        try:
            loose = stat.S_IMODE(path.stat().st_mode) & 0o077
            has_key = name == "key" or b"PRIVATE KEY-----" in path.read_bytes()
        except OSError:
            return
        if loose and has_key:
            raise UsageError(f"{path} can be read by others", field=name, hint=f"chmod 600 {path}")


_EXAMPLE = "like mqtt://localhost:1883 or mqtts://name@broker.example"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or address alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise UsageError(f"{value} is outside {least}..{most}", field=name)
