"""``https://HOST/PATH?token_file=FILE``: ask a hub, or another gateway's.

The hub (``qis-gateway hub``) has an engine and answers over HTTP; this one has nothing but
the URL and a token. A hub's engine may itself be ``https:``, which makes a tree.
``http:`` is for the loopback alone, and for a proxy there that speaks TLS.

Cursors are the hub's own, handed through. What the hub sends is verified on arrival, and
held against what was asked.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import ssl
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeAlias, TypeVar

import aiohttp

from gateway.routing import hub_wire as wire
from gateway.routing.access import Tls, hosts_of, number_of
from gateway.routing.base import (
    MAX_CURSOR,
    Batch,
    Context,
    Cursor,
    EngineStatus,
    Entry,
    Interest,
    check_query,
)
from gateway.routing.following import Coverage
from gateway.routing.url import EngineUrl
from gateway.routing.verified import Verified
from qis_edge.core.errors import Reason, Refused, RoutingError
from qis_edge.links.mqtt_settings import is_loopback
from qis_edge.terminal import harmless

log = logging.getLogger(__name__)

EXAMPLE = "https://hub.example:8443?token_file=hub.token"
PORTS = {"https": 443, "http": 80}
#: Seconds that one answer may take, besides what a poll is held back; and that ``status``
#: waits at most.
PATIENCE = 10
LOOK = 3.0
#: Seconds that a live poll may be held back.
WAIT = 25
#: Seconds that we pause when the hub asks for less haste.
HASTE = (0.1, 2.0)
#: Seconds that a hub which answers at once with nothing is left alone.
IDLE = 0.05
#: The most bytes of an answer without packets.
SMALL = 64 * 1024

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,512}=*")  # RFC 6750, section 2.1


_T = TypeVar("_T")
_Ask: TypeAlias = "Callable[[wire.Poll], Coroutine[None, None, tuple[wire.Page, list[Entry]]]]"


class _Lost(RoutingError):
    """The hub's engine is another than before."""


