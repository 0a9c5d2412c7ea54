"""Sensing: from the drivers' readings to outcomes on the disk.

Each sensor has a task that reads it at its interval; the distiller closes windows by the
node's clock; each window's outcome is on the disk before anything is made of it.

Readings belong to the era of the clock in which they were made. When the clock is set (a
node without a clock learns the time), the windows of the old era are closed as they are
and, where it was not to be believed, stated by the boot's clock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qis_edge.config import NodeConfig, SensorConfig
from qis_edge.core.domain import Domain, Situation
from qis_edge.core.errors import SensorError, StoreCorrupt, StoreError
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Extensions
from qis_edge.drivers import load_driver
from qis_edge.links.backoff import Backoff
from qis_edge.node.estimating import ESTIMATE_TAG, Estimating, as_outcome
from qis_edge.node.timekeeping import Timekeeper, boot_id
from qis_edge.sensor import Reading, Sensor
from qis_edge.store.forms import Pending, Unclocked
from qis_edge.store.inbox import Inbox
from qis_edge.store.outbox import Outbox
from qis_edge.tasks import until
from qis_edge.terminal import duration
from qis_edge.worker import Disk, Worker

log = logging.getLogger(__name__)

#: Real seconds until a driver that could not be opened is tried again.
REOPEN = 30.0
#: Real seconds that a driver has to close when we end.
CLOSING = 2.0
#: Seconds between attempts to put an outcome on a disk that does not take it.
RETRY_FIRST, RETRY_LONGEST = 0.5, 30.0
#: Windows before the newest that are estimated after a gap, at most.
MOST_BEHIND = 48

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
    failing_since: float = 0.0

    @property
    def name(self) -> str:
        return self.config.name or self.config.driver


@dataclass(frozen=True, slots=True)
class _Era:
    """The clock in a time in which nobody set it.

    :param offset: unix seconds at the boot's zero, by that clock; ``None``: to be believed.
    """

    number: int
    offset: float | None


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
        disk: Disk,
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
        self._era = self._present_era()
        self._distiller = config.make_distiller(domain)
        self._function_error: str | None = None
        self._ended: list[tuple[Outcome, _Era]] = []  # windows of eras that are over
        self._before = -1  # windows up to this start were stated before a restart
        self._stated = -1  # the newest that was stated since
        self._recalled = False
        self._closed = asyncio.Event()
        self._running = [
            _Running(one, load_driver(one.driver)(one.settings), Worker(f"sensor-{i}"))
            for i, one in enumerate(config.sensors)
        ]
        self.address: bytes | None = None
        #: Set it to make no more outcomes.
        self.stop = asyncio.Event()
        #: Is set once no more are made.
        self.ended = asyncio.Event()

    async def run(self) -> None:
        """Sense until :attr:`stop`; then wait for ever."""
        own = await self._disk(self._inbox.own)
        now = self._clock.now()  # a wrong clock may have dated some in the future
        self._before = max((one.time for _, one in own if one.time <= now), default=-1)
        self._stated = self._before
        await self._begin()
        work = [self._read(one) for one in self._running] + [self._close_windows()]
        if self._config.synthesis.enabled:
            work.append(self._estimate())
        await until(self.stop, *work)
        await self._disk(_nothing)  # what was on its way to the disk when it stopped is there
        self._appended()
        self.ended.set()
        await asyncio.Event().wait()

    async def _begin(self) -> None:
        """Hear of peers from the start, not only from the first window on."""
        situation = self._config.situation.at(self._domain, self._clock.now(), {})
        await self._attend_to(situation)
        if self._clock.trusted and not self._recalled:
            self._recalled = True
            await self._estimating.recall(situation.fingerprint)

    async def close(self) -> None:
        """Close the drivers, also those that were just being opened. One that hangs is left
        to itself."""
        for one in self._running:
            try:
                async with asyncio.timeout(CLOSING):
                    await one.worker(one.sensor.close)
            except Exception as error:  # noqa: BLE001 - a driver's fault is no reason to stay
                log.debug("sensor %s: %s", one.name, error or "does not close")
            one.worker.close(0)

    # - reading

    async def _read(self, one: _Running) -> None:
        while not one.opened:
            try:
                await one.worker(one.sensor.open)
                one.opened = True
            except Exception as error:  # noqa: BLE001 - one driver's fault is not the node's
                self._failed(one, error)
                await asyncio.sleep(REOPEN)
        # The interval passes whatever is done to the clock meanwhile.
        due = time.monotonic()
        while True:
            await self._read_once(one)
            due = max(due + self._clock.real(one.config.interval), time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def _read_once(self, one: _Running) -> None:
        self._turn()
        era = self._era
        try:
            readings = await one.worker(one.sensor.read, self._clock.now())
            self._turn()
            if era is self._era:  # or they are dated by a clock that was set meanwhile
                self._feed(one, readings)
        except Exception as error:  # noqa: BLE001 - one driver's fault is not the node's
            self._failed(one, error)
            return
        if one.error is not None:
            took = duration(round(time.monotonic() - one.failing_since))
            log.info("sensor %s works again after %s without", one.name, took)
            one.error = None
        one.reads += 1

    def _feed(self, one: _Running, readings: Sequence[Reading]) -> None:
        for reading in readings:
            self._distiller.feed(reading.time, one.config.results(reading.values))

    def _failed(self, one: _Running, error: Exception) -> None:
        one.failures += 1
        if one.error is None:
            one.failing_since = time.monotonic()
            unexpected = not isinstance(error, SensorError)
            log.warning("sensor %s: %s", one.name, error or repr(error), exc_info=unexpected)
        one.error = str(error) or repr(error)

    # - windows

    def _present_era(self) -> _Era:
        return _Era(self._clock.era, None if self._clock.trusted else self._clock.offset)

    def _turn(self) -> None:
        """If the clock was set, close the windows of before, full or not, and begin anew."""
        if self._era.number == self._clock.era:
            return
        end = self._distiller.next_deadline()
        if end is not None:
            closed = self._distiller.roll(end)
            self._ended += [(one, self._era) for one in closed if one.samples]
        self._distiller = self._config.make_distiller(self._domain)
        self._era = self._present_era()

    async def _close_windows(self) -> None:
        while True:
            self._turn()
            now = self._clock.now()
            if now < self._before:  # it was set back: the same time may be stated twice
                self._before = -1
            closed = [(one, self._era) for one in self._distiller.roll(now)]
            ended, self._ended = self._ended, []
            for outcome, era in ended + closed:
                if era.offset is not None or outcome.time > self._before:
                    await self._state(outcome, era)
            self._judge_function()
            if ended:
                await self._begin()
            if ended or closed:
                continue  # that took a while: the clock may have been set back meanwhile
            deadline = self._distiller.next_deadline()
            await self._clock.sleep_until(deadline or self._clock.now() + 1.0)

    def _judge_function(self) -> None:
        """Say what the user's function fails with, once."""
        error = self._distiller.last_error
        if error is not None and error != self._function_error:
            self._function_error = error
            log.warning("distil.function: %s; the statistics take its place", error)

    async def _state(self, outcome: Outcome, era: _Era) -> None:
        """Put an outcome on the disk, then hear of its situation."""
        situation = self._config.situation.of(self._domain, outcome)
        await self._append(outcome, situation, (), era)
        if era.offset is None:
            self._estimating.measured(outcome)
            self._stated = outcome.time
            self._closed.set()
        await self._attend_to(situation)

    async def _append(
        self, outcome: Outcome, situation: Situation, tags: tuple[str, ...], era: _Era
    ) -> None:
        unclocked, doubt = None, self._clock.doubt
        if era.offset is not None:
            unclocked, doubt = Unclocked(boot_id(), max(0.0, outcome.time - era.offset)), None
        pending = Pending(
            self._domain.quantise(outcome),
            situation.fingerprint,
            self._config.priority_of(outcome),
            ttl=self._config.outbox.ttl_hours,
            extensions=Extensions(situation.vector, tags, doubt),
            unclocked=unclocked,
        )
        await self._keep(pending)
        if unclocked is None and not tags:
            await self._keep_own(pending)
        self._appended()

    async def _keep(self, pending: Pending) -> None:
        """Into the outbox, however long it takes: windows that end meanwhile wait."""
        backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        while True:
            try:
                await self._disk(self._outbox.append_many, [pending])
            except StoreCorrupt:
                raise
            except StoreError:  # said already
                await asyncio.sleep(backoff.next())
            else:
                return

    async def _keep_own(self, pending: Pending) -> None:
        """To compare peers with; what is missing there only means that less is learned."""
        try:
            await self._disk(self._inbox.keep_own, pending.fingerprint, [pending.outcome])
        except StoreCorrupt:
            raise
        except StoreError:  # said already
            pass

    async def _attend_to(self, situation: Situation) -> None:
        if situation.fingerprint == self.address:
            return
        self.address = situation.fingerprint
        bits = self._config.peers.bits
        wider = situation.widen(bits) if bits < 256 else ()
        await self._attend(((self.address, 256), *wider))

    # - estimates

    async def _estimate(self) -> None:
        """After each window: wait for peers, then synthesise what they say of it."""
        length = self._config.distil.window
        done = self._before
        while True:
            await self._closed.wait()
            self._closed.clear()
            if done < 0 or done > self._stated:  # the first of all, or the clock was set back
                done = self._stated - length
            done = max(done, self._stated - MOST_BEHIND * length)
            while done < self._stated:
                done += min(length, self._stated - done)
                # The window is over, whatever a clock that was set back shows.
                over = min(done + length, self._clock.now())
                await self._clock.sleep_until(over + self._config.synthesis.wait)
                await self._estimate_one(done)

    async def _estimate_one(self, start: int) -> None:
        estimate = await self._estimating.estimate(start)
        if not (self._config.synthesis.emit and estimate.results):
            return
        outcome = as_outcome(estimate)
        situation = self._config.situation.of(self._domain, outcome)
        await self._append(outcome, situation, (ESTIMATE_TAG,), self._era)

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


def _nothing() -> None:
    """To be waited for, behind what the disk has to do before."""
