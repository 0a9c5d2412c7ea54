from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from qis_edge.core.errors import ConfigError, KeyFileError
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.keys import (
    FleetFile,
    read_key,
    replace_file,
    write_key,
)

NODE = Identity.from_seed(b"\xa5" * 32)
ROOT = Identity.from_seed(b"\x01" * 32).public
SEED = NODE.seed.hex()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.key"


def problem(path: Path) -> KeyFileError:
    with pytest.raises(KeyFileError) as error:
        read_key(path)
    assert SEED not in f"{error.value} {error.value.hint} {error.value!r}"
    assert error.value.__cause__ is None
    return error.value


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- key files -------------------------------------------------------------------------


def test_a_key_comes_back(path: Path) -> None:
    write_key(path, NODE, what="node key")
    assert read_key(path).seed == NODE.seed
    comment, public, seed = path.read_text().splitlines()
    assert NODE.kid.hex() in comment
    assert public == f"# public: {NODE.public.raw.hex()}"
    assert seed == SEED


def test_a_key_file_says_what_it_is(path: Path) -> None:
    write_key(path, NODE, what="root key")
    assert read_key(path).seed == NODE.seed
    assert path.read_text().startswith(f"# QIS Edge root key {NODE.kid.hex()}")
    assert [found.name for found in path.parent.iterdir()] == ["node.key"]


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_only_its_owner_can_read_it_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_key(path, NODE)
    finally:
        os.umask(before)
    assert mode_of(path) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o777])
def test_a_key_that_others_can_read_is_refused(path: Path, mode: int) -> None:
    write_key(path, NODE)
    path.chmod(mode)
    error = problem(path)
    assert f"{mode:04o}" in str(error)
    assert error.hint == f"chmod 600 {path}"
    path.chmod(0o400)
    assert read_key(path).kid == NODE.kid


def test_the_hint_can_be_pasted(tmp_path: Path) -> None:
    path = tmp_path / "it's a key"
    write_key(path, NODE)
    path.chmod(0o644)
    hint = problem(path).hint
    assert hint is not None
    assert os.system(hint) == 0
    assert read_key(path).kid == NODE.kid


def test_a_key_of_somebody_else_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_key(path, NODE)
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    error = problem(path)
    assert f"belongs to user {us}" in str(error)
    assert error.hint == f"chown {us + 1} {path}"


def test_a_link_to_a_key_will_do_and_its_target_is_judged(path: Path, tmp_path: Path) -> None:
    write_key(path, NODE)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_key(link).kid == NODE.kid
    path.chmod(0o644)
    assert problem(link).hint == f"chmod 600 {link}"


def test_a_key_is_never_overwritten(path: Path, tmp_path: Path) -> None:
    write_key(path, NODE)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for taken in (path, link):
        with pytest.raises(KeyFileError, match="exists already"):
            write_key(taken, Identity.generate())
    assert read_key(path).seed == NODE.seed
    assert not (tmp_path / "nowhere").exists()


def test_a_missing_key_says_what_makes_one(path: Path) -> None:
    error = problem(path)
    assert "there is no key file" in str(error)
    assert error.hint == "init makes one"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# only a comment\n",
        SEED[:-1].encode(),
        (SEED + "0").encode(),
        f"{SEED}\n{SEED}\n".encode(),
        f"{SEED} trailing".encode(),
        SEED.replace("a", "g").encode(),
        b"\xff" * 64,
        b"-----BEGIN OPENSSH PRIVATE KEY-----\n",
        SEED.encode() + b"\n" * 5000,
    ],
)
def test_what_is_no_key_is_refused_and_not_repeated(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    error = problem(path)
    assert "is not a key file" in str(error)
    assert error.hint


@pytest.mark.parametrize("form", [SEED, f"\r\n# x\r\n  {SEED.upper()}  \r\n"])
def test_a_key_may_be_written_by_hand(path: Path, form: str) -> None:
    path.write_text(form)
    path.chmod(0o600)
    assert read_key(path).seed == NODE.seed


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (pipe, tmp_path):
        assert "is not a file" in str(problem(path))
    assert "cannot be read" in str(problem(pipe / "key"))
    assert "cannot be read" in str(problem(Path("a\0b")))


def test_a_failed_write_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyFileError, match="No space left") as error:
        write_key(path, NODE)
    assert SEED not in str(error.value)
    assert list(path.parent.iterdir()) == []
    with pytest.raises(KeyFileError, match="cannot be written"):
        write_key(path.parent / "missing" / "node.key", NODE)


def test_a_folder_that_fails_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(KeyFileError, match="Input/output error"):
        write_key(path, NODE)


