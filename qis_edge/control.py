"""The local socket over which the command line speaks with a running daemon.

A Unix socket in the state folder, mode 0600. One JSON object a line::

    {"verb": "status", "args": {}}
    {"ok": true, "result": {...}}
    {"ok": false, "error": "what is wrong", "hint": "what to do"}

The daemon registers a coroutine for each verb. A lock beside the socket keeps a second
daemon out of the same state folder; a socket that a killed one left behind is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from qis_edge.core.errors import NotRunning, QisError

log = logging.getLogger(__name__)

#: Called with the request's ``args``. What it returns is written as JSON, bytes in hexadecimal.
Handler = Callable[[Mapping[str, Any]], Awaitable[Any]]

NAME = "control.sock"
LOCK = "control.lock"
MAX_REQUEST = 1 << 16
MAX_ANSWER = 1 << 24
MAX_CLIENTS = 16
#: Seconds after which a client that says nothing is let go.
IDLE = 60.0
#: ``sun_path`` has 108 bytes, the last for the end.
_LONGEST = 107
#: Seconds between attempts to take the lock: :func:`is_running` holds it for a moment.
_PAUSES = (0.01, 0.05, 0.2)


class ControlServer:
    """The daemon's side. ``async with`` it, or :meth:`start` and :meth:`close`.

    :param state: the state folder; must exist.
    :param handlers: by verb. A :class:`QisError` of one becomes the answer; anything else
        is logged and answered as an internal error.
    """

    def __init__(self, state: Path, handlers: Mapping[str, Handler]) -> None:
        self.path = state / NAME
        self._handlers = dict(handlers)
        self._lock: int | None = None
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen.

        :raises QisError: another daemon runs with this state folder, or it cannot be used.
        """
        try:
            self._lock = await _take_lock(self.path.with_name(LOCK))
            listening = self._bind()
        except OSError as error:
            self._release()
            raise QisError(
                f"cannot listen at {self.path}: {error.strerror or error}",
                hint="the state folder must exist and belong to the user that runs the daemon",
            ) from error
        except QisError:
            self._release()
            raise
        self._server = await asyncio.start_unix_server(
            self._accept, sock=listening, limit=MAX_REQUEST
        )

    async def close(self) -> None:
        """Stop. Requests under way are dropped. Idempotent."""
        if self._server is not None:
            self._server.close()
            for client in list(self._clients):
                client.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _bind(self) -> socket.socket:
        """A socket that listens. The lock is ours: what stands in its place is stale."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise QisError(f"{self.path} is there and is no socket", hint="move it away")
            self.path.unlink()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _address(self.path) as address:
                listening.bind(address)
                self.path.chmod(0o600)  # before listen: nobody can have connected
            listening.listen(MAX_CLIENTS)
        except BaseException:
            listening.close()
            raise
        return listening

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.current_task()
        assert client is not None
        if len(self._clients) >= MAX_CLIENTS:
            writer.close()
            return
        self._clients.add(client)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, TimeoutError):
            pass  # the client went away, or said nothing
        except asyncio.CancelledError:
            pass  # close(): to be cancelled is how a client's task ends there
        finally:
            self._clients.discard(client)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(IDLE):
                    line = await reader.readline()
            except ValueError:  # longer than the limit
                writer.write(_line(_failure("the request is too long")))
                await writer.drain()
                return
            if not line:
                return
            writer.write(_line(await self._answer(line)))
            async with asyncio.timeout(IDLE):
                await writer.drain()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _failure("the request is not JSON")
        verb = request.get("verb") if isinstance(request, dict) else None
        args = request.get("args", {}) if isinstance(request, dict) else None
        if not isinstance(verb, str) or not isinstance(args, dict):
            return _failure('a request is {"verb": "…", "args": {…}}')
        handler = self._handlers.get(verb)
        if handler is None:
            return _failure(
                f"this daemon does not know {verb[:40]!r}",
                "it may be of another version than the command: restart it",
            )
        try:
            return {"ok": True, "result": await handler(args)}
        except QisError as error:
            return _failure(str(error), error.hint)
        except Exception:
            log.exception("control: %s failed", verb)
            return _failure("internal error of the daemon", "its log says more")


def request(
    state: Path,
    verb: str,
    args: Mapping[str, Any] | None = None,
    *,
    timeout: float = 10.0,
    start: str = "qis-edge run",
) -> Any:
    """Ask the daemon of a state folder, and wait for its answer.

    :param timeout: seconds, for each of connecting, sending and waiting.
    :param start: the command that starts the daemon, for the hint.
    :raises NotRunning: there is no daemon.
    :raises QisError: it refused, did not answer in time or went away.
    """
    line = _line({"verb": verb, "args": dict(args or {})})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        _connect(connection, state, start)
        try:
            connection.sendall(line)
            answer = _read_line(connection)
        except TimeoutError:
            raise QisError(
                f"the daemon did not answer within {timeout:g} s", hint="its log may say why"
            ) from None
        except OSError:
            answer = b""
    try:
        said = json.loads(answer)
        good = said["ok"]
        result = said["result"] if good else (str(said["error"]), said.get("hint"))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise QisError("the daemon went away before it had answered") from None
    if good:
        return result
    message, hint = result
    raise QisError(message, hint=None if hint is None else str(hint))


def is_running(state: Path) -> bool:
    """Whether a daemon holds the lock of a state folder."""
    try:
        handle = os.open(state / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _connect(connection: socket.socket, state: Path, start: str) -> None:
    path = state / NAME
    try:
        with _address(path) as address:
            connection.connect(address)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotRunning("the daemon is not running", hint=f"start it with: {start}") from None
    except PermissionError:
        raise QisError(
            f"{path} belongs to another user", hint="run this as the user that runs the daemon"
        ) from None
    except TimeoutError:
        raise QisError("the daemon takes no connections", hint="its log may say why") from None
    except OSError as error:
        raise QisError(f"cannot connect to {path}: {error.strerror or error}") from error


def _read_line(connection: socket.socket) -> bytes:
    """What comes up to the end of a line, or what came before the other side closed."""
    found = bytearray()
    while not found.endswith(b"\n"):
        piece = connection.recv(1 << 16)
        if not piece or len(found) > MAX_ANSWER:
            return b""
        found += piece
    return bytes(found)


async def _take_lock(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    for pause in (*_PAUSES, None):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if pause is not None:
                await asyncio.sleep(pause)
    else:
        pid = os.read(handle, 20).decode("ascii", "replace").strip()
        os.close(handle)
        process = f" (process {pid})" if pid.isdigit() else ""
        raise QisError(
            f"another daemon runs with the state folder {path.parent}{process}",
            hint="stop that one first, or give this one a state folder of its own",
        )
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """The path as an address; a long one goes through a handle of its folder."""
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _failure(message: str, hint: str | None = None) -> dict[str, Any]:
    return {"ok": False, "error": message, "hint": hint}


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, default=_plain, separators=(",", ":")).encode() + b"\n"


def _plain(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return str(value)
