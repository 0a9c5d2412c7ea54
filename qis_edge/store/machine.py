"""What tells one machine from another that was started from a copy of its card."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

#: Where the kernel tells of something that is on the board, not on the card.
PLACES = (
    Path("/sys/firmware/devicetree/base/serial-number"),  # Raspberry Pi and its like
    Path("/sys/class/dmi/id/product_uuid"),  # PCs, to root only
    Path("/sys/class/dmi/id/board_serial"),
)


def machine_name(places: Iterable[Path] = PLACES) -> str:
    """A name for this machine's board, 16 characters; ``""`` where nothing tells it."""
    for place in places:
        with contextlib.suppress(OSError):
            said = place.read_bytes().strip(b"\0 \n")
            if len(set(said)) > 2:  # not all zeroes, or all F with dashes
                return hashlib.sha256(said).hexdigest()[:16]
    return ""
