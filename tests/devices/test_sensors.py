"""The drivers that come along, held to the suite that every driver passes."""

from __future__ import annotations

import math
import re
import sys
import tracemalloc
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devices.sensors.replay import MOST, Replay
from devices.sensors.system import System
from qis_edge.core.errors import SensorError
from qis_edge.testing.sensors import SensorConformance

if TYPE_CHECKING:
    from qis_edge.sensor import Reading, Sensor

START = datetime(2013, 1, 1, tzinfo=UTC).timestamp()
HOUR = 3600.0


def hourly(folder: Path, rows: int = 6, *, name: str = "readings.csv") -> Path:
    """Two stations, one row each an hour; station B is missing its second temperature."""
    lines = ["station,time,temp,wind,sky"]
    for n in range(rows):
        at = datetime.fromtimestamp(START + n * HOUR, UTC).isoformat()
        lines.append(f"A,{at},{n / 10:.1f},{n},clear")
        lines.append(f"B,{at},{'NA' if n == 1 else 100 + n},,")
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def replay(path: Path | str, **settings: Any) -> Replay:
    return Replay(
        {
            "file": str(path),
            "columns": {"temperature": "temp"},
            "where": {"station": "A"},
            **settings,
        }
    )


def opened(path: Path | str, **settings: Any) -> Replay:
    sensor = replay(path, **settings)
    sensor.open()
    return sensor


def temperatures(readings: list[Reading]) -> list[Any]:
    return [reading.values["temperature"] for reading in readings]


def documented() -> Any:
    """The classes of the page for those who write drivers."""
    page = (Path(__file__).parents[2] / "docs/sensors.md").read_text(encoding="utf-8")
    module = sys.modules["my_station"] = types.ModuleType("my_station")
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, vars(module))
    return module


class TestTheDocumentedDriver(documented().TestThermometer):  # type: ignore[misc] # dynamic
    def test_reads_what_is_there(self, opened: Sensor) -> None:
        assert opened.read(START)[0].values == {"temperature": 21.5}


class TestReplayConforms(SensorConformance):
    looks = (START, START + 1.5 * HOUR, START + 3 * HOUR)

    def sensor(self, folder: Path) -> Sensor:
        columns = {"temperature": "temp", "sky": "sky"}
        return replay(hourly(folder), columns=columns, words=["sky"])

    def broken(self, folder: Path) -> Sensor:
        return replay(folder / "missing.csv")


class TestSystemConforms(SensorConformance):
    def sensor(self, folder: Path) -> Sensor:
        return System({"disk": str(folder)})

    def broken(self, folder: Path) -> Sensor:
        return System({"disk": str(folder / "missing")})


