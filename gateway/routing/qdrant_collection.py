"""A collection on a Qdrant server or cluster, and what is asked of it.

Each call is tried at one host after the other while a host does not answer. All that is
written may be written again: a repeat is the same point.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import warnings
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from gateway.routing import qdrant_points as points
from gateway.routing.base import Entry
from gateway.routing.qdrant_points import Between, Condition, Is
from gateway.routing.url import EngineUrl
from qis_edge.core.errors import RoutingError

log = logging.getLogger(__name__)

_T = TypeVar("_T")

PORT = 6333
COLLECTION = "qis"
OPTIONS = ("api_key", "ca", "replicas", "shards", "timeout", "tls")
#: The point that names the collection's incarnation.
FACTS = 0
#: Points of one request that writes.
PART = 500
#: Candidates among which the newest of equally near are looked for.
TIES = 10_000

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Found(NamedTuple):
    """A point, by whoever wrote it.

    :param id: 16 bytes, or ``b""`` of a point that is none of ours.
    """

    id: bytes
    payload: dict[str, Any]

    @property
    def stamp(self) -> int:
        """When it was deposited, as far as it says so."""
        value = self.payload.get("stamp")
        return value if isinstance(value, int) else 0


class Collection:
    """See the module. Errors are ``RoutingError``."""

    def __init__(self, url: EngineUrl) -> None:
        """:raises RoutingError: the URL or an option is wrong."""
        url.only(OPTIONS)
        if not url.hosts:
            raise RoutingError(
                f"{url}: must name a host",
                hint="write qdrant://host:6333/collection; for a folder, qdrant+edge:PATH",
            )
        if url.user or url.password:
            raise RoutingError(f"{url}: Qdrant knows no user names", hint="give ?api_key_file=PATH")
        self.url = str(url)
        self.name = url.path.strip("/") or COLLECTION
        if "/" in self.name:
            raise RoutingError(f"{url}: a collection's name has no slash")
        self._timeout = _number(url, "timeout", 10)
        self._shards = _number(url, "shards", 0) or None
        self._replicas = _number(url, "replicas", 1)
        self._key = url.option("api_key")
        self._ca = url.option("ca")
        tls = url.option("tls", "yes" if self._ca else "no")
        if tls not in ("yes", "no"):
            raise RoutingError(f"{url}: tls must be yes or no")
        self._tls = tls == "yes"
        self._hosts = url.hosts
        self._clients: list[AsyncQdrantClient] = []
        self._at = 0
        self._made = False
        self._making = asyncio.Lock()
        #: Of the collection as it is; hex.
        self.token = ""

    # --- connecting --------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, make what is missing."""
        if not self._clients:
            self._clients = [self._client(host, port) for host, port in self._hosts]
        await self._make()

    async def close(self) -> None:
        """Let go."""
        clients, self._clients = self._clients, []
        self._made = False
        for client in clients:
            await client.close()

    @property
    def opened(self) -> bool:
        """Whether it may be asked."""
        return bool(self._clients)

    def _client(self, host: str, port: int | None) -> AsyncQdrantClient:
        if self._key and not self._tls and host not in _LOOPBACK:
            log.warning("%s: the API key travels in the clear; set tls=yes", self.url)
        # Without TLS nothing is verified, and certificates take long to load.
        more: dict[str, Any] = {} if self._tls else {"verify": False}
        if self._ca:
            try:
                more["verify"] = ssl.create_default_context(cafile=self._ca)
            except OSError as error:
                raise RoutingError(f"{self.url}: ca: {error.strerror}") from error
        name = f"[{host}]" if ":" in host else host
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # said above
            return AsyncQdrantClient(
                url=f"{'https' if self._tls else 'http'}://{name}:{port or PORT}",
                api_key=self._key,
                timeout=self._timeout,
                check_compatibility=False,  # it would ask from a thread, and print
                **more,
            )

    async def _call(self, ask: Callable[[AsyncQdrantClient], Awaitable[_T]]) -> _T:
        """Ask the host that answered last, then the others."""
        if not self._clients:
            raise RoutingError(f"{self.url}: not open")
        trouble: Exception | None = None
        for _ in self._clients:
            try:
                return await ask(self._clients[self._at])
            except UnexpectedResponse as error:
                raise self._refused(error) from error
            except (ApiException, QdrantException) as error:
                trouble = error
                self._at = (self._at + 1) % len(self._clients)
        raise RoutingError(
            f"{self.url}: does not answer ({_words(trouble)})",
            hint="check that it runs and listens there",
        ) from trouble

    def _refused(self, error: UnexpectedResponse) -> RoutingError:
        if error.status_code in (401, 403):
            return RoutingError(
                f"{self.url}: the login is refused",
                hint="give a key that may write with ?api_key_file=PATH",
            )
        if error.status_code == 404:
            self._made = False
        return RoutingError(f"{self.url}: answers {error.status_code}: {_said(error)}")

    async def _make(self) -> None:
        """The collection is there, and its token known."""
        async with self._making:
            if not self._made:
                await self._really_make()
                self._made = True

    async def _really_make(self) -> None:
        if not await self._call(lambda client: client.collection_exists(self.name)):
            await self._create()
        indexed = await self._check()
        wanted = dict.fromkeys(points.KEYWORDS, models.PayloadSchemaType.KEYWORD)
        wanted |= dict.fromkeys((*points.INTEGERS, "stamp"), models.PayloadSchemaType.INTEGER)
        for key in wanted.keys() - indexed:
            await self._index(key, wanted[key])
        self.token = await self._find_token() or await self._draw_token()

    async def _create(self) -> None:
        try:
            await self._call(
                lambda client: client.create_collection(
                    self.name,
                    vectors_config={
                        points.VECTOR: models.VectorParams(
                            size=points.SIZE, distance=models.Distance.COSINE
                        )
                    },
                    # No graph: vectors are so short that to look at each is quick, and exact.
                    hnsw_config=models.HnswConfigDiff(m=0),
                    on_disk_payload=True,
                    shard_number=self._shards,
                    replication_factor=self._replicas,
                    write_consistency_factor=self._replicas // 2 + 1,
                )
            )
        except RoutingError:
            # Another gateway was quicker?
            if not await self._call(lambda client: client.collection_exists(self.name)):
                raise

    async def _check(self) -> set[str]:
        """It is one of ours; what is indexed."""
        info = await self._call(lambda client: client.get_collection(self.name))
        vectors = info.config.params.vectors
        params = vectors.get(points.VECTOR) if isinstance(vectors, dict) else None
        if params is None or params.size != points.SIZE:
            raise RoutingError(
                f"{self.url}: the collection {self.name} is there and none of ours",
                hint="name another one: qdrant://host:6333/another",
            )
        return set(info.payload_schema)

    async def _index(self, key: str, kind: models.PayloadSchemaType) -> None:
        await self._call(
            lambda client: client.create_payload_index(self.name, key, field_schema=kind)
        )

    async def _find_token(self) -> str:
        found = await self._call(lambda client: client.retrieve(self.name, [FACTS]))
        token = (found[0].payload or {}).get("token") if found else None
        return token if isinstance(token, str) else ""

    async def _draw_token(self) -> str:
        """A new one; of two gateways that draw at once, both take the later's."""
        facts = {"token": os.urandom(8).hex()}
        await self._upsert([models.PointStruct(id=FACTS, vector={}, payload=facts)])
        return await self._find_token()

    # --- writing -----------------------------------------------------------------------

    async def put(self, entries: Sequence[Entry], stamp: int) -> None:
        """Keep these, numbered from ``stamp`` on; written when it returns."""
        await self._make()
        for start in range(0, len(entries), PART):
            await self._upsert(
                [
                    models.PointStruct(
                        id=str(UUID(bytes=entry.id[: points.ID])),
                        vector=dict(points.vectors(entry)),
                        payload={**points.payload(entry, number), "stamp": number},
                    )
                    for number, entry in enumerate(entries[start : start + PART], stamp + start)
                ]
            )

    async def _upsert(self, made: Sequence[models.PointStruct]) -> None:
        await self._call(lambda client: client.upsert(self.name, list(made), wait=True))

    async def expire(self, now: int) -> int:
        """Delete some of what expired; how many."""
        await self._make()
        chosen = _filter([Between("expires", 0, min(now, points.GREATEST))])
        found, _ = await self._call(
            lambda client: client.scroll(
                self.name, scroll_filter=chosen, limit=2 * PART, with_payload=False
            )
        )
        if found:
            gone = models.PointIdsList(points=[record.id for record in found])
            await self._call(lambda client: client.delete(self.name, gone, wait=True))
        return len(found)

    # --- reading -----------------------------------------------------------------------

    async def newest(
        self, conditions: Sequence[Condition], limit: int, but: Sequence[Condition] = ()
    ) -> list[Found]:
        """The newest first."""
        return await self._scroll(_filter(conditions, but), "order", limit, descending=True)

    async def nearest(
        self, conditions: Sequence[Condition], limit: int, vector: Sequence[float]
    ) -> list[Found]:
        """The nearest, in no order, and if there are fewer the newest of the rest. Of those
        that are as near as the last of them the newest: Qdrant itself takes any of them."""
        await self._make()
        like = Is("length", len(vector))
        near: dict[bytes, Found] = {}
        if len(vector) <= points.SIZE:
            near = await self._near(_filter([*conditions, like]), limit, vector)
        if len(near) >= limit:
            return list(near.values())
        return [*near.values(), *await self.newest(conditions, limit - len(near), [like])]

    async def _near(
        self, chosen: models.Filter, limit: int, vector: Sequence[float]
    ) -> dict[bytes, Found]:
        target, exact = points.padded(vector), models.SearchParams(exact=True)
        best = await self._call(
            lambda client: client.query_points(
                self.name,
                query=target,
                using=points.VECTOR,
                query_filter=chosen,
                search_params=exact,
                limit=limit + 1,
            )
        )
        found = best.points
        if len(found) > limit and found[limit - 1].score - found[limit].score < points.NEAR:
            among = models.Prefetch(
                query=target,
                using=points.VECTOR,
                filter=chosen,
                params=exact,
                limit=max(TIES, limit),
                score_threshold=found[limit - 1].score - points.NEAR,
            )
            newest = models.OrderBy(key="order", direction=models.Direction.DESC)
            ties = await self._call(
                lambda client: client.query_points(
                    self.name,
                    prefetch=among,
                    query=models.OrderByQuery(order_by=newest),
                    limit=limit,
                )
            )
            found = found + ties.points
        return {one.id: one for one in map(_found, found)}

    async def stamped(self, least: int, limit: int, *, whole: bool) -> list[Found]:
        """In the order of their stamps, from ``least`` on.

        :param whole: with the packets.
        """
        return await self._scroll(
            _filter([Between("stamp", least)]), "stamp", limit, ["stamp", *["raw"] * whole]
        )

    async def latest(self, most: int) -> int:
        """The greatest stamp up to ``most``; 0 where there is none."""
        chosen = _filter([Between("stamp", 0, most)])
        found = await self._scroll(chosen, "stamp", 1, ["stamp"], descending=True)
        return found[0].stamp if found else 0

    async def packets(self, ids: Sequence[bytes]) -> list[Found]:
        """These, as far as they are there."""
        await self._make()
        found = await self._call(
            lambda client: client.retrieve(
                self.name, [str(UUID(bytes=one)) for one in ids], with_payload=["raw", "stamp"]
            )
        )
        return [_found(record) for record in found]

    async def count(self) -> int:
        """About how many packets it holds."""
        await self._make()
        counted = await self._call(lambda client: client.count(self.name, exact=False))
        return max(counted.count - 1, 0)

    async def _scroll(
        self,
        chosen: models.Filter,
        by: str,
        limit: int,
        payload: list[str] | bool = True,
        *,
        descending: bool = False,
    ) -> list[Found]:
        await self._make()
        direction = models.Direction.DESC if descending else models.Direction.ASC
        order = models.OrderBy(key=by, direction=direction)
        found, _ = await self._call(
            lambda client: client.scroll(
                self.name,
                scroll_filter=chosen,
                limit=limit,
                order_by=order,
                with_payload=payload,
                with_vectors=False,
            )
        )
        return [_found(record) for record in found]


