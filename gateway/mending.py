"""Opening a gateway's spool, whatever has happened to it: a damaged one is set aside.

What is still what its node signed is carried over into a new spool, with the moment at
which it came; the rest is left in the old file, which is kept. The new spool has a new
epoch, by which the nodes know to send again what they still have, so that what could not
be read comes back from them. Which sequences were held before is forgotten with the old
file: a packet that comes again is deposited again, which changes nothing.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.spool import Intake, Spool
from qis_edge.core.errors import Refused, StoreCorrupt
from qis_edge.core.packet import Packet
from qis_edge.store import salvage
from qis_edge.store.database import Lock, beside
from qis_edge.store.forms import check_of

#: A spool of at most this size is checked whole when it is opened; one up to the second
#: figure only after a crash.
QUICK, AFTER_CRASH = 4 << 20, 64 << 20
#: Packets that are carried over in one transaction.
SLICE = 500

Verify = Callable[[bytes], Packet]


@dataclass(frozen=True, slots=True)
class Mended:
    """What became of a damaged spool.

    :param lost: packets that it counted and that were not carried over; ``None``: its
        counts cannot be read either.
    :param aside: the file in which they may still be.
    """

    packets: int
    lost: int | None
    aside: Path

    def __str__(self) -> str:
        lost = "an unknown number" if self.lost is None else str(self.lost)
        return (
            f"the spool was damaged: carried over {self.packets} packets, {lost} could not be "
            f"read or verified; the old file is kept as {self.aside.name}; nodes send again "
            "what they still have"
        )


def open_spool(path: Path, verify: Verify, **settings: Any) -> tuple[Spool, Mended | None]:
    """A sound spool, and what had to be done for it.

    :param verify: a packet's bytes → the packet, its signature checked against the key of a
        node of the fleet. :raises Refused: it is none.
    :param settings: as :class:`Spool` takes them.
    :raises StoreError: in use, newer, or the disk does not allow it.
    """
    mended = _mend(path, verify) if salvage.due(path) else None
    try:
        return _checked(path, settings), mended
    except StoreCorrupt:
        mended = _mend(path, verify)
        return _checked(path, settings), mended


def _checked(path: Path, settings: dict[str, Any]) -> Spool:
    spool = Spool(path, **settings)
    try:
        spool.check(QUICK, AFTER_CRASH)
    except BaseException:
        spool.close()
        raise
    return spool


def _mend(path: Path, verify: Verify) -> Mended:
    found: tuple[int, int | None] = 0, None
    lock = Lock(path)
    try:

        def fill(new: Path, old: Path) -> None:
            nonlocal found
            found = _fill(new, old, verify)

        salvage.set_aside(path, fill)
        # What they say is of the old file.
        for left in (beside(path, ".mark"), beside(path, ".new.mark"), beside(path, ".new.lock")):
            left.unlink(missing_ok=True)
    finally:
        lock.release()
    return Mended(*found, beside(path, salvage.ASIDE.format(1)))


def _fill(new: Path, old: Path, verify: Verify) -> tuple[int, int | None]:
    """How many packets were carried over, and how many were not."""
    source = salvage.open_damaged(old)
    with contextlib.closing(Spool(new)) as spool:
        if source is None:
            return 0, None
        with contextlib.closing(source):
            counted = _fact(source, "packets")
            spool.skip_to(_fact(source, "last") or 0)
            slice_: list[Intake] = []
            for one in _sound(source, verify):
                slice_.append(one)
                if len(slice_) == SLICE:
                    spool.admit(slice_)
                    slice_.clear()
            spool.admit(slice_)
        carried = spool.status().packets
    return carried, None if counted is None else max(0, counted - carried)


def _sound(source: sqlite3.Connection, verify: Verify) -> Iterator[Intake]:
    """Packets that are what was signed, in their order."""
    numbers = ("position", "origin", "sequence", "route", "time", "expires", "confidence")
    columns = ("raw", "crc", "received", *numbers)
    for raw, crc, received, *row in salvage.readable(source, "packets", "position", columns):
        try:
            packet = verify(raw) if isinstance(raw, bytes) else None
        except Refused:
            continue
        if packet is None:
            continue
        # Whether it was worth routing is in a row that may be damaged itself.
        known = crc is None or check_of(raw, *row) == crc
        when = received if isinstance(received, int) and 0 <= received < 2**40 else 0
        yield Intake(packet, when, bool(row[3]) if known else True)


def _fact(source: sqlite3.Connection, name: str) -> int | None:
    try:
        row = source.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    except sqlite3.Error:
        return None
    return row[0] if row and isinstance(row[0], int) and 0 <= row[0] < 2**53 else None
