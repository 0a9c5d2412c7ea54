"""``kafka://HOST``: a Kafka cluster, joined with the view.

A packet is a record: its address is the key, its bytes are the value. Topics are named by
domain, the partition is computed here (:mod:`gateway.routing.kafka_topics`), so of one
address the order is kept. A position is the offset of every partition.

confluent-kafka blocks: one thread publishes, another reads. docs/routing/kafka.md says
what durable means.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from gateway.routing.base import Context, Entry
from gateway.routing.feed import CHUNK_PACKETS, MAX_POSITION, WAIT, Chunk, Position
from gateway.routing.kafka_settings import REST, Logger, Settings, Trouble
from gateway.routing.kafka_topics import DOMAIN, Topic, Topics
from gateway.routing.url import EngineUrl
from gateway.routing.view import ViewEngine
from qis_edge.core import cbor
from qis_edge.core.errors import Reason, Refused, RoutingError
from qis_edge.worker import Worker

P = ParamSpec("P")
T = TypeVar("T")

#: The longest that a thread waits before it looks whether it is to stop; seconds.
SLICE = 0.2
#: Bytes of a topic's id that a position has.
MARK = 4


class KafkaEngine(ViewEngine):
    """The engine; see :class:`gateway.routing.base.EngineFactory`."""

    def __init__(self, url: EngineUrl, context: Context) -> None:
        """:raises RoutingError: the URL is wrong."""
        super().__init__(KafkaFeed(url, context), context)


class KafkaFeed:
    """A :class:`gateway.routing.feed.Feed`."""

    def __init__(self, url: EngineUrl, context: Context | None = None) -> None:
        """:raises RoutingError: the URL is wrong."""
        context = context or Context()
        self.url = str(url)
        self._settings = Settings.of(url, context)
        self._folder = context.folder
        self._trouble = Trouble(self.url)
        self._incarnation = ""
        self._opening = asyncio.Lock()
        self._open: _Open | None = None

    @property
    def incarnation(self) -> str:
        """See :class:`gateway.routing.feed.Feed`. The cluster's id, and what topics it lost."""
        if self._open is not None:
            self._incarnation = self._open.topics.incarnation
        return self._incarnation

    async def open(self) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        async with self._opening:
            if self._open is not None:
                return
            topics = Topics(self._settings, self._trouble, self._folder)
            fresh = _Open(self._settings, self._trouble, topics)
            try:
                await fresh.writes(topics.open)
            except BaseException:
                fresh.abandon()
                raise
            self._open = fresh

    async def close(self) -> None:
        """See :class:`gateway.routing.feed.Feed`."""
        async with self._opening:
            if self._open is not None:
                self._incarnation = self.incarnation
                opened, self._open = self._open, None
                await opened.close()

    def _opened(self) -> _Open:
        if self._open is None:
            raise RoutingError(f"{self.url}: not open")
        return self._open

    async def publish(self, entries: Sequence[Entry]) -> None:
        """See :class:`gateway.routing.feed.Feed`. Acknowledged by all in-sync copies."""
        opened = self._opened()
        if entries:
            async with opened.publishing:
                await opened.writes(opened.writer.publish, list(entries))

    async def fetch(self, after: Position) -> Chunk:
        """See :class:`gateway.routing.feed.Feed`."""
        return await self._opened().fetch(after)

    async def size(self) -> int | None:
        """See :class:`gateway.routing.feed.Feed`."""
        opened = self._opened()
        return await asyncio.to_thread(opened.topics.size)


