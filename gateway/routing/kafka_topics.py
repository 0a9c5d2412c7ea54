"""The topics of a Kafka cluster that are ours: which there are, made where missing.

One topic per domain, ``PREFIX.<first 8 bytes of the fingerprint, hex>``, and
``PREFIX.rest`` for the domains beyond the limit: who may publish must not be able to make
topics without end, and addresses of the plain scheme have no domain in common.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined] # not exported by its types
    AdminClient,
    ClusterMetadata,
    NewTopic,
    OffsetSpec,
)

from gateway.routing.kafka_settings import REST, Logger, Settings, Trouble
from qis_edge.core.errors import KeyFileError, RoutingError
from qis_edge.keys import replace_file

log = logging.getLogger(__name__)

#: Bytes of a fingerprint that are its domain.
DOMAIN = 8
#: How long a call for metadata waits before it looks whether it waits in vain; seconds.
SLICE = 0.5
#: What is said of a topic that was just made.
_NO_LEADER_YET = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
#: How long a broker may lag behind the others; seconds.
LAG = 1.0


class Topic(NamedTuple):
    """A topic. ``id`` is the cluster's, ``""`` where it tells none: one that was deleted and
    made again has another."""

    name: str
    id: str
    partitions: int


def partition_of(fingerprint: bytes, partitions: int) -> int:
    """Where an address lives: by a hash of it, the same for every client. Not by its leading
    bits, which are its domain's and its first fields'."""
    digest = hashlib.sha256(fingerprint).digest()
    return int.from_bytes(digest[:8]) % partitions


class Topics:
    """What is known of the cluster's topics. Used by several threads.

    What was known is kept in a file, so that a topic which was lost while nobody looked is
    noticed: :attr:`incarnation` is another then.
    """

    def __init__(self, settings: Settings, trouble: Trouble, folder: Path | None) -> None:
        self.known: Mapping[str, Topic] = {}
        self.incarnation = ""
        self._settings = settings
        self._trouble = trouble
        self._ours = re.compile(rf"{re.escape(settings.prefix)}\.([0-9a-f]{{16}}|{REST})")
        self._memory = Memory.of(settings.url, folder)
        self._lock = threading.RLock()
        self._admin: AdminClient | None = None
        self._brokers = 0
        self._manages = True

    @property
    def pattern(self) -> str:
        """A regular expression for their names, as librdkafka takes it."""
        prefix = self._settings.prefix.replace(".", "[.]")
        return f"^{prefix}[.]([0-9a-f]+|{REST})$"

    def open(self) -> None:
        """Connect.

        :raises RoutingError: a refused login, an unknown host, nobody there.
        """
        config = {**self._settings.client, "error_cb": self._trouble.heard}
        try:
            self._admin = AdminClient(config, logger=Logger)
        except KafkaException as error:
            raise self._trouble.of(error) from None
        try:
            self.look()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go. It is the last call, or :meth:`open` comes next."""
        self._admin = None

    # - what there is

    def look(self) -> None:
        """See which topics there are.

        :raises RoutingError: nobody answers.
        """
        with self._lock:
            metadata = self._metadata()
            self._trouble.over()
            self._brokers = len(metadata.brokers)
            # A cluster that names no controller (librdkafka's mock) has no ids, nor makes topics
            # but when one is asked for.
            self._manages = metadata.controller_id in metadata.brokers
            counts = {
                name: len(topic.partitions)
                for name, topic in metadata.topics.items()
                if self._ours.fullmatch(name) and topic.error is None and topic.partitions
            }
            ids = self._ids({*counts, *self._memory.topics}) if self._manages else {}
            gone = [name for name in self._memory.topics if name in ids and ids[name] is None]
            if gone:  # or a broker that lags behind: what is lost costs much, so ask again
                time.sleep(LAG)
                ids |= self._ids(gone)
            there = {
                name: Topic(name, ids.get(name) or "", count) for name, count in counts.items()
            }
            still = {name: topic for name, topic in self.known.items() if ids.get(name) == topic.id}
            self.known = {**still, **there}
            self._memory.note(metadata.cluster_id or "", ids)
            self.incarnation = self._memory.incarnation

    def _metadata(self) -> ClusterMetadata:
        deadline = time.monotonic() + self._settings.timeout
        wait = SLICE
        while True:
            admin = self._admin
            if admin is None:
                raise RoutingError(f"{self._settings.url}: not open")
            try:
                return admin.list_topics(timeout=wait)
            except KafkaException as error:
                admin.poll(0)  # what its connections say
                if self._trouble.down or time.monotonic() >= deadline:
                    raise self._trouble.of(error) from None
                wait = max(min(2 * wait, deadline - time.monotonic()), SLICE)

    def _ids(self, names: Iterable[str]) -> dict[str, str | None]:
        """The id of each topic; ``None`` of one that certainly does not exist."""
        assert self._admin is not None
        found: dict[str, str | None] = {}
        collection = TopicCollection(sorted(names))
        if not collection.topic_names:
            return found
        try:
            waits = self._admin.describe_topics(collection, request_timeout=self._settings.timeout)
            for name, wait in waits.items():
                try:
                    found[name] = str(wait.result().topic_id)
                except KafkaException as error:
                    if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                        found[name] = None
        except KafkaException as error:
            raise self._trouble.of(error) from None
        return found

    def size(self) -> int:
        """About how many records the topics hold.

        :raises RoutingError: nobody answers.
        """
        deadline = time.monotonic() + self._settings.timeout
        while True:
            try:
                return max(self._total(), 0)
            except KafkaException as error:
                if error.args[0].code() not in _NO_LEADER_YET or time.monotonic() >= deadline:
                    raise self._trouble.of(error) from None
            time.sleep(0.05)

    def _total(self) -> int:
        admin = self._admin
        if admin is None:
            raise RoutingError(f"{self._settings.url}: not open")
        places = [
            TopicPartition(topic.name, partition)
            for topic in self.known.values()
            for partition in range(topic.partitions)
        ]
        total = 0
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call] # its types say nothing
        earliest = OffsetSpec.earliest()  # type: ignore[no-untyped-call] # likewise
        for sign, spec in ((1, latest), (-1, earliest)) if places else ():
            waits = admin.list_offsets(
                dict.fromkeys(places, spec), request_timeout=self._settings.timeout
            )
            total += sign * sum(wait.result().offset for wait in waits.values())
        return total

    # - where things go

    def places(self, fingerprints: Iterable[bytes]) -> dict[bytes, tuple[Topic, int]]:
        """The topic and partition of each address; topics that are missing are made.

        :raises RoutingError: one cannot be made.
        """
        wanted, known = set(fingerprints), self.known
        names = self._names(wanted, known)
        if any(name not in known for name in names.values()):
            with self._lock:
                self.look()
                names = self._names(wanted, self.known)
                self._make({name for name in names.values() if name not in self.known})
                known = self.known
        return {
            fingerprint: (known[name], partition_of(fingerprint, known[name].partitions))
            for fingerprint, name in names.items()
        }

    def _names(self, fingerprints: Iterable[bytes], known: Mapping[str, Topic]) -> dict[bytes, str]:
        """The topic of each address: its domain's while the limit allows for one."""
        rest = f"{self._settings.prefix}.{REST}"
        taken = {*known} - {rest}
        names = {}
        for fingerprint in fingerprints:
            name = f"{self._settings.prefix}.{fingerprint[:DOMAIN].hex()}"
            if name not in taken and len(taken) >= self._settings.domains:
                name = rest
            else:
                taken.add(name)
            names[fingerprint] = name
        return names

    def _make(self, names: set[str]) -> None:
        """Make topics, and wait until they can be written to."""
        if not names:
            return
        if self._manages:
            self._create(names)
        deadline = time.monotonic() + self._settings.timeout
        while True:
            if not self._manages:
                for name in names:
                    self._ask(name)
            self.look()
            missing = sorted(names - {*self.known})
            if not missing:
                return
            if time.monotonic() >= deadline:
                raise RoutingError(f"{self._settings.url}: topic {missing[0]} does not come about")
            time.sleep(0.05)

    def _create(self, names: set[str]) -> None:
        assert self._admin is not None
        settings = self._settings
        copies = settings.replication or min(self._brokers, 3)
        config = {
            "retention.ms": str(settings.retention),
            "min.insync.replicas": str(settings.insync or max(copies - 1, 1)),
            **settings.topic,
        }
        topics = [NewTopic(name, settings.partitions, copies, config=config) for name in names]
        try:
            waits = self._admin.create_topics(
                topics, request_timeout=settings.timeout, operation_timeout=settings.timeout
            )
            for name, wait in waits.items():
                try:
                    wait.result()
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise
                else:
                    log.info(
                        "made the Kafka topic %s: %d partitions, %d copies",
                        *(name, settings.partitions, copies),
                    )
        except KafkaException as error:
            raise self._trouble.of(error) from None

    def _ask(self, name: str) -> None:
        """Ask for a topic by name, which makes it in a cluster that makes topics so."""
        assert self._admin is not None
        try:
            self._admin.list_topics(name, timeout=self._settings.timeout)
        except KafkaException as error:
            raise self._trouble.of(error) from None


