"""From a configuration to links."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

from qis_edge.core.errors import QisError
from qis_edge.core.packet import Packet
from qis_edge.link_config import LinksConfig, MqttConfig
from qis_edge.links.base import Link, Role
from qis_edge.links.mqtt import MqttLink

#: Frames that a gateway has under way at a time: one batch is committed, one verified and
#: one on its way from the broker, which is told.
GATEWAY_WINDOW = 800


def make_links(
    config: LinksConfig,
    role: Role,
    site: str,
    kid: bytes,
    *,
    broker: str | None,
    verify: Callable[[bytes], Packet],
) -> list[Link]:
    """Links, not started, in the order of preference; what one alone needs is imported for
    it alone.

    :param broker: its URL, where the configuration has none.
    :param verify: ``unpack`` with the keys that are known; raises ``Refused``.
    :raises UsageError: the settings do not go together.
    """
    made: list[Link] = []
    for name in config.names:
        if name == "mqtt":
            settings = (config.mqtt or MqttConfig()).settings(broker)
            if role is Role.GATEWAY:
                settings = replace(settings, receive_window=GATEWAY_WINDOW)
            made.append(MqttLink(settings, role, site, kid))
        elif name == "meshtastic":
            from qis_edge.links.mesh import MeshLink

            assert config.meshtastic is not None
            made.append(MeshLink(config.meshtastic.settings(), role, verify))
        else:
            from qis_edge.links.serial_line import SerialLink, SerialSettings

            assert config.serial is not None
            line = SerialSettings(config.serial.port, config.serial.baud)
            made.append(SerialLink(line, role, kid))
    return made


def check_link(config: LinksConfig, name: str, *, broker: str | None) -> str:
    """Where one of ``config.names`` leads; nothing is opened.

    :param broker: its URL, where the configuration has none.
    :raises QisError: it can never work: settings that do not go together, a password file
        that cannot be read, a package that is missing.
    """
    if name == "mqtt":
        settings = (config.mqtt or MqttConfig()).settings(broker)
        settings.read_password()
        settings.check_key()
        return settings.url
    if name == "meshtastic":
        if find_spec("meshtastic") is None:
            raise QisError(
                "a Meshtastic radio needs a package that is not installed",
                hint="pip install 'qis-edge[mesh]'",
            )
        assert config.meshtastic is not None
        return f"meshtastic:{config.meshtastic.settings().radio}"
    assert config.serial is not None
    return f"serial:{config.serial.port}"
