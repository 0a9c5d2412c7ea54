"""A hub: one routing engine, served over HTTP to gateways that have none of their own.

``qis-gateway hub`` runs it; ``https:`` (:mod:`gateway.routing.https`) is its client, and
:mod:`gateway.routing.hub_wire` what they say. Every request needs a token. What is
deposited is checked before the engine gets it; who reads checks again.

A client is a stranger until its token was seen: until then it has some seconds and no
memory of ours but a connection, and the oldest strangers give way where there are many.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import re
import ssl
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

from gateway.routing import Batch, Entry, RoutingLayer, Subscription
from gateway.routing import hub_wire as wire
from gateway.routing.base import Accept
from qis_edge.core.errors import KeyFileError, Refused, RoutingError, UsageError
from qis_edge.links.backoff import Backoff
from qis_edge.links.outage import Outage
from qis_edge.systemd_credentials import find, is_handed_over
from qis_edge.worker import Worker

log = logging.getLogger(__name__)

#: Seconds in which a connection must show a token; a request's body must have come; and a
#: connection may be idle.
STRANGE, BODY, IDLE = 15.0, 30.0, 75.0
#: Connections at once. Polls of one token at once.
MAX_CONNECTIONS = 512
MAX_POLLS = 64
#: Requests a second and token, unless said otherwise; and seconds' worth of them at once.
RATE, BURST = 1000.0, 2.0
#: Packets that cost as much as a request.
PACKETS_PER_REQUEST = 100
#: Seconds between looks whether a held poll's cursor has moved past what is of no interest.
LOOK = 0.5
#: Seconds between droppings of what expired; between attempts to open the engine.
EXPIRE = 600.0
RETRY_FIRST, RETRY_LONGEST = 0.5, 30.0
#: Packets that one step on the verifying thread takes.
ACCEPT_SLICE = 100

_LINE = re.compile(r"(\S{1,40})\s+([A-Za-z0-9._~+/-]{16,512}=*)(?:\s+(read))?")


# --- tokens ---------------------------------------------------------------------------------


class Client(NamedTuple):
    """Whom a token is of.

    :param name: for logs; several tokens may have one name, while they are changed.
    :param writes: whether it may deposit.
    """

    name: str
    writes: bool


class Tokens:
    """The tokens of a file: on each line a name, a token, and ``read`` where it may only
    read. Empty lines and those that begin with ``#`` do not count. ``credential:NAME`` will do.

    :raises KeyFileError: it is missing, can be read by others, or is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = find(path)
        self._clients = self._read()

    def reload(self) -> None:
        """Read the file again. What was there before stays where it cannot be read."""
        self._clients = self._read()

    def client(self, token: str) -> Client | None:
        """Whose it is. Takes as long for one as for another."""
        digest = _digest(token)
        found = None
        for known, client in self._clients:
            if hmac.compare_digest(known, digest):
                found = client
        return found

    def _read(self) -> Sequence[tuple[bytes, Client]]:
        try:
            with self._path.open(encoding="utf-8") as file:
                mode = os.fstat(file.fileno()).st_mode
                lines = file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise KeyFileError(
                f"{self._path} cannot be read: {reason}",
                hint="each line of it is a name and a token, for example of openssl rand -hex 24",
            ) from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO) and not is_handed_over(self._path):
            raise KeyFileError(
                f"{self._path} can be read or written by others", hint=f"chmod 600 {self._path}"
            )
        clients = [
            self._parse(number, line.strip())
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
        if not clients:
            raise KeyFileError(f"{self._path} has no token", hint="add a line: NAME TOKEN")
        return clients

    def _parse(self, number: int, line: str) -> tuple[bytes, Client]:
        match = _LINE.fullmatch(line)
        if match is None:  # it may hold a secret: it is not shown
            raise KeyFileError(
                f"{self._path}, line {number}: expected is a name, a token of at least 16 "
                "characters (letters, digits, -._~+/), and perhaps the word read",
                hint="openssl rand -hex 24 makes a token",
            )
        return _digest(match[2]), Client(match[1], match[3] is None)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


@dataclass
class _Use:
    """What one client takes of us: a bucket of requests, and polls that are held."""

    left: float
    filled: float = field(default_factory=time.monotonic)
    polls: int = 0

    def take(self, cost: float, rate: float) -> float:
        """0, or the seconds until there is enough."""
        now = time.monotonic()
        self.left = min(self.left + (now - self.filled) * rate, rate * BURST)
        self.filled = now
        if self.left < 1:
            return (1 - self.left) / rate
        self.left -= cost  # below zero: a big deposit is paid for afterwards
        return 0.0


# --- the hub --------------------------------------------------------------------------------

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_CLIENT = web.RequestKey("client", Client)


class Hub:
    """What is served.

    :param accept: checks what is deposited; it is called on a thread.
    :param rate: requests a second that one client may make.
    :param keep: never drop what expired.
    :param now: unix seconds, for what expires.
    """

    def __init__(
        self,
        engine: RoutingLayer,
        tokens: Tokens,
        accept: Accept = Entry.parse,
        *,
        rate: float = RATE,
        keep: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.tokens = tokens
        self.connections = Connections()
        self._engine = engine
        self._accept = accept
        self._rate = rate
        self._keep_all = keep
        self._now = now
        self._worker = Worker("hub-accept")
        self._uses: dict[str, _Use] = {}
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._away = "not open yet"
        self.refused = 0

    def application(self) -> web.Application:
        """The handlers."""
        made = web.Application(client_max_size=wire.MAX_BODY, middlewares=[self._enter])
        prefix = f"/v{wire.VERSION}"
        made.router.add_get(f"{prefix}/status", self._status)
        made.router.add_get(f"{prefix}/cursor", self._cursor)
        made.router.add_post(f"{prefix}/deposit", self._deposit)
        made.router.add_post(f"{prefix}/query", self._query)
        made.router.add_post(f"{prefix}/follow", self._follow)
        return made

    async def start(self) -> None:
        """Open the engine, and go on trying where it is away: it is said to who asks."""
        opened = asyncio.Event()
        self._task = asyncio.create_task(self._keep(opened))
        await opened.wait()

    async def stop(self) -> None:
        """End the polls that are held, and let go of the engine."""
        self._stopping.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._engine.close()
        self._worker.close()

    async def _keep(self, tried: asyncio.Event) -> None:
        """The engine is open, and what expired goes."""
        backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        outage = Outage(log, f"the engine {self._engine.url}")
        while True:
            try:
                await self._engine.open()
                if outage.lasting:
                    outage.over("is back")
                self._away = ""
                tried.set()
                if not self._keep_all:
                    await self._engine.expire(int(self._now()))
            except RoutingError as error:
                outage.cause(f"is away: {error}", error.hint)
                self._away = str(error)
                tried.set()
                await asyncio.sleep(backoff.next())
            else:
                backoff.reset()
                await asyncio.sleep(EXPIRE)

    # --- entering ----------------------------------------------------------------------

    @web.middleware
    async def _enter(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Who is it, how much does it take, and what went wrong."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        client = self.tokens.client(token.strip()) if scheme.lower() == "bearer" else None
        if client is None:
            return _said(401, "a token is needed", {"WWW-Authenticate": "Bearer"})
        self.connections.proven(request.transport)
        request[_CLIENT] = client
        pause = self._use(client).take(1, self._rate)
        if pause:
            return _said(429, "too many requests", {"Retry-After": str(int(pause) + 1)})
        try:
            return await handler(request)
        except Refused as refusal:
            return _said(400, str(refusal))
        except UsageError as error:
            return _said(400, str(error))
        except RoutingError as error:
            return _said(503, f"the engine is away: {error}", {"Retry-After": "1"})
        except TimeoutError:
            return _said(408, "the request did not come")

    def _use(self, client: Client) -> _Use:
        return self._uses.setdefault(client.name, _Use(self._rate * BURST))

    @staticmethod
    async def _body(request: web.Request) -> bytes:
        async with asyncio.timeout(BODY):
            return await request.read()

    def _incarnation(self) -> str:
        """Of the engine, whichever that is."""
        told = f"{self._engine.url}\n{self._engine.incarnation}"
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    # --- verbs -------------------------------------------------------------------------

    async def _status(self, _: web.Request) -> web.Response:
        found = await self._engine.status()
        says = [self._away or found.detail] if self._away or found.detail else []
        if self.refused:
            says.append(f"{self.refused} packets refused")
        report = wire.Report(
            self._incarnation(),
            found.ok and not self._away,
            found.packets,
            "; ".join(says)[: wire.MAX_DETAIL],
            found.behind,
            found.refused,
        )
        return _answer(report.encode())

    async def _cursor(self, _: web.Request) -> web.Response:
        return _answer(wire.Page((), await self._engine.cursor()).encode())

    async def _deposit(self, request: web.Request) -> web.Response:
        client = request[_CLIENT]
        if not client.writes:
            return _said(403, "deposit (it is for reading)")
        known = request.query.get("incarnation")
        if self._away:
            raise RoutingError(self._away)
        if known is not None and known != self._incarnation():
            return _said(409, "the engine is another than before")
        raws = wire.deposited(await self._body(request))
        self._use(client).take(len(raws) / PACKETS_PER_REQUEST, self._rate)
        entries, refused = await self._checked(raws)
        if refused:
            self.refused += len(refused)
            log.warning("%d packets of %s were refused", len(refused), client.name)
        # Whoever hangs up in the middle repeats it.
        new = await asyncio.shield(self._engine.deposit(entries)) if entries else 0
        return _answer(wire.Receipt(new, tuple(refused)).encode())

    async def _checked(self, raws: Sequence[bytes]) -> tuple[list[Entry], list[tuple[int, int]]]:
        entries: list[Entry] = []
        refused: list[tuple[int, int]] = []
        for start in range(0, len(raws), ACCEPT_SLICE):
            part = raws[start : start + ACCEPT_SLICE]
            for offset, made in enumerate(await self._worker(self._sort, part)):
                if isinstance(made, Entry):
                    entries.append(made)
                else:
                    refused.append((start + offset, made))
        return entries, refused

    def _sort(self, raws: Sequence[bytes]) -> list[Entry | int]:
        found: list[Entry | int] = []
        for raw in raws:
            try:
                found.append(self._accept(raw))
            except Refused as refusal:
                found.append(refusal.reason.value)
        return found

    async def _query(self, request: web.Request) -> web.Response:
        asked = wire.Question.decode(await self._body(request))
        found = await self._engine.query(
            asked.interest,
            limit=asked.limit,
            since=asked.since,
            confidence=asked.confidence,
            vector=asked.vector,
        )
        return _answer(wire.Page(tuple(entry.raw for entry in found)).encode())

    async def _follow(self, request: web.Request) -> web.Response:
        poll = wire.Poll.decode(await self._body(request))
        use = self._use(request[_CLIENT])
        if use.polls >= MAX_POLLS:
            return _said(429, "too many polls at once", {"Retry-After": "1"})
        use.polls += 1
        subscription = self._engine.follow(poll.interests, poll.after)
        try:
            return _answer((await self._step(subscription, poll)).encode())
        finally:
            use.polls -= 1
            await subscription.close()

    async def _step(self, subscription: Subscription, poll: wire.Poll) -> wire.Page:
        """The next batch after the poll's cursor. Held back while there is nothing, but not
        when the cursor moves, which the other side keeps."""
        batches = aiter(subscription)
        batch = await anext(batches, None)
        if batch is None:
            raise RoutingError("it is closing")
        moved = poll.after is not None and batch.cursor != poll.after
        if batch.entries or moved or not batch.live or not poll.wait:
            return _page(batch)
        deadline = time.monotonic() + poll.wait
        more = asyncio.ensure_future(_next(batches))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            while time.monotonic() < deadline and not stopping.done():
                await asyncio.wait(
                    {more, stopping}, timeout=LOOK, return_when=asyncio.FIRST_COMPLETED
                )
                if more.done():
                    found = more.result()
                    return _page(found) if found is not None else _page(batch)
                if subscription.cursor != batch.cursor:
                    break
            return wire.Page((), subscription.cursor, True)
        finally:
            for task in (more, stopping):
                task.cancel()
            await asyncio.gather(more, stopping, return_exceptions=True)


async def _next(batches: AsyncIterator[Batch]) -> Batch | None:
    return await anext(batches, None)


def _page(batch: Batch) -> wire.Page:
    return wire.Page(tuple(entry.raw for entry in batch.entries), batch.cursor, batch.live)


def _answer(body: bytes) -> web.Response:
    return web.Response(body=body, content_type=wire.CBOR, headers={"Server": "qis-hub"})


def _said(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, text=f"{text}\n", headers={"Server": "qis-hub", **(headers or {})}
    )


# --- connections ----------------------------------------------------------------------------


class Connections:
    """Who is connected, strangers apart."""

    def __init__(self) -> None:
        self._strangers: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}
        self._known: set[asyncio.BaseTransport] = set()

    def enter(self, transport: asyncio.BaseTransport) -> bool:
        """Somebody new; whether there is room, for which the oldest stranger may have to go."""
        if len(self._strangers) + len(self._known) >= MAX_CONNECTIONS:
            if not self._strangers:
                return False
            self._abort(next(iter(self._strangers)))
        loop = asyncio.get_running_loop()
        self._strangers[transport] = loop.call_later(STRANGE, self._abort, transport)
        return True

    def proven(self, transport: asyncio.BaseTransport | None) -> None:
        """It has shown a token."""
        if transport is not None and (timer := self._strangers.pop(transport, None)):
            timer.cancel()
            self._known.add(transport)

    def leave(self, transport: asyncio.BaseTransport) -> None:
        """It is gone."""
        self._known.discard(transport)
        if timer := self._strangers.pop(transport, None):
            timer.cancel()

    def close(self) -> None:
        """All of them."""
        for transport in [*self._strangers, *self._known]:
            self._abort(transport)

    def _abort(self, transport: asyncio.BaseTransport) -> None:
        self.leave(transport)
        if isinstance(transport, asyncio.Transport):
            transport.abort()


class _Door(asyncio.Protocol):
    """Before the HTTP server's protocol: knows how long a connection has been strange."""

    def __init__(self, connections: Connections, inner: asyncio.Protocol) -> None:
        self._connections = connections
        self._inner = inner
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._connections.enter(transport):
            assert isinstance(transport, asyncio.Transport)
            transport.abort()
            return
        self._transport = transport
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._transport is not None else None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._connections.leave(self._transport)
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


# --- serving --------------------------------------------------------------------------------


class Certificate(NamedTuple):
    """Files in PEM form."""

    chain: Path
    key: Path | None

    def load(self, context: ssl.SSLContext) -> None:
        """For connections that come from now on. :raises KeyFileError: it cannot be used."""
        try:
            # Without a way to ask: a key with a passphrase is an error, not a prompt.
            context.load_cert_chain(self.chain, self.key, password=lambda: "")
        except (OSError, ValueError) as error:
            raise KeyFileError(
                f"the certificate {self.chain} cannot be used: {error}",
                hint="a PEM file with the certificate and those of its issuers, and its key "
                "without a passphrase",
            ) from None


class Listening:
    """The hub, listening. ``address`` is where, known after ``start``."""

    def __init__(self, hub: Hub, host: str, port: int, certificate: Certificate | None) -> None:
        self._hub = hub
        self._host, self._port = host, port
        self._certificate = certificate
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            certificate.load(self._context)
        self._runner = web.AppRunner(
            hub.application(),
            access_log=None,
            handler_cancellation=True,  # who hangs up holds no poll
            keepalive_timeout=IDLE,
            lingering_time=2.0,
            shutdown_timeout=3.0,
        )
        self._server: asyncio.Server | None = None
        self.address: tuple[str, int] = (host, port)

    async def start(self) -> None:
        """:raises UsageError: the address cannot be listened on."""
        await self._runner.setup()
        inner: Any = self._runner.server
        hub = self._hub
        secure: dict[str, Any] = (
            {"ssl": self._context, "ssl_handshake_timeout": STRANGE} if self._context else {}
        )
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Door(hub.connections, inner()), self._host, self._port, **secure
            )
        except OSError as error:
            await self._runner.cleanup()
            raise UsageError(
                f"{self._host}:{self._port}: {error.strerror or error}", field="--listen"
            ) from None
        self.address = self._server.sockets[0].getsockname()[:2]

    def reload(self) -> None:
        """Tokens and certificate are read again; what cannot be read stays as it was."""
        try:
            self._hub.tokens.reload()
            if self._certificate is not None and self._context is not None:
                self._certificate.load(self._context)
        except KeyFileError as error:
            log.error("%s%s", error, f" ({error.hint})" if error.hint else "")
        else:
            log.info("tokens and certificate were read again")

    async def close(self) -> None:
        """Listen no more, end what is under way."""
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(RoutingError):
            await self._hub.stop()
        await self._runner.cleanup()
        self._hub.connections.close()
