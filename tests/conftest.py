"""What every test has: the same hypothesis settings, and a loud word on what did not run.

A test that is skipped for want of something that can be installed gives a reason that begins with
``needs:``. ``QIS_NO_SKIP=1`` makes a run fail in which there was such a test.
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
    reasons = _reasons(terminalreporter)
    if not reasons:
        return
    terminalreporter.section("NOT TESTED", yellow=True, bold=True)
    for reason, times in reasons.items():
        terminalreporter.line(f"{times} skipped: {reason}")
    if NO_SKIP and _needs(reasons):
        terminalreporter.line("QIS_NO_SKIP is set: a run without what it needs fails.", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not NO_SKIP or reporter is None or session.exitstatus != pytest.ExitCode.OK:
        return
    if _needs(_reasons(reporter)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _needs(reasons: Counter[str]) -> bool:
    return any(reason.startswith("needs:") for reason in reasons)


def _reasons(reporter: pytest.TerminalReporter) -> Counter[str]:
    return Counter(_reason(report) for report in reporter.getreports("skipped"))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return str(report.longrepr)
