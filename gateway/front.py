"""One link of a gateway, and all that serves it: each has its own pace and holds up no other.

What all share (the spool, the fleet, the routing engines) the station owns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from gateway.answering import Answering
from gateway.config import GatewayConfig
from gateway.custodian import Custodian
from gateway.desk import FleetDesk, Pairs
from gateway.downlink import Downlink, Sparing
from gateway.fleet import Fleet
from gateway.intake import Counts, Intake
from gateway.post import Post
from gateway.receipting import Receipting
from gateway.routing import RoutingLayer
from gateway.spool import Spool
from qis_edge.clock import Clock
from qis_edge.core.credential import RevocationList
from qis_edge.core.identity import Identity
from qis_edge.core.messages import Request
from qis_edge.links.base import Link, Polled
from qis_edge.worker import Disk


@dataclass(frozen=True, slots=True)
class Common:
    """What the fronts of one gateway share.

    :param engine: the one that answers requests.
    :param arrived: called when there is more in the spool.
    :param revoked: is given a revocation list that was news.
    :param moved: is told (node, front) that a node now asks there.
    """

    config: GatewayConfig
    identity: Identity
    fleet: Fleet
    fleet_disk: Disk
    spool: Spool
    disk: Disk
    engine: RoutingLayer
    clock: Clock
    keys_of: Pairs
    counts: Counts
    arrived: Callable[[], None]
    revoked: Callable[[RevocationList], None]
    moved: Callable[[bytes, Front], None]


class Front:
    """See the module."""

    def __init__(self, link: Link, common: Common) -> None:
        self.link = link
        self._common = common
        self.post = Post(link)
        self.downlink = self._make_downlink()
        self.desk = FleetDesk(
            common.identity,
            common.fleet,
            common.fleet_disk,
            link,
            self.post,
            common.clock,
            common.keys_of,
            epoch=(common.spool.epoch, common.spool.since),
            request=self._requested,
            revoked=common.revoked,
        )
        self.teller = self._make_teller()
        self.custodian = Custodian(
            common.spool,
            common.disk,
            self.teller,
            common.clock,
            common.counts,
            arrived=common.arrived,
            accepted=self.desk.accepted,
        )
        ask = self.teller.ask if isinstance(self.teller, Answering) else None
        self.intake = Intake(
            link,
            self.desk,
            self.custodian.take,
            common.counts,
            ask,
            self.custodian.refuse_unreadable,
        )

    def _make_downlink(self) -> Downlink:
        common, link, limits = self._common, self.link, self._common.config.downlink
        patience = link.cadence.patience
        return Downlink(
            common.engine,
            self.post,
            common.clock,
            common.identity.kid,
            common.keys_of,
            limit=limits.limit,
            sparing=Sparing(limits.mesh_limit, 3 * patience, patience) if link.shared else None,
        )

    def _make_teller(self) -> Receipting | Answering:
        common, link = self._common, self.link
        routed = common.config.gateway.custody == "routed"
        if not isinstance(link, Polled):
            return Receipting(self.post, common.spool.epoch, common.keys_of, routed=routed)
        return Answering(
            link,
            common.spool,
            common.disk,
            self.desk.node_key,
            common.keys_of,
            routed=routed,
        )

    def _requested(self, request: Request) -> None:
        self.downlink.request(request)
        self._common.moved(request.kid, self)

    def work(self, opened: asyncio.Event) -> list[Coroutine[Any, Any, None]]:
        """What is to run for ever.

        :param opened: set once the engine answers.
        """
        working = [
            self.post.run(),
            self.intake.run(),
            _after(opened, self.downlink.answer),
            _after(opened, self.downlink.publish),
        ]
        if isinstance(self.teller, Answering):
            working.append(self.teller.run())
        return working


async def _after(opened: asyncio.Event, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await opened.wait()
    await work()
