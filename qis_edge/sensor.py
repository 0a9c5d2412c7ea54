"""What a sensor driver is. Drivers are found through the entry point group
``qis_edge.sensors``; third parties add theirs the same way and test them with
``qis_edge.testing.sensors``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from qis_edge.core.outcome import Value


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the world.

    :param time: unix seconds at which it holds, by the node's clock.
    :param values: channel name → number, word, or ``None`` where the channel failed.
    """

    time: float
    values: Mapping[str, Value]


class Sensor(Protocol):
    """A driver. ``read`` may block (it is called in a worker thread); it never retries."""

    #: The channels it gives, with their units (UCUM), e.g. ``{"temperature": "Cel"}``.
    channels: Mapping[str, str]

    def open(self) -> None:
        """Get ready.

        :raises SensorError: it is not there, or its settings are wrong.
        """
        ...

    def read(self, now: float) -> list[Reading]:
        """Everything new since the last call, up to unix time ``now``; often one reading,
        none when nothing is due yet.

        :raises SensorError: this look failed; the next may not.
        """
        ...

    def close(self) -> None:
        """Let go of everything. May come at any time, before :meth:`open` too, and again."""
        ...


class SensorFactory(Protocol):
    """What the entry point names. Called with the driver's table from the config.

    :raises SensorError: a setting is wrong; the message names it and the fix.
    """

    def __call__(self, settings: Mapping[str, Any]) -> Sensor: ...
