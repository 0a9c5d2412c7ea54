"""The embedded MQTT broker: amqtt, for demos and small sites.

It speaks MQTT 3.1.1 only. It forgets the sessions of anonymous clients, and a frame that a
client has not acknowledged after five seconds; what it retains, it gives to every client that
connects, subscribed or not; it knows no limit on what it keeps, and no ACL. Custody receipts
make good what it loses, so nothing is lost to the fleet; but a site that relies on an ACL, or
has more than a few dozen nodes, wants Mosquitto (``docs/mosquitto.conf``).

In the gateway's own process::

    broker = EmbeddedBroker(port=1883)
    await broker.start()
    ...
    await broker.stop()

or in one of its own: ``python -m gateway.broker --port 1883``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qis_edge.core.errors import LinkError, QisError, UsageError
from qis_edge.links.mqtt_settings import is_loopback

_log = logging.getLogger(__name__)

_INSTALL = "pip install 'qis-edge[gateway]', or run Mosquitto (docs/mosquitto.conf)"

#: Seconds that amqtt grants a client beyond its keepalive; MQTT wants half the keepalive.
_GRACE = 15
#: Seconds for connected clients to be let go.
_STOP = 5.0
#: Seconds in which a client must have said CONNECT, and the most bytes that may take.
_GREETING = 10.0
_LONGEST_GREETING = 4096
#: The most bytes of any later packet. MQTT allows 256 MiB, which a client could fill us with.
_LONGEST_PACKET = 65_536
#: CONNACK 1: clients know to try 3.1.1.
_WRONG_PROTOCOL = b"\x20\x02\x00\x01"


class EmbeddedBroker:
    """One broker, listening on one address.

    :param host: the address to listen on; this machine alone unless given.
    :param port: the port; 0 for any that is free (read it from ``port``).
    :param password_file: file of ``name:hash`` lines (:func:`add_user` writes them); then
        nobody else is let in.
    :param allow_anonymous: let anyone in who reaches a ``host`` that is not the loopback.
    :raises UsageError: another machine could come in without a password.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 1883,
        *,
        password_file: Path | None = None,
        allow_anonymous: bool = False,
    ) -> None:
        if password_file is None and not allow_anonymous and not is_loopback(host):
            raise UsageError(
                f"anyone who reaches {host} could use the broker",
                field="host",
                hint="give a password file, or allow anonymous clients on purpose",
            )
        self.host = host
        self.port = port
        self.password_file = password_file
        self._broker: Any = None
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        """How a client on this machine finds it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt://{host}:{self.port}"

    async def start(self) -> None:
        """Listen. Does nothing if it does already.

        :raises LinkError: amqtt is not installed, the address is taken or is not ours, or
            the password file cannot be read.
        """
        if self._broker is not None:
            return
        self._check_password_file()
        broker = await self._start_amqtt()
        try:
            self._server = await asyncio.start_server(self._client, self.host, self.port)
        except OSError as error:
            await _shut_down(broker)
            hint = "is another broker running? stop it, use it, or choose another port"
            why = os.strerror(error.errno) if error.errno else str(error)
            where = f"{self.host}:{self.port}"
            raise LinkError(f"cannot listen on {where}: {why}", hint=hint) from error
        self.port = self._server.sockets[0].getsockname()[1]
        self._broker = broker

    async def stop(self) -> None:
        """Let the clients go and stop listening. Idempotent."""
        broker, self._broker = self._broker, None
        if broker is None:
            return
        if self._server is not None:
            self._server.close()
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await _shut_down(broker)

    async def _start_amqtt(self) -> Any:
        with _no_warnings():
            try:
                from amqtt.broker import Broker
            except ImportError as error:
                raise LinkError("the embedded broker is not installed", hint=_INSTALL) from error
            _quieten()
            settings = {
                "listeners": {"default": {"type": "external"}},
                "timeout_disconnect_delay": _GRACE,
                "plugins": self._plugins(),
            }
            try:
                broker = Broker(settings)
                await broker.start()
            except Exception as error:
                raise LinkError(f"the embedded broker does not start: {error}") from error
        return broker

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its first byte to its last. Ours and not amqtt's because
        amqtt waits for ever for the rest of a greeting in MQTT 5, and because what we
        accepted we can close."""
        from amqtt.adapters import StreamWriterAdapter

        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            async with asyncio.timeout(_GREETING):
                greeting = await _read_greeting(reader)
            if not _is_mqtt_311(greeting):
                writer.write(_WRONG_PROTOCOL)
                await writer.drain()
            elif self._broker is not None:
                adapter = _after(greeting, reader)
                await self._broker.external_connected(
                    adapter, StreamWriterAdapter(writer), "default"
                )
        except (TimeoutError, OSError, EOFError, ValueError, asyncio.CancelledError):
            pass  # it left, said nothing, or we stop; nobody waits for this task
        except Exception:  # noqa: BLE001 - amqtt's own, for clients that break the protocol
            _log.debug("a client's connection ended in an error", exc_info=True)
        finally:
            self._clients.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    def _plugins(self) -> dict[str, dict[str, Any]]:
        # Named one by one: the default set also logs every packet and publishes statistics.
        if self.password_file is None:
            return {
                "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True},
            }
        return {
            "amqtt.plugins.authentication.FileAuthPlugin": {
                "password_file": str(self.password_file)
            },
        }

    def _check_password_file(self) -> None:
        path = self.password_file
        if path is None:
            return
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "is not text"
            raise LinkError(f"password file {path}: {why}") from error
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.startswith("#") and ":$argon2" not in line:
                command = f"python -m gateway.broker --password-file {path} --add-user NAME"
                raise LinkError(
                    f"password file {path}:{number}: is not name:hash", hint=f"use {command}"
                )


