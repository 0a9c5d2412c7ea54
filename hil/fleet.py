"""A node and its gateways over the bench's radios or line: real keys, stores and runtimes."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from gateway.config import load_gateway
from gateway.fleet import Fleet as FleetStore
from gateway.station import Station
from hil.bench import GATEWAY, NODE, Bench
from qis_edge.config import load_node
from qis_edge.core.credential import NODE as NODE_SCOPE
from qis_edge.core.credential import issue
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Label, Outcome, Value
from qis_edge.core.priority import Priority
from qis_edge.keys import write_key
from qis_edge.node.runtime import Node
from qis_edge.sensor import Reading
from qis_edge.store.forms import Pending
from tests.loop.site import YEAR, Site, deposited, made_and_held, settled


class Quiet:
    """A sensor that never has anything to say: outcomes are the tests' own."""

    channels: Mapping[str, str] = {"temperature": "Cel"}

    def __init__(self, settings: Mapping[str, Any]) -> None:
        del settings

    def open(self) -> None:
        """Nothing."""

    def read(self, now: float) -> list[Reading]:
        """Nothing."""
        del now
        return []

    def close(self) -> None:
        """Nothing."""


class Fleet(Site):
    """One node, one gateway or two.

    :param links: role → the ``[links.…]`` table of whoever has that role.
    :param rate: how many seconds of the links' time pass in one of ours.
    :param slack: seconds that waits may take beside those.
    """

    def __init__(
        self, folder: Path, links: Mapping[str, str], *, rate: float = 1.0, slack: float = 15.0
    ) -> None:
        super().__init__(folder, "mqtt://127.0.0.1:1")  # no broker takes part
        self._links = dict(links)
        self._rate = rate
        self._slack = slack
        self._fields: dict[str, Identity] = {}

    @classmethod
    def on(cls, bench: Bench, folder: Path) -> Fleet:
        """With the bench's radios."""
        links = {
            role: f'[links.meshtastic]\nradio = "{port}"\nhop_limit = 0\nrate = {bench.rate:g}\n'
            for role, port in bench.ports.items()
        }
        return cls(folder, links, rate=bench.rate, slack=bench.slack)

    # - making

    def base(self, role: str = GATEWAY) -> Station:
        """The gateway with this role; anew, if it was there before."""
        name = role.replace(" ", "-")
        state = self._state(name, self.root)
        if not (state / "gateway.key").exists():
            identity = Identity.generate()
            write_key(state / "gateway.key", identity)
            self._vouch(state, identity, name, self.root)
        path = self._config(
            name,
            f'[gateway]\nname = "{name}"\nstate = "state"\n[broker]\nembedded = false\n'
            f"{self._links[role]}",
            clock=False,
        )
        return Station(load_gateway(path))

    def field(self, *, copies: int = 1, window: str = "1h", sensor: str = "") -> Node:
        """The node; anew, if it was there before."""
        state = self._state(NODE, self.root)
        if NODE not in self._fields:
            self._fields[NODE] = Identity.generate()
            write_key(state / "node.key", self._fields[NODE])
        path = self._config(
            NODE,
            f'[node]\nname = "field"\nstate = "state"\n[custody]\ncopies = {copies}\n'
            '[situation]\ndomain = "weather"\n'
            'fields = { climate = "cfa", terrain = "coast", season = "autumn" }\n'
            f'[[sensor]]\ndriver = "{sensor or "hil.fleet:Quiet"}"\ninterval = "0.1s"\n'
            'channels = { temperature = "temperature" }\n'
            f'[distil]\nwindow = "{window}"\nexpected = 1\n'
            f"{self._links[NODE]}",
            clock=False,
        )
        return Node(load_node(path))

    def adopt(self, node: Node, *stations: Station, gateways: bool = False) -> None:
        """Make a node one of the fleet without a word on the air. Before it runs.

        :param gateways: it knows their credentials, too.
        """
        credential = issue(
            self.root,
            subject="field",
            key=node.identity.public,
            scope=(NODE_SCOPE,),
            expires=int(time.time()) + YEAR,
            serial=b"\x00\x00\x00\x02",
        )
        for station in stations:
            store = FleetStore(
                self.state(station.config.gateway.name) / "fleet.db", self.root.public
            )
            store.add(credential.raw, time.time())
            known = store.credential(station.identity.kid)
            store.close()
            if gateways and known is not None:
                node.gateways.add(node.trust.add(known.raw, node.clock.known))
                node.inbox.keep_credential(known.raw)
        node.trust.add(credential.raw, node.clock.known)
        node.inbox.keep_credential(credential.raw)

    # - outcomes

    def append(self, node: Node, outcomes: list[Outcome], *, urgent: bool = False) -> None:
        """Give a node outcomes, before it runs."""
        address = node.domain.situation(climate="cfa", terrain="coast", season="autumn").fingerprint
        node.outbox.append_many(
            Pending(
                outcome,
                address,
                Priority.URGENT if urgent else Priority.NORMAL,
                ttl=24 * 365,
            )
            for outcome in outcomes
        )

    async def say(self, node: Node, outcome: Outcome) -> None:
        """Let a running node have one more outcome, now."""
        await node.disk(self.append, node, [outcome], urgent=True)
        node.uplink.poke()

    # - waiting; seconds are of the links' time

    async def until(self, what: str, true: Callable[[], object], seconds: float) -> None:
        """Wait for something; fails the test when it takes longer or something died."""
        await self.wait(what, true, seconds / self._rate + self._slack)

    async def until_awaited(
        self, what: str, true: Callable[[], Awaitable[object]], seconds: float
    ) -> None:
        """:meth:`until` for what has to be awaited."""
        await self.wait_for(what, true, seconds / self._rate + self._slack)

    async def greeted(self, node: Node, gateways: int = 1, seconds: float = 600.0) -> None:
        """Wait until a node has been greeted by so many gateways."""
        await self.until(
            "a greeting",
            lambda: sum(known.greeted is not None for known in node.gateways) >= gateways,
            seconds,
        )

    async def held(self, node: Node, seconds: float, least: int | None = None) -> None:
        """Wait until all outcomes of a node (or so many) are in custody."""

        def done() -> bool:
            made, held = made_and_held(node)
            return held >= (made if least is None else least)

        await self.until("custody", done, seconds)

    async def assert_each_once(self, node: Node, *stations: Station) -> None:
        """Everything that a node made is in each gateway's routing layer, and nothing twice."""
        made, _ = made_and_held(node)
        assert made > 0
        for station in stations:
            await settled(self, station)
            found = (await deposited(station.config.gateway.state)).get(node.identity.kid, [])
            times = [outcome.time for outcome in found]
            assert len(times) == made, f"{len(times)} of {made} are there"
            assert len(set(times)) == made, "some are there twice"


