"""The view over a feed, and the feed in memory that it is tested with."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.routing.feed import Feed
from gateway.testing import (
    MediumConformance,
    RoutingWorld,
    SpoolConformance,
)
from gateway.testing.feeds import (
    FeedOutageConformance,
    FeedWorld,
    MemoryFeed,
    MemoryFeedWorld,
    MemoryLog,
)


class MemoryMedium(FeedWorld):
    def __init__(self) -> None:
        self.log = MemoryLog()

    def feed(self) -> Feed:
        return MemoryFeed(self.log)

    async def write(self, raw: bytes) -> None:
        self.log.append([raw])

    async def fail(self) -> None:
        self.log.away = "unplugged"

    async def heal(self) -> None:
        self.log.away = ""


class TestMemoryFeed(FeedOutageConformance):
    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[FeedWorld]:
        yield MemoryMedium()


class TestView(MediumConformance, SpoolConformance):
    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[RoutingWorld]:
        yield MemoryFeedWorld(folder)
