"""``qis-gateway copy``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.cli.copying import Copying, Progress, ProgressFile
from gateway.routing import EVERYTHING, Context, Entry, open_engine
from gateway.routing.view import ViewEngine
from gateway.testing import MemoryFeed, MemoryLog, collect, make_entry
from gateway.testing.entries import accept, entries_of
from qis_edge.core.errors import RoutingError
from qis_edge.core.identity import Identity
from qis_edge.keys import read_key
from tests.cli.kit import ROOT, Site, check_documented, deposited, packed

FROM, TO = "sqlite:routing.db", "sqlite:other.db"


def held(state: Path, url: str = TO) -> list[Entry]:
    """What an engine holds, in its order."""

    async def read() -> list[Entry]:
        engine = open_engine(url, Context(folder=state))
        await engine.open()
        try:
            batches = await collect(engine.follow(frozenset([EVERYTHING])), 0, 20, live=True)
        finally:
            await engine.close()
        return entries_of(batches)

    return asyncio.run(read())


def deposit(state: Path, entries: Sequence[Entry], url: str = FROM) -> None:
    async def write() -> None:
        engine = open_engine(url, Context(folder=state))
        await engine.open()
        await engine.deposit(entries)
        await engine.close()

    asyncio.run(write())


def many(ready: Site, count: int) -> list[Entry]:
    """Packets of the node."""
    identity = read_key(ready.node_state / "node.key")
    return [Entry.of(packed(identity, number, "")) for number in range(10, 10 + count)]


def test_everything_that_verifies(ready: Site) -> None:
    deposited(ready)
    assert ready.gateway("copy", FROM, TO) == 0
    assert "copied   2; 0 were there already" in ready.console.out
    assert "refused  1: unknown_key" in ready.console.out
    assert held(ready.gateway_state) == held(ready.gateway_state, FROM)[:2]


def test_again_it_copies_what_has_come_since(ready: Site) -> None:
    deposited(ready)
    assert ready.gateway("copy", FROM, TO, "--json") == 0
    check_documented("qis-gateway", "copy", ready.console.json)
    first = ready.console.json
    assert (first["packets"], first["copied"], first["resumed"]) == (3, 2, 0)
    assert first["refused"] == {"unknown_key": 1}
    assert first["complete"]
    deposit(ready.gateway_state, many(ready, 3))
    assert ready.gateway("copy", FROM, TO) == 0
    assert "goes on after 3 packets" in ready.console.err
    assert "copied   5; 0 were there already" in ready.console.out
    assert ready.gateway("copy", FROM, TO, "--restart", "--json") == 0
    again = ready.console.json
    assert (again["packets"], again["copied"], again["resumed"]) == (6, 0, 0)
    assert len(held(ready.gateway_state)) == 5


def test_a_dry_run_counts_and_touches_nothing(ready: Site) -> None:
    deposited(ready)
    assert ready.gateway("copy", FROM, TO, "--dry-run") == 0
    assert "would go  2" in ready.console.out
    assert not (ready.gateway_state / "other.db").exists()
    assert not list(ready.gateway_state.glob("copy-*.json"))
    assert ready.gateway("copy", FROM, TO, "--dry-run", "--json") == 0
    assert ready.console.json["dry_run"]
    assert ready.gateway("copy", FROM, TO, "--json") == 0
    assert ready.console.json["copied"] == 2


def test_a_target_that_was_begun_anew_gets_everything(ready: Site) -> None:
    deposited(ready)
    assert ready.gateway("copy", FROM, TO) == 0
    (ready.gateway_state / "other.db").unlink()
    assert ready.gateway("copy", FROM, TO) == 0
    assert len(held(ready.gateway_state)) == 2


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"cursor": "xyz"}', "\udcff"])
def test_a_progress_file_that_is_damaged_is_the_beginning(ready: Site, text: str) -> None:
    deposited(ready)
    assert ready.gateway("copy", FROM, TO) == 0
    (file,) = ready.gateway_state.glob("copy-*.json")
    assert json.loads(file.read_text())["from"] == FROM
    file.write_bytes(text.encode(errors="surrogateescape"))
    assert ready.gateway("copy", FROM, TO, "--json") == 0
    assert ready.console.json["packets"] == 3
    assert ready.console.json["copied"] == 0


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (FROM, FROM, "same engine"),
        ("sqlite:typo.db", TO, "there is no"),
        ("memory:x", TO, "another process's"),
        (FROM, "memory:", "another process's"),
        (FROM, "kafak://host", "no routing engine"),
    ],
)
def test_it_is_asked_wrongly(ready: Site, source: str, target: str, words: str) -> None:
    deposited(ready)
    assert ready.gateway("copy", source, target) in (1, 2)
    assert words in ready.console.err
    assert not (ready.gateway_state / "typo.db").exists()


def test_two_of_one_pair_do_not_run_at_once(ready: Site) -> None:
    deposited(ready)
    with ProgressFile(ready.gateway_state, FROM, TO).locked():
        assert ready.gateway("copy", FROM, TO) == 1
    assert "in use" in ready.console.err


def test_interrupted_it_says_how_to_go_on(ready: Site) -> None:
    deposited(ready)
    entries = many(ready, 6000)
    deposit(ready.gateway_state, entries)
    where = ("--config", str(ready.gateway_config))
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "copy", *where, FROM, TO],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    file = ProgressFile(ready.gateway_state, FROM, TO)
    deadline = time.monotonic() + 30
    while not (found := file.read()) or not found.packets:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 130
    assert "stopped: the same command goes on" in said
    part = held(ready.gateway_state)
    assert 0 < len(part) < 6002
    assert ready.gateway("copy", FROM, TO, "--json") == 0
    assert ready.console.json["resumed"] >= len(part)
    assert ready.console.json["copied"] == 6002
    assert held(ready.gateway_state)[2:] == entries


# --- without the command -----------------------------------------------------------------


async def test_killed_between_deposit_and_note_it_repeats_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    source, target = open_engine("memory:"), open_engine("memory:")
    await source.open()
    await target.open()
    entries = [make_entry(number) for number in range(1200)]
    await source.deposit(entries)

    def killed() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await Copying(source, target, accept, Progress(), killed).run(asyncio.Event())
    progress = Progress()  # nothing was noted
    assert await Copying(source, target, accept, progress).run(asyncio.Event())
    assert progress.packets == 1200
    assert 0 < progress.copied < 1200
    found = await collect(target.follow(frozenset([EVERYTHING])), 0, 5, live=True)
    assert entries_of(found) == entries
    for engine in (source, target):
        await engine.close()


async def test_a_source_that_still_reads_its_log_is_waited_for(tmp_path: Path) -> None:
    log = MemoryLog()
    entries = [make_entry(number) for number in range(300)]
    stranger = Identity.from_seed(bytes(32))
    log.append([entry.raw for entry in entries])
    log.append([b"nonsense", make_entry(1, identity=stranger).raw])
    source = ViewEngine(MemoryFeed(log, chunk=7), Context(accept=accept, folder=tmp_path))
    target = open_engine("memory:")
    async with contextlib.AsyncExitStack() as opened:
        for engine in (source, target):
            opened.push_async_callback(engine.close)
            await engine.open()
        progress = Progress()
        assert await Copying(source, target, accept, progress).run(asyncio.Event())
        assert progress.copied == 300
        assert (await source.status()).refused == 1
        found = await collect(target.follow(frozenset([EVERYTHING])), 0, 5, live=True)
        assert entries_of(found) == entries


async def test_a_source_that_is_away_ends_it(tmp_path: Path) -> None:
    log = MemoryLog()
    log.append([make_entry(1).raw])
    source = ViewEngine(MemoryFeed(log), Context(accept=accept, folder=tmp_path))
    target = open_engine("memory:")
    async with contextlib.AsyncExitStack() as opened:
        for engine in (source, target):
            opened.push_async_callback(engine.close)
            await engine.open()
        assert await Copying(source, target, accept, Progress()).run(asyncio.Event())
    log.away = "unplugged"
    async with contextlib.AsyncExitStack() as opened:
        for engine in (source, target):
            opened.push_async_callback(engine.close)
            await engine.open()
        with pytest.raises(RoutingError, match="unplugged"):
            await Copying(source, target, accept, Progress()).run(asyncio.Event())
