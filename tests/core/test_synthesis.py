"""Synthesis: estimates that are right, robust against liars and our own failing sensor."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qis_edge.core import synthesis
from qis_edge.core.domain import Domain
from qis_edge.core.outcome import Kind, Outcome, Value
from qis_edge.core.synthesis import (
    MOST_VOICES,
    Estimate,
    PeerReport,
    ResultEstimate,
    Synthesiser,
    as_outcome,
)

DOMAIN = Domain.parse("""
name = "yard"
revision = 1
[[field]]
name = "ground"
values = ["grass"]
[[result]]
name = "temperature"
code = 1
unit = "Cel"
resolution = 0.1
low = -90
high = 60
tolerance = 3
[[result]]
name = "sky"
code = 2
words = ["clear", "cloudy", "rain"]
[[result]]
name = "level"
code = 3
unit = "m"
resolution = 0.01
""")
HOUR = 3600
T0 = 1_380_000_000 // HOUR * HOUR
ME, A, B, C, D = (name.encode() for name in ("me", "peer-a", "peer-b", "peer-c", "peer-d"))

#: What a peer says, by the true temperature and the hour.
Peer = Callable[[float, int], Value]


def said(hour: int, value: Value, name: str = "temperature", **more: float) -> Outcome:
    return Outcome(
        T0 + hour * HOUR,
        confidence=more.get("confidence", 0.9),
        samples=int(more.get("samples", 60)),
        results={name: value},
    )


def truth(hour: int) -> float:
    """Days with a course, and weather that comes and goes."""
    daily = 5 * math.cos(2 * math.pi * (hour - 15) / 24)
    return 12 + daily + 4 * math.sin(hour / 31) + 2 * math.sin(hour / 11)


def noisy(bias: float = 0.0, noise: float = 0.4, seed: int = 1) -> Peer:
    rng = random.Random(seed)
    return lambda value, _: round(value + bias + rng.gauss(0, noise), 1)


def live(
    peers: dict[bytes, Peer],
    hours: int,
    own: Peer | None = None,
    node: Synthesiser | None = None,
    begin: int = 0,
    late: int = 0,
) -> Synthesiser:
    """A node that measures and hears its peers for so many hours."""
    node = node or Synthesiser(DOMAIN, window=HOUR, me=ME)
    measure = own or noisy(noise=0.1, seed=9)
    for hour in range(begin, begin + hours):
        now = T0 + (hour + 1) * HOUR
        value = measure(truth(hour), hour)
        if value is not None:
            node.measured(said(hour, value))
        for kid, peer in peers.items():
            told = peer(truth(hour - late), hour - late)
            if told is not None:
                node.heard(PeerReport(kid, said(hour - late, told)), now)
        node.settle(now)
    return node


def temperature(node: Synthesiser, hour: int, *, own: bool = True) -> ResultEstimate:
    made = node.estimate(T0 + hour * HOUR, T0 + (hour + 1) * HOUR, own=own)
    assert made.time == T0 + hour * HOUR
    return made.results["temperature"]


def number(estimate: ResultEstimate) -> float:
    assert isinstance(estimate.value, float)
    return estimate.value


def absent(value: float, hour: int) -> None:
    """A sensor that failed."""


# --- numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, -1])
def test_of_many_voices_those_of_most_weight_are_combined(order: int) -> None:
    """All are counted; whoever comes first or says more is not preferred."""
    kids = [f"peer-{number:04}".encode() for number in range(100)]
    node = live({kid: noisy(seed=number) for number, kid in enumerate(kids)}, 30)
    hour, confident = 30, set(kids[::order][:MOST_VOICES])
    for kid in kids:
        value, confidence = (14.0, 1.0) if kid in confident else (18.0, 0.01)
        node.heard(PeerReport(kid, said(hour, value, confidence=confidence)), T0 + 31 * HOUR)
    estimate = temperature(node, hour, own=False)
    assert number(estimate) == pytest.approx(14.0, abs=0.5)
    assert estimate.contributors == 100


def test_biases_are_learned_in_two_days_and_removed() -> None:
    node = live({A: noisy(5.0, seed=1), B: noisy(-3.0, seed=2)}, 48)
    assert node.bias(A, "temperature", T0) == pytest.approx(-5.0, abs=0.5)
    assert node.bias(B, "temperature", T0) == pytest.approx(3.0, abs=0.5)
    for hour in range(48, 60):
        live({A: noisy(5.0, seed=hour), B: noisy(-3.0, seed=99 * hour)}, 1, absent, node, hour)
        made = temperature(node, hour, own=False)
        assert number(made) == pytest.approx(truth(hour), abs=1.3)
        assert made.contributors == 2
        assert 0.2 < made.spread < 1.5


def test_a_failed_sensor_s_estimate_beats_its_last_value_by_far() -> None:
    peers = {A: noisy(5.0, 0.8, seed=1), B: noisy(-3.0, 0.8, seed=2)}
    node = live(peers, 72)
    held = truth(71)
    estimated = hold = 0.0
    for hour in range(72, 120):
        live(peers, 1, absent, node, hour, late=2)
        estimated += abs(number(temperature(node, hour)) - truth(hour))
        hold += abs(held - truth(hour))
    assert estimated < hold / 3


def test_nothing_is_estimated_from_nothing() -> None:
    node = Synthesiser(DOMAIN, window=HOUR)
    assert node.estimate(T0) == Estimate(T0, {})
    assert node.estimate(T0, results=["no such result"]).results == {}
    assert node.doubtful == ()
    assert node.peers() == {}


def test_strangers_are_weighed_by_each_other_until_we_measure() -> None:
    node = Synthesiser(DOMAIN, window=HOUR)
    for kid, value in ((A, 10.0), (B, 12.0), (C, 50.0)):
        node.heard(PeerReport(kid, said(0, value)), T0 + HOUR)
    made = temperature(node, 0)
    assert 10.0 <= number(made) <= 15.0
    assert made.contributors == 3
    assert made.spread >= 1.0


def test_a_stranger_counts_little_beside_known_peers() -> None:
    peers = {A: noisy(seed=1), B: noisy(seed=2)}
    node = live(peers, 72)
    live(peers, 1, absent, node, 72)
    before = number(temperature(node, 72, own=False))
    node.heard(PeerReport(C, said(72, 40.0)), T0 + 73 * HOUR)
    made = temperature(node, 72, own=False)
    assert number(made) == pytest.approx(before, abs=0.8)
    assert made.contributors == 3


def test_the_more_confident_and_the_fresher_count_more() -> None:
    peers = {A: noisy(noise=0.5, seed=1), B: noisy(noise=0.5, seed=2)}
    base = live(peers, 72).state()

    def between(a: Outcome, b: Outcome) -> float:
        """0: all from a, 1: all from b."""
        node = Synthesiser(DOMAIN, window=HOUR, me=ME, state=base)
        for kid, outcome in ((A, a), (B, b)):
            node.heard(PeerReport(kid, outcome), T0 + 80 * HOUR)
        return (number(temperature(node, 80)) - 10.0) / 0.8

    even = between(said(80, 10.0), said(80, 10.8))
    assert between(said(80, 10.0), said(80, 10.8, confidence=0.1)) < even - 0.2
    assert between(said(80, 10.0), said(80, 10.8, samples=1)) < even - 0.05
    assert between(said(80, 10.0, confidence=0.1), said(80, 10.8)) > even + 0.2


def test_old_values_widen_the_spread_and_are_dropped_after_a_week() -> None:
    peers = {A: noisy(seed=1), B: noisy(seed=2)}
    node = live(peers, 72)
    spreads = [temperature(node, hour, own=False).spread for hour in (71, 74, 80, 94)]
    assert spreads == sorted(spreads)
    assert spreads[-1] > 2 * spreads[0]
    weights = [temperature(node, hour, own=False).weight for hour in (71, 74, 80, 94)]
    assert weights == sorted(weights, reverse=True)
    assert "temperature" in node.estimate(T0 + (71 + 7 * 24) * HOUR).results
    assert "temperature" not in node.estimate(T0 + (72 + 7 * 24) * HOUR).results


def test_values_that_are_hours_old_follow_our_daily_course() -> None:
    def regular(hour: float) -> float:
        return 12 + 6 * math.cos(2 * math.pi * (hour - 15) / 24)

    node = Synthesiser(DOMAIN, window=HOUR, me=ME)
    for hour in range(6 * 24 + 9):
        now = T0 + (hour + 1) * HOUR
        node.measured(said(hour, regular(hour)))
        node.heard(PeerReport(A, said(hour, regular(hour) + 2)), now)
        node.settle(now)
    # The last value is of 8 o'clock, three hours in which it warms by some 4 degrees.
    later = 6 * 24 + 11
    assert regular(later) - regular(later - 3) > 3.5
    for own in (True, False):
        assert number(temperature(node, later, own=own)) == pytest.approx(regular(later), abs=1.0)


def test_our_own_value_leads_where_there_is_one() -> None:
    peers = {A: noisy(seed=1), B: noisy(seed=2)}
    node = live(peers, 72)
    alone = number(temperature(node, 71, own=False))
    ours = truth(71)
    both = number(temperature(node, 71))
    assert abs(both - ours) <= abs(alone - ours) + 0.15
    assert both == pytest.approx(ours, abs=0.4)


def test_an_estimate_stays_within_the_template_s_bounds_and_resolution() -> None:
    node = live({A: lambda value, _: value - 20}, 48)
    for hour in range(48, 50):
        node.heard(PeerReport(A, said(hour, 59.97)), T0 + (hour + 1) * HOUR)
    value = number(temperature(node, 49, own=False))
    assert value <= 60.0
    assert value == round(value, 1)


# --- words -----------------------------------------------------------------------------


def test_words_are_decided_by_weight() -> None:
    node = Synthesiser(DOMAIN, window=HOUR, me=ME)
    for kid, word in ((A, "rain"), (B, "rain"), (C, "clear")):
        node.heard(PeerReport(kid, said(0, word, "sky")), T0 + HOUR)
    made = node.estimate(T0).results["sky"]
    assert (made.value, made.contributors, made.spread) == ("rain", 3, 0.0)
    assert made.rate == pytest.approx(2 / 3)
    node.heard(PeerReport(D, said(0, "hail", "sky")), T0 + HOUR)  # not a word of the template
    assert node.estimate(T0).results["sky"].contributors == 3


def test_an_old_word_fades() -> None:
    node = Synthesiser(DOMAIN, window=HOUR, me=ME)
    node.heard(PeerReport(A, said(0, "rain", "sky")), T0 + HOUR)
    node.heard(PeerReport(B, said(12, "clear", "sky")), T0 + 13 * HOUR)
    made = node.estimate(T0 + 12 * HOUR, T0 + 13 * HOUR).results["sky"]
    assert made.value == "clear"
    assert made.rate == pytest.approx(0.8)


def test_our_own_word_is_a_voice() -> None:
    node = Synthesiser(DOMAIN, window=HOUR, me=ME)
    node.heard(PeerReport(A, said(0, "rain", "sky")), T0 + HOUR)
    node.measured(said(0, "clear", "sky"))
    assert node.estimate(T0).results["sky"].value == "clear"  # strangers count half
    assert node.estimate(T0, own=False).results["sky"].value == "rain"


def test_words_teach_trust_gently() -> None:
    node = Synthesiser(DOMAIN, window=HOUR, me=ME)
    for hour in range(200):
        now = T0 + (hour + 1) * HOUR
        node.measured(said(hour, "clear", "sky"))
        for kid, word in ((A, "clear"), (B, "clear"), (C, "rain")):
            node.heard(PeerReport(kid, said(hour, word, "sky")), now)
        node.settle(now)
    now = T0 + 200 * HOUR
    assert node.trust.of(A, "sky", now) > 0.9
    assert 0.2 < node.trust.of(C, "sky", now) < 0.4


# --- who is heard ----------------------------------------------------------------------


def test_what_is_no_voice() -> None:
    node = Synthesiser(DOMAIN, window=HOUR, me=ME)
    now = T0 + 1000 * HOUR
    fine = said(999, 20.0)
    assert node.heard(PeerReport(A, fine), now)
    assert not node.heard(PeerReport(B, fine, estimate=True), now)
    assert not node.heard(PeerReport(ME, fine), now)
    assert not node.heard(
        PeerReport(B, Outcome(fine.time, Kind.OPEN, results={"temperature": 1.0})), now
    )
    assert not node.heard(PeerReport(B, said(1001, 20.0)), now)
    assert not node.heard(PeerReport(B, said(999 - synthesis.HISTORY, 20.0)), now)
    assert node.peers() == {A: fine.time}


def test_estimates_never_feed_estimates() -> None:
    node = live({A: noisy(seed=1), B: noisy(seed=2)}, 72)
    node.settle(T0 + 80 * HOUR)
    before = node.estimate(T0 + 72 * HOUR)
    for hour in range(60, 73):
        node.heard(PeerReport(C, said(hour, 59.0), estimate=True), T0 + 73 * HOUR)
    node.settle(T0 + 80 * HOUR)
    assert node.estimate(T0 + 72 * HOUR) == before
    assert node.bias(C, "temperature", T0) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 61.0, 1e300, "warm", None])
def test_what_is_not_plausible_is_no_voice(value: Value) -> None:
    node = live({A: noisy(seed=1), B: noisy(seed=2)}, 72)
    before = temperature(node, 71)
    node.heard(PeerReport(C, said(71, value)), T0 + 72 * HOUR)
    assert temperature(node, 71) == before


def test_unknown_results_are_passed_over() -> None:
    node = Synthesiser(DOMAIN, window=HOUR)
    node.heard(PeerReport(A, Outcome(T0, results={"humidity": 1.0, 77: 2.0})), T0 + HOUR)
    node.measured(Outcome(T0, results={"humidity": 1.0}))
    node.settle(T0 + 10 * HOUR)
    assert node.estimate(T0).results == {}


def test_a_packet_said_twice_counts_and_teaches_once() -> None:
    once = live({A: noisy(seed=1), B: noisy(seed=2)}, 72)
    twice = Synthesiser(DOMAIN, window=HOUR, me=ME)
    a, b, own = noisy(seed=1), noisy(seed=2), noisy(noise=0.1, seed=9)
    for hour in range(72):
        now = T0 + (hour + 1) * HOUR
        twice.measured(said(hour, own(truth(hour), hour)))
        reports = [PeerReport(kid, said(hour, p(truth(hour), hour))) for kid, p in ((A, a), (B, b))]
        for report in reports * 3:
            twice.heard(report, now)
        twice.settle(now)
        for report in reports:
            twice.heard(report, now + 5 * HOUR)
    assert twice.state() == once.state()
    assert temperature(twice, 72) == temperature(once, 72)


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_the_order_of_arrival_within_a_window_does_not_matter(rng: random.Random) -> None:
    peers = [(kid, noisy(n, seed=n)) for n, kid in enumerate((A, B, C, D))]
    shuffled, plain = (Synthesiser(DOMAIN, window=HOUR, me=ME) for _ in range(2))
    for hour in range(20):
        now = T0 + (hour + 1) * HOUR
        reports = [PeerReport(kid, said(hour, peer(truth(hour), hour))) for kid, peer in peers]
        for node in (plain, shuffled):
            if node is shuffled:
                rng.shuffle(reports)
                node.measured(said(hour, truth(hour)))
            for report in reports:
                node.heard(report, now)
            if node is plain:
                node.measured(said(hour, truth(hour)))
            node.settle(now)
    ours, theirs = temperature(plain, 20), temperature(shuffled, 20)
    assert ours.value == theirs.value
    assert ours.weight == pytest.approx(theirs.weight)


def test_a_backlog_that_comes_days_late_teaches_as_well() -> None:
    node = live({}, 72)
    peer = noisy(4.0, seed=3)
    hours = list(range(72))
    random.Random(5).shuffle(hours)
    for hour in hours:
        assert node.heard(PeerReport(A, said(hour, peer(truth(hour), hour))), T0 + 75 * HOUR)
    node.settle(T0 + 76 * HOUR)
    assert node.bias(A, "temperature", T0) == pytest.approx(-4.0, abs=0.5)


# --- liars and failures ------------------------------------------------------------------


def test_a_liar_loses_its_trust_and_its_weight() -> None:
    rng = random.Random(4)
    peers: dict[bytes, Peer] = {
        A: noisy(seed=1),
        B: noisy(seed=2),
        C: lambda _, hour: rng.uniform(-40, 60),
    }
    node = live(peers, 72)
    now = T0 + 72 * HOUR
    assert node.trust.weight(C, "temperature", now) == 0.0
    assert node.trust.of(A, "temperature", now) > 0.7
    made = temperature(node, 71, own=False)
    assert made.contributors == 2
    assert number(made) == pytest.approx(truth(71), abs=1.2)


def test_a_peer_that_breaks_is_out_within_hours() -> None:
    def breaks(value: float, hour: int) -> float:
        return 40.0 if hour >= 96 else round(value, 1)

    node = live({A: noisy(seed=1), B: noisy(seed=2), C: breaks}, 96)
    assert node.trust.of(C, "temperature", T0 + 96 * HOUR) > 0.7
    live({A: noisy(seed=3), B: noisy(seed=4), C: breaks}, 9, node=node, begin=96)
    assert node.trust.weight(C, "temperature", T0 + 105 * HOUR) == 0.0


def test_our_failing_sensor_does_not_condemn_honest_peers() -> None:
    peers = {A: noisy(1.0, seed=1), B: noisy(-1.0, seed=2)}
    node = live(peers, 96)
    bias = node.bias(A, "temperature", T0)
    assert node.doubtful == ()
    live(peers, 48, lambda value, hour: -20.0, node, 96)
    now = T0 + 144 * HOUR
    for kid in (A, B):
        assert node.trust.of(kid, "temperature", now) > 0.7
    # Nor does it unlearn what was known of them, nor is it a voice.
    assert list(node.doubtful) == ["temperature"]
    assert node.bias(A, "temperature", T0) == pytest.approx(bias, abs=1.0)
    assert number(temperature(node, 143)) == pytest.approx(truth(143), abs=1.5)
    live(peers, 12, node=node, begin=144)
    assert node.doubtful == ()


def test_two_voices_exclude_nobody() -> None:
    rng = random.Random(4)
    node = live({A: lambda value, hour: rng.uniform(-40, 60)}, 96)
    assert node.trust.senders(T0) == {}
    assert temperature(node, 95, own=False).contributors == 1


def test_without_our_own_voice_nobody_is_judged() -> None:
    rng = random.Random(4)
    liar: Peer = lambda value, hour: rng.uniform(-40, 60)  # noqa: E731 - one line says it
    node = live({A: noisy(seed=1), B: noisy(seed=2), C: liar}, 96, absent)
    assert node.trust.senders(T0) == {}


def test_a_sender_that_is_always_off_is_corrected_not_condemned() -> None:
    node = live({A: noisy(seed=1), B: noisy(seed=2), C: noisy(25.0, seed=3)}, 96)
    assert node.trust.of(C, "temperature", T0 + 96 * HOUR) > 0.7
    assert temperature(node, 95, own=False).contributors == 3


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=30))
def test_one_hostile_peer_of_three_cannot_poison_an_estimate(wild: list[float]) -> None:
    peers: dict[bytes, Peer] = {A: noisy(seed=1), B: noisy(seed=2)}
    node = live({**peers, C: lambda _, hour: wild[hour % len(wild)]}, 60)
    made = temperature(node, 59, own=False)
    assert number(made) == pytest.approx(truth(59), abs=2.0)
    assert math.isfinite(made.spread)
    json.dumps(node.state(), allow_nan=False)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from([A, B, C, D]), st.integers(0, 30), st.floats()), max_size=80)
)
def test_no_report_makes_anything_but_finite_numbers(
    reports: list[tuple[bytes, int, float]],
) -> None:
    node = Synthesiser(DOMAIN, window=HOUR, me=ME)
    for hour in range(30):
        node.measured(said(hour, 3.0, "level"))
    for kid, hour, value in reports:
        node.heard(PeerReport(kid, said(hour, value, "level")), T0 + 31 * HOUR)
    node.settle(T0 + 40 * HOUR)
    for own in (True, False):
        for one in node.estimate(T0 + 31 * HOUR, own=own).results.values():
            assert math.isfinite(number(one))
            assert math.isfinite(one.spread)
            assert math.isfinite(one.weight)
            assert one.spread >= 0
    json.dumps(node.state(), allow_nan=False)


# --- bounds ----------------------------------------------------------------------------


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "MOST_PEERS", 20)
    monkeypatch.setattr(synthesis, "MOST_WAITING", 100)
    node = Synthesiser(DOMAIN, window=HOUR, me=ME)
    for hour in range(3):
        for n in range(200):
            report = PeerReport(n.to_bytes(8), said(hour, 20.0))
            node.heard(report, T0 + 10 * HOUR)
    assert len(node.peers()) == 20
    assert node._waiting <= 100
    node.settle(T0 + 10 * HOUR)
    assert node._waiting == 0
    for hour in range(1000):
        node.measured(said(hour, 20.0))
        node.settle(T0 + hour * HOUR)
    assert len(node._windows) <= synthesis.HISTORY + 5


def test_a_thousand_peers_are_weighed() -> None:
    node = Synthesiser(DOMAIN, window=HOUR, me=ME)
    for n in range(1000):
        node.heard(PeerReport(n.to_bytes(8), said(0, 20.0 + n % 11 / 10)), T0 + HOUR)
    made = temperature(node, 0)
    assert made.contributors == 1000
    assert number(made) == pytest.approx(20.5, abs=0.5)


def test_peers_with_other_windows_fall_into_ours() -> None:
    node = Synthesiser(DOMAIN, window=HOUR, me=ME)
    for hour in range(24):
        now = T0 + (hour + 1) * HOUR
        node.measured(said(hour, 20.0))
        late = Outcome(T0 + hour * HOUR + 1234, samples=60, results={"temperature": 17.0})
        node.heard(PeerReport(A, late), now)
        node.settle(now)
    node.settle(T0 + 30 * HOUR)
    assert node.bias(A, "temperature", T0) == pytest.approx(3.0)


# --- keeping ---------------------------------------------------------------------------


def test_what_was_learned_is_restored() -> None:
    peers = {A: noisy(5.0, seed=1), B: noisy(-3.0, seed=2), C: noisy(0.0, 9.0, seed=3)}
    node = live(peers, 96)
    state = json.loads(json.dumps(node.state()))
    again = Synthesiser(DOMAIN, window=HOUR, me=ME, state=state)
    for kid in peers:
        assert again.bias(kid, "temperature", T0) == pytest.approx(
            node.bias(kid, "temperature", T0), abs=1e-3
        )
        now = T0 + 96 * HOUR
        assert again.trust.of(kid, "temperature", now) == pytest.approx(
            node.trust.of(kid, "temperature", now), abs=1e-3
        )
    assert again.estimate(T0 + 96 * HOUR).results == {}  # values are not state
    for one in (node, again):
        for kid in peers:
            one.heard(PeerReport(kid, said(96, 20.0)), T0 + 97 * HOUR)
    new, old = (temperature(one, 96, own=False) for one in (again, node))
    assert new.value == old.value
    assert new.weight == pytest.approx(old.weight, rel=1e-2)


@given(
    st.recursive(
        st.one_of(st.none(), st.floats(), st.text(max_size=4)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=5),
            st.dictionaries(
                st.sampled_from(["trust", "bias", "course", "aa", "temperature", "zz"]),
                inner,
                max_size=3,
            ),
        ),
        max_leaves=12,
    )
)
def test_a_state_that_makes_no_sense_is_as_if_unlearned(junk: object) -> None:
    node = Synthesiser(DOMAIN, window=HOUR, me=ME, state=junk)
    node.measured(said(0, 20.0))
    node.heard(PeerReport(A, said(0, 20.0)), T0 + HOUR)
    node.settle(T0 + 10 * HOUR)
    assert number(temperature(node, 0)) == pytest.approx(20.0)


# --- as an outcome ---------------------------------------------------------------------


def test_an_estimate_as_an_outcome() -> None:
    results = {
        "temperature": ResultEstimate(20.5, 1.0, 3, 3.0),
        "sky": ResultEstimate("rain", 0.0, 2, 1.0, 0.8),
    }
    outcome = as_outcome(Estimate(T0, results))
    assert outcome.results == {"temperature": 20.5, "sky": "rain"}
    assert (outcome.time, outcome.kind, outcome.samples) == (T0, Kind.RESOLVED, 3)
    assert outcome.confidence == pytest.approx((0.75 + 0.4) / 2, abs=0.01)
    assert DOMAIN.quantise(outcome) == outcome

    split = {"sky": ResultEstimate("rain", 0.0, 5, 3.0, 0.4)}
    assert as_outcome(Estimate(T0, split)).kind is Kind.CONTRADICTED
    single = {"level": ResultEstimate(1.0, 0.0, 1, 1.0)}
    assert as_outcome(Estimate(T0, single)).kind is Kind.PARTIAL
    nothing = as_outcome(Estimate(T0, {}))
    assert (nothing.kind, nothing.results, nothing.confidence) == (Kind.OPEN, {}, 0.0)


# --- on real readings ------------------------------------------------------------------


def test_real_weather_is_estimated_at_less_than_half_the_error_of_holding() -> None:
    path = Path(__file__).parents[2] / "gateway" / "demo_data" / "weather-nyc-2013.csv"
    table: dict[str, dict[int, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["temperature"]:
                start = int(datetime.fromisoformat(row["time"]).timestamp())
                table.setdefault(row["station"], {})[start] = float(row["temperature"])
    weather = Domain.load("weather")
    estimated = hold = 0.0
    for n, station in enumerate(table):
        node = Synthesiser(weather, window=HOUR, me=station.encode())
        first = min(table[station]) + n * 96 * HOUR
        held = 0.0
        for hour in range(48 + 48):
            start = first + hour * HOUR
            now = start + HOUR
            own = table[station].get(start)
            for peer, values in table.items():
                if peer != station and start - HOUR in values:
                    theirs = Outcome(start - HOUR, results={"temperature": values[start - HOUR]})
                    node.heard(PeerReport(peer.encode(), theirs), now)
            if own is not None and hour < 48:
                held = own
                node.measured(Outcome(start, results={"temperature": own}))
            elif own is not None:
                made = node.estimate(start, now).results["temperature"]
                estimated += abs(number(made) - own)
                hold += abs(held - own)
            node.settle(now)
    assert estimated < hold / 2
