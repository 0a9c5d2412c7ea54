"""What a process asks the kernel for, in which order, as ``strace`` saw it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

STRACE = shutil.which("strace")
MISSING = "needs: strace (make deps, or: sudo apt install strace)"
#: What writes, what syncs, what sends and what receives.
CALLS = "pwrite64,write,fdatasync,fsync,sendto,recvfrom"

_LINE = re.compile(r"(\d+) +(\w+)\((.*)")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")
_UNFINISHED = " <unfinished ...>"
_CALL = re.compile(r'\d+<([^>]*)>(?:, "((?:\\x[0-9a-f]{2})*)")?.*\)\s+= (-?\d+)')


def require_strace() -> str:
    """Its path; skips the test where there is none, or where it may not trace."""
    if STRACE is None:
        pytest.skip(MISSING)
    if subprocess.run(
        [STRACE, "-o", "/dev/null", "true"], capture_output=True, check=False
    ).returncode:
        pytest.skip("strace may not trace here")
    return STRACE


def traced(command: Sequence[str], trace: Path) -> list[str]:
    """The command under ``strace``, which stands aside: the process is the one that is started."""
    what = ["-D", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "8192", "-e", f"trace={CALLS}"]
    return [require_strace(), *what, "-o", str(trace), *command]


@dataclass(frozen=True)
class Call:
    """One system call.

    :param place: the path of its file, or what its socket is called.
    :param begun: the line of the trace at which it was made; ``ended``: at which it returned.
    """

    name: str
    place: str
    data: bytes
    begun: int
    ended: int


def calls_of(trace: Path) -> list[Call]:
    """All that succeeded, in the order in which they were made."""
    under_way: dict[str, tuple[str, str, int]] = {}
    found: list[Call] = []
    for number, line in enumerate(trace.read_text().splitlines()):
        if (resumed := _RESUMED.match(line)) is not None:
            name, text, begun = under_way.pop(resumed[1])
            text += resumed[2]
        elif (made := _LINE.match(line)) is not None:
            name, text, begun = made[2], made[3], number
            if text.endswith(_UNFINISHED):
                under_way[made[1]] = (name, text.removesuffix(_UNFINISHED), number)
                continue
        else:
            continue  # a signal, or the end
        parts = _CALL.match(text)
        if parts is not None and int(parts[3]) >= 0:
            place, data = (_bytes(part or "") for part in parts.groups()[:2])
            found.append(Call(name, place.decode(errors="replace"), data, begun, number))
    return sorted(found, key=lambda call: call.begun)


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


@dataclass(frozen=True)
class Message:
    """One MQTT control packet on a connection, and the call that began it."""

    kind: int
    body: bytes
    call: Call

    @property
    def identifier(self) -> bytes:
        """Of a PUBLISH with QoS 1, or of its PUBACK."""
        if self.kind >> 4 == 4:
            return self.body[:2]
        topic = 2 + int.from_bytes(self.body[:2])
        return self.body[topic : topic + 2]

    @property
    def payload(self) -> bytes:
        """Of a PUBLISH with QoS 1 in MQTT 3.1.1."""
        return self.body[4 + int.from_bytes(self.body[:2]) :]


def messages(calls: Sequence[Call], name: str) -> Iterator[Message]:
    """What was sent (``sendto``) or received (``recvfrom``), connection by connection. For
    what was received the call is the one that completed it."""
    places = dict.fromkeys(call.place for call in calls if call.name == name)
    for place in places:
        data = bytearray()
        began: Call | None = None
        for call in calls:
            if (call.name, call.place) != (name, place):
                continue
            began = began or call
            data += call.data[: len(call.data)]
            while (end := _end(data)) is not None:
                head, size = end
                at = call if name == "recvfrom" else began
                yield Message(data[0], bytes(data[head : head + size]), at)
                del data[: head + size]
                began = call
            if not data:
                began = None


def _end(data: bytearray) -> tuple[int, int] | None:
    """(bytes of the fixed header, bytes after it) of the first message, if it is all there."""
    size = 0
    for at in range(1, min(len(data), 5)):
        size |= (data[at] & 0x7F) << 7 * (at - 1)
        if not data[at] & 0x80:
            return (at + 1, size) if len(data) >= at + 1 + size else None
    return None
