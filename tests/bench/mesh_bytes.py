"""How many bytes a packet has in a mesh frame, on real readings, and how much air it takes.

Days and outcomes are those of the packet bench, airtime is LONG_FAST's, ratios are of the
medians of whole days. Ours is a day in one signed packet, and every frame is read back before
it counts. Next to it, with the same content:

* ``json``: as one would first do it, each outcome when it is made, as a compact JSON text of
  its own, unsigned, in as few frames of the radio as it takes (two: it has some 260 bytes,
  64 of which are the fingerprint);
* ``json_batched``: the 24 outcomes as one text that says once what they share, deflated;
* ``lxmf``: each outcome when it is made, as MessagePack in an opportunistic LXMF message,
  signed, encrypted and with Reticulum's header, in frames of its own radio interface;
* ``lxmf_packed``: those messages as packed, signed, without Reticulum's header and
  encryption, in frames as ours;
* ``lxmf_batched``: as ``lxmf``, with as many outcomes in a message as stay opportunistic.

Where the package ``lxmf`` is missing its figures are ``None`` and ``lxmf`` says why. Only its
packing is used: no network stack is started and nothing is written.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import zlib
from pathlib import Path
from typing import Any

from qis_edge.core.airtime import MAX_PAYLOAD, PRESETS, airtime_ms, time_on_air_ms
from qis_edge.core.domain import Domain
from qis_edge.core.identity import Identity
from qis_edge.core.mesh.elision import Context, elide, restore
from qis_edge.core.mesh.fragments import cut
from qis_edge.core.mesh.framing import DEFAULT_FRAME, Elided, decode, decode_cut
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Packet, pack, unpack
from tests.bench import report
from tests.bench.packet import as_json, days

PRESET = PRESETS["LONG_FAST"]
STORE = b"\x01\x02\x03\x04"
FINGERPRINT = bytes(range(32))
#: LoRa frames of LXMF's radio interface have a byte of header.
LXMF_FRAME = 254
OTHERS = ("json", "json_batched", "lxmf", "lxmf_packed", "lxmf_batched")


def frame_of(packet: Packet, identity: Identity) -> bytes:
    """The packet's elided frame, read back as a gateway would."""
    elided = elide(packet)
    if elided is None:
        raise SystemExit("a packet could not be elided")
    data = elided.encode()
    heard = decode(data) if len(data) <= MAX_PAYLOAD else decode_cut(data)
    assert isinstance(heard, Elided)
    if unpack(restore(Context.of(packet), heard.rest), identity.public) != packet:
        raise SystemExit("a packet did not come back as it went in")
    return data


def frames_ms(data: bytes) -> float:
    """Airtime of a frame, or of its tiles."""
    if len(data) <= DEFAULT_FRAME:
        return airtime_ms(len(data), PRESET)
    return sum(airtime_ms(len(tile.encode()), PRESET) for tile in cut(data, DEFAULT_FRAME))


def text_ms(text: bytes) -> float:
    """Airtime of a text in as few frames as it takes."""
    parts = [text[at : at + MAX_PAYLOAD] for at in range(0, len(text), MAX_PAYLOAD)]
    return sum(airtime_ms(len(part), PRESET) for part in parts)


def batched_json(outcomes: list[Outcome], kid: bytes, sequence: int) -> bytes:
    """A day, deflated; what its outcomes share is said once."""
    texts = [json.loads(as_json(one, FINGERPRINT, kid, sequence)) for one in outcomes]
    shared = {key: texts[0][key] for key in ("node", "fingerprint", "sequence", "ttl")}
    rows = [{key: text[key] for key in text if key not in shared} for text in texts]
    form = {**shared, "outcomes": rows}
    return zlib.compress(json.dumps(form, separators=(",", ":")).encode(), 9)


