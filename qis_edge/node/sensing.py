"""Sensing: from the drivers' readings to outcomes on the disk.

Each sensor has a task that reads it at its interval; the distiller closes windows by the
node's clock; each window's outcome is on the disk before anything is made of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from qis_edge.clock import sleep_until
from qis_edge.config import NodeConfig, SensorConfig
from qis_edge.core.distil import Distilled, Distiller
from qis_edge.core.domain import Domain, Situation
from qis_edge.core.errors import SensorError
from qis_edge.core.outcome import Outcome, Value
from qis_edge.core.packet import Extensions
from qis_edge.drivers import load_callable, load_driver
from qis_edge.node.estimating import ESTIMATE_TAG, Estimating, as_outcome
from qis_edge.node.timekeeping import Timekeeper, boot_id, boot_seconds
from qis_edge.sensor import Sensor
from qis_edge.store.forms import Pending, Unclocked
from qis_edge.store.inbox import Inbox
from qis_edge.store.outbox import Outbox
from qis_edge.tasks import until
from qis_edge.worker import Worker

log = logging.getLogger(__name__)

#: Real seconds until a driver that could not be opened is tried again.
REOPEN = 30.0

Attend = Callable[[tuple[tuple[bytes, int], ...]], Awaitable[None]]


@dataclass(slots=True)
class _Running:
    config: SensorConfig
    sensor: Sensor
    worker: Worker
    opened: bool = False
    reads: int = 0
    failures: int = 0
    error: str | None = None

    @property
    def name(self) -> str:
        return self.config.name or self.config.driver


class Sensing:
    """The sensors of a node and what is made of their readings.

    :param attend: is told the addresses to hear of whenever the situation changes.
    :param appended: is called after outcomes were put on the disk.
    """

    def __init__(
        self,
        config: NodeConfig,
        domain: Domain,
        outbox: Outbox,
        inbox: Inbox,
        disk: Worker,
        clock: Timekeeper,
        *,
        estimating: Estimating,
        attend: Attend,
        appended: Callable[[], None],
    ) -> None:
        self._config = config
        self._domain = domain
        self._outbox = outbox
        self._inbox = inbox
        self._disk = disk
        self._clock = clock
        self._estimating = estimating
        self._attend = attend
        self._appended = appended
        self._distiller = _distiller(config, domain)
        self._stated = -1  # windows up to this start were stated, before a restart too
        self._closed = asyncio.Event()
        self._running = [
            _Running(one, load_driver(one.driver)(one.settings), Worker(f"sensor-{i}"))
            for i, one in enumerate(config.sensors)
        ]
        self.address: bytes | None = None
        #: Set it to make no more outcomes.
        self.stop = asyncio.Event()

    async def run(self) -> None:
        """Sense until :attr:`stop`; then wait for ever."""
        own = await self._disk(self._inbox.own)
        self._stated = max((outcome.time for _, outcome in own), default=-1)
        await self._begin()
        work = [self._read(one) for one in self._running] + [self._close_windows()]
        if self._config.synthesis.enabled:
            work.append(self._estimate())
        await until(self.stop, *work)
        self._appended()  # what was on its way to the disk when it stopped
        await asyncio.Event().wait()

    async def _begin(self) -> None:
        """Hear of peers from the start, not only from the first window on."""
        situation = self._config.situation.at(self._domain, self._clock.now(), {})
        await self._attend_to(situation)
        await self._estimating.recall(situation.fingerprint)

    async def close(self) -> None:
        """Close the drivers."""
        for one in self._running:
            if one.opened:
                try:
                    await one.worker(one.sensor.close)
                except SensorError as error:
                    log.debug("sensor %s: %s", one.name, error)
            one.worker.close()

    # - reading

    async def _read(self, one: _Running) -> None:
        while not one.opened:
            try:
                await one.worker(one.sensor.open)
                one.opened = True
            except SensorError as error:
                self._failed(one, error)
                await asyncio.sleep(REOPEN)
        due = self._clock.now()
        while True:
            await self._read_once(one)
            due = max(due + one.config.interval, self._clock.now())
            await sleep_until(self._clock, due)

    async def _read_once(self, one: _Running) -> None:
        try:
            readings = await one.worker(one.sensor.read, self._clock.now())
        except SensorError as error:
            self._failed(one, error)
            return
        if one.error is not None:
            log.info("sensor %s works again", one.name)
            one.error = None
        one.reads += 1
        for reading in readings:
            values: dict[str, Value] = {
                channel.result: reading.values.get(name)
                for name, channel in one.config.channels.items()
            }
            self._distiller.feed(reading.time, values)

    def _failed(self, one: _Running, error: SensorError) -> None:
        one.failures += 1
        if one.error is None:
            log.warning("sensor %s: %s", one.name, error)
        one.error = str(error)

    # - windows

    async def _close_windows(self) -> None:
        while True:
            closed = self._distiller.roll(self._clock.now())
            for window in closed:
                if window.outcome.time > self._stated or not self._clock.trusted:
                    await self._state(window)
            deadline = self._distiller.next_deadline()
            await sleep_until(self._clock, deadline or self._clock.now() + 1.0)

    async def _state(self, window: Distilled) -> None:
        """Put an outcome on the disk, then hear of its situation."""
        outcome = window.outcome
        named = {str(name): value for name, value in outcome.results.items()}
        situation = self._config.situation.at(self._domain, outcome.time, named)
        await self._append(outcome, situation, ())
        self._estimating.measured(outcome)
        self._stated = outcome.time
        await self._attend_to(situation)
        self._closed.set()

    async def _append(self, outcome: Outcome, situation: Situation, tags: tuple[str, ...]) -> None:
        unclocked = None
        if not self._clock.trusted:
            age = self._clock.now() - outcome.time
            unclocked = Unclocked(boot_id(), max(0.0, boot_seconds() - age))
        pending = Pending(
            self._domain.quantise(outcome),
            situation.fingerprint,
            ttl=self._config.outbox.ttl_hours,
            extensions=Extensions(vector=situation.vector, tags=tags),
            unclocked=unclocked,
        )
        await self._disk(self._put, pending, own=not tags)
        self._appended()

    def _put(self, pending: Pending, *, own: bool) -> None:
        """In the disk's thread: the outbox first, it is the one that must not lose any."""
        self._outbox.append_many([pending])
        if own:
            self._inbox.keep_own(pending.fingerprint, [pending.outcome])

    async def _attend_to(self, situation: Situation) -> None:
        if situation.fingerprint == self.address:
            return
        self.address = situation.fingerprint
        bits = self._config.peers.bits
        await self._attend(situation.widen(bits) if bits < 256 else ((self.address, 256),))

    # - estimates

    async def _estimate(self) -> None:
        """After each window: wait for peers, then synthesise what they say of it."""
        done = self._stated
        while True:
            await self._closed.wait()
            self._closed.clear()
            while self.address is not None and done < self._stated:
                start = max(done + self._config.distil.window, 0) if done >= 0 else self._stated
                done = min(start, self._stated)
                end = done + self._config.distil.window
                await sleep_until(self._clock, end + self._config.synthesis.wait)
                estimate = await self._estimating.estimate(done)
                if self._config.synthesis.emit and estimate.results:
                    outcome = as_outcome(estimate)
                    named = {str(name): value for name, value in outcome.results.items()}
                    situation = self._config.situation.at(self._domain, outcome.time, named)
                    await self._append(outcome, situation, (ESTIMATE_TAG,))

    # - looking in

    def status(self) -> list[dict[str, Any]]:
        """What ``qis-edge status`` shows of the sensors."""
        return [
            {
                "name": one.name,
                "driver": one.config.driver,
                "open": one.opened,
                "reads": one.reads,
                "failures": one.failures,
                "error": one.error,
            }
            for one in self._running
        ]


def _distiller(config: NodeConfig, domain: Domain) -> Distiller:
    function = config.distil.function
    return Distiller(
        domain,
        window=config.distil.window,
        expected=config.expected,
        results=config.results,
        function=None if function is None else load_callable(function),
    )
