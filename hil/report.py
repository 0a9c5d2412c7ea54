"""What a run on the bench measured, and what it comes to: figures, text and JSON.

A :class:`Run` is what was seen; :func:`figures` makes of it what the report shows, and nothing
that is shown is computed anywhere else. Durations are of the air's own clock, which on emulated
radios runs :attr:`Bench.rate` times as fast as ours; only :class:`Result` and
:attr:`Run.seconds` are of ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from qis_edge.core.airtime import HOUR, REGIONS

T = TypeVar("T")
K = TypeVar("K")

#: Points of a plot that are kept; more are thinned out evenly.
MOST_POINTS = 400


@dataclass(frozen=True, slots=True)
class Bench:
    """What the tests ran on: ``radio`` or ``line``, emulated or not."""

    medium: str
    emulated: bool
    rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Device:
    """A radio, and what its handshake told; or one end of a line, of which nothing is told."""

    role: str
    address: str
    number: int = 0
    name: str = ""
    firmware: str = ""
    region: str = ""
    preset: str = ""


@dataclass(slots=True)
class Hop:
    """A frame on its way from one radio to the host of another.

    :param at: seconds since the run began, when the sender's radio took it.
    :param took: seconds until the receiver's host had it; ``None``: it did not arrive.
    :param counts: whether it should have arrived: nobody disturbed it, and it was listened for.
    """

    source: str
    to: str
    size: int
    at: float
    took: float | None = None
    snr: float | None = None
    rssi: int | None = None
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Spent:
    """A frame that a radio sent.

    :param life: emulated radios are new for each test, and so is their hour.
    """

    source: str
    at: float
    size: int
    airtime: float  # seconds
    life: int = 0


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """There and back: ``what`` says what came back, ``size`` is of what went there, bytes."""

    what: str
    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Transfer:
    """Something that took a while: so many bytes (and outcomes), in so many seconds."""

    what: str
    size: int
    seconds: float
    outcomes: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """A test: ``passed``, ``failed`` or ``skipped``; the note says why. Seconds are real."""

    name: str
    outcome: str
    seconds: float
    note: str = ""


@dataclass(slots=True)
class Run:
    """All that was seen.

    :param began: unix seconds.
    :param seconds: of the whole run, real ones.
    """

    began: float = 0.0
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    benches: list[Bench] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    hops: list[Hop] = field(default_factory=list)
    spent: list[Spent] = field(default_factory=list)
    round_trips: list[RoundTrip] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    #: Role → per cent of the last minute busy, per cent of the last hour sent, as the radio says.
    telemetry: dict[str, tuple[float, float]] = field(default_factory=dict)


# --- figures -----------------------------------------------------------------------------


def figures(run: Run) -> dict[str, Any]:
    """All that the report says, as it is written to JSON."""
    outcomes = [result.outcome for result in run.results]
    return {
        "passed": bool(outcomes) and "failed" not in outcomes,
        "tests_passed": outcomes.count("passed"),
        "tests_failed": outcomes.count("failed"),
        "tests_skipped": outcomes.count("skipped"),
        "benches": [asdict(bench) for bench in run.benches],
        "date": datetime.fromtimestamp(run.began, UTC).isoformat(timespec="seconds"),
        "seconds": _short(run.seconds),
        "versions": dict(run.versions),
        "devices": [_facts(device, run.telemetry) for device in run.devices],
        "round_trips": _round_trips(run.round_trips),
        "delivery": _delivery(run.hops),
        "signal": _signal(run.hops),
        "throughput": [_transfer(one) for one in run.transfers],
        "airtime": [_airtime(one, run.spent) for one in run.devices if one.preset],
        "tests": [
            {
                "name": one.name,
                "outcome": one.outcome,
                "seconds": _short(one.seconds),
                "note": one.note,
            }
            for one in run.results
        ],
    }


def _facts(radio: Device, telemetry: dict[str, tuple[float, float]]) -> dict[str, Any]:
    busy, sent = telemetry.get(radio.role, (None, None))
    return {
        "role": radio.role,
        "address": radio.address,
        "number": f"!{radio.number:08x}" if radio.number else "",
        "name": radio.name,
        "firmware": radio.firmware,
        "region": radio.region,
        "preset": radio.preset,
        "channel_utilization": _maybe(busy),
        "air_util_tx": _maybe(sent),
    }


def _round_trips(trips: Iterable[RoundTrip]) -> list[dict[str, Any]]:
    found = []
    for what, some in _grouped(trips, lambda one: one.what).items():
        found.append(
            {
                "what": what,
                "count": len(some),
                **spread([one.seconds for one in some]),
                "points": thinned([(one.size, _short(one.seconds)) for one in some]),
            }
        )
    return found


def _delivery(hops: Iterable[Hop]) -> list[dict[str, Any]]:
    found = []
    for (source, to), some in _ways(one for one in hops if one.counts).items():
        took = [one.took for one in some if one.took is not None]
        found.append(
            {
                "from": source,
                "to": to,
                "sent": len(some),
                "delivered": len(took),
                "ratio": _short(len(took) / len(some)),
                "delay": spread(took),
            }
        )
    return found


def _signal(hops: Iterable[Hop]) -> list[dict[str, Any]]:
    found = []
    for (source, to), some in _ways(one for one in hops if one.took is not None).items():
        seen = [
            (_short(one.at), one.snr, one.rssi)
            for one in some
            if one.snr is not None and one.rssi is not None
        ]
        if seen:
            found.append(
                {
                    "from": source,
                    "to": to,
                    "frames": len(seen),
                    "snr": spread([snr for _, snr, _ in seen]),
                    "rssi": spread([float(rssi) for _, _, rssi in seen]),
                    "points": thinned(seen),
                }
            )
    return found


def _transfer(one: Transfer) -> dict[str, Any]:
    return {
        "what": one.what,
        "bytes": one.size,
        "outcomes": one.outcomes,
        "seconds": _short(one.seconds),
        "bytes_per_second": _short(one.size / one.seconds) if one.seconds else None,
    }


def _airtime(radio: Device, spent: Iterable[Spent]) -> dict[str, Any]:
    ours = [one for one in spent if one.source == radio.role]
    region = REGIONS.get(radio.region)
    allowed = region.duty_cycle * HOUR if region is not None and region.duty_cycle < 1 else None
    lives = _grouped(ours, lambda one: one.life).values()
    worst = max(
        (busiest_hour([(one.at, one.airtime) for one in life]) for life in lives), default=0.0
    )
    return {
        "radio": radio.role,
        "frames": len(ours),
        "seconds": _short(sum(one.airtime for one in ours)),
        "busiest_hour": _short(worst),
        "allowed_an_hour": _maybe(allowed),
        "share": _short(worst / allowed) if allowed else None,
    }


def busiest_hour(spent: Sequence[tuple[float, float]]) -> float:
    """The most seconds on air within any hour, of (time, airtime)."""
    first, total, most = 0, 0.0, 0.0
    spent = sorted(spent)
    for at, airtime in spent:
        total += airtime
        while spent[first][0] <= at - HOUR:
            total -= spent[first][1]
            first += 1
        most = max(most, total)
    return most


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Least, percentiles and most; all ``None`` of no values."""
    shares = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    if not values:
        return dict.fromkeys(shares)
    ordered = sorted(values)
    return {
        name: _short(ordered[max(0, math.ceil(share * len(ordered)) - 1)])
        for name, share in shares.items()
    }