def add_user(path: Path, name: str, password: str) -> None:
    """Add a user to a password file, in place of an earlier one of this name.

    :raises UsageError: the name is not fit for the file.
    :raises LinkError: amqtt is not installed.
    """
    if not name or name.startswith("#") or any(c == ":" or not c.isprintable() for c in name):
        raise UsageError(f"{name!r} is not a user name", field="name")
    try:
        from pwdlib.hashers.argon2 import Argon2Hasher
    except ImportError as error:
        raise LinkError("the embedded broker is not installed", hint=_INSTALL) from error
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if not line.startswith(f"{name}:")]
    path.touch(mode=0o600)
    path.write_text("\n".join([*kept, f"{name}:{Argon2Hasher().hash(password)}", ""]))


async def _read_greeting(reader: asyncio.StreamReader) -> bytes:
    """One whole CONNECT packet.

    :raises ValueError: it is something else, or longer than a greeting ever is.
    """
    packet = await reader.readexactly(1)
    if packet != b"\x10":
        raise ValueError("not a CONNECT")
    length = shift = 0
    while True:
        byte = await reader.readexactly(1)
        packet += byte
        length |= (byte[0] & 0x7F) << shift
        shift += 7
        if length > _LONGEST_GREETING:
            raise ValueError("not a CONNECT")
        if not byte[0] & 0x80:
            break
    return packet + await reader.readexactly(length)


def _is_mqtt_311(greeting: bytes) -> bool:
    """Whether a CONNECT names protocol level 4. (Its length takes one or two bytes.)"""
    body = greeting[2:] if greeting[1] < 0x80 else greeting[3:]
    return body[:7] == b"\x00\x04MQTT\x04"


def _after(head: bytes, reader: asyncio.StreamReader) -> Any:
    """A reader for amqtt of ``head`` and what follows it."""
    from amqtt.adapters import StreamReaderAdapter

    class Reader(StreamReaderAdapter):  # type: ignore[misc] # amqtt has no types
        def __init__(self) -> None:
            super().__init__(reader)
            self._head = head

        async def read(self, n: int = -1) -> bytes:
            if n > _LONGEST_PACKET:
                raise ConnectionError(f"a packet of {n} bytes")
            if not self._head:
                data: bytes = await super().read(n)
                return data
            # amqtt reads the greeting field by field and never beyond its end.
            data, self._head = self._head[:n], self._head[n:]
            return data

    return Reader()


async def _shut_down(broker: Any) -> None:
    with _no_warnings(), contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STOP):
            await broker.shutdown()


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Libraries of amqtt warn of amqtt's use of them, on import and at the start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _quieten() -> None:
    """A client that comes, goes or greets in MQTT 5 is no news; nor is a traceback of one."""
    for name in ("amqtt", "transitions"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)


async def _serve(broker: EmbeddedBroker) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, stop.set)
    await broker.start()
    print(f"listening on {broker.url}", flush=True)
    await stop.wait()
    await broker.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m gateway.broker``; says where it listens once it does."""
    parser = argparse.ArgumentParser(
        prog="python -m gateway.broker", description="A small MQTT 3.1.1 broker for this machine."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=1883, help="port; 0 for any that is free")
    parser.add_argument("--password-file", type=Path, help="file of name:hash lines")
    parser.add_argument("--allow-anonymous", action="store_true", help="on any address")
    parser.add_argument("--add-user", metavar="NAME", help="write a user to the file, and exit")
    options = parser.parse_args(arguments)
    try:
        if options.add_user is not None:
            if options.password_file is None:
                raise UsageError("goes with --add-user", field="--password-file")
            add_user(options.password_file, options.add_user, getpass.getpass())
            return 0
        broker = EmbeddedBroker(
            options.host,
            options.port,
            password_file=options.password_file,
            allow_anonymous=options.allow_anonymous,
        )
        asyncio.run(_serve(broker))
    except QisError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
