"""Emulated radios where programs look for real ones: on ptys and on TCP ports."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import tty
from pathlib import Path

from devices.radio_sim.channel import Simulation
from devices.radio_sim.radio import Radio
from qis_edge.core.errors import UsageError
from qis_edge.links.meshtastic_stream import Deframer, encode


class Pace:
    """Makes a simulation's clock follow the event loop's, ``rate`` times as fast."""

    def __init__(self, simulation: Simulation, rate: float = 1.0) -> None:
        if not rate > 0:
            raise UsageError("more than 0", field="rate")
        self._simulation = simulation
        self._rate = rate
        self._origin = 0.0
        self._advancing = False
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Let time pass; within an event loop."""
        self._loop = asyncio.get_running_loop()
        self._origin = self._loop.time() - self._simulation.now / self._rate
        self._simulation.on_schedule = self._arm
        self._arm()

    def stop(self) -> None:
        """Let time stand still."""
        self._simulation.on_schedule = None
        self._loop = None
        if self._handle is not None:
            self._handle.cancel()

    def catch_up(self) -> None:
        """Let happen what is due by now."""
        if self._loop is None or self._advancing:
            return
        self._advancing = True
        try:
            self._simulation.advance((self._loop.time() - self._origin) * self._rate)
        finally:
            self._advancing = False
        self._arm()

    def _arm(self) -> None:
        if self._loop is None or self._advancing:
            return
        if self._handle is not None:
            self._handle.cancel()
        if (deadline := self._simulation.deadline) is not None:
            self._handle = self._loop.call_at(self._origin + deadline / self._rate, self.catch_up)


class PtyPort:
    """A radio on a pty; :attr:`path` is what a host opens.

    :param link: a symbolic link that leads to it, whatever the pty is called; it stays the
        same when the radio is unplugged and comes back.
    :param native_usb: whether the port is gone while the radio reboots, as it is with radios
        that have no USB bridge.

    A host that is away is noticed, so packets wait in the radio for it.
    """

    _LOOK = 0.02  # seconds between looks for a host

    def __init__(
        self, radio: Radio, pace: Pace, *, link: Path | None = None, native_usb: bool = False
    ) -> None:
        self.radio = radio
        self._pace = pace
        self._link = link
        self._native_usb = native_usb
        self._master = -1
        self._name = ""
        self._host = False
        self._deframer = Deframer()
        self._out = bytearray()
        self._looking: asyncio.TimerHandle | None = None
        self._writing = False
        radio.on_output = self._flush
        radio.on_power = self._powered

    @property
    def path(self) -> str:
        """The device to open."""
        return str(self._link) if self._link is not None else self._name

    @property
    def plugged(self) -> bool:
        """Whether it is there."""
        return self._master >= 0

    def plug(self) -> None:
        """Put the radio there.

        :raises OSError: there is no pty, or the link cannot be made.
        """
        if self.plugged:
            return
        master, slave = os.openpty()
        tty.setraw(slave)
        self._name = os.ttyname(slave)
        os.close(slave)
        os.set_blocking(master, False)
        self._master = master
        if self._link is not None:
            new = self._link.with_name(f".{self._link.name}.new")
            new.unlink(missing_ok=True)
            new.symlink_to(self._name)
            new.replace(self._link)
        self._look()

    def unplug(self) -> None:
        """Take it away, in the middle of whatever it does. The radio has its own battery and
        stays on."""
        if not self.plugged:
            return
        self._gone()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        os.close(self._master)
        self._master = -1
        if self._link is not None:
            self._link.unlink(missing_ok=True)

    def say(self, data: bytes) -> None:
        """Send anything at all to the host: log text, noise."""
        if self._host:
            self._out += data
            self._write()

    def _powered(self, on: bool) -> None:
        self._out.clear()
        self._deframer = Deframer()
        if self._native_usb:
            if on:
                self.plug()
            else:
                self.unplug()

    def _look(self) -> None:
        """Wait until a host opens the port."""
        self._looking = None
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        if any(event & select.POLLHUP for _, event in poll.poll(0)):
            self._looking = asyncio.get_running_loop().call_later(self._LOOK, self._look)
            return
        self._host = True
        asyncio.get_running_loop().add_reader(self._master, self._read)
        self._flush()

    def _gone(self) -> None:
        """The host closed the port."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._master)
        loop.remove_writer(self._master)
        self._host = self._writing = False
        self._out.clear()
        self._deframer = Deframer()
        self.radio.host_gone()

    def _read(self) -> None:
        try:
            data = os.read(self._master, 4096)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""
        if not data:
            self._gone()
            self._look()
            return
        self._pace.catch_up()
        if self.radio.on:
            for message in self._deframer.feed(data):
                self.radio.host(message)

    def _flush(self) -> None:
        """Send what the radio has, as fast as the host reads."""
        while self._host and not self._out and (message := self.radio.next_message()) is not None:
            self._out += encode(message)
            self._write()

    def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            sent = os.write(self._master, self._out)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the reader will see it too
        del self._out[:sent]
        if self._out and not self._writing:
            self._writing = True
            loop.add_writer(self._master, self._writable)

    def _writable(self) -> None:
        self._write()
        if not self._out:
            self._writing = False
            asyncio.get_running_loop().remove_writer(self._master)
            self._flush()


class TcpPort:
    """A radio on a TCP port, for one client at a time: a new one evicts the old."""

    def __init__(self, radio: Radio, pace: Pace, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.radio = radio
        self.host = host
        self.port = port
        self._pace = pace
        self._server: asyncio.Server | None = None
        self._client: _Client | None = None
        radio.on_output = self._flush
        radio.on_power = self._powered

    async def plug(self) -> None:
        """Listen; :attr:`port` then says where.

        :raises OSError: the address is taken.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def unplug(self) -> None:
        """Stop listening and hang up."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self._drop()
        if server is not None:
            await server.wait_closed()

    def say(self, data: bytes) -> None:
        """Send anything at all to the host."""
        if self._client is not None:
            self._client.write(data)

    def _powered(self, on: bool) -> None:
        if not on:
            self._drop()

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.hang_up()

    def _flush(self) -> None:
        client = self._client
        while client is not None and not client.full:
            message = self.radio.next_message()
            if message is None:
                return
            client.write(encode(message))

    # For the client's connection.

    def arrived(self, client: _Client) -> None:
        """A client connected."""
        self._drop()
        self.radio.host_gone()
        if not self.radio.on:
            client.hang_up()
            return
        self._client = client

    def received(self, client: _Client, messages: list[bytes]) -> None:
        """A client sent messages."""
        self._pace.catch_up()
        for message in messages:
            if client is self._client:
                self.radio.host(message)

    def resumed(self) -> None:
        """The client reads again."""
        self._flush()

    def left(self, client: _Client) -> None:
        """A client is gone."""
        if client is self._client:
            self._client = None
            self.radio.host_gone()


class _Client(asyncio.Protocol):
    def __init__(self, port: TcpPort) -> None:
        self.full = False
        self._port = port
        self._deframer = Deframer()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)
        self._port.arrived(self)

    def data_received(self, data: bytes) -> None:
        self._port.received(self, self._deframer.feed(data))

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self._port.resumed()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        self._port.left(self)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            with contextlib.suppress(OSError):
                self._transport.write(data)

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()
