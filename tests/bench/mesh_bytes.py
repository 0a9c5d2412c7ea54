"""How many bytes a packet has in a mesh frame, on real readings, and how much air it takes.

Days and outcomes are those of the packet bench. Airtime is LONG_FAST's, of whole days: ours
in one packet, against the same 24 outcomes as JSON, each in a frame of its own, and against
LXMF (where that package is installed): 24 opportunistic messages that carry the same content
as MessagePack, encrypted and signed as its own radio interface would send them, 254 bytes to
a LoRa frame. Ratios are of the medians. Every frame is read back before it counts.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

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


def lxmf_packer() -> Callable[[Outcome, int], float] | None:
    """Airtime of one outcome as an LXMF message; ``None`` where the package is missing."""
    if not all(importlib.util.find_spec(name) for name in ("RNS", "LXMF")):
        return None
    rns, lxmf = (importlib.import_module(name) for name in ("RNS", "LXMF"))
    umsgpack = importlib.import_module("RNS.vendor.umsgpack")
    ends = [
        rns.Destination(
            rns.Identity(), rns.Destination.OUT, rns.Destination.SINGLE, "lxmf", "delivery"
        )
        for _ in range(2)
    ]

    def airtime(outcome: Outcome, sequence: int) -> float:
        content = umsgpack.packb(
            [
                sequence,
                FINGERPRINT,
                outcome.time,
                outcome.kind.value,
                round(outcome.confidence * 100),
                outcome.samples,
                168,
                outcome.results,
            ]
        )
        method = lxmf.LXMessage.OPPORTUNISTIC
        message = lxmf.LXMessage(ends[0], ends[1], content, b"", desired_method=method)
        message.pack()
        if message.method != method:
            raise SystemExit("an LXMF message was too long to be opportunistic")
        packet = rns.Packet(ends[0], message.packed[lxmf.LXMessage.DESTINATION_LENGTH :])
        packet.pack()
        size, air = len(packet.raw), 0.0
        while size > 0:
            air += time_on_air_ms(min(size, LXMF_FRAME) + 1, PRESET)
            size -= LXMF_FRAME
        return air

    return airtime


def main() -> None:
    domain = Domain.parse((Path("devices") / "domains" / "air_quality.toml").read_text())
    identity = Identity.from_seed(bytes(32))
    lxmf_ms = lxmf_packer()
    singles: list[int] = []
    whole: list[int] = []
    ours: list[float] = []
    texts: list[float] = []
    theirs: list[float] = []
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
        ours.append(frames_ms(frames[1]))
        first = 1000 + 24 * number
        text = [as_json(o, FINGERPRINT, identity.kid, first + i) for i, o in enumerate(outcomes)]
        texts.append(sum(map(text_ms, text)))
        if lxmf_ms and number % 20 == 0:  # each is encrypted anew: a sample is enough
            theirs.append(sum(lxmf_ms(o, first + i) for i, o in enumerate(outcomes)))
    middle = report.quantile(ours, 0.5)
    figures: dict[str, object] = {
        "station_days": len(whole),
        "single_frame_bytes": max(singles),
        "day_frame_bytes_median": report.quantile(whole, 0.5),
        "day_frame_bytes_p90": report.quantile(whole, 0.9),
        "day_frame_bytes_max": max(whole),
        "day_airtime_ms": round(middle),
        "day_airtime_vs_json": round(report.quantile(texts, 0.5) / middle, 1),
    }
    if theirs:
        figures["day_airtime_vs_lxmf"] = round(report.quantile(theirs, 0.5) / middle, 1)
    report.write(
        "mesh_bytes", figures, limits={"single_frame_bytes": 102, "day_frame_bytes_p90": 200}
    )


if __name__ == "__main__":
    main()
