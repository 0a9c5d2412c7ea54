"""What a radio is set to, what it is to be set to, and what must be written for that.

Nothing here talks to a radio. Settings that the file has bear the file's names; those that
follow from it bear Meshtastic's, such as ``lora.use_preset``.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from devices.radio_config.channel_key import ChannelKey
from devices.radio_config.settings import RadioConfig
from qis_edge.core.errors import LinkError
from qis_edge.links.meshtastic_stream import definitions
from qis_edge.terminal import duration

Shown = str | int | bool | None
#: What is written together, in this order: a radio without a region does nothing else, and the
#: firmware sets some of what follows the device by its role.
SECTIONS = ("lora", "device", "channel", "position", "telemetry", "bluetooth", "owner")
#: What the firmware sets by itself when a radio gets another role
#: (``NodeDB::installRoleDefaults``), beside the device's own.
_BY_ROLE = ("position", "telemetry")
#: The interval by which the firmware means never, seconds.
NEVER = (2**31 - 1) // 1000


@dataclass(slots=True)
class Snapshot:
    """What a radio said of itself.

    :param number: its node number. :param reboots: how often it has started in its life.
    :param licensed: for amateurs, who must not encrypt. :param managed: ignores its host.
    :param messages: protobuf messages by section, of lora, device, position, telemetry,
        bluetooth. :param channels: protobuf ``Channel`` by index; they hold secrets.
    """

    number: int
    firmware: str
    reboots: int
    name: str
    short_name: str
    licensed: bool
    managed: bool
    messages: dict[str, Any] = field(repr=False)
    channels: list[Any] = field(repr=False)

    @property
    def address(self) -> str:
        """Its number as Meshtastic writes it."""
        return f"!{self.number:08x}"

    def enum(self, section: str, name: str) -> str:
        """An enumerated field by its name; a number where the definitions have none."""
        message = self.messages[section]
        return _enum_name(message, name, getattr(message, name))


@dataclass(frozen=True, slots=True)
class Want:
    """One setting as it is to be.

    :param read: what a radio has. :param agrees: whether that will do. :param write: puts it
        into a snapshot. :param show: for people; a secret shows ``None``.
    """

    setting: str
    section: str
    value: Any = field(repr=False)
    read: Callable[[Snapshot], Any]
    write: Callable[[Snapshot], None]
    agrees: Callable[[Any], bool]
    show: Callable[[Any], Shown]


@dataclass(frozen=True, slots=True)
class Difference:
    """A radio has another value than it is to have; of a secret, both are ``None``."""

    setting: str
    section: str
    wanted: Shown
    has: Shown

    @property
    def secret(self) -> bool:
        """Whether the values are not for anybody to see."""
        return self.wanted is None


def wants(config: RadioConfig, key: ChannelKey) -> list[Want]:
    """All that a radio is to be set to.

    :raises LinkError: the installed message definitions lack a region, preset or role.
    """
    try:
        return [*_lora(config), *_device(config), *_channel(config, key), *_others(config)]
    except ValueError as error:
        raise LinkError(
            f"the installed package meshtastic is too old: {error}",
            hint="pip install --upgrade meshtastic",
        ) from None


def _lora(config: RadioConfig) -> Iterator[Want]:
    lora = config.lora
    yield _enum("lora.region", "lora", "region", lora.region)
    yield _enum("lora.preset", "lora", "modem_preset", lora.preset)
    yield _plain("lora.hop_limit", "lora", "hop_limit", lora.hop_limit)
    if lora.slot is not None:
        yield _plain("lora.slot", "lora", "channel_num", lora.slot)
    if lora.tx_power is not None:
        yield _plain("lora.tx_power", "lora", "tx_power", lora.tx_power)
    for name, value in (
        ("use_preset", True),
        ("tx_enabled", True),
        ("override_duty_cycle", False),
        ("override_frequency", 0.0),
        ("config_ok_to_mqtt", False),
    ):
        yield _plain(f"lora.{name}", "lora", name, value)


def _device(config: RadioConfig) -> Iterator[Want]:
    device = config.device
    yield _enum("device.role", "device", "role", device.role)
    yield _enum("device.rebroadcast", "device", "rebroadcast_mode", device.rebroadcast)
    yield _plain(
        "device.announce", "device", "node_info_broadcast_secs", device.announce, show=_interval
    )


def _channel(config: RadioConfig, key: ChannelKey) -> Iterator[Want]:
    index = config.channel.index
    role = definitions("channel_pb2").Channel.Role
    wanted = role.Value("SECONDARY" if index else "PRIMARY")

    def settings(radio: Snapshot) -> Any:
        return radio.channels[index].settings

    def one(
        setting: str, value: Any, of: Callable[[Snapshot], Any], name: str, **more: Any
    ) -> Want:
        return Want(
            f"channel.{setting}",
            "channel",
            value,
            lambda radio: getattr(of(radio), name),
            lambda radio: setattr(of(radio), name, value),
            more.get("agrees", partial(operator.eq, value)),
            more.get("show", _itself),
        )

    yield one("role", wanted, lambda radio: radio.channels[index], "role", show=role.Name)
    yield one("name", config.channel.name, settings, "name")
    yield one("psk", key.raw, settings, "psk", agrees=key.is_key, show=lambda _: None)
    yield one("uplink_enabled", False, settings, "uplink_enabled")
    yield one("downlink_enabled", False, settings, "downlink_enabled")
    yield one(
        "position_precision",
        0,
        lambda radio: settings(radio).module_settings,
        "position_precision",
    )


def _others(config: RadioConfig) -> Iterator[Want]:
    device = config.device
    if not device.position:
        modes = definitions("config_pb2").Config.PositionConfig.GpsMode
        off = partial(operator.ne, modes.Value("ENABLED"))  # there may be none at all
        yield _enum("position.gps_mode", "position", "gps_mode", "DISABLED", agrees=off)
        name = "position_broadcast_smart_enabled"
        yield _plain(f"position.{name}", "position", name, False)
    interval = device.telemetry or NEVER
    yield Want(
        "device.telemetry",
        "telemetry",
        interval,
        lambda radio: min(radio.messages["telemetry"].device_update_interval, NEVER),
        lambda radio: _set_telemetry(radio, interval),
        partial(operator.eq, interval),
        _interval,
    )
    if device.bluetooth is not None:
        yield _plain("device.bluetooth", "bluetooth", "enabled", device.bluetooth)
    for name in ("name", "short_name"):
        if (value := getattr(device, name)) is not None:
            yield _owner(name, value)


def _owner(name: str, value: str) -> Want:
    return Want(
        f"device.{name}",
        "owner",
        value,
        lambda radio: getattr(radio, name),
        lambda radio: setattr(radio, name, value),
        partial(operator.eq, value),
        _itself,
    )


def _set_telemetry(radio: Snapshot, interval: int) -> None:
    message = radio.messages["telemetry"]
    message.device_update_interval = interval
    if hasattr(message, "device_telemetry_enabled"):
        # Newer firmware asks for it; older keeps no such flag, so it is not compared.
        message.device_telemetry_enabled = interval < NEVER


def _plain(
    setting: str, section: str, name: str, value: Any, *, show: Callable[[Any], Shown] | None = None
) -> Want:
    return Want(
        setting,
        section,
        value,
        lambda radio: getattr(radio.messages[section], name),
        lambda radio: setattr(radio.messages[section], name, value),
        partial(operator.eq, value),
        show or _itself,
    )


def _enum(
    setting: str,
    section: str,
    name: str,
    value: str,
    *,
    agrees: Callable[[Any], bool] | None = None,
) -> Want:
    message = _empty(section)
    number = message.DESCRIPTOR.fields_by_name[name].enum_type.values_by_name.get(value)
    if number is None:
        raise ValueError(f"it knows no {setting} {value}")
    wanted = int(number.number)
    return Want(
        setting,
        section,
        wanted,
        lambda radio: getattr(radio.messages[section], name),
        lambda radio: setattr(radio.messages[section], name, wanted),
        agrees or partial(operator.eq, wanted),
        lambda has: _enum_name(message, name, has),
    )


def _empty(section: str) -> Any:
    return getattr(definitions("config_pb2").Config(), section)


def _enum_name(message: Any, name: str, value: int) -> str:
    found = message.DESCRIPTOR.fields_by_name[name].enum_type.values_by_number.get(value)
    return str(value) if found is None else str(found.name)


def _itself(value: Any) -> Shown:
    if isinstance(value, float):
        return f"{value:g}"
    assert isinstance(value, str | int | bool)
    return value


def _interval(seconds: int) -> str:
    if seconds >= NEVER:
        return "off"
    return duration(seconds) if seconds else "the firmware's default"


def differences(wanted: Sequence[Want], radio: Snapshot) -> list[Difference]:
    """What a radio has otherwise, in the order of ``wanted``."""
    found = []
    for want in wanted:
        has = want.read(radio)
        if not want.agrees(has):
            shown = want.show(want.value), want.show(has)
            found.append(Difference(want.setting, want.section, *shown))
    return found


def to_write(found: Sequence[Difference]) -> list[str]:
    """The sections to write, in order.

    With another role the firmware resets some of what the file says: that is written again,
    after the role.
    """
    sections = {one.section for one in found}
    again = any(one.setting == "device.role" for one in found)
    if again:
        sections.update(_BY_ROLE)
    order = [section for section in SECTIONS if section in sections]
    return [*order, "device"] if again else order


def as_wanted(wanted: Sequence[Want], radio: Snapshot) -> Snapshot:
    """What a radio would say of itself if it were set up."""
    made = copy.deepcopy(radio)
    for want in wanted:
        if not want.agrees(want.read(made)):
            want.write(made)
    return made


def check(radio: Snapshot, config: RadioConfig) -> None:
    """Whether a radio can be set up at all.

    :raises LinkError: it ignores its host, or must not encrypt.
    """
    if radio.managed:
        raise LinkError(
            f"the radio {radio.address} is managed: it ignores what its host sets",
            hint="take it out of managed mode with the administrator's key, or reset it to "
            "factory settings",
        )
    if radio.licensed:
        raise LinkError(
            f"the radio {radio.address} is set to amateur operation, which must not encrypt",
            hint="set it to ordinary operation with Meshtastic's app first",
        )
    if config.channel.index >= len(radio.channels):
        raise LinkError(
            f"the radio {radio.address} has {len(radio.channels)} channels, "
            f"there is no {config.channel.index}",
            hint="set channel.index to 0",
        )
