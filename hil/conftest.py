"""Options, the bench, and the report at the end. ``docs/hil.md`` is for who runs it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from hil import plan
from hil.bench import Ask, Bench, EmulatedBench, RealBench
from hil.emulation import Air
from hil.line import Line
from hil.measure import Meter
from hil.page import to_html
from hil.report import Bench as BenchFacts
from hil.report import Result, Run, figures, to_json, to_text, where
from qis_edge.core.airtime import PRESETS, REGIONS
from qis_edge.links.meshtastic_wire import find_radios

BESIDE = Path(__file__).parent
NO_SKIP = os.environ.get("QIS_NO_SKIP", "") not in ("", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hil", "hardware in the loop")
    group.addoption("--node-radio", metavar="PORT", help="the node's radio: a port, tcp:HOST")
    group.addoption("--gateway-radio", metavar="PORT", help="the gateway's radio")
    group.addoption("--second-gateway-radio", metavar="PORT", help="a third radio, if there is one")
    group.addoption("--node-serial", metavar="PORT", help="the node's end of a serial line")
    group.addoption("--gateway-serial", metavar="PORT", help="the gateway's end of it")
    group.addoption("--emulated", action="store_true", help="use no hardware, whatever is there")
    group.addoption("--interactive", action="store_true", help="somebody is there to unplug things")
    group.addoption("--exhaust", action="store_true", help="an hour's airtime may be used up")
    group.addoption(
        "--preset", default="LONG_FAST", choices=sorted(PRESETS), help="of emulated radios"
    )
    group.addoption(
        "--region", default="EU_868", choices=sorted(REGIONS), help="of emulated radios"
    )
    group.addoption("--rate", type=float, default=40.0, help="how fast emulated time runs (40)")
    group.addoption("--loss", type=float, default=0.0, help="frames that emulated air loses, 0..1")
    group.addoption("--report", type=Path, default=Path("build/hil"), metavar="DIR")


class Book:
    """What is kept over a whole run."""

    def __init__(self, config: pytest.Config) -> None:
        get = config.getoption
        self.radios = plan.radios(
            [get("node_radio"), get("gateway_radio"), get("second_gateway_radio")],
            emulated=get("emulated"),
            ci=bool(os.environ.get("CI")),
            find=find_radios,
        )
        self.line = plan.line([get("node_serial"), get("gateway_serial")], emulated=get("emulated"))
        self.rate = float(get("rate")) if self.radios.emulated else 1.0
        self.run = Run(began=time.time(), versions=versions())
        self.meter = Meter(self.run, self.rate)
        self.folder = Path(get("report"))
        self.text = ""
        self._began = time.monotonic()

    def used(self, medium: str) -> None:
        """A test used the radios, or the line."""
        which = self.radios if medium == "radio" else self.line
        rate = self.rate if medium == "radio" else 1.0
        facts = BenchFacts(medium, which.emulated, rate)
        if facts not in self.run.benches:
            self.run.benches.append(facts)

    @pytest.hookimpl
    def pytest_report_header(self) -> list[str]:
        facts = [
            {"medium": "radio", "emulated": self.radios.emulated, "rate": self.rate},
            {"medium": "line", "emulated": self.line.emulated, "rate": 1.0},
        ]
        return [
            f"hil: {where([one])} ({which.why})"
            + "".join(f"\n       {role}: {port}" for role, port in which.ports.items())
            for one, which in zip(facts, (self.radios, self.line), strict=True)
        ]

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if Path(report.fspath).parts[:1] != (BESIDE.name,):
            return
        if report.when == "call" or report.outcome != "passed":
            self.run.results.append(
                Result(named(report.nodeid), report.outcome, report.duration, reason(report))
            )

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.run.results:
            return
        self.run.seconds = time.monotonic() - self._began
        found = figures(self.run)
        self.text = to_text(found)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "report.txt").write_text(self.text)
        (self.folder / "report.json").write_text(to_json(found))
        (self.folder / "report.html").write_text(to_html(found))
        emulated = self.radios.emulated and self.line.emulated
        if NO_SKIP and emulated and found["tests_skipped"] and not session.exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.text:
            terminalreporter.section("hardware in the loop")
            terminalreporter.write(self.text)
            terminalreporter.line(f"\nThe same as a page: {self.folder / 'report.html'}")


BOOK = pytest.StashKey[Book]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "disturbs: what is lost in it does not count as lost")
    config.addinivalue_line("markers", "exhausts: it may use up an hour's airtime")
    book = config.stash[BOOK] = Book(config)
    config.pluginmanager.register(book, "hil-book")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Radios alone first; last of all what uses up their hour."""
    order = ["test_radios.py", "test_line.py", "test_fleet.py"]

    def place(item: pytest.Item) -> tuple[bool, int]:
        name = item.path.name
        return "exhausts" in item.keywords, order.index(name) if name in order else len(order)

    ours = [item for item in items if item.path.parent == BESIDE]
    places = [index for index, item in enumerate(items) if item.path.parent == BESIDE]
    for index, item in zip(places, sorted(ours, key=place), strict=True):
        items[index] = item


