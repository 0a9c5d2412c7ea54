"""Readings from a CSV file, at the pace of the node's clock."""

# ruff: noqa: RUF009 - the calls in these dataclasses make fields
from __future__ import annotations

import contextlib
import csv
import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, ClassVar

from qis_edge.core.errors import ConfigError, SensorError
from qis_edge.core.outcome import Value
from qis_edge.schema import (
    WORD,
    Choice,
    Duration,
    File,
    Flag,
    ListOf,
    MapOf,
    Moment,
    Tables,
    Text,
    Where,
    Wrong,
    closest,
    did_you_mean,
    from_mapping,
    setting,
)
from qis_edge.sensor import Reading
from qis_edge.terminal import harmless

#: Readings of one call, at most; the next call goes on from there.
MOST = 1000
_PACKAGED = r"[A-Za-z_][\w.]*:[^/:][^:]*"
#: No line of a table of readings is longer; a binary file has lines of any length.
_LONGEST_LINE = 1 << 16


class TableFile(File):
    """A path, or ``package:resource`` for a file inside a Python package."""

    def __init__(self) -> None:
        super().__init__(exists=True, what='a path, or "package:resource"')
        self._packaged = Text(_PACKAGED)

    def parse(self, value: object, where: Where) -> Any:
        """See :class:`qis_edge.schema.Type`."""
        if isinstance(value, str) and ":" in value:
            with contextlib.suppress(Wrong):
                return self._packaged.parse(value, where)
        return super().parse(value, where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A time in which a channel fails. For rehearsals."""

    channel: str = setting(WORD, doc="The channel.", example="temperature")
    begin: float = setting(
        Moment(), doc="When it begins.", name="from", example="2013-06-01T00:00:00Z"
    )
    until: float = setting(
        Moment(), doc="When it has ended; not part of it.", example="2013-06-03T00:00:00Z"
    )
    how: str = setting(
        Choice("missing", "error"),
        "missing",
        "The channel is ``missing`` from readings, or reading the sensor is an ``error``.",
    )

    def check(self, where: Where) -> None:
        """What does not go together."""
        if self.until <= self.begin:
            (where / "until").wrong("must be later than from")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """The ``replay`` driver: a table of readings, played at the pace of the node's clock."""

    file: Path | str = setting(
        TableFile(),
        doc="The table: CSV in UTF-8 with a line of column names, rows in order of time.",
        example="readings.csv",
    )
    time: str = setting(
        Text(),
        "time",
        "The column of the time: unix seconds, or a date such as ``2013-01-01T05:00:00Z``; "
        "without an offset it is in UTC.",
    )
    columns: Mapping[str, str] = setting(
        MapOf(Text(what="the name of a column"), key=WORD, least=1),
        doc="The column of each channel.",
        example={"temperature": "temp"},
    )
    units: Mapping[str, str] = setting(
        MapOf(Text(what="a unit (UCUM)"), key=WORD),
        {},
        "The unit of each channel (UCUM).",
        example={"temperature": "Cel"},
    )
    words: tuple[str, ...] = setting(
        ListOf(WORD), [], "The channels whose cells are words; those of others are numbers."
    )
    where: Mapping[str, str] = setting(
        MapOf(Text(least=0)),
        {},
        "Only rows that have this text in this column.",
        example={"station": "EWR"},
    )
    empty: tuple[str, ...] = setting(
        ListOf(Text(least=0)), ["", "NA", "NaN", "nan"], "Cells that stand for no value."
    )
    history: float | None = setting(
        Duration("0s", "3650d"),
        None,
        "How far before the first look rows are still given; all of them, unless given.",
        example="1h",
    )
    loop: bool = setting(
        Flag(), False, "Whether to begin anew after the last row, with the times moved on."
    )
    fail: tuple[Failure, ...] = setting(
        Tables(Failure),
        [],
        "Times in which a channel fails.",
    )

    @staticmethod
    def parts(made: dict[str, Any], where: Where) -> None:
        """What does not go together."""
        columns = list(made["columns"] or {})
        named = [
            *((where / "units" / name, name) for name in made["units"] or {}),
            *((where / "words" / n, name) for n, name in enumerate(made["words"] or ())),
            *((where / "fail" / n / "channel", f.channel) for n, f in _given(made["fail"])),
        ]
        for at, name in named:
            if name is not None and name not in columns and made["columns"] is not None:
                at.wrong("there is no such channel in columns", did_you_mean(name, columns))


def _given(failures: tuple[Failure | None, ...] | None) -> list[tuple[int, Failure]]:
    return [(n, one) for n, one in enumerate(failures or ()) if one is not None]


@dataclass(frozen=True, slots=True)
class _Row:
    """What a row gives at its time: a reading or an error."""

    time: float
    reading: Reading | None = None
    error: SensorError | None = None


class Replay:
    """The driver ``replay``. Reads ahead by one row, whatever the size of the file."""

    settings: ClassVar[type] = ReplaySettings

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """See :class:`qis_edge.sensor.SensorFactory`."""
        try:
            self._said = from_mapping(ReplaySettings, settings)
        except ConfigError as error:
            raise SensorError(str(error)) from error
        self.channels: Mapping[str, str] = {
            name: self._said.units.get(name, "1") for name in self._said.columns
        }
        self._file: IO[str] | None = None
        self._rows: Iterator[_Row] = iter(())
        self._next: _Row | None = None
        self._begun = False

    def open(self) -> None:
        """See :class:`qis_edge.sensor.Sensor`. A first row that cannot be used is an error."""
        self.close()
        self._rows = self._endless() if self._said.loop else self._once(0.0)
        self._begun = False
        self._next = next(self._rows, None)
        if self._next is not None and self._next.time == -math.inf and self._next.error:
            error = self._next.error
            self.close()
            raise error

    def read(self, now: float) -> list[Reading]:
        """See :class:`qis_edge.sensor.Sensor`.

        A row that cannot be used raises :class:`SensorError` once, after the readings before
        it were given; the call after that goes on behind it.
        """
        first, self._begun = not self._begun, True
        oldest = -math.inf
        if first and self._said.history is not None:
            oldest = now - self._said.history
        found: list[Reading] = []
        while (row := self._next) is not None and row.time <= now and len(found) < MOST:
            if row.error is not None and found:
                break
            self._next = next(self._rows, None)
            if row.time < oldest:
                continue
            if row.error is not None:
                raise row.error
            if row.reading is not None:
                found.append(row.reading)
        return found

    def close(self) -> None:
        """See :class:`qis_edge.sensor.Sensor`."""
        self._rows = iter(())
        self._next = None
        if self._file is not None:
            self._file.close()
            self._file = None

    # --- rows --------------------------------------------------------------------------

    def _endless(self) -> Iterator[_Row]:
        """The table again and again, each time moved on by its length and one more step."""
        shift = 0.0
        while True:
            times: list[float] = []
            for row in self._once(shift):
                if row.reading is not None:
                    times = [*times[:1], *times[1:][-1:], row.time]
                yield row
            if not times:
                return
            step = times[-1] - times[-2] if len(times) > 1 else 1.0
            shift += times[-1] - times[0] + (step or 1.0)

    def _once(self, shift: float) -> Iterator[_Row]:
        last = -math.inf
        try:
            for number, cells in self._table():
                row = self._row(number, cells, shift, last)
                last = row.time
                yield row
        except SensorError as error:
            yield _Row(last, error=error)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            why = getattr(error, "strerror", None) or error
            yield _Row(last, error=SensorError(f"{self._name}: cannot be read: {why}"))

    @property
    def _name(self) -> str:
        return harmless(self._said.file, limit=300)

    def _table(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Line number and cells of each row that is wanted, in order of time."""
        self._file = file = self._open_file()
        reader = csv.reader(_bounded(file))
        header = next(reader, None)
        if not header:
            raise SensorError(f"{self._name}: is empty, it must have a line of column names")
        header = [name.strip() for name in header]
        self._check_header(header)
        wanted = list(self._said.where.items())
        with file:
            for cells in reader:
                row = dict(zip(header, cells, strict=False))
                if cells and all(row.get(column) == text for column, text in wanted):
                    yield reader.line_num, row

    def _open_file(self) -> IO[str]:
        source = self._said.file
        if isinstance(source, Path):
            if not source.is_file():
                raise SensorError(f"{self._name}: there is no such file", hint="set file")
            return source.open(encoding="utf-8-sig", newline="")
        package, _, resource = source.partition(":")
        try:
            folder, *_ = importlib.import_module(package).__path__
            return Path(folder, resource).open(encoding="utf-8-sig", newline="")
        except (ImportError, AttributeError, FileNotFoundError, TypeError, ValueError) as error:
            raise SensorError(f"{self._name}: there is no such file in that package") from error

    def _check_header(self, header: list[str]) -> None:
        said = self._said
        for column in (said.time, *said.where, *said.columns.values()):
            if column not in header:
                near = closest(column, header)
                raise SensorError(
                    f"{self._name}: there is no column {harmless(column, limit=60)}",
                    hint=f"did you mean {harmless(near)}?"
                    if near
                    else f"it has {harmless(', '.join(header), limit=200)}",
                )

    def _row(self, number: int, cells: dict[str, str], shift: float, last: float) -> _Row:
        time = last
        try:
            found = _time(cells.get(self._said.time, "")) + shift
            if found < last:
                raise ValueError("is earlier than the row before it")
            time = found
            values = {
                channel: self._value(channel, cells.get(column, ""))
                for channel, column in self._said.columns.items()
            }
        except ValueError as error:
            return _Row(time, error=SensorError(f"{self._name}, row {number}: {error}"))
        for failure in self._said.fail:
            if failure.begin <= time < failure.until:
                if failure.how == "error":
                    return _Row(time, error=SensorError(f"{failure.channel}: no answer"))
                values[failure.channel] = None
        return _Row(time, Reading(time, values))

    def _value(self, channel: str, cell: str) -> Value:
        cell = cell.strip()
        if cell in self._said.empty:
            return None
        if channel in self._said.words:
            return cell
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(
                f'{self._said.columns[channel]}: "{harmless(cell, limit=40)}" is not a number'
            )
        return value


def _time(cell: str) -> float:
    """Unix seconds of a date or a number.

    :raises ValueError: it is neither.
    """
    cell = cell.strip()
    with contextlib.suppress(ValueError):
        seconds = float(cell)
        if 0 <= seconds < 2**40:
            return seconds
    try:
        at = datetime.fromisoformat(cell)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f'"{harmless(cell, limit=40)}" is not a date') from None


def _bounded(file: IO[str]) -> Iterator[str]:
    """The lines of a file, none of which may be endless."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) >= _LONGEST_LINE:
            raise csv.Error("a line is longer than 64 KiB: this is no table")
        yield line
