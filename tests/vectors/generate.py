"""Writes packets.json anew. Run it only to add a vector; a change of an old one is a change
of the format: ``python -m tests.vectors.generate``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cbor2

from qis_edge.core import cbor, cose
from qis_edge.core.errors import Refused
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Kind, Outcome
from qis_edge.core.packet import AAD, Extensions, Packet, pack, unpack

HERE = Path(__file__).parent
SEED = hashlib.sha256(b"qis golden vector key").digest()
ME = Identity.from_seed(SEED)
ADDRESS = hashlib.sha256(b"qis golden vector address").digest()
STORE = bytes.fromhex("5eedcafe")
T0 = 1357000000


def outcome(i: int = 0, **results: object) -> Outcome:
    return Outcome(T0 + 3600 * i, Kind(i % 4), (80 + i % 16) / 100, 60, results)  # type: ignore[arg-type] # built from literals


def day() -> list[Outcome]:
    temperatures = [-1.2, -1.5, -2.0, -2.4, -2.4, -3.1, -3.3, -2.8, -1.0, 0.7, 2.1, 3.8]
    temperatures += [4.4, 5.0, 5.2, 4.7, 3.6, 2.2, 1.5, 0.9, 0.4, 0.0, -0.4, -0.9]
    return [outcome(i, temperature=t, humidity=60.0 + i) for i, t in enumerate(temperatures)]


VALID: dict[str, dict[str, object]] = {
    "one outcome, three results": {
        "outcomes": [outcome(0, pm2_5=215.0, temperature=-4.5, dewpoint=-12.1)]
    },
    "a day of 24 hourly outcomes": {"outcomes": day(), "sequence": 70000},
    "missing values in a series": {
        "outcomes": [outcome(i, t=None if i in (1, 4) else 20.0 + i / 10) for i in range(9)]
    },
    "a series of nothing": {"outcomes": [outcome(0, t=None)]},
    "no results at all": {"outcomes": [Outcome(T0, Kind.OPEN, 0.0, 0)]},
    "irregular intervals": {
        "outcomes": [Outcome(T0 + t, results={"t": 1.0}) for t in (0, 60, 3600, 3661, 90000)]
    },
    "two outcomes at one time": {"outcomes": [Outcome(T0, results={"t": v}) for v in (1.0, 2.0)]},
    "words": {
        "outcomes": [
            Outcome(T0 + i, results={"wind": w, "sky": "clear"})
            for i, w in enumerate(("nw", "n", "nw", None, "ne"))
        ]
    },
    "summaries": {
        "outcomes": [
            Outcome(T0, summary="Frost on the lower field."),
            Outcome(T0 + 3600),
            Outcome(T0 + 7200, summary="Gr\u00fc\u00dfe \u2603"),
        ]
    },
    "one summary": {"outcomes": [Outcome(T0, summary="x" * 200)]},
    "a name and a word of characters of two bytes": {
        "outcomes": [Outcome(T0, results={"\u00fc" * 64: "\u00e9" * 80})]
    },
    "powers of ten from -12 to 12": {
        "outcomes": [
            Outcome(
                T0,
                results={
                    "tiny": 3e-12,
                    "huge": 7e12,
                    "large": 2.0**53,
                    "round": 1500.0,
                },
            )
        ]
    },
    "every extension": {
        "outcomes": [outcome(0, t=1.0)],
        "extensions": Extensions((0.125, -1.0, 3.5), ("estimate", "test"), 300, 41),
    },
    "largest numbers": {
        "outcomes": [Outcome(2**40 - 1, Kind.OPEN, 1.0, 2**32 - 1)],
        "sequence": 2**32 - 1,
        "ttl": 24 * 365 * 100,
    },
    "512 outcomes, all alike": {
        "outcomes": [Outcome(T0 + 60 * i, results={"t": 21.5}) for i in range(512)]
    },
}


def made(arguments: dict[str, object]) -> Packet:
    given = {"sequence": 7, "ttl": 168, **arguments}
    return pack(identity=ME, fingerprint=ADDRESS, store=STORE, **given)  # type: ignore[arg-type] # built from literals


def described(packet: Packet) -> dict[str, object]:
    extensions = packet.extensions
    return {
        "kid": packet.kid.hex(),
        "id": packet.id.hex(),
        "fingerprint": packet.fingerprint.hex(),
        "store": packet.store.hex(),
        "sequence": packet.sequence,
        "ttl": packet.ttl,
        "vector": extensions.vector and list(extensions.vector),
        "tags": list(extensions.tags),
        "time_uncertainty": extensions.time_uncertainty,
        "floor": extensions.floor,
        "outcomes": [
            {
                "time": o.time,
                "kind": o.kind.name.lower(),
                "confidence": o.confidence,
                "samples": o.samples,
                "results": [[label, value] for label, value in o.results.items()],
                "summary": o.summary,
            }
            for o in shown(packet.outcomes)
        ],
        "count": packet.count,
    }


def shown(outcomes: tuple[Outcome, ...]) -> tuple[Outcome, ...]:
    """All of a few outcomes, the first and the last of many."""
    return outcomes if len(outcomes) <= 40 else (outcomes[0], outcomes[-1])


def signed(payload: bytes) -> bytes:
    return cose.sign1(ME, payload, AAD)


def payload(**changes: object) -> list[object]:
    one = [0, 90, 60, {1: 215}]
    parts: dict[str, object] = {
        "fingerprint": ADDRESS,
        "store": STORE,
        "sequence": 7,
        "time": T0,
        "ttl": 168,
        "columns": one,
    }
    parts.update(changes)
    return list(parts.values())


def with_columns(*columns: object) -> bytes:
    return signed(cbor.dumps(payload(columns=list(columns))))


def many(
    count: object = 3, intervals: object = 60, kind: object = 0, series: object = None
) -> bytes:
    return with_columns(count, intervals, kind, 90, 60, {1: 5} if series is None else series)


def each_form() -> bytes:
    numbers = {1: 5, 2: [0, 5], 3: [1, [5]], 4: b"\x00\x0a", 5: None, 6: [-1, None], 7: [2, [None]]}
    words = {8: "a", 9: [["a"], 0], 10: [["a"], [0]], 11: [["a"], None], 12: [["a"], b"\x00\x00"]}
    return with_columns(0, 90, b"\x00\x78", {**numbers, **words}, [[""], [0]])


def past_the_order(scalar: bytes) -> bytes:
    """The other S of the same value, below 2^256."""
    order = 2**252 + 27742317777372353535851937790883648493
    return (int.from_bytes(scalar, "little") + order).to_bytes(32, "little")


def nested(depth: int) -> list[object]:
    return [nested(depth - 1)] if depth > 1 else []


def refused() -> dict[str, bytes]:
    good = made(VALID["one outcome, three results"]).raw
    body = cbor.dumps(payload())
    other = Identity.from_seed(bytes(32))
    raw_payload = {
        "indefinite array as payload": b"\x9f" + body[1:] + b"\xff",
        "a longer form of an integer": body.replace(b"\x07\x1a", b"\x18\x07\x1a", 1),
        "a bignum as sequence": body.replace(b"\x07\x1a", b"\xc2\x49\x01" + bytes(8) + b"\x1a", 1),
        "a tag in the payload": body.replace(b"\x07\x1a", b"\xc1\x07\x1a", 1),
        "a float as sequence": body.replace(b"\x07\x1a", b"\xf9\x47\x00\x1a", 1),
        "an undefined value": body.replace(b"\x07\x1a", b"\xf7\x1a", 1),
        "trailing bytes in the payload": body + b"\x00",
        "a truncated payload": body[:-1],
        "a nesting bomb": b"\x81" * 300,
        "an array of 2^64-1 elements": b"\x9b" + b"\xff" * 8,
        "a key twice": body[:-4] + b"\xa2\x01\x05\x01\x06",
        "keys out of order": body[:-4] + b"\xa2\x02\x05\x01\x06",
        "text that is not UTF-8": body[:-4] + b"\xa1\x01\x62\xff\xfe",
        "a map as payload": cbor.dumps({1: 2}),
    }
    return {
        "nothing": b"",
        "truncated by one byte": good[:-1],
        "truncated in the header": good[:5],
        "513 bytes": good + bytes(513 - len(good)),
        "trailing byte": good + b"\x00",
        "indefinite outer array": b"\xd2\x9f" + good[2:] + b"\xff",
        "untagged": good[1:],
        "another algorithm": good.replace(b"\xa1\x01\x32", b"\xa1\x01\x26", 1),
        "a second unprotected header": good[:6]
        + b"\xa2\x04\x48"
        + ME.kid
        + b"\x05\x40"
        + good[17:],
        "a signature of 63 bytes": good.replace(b"\x58\x40", b"\x58\x3f", 1)[:-1],
        "signature changed": good[:-1] + bytes((good[-1] ^ 1,)),
        "signature with S past the order": good[:-32] + past_the_order(good[-32:]),
        "payload changed": good.replace(ADDRESS, ADDRESS[:-1] + bytes((ADDRESS[-1] ^ 1,))),
        "signed by another key": good[:9] + ME.kid + cose.sign1(other, body, AAD)[17:],
        "signed for another purpose": cose.sign1(ME, body, b"qis/credential/1"),
        **{name: signed(data) for name, data in raw_payload.items()},
        "five elements": signed(cbor.dumps(payload()[:5])),
        "fingerprint of 31 bytes": signed(cbor.dumps(payload(fingerprint=bytes(31)))),
        "fingerprint as text": signed(cbor.dumps(payload(fingerprint="x" * 32))),
        "store of 5 bytes": signed(cbor.dumps(payload(store=bytes(5)))),
        "sequence of 2^32": signed(cbor.dumps(payload(sequence=2**32))),
        "negative sequence": signed(cbor.dumps(payload(sequence=-1))),
        "true as sequence": signed(cbor.dumps(payload(sequence=True))),
        "time past 2^40": signed(cbor.dumps(payload(time=2**40))),
        "columns as a map": signed(cbor.dumps(payload(columns={}))),
        "three columns": with_columns(0, 90, 60),
        "kind 4": with_columns(4, 90, 60, {}),
        "confidence 101": with_columns(0, 101, 60, {}),
        "negative samples": with_columns(0, 90, -1, {}),
        "no kind": with_columns(None, 90, 60, {}),
        "series as array": with_columns(0, 90, 60, []),
        "a label of null": with_columns(0, 90, 60, {None: 1}),
        "an empty label": with_columns(0, 90, 60, {"": 1}),
        "power 13": with_columns(0, 90, 60, {1: [13, 5]}),
        "a value past 2^53": with_columns(0, 90, 60, {1: 2**53 + 1}),
        "a boolean value": with_columns(0, 90, 60, {1: True}),
        "a series nested too deep": with_columns(0, 90, 60, {1: [[[["x"]]]]}),
        "summary of 201 characters": with_columns(0, 90, 60, {}, "x" * 201),
        "count 1 written out": many(count=1),
        "count 513": many(count=513),
        "count 2^32": many(count=2**32),
        "negative interval": many(intervals=-1),
        "times past 2^40": many(intervals=2**32 - 1, count=512),
        "an array of other length": many(series={1: [0, [1, 1]]}),
        "packed: empty": many(series={1: b""}),
        "packed: width 33": many(series={1: b"\x21\x00" + bytes(13)}),
        "packed: width 63": many(series={1: b"\x3f\x00" + bytes(24)}),
        "packed: bits missing": many(series={1: b"\x08\x00\x01\x02"}),
        "packed: bytes left over": many(series={1: b"\x08\x00\x01\x02\x03\x04"}),
        "packed: padding not zero": many(series={1: b"\x01\x00\xff"}),
        "packed: longer varint": many(series={1: b"\x08\x80\x00\x01\x02\x03"}),
        "packed: endless varint": many(series={1: b"\x08" + b"\xff" * 12}),
        "packed: bits of a bitmap's end not zero": many(series={1: b"\x80\xb0\x0a"}),
        "packed: lowest missing": many(series={1: b"\x40\x0a"}),
        "an array of nothing": many(series={1: [0, []]}),
        "a difference past 2^53": many(series={1: [0, [0, 2**53 + 1, 0]]}),
        "a sum past 64 bits": many(series={1: [0, [2**63, 2**64 - 1, 2**64 - 1]]}),
        "a series of three elements": many(series={1: [0, 5, 5]}),
        "a series of text and a column of text": many(series={1: ["a", "b"]}),
        "power of true": many(series={1: [True, 5]}),
        "power of null": many(series={1: [None, 5]}),
        "a missing interval": many(intervals=[60, None]),
        "no intervals": many(intervals=None),
        "a summary of a number": with_columns(0, 90, 60, {}, 5),
        "packed: bitmap of all": many(series={1: b"\x88\xe0\x00\x01\x02\x03"}),
        "packed: bitmap of none": many(series={1: b"\x88\x00\x00"}),
        "words: index past the end": many(series={1: [["a"], [0, 0, 1]]}),
        "words: more than rows": many(series={1: [["a", "b", "c", "d"], [0, 1, 1]]}),
        "words: none": many(series={1: [[], [0, 0, 0]]}),
        "empty extensions": signed(cbor.dumps([*payload(), {}])),
        "extensions as array": signed(cbor.dumps([*payload(), []])),
        "a text key in extensions": signed(cbor.dumps([*payload(), {"a": 1}])),
        "17 vector values": signed(cbor.dumps([*payload(), {1: [-3, [0] * 17]}])),
        "vector of text": signed(cbor.dumps([*payload(), {1: [-3, ["a"]]}])),
        "no vector values": signed(cbor.dumps([*payload(), {1: [-3, []]}])),
        "vector power -13": signed(cbor.dumps([*payload(), {1: [-13, [0]]}])),
        "vector past 2^53": signed(cbor.dumps([*payload(), {1: [0, [-(2**53) - 1]]}])),
        "an empty tag": signed(cbor.dumps([*payload(), {2: [""]}])),
        "no tags": signed(cbor.dumps([*payload(), {2: []}])),
        "uncertainty of null": signed(cbor.dumps([*payload(), {3: None}])),
        "uncertainty past 2^40": signed(cbor.dumps([*payload(), {3: 2**40}])),
        "a float that would be passed over": signed(
            b"\x87" + body[1:] + b"\xa1\x18\x63\xf9\x3c\x00"
        ),
        "arrays nested nine deep, passed over": signed(cbor.dumps([*payload(), {99: nested(7)}])),
        "a key of true": signed(cbor.dumps([*payload(), {True: 1}])),
        "ttl past a century": signed(cbor.dumps(payload(ttl=876001))),
        "eight elements": signed(cbor.dumps([*payload(), {3: 1}, 0])),
        "five columns and one": with_columns(0, 90, 60, {}, None, None, None, None),
        "a label of 65 characters": with_columns(0, 90, 60, {"x" * 65: 1}),
        "label 65536": with_columns(0, 90, 60, {65536: 1}),
        "a negative label": with_columns(0, 90, 60, {-1: 1}),
        "a label of bytes": with_columns(0, 90, 60, {b"a": 1}),
        "65 series": with_columns(0, 90, 60, dict.fromkeys(range(65), 1)),
        "samples past 2^32": with_columns(0, 90, 2**32, {}),
        "a word of 201 characters": with_columns(0, 90, 60, {1: "x" * 201}),
        "9 tags": signed(cbor.dumps([*payload(), {2: list("abcdefghi")}])),
        "a tag of 33 characters": signed(cbor.dumps([*payload(), {2: ["x" * 33]}])),
        "negative floor": signed(cbor.dumps([*payload(), {4: -1}])),
    }


def main() -> None:
    valid = []
    for name, arguments in VALID.items():
        packet = made(arguments)
        valid.append({"name": name, "raw": packet.raw.hex(), "packet": described(packet)})
    eddsa = b"\xd2\x84\x43\xa1\x01\x27\xa1\x04\x48" + ME.kid
    body = cbor.dumps(payload())
    structure = b"\x84\x6aSignature1\x43\xa1\x01\x27" + cbor2.dumps(AAD) + cbor2.dumps(body)
    old = eddsa + cbor2.dumps(body) + b"\x58\x40" + ME.sign(structure)
    read_only = [
        {"name": "algorithm -8", "raw": old.hex()},
        {
            "name": "an unknown extension",
            "raw": signed(cbor.dumps([*payload(), {99: "new"}])).hex(),
        },
        {
            "name": "a column that is not the shortest",
            "raw": many(series={1: [0, [5, 0, 0]]}).hex(),
        },
        {"name": "numbers for one outcome in each form", "raw": each_form().hex()},
        {
            "name": "packed: no differences of one present row",
            "raw": many(series={1: b"\xc0\x40\x0a\x01"}).hex(),
        },
        {
            "name": "packed: distances of 32 bits",
            "raw": many(series={1: b"\x20\x01" + bytes(8) + b"\xff" * 4}).hex(),
        },
        {
            "name": "words: one twice, one not used",
            "raw": many(series={1: [["a", "b", "a"], [0, 2, -2]]}).hex(),
        },
        {
            "name": "arrays nested eight deep, passed over",
            "raw": signed(cbor.dumps([*payload(), {99: nested(6)}])).hex(),
        },
    ]
    for case in read_only:
        packet = unpack(bytes.fromhex(case["raw"]), ME.public)
        case["packet"] = described(packet)  # type: ignore[assignment] # JSON is not typed
    bad = []
    for name, raw in refused().items():
        try:
            unpack(raw, ME.public)
        except Refused as error:
            bad.append(
                {
                    "name": name,
                    "raw": raw.hex(),
                    "reason": error.reason.label,
                    "field": error.field,
                }
            )
        else:
            raise SystemExit(f"accepted: {name}")
    document = {
        "seed": SEED.hex(),
        "valid": valid,
        "read_only": read_only,
        "refused": bad,
    }
    (HERE / "packets.json").write_text(json.dumps(document, indent=1) + "\n")
    for case in bad:
        print(f"{case['name']:36} {case['reason']:15} {case['field']}")


if __name__ == "__main__":
    main()
