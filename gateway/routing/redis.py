"""``redis:`` – streams of a Redis server, one for each domain, joined with a local view.

Keys, with ``prefix=qis``: the streams ``qis:<hex of a fingerprint's first 8 bytes>``, whose
entries have the packet in the field ``p``; the set ``qis:domains`` of these hex names; the
stream ``qis:news``, which tells readers of a name that is new; and the hash ``qis:log``: the
last id given (``ms``, ``n``) and a key ``born``, drawn once, and drawn anew when the log has
lost something, so that gateways deposit again. A publish is one script. It gives ids that
ascend over all streams, so one id is a reader's place in all of them. ``group=`` divides the
addresses, see :mod:`gateway.routing.redis_group`. What is durable when is on the page
``docs/routing/redis.md``.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import dataclasses
import os
import re
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import redis.asyncio as client
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004 - the library's own
    NoPermissionError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004 - the library's own
)

from gateway.routing.access import TLS_OPTIONS, hosts_of, number_of, password_of, tls_of
from gateway.routing.base import Context, EngineStatus, Entry
from gateway.routing.feed import CHUNK_BYTES, CHUNK_PACKETS, WAIT, Chunk, Position
from gateway.routing.redis_group import Group, SharedPlace
from gateway.routing.redis_places import BORN_SIZE, DOMAIN_SIZE, Place, StreamId
from gateway.routing.url import EngineUrl
from gateway.routing.view import ViewEngine
from qis_edge.core.errors import RoutingError

EXAMPLE = "redis://127.0.0.1:6379"
PORT = 6379
#: Seconds that a connection and an answer may take.
PATIENCE = 5.0
#: The field of an entry that has the packet.
FIELD = b"p"

_OPTIONS = ("fsync", "days", "group", "maxlen", "password", "prefix", "replicas", *TLS_OPTIONS)
_PREFIX = re.compile(r"[A-Za-z0-9._{}-]{1,64}")
_DOMAIN = re.compile(rb"[0-9a-f]{%d}" % (2 * DOMAIN_SIZE))
_DAY_MS = 86_400_000

#: Arguments: the log's key, how to trim and to what, then domain and packet of each entry.
#: The ids have the server's time, which never goes back, and a number that is never given twice.
_PUBLISH = """
local log, domains, news, prefix = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local known = redis.call('HMGET', log, 'born', 'ms', 'n')
if known[1] ~= ARGV[1] then return {} end
local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
local trim = ms - (tonumber(ARGV[3]) or 0)
ms = math.max(ms, tonumber(known[2] or 0))
local n = tonumber(known[3] or 0)
local ids = {}
for i = 4, #ARGV, 2 do
  n = n + 1
  local id = string.format('%.0f-%.0f', ms, n)
  local stream = prefix .. ARGV[i]
  if redis.call('SADD', domains, ARGV[i]) == 1 then
    redis.call('XADD', news, 'MAXLEN', '~', '100', '*', 'd', ARGV[i])
  end
  if ARGV[2] == 'MAXLEN' then
    redis.call('XADD', stream, 'MAXLEN', '~', ARGV[3], id, 'p', ARGV[i + 1])
  elseif ARGV[2] == 'MINID' then
    redis.call('XADD', stream, 'MINID', '~', string.format('%.0f', trim), id, 'p', ARGV[i + 1])
  else
    redis.call('XADD', stream, id, 'p', ARGV[i + 1])
  end
  ids[1], ids[2] = id, ARGV[i]
