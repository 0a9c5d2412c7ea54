"""The station: a gateway, from its configuration to its last goodbye.

It owns everything with a lifetime (keys, stores, engines, links, tasks) and contains no
protocol: that is in the fronts, one for each link, and the drains, one for each engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.config import GatewayConfig
from gateway.desk import Pairs
from gateway.drain import Drain
from gateway.fleet import Fleet
from gateway.front import Common, Front
from gateway.intake import Counts
from gateway.mending import open_spool
from gateway.routing import Context, Entry, RoutingLayer, open_engine
from gateway.watch import FleetWatch
from qis_edge.clock import Steps, SystemClock
from qis_edge.control import ControlServer
from qis_edge.core.credential import GATEWAY, NODE
from qis_edge.core.errors import QisError, Refused, RoutingError, StoreCorrupt, StoreError
from qis_edge.core.packet import Packet, unpack
from qis_edge.keys import FleetFile, read_key
from qis_edge.link_making import make_links
from qis_edge.links.base import Link, Role, link_status
from qis_edge.logs import set_up_logging
from qis_edge.service.supervise import Supervisor
from qis_edge.tasks import run_daemon, until
from qis_edge.terminal import duration, plural
from qis_edge.worker import Disk

log = logging.getLogger(__name__)

#: Seconds between rounds of housekeeping, and between its steps.
HOUSEKEEPING, PAUSE = 60.0, 0.05
#: Seconds after the clock was set in which nothing is dropped by it.
DOUBT = 3600.0


class Station:
    """One gateway: it opens its stores when it is made, serves in :meth:`run`, and closes
    them there.

    :param links: in the place of those that the configuration says; ``link`` for one.
    :raises QisError: a key, a store or the configuration is not usable.
    """

    def __init__(
        self,
        config: GatewayConfig,
        link: Link | None = None,
        *,
        links: Sequence[Link] | None = None,
    ) -> None:
        self.config = config
        state = config.gateway.state
        self.clock = config.clock.make()
        self.steps = Steps(lambda: self.clock.now())  # noqa: PLW0108 - it may be replaced
        self._steady_from = 0.0
        self.started = time.time()
        self.identity = read_key(config.gateway.key_file)
        self.fleet_file = FleetFile.read(state / "fleet.toml")
        now = self.clock.now()
        with contextlib.ExitStack() as opened:
            self.fleet = Fleet(state / "fleet.db", self.fleet_file.root, now)
            opened.callback(self.fleet.close)
            self._require_credential(now)
            context = Context(accept=self._accept, folder=state, name=config.gateway.name.lower())
            self.engines: list[RoutingLayer] = [
                open_engine(url, context) for url in config.routing.engines
            ]
            self.spool, self.mended = open_spool(
                state / "spool.db",
                self._verify,
                engines=[engine.url for engine in self.engines],
                retention=config.spool.retention,
                budget=config.spool.budget,
            )
            opened.callback(self.spool.close)
            self._recall()
            self.disk = Disk("spool")
            self.fleet_disk = Disk("fleet")
            if links is None:
                links = self._make_links() if link is None else (link,)
            self._assemble(links)
            opened.pop_all()  # from here on it is run() that closes them

    def _recall(self) -> None:
        """Where the spool lacks what it had, nodes are to send that again."""
        if self.mended is not None:
            log.warning("%s", self.mended)  # it has a new epoch already
            return
        if self.spool.torn:
            log.warning("the end of the spool's log was lost: nodes send again what it held")
        elif self.spool.restored:
            log.warning(
                "the spool is an older copy that was put back (%s): nodes send again what "
                "they still have of what it held",
                self.spool.restored,
            )
        else:
            return
        self.spool.renew_epoch(0)

    def _make_links(self) -> list[Link]:
        return make_links(
            self.config.served,
            Role.GATEWAY,
            self.fleet_file.site,
            self.identity.kid,
            broker=self.config.broker_url,
            verify=self._verify,
        )

    def _assemble(self, links: Sequence[Link]) -> None:
        self.counts = Counts()
        self.drains = [
            Drain(engine, self.spool, self.disk, self._drained) for engine in self.engines
        ]
        self.fronts: list[Front] = []
        self.watch = FleetWatch(self.identity, self.fleet, self.fleet_disk, self.clock, self.fronts)
        common = Common(
            config=self.config,
            identity=self.identity,
            fleet=self.fleet,
            fleet_disk=self.fleet_disk,
            spool=self.spool,
            disk=self.disk,
            engine=self.engines[0],
            clock=self.clock,
            keys_of=Pairs(self.identity, self.fleet),
            counts=self.counts,
            arrived=self._arrived,
            revoked=self.watch.revoked,
            moved=self.watch.moved,
        )
        self.fronts += [Front(link, common) for link in links]

    def _require_credential(self, now: float) -> None:
        try:
            self.fleet.resolve(self.identity.kid, now, GATEWAY)
        except Refused as refusal:
            raise QisError(
                f"this gateway's own credential is not good: {refusal}",
                hint="issue another where root.key is kept: qis-gateway init",
            ) from refusal

    def _verify(self, raw: bytes) -> Packet:
        """:raises Refused: it is no packet of a node that may send packets now."""
        return unpack(raw, lambda kid: self.fleet.resolve(kid, self.clock.now(), NODE))

    def _accept(self, raw: bytes) -> Entry:
        """Packets that an engine brings from elsewhere: their signature is checked too."""
        return Entry.of(self._verify(raw))

    def _arrived(self) -> None:
        for drain in self.drains:
            drain.nudge()

    def _drained(self, position: int) -> None:
        del position  # what counts is what *every* engine has
        for front in self.fronts:
            front.teller.routed_through(self.spool.routed_through())

    # - running

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop``, or until something fails that must not.

        :raises QisError: what failed.
        """
        control = ControlServer(self.config.gateway.state, {"status": self.status})
        async with contextlib.AsyncExitStack() as ending:  # the last one first
            ending.push_async_callback(self._close)
            await control.start()
            ending.push_async_callback(control.close)
            broker = await self._start_broker()
            if broker is not None:
                ending.push_async_callback(broker.stop)
            ending.push_async_callback(self._close_links)
            for front in self.fronts:
                await front.link.start()
            answers = self.drains[0].opened
            await until(
                stop,
                self.watch.run(),
                self._keep_house(),
                self._supervisor().run(),
                *(work for front in self.fronts for work in front.work(answers)),
                *(drain.run() for drain in self.drains),
            )

    async def _start_broker(self) -> Any:
        if not self.config.broker.embedded:
            return None
        from gateway.broker import EmbeddedBroker

        host, port = self.config.broker.listen
        broker = EmbeddedBroker(
            host,
            port,
            password_file=self.config.broker.password_file,
            allow_anonymous=self.config.broker.anonymous,
        )
        await broker.start()
        log.info("embedded broker listens on %s:%d", host, broker.port)
        return broker

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING)
            if not self._clock_is_steady():
                continue
            now = self.clock.now()
            try:
                while await self.disk(self.spool.trim, now):  # noqa: ASYNC110 - it does work
                    await asyncio.sleep(PAUSE)
            except StoreCorrupt:
                raise
            except StoreError:  # said already
                pass
            for drain in self.drains:
                if drain.opened.is_set() and drain.away is None:
                    with contextlib.suppress(RoutingError):  # its drain will notice
                        await drain.engine.expire(int(now))

    def _clock_is_steady(self) -> bool:
        """Whether what is old may be dropped by this clock. For a while after somebody has
        set it, it may be wrong, and what is dropped then would not come back."""
        moved = self.steps.look() if isinstance(self.clock, SystemClock) else 0.0
        if moved:
            self._steady_from = time.monotonic() + DOUBT
            log.warning(
                "this machine's clock was set %s by %s: nothing is dropped as too old for %s. "
                "If that was no correction, set it right: timedatectl status",
                "forward" if moved > 0 else "back",
                duration(abs(moved)),
                duration(DOUBT),
            )
        return time.monotonic() >= self._steady_from

    async def _close_links(self) -> None:
        await asyncio.gather(*(front.link.close() for front in self.fronts))

    async def _close(self) -> None:
        for engine in self.engines:
            with contextlib.suppress(RoutingError):
                await engine.close()
        for disk, store in ((self.disk, self.spool), (self.fleet_disk, self.fleet)):
            try:
                await disk(store.close)
            except StoreError as error:
                log.warning("not closed in good order: %s", error)
            disk.close()

    # - looking in

    def _supervisor(self) -> Supervisor:
        return Supervisor(
            {"the spool": self._say, "the fleet's database": self._ask_fleet},
            {"the look after the fleet": lambda: self.watch.rounds},
        )

    async def _say(self) -> str:
        """One line for the service manager, for which the spool must answer."""
        spool = await self.disk(self.spool.status)
        up = sum(front.link.up for front in self.fronts)
        away = sum(drain.away is not None for drain in self.drains)
        return (
            f"{up} of {plural(len(self.fronts), 'link')} up, "
            f"{plural(spool.packets, 'packet')} in the spool, "
            + (f"{plural(away, 'routing engine')} away" if away else "every routing engine there")
        )

    async def _ask_fleet(self) -> str:
        return await self.fleet_disk(str)

    async def status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """What ``qis-gateway status`` shows of a running gateway. Times in unix seconds."""
        spool = await self.disk(self.spool.status)
        engines = []
        for drain in self.drains:
            state = await drain.engine.status()
            engines.append(
                {
                    "url": state.url,
                    "ok": state.ok and drain.away is None,
                    "packets": state.packets,
                    "bytes": state.size,
                    "deposited": drain.deposited,
                    "repeated": drain.repeated,
                    "behind": next((e.behind for e in spool.engines if e.url == state.url), None),
                    "detail": drain.away or state.detail,
                }
            )
        return {
            "name": self.config.gateway.name,
            "kid": self.identity.kid.hex(),
            "site": self.fleet_file.site,
            "now": self.clock.now(),
            "clock_steps": self.steps.count,
            "started": self.started,
            "disk": self.disk.trouble or self.fleet_disk.trouble,
            "permitted_until": self.fleet.permitted_until or None,
            "links": [link_status(front.link) for front in self.fronts],
            "intake": {
                "new": self.counts.new,
                "known": self.counts.known,
                "stale": self.counts.stale,
                "later": self.counts.later,
                "refused": dict(self.counts.refused),
            },
            "downlink": {
                "answered": sum(front.downlink.answered for front in self.fronts),
                "sent": sum(front.downlink.sent for front in self.fronts),
                "published": sum(front.downlink.published for front in self.fronts),
                "dropped": sum(front.post.dropped for front in self.fronts),
            },
            "spool": {
                "epoch": spool.epoch.hex(),
                "packets": spool.packets,
                "bytes": spool.size,
                "budget": spool.budget,
            },
            "engines": engines,
        }


def run_gateway(config: GatewayConfig) -> int:
    """Run a gateway until it is told to stop; returns an exit status.

    :raises QisError: why it could not start, or what stopped it.
    """
    set_up_logging(config.log.level)

    async def serve(stop: asyncio.Event) -> None:
        station = Station(config)
        log.info("gateway %s (%s) starts", config.gateway.name, station.identity.kid.hex())
        await station.run(stop)

    return run_daemon(serve)
