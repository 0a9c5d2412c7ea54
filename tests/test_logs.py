"""Logs: with priorities and without times for the journal, with times for everybody else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from qis_edge.terminal import is_journal

ROOT = Path(__file__).parent.parent
SPEAKS = """
import logging
from qis_edge.logs import set_up_logging
set_up_logging("debug")
log = logging.getLogger("test")
log.debug("a detail")
log.info("news of \\x1b[31mnode\\nsecond line")
log.warning("careful")
log.error("bad")
try:
    raise ValueError("why")
except ValueError:
    log.exception("worse")
log.critical("the end")
"""


def stream_of(file: IO[str]) -> str:
    found = os.fstat(file.fileno())
    return f"{found.st_dev}:{found.st_ino}"


def said(tmp_path: Path, code: str, journal: str | None, *arguments: str) -> list[str]:
    """What a program writes to a standard error that is a file, or the journal's."""
    place = tmp_path / "stderr"
    with place.open("w+") as file:
        given = {"ours": stream_of(file), "other": "1:2", None: ""}[journal]
        done = subprocess.run(
            [sys.executable, *(("-c", code) if code else ()), *arguments],
            cwd=ROOT,
            env={**os.environ, "JOURNAL_STREAM": given},
            stderr=file,
            check=False,
        )
    assert done.returncode in (0, 2)
    return place.read_text().splitlines()


def test_what_the_journal_gets(tmp_path: Path) -> None:
    lines = said(tmp_path, SPEAKS, "ours")
    assert lines[:6] == [
        "<7>a detail",
        "<6>news of \\x1b[31mnode",
        "<6>second line",
        "<4>careful",
        "<3>bad",
        "<3>worse",
    ]
    assert lines[-1] == "<2>the end"
    assert all(line.startswith("<3>") for line in lines[5:-1])  # the traceback
    assert not [line for line in lines if re.search(r"\d\d:\d\d:\d\d", line)]


@pytest.mark.parametrize("journal", [None, "other"])
def test_what_everybody_else_gets(tmp_path: Path, journal: str | None) -> None:
    """Also a program of a service whose standard error was sent elsewhere."""
    lines = said(tmp_path, SPEAKS, journal)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} DEBUG a detail", lines[0])
    assert not [line for line in lines if line.startswith("<")]


def test_what_keeps_a_daemon_from_starting_is_an_error_there(tmp_path: Path) -> None:
    run = ("-m", "qis_edge", "run", "--config", str(tmp_path / "none.toml"))
    lines = said(tmp_path, "", "ours", *run)
    assert lines[0].startswith("<3>error: ")
    assert all(line.startswith("<3>") for line in lines)
    assert said(tmp_path, "", None, *run)[0].startswith("error: ")


def test_streams_that_are_none() -> None:
    class Closed:
        def fileno(self) -> int:
            raise ValueError

    assert not is_journal(Closed(), {"JOURNAL_STREAM": "1:2"})  # type: ignore[arg-type] # that is it
    assert not is_journal(sys.stderr, {})
