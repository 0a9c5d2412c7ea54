"""First the disk, then the word: what an outbox says is done was synced before, as the kernel
saw it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.strace import Call, calls_of, traced

ROOT = Path(__file__).parents[2]

SCRIPT = """
import os, sys
from qis_edge.core.receipt import Receipt
from qis_edge.store import Outbox
from tests.store.kit import ADDRESS, EPOCH, GATEWAY, ME, outcome

box = Outbox.open(sys.argv[1], ME.public)
for number in range(12):
    box.append(outcome(number), ADDRESS)
    os.write(1, b"kept")
    if number % 3 == 2:
        (packet,) = box.pack(ME)
        os.write(1, b"sent" + packet.raw)
        box.receipt(GATEWAY, EPOCH, Receipt(packet.store, held=(packet.sequence,)))
        os.write(1, b"done")
os._exit(0)  # nothing is written by an orderly end
"""


def test_the_disk_is_synced_before_anything_is_said(tmp_path: Path) -> None:
    path, trace = tmp_path / "outbox.db", tmp_path / "trace"
    command = traced([sys.executable, "-c", SCRIPT, str(path)], trace)
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    said: list[bytes] = []
    written = synced = 0
    unsynced, content = False, b""
    for call in calls_of(trace):
        if call.name in ("pwrite64", "write") and call.place.startswith(str(path)):
            if not call.place.endswith("-shm"):
                written += 1
                unsynced, content = True, content + call.data
        elif call.name in ("fdatasync", "fsync") and call.place.startswith(str(path)):
            synced += 1
            unsynced = False
        elif call.name == "write" and call.data[:4] in (b"kept", b"sent", b"done"):
            assert not unsynced
            assert written
            assert synced
            assert call.data[4:] in content  # a packet: these bytes, no others
            said.append(call.data[:4])
            written = synced = 0
    assert said == [b"kept", b"kept", b"kept", b"sent", b"done"] * 4


def test_calls_are_read_whatever_comes_between(tmp_path: Path) -> None:
    """Of two threads the one's call may be reported in two parts, padded to a column."""
    trace = tmp_path / "trace"
    trace.write_text(
        '10 pwrite64(5<\\x2f\\x61>, "\\x01\\x02", 2, 0) = 2\n'
        "11 fdatasync(5<\\x2f\\x61> <unfinished ...>\n"
        '10 sendto(7<\\x73>, "\\x03", 1, 0, NULL, 0) = 1\n'
        "11 <... fdatasync resumed>)        = 0\n"
        '10 recvfrom(7<\\x73>, "", 1, 0, NULL, NULL) = 0\n'
        '10 write(1<\\x2f\\x62>, "\\x04", 1)     = -1 EPIPE (Broken pipe)\n'
        "10 +++ exited with 0 +++\n"
    )
    assert calls_of(trace) == [
        Call("pwrite64", "/a", b"\1\2", 0, 0),
        Call("fdatasync", "/a", b"", 1, 3),
        Call("sendto", "s", b"\3", 2, 2),
        Call("recvfrom", "s", b"", 4, 4),
    ]
