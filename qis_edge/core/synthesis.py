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
the template's bounds, values older than a week, and senders that lost our trust
(:mod:`qis_edge.core.trust`). Where the bias of some peers was learned, strangers count
about a tenth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qis_edge.core.calibration import HOUR, Bias, Course
from qis_edge.core.domain import Domain, Result
from qis_edge.core.outcome import MAX_SAMPLES, Kind, Outcome, Value
from qis_edge.core.robust import huber_mean, most_weight
from qis_edge.core.trust import (
    NEAR,
    OTHER_WORD,
    VOICES,
    Consensus,
    Trust,
    consensus,
)
from qis_edge.core.voices import (
    Number,
    Peer,
    Voice,
    known_voice,
    listen,
    of_strangers,
    resolution,
    voice_of,
)

#: The tag of packets whose outcomes are estimates. Nobody weighs them as a voice.
ESTIMATE_TAG = "estimate"
#: Voices that are combined: those of most weight. More add nothing but time.
MOST_VOICES = 64
#: Peers that are remembered; the one heard longest ago makes room.
MOST_PEERS = 1024
#: Windows for which we remember what we measured, so that late packets teach too.
HISTORY = 240
#: Outcomes that wait for their window to be complete.
MOST_WAITING = 8192
#: Common windows from which on a peer is judged and its voice judges others.
MATURE = 12
#: How much of a difference to believe from a window in which our own value is far from the
#: consensus: ours is the likelier fault, but it may be that we were moved.
DOUBTED = 0.1
#: Windows after a window's end at which its voices are compared. What comes later is compared
#: with what was agreed then.
PATIENCE = 2
#: Windows in a row that make our own sensor doubtful.
DOUBTFUL = 3
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


def as_outcome(estimate: Estimate) -> Outcome:
    """The estimate as an outcome, to be packed under :data:`ESTIMATE_TAG`.

    Its confidence is the mean over the results of ``rate · weight / (weight + 1)``, its
    samples are the peers behind it. It is ``open`` without any result, ``contradicted`` where
    a word has less than half of the weight, ``partial`` where a result has fewer than two
    peers behind it, and else ``resolved``.
    """
    found = list(estimate.results.values())
    values: dict[str | int, Value] = {name: one.value for name, one in estimate.results.items()}
    if not found:
        return Outcome(estimate.time, Kind.OPEN, 0.0, 0, values)
    kind = Kind.RESOLVED
    if min(one.rate for one in found) < 0.5:
        kind = Kind.CONTRADICTED
    elif min(one.contributors for one in found) < 2:
        kind = Kind.PARTIAL
    confidence = sum(one.rate * one.weight / (one.weight + 1) for one in found) / len(found)
    samples = min(MAX_SAMPLES, max(one.contributors for one in found))
    return Outcome(estimate.time, kind, round(confidence, 2), samples, values)


class _Window:
    """What was said of one window that is not settled yet, or how it was settled."""

    __slots__ = ("agreed", "own", "said")

    def __init__(self) -> None:
        self.own: dict[str, float | str] = {}
        #: kid → outcome; ``None`` once the window is settled.
        self.said: dict[bytes, Outcome] | None = {}
        #: result → what was agreed: of numbers the consensus, of words the word.
        self.agreed: dict[str, Consensus | str] = {}


