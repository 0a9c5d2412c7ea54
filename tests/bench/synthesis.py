"""How good an estimate from peers is, and how long it takes.

*Error*: three airports' hourly readings (``gateway/demo_data``). Each station in turn loses
its thermometer for 48 hours, at many dates, after at least 48 hours of learning; for each of
these hours its estimate from the two others' packets, the newest of which is up to three
hours old, is compared with the withheld reading, next to holding the last own value.

*Time*: 1,000 decoded outcomes of three results, of 1,000 peers and of 20, weighed into one
estimate.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from qis_edge.core.domain import Domain
from qis_edge.core.outcome import Outcome, Value
from qis_edge.core.synthesis import PeerReport, Synthesiser
from tests.bench import report

DATA = Path("gateway") / "demo_data" / "weather-nyc-2013.csv"
WEATHER = Domain.parse((Path("devices") / "domains" / "weather.toml").read_text())
HOUR = 3600
FAILS = 48
STALE = (0, 1, 2, 3)
LEARNED = (48, 120, 240)
#: Hours from one failure's beginning to the next one's that is tried.
STEP = 47

Table = dict[str, dict[int, Outcome]]


def readings() -> Table:
    """Station → start of the hour → what it measured."""
    table: Table = {}
    with DATA.open(newline="") as file:
        for row in csv.DictReader(file):
            station = row.pop("station")
            start = int(datetime.fromisoformat(row.pop("time")).timestamp())
            results: dict[str | int, Value] = {
                name: float(text) if text else None for name, text in row.items()
            }
            outcome = Outcome(start, confidence=0.95, samples=1, results=results)
            table.setdefault(station, {})[start] = outcome
    return table


def without(outcome: Outcome, name: str) -> Outcome:
    """The outcome of a node whose sensor of one result failed."""
    results: dict[str | int, Value] = {**outcome.results, name: None}
    return Outcome(outcome.time, outcome.kind, outcome.confidence, outcome.samples, results)


def fail(
    table: Table, station: str, begin: int, learned: int, stale: int, name: str
) -> Iterator[tuple[float, float, float, float]]:
    """(estimate, its spread, last own value, withheld reading) for each hour of a failure.

    :param begin: unix time at which the sensor fails.
    :param learned: hours before it that were learned from.
    :param stale: hours by which each peer's newest outcome is behind the hour estimated.
    """
    node = Synthesiser(WEATHER, window=HOUR, me=station.encode())
    held: float | None = None
    for start in range(begin - learned * HOUR, begin + FAILS * HOUR, HOUR):
        now = start + HOUR
        own = table[station].get(start)
        if own is not None:
            node.measured(own if start < begin else without(own, name))
        for peer, outcomes in table.items():
            heard = outcomes.get(start - stale * HOUR)
            if peer != station and heard is not None:
                node.heard(PeerReport(peer.encode(), heard), now)
        node.settle(now)
        truth = own.results[name] if own is not None else None
        if not isinstance(truth, float):
            continue
        if start < begin:
            held = truth
            continue
        made = node.estimate(start, now, results=[name]).results[name]
        assert isinstance(made.value, float)
        assert held is not None
        yield made.value, made.spread, held, truth


def errors(table: Table, learned: int, stale: int, name: str) -> dict[str, float]:
    """Mean absolute errors, pooled over all stations and dates."""
    first = min(table["EWR"]) + max(LEARNED) * HOUR
    last = max(table["EWR"]) - FAILS * HOUR
    estimate = hold = 0.0
    within = count = 0
    for station in table:
        for begin in range(first, last, STEP * HOUR):
            for value, spread, held, truth in fail(table, station, begin, learned, stale, name):
                estimate += abs(value - truth)
                hold += abs(held - truth)
                within += abs(value - truth) <= spread
                count += 1
    return {
        "estimate_mae": round(estimate / count, 3),
        "hold_last_mae": round(hold / count, 3),
        "within_spread": round(within / count, 3),
        "hours": count,
    }


#: Milliseconds to weigh 1,000 packets, and what is missed (docs/performance.md says why) and
#: held to what it reached.
WANTED_MS = {"synthesis_1000_ms.peers_1000": 2.0, "synthesis_1000_ms.peers_20": 2.0}
MISSED_MS = {"synthesis_1000_ms.peers_1000": 4.0}


def weigh(peers: int, packets: int = 1000) -> float:
    """Milliseconds to weigh so many outcomes, spread over so many peers, into an estimate of
    three results; the best of several, in time of this thread's processor."""
    names = ("temperature", "dewpoint", "pressure")
    node = Synthesiser(WEATHER, window=HOUR, me=b"me")
    kids = [n.to_bytes(8) for n in range(peers)]
    hours = packets // peers
    for hour in range(20):
        start = hour * HOUR
        results: dict[str | int, Value] = dict.fromkeys(names, 20.0 if hour % 2 else 21.0)
        results["pressure"] = 1000.0
        node.measured(Outcome(start, samples=60, results=results))
        for n, kid in enumerate(kids):
            theirs: dict[str | int, Value] = {
                name: float(value) + n % 7 for name, value in results.items() if value is not None
            }
            node.heard(PeerReport(kid, Outcome(start, samples=60, results=theirs)), start + HOUR)
        node.settle(start + HOUR)
    best = 1e9
    for again in range(25):
        start = (40 + again * (hours + 1)) * HOUR
        now = start + (hours + 1) * HOUR
        reports = [
            PeerReport(
                kid,
                Outcome(
                    start + hour * HOUR,
                    samples=60,
                    results={"temperature": 20.0 + n % 9, "dewpoint": 5.0 + n % 7, "pressure": 1e3},
                ),
            )
            for hour in range(hours)
            for n, kid in enumerate(kids)
        ]
        began = time.thread_time()
        for one in reports:
            node.heard(one, now)
        node.estimate(now - HOUR, now, results=names)
        best = min(best, (time.thread_time() - began) * 1000)
    return round(best, 2)


def main() -> None:
    report.precedence()
    table = readings()
    figures: dict[str, object] = {}
    pooled = []
    for learned in LEARNED:
        for stale in STALE:
            got = errors(table, learned, stale, "temperature")
            figures[f"mae_{learned}h_learned_{stale}h_stale"] = got["estimate_mae"]
            if stale:
                pooled.append(got)
    hours = sum(got["hours"] for got in pooled)
    mean = {
        key: sum(got[key] * got["hours"] for got in pooled) / hours
        for key in ("estimate_mae", "hold_last_mae", "within_spread")
    }
    figures |= {key: round(value, 3) for key, value in mean.items()}
    figures["hours"] = hours
    figures["ratio"] = round(mean["estimate_mae"] / mean["hold_last_mae"], 3)
    figures["synthesis_1000_ms"] = {"peers_1000": weigh(1000), "peers_20": weigh(20)}
    for key, bound in MISSED_MS.items():
        print(f"  {key}: at most {WANTED_MS[key]:g} is wanted and missed; held to {bound:g}")
    limits = {"ratio": 0.5, **WANTED_MS, **MISSED_MS}
    report.write("synthesis", figures, limits=limits)


if __name__ == "__main__":
    main()
