"""Synthesis: peers' outcomes, weighed, made into an estimate of our own.

:class:`Synthesiser` is the whole of it, without I/O and without a clock: it is told of our
own outcomes and of peers', learns from them, and gives an estimate for any window.

A *number* is estimated from voices. A voice is the newest value of one peer at or before the
window: its habitual bias against us (:class:`~qis_edge.core.calibration.Bias`) is taken
away, and our own daily course (:class:`~qis_edge.core.calibration.Course`) carries it
forward over its age. Our own newest value is a voice too, carried forward in the same way.
With the spread that was learned of a peer, the drift over its age and the resolution::

    variance = spread² + drift(age) + resolution²
    weight   = trust · confidence · samples/(samples + 1) / variance

The estimate is Huber's weighted mean of the voices: from the weighted median on, voices
further than 1.5 standard deviations away count less the further they are.

A *word* is the one with the most weight behind it, and its rate the share of the weight;
a vote fades by half in six hours.

Not heard are outcomes that are ``open``, estimates (:data:`ESTIMATE_TAG`), values outside
the template's bounds, values older than a day, and senders that lost our trust
(:mod:`qis_edge.core.trust`). Where the bias of some peers was learned, strangers count
about a tenth.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qis_edge.core.calibration import DAY, FIRST, HOUR, Bias, Course, median
from qis_edge.core.domain import Domain, Result
from qis_edge.core.outcome import MAX_SAMPLES, Kind, Outcome, Value
from qis_edge.core.trust import OTHER_WORD, VOICES, Consensus, Trust, consensus
from qis_edge.core.voices import Recent, huber_mean, most_weight

#: The tag of packets whose outcomes are estimates. Nobody weighs them as a voice.
ESTIMATE_TAG = "estimate"
#: Seconds after which a value says nothing of now.
OLDEST = DAY
#: Voices that are combined: those of most weight. More add nothing but time.
MOST_VOICES = 64
#: Peers that are remembered; the one heard longest ago makes room.
MOST_PEERS = 1024
#: Windows for which we remember what we measured, so that late packets teach too.
HISTORY = 240
#: Values that wait for their window to be complete.
MOST_WAITING = 16384
#: Common windows from which on a peer is judged and its voice judges others.
MATURE = 12
#: How much of a difference to believe from a window in which our own value is far from the
#: consensus: ours is the likelier fault, but it may be that we were moved.
DOUBTED = 0.1
#: Windows in a row that make our own sensor doubtful.
DOUBTFUL = 3
#: Standard deviations of a stranger, in those of the worst peer that we know.
STRANGER = 3.0
WORD_HALF_LIFE = 6 * HOUR


@dataclass(frozen=True, slots=True)
class PeerReport:
    """One outcome of one peer, verified.

    :param outcome: its results by name (``packet.named(domain)``).
    :param estimate: whether the packet has :data:`ESTIMATE_TAG`.
    """

    kid: bytes
    outcome: Outcome
    estimate: bool = False


@dataclass(frozen=True, slots=True)
class ResultEstimate:
    """What the voices say of one result.

    :param value: at the template's resolution, or a word.
    :param spread: standard deviation of the error to expect; 0 for words.
    :param contributors: peers behind it (our own value is not counted).
    :param weight: how many fresh, confident and trusted peers the voices are worth.
    :param rate: for words, the share of the weight; 1 for numbers.
    """

    value: float | str
    spread: float
    contributors: int
    weight: float
    rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate for the window that starts at ``time`` (unix seconds)."""

    time: int
    results: Mapping[str, ResultEstimate] = field(default_factory=dict)


def as_outcome(estimate: Estimate, results: Iterable[str] | None = None) -> Outcome:
    """The estimate as an outcome, to be packed under :data:`ESTIMATE_TAG`.

    Its confidence is the mean over the results of ``rate · weight / (weight + 1)``, its
    samples are the peers behind it. It is ``open`` without any result, ``contradicted`` where
    a word has less than half of the weight, ``partial`` where a result is missing or has
    fewer than two peers behind it, and else ``resolved``.

    :param results: those to state; ``None``: all. What was not estimated is missing.
    """
    names = list(estimate.results) if results is None else list(results)
    found = [estimate.results[name] for name in names if name in estimate.results]
    values: dict[str | int, Value] = {
        name: estimate.results[name].value if name in estimate.results else None for name in names
    }
    if not found:
        return Outcome(estimate.time, Kind.OPEN, 0.0, 0, values)
    kind = Kind.RESOLVED
    if min(one.rate for one in found) < 0.5:
        kind = Kind.CONTRADICTED
    elif len(found) < len(names) or min(one.contributors for one in found) < 2:
        kind = Kind.PARTIAL
    confidence = sum(one.rate * one.weight / (one.weight + 1) for one in found) / len(names)
    samples = min(MAX_SAMPLES, max(one.contributors for one in found))
    return Outcome(estimate.time, kind, round(confidence, 2), samples, values)


