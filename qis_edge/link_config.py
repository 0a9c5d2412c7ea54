"""The links in a configuration: a node's and a gateway's have the same.

Declared with :mod:`qis_edge.schema`, like the rest of :mod:`qis_edge.config`.
"""

# ruff: noqa: RUF009 - the calls in these dataclasses make fields
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qis_edge.core.errors import UsageError
from qis_edge.links.mqtt_settings import PROTOCOLS, MqttSettings
from qis_edge.schema import (
    Choice,
    Duration,
    File,
    Flag,
    Table,
    Text,
    Url,
    Where,
    setting,
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
        File(exists=True),
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
        File(exists=True),
        None,
        "Our certificate, as PEM, for brokers that ask for one.",
        example="node.pem",
    )
    key: Path | None = setting(
        File(exists=True), None, "The key of our certificate, as PEM.", example="node-key.pem"
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
class LinksConfig:
    """The ways to the other side.

    Without a table for any, MQTT is used: a node goes to the broker that the fleet file
    names, a gateway to its embedded one.
    """

    mqtt: MqttConfig | None = setting(Table(MqttConfig), None, "Over an MQTT broker.")
