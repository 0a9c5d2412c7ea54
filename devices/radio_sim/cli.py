"""``qis-edge radio-sim``: emulated radios for those who have none at hand."""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from qis_edge.core.errors import UsageError
from qis_edge.links.meshtastic_stream import definitions

if TYPE_CHECKING:
    from devices.radio_sim.channel import Channel
    from devices.radio_sim.ports import Pace, PtyPort, TcpPort
    from devices.radio_sim.radio import Radio

FIRST_NUMBER = 0x10000001


def run(args: argparse.Namespace) -> int:
    """Run radios until SIGINT or SIGTERM.

    :raises UsageError: an argument is out of bounds. :raises LinkError: the package
        ``meshtastic`` is missing. :raises OSError: a port cannot be opened.
    """
    if not 1 <= args.radios <= 100:
        raise UsageError("1 to 100", field="--radios")
    if args.tcp is not None and not 0 < args.tcp <= 65536 - args.radios:
        raise UsageError("no port, or too near the last one", field="--tcp")
    definitions()  # says what to install, where it is missing
    channel, radios = make_radios(args)
    asyncio.run(_serve(args, channel, radios))
    carried = channel.carried
    print(
        f"sent {carried.sent} ({carried.airtime:.1f} s on the air), delivered {carried.delivered}, "
        f"lost {carried.lost}, collided {carried.collided}, deaf {carried.deaf}"
    )
    return 0


def make_radios(args: argparse.Namespace) -> tuple[Channel, list[Radio]]:
    """The channel and its radios, as the arguments say.

    :raises UsageError: there is no such preset or region, or the loss is no probability.
    """
    from devices.radio_sim.channel import Channel
    from devices.radio_sim.radio import Radio, introduce
    from devices.radio_sim.settings import Settings

    channel = Channel(args.preset, loss=args.loss, seed=args.seed)
    radios = [
        Radio(channel, Settings(FIRST_NUMBER + i, region=args.region, preset=args.preset))
        for i in range(args.radios)
    ]
    introduce(*radios)
    if args.line:
        for i, one in enumerate(radios):
            for other in radios[i + 2 :]:
                channel.path(one.number, other.number, None)
    return channel, radios


async def _serve(args: argparse.Namespace, channel: Channel, radios: list[Radio]) -> None:
    from devices.radio_sim.ports import Pace

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    pace = Pace(channel.simulation, args.rate)
    ports: list[PtyPort | TcpPort] = []
    try:
        for i, radio in enumerate(radios):
            port, where = await _plug(args, radio, pace, i)
            ports.append(port)
            print(f"!{radio.number:08x} {where}", flush=True)
        pace.start()
        await stop.wait()
    finally:
        pace.stop()
        for port in ports:
            if (waiting := port.unplug()) is not None:
                await waiting


async def _plug(
    args: argparse.Namespace, radio: Radio, pace: Pace, index: int
) -> tuple[PtyPort | TcpPort, str]:
    from devices.radio_sim.ports import PtyPort, TcpPort

    if args.tcp is not None:
        tcp = TcpPort(radio, pace, port=args.tcp + index)
        await tcp.plug()
        return tcp, f"tcp:{tcp.host}:{tcp.port}"
    link = None if args.links is None else Path(args.links) / f"radio{index}"
    if link is not None:
        link.parent.mkdir(parents=True, exist_ok=True)
    pty = PtyPort(radio, pace, link=link)
    pty.plug()
    return pty, pty.path
