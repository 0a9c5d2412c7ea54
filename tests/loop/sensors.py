"""Sensors for tests, named in configurations as ``tests.loop.sensors:…``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qis_edge.core.errors import SensorError
from qis_edge.sensor import Reading


class Steady:
    """Gives one number. :param settings: ``value``."""

    channels: Mapping[str, str] = {"temperature": "Cel"}

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.value = float(settings.get("value", 20.0))

    def open(self) -> None:
        pass

    def read(self, now: float) -> list[Reading]:
        return [Reading(now, {"temperature": self.value})]

    def close(self) -> None:
        pass


class Hanging(Steady):
    """Opens, and then never comes back."""

    def read(self, now: float) -> list[Reading]:
        import threading

        threading.Event().wait()
        raise SensorError("never")


class Broken(Steady):
    """A driver with a bug."""

    def read(self, now: float) -> list[Reading]:
        raise ZeroDivisionError("a driver's bug")


class Silent(Steady):
    """Never has anything to say."""

    def read(self, now: float) -> list[Reading]:
        return []
