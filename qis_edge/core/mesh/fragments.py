"""Fragments: what is too long for one frame, cut into tiles and put together again.

Tiles are named by a hash of what was cut up, so that a repetition goes on where the first
attempt ended, and a wrong tile is noticed at the end. Memory is bounded, in two halves:
one for radios whose packets verified lately, one for everybody else. Nobody can fill the
other half, and within a half nobody more than a share of it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from qis_edge.core.checks import require
from qis_edge.core.errors import DoesNotFit, Reason, Refused
from qis_edge.core.mesh.framing import (
    MAX_MESSAGE,
    MAX_PARTS,
    MAX_TILES,
    MIN_FRAME,
    TAG_SIZE,
    TILE_HEAD,
    Part,
    Tile,
)

#: The longest thing that is ever cut up: a type and a message.
_MAX_CUT = 1 + MAX_MESSAGE


def tag_of(data: bytes) -> bytes:
    """The name of what is cut up: the first bytes of its SHA-256."""
    return hashlib.sha256(data).digest()[:TAG_SIZE]


def cut(data: bytes, frame: int) -> tuple[Tile, ...]:
    """Cut an encoded frame into tiles of nearly the same size.

    :param frame: bytes that a frame may have.
    :raises DoesNotFit: it is longer than a message, or short enough for one frame.
    """
    require(frame >= MIN_FRAME, "frame", f"must be {MIN_FRAME} or more")
    if not frame < len(data) <= _MAX_CUT:
        raise DoesNotFit(f"{len(data)} bytes, not {frame + 1}..{_MAX_CUT}", field="data")
    count = -(-len(data) // (frame - TILE_HEAD))
    size = -(-len(data) // count)
    tag = tag_of(data)
    bodies = [data[at : at + size] for at in range(0, len(data), size)]
    return tuple(Tile(tag, i, len(bodies) - 1, body) for i, body in enumerate(bodies))


@dataclass(slots=True)
class _Partial:
    last: int
    heard_at: float
    since: float  # something was heard of it, or its rest asked for
    asked: int = 0  # how often the missing ones were asked for
    tiles: dict[int, bytes] = field(default_factory=dict)

    def overdue_at(self, wait: float) -> float:
        """When its rest should be asked for: each time twice as long after the last."""
        return self.since + wait * (1 << self.asked)

    @property
    def size(self) -> int:
        return sum(len(body) for body in self.tiles.values())

    @property
    def have(self) -> int:
        return sum(1 << index for index in self.tiles)


#: Whose it is, what it is called, and in how many tiles it comes.
_Key = tuple[int, bytes, int]


class _Half:
    """Partly received things, bounded in all and for each radio."""

    def __init__(self, capacity: int, per_radio: int) -> None:
        self.partials: OrderedDict[_Key, _Partial] = OrderedDict()
        self._capacity = capacity
        self._per_radio = per_radio

    def make_room(self, radio: int) -> None:
        mine = [key for key in self.partials if key[0] == radio]
        if len(mine) >= self._per_radio:
            del self.partials[mine[0]]
        elif len(self.partials) >= self._capacity:
            self.partials.popitem(last=False)


def _any_radio(radio: int) -> bool:  # noqa: ARG001 - it has a predicate's form
    return True


class Reassembly:
    """Puts tiles together.

    :param capacity: partly received things in each half, of at most 513 bytes each.
    :param per_radio: and of those, of one radio.
    :param patience: seconds after which an unfinished one is forgotten.
    """

    def __init__(
        self, *, capacity: int = 64, per_radio: int = 16, patience: float = 3600.0
    ) -> None:
        require(1 <= per_radio <= capacity, "per_radio", "must be 1..capacity")
        self._known = _Half(capacity, per_radio)
        self._others = _Half(capacity, max(1, per_radio // 2))
        self._patience = patience

    def take(self, radio: int, tile: Tile, now: float, *, known: bool) -> bytes | None:
        """Take in a tile; what it completes.

        :param radio: the number that its frame names: not authenticated.
        :param known: whether packets of that radio verified lately.
        :raises Refused: OVERSIZED, more than any message; NON_CANONICAL, tiles that do not
            make what their tag says (they are forgotten and come again).
        """
        self._expire(now)
        key = (radio, tile.tag, tile.last)
        half = self._half_of(key) or (self._known if known else self._others)
        partial = half.partials.get(key)
        if partial is None:
            half.make_room(radio)
            partial = half.partials[key] = _Partial(tile.last, now, now)
        half.partials.move_to_end(key)
        if tile.index not in partial.tiles:
            partial.tiles[tile.index] = tile.body
            partial.heard_at = partial.since = now
            partial.asked = 0
        if partial.size > _MAX_CUT:
            del half.partials[key]
            raise Refused(Reason.OVERSIZED, "tiles", f"more than {_MAX_CUT} bytes")
        if len(partial.tiles) <= partial.last:
            return None
        del half.partials[key]
        data = b"".join(partial.tiles[index] for index in range(partial.last + 1))
        if tag_of(data) != tile.tag:
            raise Refused(Reason.NON_CANONICAL, "tiles", "they do not make what they say")
        return data

    def _half_of(self, key: _Key) -> _Half | None:
        return next((h for h in (self._known, self._others) if key in h.partials), None)

    def _expire(self, now: float) -> None:
        for half in (self._known, self._others):
            while half.partials:
                key, oldest = next(iter(half.partials.items()))
                if now - oldest.heard_at < self._patience:
                    break
                del half.partials[key]

    def parts(self, radio: int) -> tuple[Part, ...]:
        """What is partly here of a radio, the youngest first, as an answer names it."""
        found = [
            Part(key[1], partial.have)
            for half in (self._known, self._others)
            for key, partial in reversed(half.partials.items())
            if key[0] == radio
        ]
        return tuple(found[:MAX_PARTS])

    def overdue(
        self, now: float, wait: float, times: int, wanted: Callable[[int], bool] = _any_radio
    ) -> Part | None:
        """Something of a wanted radio that nothing came of for ``wait`` seconds (twice that
        after it was asked for, and so on) and that was asked for less than ``times``.
        Asking counts. Known radios first."""
        for half in (self._known, self._others):
            for (radio, tag, _), partial in half.partials.items():
                if not wanted(radio):
                    continue
                if partial.asked < times and now >= partial.overdue_at(wait):
                    partial.asked += 1
                    partial.since = now
                    return Part(tag, partial.have)
        return None

    def next_overdue(
        self, wait: float, times: int, wanted: Callable[[int], bool] = _any_radio
    ) -> float | None:
        """When :meth:`overdue` may next have something."""
        times_due = [
            partial.overdue_at(wait)
            for half in (self._known, self._others)
            for (radio, _, _), partial in half.partials.items()
            if partial.asked < times and wanted(radio)
        ]
        return min(times_due, default=None)

    def asked(self, radio: int, now: float) -> None:
        """An answer has just told this radio what is missing: waiting begins anew."""
        for half in (self._known, self._others):
            for key, partial in half.partials.items():
                if key[0] == radio:
                    partial.since = max(partial.since, now)

    def __len__(self) -> int:
        return len(self._known.partials) + len(self._others.partials)


assert MAX_TILES * (MIN_FRAME - TILE_HEAD) >= _MAX_CUT
