"""What a mesh link needs to know."""

from __future__ import annotations

from dataclasses import dataclass

from qis_edge.core.checks import require
from qis_edge.core.mesh.framing import DEFAULT_FRAME, MAX_FRAME, MIN_FRAME


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """What a mesh link needs to know.

    :param radio: ``auto``, a port, part of a name in ``/dev/serial/by-id``, or
        ``tcp:HOST[:PORT]``.
    :param channel: index of the radio's channel.
    :param frame: bytes that our frames have at most.
    :param relays: radios between a node and its gateway that pass frames on.
    :param duty_cycle: 0..1 in the place of the region's.
    :param hop_limit: the radio's own, unless given.
    :param rate: how many times as fast as real time an emulated radio runs.
    """

    radio: str = "auto"
    channel: int = 0
    frame: int = DEFAULT_FRAME
    relays: int = 0
    duty_cycle: float | None = None
    hop_limit: int | None = None
    rate: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.channel <= 7, "channel", "must be 0..7")
        require(MIN_FRAME <= self.frame <= MAX_FRAME, "frame", f"must be {MIN_FRAME}..{MAX_FRAME}")
        require(self.relays >= 0, "relays", "must be 0 or more")
        share, hops = self.duty_cycle, self.hop_limit
        require(share is None or 0 < share <= 1, "duty_cycle", "must be more than 0, at most 1")
        require(hops is None or 0 <= hops <= 7, "hop_limit", "must be 0..7")
        require(self.rate > 0, "rate", "must be more than 0")