def test_a_write_that_is_interrupted_leaves_no_half_key(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def write(_descriptor: int, _data: memoryview) -> int:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(Killed):
            write_key(path, NODE)
    assert not path.exists()
    write_key(path, NODE)
    assert read_key(path).seed == NODE.seed


def test_a_file_system_that_cannot_sync_folders_will_do(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append("folder" if folder else "file")
        if folder:
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_key(path, NODE)
    assert synced == ["file", "folder"]
    assert read_key(path).kid == NODE.kid


def test_what_systemd_hands_over_is_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_key(path, NODE)
    path.chmod(0o440)
    assert problem(path).hint
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(path.parent))
    assert read_key(path).kid == NODE.kid
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(path.parent.parent))
    assert problem(path).hint


# --- the fleet file --------------------------------------------------------------------


@pytest.mark.parametrize(
    "fleet",
    [
        FleetFile(ROOT, "north-field"),
        FleetFile(ROOT, "n", mqtt_url="mqtts://broker.example:8883"),
        FleetFile(ROOT, "n", "mqtt://[::1]:1883"),
    ],
)
def test_a_fleet_file_comes_back(tmp_path: Path, fleet: FleetFile) -> None:
    path = tmp_path / "fleet.toml"
    fleet.write(path)
    assert FleetFile.read(path) == fleet
    assert FleetFile.parse(fleet.text(), path) == fleet
    assert mode_of(path) == 0o644


HEX = ROOT.raw.hex()


@pytest.mark.parametrize(
    ("text", "key", "line", "words"),
    [
        ("", "fleet", None, ""),
        ('[fleet]\nsite = "n"', "fleet.root", 1, ""),
        (f'[fleet]\nroot = "{HEX}"', "fleet.site", 1, ""),
        ('[fleet]\nsite = "n"\nroot = "abc"', "fleet.root", 3, "64 hex digits"),
        ('[fleet]\nsite = "n"\nroot = 7', "fleet.root", 3, "64 hex digits"),
        (f'[fleet]\nsite = "a/b"\nroot = "{HEX}"', "fleet.site", 2, "name"),
        (f'[fleet]\nsite = "+"\nroot = "{HEX}"', "fleet.site", 2, "name"),
        (f'[fleet]\nsite = 3\nroot = "{HEX}"', "fleet.site", 2, "name"),
        (f'[fleet]\nsite = "\\u001b[2J"\nroot = "{HEX}"', "fleet.site", 2, "control"),
        (f'[fleet]\nsite = "n"\nroot = "{HEX}"\nnam = "x"', "fleet.nam", 4, ""),
        (f'[fleet]\nsite = "n"\nroot = "{HEX}"\n[mqtt]\nurl = "http://x"', "mqtt.url", 5, "scheme"),
        (f'[fleet]\nsite = "n"\nroot = "{HEX}"\n[mqt]\nurl = "http://x"', "mqt", 4, ""),
        ("[fleet", "TOML", 1, ""),
    ],
)
def test_what_is_wrong_in_a_fleet_file_is_named(
    tmp_path: Path, text: str, key: str, line: int | None, words: str
) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        FleetFile.read(path)
    found = error.value.problems[0]
    assert (found.file, found.key) == (str(path), key)
    if line is not None:
        assert found.line == line
    assert words in found.message


def test_everything_wrong_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        FleetFile.parse('[fleet]\nroot = "x"\nsite = ""', tmp_path / "fleet.toml")
    assert {found.key for found in error.value.problems} == {"fleet.root", "fleet.site"}


@pytest.mark.parametrize("raw", [bytes(32), b"\x01" + bytes(31), b"\xff" * 32])
def test_a_root_of_small_order_is_wrong(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(ConfigError, match=r"fleet.toml:2: fleet.root: is no key"):
        FleetFile.parse(f'[fleet]\nroot = "{raw.hex()}"\nsite = "n"', tmp_path / "fleet.toml")


def test_a_password_in_a_fleet_file_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        FleetFile(ROOT, "n", mqtt_url="mqtt://me:hunter2@broker").write(tmp_path / "fleet.toml")
    assert "hunter2" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_fleet_file_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        FleetFile.read(tmp_path / "fleet.toml")
    assert error.value.hint == "init makes it"


# --- durable files ---------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "credential.cbor"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert mode_of(path) == 0o644

    def fail(_source: Path, _target: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyFileError, match="Input/output error"):
        replace_file(path, b"newest")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_an_interrupted_write_left_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    (tmp_path / f".fleet.toml.{os.getpid()}.new").write_bytes(b"half")
    replace_file(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_keys_do_not_show_themselves(path: Path) -> None:
    write_key(path, NODE)
    identity = read_key(path)
    assert SEED not in f"{identity!r} {identity} {identity.public!r}"
    assert isinstance(identity.public, PublicKey)
