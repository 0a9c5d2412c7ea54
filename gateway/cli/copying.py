"""``qis-gateway copy``: everything from one routing engine into another.

Packets are followed from the beginning and deposited as they come, each verified as a
running gateway verifies what it reads. Where the copy stands is kept in the state folder,
after each deposit, so that it goes on there when it is called again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.cli.state import acceptor, opened_fleet
from gateway.config import load_gateway
from gateway.routing import EVERYTHING, Context, Cursor, Entry, RoutingLayer, open_engine
from gateway.routing.base import Accept
from gateway.routing.sqlite import SqliteEngine
from gateway.routing.url import typed
from qis_edge.cli.owner import act_as_owner
from qis_edge.cli.program import INTERRUPTED, OK, note, print_json
from qis_edge.core.errors import Refused, RoutingError, UsageError
from qis_edge.keys import replace_file
from qis_edge.store.database import Lock
from qis_edge.terminal import duration, pairs, plural
from qis_edge.worker import Worker

#: Packets that are verified at once.
SLICE = 100
#: Seconds between looks at a source that is still reading its own log, and between words
#: about the progress.
LOOK, SHOW = 0.2, 0.5


@dataclass
class Progress:
    """What was done, in this call and in those before that it goes on from.

    :param cursor: of the source: what was copied, or refused.
    :param incarnation: of the target: another one has nothing of what was copied.
    :param packets: that were read.
    :param copied: of those, that the target did not have.
    :param refused: that do not verify, by reason.
    """

    cursor: Cursor = b""
    incarnation: str = ""
    packets: int = 0
    copied: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class ProgressFile:
    """Where the progress of one pair of engines is kept. A reader of the file should find
    out what it is about: it is JSON."""

    def __init__(self, folder: Path, source: str, target: str) -> None:
        self._about = {"from": source, "to": target}
        name = hashlib.sha256(json.dumps([source, target]).encode()).hexdigest()[:12]
        self.path = folder / f"copy-{name}.json"

    def read(self) -> Progress | None:
        """``None`` where there is none, or none that can be used."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return Progress(
                bytes.fromhex(found["cursor"]),
                str(found["incarnation"]),
                int(found["packets"]),
                int(found["copied"]),
                Counter({str(reason): int(n) for reason, n in found["refused"].items()}),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, progress: Progress) -> None:
        """:raises KeyFileError: it cannot be written."""
        shown = {
            **self._about,
            "cursor": progress.cursor.hex(),
            "incarnation": progress.incarnation,
            "packets": progress.packets,
            "copied": progress.copied,
            "refused": progress.refused,
        }
        replace_file(self.path, json.dumps(shown, indent=2).encode() + b"\n")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """:raises StoreError: another copy of the same pair is running."""
        lock = Lock(self.path)
        try:
            yield
        finally:
            lock.release()