def _found(record: models.Record | models.ScoredPoint) -> Found:
    try:
        place = UUID(str(record.id)).bytes
    except ValueError:  # a number: none of ours
        place = b""
    return Found(place, record.payload or {})


def _condition(condition: Condition) -> models.FieldCondition:
    if isinstance(condition, Is):
        return models.FieldCondition(
            key=condition.key, match=models.MatchValue(value=condition.value)
        )
    return models.FieldCondition(
        key=condition.key, range=models.Range(gte=condition.least, lte=condition.most)
    )


def _filter(conditions: Sequence[Condition], but: Sequence[Condition] = ()) -> models.Filter:
    return models.Filter(
        must=[_condition(one) for one in conditions] or None,
        must_not=[_condition(one) for one in but] or None,
    )


def _number(url: EngineUrl, name: str, default: int) -> int:
    text = url.option(name, str(default)) or ""
    if not text.isdecimal() or not (default == 0 or int(text)) or int(text) > 3600:
        raise RoutingError(f"{url}: {name} must be a number, 1 to 3600")
    return int(text)


def _words(error: Exception | None) -> str:
    """What went wrong, in few words."""
    source = getattr(error, "source", error)
    return (str(source) or type(source).__name__).splitlines()[0]


def _said(error: UnexpectedResponse) -> str:
    try:
        return str(error.structured()["status"]["error"])
    except (ValueError, KeyError, TypeError):
        return error.reason_phrase
