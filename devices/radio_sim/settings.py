"""What an emulated radio is configured to, what it tells a host of it, and the admin messages
that read and change it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from qis_edge.core.errors import UsageError
from qis_edge.links.meshtastic_stream import definitions

FIRMWARE = "2.7.26.54e0d8d"
CHANNELS = 8
#: Seconds from a change to the reboot that makes it work.
REBOOT = 7.0
#: Nonces of ``want_config_id`` that ask for less.
ONLY_CONFIG = 69420
ONLY_NODES = 69421
#: Intervals that a radio from the factory and the firmware's roles have, seconds.
ANNOUNCE, LEAST_ANNOUNCE, DAY = 10800, 3600, 86400
NEVER = (2**31 - 1) // 1000
#: Regions that bound the share of an hour that a radio sends, in per cent.
DUTY_CYCLE = {"EU_868": 10.0, "EU_433": 10.0}

_CONFIGS = (
    "device", "position", "power", "network", "display", "lora", "bluetooth", "security",
    "sessionkey", "device_ui",
)  # fmt: skip
_MODULES = (
    "mqtt", "serial", "external_notification", "store_forward", "range_test", "telemetry",
    "canned_message", "audio", "remote_hardware", "neighbor_info", "ambient_lighting",
    "detection_sensor", "paxcounter", None, None, None,
)  # fmt: skip
# What AdminMessage calls the sections, by number.
_CONFIG_TYPES = _CONFIGS
_MODULE_TYPES = (
    "mqtt", "serial", "external_notification", "store_forward", "range_test", "telemetry",
    "canned_message", "audio", "remote_hardware", "neighbor_info", "ambient_lighting",
    "detection_sensor", "paxcounter",
)  # fmt: skip


@dataclass(slots=True)
class Known:
    """A node that a radio knows of. ``user`` is a protobuf ``User``, or ``None``."""

    number: int
    user: Any = None
    snr: float = 0.0
    last_heard: int = 0


class Settings:
    """The configuration of one radio; it outlives reboots.

    :param region: a name of Meshtastic's ``RegionCode``; ``UNSET`` forbids sending.
    :param psk: the key of channel 0; radios with other keys or names do not read each other.
    :raises UsageError: there is no such region, preset or role.
    """

    def __init__(
        self,
        number: int,
        *,
        name: str = "",
        region: str = "EU_868",
        preset: str = "LONG_FAST",
        hop_limit: int = 3,
        role: str = "CLIENT",
        channel: str = "",
        psk: bytes = b"\x01",
    ) -> None:
        mesh = definitions("mesh_pb2")
        config = definitions("config_pb2").Config
        self.number = number
        self.configs = {one: config() for one in _CONFIGS}
        for one, message in self.configs.items():
            getattr(message, one).SetInParent()
        module = definitions("module_config_pb2").ModuleConfig
        self.modules = {one: module() for one in _MODULES if one}
        for one, message in self.modules.items():
            getattr(message, one).SetInParent()
        self._factory()
        lora = self.lora
        lora.use_preset = True
        lora.tx_enabled = True
        lora.hop_limit = hop_limit
        try:
            lora.region = config.LoRaConfig.RegionCode.Value(region)
            lora.modem_preset = config.LoRaConfig.ModemPreset.Value(preset)
            self.device.role = config.DeviceConfig.Role.Value(role)
        except ValueError as error:
            raise UsageError(str(error), field="radio") from None
        self.owner = mesh.User(
            id=f"!{number:08x}",
            long_name=name or f"Emulated {number & 0xFFFF:04x}",
            short_name=f"{number & 0xFFFF:04x}",
            macaddr=number.to_bytes(6, "big"),
            hw_model=mesh.HardwareModel.PORTDUINO,
            public_key=hashlib.sha256(b"radio" + number.to_bytes(4, "big")).digest(),
        )
        self.configs["security"].security.public_key = self.owner.public_key
        self.channels = [definitions("channel_pb2").Channel(index=i) for i in range(CHANNELS)]
        self.channels[0].role = definitions("channel_pb2").Channel.PRIMARY
        self.channels[0].settings.name = channel
        self.channels[0].settings.psk = psk
        self.reboots = 0
        #: Sections that are not written whatever a host says, as some firmware does it.
        self.ignores: set[str] = set()
        self._kept: list[bytes] | None = None  # while a transaction is open: what is on its flash

    def _factory(self) -> None:
        device, position = self.device, self.configs["position"].position
        device.node_info_broadcast_secs = ANNOUNCE
        position.position_broadcast_smart_enabled = True
        position.gps_mode = type(position).GpsMode.Value("NOT_PRESENT")
        self.configs["bluetooth"].bluetooth.enabled = True
        self.configs["security"].security.serial_enabled = True
        self.modules["telemetry"].telemetry.device_update_interval = NEVER

    @property
    def lora(self) -> Any:
        """The ``LoRaConfig``."""
        return self.configs["lora"].lora

    @property
    def device(self) -> Any:
        """The ``DeviceConfig``."""
        return self.configs["device"].device

    @property
    def region(self) -> str:
        """The region's name."""
        return str(definitions("config_pb2").Config.LoRaConfig.RegionCode.Name(self.lora.region))

    @property
    def duty_cycle(self) -> float:
        """The share of an hour that it may send, per cent."""
        return 100.0 if self.lora.override_duty_cycle else DUTY_CYCLE.get(self.region, 100.0)

    def secret(self, index: int) -> str | None:
        """What one must have to read channel ``index``; ``None``: there is no such channel."""
        if not 0 <= index < CHANNELS or not self.channels[index].role:
            return None
        one = self.channels[index].settings
        return f"channel {one.name} {one.psk.hex()}"

    def channel_of(self, secret: str) -> int | None:
        """The index of the channel that this reads, or ``None``."""
        return next((i for i in range(CHANNELS) if self.secret(i) == secret), None)

    # What a host is told.

    def handshake(self, nonce: int, others: Iterable[Known]) -> Iterator[bytes]:
        """What answers ``want_config_id``, in the firmware's order."""
        mesh = definitions("mesh_pb2")
        others = list(others)
        if nonce != ONLY_NODES:
            yield from (self._message(**part) for part in self._config_parts(len(others) + 1))
        else:
            yield self._message(node_info=self.node_info(Known(self.number, self.owner)))
        if nonce != ONLY_CONFIG:
            for known in others:
                yield self._message(node_info=self.node_info(known))
        if nonce != ONLY_NODES:
            yield self._message(fileInfo=mesh.FileInfo(file_name="/prefs/nodes.proto"))
        yield self._message(config_complete_id=nonce)

    def _config_parts(self, nodes: int) -> Iterator[dict[str, Any]]:
        mesh = definitions("mesh_pb2")
        yield {
            "my_info": mesh.MyNodeInfo(
                my_node_num=self.number,
                reboot_count=self.reboots,
                min_app_version=30200,
                device_id=self.owner.public_key[:16],
                pio_env="native",
                nodedb_count=nodes,
            )
        }
        yield {"deviceuiConfig": definitions("device_ui_pb2").DeviceUIConfig(version=1)}
        yield {"node_info": self.node_info(Known(self.number, self.owner))}
        yield {"metadata": self.metadata()}
        for channel in self.channels:
            yield {"channel": channel}
        for name in _CONFIGS:
            yield {"config": self.configs[name]}
        empty = definitions("module_config_pb2").ModuleConfig()
        for module in _MODULES:
            yield {"moduleConfig": self.modules[module] if module else empty}

    @staticmethod
    def _message(**part: Any) -> bytes:
        return bytes(definitions("mesh_pb2").FromRadio(**part).SerializeToString())

    def node_info(self, known: Known) -> Any:
        """The ``NodeInfo`` of a node; of a stranger it has no user."""
        info = definitions("mesh_pb2").NodeInfo(
            num=known.number, snr=known.snr, last_heard=known.last_heard
        )
        if known.user is not None:
            info.user.CopyFrom(known.user)
        return info

    def metadata(self) -> Any:
        """The ``DeviceMetadata``."""
        return definitions("mesh_pb2").DeviceMetadata(
            firmware_version=FIRMWARE,
            device_state_version=24,
            role=self.device.role,
            hw_model=self.owner.hw_model,
            hasPKC=True,
        )

    # Admin messages.

    def administer(self, request: Any) -> tuple[Any | None, float | None]:
        """Do what an ``AdminMessage`` of the host asks; a managed radio does nothing.

        :returns: the answer, if there is one; seconds until the radio reboots, if it does.
        """
        if self.configs["security"].security.is_managed:
            return None, None
        admin = definitions("admin_pb2").AdminMessage
        kind = request.WhichOneof("payload_variant")
        answer = admin(session_passkey=b"emulated")
        if kind in ("get_owner_request", "get_device_metadata_request"):
            if kind == "get_owner_request":
                answer.get_owner_response.CopyFrom(self.owner)
            else:
                answer.get_device_metadata_response.CopyFrom(self.metadata())
        elif kind == "get_channel_request":  # counted from 1
            index = request.get_channel_request - 1
            if not 0 <= index < CHANNELS:
                return None, None
            answer.get_channel_response.CopyFrom(self.channels[index])
        elif kind == "get_config_request":
            section = _CONFIG_TYPES[request.get_config_request % len(_CONFIG_TYPES)]
            answer.get_config_response.CopyFrom(self.configs[section])
        elif kind == "get_module_config_request":
            number = request.get_module_config_request
            section = _MODULE_TYPES[number] if number < len(_MODULE_TYPES) else "mqtt"
            answer.get_module_config_response.CopyFrom(self.modules[section])
        else:
            return None, self._change(kind, request)
        return answer, None

    def power_lost(self) -> None:
        """What a transaction changed and nobody committed is lost."""
        if self._kept is not None:
            self._restore(self._kept)
            self._kept = None

    def _change(self, kind: str | None, request: Any) -> float | None:
        if kind == "begin_edit_settings":
            self._kept = self._kept or self._saved()
            return None
        if kind == "commit_edit_settings":
            self._kept = None
            return REBOOT
        if kind == "reboot_seconds":
            return float(max(0, request.reboot_seconds))
        if kind == "set_channel":
            if 0 <= request.set_channel.index < CHANNELS and "channel" not in self.ignores:
                self.channels[request.set_channel.index].CopyFrom(request.set_channel)
            return None  # takes effect at once
        if not self._set(kind, request):
            return None
        return None if self._kept is not None else REBOOT

    def _set(self, kind: str | None, request: Any) -> bool:
        """Whether it was something to set."""
        if kind == "set_owner":
            self._set_owner(request.set_owner)
        elif kind == "set_config":
            name = request.set_config.WhichOneof("payload_variant")
            if name is None:
                return False
            if name not in self.ignores:
                self._set_config(name, request.set_config)
        elif kind == "set_module_config":
            module = request.set_module_config.WhichOneof("payload_variant")
            if module not in self.modules:
                return False
            if module not in self.ignores:
                self.modules[module].CopyFrom(request.set_module_config)
        else:
            return False
        return True

    def _set_owner(self, user: Any) -> None:
        if "owner" in self.ignores:
            return
        self.owner.long_name = user.long_name or self.owner.long_name
        self.owner.short_name = user.short_name or self.owner.short_name
        self.owner.is_licensed = user.is_licensed
        if user.HasField("is_unmessagable"):
            self.owner.is_unmessagable = user.is_unmessagable

    def _set_config(self, name: str, config: Any) -> None:
        """Beside what it was told, the firmware sets some things by itself."""
        role, region = self.device.role, self.lora.region
        getattr(self.configs[name], name).CopyFrom(getattr(config, name))
        if name == "device":
            self._settle_device(role)
        elif name == "lora" and self.lora.region != region:
            self.lora.tx_enabled = bool(self.lora.region) and (self.lora.tx_enabled or not region)
            if DUTY_CYCLE.get(self.region, 100.0) < 100.0:
                self.lora.ignore_mqtt = True

    def _settle_device(self, before: int) -> None:
        device, telemetry = self.device, self.modules["telemetry"].telemetry
        roles, modes = type(device).Role, type(device).RebroadcastMode
        routers = (roles.Value("ROUTER"), roles.Value("ROUTER_LATE"))
        if device.rebroadcast_mode == modes.Value("NONE") and device.role in routers:
            device.rebroadcast_mode = modes.Value("ALL")
        if device.role != before:
            if device.role == roles.Value("ROUTER"):
                device.rebroadcast_mode = modes.Value("CORE_PORTNUMS_ONLY")
                telemetry.device_update_interval = DAY // 2
            elif device.role == roles.Value("ROUTER_LATE"):
                telemetry.device_update_interval = DAY
            if device.role in routers:
                self.owner.is_unmessagable = True
        device.node_info_broadcast_secs = max(device.node_info_broadcast_secs, LEAST_ANNOUNCE)
        if device.role in (roles.Value("ROUTER_CLIENT"), roles.Value("REPEATER")):
            device.role = roles.Value("CLIENT")

    def _messages(self) -> Iterator[Any]:
        yield self.owner
        yield from self.configs.values()
        yield from self.modules.values()
        yield from self.channels

    def _saved(self) -> list[bytes]:
        return [one.SerializeToString() for one in self._messages()]

    def _restore(self, saved: list[bytes]) -> None:
        for one, data in zip(self._messages(), saved, strict=True):
            one.ParseFromString(data)
