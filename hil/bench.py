"""What the tests run on: two or three radios, real or emulated, and what can be done to them."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from hil.emulation import Air
from hil.measure import Meter
from qis_edge.core.airtime import PRESETS, REGIONS, airtime_ms
from qis_edge.links.backoff import Backoff
from qis_edge.links.meshtastic_client import MeshtasticClient
from qis_edge.links.meshtastic_session import (
    Declined,
    Heard,
    Outcome,
    Outgoing,
    Reason,
    Taken,
    Timings,
)
from qis_edge.links.meshtastic_stream import definitions

NODE, GATEWAY, SECOND = "node", "gateway", "second gateway"
#: What a machine that has much to do may take on top of everything, seconds.
SLACK = 15.0
_ADMIN_APP = 6
#: Emulated radios answer at once, so what is asked of them may be asked again soon.
_QUICK = Timings(ask=1.0, silence=6.0, handshake=20.0, answer=1.0, idle=5.0, poll=0.1, stall=0.2)

Ask = Callable[[str], None]


class Stopping(Protocol):
    """Something that runs on the bench."""

    async def stop(self) -> None:
        """End it."""
        ...


@dataclass(slots=True, eq=False)
class Host:
    """A client, and somebody who listens to it."""

    bench: Bench
    role: str
    client: MeshtasticClient
    heard: list[Heard] = field(default_factory=list)
    _listening: asyncio.Task[None] | None = None
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def listen(self) -> None:
        """Keep what comes in :attr:`heard`."""
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            self.heard.append(await self.client.receive())
            self._more.set()

    async def close(self) -> None:
        """Hang up."""
        if self._listening is not None:
            self._listening.cancel()
        await self.client.close()

    @property
    def number(self) -> int:
        """The radio's."""
        assert self.client.radio is not None
        return self.client.radio.number

    def has(self, source: int, identifier: int) -> Heard | None:
        """A packet, if it came."""
        return next((h for h in self.heard if (h.source, h.id) == (source, identifier)), None)

    async def hears(self, source: int, identifier: int, seconds: float) -> Heard | None:
        """A packet; ``None`` if it does not come within so many seconds of the air."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds / self.bench.rate + self.bench.slack):
                while (found := self.has(source, identifier)) is None:
                    self._more.clear()
                    await self._more.wait()
                return found
        return None

    async def room(self, seconds: float = 120.0) -> None:
        """Until the radio takes something. Fails the test if it never does."""
        await self.bench.until(
            f"room in the {self.role} radio",
            lambda: self.client.room > 0,
            seconds,
            client=self.client,
        )

    async def send(self, payload: bytes, **more: Any) -> Outcome:
        """Send a broadcast to whoever is in range, once the radio takes it."""
        await self.room()
        return await self.client.send(Outgoing(payload, hop_limit=0, **more))

    async def reboot(self, seconds: int) -> None:
        """Tell the radio to start anew in a while."""
        admin = definitions("admin_pb2").AdminMessage(reboot_seconds=seconds)
        await self.room()
        outcome = await self.client.send(
            Outgoing(admin.SerializeToString(), to=self.number, port=_ADMIN_APP)
        )
        assert isinstance(outcome, Taken), f"the radio does not take orders: {outcome}"


class Bench(ABC):
    """The radios of a test.

    :param ports: role → address, of a node's, a gateway's and perhaps a second gateway's.
    :param rate: how many seconds of the air pass in one of ours.
    """

    emulated: bool
    slack = SLACK
    #: How often something is sent before it counts as undeliverable.
    tries = 5

    def __init__(self, ports: Mapping[str, str], meter: Meter, rate: float = 1.0) -> None:
        self.ports = dict(ports)
        self.meter = meter
        self.rate = rate
        self.hosts: list[Host] = []
        #: What else is to be stopped before the radios go.
        self.fleets: list[Stopping] = []
        for role, address in self.ports.items():
            meter.place(address, role, "emulated" if self.emulated else "")

    @property
    def node_radio(self) -> str:
        """Where a node finds its radio."""
        return self.ports[NODE]

    @property
    def gateway_radio(self) -> str:
        """Where a gateway finds its radio."""
        return self.ports[GATEWAY]

    @property
    def second_gateway_radio(self) -> str | None:
        """Where a second gateway finds its radio, if there is one."""
        return self.ports.get(SECOND)

    # Clients.

    async def up(self, role: str, **more: Any) -> Host:
        """A client of a radio, connected; what the radio had kept has come."""
        timings, backoff = self.manners()
        client = MeshtasticClient(self.ports[role], timings=timings, backoff=backoff, **more)
        host = Host(self, role, client)
        self.hosts.append(host)
        await client.start()
        await self.until(f"the {role} radio", lambda: client.room > 0, 120.0, client=client)
        host.listen()
        return host

    def manners(self) -> tuple[Timings | None, Backoff | None]:
        """How clients wait, where not as usual."""
        return None, None

    async def carry(self, sender: Host, receiver: Host, payload: bytes) -> Heard:
        """Bring a payload over, again if it was lost. Fails the test if it never arrives."""
        for _ in range(self.tries):
            taken = await sender.send(payload)
            assert isinstance(taken, Taken), taken
            patience = 20 * self.airtime(sender, len(payload)) + 20.0
            heard = await receiver.hears(sender.number, taken.id, patience)
            if heard is not None:
                return heard
        pytest.fail(f"{len(payload)} bytes did not arrive in {self.tries} attempts")

    @staticmethod
    def airtime(host: Host, size: int) -> float:
        """Seconds that a payload of so many bytes is on air."""
        radio = host.client.radio
        preset = PRESETS.get(radio.preset if radio else "", PRESETS["LONG_SLOW"])
        return airtime_ms(size, preset) / 1000

    @staticmethod
    def duty_cycle(host: Host) -> float:
        """The share of an hour that a radio may send."""
        region = REGIONS.get(host.client.radio.region if host.client.radio else "")
        return region.duty_cycle if region is not None else 1.0

    async def until(
        self,
        what: str,
        true: Callable[[], bool],
        seconds: float,
        *,
        client: MeshtasticClient | None = None,
    ) -> None:
        """Wait; fails the test after so many seconds of the air."""
        try:
            async with asyncio.timeout(seconds / self.rate + self.slack):
                while not true():  # noqa: ASYNC110 - of radios, which raise no events
                    await asyncio.sleep(0.01)
        except TimeoutError:
            why = f": {client.stats.last_error}" if client and client.stats.last_error else ""
            pytest.fail(f"waited {seconds:.0f} s for {what}{why}")

    async def sleep(self, seconds: float) -> None:
        """Let so much time pass on the air."""
        await asyncio.sleep(seconds / self.rate)

    @contextlib.asynccontextmanager
    async def unplugged(self, role: str) -> AsyncIterator[None]:
        """A radio's cable is out while this is open."""
        await self.unplug(role)
        try:
            yield
        finally:
            await self.plug(role)

    async def close(self) -> None:
        """Hang up everywhere."""
        for fleet in self.fleets:
            await fleet.stop()
        for host in self.hosts:
            await host.close()

    # What is done to radios. Each skips the test where it cannot be done.

    @abstractmethod
    async def unplug(self, role: str) -> None:
        """Take a radio's cable out."""

    @abstractmethod
    async def plug(self, role: str) -> None:
        """Put it back, under the same name."""

    @abstractmethod
    async def press_reset(self, role: str) -> None:
        """Let a radio start anew, whoever uses it."""

    @abstractmethod
    async def use_up_airtime(self, host: Host) -> None:
        """Let a radio have sent all that it may in this hour."""

    @abstractmethod
    async def refuse(self, role: str, code: int, times: int) -> None:
        """Let a radio refuse what its host sends next, with a routing error."""

    @abstractmethod
    async def hear(self, one: str, other: str, heard: bool) -> None:
        """Let ``other`` hear ``one``, or not."""


