"""The mark beside a spool: how far it was, kept where a copy of the spool does not reach.

A spool that is put back from an older copy lacks packets that this gateway has receipted,
and knows nothing of it. The mark is a file beside it that says up to which position of the
log packets were committed. It is written after each commit and never synced: it may lag
behind the spool after a loss of power, and never leads. So a spool that is behind its mark
is an older one. One whose file is another than the spool remembers was copied here, from a
backup perhaps, with its mark or without.

What this does not show is an image of the whole disk that was put back: everything in it
agrees with everything else.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

from qis_edge.store.database import beside, os_error

#: Epoch of the spool, and the last position that was committed under it.
_FORM = struct.Struct("<4sQ")


class Mark:
    """The mark of one spool.

    :raises StoreError: the file cannot be read or made.
    """

    def __init__(self, spool: Path) -> None:
        self.path = beside(spool, ".mark")
        #: Of the spool's file: what a copy of it does not share with it.
        self.inode = spool.stat().st_ino
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise os_error(error, self.path) from error

    def read(self) -> tuple[bytes, int] | None:
        """(epoch, position); ``None`` where there was none, or what is there is no mark."""
        found = os.pread(self._file, _FORM.size, 0)
        if len(found) < _FORM.size:
            return None
        epoch, position = _FORM.unpack(found)
        return bytes(epoch), int(position)

    def doubt(self, epoch: bytes, position: int, inode: int | None) -> str:
        """Why a spool must be an older copy that was put back; empty where nothing says so.

        :param inode: of its file, as the spool remembers it; ``None`` of one that never did.
        """
        found = self.read()
        if found is not None and found[0] != epoch:
            return "its mark is of another epoch"
        if found is not None and found[1] > position:
            return f"it ends {found[1] - position} packets before its mark"
        if inode is not None and inode != self.inode:
            return "its file was copied here"
        return ""

    def write(self, epoch: bytes, position: int) -> None:
        """Takes 2 µs. On a disk that takes nothing the mark lags, which does no harm."""
        with contextlib.suppress(OSError):
            os.pwrite(self._file, _FORM.pack(epoch, position), 0)

    def close(self) -> None:
        """Idempotent."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
