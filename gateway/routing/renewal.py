"""Publishes again what a feed's medium would forget.

The view of such a feed is what has the packets for good; each gateway publishes again all
that its own view has and that has not expired, in rounds. Where a round stands is kept with
the view.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from gateway.routing.base import Entry
from gateway.routing.feed import ForgetfulFeed
from gateway.routing.sqlite import SqliteFile
from qis_edge.core.errors import Refused, RoutingError
from qis_edge.links.backoff import Backoff

_T = TypeVar("_T")

log = logging.getLogger(__name__)

#: Packets that are published again at once.
SLICE = 64
#: The share of a round's time in which it is done, unless the feed is slower.
SHARE = 0.5
#: Seconds between attempts while the feed is away: the first, and the longest.
RETRY_FIRST, RETRY_LONGEST = 1.0, 60.0

#: ``_read`` and ``_write`` of a view.
On = Callable[[Callable[[SqliteFile], _T]], Awaitable[_T]]


class Round(NamedTuple):
    """:param began: unix seconds. :param seq: the last number that was published again;
    ``None`` once it is done."""

    began: float
    seq: int | None


class Renewal:
    """The rounds of one view."""

    def __init__(self, feed: ForgetfulFeed, read: On[Slice], write: On[None]) -> None:
        self._feed = feed
        self._read = read
        self._write = write

    async def run(self) -> None:
        """Until cancelled."""
        backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        while True:
            try:
                await asyncio.sleep(await self.step())
                backoff.reset()
            except RoutingError as error:
                log.info("%s: packets could not be published again: %s", self._feed.url, error)
                await asyncio.sleep(backoff.next())

    async def step(self) -> float:
        """Publish the next few again; seconds until those after them.

        :raises RoutingError: the feed is away, or the view cannot be read.
        """
        now = time.time()
        found = await self._read(lambda file: _slice(file, now))
        place, every = found.place, self._feed.renewal
        if place is None:  # what there is was just published
            await self._write(lambda file: _put(file, Round(now, None)))
            return every
        if place.seq is None:
            left = place.began + every - now
            if 0 < left <= every:  # else the clock was set
                return left
            place = Round(now, 0)
            await self._write(lambda file: _put(file, place))
            return 0.0
        if found.entries:
            await self._feed.renew(found.entries)
        done = Round(place.began, found.last)
        await self._write(lambda file: _put(file, done))
        if found.last is None:
            return 0.0
        return SHARE * every * SLICE / max(found.packets, 1)


class Slice(NamedTuple):
    """Of the view: the next to be published, and what is known beside.

    :param last: where the round then stands; ``None``: at its end.
    """

    place: Round | None
    entries: list[Entry]
    last: int | None
    packets: int


def _slice(file: SqliteFile, now: float) -> Slice:
    """(reads)"""
    text = file.reader.row("SELECT value FROM facts WHERE name = 'renewal'")
    place = None if text is None else Round(*json.loads(text[0]))
    if place is None or place.seq is None:
        return Slice(place, [], None, 0)
    rows = file.reader.rows(
        "SELECT seq, raw, expires FROM packets WHERE seq > ? ORDER BY seq LIMIT ?",
        (place.seq, SLICE),
    )
    entries = []
    for _, raw, expires in rows:
        if expires > now:
            try:
                entries.append(Entry.parse(raw))
            except Refused:  # the disk has failed; queries count it
                continue
    last = rows[-1][0] if len(rows) == SLICE else None
    return Slice(
        place, entries, last, file.reader.number("SELECT value FROM facts WHERE name = 'packets'")
    )


def _put(file: SqliteFile, place: Round) -> None:
    """(writes)"""
    with file.writer.transaction():
        file.writer.execute(
            "INSERT OR REPLACE INTO facts VALUES ('renewal', ?)", (json.dumps(place),)
        )
