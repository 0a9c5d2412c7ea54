"""The serial link: messages over a UART, with pyserial.

Radio modems that pass bytes through, RS-485, a cable on the bench: a line on which everybody
hears everybody, and nobody says who is there. The frames are those of ``docs/serial.md``
(:mod:`qis_edge.links.serial_framing`); what is damaged is dropped, and custody above sends it
again.

**Up** means that the port is open. A line has no connection: whether anybody listens shows in
greetings and receipts.

**Room.** The operating system takes bytes faster than the line carries them, and does not say
when they have left. So the link keeps count: what it wrote leaves at the speed of the port, ten
bits a byte. There is room for a frame while less than a quarter of a second of the line, or two
of the longest frames, is under way: what is urgent waits no longer than that. A port that
takes nothing at all for half a minute is closed and opened again.

**The event loop** reads and writes the port itself; opening it, which may block, has a thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from qis_edge.core.errors import LinkError, UsageError
from qis_edge.links.backoff import Backoff
from qis_edge.links.base import (
    BROKER_CADENCE,
    MAX_FRAME,
    Destination,
    Direction,
    LinkStats,
    Received,
    Role,
)
from qis_edge.links.outage import Outage
from qis_edge.links.serial_framing import KID, Deframer, Frame, address_of, encode, wire_size
from qis_edge.links.tty import TtyWire, open_tty
from qis_edge.links.wake import Wake

__all__ = ["SerialLink", "SerialSettings"]

_log = logging.getLogger(__name__)

BAUD = 115200
SLOWEST, FASTEST = 300, 4_000_000
#: Frames that may be received and not done with; more are dropped.
RECEIVE_WINDOW = 256
#: A start bit, eight bits, a stop bit.
_BITS = 10
#: Seconds of the line that may be under way, if that is more than two of the longest frames.
_AHEAD = 0.25
#: Bytes that are under way at most.
_MOST = 32768
#: Seconds without a byte taken after which a port is opened anew.
_STALLED = 30.0
#: A port that was open for so many seconds was a good one: the next outage begins with the
#: shortest delay again.
_GOOD = 10.0
#: Seconds for what is under way when the link is closed.
_GOODBYE = 2.0
#: Seconds that an adapter may be behind our count of what has left.
_MARGIN = 0.05
#: And after which we look again whether there is room.
_RESOLUTION = 0.002


@dataclass(frozen=True, slots=True)
class SerialSettings:
    """Where the line is, and how fast.

    :param port: a device (``/dev/ttyAMA0``), or part of a name in ``/dev/serial/by-id``.
    :param baud: bits a second, 300 to 4,000,000; both ends have the same.
    :param retry_first: seconds before the second attempt to open it, on average.
    :param retry_longest: the most seconds between attempts, on average.
    :raises UsageError: a value is out of bounds.
    """

    port: str
    baud: int = BAUD
    retry_first: float = 1.0
    retry_longest: float = 20.0

    def __post_init__(self) -> None:
        if not self.port or not self.port.isprintable() or self.port == "auto":
            raise UsageError(
                f"{self.port!r} names no serial port",
                field="port",
                hint="a device, or part of a name in /dev/serial/by-id",
            )
        if not SLOWEST <= self.baud <= FASTEST:
            raise UsageError(f"{self.baud} is outside {SLOWEST}..{FASTEST}", field="baud")
        for name in ("retry_first", "retry_longest"):
            if not 0.01 <= getattr(self, name) <= 3600:
                raise UsageError("is outside 0.01..3600", field=name)


class SerialLink:
    """Frames over a serial line; see :class:`qis_edge.links.base.Link`.

    :param settings: where it is.
    :param role: NODE sends up, hears what is for its kid and for the addresses it listens to;
        GATEWAY hears every up and sends down and to addresses.
    :param kid: our own key id, 8 bytes.
    :param name: what logs call it.
    :raises UsageError: the kid has the wrong length.

    ``stats.extra``: ``garbage`` (bytes that were part of no frame), ``bad_crc`` and ``unknown``
    (frames that arrived damaged, and whole ones of no type that we know), ``for_others`` (whole
    ones that are not for us; ``dropped_in`` counts them too).
    """

    def __init__(
        self, settings: SerialSettings, role: Role, kid: bytes, *, name: str = "serial"
    ) -> None:
        if len(kid) != KID:
            raise UsageError(f"{len(kid)} bytes, a kid has {KID}", field="kid")
        self.name = name
        self.url = f"serial:{settings.port}"
        self.mtu = MAX_FRAME
        self.fits = self.mtu
        self.cadence = BROKER_CADENCE
        self.shared = False
        self.stats = LinkStats()
        self.settings = settings
        self.role = role
        self.kid = kid
        self._addresses: frozenset[bytes] = frozenset()
        # Of a gateway's frames, those with the longest address.
        sends = Direction.UP if role is Role.NODE else Direction.PEERS
        self._longest = wire_size(self.mtu, sends)
        self._queue: deque[Received] = deque()
        self._undone: set[object] = set()
        self._arrived = Wake()
        self._wake = Wake()
        self._outage = Outage(_log, f"{name} ({self.url})")
        self._backoff = Backoff(settings.retry_first, settings.retry_longest)
        self._port: _Port | None = None
        self._runner: asyncio.Task[None] | None = None
        self._closed = False

    # What it is like now.

    @property
    def up(self) -> bool:
        """The port is open."""
        return self._port is not None and not self._closed

    @property
    def room(self) -> int:
        """So many of the longest frames may be under way besides what is."""
        return self._port.room if self._port is not None and not self._closed else 0

    @property
    def not_before(self) -> float:
        """Always 0: :attr:`room` keeps to the speed of the line."""
        return 0.0

    def cost(self, size: int) -> float:
        """Bytes on the line, at most, framing included."""
        direction = Direction.UP if self.role is Role.NODE else Direction.DOWN
        return float(wire_size(size, direction))

    def changed(self) -> Coroutine[None, None, None]:
        """See :meth:`Link.changed`."""
        return self._wake.changed()

    # Beginning and end.

    async def start(self) -> None:
        """Begin to open the port, and keep at it. Again, it does nothing."""
        if self._runner is None and not self._closed:
            self._runner = asyncio.create_task(self._run())

    async def close(self) -> None:
        """See :meth:`Link.close`: what is under way has two seconds to leave."""
        if self._closed:
            return
        self._closed = True
        self._wake.notify()
        try:
            if self._port is not None:
                await self._port.drained(_GOODBYE)
        finally:
            if self._runner is not None:
                self._runner.cancel()
                await asyncio.wait([self._runner])
            self._wake.end()
            self._arrived.end()

    # Frames.

    async def send(self, frame: bytes, to: Destination) -> None:
        """Write one frame; see :meth:`Link.send`."""
        if (to.direction is Direction.UP) is not (self.role is Role.NODE):
            raise UsageError(f"a {self.role.value} does not send {to.direction.value}", field="to")
        if len(frame) > self.mtu:
            raise LinkError(f"{self.name}: {len(frame)} bytes, at most {self.mtu}")
        if self._port is None or self._closed:
            raise LinkError(f"{self.name} is down: {self.stats.last_error or 'not open yet'}")
        if self.room <= 0:
            raise LinkError(f"{self.name} has no room")
        self._port.write(encode(frame, to))
        self.stats.frames_out += 1
        self.stats.bytes_out += len(frame)

    async def receive(self) -> Received:
        """The next frame; see :meth:`Link.receive`."""
        while not self._queue:
            if self._closed:
                raise LinkError(f"{self.name} is closed")
            await self._arrived.changed()
        return self._queue.popleft()

    async def done(self, received: Received) -> None:
        """Make place for another."""
        if isinstance(received.token, _Token):
            self._undone.discard(received.token)

    async def listen(self, fingerprints: frozenset[bytes]) -> None:
        """Take in what is for exactly these, from now on."""
        if self.role is Role.NODE:
            wanted = (Destination(Direction.PEERS, one) for one in fingerprints)
            self._addresses = frozenset(address_of(to) for to in wanted)

    # The life of the link: one open port after the other.

    async def _run(self) -> None:
        while True:
            try:
                await self._one_port()
            except LinkError as error:
                self._failed(error)
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end the link
                _log.exception("%s: internal error", self.name)
                self._failed(LinkError(f"internal error: {error!r}"))
            await asyncio.sleep(self._backoff.next())

    async def _one_port(self) -> None:
        """From opening to the end.

        :raises LinkError: always: why it did not open, or what ended it.
        """
        port = _Port(self.settings.baud, self._longest, self._came, self._wake.notify)
        await port.open(self.settings.port)
        since = time.monotonic()
        self._port = port
        self.stats.connects += 1
        self.stats.last_error = None
        self._outage.over(f"open at {self.settings.baud} baud")
        self._wake.notify()
        try:
            await port.lost()
        except LinkError as error:
            self.stats.last_error = str(error)
            self.stats.disconnects += 1
            raise
        finally:
            self._port = None
            port.close()
            if time.monotonic() - since >= _GOOD:
                self._backoff.reset()
            self._wake.notify()

    def _failed(self, error: LinkError) -> None:
        if self._closed:
            return
        self.stats.last_error = str(error)
        self._outage.cause(str(error), error.hint)

    # What comes in.

    def _came(self, data: bytes, deframer: Deframer) -> None:
        before = deframer.garbage, deframer.bad_crc, deframer.unknown
        frames = deframer.feed(data)
        after = deframer.garbage, deframer.bad_crc, deframer.unknown
        for what, old, new in zip(("garbage", "bad_crc", "unknown"), before, after, strict=True):
            if new > old:
                self._count(what, new - old)
        for frame in frames:
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        if not self._for_us(frame):
            self._count("for_others", 1)
            self.stats.dropped_in += 1
            return
        if len(frame.message) > self.mtu or len(self._undone) >= RECEIVE_WINDOW:
            self.stats.dropped_in += 1
            return
        token = _Token()
        self._undone.add(token)
        self._queue.append(Received(frame.message, frame.direction, None, token, self.name))
        self.stats.frames_in += 1
        self.stats.bytes_in += len(frame.message)
        self._arrived.notify()

    def _for_us(self, frame: Frame) -> bool:
        if self.role is Role.GATEWAY:
            return frame.direction is Direction.UP
        if frame.direction is Direction.DOWN:
            return frame.address in (self.kid, b"")
        return frame.direction is Direction.PEERS and frame.address in self._addresses

    def _count(self, what: str, more: int) -> None:
        self.stats.extra[what] = self.stats.extra.get(what, 0.0) + more


class _Token:
    """Stands for one frame that is not done with."""


class _Port:
    """One open port, from its opening to its end, and what is under way on it.

    :param longest: bytes of the longest frame that is written.
    :param came: told what came in, with the deframer of this port.
    :param room: told that :attr:`room` may have changed.
    """

    def __init__(
        self,
        baud: int,
        longest: int,
        came: Callable[[bytes, Deframer], None],
        room: Callable[[], None],
    ) -> None:
        self._baud = baud
        self._rate = baud / _BITS  # bytes a second
        self._longest = longest
        self._ahead = min(max(2.0 * longest, _AHEAD * self._rate), _MOST)
        self._came = came
        self._tell_room = room
        self._loop = asyncio.get_running_loop()
        self._deframer = Deframer()
        self._lost: asyncio.Future[str] = self._loop.create_future()
        self._wire: TtyWire | None = None
        self._idle_at = 0.0  # when what was written will have left, at the speed of the line
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    async def open(self, port: str) -> None:
        """:raises LinkError: it does not open."""
        self._wire = await open_tty(port, self._baud, self, written=self._written)

    async def lost(self) -> None:
        """Wait for the end.

        :raises LinkError: always: why it came.
        """
        raise LinkError(await self._lost)

    def close(self) -> None:
        """Drop what is under way. Idempotent."""
        for timer in (self._timer, self._stalled):
            if timer is not None:
                timer.cancel()
        if self._wire is not None:
            self._wire.close()

    # What goes out.

    @property
    def room(self) -> int:
        """So many of the longest frames may be under way besides what is."""
        if self._lost.done():
            return 0
        return max(0, int((self._ahead - self._under_way) / self._longest))

    @property
    def _under_way(self) -> float:
        """Bytes that have not left, as far as can be known."""
        assert self._wire is not None
        return max(self._wire.unwritten, (self._idle_at - self._loop.time()) * self._rate)

    def write(self, data: bytes) -> None:
        """Send as soon as the line takes it."""
        assert self._wire is not None
        self._idle_at = max(self._idle_at, self._loop.time()) + len(data) / self._rate
        self._wire.write(data)
        if self._wire.unwritten and self._stalled is None:
            self._stalled = self._loop.call_later(_STALLED, self._check, self._wire.written)
        if self._timer is None:
            self._arm()

    async def drained(self, patience: float) -> None:
        """Wait until nothing is under way, for so many seconds at most."""
        assert self._wire is not None
        deadline = self._loop.time() + patience
        while (now := self._loop.time()) < deadline and not self._lost.done():
            left = self._idle_at + _MARGIN - now
            if left <= 0 and not self._wire.unwritten:
                return
            await asyncio.sleep(min(max(left, _MARGIN), deadline - now))

    def _arm(self) -> None:
        """Wake up when there will be room for one more."""
        self._timer = None
        more = self._ahead - (self.room + 1) * self._longest
        if more >= 0 and self._idle_at > self._loop.time():
            # Not at once again, where it is not the speed of the line that holds it up.
            at = max(self._idle_at - more / self._rate, self._loop.time())
            self._timer = self._loop.call_at(at + _RESOLUTION, self._elapsed)

    def _elapsed(self) -> None:
        self._arm()
        self._tell_room()

    def _written(self) -> None:
        """The operating system has taken all."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        self._tell_room()

    def _check(self, written: int) -> None:
        """Whether anything was taken since the last look."""
        assert self._wire is not None
        self._stalled = None
        if self._wire.written == written:
            self._wire.lose(f"it took no byte for {_STALLED:.0f} s")
        elif self._wire.unwritten:
            self._stalled = self._loop.call_later(_STALLED, self._check, self._wire.written)

    # From the wire.

    def data_received(self, data: bytes) -> None:
        self._came(data, self._deframer)

    def wire_lost(self, cause: str) -> None:
        if not self._lost.done():
            self._lost.set_result(cause)
        self._tell_room()
