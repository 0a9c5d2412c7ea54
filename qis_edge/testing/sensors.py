"""What every sensor driver must do: a suite to subclass.

    class TestThermometer(SensorConformance):
        def sensor(self, folder: Path) -> Sensor:
            return Thermometer({"port": "/dev/ttyUSB0"})

        def broken(self, folder: Path) -> Sensor | None:
            return Thermometer({"port": "/dev/missing"})

Needs pytest.
"""

from __future__ import annotations

import math
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

from qis_edge.core.errors import SensorError
from qis_edge.sensor import Reading, Sensor

__all__ = ["SensorConformance"]

_NAME = re.compile(r"[a-z0-9_]{1,64}")
_UNIT = re.compile(r"[!-~]{1,32}")


class SensorConformance(ABC):
    """Subclass it, give it a sensor, and its tests are yours."""

    #: Unix times of looks at the sensor; by then it must have had something to say.
    looks: tuple[float, ...] = (1_800_000_000.0, 1_800_003_600.0, 1_800_007_200.0)

    @abstractmethod
    def sensor(self, folder: Path) -> Sensor:
        """A new sensor that works, not yet open; all of one ``folder`` are of one device."""

    def broken(self, folder: Path) -> Sensor | None:  # noqa: ARG002 - for those that override
        """One whose device is not there, if that can be: ``open`` must say so."""
        return None

    @pytest.fixture
    def opened(self, tmp_path: Path) -> Iterator[Sensor]:
        """The sensor, open."""
        sensor = self.sensor(tmp_path)
        sensor.open()
        yield sensor
        sensor.close()

    def test_channels_have_names_and_units(self, tmp_path: Path) -> None:
        """Channels are known before it is opened; the configuration is checked by them."""
        channels = self.sensor(tmp_path).channels
        assert channels
        for name, unit in channels.items():
            assert _NAME.fullmatch(name), name
            assert _UNIT.fullmatch(unit), unit

    def test_readings_are_of_its_channels(self, opened: Sensor) -> None:
        """Every value is a finite number, a word or missing, under a declared channel."""
        readings = self._all(opened)
        assert readings
        for reading in readings:
            assert reading.values
            assert set(reading.values) <= set(opened.channels)
            for value in reading.values.values():
                assert value is None or isinstance(value, str | float | int)
                assert not isinstance(value, bool)
                assert isinstance(value, str | None) or math.isfinite(value)

    def test_some_value_is_there(self, opened: Sensor) -> None:
        """A sensor that works has something to say."""
        assert any(v is not None for r in self._all(opened) for v in r.values.values())

    def test_nothing_is_from_the_future(self, opened: Sensor) -> None:
        """A reading's time is at most the ``now`` of the look that gave it."""
        for now in self.looks:
            assert all(reading.time <= now for reading in opened.read(now))

    def test_nothing_comes_twice(self, opened: Sensor) -> None:
        """Times never go back, and another look at the same time has nothing older."""
        times = [reading.time for reading in self._all(opened)]
        assert times == sorted(times)
        again = opened.read(self.looks[-1])
        assert all(reading.time >= self.looks[-1] for reading in again)

    def test_is_read_in_another_thread(self, opened: Sensor) -> None:
        """The runtime opens it in one thread and reads it in others."""
        found: list[Reading] = []
        thread = threading.Thread(target=lambda: found.extend(self._all(opened)))
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        assert found

    def test_close_may_come_at_any_time(self, tmp_path: Path) -> None:
        """Before ``open``, twice, and before another ``open``."""
        sensor = self.sensor(tmp_path)
        sensor.close()
        sensor.open()
        sensor.close()
        sensor.close()
        sensor.open()
        assert self._all(sensor)
        sensor.close()

    def test_two_do_not_disturb_each_other(self, opened: Sensor, tmp_path: Path) -> None:
        """What one was given the other is given too."""
        other = self.sensor(tmp_path)
        other.open()
        first, second = self._all(opened), self._all(other)
        other.close()
        assert [sorted(r.values) for r in first] == [sorted(r.values) for r in second]

    def test_says_what_is_missing(self, tmp_path: Path) -> None:
        """A device that is not there is a :class:`SensorError` with words, from ``open``."""
        sensor = self.broken(tmp_path)
        if sensor is None:
            return
        with pytest.raises(SensorError) as error:
            sensor.open()
        assert len(str(error.value)) > 10
        sensor.close()

    def _all(self, sensor: Sensor) -> list[Reading]:
        return [reading for now in self.looks for reading in sensor.read(now)]
