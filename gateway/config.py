"""A gateway's configuration: one TOML file, and a ``.d`` folder beside it.

Declared with :mod:`qis_edge.schema`, like a node's. :func:`load_gateway` gives a
:class:`GatewayConfig`, or one :class:`~qis_edge.core.errors.ConfigError` with everything
that is wrong.
"""

# ruff: noqa: RUF009 - the calls in these dataclasses make fields
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from qis_edge.config import (
    ClockConfig,
    LogConfig,
    default_path,
    key_setting,
    overlay,
    state_setting,
)
from qis_edge.core.errors import RoutingError
from qis_edge.link_config import LinksConfig, MqttConfig
from qis_edge.links.mqtt_settings import is_loopback
from qis_edge.schema import (
    NAME,
    Choice,
    Duration,
    File,
    Flag,
    Listen,
    ListOf,
    Size,
    Table,
    Text,
    Where,
    Wrong,
    did_you_mean,
    load,
    setting,
    whole,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """This gateway."""

    name: str = setting(NAME, doc="What people call this gateway.", example="base-1")
    state: Path = state_setting("gateway")
    key: Path | None = key_setting("gateway.key")
    custody: str = setting(
        Choice("spool", "routed"),
        "spool",
        "What a receipt means: the packet is durable in this gateway's ``spool``, or it is "
        "``routed``, in every routing engine.",
    )

    @property
    def key_file(self) -> Path:
        """Where the gateway's key is."""
        return self.key or self.state / "gateway.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """The embedded broker, for small sites and first steps.

    It speaks MQTT 3.1.1, forgets its sessions when it ends and knows no access control:
    larger sites run Mosquitto, and say where under ``[links.mqtt]``.
    """

    embedded: bool = setting(Flag(), True, "Whether to run it.")
    listen: tuple[str, int] = setting(
        Listen(),
        "127.0.0.1:1883",
        "Where it listens. ``0.0.0.0:1883`` lets in who is on the network, if ``anonymous`` or "
        "``password_file`` says so too.",
    )
    anonymous: bool = setting(
        Flag(),
        False,
        "Whether anybody on the network may connect. Packets and receipts prove themselves, "
        "but anybody can then listen to them and be in the way.",
    )
    password_file: Path | None = setting(
        File(exists=True, credential=True),
        None,
        "A file of ``name:hash`` lines: who may connect.",
        example="broker.passwords",
    )

    @property
    def url(self) -> str:
        """Where this gateway reaches it."""
        host, port = self.listen
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared only
        return f"mqtt://[{host}]:{port}" if ":" in host else f"mqtt://{host}:{port}"

    def check(self, where: Where) -> None:
        """What does not go together."""
        alone = is_loopback(self.listen[0])
        if self.embedded and not alone and not self.anonymous and self.password_file is None:
            (where / "listen").wrong(
                "would let other machines in without a password",
                "set password_file, or anonymous = true if that network is trusted",
            )


class Engine(Text):
    """The URL of a routing engine. Messages never repeat it: it may name a login."""

    def __init__(self) -> None:
        super().__init__(what="the URL of a routing engine, such as sqlite:routing.db", most=500)

    def parse(self, value: object, where: Where) -> str:
        """See :class:`qis_edge.schema.Type`."""
        text = str(super().parse(value, where))
        if ":" not in text:
            raise Wrong("is not a URL: it has no scheme", "such as sqlite:routing.db")
        if where.full:
            from gateway.routing import open_engine, schemes  # looks for installed engines

            scheme = text.partition(":")[0]
            if scheme not in schemes():
                raise Wrong("is of an unknown engine", did_you_mean(scheme, schemes()))
            try:
                open_engine(text)
            except RoutingError as error:
                raise Wrong(str(error), error.hint) from error
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingConfig:
    """Where packets live by fingerprint."""

    engines: tuple[str, ...] = setting(
        ListOf(Engine(), least=1, most=16),
        ["sqlite:routing.db"],
        "The engines. Each gets every packet, at its own pace. The first answers queries. "
        "Relative paths are relative to the state folder.",
    )

    def check(self, where: Where) -> None:
        """What does not go together."""
        for index, url in enumerate(self.engines):
            if url in self.engines[:index]:
                (where / "engines" / index).wrong("is there twice")


@dataclass(frozen=True, slots=True, kw_only=True)
class DownlinkConfig:
    """What nodes get of their peers."""

    limit: int = setting(
        whole(1, 10_000), 50, "The most packets that one request brings; the newest."
    )
    mesh_limit: int = setting(
        whole(1, 1000),
        12,
        "The same over a link that all share: each packet takes about a second of the channel.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolConfig:
    """The log of what came in."""

    retention: int = setting(
        Duration("1h", "3650d", whole=True),
        "30d",
        "For how long packets are kept after every engine has them.",
    )
    budget: int = setting(
        Size("16 MB", "100 TB"),
        "1 GB",
        "The most that the log takes on disk. Packets that an engine still lacks are never "
        "dropped: when they alone fill it, nodes are told to wait.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Configuration of a QIS Edge gateway.

    Paths are relative to this file. Files in a folder config.toml.d beside it are read
    after it, in the order of their names. ``qis-gateway check`` says what is wrong with it.
    """

    gateway: Gateway = setting(Table(Gateway), doc="This gateway.")
    broker: BrokerConfig = setting(Table(BrokerConfig), {}, "The broker.")
    links: LinksConfig = setting(Table(LinksConfig), {}, "The links.")
    routing: RoutingConfig = setting(Table(RoutingConfig), {}, "The routing layer.")
    downlink: DownlinkConfig = setting(Table(DownlinkConfig), {}, "The downlink.")
    spool: SpoolConfig = setting(Table(SpoolConfig), {}, "The spool.")
    clock: ClockConfig = setting(Table(ClockConfig), {}, "The clock.")
    log: LogConfig = setting(Table(LogConfig), {}, "The log.")
    #: The file that it was read from.
    path: Path = dataclasses.field(default=Path("config.toml"), compare=False)

    @property
    def served(self) -> LinksConfig:
        """The links, with that to the embedded broker."""
        if self.links.mqtt is None and self.broker.embedded:
            return dataclasses.replace(self.links, mqtt=MqttConfig())
        return self.links

    @property
    def broker_url(self) -> str | None:
        """The embedded broker's URL, for a link whose configuration has none."""
        return self.broker.url if self.broker.embedded else None

    def check(self, where: Where) -> None:
        """What does not go together."""
        mqtt = self.links.mqtt
        missing = mqtt.url is None if mqtt is not None else self.links.names == ["mqtt"]
        if not self.broker.embedded and missing:
            (where / "links" / "mqtt" / "url").wrong(
                "is missing: without the embedded broker it must say where the broker is"
            )


def load_gateway(path: Path | None = None, *, full: bool = True) -> GatewayConfig:
    """Read a gateway's configuration.

    :param path: the default place, if ``None`` (:func:`qis_edge.config.default_path`).
    :param full: judge also what lies outside the file.
    :raises ConfigError: with all that is wrong.
    """
    path = path if path is not None else default_path("gateway")
    made, document = load(
        GatewayConfig,
        path,
        full=full,
        hint="qis-gateway init makes one",
        overlay=overlay(GatewayConfig, "gateway"),
    )
    return dataclasses.replace(made, path=document.path.absolute())
