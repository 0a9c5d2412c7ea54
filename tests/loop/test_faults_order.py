"""First the disk, then the network: in which order a node and a gateway sync and send, as the
kernel saw it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from qis_edge.keys import read_key
from tests.loop.site import Site, made_and_held, site
from tests.mosquitto import Mosquitto, running
from tests.strace import Call, Message, calls_of, messages, require_strace, traced

#: How a packet begins, and a receipt.
PACKET, RECEIPT = bytes.fromhex("d284"), bytes.fromhex("d18443a10104a0")
PUBLISH, PUBACK = 3, 4
NEVER = 10**9
ENOUGH = 12


def spawn_traced(here: Site, name: str, config: Path) -> subprocess.Popen[bytes]:
    """A process under ``strace``; ``name/trace`` is what that saw."""
    module = "gateway" if name == "base" else "qis_edge"
    command = [sys.executable, "-m", module, "run", "--config", str(config)]
    with (here.folder / name / "log").open("ab") as log:
        here.processes[name] = subprocess.Popen(
            traced(command, here.folder / name / "trace"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return here.processes[name]


def synced(calls: list[Call], file: str, content: bytes) -> tuple[int, int]:
    """The lines at which these bytes were first written, and at which the next sync returned;
    the end of all where that was not to be."""
    places = [call for call in calls if call.place.endswith(file)]
    write = next((c for c in places if c.name == "pwrite64" and content in c.data), None)
    if write is None:
        return NEVER, NEVER
    syncs = (c.ended for c in places if c.name == "fdatasync" and c.begun > write.begun)
    return write.begun, min(syncs, default=NEVER)


def publishes(calls: list[Call], name: str, begin: bytes) -> list[Message]:
    """Those of this kind, in the order in which they were sent or received."""
    found = [one for one in messages(calls, name) if one.kind >> 4 == PUBLISH]
    found = [one for one in found if one.payload.startswith(begin)]
    return sorted(found, key=lambda one: one.call.begun)


def acknowledgements(out: list[Message], of: Message) -> list[Message]:
    """The first PUBACK of a PUBLISH that came, if there was one."""
    found = (one for one in out if one.kind >> 4 == PUBACK and one.call.begun > of.call.ended)
    return [one for one in found if one.identifier == of.identifier][:1]


async def test_nothing_is_sent_or_acknowledged_before_it_is_synced(tmp_path: Path) -> None:
    require_strace()
    links = 'protocol = "3.1.1"\n'
    with running(Mosquitto(tmp_path / "broker")) as broker:
        async with site(tmp_path, broker.url, pace=0.3) as here:
            gateway = here.gateway_config(links=links)
            node = here.node_config("ewr", links=links)
            processes = [
                spawn_traced(here, "base", gateway),
                spawn_traced(here, "ewr", node),
            ]
            await here.approve("base", read_key(here.state("ewr") / "node.key").kid)
            held = here.state("ewr")
            await here.wait("custody", lambda: made_and_held(held)[1] >= ENOUGH, 90)
            for process in processes:
                process.kill()
                process.wait()
            here.processes.clear()
            await here.wait("the end of the traces", lambda: ended(tmp_path, "base", "ewr"), 60)

    # The node: a packet is on its disk before it is on the wire, in the very same bytes.
    calls = calls_of(tmp_path / "ewr" / "trace")
    sent = publishes(calls, "sendto", PACKET)
    assert len(sent) >= ENOUGH // 4
    for one in sent:
        assert synced(calls, "outbox.db-wal", one.payload)[1] < one.call.begun

    # The gateway: a packet is on its disk before the broker may forget it, and before the node
    # may. (What came while the node was not known was not taken, and came again.)
    calls = calls_of(tmp_path / "base" / "trace")
    came = dict.fromkeys(one.payload for one in publishes(calls, "recvfrom", PACKET))
    out = list(messages(calls, "sendto"))
    acknowledged, safe = 0, list[int]()
    for raw in came:
        write, sync = synced(calls, "spool.db-wal", raw)
        # From when on each of its arrivals may be answered.
        safe += [max(sync, one.call.ended) for one in publishes(calls, "recvfrom", raw)]
        before = [one for one in publishes(calls, "recvfrom", raw) if one.call.ended < write]
        for ack in acknowledgements(out, before[-1]) if sync < NEVER else ():
            assert sync < ack.call.begun
            acknowledged += 1
    assert acknowledged >= ENOUGH // 4
    # Each receipt is of packets that came since the one before, if only once more.
    receipts = publishes(calls, "sendto", RECEIPT)
    assert len(receipts) >= ENOUGH // 4
    for number, one in enumerate(receipts):
        assert len([line for line in safe if line < one.call.begun]) > number


def ended(folder: Path, *names: str) -> bool:
    """Whether ``strace``, which nobody waits for, has written all that it saw."""
    for name in names:
        with (folder / name / "trace").open("rb") as file:
            file.seek(-min(200, os.fstat(file.fileno()).st_size), os.SEEK_END)
            if b"killed by SIGKILL" not in file.read():
                return False
    return True
