"""How many bytes a packet has, on real readings, next to JSON of the same content; and how
long packing and opening one takes, next to PyNaCl alone.

One outcome is the first hour of a station's day, a day is its 24 hours: PM2.5 at 1 µg/m³,
temperature and dew point at 0.1 °C, confidence drawn from 80 to 95, one kind in five
``partial``, 60 samples each. Every packet is read back and compared before it counts.

A ratio is the time of ``SigningKey.sign`` or ``VerifyKey.verify``, of the very bytes that
the packet's signature is over, by ours: rounds of each in turn, the best of each, in time
of this thread's processor. ``pack_ratio`` packs one outcome, ``open_ratio`` opens a packet
of one and leaves its columns for when they are asked for, ``decode_ratio`` expands them
too; ``day_…`` are of packets of 24 outcomes.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from nacl.signing import SigningKey

from qis_edge.core.domain import Domain
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Kind, Outcome, Value
from qis_edge.core.packet import Packet, pack, unpack
from tests.bench import report

DATA = Path(__file__).parent / "data" / "air-quality.csv.gz"
RESULTS = {"PM2.5": "pm2_5", "TEMP": "temperature", "DEWP": "dewpoint"}
SEED = 20161101
#: Packets of one round, and rounds of each: the best counts.
PACKETS, ROUNDS = 100, 40
FINGERPRINT = bytes(range(32))
STORE = b"\x01\x02\x03\x04"
#: What precedes the payload and its head in what is signed (RFC 9052 section 4.4).
STRUCTURE = b"\x84\x6aSignature1\x43\xa1\x01\x32\x4cqis/packet/1"


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


def best(*works: Callable[[], object]) -> list[float]:
    """Microseconds a packet of each, taken in turn so that all have the same luck."""
    least = [float("inf")] * len(works)
    for _ in range(ROUNDS):
        for number, work in enumerate(works):
            began = time.thread_time()
            work()
            least[number] = min(least[number], time.thread_time() - began)
    return [round(seconds / PACKETS * 1e6, 1) for seconds in least]


def speed(domain: Domain, some: list[list[Outcome]], prefix: str = "") -> dict[str, float]:
    identity = Identity.from_seed(bytes(32))
    signer = SigningKey(bytes(32))
    verifier, public = signer.verify_key, identity.public
    assert verifier.encode() == public.raw

    def make(outcomes: list[Outcome]) -> Packet:
        return pack(
            outcomes,
            identity=identity,
            fingerprint=FINGERPRINT,
            store=STORE,
            sequence=70_000,
            domain=domain,
        )

    raws = [make(outcomes).raw for outcomes in some]
    texts = [STRUCTURE + raw[17:-66] for raw in raws]
    signed = [raw[-64:] + text for raw, text in zip(raws, texts, strict=True)]
    sign, packing, verify, opening, decoding = best(
        lambda: [signer.sign(text) for text in texts],
        lambda: [make(outcomes) for outcomes in some],
        lambda: [verifier.verify(one) for one in signed],
        lambda: [unpack(raw, public, lazy=True) for raw in raws],
        lambda: [unpack(raw, public) for raw in raws],
    )
    figures = {
        "pack_ratio": round(sign / packing, 3),
        "open_ratio": round(verify / opening, 3),
        "decode_ratio": round(verify / decoding, 3),
        "pack_us": packing,
        "open_us": opening,
        "decode_us": decoding,
        "sign_us": sign,
        "verify_us": verify,
    }
    return {prefix + name: figure for name, figure in figures.items()}


def main() -> None:
    report.precedence()
    domain = Domain.parse((Path("devices") / "domains" / "air_quality.toml").read_text())
    identity = Identity.from_seed(bytes(32))
    singles: list[int] = []
    whole: list[int] = []
    texts: list[int] = []
    every = list(days().values())
    for number, outcomes in enumerate(every):
        for several, sizes in ((outcomes[:1], singles), (outcomes, whole)):
            packet = pack(
                outcomes=several,
                identity=identity,
                fingerprint=FINGERPRINT,
                store=STORE,
                sequence=1000 + number,
                domain=domain,
            )
            if list(unpack(packet.raw, identity.public).named(domain)) != several:
                raise SystemExit("a packet did not come back as it went in")
            sizes.append(len(packet.raw))
        texts.append(len(as_json(outcomes[0], FINGERPRINT, identity.kid, 1000 + number)))
    one = speed(domain, [outcomes[:1] for outcomes in every[:PACKETS]])
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
            **one,
            **speed(domain, every[:PACKETS], "day_"),
            "ratio": min(one["pack_ratio"], one["open_ratio"]),
        },
        limits={"single_bytes": 160, "day_bytes_p90": 258},
        floors={"pack_ratio": 0.6, "open_ratio": 0.75},
    )


if __name__ == "__main__":
    main()
