"""``qis-edge radio ping``: the test of a place, and with ``--answer`` its other end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine
from typing import Any

from qis_edge.cli.program import INTERRUPTED, OK, PROBLEM
from qis_edge.cli.radio_ping_show import JsonShow, Show, TextShow
from qis_edge.core.errors import LinkError, UsageError
from qis_edge.core.mesh.framing import MAX_FRAME, PING_SIZE
from qis_edge.links.backoff import Backoff
from qis_edge.links.meshtastic_client import MeshtasticClient
from qis_edge.links.meshtastic_ping import Answerer, Pinger, Voice
from qis_edge.links.meshtastic_wire import Receiver, Wire, connect

#: Seconds between looks at a radio that is being connected.
_LOOK = 0.1


def run(args: argparse.Namespace) -> int:
    """Ping, or answer, until ``--count`` or Ctrl-C.

    :returns: 0; 1 if nobody answered.
    :raises UsageError: an argument is out of bounds. :raises LinkError: there is no such radio,
        or it will not send.
    """
    _check(args)
    # What links would log is shown here.
    logging.getLogger("qis_edge.links").addHandler(logging.NullHandler())
    return asyncio.run(_run(args))


def _check(args: argparse.Namespace) -> None:
    if args.count is not None and args.count < 1:
        raise UsageError("1 or more", field="--count")
    if args.interval is not None and not 0 < args.interval <= 3600:
        raise UsageError("more than 0, at most 3600", field="--interval")
    if args.size is not None and not PING_SIZE <= args.size <= MAX_FRAME:
        raise UsageError(f"{PING_SIZE} to {MAX_FRAME}", field="--size")
    if not 0 <= args.channel <= 7:
        raise UsageError("0 to 7", field="--channel")
    if args.answer:
        for name in ("interval", "size"):
            if getattr(args, name) is not None:
                raise UsageError("goes without --answer", field=f"--{name}")


async def _run(args: argparse.Namespace) -> int:
    first = _FirstTry()
    client = MeshtasticClient(args.radio, backoff=Backoff(0.5, 5.0), opener=first.open)
    show: Show = JsonShow() if args.json else TextShow()
    with _stopping() as stop:
        try:
            await client.start()
            if await _unless(stop, first.connected(client)):
                return INTERRUPTED
            voice = Voice(client, args.channel, show.event)
            return await (_answer if args.answer else _ping)(args, voice, show, stop)
        finally:
            await client.close()


async def _ping(args: argparse.Namespace, voice: Voice, show: Show, stop: asyncio.Event) -> int:
    size = args.size or PING_SIZE
    pinger = Pinger(voice, show.event, size=size, interval=args.interval, count=args.count)
    show.begin(voice, pinger)
    try:
        await _unless(stop, pinger.run())
    finally:
        show.end(pinger.summary())
    return OK if pinger.summary().answered else PROBLEM


async def _answer(args: argparse.Namespace, voice: Voice, show: Show, stop: asyncio.Event) -> int:
    answerer = Answerer(voice, show.event, count=args.count)
    show.begin_answering(voice)
    try:
        await _unless(stop, answerer.run())
    finally:
        show.end_answering(answerer)
    return OK


@contextlib.contextmanager
def _stopping() -> Any:
    """An event that Ctrl-C or SIGTERM sets."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _unless(stop: asyncio.Event, doing: Coroutine[Any, Any, None]) -> bool:
    """Do it, or drop it when it is time to stop; whether it was dropped."""
    task, stopped = asyncio.ensure_future(doing), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return False
        return True
    finally:
        for one in (task, stopped):
            one.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


class _FirstTry:
    """A radio that cannot be had at once is an error here; later it is waited for."""

    def __init__(self) -> None:
        self._error: LinkError | None = None

    async def open(self, address: str, receiver: Receiver) -> Wire:
        """Open the line as usual, and remember what was wrong."""
        try:
            return await connect(address, receiver)
        except LinkError as error:
            self._error = error
            raise

    async def connected(self, client: MeshtasticClient) -> None:
        """Wait for the handshake.

        :raises LinkError: the first attempt failed.
        """
        while not client.up:
            if self._error is not None:
                raise LinkError(str(self._error), hint=_hint(self._error))
            if client.stats.last_error is not None:
                cause = f"{client.name}: {client.stats.last_error}"
                raise LinkError(cause, hint="is it a radio with Meshtastic's firmware?")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await client.changed()


def _hint(error: LinkError) -> str | None:
    text = str(error)
    if "another program uses it" in text:
        return "if a node or a gateway runs on this radio, stop it for the test"
    if "Permission denied" in text:
        return "join the group of the port, often dialout, and log in again"
    return f"{error.hint or 'plug it in'}; or name another: --radio"