class TestReplay:
    def test_rows_come_when_they_are_due(self, tmp_path: Path) -> None:
        sensor = opened(hourly(tmp_path))
        assert sensor.read(START - 1) == []
        assert temperatures(sensor.read(START)) == [0.0]
        assert sensor.read(START + HOUR - 1) == []
        assert temperatures(sensor.read(START + 3 * HOUR)) == [0.1, 0.2, 0.3]
        assert temperatures(sensor.read(math.inf)) == [0.4, 0.5]
        assert sensor.read(math.inf) == []

    def test_times_may_be_unix_seconds_or_lack_an_offset(self, tmp_path: Path) -> None:
        path = tmp_path / "t.csv"
        path.write_text(f"time,temp\n{START:.0f},1\n2013-01-01 01:00:00,2\n")
        readings = opened(path, where={}).read(math.inf)
        assert [r.time for r in readings] == [START, START + HOUR]

    def test_empty_cells_are_missing_values(self, tmp_path: Path) -> None:
        sensor = opened(hourly(tmp_path), where={"station": "B"})
        assert temperatures(sensor.read(START + 2 * HOUR)) == [100.0, None, 102.0]

    def test_words(self, tmp_path: Path) -> None:
        sensor = opened(hourly(tmp_path), columns={"sky": "sky"}, words=["sky"])
        assert sensor.read(START)[0].values == {"sky": "clear"}

    def test_units_are_said(self, tmp_path: Path) -> None:
        assert replay(tmp_path, units={"temperature": "Cel"}).channels == {"temperature": "Cel"}

    def test_a_channel_is_missing_for_a_while(self, tmp_path: Path) -> None:
        fail = [
            {
                "channel": "temperature",
                "from": "2013-01-01T01:00:00Z",
                "until": "2013-01-01T03:00:00Z",
            }
        ]
        columns = {"temperature": "temp", "wind": "wind"}
        readings = opened(hourly(tmp_path), columns=columns, fail=fail).read(math.inf)
        assert temperatures(readings) == [0.0, None, None, 0.3, 0.4, 0.5]
        assert [r.values["wind"] for r in readings] == [0, 1, 2, 3, 4, 5]

    def test_a_channel_raises_for_a_while_and_only_when_due(self, tmp_path: Path) -> None:
        fail = [{"channel": "temperature", "from": START, "until": START + HOUR, "how": "error"}]
        sensor = opened(hourly(tmp_path), fail=fail)
        assert sensor.read(START - 1) == []
        with pytest.raises(SensorError, match="temperature: no answer"):
            sensor.read(START)
        assert temperatures(sensor.read(START + HOUR)) == [0.1]

    def test_readings_before_an_error_are_not_lost(self, tmp_path: Path) -> None:
        fail = [
            {"channel": "temperature", "from": START + HOUR, "until": START + 2 * HOUR}
            | {"how": "error"}
        ]
        sensor = opened(hourly(tmp_path), fail=fail)
        assert temperatures(sensor.read(START + 3 * HOUR)) == [0.0]
        with pytest.raises(SensorError):
            sensor.read(START + 3 * HOUR)
        assert temperatures(sensor.read(START + 3 * HOUR)) == [0.2, 0.3]

    def test_loops_with_times_that_go_on(self, tmp_path: Path) -> None:
        sensor = opened(hourly(tmp_path, 3), loop=True)
        readings = sensor.read(START + 6 * HOUR)
        assert [r.time for r in readings] == [START + n * HOUR for n in range(7)]
        assert temperatures(readings) == [0.0, 0.1, 0.2, 0.0, 0.1, 0.2, 0.0]

    def test_one_row_loops(self, tmp_path: Path) -> None:
        sensor = opened(hourly(tmp_path, 1), loop=True)
        assert len(sensor.read(START + 4)) == 5

    def test_history_bounds_the_first_look_only(self, tmp_path: Path) -> None:
        sensor = opened(hourly(tmp_path), history="1h")
        assert temperatures(sensor.read(START + 2.5 * HOUR)) == [0.2]
        assert temperatures(sensor.read(START + 5 * HOUR)) == [0.3, 0.4, 0.5]

    def test_opening_again_begins_again(self, tmp_path: Path) -> None:
        sensor = opened(hourly(tmp_path))
        sensor.read(math.inf)
        sensor.open()
        assert temperatures(sensor.read(START)) == [0.0]

    def test_a_look_is_bounded_and_goes_on(self, tmp_path: Path) -> None:
        sensor = opened(hourly(tmp_path, MOST + 5))
        assert len(sensor.read(math.inf)) == MOST
        assert len(sensor.read(math.inf)) == 5

    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "long.csv"
        with path.open("w") as file:
            file.write("time,temp\n")
            file.writelines(f"{int(START) + n},{n}\n" for n in range(100_000))
        sensor = opened(path, where={})
        sensor.read(START)
        tracemalloc.start()
        try:
            for n in range(1, 20_000):
                sensor.read(START + n)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        sensor.close()
        assert peak < 500_000

    def test_reads_a_file_of_a_package(self) -> None:
        with pytest.raises(SensorError, match="no column time"):
            opened("devices.domains:weather.toml", where={})
        with pytest.raises(SensorError, match="no such file in that package"):
            opened("devices.domains:missing.csv")
        with pytest.raises(SensorError, match="no such file in that package"):
            opened("no_such_package:missing.csv")


