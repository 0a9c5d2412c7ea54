"""Whether the end of a write-ahead log may have been lost.

SQLite takes a log up to its last commit whose checksums are right, and silently passes
over the rest. After a crash that rest is an unfinished commit. After damage it may be
commits that had returned, and packets that had been sent: their numbers must not be given
out again. The format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_HEADER = 32
_FRAME_HEADER = 24
_MAGIC = (0x377F0682, 0x377F0683)


def end_is_suspect(log: Path, taken: int) -> bool:
    """Whether something follows that belongs to the log and is damaged.

    :param taken: how many frames SQLite took from it.
    """
    try:
        with log.open("rb") as file:
            return _suspect(file, taken)
    except FileNotFoundError:
        return False


def frames_taken(index: Path) -> int:
    """How many frames SQLite took, as the log's index says, which it made when it opened the
    log (https://www.sqlite.org/walformat.html#wal_index_header, in the machine's own order)."""
    try:
        with index.open("rb") as file:
            header = file.read(48)
    except OSError:
        return 0
    return int(struct.unpack("=I", header[16:20])[0]) if len(header) == 48 else 0


def _suspect(file: BinaryIO, taken: int) -> bool:
    header = file.read(_HEADER)
    if len(header) < _HEADER or not any(header):
        return False  # there is none, or it was never begun
    magic, _, page, _, salt1, salt2, sum1, sum2 = struct.unpack(">8I", header)
    if magic not in _MAGIC or not 512 <= page <= 65536:
        return True
    order = ">" if magic & 1 else "<"
    sums = _checksum(order, header[:24], (0, 0))
    if sums != (sum1, sum2):
        return True
    size = _FRAME_HEADER + page
    if taken:
        file.seek(_HEADER + (taken - 1) * size)
        sums = struct.unpack(">2I", file.read(_FRAME_HEADER)[16:24])
    file.seek(_HEADER + taken * size)
    whole = True
    while len(frame := file.read(size)) == size:
        _, _, frame_salt1, frame_salt2, sum1, sum2 = struct.unpack(">6I", frame[:24])
        if (frame_salt1, frame_salt2) != (salt1, salt2):
            whole = False  # of an earlier round of the log, or damaged: look on
            continue
        if not whole:
            return True
        sums = _checksum(order, frame[24:], _checksum(order, frame[:8], sums))
        if sums != (sum1, sum2):
            return True
    return False


def _checksum(order: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for left, right in zip(words[::2], words[1::2], strict=True):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return first, second
