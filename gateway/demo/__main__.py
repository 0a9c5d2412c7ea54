"""``python -m gateway.demo``: runs the demonstration and says what came of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from gateway.demo import journal
from gateway.demo.measure import Figures, measure
from gateway.demo.picture import Sample, draw
from gateway.demo.processes import BOTH, ENGINE, LOSS, RADIO_RATE, RADIOS, Field
from gateway.demo.scenario import FULL, SHORT, STATIONS, Scenario, readings
from gateway.routing import open_engine
from qis_edge.control import request
from qis_edge.core.errors import QisError, RoutingError

#: Starting everything and joining takes so many times as long as making the keys did.
LEAD = 1.5
#: The longest that joining may be permitted, in seconds of the simulated clock.
WEEK = 7 * 86400
#: Real seconds for the last packets to arrive.
DRAIN = 45.0
#: Real seconds between two looks at the nodes, and between lines where nobody watches live.
LOOK, TELL = 1.0, 5.0


class Demo:
    """One run, told on the screen."""

    def __init__(self, scenario: Scenario, folder: Path, engine: str = ENGINE) -> None:
        self.scenario = scenario
        self.field = Field(folder, scenario, engine)
        self._anchor = 0.0
        self._looked = self._said = 0.0
        self._samples: list[Sample] = []
        self._bytes_in = 0
        self._live = sys.stdout.isatty()

    def run(self) -> Figures:
        """From nothing to the figures. :raises QisError: something did not work at all."""
        try:
            self._set_up()
            self._play()
            self._settle()
        finally:
            for process in self.field.processes():
                process.end()
        return asyncio.run(measure(self.field, self._bytes_in))

    # - the acts

    def _set_up(self) -> None:
        field = self.field
        self._say("making keys: a fleet, a gateway, three nodes")
        field.prepare(anchor=time.time())
        began = time.monotonic()
        field.make_keys()
        # Hours go by before the epoch, too: readings begin four days earlier.
        self._anchor = time.time() + LEAD * (time.monotonic() - began)
        field.prepare(self._anchor)
        self._say("starting radios, a broker, the gateway and the nodes, as processes")
        field.radios.start()
        field.wait("the radios", lambda: all(field.radio(name).exists() for name in RADIOS))
        field.broker.start()
        field.gateway.start()
        for node in field.nodes.values():
            node.start()
        field.wait("the gateway's start", lambda: field.status("gateway") is not None)
        field.permit(WEEK)
        for station in STATIONS:
            field.wait(f"{station}'s wish to join", lambda one=station: self._approve(one))
        field.wait("joining", lambda: all(self._enrolled(one) for one in STATIONS))
        self._say("the operator approved EWR, JFK and LGA: they are of the fleet")

    def _play(self) -> None:
        """Let everything happen at its hour."""
        victim, dead = self.scenario.killed
        down = self.scenario.broker_down
        events: list[tuple[int, str, Callable[[], None]]] = [
            (down.begin, f"the broker is killed (-9): {BOTH} goes on by radio", self._kill_broker),
            (down.end, "the broker comes back, remembering nothing", self.field.broker.start),
            (
                dead.begin,
                f"{victim}'s node is killed (-9)",
                lambda: self.field.nodes[victim].end(signal.SIGKILL),
            ),
            (dead.end, f"{victim}'s node starts again", self.field.nodes[victim].start),
            (self.scenario.learning, "from here on, things go wrong", lambda: None),
        ]
        for failure in self.scenario.failures:
            what = f"{failure.station}'s thermometer"
            events.append((failure.span.begin, f"{what} fails", lambda: None))
            events.append((failure.span.end, f"{what} is repaired", lambda: None))
        for hour, text, action in sorted(events, key=lambda event: event[0]):
            self._watch_until(hour)
            self._say(text, hour)
            action()
        self._watch_until(self.scenario.hours)

    def _settle(self) -> None:
        """No more readings; what is under way arrives."""
        self._say("the readings end; what is under way arrives", self.scenario.hours)
        for station in STATIONS:
            request(self.field.state(station), "drain")
        self.field.wait("the last receipts", self._nothing_waits, DRAIN)
        self.field.wait("the routing layer", self._nothing_behind, DRAIN)
        status = self.field.status("gateway")
        self._bytes_in = sum(link["bytes_in"] for link in status["links"]) if status else 0

    # - what the acts are made of

    def _kill_broker(self) -> None:
        self.field.broker.end(signal.SIGKILL)

    def _approve(self, station: str) -> bool:
        try:
            self.field.approve(station)
        except QisError:
            self.field.permit(WEEK)  # a week of the simulated clock is over soon
            return False
        return True

    def _enrolled(self, station: str) -> bool:
        status = self.field.status(station)
        return status is not None and bool(status["enrolled"])

    def _nothing_waits(self) -> bool:
        for station in STATIONS:
            status = self.field.status(station)
            if status is None:
                return False
            outbox = status["outbox"]
            if outbox["waiting"] or outbox["unreceipted"]:
                return False
        return True

    def _nothing_behind(self) -> bool:
        status = self.field.status("gateway")
        return status is not None and all(not e["behind"] for e in status["engines"])

    # - telling

    def _hour(self) -> float:
        return (time.time() - self._anchor) / self.scenario.seconds_per_hour

    def _watch_until(self, hour: int) -> None:
        while (left := hour - self._hour()) > 0:
            self.field.check()
            now = time.monotonic()
            if now - self._looked >= LOOK:
                self._looked = now
                line = self._look()
                if self._live or now - self._said >= TELL:
                    self._said = now
                    self._tell(line)
            time.sleep(min(0.2, left * self.scenario.seconds_per_hour))

    def _look(self) -> str:
        """Ask all how they are; gives a line of it."""
        parts, waiting = [], {}
        hour = self._hour()
        for station in STATIONS:
            status = self.field.status(station)
            if status is None:
                parts.append(f"{station} down")
                continue
            outbox = status["outbox"]
            backlog = outbox["made"] - outbox["packed"] + outbox["unreceipted"]
            waiting[station] = backlog
            parts.append(f"{station} made {outbox['made']:4}, to go {backlog:3}")
        status = self.field.status("gateway")
        routed = sum(e["packets"] or 0 for e in status["engines"]) if status else 0
        self._samples.append(Sample(hour, waiting))
        return f"{self._date(hour)}  {' | '.join(parts)} | routed {routed} packets"

    def _tell(self, line: str) -> None:
        if self._live:
            print(f"\r\x1b[K{line}", end="", flush=True)
        else:
            print(line, flush=True)

    def picture(self) -> str:
        """What happened, drawn: SVG."""
        estimates = {
            station: {
                line["time"]: line["values"]["temperature"]
                for line in journal.read(self.field.journal(station))
                if "temperature" in line["values"]
            }
            for station in STATIONS
        }
        return draw(self.scenario, readings("temperature"), estimates, self._samples)

    def _say(self, text: str, hour: int | None = None) -> None:
        start = "\r\x1b[K" if self._live else ""
        date = self._date(hour) if hour is not None else " " * 16
        print(f"{start}{date}  ── {text}", flush=True)

    def _date(self, hour: float) -> str:
        moment = datetime.fromtimestamp(self.scenario.epoch + hour * 3600, UTC)
        return moment.strftime("%Y-%m-%d %H:%M")


def table(figures: Figures, scenario: Scenario) -> str:
    """What came of it, for people."""
    ratio = figures.estimate_mae / figures.hold_last_mae if figures.hold_last_mae else 0.0
    rows = [
        ("outcomes made by the nodes", figures.made),
        ("  packed and signed", figures.packed),
        ("  delivered (a gateway's receipt)", figures.delivered),
        ("  deposited in the routing layer", figures.deposited),
        ("duplicates", figures.duplicates),
        ("lost", figures.lost),
        None,
        ("frames on the air", figures.frames),
        ("airtime per outcome, all told", f"{figures.airtime_per_outcome:.2f} s"),
        ("  of JSON, unsigned and never lost", f"{figures.json_airtime_per_outcome:.2f} s"),
        ("bytes per outcome on air and wire, all told", f"{figures.bytes_per_outcome:.0f}"),
        ("  of these in packets", f"{figures.packet_bytes_per_outcome:.0f}"),
        ("  JSON of the same, unsigned", f"{figures.json_bytes_per_outcome:.0f}"),
        None,
        (
            "hours without a thermometer",
            f"{figures.failed_hours} ({figures.estimated_hours} estimated)",
        ),
        ("  error of the peers' estimate", f"{figures.estimate_mae:.2f} °C"),
        ("  error of holding the last value", f"{figures.hold_last_mae:.2f} °C"),
        ("  ratio", f"{ratio:.2f}"),
    ]
    down, dead = len(scenario.broker_down), len(scenario.killed[1])
    what = f"{scenario.hours // 24} days at three airports, September 2013"
    how = f"over emulated LoRa radios: LONG_FAST, {RADIO_RATE} times as fast, {LOSS:.0%} lost"
    wrong = f"the broker away for {down} hours, a node for {dead}"
    lines = [f"{what}; {wrong}", f"{how}; {BOTH} has a broker too", ""]
    lines += ["" if row is None else f"  {row[0]:42}{row[1]!s:>14}" for row in rows]
    return "\n".join(lines)


def verdict(figures: Figures) -> list[str]:
    """What was promised and not kept."""
    wrong = []
    if figures.lost:
        wrong.append(f"{figures.lost} outcomes were lost")
    if figures.duplicates:
        wrong.append(f"{figures.duplicates} outcomes were deposited twice")
    if not figures.made == figures.packed == figures.delivered == figures.deposited:
        wrong.append("not every outcome that was made was packed, delivered and deposited")
    if not figures.estimate_mae <= figures.hold_last_mae / 2:
        wrong.append("the estimates are no better than half the error of the last value")
    if not 0 < figures.airtime_per_outcome < figures.json_airtime_per_outcome:
        wrong.append("an outcome costs no less airtime than as JSON")
    if figures.estimated_hours < 0.9 * figures.failed_hours:
        wrong.append("more than a tenth of the hours without a thermometer has no estimate")
    return wrong


def checked(engine: str) -> str:
    """The engine's URL without secrets.

    :raises QisError: there is no such engine, or what it holds could not be counted.
    """
    shown = open_engine(engine).url
    if shown.startswith("memory:"):
        raise RoutingError(
            f"{shown} is gone with the gateway's process, so nobody can count what it held",
            hint=f"take another engine, such as {ENGINE}",
        )
    if shown.startswith("mqtt") and "keep=" not in shown:
        raise RoutingError(
            f"{shown}: the broker forgets what has expired, and the readings are of 2013",
            hint="add the option keep=yes to the URL",
        )
    return shown


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns an exit status."""
    parser = argparse.ArgumentParser(prog="python -m gateway.demo", description=__doc__)
    parser.add_argument("--short", action="store_true", help="about half as long")
    parser.add_argument(
        "--build", type=Path, default=Path("build"), help="folder for demo.json and demo/"
    )
    parser.add_argument(
        "--engine",
        default=ENGINE,
        metavar="URL",
        help="the gateway's routing engine (%(default)s); what it has of others is left alone",
    )
    given = parser.parse_args(arguments)
    scenario = SHORT if given.short else FULL
    folder = given.build / "demo"
    try:
        engine = checked(given.engine)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        demo = Demo(scenario, folder.resolve(), given.engine)
        figures = demo.run()
    except QisError as error:
        print(f"\nerror: {error}\nfix: {error.hint or f'the logs are in {folder}'}")
        return 1
    (given.build / "demo.json").write_text(
        json.dumps({"engine": engine, **figures.as_json()}, indent=2) + "\n"
    )
    (given.build / "demo.svg").write_text(demo.picture())
    print(f"\n{table(figures, scenario)}\n\n  routed by {engine}")
    print(f"  → {given.build}/demo.json and demo.svg, a picture of it; logs in {folder}")
    for line in (wrong := verdict(figures)):
        print(f"  ✗ {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
