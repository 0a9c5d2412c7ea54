"""Reaching a broker: name, TCP, TLS. Blocking; meant for a thread of its own.

What goes wrong is said in words that name the cause, as a :class:`LinkError`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from typing import Any

from qis_edge.core.errors import LinkError
from qis_edge.links.mqtt_settings import MqttSettings

WANTS_CERTIFICATE = "does it want a certificate of ours (cert, key)?"
RENEW = "renew it; or is the broker's clock wrong?"
_IS_IT_TLS = "is that its port for TLS?"
#: OpenSSL's verification results that deserve words of their own.
_VERIFY = {
    9: ("the broker's certificate is not valid yet", "is this machine's clock right?"),
    10: ("the broker's certificate has expired", "renew it, or check this machine's clock"),
    18: ("the broker's certificate is signed by itself", "give its authority as ca"),
    19: ("the broker's certificate leads to an unknown authority", "give its authority as ca"),
    20: ("the broker's certificate leads to an unknown authority", "give its authority as ca"),
    62: ("the broker's certificate is for another name", "set server_name to the name in it"),
    64: ("the broker's certificate is for another address", "set server_name to the name in it"),
}
#: What a broker says of our certificate (TLS alerts), in words.
_ALERTS = {
    "CERTIFICATE_REQUIRED": ("the broker wants a certificate of ours", WANTS_CERTIFICATE),
    "CERTIFICATE_EXPIRED": ("our certificate has expired, says the broker", RENEW),
    "CERTIFICATE_REVOKED": ("our certificate is revoked, says the broker", "get another"),
    "UNKNOWN_CA": (
        "the broker does not know the authority of our certificate",
        "take one of the authority in its cafile",
    ),
    "UNSUPPORTED_CERTIFICATE": (
        "the broker does not take our certificate",
        "it must be one for clients: extendedKeyUsage = clientAuth",
    ),
}


def tls_context(settings: MqttSettings) -> ssl.SSLContext | None:
    """The context for these settings, or ``None`` without TLS.

    :raises LinkError: a certificate or key file cannot be used.
    """
    if not settings.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca)
    except (OSError, ssl.SSLError) as error:
        raise LinkError(f"ca: {settings.ca}: {_why(error)}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.cert is not None:
        try:
            # An empty passphrase: a locked key is an error, not a question at the terminal.
            context.load_cert_chain(settings.cert, settings.key, password=lambda: "")
        except (OSError, ssl.SSLError) as error:
            where = f"{settings.cert}" + (f", {settings.key}" if settings.key else "")
            raise LinkError(f"cert: {where}: {_why(error)}") from error
    return context


def dial(settings: MqttSettings) -> socket.socket:
    """A connected socket, after the TLS handshake where there is one, not blocking.

    :raises LinkError: what failed, and why.
    """
    where = f"{settings.host}:{settings.port}"
    context = tls_context(settings)
    try:
        sock = socket.create_connection(
            (settings.host, settings.port), timeout=settings.connect_timeout
        )
    except (OSError, UnicodeError) as error:
        raise _unreachable(error, settings) from error
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            name = settings.server_name or settings.host
            sock = context.wrap_socket(sock, server_hostname=name)
        sock.setblocking(False)
    except (OSError, ValueError) as error:
        sock.close()
        raise explain_tls(error, where) from error
    return sock


def explain_tls(error: BaseException, where: str) -> LinkError:
    """Why TLS did not come about, or ended."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text, hint = _VERIFY.get(
            error.verify_code, (f"the broker's certificate: {error.verify_message}", None)
        )
        return LinkError(text, hint=hint)
    reason = getattr(error, "reason", None) or ""
    if "WRONG_VERSION" in reason or "HTTP_REQUEST" in reason:
        return LinkError(f"{where} does not speak TLS", hint=_IS_IT_TLS)
    if "ALERT" in reason or isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        # The broker's verdict on our certificate comes as an alert after the handshake; if
        # we had written meanwhile, the system may have thrown it away.
        told = next((words for name, words in _ALERTS.items() if reason.endswith(name)), None)
        if told is not None:
            return LinkError(told[0], hint=told[1])
        alert = reason.split("ALERT_", 1)[-1].lower().replace("_", " ")
        why = f": {alert}" if "ALERT" in reason else ""
        return LinkError(f"the broker ended TLS{why}", hint=WANTS_CERTIFICATE)
    if isinstance(error, TimeoutError):
        return LinkError(f"{where} did not finish the TLS handshake in time")
    return LinkError(f"TLS with {where} failed: {_why(error)}", hint=_IS_IT_TLS)


