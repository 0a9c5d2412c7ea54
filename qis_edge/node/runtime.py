"""The runtime of a node: from its configuration to its last goodbye.

It owns everything with a lifetime (key, stores, link, sensors, tasks). What it does is in
the modules beside it: sensing makes outcomes, the uplink brings them into custody, inbound
takes in what gateways and peers say, estimating makes more of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qis_edge.config import MqttConfig, NodeConfig
from qis_edge.control import ControlServer
from qis_edge.core.credential import Credential, RevocationList, TrustStore
from qis_edge.core.custody import BROKER
from qis_edge.core.errors import QisError, Refused, StoreError
from qis_edge.keys import FleetFile, read_key
from qis_edge.links.base import Link, Role
from qis_edge.links.mqtt import MqttLink
from qis_edge.logs import set_up_logging
from qis_edge.node.estimating import Estimating
from qis_edge.node.gateways import Gateways
from qis_edge.node.inbound import Inbound
from qis_edge.node.membership import Membership
from qis_edge.node.sensing import Sensing
from qis_edge.node.timekeeping import Timekeeper
from qis_edge.node.uplink import Uplink
from qis_edge.store.inbox import Inbox, Limits
from qis_edge.store.outbox import Outbox
from qis_edge.tasks import run_daemon, until
from qis_edge.worker import Worker

log = logging.getLogger(__name__)

#: Seconds between rounds of housekeeping.
HOUSEKEEPING = 300.0


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
        self.identity = read_key(state / "node.key")
        self.fleet = FleetFile.read(state / "fleet.toml")
        self.domain = config.situation.load_domain()
        self.outbox = Outbox.open(
            state / "outbox.db",
            self.identity.public,
            budget=config.outbox.budget,
            copies=config.custody.copies,
            notify=lambda notice: log.warning("outbox: %s", notice.text),
        )
        self.inbox, news = Inbox.open(state / "inbox.db", Limits(bytes=config.peers.keep))
        for notice in news:
            log.warning("inbox: %s", notice.text)
        self.clock = Timekeeper(config.clock.make(), self.outbox.clock_floor)
        self.disk = Worker("store")
        self.trust = TrustStore(self.fleet.root)
        for refusal in self.trust.restore(self.inbox.trust(), self.clock.known):
            log.info("a credential that was kept is good no more: %s", refusal)
        self.link = link or self._mqtt()
        self._assemble()

    def _mqtt(self) -> Link:
        settings = (self.config.links.mqtt or MqttConfig()).settings(self.fleet.mqtt_url)
        return MqttLink(settings, Role.NODE, self.fleet.site, self.identity.kid)

    def _assemble(self) -> None:
        config = self.config
        self.gateways = Gateways(self.identity, self.trust)
        epochs = {known.kid: known.epoch for known in self.inbox.gateways()}
        self.gateways.learn(epochs, self.clock.known)
        self.membership = Membership(self.identity, config.node.name, self.trust, self._keep)
        self.uplink = Uplink(
            self.link,
            self.outbox,
            self.disk,
            self.identity,
            self.gateways,
            self.domain,
            pace=replace(BROKER, window=config.custody.window),
            copies=config.custody.copies,
        )
        self.estimating = Estimating(
            config, self.domain, self.inbox, self.disk, self.clock, self.identity.kid
        )
        self.inbound = Inbound(
            self.link,
            self.uplink,
            self.identity,
            self.gateways,
            self.membership,
            self.inbox,
            self.disk,
            self.clock,
            heard=self.estimating.heard,
        )
        self.sensing = Sensing(
            config,
            self.domain,
            self.outbox,
            self.inbox,
            self.disk,
            self.clock,
            estimating=self.estimating,
            attend=self.inbound.attend,
            appended=self.uplink.poke,
        )

    def _keep(self, accepted: Credential | RevocationList) -> None:
        """Rare, small, and wanted on the disk before anything depends on it."""
        if isinstance(accepted, Credential):
            self.inbox.keep_credential(accepted.raw, int(self.clock.now()))
        else:
            self.inbox.keep_revocation(accepted.raw)

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
        }
        control = ControlServer(self.config.node.state, handlers)
        await control.start()
        try:
            await self.link.start()
            await until(
                stop,
                self.uplink.run(),
                self.inbound.run(),
                self.inbound.greet(),
                self.sensing.run(),
                self._keep_house(),
            )
        finally:
            await control.close()
            await self.link.close()
            await self.sensing.close()
            await self.estimating.close()
            await self.disk(self.outbox.close)
            await self.disk(self.inbox.close)
            self.disk.close()

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING)
            with contextlib.suppress(StoreError):
                await self.disk(self.inbox.expire, int(self.clock.now()))

    # - looking in

    async def enroll(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Ask to join (again), and say where that stands."""
        enrolled = self.membership.enrolled(self.clock.known)
        if not enrolled and self.link.up:
            self.gateways.hello_soon()
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
            raw = bytes.fromhex(str(args.get("raw", "")))
            self.gateways.add(self.membership.accept(raw, self.clock.known))
        except (ValueError, Refused) as error:
            raise QisError(f"not a credential of this fleet: {error}") from error
        return await self.enroll({})

    async def drain(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Make no more outcomes; what is in the outbox still goes out."""
        self.sensing.stop.set()
        return {"draining": True}

    async def status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """What ``qis-edge status`` shows of a running node. Times in unix seconds."""
        outbox = await self.disk(self.outbox.stats)
        inbox = await self.disk(self.inbox.stats)
        stats, sent = self.link.stats, self.uplink.custody.counters
        credential = self.membership.credential
        return {
            "name": self.config.node.name,
            "kid": self.identity.kid.hex(),
            "site": self.fleet.site,
            "now": self.clock.now(),
            "clock_trusted": self.clock.trusted,
            "started": self.started,
            "enrolled": self.membership.enrolled(self.clock.known),
            "expires": credential.expires if credential else None,
            "address": self.sensing.address.hex() if self.sensing.address else None,
            "link": {
                "name": self.link.name,
                "url": self.link.settings.url if isinstance(self.link, MqttLink) else None,
                "up": self.link.up,
                "frames_in": stats.frames_in,
                "frames_out": stats.frames_out,
                "bytes_in": stats.bytes_in,
                "bytes_out": stats.bytes_out,
                "last_error": stats.last_error,
            },
            "gateways": [
                {
                    "kid": known.kid.hex(),
                    "epoch": known.epoch.hex(),
                    "greeted": known.greeted is not None,
                }
                for known in self.gateways
            ],
            "outbox": {
                "store": outbox.store.hex(),
                "made": outbox.made,
                "waiting": outbox.waiting + outbox.untimed,
                "packed": outbox.packed,
                "packets": outbox.packets,
                "unreceipted": outbox.open_packets,
                "held": outbox.held_packets,
                "refused": outbox.refused_packets,
                "evicted_unsent": outbox.evicted_unsent,
                "bytes": outbox.bytes,
                "budget": outbox.budget,
            },
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
