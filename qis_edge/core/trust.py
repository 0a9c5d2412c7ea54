"""Trust: how much a sender is weighed, learned from how its outcomes hold up.

Each result of each sender has a score from 0 to 1, :data:`NEUTRAL` for a stranger. Where at
least :data:`VOICES` voices speak of the same window, our own among them, their median is the
consensus, and each is judged by its distance from it, in units of what peers usually differ
by (at least the template's tolerance for the readings of one window): agreement is 1 up to
:data:`NEAR`, 0 from :data:`FAR` on. Where our own sensor fails it
is the one far from the others, and condemns nobody. With two voices nobody can say which is
wrong, and nobody is judged.

Agreement raises a score slowly and disagreement lowers it fast (:data:`RISE`,
:data:`FALL`): from full trust, five windows of nonsense in a row put a sender out. A score
goes back to neutral by half in each :data:`HALF_LIFE`. Below :data:`OUT` the sender's result
is not weighed and has no voice; a sender whose results are below it on average is out
altogether.

Senders are judged after their habitual bias is taken away: one that is always two degrees
too warm is corrected, not condemned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qis_edge.core.calibration import finite
from qis_edge.core.robust import median

NEUTRAL = 0.5
OUT = 0.1
VOICES = 3
NEAR, FAR = 3.0, 6.0
RISE, FALL = 0.05, 0.4
HALF_LIFE = 7 * 86_400
#: Agreement of a word that is not the consensus: places may differ, and words alone put
#: nobody out.
OTHER_WORD = 0.3
#: Senders that are remembered; beyond that those judged longest ago are forgotten.
MOST_SENDERS = 4096


#: Of one result: 0..1, and the unix second at which it was judged last.
Score = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Consensus:
    """What the voices of one window agree upon.

    :param value: their median.
    :param scale: what peers usually differ by, in the result's unit.
    :param voices: how many spoke.
    """

    value: float
    scale: float
    voices: int

    def agreement(self, value: float) -> float:
        """1 for a value near it, 0 for one far from it."""
        distance = abs(value - self.value) / self.scale
        return max(0.0, min(1.0, (FAR - distance) / (FAR - NEAR)))


def consensus(voices: Sequence[float], scale: float) -> Consensus | None:
    """The consensus of all voices, ours among them; ``None`` of fewer than three.

    :param voices: finite numbers.
    :param scale: what peers usually differ by, above 0. Where these voices differ more
        (half of them by more), that.
    """
    if len(voices) < VOICES:
        return None
    middle = median(voices)
    return Consensus(middle, max(scale, median([abs(v - middle) for v in voices])), len(voices))


class Trust:
    """The scores of all senders. Times are unix seconds; they need not be in order."""

    def __init__(self) -> None:
        self._scores: dict[bytes, dict[str, Score]] = {}

    @property
    def scores(self) -> Mapping[bytes, Mapping[str, Score]]:
        """The scores by sender and result, as they were when they were judged last: what is
        left of them is theirs times :func:`faded`, on either side of neutral."""
        return self._scores

    def of(self, kid: bytes, result: str, now: float) -> float:
        """The score of one result of a sender, 0..1."""
        score = self._scores.get(kid, {}).get(result)
        return NEUTRAL if score is None else _decayed(*score, now)

    def sender(self, kid: bytes, now: float) -> float:
        """The mean score of a sender's results, 0..1."""
        scores = self._scores.get(kid)
        if not scores:
            return NEUTRAL
        return sum(_decayed(*score, now) for score in scores.values()) / len(scores)

    def weight(self, kid: bytes, result: str, now: float) -> float:
        """The score, or 0 where the result or its sender is out."""
        scores = self._scores.get(kid)
        if scores is None:
            return NEUTRAL
        score, time = scores.get(result, (NEUTRAL, now))
        if now > time:
            score = NEUTRAL + (score - NEUTRAL) * faded(time, now)
        if score < OUT:
            return 0.0
        # One good score of few keeps the mean up: most senders need no look at the others.
        return score if score >= OUT * len(scores) or self.sender(kid, now) >= OUT else 0.0

    def judge(self, kid: bytes, result: str, agreement: float, now: float) -> None:
        """Take in how one statement of a sender held up: ``agreement`` 0..1."""
        scores = self._scores.get(kid)
        if scores is None:
            if len(self._scores) >= MOST_SENDERS:
                self._forget_one()
            scores = self._scores[kid] = {}
        last = scores.get(result, (NEUTRAL, now))
        score = _decayed(*last, now)
        gain = RISE if agreement >= score else FALL
        scores[result] = (score + gain * (agreement - score), max(last[1], now))

    def forget(self, kid: bytes) -> None:
        """Forget a sender: it is a stranger again."""
        self._scores.pop(kid, None)

    def senders(self, now: float) -> dict[bytes, float]:
        """Everyone who was ever judged, with their mean score."""
        return {kid: self.sender(kid, now) for kid in self._scores}

    def _forget_one(self) -> None:
        oldest = min(
            self._scores, key=lambda kid: max(time for _, time in self._scores[kid].values())
        )
        del self._scores[oldest]

    def state(self) -> dict[str, dict[str, list[float]]]:
        """All of it, for JSON: kid in hex → result → [score, unix time]."""
        return {
            kid.hex(): {name: [round(score, 4), time] for name, (score, time) in scores.items()}
            for kid, scores in self._scores.items()
        }

    @classmethod
    def restored(cls, state: object) -> Trust:
        """From :meth:`state`. Entries that make no sense are passed over."""
        made = cls()
        for key, scores in state.items() if isinstance(state, Mapping) else ():
            try:
                kid = bytes.fromhex(key)
            except (TypeError, ValueError):
                continue
            for name, pair in scores.items() if isinstance(scores, Mapping) else ():
                numbers = finite(pair)
                if isinstance(name, str) and len(numbers) == 2 and 0 <= numbers[0] <= 1:
                    made._scores.setdefault(kid, {})[name] = (numbers[0], numbers[1])
        return made


def _decayed(score: float, time: float, now: float) -> float:
    if now <= time:
        return score
    return NEUTRAL + (score - NEUTRAL) * faded(time, now)


def faded(time: float, now: float) -> float:
    """What is left at ``now`` of how far a score was from neutral at ``time``."""
    return float(2.0 ** ((time - now) / HALF_LIFE))
