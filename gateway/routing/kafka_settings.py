"""What a ``kafka:`` URL says, and what librdkafka says of its connections."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from gateway.routing.access import TLS_OPTIONS, hosts_of, number_of, password_of, tls_of
from gateway.routing.base import Context
from gateway.routing.feed import MAX_POSITION
from gateway.routing.url import EngineUrl
from qis_edge.core.errors import RoutingError

log = logging.getLogger(__name__)

PORT = 9092
EXAMPLE = "kafka://broker1:9092,broker2:9092"

#: The first is the usual one: twice as fast as zstd, and packets shrink to 54 % instead of 48 %.
COMPRESSIONS = ("lz4", "zstd", "gzip", "snappy", "none")
#: Options that are handed on: ``rdkafka.<name>`` to librdkafka, ``topic.<name>`` to the topics
#: that are made.
CLIENT, TOPIC = "rdkafka.", "topic."
OPTIONS = {
    *TLS_OPTIONS,
    *("cert_key_password", "password", "sasl_mechanism"),
    *("compression", "domains", "group", "insync", "partitions", "prefix", "refresh"),
    *("replication", "retention", "timeout"),
}
#: What the guarantees rest on, and what has an option of its own.
FIXED = {
    "allow.auto.create.topics",
    *("acks", "request.required.acks", "auto.offset.reset", "enable.auto.commit"),
    *("enable.auto.offset.store", "enable.idempotence", "enable.partition.eof", "group.id"),
    *("bootstrap.servers", "metadata.broker.list", "compression.type", "compression.codec"),
    *("delivery.timeout.ms", "message.timeout.ms", "partitioner", "transactional.id"),
    *("delivery.report.only.error", "on_delivery"),
    *("group.remote.assignor", "group.protocol", "partition.assignment.strategy"),
}

#: Topics are named by what follows their prefix: a domain, or those beyond the limit.
REST = "rest"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")

#: Bytes of a position: of its frame and each topic, and of each partition (offsets < 2**32).
_TOPIC_BYTES, _OFFSET_BYTES = 18, 5


@dataclass(frozen=True, slots=True)
class Settings:
    """What a URL says. ``repr`` shows no secret.

    :param client: librdkafka's settings for every client.
    :param topic: settings of the topics that are made.
    :param replication: copies of what is published; ``None``: as many as there are
        brokers, at most 3.
    :param insync: copies that must be written before a publish returns; ``None``: one less
        than there are copies, at least 1.
    :param retention: milliseconds; -1: for ever.
    :param domains: topics that are made at most, those beyond share one.
    :param group: the consumer group that shares the partitions out; empty: none, all of them.
    :param timeout: seconds.
    :param refresh: seconds between looks for new topics.
    """

    url: str
    client: Mapping[str, Any] = field(repr=False)
    topic: Mapping[str, str]
    prefix: str
    compression: str
    partitions: int
    replication: int | None
    insync: int | None
    retention: int
    domains: int
    group: str
    timeout: float
    refresh: float
    name: str

    @classmethod
    def of(cls, url: EngineUrl, context: Context) -> Settings:
        """:raises RoutingError: the URL is wrong, or a file that it names cannot be read."""
        passed = {name.removesuffix("_file") for name in url.options if _handed_on(name)}
        url.only(OPTIONS | passed)
        if url.path not in ("", "/"):
            raise RoutingError(
                f"{url}: a Kafka URL has no path", hint="topics are named by prefix=NAME"
            )
        partitions = number_of(url, "partitions", 6, 1, 256)
        domains = number_of(url, "domains", 64, 1, 256)
        if (domains + 1) * (_TOPIC_BYTES + _OFFSET_BYTES * partitions) > MAX_POSITION:
            raise RoutingError(
                f"{url}: {domains} domains of {partitions} partitions are too many",
                hint="about 700 partitions in all are followed",
            )
        return cls(
            url=str(url),
            client=_client(url, context),
            topic={
                name.removeprefix(TOPIC): value
                for name, value in url.options.items()
                if name.startswith(TOPIC)
            },
            prefix=_name(url, "prefix", "qis"),
            compression=_one_of(url, "compression", COMPRESSIONS),
            partitions=partitions,
            replication=_maybe(url, "replication", 100),
            insync=_maybe(url, "insync", 100),
            retention=number_of(url, "retention", 30, 0, 36_500) * 86_400_000 or -1,
            domains=domains,
            group=_name(url, "group", "") if "group" in url.options else "",
            timeout=_seconds(url, "timeout", 5.0),
            refresh=_seconds(url, "refresh", 5.0),
            name=context.name,
        )

    def producer(self) -> dict[str, Any]:
        """The settings of a producer: nothing is taken for published before every in-sync
        copy has it, and nothing is there twice or out of order because it was sent again."""
        return {
            "queue.buffering.max.kbytes": 65_536,
            "linger.ms": 2,
            **self.client,
            "allow.auto.create.topics": False,
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": self.compression,
            "message.timeout.ms": int(self.timeout * 1000),
            "delivery.report.only.error": True,
        }

    def consumer(self) -> dict[str, Any]:
        """The settings of a consumer. Its place is the view's affair: it commits none."""
        return {
            "queued.max.messages.kbytes": 4096,
            # One answer for what comes within a moment, instead of one for each of its parts.
            "fetch.min.bytes": 65_536,
            "fetch.wait.max.ms": 100,
            **self.client,
            "group.id": self.group or f"{self.prefix}.{self.name}",
            "allow.auto.create.topics": False,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "partition.assignment.strategy": "range,roundrobin",
        }


