"""The disk's checks, with mount tables and cards that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qis_edge.doctor.disk import Room, check_disk, check_wear, mount_of

PLENTY = Room(10**10, 10**6, read_only=False)


def mounts(folder: Path, *lines: tuple[str, str, str, str]) -> Path:
    """(point, options, kind, options of the file system), as the kernel writes them."""
    text = ""
    for number, (point, options, kind, more) in enumerate(lines):
        shown = point.replace(" ", "\\040")
        text += f"36 35 179:{number} / {shown} {options} shared:1 - {kind} /dev/x {more}\n"
    path = folder / "mountinfo"
    path.write_text("malformed\n" + text)
    return path


def codes(state: Path, table: Path, **more: Any) -> dict[str, str]:
    given = {"room": PLENTY, "mounts": table, "blocks": table.parent / "none", **more}
    return {one.code: one.severity.label for one in check_disk(state, **given)}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    made = tmp_path / "a state"
    made.mkdir()
    return made


def test_a_good_disk(state: Path, tmp_path: Path) -> None:
    table = mounts(tmp_path, ("/", "rw,relatime", "ext4", "rw"))
    assert codes(state, table) == {"disk": "ok"}
    assert codes(state, tmp_path / "none") == {"disk": "ok"}
    assert {one.code for one in check_disk(state)} & {"disk", "disk-volatile", "disk-unsafe"}


@pytest.mark.parametrize(
    ("options", "kind", "more", "wanted"),
    [
        ("ro", "ext4", "ro,errors=remount-ro", {"disk-read-only": "error"}),
        ("rw", "tmpfs", "rw,size=100m", {"disk-volatile": "error"}),
        ("rw", "overlay", "rw", {"disk-volatile": "warning"}),
        ("rw", "nfs4", "rw", {"disk-unsafe": "warning"}),
        ("rw", "vfat", "rw", {"disk-unsafe": "warning"}),
        ("rw", "ext4", "rw,nobarrier", {"disk-unsafe": "warning"}),
        ("rw", "ext4", "rw,barrier=1", {"disk": "ok"}),
    ],
)
def test_what_it_is_on(
    state: Path, tmp_path: Path, options: str, kind: str, more: str, wanted: dict[str, str]
) -> None:
    table = mounts(tmp_path, ("/", "rw", "ext4", "rw"), (str(state), options, kind, more))
    assert codes(state, table) == wanted


def test_the_nearest_mount_counts(state: Path, tmp_path: Path) -> None:
    table = mounts(
        tmp_path,
        ("/", "rw", "tmpfs", "rw"),
        (str(state), "rw", "tmpfs", "rw"),
        (str(state), "rw", "ext4", "rw"),  # over the one before
        (str(state) + "x", "rw", "tmpfs", "rw"),
    )
    found = mount_of(state, table)
    assert found is not None
    assert (found.kind, found.device) == ("ext4", "179:2")


@pytest.mark.parametrize(
    ("room", "wanted"),
    [
        (Room(10**6, None, read_only=False), {"disk-full": "error"}),
        (Room(10**8, None, read_only=False), {"disk-short": "warning"}),
        (Room(10**10, 10, read_only=False), {"disk-inodes": "warning"}),
        (Room(10**10, 10**6, read_only=True), {"disk-read-only": "error"}),
    ],
)
def test_how_much_room_there_is(
    state: Path, tmp_path: Path, room: Room, wanted: dict[str, str]
) -> None:
    assert codes(state, tmp_path / "none", room=room, wanted=10**9) == wanted


def test_no_folder(tmp_path: Path) -> None:
    assert codes(tmp_path / "gone", tmp_path / "none") == {"disk-missing": "error"}


def card(folder: Path, **said: str) -> Path:
    """A partition of a card, as /sys has it: a link to a folder in that of its disk."""
    device = folder / "devices" / "mmcblk0" / "device"
    device.mkdir(parents=True)
    for name, value in said.items():
        (device / name).write_text(value + "\n")
    part = folder / "devices" / "mmcblk0" / "mmcblk0p2"
    part.mkdir()
    (part / "partition").write_text("2\n")
    blocks = folder / "block"
    blocks.mkdir()
    (blocks / "179:2").symlink_to(part)
    return blocks


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"type": "MMC", "life_time": "0x01 0x02", "pre_eol_info": "0x01"}, ["disk-wear", "ok"]),
        ({"type": "MMC", "life_time": "0x09 0x01", "pre_eol_info": "0x01"},
         ["disk-worn", "warning"]),
        ({"type": "MMC", "life_time": "0x03 0x03", "pre_eol_info": "0x02"},
         ["disk-worn", "warning"]),
        ({"type": "MMC", "life_time": "0x0b 0x01"}, ["disk-worn", "error"]),
        ({"type": "MMC", "life_time": "0x01 0x01", "pre_eol_info": "0x03"}, ["disk-worn", "error"]),
        ({"type": "SD"}, ["disk-wear", "notice"]),
        ({"type": "MMC", "life_time": "0x00 0x00"}, ["disk-wear", "notice"]),
    ],
)  # fmt: skip
def test_how_worn_it_is(tmp_path: Path, said: dict[str, str], wanted: list[str]) -> None:
    (found,) = check_wear("179:2", card(tmp_path, **said))
    assert [found.code, found.severity.label] == wanted


def test_what_does_not_wear_like_that(tmp_path: Path) -> None:
    assert list(check_wear("8:1", tmp_path)) == []
    assert list(check_wear("179:2", card(tmp_path))) == []
