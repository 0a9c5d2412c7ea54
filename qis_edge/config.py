"""A node's configuration: one TOML file, and a ``.d`` folder beside it.

Declared with :mod:`qis_edge.schema`; ``docs/configuration.md`` is made from these
declarations. :func:`load_node` gives a :class:`NodeConfig`, or one
:class:`~qis_edge.core.errors.ConfigError` with everything that is wrong.
"""

# ruff: noqa: RUF009 - the calls in these dataclasses make fields
from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qis_edge.clock import Clock, SimulatedClock, SystemClock
from qis_edge.core.distil import Distiller
from qis_edge.core.domain import Domain
from qis_edge.core.errors import ConfigProblem, SensorError, UsageError
from qis_edge.core.filling import Filling
from qis_edge.core.outcome import Outcome, Value
from qis_edge.core.priority import PRIORITIES, Priority, Rule, priority_of
from qis_edge.core.template import (
    MAX_NUMBER,
    NUMERIC_STATISTICS,
    WORD_STATISTICS,
    Result,
    Statistic,
)
from qis_edge.drivers import driver_names, load_callable, load_driver
from qis_edge.link_config import LinksConfig
from qis_edge.schema import (
    NAME,
    WORD,
    Choice,
    Duration,
    File,
    Flag,
    Hook,
    MapOf,
    Moment,
    Number,
    Reported,
    Size,
    Table,
    Tables,
    Text,
    Variables,
    Where,
    did_you_mean,
    leftover,
    load,
    quoted,
    setting,
    settings_of,
    whole,
)
from qis_edge.schema.toml import Document
from qis_edge.situate import FieldSource, SituationConfig, VectorSource

#: What becomes of a window's readings of one result.
STATISTICS = tuple(statistic.value for statistic in Statistic)
LEVELS = ("debug", "info", "warning", "error")


def is_root() -> bool:
    """Whether this process may use the machine's own folders."""
    return os.geteuid() == 0


def default_path(role: str) -> Path:
    """Where ``qis-edge`` and ``qis-gateway`` look for their configuration.

    :param role: ``edge`` or ``gateway``. ``QIS_EDGE_CONFIG`` and ``QIS_GATEWAY_CONFIG``
        have precedence; then ``/etc`` for root and ``~/.config`` for others.
    :raises UsageError: the user has no home folder.
    """
    if given := os.environ.get(f"QIS_{role.upper()}_CONFIG"):
        return Path(given).expanduser()
    try:
        base = Path("/etc") if is_root() else Path.home() / ".config"
    except RuntimeError as error:  # a user without a home
        raise UsageError("no home folder to look in", field="--config", hint="name it") from error
    return base / f"qis-{role}" / "config.toml"


def variables(role: str) -> Variables:
    """The environment variables that are settings of ``edge`` or ``gateway``."""
    prefix = f"QIS_{role.upper()}_"
    return Variables(prefix, reserved=(f"{prefix}CONFIG",))


def overlay(cls: type, role: str) -> Callable[[Document], list[ConfigProblem]]:
    """Lays the environment over what a role's files say."""
    return lambda document: variables(role).apply(cls, document, os.environ)


