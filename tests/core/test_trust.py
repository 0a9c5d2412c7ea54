"""Trust: who judges whom, how fast, and how it is forgotten."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core.trust import (
    HALF_LIFE,
    MOST_SENDERS,
    NEUTRAL,
    OTHER_WORD,
    OUT,
    Consensus,
    Trust,
    consensus,
)

A, B = b"peer-aaa", b"peer-bbb"
HOUR = 3600


def judged(agreements: list[float], result: str = "temperature") -> Trust:
    trust = Trust()
    for hour, agreement in enumerate(agreements):
        trust.judge(A, result, agreement, hour * HOUR)
    return trust


# --- consensus -------------------------------------------------------------------------


def test_two_voices_agree_upon_nothing() -> None:
    assert consensus([], 1.0) is None
    assert consensus([1.0, 2.0], 1.0) is None


def test_three_voices_have_a_median() -> None:
    agreed = consensus([20.0, 21.0, 90.0], 1.0)
    assert agreed == Consensus(21.0, 1.0, 3)
    assert agreed.agreement(21.5) == 1.0
    assert agreed.agreement(24.0) == 1.0
    assert agreed.agreement(25.5) == pytest.approx(0.5)
    assert agreed.agreement(27.0) == 0.0
    assert agreed.agreement(90.0) == 0.0


def test_voices_that_differ_widely_condemn_less() -> None:
    agreed = consensus([0.0, 10.0, 20.0, 30.0, 40.0], 1.0)
    assert agreed is not None
    assert agreed.scale == 10.0
    assert agreed.agreement(40.0) == 1.0


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(-1e30, 1e30))
def test_one_voice_never_carries_the_consensus_away(honest: list[float], wild: float) -> None:
    agreed = consensus([*honest, wild], 1.0)
    assert agreed is not None
    assert min(honest) <= agreed.value <= max(honest)
    assert 0.0 <= agreed.agreement(wild) <= 1.0


# --- scores ----------------------------------------------------------------------------


def test_a_stranger_is_neutral() -> None:
    trust = Trust()
    assert trust.of(A, "temperature", 0) == NEUTRAL
    assert trust.weight(A, "temperature", 0) == NEUTRAL
    assert trust.sender(A, 0) == NEUTRAL
    assert trust.senders(0) == {}


def test_trust_is_won_slowly_and_lost_fast() -> None:
    good = judged([1.0] * 48)
    assert 0.85 < good.of(A, "temperature", 48 * HOUR) < 1.0
    assert good.weight(A, "temperature", 48 * HOUR) == good.of(A, "temperature", 48 * HOUR)
    bad = judged([1.0] * 480 + [0.0] * 5)
    assert bad.of(A, "temperature", 485 * HOUR) < OUT
    assert bad.weight(A, "temperature", 485 * HOUR) == 0.0


def test_an_honest_sender_with_bad_hours_stays_in() -> None:
    hours = [0.0 if hour % 12 == 0 else 1.0 for hour in range(240)]
    trust = Trust()
    lowest = 1.0
    for hour, agreement in enumerate(hours):
        trust.judge(A, "temperature", agreement, hour * HOUR)
        lowest = min(lowest, trust.of(A, "temperature", hour * HOUR))
    assert lowest > 2 * OUT


def test_other_words_put_nobody_out() -> None:
    trust = judged([OTHER_WORD] * 1000, "sky")
    assert trust.weight(A, "sky", 1000 * HOUR) > 2 * OUT


def test_trust_decays_towards_neutral() -> None:
    for agreement in (0.0, 1.0):
        trust = judged([agreement] * 200)
        now = 200 * HOUR
        first = abs(trust.of(A, "temperature", now) - NEUTRAL)
        later = abs(trust.of(A, "temperature", now + HALF_LIFE) - NEUTRAL)
        assert later == pytest.approx(first / 2, rel=0.01)
        assert trust.of(A, "temperature", now + 100 * HALF_LIFE) == pytest.approx(NEUTRAL)


def test_who_is_out_comes_back_in_time() -> None:
    trust = judged([0.0] * 50)
    assert trust.weight(A, "temperature", 50 * HOUR) == 0.0
    assert trust.weight(A, "temperature", 50 * HOUR + HALF_LIFE) > OUT


def test_one_bad_result_does_not_condemn_the_others() -> None:
    trust = Trust()
    for hour in range(50):
        trust.judge(A, "temperature", 0.0, hour * HOUR)
        trust.judge(A, "pressure", 1.0, hour * HOUR)
    now = 50 * HOUR
    assert trust.weight(A, "temperature", now) == 0.0
    assert trust.weight(A, "pressure", now) > 0.8
    assert trust.sender(A, now) == pytest.approx(
        (trust.of(A, "temperature", now) + trust.of(A, "pressure", now)) / 2
    )


def test_a_sender_that_is_bad_on_average_is_out_altogether() -> None:
    trust = Trust()
    for hour in range(60):
        for result in ("a", "b", "c", "d"):
            trust.judge(A, result, 0.0, hour * HOUR)
        trust.judge(A, "e", 0.3, hour * HOUR)
    now = 60 * HOUR
    assert trust.of(A, "e", now) > OUT
    assert trust.sender(A, now) < OUT
    assert trust.weight(A, "e", now) == 0.0


def test_an_old_judgement_does_not_turn_time_back() -> None:
    trust = judged([1.0] * 48)
    trust.judge(A, "temperature", 1.0, 0)
    later = trust.state()[A.hex()]["temperature"][1]
    assert later == 47 * HOUR


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1e10)), max_size=50))
def test_scores_stay_scores(judgements: list[tuple[float, float]]) -> None:
    trust = Trust()
    for agreement, now in judgements:
        trust.judge(A, "x", agreement, now)
        assert 0.0 <= trust.of(A, "x", now) <= 1.0
        assert 0.0 <= trust.weight(A, "x", now + 1e9) <= 1.0


def test_senders_are_forgotten_when_there_are_too_many() -> None:
    trust = Trust()
    for n in range(MOST_SENDERS + 10):
        trust.judge(n.to_bytes(8), "x", 1.0, n)
    assert len(trust.senders(0)) == MOST_SENDERS
    assert trust.of(bytes(8), "x", 0) == NEUTRAL
    last = (MOST_SENDERS + 9).to_bytes(8)
    trust.forget(last)
    assert trust.of(last, "x", 1e6) == NEUTRAL


# --- keeping ---------------------------------------------------------------------------


def test_trust_is_restored() -> None:
    trust = judged([1.0] * 48)
    trust.judge(B, "pressure", 0.0, 7)
    again = Trust.restored(json.loads(json.dumps(trust.state())))
    for kid in (A, B):
        for result in ("temperature", "pressure"):
            assert again.of(kid, result, 1e6) == pytest.approx(trust.of(kid, result, 1e6), abs=1e-4)


@given(
    st.recursive(
        st.one_of(st.none(), st.floats(), st.text(max_size=4), st.integers()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from(["aa", "x", "", "zz"]), inner, max_size=3),
        ),
        max_leaves=8,
    )
)
def test_a_state_that_makes_no_sense_is_passed_over(junk: object) -> None:
    trust = Trust.restored(junk)
    assert all(0.0 <= score <= 1.0 for score in trust.senders(1e9).values())


def test_half_a_state_is_half_restored() -> None:
    good = [0.9, 100.0]
    state = {"aa": {"x": good, "y": [2.0, 0], "z": "no"}, "not hex": {"x": good}, "bb": [1]}
    trust = Trust.restored(state)
    assert trust.state() == {"aa": {"x": good}}
    assert Trust.restored({"aa": {"x": [math.nan, 0]}}).state() == {}
