"""``qis-gateway hub``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from gateway.fleet import Fleet
from gateway.routing import Context, Entry, open_engine
from gateway.routing.base import Accept
from gateway.routing.url import typed
from qis_edge.core.credential import NODE
from qis_edge.core.errors import QisError, Reason, Refused, UsageError
from qis_edge.core.packet import unpack
from qis_edge.keys import FleetFile
from qis_edge.links.mqtt_settings import is_loopback
from qis_edge.logs import set_up_logging
from qis_edge.schema import Listen, Wrong
from qis_edge.tasks import run_daemon
from qis_edge.worker import Worker

log = logging.getLogger(__name__)

#: Seconds between looks whether the fleet has changed.
LOOK = 5.0


def hub(args: argparse.Namespace) -> int:
    """Serve a routing engine to other gateways, until SIGTERM or SIGINT."""
    host, port = _place(args)
    typed(args.engine, "ENGINE")
    try:
        from gateway import hub as serving  # aiohttp is an extra
    except ModuleNotFoundError as error:
        raise QisError(
            f"the module {error.name} is missing", hint="pip install 'qis-edge[http]'"
        ) from error
    set_up_logging("info")

    async def serve(stop: asyncio.Event) -> None:
        with contextlib.ExitStack() as opened:
            fleet = opened.enter_context(_opened(args.fleet)) if args.fleet else None
            accept = Entry.parse if fleet is None else checker(fleet)
            engine = open_engine(args.engine, Context(accept, args.state or Path(), "hub"))
            tokens = serving.Tokens(args.tokens)
            made = serving.Hub(engine, tokens, accept, rate=args.rate, keep=args.keep)
            certificate = serving.Certificate(args.cert, args.key) if args.cert else None
            listening = serving.Listening(made, host, port, certificate)
            await made.start()
            try:
                await listening.start()
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, listening.reload)
                scheme = "https" if certificate else "http"
                shown, number = listening.address
                shown = f"[{shown}]" if ":" in shown else shown
                log.info("the hub serves %s at %s://%s:%d", engine.url, scheme, shown, number)
                async with _refreshed(fleet):
                    await stop.wait()
            finally:
                await listening.close()

    return run_daemon(serve)


def checker(fleet: Fleet) -> Accept:
    """Refuses what is certainly wrong. A packet whose signer is unknown here may be good: its
    credential has perhaps not come this far, and whoever reads it checks again."""

    def accept(raw: bytes) -> Entry:
        now = time.time()
        try:
            return Entry.of(unpack(raw, lambda kid: fleet.resolve(kid, now, NODE)))
        except Refused as refusal:
            if refusal.reason is not Reason.UNKNOWN_KEY:
                raise
        return Entry.parse(raw)

    return accept


def _place(args: argparse.Namespace) -> tuple[str, int]:
    try:
        host, port = Listen().read(args.listen)
    except Wrong as wrong:
        raise UsageError(str(wrong), field="--listen") from None
    if args.key is not None and args.cert is None:
        raise UsageError("needs --cert", field="--key")
    if args.cert is None and not is_loopback(host):
        raise UsageError(
            "tokens would travel in the clear",
            field="--listen",
            hint="name a certificate with --cert and --key, or listen on 127.0.0.1",
        )
    if not 1 <= args.rate <= 1_000_000:
        raise UsageError("must be from 1 to 1,000,000", field="--rate")
    return host, port


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[Fleet]:
    """The fleet of a gateway's state folder."""
    for name in ("fleet.toml", "fleet.db"):
        if not (folder / name).exists():
            raise UsageError(
                f"there is no {folder / name}",
                field="--fleet",
                hint="it is the state folder of a gateway",
            )
    root = FleetFile.read(folder / "fleet.toml").root
    with contextlib.closing(Fleet(folder / "fleet.db", root, time.time(), read_only=True)) as fleet:
        yield fleet


@contextlib.asynccontextmanager
async def _refreshed(fleet: Fleet | None) -> AsyncIterator[None]:
    """What others do to the fleet is noticed."""
    if fleet is None:
        yield
        return
    worker = Worker("hub-fleet")

    async def look() -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                await worker(fleet.refresh, time.time())
            except QisError as error:
                log.warning("the fleet cannot be read: %s", error)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        worker.close()
