"""The machine itself as a sensor: load, memory, temperature, disk, uptime. Linux."""

# ruff: noqa: RUF009 - the calls in these dataclasses make fields
from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from qis_edge.core.errors import ConfigError, SensorError
from qis_edge.core.outcome import Value
from qis_edge.schema import File, from_mapping, setting
from qis_edge.sensor import Reading

#: Kinds of thermal zones that are the processor's, best first (kernel: ``type`` of the zone).
_PROCESSOR = ("cpu", "x86_pkg_temp", "soc", "coretemp", "acpitz")
#: What no processor survives is a fault of the zone, not a temperature.
_PLAUSIBLE = (-60.0, 150.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemSettings:
    """The ``system`` driver: the machine itself.

    Channels: ``load`` (processes that ran or waited to, mean of a minute),
    ``memory_available`` (%), ``cpu_temperature`` (°C), ``disk_free`` (%, as far as ordinary
    users may fill it) and ``uptime`` (s). What the machine does not tell is missing.
    """

    disk: Path = setting(
        File(exists=True), "/", "A folder of the file system whose free space is looked at."
    )


class System:
    """The driver ``system``."""

    settings: ClassVar[type] = SystemSettings
    channels: Mapping[str, str] = {
        "load": "1",
        "memory_available": "%",
        "cpu_temperature": "Cel",
        "disk_free": "%",
        "uptime": "s",
    }

    def __init__(self, settings: Mapping[str, Any], *, root: Path = Path("/")) -> None:
        """See :class:`qis_edge.sensor.SensorFactory`.

        :param root: where ``proc`` and ``sys`` are.
        """
        try:
            self._disk = from_mapping(SystemSettings, settings).disk
        except ConfigError as error:
            raise SensorError(str(error)) from error
        self._root = root
        self._zone: Path | None = None

    def open(self) -> None:
        """See :class:`qis_edge.sensor.Sensor`."""
        try:
            os.statvfs(self._disk)
        except OSError as error:
            raise SensorError(
                f"disk: {self._disk}: {error.strerror}", hint="name a folder that exists"
            ) from error
        self._zone = _find_zone(self._root / "sys/class/thermal")

    def read(self, now: float) -> list[Reading]:
        """See :class:`qis_edge.sensor.Sensor`."""
        values: dict[str, Value] = {
            "load": self._load(),
            "memory_available": self._memory(),
            "cpu_temperature": _temperature(self._zone),
            "disk_free": self._disk_free(),
            "uptime": _number(_text(self._root / "proc/uptime")),
        }
        return [Reading(now, values)]

    def close(self) -> None:
        """See :class:`qis_edge.sensor.Sensor`."""
        self._zone = None

    def _load(self) -> float | None:
        return _number(_text(self._root / "proc/loadavg"))

    def _memory(self) -> float | None:
        amounts = {}
        for line in _text(self._root / "proc/meminfo").splitlines():
            name, _, rest = line.partition(":")
            amounts[name] = _number(rest)
        total, free = amounts.get("MemTotal"), amounts.get("MemAvailable")
        return None if not total or free is None else round(100 * free / total, 3)

    def _disk_free(self) -> float | None:
        try:
            found = os.statvfs(self._disk)
        except OSError:
            return None
        # As df has it: of what ordinary users may fill, not of the whole.
        usable = found.f_blocks - found.f_bfree + found.f_bavail
        return round(100 * found.f_bavail / usable, 3) if usable else None


def _find_zone(folder: Path) -> Path | None:
    """The thermal zone that is most likely the processor's and gives a temperature."""

    def rank(zone: Path) -> tuple[int, str]:
        kind = _text(zone / "type").strip().lower()
        place = next((n for n, name in enumerate(_PROCESSOR) if name in kind), len(_PROCESSOR))
        return place, zone.name

    zones = sorted(folder.glob("thermal_zone*"), key=rank)
    return next((zone for zone in zones if _temperature(zone) is not None), None)


def _temperature(zone: Path | None) -> float | None:
    thousandths = _number(_text(zone / "temp")) if zone is not None else None
    if thousandths is None:
        return None
    low, high = _PLAUSIBLE
    return thousandths / 1000 if low <= thousandths / 1000 <= high else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:  # a container has no such file; a zone may be asleep
        return ""


def _number(text: str) -> float | None:
    """The number that a text begins with."""
    first = text.split(maxsplit=1)[:1]
    try:
        value = float(first[0]) if first else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
