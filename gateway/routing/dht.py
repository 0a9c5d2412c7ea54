"""``dht://HOST:PORT,HOST:PORT?network=NAME``: a distributed hash table of the fleet's own.

Nobody's server: every gateway is a node of it, others hold values only (see
:mod:`gateway.routing.dht_node`). A packet is a value of its address; nodes near the address
keep it until nobody puts it there again, so this is joined with a view that keeps packets for
good and puts them there again before they are forgotten.

Whoever comes later finds the addresses by two indexes, of the network's domains and of the
addresses of a domain. Their values are packets, too: an address is looked at once somebody
whom the fleet knows has signed a packet of it, so a stranger cannot send us looking.

There is no log and no order, so positions are of one start of the node: any other is the
beginning of what is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cbor2

from gateway.routing.access import number_of
from gateway.routing.base import Context, Entry, framed_fingerprint, framed_id
from gateway.routing.feed import CHUNK_PACKETS, WAIT, Chunk, Position
from gateway.routing.url import EngineUrl
from gateway.routing.view import ViewEngine
from qis_edge.core.errors import Reason, Refused, RoutingError

log = logging.getLogger(__name__)

EXAMPLE = "dht://base-1.example:4222,base-2.example:4222?network=north"
#: As in gateway.routing.dht_node, which is not imported here: that loads the library.
PORT = 4222
NETWORK = "qis"
LIFETIME, LEAST_LIFETIME = 24 * 3600, 12
COPIES = 8
#: Each value is put again so often while it lives.
RENEWALS = 4
#: Seconds after which everything is looked up again, for answers come in UDP packets, of which
#: some are lost: soon after the beginning, then ever later, and the longest.
REREAD_FIRST, REREAD_FACTOR, REREAD = 20.0, 8.0, 6 * 3600
#: Seconds for the first answer of a node, for a deposit, and for any other answer.
FIRST_ANSWER, PATIENCE, LONGEST = 9.0, 40.0, 60.0
#: Seconds between signs of life, and between attempts with signers unknown so far.
PULSE, RETRY_UNPROVEN = 15.0, 10.0
#: Values put at once, and keys looked up at once.
WINDOW, GETS = 64, 16
#: Addresses that are looked at, and those that wait for a signer to become known.
MAX_ADDRESSES, MAX_UNPROVEN = 20_000, 1024
#: Values remembered so as not to be passed on twice; those that wait for the view.
MAX_SEEN, MAX_WAITING = 200_000, 50_000
#: Bytes of a fingerprint that are its domain.
DOMAIN_SIZE = 8
#: The least bytes of anything that is framed as a packet.
_LEAST = 64

_OPTIONS = {"network", "listen", "copies", "lifetime", "reread"}
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NODE = "dht_node.py"


class _Value(NamedTuple):
    key: bytes
    number: int
    data: bytes


class _Process:
    """A node of the DHT in a process of its own, from its start to its end.

    :param found: called with values as they are found.
    """

    def __init__(self, url: str, found: Callable[[Sequence[bytes]], None]) -> None:
        self._url = url
        self._found = found
        self._child: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._failure = ""
        self.port = 0
        self.lost = False
        self.dropped = 0

    async def start(self, arguments: Sequence[str]) -> None:
        """:raises RoutingError: it cannot listen where it should."""
        path = Path(__file__).with_name(_NODE)
        try:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", str(path), "--pipe", *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise RoutingError(f"{self._url}: {error.strerror}") from error
        ready = self._answers[0] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(self._child))
        self.port = await self._within(ready, LONGEST)

    async def put(self, values: Sequence[_Value]) -> list[int]:
        """How many nodes hold each; 0: nobody does, or it did not say in time."""
        number, answer = self._expect()
        try:
            self._say("put", number, [list(value) for value in values])
            copies: list[int] = await self._within(answer, PATIENCE)
        except TimeoutError:
            return [0] * len(values)
        finally:
            self._answers.pop(number, None)
        return copies

    async def get(self, key: bytes) -> bool:
        """Look a key up; whether anybody answered. What there is was ``found`` before."""
        number, answer = self._expect()
        try:
            self._say("get", number, key)
            return bool(await self._within(answer, LONGEST))
        except TimeoutError:
            return False
        finally:
            self._answers.pop(number, None)

    async def reach(self, host: str, port: int) -> bool:
        """Whether a node answers there."""
        number, answer = self._expect()
        try:
            self._say("reach", number, host, port)
            return bool(await self._within(answer, FIRST_ANSWER))
        except TimeoutError:
            return False
        finally:
            self._answers.pop(number, None)

    def follow(self, key: bytes) -> None:
        """``found`` is told what comes there."""
        self._say("follow", key)

    async def close(self) -> None:
        """End it. Idempotent."""
        child, self._child = self._child, None
        self.lost = True
        if child is not None:
            assert child.stdin is not None
            child.stdin.close()
            try:
                async with asyncio.timeout(5):
                    await child.wait()
            except TimeoutError:
                child.kill()
                await child.wait()
        if self._reading is not None:
            await asyncio.wait([self._reading])

    def _expect(self) -> tuple[int, asyncio.Future[Any]]:
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        return self._number, answer

    async def _within(self, answer: asyncio.Future[Any], seconds: float) -> Any:
        async with asyncio.timeout(seconds):
            found = await answer
        if found is None:
            raise RoutingError(self._failure or f"{self._url}: its node has ended", hint="")
        return found

    def _say(self, *message: Any) -> None:
        if self._child is None or self.lost:
            raise RoutingError(self._failure or f"{self._url}: its node has ended")
        assert self._child.stdin is not None
        body = cbor2.dumps(message)
        self._child.stdin.write(len(body).to_bytes(4) + body)

    async def _read(self, child: asyncio.subprocess.Process) -> None:
        """What it says, until its end."""
        assert child.stdout is not None
        try:
            while True:
                head = await child.stdout.readexactly(4)
                self._take(*cbor2.loads(await child.stdout.readexactly(int.from_bytes(head))))
        except asyncio.IncompleteReadError:
            pass
        finally:
            self.lost = True
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_result(None)

    def _take(self, what: str, *arguments: Any) -> None:
        if what == "values":
            self._found(arguments[0])
        elif what == "dropped":
            self.dropped += arguments[0]
        elif what == "failed":
            self._failure = f"{self._url}: its node cannot listen: {arguments[0]}"
            self._settle(0, None)
        elif what == "ready":
            self._settle(0, arguments[0])
        else:
            self._settle(*arguments)

    def _settle(self, number: int, result: object) -> None:
        answer = self._answers.get(number)
        if answer is not None and not answer.done():
            answer.set_result(result)


class _Lookups:
    """Keys to be looked up, a few at once."""

    def __init__(self, process: _Process, news: asyncio.Event) -> None:
        self._process = process
        self._news = news
        self._waiting: dict[bytes, None] = {}
        self._running: set[asyncio.Task[None]] = set()
        #: Whether one found nobody who answered.
        self.failed = False

    def __bool__(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, keys: Iterable[bytes]) -> None:
        """These, too."""
        self._waiting.update(dict.fromkeys(keys))
        while self._waiting and len(self._running) < GETS:
            key = next(iter(self._waiting))
            del self._waiting[key]
            task = asyncio.create_task(self._run(key))
            self._running.add(task)

    async def _run(self, key: bytes) -> None:
        try:
            self.failed |= not await self._process.get(key)
        except RoutingError:
            self.failed = True
        finally:
            this = asyncio.current_task()
            assert this is not None
            self._running.discard(this)
            self._news.set()
        self.add(())

    async def close(self) -> None:
        """No more of them."""
        self._waiting.clear()
        for task in (running := list(self._running)):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class DhtFeed:
    """See :class:`gateway.routing.feed.ForgetfulFeed`.

    Options: ``network`` (its name), ``listen`` (where its own node does), ``copies`` (other
    nodes that must hold what was published), ``lifetime`` (seconds; the same for all nodes),
    ``reread`` (seconds; 0: never).
    """

    def __init__(self, url: EngineUrl, context: Context) -> None:
        """:raises RoutingError: the URL is wrong, or the library is missing."""
        if importlib.util.find_spec("opendht") is None:  # only the other process loads it
            raise RoutingError(
                "dht: the module opendht is missing", hint="pip install 'qis-edge[dht]'"
            )
        url.only(_OPTIONS)
        if url.user or url.password:
            raise RoutingError(f"{url}: a DHT knows no logins", hint=f"for example {EXAMPLE}")
        if url.path.strip("/"):
            raise RoutingError(f"{url}: it takes no path", hint=f"for example {EXAMPLE}")
        self._network = url.options.get("network", NETWORK)
        if not _NAME.fullmatch(self._network):
            raise RoutingError(f"{url}: network must be letters, digits, '.', '_' and '-'")
        #: Of the network, whichever nodes one begins with: the view is for good.
        self.url = f"{url.scheme}:?network={self._network}"
        self._copies = number_of(url, "copies", 1, 1, COPIES)
        lifetime = number_of(url, "lifetime", LIFETIME, LEAST_LIFETIME, 30 * 86400)
        self.renewal = lifetime / RENEWALS
        self._reread = number_of(url, "reread", REREAD, 0, 30 * 86400)
        listen = _listen_of(url)
        self._places = [(name, PORT if port is None else port) for name, port in url.hosts]
        self._arguments = ["--network", self._network, "--lifetime", str(lifetime)]
        self._arguments += ["--listen", listen]
        for name, port in self._places:
            self._arguments += ["--join", f"[{name}]:{port}" if ":" in name else f"{name}:{port}"]
        self._accept = context.accept
        self._opened = False
        self._starting = asyncio.Lock()
        self._process: _Process | None = None
        self._forget()

    def _forget(self) -> None:
        """Of one start of the node."""
        self._token = os.urandom(4)
        self._count = 0
        self._given: tuple[Position, Chunk] | None = None
        self._queue: deque[bytes] = deque()
        self._seen: dict[int, None] = {}
        self._own: dict[int, None] = {}
        self._news = asyncio.Event()
        self._keys: dict[bytes, None] = {}
        self._addresses: set[bytes] = set()
        self._unproven: dict[bytes, bytes] = {}
        self._unproven_tried = 0.0
        self._told: dict[bytes, float] = {}
        self._lookups: _Lookups | None = None
        self._read_at = 0.0
        self._wait = REREAD_FIRST
        self._missed = self._full = False
        self._alive = False
        self._pulsed = 0.0
        self._pulsing: asyncio.Task[None] | None = None

    @property
    def incarnation(self) -> str:
        """See :class:`gateway.routing.feed.Feed`. It cannot tell."""
        return ""

    # --- the node ----------------------------------------------------------------------

    async def open(self) -> None:
        """See :class:`gateway.routing.feed.Feed`. Somebody of those named has answered; with
        nobody named, this is the first node."""
        self._opened = True
        try:
            await self._running()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        self._opened = False
        await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        lookups, pulsing = self._lookups, self._pulsing
        self._forget()
        if pulsing is not None:
            pulsing.cancel()
            await asyncio.gather(pulsing, return_exceptions=True)
        if lookups is not None:
            await lookups.close()
        if process is not None:
            await process.close()

    async def _running(self) -> _Process:
        """The node, started again where it was lost.

        :raises RoutingError: it is not open, cannot listen, or nobody answers.
        """
        if not self._opened:
            raise RoutingError(f"{self.url}: not open")
        async with self._starting:
            if self._process is not None and not self._process.lost:
                return self._process
            await self._end()
            process = self._process = _Process(self.url, self._arrived)
            self._lookups = _Lookups(process, self._news)
            try:
                await process.start(self._arguments)
                if self._places:
                    await self._first_answer(process)
            except BaseException:
                await self._end()
                raise
            return process

    async def _first_answer(self, process: _Process) -> None:
        asked = [asyncio.ensure_future(process.reach(*place)) for place in self._places]
        try:
            for answer in asyncio.as_completed(asked):
                if await answer:
                    self._alive, self._pulsed = True, time.monotonic()
                    return
        finally:
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise RoutingError(
            f"{self.url}: none of the nodes named answers",
            hint="check host and UDP port, and that network is the same at all of them",
        )

    async def _check(self, process: _Process) -> None:
        """Somebody else is there. :raises RoutingError:"""
        now = time.monotonic()
        if not self._alive:
            await self._pulse(process)
            if not self._alive:
                raise RoutingError(f"{self.url}: no other node answers", hint=_ALONE)
            self._missed = True  # while nobody was there
        elif now - self._pulsed > PULSE and (self._pulsing is None or self._pulsing.done()):
            self._pulsing = asyncio.create_task(self._pulse(process))

    async def _pulse(self, process: _Process) -> None:
        try:
            self._alive = await process.get(os.urandom(20))
        except RoutingError:
            self._alive = False
        self._pulsed = time.monotonic()

    # --- writing -----------------------------------------------------------------------

    async def publish(self, entries: Sequence[Entry]) -> None:
        """See :class:`gateway.routing.feed.Feed`. As many other nodes hold each as ``copies``
        says, where fewer are there at all: none of them fewer than one."""
        process = await self._running()
        for entry in entries:
            _note(self._own, hash(entry.raw))  # when it comes back, it is known
            self._look_at(process, entry.fingerprint)
        await self._put(process, entries)

    async def renew(self, entries: Sequence[Entry]) -> None:
        """See :class:`gateway.routing.feed.ForgetfulFeed`. Nodes that have it are asked to
        keep it, the others are given it."""
        await self._put(await self._running(), entries)

    async def _put(self, process: _Process, entries: Sequence[Entry]) -> None:
        now = time.monotonic()
        told: dict[bytes, float] = {}
        values: list[_Value] = []
        for entry in entries:
            number = int.from_bytes(entry.id[:8]) or 1
            domain = entry.fingerprint[:DOMAIN_SIZE]
            values.append(_Value(self._address_key(entry.fingerprint), number, entry.raw))
            for key, what in (
                (self._domain_key(domain), entry.fingerprint),
                (self._network_key, domain),
            ):
                # A little early: it is told again with each round.
                if what not in told and now - self._told.get(what, -1e9) > 0.9 * self.renewal:
                    told[what] = now
                    values.append(_Value(key, number, entry.raw))
        for start in range(0, len(values), WINDOW):
            copies = await process.put(values[start : start + WINDOW])
            if min(copies) < self._copies:
                self._pulsed = 0.0
                raise RoutingError(self._too_few(min(copies)), hint=_ALONE)
        self._told.update(told)
        self._alive = True

    def _too_few(self, copies: int) -> str:
        if not copies:
            return f"{self.url}: no other node has taken it"
        return f"{self.url}: {copies} other nodes have taken it, and copies={self._copies}"

    # --- keys --------------------------------------------------------------------------

    def _key(self, kind: str, name: bytes) -> bytes:
        head = f"qis/dht/1 {self._network} {kind} ".encode()
        return hashlib.sha256(head + name).digest()[:20]

    @property
    def _network_key(self) -> bytes:
        return self._key("domains", b"")

    def _domain_key(self, domain: bytes) -> bytes:
        return self._key("addresses", domain)

    def _address_key(self, fingerprint: bytes) -> bytes:
        return self._key("packets", fingerprint)

    # --- reading -----------------------------------------------------------------------

    async def fetch(self, after: Position) -> Chunk:
        """See :class:`gateway.routing.feed.Feed`. In no order."""
        process = await self._running()
        if self._given is not None and after == self._given[0]:
            return self._given[1]
        if after != self._position():
            self._begin(process)
        await self._check(process)
        await self._look_again(process)
        if not self._queue:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT):
                    await self._news.wait()
        raws = tuple(islice(self._queue, CHUNK_PACKETS))
        await self._discover(process, raws)
        if process is not self._process:
            raise RoutingError(f"{self.url}: closed")
        for _ in raws:
            self._queue.popleft()
        self._count += len(raws)
        chunk = Chunk(raws, self._position(), not self._queue and not self._lookups)
        self._given = (after, chunk) if raws else None
        return chunk

    def _position(self) -> Position:
        return self._token + self._count.to_bytes(8)

    def _begin(self, process: _Process) -> None:
        """Everything once more."""
        self._token, self._count, self._given = os.urandom(4), 0, None
        self._queue.clear()
        self._seen.clear()
        self._wait = REREAD_FIRST
        self._look_up(process, [self._network_key])
        self._read_again()

    def _read_again(self) -> None:
        assert self._lookups is not None
        self._read_at, self._missed = time.monotonic(), False
        self._lookups.failed = False
        self._lookups.add(self._keys)

    async def _look_again(self, process: _Process) -> None:
        """At what may have been missed, and for signers who may be known by now."""
        now = time.monotonic()
        assert self._lookups is not None
        if self._missed or self._lookups.failed or process.dropped:
            self._wait = REREAD_FIRST
        wait = min(self._wait, self._reread)
        if not self._queue and not self._lookups and 0 < wait < now - self._read_at:
            process.dropped = 0
            self._wait *= REREAD_FACTOR
            self._read_again()
        if self._unproven and now - self._unproven_tried > RETRY_UNPROVEN:
            self._unproven_tried = now
            await self._discover(process, list(self._unproven.values()))

    def _arrived(self, values: Sequence[bytes]) -> None:
        for data in values:
            mark = hash(data)
            if mark in self._seen or mark in self._own:
                continue
            if len(self._queue) >= MAX_WAITING:
                self._missed = True
                break
            _note(self._seen, mark)
            self._queue.append(data)
        self._news.set()

    async def _discover(self, process: _Process, raws: Sequence[bytes]) -> None:
        """Look at the addresses of which somebody known has signed a packet."""
        fresh: dict[bytes, bytes] = {}
        for raw in raws:
            if len(raw) >= _LEAST and framed_id(raw) is not None:
                fingerprint = framed_fingerprint(raw)
                if fingerprint not in self._addresses:
                    fresh[fingerprint] = raw
        if not fresh:
            return
        proven, unknown = await asyncio.to_thread(self._prove, list(fresh.values()))
        for fingerprint in proven:
            self._look_at(process, fingerprint)
            self._unproven.pop(fingerprint, None)
        for fingerprint, raw in unknown.items():
            if len(self._unproven) < MAX_UNPROVEN:
                self._unproven[fingerprint] = raw

    def _prove(self, raws: Sequence[bytes]) -> tuple[list[bytes], dict[bytes, bytes]]:
        """(another thread) Addresses of which there is a packet; those of unknown signers."""
        proven: list[bytes] = []
        unknown: dict[bytes, bytes] = {}
        for raw in raws:
            try:
                proven.append(self._accept(raw).fingerprint)
            except Refused as refused:
                if refused.reason is Reason.UNKNOWN_KEY:
                    unknown[framed_fingerprint(raw)] = raw
        return proven, unknown

    def _look_at(self, process: _Process, fingerprint: bytes) -> None:
        if fingerprint in self._addresses or process is not self._process:
            return
        if len(self._addresses) >= MAX_ADDRESSES:
            if not self._full:
                log.warning("%s: there are more than %d addresses", self.url, MAX_ADDRESSES)
            self._full = True
            return
        self._addresses.add(fingerprint)
        domain = fingerprint[:DOMAIN_SIZE]
        self._look_up(process, [self._domain_key(domain), self._address_key(fingerprint)])

    def _look_up(self, process: _Process, keys: Sequence[bytes]) -> None:
        assert self._lookups is not None
        fresh = [key for key in keys if key not in self._keys]
        for key in fresh:
            process.follow(key)
            self._keys[key] = None
        self._lookups.add(fresh)

    async def size(self) -> int | None:
        """See :class:`gateway.routing.feed.Feed`. Nobody knows."""
        await self._running()
        return None


class DhtEngine(ViewEngine):
    """``dht:`` – a :class:`DhtFeed` and its view."""

    def __init__(self, url: EngineUrl, context: Context) -> None:
        super().__init__(DhtFeed(url, context), context)


_ALONE = "another node must run: python -m gateway.routing.dht_node, or another gateway"


def _note(marks: dict[int, None], mark: int) -> None:
    """The oldest give way."""
    marks[mark] = None
    if len(marks) > MAX_SEEN:
        del marks[next(iter(marks))]


def _listen_of(url: EngineUrl) -> str:
    """``ADDRESS``, ``PORT`` or ``ADDRESS:PORT``; any free port where none is given."""
    text = url.options.get("listen", "0")
    host, bracket, rest = text.rpartition("]")
    if not bracket:
        host, colon, rest = text.rpartition(":")
        if not colon:
            host, rest = ("", text) if text.isdigit() else (text, "0")
    else:
        host, rest = host + "]", rest.removeprefix(":") or "0"
    if not (rest.isascii() and rest.isdigit() and int(rest) < 2**16) or " " in host:
        raise RoutingError(f"{url}: listen must be a port, an address, or both: 0.0.0.0:{PORT}")
    return f"{host}:{rest}" if host else rest