class _Voice(NamedTuple):
    value: float
    variance: float
    quality: float  # trust · confidence · samples/(samples + 1)
    freshness: float  # 1, less what drifts adds to the variance


class _Track:
    """One result of one peer: its newest values, and how it differs from us."""

    __slots__ = ("bias", "recent")

    def __init__(self, bias: Bias) -> None:
        self.bias = bias
        self.recent = Recent()


class _Window:
    """What was said of one window that is not settled yet, or how it was settled."""

    __slots__ = ("agreed", "own", "said")

    def __init__(self) -> None:
        self.own: dict[str, float | str] = {}
        #: result → kid → value; ``None`` once the window is settled.
        self.said: dict[str, dict[bytes, float | str]] | None = {}
        #: result → what was agreed: of numbers the consensus, of words the word.
        self.agreed: dict[str, Consensus | str] = {}


class Synthesiser:
    """Learns from our own outcomes and peers', and estimates. Pure: ``now`` comes with each
    call, in unix seconds.

    :param domain: whose results are meant. Results that it does not list are passed over.
    :param window: length of our windows, seconds. A peer's outcome belongs to the window in
        which it starts.
    :param me: our own kid: outcomes of ours that come back are no voices.
    :param patience: seconds after a window's end at which its voices are compared; two
        windows unless given. What comes later is compared with what was agreed then.
    :param state: what :meth:`state` gave; what of it makes no sense is as if unlearned.
    """

    def __init__(
        self,
        domain: Domain,
        *,
        window: int,
        me: bytes = b"",
        patience: float | None = None,
        state: object = None,
    ) -> None:
        self.domain = domain
        self.window = window
        self._me = me
        self._patience = 2 * window if patience is None else patience
        self._results = {result.name: result for result in domain.results}
        self._tracks: dict[str, dict[bytes, _Track]] = {name: {} for name in self._results}
        self._heard: dict[bytes, int] = {}  # kid → newest window; those heard last are last
        self._windows: dict[int, _Window] = {}
        self._waiting = 0
        self._own: dict[str, Recent] = {}
        self._courses: dict[str, Course] = {}
        self._doubts: dict[str, int] = {}  # windows in a row in which we were far off
        self.trust = Trust()
        if isinstance(state, Mapping):
            self._restore(state)

    # --- being told --------------------------------------------------------------------

    def measured(self, outcome: Outcome) -> None:
        """Our own outcome, results by name. Missing results teach nothing."""
        if outcome.kind is Kind.OPEN:
            return
        slot = self._slot(outcome.time)
        quality = _quality(outcome)
        window = self._windows.setdefault(slot, _Window())
        for name, value in self._plausible(outcome).items():
            window.own[name] = value
            self._own.setdefault(name, Recent()).hear(slot, value, quality)
            if isinstance(value, float):
                self._course(name).learn(slot, value)

    def heard(self, report: PeerReport, now: float) -> bool:
        """One verified outcome of a peer.

        :returns: whether it is a voice (not an estimate, not our own, not open, not dated in
            the future, not too old to matter).
        """
        outcome, kid = report.outcome, report.kid
        slot = self._slot(outcome.time)
        if report.estimate or kid == self._me or outcome.kind is Kind.OPEN:
            return False
        if not now - HISTORY * self.window <= slot <= now:
            return False
        values = self._plausible(outcome)
        if not values:
            return False
        self._remember(kid, slot)
        quality = _quality(outcome)
        window = self._windows.setdefault(slot, _Window())
        for name, value in values.items():
            if not self._track(name, kid).recent.hear(slot, value, quality):
                continue  # said again: it may correct a voice, but it teaches nothing new
            if window.said is None:
                self._compare(name, slot, window, {kid: value})
            elif self._waiting < MOST_WAITING:
                said = window.said.setdefault(name, {})
                self._waiting += kid not in said
                said[kid] = value
        return True

    def settle(self, now: float) -> None:
        """Compare the voices of windows that are complete by now, learn from them, and
        forget what is too old. Call it once a window."""
        complete = now - self.window - self._patience
        for slot in sorted(self._windows):
            window = self._windows[slot]
            if window.said is None or slot > complete:
                continue
            said, window.said = window.said, None
            for name, values in said.items():
                self._waiting -= len(values)
                self._agree(name, slot, window, values)
                self._compare(name, slot, window, values)
        oldest = now - (HISTORY + 1) * self.window - self._patience
        for slot in [slot for slot in self._windows if slot < oldest]:
            del self._windows[slot]

    # --- being asked -------------------------------------------------------------------

    def estimate(
        self,
        time: float,
        now: float | None = None,
        *,
        results: Iterable[str] | None = None,
        own: bool = True,
    ) -> Estimate:
        """What we take to be true in the window of ``time``, from all that was heard.

        :param now: when this is asked, for trust; ``time`` unless given.
        :param results: names of those to estimate; ``None``: all in the template.
        :param own: whether our own values are a voice. Doubtful ones never are.
        """
        slot = self._slot(time)
        when = time if now is None else now
        found: dict[str, ResultEstimate] = {}
        for name in self._results if results is None else results:
            result = self._results.get(name)
            if result is not None:
                estimator = self._word if result.words else self._number
                made = estimator(result, slot, when, own and name not in self.doubtful)
                if made is not None:
                    found[name] = made
        return Estimate(slot, found)

    @property
    def doubtful(self) -> tuple[str, ...]:
        """Results of which our own values were far from the consensus of at least three
        voices for several windows: our own sensor is the likelier fault."""
        return tuple(name for name, count in self._doubts.items() if count >= DOUBTFUL)

    def peers(self) -> dict[bytes, int]:
        """Everyone who was heard, with the start of the newest window."""
        return dict(self._heard)

    def bias(self, kid: bytes, result: str, time: float) -> float | None:
        """What to add to a peer's value at a time of day to have ours; ``None`` as long as
        too little was learned."""
        track = self._tracks.get(result, {}).get(kid)
        return track.bias.at(time) if track and track.bias.learned else None

    def state(self) -> dict[str, Any]:
        """What was learned, for JSON. Grows with peers and results, not with time."""
        biases = {
            name: {kid.hex(): t.bias.state() for kid, t in tracks.items() if t.bias.count}
            for name, tracks in self._tracks.items()
        }
        return {
            "trust": self.trust.state(),
            "bias": {name: learned for name, learned in biases.items() if learned},
            "course": {name: course.state() for name, course in self._courses.items()},
        }

    # --- learning ----------------------------------------------------------------------

    def _agree(
        self, name: str, slot: int, window: _Window, values: Mapping[bytes, float | str]
    ) -> None:
        """Find what the voices of a window agree upon, ours among them."""
        own = window.own.get(name)
        agreed: Consensus | str | None = None
        if isinstance(own, float):
            agreed = self._agreed_number(name, slot, own, values)
            if agreed is not None:
                far = agreed.agreement(own) < 0.5
                self._doubts[name] = self._doubts.get(name, 0) + 1 if far else 0
        elif own is not None:
            agreed = self._agreed_word(name, slot, own, values)
        if agreed is not None:
            window.agreed[name] = agreed

    def _agreed_number(
        self, name: str, slot: int, own: float, values: Mapping[bytes, float | str]
    ) -> Consensus | None:
        voices, spreads = [own], []
        for kid, value in values.items():
            bias = self._track(name, kid).bias
            if bias.count >= MATURE and self.trust.weight(kid, name, slot) > 0:
                assert isinstance(value, float)
                voices.append(value + bias.at(slot))
                spreads.append(bias.spread)
        if len(voices) < VOICES:
            return None
        # The lower median: of two peers of which one talks nonsense, the other's.
        usual = sorted(spreads)[(len(spreads) - 1) // 2]
        return consensus(voices, max(usual, self._resolution(name)))

    def _agreed_word(
        self, name: str, slot: int, own: str, values: Mapping[bytes, float | str]
    ) -> str | None:
        votes = [(own, 1.0)]
        votes += [
            (str(value), weight)
            for kid, value in values.items()
            if (weight := self.trust.weight(kid, name, slot)) > 0
        ]
        best = most_weight(votes)
        return best[0] if len(votes) >= VOICES and best is not None and best[1] > 0.5 else None

    def _compare(
        self, name: str, slot: int, window: _Window, values: Mapping[bytes, float | str]
    ) -> None:
        """Judge peers by what was agreed, and learn how they differ from us."""
        own, agreed = window.own.get(name), window.agreed.get(name)
        share = 1.0
        if isinstance(agreed, Consensus) and isinstance(own, float) and agreed.agreement(own) < 0.5:
            share = DOUBTED
        for kid, value in values.items():
            bias = self._track(name, kid).bias
            if isinstance(value, str):
                if agreed is not None:
                    self.trust.judge(kid, name, 1.0 if value == agreed else OTHER_WORD, slot)
                continue
            if isinstance(agreed, Consensus) and bias.count >= MATURE:
                self.trust.judge(kid, name, agreed.agreement(value + bias.at(slot)), slot)
            if isinstance(own, float):
                bias.learn(own - value, slot, share)

    # --- voices ------------------------------------------------------------------------

    def _number(
        self, result: Result, slot: int, when: float, include_own: bool
    ) -> ResultEstimate | None:
        name = result.name
        known, strangers = self._voices(name, slot, when)
        voices = known + self._strangers(result, strangers, known)
        peers = len(voices)
        if include_own and (own := self._own_voice(name, slot, voices)) is not None:
            voices.append(own)
        if not voices:
            return None
        if len(voices) > MOST_VOICES:
            voices = heapq.nlargest(MOST_VOICES, voices, key=lambda v: v.quality / v.variance)
        weights = [voice.quality / voice.variance for voice in voices]
        centre = huber_mean(
            [voice.value for voice in voices],
            weights,
            [math.sqrt(voice.variance) for voice in voices],
        )
        # Peers err together: averaging them makes the error hardly smaller.
        expected = math.fsum(voice.quality for voice in voices) / math.fsum(weights)
        return ResultEstimate(
            result.rounded(min(max(centre, result.low), result.high)),
            math.sqrt(expected),
            peers,
            sum(voice.quality * voice.freshness for voice in voices),
        )

    def _voices(
        self, name: str, slot: int, when: float
    ) -> tuple[list[_Voice], list[tuple[float, float, float]]]:
        """Voices of peers whose bias is known; (value, drift, quality) of the others."""
        known: list[_Voice] = []
        strangers: list[tuple[float, float, float]] = []
        course = self._course(name)
        least = self._resolution(name) ** 2
        weight_of = self.trust.weight
        carried: dict[int, tuple[float, float]] = {}  # window → what the course adds, drift
        for kid, track in self._tracks[name].items():
            newest = track.recent.at(slot)
            if newest is None or not -OLDEST <= newest[0] - slot <= OLDEST:
                continue
            trust = weight_of(kid, name, when)
            if trust <= 0.0:
                continue
            since, value, quality = newest
            assert not isinstance(value, str)
            if since not in carried:
                carried[since] = course.carry(since, slot), course.drift(slot - since)
            added, drift = carried[since]
            bias = track.bias
            if bias.count >= FIRST:
                own = bias.spread**2 + least
                value += bias.at(since) + added
                known.append(_Voice(value, own + drift, trust * quality, own / (own + drift)))
            else:
                strangers.append((value + added, drift, trust * quality))
        return known, strangers

    def _strangers(
        self, result: Result, strangers: list[tuple[float, float, float]], known: list[_Voice]
    ) -> list[_Voice]:
        """Voices of peers whose bias is not known."""
        if not strangers:
            return []
        values = [value for value, _, _ in strangers]
        if known:
            deviation = STRANGER * math.sqrt(max(voice.variance for voice in known))
        elif len(values) > 1:
            middle = median(values)
            deviation = 1.5 * median([abs(value - middle) for value in values])
        else:
            deviation = result.tolerance or 0.0
        variance = max(deviation, self._resolution(result.name)) ** 2
        return [
            _Voice(value, variance + drift, quality, variance / (variance + drift))
            for value, drift, quality in strangers
        ]

    def _own_voice(self, name: str, slot: int, peers: list[_Voice]) -> _Voice | None:
        """Our own newest value, half as uncertain as the best peer, and older by its age."""
        newest = self._own[name].at(slot) if name in self._own else None
        if newest is None or not 0 <= slot - newest[0] <= OLDEST:
            return None
        since, value, quality = newest
        assert not isinstance(value, str)
        course = self._course(name)
        least = min((voice.variance for voice in peers), default=0.0) / 4
        least = max(least, self._resolution(name) ** 2)
        drift = course.drift(slot - since)
        value += course.carry(since, slot)
        return _Voice(value, least + drift, quality, least / (least + drift))

    def _word(
        self, result: Result, slot: int, when: float, include_own: bool
    ) -> ResultEstimate | None:
        name = result.name
        votes: list[tuple[str, float]] = []
        for kid, track in self._tracks[name].items():
            newest = track.recent.at(slot)
            if newest is not None and abs(slot - newest[0]) <= OLDEST:
                trust = self.trust.weight(kid, name, when)
                if trust > 0:
                    votes.append((str(newest[1]), trust * newest[2] * _faded(slot - newest[0])))
        peers = len(votes)
        newest = self._own[name].at(slot) if include_own and name in self._own else None
        if newest is not None and 0 <= slot - newest[0] <= OLDEST:
            votes.append((str(newest[1]), newest[2] * _faded(slot - newest[0])))
        best = most_weight(votes)
        if best is None:
            return None
        return ResultEstimate(best[0], 0.0, peers, sum(weight for _, weight in votes), best[1])

    # --- bookkeeping -------------------------------------------------------------------

    def _slot(self, time: float) -> int:
        return math.floor(time / self.window) * self.window

    def _plausible(self, outcome: Outcome) -> dict[str, float | str]:
        """What of an outcome can be believed, by name; numbers as floats."""
        good: dict[str, float | str] = {}
        for label, value in outcome.results.items():
            result = self._results.get(label) if isinstance(label, str) else self.domain.get(label)
            if result is not None and value is not None and result.plausible(value):
                # Sums of squares of anything larger would overflow.
                if isinstance(value, str):
                    good[result.name] = value
                elif abs(value) < 1e100:
                    good[result.name] = float(value)
        return good

    def _resolution(self, name: str) -> float:
        return float(10.0 ** (self._results[name].power or 0))

    def _track(self, name: str, kid: bytes) -> _Track:
        track = self._tracks[name].get(kid)
        if track is None:
            bias = Bias(self.window, self._resolution(name))
            track = self._tracks[name][kid] = _Track(bias)
        return track

    def _course(self, name: str) -> Course:
        course = self._courses.get(name)
        if course is None:
            course = self._courses[name] = Course(self.window)
        return course

    def _remember(self, kid: bytes, slot: int) -> None:
        newest = max(slot, self._heard.pop(kid, slot))
        if len(self._heard) >= MOST_PEERS:
            self._forget(min(self._heard, key=self._heard.__getitem__))
        self._heard[kid] = newest

    def _forget(self, kid: bytes) -> None:
        del self._heard[kid]
        for tracks in self._tracks.values():
            tracks.pop(kid, None)

    def _restore(self, state: Mapping[Any, Any]) -> None:
        self.trust = Trust.restored(state.get("trust"))
        for name, biases in _tables(state.get("bias")):
            for key, numbers in biases.items() if name in self._results else ():
                try:
                    kid = bytes.fromhex(key)
                except (TypeError, ValueError):
                    continue
                bias = Bias.restored(self.window, self._resolution(name), numbers)
                self._tracks[name][kid] = _Track(bias)
                self._heard.setdefault(kid, 0)
        for name, course in _tables(state.get("course")):
            if name in self._results:
                self._courses[name] = Course.restored(self.window, course)


def _quality(outcome: Outcome) -> float:
    samples = max(1, outcome.samples)
    return max(0.01, outcome.confidence) * samples / (samples + 1)


def _faded(age: float) -> float:
    return float(2.0 ** (-abs(age) / WORD_HALF_LIFE))


def _tables(state: object) -> list[tuple[Any, Mapping[Any, Any]]]:
    """The tables in a table, or nothing where it is none."""
    if not isinstance(state, Mapping):
        return []
    return [(name, table) for name, table in state.items() if isinstance(table, Mapping)]