def weather(count: int, every: int, *, until: float, words: int = 0) -> list[Outcome]:
    """Outcomes of a weather station, one every so many seconds, the last at ``until``.

    :param words: characters of summary; with 64 of them each fills a frame by itself.
    """
    chance = random.Random(count)  # noqa: S311 - the same weather each time
    temperature, humidity = 8.0, 80.0
    made = []
    for number in range(count):
        temperature += chance.gauss(0.0, 0.15)
        humidity = min(100.0, max(20.0, humidity + chance.gauss(0.0, 0.8)))
        made.append(
            Outcome(
                int(until) - (count - 1 - number) * every,
                confidence=round(chance.uniform(0.9, 1.0), 2),
                samples=every // 10,
                results={"temperature": round(temperature, 1), "humidity": round(humidity)},
                summary="".join(chance.choices("abcdefgh", k=words)) or None,
            )
        )
    return made


def long_outcome(at: int, number: int = 0) -> Outcome:
    """One that fills a packet of nearly 512 bytes by itself."""
    chance = random.Random(number)  # noqa: S311 - the same each time
    words = "".join(chance.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(165))
    results: dict[Label, Value] = {
        f"soil_{depth:03d}_cm": round(chance.uniform(0, 40), 1) for depth in range(0, 100, 9)
    }
    return Outcome(at, results=results, summary=words)