class _Open:
    """What an open feed has: its threads and clients."""

    def __init__(self, settings: Settings, trouble: Trouble, topics: Topics) -> None:
        self.topics = topics
        self._stop = threading.Event()
        self._url = settings.url
        self.publishing = asyncio.Lock()
        self.writer = _Writer(settings, trouble, topics, self._stop)
        self._reader = _Reader(settings, trouble, topics, self._stop)
        self._writing = Worker("kafka-publish")
        self._reading = Worker("kafka-fetch")
        self._fetching: tuple[Position, asyncio.Task[Chunk]] | None = None

    async def writes(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run on the publishing thread."""
        self._check()
        return await self._writing(function, *args, **kwargs)

    async def fetch(self, after: Position) -> Chunk:
        """The next chunk. A caller that is cancelled leaves its chunk to the next one.

        What was read while something is being published is given once that is done: the
        view then has it already, in the order in which it was deposited.
        """
        self._check()
        if self._fetching is None or self._fetching[0] != after:
            fresh = asyncio.create_task(self._reading(self._reader.fetch, after))
            fresh.add_done_callback(lambda job: job.cancelled() or job.exception())
            self._fetching = after, fresh
        job = self._fetching[1]
        try:
            chunk = await asyncio.shield(job)
        except BaseException:
            if job.done():
                self._fetching = None
            raise
        async with self.publishing:
            self._fetching = None
        return chunk

    def _check(self) -> None:
        if self._stop.is_set():
            raise RoutingError(f"{self._url}: closed")

    async def close(self) -> None:
        """End the clients, then the threads."""
        self._stop.set()
        with contextlib.suppress(RoutingError):
            await self._reading(self._reader.close)
        await self._writing(self.writer.close)
        await self._writing(self.topics.close)
        self.abandon()

    def abandon(self) -> None:
        """End the threads, as soon as they have nothing more to do."""
        self._stop.set()
        for worker in (self._writing, self._reading):
            worker.close(patience=0)


# --- publishing ----------------------------------------------------------------------------


class _Writer:
    """The producer. Used on one thread."""

    def __init__(
        self, settings: Settings, trouble: Trouble, topics: Topics, stop: threading.Event
    ) -> None:
        self._settings = settings
        self._trouble = trouble
        self._topics = topics
        self._stop = stop
        self._producer: Producer | None = None

    def publish(self, entries: Sequence[Entry]) -> None:
        """Hand over, and wait until each was acknowledged.

        :raises RoutingError: one was not.
        """
        if self._stop.is_set():
            raise RoutingError(f"{self._settings.url}: closed")
        places = self._topics.places(entry.fingerprint for entry in entries)
        failed: list[KafkaError] = []

        def delivered(error: KafkaError | None, _message: Message) -> None:
            """Called of those alone that were not taken."""
            if error is not None:
                failed.append(error)

        try:
            producer = self._ready()
            for entry in entries:
                topic, partition = places[entry.fingerprint]
                self._produce(producer, topic.name, entry, partition, delivered)
            left = self._flush(producer)
        except KafkaException as error:
            self._give_up()
            raise self._trouble.of(error) from None
        except RoutingError:
            self._give_up()
            raise
        if failed or left:
            self._fail(failed, left)
        self._trouble.over()

    def _produce(
        self,
        producer: Producer,
        topic: str,
        entry: Entry,
        partition: int,
        delivered: Callable[[KafkaError | None, Message], None],
    ) -> None:
        while True:
            try:
                producer.produce(
                    topic, entry.raw, entry.fingerprint, partition, on_delivery=delivered
                )
            except BufferError:  # the queue is full; each in it is delivered or fails in time
                producer.poll(SLICE)
                if self._stop.is_set():
                    raise RoutingError(f"{self._settings.url}: closed") from None
            else:
                return

    def _flush(self, producer: Producer) -> int:
        """Wait for the acknowledgements; how many did not come in time."""
        deadline = time.monotonic() + self._settings.timeout + 1
        left = len(producer)
        while left and time.monotonic() < deadline and not self._stop.is_set():
            left = producer.flush(SLICE)
        return left

    def _fail(self, failed: Sequence[KafkaError], left: int) -> None:
        """:raises RoutingError: always."""
        worst = next((error for error in failed if error.code() not in _PASSING), None)
        if left or worst is not None or not self._trouble.down:
            self._give_up()
        if not self._trouble.down and not self._stop.is_set():
            with contextlib.suppress(RoutingError):
                self._topics.look()  # it may be a topic that is there no more
        if worst is not None:
            raise self._trouble.of_error(worst)
        if left and self._stop.is_set():
            raise RoutingError(f"{self._settings.url}: closed")
        raise self._trouble.error(f"not acknowledged within {self._settings.timeout:g} s")

    def _ready(self) -> Producer:
        if self._producer is None:
            config = {**self._settings.producer(), "error_cb": self._trouble.heard}
            self._producer = Producer(config, logger=Logger)
        return self._producer

    def _give_up(self) -> None:
        """Begin the next time with a new producer."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            producer.flush(SLICE)

    def close(self) -> None:
        """Let go of what is unfinished: it was never said to be published."""
        self._give_up()


#: Failures that pass by themselves: the producer goes on.
_PASSING = {KafkaError._MSG_TIMED_OUT, KafkaError._TRANSPORT, KafkaError._TIMED_OUT}


# --- reading -------------------------------------------------------------------------------


class _Reader:
    """The consumer. Used on one thread.

    Without a group it has all partitions of all topics. With one, those that the group's
    coordinator gives it; where it goes on in each is its own affair all the same, not the
    group's.
    """

    def __init__(
        self, settings: Settings, trouble: Trouble, topics: Topics, stop: threading.Event
    ) -> None:
        self._settings = settings
        self._trouble = trouble
        self._topics = topics
        self._stop = stop
        self._consumer: Consumer | None = None
        self._offsets: Offsets = {}
        self._assigned: set[tuple[str, int]] = set()
        self._joined = False
        self._ended: set[tuple[str, int]] = set()
        self._failure: KafkaError | None = None
        self._at: Position | None = None
        self._said_end = False
        self._looked = 0.0
        self._known: Mapping[str, Topic] = {}

    def close(self) -> None:
        """Let go; leave the group."""
        consumer, self._consumer = self._consumer, None
        self._at = None
        if consumer is not None:
            consumer.close()

    def fetch(self, after: Position) -> Chunk:
        """See :class:`gateway.routing.feed.Feed`."""
        if self._stop.is_set():
            raise RoutingError(f"{self._settings.url}: closed")
        try:
            if self._consumer is None or after != self._at:
                self._begin(after)
            elif time.monotonic() - self._looked >= self._settings.refresh:
                self._look()
            elif self._topics.known is not self._known:
                self._follow()  # the publishing thread has looked
            raws = self._read()
        except KafkaException as error:
            self.close()
            raise self._trouble.of(error) from None
        self._at = encode(self._offsets, self._settings.prefix)
        self._said_end = not raws and self._end
        return Chunk(tuple(raws), self._at, self._end)

    def _begin(self, after: Position) -> None:
        """Go to a position."""
        if self._settings.group:
            self.close()  # a member's place cannot be moved under the coordinator
        self._offsets = decode(after, self._settings.prefix)
        self._at, self._said_end = after, False
        if self._consumer is None:
            config = {**self._settings.consumer(), "error_cb": self._trouble.heard}
            self._consumer = Consumer(config, logger=Logger)
            self._assigned, self._joined = set(), False
            self._ended.clear()
            if self._settings.group:
                self._consumer.subscribe(
                    [self._topics.pattern],
                    on_assign=self._given,
                    on_revoke=self._taken,
                    on_lost=self._taken,
                )
        self._assigned.clear()
        self._look()

    def _look(self) -> None:
        """See which topics there are, and follow them."""
        self._topics.look()
        self._looked = time.monotonic()
        self._follow()

    def _follow(self) -> None:
        """Follow the topics that are known, those that are new from their beginning."""
        self._known = known = self._topics.known
        anew = False
        for topic in known.values():
            mark = mark_of(topic.id)
            held = self._offsets.get(topic.name)
            if held is not None and not held.mark:
                held.mark = mark
            if held is None or held.mark != mark:
                anew = anew or held is not None
                self._offsets[topic.name] = held = Place(mark, [])
            held.offsets.extend([0] * (topic.partitions - len(held.offsets)))
        for name in self._offsets.keys() - known.keys() - {name for name, _ in self._assigned}:
            del self._offsets[name]
        if self._settings.group:
            if anew and self._assigned:
                self.close()
                raise RoutingError(f"{self._settings.url}: a topic was made anew")
            return
        wanted = {
            (topic.name, partition)
            for topic in known.values()
            for partition in range(topic.partitions)
        }
        if anew or wanted != self._assigned:
            self._assign(wanted)
            for name in self._offsets.keys() - known.keys():
                del self._offsets[name]

    def _assign(self, wanted: set[tuple[str, int]]) -> None:
        assert self._consumer is not None
        self._consumer.assign(
            [
                TopicPartition(name, partition, self._offset(name, partition))
                for name, partition in sorted(wanted)
            ]
        )
        self._assigned = wanted
        self._ended.clear()

    def _offset(self, name: str, partition: int) -> int:
        held = self._offsets.get(name)
        return held.offsets[partition] if held and partition < len(held.offsets) else 0

    def _given(self, _consumer: Consumer, places: list[TopicPartition]) -> None:
        """The group's coordinator gave these."""
        for place in places:
            held = self._offsets.get(place.topic)
            if held is None:
                # The coordinator knew of it first.
                held = self._offsets[place.topic] = Place(b"", [])
                self._looked = 0.0
            held.offsets.extend([0] * (place.partition + 1 - len(held.offsets)))
        self._assign({(place.topic, place.partition) for place in places})
        self._joined = True

    def _taken(self, _consumer: Consumer, _places: list[TopicPartition]) -> None:
        """It took all of them, and will give others."""
        self._assigned, self._joined = set(), False
        self._ended.clear()

    @property
    def _end(self) -> bool:
        return self._assigned <= self._ended and (self._joined or not self._settings.group)

    def _read(self) -> list[bytes]:
        """What comes within about :data:`WAIT`."""
        assert self._consumer is not None
        raws: list[bytes] = []
        deadline = time.monotonic() + WAIT
        while not raws and not self._stop.is_set():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            message = self._consumer.poll(min(SLICE, left))
            if message is not None:
                messages = [message]
                if message.error() is None:
                    messages += self._consumer.consume(CHUNK_PACKETS - 1, 0)
                self._take(messages, raws)
            if self._end and not self._said_end:
                break  # say so at once
        if not raws and self._failure is not None:
            failure, self._failure = self._failure, None
            raise self._trouble.of_error(failure)
        if not raws and self._trouble.down:
            self._look()
        return raws

    def _take(self, messages: Sequence[Message], raws: list[bytes]) -> None:
        for message in messages:
            name, partition, offset = message.topic(), message.partition(), message.offset()
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                if not error.retriable():
                    self._failure = error
                self._looked = 0.0
                continue
            if name is None or partition is None or offset is None:
                continue
            held = self._offsets.get(name)
            if held is None or partition >= len(held.offsets):
                continue  # of a topic that is there no more
            if error is None:
                raws.append(message.value() or b"")
                held.offsets[partition] = offset + 1
                self._ended.discard((name, partition))
            else:
                held.offsets[partition] = offset
                self._ended.add((name, partition))


# --- positions -----------------------------------------------------------------------------


class Place:
    """Where a reader stands in a topic.

    :ivar mark: of the topic's id, 4 bytes: offsets of a topic that was made anew mean nothing.
        Empty: not known yet.
    :ivar offsets: of the next record of each partition; 0: the beginning.
    """

    __slots__ = ("mark", "offsets")

    def __init__(self, mark: bytes, offsets: list[int]) -> None:
        self.mark = mark
        self.offsets = offsets


#: By the topic's name.
Offsets = dict[str, Place]


def mark_of(topic_id: str) -> bytes:
    """What a position has of a topic's id."""
    return hashlib.sha256(topic_id.encode()).digest()[:MARK]


def encode(offsets: Offsets, prefix: str) -> Position:
    """A position: CBOR, a map from domains to marks and offsets.

    What would not fit (of topics that others made) is left out: it is read again by a
    later process, which hurts nobody.
    """
    places = {
        _suffix(name, prefix): [held.mark, *held.offsets]
        for name, held in sorted(offsets.items())
        if held.mark and any(held.offsets)
    }
    if not places:
        return b""
    while len(position := cbor.dumps(places)) > MAX_POSITION:
        places.popitem()
    return position


def decode(position: Position, prefix: str) -> Offsets:
    """The offsets of a position; none of what is no position."""
    try:
        places = cbor.loads(position, "position")
        if not isinstance(places, dict):
            return {}
        return {_name(suffix, prefix): _place(held) for suffix, held in places.items()}
    except Refused:
        return {}


def _suffix(name: str, prefix: str) -> bytes:
    suffix = name.removeprefix(f"{prefix}.")
    return b"" if suffix == REST else bytes.fromhex(suffix)


def _name(suffix: object, prefix: str) -> str:
    if not isinstance(suffix, bytes) or len(suffix) not in (0, DOMAIN):
        raise Refused(Reason.TYPE, "position")
    return f"{prefix}.{suffix.hex() or REST}"


def _place(held: object) -> Place:
    match held:
        case [bytes() as mark, *rest] if len(mark) == MARK:
            offsets = [offset for offset in rest if type(offset) is int and 0 <= offset < 2**62]
            if len(offsets) == len(rest):
                return Place(mark, offsets)
    raise Refused(Reason.TYPE, "position")
