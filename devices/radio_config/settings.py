"""The file that says what radios are to be set to.

Declared with :mod:`qis_edge.schema`; the sample and the settings in ``docs/radio.md`` are made
from these declarations.
"""

# ruff: noqa: RUF009 - the calls in these dataclasses make fields
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qis_edge.core.airtime import PRESETS, REGIONS, effective
from qis_edge.schema import (
    Choice,
    Duration,
    File,
    Flag,
    Scalar,
    Table,
    Text,
    Where,
    Wrong,
    load,
    setting,
    whole,
)
from qis_edge.schema.text import sample

#: Roles that the firmware takes as they are; it makes CLIENT of some others.
ROLES = ("CLIENT", "CLIENT_MUTE", "CLIENT_BASE", "ROUTER", "ROUTER_LATE")
REBROADCAST = ("ALL", "LOCAL_ONLY", "KNOWN_ONLY", "CORE_PORTNUMS_ONLY", "NONE")
#: Names of channels by which the firmware does something else.
_SPECIAL = ("admin", "gpio", "serial", "mqtt", "default")


class _Sized(Text):
    """Text that has so many bytes at most, as the radio keeps it."""

    def __init__(self, most_bytes: int, *, what: str) -> None:
        super().__init__(what=what, most=most_bytes)
        self.most_bytes = most_bytes

    def read(self, value: object) -> Any:
        text = super().read(value)
        if text != text.strip():
            raise Wrong("must not begin or end with blanks")
        if len(text.encode()) > self.most_bytes:
            raise Wrong(f"must have {self.most_bytes} bytes at most, it has {len(text.encode())}")
        return text


class _ChannelName(Text):
    def __init__(self) -> None:
        super().__init__(
            r"[A-Za-z0-9][A-Za-z0-9._-]*",
            what="a name of at most 11 letters, digits, dots, dashes and underscores",
            most=11,
        )

    def read(self, value: object) -> Any:
        name = super().read(value)
        if name.lower() in _SPECIAL:
            raise Wrong("means something else to radios", "choose another name")
        return name


