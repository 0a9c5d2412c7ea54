"""A Meshtastic radio, for asyncio: connects, stays connected, sends and receives.

client = MeshtasticClient("/dev/ttyUSB0")
await client.start()
outcome = await client.send(Outgoing(b"..."))     # Taken, Declined or Unknown
heard = await client.receive()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from qis_edge.core.errors import LinkError
from qis_edge.links.backoff import Backoff
from qis_edge.links.meshtastic_session import (
    Dead,
    Declined,
    Event,
    Heard,
    Notice,
    Outcome,
    Outgoing,
    RadioInfo,
    Ready,
    Reason,
    Rebooted,
    Report,
    Session,
    Settled,
    State,
    Telemetry,
    Timings,
    check,
)
from qis_edge.links.meshtastic_stream import definitions
from qis_edge.links.meshtastic_wire import Receiver, Wire, connect
from qis_edge.links.outage import Outage
from qis_edge.links.wake import Wake

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ClientStats:
    """What a client did since it was made."""

    taken: int = 0
    declined: int = 0
    unknown: int = 0
    heard: int = 0
    dropped: int = 0  # came in while nobody fetched them, the oldest stay
    connects: int = 0
    disconnects: int = 0
    reboots: int = 0
    garbage: int = 0  # bytes that were part of no message, log text included
    last_error: str | None = None


class MeshtasticClient:
    """One radio.

    :param address: ``auto``, a port, part of a name in ``/dev/serial/by-id``, or
        ``tcp:HOST[:PORT]``; looked up anew at each attempt to connect.
    :param on_report: called with each ACK and NAK of the mesh.
    :param on_telemetry: called with what the radio says of the air, every minute.

    What was :class:`Taken` may still be lost: with a radio that reboots (``stats.reboots``),
    and on the air. Callbacks are called in the event loop and must not block.
    """

    #: Packets that wait for :meth:`receive`.
    MAX_WAITING = 256

    def __init__(
        self,
        address: str = "auto",
        *,
        timings: Timings | None = None,
        backoff: Backoff | None = None,
        on_report: Callable[[Report], None] | None = None,
        on_telemetry: Callable[[Telemetry], None] | None = None,
        opener: Callable[[str, Receiver], Awaitable[Wire]] = connect,
    ) -> None:
        self.address = address
        self.name = f"radio {address}"
        self.stats = ClientStats()
        #: What the last handshake told; ``None`` before the first.
        self.radio: RadioInfo | None = None
        self.telemetry: Telemetry | None = None
        self._timings = timings or Timings()
        self._backoff = backoff or Backoff(1.0, 60.0)
        self.on_report = on_report
        self.on_telemetry = on_telemetry
        self._opener = opener
        self._outage = Outage(_log, self.name)
        self._connection: _Connection | None = None
        self._runner: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()
        self._settled: dict[int, asyncio.Future[Outcome]] = {}
        self._heard: deque[Heard] = deque()
        self._arrived = Wake()
        self._changed = Wake()
        self._closed = False

    @property
    def up(self) -> bool:
        """Whether the handshake is complete."""
        return self._connection is not None and self._connection.session.state is State.READY

    @property
    def room(self) -> int:
        """How many packets the radio takes now; 0 while one is under way."""
        return self._connection.session.room if self._connection is not None else 0

    def changed(self) -> Coroutine[Any, Any, None]:
        """Wait until :attr:`up` or :attr:`room` may have changed since this call."""
        return self._changed.changed()

    async def start(self) -> None:
        """Begin to connect, and keep connecting. Returns at once.

        :raises LinkError: the package ``meshtastic`` is not installed.
        """
        if self._runner is not None or self._closed:
            return
        definitions()
        definitions("telemetry_pb2")
        self._runner = asyncio.create_task(self._run(), name=self.name)

    async def close(self) -> None:
        """Hang up. What is under way ends :class:`Unknown`; :meth:`receive` gives what
        waits, then raises. Idempotent."""
        self._closed = True
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await runner
        self._arrived.end()
        self._changed.end()

    async def send(self, packet: Outgoing) -> Outcome:
        """Give a packet to the radio, after those before it, with an id of its own.

        It ends within ``timings.answer`` and ``timings.silence``, whatever the radio does.
        Cancelling it does not take the packet back.

        :raises UsageError: the packet can never be sent.
        """
        check(packet)
        async with self._sending:
            while self._settled:  # of a call that was cancelled
                await asyncio.wait(list(self._settled.values()))
            connection = self._connection
            if connection is None or connection.session.state is not State.READY:
                return self._count(Declined(Reason.NOT_CONNECTED))
            if not connection.session.room:
                return self._count(Declined(Reason.NO_ROOM))
            identifier = connection.submit(packet)
            settled = asyncio.get_running_loop().create_future()
            self._settled[identifier] = settled
            return await asyncio.shield(settled)

    async def receive(self) -> Heard:
        """The next packet that somebody sent. Cancellation safe.

        :raises LinkError: the client was closed and nothing is left.
        """
        while not self._heard:
            if self._closed:
                raise LinkError(f"{self.name} is closed")
            await self._arrived.changed()
        return self._heard.popleft()

    # The connection.

    async def _run(self) -> None:
        while True:
            try:
                await self._connected()
            except LinkError as error:
                self._failed(str(error), error.hint)
            await asyncio.sleep(self._backoff.next())

    async def _connected(self) -> None:
        """Connect, and stay until the line is dead."""
        connection = _Connection(self._timings, self._event, self._changed.notify)
        await connection.open(self.address, self._opener)
        self._connection = connection
        try:
            cause = await connection.dead
        except asyncio.CancelledError:
            connection.end("closed")
            raise
        finally:
            was_up = connection.was_ready
            self._connection = None
            self.stats.garbage += connection.session.garbage
            self.stats.disconnects += was_up
            self._changed.notify()
        self._failed(cause)

    def _failed(self, cause: str, hint: str | None = None) -> None:
        self.stats.last_error = cause
        self._outage.cause(cause, hint)

    def _event(self, event: Event) -> None:
        match event:
            case Settled(identifier, outcome):
                self._count(outcome)
                settled = self._settled.pop(identifier, None)
                if settled is not None and not settled.done():
                    settled.set_result(outcome)
            case Heard():
                self._take_in(event)
            case Report():
                if self.on_report is not None:
                    self.on_report(event)
            case Telemetry():
                self.telemetry = event
                if self.on_telemetry is not None:
                    self.on_telemetry(event)
            case Ready():
                self._ready()
            case Rebooted():
                self.stats.reboots += 1
                _log.info("%s: it rebooted", self.name)
            case Notice(text):
                _log.warning("%s: it says %r", self.name, text)
            case Dead():
                pass  # the connection tells

    def _ready(self) -> None:
        assert self._connection is not None
        radio = self.radio = self._connection.session.radio
        if not self._connection.was_ready:
            self._connection.was_ready = True
            self.stats.connects += 1
        self.stats.last_error = None
        self._backoff.reset()
        self._outage.over(f"connected to !{radio.number:08x}")

    def _take_in(self, heard: Heard) -> None:
        self.stats.heard += 1
        if len(self._heard) >= self.MAX_WAITING:
            self.stats.dropped += 1
            return
        self._heard.append(heard)
        self._arrived.notify()

    def _count(self, outcome: Outcome) -> Outcome:
        name = type(outcome).__name__.lower()
        setattr(self.stats, name, getattr(self.stats, name) + 1)
        return outcome


class _Connection:
    """A wire and the session on it. ``dead`` gets the cause when it is over."""

    def __init__(
        self, timings: Timings, on_event: Callable[[Event], None], on_change: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_event = on_event
        self._on_change = on_change
        self._was: tuple[State, int] | None = None
        self._timings = timings
        self._wire: Wire | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.was_ready = False
        self.session = Session(self._loop.time(), timings)
        self.dead: asyncio.Future[str] = self._loop.create_future()

    async def open(self, address: str, opener: Callable[[str, Receiver], Awaitable[Wire]]) -> None:
        """Connect and begin the handshake.

        :raises LinkError: it cannot be opened now.
        """
        self._wire = await opener(address, self)
        self.session = Session(self._loop.time(), self._timings)
        self._loop.call_soon(self._go_on, [])

    def submit(self, packet: Outgoing) -> int:
        """Send a packet; returns its id."""
        identifier = self.session.submit(packet, self._loop.time())
        self._loop.call_soon(self._go_on, [])
        return identifier

    def end(self, cause: str) -> None:
        """Hang up."""
        self._go_on(self.session.lost(cause, self._loop.time()))

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._go_on(self.session.receive(data, self._loop.time()))

    def wire_lost(self, cause: str) -> None:
        """The wire is gone."""
        self.end(cause)

    def _tick(self) -> None:
        self._timer = None
        self._go_on(self.session.tick(self._loop.time()))

    def _go_on(self, events: list[Event]) -> None:
        """Tell what happened, write what is to be written, wait for what comes next."""
        for event in events:
            self._on_event(event)
            if isinstance(event, Dead):
                self._hang_up(event.cause)
        now = self.session.state, self.session.room
        if now != self._was:
            self._was = now
            self._on_change()
        for line in self.session.log_lines():
            _log.debug("the radio says %r", line)
        if self._wire is None:
            return
        self._wire.write(self.session.data_to_send())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.session.deadline
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._tick)

    def _hang_up(self, cause: str) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.dead.done():
            self.dead.set_result(cause)