class Memory:
    """What was known of the topics, from run to run, and what became of them.

    :param path: of its file; ``None``: it forgets with the process.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        #: Topics that were there, with their ids.
        self.topics: dict[str, str] = {}
        self._cluster = ""
        self._lost = ""
        if path is not None:
            self._load(path)

    @classmethod
    def of(cls, url: str, folder: Path | None) -> Memory:
        """The memory of a URL."""
        name = f"kafka-{hashlib.sha256(url.encode()).hexdigest()[:12]}.json"
        return cls(None if folder is None else folder / name)

    @property
    def incarnation(self) -> str:
        """The cluster's id and, once it lost a topic, a name for what it has lost."""
        return "/".join(part for part in (self._cluster, self._lost) if part)

    def note(self, cluster: str, ids: Mapping[str, str | None]) -> None:
        """What there is now.

        :param ids: of each topic that was or is there, ``None``: it is there no more. What
            is not named may be there.
        """
        before = (self._cluster, self._lost, dict(self.topics))
        if cluster != self._cluster:
            self._cluster, self._lost, self.topics = cluster, "", {}
        lost = sorted(
            f"{name} {old}" for name, old in self.topics.items() if name in ids and ids[name] != old
        )
        if lost:
            log.warning("the Kafka cluster has lost %s", ", ".join(lost))
            text = "\n".join([self._lost, *lost])
            self._lost = hashlib.sha256(text.encode()).hexdigest()[:16]
        for name, id_ in ids.items():
            if id_ is None:
                self.topics.pop(name, None)
            else:
                self.topics[name] = id_
        if before != (self._cluster, self._lost, self.topics):
            self._save()

    def _load(self, path: Path) -> None:
        """A file that is not whole is as good as none: what is read anew is known already."""
        try:
            found = json.loads(path.read_text())
            topics = {str(name): str(id_) for name, id_ in found["topics"].items()}
            self._cluster, self._lost = str(found["cluster"]), str(found["lost"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s cannot be used: %s", path, error)
            return
        self.topics = topics

    def _save(self) -> None:
        if self._path is None:
            return
        text = json.dumps(
            {"cluster": self._cluster, "lost": self._lost, "topics": self.topics}, indent=1
        )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, text.encode())
        except (OSError, KeyFileError) as error:
            log.warning("%s cannot be written: %s", self._path, error)