class _Interval(Scalar):
    """A duration in whole seconds, or ``"off"``, which is 0."""

    def __init__(self, least: str, most: str) -> None:
        self._duration = Duration(least, most, whole=True)

    def describe(self) -> str:
        return f'{self._duration.describe()}, or "off"'

    def read(self, value: object) -> Any:
        return 0 if value == "off" else self._duration.read(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """What is the same for every radio of a site: they hear each other only if it is."""

    region: str = setting(
        Choice(*REGIONS),
        "EU_868",
        "Where the radios are, for the law that holds there. A radio sends nothing before it "
        "has a region.",
    )
    preset: str = setting(
        Choice(*PRESETS),
        "LONG_FAST",
        "How slow, and how far. Faster ones carry more and reach less far; a radio hears only "
        "its own preset.",
    )
    hop_limit: int = setting(
        whole(0, 7), 3, "How many times a frame of this radio may be passed on."
    )
    slot: int | None = setting(
        whole(0, 500),
        None,
        "The frequency slot. 0 takes it from the name of the first channel; regions with a "
        "single slot, like EU_868, have no choice. To be carried by public relays where there "
        "are several, use theirs (20 in the US with LONG_FAST). Left alone unless given.",
        example=20,
    )
    tx_power: int | None = setting(
        whole(0, 30),
        None,
        "Power in dBm; 0 is the most that the region allows. Left alone unless given.",
        example=14,
    )

    def check(self, where: Where) -> None:
        """Some presets are too wide for some regions."""
        used = effective(PRESETS[self.preset], REGIONS[self.region])
        if used.name != self.preset:
            (where / "preset").wrong(
                f"is too wide for {self.region}, radios would use {used.name}",
                f"write {used.name}, or a slower one",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSettings:
    """The channel that the radios share. Nothing on it goes to MQTT, and no position."""

    name: str = setting(_ChannelName(), "qis", "What the channel is called.")
    psk_file: Path = setting(
        File(),
        "radio.psk",
        "The file with the channel's secret key. It is drawn the first time; copy it to "
        "wherever radios of the same channel are set up.",
    )
    index: int = setting(
        whole(0, 7),
        0,
        "Its place in the radio, which ``[links.meshtastic]`` calls channel. 0 is the first, on "
        "which the radio also says who it is; with 1, the first stays a public channel.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A radio that stands by a node or a gateway."""

    role: str = setting(
        Choice(*ROLES), "CLIENT", "What it does for others. CLIENT passes on where nobody else did."
    )
    rebroadcast: str = setting(Choice(*REBROADCAST), "ALL", "Whose frames it passes on.")
    telemetry: int = setting(
        _Interval("30min", "7d"),
        "off",
        "How often it tells others its battery and airtime. Its own host hears of them anyway.",
    )
    announce: int = setting(
        Duration("1h", "7d", whole=True), "12h", "How often it tells others who it is."
    )
    position: bool = setting(
        Flag(), False, "Whether it may find out and tell where it is. Not on our channel."
    )
    bluetooth: bool | None = setting(
        Flag(),
        None,
        "Whether phones can reach it by Bluetooth, and set it up otherwise. Left alone unless "
        "given.",
        example=False,
    )
    name: str | None = setting(
        _Sized(39, what="a name"),
        None,
        "What to call the radio. ``--name`` has precedence. Left alone unless given.",
        example="North gate",
    )
    short_name: str | None = setting(
        _Sized(4, what="a name of up to four bytes"),
        None,
        "Its name on small screens. Left alone unless given.",
        example="NG",
    )

    @staticmethod
    def parts(made: dict[str, Any], where: Where) -> None:
        """What does not go together."""
        if made["rebroadcast"] == "NONE" and str(made["role"]).startswith("ROUTER"):
            (where / "rebroadcast").wrong("a router passes frames on", "take another role")


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """A radio that stands alone and passes on what it hears: ``--relay``.

    Where this says nothing, ``[device]`` holds.
    """

    role: str = setting(
        Choice(*(role for role in ROLES if role != "CLIENT_MUTE")),
        "ROUTER_LATE",
        "What it does for others. ROUTER_LATE passes everything on, after all others; ROUTER "
        "before them, which helps only from a place that hears them all.",
    )
    rebroadcast: str = setting(
        Choice(*(mode for mode in REBROADCAST if mode != "NONE")),
        "ALL",
        "Whose frames it passes on. A router that is set up by hand has CORE_PORTNUMS_ONLY, "
        "which does not pass ours on.",
    )
    telemetry: int = setting(
        _Interval("30min", "7d"), "12h", "How often it tells others its battery and airtime."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RadioConfig:
    """What Meshtastic radios are to be set to. ``qis-edge radio configure`` does it.

    One file serves a whole fleet, with the key file beside it. Paths are relative to it.
    """

    lora: Lora = setting(Table(Lora), {}, "The radio.")
    channel: ChannelSettings = setting(Table(ChannelSettings), {}, "The channel.")
    device: Device = setting(Table(Device), {}, "The device.")
    relay: Relay = setting(Table(Relay), {}, "A relay.")

    def of_relay(self) -> RadioConfig:
        """What a relay is to be set to: its table in the place of the device's."""
        relay = {one.name: getattr(self.relay, one.name) for one in dataclasses.fields(Relay)}
        return dataclasses.replace(self, device=dataclasses.replace(self.device, **relay))

    def named(self, name: str) -> RadioConfig:
        """The same for a radio that is called ``name``.

        :raises Wrong: it is no name.
        """
        checked = _Sized(39, what="a name").read(name)
        return dataclasses.replace(self, device=dataclasses.replace(self.device, name=checked))


def load_radio(path: Path) -> RadioConfig:
    """Read a file.

    :raises ConfigError: with all that is wrong.
    """
    made, _ = load(RadioConfig, path, hint=f"qis-edge radio configure --sample > {path} makes one")
    return made


def radio_sample() -> str:
    """A file to begin with, every setting explained."""
    return sample(RadioConfig, {"channel": {"name": "qis", "psk_file": "radio.psk"}})