class Copying:
    """One copy, from where it stands to the end.

    :param target: ``None``: nothing is deposited, only counted.
    :param note_progress: called after each deposit.
    """

    def __init__(
        self,
        source: RoutingLayer,
        target: RoutingLayer | None,
        accept: Accept,
        progress: Progress,
        note_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.progress = progress
        self._source = source
        self._target = target
        self._accept = accept
        self._note = note_progress
        self._worker = Worker("copy-verify")

    async def run(self, stop: asyncio.Event) -> bool:
        """Copy to the end; whether it got there before ``stop``.

        :raises RoutingError: an engine is away; what was copied is noted.
        """
        try:
            while not stop.is_set():
                status = await self._source.status()
                if not status.ok:
                    raise RoutingError(f"{self._source.url}: {status.detail or 'is away'}")
                async with contextlib.aclosing(self._replay()) as replay:
                    async for entries, cursor in replay:
                        await self._copy(entries, cursor)
                        if stop.is_set():
                            return False
                if not status.behind:
                    return True
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await stop.wait()
            return False
        finally:
            self._worker.close()

    async def _replay(self) -> AsyncGenerator[tuple[tuple[Entry, ...], Cursor], None]:
        """What the source has now, from where we stand."""
        subscription = self._source.follow(frozenset([EVERYTHING]), self.progress.cursor)
        try:
            async for batch in subscription:
                yield batch.entries, batch.cursor
                if batch.live:
                    return
        finally:
            await subscription.close()

    async def _copy(self, entries: tuple[Entry, ...], cursor: Cursor) -> None:
        good: list[Entry] = []
        refused: Counter[str] = Counter()
        for start in range(0, len(entries), SLICE):
            found, why = await self._worker(self._verify, entries[start : start + SLICE])
            good += found
            refused += why
        if self._target is not None and good:
            self.progress.copied += await self._target.deposit(good)
        self.progress.packets += len(entries)
        self.progress.refused += refused
        self.progress.cursor = cursor
        self._note()

    def _verify(self, entries: tuple[Entry, ...]) -> tuple[list[Entry], Counter[str]]:
        good, refused = [], Counter[str]()
        for entry in entries:
            try:
                good.append(self._accept(entry.raw))
            except Refused as refusal:
                refused[refusal.reason.label] += 1
        return good, refused


# --- the verb -----------------------------------------------------------------------------


def copy(args: argparse.Namespace) -> int:
    """Copy everything from one routing engine into another."""
    typed(args.source, "FROM")
    typed(args.target, "TO")
    config = load_gateway(args.config, full=False)
    act_as_owner(config.gateway.state)
    with opened_fleet(config, read_only=True) as fleet:
        context = Context(
            accept=acceptor(config, fleet),
            folder=config.gateway.state,
            name=config.gateway.name.lower(),
        )
        source, target = open_engine(args.source, context), open_engine(args.target, context)
        _check(source, target)
        file = ProgressFile(config.gateway.state, source.url, target.url)
        with file.locked():
            return asyncio.run(_Command(args, context.accept, source, target, file).run())


def _check(source: RoutingLayer, target: RoutingLayer) -> None:
    if source.url == target.url:
        raise UsageError("is the same engine as FROM", field="TO")
    for engine, field_name in ((source, "FROM"), (target, "TO")):
        if engine.url.startswith("memory:"):
            raise UsageError("memory: is another process's, and empty here", field=field_name)
    if isinstance(source, SqliteEngine) and not source.path.exists():
        raise UsageError(f"there is no {source.path}", field="FROM")


class _Command:
    def __init__(
        self,
        args: argparse.Namespace,
        accept: Accept,
        source: RoutingLayer,
        target: RoutingLayer,
        file: ProgressFile,
    ) -> None:
        self._args = args
        self._accept = accept
        self._source = source
        self._target = target
        self._file = file
        self._dry = bool(args.dry_run)
        self._live = sys.stderr.isatty() and not args.json
        self._began = time.monotonic()
        self._shown = self._began
        self._total: int | None = None
        self._progress = Progress()
        self._before = 0

    async def run(self) -> int:
        """Interrupted once, it ends behind the deposit that is under way; twice, at once."""
        stop = asyncio.Event()
        task = asyncio.current_task()
        assert task is not None

        def interrupted() -> None:
            if stop.is_set():
                task.cancel()
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted)
        try:
            async with contextlib.AsyncExitStack() as opened:
                for engine in [self._source] if self._dry else [self._source, self._target]:
                    opened.push_async_callback(engine.close)
                    await engine.open()
                return await self._run(stop)
        except asyncio.CancelledError:
            return INTERRUPTED
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def _run(self, stop: asyncio.Event) -> int:
        self._progress = self._begin()
        resumed = self._before = self._progress.packets
        if resumed and not self._args.json:
            note(f"goes on after {plural(resumed, 'packet')}; --restart begins anew")
        self._total = (await self._source.status()).packets
        copying = Copying(
            self._source,
            None if self._dry else self._target,
            self._accept,
            self._progress,
            self._advanced,
        )
        try:
            complete = await copying.run(stop)
        except RoutingError as error:
            self._end_line()
            error.hint = f"{error.hint}; {_again()}" if error.hint else _again()
            raise
        self._end_line()
        await self._show(complete, resumed)
        if complete:
            return OK
        note(f"stopped: {_again()}")
        return INTERRUPTED

    def _begin(self) -> Progress:
        """Where to begin. A target that lost everything gets everything."""
        found = None if self._args.restart else self._file.read()
        if found is None:
            found = Progress()
        if not self._dry:
            if found.incarnation != self._target.incarnation:
                found = Progress(incarnation=self._target.incarnation)
            self._file.write(found)
        return found

    def _advanced(self) -> None:
        if not self._dry:
            self._file.write(self._progress)
        now = time.monotonic()
        if self._live and now - self._shown >= SHOW:
            self._shown = now
            sys.stderr.write(f"\r\x1b[K{self._line(now)}")
            sys.stderr.flush()

    def _line(self, now: float) -> str:
        done = self._progress.packets
        rate = (done - self._before) / max(now - self._began, 1e-3)
        line = f"{done}"
        if self._total and self._total >= done:
            line += f" of {self._total} packets, {rate:.0f}/s"
            line += f", {duration(round((self._total - done) / max(rate, 1)))} left"
        else:
            line += f" packets, {rate:.0f}/s"
        if refused := sum(self._progress.refused.values()):
            line += f", {refused} refused"
        return line

    def _end_line(self) -> None:
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    async def _show(self, complete: bool, resumed: int) -> None:
        progress = self._progress
        dropped = (await self._source.status()).refused
        found: dict[str, Any] = {
            "from": self._source.url,
            "to": self._target.url,
            "dry_run": self._dry,
            "complete": complete,
            "resumed": resumed,
            "packets": progress.packets,
            "copied": progress.copied,
            "refused": dict(progress.refused),
            "dropped": dropped,
        }
        if self._args.json:
            print_json(found)
            return
        refused = sum(progress.refused.values())
        rows: list[tuple[str, object]] = [
            ("from", self._source.url),
            ("to", self._target.url),
            ("packets", progress.packets),
        ]
        if self._dry:
            rows.append(("would go", progress.packets - refused))
        else:
            held = progress.packets - refused - progress.copied
            rows.append(("copied", f"{progress.copied}; {held} were there already"))
        rows += [("refused", f"{n}: {why}") for why, n in sorted(progress.refused.items())]
        if dropped:
            rows.append(("dropped", f"{dropped} that the source holds are no packets of ours"))
        print(pairs(rows))


def _again() -> str:
    return "the same command goes on from there"
