"""sd_notify(3), held to a real socket."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import pytest

from qis_edge.service.notify import Notifier
from tests.service.kit import Manager


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_what_a_manager_hears(tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "n") if kind == "path" else f"@qis-test-{os.getpid()}"
    with contextlib.closing(Manager(address)) as manager:
        notifier = Notifier.of({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "180000000"})
        assert notifier.watchdog == 180.0
        notifier.ready("serving")
        notifier.alive("two\nlines=of it")
        notifier.say("idle")
        notifier.alive()
        notifier.stopping()
        heard = [manager.listen(10) for _ in range(5)]
    assert heard == [
        {"READY": "1", "STATUS": "serving"},
        {"WATCHDOG": "1", "STATUS": "two lines=of it"},
        {"STATUS": "idle"},
        {"WATCHDOG": "1"},
        {"STOPPING": "1", "STATUS": "stopping"},
    ]


@pytest.mark.parametrize(
    ("environ", "address", "watchdog"),
    [
        ({}, None, None),
        ({"NOTIFY_SOCKET": ""}, None, None),
        ({"NOTIFY_SOCKET": "vsock:2:1"}, None, None),
        ({"NOTIFY_SOCKET": "/n"}, "/n", None),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "nonsense"}, "/n", None),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "0"}, "/n", None),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, "/n", None),
        (
            {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())},
            "/n",
            2.0,
        ),
    ],
)
def test_whom_the_environment_names(
    environ: dict[str, str], address: str | None, watchdog: float | None
) -> None:
    made = Notifier.of(environ)
    assert (made.address, made.watchdog) == (address, watchdog)


def test_nobody_listens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A manager that is gone is said once, and harms nobody."""
    notifier = Notifier(str(tmp_path / "gone"))
    with caplog.at_level(logging.WARNING):
        notifier.ready()
        notifier.alive()
    assert len(caplog.records) == 1
    with contextlib.closing(Manager(str(tmp_path / "gone"))):
        notifier.alive()
    with caplog.at_level(logging.WARNING):
        notifier.alive()
    assert len(caplog.records) == 2
    Notifier().ready()