class HttpsEngine:
    """See :class:`gateway.routing.base.RoutingLayer`.

    Options: ``token`` or ``token_file``, ``ca`` (a PEM file in place of the system's
    authorities), ``timeout`` (seconds for an answer, 10).
    """

    def __init__(self, url: EngineUrl, context: Context | None = None) -> None:
        """:raises RoutingError: no host or several, no token, or ``http:`` to elsewhere."""
        url.only({"token", "ca", "timeout"})
        places = hosts_of(url, PORTS[url.scheme], EXAMPLE)
        if len(places) > 1:
            raise RoutingError(f"{url}: it takes one hub", hint="name the hub, or a balancer")
        ((host, port),) = places
        if url.user or url.password:
            raise RoutingError(f"{url}: it takes a token and no login", hint=EXAMPLE)
        if url.scheme == "http" and not is_loopback(host):
            raise RoutingError(
                f"{url}: http: is for this machine alone", hint="use https: towards others"
            )
        if url.scheme == "http" and "ca" in url.options:
            raise RoutingError(f"{url}: ca needs https:")
        url = dataclasses.replace(url, path=url.path.rstrip("/"))
        self.url = str(url)
        self._base = f"{url.scheme}://{f'[{host}]' if ':' in host else host}:{port}{url.path}"
        self._token = _token_of(url)
        self._ca = url.options.get("ca")
        self._patience = number_of(url, "timeout", PATIENCE, 1, 300)
        self._verified = Verified((context or Context()).accept)
        self._session: aiohttp.ClientSession | None = None
        self._opening = asyncio.Lock()
        self._opened = False
        self._incarnation = ""
        self._following: set[HubSubscription] = set()
        self._refused = 0
        self._not_taken = 0

    @property
    def incarnation(self) -> str:
        """See :class:`gateway.routing.base.RoutingLayer`. Of the hub's engine."""
        return self._incarnation

    # --- opening and closing -----------------------------------------------------------

    async def open(self) -> None:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        async with self._opening:
            fresh = self._session is None
            if self._session is None:
                self._session = self._connect()
            try:
                self._incarnation = (await self._report(self._patience)).incarnation
                self._opened = True
            except BaseException:
                if fresh:
                    await self._disconnect()
                raise

    def _connect(self) -> aiohttp.ClientSession:
        tls: ssl.SSLContext | bool = True
        if self._ca is not None:
            try:
                tls = Tls(self._ca, None, None).context()
            except OSError as error:
                raise RoutingError(
                    f"{self.url}: the authorities in {self._ca} cannot be used "
                    f"({error.strerror or error})"
                ) from error
        return aiohttp.ClientSession(
            # Every follower has a connection to wait on; deposits must not wait for theirs.
            connector=aiohttp.TCPConnector(ssl=tls, limit=0, keepalive_timeout=30),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Authorization": f"Bearer {self._token}", "User-Agent": "qis-gateway"},
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )

    async def close(self) -> None:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        async with self._opening:
            self._opened = False
            for subscription in list(self._following):
                await subscription.close()
            await self._disconnect()
            self._verified.close()

    async def _disconnect(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _ready(self) -> None:
        if not self._opened:
            raise RoutingError(f"{self.url}: not open")

    # --- asking ------------------------------------------------------------------------

    async def _ask(
        self,
        name: str,
        body: bytes | None = None,
        *,
        most: int = SMALL,
        patience: float | None = None,
        incarnation: str | None = None,
    ) -> bytes:
        """One request and its answer.

        :param body: ``None``: a GET.
        :param most: bytes that the answer may have.
        :raises RoutingError: the hub is away, refuses, or answers with something else.
        """
        seconds = self._patience if patience is None else patience
        try:
            async with asyncio.timeout(seconds):
                while True:
                    answer = await self._once_more(name, body, most, incarnation)
                    if isinstance(answer, bytes):
                        return answer
                    await asyncio.sleep(answer)
        except TimeoutError:
            raise RoutingError(f"{self.url}: no answer within {seconds:g} s") from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise RoutingError(
                f"{self.url}: its certificate is not accepted ({error.certificate_error})",
                hint="name the authority's file with ca=FILE",
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise RoutingError(f"{self.url}: {_words(error)}") from error

    async def _once_more(
        self, name: str, body: bytes | None, most: int, incarnation: str | None
    ) -> bytes | float:
        """Every request may be repeated: an idle connection that the hub has just closed is
        no reason to be away."""
        try:
            return await self._exchange(name, body, most, incarnation)
        except (aiohttp.ServerDisconnectedError, ConnectionResetError):
            return await self._exchange(name, body, most, incarnation)

    async def _exchange(
        self, name: str, body: bytes | None, most: int, incarnation: str | None
    ) -> bytes | float:
        """The answer, or how many seconds to wait before the next attempt."""
        session = self._session
        if session is None or session.closed:
            raise RoutingError(f"{self.url}: not open")
        async with session.request(
            "GET" if body is None else "POST",
            f"{self._base}/v{wire.VERSION}/{name}",
            data=body,
            params=None if incarnation is None else {"incarnation": incarnation},
            headers=None if body is None else {"Content-Type": wire.CBOR},
            allow_redirects=False,  # the token is for this hub
        ) as response:
            if response.status == 429:
                return _pause(response.headers.get("Retry-After", ""))
            good = response.status == 200
            answer = await self._body(response, most if good else SMALL)
            if not good:
                self._refusal(response.status, answer)
            return answer

    async def _body(self, response: aiohttp.ClientResponse, most: int) -> bytes:
        parts, size = [], 0
        async for part in response.content.iter_any():
            size += len(part)
            if size > most:
                raise RoutingError(f"{self.url}: answers with more than was asked for")
            parts.append(part)
        return b"".join(parts)

    def _refusal(self, status: int, body: bytes) -> None:
        said = harmless(body[:300].decode("utf-8", "replace").strip().partition("\n")[0])
        if status == 401:
            raise RoutingError(
                f"{self.url}: the hub refuses the token",
                hint="token_file must name the token that the hub has in its file",
            )
        if status == 403:
            raise RoutingError(f"{self.url}: this token may not do that: {said}")
        if status == 409:
            # Said once, so that a depositor opens again and sees the other incarnation.
            raise _Lost(f"{self.url} has lost what it held: deposit everything anew")
        if status == 404 or 300 <= status < 400:
            raise RoutingError(
                f"{self.url}: there is no hub (HTTP status {status})",
                hint="the URL is that of the hub, without /v1",
            )
        raise RoutingError(f"{self.url}: {said or 'refuses'} (HTTP status {status})")

    async def _report(self, patience: float) -> wire.Report:
        answer = await self._ask("status", patience=patience)
        return self._decoded(wire.Report.decode, answer)

    def _decoded(self, decode: Callable[[bytes], _T], answer: bytes) -> _T:
        try:
            return decode(answer)
        except Refused as refusal:
            raise RoutingError(f"{self.url}: this is no hub's answer ({refusal})") from refusal

    # --- the interface -----------------------------------------------------------------

    async def deposit(self, entries: Sequence[Entry]) -> int:
        """See :class:`gateway.routing.base.RoutingLayer`. In pieces of a thousand, one after
        the other. What the hub will never take is counted and left out."""
        self._ready()
        new = 0
        for start in range(0, len(entries), wire.MAX_DEPOSIT):
            part = entries[start : start + wire.MAX_DEPOSIT]
            body = wire.deposit([entry.raw for entry in part])
            known = self._incarnation
            try:
                answer = await self._ask("deposit", body, incarnation=known or None)
            except _Lost:
                self._incarnation = (await self._report(self._patience)).incarnation
                raise
            receipt = self._decoded(wire.Receipt.decode, answer)
            self._left_out(part, receipt)
            self._verified.know(part)
            new += receipt.new
        return new

    def _left_out(self, part: Sequence[Entry], receipt: wire.Receipt) -> None:
        if not receipt.refused:
            return
        self._not_taken += len(receipt.refused)
        place, code = receipt.refused[0]
        reason = next((one.label for one in Reason if one.value == code), str(code))
        name = part[place].id.hex()[:16] if place < len(part) else "?"
        log.warning(
            "%s does not take %d of %d packets; the first is %s: %s",
            *(self.url, len(receipt.refused), len(part), name, reason.replace("_", " ")),
        )

    async def query(
        self,
        interest: Interest,
        *,
        limit: int = 50,
        since: int | None = None,
        confidence: int = 0,
        vector: Sequence[float] | None = None,
    ) -> list[Entry]:
        """See :class:`gateway.routing.base.RoutingLayer`. At most 10,000, whatever the limit."""
        check_query(limit, vector)
        self._ready()
        question = wire.Question(interest, limit, since, confidence, vector)
        answer = await self._ask("query", question.encode(), most=wire.MAX_ANSWER)
        page = self._decoded(wire.Page.decode, answer)
        entries = [
            entry
            for entry in await self._verified(page.raws)
            if interest.covers(entry.fingerprint)
            and entry.time >= (since or 0)
            and entry.confidence >= confidence
        ]
        self._refused += len(page.raws) - len(entries)
        if vector is None:
            entries.sort(key=lambda entry: -entry.time)  # stable: ties are the hub's
        return entries[:limit]

    def follow(
        self, interests: frozenset[Interest], after: Cursor | None = None
    ) -> HubSubscription:
        """See :class:`gateway.routing.base.RoutingLayer`. By polls that the hub holds back."""
        self._ready()
        subscription = HubSubscription(self._page, interests, after, self._following.discard)
        self._following.add(subscription)
        return subscription

    async def cursor(self) -> Cursor:
        """See :class:`gateway.routing.base.RoutingLayer`. The hub's own."""
        self._ready()
        return self._decoded(wire.Page.decode, await self._ask("cursor")).cursor

    async def expire(self, now: int) -> int:  # noqa: ARG002 - the hub goes by its own clock
        """See :class:`gateway.routing.base.RoutingLayer`. The hub does it: 0."""
        self._ready()
        return 0

    async def status(self) -> EngineStatus:
        """See :class:`gateway.routing.base.RoutingLayer`."""
        refused = self._refused
        if not self._opened:
            return EngineStatus(self.url, False, None, refused=refused, detail="not open")
        try:
            report = await self._report(min(self._patience, LOOK))
        except RoutingError as error:
            return EngineStatus(self.url, False, None, refused=refused, detail=str(error))
        says = [harmless(report.detail)] if report.detail else []
        if self._not_taken:
            says.append(f"the hub refused {self._not_taken} packets for good")
        return EngineStatus(
            self.url,
            report.ok,
            report.packets,
            refused=refused + report.refused,
            detail="; ".join(says),
            behind=report.behind,
        )

    # --- what the hub sends ------------------------------------------------------------

    async def _page(self, poll: wire.Poll) -> tuple[wire.Page, list[Entry]]:
        """One step of a follow, its packets verified and of interest."""
        self._ready()
        answer = await self._ask(
            "follow", poll.encode(), most=wire.MAX_ANSWER, patience=poll.wait + self._patience
        )
        page = self._decoded(wire.Page.decode, answer)
        found = await self._verified(page.raws)
        coverage = Coverage(poll.interests)
        if not coverage.everything:
            found = [entry for entry in found if entry.fingerprint in coverage]
        self._refused += len(page.raws) - len(found)
        if page.raws and page.cursor == (poll.after or b""):
            raise RoutingError(f"{self.url}: the hub's cursor does not move on")
        return page, found


class HubSubscription:
    """A :class:`gateway.routing.base.Subscription` by polls.

    A poll outlives a wait that is cancelled, and its answer goes to the next one.
    """

    def __init__(
        self,
        ask: _Ask,
        interests: frozenset[Interest],
        after: Cursor | None,
        closed: Callable[[HubSubscription], None],
    ) -> None:
        """:param closed: called once, when the subscription is closed."""
        self._ask = ask
        self._interests = interests
        # What is longer is no cursor of any hub's.
        self._after = after if after is None or len(after) <= MAX_CURSOR else None
        self._live = False
        self._done = False
        self._woken = asyncio.Event()
        self._poll: asyncio.Task[tuple[wire.Page, list[Entry]]] | None = None
        self._closed = closed

    @property
    def cursor(self) -> Cursor:
        """See :class:`gateway.routing.base.Subscription`."""
        return self._after or b""

    def update(self, interests: frozenset[Interest]) -> None:
        """See :class:`gateway.routing.base.Subscription`."""
        self._interests = interests
        self._drop()

    async def close(self) -> None:
        """See :class:`gateway.routing.base.Subscription`."""
        if self._done:
            return
        self._done = True
        poll = self._poll
        self._drop()
        self._closed(self)
        if poll is not None:
            await asyncio.wait([poll])

    def _drop(self) -> None:
        """Nobody wants the answer of the poll under way."""
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
        self._woken.set()

    def _start(self) -> asyncio.Task[tuple[wire.Page, list[Entry]]]:
        """The next poll."""
        wait = WAIT if self._live else 0
        poll = asyncio.create_task(self._ask(wire.Poll(self._interests, self._after, wait)))
        poll.add_done_callback(_seen)
        return poll

    def __aiter__(self) -> HubSubscription:
        return self

    async def __anext__(self) -> Batch:
        """The next batch. The cursor moves only where nothing is awaited any more."""
        while not self._done:
            poll = self._poll = self._poll or self._start()
            if not poll.done():
                await self._wait(poll)
            if self._poll is not poll or not poll.done():
                continue  # closed, or of other interests
            self._poll = None
            page, entries = poll.result()
            moved, self._after = page.cursor != self._after, page.cursor
            caught_up = page.live and not self._live
            self._live = self._live or page.live
            if not self._live:
                self._poll = self._start()  # while its reader is busy with this one
            if entries or caught_up:
                return Batch(tuple(entries), self.cursor, self._live)
            if not moved:
                await asyncio.sleep(IDLE)
        raise StopAsyncIteration

    async def _wait(self, poll: asyncio.Task[tuple[wire.Page, list[Entry]]]) -> None:
        """Until the poll is done or dropped. Cancelled, it leaves the poll alone."""
        self._woken.clear()
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait({poll, woken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()


def _token_of(url: EngineUrl) -> str:
    token = url.option("token")
    if not token:
        raise RoutingError(f"{url}: there is no token", hint=f"for example {EXAMPLE}")
    if not _TOKEN.fullmatch(token):
        raise RoutingError(
            f"{url}: the token has other characters than a token may have",
            hint="its file holds the token alone, one line",
        )
    return token


def _pause(said: str) -> float:
    seconds = float(said) if said.isascii() and said.isdigit() and len(said) < 6 else 0.0
    return min(max(seconds, HASTE[0]), HASTE[1])


def _seen(poll: asyncio.Task[tuple[wire.Page, list[Entry]]]) -> None:
    """Of a poll that nobody waits for any more, nobody needs to hear."""
    if not poll.cancelled():
        poll.exception()


def _words(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot be reached ({harmless(error.os_error.strerror or error.os_error)})"
    if isinstance(error, OSError) and error.strerror:
        return harmless(error.strerror)
    return harmless(f"{type(error).__name__} {error}".strip(), limit=200)
