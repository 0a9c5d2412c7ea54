"""Watches what goes through every Meshtastic client of a run.

The public methods of :class:`MeshtasticClient` are wrapped, so it does not matter who uses the
client: a test itself, or a node's link.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Iterator

from hil.report import Device, Hop, RoundTrip, Run, Spent, Transfer
from qis_edge.core.airtime import MAX_PAYLOAD, PRESETS, airtime_ms
from qis_edge.links.meshtastic_client import MeshtasticClient
from qis_edge.links.meshtastic_session import BROADCAST, Heard, Outcome, Outgoing, Taken

#: What was sent so many seconds before its listener hung up does not count as lost.
GRACE = 60.0


class Meter:
    """Puts what it sees into a :class:`Run`.

    :param rate: how many seconds of the air pass in one of ours.
    """

    def __init__(self, run: Run, rate: float = 1.0) -> None:
        self.run = run
        self.rate = rate
        #: Which radios these are; a new number for new ones.
        self.life = 0
        #: Whether what is lost now counts.
        self.counting = True
        self._began = time.monotonic()
        self._roles: dict[str, str] = {}
        self._shown: dict[str, str] = {}
        self._numbers: dict[int, str] = {}
        self._clients: weakref.WeakSet[MeshtasticClient] = weakref.WeakSet()
        self._under_way: dict[tuple[str, int], dict[str, Hop]] = {}

    def now(self) -> float:
        """Seconds of the air since the run began."""
        return (time.monotonic() - self._began) * self.rate

    def place(self, address: str, role: str, shown: str = "") -> None:
        """Say what the radio at an address is for, and how the report calls the address."""
        self._roles[address] = role
        self._shown[address] = shown or address

    @contextlib.contextmanager
    def undisturbed(self, counting: bool = True) -> Iterator[None]:
        """While this is open, what is lost counts, or does not."""
        before, self.counting = self.counting, counting
        try:
            yield
        finally:
            self.counting = before
            self._under_way.clear()

    def round_trip(self, what: str, size: int, seconds: float) -> None:
        """Something went there and came back."""
        self.run.round_trips.append(RoundTrip(what, size, seconds))

    def transfer(self, what: str, size: int, seconds: float, outcomes: int = 0) -> None:
        """Something was brought over."""
        self.run.transfers.append(Transfer(what, size, seconds, outcomes))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch all clients until the end."""
        names = ("start", "send", "receive", "close")
        real = {name: getattr(MeshtasticClient, name) for name in names}
        meter = self

        async def start(client: MeshtasticClient) -> None:
            await real["start"](client)
            meter._clients.add(client)

        async def send(client: MeshtasticClient, packet: Outgoing) -> Outcome:
            at = meter.now()
            outcome: Outcome = await real["send"](client, packet)
            if isinstance(outcome, Taken):
                meter._sent(client, packet, outcome, at)
            return outcome

        async def receive(client: MeshtasticClient) -> Heard:
            heard: Heard = await real["receive"](client)
            meter._heard(client, heard)
            return heard

        async def close(client: MeshtasticClient) -> None:
            meter._closing(client)
            await real["close"](client)

        for method in (start, send, receive, close):
            setattr(MeshtasticClient, method.__name__, method)
        try:
            yield
        finally:
            for name, method in real.items():
                setattr(MeshtasticClient, name, method)

    # What the clients do.

    def _role(self, client: MeshtasticClient) -> str:
        role = self._roles.get(client.address, client.address)
        radio = client.radio
        if radio is not None:
            self._numbers[radio.number] = role
            self._remember(role, client)
        return role

    def _remember(self, role: str, client: MeshtasticClient) -> None:
        radio = client.radio
        assert radio is not None
        facts = Device(
            role,
            self._shown.get(client.address, client.address),
            radio.number,
            radio.name,
            radio.firmware,
            radio.region,
            radio.preset,
        )
        known = [one for one in self.run.devices if one.role == role]
        if not known:
            self.run.devices.append(facts)
        if client.telemetry is not None:
            telemetry = client.telemetry
            self.run.telemetry[role] = telemetry.channel_utilization, telemetry.air_util_tx

    def _sent(self, client: MeshtasticClient, packet: Outgoing, taken: Taken, at: float) -> None:
        if client.radio is not None and packet.to == client.radio.number:
            return  # it does not go on air
        role, size = self._role(client), len(packet.payload)
        preset = PRESETS.get(client.radio.preset if client.radio else "")
        if preset is not None and size <= MAX_PAYLOAD:
            self.run.spent.append(Spent(role, at, size, airtime_ms(size, preset) / 1000, self.life))
        if packet.to != BROADCAST:
            return
        listeners = {
            self._role(other) for other in self._clients if other.up and other is not client
        }
        hops = {to: Hop(role, to, size, at, counts=self.counting) for to in listeners}
        self.run.hops += hops.values()
        self._under_way[role, taken.id] = {**hops, **self._early(role, taken.id, hops)}

    def _early(self, role: str, identifier: int, hops: dict[str, Hop]) -> dict[str, Hop]:
        """What was heard before the sender's radio had said that it took it."""
        early = self._under_way.pop((role, identifier), {})
        for to, hop in early.items():
            if to in hops:
                self.run.hops.remove(hops[to])
                hop.counts, at = hops[to].counts, hops[to].at
                hop.took, hop.at = hop.at - at, at
        return early

    def _heard(self, client: MeshtasticClient, heard: Heard) -> None:
        source = self._numbers.get(heard.source)
        if source is None or heard.to != BROADCAST:
            return  # of somebody who is not on this bench
        to, now = self._role(client), self.now()
        expected = self._under_way.setdefault((source, heard.id), {})
        hop = expected.get(to)
        if hop is None:
            hop = expected[to] = Hop(source, to, len(heard.payload), now, counts=False)
            self.run.hops.append(hop)
        if hop.took is None:
            hop.took, hop.snr, hop.rssi = now - hop.at, heard.snr, heard.rssi

    def _closing(self, client: MeshtasticClient) -> None:
        self._clients.discard(client)
        if client.radio is None:
            return
        role, now = self._role(client), self.now()
        for expected in self._under_way.values():
            hop = expected.get(role)
            if hop is not None and hop.took is None and hop.at > now - GRACE:
                hop.counts = False
