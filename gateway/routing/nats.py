"""``nats:`` – a JetStream stream of NATS servers, joined with a local view.

One stream, by default ``qis``, keeps subjects ``qis.<domain>.<rest>``: the hex of a
fingerprint's first 8 bytes and of the other 24, so that whoever likes may subscribe to an
address. All domains are in one stream because its sequence is then the order of the log over
all addresses, and one number is a reader's place. What is durable when is on the page
``docs/routing/nats.md``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

import nats.errors
import nats.js.errors
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    StorageType,
    StreamConfig,
    StreamInfo,
)

from gateway.routing.access import TLS_OPTIONS, hosts_of, number_of, password_of, tls_of
from gateway.routing.base import Context, Entry
from gateway.routing.feed import CHUNK_PACKETS, WAIT, Chunk, Position
from gateway.routing.url import EngineUrl
from gateway.routing.view import ViewEngine
from qis_edge.core.errors import RoutingError

EXAMPLE = "nats://127.0.0.1:4222"
PORT = 4222
#: Seconds that a connection and an answer may take.
PATIENCE = 5.0
#: Bytes of a fingerprint that are its domain.
DOMAIN_SIZE = 8
#: The stream takes nothing longer: a packet has 512 bytes.
MAX_MESSAGE = 4096
#: Seconds for which the server knows a packet again and takes it once.
DUPLICATES = 120
#: Seconds after which the server forgets a reader that asks for nothing.
IDLE_READER = 60

_OPTIONS = (
    *("credentials", "days", "maxlen", "nkey", "password", "replicas", "stream", "token"),
    *TLS_OPTIONS,
)
_STREAM = re.compile(r"[A-Za-z0-9_-]{1,32}")
_DAY = 86_400


class _Place(NamedTuple):
    """Where a reader stands.

    :param born: of the log that it is a place in, 8 bytes.
    :param seq: of the last message read.
    :param check: of its content, 4 bytes: after a loss, another may have its number.
    """

    born: bytes
    seq: int = 0
    check: bytes = bytes(4)

    def encode(self) -> bytes:
        return _FORM.pack(1, *self) if self.seq else b""

    @classmethod
    def decode(cls, data: bytes, born: bytes) -> _Place:
        """The beginning, where it is a place in another log or none at all."""
        if len(data) != _FORM.size or data[:9] != b"\x01" + born:
            return cls(born)
        return cls(*_FORM.unpack(data)[1:])


_FORM = struct.Struct(">B8sQ4s")


class _Reader(NamedTuple):
    """A consumer on the server, and where it will go on."""

    name: str
    seq: int
    delivered: int


class _ReaderLostError(Exception):
    """The server does not know the consumer any more, or skipped something."""


class NatsFeed:
    """A :class:`gateway.routing.feed.Feed` on NATS servers with JetStream, 2.9 or newer.

    :raises RoutingError: the URL is wrong.
    """

    def __init__(self, url: EngineUrl, context: Context) -> None:
        url.only(_OPTIONS)
        self.url = str(url)
        self._servers = [
            f"nats://[{name}]:{port}" if ":" in name else f"nats://{name}:{port}"
            for name, port in hosts_of(url, PORT, EXAMPLE)
        ]
        if url.path.strip("/"):
            raise RoutingError(f"{self.url}: it takes no path", hint="stream=NAME names a stream")
        self._login = _login(url)
        self._tls = tls_of(url)
        self._name = f"qis-{context.name}"
        self._stream = url.options.get("stream", "qis")
        if not _STREAM.fullmatch(self._stream):
            raise RoutingError(f"{self.url}: stream must be up to 32 of A-Z a-z 0-9 _ -")
        self._replicas = number_of(url, "replicas", 1, 1, 5)
        self._maxlen = number_of(url, "maxlen", 0, 1, 10**12) if "maxlen" in url.options else -1
        self._days = number_of(url, "days", 0, 1, 36_500) if "days" in url.options else 0
        self._opened = False
        self._client: Client | None = None
        self._checking = asyncio.Lock()
        self._checked = False
        self._verified = False
        self._connecting = False
        self._said = ""  # by the server, of what went wrong
        self._born = b""
        self._sent: _Place | None = None  # of the last packet that we published
        self._reader: _Reader | None = None
        self._publishes = 0
        self._inbox = _Inbox()
        self._answers = _Answers()

    # --- connecting --------------------------------------------------------------------

    @property
    def incarnation(self) -> str:
        """See :class:`gateway.routing.feed.Feed`."""
        return self._born.hex()

    async def open(self) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        self._opened = True
        try:
            await self._check()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        self._opened = self._checked = False
        await self._disconnect()

    async def _disconnect(self) -> None:
        found, self._client = self._client, None
        self._checked, self._reader = False, None
        if found is not None:
            await _close(found)

    @contextlib.asynccontextmanager
    async def _reaching(self) -> AsyncIterator[None]:
        """Says what went wrong in our words; the connection is made anew then."""
        try:
            yield
        except RoutingError:
            raise
        except (nats.js.errors.ServiceUnavailableError, nats.errors.NoRespondersError):
            self._checked = False
            raise RoutingError(
                f"{self.url}: nobody answers there for JetStream",
                hint="start nats-server with -js, or wait until its cluster has a leader",
            ) from None
        except nats.js.errors.APIError as error:
            self._checked = False
            raise RoutingError(f"{self.url}: {error.description or error}") from None
        except (nats.errors.Error, OSError, TimeoutError) as error:
            said = (str(error) or self._said or type(error).__name__).removeprefix("nats: ")
            await self._disconnect()
            if re.search("auth|permission", f"{said} {self._said}", re.IGNORECASE):
                raise RoutingError(
                    f"{self.url}: the server refused the login ({self._said or said})",
                    hint="check user, password, token, nkey or credentials",
                ) from None
            raise RoutingError(f"{self.url}: away ({said})") from None

    async def _check(self) -> None:
        """After each time that it was away: is it the same log, with all that it had?"""
        if not self._opened:
            raise RoutingError(f"{self.url}: not open")
        async with self._checking, self._reaching():
            if self._client is None or not self._client.is_connected:
                await self._disconnect()
                self._client = await self._connect()
            if self._checked:
                return
            self._verified, self._reader = False, None
            info = await self._know_the_log()
            if self._sent is not None and await self._lacks(self._sent, info):
                await self._begin_anew(info)
            self._checked = True

    async def _connect(self) -> Client:
        problem: Exception | None = None
        tls = self._tls.context() if self._tls is not None else None
        self._connecting = True
        for server in self._servers:
            self._said = ""
            made = Client()
            try:
                async with asyncio.timeout(PATIENCE):
                    await made.connect(
                        [server],
                        name=self._name,
                        allow_reconnect=False,
                        connect_timeout=int(PATIENCE) or 1,
                        error_cb=self._note,
                        disconnected_cb=self._gone,
                        closed_cb=self._gone,
                        ping_interval=20,
                        tls=tls,
                        **self._login,
                    )
                self._inbox = _Inbox()
                self._answers = _Answers()
                for inbox in (self._inbox, self._answers):
                    inbox.subject = made.new_inbox()
                    await made.subscribe(f"{inbox.subject}.*", cb=inbox.take)
                self._connecting = False
                return made
            except (nats.errors.Error, OSError, TimeoutError) as error:
                problem = error
                await _close(made)
        assert problem is not None
        raise problem

    async def _note(self, error: Exception) -> None:
        self._said = str(error).removeprefix("nats: ") or type(error).__name__
        if self._connecting:  # or the client would try for two minutes
            raise error

    async def _gone(self) -> None:
        """The connection is: nobody need wait any longer."""
        self._inbox.give_up()
        self._answers.done.set()

    @property
    def _nats(self) -> Client:
        if self._client is None:
            raise RoutingError(f"{self.url}: away ({self._said or 'not connected'})")
        return self._client

    def _jetstream(self) -> Any:  # its types say more than they keep
        return self._nats.jetstream(timeout=PATIENCE)

    async def _know_the_log(self) -> StreamInfo:
        """Make the stream, if nobody has."""
        stream = self._jetstream()
        try:
            info = await stream.stream_info(self._stream)
        except nats.js.errors.NotFoundError:
            await stream.add_stream(
                StreamConfig(
                    name=self._stream,
                    description=f"packets of a fleet; log {os.urandom(8).hex()}",
                    subjects=[f"{self._stream}.*.*"],
                    storage=StorageType.FILE,
                    discard=DiscardPolicy.OLD,
                    num_replicas=self._replicas,
                    max_age=self._days * _DAY,
                    max_msgs=self._maxlen,
                    max_msg_size=MAX_MESSAGE,
                    duplicate_window=DUPLICATES,
                )
            )
            info = await stream.stream_info(self._stream)
        if f"{self._stream}.*.*" not in (info.config.subjects or ()):
            raise RoutingError(
                f"{self.url}: the stream {self._stream} has other subjects than ours",
                hint="choose another stream=",
            )
        made = f"{info.created} {info.config.description}".encode()
        born = hashlib.sha256(made).digest()[:8]
        if born != self._born:
            self._sent = None
        self._born = born
        return info  # type: ignore[no-any-return]  # see _jetstream

    async def _lacks(self, place: _Place, info: StreamInfo) -> bool:
        """Whether the log does not have the packet that it once had there, though it has not
        been trimmed up to it: it has lost its end since."""
        if place.seq < info.state.first_seq and place.seq <= info.state.last_seq:
            return False
        try:
            found = await self._jetstream().get_msg(self._stream, place.seq)
        except nats.js.errors.NotFoundError:
            return True
        return _check_of(found.data or b"") != place.check

    async def _begin_anew(self, info: StreamInfo) -> None:
        """The log has lost its end: rename it, unless somebody has by now."""
        known = self._born
        info = await self._know_the_log()
        if self._born == known:
            info.config.description = f"packets of a fleet; log {os.urandom(8).hex()}"
            await self._jetstream().update_stream(info.config)
            await self._know_the_log()

    # --- publishing --------------------------------------------------------------------

    async def publish(self, entries: Sequence[Entry]) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        await self._check()
        if not entries:
            return
        async with self._reaching():
            answers = self._answers
            self._publishes += 1
            answers.expect(self._publishes, len(entries))
            for number, entry in enumerate(entries):
                await self._nats.publish(
                    self._subject(entry.fingerprint),
                    entry.raw,
                    f"{answers.subject}.{self._publishes}-{number}",
                    {"Nats-Msg-Id": entry.id.hex(), "Nats-Expected-Stream": self._stream},
                )
            while answers.waiting:
                before = answers.waiting
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PATIENCE):
                        await answers.done.wait()
                if answers.waiting == before or not self._nats.is_connected:
                    raise nats.errors.ConnectionClosedError
            if answers.problem:
                self._checked = False
                raise RoutingError(f"{self.url}: {answers.problem}")
        self._sent = _Place(self._born, answers.last, _check_of(entries[answers.which].raw))

    def _subject(self, fingerprint: bytes) -> str:
        address = fingerprint.hex()
        return f"{self._stream}.{address[: 2 * DOMAIN_SIZE]}.{address[2 * DOMAIN_SIZE :]}"

    # --- reading -----------------------------------------------------------------------

    async def fetch(self, after: Position) -> Chunk:
        """See :class:`gateway.routing.feed.Feed`. In the order of the log."""
        for _ in range(3):
            await self._check()
            async with self._reaching():
                place = _Place.decode(after, self._born)
                if not self._verified:
                    place = await self._verify(place)
                    self._verified = True
                try:
                    return await self._read(place)
                except _ReaderLostError:
                    self._checked = False
        raise RoutingError(f"{self.url}: the stream cannot be read")

    async def _verify(self, place: _Place) -> _Place:
        if place.seq:
            info = await self._jetstream().stream_info(self._stream)
            if await self._lacks(place, info):
                await self._begin_anew(info)
                return _Place(self._born)
        return place

    async def _read(self, place: _Place) -> Chunk:
        reader, self._reader = self._reader, None  # it is lost if this is cancelled
        if reader is None or reader.seq != place.seq:
            reader = await self._make_reader(place)
        messages = await self._ask(reader, {"batch": CHUNK_PACKETS, "no_wait": True})
        if not messages:
            waiting = {"batch": 1, "expires": int(WAIT * 0.9e9)}
            messages = await self._ask(reader, waiting)
            if messages:
                messages += await self._ask(reader, {"batch": CHUNK_PACKETS, "no_wait": True})
        seq, delivered, pending = reader.seq, reader.delivered, 0
        for message in messages:
            meta = message.metadata
            delivered += 1
            if meta.sequence.consumer != delivered or meta.sequence.stream <= seq:
                raise _ReaderLostError
            seq, pending = meta.sequence.stream, meta.num_pending
        self._reader = _Reader(reader.name, seq, delivered)
        if messages:
            place = _Place(self._born, seq, _check_of(messages[-1].data))
        return Chunk(tuple(message.data for message in messages), place.encode(), not pending)

    async def _make_reader(self, place: _Place) -> _Reader:
        made = await self._jetstream().add_consumer(
            self._stream,
            ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=place.seq + 1,
                ack_policy=AckPolicy.NONE,
                inactive_threshold=IDLE_READER,
                num_replicas=1,
                mem_storage=True,
            ),
        )
        return _Reader(made.name, place.seq, 0)

    async def _ask(self, reader: _Reader, request: Mapping[str, object]) -> list[Msg]:
        """What the consumer gives for one request."""
        inbox = self._inbox
        inbox.expect(int(str(request["batch"])))
        await self._nats.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{reader.name}",
            json.dumps(dict(request)).encode(),
            f"{inbox.subject}.0",
        )
        async with asyncio.timeout(PATIENCE + WAIT):
            await inbox.done.wait()
        if not self._nats.is_connected:
            raise nats.errors.ConnectionClosedError
        if inbox.status not in ("", "404", "408"):  # none there, none came
            raise _ReaderLostError
        return inbox.messages

    async def size(self) -> int | None:
        """See :class:`gateway.routing.feed.Feed`."""
        await self._check()
        async with self._reaching():
            info = await self._jetstream().stream_info(self._stream)
            return int(info.state.messages)


class _Inbox:
    """Collects what a request is answered with."""

    def __init__(self) -> None:
        self.subject = ""
        self.done = asyncio.Event()
        self.messages: list[Msg] = []
        self.status = ""
        self._wanted = 0

    def expect(self, count: int) -> None:
        self.done.clear()
        self.messages, self.status, self._wanted = [], "", count

    def give_up(self) -> None:
        self.status = "gone"
        self.done.set()

    async def take(self, message: Msg) -> None:
        """Called by the client, in order."""
        status = (message.headers or {}).get("Status", "")
        if status and not message.data:
            if status != "100":  # a heartbeat
                self.status = status
                self.done.set()
            return
        self.messages.append(message)
        if len(self.messages) >= self._wanted:
            self.done.set()


class _Answers:
    """Counts the acknowledgements of one publish."""

    def __init__(self) -> None:
        self.subject = ""
        self.done = asyncio.Event()
        self.waiting = 0
        self.problem = ""
        self.last = 0  # the highest number given, and to which of them
        self.which = 0
        self._publish = 0

    def expect(self, publish: int, count: int) -> None:
        self.done.clear()
        self._publish, self.waiting = publish, count
        self.problem, self.last, self.which = "", 0, 0

    async def take(self, message: Msg) -> None:
        """Called by the client."""
        publish, _, number = message.subject.rpartition(".")[2].partition("-")
        if publish != str(self._publish):
            return  # of one that was given up
        try:
            answer = json.loads(message.data) if message.data else {}
        except ValueError:
            answer = {}
        seq = answer.get("seq") if isinstance(answer, dict) else None
        problem = answer.get("error") if isinstance(answer, dict) else None
        if problem or not isinstance(seq, int):
            self.problem = str((problem or {}).get("description") or "there is no such stream")
        elif seq > self.last:
            self.last, self.which = seq, int(number)
        self.waiting -= 1
        if not self.waiting:
            self.done.set()


class NatsEngine(ViewEngine):
    """``nats:`` – a :class:`NatsFeed` and its view."""

    def __init__(self, url: EngineUrl, context: Context) -> None:
        super().__init__(NatsFeed(url, context), context)


async def _close(client: Client) -> None:
    """Not for ever: after a TLS handshake that failed, the client waits for a farewell."""
    with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
        async with asyncio.timeout(1):
            await client.close()


def _login(url: EngineUrl) -> dict[str, Any]:
    """What the client logs in with."""
    password = password_of(url)
    found: dict[str, Any] = {"user": url.user, "password": password} if url.user else {}
    if password is not None and url.user is None:
        raise RoutingError(f"{url}: a password needs a user", hint="for a token: token_file=PATH")
    token, seed, credentials = (url.option(name) for name in ("token", "nkey", "credentials"))
    if token is not None:
        found["token"] = token
    if seed is not None:
        found["nkeys_seed_str"] = seed
    if credentials is not None:
        found["user_credentials"] = RawCredentials(credentials)
    if len(found) - bool(url.user) > 1:
        raise RoutingError(f"{url}: give one login: user, token, nkey or credentials")
    return found


def _check_of(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()[:4]
