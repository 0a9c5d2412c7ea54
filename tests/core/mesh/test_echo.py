"""Pings are answered by those who should, and no flood of them costs much."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core.errors import Reason, Refused
from qis_edge.core.mesh.allowance import Allowance
from qis_edge.core.mesh.echo import Echo
from qis_edge.core.mesh.framing import PONG_SIZE, Frame, Ping, Pong, Signal, decode
from qis_edge.core.mesh.receiver import Asked, Limits, Receiver
from tests.core.mesh.kit import verify

RADIO = 0x1234
NONCE = b"abcd"
WEAK = Signal(-17.25, -124, 2)


def said(receiver: Receiver, now: float = 0.0) -> list[Frame]:
    """What it says by the time that every slot has passed."""
    frames: list[Frame] = []
    while (frame := receiver.next(now + 8 * receiver.limits.pong_slot)) is not None:
        frames.append(decode(frame))
    return frames


def pongs(receiver: Receiver, now: float = 0.0) -> list[tuple[bytes, Signal | None, int]]:
    """Nonce, signal and how many are left, of pongs and nothing else."""
    found = []
    for frame in said(receiver, now):
        assert isinstance(frame, Pong)
        found.append((frame.nonce, frame.heard, frame.left))
    return found


def test_a_gateway_answers_with_how_it_heard() -> None:
    receiver = Receiver(verify, answers=True)
    assert receiver.take(RADIO, Ping(NONCE, 100).encode(), 0.0, WEAK) == []
    assert pongs(receiver) == [(NONCE, WEAK, 31)]
    assert receiver.next_deadline() is None
    assert receiver.take(RADIO, Ping(NONCE).encode(), 0.0) == []
    assert pongs(receiver) == [(NONCE, None, 30)]


def test_a_pong_waits_for_its_slot() -> None:
    slots = set()
    for number in range(100):
        receiver = Receiver(verify, answers=True)
        receiver.take(RADIO, Ping(number.to_bytes(4)).encode(), 50.0, WEAK)
        due = receiver.next_deadline()
        assert due is not None
        if due > 50.0:
            assert receiver.next(due - 0.01) is None
        pong = decode(receiver.next(due) or b"")
        assert isinstance(pong, Pong)
        assert due == 50.0 + pong.slot * receiver.limits.pong_slot
        slots.add(pong.slot)
    assert slots == set(range(8))


def test_two_who_hear_a_ping_differently_seldom_answer_at_once() -> None:
    clashes = 0
    for number in range(400):
        dues = []
        for signal in (WEAK, Signal(-3.0, -100, 0)):
            receiver = Receiver(verify, answers=True)
            receiver.take(RADIO, Ping(number.to_bytes(4)).encode(), 0.0, signal)
            dues.append(receiver.next_deadline())
        clashes += dues[0] == dues[1]
    assert clashes < 400 / 8 * 1.5


def test_a_node_answers_only_where_it_is_told_to() -> None:
    for echo in (False, True):
        receiver = Receiver(verify, answers=False, echo=echo)
        receiver.take(RADIO, Ping(NONCE).encode(), 0.0, WEAK)
        assert pongs(receiver) == ([(NONCE, WEAK, 31)] if echo else [])


def test_nobody_answers_a_pong() -> None:
    receiver = Receiver(verify, answers=True)
    assert receiver.take(RADIO, Pong(NONCE, WEAK).encode(), 0.0, WEAK) == []
    assert said(receiver) == []


def test_what_nodes_wait_for_goes_before_pongs() -> None:
    receiver = Receiver(verify, answers=True)
    receiver.take(RADIO, Ping(NONCE).encode(), 0.0)
    receiver.answer(Asked(b"ab", 1, RADIO, (), ()), [], 0.0)
    first, second = said(receiver)
    assert not isinstance(first, Pong)
    assert isinstance(second, Pong)


def test_a_flood_of_pings_costs_a_quarter_of_the_duty_cycle_at_most() -> None:
    seconds = 0.4
    limits = Limits.of(lambda _: seconds, duty_cycle=0.1)
    receiver = Receiver(verify, answers=True, limits=limits)
    hours, answers = 3, 0
    for second in range(hours * 3600):
        for _ in range(3):
            receiver.take(second, Ping(second.to_bytes(4)).encode(), second)
        answers += len(said(receiver, second))
    assert answers <= hours * 3600 * 0.1 / 4 / seconds + limits.pongs
    # And a flood spends nothing of what other answers may.
    receiver.take(RADIO, bytes.fromhex("b6616201 00000001 00000001"), 1e5)
    assert len(said(receiver, 1e5)) == 1


def test_pongs_that_wait_are_few_and_new() -> None:
    receiver = Receiver(verify, answers=True, limits=Limits(pongs_waiting=3))
    for number in range(20):
        receiver.take(RADIO, Ping(number.to_bytes(4)).encode(), 0.0)
    assert sorted(pongs(receiver)) == [
        (number.to_bytes(4), None, 31 - number) for number in (17, 18, 19)
    ]


@given(
    st.lists(st.tuples(st.floats(0, 100), st.binary(max_size=12)), max_size=60),
    st.integers(1, 8),
    st.floats(0.5, 50),
)
def test_any_bytes_after_the_type_are_a_ping_or_refused(
    flood: list[tuple[float, bytes]], most: int, every: float
) -> None:
    receiver = Receiver(verify, answers=True, limits=Limits(pongs=most, pong_every=every))
    now, answers = 0.0, 0
    for wait, data in flood:
        now += wait
        try:
            receiver.take(RADIO, b"\xbb" + data, now, WEAK)
        except Refused as refusal:
            assert refusal.reason in (Reason.TRUNCATED, Reason.NON_CANONICAL)
        while (frame := receiver.next(now + 10.0)) is not None:
            answers += 1
            assert len(frame) == PONG_SIZE
    assert answers <= most + now / every


def test_an_echo_counts_what_it_does_not_answer() -> None:
    echo = Echo(2, 10.0, 4, 1.0)
    assert [echo.take(Ping(NONCE), None, at) for at in (0.0, 0.0, 0.0, 10.0)] == [
        True, True, False, True,
    ]  # fmt: skip
    assert (len(echo), echo.refused) == (3, 1)


@given(st.lists(st.floats(0, 1e4), max_size=50), st.integers(1, 5), st.floats(0.1, 100))
def test_an_allowance_is_never_exceeded(times: list[float], most: int, every: float) -> None:
    allowance = Allowance(most, every)
    taken = [now for now in times if allowance.take(now)]  # even if the clock jumps about
    assert len(taken) <= most + max(times, default=0.0) / every + 1e-6