class Synthesiser:
    """Learns from our own outcomes and peers', and estimates. Pure: ``now`` comes with each
    call, in unix seconds.

    :param domain: whose results are meant. Results that it does not list are passed over.
    :param window: length of our windows, seconds. A peer's outcome belongs to the window in
        which it starts.
    :param me: our own kid: outcomes of ours that come back are no voices.
    :param state: what :meth:`state` gave; what of it makes no sense is as if unlearned.
    """

    def __init__(
        self,
        domain: Domain,
        *,
        window: int,
        me: bytes = b"",
        state: object = None,
    ) -> None:
        self.domain = domain
        self.window = window
        self._me = me
        self._patience = PATIENCE * window
        self._results = {result.name: result for result in domain.results}
        self._peers: dict[bytes, Peer] = {}
        self._own = Peer()  # only what we measured; we have no bias
        self._windows: dict[int, _Window] = {}
        self._waiting = 0
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
        self._own.hear(slot, outcome)
        window = self._window(slot)
        for name, value in self._plausible(outcome):
            window.own[name] = value
            if isinstance(value, float):
                self._course(name).learn(slot, value)

    def heard(self, report: PeerReport, now: float) -> bool:
        """One verified outcome of a peer.

        :returns: whether it can be a voice (not an estimate, not our own, not open, not dated
            in the future, not too old to matter).
        """
        outcome, kid = report.outcome, report.kid
        if report.estimate or kid == self._me or outcome.kind is Kind.OPEN:
            return False
        slot = outcome.time - outcome.time % self.window
        if not now - HISTORY * self.window <= slot <= now:
            return False
        peer = self._peers.get(kid) or self._new_peer(kid)
        if not peer.hear(slot, outcome):
            return True  # said again: it may correct a voice, but it teaches nothing new
        window = self._windows.get(slot)
        if window is None:
            window = self._windows[slot] = _Window()
        if window.said is None:
            self._compare(slot, window, {kid: outcome})
        elif self._waiting < MOST_WAITING:
            self._waiting += kid not in window.said
            window.said[kid] = outcome
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
            self._waiting -= len(said)
            self._agree(slot, window, said)
            self._compare(slot, window, said)
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
        wanted = [
            self._results[name]
            for name in (self._results if results is None else results)
            if name in self._results
        ]
        numbers = {one.name: Number(one, self._course(one.name)) for one in wanted if not one.words}
        listen(numbers.values(), self._peers, self.trust, slot, when)
        found: dict[str, ResultEstimate] = {}
        for result in wanted:
            include_own = own and result.name not in self.doubtful
            if result.words:
                made = self._word(result, slot, when, include_own)
            else:
                made = self._number(numbers[result.name], slot, include_own)
            if made is not None:
                found[result.name] = made
        return Estimate(slot, found)

    @property
    def doubtful(self) -> tuple[str, ...]:
        """Results of which our own values were far from the consensus of at least three
        voices for several windows: our own sensor is the likelier fault."""
        return tuple(name for name, count in self._doubts.items() if count >= DOUBTFUL)

    def peers(self) -> dict[bytes, int]:
        """Everyone who was heard, with the start of the newest window."""
        return {kid: peer.recent[-1][0] for kid, peer in self._peers.items() if peer.recent}

    def bias(self, kid: bytes, result: str, time: float) -> float | None:
        """What to add to a peer's value at a time of day to have ours; ``None`` as long as
        too little was learned."""
        peer = self._peers.get(kid)
        bias = peer.biases.get(result) if peer is not None else None
        return bias.at(time) if bias is not None and bias.learned else None

    def state(self) -> dict[str, Any]:
        """What was learned, for JSON. Grows with peers and results, not with time."""
        return {
            "trust": self.trust.state(),
            "bias": {
                kid.hex(): {name: bias.state() for name, bias in peer.biases.items()}
                for kid, peer in self._peers.items()
                if peer.biases
            },
            "course": {name: course.state() for name, course in self._courses.items()},
        }

    # --- learning ----------------------------------------------------------------------

    def _agree(self, slot: int, window: _Window, said: Mapping[bytes, Outcome]) -> None:
        """Find what the voices of a window agree upon, ours among them."""
        for name, own in window.own.items():
            agreed: Consensus | str | None
            if isinstance(own, str):
                agreed = self._agreed_word(self._results[name], slot, own, said)
            else:
                agreed = self._agreed_number(self._results[name], slot, own, said)
                if isinstance(agreed, Consensus):
                    far = agreed.agreement(own) < 0.5
                    self._doubts[name] = self._doubts.get(name, 0) + 1 if far else 0
            if agreed is not None:
                window.agreed[name] = agreed

    def _agreed_number(
        self, result: Result, slot: int, own: float, said: Mapping[bytes, Outcome]
    ) -> Consensus | None:
        voices, spreads = [own], []
        for kid, outcome in said.items():
            bias = self._bias(kid, result)
            value = outcome.results.get(result.name)
            if bias.count < MATURE or not result.plausible(value):
                continue
            if self.trust.weight(kid, result.name, slot) > 0:
                assert isinstance(value, float | int)
                voices.append(value + bias.at(slot))
                spreads.append(bias.spread)
        if len(voices) < VOICES:
            return None
        # The lower median: of two peers of which one talks nonsense, the other's.
        usual = sorted(spreads)[(len(spreads) - 1) // 2]
        # What readings of one sensor may scatter by, peers may differ by too.
        allowed = (result.tolerance or 0.0) / NEAR
        return consensus(voices, max(usual, allowed, resolution(result)))

    def _agreed_word(
        self, result: Result, slot: int, own: str, said: Mapping[bytes, Outcome]
    ) -> str | None:
        votes = [(own, 1.0)]
        for kid, outcome in said.items():
            value = outcome.results.get(result.name)
            weight = self.trust.weight(kid, result.name, slot)
            if weight > 0 and isinstance(value, str) and value in result.words:
                votes.append((value, weight))
        best = most_weight(votes)
        return best[0] if len(votes) >= VOICES and best is not None and best[1] > 0.5 else None

    def _compare(self, slot: int, window: _Window, said: Mapping[bytes, Outcome]) -> None:
        """Judge peers by what was agreed, and learn how they differ from us."""
        shares = {
            name: DOUBTED
            for name, agreed in window.agreed.items()
            if isinstance(agreed, Consensus)
            and isinstance(ours := window.own[name], float)
            and agreed.agreement(ours) < 0.5
        }
        for kid, outcome in said.items():
            for name, value in self._plausible(outcome):
                own, agreed = window.own.get(name), window.agreed.get(name)
                if isinstance(value, str):
                    if agreed is not None:
                        self.trust.judge(kid, name, 1.0 if value == agreed else OTHER_WORD, slot)
                elif isinstance(own, float):
                    bias = self._bias(kid, self._results[name])
                    if isinstance(agreed, Consensus) and bias.count >= MATURE:
                        agreement = agreed.agreement(value + bias.at(slot))
                        self.trust.judge(kid, name, agreement, slot)
                    bias.learn(own - value, slot, shares.get(name, 1.0))

    # --- voices ------------------------------------------------------------------------

    def _number(self, number: Number, slot: int, include_own: bool) -> ResultEstimate | None:
        result = number.result
        # Of many voices only those of most weight are worked out.
        known = number.known
        if len(known) > MOST_VOICES:
            least = sorted([one[0] for one in known])[-MOST_VOICES]
            more = [one for one in known if one[0] > least]
            known = [*more, *(one for one in known if one[0] == least)][:MOST_VOICES]
        voices = [known_voice(*one) for one in known]
        worst = max([one[2] for one in number.known], default=0.0) if number.strangers else 0.0
        voices += of_strangers(result, number.strangers, worst)
        peers = len(number.known) + len(number.strangers)
        if include_own and (own := self._own_voice(result, slot, voices)) is not None:
            voices.append(own)
        if not voices:
            return None
        if len(voices) > MOST_VOICES:
            voices = sorted(voices, reverse=True)[:MOST_VOICES]
        weights = [voice.weight for voice in voices]
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
            math.fsum(voice.quality * voice.freshness for voice in voices),
        )

    def _own_voice(self, result: Result, slot: int, peers: list[Voice]) -> Voice | None:
        """Our own newest value, half as uncertain as the best peer, and older by its age."""
        newest = self._own.newest(result, slot)
        if newest is None or newest[0] > slot:
            return None
        since, value, quality = newest
        course = self._course(result.name)
        variance = min((voice.variance for voice in peers), default=0.0) / 4
        return voice_of(
            float(value) + course.carry(since, slot),
            max(variance, resolution(result) ** 2),
            course.drift(slot - since),
            quality,
        )

    def _word(
        self, result: Result, slot: int, when: float, include_own: bool
    ) -> ResultEstimate | None:
        votes: list[tuple[str, float]] = []
        for kid, peer in self._peers.items():
            trust = self.trust.weight(kid, result.name, when)
            if trust > 0 and (newest := peer.newest(result, slot)) is not None:
                since, word, quality = newest
                votes.append((str(word), trust * quality * _faded(slot - since)))
        peers = len(votes)
        if include_own and (newest := self._own.newest(result, slot)) and newest[0] <= slot:
            since, word, quality = newest
            votes.append((str(word), quality * _faded(slot - since)))
        best = most_weight(votes)
        if best is None:
            return None
        weight = math.fsum(weight for _, weight in votes)
        return ResultEstimate(best[0], 0.0, peers, weight, best[1])

    # --- bookkeeping -------------------------------------------------------------------

    def _slot(self, time: float) -> int:
        return math.floor(time / self.window) * self.window

    def _window(self, slot: int) -> _Window:
        window = self._windows.get(slot)
        if window is None:
            window = self._windows[slot] = _Window()
        return window

    def _plausible(self, outcome: Outcome) -> Iterator[tuple[str, float | str]]:
        """What of an outcome can be believed, by name; numbers as floats."""
        for name, value in outcome.results.items():
            result = self._results.get(name) if isinstance(name, str) else None
            if result is not None and value is not None and result.plausible(value):
                yield result.name, value if isinstance(value, str) else float(value)

    def _bias(self, kid: bytes, result: Result) -> Bias:
        peer = self._peers.get(kid) or self._new_peer(kid)
        bias = peer.biases.get(result.name)
        if bias is None:
            bias = peer.biases[result.name] = Bias(self.window, resolution(result))
        return bias

    def _course(self, name: str) -> Course:
        course = self._courses.get(name)
        if course is None:
            course = self._courses[name] = Course(self.window)
        return course

    def _new_peer(self, kid: bytes) -> Peer:
        if len(self._peers) >= MOST_PEERS:
            longest_ago = min(
                self._peers,
                key=lambda k: self._peers[k].recent[-1][0] if self._peers[k].recent else 0,
            )
            del self._peers[longest_ago]
        peer = self._peers[kid] = Peer()
        return peer

    def _restore(self, state: Mapping[Any, Any]) -> None:
        self.trust = Trust.restored(state.get("trust"))
        for key, biases in _tables(state.get("bias"))[:MOST_PEERS]:
            try:
                peer = self._new_peer(bytes.fromhex(key))
            except (TypeError, ValueError):
                continue
            for name, numbers in biases.items():
                if (result := self._results.get(name)) is not None:
                    restored = Bias.restored(self.window, resolution(result), numbers)
                    peer.biases[result.name] = restored
        for name, course in _tables(state.get("course")):
            if name in self._results:
                self._courses[name] = Course.restored(self.window, course)


def _faded(age: float) -> float:
    return float(2.0 ** (-abs(age) / WORD_HALF_LIFE))


def _tables(state: object) -> list[tuple[Any, Mapping[Any, Any]]]:
    """The tables in a table, or nothing where it is none."""
    if not isinstance(state, Mapping):
        return []
    return [(name, table) for name, table in state.items() if isinstance(table, Mapping)]
