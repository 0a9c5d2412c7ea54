"""A shared link on which nodes ask for receipts, as a radio is, for the tests."""

from __future__ import annotations

from collections.abc import Sequence

from qis_edge.core import receipt as receipts
from qis_edge.core.errors import Refused
from qis_edge.core.identity import Identity
from qis_edge.core.packet import Packet
from qis_edge.core.receipt import MacKeys, Receipt
from qis_edge.links.base import Cadence, Direction, Question, Received
from tests.gateway.kit import Wire


class Air(Wire):
    """A gateway's radio: keeps what is sent, answered and forgotten."""

    def __init__(self, window: int = 1000, patience: float = 300.0) -> None:
        super().__init__(window)
        self.shared = True
        self.cadence = Cadence(patience=patience)
        self.replies: list[tuple[Question, list[bytes]]] = []
        self.forgotten: list[bytes] = []

    def reply(self, question: Question, receipts: Sequence[bytes]) -> None:
        self.replies.append((question, list(receipts)))

    def forget(self, packet_id: bytes) -> None:  # type: ignore[override]  # another meaning
        self.forgotten.append(packet_id)

    def ask(self, who: Identity | bytes, *sequences: int, store: bytes = b"abcd") -> Question:
        """A question comes in."""
        kid = who if isinstance(who, bytes) else who.kid
        question = Question(((kid, store),), sequences)
        self._queue.append(Received(b"", Direction.UP, question=question))
        self._arrived.notify()
        return question


def believed(sealed: Sequence[bytes], keys: MacKeys, epoch: bytes, *of: Packet) -> list[Receipt]:
    """What a node reads in receipts that it verifies, knowing these packets of its own; it
    passes over what does not verify, as nodes do."""
    ids = {packet.sequence: packet.id for packet in of}
    found = []
    for raw in sealed:
        message = receipts.parse(raw)
        try:
            receipts.verify(message, keys.to_node, epoch, ids.get)
        except Refused:
            continue
        found.append(message.receipt)
    return found
