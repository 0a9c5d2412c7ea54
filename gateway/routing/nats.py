"""``nats:`` – JetStream streams of NATS servers, one for each domain, joined with a local view.

With ``stream=qis``, the default, a domain's packets are in the stream ``qis-<domain>``, under
subjects ``qis.<domain>.<rest>``: the hex of a fingerprint's first 8 bytes and of the other 24,
so that whoever likes may subscribe to an address. Domains beyond a limit share ``qis-rest``,
with subjects ``qis.rest.<fingerprint>``. The stream ``qis`` holds no packets: its description
names the log, and is another once something was lost. Core messages to ``qis.news`` tell of a
stream that is new, to who is there; others look. What is durable when is on the page
``docs/routing/nats.md``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Iterable, Sequence
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
from gateway.routing.feed import WAIT, Chunk, Position
from gateway.routing.nats_reading import (
    BORN_SIZE,
    DOMAIN_SIZE,
    REST,
    Reader,
    Readers,
    Spot,
    Spots,
    decode,
    encode,
    short,
)
from gateway.routing.url import EngineUrl
from gateway.routing.view import ViewEngine
from qis_edge.core.errors import RoutingError

EXAMPLE = "nats://127.0.0.1:4222"
PORT = 4222
#: Seconds that a connection and an answer may take.
PATIENCE = 5.0
#: Seconds between looks for new streams, of which one is usually told.
REFRESH = 5.0
#: A stream takes nothing longer: a packet has 512 bytes.
MAX_MESSAGE = 4096
#: Seconds for which the server knows a packet again and takes it once.
DUPLICATES = 120
#: Seconds after which the server forgets a reader that asks for nothing.
IDLE_READER = 60

_OPTIONS = (
    *("credentials", "days", "domains", "maxlen", "nkey", "password", "replicas", "stream"),
    "token",
    *TLS_OPTIONS,
)
_STREAM = re.compile(r"[A-Za-z0-9_-]{1,32}")
_DAY = 86_400


class _Stream(NamedTuple):
    """What is known of a stream.

    :param mark: of its making.
    """

    mark: bytes
    first: int
    last: int


class _ReaderLostError(Exception):
    """The server does not know a consumer any more, or skipped something."""


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
        self._prefix = url.options.get("stream", "qis")
        if not _STREAM.fullmatch(self._prefix):
            raise RoutingError(f"{self.url}: stream must be up to 32 of A-Z a-z 0-9 _ -")
        self._replicas = number_of(url, "replicas", 1, 1, 5)
        self._maxlen = number_of(url, "maxlen", 0, 1, 10**12) if "maxlen" in url.options else -1
        self._domains = number_of(url, "domains", 64, 1, 128)
        self._days = number_of(url, "days", 0, 1, 36_500) if "days" in url.options else 0
        self._opened = False
        self._client: Client | None = None
        self._checking = asyncio.Lock()
        self._checked = False
        self._checks = 0
        self._verified = 0  # after which of them the reader's place was
        self._connecting = False
        self._said = ""  # by the server, of what went wrong
        self._born = b""
        self._streams: dict[str, _Stream] = {}
        self._sent: Spots = {}  # of the last packets that we published
        self._publishes = 0
        self._publishing = asyncio.Lock()
        self._answers = _Answers()
        self._readers = Readers("")
        self._at: Position | None = None  # where these stand
        self._looked = 0.0

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
        self._checked, self._at = False, None
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
            self._checks, self._at = self._checks + 1, None
            await self._know_the_log()
            await self._look()
            if await self._lacks(self._sent):
                await self._begin_anew()
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
                self._answers, self._readers = _Answers(), Readers(made.new_inbox())
                self._answers.subject = made.new_inbox()
                await made.subscribe(f"{self._answers.subject}.*", cb=self._answers.take)
                await made.subscribe(f"{self._readers.inbox}.*", cb=self._readers.take)
                await made.subscribe(f"{self._prefix}.news", cb=self._told)
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
        self._readers.news.set()
        self._answers.done.set()

    async def _told(self, _: Msg) -> None:
        """There is another stream."""
        self._looked = 0.0
        self._readers.news.set()

    @property
    def _nats(self) -> Client:
        if self._client is None:
            raise RoutingError(f"{self.url}: away ({self._said or 'not connected'})")
        return self._client

    def _jetstream(self) -> Any:  # its types say more than they keep
        return self._nats.jetstream(timeout=PATIENCE)

    # --- the streams -------------------------------------------------------------------

    async def _know_the_log(self) -> StreamInfo:
        """Make the stream that names it, if nobody has."""
        info = await self._stream_of(self._prefix, f"{self._prefix}.log", 1)
        made = f"{info.created} {info.config.description}".encode()
        born = hashlib.sha256(made).digest()[:BORN_SIZE]
        if born != self._born:
            self._sent = {}
        self._born = born
        return info

    async def _stream_of(
        self, name: str, subject: str, max_msgs: int, max_age: int = 0
    ) -> StreamInfo:
        """A stream, made if nobody has.

        :raises RoutingError: it is somebody else's.
        """
        stream = self._jetstream()
        try:
            info = await stream.stream_info(name)
        except nats.js.errors.NotFoundError:
            with contextlib.suppress(nats.js.errors.BadRequestError):  # somebody was quicker
                await stream.add_stream(
                    StreamConfig(
                        name=name,
                        description=f"packets of a fleet; log {os.urandom(8).hex()}",
                        subjects=[subject],
                        storage=StorageType.FILE,
                        discard=DiscardPolicy.OLD,
                        num_replicas=self._replicas,
                        max_msg_size=MAX_MESSAGE,
                        duplicate_window=DUPLICATES,
                        max_msgs=max_msgs,
                        max_age=max_age,
                    )
                )
            info = await stream.stream_info(name)
        if subject not in (info.config.subjects or ()):
            raise RoutingError(
                f"{self.url}: the stream {name} has other subjects than ours",
                hint="choose another stream=",
            )
        return info  # type: ignore[no-any-return]  # see _jetstream

    async def _look(self) -> None:
        """See which streams there are; of those that are new, what they hold."""
        self._looked = time.monotonic()
        names: list[str] = []
        while True:
            request = {"subject": f"{self._prefix}.>", "offset": len(names)}
            answer = await self._nats.request(
                "$JS.API.STREAM.NAMES", json.dumps(request).encode(), timeout=PATIENCE
            )
            page = json.loads(answer.data)
            names += page.get("streams") or ()
            if not page.get("streams") or len(names) >= page.get("total", 0):
                break
        ours = re.compile(rf"{re.escape(self._prefix)}-([0-9a-f]{{{2 * DOMAIN_SIZE}}}|{REST})")
        there = {found[1] for name in names if (found := ours.fullmatch(name))}
        if self._prefix not in names or self._streams.keys() - there:
            self._checked = False  # it has lost something
        self._streams = {name: known for name, known in self._streams.items() if name in there}
        await self._inspect(there if not self._checked else there - self._streams.keys())

    async def _inspect(self, names: Iterable[str]) -> int:
        """See what is in these; how many messages."""
        stream = self._jetstream()
        total = 0
        wanted = sorted(names)
        infos = (stream.stream_info(f"{self._prefix}-{name}") for name in wanted)
        for name, info in zip(wanted, await asyncio.gather(*infos), strict=True):
            self._streams[name] = _known(info)
            total += info.state.messages
        return total

    async def _make(self, names: Iterable[str]) -> None:
        for name in names:
            info = await self._stream_of(
                f"{self._prefix}-{name}",
                f"{self._prefix}.{name}.*",
                self._maxlen,
                self._days * _DAY,
            )
            self._streams[name] = _known(info)
        await self._nats.publish(f"{self._prefix}.news", b"")

    async def _lacks(self, spots: Spots) -> bool:
        """Whether the log does not have a packet that it once had there, though it has not
        been trimmed up to it: it has lost it since."""
        return any(await asyncio.gather(*(self._lost(*item) for item in spots.items())))

    async def _lost(self, name: str, spot: Spot) -> bool:
        known = self._streams.get(name)
        if known is None or known.mark != spot.mark:
            return True
        if spot.seq < known.first and spot.seq <= known.last:
            return False
        try:
            found = await self._jetstream().get_msg(f"{self._prefix}-{name}", spot.seq)
        except nats.js.errors.NotFoundError:
            return True
        return short(found.data or b"") != spot.check

    async def _begin_anew(self) -> None:
        """The log has lost something: rename it, unless somebody has by now."""
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
        async with self._publishing, self._reaching():
            names = [self._name_of(entry) for entry in entries]
            if missing := dict.fromkeys(name for name in names if name not in self._streams):
                await self._make(missing)
            marks = {name: self._streams[name].mark for name in names}
            answers = self._answers
            self._publishes += 1
            answers.expect(self._publishes, names)
            for number, (name, entry) in enumerate(zip(names, entries, strict=True)):
                await self._nats.publish(
                    self._subject(name, entry),
                    entry.raw,
                    f"{answers.subject}.{self._publishes}-{number}",
                    {
                        "Nats-Msg-Id": entry.id.hex(),
                        "Nats-Expected-Stream": f"{self._prefix}-{name}",
                    },
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
            for name, (seq, which) in answers.last.items():
                self._sent[name] = Spot(marks[name], seq, short(entries[which].raw))

    def _name_of(self, entry: Entry) -> str:
        """Of its stream: its domain's, while the limit allows for one."""
        name = entry.fingerprint[:DOMAIN_SIZE].hex()
        return name if name in self._streams or len(self._streams) < self._domains else REST

    def _subject(self, name: str, entry: Entry) -> str:
        address = entry.fingerprint.hex()
        rest = address if name == REST else address[2 * DOMAIN_SIZE :]
        return f"{self._prefix}.{name}.{rest}"

    # --- reading -----------------------------------------------------------------------

    async def fetch(self, after: Position) -> Chunk:
        """See :class:`gateway.routing.feed.Feed`. In the order of the log, within a domain.

        What has come while something is being published is given once that is done: the
        view then has that already, in the order in which it was deposited.
        """
        deadline = time.monotonic() + WAIT
        for _ in range(3):
            await self._check()
            async with self._reaching():
                spots = await self._verify(decode(after, self._born))
                try:
                    await self._wait(after, spots, deadline)
                except _ReaderLostError:
                    self._checked = False
                    continue
            async with self._publishing:
                readers = self._readers
                raws = readers.chunk(spots)
                self._at = encode(self._born, spots)
                return Chunk(raws, self._at, readers.end)
        raise RoutingError(f"{self.url}: the streams cannot be read")

    async def _verify(self, spots: Spots) -> Spots:
        if (checks := self._checks) != self._verified:
            if await self._lacks(spots):
                await self._begin_anew()
                spots = {}
            self._verified = checks
        return spots

    async def _wait(self, after: Position, spots: Spots, deadline: float) -> None:
        """Until something has come, or for as long as a fetch waits.

        :raises _ReaderLostError: begin again.
        """
        readers = self._readers
        if self._at is None or after != self._at:
            readers.forget()
            self._at = after
        while True:
            readers.news.clear()
            if time.monotonic() - self._looked >= REFRESH:
                await self._look()
                if not self._checked:
                    raise _ReaderLostError
            missing = [name for name in self._streams if name not in readers]
            made = [
                self._make_reader(readers, name, self._streams[name].mark, spots.get(name))
                for name in missing
            ]
            await asyncio.gather(*made)
            await readers.ask(self._nats)
            if not self._nats.is_connected:
                raise nats.errors.ConnectionClosedError
            if readers.broken:
                raise _ReaderLostError
            left = deadline - time.monotonic()
            if readers.waiting or left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await readers.news.wait()

    async def _make_reader(
        self, readers: Readers, name: str, mark: bytes, spot: Spot | None
    ) -> None:
        stream = f"{self._prefix}-{name}"
        seq = spot.seq if spot is not None else 0
        made = await self._jetstream().add_consumer(
            stream,
            ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=seq + 1,
                ack_policy=AckPolicy.NONE,
                inactive_threshold=IDLE_READER,
                num_replicas=1,
                mem_storage=True,
            ),
        )
        reader = Reader(readers.number(), stream, made.name, mark, seq)
        reader.pending = made.num_pending or 0
        readers.add(name, reader)

    async def size(self) -> int | None:
        """See :class:`gateway.routing.feed.Feed`."""
        await self._check()
        async with self._reaching():
            await self._look()
            return await self._inspect(self._streams)


def _known(info: StreamInfo) -> _Stream:
    made = short(f"{info.created} {info.config.description}")
    return _Stream(made, info.state.first_seq, info.state.last_seq)


class _Answers:
    """Counts the acknowledgements of one publish."""

    def __init__(self) -> None:
        self.subject = ""
        self.done = asyncio.Event()
        self.waiting = 0
        self.problem = ""
        #: The highest number that each stream gave, and to which of them.
        self.last: dict[str, tuple[int, int]] = {}
        self._names: Sequence[str] = ()
        self._publish = 0

    def expect(self, publish: int, names: Sequence[str]) -> None:
        """One for each message, of the stream that is named so."""
        self.done.clear()
        self._publish, self._names, self.waiting = publish, names, len(names)
        self.problem, self.last = "", {}

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
        name = self._names[int(number)]
        if problem or not isinstance(seq, int):
            self.problem = str((problem or {}).get("description") or "there is no such stream")
        elif seq > self.last.get(name, (0, 0))[0]:
            self.last[name] = (seq, int(number))
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