def _unreachable(error: Exception, settings: MqttSettings) -> LinkError:
    where = f"{settings.host}:{settings.port}"
    if isinstance(error, (socket.gaierror, UnicodeError)):
        hint = "check the name, and that this machine has a network"
        return LinkError(f"the name {settings.host} does not resolve", hint=hint)
    if isinstance(error, ConnectionRefusedError):
        return LinkError(f"{where} refuses connections", hint="is the broker running?")
    if isinstance(error, TimeoutError):
        return LinkError(f"{where} does not answer")
    return LinkError(f"{where} cannot be reached: {_why(error)}")


def _why(error: BaseException) -> str:
    return getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)


async def dial_aside(settings: MqttSettings) -> socket.socket:
    """:func:`dial` in a daemon thread of its own. Cancelled, it leaves the thread to finish
    alone: a resolver can block for half a minute, and neither the event loop nor the end of
    the program (which waits for the loop's executor) is to wait for it."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[socket.socket] = loop.create_future()

    def settle(sock: socket.socket | None, error: LinkError | None) -> None:
        if not result.done():
            if sock is not None:
                result.set_result(sock)
            elif error is not None:
                result.set_exception(error)
        elif sock is not None:
            sock.close()

    def work() -> None:
        sock: socket.socket | None = None
        failure: LinkError | None = None
        try:
            sock = dial(settings)
        except LinkError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - a thread's error must reach its waiter
            failure = LinkError(f"{settings.host}: {error}")
        try:
            loop.call_soon_threadsafe(settle, sock, failure)
        except RuntimeError:  # the loop was closed meanwhile
            if sock is not None:
                sock.close()

    threading.Thread(target=work, name="mqtt-dial", daemon=True).start()
    return await result


class OversizedError(OSError):
    """A broker announces a packet that is larger than any that we could want."""


class BufferedSocket:
    """A non-blocking socket as paho wants one, with fewer system calls.

    paho reads each packet in three or more pieces, and writes each on its own; this
    reads whatever there is at once, and gathers writes until :meth:`flush`. ``pending``
    tells how much is left to read without asking the system, as an ``SSLSocket``'s does.

    :param largest: bytes of the largest packet body; paho asks for the whole of it.
    """

    _READ = 65_536
    _WRITE = 65_536

    def __init__(self, sock: socket.socket, largest: int) -> None:
        self._sock = sock
        self._largest = largest
        self._in = b""
        self._at = self._looked = 0
        self._out = bytearray()
        #: Why the connection broke, where the system said so.
        self.error: OSError | None = None

    def recv(self, size: int) -> bytes:
        """Up to ``size`` bytes; empty at the end of the stream.

        :raises OversizedError: ``size`` is more than any packet of ours has.
        :raises OSError: the connection is broken, or has nothing to read now.
        """
        if size > self._largest:
            self.error = OversizedError(f"a packet of {size} bytes")
            raise self.error
        if self._at == len(self._in):
            try:
                self._in = self._sock.recv(self._READ)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except OSError as error:
                self.error = error
                raise
            self._at = 0
        piece = self._in[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def look(self, first: int) -> bytes | None:
        """The body of the next packet, if that begins with ``first`` and is all here; then
        :meth:`took` passes it."""
        if self._at == len(self._in):
            self._fill()
        data, at = self._in, self._at
        if len(data) - at < 4 or data[at] != first:
            return None
        size, start = data[at + 1], at + 2
        if size & 0x80:
            if data[start] & 0x80:
                return None
            size, start = size & 0x7F | data[start] << 7, start + 1
        if size > self._largest or start + size > len(data):
            return None
        self._looked = start + size
        return data[start : self._looked]

    def _fill(self) -> None:
        """Read what there is; what is wrong, :meth:`recv` will find too."""
        try:
            self._in = self._sock.recv(self._READ)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            self.error = error
            return
        self._at = 0

    def took(self) -> None:
        """Pass the packet that :meth:`look` has shown."""
        self._at = self._looked

    def pending(self) -> int:
        """Bytes that can be read without asking the system."""
        held = len(self._in) - self._at
        more: Any = getattr(self._sock, "pending", None)
        return held or (more() if more is not None else 0)

    def send(self, data: bytes | bytearray) -> int:
        """Take ``data`` for the next :meth:`flush`.

        :raises BlockingIOError: enough is waiting already.
        """
        if len(self._out) >= self._WRITE:
            self.flush()
            if len(self._out) >= self._WRITE:
                raise BlockingIOError
        self._out += data
        return len(data)

    def flush(self) -> bool:
        """Write what was gathered; whether all of it went.

        :raises OSError: the connection is broken.
        """
        while self._out:
            try:
                sent = self._sock.send(self._out)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            except OSError as error:
                self.error = error
                raise
            del self._out[:sent]
        return True

    def close(self) -> None:
        """Write what still goes without waiting, and close."""
        try:
            self.flush()
        except (OSError, ValueError):
            pass
        finally:
            self._sock.close()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """Ignored if it asks for what is: the socket is not blocking from the start."""
        self._sock.setblocking(flag)
