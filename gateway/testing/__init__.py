"""What every routing engine must do: suites to subclass.

    class TestMyEngine(DurableConformance, SpoolConformance):
        def world(self, folder: Path) -> AbstractAsyncContextManager[RoutingWorld]:
            return my_world(folder)

``my_world`` is an ``@asynccontextmanager`` that starts a medium with nothing on it, yields
a :class:`RoutingWorld`, and takes it down; the suite closes the engines. Begin with
:class:`RoutingConformance`; the others add what only some media can be asked:

=====================  ================================================================
RoutingConformance     the three verbs, cursors, expiry, two gateways on one medium
DurableConformance     a depositor killed with SIGKILL loses nothing it was told is kept
MediumConformance      what strangers wrote to the medium is dropped and counted
OutageConformance      the medium goes away and comes back
SpoolConformance       the same in the middle of a deposit, with a real spool and drain
LoginConformance       a refused login is said
UrlConformance         wrong URLs, secrets, a missing extra, nobody listens
FeedConformance        for engines that are a feed with a view (gateway.routing.feed)
=====================  ================================================================

Needs pytest and pytest-asyncio. :func:`make_entry` makes signed packets to deposit.
"""

# ruff: noqa: E402 - see below
from __future__ import annotations

import pytest

# Before they are imported: a failed assertion then shows what was compared.
pytest.register_assert_rewrite(
    *(f"gateway.testing.{name}" for name in ("suite", "media", "feeds", "spooling", "addresses"))
)

from gateway.testing.addresses import LoginConformance, UrlConformance
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
from gateway.testing.spooling import SpoolConformance
from gateway.testing.suite import RoutingConformance, RoutingWorld

__all__ = [
    "DurableConformance",
    "FeedConformance",
    "FeedOutageConformance",
    "FeedWorld",
    "LoginConformance",
    "MediumConformance",
    "MemoryFeed",
    "MemoryFeedWorld",
    "MemoryLog",
    "OutageConformance",
    "RoutingConformance",
    "RoutingWorld",
    "SpoolConformance",
    "UrlConformance",
    "collect",
    "eventually",
    "make_entry",
]