def versions() -> dict[str, str]:
    """Of what takes part."""
    found = {}
    for package in ("qis-edge", "meshtastic", "pyserial"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "?"
    return {**found, "Python": platform.python_version(), platform.system(): platform.release()}


def named(nodeid: str) -> str:
    """What a test holds, in words."""
    name = nodeid.rpartition("::")[2].removeprefix("test_")
    words, _, parameters = name.partition("[")
    return words.replace("_", " ") + (f" [{parameters}" if parameters else "")


def reason(report: pytest.TestReport) -> str:
    """Why a test did not pass, in one line."""
    if report.outcome == "passed":
        return ""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).splitlines()[0]


@pytest.fixture(scope="session")
def book(pytestconfig: pytest.Config) -> Iterator[Book]:
    book = pytestconfig.stash[BOOK]
    with book.meter.watching():
        yield book


@pytest.fixture
def meter(book: Book, request: pytest.FixtureRequest) -> Iterator[Meter]:
    """Measures; in a test that ``disturbs``, what is lost does not count."""
    counting = request.node.get_closest_marker("disturbs") is None
    with book.meter.undisturbed(counting):
        yield book.meter


@pytest.fixture
async def bench(
    book: Book, meter: Meter, tmp_path: Path, pytestconfig: pytest.Config
) -> AsyncIterator[Bench]:
    """The radios."""
    book.used("radio")
    get = pytestconfig.getoption
    if book.radios.emulated:
        air = Air(
            tmp_path,
            preset=get("preset"),
            region=get("region"),
            rate=book.rate,
            loss=get("loss"),
        )
        bench: Bench = EmulatedBench(air, meter, book.rate)
    else:
        ask = person(pytestconfig) if get("interactive") else None
        bench = RealBench(book.radios.ports, meter, ask=ask, exhaust=get("exhaust"))
    try:
        yield bench
    finally:
        await bench.close()
        if isinstance(bench, EmulatedBench):
            bench.air.close()


@pytest.fixture
async def line(
    book: Book, meter: Meter, tmp_path: Path, pytestconfig: pytest.Config
) -> AsyncIterator[Line]:
    """The serial line."""
    book.used("line")
    ask = person(pytestconfig) if pytestconfig.getoption("interactive") else None
    line = Line(book.line.ports, tmp_path, meter, ask)
    try:
        yield line
    finally:
        await line.close()


def person(config: pytest.Config) -> Ask:
    """Asks whoever sits at the terminal."""
    capture: Any = config.pluginmanager.get_plugin("capturemanager")

    def ask(wish: str) -> None:
        with capture.global_and_fixture_disabled():
            input(f"\n>>> Please {wish}, then press Enter. ")

    return ask
