"""Is there room, does the disk keep what it is given, and for how long?"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qis_edge.doctor.findings import Finding, error, notice, ok, warning
from qis_edge.terminal import size

#: Bytes below which a disk counts as full, and names of files below which it does, too.
FULL, FEW_INODES = 16_000_000, 1000
#: In memory; not a disk of this machine's; without modes, links or syncing as we need them.
VOLATILE = {"tmpfs", "ramfs", "zram", "rootfs"}
REMOTE = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph"}
ODD = {"vfat", "exfat", "msdos", "ntfs", "ntfs3", "fuseblk"}
_NO_BARRIER = re.compile(r"(?:^|,)(nobarrier|barrier=0|fsync_mode=nobarrier|data=writeback)(?:,|$)")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system.

    :param device: its number as ``/sys/dev/block`` writes it, such as ``179:2``.
    """

    point: str
    device: str
    kind: str
    options: str

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written."""
        return "ro" in self.options.split(",")


@dataclass(frozen=True, slots=True)
class Room:
    """What statvfs(3) says: bytes and names that are left, and whether it is read-only."""

    bytes: int
    inodes: int | None
    read_only: bool

    @classmethod
    def of(cls, path: Path) -> Room:
        """:raises OSError: it cannot be looked at."""
        found = os.statvfs(path)
        inodes = found.f_favail if found.f_files else None
        return cls(found.f_bavail * found.f_frsize, inodes, bool(found.f_flag & os.ST_RDONLY))


def mount_of(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> Mount | None:
    """The file system that a path is on; of several at one point, the last."""
    real, best = path.resolve(), None
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        head, _, tail = line.partition(" - ")
        fields, more = head.split(), tail.split()
        if len(fields) < 6 or len(more) < 3:
            continue
        point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields[4])
        inside = real.is_relative_to(point)
        if inside and (best is None or len(point) >= len(best.point)):
            best = Mount(point, fields[2], more[0], f"{fields[5]},{more[2]}")
    return best


def check_disk(
    state: Path,
    *,
    wanted: int = 0,
    room: Room | None = None,
    mounts: Path = Path("/proc/self/mountinfo"),
    blocks: Path = Path("/sys/dev/block"),
) -> Iterator[Finding]:
    """The disk of a state folder.

    :param wanted: bytes that the budgets still allow to be written.
    """
    if not state.is_dir():
        yield error("disk-missing", f"there is no state folder {state}", "init makes it")
        return
    mount = mount_of(state, mounts)
    try:
        room = room or Room.of(state)
    except OSError as failure:
        yield error("disk-missing", f"{state}: {failure.strerror}", "mount it again")
        return
    found = [*_room(state, room, wanted), *_kind(state, mount)]
    if room.read_only or (mount is not None and mount.read_only):
        found.append(
            error(
                "disk-read-only",
                f"{state} is on a file system that is mounted read-only",
                "a card that fails is often mounted so: look at dmesg, replace it; or mount it rw",
            )
        )
    yield from found or [ok("disk", f"{state}: {size(room.bytes)} free")]
    if mount is not None:
        yield from check_wear(mount.device, blocks)


def _room(state: Path, room: Room, wanted: int) -> Iterator[Finding]:
    if room.bytes < FULL:
        yield error("disk-full", f"{state}: {size(room.bytes)} free", "free some space")
    elif room.bytes < wanted:
        yield warning(
            "disk-short",
            f"{state}: {size(room.bytes)} free, and the budgets allow {size(wanted)} more",
            "free some space, or make the budget smaller",
        )
    if room.inodes is not None and room.inodes < FEW_INODES:
        yield warning(
            "disk-inodes",
            f"{state}: room for {room.inodes} more files",
            "remove files that nobody needs",
        )


def _kind(state: Path, mount: Mount | None) -> Iterator[Finding]:
    if mount is None:
        return
    if mount.kind in VOLATILE:
        yield error(
            "disk-volatile",
            f"{state} is in memory ({mount.kind}): a restart loses keys and queues",
            "put the state folder on a disk",
        )
    elif mount.kind == "overlay":
        yield warning(
            "disk-volatile",
            f"{state} is on an overlay, which may be in memory or end with its container",
            "put the state folder on a volume or a partition of its own",
        )
    elif mount.kind in REMOTE:
        yield warning(
            "disk-unsafe",
            f"{state} is on another machine's disk ({mount.kind}): SQLite's locks and logs "
            "do not hold there",
            "put the state folder on a disk of this machine",
        )
    elif mount.kind in ODD:
        yield warning(
            "disk-unsafe",
            f"{state} is on {mount.kind}, which knows no owners and has no journal of ours",
            "put the state folder on ext4, f2fs or btrfs",
        )
    if (unsafe := _NO_BARRIER.search(mount.options)) is not None:
        yield warning(
            "disk-unsafe",
            f"{mount.point} is mounted with {unsafe[1]}: a power failure loses what was synced",
            f"mount it without {unsafe[1]}",
        )


# --- wear ------------------------------------------------------------------------------


def check_wear(device: str, blocks: Path = Path("/sys/dev/block")) -> Iterator[Finding]:
    """How worn a card or an eMMC is, as far as it says.

    :param device: as ``/sys/dev/block`` names it.
    """
    disk = _disk(blocks / device)
    if disk is None:
        return
    name, folder = disk.name, disk / "device"
    kind = _read(folder / "type")
    lives = [int(one, 16) for one in _read(folder / "life_time").split() if one.startswith("0x")]
    before_end = _read(folder / "pre_eol_info")
    used = max((one for one in lives if one), default=0)
    if used == 0 and kind not in ("MMC", "SD"):
        return
    if used == 0:
        yield notice(
            "disk-wear",
            f"{name} ({kind}) does not say how worn it is",
            "have a spare card at hand; an industrial card or an eMMC lasts longer",
        )
    elif used >= 11 or before_end == "0x03":
        yield error("disk-worn", f"{name} is past its rated life", "replace it now")
    elif used >= 9 or before_end == "0x02":
        yield warning(
            "disk-worn", f"{name} has used {used * 10 - 10} to {used * 10}% of its life",
            "replace it before it fails",
        )  # fmt: skip
    else:
        yield ok("disk-wear", f"{name} has used at most {used * 10}% of its life")


def _disk(entry: Path) -> Path | None:
    """The disk that a device is, or is a partition of."""
    try:
        found = entry.resolve(strict=True)
    except OSError:
        return None
    return found.parent if (found / "partition").exists() else found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