def default_state(role: str) -> str:
    """Where state is kept unless the configuration says otherwise: where systemd says
    (``StateDirectory=``), or else in the place of the user's kind."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return given.partition(":")[0]
    return f"/var/lib/qis-{role}" if is_root() else f"~/.local/state/qis-{role}"


def state_setting(role: str) -> Any:
    """The declaration of a state folder; both roles have one."""
    return setting(
        File(what="a folder"),
        default_state(role),
        "The folder of keys, queues and the control socket. Made by ``init``; only its owner "
        "may read it.",
        example="state",
        shown=f"`/var/lib/qis-{role}` for root and for the service, `~/.local/state/qis-{role}` "
        "for others",
    )


def key_setting(name: str) -> Any:
    """The declaration of a key file; both roles have one."""
    return setting(
        File(credential=True),
        None,
        f"The file of the key that it signs with; ``{name}`` in the state folder, unless given.",
        example=f"credential:{name}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """This node."""

    name: str = setting(
        NAME, doc="What people call this node. It stands in its enrolment.", example="field-1"
    )
    state: Path = state_setting("edge")
    key: Path | None = key_setting("node.key")

    @property
    def key_file(self) -> Path:
        """Where the node's key is."""
        return self.key or self.state / "node.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulate:
    """A clock that several processes share and that can run faster than time.

    For demos and rehearsals; everything else uses the machine's clock.
    """

    epoch: float = setting(
        Moment(), doc="The date that the clock shows at its anchor.", example="2013-06-01T00:00:00Z"
    )
    anchor: float = setting(
        Moment(),
        doc="The real date at which it shows the epoch; unix seconds will do.",
        example="2026-11-21T12:00:00Z",
    )
    rate: float = setting(
        Number(0.001, 1_000_000), 1, "How many of its seconds pass in a real one.", example=3600
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockConfig:
    """The time that everything here goes by."""

    simulate: Simulate | None = setting(Table(Simulate), None, "A simulated clock.")

    def make(self) -> Clock:
        """The clock."""
        if (made := self.simulate) is not None:
            return SimulatedClock(made.epoch, made.anchor, made.rate)
        return SystemClock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """What a channel of a sensor becomes."""

    result: str = setting(WORD, doc="The result that it feeds.", example="temperature")
    statistic: str | None = setting(
        Choice(*STATISTICS),
        None,
        "How the readings of a window become one value (``mode`` is for words). What the "
        "template says of the result, unless given.",
        example="maximum",
    )

    @staticmethod
    def normalise(value: object) -> object:
        """A bare word is the result, with the default statistic."""
        return {"result": value} if isinstance(value, str) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorConfig:
    """A sensor. Write one such table for each.

    Whatever else the table says are settings of the driver (``docs/configuration.md`` lists
    those of the drivers that come along).
    """

    driver: str = setting(
        Text(r"[A-Za-z0-9_.:-]+", what="the name of a driver", most=200),
        doc="The driver: the name of an installed one, or ``module:factory`` for your own.",
        example="system",
    )
    name: str | None = setting(
        NAME, None, "What people call this sensor; the driver's name unless given.", example="roof"
    )
    interval: float = setting(
        Duration("10ms", "31d"), "1min", "How often it is read.", example="1min"
    )
    channels: Mapping[str, Channel] = setting(
        MapOf(Table(Channel, what="a result's name or a table"), least=1),
        doc="Which channel of the sensor feeds which result, and how: "
        '``probe = "temperature"`` is enough where the statistic is the template\'s, '
        '``probe = { result = "temperature", statistic = "maximum" }`` takes another.',
        example={"cpu_temperature": "temperature"},
    )
    settings: Mapping[str, Any] = leftover()

    def results(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """By result what a reading has by channel; a channel that it lacks is missing."""
        return {channel.result: values.get(name) for name, channel in self.channels.items()}

    @staticmethod
    def parts(made: dict[str, Any], where: Where) -> None:
        """The driver's own judgement of its settings and channels."""
        name: str | None = made["driver"]
        if not where.full or name is None:
            return
        try:
            factory = load_driver(name)
        except SensorError as error:
            names = driver_names()
            suggestion = None if name in names or ":" in name else did_you_mean(name, names)
            (where / "driver").wrong(str(error), error.hint or suggestion)
            return
        settings = made["settings"]
        declared = getattr(factory, "settings", None)
        if isinstance(declared, type) and dataclasses.is_dataclass(declared):
            try:
                parsed = Table(declared).parse(settings, where)
            except Reported:
                return
            settings = made["settings"] = _with_paths(settings, parsed)
        try:
            known = list(factory(settings).channels)
        except SensorError as error:
            where.wrong(str(error), error.hint)
            return
        except Exception as error:  # noqa: BLE001 - somebody else's driver may raise anything
            where.wrong(f"the driver {name} failed: {error!r}")
            return
        for channel in made["channels"] or ():
            if channel not in known:
                at = where / "channels" / channel
                at.wrong("the driver gives no such channel", did_you_mean(channel, known))


def _with_paths(settings: Mapping[str, Any], parsed: object) -> Mapping[str, Any]:
    """A driver's settings with the paths among them made absolute."""
    absolute = {
        key: str(path)
        for attribute, key, _ in settings_of(type(parsed))
        if isinstance(path := getattr(parsed, attribute), Path) and key in settings
    }
    return MappingProxyType({**settings, **absolute})


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilConfig:
    """How the readings of a window become one outcome."""

    window: int = setting(
        Duration("1s", "31d", whole=True), "1h", "Length of a window. Windows are aligned to UTC."
    )
    expected: int | None = setting(
        whole(1, 2**32 - 1),
        None,
        "Readings that a full window has; with fewer, an outcome is ``partial`` and its "
        "confidence is lower. The window divided by the sensors' interval, unless given.",
        example=60,
    )
    function: str | None = setting(
        Hook(),
        None,
        "Your own way from readings to an outcome, in the place of ours.",
        example="my_station:distil",
    )
    priority: str = setting(
        Choice(*PRIORITIES),
        Priority.NORMAL.label,
        "The priority of outcomes for which no ``[[priority]]`` holds. Higher ones are sent "
        "first, and dropped last when the disk budget is full; ``urgent`` ones never wait.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorityConfig:
    """Outcomes of another priority than ``distil.priority``. Write one such table for each rule.

    A rule holds for an outcome whose result is above a number, or below one, or is a word. The
    first that holds decides. A result that is missing is none of these.
    """

    result: str = setting(WORD, doc="The result that is looked at.", example="temperature")
    above: float | None = setting(
        Number(-MAX_NUMBER, MAX_NUMBER),
        None,
        "The rule holds for numbers greater than this, in the result's unit.",
        example=35.0,
    )
    below: float | None = setting(
        Number(-MAX_NUMBER, MAX_NUMBER),
        None,
        "The rule holds for numbers less than this, in the result's unit.",
        example=-20.0,
    )
    equals: str | None = setting(WORD, None, "The rule holds for this word.", example="hail")
    priority: str = setting(
        Choice(*PRIORITIES), Priority.URGENT.label, "What outcomes get for which it holds."
    )

    def check(self, where: Where) -> None:
        """What does not go together."""
        if (self.above, self.below, self.equals) == (None, None, None):
            where.wrong("must have above, below or equals")
        elif self.above is not None and self.below is not None and self.above < self.below:
            (where / "above").wrong(
                "is less than below: the rule would hold for every number",
                "it holds above the one and below the other, not between them",
            )

    @property
    def rule(self) -> Rule:
        """What the core judges by."""
        return Rule(
            self.result, Priority[self.priority.upper()], self.above, self.below, self.equals
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingConfig:
    """How long outcomes wait for others, where a packet costs airtime.

    What outcomes of one situation share is sent once a packet: one outcome takes 98 bytes of
    a radio's frame, 24 of them take 191. So over links whose frames are small (Meshtastic)
    outcomes wait until a packet is full, or until the oldest has waited as long as its
    priority may, counted from the end of its window. Nothing waits over other links, nothing
    urgent waits, and where windows are longer than the wait nothing waits either, for no other
    could come in time. Whoever hears us hears of an outcome so much later: let
    ``synthesis.wait`` be longer than that where peers' outcomes are to be in estimates.
    """

    low: float = setting(Duration("0s", "31d"), "12h", "The longest wait of ``low`` outcomes.")
    normal: float = setting(
        Duration("0s", "31d"), "30min", "The longest wait of ``normal`` outcomes."
    )
    high: float = setting(Duration("0s", "31d"), "0s", "The longest wait of ``high`` outcomes.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxConfig:
    """The queue on disk. Nothing leaves it before a gateway has said that it holds it."""

    budget: int = setting(
        Size("1 MB", "1 TB"),
        "64 MB",
        "The most that the queue takes on disk. When it is full, what gateways hold is dropped "
        "first, then what has expired, then the least important and oldest; all of it counted.",
    )
    ttl: int = setting(
        Duration("1h", "3650d", whole=True),
        "7d",
        "For how long an outcome is of interest to others. Age never keeps it from a gateway.",
    )

    def check(self, where: Where) -> None:
        """The wire counts ttl in hours."""
        if self.ttl % 3600:
            (where / "ttl").wrong("must be in whole hours")

    @property
    def ttl_hours(self) -> int:
        """The ttl as packets carry it."""
        return self.ttl // 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class CustodyConfig:
    """When a packet counts as delivered, and how many are under way at once."""

    copies: int = setting(
        whole(1, 8), 1, "Gateways that must hold a packet before it counts as delivered."
    )
    window: int = setting(
        whole(1, 1024), 32, "Packets that may be under way without a receipt, for each gateway."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersConfig:
    """What is asked for from others."""

    bits: int = setting(
        whole(64, 256),
        256,
        "How many leading bits of our address others must share. 256 is our situation exactly; "
        "fewer take in situations that differ in the template's last fields.",
    )
    keep: int = setting(
        Size("1 MB", "1 TB"),
        "16 MB",
        "The most that peers' packets take on disk.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisConfig:
    """A better estimate from what peers saw."""

    enabled: bool = setting(Flag(), True, "Whether to make estimates.")
    wait: int = setting(
        Duration("0s", "31d", whole=True),
        "5min",
        "How long after the end of a window peers' packets are waited for.",
    )
    hook: str | None = setting(
        Hook(), None, "What gets each estimate: a Python callable.", example="my_station:act"
    )
    emit: bool = setting(
        Flag(), False, "Whether each estimate becomes an outcome of its own, and is sent."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What is logged, to standard error."""

    level: str = setting(Choice(*LEVELS), "info", "The least that is logged.")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Configuration of a QIS Edge node.

    Paths are relative to this file. Files in a folder config.toml.d beside it are read
    after it, in the order of their names. ``qis-edge check`` says what is wrong with it.
    """

    node: Node = setting(Table(Node), doc="This node.")
    situation: SituationConfig = setting(Table(SituationConfig), doc="The situation.")
    sensors: tuple[SensorConfig, ...] = setting(
        Tables(SensorConfig, least=1), doc="The sensors.", name="sensor"
    )
    distil: DistilConfig = setting(Table(DistilConfig), {}, "Distilling.")
    priorities: tuple[PriorityConfig, ...] = setting(
        Tables(PriorityConfig),
        [],
        "What is more important.",
        name="priority",
        example=[{"result": "temperature", "above": 35.0}],
    )
    links: LinksConfig = setting(Table(LinksConfig), {}, "The links.")
    packing: PackingConfig = setting(Table(PackingConfig), {}, "Packing.")
    outbox: OutboxConfig = setting(Table(OutboxConfig), {}, "The outbox.")
    custody: CustodyConfig = setting(Table(CustodyConfig), {}, "Custody.")
    peers: PeersConfig = setting(Table(PeersConfig), {}, "Peers.")
    synthesis: SynthesisConfig = setting(Table(SynthesisConfig), {}, "Synthesis.")
    clock: ClockConfig = setting(Table(ClockConfig), {}, "The clock.")
    log: LogConfig = setting(Table(LogConfig), {}, "The log.")
    #: The file that it was read from.
    path: Path = dataclasses.field(default=Path("config.toml"), compare=False)

    @property
    def expected(self) -> int:
        """Readings that a full window has."""
        if self.distil.expected is not None:
            return self.distil.expected
        shortest = min(sensor.interval for sensor in self.sensors)
        return max(1, round(self.distil.window / shortest))

    @property
    def results(self) -> dict[str, str | None]:
        """Each result with its statistic, where one is given, in the order of the file."""
        return {
            channel.result: channel.statistic
            for sensor in self.sensors
            for channel in sensor.channels.values()
        }

    def make_distiller(self, domain: Domain, *, expected: int | None = None) -> Distiller:
        """What makes outcomes of the sensors' readings.

        :param expected: readings of a full window, where others than :attr:`expected`.
        :raises UsageError: the function cannot be imported.
        """
        function = self.distil.function
        return Distiller(
            domain,
            window=self.distil.window,
            expected=self.expected if expected is None else expected,
            results=self.results,
            function=None if function is None else load_callable(function),
        )

    def make_filling(self) -> Filling:
        """How long outcomes wait for others where a packet costs airtime."""
        longest = (self.packing.low, self.packing.normal, self.packing.high)
        return Filling(longest, window=self.distil.window)

    def priority_of(self, outcome: Outcome) -> Priority:
        """What an outcome gets."""
        usual = Priority[self.distil.priority.upper()]
        return priority_of(outcome, (one.rule for one in self.priorities), usual)

    @staticmethod
    def parts(made: dict[str, Any], where: Where) -> None:
        """What does not go together."""
        sensors: list[SensorConfig | None] = list(made["sensors"] or [None])
        distil: DistilConfig | None = made["distil"]
        situation: SituationConfig | None = made["situation"]
        results: dict[str, str | None] = {}
        for index, sensor in enumerate(sensors):
            if sensor is None:
                continue
            at = where / "sensor" / index
            if distil is not None and sensor.interval > distil.window:
                (at / "interval").wrong("is longer than distil.window")
            for name, channel in sensor.channels.items():
                here = at / "channels" / name
                if results.setdefault(channel.result, channel.statistic) != channel.statistic:
                    here.wrong(f"{channel.result} has another statistic here than above")
                if situation is not None and situation.template is not None:
                    _check_result(situation.template, channel, here)
        if situation is not None and None not in sensors:
            here = where / "situation"
            _check_sources(situation.fields, list(results), here / "fields")
            _check_sources(situation.vector, list(results), here / "vector")
        for index, rule in enumerate(made["priorities"] or ()):
            here = where / "priority" / index
            if rule is None:
                continue
            template = None if situation is None else situation.template
            known = template is None or _check_rule(template, rule, here)
            if known and None not in sensors:
                _check_fed(rule.result, list(results), here / "result")


def _result_of(domain: Domain, name: str, where: Where) -> Result | None:
    """The template's result, or ``None`` and a report."""
    result = next((one for one in domain.results if one.name == name), None)
    if result is None:
        names = [one.name for one in domain.results]
        where.wrong(f"{domain.name} has no result {quoted(name)}", did_you_mean(name, names))
    return result


def _check_rule(domain: Domain, rule: PriorityConfig, where: Where) -> bool:
    """Whether the template has its result; what is wrong is reported."""
    result = _result_of(domain, rule.result, where / "result")
    if result is None:
        return False
    for key, bound in (("above", rule.above), ("below", rule.below)):
        if bound is None:
            continue
        if result.words:
            (where / key).wrong(f"{result.name} is a word", "write equals")
        elif (bound >= result.high) if key == "above" else (bound <= result.low):
            (where / key).wrong(
                "never holds: the template has "
                f"{result.name} from {result.low:g} to {result.high:g} {result.unit}"
            )
    if rule.equals is not None and rule.equals not in result.words:
        if result.words:
            suggestion = did_you_mean(rule.equals, result.words)
            (where / "equals").wrong(f"{result.name} is never {quoted(rule.equals)}", suggestion)
        else:
            (where / "equals").wrong(f"{result.name} is a number", "write above or below")
    return True


def _check_result(domain: Domain, channel: Channel, where: Where) -> None:
    result = _result_of(domain, channel.result, where)
    if result is None:
        return
    suitable = WORD_STATISTICS if result.words else NUMERIC_STATISTICS
    if channel.statistic is not None and channel.statistic not in suitable:
        kind = "words" if result.words else "numbers"
        where.wrong(
            f"{channel.statistic} is no statistic of {kind}", f"one of {', '.join(suitable)}"
        )


def _check_sources(
    sources: Mapping[str, FieldSource] | Mapping[str, VectorSource],
    results: list[str],
    where: Where,
) -> None:
    for name, source in sources.items():
        if source.result is not None:
            _check_fed(source.result, results, where / name)


def _check_fed(result: str, results: list[str], where: Where) -> None:
    if result not in results:
        where.wrong(f"no sensor feeds a result {quoted(result)}", did_you_mean(result, results))


def load_node(path: Path | None = None, *, full: bool = True) -> NodeConfig:
    """Read a node's configuration.

    :param path: the default place, if ``None`` (:func:`default_path`).
    :param full: load drivers and the domain template too, and judge what is said to them.
    :raises ConfigError: with all that is wrong.
    """
    path = path if path is not None else default_path("edge")
    made, document = load(
        NodeConfig,
        path,
        full=full,
        hint="qis-edge init --fleet FILE makes one",
        overlay=overlay(NodeConfig, "edge"),
    )
    return dataclasses.replace(made, path=document.path.absolute())
