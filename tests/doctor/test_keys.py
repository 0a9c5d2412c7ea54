"""Keys and credentials, with each way of being wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qis_edge.core.identity import Identity
from qis_edge.doctor.keys import check_credential, check_key, check_root_key, check_state
from qis_edge.keys import write_key

DAY = 86400


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    path = tmp_path / "node.key"
    write_key(path, Identity.generate())
    return path


def code(path: Path) -> tuple[str, str]:
    (found,) = check_key(path, path.parent, what="node")
    assert found.severity == 0 or found.fix or found.code == "key"
    return found.code, found.severity.label


def test_a_good_key(path: Path) -> None:
    assert code(path) == ("key", "ok")
    assert list(check_state(path.parent)) == []
    assert list(check_root_key(path.parent)) == []


def test_a_bad_key(path: Path) -> None:
    path.chmod(0o640)
    assert code(path) == ("key-exposed", "error")
    path.chmod(0o600)
    path.write_text("not a key\n")
    assert code(path) == ("key-unusable", "error")
    path.unlink()
    assert code(path) == ("key-missing", "error")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_somebody_elses_key(path: Path) -> None:
    os.chown(path, 12345, 12345)
    assert code(path) == ("key-exposed", "error")


def test_a_key_that_systemd_hands_over(tmp_path: Path) -> None:
    (found,) = check_key(Path("credential:node.key"), tmp_path, what="node")
    assert (found.code, found.severity.label) == ("key", "notice")


def test_a_folder_that_others_may_read(path: Path) -> None:
    path.parent.chmod(0o755)
    (found,) = check_state(path.parent)
    assert found.code == "state-exposed"
    assert found.fix == f"chmod 700 {path.parent}"
    assert list(check_state(path.parent / "gone")) == []


def test_the_root_key(path: Path) -> None:
    write_key(path.parent / "root.key", Identity.generate())
    (found,) = check_root_key(path.parent)
    assert (found.code, found.severity.label) == ("root-key-here", "warning")


@pytest.mark.parametrize(
    ("expires", "held", "wanted"),
    [
        (None, True, ("credential", "ok")),
        (400 * DAY, True, ("credential", "ok")),
        (60 * DAY, True, ("credential-ends", "notice")),
        (10 * DAY, True, ("credential-ends", "warning")),
        (-DAY, False, ("credential-missing", "error")),
        (None, False, ("credential-missing", "error")),
    ],
)
def test_a_credential(expires: int | None, held: bool, wanted: tuple[str, str]) -> None:
    now = 1_800_000_000.0
    found = check_credential(
        None if expires is None else int(now) + expires, now, held=held, missing="a", renew="b"
    )
    assert (found.code, found.severity.label) == wanted
    if wanted[1] != "ok":
        assert found.fix == ("a" if expires is None else "b")
