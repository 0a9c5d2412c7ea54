"""The client on real ptys and sockets, with emulated radios behind them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from devices.radio_sim.ports import Pace, PtyPort, TcpPort
from qis_edge.core.errors import LinkError, UsageError
from qis_edge.links import meshtastic_wire, tty
from qis_edge.links.backoff import Backoff
from qis_edge.links.meshtastic_client import MeshtasticClient
from qis_edge.links.meshtastic_session import (
    Declined,
    Outgoing,
    Reason,
    Report,
    Taken,
    Telemetry,
    Timings,
    Unknown,
)
from qis_edge.links.meshtastic_wire import resolve, tcp_address
from tests.devices.radios import radios

# A radio that answers at all answers at once; so silence may be short here.
QUICK = Timings(ask=0.5, silence=2.0, handshake=6.0, answer=0.5, idle=1.0, poll=0.1, stall=0.1)


class Site:
    """Emulated radios on ports, and clients."""

    def __init__(self, folder: Path, count: int = 2, preset: str = "SHORT_TURBO") -> None:
        # No hops: nothing is relayed, so nothing collides with what is sent next.
        self.channel, self.radios = radios(count, preset, region="US", hops=0)
        self.pace = Pace(self.channel.simulation, 20)
        self.ptys = [PtyPort(one, self.pace, link=folder / f"{i}") for i, one in
                     enumerate(self.radios)]  # fmt: skip
        self.clients: list[MeshtasticClient] = []

    def client(self, address: str, **more: Any) -> MeshtasticClient:
        backoff = Backoff(0.02, 0.1)
        client = MeshtasticClient(address, timings=QUICK, backoff=backoff, **more)
        self.clients.append(client)
        return client

    async def up(self, number: int, **more: Any) -> MeshtasticClient:
        """A client that is connected to the pty of a radio."""
        client = self.client(self.ptys[number].path, **more)
        await client.start()
        await until(lambda: client.room > 0, client)
        return client


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running(Site(tmp_path)) as one:
        yield one


@asynccontextmanager
async def running(site: Site) -> AsyncIterator[Site]:
    site.pace.start()
    for pty in site.ptys:
        pty.plug()
    try:
        yield site
    finally:
        for client in site.clients:
            await client.close()
        for pty in site.ptys:
            pty.unplug()
        site.pace.stop()


async def until(condition: Callable[[], bool], client: MeshtasticClient | None = None) -> None:
    async with asyncio.timeout(60):
        while not condition():
            if client is None:
                await asyncio.sleep(0.01)
            else:
                changed = client.changed()
                await (changed if not condition() else asyncio.sleep(0))
                changed.close()


async def test_data_both_ways_over_serial_and_tcp(site: Site) -> None:
    port = TcpPort(site.radios[1], site.pace)
    site.ptys.pop().unplug()
    await port.plug()
    reports: list[Report] = []
    serial = await site.up(0, on_report=reports.append)
    tcp = site.client(f"tcp:127.0.0.1:{port.port}")
    await tcp.start()
    await until(lambda: tcp.room > 0, tcp)
    assert serial.radio is not None
    assert serial.radio.number == site.radios[0].number
    taken = await serial.send(Outgoing(bytes(range(231)), want_ack=True, hop_limit=3))
    assert isinstance(taken, Taken)
    heard = await asyncio.wait_for(tcp.receive(), 10)
    assert (heard.id, heard.payload) == (taken.id, bytes(range(231)))
    assert isinstance(await tcp.send(Outgoing(b"back", to=heard.source)), Taken)
    assert (await asyncio.wait_for(serial.receive(), 10)).payload == b"back"
    await until(lambda: bool(reports))
    assert reports[0].id == taken.id
    await port.unplug()
    await until(lambda: not tcp.up, tcp)
    await port.plug()
    await until(lambda: tcp.up, tcp)
    assert (tcp.stats.connects, tcp.stats.disconnects) == (2, 1)
    await tcp.close()
    await port.unplug()


async def test_unplugged_in_the_middle_and_back(site: Site) -> None:
    one = await site.up(0)
    site.radios[0].status_loss = 1.0  # so that it has to wait
    sending = asyncio.create_task(one.send(Outgoing(b"x")))
    await asyncio.sleep(0.05)
    site.ptys[0].unplug()
    outcome = await asyncio.wait_for(sending, 5)
    assert isinstance(outcome, Unknown)
    assert "unplugged" in outcome.cause
    await until(lambda: not one.up, one)
    assert await one.send(Outgoing(b"x")) == Declined(Reason.NOT_CONNECTED)
    site.radios[0].status_loss = 0.0
    site.ptys[0].plug()
    await until(lambda: one.room > 0, one)
    assert isinstance(await one.send(Outgoing(b"y")), Taken)
    stats = one.stats
    assert (stats.taken, stats.declined, stats.unknown, stats.connects) == (1, 1, 1, 2)


async def test_packets_that_came_while_we_were_away_come_later(site: Site) -> None:
    one, other = await site.up(0), await site.up(1)
    site.ptys[1].unplug()
    await until(lambda: not other.up, other)
    for number in range(3):
        assert isinstance(await one.send(Outgoing(bytes([number]))), Taken)
        await until(lambda: one.room >= 13, one)
    await until(lambda: site.radios[1].waiting >= 3)
    site.ptys[1].plug()
    got = [(await asyncio.wait_for(other.receive(), 10)).payload for _ in range(3)]
    assert got == [b"\0", b"\1", b"\2"]


@pytest.mark.parametrize("native_usb", [False, True])
async def test_a_reboot_with_a_full_queue(tmp_path: Path, native_usb: bool) -> None:
    made = Site(tmp_path, 1, "LONG_SLOW")
    made.ptys = [PtyPort(made.radios[0], made.pace, link=tmp_path / "x", native_usb=native_usb)]
    async with running(made) as site:
        one = await site.up(0)
        while one.room:
            assert isinstance(await one.send(Outgoing(bytes(200))), Taken)
        assert await one.send(Outgoing(b"x")) == Declined(Reason.NO_ROOM)
        site.radios[0].reboot()
        await until(lambda: one.room == 13, one)
        assert isinstance(await one.send(Outgoing(b"x")), Taken)
        # Where the port stays, the radio says that it rebooted; where it goes, that it is gone.
        assert one.stats.connects + one.stats.reboots >= 2
        assert one.stats.connects == 2 or not native_usb


async def test_a_silent_radio_is_left_and_found_again(site: Site) -> None:
    one = await site.up(0)
    site.pace.stop()
    site.radios[0].on = False
    outcome = await asyncio.wait_for(one.send(Outgoing(b"x")), 5)
    assert isinstance(outcome, Unknown)
    assert one.stats.last_error == "the radio does not answer"
    site.radios[0].on = True
    site.pace.start()
    await until(lambda: one.up, one)


async def test_noise_on_the_line(site: Site) -> None:
    one, other = await site.up(0), await site.up(1)
    for number in range(20):
        site.ptys[1].say(os.urandom(30).replace(b"\x94", b"") + b"\nINFO | noise\n")
        if one.room:
            assert isinstance(await one.send(Outgoing(bytes([number]))), Taken)
            assert (await asyncio.wait_for(other.receive(), 10)).payload == bytes([number])
    site.ptys[1].say(b"\x94\xc3\x01\xff")
    assert isinstance(await other.send(Outgoing(b"x")), Taken | Unknown)
    await until(lambda: other.up, other)


async def test_sends_of_many_are_told_apart(site: Site) -> None:
    one, other = await site.up(0), await site.up(1)
    outcomes = await asyncio.gather(*(one.send(Outgoing(bytes([n]))) for n in range(20)))
    taken = [outcome for outcome in outcomes if isinstance(outcome, Taken)]
    assert len({outcome.id for outcome in taken}) == len(taken) >= 13
    assert set(outcomes) - set(taken) <= {Declined(Reason.NO_ROOM)}
    got = {(await asyncio.wait_for(other.receive(), 10)).id for _ in taken}
    assert got == {outcome.id for outcome in taken}


async def test_a_send_that_was_cancelled_holds_up_no_other(site: Site) -> None:
    one = await site.up(0)
    for _ in range(3):
        sending = asyncio.create_task(one.send(Outgoing(b"x")))
        await asyncio.sleep(0)
        sending.cancel()
        assert isinstance(await asyncio.wait_for(one.send(Outgoing(b"y")), 5), Taken)


async def test_who_does_not_fetch_loses_the_newest_and_it_is_counted(site: Site) -> None:
    one, other = await site.up(0), await site.up(1)
    other.MAX_WAITING = 2
    for number in range(4):
        await one.send(Outgoing(bytes([number])))
        await until(lambda n=number: other.stats.heard == n + 1)  # type: ignore[misc]  # a default
    assert other.stats.dropped == 2
    assert [(await other.receive()).payload for _ in range(2)] == [b"\0", b"\1"]


async def test_telemetry_arrives(site: Site) -> None:
    told: list[Telemetry] = []
    one = await site.up(0, on_telemetry=told.append)
    await until(lambda: bool(told))
    assert one.telemetry == told[0]


async def test_closing(site: Site) -> None:
    one = await site.up(0)
    site.radios[0].status_loss = 1.0
    sending = asyncio.create_task(one.send(Outgoing(b"x")))
    receiving = asyncio.create_task(one.receive())
    await asyncio.sleep(0.02)
    await one.close()
    assert isinstance(await sending, Unknown)
    with pytest.raises(LinkError, match="closed"):
        await receiving
    await one.close()
    await one.start()
    await one.changed()
    assert not one.up
    assert await one.send(Outgoing(b"x")) == Declined(Reason.NOT_CONNECTED)
    await until(lambda: not site.radios[0].host_present)


async def test_the_loop_never_waits_for_a_port(site: Site) -> None:
    """A radio that reads nothing: what is written waits, the loop goes on."""
    master, slave = os.openpty()
    client = site.client(os.ttyname(slave))
    await client.start()
    beats = 0
    async with asyncio.timeout(60):
        while "answer" not in (client.stats.last_error or ""):
            await asyncio.sleep(0.01)
            beats += 1
    assert beats > 20
    await client.close()
    os.close(master)
    os.close(slave)


# Addresses.


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("/dev/no-such-radio", "no such port"),
        ("/dev/null", "no serial port|Inappropriate|not.*terminal"),
        ("no-such-name-by-id", "no serial port is called"),
        ("tcp:127.0.0.1:1", "refused|Connect"),
        ("tcp:", "not a TCP address"),
        ("tcp:host:99999", "not a TCP address"),
    ],
)
async def test_what_cannot_be_opened_is_said_and_tried_again(
    site: Site, address: str, said: str
) -> None:
    client = site.client(address)
    await client.start()
    await until(lambda: client.stats.last_error is not None)
    with pytest.raises(LinkError, match=said):
        raise LinkError(client.stats.last_error or "")


async def test_one_program_at_a_time_has_a_port(site: Site) -> None:
    await site.up(0)
    second = site.client(site.ptys[0].path)
    await second.start()
    await until(lambda: second.stats.last_error is not None)
    assert "another program" in str(second.stats.last_error)


def test_tcp_addresses() -> None:
    assert tcp_address("tcp:radio") == ("radio", 4403)
    assert tcp_address("tcp://radio:4404") == ("radio", 4404)
    assert tcp_address("tcp:[fd00::1]") == ("fd00::1", 4403)
    assert tcp_address("tcp:[fd00::1]:4404") == ("fd00::1", 4404)


class FakePort:
    def __init__(self, device: str, vid: int | None) -> None:
        self.device, self.vid = device, vid


@pytest.mark.parametrize(
    ("ports", "found"),
    [
        ([], None),
        ([("/dev/a", None)], None),
        ([("/dev/a", 0x239A)], "/dev/a"),
        ([("/dev/a", 0x10C4), ("/dev/b", 0x303A)], "/dev/b"),
        ([("/dev/a", 0x10C4), ("/dev/b", 0x1366)], "/dev/a"),
        ([("/dev/a", 0x1366)], None),
        ([("/dev/a", 0x239A), ("/dev/b", 0x239A)], None),
    ],
)
def test_a_radio_is_found_by_its_vendor(
    monkeypatch: pytest.MonkeyPatch, ports: list[tuple[str, int | None]], found: str | None
) -> None:
    made = [FakePort(*port) for port in ports]
    monkeypatch.setattr(meshtastic_wire, "comports", lambda: made)
    if found is not None:
        assert resolve("auto") == found
        return
    with pytest.raises(LinkError):
        resolve("auto")


def test_names_that_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ttyACM0").touch()
    (tmp_path / "by-id").mkdir()
    link = tmp_path / "by-id" / "usb-RAKwireless_WisCore_1234-if00"
    link.symlink_to(tmp_path / "ttyACM0")
    made = [FakePort(str(tmp_path / "ttyACM0"), 0x239A)]
    monkeypatch.setattr(tty, "BY_ID", tmp_path / "by-id")
    monkeypatch.setattr(meshtastic_wire, "comports", lambda: made)
    assert resolve("auto") == resolve("WisCore_1234") == str(link)
    assert resolve("/dev/ttyUSB7") == "/dev/ttyUSB7"


async def test_what_can_never_be_sent_is_a_mistake(site: Site) -> None:
    with pytest.raises(UsageError):
        await site.client("auto").send(Outgoing(bytes(500)))
