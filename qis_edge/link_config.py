"""The links in a configuration: a node's and a gateway's have the same.

Declared with :mod:`qis_edge.schema`, like the rest of :mod:`qis_edge.config`.
"""

# ruff: noqa: RUF009 - the calls in these dataclasses make fields
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qis_edge.core.errors import UsageError
from qis_edge.core.mesh.framing import DEFAULT_FRAME, MAX_FRAME, MIN_FRAME
from qis_edge.links.mesh_settings import MeshSettings
from qis_edge.links.mqtt_settings import PROTOCOLS, MqttSettings
from qis_edge.schema import (
    Choice,
    Duration,
    File,
    Flag,
    ListOf,
    Number,
    Table,
    Text,
    Url,
    Where,
    setting,
    whole,
)

BROKER = Url("mqtt", "mqtts", what="a URL like mqtt://localhost or mqtts://broker.example:8883")


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttConfig:
    """A broker. ``mqtts://`` encrypts and verifies the broker's certificate."""

    url: str | None = setting(
        BROKER,
        None,
        "Where the broker is. The fleet file's broker, unless given.",
        example="mqtt://localhost:1883",
    )
    username: str | None = setting(
        Text(), None, "User name, for brokers that ask for one.", example="field-1"
    )
    password_file: Path | None = setting(
        File(exists=True, credential=True),
        None,
        "A file whose first line is the password. Only its owner may read it.",
        example="mqtt.password",
    )
    ca: Path | None = setting(
        File(exists=True),
        None,
        "The authorities to believe, as PEM; the system's unless given.",
        example="ca.pem",
    )
    cert: Path | None = setting(
        File(exists=True, credential=True),
        None,
        "Our certificate, as PEM, for brokers that ask for one.",
        example="node.pem",
    )
    key: Path | None = setting(
        File(exists=True, credential=True),
        None,
        "The key of our certificate, as PEM. Only its owner may read it.",
        example="node-key.pem",
    )
    server_name: str | None = setting(
        Text(),
        None,
        "The name in the broker's certificate, if it is not the one in the URL.",
        example="broker.example",
    )
    insecure: bool = setting(
        Flag(), False, "Let a password travel unencrypted to another machine. Better not."
    )
    protocol: str = setting(
        Choice(*PROTOCOLS), "auto", "Version of MQTT; ``auto`` tries 5 first, then 3.1.1."
    )
    keepalive: int = setting(
        Duration("1s", "18h", whole=True),
        "30s",
        "Silence after which the broker is asked whether it lives.",
    )
    retry: float = setting(
        Duration("1s", "1h"),
        "2min",
        "The longest wait between two attempts to connect; the first waits are shorter.",
    )

    def settings(self, fallback: str | None = None) -> MqttSettings:
        """What the link takes.

        :param fallback: the URL to use where the configuration has none.
        :raises UsageError: there is no URL, or values do not go together; the field is
            the key in the configuration.
        """
        url = self.url or fallback
        if url is None:
            raise UsageError(
                "is missing, and the fleet file names no broker",
                field="url",
                hint='set url = "mqtt://…" under [links.mqtt]',
            )
        given = {
            "user": self.username,
            "password_file": self.password_file,
            "ca": self.ca,
            "cert": self.cert,
            "key": self.key,
            "server_name": self.server_name,
        }
        given = {name: value for name, value in given.items() if value is not None}
        return MqttSettings.from_url(
            url,
            insecure=self.insecure,
            protocol=self.protocol,
            keepalive=self.keepalive,
            retry_longest=self.retry,
            **given,
        )

    def check(self, where: Where) -> None:
        """What does not go together."""
        if self.url is None:
            return
        try:
            self.settings()
        except UsageError as error:
            key = {"user": "username", "host": "url", "port": "url", "tls": "url"}.get(
                error.field, error.field
            )
            message = str(error).removeprefix(f"{error.field}: ")
            (where / key).wrong(message, error.hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshtasticConfig:
    """A Meshtastic radio. ``qis-edge radio configure`` sets it up, ``qis-edge radio ping``
    tries a place."""

    radio: str = setting(
        Text(what="a port, part of a name in /dev/serial/by-id, auto or tcp:HOST[:PORT]", most=300),
        "auto",
        "Where the radio is: ``auto``, a port, part of its name in ``/dev/serial/by-id``, or "
        "``tcp:HOST[:PORT]``. ``auto`` takes the only one that there is.",
        example="/dev/ttyUSB0",
    )
    channel: int = setting(
        whole(0, 7), 0, "The radio's channel that the fleet uses, by its index.", example=1
    )
    frame: int = setting(
        whole(MIN_FRAME, MAX_FRAME),
        DEFAULT_FRAME,
        "The most bytes that a frame of ours has. Longer frames carry more, and are lost more "
        "often.",
    )
    relays: int = setting(
        whole(0, 7),
        0,
        "Radios between a node and its gateway that pass frames on: how much longer an answer "
        "takes.",
    )
    hop_limit: int | None = setting(
        whole(0, 7),
        None,
        "How often a frame may be passed on. What the radio is set to, unless given.",
        example=3,
    )
    duty_cycle: float | None = setting(
        Number(0.001, 1),
        None,
        "The share of each hour that this radio may send, of which nine tenths are used. What "
        "the radio's region allows, unless given; less where others must be heard too.",
        example=0.1,
    )
    rate: float = setting(
        Number(0.1, 10_000),
        1,
        "How many times as fast as real time the radio runs: an emulated one, for rehearsals.",
        example=20,
    )

    def settings(self) -> MeshSettings:
        """What the link takes."""
        return MeshSettings(
            radio=self.radio,
            channel=self.channel,
            frame=self.frame,
            relays=self.relays,
            hop_limit=self.hop_limit,
            duty_cycle=self.duty_cycle,
            rate=self.rate,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialConfig:
    """A serial line: radio modems in transparent mode, RS-485, a cable."""

    port: str = setting(
        Text(what="a port, or part of a name in /dev/serial/by-id", most=300),
        doc="The port, or part of its name in ``/dev/serial/by-id``.",
        example="/dev/ttyUSB1",
    )
    baud: int = setting(whole(300, 4_000_000), 115_200, "Bits a second, the same at both ends.")


#: As ``prefer`` names them, the cheapest first.
LINKS = ("mqtt", "serial", "meshtastic")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinksConfig:
    """The ways to the other side.

    Without a table for any, MQTT is used: a node goes to the broker that the fleet file
    names, a gateway to its embedded one. A node with several uses one at a time: the first
    of ``prefer`` that is up and answered. A gateway uses all at once.
    """

    mqtt: MqttConfig | None = setting(Table(MqttConfig), None, "Over an MQTT broker.")
    serial: SerialConfig | None = setting(Table(SerialConfig), None, "Over a serial line.")
    meshtastic: MeshtasticConfig | None = setting(
        Table(MeshtasticConfig), None, "Over a mesh of LoRa radios."
    )
    prefer: tuple[str, ...] = setting(
        ListOf(Choice(*LINKS), least=1, most=len(LINKS)),
        list(LINKS),
        "Which link a node uses where several are up. Those that are not named come last.",
    )
    after: float = setting(
        Duration("0s", "1d"),
        "30s",
        "How long the link in use may be down before a node goes on over another. One that is "
        "up, but where no gateway answers, is given up as soon as that is certain.",
    )
    settle: float = setting(
        Duration("0s", "1d"),
        "1min",
        "How long a preferred link must have been up before a node goes back to it.",
    )

    @property
    def names(self) -> list[str]:
        """Those that there are, in the order of preference."""
        order = dict.fromkeys((*self.prefer, *LINKS))
        found = [name for name in order if getattr(self, name) is not None]
        return found or ["mqtt"]

    def check(self, where: Where) -> None:
        """What does not go together."""
        for index, name in enumerate(self.prefer):
            if name in self.prefer[:index]:
                (where / "prefer" / index).wrong("is there twice")