class EmulatedBench(Bench):
    """Radios in software: everything can be done to them."""

    emulated = True

    def __init__(self, air: Air, meter: Meter, rate: float) -> None:
        super().__init__({role: port.path for role, port in air.ports.items()}, meter, rate)
        self.air = air
        meter.life += 1
        self.tries = 1 if not air.loss else 20

    def manners(self) -> tuple[Timings | None, Backoff | None]:
        return _QUICK, Backoff(0.02, 0.2)

    async def unplug(self, role: str) -> None:
        self.air.plug(role, False)

    async def plug(self, role: str) -> None:
        self.air.plug(role, True)

    async def press_reset(self, role: str) -> None:
        self.air.reboot(role)

    async def use_up_airtime(self, host: Host) -> None:
        self.air.use_up(host.role)

    async def refuse(self, role: str, code: int, times: int) -> None:
        self.air.refuse(role, code, times)

    async def hear(self, one: str, other: str, heard: bool) -> None:
        self.air.hear(one, other, heard)


class RealBench(Bench):
    """Radios on ports. What software cannot do, a person is asked for, or it is left out.

    :param ask: asks a person and waits; ``None``: nobody is there.
    :param exhaust: whether an hour's airtime may be used up.
    """

    emulated = False

    def __init__(
        self,
        ports: Mapping[str, str],
        meter: Meter,
        *,
        ask: Ask | None = None,
        exhaust: bool = False,
    ) -> None:
        super().__init__(ports, meter)
        self._ask = ask
        self._exhaust = exhaust

    async def _person(self, wish: str) -> None:
        if self._ask is None:
            pytest.skip(f"somebody has to {wish}: run it with --interactive")
        await asyncio.to_thread(self._ask, wish)

    async def unplug(self, role: str) -> None:
        await self._person(f"unplug the {role} radio ({self.ports[role]})")

    async def plug(self, role: str) -> None:
        await self._person(f"plug the {role} radio in again ({self.ports[role]})")

    async def press_reset(self, role: str) -> None:
        await self._person(f"press reset on the {role} radio ({self.ports[role]})")

    async def use_up_airtime(self, host: Host) -> None:
        if not self._exhaust:
            pytest.skip("it uses up an hour's airtime: run it with --exhaust")
        most = self.duty_cycle(host) * 3600 / self.airtime(host, 231)
        for _ in range(2 * int(most) + 16):
            outcome = await host.send(bytes([0xBF]) * 231)
            if outcome == Declined(Reason.DUTY_CYCLE, 9):
                return

    async def refuse(self, role: str, code: int, times: int) -> None:
        del role, code, times
        pytest.skip("real radios do not refuse on demand")

    async def hear(self, one: str, other: str, heard: bool) -> None:
        where = "back into" if heard else "out of"
        await self._person(f"bring the {one} and the {other} radio {where} each other's range")
