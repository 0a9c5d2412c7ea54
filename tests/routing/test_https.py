"""``https:`` and the hub: held to the suite against a real hub, killed, and lied to."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.testing import (
    DurableConformance,
    LoginConformance,
    MediumConformance,
    RoutingWorld,
    SpoolConformance,
    UrlConformance,
)
from tests.routing.choose import beyond
from tests.routing.hub import HubProcessWorld, HubWorld, serving


class TestHub(MediumConformance, LoginConformance):
    """In this process, which starts sooner."""

    expires = False  # the hub does it, by its own clock

    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[RoutingWorld]:
        state = folder / "hub"
        state.mkdir()
        async with serving(state, "sqlite:routing.db", keep=True) as (_, place):
            yield HubWorld(int(place.rpartition(":")[2]), state)


@beyond(TestHub)
class TestHubProcess(DurableConformance, SpoolConformance):
    expires = False

    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[RoutingWorld]:
        world = HubProcessWorld(folder)
        try:
            yield world
        finally:
            world.hub.kill()


class TestHttpsUrl(UrlConformance):
    right = "https://hub.example:8443/north?token=s3cret"
    wrong = (
        ("https:", "no server is named"),
        ("https://a,b?token=x", "takes one hub"),
        ("https://u:s3cret@a?token=x", "takes a token"),
        ("https://a", "there is no token"),
        ("https://a?token=x%0ay", "other characters"),
        ("https://a?token=x&sync=1", "unknown option 'sync'"),
        ("https://a?token=x&timeout=soon", "timeout must be"),
    )
    modules = ("aiohttp",)
    command = "pip install 'qis-edge[http]'"
    nobody = "https://127.0.0.1:9?token=x"


class TestHttpUrl(UrlConformance):
    right = "http://127.0.0.1:8383?token=s3cret"
    wrong = (
        ("http://hub.example?token=x", "http: is for this machine alone"),
        ("http://127.0.0.1?token=x&ca=y", "ca needs https:"),
    )
    nobody = "http://127.0.0.1:9?token=x"
