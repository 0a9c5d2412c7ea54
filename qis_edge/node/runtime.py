"""The runtime of a node: from its configuration to its last goodbye.

It owns everything with a lifetime (key, stores, link, sensors, tasks). What it does is in
the modules beside it: sensing makes outcomes, the uplink brings them into custody, asking
says hello and what is wanted, inbound takes in what gateways and peers say, estimating
makes more of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any

from qis_edge.clock import boot_seconds
from qis_edge.config import NodeConfig
from qis_edge.control import ControlServer
from qis_edge.core.credential import TrustStore
from qis_edge.core.errors import QisError, Refused, StoreCorrupt, StoreError
from qis_edge.core.packet import Packet, unpack
from qis_edge.keys import FleetFile, read_key
from qis_edge.link_making import make_links
from qis_edge.links.base import Link, Role, link_status
from qis_edge.links.switch import Switch, links_of
from qis_edge.logs import set_up_logging
from qis_edge.node.asking import Asking
from qis_edge.node.estimating import Estimating
from qis_edge.node.gateways import Gateways
from qis_edge.node.inbound import Inbound
from qis_edge.node.membership import Membership
from qis_edge.node.sensing import Sensing
from qis_edge.node.timekeeping import Timekeeper, boot_id
from qis_edge.node.uplink import Uplink
from qis_edge.service.supervise import Supervisor
from qis_edge.store.inbox import Inbox, Limits
from qis_edge.store.machine import machine_name
from qis_edge.store.outbox import Outbox
from qis_edge.tasks import run_daemon, until
from qis_edge.terminal import duration, plural
from qis_edge.worker import Disk

log = logging.getLogger(__name__)

#: Seconds between rounds of housekeeping, and between looks whether the clock was set.
HOUSEKEEPING, LOOK = 300.0, 5.0


class Node:
    """One node: it opens its stores when it is made, works in :meth:`run`, and closes them
    there.

    :param link: in the place of the one that the configuration says, for tests.
    :raises QisError: a key, a store or the configuration is not usable.
    """

    def __init__(self, config: NodeConfig, link: Link | None = None) -> None:
        self.config = config
        state = config.node.state
        self.started = time.time()
        self.rounds = 0  # of housekeeping: that they go on shows that the node lives
        self.identity = read_key(config.node.key_file)
        self.fleet = FleetFile.read(state / "fleet.toml")
        self.domain = config.situation.load_domain()
        with contextlib.ExitStack() as opened:
            self.outbox = Outbox.open(
                state / "outbox.db",
                self.identity.public,
                budget=config.outbox.budget,
                copies=config.custody.copies,
                host=machine_name(),
                notify=lambda notice: log.warning("outbox: %s", notice.text),
            )
            opened.callback(self.outbox.close)
            self.inbox, news = Inbox.open(state / "inbox.db", Limits(bytes=config.peers.keep))
            opened.callback(self.inbox.close)
            for notice in news:
                log.warning("inbox: %s", notice.text)
            self.clock = self._make_clock()
            self.disk = Disk("store")
            self.trust = TrustStore(self.fleet.root)
            for refusal in self.trust.restore(self.inbox.trust(), self.clock.known):
                log.info("a credential that was kept is good no more: %s", refusal)
            self.link = link or self._links()
            self._assemble()
            opened.pop_all()  # from here on it is run() that closes them

    def _make_clock(self) -> Timekeeper:
        clock = Timekeeper(self.config.clock.make(), self.outbox.clock_floor)
        if clock.trusted:
            self.outbox.set_clock(int(clock.now()))
        elif (told := self.outbox.boot_offset(boot_id())) is not None:
            # Told to an earlier run of ours, since the machine was started.
            offset, uncertainty = told
            clock.learn(offset + boot_seconds(), uncertainty)
        return clock

    def _links(self) -> Link:
        config = self.config.links
        made = make_links(
            config,
            Role.NODE,
            self.fleet.site,
            self.identity.kid,
            broker=self.fleet.mqtt_url,
            verify=self._verify,
        )
        if len(made) == 1:
            return made[0]
        return Switch(made, after=config.after, settle=config.settle)

    def _verify(self, raw: bytes) -> Packet:
        """A peer's packet, as it is heard on the air. :raises Refused: it is not good."""
        return unpack(raw, lambda kid: self.membership.key(kid, self.clock.known))

    def _silent(self) -> None:
        if isinstance(self.link, Switch):
            self.link.silent()

    def _assemble(self) -> None:
        config = self.config
        self.gateways = Gateways(self.identity, self.trust)
        epochs = {known.kid: known.epoch for known in self.inbox.gateways()}
        self.gateways.learn(epochs, self.clock.known)
        self.membership = Membership(self.identity, config.node.name, self.trust)
        self.uplink = Uplink(
            self.link,
            self.outbox,
            self.disk,
            self.identity,
            self.gateways,
            self.domain,
            self.clock,
            window=config.custody.window,
            copies=config.custody.copies,
            filling=config.make_filling(),
            silent=self._silent,
        )
        self.estimating = Estimating(
            config, self.domain, self.inbox, self.disk, self.clock, self.identity.kid
        )
        self.asking = Asking(
            self.link,
            self.identity,
            self.gateways,
            self.membership,
            self.inbox,
            self.disk,
            self.clock,
            silent=lambda: self.uplink.silent,
            ungreeted=self._silent,
        )
        self.inbound = Inbound(
            self.link,
            self.uplink,
            self.asking,
            self.identity,
            self.gateways,
            self.membership,
            self.inbox,
            disk=self.disk,
            clock=self.clock,
            heard=self.estimating.heard,
        )
        # Of an earlier boot, perhaps, that never learned the time.
        self.inbound.time_owed = self.clock.trusted and self.outbox.stats().untimed > 0
        self.sensing = Sensing(
            config,
            self.domain,
            self.outbox,
            self.inbox,
            self.disk,
            self.clock,
            estimating=self.estimating,
            attend=self.asking.attend,
            appended=self.uplink.poke,
        )

    # - running

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop``, or until something fails that must not.

        :raises QisError: what failed.
        """
        handlers = {
            "status": self.status,
            "enroll": self.enroll,
            "credential": self.credential,
            "drain": self.drain,
            "retry": self.retry,
        }
        if not self.clock.trusted:
            log.warning(
                "the time is not known yet: outcomes are kept, and sent once time "
                "synchronisation (timedatectl status) or a gateway has told it"
            )
        control = ControlServer(self.config.node.state, handlers)
        async with contextlib.AsyncExitStack() as ending:  # the last one first
            ending.callback(self.disk.close)
            ending.push_async_callback(self.disk, self.inbox.close)
            ending.push_async_callback(self.disk, self.outbox.close)
            ending.push_async_callback(self._end_work)
            await control.start()
            ending.push_async_callback(control.close)
            await self.link.start()
            await until(
                stop,
                self.uplink.run(),
                self.inbound.run(),
                self.asking.run(),
                self.sensing.run(),
                self._keep_house(),
                Supervisor({"the store": self._say}, {"housekeeping": lambda: self.rounds}).run(),
            )

    async def _end_work(self) -> None:
        await self.link.close()
        await self.sensing.close()
        try:
            await self.estimating.close()
        except StoreError as error:
            log.warning("what was learned of peers could not be saved: %s", error)

    async def _keep_house(self) -> None:
        expire_at = time.monotonic() + HOUSEKEEPING
        while True:
            try:
                await self._look_at_clock()
                if self.inbound.time_owed:
                    await self.inbound.settle_time()
                if time.monotonic() >= expire_at:
                    expire_at = time.monotonic() + HOUSEKEEPING
                    await self.disk(self.inbox.expire, int(self.clock.now()))
            except StoreCorrupt:
                raise
            except StoreError:  # said already
                pass
            self.rounds += 1
            await asyncio.sleep(LOOK)

    async def _look_at_clock(self) -> None:
        """Whether somebody set it: then it is known, or what was thought of it was wrong."""
        steps, before = self.clock.steps, self.clock.steps.count
        if self.clock.look():
            log.info("the system's clock is set: outcomes that waited for it get their time")
            self.inbound.time_owed = True
        elif steps.count > before and self.clock.source == "system":
            log.warning(
                "the system's clock was set %s by %s; outcomes are dated by it, and earlier "
                "ones keep their dates. If that was no correction: timedatectl status",
                "forward" if steps.last > 0 else "back",
                duration(abs(steps.last)),
            )
            if self.clock.confirmed:
                await self.disk(self.outbox.set_clock, int(self.clock.now()))

    # - looking in

    async def _say(self) -> str:
        """One line for the service manager, for which the store must answer."""
        outbox = await self.disk(self.outbox.stats)
        return (
            f"{self._used.url} is {'up' if self._used.up else 'down'}; "
            f"{plural(outbox.waiting, 'outcome')} waiting, "
            f"{plural(outbox.open_packets, 'packet')} without a receipt"
        )

    @property
    def _used(self) -> Link:
        return self.link.current if isinstance(self.link, Switch) else self.link

    async def enroll(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Ask to join (again), and say where that stands."""
        enrolled = self.membership.enrolled(self.clock.known)
        if not enrolled and self.link.up:
            self.asking.hello()
        credential = self.membership.credential
        return {
            "kid": self.identity.kid.hex(),
            "enrolled": enrolled,
            "name": credential.subject if credential else self.config.node.name,
            "expires": credential.expires if credential else None,
            "link": self.link.up,
        }

    async def credential(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Take in a credential that was brought here as a file.

        :raises QisError: it does not lead to our root.
        """
        try:
            await self.inbound.credential(bytes.fromhex(str(args.get("raw", ""))))
        except (ValueError, Refused) as error:
            raise QisError(f"not a credential of this fleet: {error}") from error
        return await self.enroll({})

    async def drain(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Make no more outcomes; what is in the outbox still goes out."""
        self.sensing.stop.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK):
                await self.sensing.ended.wait()
        self.uplink.drain()
        return {"draining": True}

    async def retry(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Send again what was put aside because a gateway refused it."""
        count = await self.disk(self.outbox.retry)
        if count:
            self.uplink.start_over()
        return {"retried": count}

    async def status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """What ``qis-edge status`` shows of a running node. Times in unix seconds."""
        outbox = await self.disk(self.outbox.stats)
        inbox = await self.disk(self.inbox.stats)
        sent = self.uplink.counters
        credential = self.membership.credential
        return {
            "name": self.config.node.name,
            "kid": self.identity.kid.hex(),
            "site": self.fleet.site,
            "now": self.clock.now(),
            "clock_trusted": self.clock.trusted,
            "clock_source": self.clock.source,
            "clock_steps": self.clock.steps.count,
            "disk": self.disk.trouble,
            "started": self.started,
            "enrolled": self.membership.enrolled(self.clock.known),
            "expires": credential.expires if credential else None,
            "address": self.sensing.address.hex() if self.sensing.address else None,
            "links": [
                {**link_status(one), "used": one is self._used} for one in links_of(self.link)
            ],
            "gateways": [
                {
                    "kid": known.kid.hex(),
                    "epoch": known.epoch.hex(),
                    "greeted": known.greeted is not None,
                }
                for known in self.gateways
            ],
            "outbox": outbox.shown(),
            "custody": {
                "sent": sent.sent,
                "resent": sent.resent,
                "receipted": sent.receipted,
                "refused": sent.refused,
                "in_flight": self.uplink.custody.in_flight,
            },
            "peers": {
                "packets": inbox.packets,
                "senders": inbox.senders,
                "heard": self.inbound.heard,
                "refused": dict(self.inbound.refused),
            },
            "estimates": {
                "made": self.estimating.made,
                "hook_failures": self.estimating.hook_failures,
                "doubtful": list(self.estimating.doubtful),
            },
            "sensors": self.sensing.status(),
        }


def run_node(config: NodeConfig) -> int:
    """Run a node until it is told to stop; returns an exit status.

    :raises QisError: why it could not start, or what stopped it.
    """
    set_up_logging(config.log.level)

    async def serve(stop: asyncio.Event) -> None:
        node = Node(config)
        log.info("node %s (%s) starts", config.node.name, node.identity.kid.hex())
        await node.run(stop)

    return run_daemon(serve)