end
redis.call('HSET', log, 'ms', string.format('%.0f', ms), 'n', string.format('%.0f', n))
return ids
"""
#: Another key for the log, unless it has another than ours already.
_RENEW = """
if redis.call('HGET', KEYS[1], 'born') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'born', ARGV[2])
end
"""


class RedisFeed:
    """A :class:`gateway.routing.feed.Feed` on a Redis server, 5.0 or newer.

    :raises RoutingError: the URL is wrong.
    """

    def __init__(self, url: EngineUrl, context: Context) -> None:
        url.only(_OPTIONS)
        self.url = str(url)
        self._settings = _settings(url, context.name)
        self._prefix = url.options.get("prefix", "qis")
        if not _PREFIX.fullmatch(self._prefix):
            raise RoutingError(f"{self.url}: prefix must be up to 64 of A-Z a-z 0-9 . _ - {{ }}")
        group = url.options.get("group")
        if group is not None and not _PREFIX.fullmatch(group):
            raise RoutingError(f"{self.url}: group must be up to 64 of A-Z a-z 0-9 . _ - {{ }}")
        self._group = Group(self._key(f"group:{group}"), context.name) if group else None
        if url.options.get("fsync", "always") != "always":
            raise RoutingError(f"{self.url}: fsync can only be always")
        self._always = "fsync" in url.options
        self._replicas = number_of(url, "replicas", 0, 0, 16)
        maxlen = number_of(url, "maxlen", 0, 1, 10**12) if "maxlen" in url.options else 0
        days = number_of(url, "days", 0, 1, 36_500) if "days" in url.options else 0
        if maxlen and days:
            raise RoutingError(f"{self.url}: give maxlen or days, not both")
        self._trim = (
            ("MAXLEN", maxlen) if maxlen else ("MINID", days * _DAY_MS) if days else ("", 0)
        )
        self._client: Any = None  # its types tell neither bytes from text nor now from later
        self._checking = asyncio.Lock()
        self._checked = False
        self._verified = False
        self._born = b""
        self._sent: Place | None = None  # of the last entry that we published
        self._foreign: set[str] = set()
        #: What a person should know of how the server keeps things.
        self.caution = ""

    # --- connecting --------------------------------------------------------------------

    @property
    def incarnation(self) -> str:
        """See :class:`gateway.routing.feed.Feed`."""
        return self._born.hex()

    async def open(self) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        if self._client is None:
            self._client = client.Redis(**self._settings)
            self._checked = False
        try:
            await self._check()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        found, self._client = self._client, None
        if found is not None:
            if self._group is not None:
                with contextlib.suppress(RedisError, OSError, builtins.TimeoutError):
                    async with asyncio.timeout(1):
                        await self._group.leave(found)
            await found.aclose()

    @contextlib.asynccontextmanager
    async def _reaching(self) -> AsyncIterator[None]:
        """Says what went wrong in our words."""
        if self._client is None:
            raise RoutingError(f"{self.url}: not open")
        try:
            yield
        except AuthenticationError as error:
            self._checked = False
            raise RoutingError(
                f"{self.url}: the server refused the login ({_said(error)})",
                hint="check user and password (password_file=PATH)",
            ) from None
        except NoPermissionError as error:
            raise self._forbidden(error) from None
        except (ConnectionError, TimeoutError, OSError) as error:
            self._checked = False
            raise RoutingError(f"{self.url}: away ({_said(error)})") from None
        except RedisError as error:
            if "can't run this command" in str(error):  # within a script
                raise self._forbidden(error) from None
            self._checked = False
            raise RoutingError(f"{self.url}: {_said(error)}") from None

    def _forbidden(self, error: RedisError) -> RoutingError:
        return RoutingError(
            f"{self.url}: the login may not do that ({_said(error)})",
            hint="docs/routing/redis.md has the permissions that a gateway needs",
        )

    async def _check(self) -> None:
        """After each time that it was away: is it the same log, with all that it had?"""
        async with self._checking, self._reaching():
            if self._checked:
                return
            self._verified = False
            self._foreign.clear()
            await self._look()
            await self._know_the_log()
            if self._sent is not None and await self._lacks(self._sent):
                await self._begin_anew()
            self._checked = True

    async def _know_the_log(self) -> None:
        """Draw the log's key, if nobody has."""
        key = self._key("log")
        await self._client.hsetnx(key, "born", os.urandom(BORN_SIZE))
        born = await self._client.hget(key, "born")
        if not isinstance(born, bytes) or len(born) != BORN_SIZE:
            raise RoutingError(f"{self.url}: {key} is none of ours", hint="choose another prefix=")
        if born != self._born:
            self._sent = None
        self._born = born

    async def _begin_anew(self) -> None:
        """The log has lost its end: draw its key anew, unless somebody has by now."""
        await self._client.eval(_RENEW, 1, self._key("log"), self._born, os.urandom(BORN_SIZE))
        await self._know_the_log()

    async def _lacks(self, place: Place) -> bool:
        """Whether the log does not have the entry that it once had there, though it has not
        been trimmed up to it: it has lost its end since."""
        stream = self._stream(place.domain)
        found = await self._client.xrange(stream, str(place.id), str(place.id), count=1)
        first = found or await self._client.xrange(stream, count=1)
        return not first or StreamId.parse(first[0][0]) < place.id

    async def _look(self) -> None:
        """How does the server keep what it is given?"""
        pipe = self._client.pipeline(transaction=False)
        for name in ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy"):
            pipe.config_get(name)
        facts: dict[str, str] = {}
        for answer in await pipe.execute(raise_on_error=False):
            if isinstance(answer, ConnectionError | TimeoutError):
                raise answer
            if isinstance(answer, dict):
                facts.update({_text(name): _text(value) for name, value in answer.items()})
        self.caution = _caution(facts)
        always = facts.get("appendonly") == "yes" and facts.get("appendfsync") == "always"
        if self._always and not always:
            raise RoutingError(
                f"{self.url}: fsync=always is wanted, and {self.caution}",
                hint="redis-cli config set appendonly yes; redis-cli config set appendfsync always",
            )

    # --- publishing --------------------------------------------------------------------

    async def publish(self, entries: Sequence[Entry]) -> None:
        """See :class:`gateway.routing.feed.Feed`. All at once."""
        await self._check()
        if not entries:
            return
        keys = (self._key("log"), self._key("domains"), self._key("news"), self._key(""))
        values: list[object] = [self._born, *self._trim]
        for entry in entries:
            values += (entry.fingerprint[:DOMAIN_SIZE].hex(), entry.raw)
        copies = 0
        async with self._reaching():
            pipe = self._client.pipeline(transaction=False)
            pipe.execute_command("EVAL", _PUBLISH, len(keys), *keys, *values)
            if self._replicas:  # of what this connection has written
                pipe.execute_command("WAIT", self._replicas, int(PATIENCE * 800))
            last, *rest = await pipe.execute()
            copies = rest[0] if rest else 0
        if not last:
            raise self._another()
        self._sent = Place(self._born, StreamId.parse(last[0]), bytes.fromhex(_text(last[1])))
        if copies < self._replicas:
            raise RoutingError(f"{self.url}: {copies} of {self._replicas} replicas have confirmed")

    def _another(self) -> RoutingError:
        self._checked = False
        return RoutingError(f"{self.url}: the log is another than before")

    # --- reading -----------------------------------------------------------------------

    async def fetch(self, after: Position) -> Chunk:
        """See :class:`gateway.routing.feed.Feed`. In the order of the log."""
        await self._check()
        deadline = time.monotonic() + WAIT
        async with self._reaching():
            shared = SharedPlace.decode(after, self._born) if self._group is not None else None
            place = Place.decode(after, self._born) if shared is None else shared.place
            if not self._verified:
                if place.domain and await self._lacks(place):
                    await self._begin_anew()
                    place = Place(self._born)
                    shared = SharedPlace(place) if shared is not None else None
                self._verified = True
            while True:
                mine = await self._take()
                if shared is not None and not mine:  # there are more gateways than shares
                    await asyncio.sleep(max(deadline - time.monotonic(), 0))
                    return Chunk((), shared.encode(), True)
                start = place if shared is None else shared.start(mine)
                starts, streams = await self._streams(start)
                found = await self._read(starts, streams)
                if found is not None:
                    entries, end, still = found
                    if shared is None:
                        chunk = _chunk(place, entries, end=end)
                    else:
                        chunk = shared.chunk(entries, mine & still, end=end and mine == still)
                    if entries or time.monotonic() >= deadline:
                        return chunk
                    # One that has waited gets the first stream that has something, not all that
                    # came at once: it only wakes.
                    block = max(int((deadline - time.monotonic()) * 1000), 1)
                    await self._client.xread(starts, count=1, block=block)

    async def _take(self) -> frozenset[int]:
        """The shares of the group that are this gateway's now."""
        if self._group is None:
            return frozenset()
        pipe = self._client.pipeline(transaction=False)
        self._group.take(pipe)
        return self._group.taken((await pipe.execute())[0])

    async def _streams(self, place: Place) -> tuple[dict[str, str], dict[str, bytes]]:
        """From where to read what; and the domains of streams."""
        pipe = self._client.pipeline(transaction=True)
        pipe.hget(self._key("log"), "born")
        pipe.xrevrange(self._key("news"), count=1)
        pipe.smembers(self._key("domains"))
        born, news, names = await pipe.execute()
        if born != self._born:
            raise self._another()
        streams = {
            self._key(_text(name)): bytes.fromhex(_text(name))
            for name in names
            if _DOMAIN.fullmatch(name) and self._key(_text(name)) not in self._foreign
        }
        starts = dict.fromkeys(streams, str(place.id))
        starts[self._key("news")] = _text(news[0][0]) if news else "0-0"
        return starts, streams

    async def _read(
        self, starts: dict[str, str], streams: dict[str, bytes]
    ) -> tuple[list[_Found], bool, frozenset[int]] | None:
        """The next entries, whether these are all, and the shares at that moment; ``None`` if
        there is another stream, which may have older ones than those that lie behind them.
        One look at all of them: nothing comes in between."""
        count = max(CHUNK_PACKETS // max(len(streams), 1), 10)
        pipe = self._client.pipeline(transaction=self._group is not None)
        pipe.xread(starts, count=count)
        if self._group is not None:
            self._group.take(pipe)
        try:
            answer, *taken = await pipe.execute()
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            await self._leave_out_foreign(streams)
            return None
        if any(_text(name) not in streams for name, _ in answer or ()):
            return None
        found = {streams[_text(name)]: entries for name, entries in answer or ()}
        return *_merge(found, count), Group.taken(taken[0] if taken else ())

    async def _leave_out_foreign(self, names: Iterable[str]) -> None:
        """Somebody put something else where a stream belongs."""
        for name in names:
            if await self._client.type(name) not in (b"stream", b"none"):
                self._foreign.add(name)

    async def size(self) -> int | None:
        """See :class:`gateway.routing.feed.Feed`."""
        await self._check()
        async with self._reaching():
            names = await self._client.smembers(self._key("domains"))
            pipe = self._client.pipeline(transaction=False)
            for name in names:
                pipe.xlen(f"{self._prefix}:{_text(name)}")
            counts = await pipe.execute(raise_on_error=False) if names else []
            return sum(count for count in counts if isinstance(count, int))

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    def _stream(self, domain: bytes) -> str:
        return f"{self._prefix}:{domain.hex()}"


class RedisEngine(ViewEngine):
    """``redis:`` – a :class:`RedisFeed` and its view."""

    def __init__(self, url: EngineUrl, context: Context) -> None:
        self._redis = RedisFeed(url, context)
        super().__init__(self._redis, context)

    async def status(self) -> EngineStatus:
        """With what a person should know of how the server keeps things."""
        found = await super().status()
        says = "; ".join(word for word in (found.detail, self._redis.caution) if word)
        return dataclasses.replace(found, detail=says)


def _settings(url: EngineUrl, name: str) -> dict[str, Any]:
    """What the client is made with."""
    made: dict[str, Any] = {
        "username": url.user,
        "password": password_of(url),
        "client_name": f"qis-{name}",
        "protocol": 2,
        "socket_timeout": PATIENCE,
        "socket_connect_timeout": PATIENCE,
        "retry": Retry(NoBackoff(), 0),  # who calls knows best when to try again
    }
    tls = tls_of(url)
    if not url.hosts and url.path.startswith("/"):
        if tls is not None:
            raise RoutingError(f"{url}: a socket of this machine has no TLS")
        return {**made, "unix_socket_path": url.path}
    ((host, port), *others) = hosts_of(url, PORT, EXAMPLE)
    if others:
        raise RoutingError(
            f"{url}: it takes one server", hint="Redis Cluster is not supported: see its page"
        )
    database = url.path.strip("/") or "0"
    if not (database.isascii() and database.isdigit()):
        raise RoutingError(f"{url}: the path must be the number of a database, for example /0")
    made |= {"host": host, "port": port, "db": int(database)}
    if tls is not None:
        made |= {
            "ssl": True,
            "ssl_ca_certs": tls.ca,
            "ssl_certfile": tls.cert,
            "ssl_keyfile": tls.key or tls.cert,
        }
    return made


def _caution(facts: dict[str, str]) -> str:
    """What follows from a server's configuration, as far as it may be asked."""
    if "appendonly" not in facts:
        return "the server does not say how it keeps things (config get is not permitted)"
    says = []
    if facts["appendonly"] != "yes":
        says.append("the server has no append-only file: its end loses what no snapshot has")
    elif facts.get("appendfsync") == "no":
        says.append("the server never syncs (appendfsync no): a power cut takes up to 30 s")
    elif facts.get("appendfsync") != "always":
        says.append("the server syncs each second: a power cut takes up to 2 s")
    policy = facts.get("maxmemory-policy", "")
    if facts.get("maxmemory", "0") != "0" and policy.startswith("allkeys"):
        says.append(f"the server drops streams when its memory is full (maxmemory-policy {policy})")
    return "; ".join(says)


#: An entry's id, its domain and its packet.
_Found = tuple[StreamId, bytes, bytes]


def _merge(found: dict[bytes, list[Any]], count: int) -> tuple[list[_Found], bool]:
    """The oldest of all, as far as a chunk goes; and whether these are all."""
    merged: list[_Found] = []
    full = []
    for domain, entries in found.items():
        for name, fields in entries:
            raw = dict(fields or ()).get(FIELD, b"")
            merged.append((StreamId.parse(name), domain, raw))
        if len(entries) >= count:
            full.append(merged[-1][0])  # this stream may have more, older than what others have
    merged.sort()
    size = 0
    for index, (where, _, raw) in enumerate(merged):
        if (index and size + len(raw) > CHUNK_BYTES) or (full and where > min(full)):
            return merged[:index], False
        size += len(raw)
    return merged, not full


def _chunk(place: Place, found: Sequence[_Found], *, end: bool) -> Chunk:
    if found:
        place = place._replace(id=found[-1][0], domain=found[-1][1])
    return Chunk(tuple(raw for _, _, raw in found), place.encode(), end)


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _said(error: BaseException) -> str:
    """The reason, without what was being sent."""
    return str(error).rpartition("caused error: ")[2] or type(error).__name__