class Lxmf:
    """LXMF messages between two destinations that exist only here.

    :raises ImportError: the package is not installed.
    """

    def __init__(self) -> None:
        self._rns = importlib.import_module("RNS")
        self._message = importlib.import_module("LXMF").LXMessage
        self._pack = importlib.import_module("RNS.vendor.umsgpack").packb
        self.version = importlib.metadata.version("lxmf")
        kind = self._rns.Destination
        self._to, self._by = (
            kind(self._rns.Identity(), kind.OUT, kind.SINGLE, "lxmf", "delivery") for _ in range(2)
        )

    def message(self, outcomes: list[Outcome], sequence: int) -> Any:
        """An opportunistic message of these; ``None``: it would be too long for one."""
        rows = [
            [o.time, o.kind.value, round(o.confidence * 100), o.samples, o.results]
            for o in outcomes
        ]
        content = self._pack([sequence, FINGERPRINT, 168, *(rows if len(rows) > 1 else rows[0])])
        wanted = self._message.OPPORTUNISTIC
        message = self._message(self._to, self._by, content, b"", desired_method=wanted)
        message.pack()
        return message if message.method == wanted else None

    def on_air_ms(self, message: Any) -> float:
        """Airtime as Reticulum sends it, by its own radio interface."""
        packet = self._rns.Packet(self._to, message.packed[self._message.DESTINATION_LENGTH :])
        packet.pack()
        raw = len(packet.raw)
        parts = [min(LXMF_FRAME, raw - at) for at in range(0, raw, LXMF_FRAME)]
        return sum(time_on_air_ms(part + 1, PRESET) for part in parts)

    def day_ms(self, outcomes: list[Outcome], sequence: int) -> tuple[float, float, float]:
        """Airtimes of a day: a message for each outcome; those as packed; batched."""
        singles = [self.message([one], sequence + i) for i, one in enumerate(outcomes)]
        if None in singles:
            raise SystemExit("an LXMF message of one outcome was too long to be opportunistic")
        batched, rest = 0.0, outcomes
        while rest:
            count = 1
            while count < len(rest) and self.message(rest[: count + 1], sequence):
                count += 1
            batched += self.on_air_ms(self.message(rest[:count], sequence))
            rest = rest[count:]
        return (
            sum(map(self.on_air_ms, singles)),
            sum(text_ms(one.packed) for one in singles),
            batched,
        )


def lxmf() -> tuple[Lxmf | None, str]:
    """It, and its version or why it is missing."""
    try:
        found = Lxmf()
    except ImportError as error:
        return None, f"not measured: {error}; the extra 'bench' installs it"
    return found, found.version


def main() -> None:
    domain = Domain.parse((Path("devices") / "domains" / "air_quality.toml").read_text())
    identity = Identity.from_seed(bytes(32))
    theirs, about_theirs = lxmf()
    singles: list[int] = []
    whole: list[int] = []
    text_bytes: list[int] = []
    airtimes: dict[str, list[float]] = {name: [] for name in ("ours", *OTHERS)}
    for number, outcomes in enumerate(days().values()):
        frames = [
            frame_of(
                pack(
                    several,
                    identity=identity,
                    fingerprint=FINGERPRINT,
                    store=STORE,
                    sequence=1000 + number,
                    domain=domain,
                ),
                identity,
            )
            for several in (outcomes[:1], outcomes)
        ]
        singles.append(len(frames[0]))
        whole.append(len(frames[1]))
        airtimes["ours"].append(frames_ms(frames[1]))
        first = 1000 + 24 * number
        text = [as_json(o, FINGERPRINT, identity.kid, first + i) for i, o in enumerate(outcomes)]
        text_bytes += map(len, text)
        airtimes["json"].append(sum(map(text_ms, text)))
        airtimes["json_batched"].append(text_ms(batched_json(outcomes, identity.kid, first)))
        if theirs and number % 10 == 0:  # each is signed and encrypted: a sample is enough
            for name, ms in zip(OTHERS[2:], theirs.day_ms(outcomes, first), strict=True):
                airtimes[name].append(ms)
    middle = {name: report.quantile(ms, 0.5) if ms else None for name, ms in airtimes.items()}
    ours = report.quantile(airtimes["ours"], 0.5)
    report.write(
        "mesh-bytes",
        {
            "station_days": len(whole),
            "single_frame_bytes": max(singles),
            "day_frame_bytes_median": report.quantile(whole, 0.5),
            "day_frame_bytes_p90": report.quantile(whole, 0.9),
            "day_frame_bytes_max": max(whole),
            "json_bytes_median": report.quantile(text_bytes, 0.5),
            "lxmf": about_theirs,
            "day_airtime_ms": {name: ms and round(ms) for name, ms in middle.items()},
            "outcome_airtime_ms": {name: ms and round(ms / 24, 1) for name, ms in middle.items()},
            **{
                f"day_airtime_vs_{name}": ms and round(ms / ours, 1)
                for name, ms in middle.items()
                if name != "ours"
            },
        },
        limits={"single_frame_bytes": 102, "day_frame_bytes_p90": 200},
        floors={"day_airtime_vs_json": 15, "day_airtime_vs_lxmf": 15},
    )


if __name__ == "__main__":
    main()
