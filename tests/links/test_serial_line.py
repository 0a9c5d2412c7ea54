"""The serial link on bad lines, slow ones, and ports that come and go."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import termios
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import serial

from qis_edge.core.errors import LinkError, UsageError
from qis_edge.links import serial_line, tty
from qis_edge.links.base import (
    BROKER_CADENCE,
    UP,
    Direction,
    Link,
    Role,
    down,
    link_status,
    peers,
)
from qis_edge.links.serial_framing import encode
from qis_edge.links.serial_line import RECEIVE_WINDOW, SerialLink, SerialSettings
from qis_edge.testing.links import receive_done, send_when_possible, until_down, until_up
from tests.links.serial_bus import SerialWorld, framed, serial_world

NODE, OTHER, GATEWAY = b"\x01node..\x01", b"\x02node..\x02", b"\x03gate..\x03"
ADDRESS = b"\xaa" * 32


@asynccontextmanager
async def running(*links: Link) -> AsyncIterator[None]:
    """Started, and closed at the end."""
    try:
        for link in links:
            await link.start()
        yield
    finally:
        for link in links:
            await link.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SerialWorld]:
    async with serial_world(tmp_path) as made:
        yield made


def link_to(port: str) -> SerialLink:
    settings = SerialSettings(port, retry_first=0.02, retry_longest=0.05)
    return SerialLink(settings, Role.NODE, NODE)


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - not everything here tells of its changes
            await asyncio.sleep(0.005)


# - what it says of itself


def test_what_it_is() -> None:
    link = SerialLink(SerialSettings("/dev/ttyUSB0"), Role.NODE, NODE)
    assert (link.name, link.url) == ("serial", "serial:/dev/ttyUSB0")
    assert (link.mtu, link.fits, link.shared) == (512, 512, False)
    assert link.cadence == BROKER_CADENCE
    assert link.not_before == 0.0
    assert isinstance(link, Link)


def test_cost_is_what_is_on_the_line() -> None:
    settings = SerialSettings("/dev/ttyUSB0")
    node, gateway = (SerialLink(settings, role, NODE) for role in (Role.NODE, Role.GATEWAY))
    for size in (0, 1, 100, 248, 249, 512):
        message = b"x" * size
        assert node.cost(size) == len(encode(message, UP))
        assert gateway.cost(size) == len(encode(message, down(b"\x01" * 8)))


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"port": ""}, "port"),
        ({"port": "auto"}, "port"),
        ({"port": "/dev/tty\n"}, "port"),
        ({"port": "x", "baud": 299}, "baud"),
        ({"port": "x", "baud": 4_000_001}, "baud"),
        ({"port": "x", "retry_first": 0}, "retry_first"),
        ({"port": "x", "retry_longest": 3601}, "retry_longest"),
    ],
)
def test_settings_out_of_bounds(values: dict[str, object], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        SerialSettings(**values)  # type: ignore[arg-type]  # that is the point
    assert caught.value.field == field


def test_a_kid_of_another_length() -> None:
    with pytest.raises(UsageError):
        SerialLink(SerialSettings("x"), Role.NODE, bytes(7))


# - who hears what


async def test_nodes_hear_neither_each_other_nor_gateways_each_other(world: SerialWorld) -> None:
    node, other = world.node(NODE), world.node(OTHER)
    gateway, neighbour = world.gateway(GATEWAY), world.gateway(b"\x04gate..\x04")
    async with running(node, other, gateway, neighbour):
        await until_up(node, other, gateway, neighbour)
        await other.listen(frozenset([ADDRESS]))
        await send_when_possible(node, b"up")
        await send_when_possible(gateway, b"down", down(NODE))
        await send_when_possible(gateway, b"peers", peers(ADDRESS))
        await send_when_possible(gateway, b"nobody", peers(b"\xbb" * 32))
        assert [r.data for r in await receive_done(node, 1)] == [b"down"]
        assert [r.data for r in await receive_done(other, 1)] == [b"peers"]
        assert [r.data for r in await receive_done(gateway, 1)] == [b"up"]
        assert [r.data for r in await receive_done(neighbour, 1)] == [b"up"]
        await until(lambda: neighbour.stats.dropped_in == 3)
        await until(lambda: node.stats.dropped_in == 2)  # peers, nobody
        await until(lambda: other.stats.dropped_in == 3)  # up, down, nobody
        assert gateway.stats.dropped_in == 0
        assert other.stats.extra == {"for_others": 3}
        assert all(link.stats.frames_in == 1 for link in (node, other, gateway, neighbour))


async def test_what_is_for_all_nodes_reaches_them(world: SerialWorld) -> None:
    nodes = world.node(NODE), world.node(OTHER)
    gateway = world.gateway(GATEWAY)
    async with running(*nodes, gateway):
        await until_up(*nodes, gateway)
        await send_when_possible(gateway, b"all", down(b""))
        for node in nodes:
            received = (await receive_done(node, 1))[0]
            assert (received.data, received.direction) == (b"all", Direction.DOWN)


async def test_a_frame_says_over_which_link_it_came_and_claims_nothing(world: SerialWorld) -> None:
    node, gateway = world.node(NODE), world.gateway(GATEWAY)
    async with running(node, gateway):
        await until_up(node, gateway)
        await node.send(b"up", UP)
        received = (await receive_done(gateway, 1))[0]
        assert (received.claimed, received.link) == (None, "serial-gateway")


async def test_ones_own_echo_is_not_heard(world: SerialWorld) -> None:
    port = world.bus.port()
    node = world.link(Role.NODE, NODE, port)
    async with running(node):
        await until_up(node)
        port.say(encode(b"mine", UP))
        await until(lambda: node.stats.extra.get("for_others") == 1)
        assert node.stats.frames_in == 0


# - bad lines


async def test_garbage_is_counted_and_harms_nothing(world: SerialWorld) -> None:
    port = world.bus.port()
    gateway, node = world.link(Role.GATEWAY, GATEWAY, port), world.node(NODE)
    async with running(gateway, node):
        await until_up(gateway, node)
        port.say(b"U-Boot 2023.01\r\nlogin: ")
        await until(lambda: garbage_is_here(gateway))
        await send_when_possible(node, b"first")
        port.say(random.Random(1).randbytes(20_000) + b"\0")
        await send_when_possible(node, b"second")
        assert [r.data for r in await receive_done(gateway, 2)] == [b"first", b"second"]
        extra = link_status(gateway)["extra"]
        assert isinstance(extra, dict)
        assert extra["garbage"] + extra.get("bad_crc", 0) > 1000
        assert gateway.up
        assert gateway.stats.disconnects == 0


def garbage_is_here(link: SerialLink) -> bool:
    """It is not counted before the next zero."""
    assert link._port is not None
    return len(link._port._deframer._buffer) > 20


async def test_frames_on_a_noisy_line_come_whole_when_they_are_repeated(tmp_path: Path) -> None:
    chance = random.Random(4)

    def noise(data: bytes) -> bytes:
        """Bytes flipped, lost and added."""
        out = bytearray()
        for byte in data:
            roll = chance.random()
            if roll > 0.006:
                out.append(byte)
            elif roll > 0.004:
                out.append(byte ^ (1 << chance.randrange(8)))
            elif roll > 0.002:
                out += bytes([byte, chance.randrange(256)])
        return bytes(out)

    sent = [b"%03d " % number + chance.randbytes(80) for number in range(50)]
    found: set[bytes] = set()
    async with serial_world(tmp_path, noise) as world:
        node, gateway = world.node(NODE), world.gateway(GATEWAY)
        async with running(node, gateway), asyncio.timeout(60):
            await until_up(node, gateway)

            async def gather() -> None:
                while True:
                    received = await gateway.receive()
                    await gateway.done(received)
                    found.add(received.data)

            gathering = asyncio.create_task(gather())
            while len(found) < len(sent):
                for frame in sent:
                    if frame not in found:
                        await send_when_possible(node, frame)
                await asyncio.sleep(0.02)
            gathering.cancel()
        assert found == set(sent)  # and none that nobody sent
        assert gateway.stats.extra["bad_crc"] > 10


async def test_a_whole_frame_that_is_too_long_or_of_no_type_is_dropped(world: SerialWorld) -> None:
    port = world.bus.port()
    gateway = world.link(Role.GATEWAY, GATEWAY, port)
    async with running(gateway):
        await until_up(gateway)
        port.say(encode(b"x" * 512, down(NODE)))
        port.say(framed(b"\xc0" + b"x" * 513))
        port.say(framed(b"\xcfwhat"))
        port.say(encode(b"good", UP))
        assert [r.data for r in await receive_done(gateway, 1)] == [b"good"]
        assert gateway.stats.dropped_in == 2
        assert gateway.stats.extra == {"for_others": 1, "unknown": 1}


async def test_a_frame_that_was_cut_off_by_unplugging_does_not_spoil_the_next(
    world: SerialWorld,
) -> None:
    port = world.bus.port()
    gateway, node = world.link(Role.GATEWAY, GATEWAY, port), world.node(NODE)
    async with running(gateway, node):
        await until_up(gateway, node)
        port.say(encode(b"half of it", UP)[:8])
        await asyncio.sleep(0.05)
        port.unplug()
        await until_down(gateway)
        port.plug()
        await until_up(gateway)
        await send_when_possible(node, b"whole")
        assert [r.data for r in await receive_done(gateway, 1)] == [b"whole"]
        assert (gateway.stats.connects, gateway.stats.disconnects) == (2, 1)
        assert node.stats.connects == 1


# - slow lines


async def test_a_slow_line_takes_no_more_than_it_carries(tmp_path: Path) -> None:
    async with serial_world(tmp_path, baud=38_400) as world:
        node, gateway = world.node(NODE), world.gateway(GATEWAY)
        async with running(node, gateway):
            await until_up(node, gateway)
            frames = [bytes([number]) * 512 for number in range(1, 7)]
            assert node.room == 2
            began = time.monotonic()
            for frame in frames:
                await send_when_possible(node, frame)
                assert node.room <= 1
            took = time.monotonic() - began
            # Two are on their way when the last is taken.
            assert took >= 4 * 10 * node.cost(512) / 38_400
            assert [r.data for r in await receive_done(gateway, 6)] == frames


async def test_small_frames_are_taken_while_there_is_room_and_then_not(tmp_path: Path) -> None:
    async with serial_world(tmp_path, baud=9600) as world:
        node = world.node(NODE)
        async with running(node):
            await until_up(node)
            taken = 0
            while node.room:
                await node.send(b"x" * 20, UP)
                taken += 1
            assert 18 <= taken <= 30
            with pytest.raises(LinkError, match="no room"):
                await node.send(b"x", UP)
            change = node.changed()
            async with asyncio.timeout(60):
                await change
            await until(lambda: node.room)


async def test_a_port_that_takes_no_bytes_has_no_room_until_it_does(world: SerialWorld) -> None:
    port = world.bus.port()
    node, gateway = world.link(Role.NODE, NODE, port), world.gateway(GATEWAY)
    async with running(node, gateway):
        await until_up(node, gateway)
        port.pause()
        sent = 0
        while sent < 500:  # until what does not move is all that may be under way
            if node.room:
                await node.send(sent.to_bytes(2, "big") * 200, UP)
                sent += 1
            else:
                await asyncio.sleep(0.1)
                if not node.room:
                    break
        assert 0 < sent < 500
        assert node.up
        await asyncio.sleep(0.3)  # at its speed the line would have carried all
        assert node.room == 0
        room = asyncio.create_task(_room(node))
        await asyncio.sleep(0.02)
        assert not room.done()
        port.resume()
        await asyncio.wait_for(room, 10)
        assert len(await receive_done(gateway, sent)) == sent


async def _room(link: Link) -> None:
    while True:
        change = link.changed()
        if link.room:
            change.close()
            return
        await change


async def test_a_port_that_stays_stuck_is_opened_anew(
    world: SerialWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serial_line, "_STALLED", 0.3)
    port = world.bus.port()
    node = world.link(Role.NODE, NODE, port)
    async with running(node):
        await until_up(node)
        port.pause()
        while node.up:
            change = node.changed()
            if node.room:
                change.close()
                await node.send(b"x" * 512, UP)
            else:
                async with asyncio.timeout(60):
                    await change
        assert "took no byte" in str(node.stats.last_error)
        await until_up(node)
        assert node.stats.connects == 2


async def test_what_was_sent_leaves_before_it_closes(world: SerialWorld) -> None:
    node, gateway = world.node(NODE), world.gateway(GATEWAY)
    async with running(gateway):
        async with running(node):
            await until_up(node, gateway)
            for number in range(10):
                await node.send(bytes([number]) * 400, UP)
        assert len(await receive_done(gateway, 10)) == 10


async def test_what_the_port_takes_late_leaves_before_it_closes(world: SerialWorld) -> None:
    port = world.bus.port()
    node, gateway = world.link(Role.NODE, NODE, port), world.gateway(GATEWAY)
    async with running(node, gateway):
        await until_up(node, gateway)
        port.pause()
        sent = 0
        while node.room:
            await node.send(sent.to_bytes(2, "big") * 250, UP)
            sent += 1
        closing = asyncio.create_task(node.close())
        await asyncio.sleep(0.1)
        assert (closing.done(), node.up, node.room) == (False, False, 0)
        port.resume()
        await closing
        assert len(await receive_done(gateway, sent)) == sent


async def test_the_fastest_line_keeps_no_more_than_the_port_may_hold(tmp_path: Path) -> None:
    async with serial_world(tmp_path, baud=4_000_000) as world:
        port = world.bus.port()
        node = world.link(Role.NODE, NODE, port)
        async with running(node):
            await until_up(node)
            port.pause()
            sent = 0
            while node.room:
                await node.send(b"x" * 512, UP)
                sent += 1
                assert sent < 100
            await asyncio.sleep(0.05)
            assert node.up
            port.resume()


async def test_closing_a_port_that_takes_nothing_does_not_last(
    world: SerialWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serial_line, "_GOODBYE", 0.2)
    port = world.bus.port()
    node = world.link(Role.NODE, NODE, port)
    async with running(node):
        await until_up(node)
        port.pause()
        while node.room:
            await node.send(b"x" * 512, UP)
        await asyncio.wait_for(node.close(), 2)
        assert not node.up


# - a receiver that does not keep up


async def test_frames_that_nobody_is_done_with_are_bounded(world: SerialWorld) -> None:
    port = world.bus.port()
    gateway = world.link(Role.GATEWAY, GATEWAY, port)
    async with running(gateway):
        await until_up(gateway)
        for number in range(RECEIVE_WINDOW + 10):
            port.say(encode(number.to_bytes(2, "big"), UP))
        await until(lambda: gateway.stats.dropped_in == 10)
        assert gateway.stats.frames_in == RECEIVE_WINDOW
        first = await gateway.receive()
        await gateway.done(first)
        await gateway.done(first)
        port.say(encode(b"one", UP) + encode(b"more", UP))
        await until(lambda: gateway.stats.dropped_in == 11)
        held = await receive_done(gateway, RECEIVE_WINDOW)
        assert [r.data for r in held[-2:]] == [(RECEIVE_WINDOW - 1).to_bytes(2, "big"), b"one"]


# - ports that come, go and cannot be used


async def test_an_outage_is_said_once_and_so_is_its_end(
    world: SerialWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "qis_edge")
    port = world.bus.port()
    node = world.link(Role.NODE, NODE, port)
    async with running(node):
        await until_up(node)
        port.unplug()
        await until_down(node)
        await asyncio.sleep(0.5)  # several attempts
        port.plug()
        await until_up(node)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4
    assert "open at 1000000 baud" in said[0]
    assert "it was unplugged" in said[1]
    assert "there is no such port (is it plugged in?)" in said[2]
    assert "open at 1000000 baud after" in said[3]
    assert [r.levelname for r in caplog.records] == ["INFO", "WARNING", "WARNING", "INFO"]


async def test_an_outage_after_a_good_while_begins_with_the_shortest_wait(
    world: SerialWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serial_line, "_GOOD", 0.0)
    port = world.bus.port()
    node = SerialLink(SerialSettings(str(port.path), retry_first=0.02), Role.NODE, NODE)
    resets = []
    monkeypatch.setattr(node._backoff, "reset", lambda: resets.append(node.stats.connects))
    async with running(node):
        await until_up(node)
        assert resets == []
        port.unplug()
        await until_down(node)
        assert resets == [1]


async def test_a_read_without_data_is_no_hang_up(world: SerialWorld) -> None:
    port = world.bus.port()
    node = world.link(Role.NODE, NODE, port)
    async with running(node):
        await until_up(node)
        assert node._port is not None
        assert node._port._wire is not None
        node._port._wire._read()
        await asyncio.sleep(0.01)
        assert node.up


async def test_a_port_that_cannot_be_set_up(
    world: SerialWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = world.bus.port()

    def refuse(_: int) -> None:
        raise termios.error(errno.EIO, "Input/output error")

    monkeypatch.setattr(tty, "_adjust", refuse)
    assert await cause(link_to(str(port.path))) == f"{port.path}: is no serial port"
    with serial.Serial(str(port.path), exclusive=True):  # it was closed again
        pass


async def cause(link: SerialLink) -> str:
    """Why a link does not come up."""
    async with running(link):
        await until(lambda: link.stats.last_error)
        assert not link.up
        assert link.stats.connects == 0
        with pytest.raises(LinkError, match="is down"):
            await link.send(b"frame", UP)
    return str(link.stats.last_error)


async def test_there_is_no_such_port(tmp_path: Path) -> None:
    path = tmp_path / "ttyUSB9"
    assert await cause(link_to(str(path))) == f"{path}: there is no such port"


async def test_a_port_that_another_program_uses(world: SerialWorld) -> None:
    port = world.bus.port()
    first = world.link(Role.NODE, NODE, port)
    second = link_to(str(port.path))
    async with running(first):
        await until_up(first)
        assert await cause(second) == f"{port.path}: another program uses it"
        assert first.up


async def test_it_is_used_when_the_other_program_has_ended(world: SerialWorld) -> None:
    port = world.bus.port()
    second = link_to(str(port.path))
    with serial.Serial(str(port.path), exclusive=True):
        await second.start()
        await until(lambda: second.stats.last_error)
    await until_up(second)
    assert second.stats.last_error is None
    await second.close()


@pytest.mark.parametrize("what", ["file", "folder", "null"])
async def test_what_is_no_serial_port(tmp_path: Path, what: str) -> None:
    path = Path("/dev/null")
    if what == "file":
        (path := tmp_path / "file").write_bytes(b"x")
    if what == "folder":
        (path := tmp_path / "folder").mkdir()
    assert await cause(link_to(str(path))) == f"{path}: is no serial port"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (serial.SerialException(errno.EACCES, "could not open port"), "no permission to open it"),
        (serial.SerialException(errno.EBUSY, "could not open port"), "another program uses it"),
        (serial.SerialException(errno.EIO, "could not open port"), "Input/output error"),
        (ValueError("Failed to set custom baud rate (7): [Errno 22]"), "does not do 115200 baud"),
        (OSError("who knows"), "who knows"),
    ],
)
async def test_why_it_does_not_open(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(serial, "Serial", refuse)
    assert await cause(link_to("/dev/ttyS0")) == f"/dev/ttyS0: {words}"


async def test_a_port_by_part_of_its_name(
    world: SerialWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tty, "BY_ID", tmp_path / "by-id")
    link = link_to("FTDI")
    await link.start()
    await until(lambda: link.stats.last_error)
    assert link.stats.last_error == "no serial port is called FTDI"
    port = world.bus.port()
    (tmp_path / "by-id").mkdir()
    names = [tmp_path / "by-id" / f"usb-FTDI_{letter}-if00" for letter in "AB"]
    for name in names:
        name.symlink_to(port.path)
    await until(lambda: "could be meant" in str(link.stats.last_error))
    assert str(names[0]) in str(link.stats.last_error)
    names[0].unlink()
    await until_up(link)
    await link.close()


class _Slow:
    """Opens when it is let, as USB adapters do that do not answer."""

    may = threading.Event()
    opened: ClassVar[list[_Slow]] = []

    def __init__(self, *_: object, **__: object) -> None:
        self.may.wait(60)
        self.closed = False
        self.opened.append(self)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Slow]]:
    _Slow.may.clear()
    _Slow.opened.clear()
    monkeypatch.setattr(serial, "Serial", _Slow)
    monkeypatch.setattr(tty, "_adjust", lambda _: None)
    yield _Slow
    _Slow.may.set()


async def test_opening_blocks_nobody_and_is_given_up(
    monkeypatch: pytest.MonkeyPatch, slow: type[_Slow]
) -> None:
    monkeypatch.setattr(tty, "PATIENCE", 0.05)
    link = link_to("/dev/ttyS0")
    async with running(link):
        await until(lambda: link.stats.last_error)
        assert link.stats.last_error == "/dev/ttyS0 does not open"
        assert not slow.opened
    slow.may.set()
    await until(lambda: slow.opened and all(port.closed for port in slow.opened))


async def test_closing_while_it_opens(slow: type[_Slow]) -> None:
    link = link_to("/dev/ttyS0")
    await link.start()
    await asyncio.sleep(0.05)
    await asyncio.wait_for(link.close(), 5)
    assert not slow.opened
    slow.may.set()
    await until(lambda: slow.opened and slow.opened[0].closed)
    assert link.stats.connects == 0


async def test_a_fault_of_ours_does_not_end_the_link(
    world: SerialWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = tty.open_tty

    async def broken(*_: object, **__: object) -> None:
        monkeypatch.setattr(serial_line, "open_tty", real)
        raise ZeroDivisionError

    monkeypatch.setattr(serial_line, "open_tty", broken)
    node = world.node(NODE)
    async with running(node):
        await until_up(node)
    assert "internal error" in caplog.text


async def test_what_was_in_the_line_before_it_was_opened_is_forgotten(world: SerialWorld) -> None:
    port = world.bus.port()
    port.say(encode(b"old", UP))
    gateway = world.link(Role.GATEWAY, GATEWAY, port)
    async with running(gateway):
        await until_up(gateway)
        port.say(encode(b"new", UP))
        received = (await receive_done(gateway, 1))[0]
        assert (received.data, received.direction) == (b"new", Direction.UP)
