"""A survey counts what arrived, and says what to make of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core.mesh.framing import Pong, Signal
from qis_edge.core.mesh.survey import (
    MOST_RADIOS,
    REMEMBERED,
    Spread,
    Survey,
    Verdict,
)

FAR, OTHER = 0x11, 0x22
LIMIT = -17.5


def nonce(number: int) -> bytes:
    return number.to_bytes(4)


def pong(number: int, snr: float = 0.0, left: int = 255, hops: int | None = 0) -> Pong:
    return Pong(nonce(number), Signal(snr, -100, hops), left)


def surveyed(answers: list[bool], snr: float = 0.0, back: float | None = None) -> Survey:
    """One ping a minute, with or without an answer after a second."""
    survey = Survey(10.0, 20.0)
    heard = Signal(snr if back is None else back, -90, 0)
    for number, answered in enumerate(answers):
        now = 60.0 * number
        survey.sent(nonce(number), now, 500.0)
        if answered:
            survey.heard(FAR, pong(number, snr), heard, now + 1.0)
        survey.expired(now + 10.0)
    return survey


def test_answers_are_matched_measured_and_counted_once() -> None:
    survey = Survey(10.0, 20.0)
    assert survey.sent(b"aaaa", 100.0, 480.0) == 1
    reply = survey.heard(FAR, Pong(b"aaaa", Signal(-3.0, -110, 1), 9), Signal(2.0, -99), 101.5)
    assert reply is not None
    assert (reply.number, reply.radio, reply.seconds, reply.late) == (1, FAR, 1.5, False)
    assert survey.heard(FAR, Pong(b"aaaa"), None, 102.0) is None
    assert survey.heard(FAR, Pong(b"zzzz"), None, 102.0) is None
    assert survey.heard(OTHER, Pong(b"aaaa"), None, 102.0) is not None
    summary = survey.summary(LIMIT)
    assert (summary.sent, summary.counted, summary.answered) == (1, 1, 1)
    assert summary.airtime_ms == 480.0
    assert {one.radio for one in summary.reached} == {FAR, OTHER}
    far = next(one for one in summary.reached if one.radio == FAR)
    assert far.seconds == (1.5, 1.5, 1.5)
    assert far.margin == pytest.approx(14.5)
    assert far.relayed


def test_waiting_for_a_slot_is_no_part_of_the_round_trip() -> None:
    survey = Survey(10.0, 20.0, slot=0.5)
    survey.sent(b"aaaa", 0.0, 1.0)
    reply = survey.heard(FAR, Pong(b"aaaa", None, 9, slot=3), None, 2.0)
    assert reply is not None
    assert (reply.seconds, reply.slot) == (0.5, 3)
    reply = survey.heard(OTHER, Pong(b"aaaa", None, 9, slot=7), None, 2.0)
    assert reply is not None
    assert reply.seconds == 0.0  # a lie of the other end's


def test_silence_is_loss_and_a_late_answer_is_one_all_the_same() -> None:
    survey = Survey(10.0, 20.0)
    survey.sent(b"aaaa", 0.0, 1.0)
    survey.sent(b"bbbb", 5.0, 1.0)
    assert survey.next_deadline() == 10.0
    assert survey.expired(9.9) == []
    assert survey.expired(10.0) == [1]
    assert survey.open()
    assert survey.expired(15.0) == [2]
    assert not survey.open()
    assert survey.next_deadline() is None
    assert survey.summary(LIMIT).delivery == 0.0
    reply = survey.heard(FAR, Pong(b"bbbb"), None, 30.0)
    assert reply is not None
    assert reply.late
    summary = survey.summary(LIMIT)
    assert (summary.counted, summary.answered) == (2, 1)


def test_what_was_under_way_when_the_radio_was_lost_counts_for_nothing() -> None:
    survey = surveyed([True, False])
    survey.sent(nonce(9), 200.0, 1.0)
    survey.broken()
    assert survey.expired(300.0) == []
    summary = survey.summary(LIMIT)
    assert (summary.sent, summary.counted, summary.answered) == (3, 2, 1)
    # Unless the radio had kept an answer.
    assert survey.heard(FAR, pong(9), None, 301.0) is not None
    assert survey.summary(LIMIT).answered == 2


def test_who_has_no_answers_left_is_not_asked() -> None:
    survey = Survey(10.0, 20.0)
    assert survey.not_before(0.0) == 0.0
    survey.sent(nonce(1), 0.0, 1.0)
    survey.heard(FAR, pong(1, left=1), None, 1.0)
    assert survey.not_before(1.0) == 1.0
    survey.sent(nonce(2), 2.0, 1.0)  # takes the last one
    assert survey.not_before(2.0) == pytest.approx(21.0)  # there is a twentieth more a second
    survey.heard(FAR, pong(2, left=0), None, 3.0)
    assert survey.not_before(3.0) == pytest.approx(23.0)
    assert survey.not_before(23.0) == pytest.approx(23.0)
    survey.sent(nonce(3), 23.0, 1.0)  # and gets no answer
    assert survey.not_before(24.0) == pytest.approx(43.0)
    # A radio that fell silent holds nobody up.
    assert survey.not_before(100.0) == 100.0


@pytest.mark.parametrize(
    ("answers", "snr", "verdict"),
    [
        ([True] * 20, 0.0, Verdict.GOOD),
        ([True] * 19 + [False], 0.0, Verdict.GOOD),
        ([True] * 18 + [False] * 2, 0.0, Verdict.FAIR),
        ([True] * 20, -10.0, Verdict.FAIR),
        ([True] * 20, -15.0, Verdict.POOR),
        ([True] * 12 + [False] * 8, 5.0, Verdict.POOR),
        ([True] * 4 + [False] * 16, 5.0, Verdict.BAD),
    ],
)
def test_a_verdict_needs_both_delivery_and_margin(
    answers: list[bool], snr: float, verdict: Verdict
) -> None:
    summary = surveyed(answers, snr).summary(LIMIT)
    assert summary.verdict is verdict
    assert summary.reached[0].verdict is verdict


def test_nobody_answers() -> None:
    summary = surveyed([False] * 3).summary(LIMIT)
    assert summary.verdict is None
    assert summary.delivery == 0.0
    assert Survey(1.0, 1.0).summary(LIMIT).delivery == 0.0


def test_the_weaker_way_decides_and_is_named() -> None:
    (far,) = surveyed([True] * 5, snr=-14.0, back=3.0).summary(LIMIT).reached
    assert far.margin == pytest.approx(3.5)
    assert far.lopsided == pytest.approx(-17.0)
    (far,) = surveyed([True] * 5, snr=1.0, back=3.0).summary(LIMIT).reached
    assert far.lopsided is None


def test_the_place_is_as_good_as_all_its_gateways_together() -> None:
    survey = Survey(10.0, 20.0)
    for number in range(20):
        survey.sent(nonce(number), float(number), 1.0)
        survey.heard(FAR if number % 2 else OTHER, pong(number), Signal(0.0, -90), number + 0.5)
    summary = survey.summary(LIMIT)
    assert summary.delivery == 1.0
    assert [one.delivery for one in summary.reached] == [0.5, 0.5]
    assert summary.verdict is Verdict.GOOD


def test_memory_is_bounded() -> None:
    survey = Survey(10.0, 20.0)
    for number in range(REMEMBERED + 10):
        survey.sent(nonce(number), 0.0, 1.0)
    assert survey.summary(LIMIT).counted == 10  # too many at once to tell apart
    newest = nonce(REMEMBERED + 9)
    for radio in range(MOST_RADIOS + 50):
        survey.heard(radio, Pong(newest), None, 1.0)
    assert len(survey.summary(LIMIT).reached) == MOST_RADIOS


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_a_spread_lies_within_its_values_and_in_order(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread is not None
    slack = 1e-6
    assert min(values) - slack <= spread.low <= spread.middle + slack
    assert spread.middle <= spread.high + slack
    assert spread.high <= max(values) + slack


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["send", "pong", "expire", "break"]),
            st.floats(0, 8),
            st.integers(0, 30),
            st.integers(1, 3),
        ),
        max_size=80,
    )
)
def test_whatever_happens_the_count_is_right(steps: list[tuple[str, float, int, int]]) -> None:
    survey = Survey(10.0, 20.0)
    now, sent = 0.0, 0
    answered: set[int] = set()
    for what, wait, number, radio in steps:
        now += wait
        if what == "send":
            survey.sent(nonce(sent), now, 1.0)
            sent += 1
        elif what == "pong":
            if survey.heard(radio, pong(number), None, now) is not None:
                answered.add(number)
        elif what == "expire":
            survey.expired(now)
        else:
            survey.broken()
        assert survey.not_before(now) >= now
    summary = survey.summary(LIMIT)
    assert summary.answered == len(answered) <= summary.counted <= summary.sent == sent
    assert all(0 <= one.delivery <= 1 for one in summary.reached)
