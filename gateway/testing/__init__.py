"""What every routing engine must do: suites to subclass.

    class TestMyEngine(DurableConformance, OutageConformance):
        def world(self, folder: Path) -> AbstractAsyncContextManager[RoutingWorld]:
            return my_world(folder)

``my_world`` is an ``@asynccontextmanager`` that starts a medium with nothing on it, yields
a :class:`RoutingWorld`, and takes it down; the suite closes the engines. Begin with
:class:`RoutingConformance`; the others add what only some media can be asked. Needs
pytest and pytest-asyncio. :func:`make_entry` makes signed packets to deposit.
"""

# ruff: noqa: E402 - see below
from __future__ import annotations

import pytest

# Before they are imported: a failed assertion then shows what was compared.
pytest.register_assert_rewrite(
    "gateway.testing.suite", "gateway.testing.media", "gateway.testing.feeds"
)

from gateway.testing.entries import collect, eventually, make_entry
from gateway.testing.feeds import (
    FeedConformance,
    FeedOutageConformance,
    FeedWorld,
    MemoryFeed,
    MemoryFeedWorld,
    MemoryLog,
)
from gateway.testing.media import DurableConformance, MediumConformance, OutageConformance
from gateway.testing.suite import RoutingConformance, RoutingWorld

__all__ = [
    "DurableConformance",
    "FeedConformance",
    "FeedOutageConformance",
    "FeedWorld",
    "MediumConformance",
    "MemoryFeed",
    "MemoryFeedWorld",
    "MemoryLog",
    "OutageConformance",
    "RoutingConformance",
    "RoutingWorld",
    "collect",
    "eventually",
    "make_entry",
]
