"""What is to be said to nodes of their packets, and receipts made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from qis_edge.core import receipt as receipts
from qis_edge.core.errors import Reason
from qis_edge.core.packet import Packet
from qis_edge.core.receipt import MAX_RECEIPT, Receipt

#: (kid, store)
Origin = tuple[bytes, bytes]


def origin_of(packet: Packet) -> Origin:
    """Whose it is, and of which of its stores."""
    return packet.kid, packet.store


@dataclass(slots=True)
class Word:
    """What is to be said to one node of one of its stores."""

    held: list[int] = field(default_factory=list)
    refused: dict[Reason, list[int]] = field(default_factory=dict)
    later: dict[int, list[int]] = field(default_factory=dict)
    ids: dict[int, bytes] = field(default_factory=dict)

    def receipt(self, store: bytes) -> Receipt:
        """Each sequence once, though its packet may have come twice."""
        named: set[int] = set()

        def once(sequences: list[int]) -> tuple[int, ...]:
            fresh = sorted(set(sequences) - named)
            named.update(fresh)
            return tuple(fresh)

        refused = tuple((reason, once(group)) for reason, group in self.refused.items())
        later = tuple((seconds, once(group)) for seconds, group in self.later.items())
        return Receipt(
            store,
            once(self.held),
            tuple(group for group in refused if group[1]),
            tuple(group for group in later if group[1]),
        )

    def sealed(
        self, store: bytes, key: bytes, epoch: bytes, limit: int = MAX_RECEIPT
    ) -> list[bytes]:
        """As receipts of at most ``limit`` bytes each."""
        return receipts.build_all(self.receipt(store), key, epoch, self.ids, limit)


class Words:
    """What is to be said, by node and store. Two contents under one number have a word
    each: a receipt is of packets, and names each by its id."""

    def __init__(self) -> None:
        self._words: dict[Origin, list[Word]] = {}
        #: How many packets are named.
        self.packets = 0

    def of(self, origin: Origin, sequence: int, packet_id: bytes) -> Word:
        """The word to a node, in which this packet will be named."""
        words = self._words.setdefault(origin, [])
        for word in words:
            known = word.ids.get(sequence)
            if known is None:
                word.ids[sequence] = packet_id
                self.packets += 1
            if known is None or known == packet_id:
                return word
        words.append(Word(ids={sequence: packet_id}))
        self.packets += 1
        return words[-1]

    def held(self, origin: Origin, sequence: int, packet_id: bytes) -> None:
        """It is in custody."""
        self.of(origin, sequence, packet_id).held.append(sequence)

    def refused(self, origin: Origin, sequence: int, packet_id: bytes, reason: Reason) -> None:
        """It is never to come again."""
        refused = self.of(origin, sequence, packet_id).refused
        refused.setdefault(reason, []).append(sequence)

    def later(self, origin: Origin, sequence: int, packet_id: bytes, seconds: int) -> None:
        """It is to come again."""
        later = self.of(origin, sequence, packet_id).later
        later.setdefault(seconds, []).append(sequence)

    def __len__(self) -> int:
        """To how many stores."""
        return len(self._words)

    def pop(self) -> tuple[Origin, list[Word]]:
        """What is to be said to the one who waits longest, and no more after this.

        :raises KeyError: nothing is to be said.
        """
        origin = next(iter(self._words), None)
        if origin is None:
            raise KeyError("nothing")
        words = self._words.pop(origin)
        self.packets -= sum(len(word.ids) for word in words)
        return origin, words

    def __iter__(self) -> Iterator[tuple[Origin, Word]]:
        return ((origin, word) for origin, words in self._words.items() for word in words)
