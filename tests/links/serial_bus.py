"""A serial line for tests: ptys that hear each other, as on a multi-drop bus."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tty
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from qis_edge.core import cobs
from qis_edge.links.base import Role
from qis_edge.links.serial_line import SerialLink, SerialSettings
from qis_edge.testing.links import LinkWorld

BAUD = 1_000_000


def framed(content: bytes) -> bytes:
    """Any content, as a frame whose CRC is right."""
    return b"\0" + cobs.encode(content + zlib.crc32(content).to_bytes(4, "big")) + b"\0"


class Port:
    """One end of the line; :attr:`path` leads to its pty as long as it is plugged in."""

    def __init__(self, bus: SerialBus, path: Path) -> None:
        self.path = path
        self._bus = bus
        self._master = self._slave = -1
        self._out = bytearray()
        self._writing = False
        self.heard = bytearray()  # all that its owner wrote

    def plug(self) -> None:
        """Be there. The slave is held open, so that no hang-up is seen when the owner's is
        closed."""
        if self._master >= 0:
            return
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path.symlink_to(os.ttyname(self._slave))
        self.resume()

    def unplug(self) -> None:
        """Be gone, in the middle of whatever is under way."""
        if self._master < 0:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._master)
        loop.remove_writer(self._master)
        self.path.unlink(missing_ok=True)
        os.close(self._slave)
        os.close(self._master)
        self._master = self._slave = -1
        self._out.clear()
        self._writing = False

    def pause(self) -> None:
        """Take no bytes from the owner."""
        asyncio.get_running_loop().remove_reader(self._master)

    def resume(self) -> None:
        """Take them again."""
        asyncio.get_running_loop().add_reader(self._master, self._read)

    def say(self, data: bytes) -> None:
        """Bring bytes to the owner."""
        if self._master < 0:
            return
        self._out += data
        del self._out[65536:]  # nobody reads there
        self._write()

    def _read(self) -> None:
        data = os.read(self._master, 4096)
        self.heard += data
        self._bus.carry(data, self)

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError):
            del self._out[: os.write(self._master, self._out)]
        loop = asyncio.get_running_loop()
        if bool(self._out) != self._writing:
            self._writing = not self._writing
            if self._writing:
                loop.add_writer(self._master, self._write)
            else:
                loop.remove_writer(self._master)


class SerialBus:
    """What one port says all others hear.

    :param noise: what becomes of the bytes on their way.
    """

    def __init__(self, folder: Path, noise: Callable[[bytes], bytes] = bytes) -> None:
        self.folder = folder
        self.noise = noise
        self.ports: list[Port] = []
        self.works = True

    def port(self) -> Port:
        """Another one."""
        made = Port(self, self.folder / f"tty{len(self.ports)}")
        self.ports.append(made)
        if self.works:
            made.plug()
        return made

    def carry(self, data: bytes, sender: Port) -> None:
        """From one to all others."""
        data = self.noise(data)
        for port in self.ports:
            if port is not sender:
                port.say(data)

    def fail(self) -> None:
        """All are unplugged."""
        self.works = False
        for port in self.ports:
            port.unplug()

    def heal(self) -> None:
        """All are there again."""
        self.works = True
        for port in self.ports:
            port.plug()


class SerialWorld(LinkWorld):
    """A bus, and links to it, each with a port of its own."""

    def __init__(self, bus: SerialBus, baud: int = BAUD) -> None:
        self.bus = bus
        self.baud = baud
        self.made: list[SerialLink] = []

    def node(self, kid: bytes) -> SerialLink:
        return self.link(Role.NODE, kid)

    def gateway(self, kid: bytes) -> SerialLink:
        return self.link(Role.GATEWAY, kid)

    def link(self, role: Role, kid: bytes, port: Port | None = None) -> SerialLink:
        """A link on a port, a new one unless given."""
        path = (port or self.bus.port()).path
        settings = SerialSettings(str(path), self.baud, retry_first=0.05, retry_longest=0.1)
        link = SerialLink(settings, role, kid, name=f"serial-{role.value}")
        self.made.append(link)
        return link

    async def fail(self) -> None:
        self.bus.fail()

    async def heal(self) -> None:
        self.bus.heal()


@asynccontextmanager
async def serial_world(
    folder: Path, noise: Callable[[bytes], bytes] = bytes, baud: int = BAUD
) -> AsyncIterator[SerialWorld]:
    """A bus that ends with the test; close the links before."""
    bus = SerialBus(folder, noise)
    try:
        yield SerialWorld(bus, baud)
    finally:
        bus.fail()
