"""What every test has: the same hypothesis settings, and a loud word on what did not run.

``QIS_NO_SKIP=1`` makes a run fail in which any test was skipped.
"""

from __future__ import annotations

import os
from collections import Counter

import hypothesis
import pytest

NO_SKIP = os.environ.get("QIS_NO_SKIP", "") not in ("", "0")

hypothesis.settings.register_profile(
    "here",
    deadline=None,  # behaviour, not timing
    derandomize="CI" in os.environ,  # there, the same examples every time
)
hypothesis.settings.load_profile("here")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.getreports("skipped")
    if not skipped:
        return
    terminalreporter.section("NOT TESTED", red=NO_SKIP, yellow=not NO_SKIP, bold=True)
    for reason, times in Counter(_reason(report) for report in skipped).items():
        terminalreporter.line(f"{times} skipped: {reason}")
    if NO_SKIP:
        terminalreporter.line("QIS_NO_SKIP is set: a run with skipped tests fails.", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter is not None and reporter.getreports("skipped")
    if NO_SKIP and skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return str(report.longrepr)
