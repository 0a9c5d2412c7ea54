"""How many bytes a packet has, on real readings, next to JSON of the same content.

One outcome is the first hour of a station's day, a day is its 24 hours: PM2.5 at 1 µg/m³,
temperature and dew point at 0.1 °C, confidence drawn from 80 to 95, one kind in five
``partial``, 60 samples each. Every packet is read back and compared before it counts.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
from datetime import datetime
from pathlib import Path

from qis_edge.core.domain import Domain
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Kind, Outcome, Value
from qis_edge.core.packet import pack, unpack
from tests.bench import report

DATA = Path(__file__).parent / "data" / "air-quality.csv.gz"
RESULTS = {"PM2.5": "pm2_5", "TEMP": "temperature", "DEWP": "dewpoint"}
SEED = 20161101


def days() -> dict[tuple[str, str], list[Outcome]]:
    """Station and date → its 24 outcomes."""
    rng = random.Random(SEED)
    found: dict[tuple[str, str], list[Outcome]] = {}
    with gzip.open(DATA, "rt", newline="") as file:
        for row in csv.DictReader(file):
            results: dict[str | int, Value] = {
                name: float(row[column]) if row[column] else None
                for column, name in RESULTS.items()
            }
            outcome = Outcome(
                time=int(datetime.fromisoformat(row["time"]).timestamp()),
                kind=Kind.PARTIAL if rng.random() < 0.2 else Kind.RESOLVED,
                confidence=rng.randint(80, 95) / 100,
                samples=60,
                results=results,
            )
            found.setdefault((row["station"], row["time"][:10]), []).append(outcome)
    return {day: outcomes for day, outcomes in found.items() if len(outcomes) == 24}


def as_json(outcome: Outcome, fingerprint: bytes, kid: bytes, sequence: int) -> bytes:
    """The same content, unsigned, as compact JSON."""
    form = {
        "node": kid.hex(),
        "sequence": sequence,
        "fingerprint": fingerprint.hex(),
        "time": outcome.time,
        "kind": outcome.kind.name.lower(),
        "confidence": outcome.confidence,
        "samples": outcome.samples,
        "ttl": 168,
        "results": outcome.results,
    }
    return json.dumps(form, separators=(",", ":")).encode()


def main() -> None:
    domain = Domain.parse((Path("devices") / "domains" / "air_quality.toml").read_text())
    identity = Identity.from_seed(bytes(32))
    fingerprint = bytes(range(32))
    singles: list[int] = []
    whole: list[int] = []
    texts: list[int] = []
    for number, outcomes in enumerate(days().values()):
        for several, sizes in ((outcomes[:1], singles), (outcomes, whole)):
            packet = pack(
                outcomes=several,
                identity=identity,
                fingerprint=fingerprint,
                store=b"\x01\x02\x03\x04",
                sequence=1000 + number,
                domain=domain,
            )
            if list(unpack(packet.raw, identity.public).named(domain)) != several:
                raise SystemExit("a packet did not come back as it went in")
            sizes.append(len(packet.raw))
        texts.append(len(as_json(outcomes[0], fingerprint, identity.kid, 1000 + number)))
    report.write(
        "packet",
        {
            "station_days": len(whole),
            "single_bytes": max(singles),
            "single_bytes_median": report.quantile(singles, 0.5),
            "day_bytes_median": report.quantile(whole, 0.5),
            "day_bytes_p90": report.quantile(whole, 0.9),
            "day_bytes_max": max(whole),
            "json_single_bytes": report.quantile(texts, 0.5),
        },
        limits={"single_bytes": 160, "day_bytes_p90": 258},
    )


if __name__ == "__main__":
    main()
