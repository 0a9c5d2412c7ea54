"""The MQTT topics, made and read. Their home is ``docs/wire-format.md``.

    qis/v1/<site>/up/<kid>           a node's frames to the gateways
    qis/v1/<site>/down/<kid>         a gateway's frames to one node
    qis/v1/<site>/peers/<address>    a gateway's frames to all who listen to an address
    qis/v1/<site>/state/<kid>        retained: "online" or "offline"

``<kid>`` is 8 bytes and ``<address>`` the first 16 bytes of a fingerprint, in lower-case
hex: an ACL can hold each node to its own, and no topic lets a reader walk up an address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qis_edge.core.errors import UsageError
from qis_edge.links.base import Direction

KID = 8
ADDRESS = 16

_SITE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEX = re.compile(r"[0-9a-f]+")
_LENGTHS = {Direction.UP: KID, Direction.DOWN: KID, Direction.PEERS: ADDRESS}


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one site.

    :raises UsageError: ``site`` is not 1 to 64 of ``A-Z a-z 0-9 _ -``.
    """

    site: str

    def __post_init__(self) -> None:
        if not _SITE.fullmatch(self.site):
            raise UsageError(
                f"{self.site!r} is not 1 to 64 letters, digits, '_' or '-'", field="site"
            )

    @property
    def root(self) -> str:
        """What every topic of the site begins with, slash included."""
        return f"qis/v1/{self.site}/"

    @property
    def every_up(self) -> str:
        """The filter for what all nodes send."""
        return f"{self.root}up/+"

    def up(self, kid: bytes) -> str:
        """Where the node with this kid sends."""
        return f"{self.root}up/{_hex(kid, KID, 'kid')}"

    def down(self, kid: bytes) -> str:
        """Where the node with this kid is reached."""
        return f"{self.root}down/{_hex(kid, KID, 'kid')}"

    def peers(self, fingerprint: bytes) -> str:
        """Where those are reached who listen to this fingerprint (32 bytes)."""
        return f"{self.root}peers/{_hex(fingerprint, 32, 'fingerprint')[: 2 * ADDRESS]}"

    def state(self, kid: bytes) -> str:
        """Where a node or gateway says that it is there."""
        return f"{self.root}state/{_hex(kid, KID, 'kid')}"

    def parse(self, topic: str) -> tuple[Direction, bytes] | None:
        """The direction and the kid or address of a topic, or ``None`` if not of ours."""
        if not topic.startswith(self.root):
            return None
        word, slash, name = topic[len(self.root) :].partition("/")
        for direction, length in _LENGTHS.items():
            if word == direction.value:
                well_formed = slash and len(name) == 2 * length and _HEX.fullmatch(name)
                return (direction, bytes.fromhex(name)) if well_formed else None
        return None


def _hex(value: bytes, length: int, field: str) -> str:
    if len(value) != length:
        raise UsageError(f"{len(value)} bytes, {length} wanted", field=field)
    return value.hex()