def _handed_on(name: str) -> bool:
    return name.startswith((CLIENT, TOPIC))


def _client(url: EngineUrl, context: Context) -> dict[str, Any]:
    made: dict[str, Any] = {
        "bootstrap.servers": ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            for host, port in hosts_of(url, PORT, EXAMPLE)
        ),
        "client.id": f"qis-edge.{context.name}",
        "reconnect.backoff.max.ms": 1000,
        **_login(url),
    }
    for name in sorted({name.removesuffix("_file") for name in url.options}):
        if name.startswith(CLIENT):
            plain = name.removeprefix(CLIENT)
            if plain in FIXED:
                raise RoutingError(f"{url}: {plain} is the engine's own affair")
            made[plain] = url.option(name)
    return made


def _login(url: EngineUrl) -> dict[str, Any]:
    tls = tls_of(url)
    mechanism = url.options.get("sasl_mechanism", "SCRAM-SHA-512")
    password = password_of(url)
    made: dict[str, Any] = {}
    sasl = url.user is not None or "sasl_mechanism" in url.options
    if sasl or tls:
        made["security.protocol"] = f"{'sasl_' if sasl else ''}{'ssl' if tls else 'plaintext'}"
    if sasl:
        made["sasl.mechanism"] = mechanism
    if url.user is not None:
        if password is None:
            raise RoutingError(
                f"{url}: a user without a password", hint="give password_file=PATH, too"
            )
        made |= {"sasl.username": url.user, "sasl.password": password}
    elif password is not None:
        raise RoutingError(f"{url}: a password without a user")
    if tls is not None:
        files = {"ca": tls.ca, "certificate": tls.cert, "key": tls.key}
        made |= {f"ssl.{name}.location": path for name, path in files.items() if path is not None}
        if (secret := url.option("cert_key_password")) is not None:
            made["ssl.key.password"] = secret
    return made


def _name(url: EngineUrl, option: str, default: str) -> str:
    text = url.options.get(option, default)
    if not _NAME.fullmatch(text):
        raise RoutingError(
            f"{url}: {option} is no name for Kafka",
            hint="at most 100 letters, digits, dots, underscores and hyphens",
        )
    return text


def _one_of(url: EngineUrl, option: str, values: tuple[str, ...]) -> str:
    text = url.options.get(option, values[0])
    if text not in values:
        raise RoutingError(f"{url}: {option} must be one of {', '.join(values)}")
    return text


def _maybe(url: EngineUrl, option: str, high: int) -> int | None:
    return number_of(url, option, 1, 1, high) if option in url.options else None


def _seconds(url: EngineUrl, option: str, default: float) -> float:
    try:
        found = float(url.options.get(option, default))
    except ValueError:
        found = -1.0
    if not 0.1 <= found <= 300:
        raise RoutingError(f"{url}: {option} must be 0.1 to 300 seconds")
    return found


# --- what librdkafka says ----------------------------------------------------------------


class Logger:
    """Takes librdkafka's log lines. Each failed attempt is one of them, hence ``DEBUG``: what
    matters is raised or in the status."""

    @staticmethod
    def log(_level: int, form: str, *values: object) -> None:
        """As ``logging.Logger.log``."""
        log.debug(form, *values)


_Kinds = tuple[tuple[int, str, str | None], ...]
#: What may be wrong with a connection, that which explains most first, with a remedy.
_KINDS: _Kinds = (
    (KafkaError._AUTHENTICATION, "the login was refused", "check user, password, sasl_mechanism"),
    (KafkaError._SSL, "TLS failed", "check ca, cert, cert_key and the broker's name"),
    (KafkaError._RESOLVE, "no such host", "check the host's name"),
    (KafkaError._TRANSPORT, "not reached", "check host, port and tls; is the broker up?"),
    (KafkaError._ALL_BROKERS_DOWN, "not reached", None),
)


class Trouble:
    """What clients said of their connections since the last that worked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._heard: dict[int, str] = {}

    def heard(self, error: KafkaError) -> None:
        """For a client's ``error_cb``."""
        self._heard[error.code()] = error.str()

    def over(self) -> None:
        """A broker has answered."""
        self._heard.clear()

    @property
    def down(self) -> bool:
        """No broker is connected, for all that is known."""
        return KafkaError._ALL_BROKERS_DOWN in self._heard

    def error(self, problem: str) -> RoutingError:
        """What to raise where ``problem`` is what was noticed: its cause, if one is known."""
        heard = {
            KafkaError._SSL if "SSL routines" in text else code: text
            for code, text in self._heard.items()
        }
        for code, what, hint in _KINDS:
            if code in heard:
                detail = re.sub(r" \(after \d+ms in state \w+\)", "", heard[code])
                return RoutingError(f"{self.url}: {what}: {detail}", hint=hint)
        return RoutingError(f"{self.url}: {problem}", hint="is the broker up?")

    def of(self, exception: KafkaException) -> RoutingError:
        """The same of an exception of confluent-kafka."""
        error = exception.args[0]
        return self.of_error(error) if isinstance(error, KafkaError) else self.error(str(error))

    def of_error(self, error: KafkaError) -> RoutingError:
        """The same of an error of confluent-kafka."""
        if error.code() in _LATE:
            return self.error(f"no answer: {error.str()}")
        if error.code() in _FORBIDDEN:
            return RoutingError(
                f"{self.url}: not allowed: {error.str()}", hint="docs/routing/kafka.md has the ACLs"
            )
        return RoutingError(f"{self.url}: {error.str()}")


_LATE = {
    KafkaError._TRANSPORT,
    KafkaError._TIMED_OUT,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
}
_FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}
