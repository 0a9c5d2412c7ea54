"""Would the broker take what we send? Step by step, as the link does it: name, connection,
TLS, certificates, login, topics. The few packets of MQTT that this takes are written here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qis_edge.core.errors import LinkError, QisError
from qis_edge.core.messages import Hello
from qis_edge.doctor.findings import Finding, Severity, error, notice, ok, warning
from qis_edge.links.mqtt_dial import dial, explain_tls
from qis_edge.links.mqtt_settings import MqttSettings, is_loopback
from qis_edge.links.mqtt_topics import Topics
from qis_edge.terminal import duration, moment

#: Seconds for the broker to answer, and for a gateway to.
PATIENCE, GREETING = 10.0, 5.0
#: Seconds before its end from which a certificate is warned of.
NEAR = 30 * 86400

_CONNACK, _PUBLISH, _PUBACK, _SUBACK = 2, 3, 4, 9
_LOGIN = {4, 5, 0x86, 0x87, 0x8C}  # of 3.1.1 and of 5: bad name or password, not authorized
_HUNG_UP = -1
_VERSION = {1, 0x84, _HUNG_UP}
#: What the link says of certificates whose time is over, or has not come.
_ENDED = ("expired", "not valid yet", "ended on", "begins on")


@dataclass(frozen=True, slots=True)
class Probe:
    """What a role does at the broker.

    :param subscribe: a filter that it listens to.
    :param publish: a topic that it sends to, and ``payload`` what can do no harm there.
    :param answered: whether somebody should answer the payload.
    """

    subscribe: str
    publish: str
    payload: bytes
    answered: bool

    @classmethod
    def node(cls, site: str, kid: bytes) -> Probe:
        """A node says hello, as it always may; a gateway greets."""
        topics = Topics(site)
        hello = Hello(kid, os.urandom(8)).encode()
        return cls(topics.down(kid), topics.up(kid), hello, answered=True)

    @classmethod
    def gateway(cls, site: str, kid: bytes) -> Probe:
        """A gateway sends to a node that does not exist: its own kid."""
        topics = Topics(site)
        return cls(topics.every_up, topics.down(kid), b"", answered=False)


def check_broker(settings: MqttSettings, probe: Probe, about: str = "mqtt") -> Iterator[Finding]:
    """One broker. Takes a few seconds at most, or ``PATIENCE`` for each step that hangs."""
    if settings.has_password and not settings.tls and not is_loopback(settings.host):
        yield warning(
            "broker-insecure",
            f"a password travels to {settings.host} in the clear",
            "use mqtts://",
            about,
        )
    paths = (settings.password_file, settings.ca, settings.cert, settings.key)
    if any(path is not None and str(path).startswith("credential:") for path in paths):
        yield notice(
            "broker",
            f"what {settings.url} asks for is handed over by systemd, to the service alone: "
            "it was not tried",
            "while the service runs, root's doctor can try it",
            about,
        )
        return
    if settings.cert is not None:
        yield from _own_certificate(settings.cert, about)
    try:
        password = settings.read_password()
        socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        sock = dial(settings)
    except LinkError as failure:
        yield _unreachable(settings, failure, about)
        return
    except (OSError, UnicodeError):
        yield error(
            "broker-name",
            f"the name {settings.host} does not resolve",
            "check the name, and that this machine has a network",
            about,
        )
        return
    except QisError as failure:
        yield error("broker-settings", str(failure), failure.hint or "see the settings", about)
        return
    with contextlib.closing(sock):
        if isinstance(sock, ssl.SSLSocket):
            yield from _certificate(sock.getpeercert(), "the broker's certificate", about)
    yield from _talk(settings, password, probe, about)


def _unreachable(settings: MqttSettings, failure: LinkError, about: str) -> Finding:
    text = str(failure)
    code = "broker-unreachable"
    if "certificate" in text and any(word in text for word in _ENDED):
        code = "broker-certificate"
    elif "TLS" in text or "certificate" in text or text.startswith(("ca:", "cert:")):
        code = "broker-tls"
    elif "does not resolve" in text:
        code = "broker-name"
    return error(code, text, failure.hint or f"is {settings.url} right, and does it run?", about)


def _own_certificate(path: Path, about: str) -> Iterator[Finding]:
    decode: Any = getattr(getattr(ssl, "_ssl", None), "_test_decode_cert", None)
    if decode is None:  # of CPython alone
        return
    with contextlib.suppress(OSError, ValueError, ssl.SSLError):
        yield from _certificate(decode(str(path)), f"our certificate {path}", about)


def _certificate(found: Any, what: str, about: str) -> Iterator[Finding]:
    ends = (found or {}).get("notAfter")
    if not ends:
        return
    left = ssl.cert_time_to_seconds(ends) - time.time()
    said = f"{what} ends {moment(ssl.cert_time_to_seconds(ends))}"
    if left <= 0:
        yield error("broker-certificate", f"{said}: it has ended", "renew it", about)
    elif left < NEAR:
        yield warning("broker-certificate", f"{said}, in {duration(left)}", "renew it", about)


# --- a conversation ----------------------------------------------------------------------


class _Closed(Exception):
    """The broker ended the conversation, or said nothing in time."""


class _Talk:
    """One connection of MQTT 5 or 3.1.1 that sends one frame and goes."""

    def __init__(self, sock: socket.socket, version: int) -> None:
        self._sock = sock
        self._sock.settimeout(PATIENCE)
        self._version = version
        self._buffer = b""
        self.heard: list[bytes] = []  # bodies of what was published to us

    def connect(self, user: str | None, password: str | None) -> int:
        """The reason code of the broker's answer; 0: welcome."""
        flags = 2 | (0x80 if user is not None else 0) | (0x40 if password is not None else 0)
        body = _text("MQTT") + bytes([self._version, flags]) + (30).to_bytes(2, "big")
        body += self._no_properties() + _text(f"qis-doctor-{os.urandom(4).hex()}")
        for word in (user, password):
            body += b"" if word is None else _text(word)
        self._send(0x10, body)
        return self._await(_CONNACK)[1]

    def subscribe(self, topic: str) -> int:
        """The reason code; below 0x80: granted."""
        self._send(0x82, b"\0\1" + self._no_properties() + _text(topic) + b"\1")
        return self._await(_SUBACK)[-1]

    def publish(self, topic: str, payload: bytes) -> int:
        """The reason code; MQTT 3.1.1 knows none, and is always 0."""
        self._send(0x32, _text(topic) + b"\0\2" + self._no_properties() + payload)
        answer = self._await(_PUBACK)
        return answer[2] if self._version == 5 and len(answer) > 2 else 0

    def listen(self, seconds: float) -> bool:
        """Whether anything is published to us in time."""
        self._sock.settimeout(seconds)
        end = time.monotonic() + seconds
        with contextlib.suppress(_Closed):
            while not self.heard and time.monotonic() < end:
                self._next()
        return bool(self.heard)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.sendall(b"\xe0\0")
        self._sock.close()

    def _no_properties(self) -> bytes:
        return b"\0" if self._version == 5 else b""

    def _send(self, first: int, body: bytes) -> None:
        try:
            self._sock.sendall(bytes([first]) + _length(len(body)) + body)
        except OSError as failure:
            raise _Closed from failure

    def _await(self, kind: int) -> bytes:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found, body = self._next()
            if found == kind:
                return body
        raise _Closed

    def _next(self) -> tuple[int, bytes]:
        first = self._read(1)[0]
        length = shift = 0
        while True:
            byte = self._read(1)[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 or shift > 21:
                break
        body = self._read(min(length, 1 << 20))
        if first >> 4 == _PUBLISH and not first & 1:  # what is retained is no answer
            self.heard.append(body)
        return first >> 4, body

    def _read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            try:
                piece = self._sock.recv(65536)
            except OSError as failure:
                raise _Closed from failure
            if not piece:
                raise _Closed
            self._buffer += piece
        found, self._buffer = self._buffer[:count], self._buffer[count:]
        return found


def _text(word: str) -> bytes:
    raw = word.encode()
    return len(raw).to_bytes(2, "big") + raw


def _length(count: int) -> bytes:
    made = b""
    while True:
        count, low = divmod(count, 128)
        made += bytes([low | (0x80 if count else 0)])
        if not count:
            return made


def _talk(
    settings: MqttSettings, password: str | None, probe: Probe, about: str
) -> Iterator[Finding]:
    versions = {"auto": (5, 4), "5": (5,), "3.1.1": (4,)}[settings.protocol]
    for version in versions:
        try:
            talk = _Talk(dial(settings), version)
        except LinkError as failure:
            yield _unreachable(settings, failure, about)
            return
        with contextlib.closing(talk):
            try:
                code = talk.connect(settings.user, password)
            except _Closed as closed:
                if isinstance(closed.__cause__, ssl.SSLError):  # its word on our certificate
                    where = f"{settings.host}:{settings.port}"
                    yield _unreachable(settings, explain_tls(closed.__cause__, where), about)
                    return
                code = _HUNG_UP  # as some brokers do where they know another version
            if code in _VERSION and version != versions[-1]:
                continue
            yield from _welcome(settings, talk, code, probe, version, about)
        return


def _welcome(
    settings: MqttSettings, talk: _Talk, code: int, probe: Probe, version: int, about: str
) -> Iterator[Finding]:
    if code in _LOGIN:
        yield error(
            "broker-login",
            f"{settings.url} does not let {settings.user or 'anybody without a name'} in",
            "see username, password_file, cert and key under [links.mqtt], and the broker's log",
            about,
        )
        return
    if code:
        why = "hangs up without an answer" if code == _HUNG_UP else f"refuses us (code {code})"
        yield error(
            "broker-unreachable",
            f"{settings.url} is there, and {why}",
            "see the broker's log; is that its port for MQTT, with or without TLS?",
            about,
        )
        return
    try:
        found = list(_topics(talk, probe, about))
    except _Closed:
        found = [
            error(
                "broker-forbidden",
                f"{settings.url} hangs up when we use our topics",
                "see its access control (docs/mosquitto.acl) and its log",
                about,
            )
        ]
    if not any(one.severity is Severity.ERROR for one in found):
        name = "5" if version == 5 else "3.1.1"
        yield ok("broker", f"{settings.url} takes what we send (MQTT {name})", about)
    yield from found


def _topics(talk: _Talk, probe: Probe, about: str) -> Iterator[Finding]:
    fix = "give this user its own topics (docs/mosquitto.acl)"
    if talk.subscribe(probe.subscribe) >= 0x80:
        yield error("broker-forbidden", f"we may not listen to {probe.subscribe}", fix, about)
    if talk.publish(probe.publish, probe.payload) >= 0x80:
        yield error("broker-forbidden", f"we may not send to {probe.publish}", fix, about)
    elif probe.answered and not talk.listen(GREETING):
        yield notice(
            "gateway-silent",
            f"no gateway answered a hello there within {GREETING:g} s",
            "is a gateway of this site connected to this broker? MQTT 3.1.1 and some brokers "
            "do not say that an access control list forbids to send",
            about,
        )