class TestReplayIsClearAboutErrors:
    def test_missing_column(self, tmp_path: Path) -> None:
        with pytest.raises(SensorError, match=r"no column tmp") as error:
            opened(hourly(tmp_path), columns={"temperature": "tmp"})
        assert error.value.hint == "did you mean temp?"

    def test_missing_filter_column(self, tmp_path: Path) -> None:
        with pytest.raises(SensorError, match="no column origin"):
            opened(hourly(tmp_path), where={"origin": "A"})

    def test_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "e.csv").write_text("")
        with pytest.raises(SensorError, match="is empty"):
            opened(tmp_path / "e.csv")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SensorError, match="no such file"):
            opened(tmp_path)

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ("soon,1", 'row 3: "soon" is not a date'),
            ("2013-02-30T00:00:00Z,1", 'row 3: "2013-02-30T00:00:00Z" is not a date'),
            ("2013-01-01T01:00:00Z,warm", 'row 3: temp: "warm" is not a number'),
            ("2013-01-01T01:00:00Z,inf", 'row 3: temp: "inf" is not a number'),
            ("2012-01-01T01:00:00Z,1", "row 3: is earlier than the row before it"),
            ("\x1b[31m,1", r'row 3: "\x1b[31m" is not a date'),
            ("", None),
        ],
    )
    def test_a_bad_row_is_named_once_and_passed(
        self, tmp_path: Path, row: str, words: str | None
    ) -> None:
        path = tmp_path / "bad.csv"
        path.write_text(f"time,temp\n{START:.0f},1\n{row}\n{START + HOUR:.0f},2\n")
        sensor = opened(path, where={})
        assert temperatures(sensor.read(START)) == [1.0]
        if words is not None:
            with pytest.raises(SensorError) as error:
                sensor.read(START + HOUR)
            assert str(error.value).endswith(words)
        assert temperatures(sensor.read(START + HOUR)) == [2.0]

    def test_a_bad_first_row_stops_it_from_opening(self, tmp_path: Path) -> None:
        path = tmp_path / "bad.csv"
        path.write_text("time,temp\n01/02/13,1\n")
        with pytest.raises(SensorError, match="row 2"):
            opened(path, where={})

    def test_a_binary_file(self, tmp_path: Path) -> None:
        path = tmp_path / "b.csv"
        path.write_bytes(b"\xff\xfe\x00" * 1000)
        with pytest.raises(SensorError, match="cannot be read"):
            opened(path)
        path.write_bytes(b"a" * 1_000_000)
        with pytest.raises(SensorError, match="longer than 64 KiB"):
            opened(path)

    def test_a_wrong_setting_is_named(self) -> None:
        with pytest.raises(SensorError, match=r"columns: is missing"):
            Replay({"file": "x.csv"})
        with pytest.raises(SensorError, match=r"fail\[1\].channel: there is no such channel"):
            replay("x.csv", fail=[{"channel": "wind", "from": START, "until": START + 1}])
        with pytest.raises(SensorError, match="colums: unknown table"):
            replay("x.csv", colums={})


class TestSystem:
    def machine(self, root: Path) -> Path:
        (root / "proc").mkdir()
        (root / "proc/loadavg").write_text("0.42 0.30 0.20 1/100 4242\n")
        (root / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemAvailable:  250 kB\n")
        (root / "proc/uptime").write_text("12.5 40.0\n")
        return root

    def zone(self, root: Path, number: int, kind: str, temperature: str) -> None:
        folder = root / f"sys/class/thermal/thermal_zone{number}"
        folder.mkdir(parents=True)
        (folder / "type").write_text(kind + "\n")
        (folder / "temp").write_text(temperature + "\n")

    def read(self, root: Path) -> dict[str, Any]:
        sensor = System({"disk": str(root)}, root=root)
        sensor.open()
        (reading,) = sensor.read(START)
        sensor.close()
        assert reading.time == START
        return dict(reading.values)

    def test_what_linux_tells(self, tmp_path: Path) -> None:
        self.zone(self.machine(tmp_path), 0, "cpu-thermal", "48312")
        values = self.read(tmp_path)
        free = values.pop("disk_free")
        assert 0 <= free <= 100
        assert values == {
            "load": 0.42,
            "memory_available": 25.0,
            "cpu_temperature": 48.312,
            "uptime": 12.5,
        }

    def test_the_processor_is_preferred(self, tmp_path: Path) -> None:
        self.machine(tmp_path)
        self.zone(tmp_path, 0, "iwlwifi_1", "30000")
        self.zone(tmp_path, 1, "x86_pkg_temp", "52000")
        assert self.read(tmp_path)["cpu_temperature"] == 52.0

    @pytest.mark.parametrize("reading", ["", "N/A", "-274000", "1e9", "nan"])
    def test_a_zone_without_a_temperature_is_none(self, tmp_path: Path, reading: str) -> None:
        self.zone(self.machine(tmp_path), 0, "cpu-thermal", reading)
        assert self.read(tmp_path)["cpu_temperature"] is None

    def test_a_container_that_tells_nothing(self, tmp_path: Path) -> None:
        values = self.read(tmp_path)
        assert values.pop("disk_free") is not None
        assert set(values.values()) == {None}

    def test_a_setting_that_is_not(self) -> None:
        with pytest.raises(SensorError, match="dsk: unknown key"):
            System({"dsk": "/"})