def thinned(points: Sequence[T], most: int = MOST_POINTS) -> list[T]:
    """At most so many of them, evenly, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _grouped(values: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return groups


def _ways(hops: Iterable[Hop]) -> dict[tuple[str, str], list[Hop]]:
    return dict(sorted(_grouped(hops, lambda one: (one.source, one.to)).items()))


def _short(value: float) -> float:
    """Four significant digits are more than any of this is good for."""
    return float(f"{value:.4g}")


def _maybe(value: float | None) -> float | None:
    return None if value is None else _short(value)


# --- text --------------------------------------------------------------------------------


def to_json(found: dict[str, Any]) -> str:
    """The figures, for programs."""
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def where(benches: Iterable[Mapping[str, Any]]) -> str:
    """On what it ran, in a few words; ``benches`` as in the figures."""
    parts = []
    for bench in benches:
        emulated = bench["emulated"]
        kind = "EMULATED" if emulated else "real"
        what = f"{kind} radios"
        if bench["medium"] != "radio":
            what = f"{'an' if emulated else 'a'} {kind} serial line"
        fast = f", {bench['rate']:g} times as fast" if bench["rate"] != 1 else ""
        parts.append(what + fast)
    return "; ".join(parts) or "nothing"


def verdict(found: dict[str, Any]) -> str:
    """How the tests ended, in a few words."""
    parts = [
        f"{found[f'tests_{outcome}']} {outcome}"
        for outcome in ("passed", "failed", "skipped")
        if found[f"tests_{outcome}"]
    ]
    return ", ".join(parts) or "no test ran"


def to_text(found: dict[str, Any]) -> str:
    """The figures, for a terminal or a letter."""
    lines = [
        f"Hardware in the loop: {verdict(found)}",
        f"on {where(found['benches'])}",
        f"{found['date']}, {found['seconds']:.0f} s; "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
    ]
    for title, rows in tables(found):
        lines += ["", title, *_aligned(rows)]
    failed = [one for one in found["tests"] if one["outcome"] != "passed"]
    if failed:
        lines += ["", "Not passed"]
        lines += [f"  {one['outcome']}  {one['name']}: {one['note']}" for one in failed]
    return "\n".join(lines) + "\n"


def tables(found: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """(title, rows) of everything but the tests, the first row the heads; for text and page."""
    made = [
        ("Radios", _radio_rows(found)),
        ("Line", _line_rows(found)),
        ("Round trips", _trip_rows(found)),
        ("Delivery", _delivery_rows(found)),
        ("Signal", _signal_rows(found)),
        ("Throughput", _throughput_rows(found)),
        ("Airtime", _airtime_rows(found)),
    ]
    return [(title, rows) for title, rows in made if len(rows) > 1]


def _radio_rows(found: dict[str, Any]) -> list[list[str]]:
    keys = ("role", "number", "name", "firmware", "region", "preset", "address")
    radios = [one for one in found["devices"] if one["preset"]]
    return [["", *keys[1:-1], "port"], *([one[key] for key in keys] for one in radios)]


def _line_rows(found: dict[str, Any]) -> list[list[str]]:
    ends = [one for one in found["devices"] if not one["preset"]]
    return [["end", "port"], *([one["role"], one["address"]] for one in ends)]


def _trip_rows(found: dict[str, Any]) -> list[list[str]]:
    names = ("min", "p50", "p90", "p99", "max")
    return [["seconds", "count", *names]] + [
        [one["what"], str(one["count"]), *(number(one[name]) for name in names)]
        for one in found["round_trips"]
    ]


def _delivery_rows(found: dict[str, Any]) -> list[list[str]]:
    return [["frames", "sent", "delivered", "ratio", "delay p50 s", "p90"]] + [
        [
            f"{one['from']} → {one['to']}",
            str(one["sent"]),
            str(one["delivered"]),
            f"{100 * one['ratio']:.1f}%",
            number(one["delay"]["p50"]),
            number(one["delay"]["p90"]),
        ]
        for one in found["delivery"]
    ]


def _signal_rows(found: dict[str, Any]) -> list[list[str]]:
    names = ("min", "p50", "max")
    heads = [f"SNR {name} dB" if name == "min" else name for name in names]
    heads += [f"RSSI {name} dBm" if name == "min" else name for name in names]
    return [["", "frames", *heads]] + [
        [
            f"{one['from']} → {one['to']}",
            str(one["frames"]),
            *(number(one["snr"][name]) for name in names),
            *(number(one["rssi"][name]) for name in names),
        ]
        for one in found["signal"]
    ]


def _throughput_rows(found: dict[str, Any]) -> list[list[str]]:
    return [["", "bytes", "outcomes", "seconds", "bytes/s"]] + [
        [
            one["what"],
            str(one["bytes"]),
            str(one["outcomes"] or ""),
            number(one["seconds"]),
            number(one["bytes_per_second"]),
        ]
        for one in found["throughput"]
    ]


def _airtime_rows(found: dict[str, Any]) -> list[list[str]]:
    return [["", "frames", "on air s", "busiest hour s", "allowed s", "share"]] + [
        [
            one["radio"],
            str(one["frames"]),
            number(one["seconds"]),
            number(one["busiest_hour"]),
            number(one["allowed_an_hour"]) or "no limit",
            f"{100 * one['share']:.1f}%" if one["share"] is not None else "",
        ]
        for one in found["airtime"]
    ]


def number(value: float | None) -> str:
    """A figure as people write it."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:.0f}"
    digits = 2 if abs(value) >= 0.1 or not value else 4
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = [i == 0 or not any(_numeric(row[i]) for row in rows[1:]) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if first else cell.rjust(width)
            for cell, width, first in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in rows
    ]


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or (cell[:1] == "-" and cell[1:2].isdigit())
