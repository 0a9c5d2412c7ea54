"""The sender: bursts, questions, and nothing resent on a guess."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qis_edge.core.airtime import PRESETS, airtime_ms
from qis_edge.core.custody import Custody
from qis_edge.core.errors import UsageError
from qis_edge.core.mesh.elision import Context
from qis_edge.core.mesh.framing import (
    Answer,
    Elided,
    Frame,
    Missing,
    Part,
    Poll,
    Tile,
    Unknown,
    Whole,
    decode,
)
from qis_edge.core.mesh.sender import Sender, Timing
from qis_edge.core.packet import Packet
from tests.core.mesh.kit import GATEWAY, NODES, packet, receipt_for

NAME = Context.of(packet()).name


def airtime(size: int) -> float:
    return airtime_ms(size, PRESETS["LONG_FAST"]) / 1000


TIMING = Timing.of(airtime)


class Node:
    """A sender with a clock that stands still until it is moved."""

    def __init__(self, window: int = 8, *, spread: float = 0.0, draw: float = 0.0) -> None:
        custody: Custody[int] = Custody(lambda: 0.0, pace=TIMING.pace(window))
        self.sender = Sender(custody, TIMING, lambda: draw, spread=spread)
        self.now = 0.0
        self.sender.link_up(0.0)

    def offer(self, *packets: Packet, priority: int = 0) -> None:
        for one in packets:
            self.sender.offer(one.sequence, one, priority, self.now)

    def burst(self) -> list[Frame]:
        frames = []
        while (frame := self.sender.next(self.now)) is not None:
            assert len(frame) <= 200
            self.now += airtime(len(frame))
            frames.append(decode(frame))
        return frames

    def sleep(self) -> None:
        deadline = self.sender.next_deadline()
        assert deadline is not None
        assert deadline > self.now
        assert self.burst() == []
        self.now = deadline

    def take(self, frame: Answer | Missing | Unknown) -> None:
        self.sender.take(frame, self.now)

    def receipted(self, *sequences: int) -> None:
        self.sender.answered(GATEWAY.kid, self.now, held=sequences)

    def fall_silent(self) -> None:
        """What was sent is asked about until nobody seems to be there."""
        self.burst()
        while not self.sender.silent:
            self.sleep()
            self.burst()


def answer(*packets: Packet, round_: int = 0, parts: tuple[Part, ...] = ()) -> Answer:
    return Answer(NAME, round_, parts, (receipt_for(packets),) if packets else ())


def test_a_burst_is_a_window_and_asks_in_its_last_frame() -> None:
    node = Node(window=8)
    node.offer(*(packet(n) for n in range(12)))
    frames = node.burst()
    assert len(frames) == 8
    assert all(isinstance(frame, Elided) for frame in frames)
    assert [getattr(frame, "ask", None) for frame in frames] == [False] * 7 + [True]


def test_the_answer_settles_the_burst_and_what_it_does_not_name_goes_again() -> None:
    node = Node(window=8)
    packets = [packet(n) for n in range(12)]
    node.offer(*packets)
    first = node.burst()
    node.receipted(0, 1, 2, 4, 5, 6, 7)
    node.take(answer(*packets[:3], *packets[4:8]))
    second = node.burst()
    assert len(second) == 5
    assert second[0] == first[3]
    node.receipted(3, 8, 9, 10, 11)
    node.take(answer(packets[3], *packets[8:]))
    assert node.burst() == []
    assert len(node.sender) == len(node.sender.custody) == 0
    assert node.sender.next_deadline() is None
    assert node.sender.polls == 0


def test_without_an_answer_it_polls_ever_more_rarely_and_sends_nothing_else() -> None:
    node = Node()
    node.offer(packet(5), packet(7), packet(36))
    assert len(node.burst()) == 3
    times = []
    for _ in range(12):
        node.sleep()
        (poll,) = node.burst()
        assert isinstance(poll, Poll)
        assert poll.sequences == (5, 7, 36)
        times.append(node.now)
    gaps = [round(late - early, 6) for early, late in pairwise(times)]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 8 * gaps[0]
    assert node.sender.silent


def test_polls_never_wait_longer_than_a_quarter_of_an_hour() -> None:
    node = Node()
    node.offer(packet(1))
    node.burst()
    for _ in range(40):
        before = node.now
        node.sleep()
        node.burst()
        assert node.now - before <= 900 + 10


def test_a_poll_that_was_answered_resends_only_what_it_asked_about() -> None:
    node = Node()
    far = [packet(1), packet(2), packet(100)]
    node.offer(*far)
    node.burst()
    node.sleep()
    (poll,) = node.burst()
    assert isinstance(poll, Poll)
    assert poll.sequences == (1, 2)
    node.receipted(1)
    node.take(answer(far[0], round_=poll.round))
    # 100 was not asked about yet: that comes first, and needs no wait.
    (second,) = node.burst()
    assert isinstance(second, Poll)
    assert second.sequences == (100,)
    node.receipted(100)
    node.take(answer(far[2], round_=second.round))
    (again,) = node.burst()
    assert isinstance(again, Elided)
    assert again.ask


def test_an_answer_to_something_else_settles_nothing() -> None:
    node = Node()
    node.offer(packet(1), packet(2))
    node.burst()
    node.sleep()
    (poll,) = node.burst()
    assert isinstance(poll, Poll)
    node.take(answer(round_=poll.round + 1))
    node.take(Answer(b"zz", poll.round))
    assert node.burst() == []
    node.take(Answer(NAME, poll.round))
    assert len(node.burst()) == 2


def test_what_an_answer_names_is_not_resent_but_not_believed_either() -> None:
    node = Node()
    packets = [packet(1), packet(2)]
    node.offer(*packets)
    node.burst()
    forged = answer(*packets)
    node.take(forged)  # and no receipt verified
    assert node.burst() == []
    assert len(node.sender) == 2
    for _ in range(50):
        deadline = node.sender.next_deadline()
        assert deadline is not None
        node.now = max(node.now, deadline)
        if frames := node.burst():
            break
    assert any(isinstance(frame, Elided) for frame in frames)


def test_of_a_long_packet_only_the_missing_tiles_go_again() -> None:
    node = Node()
    long = packet(1, words=330)
    node.offer(packet(0), long)
    frames = node.burst()
    tiles = [frame for frame in frames if isinstance(frame, Tile)]
    assert len(tiles) >= 2
    node.receipted(0)
    node.take(answer(packet(0), parts=(Part(tiles[0].tag, 0b01),)))
    again = node.burst()
    assert [frame.index for frame in again if isinstance(frame, Tile)] == [
        tile.index for tile in tiles[1:]
    ]
    # Nothing of it is there any more: all of it.
    node.take(Answer(NAME, 0))
    assert len(node.burst()) == len(tiles)


def test_tiles_that_are_missed_while_it_waits_go_at_once() -> None:
    node = Node()
    node.offer(packet(1, words=330))
    tiles = [frame for frame in node.burst() if isinstance(frame, Tile)]
    node.take(Missing(Part(b"zz", 1)))
    assert node.burst() == []
    node.take(Missing(Part(tiles[0].tag, 0b10)))
    assert [frame.index for frame in node.burst() if isinstance(frame, Tile)] == [0]


def test_an_unknown_context_brings_one_packet_whole_and_not_soon_another() -> None:
    node = Node()
    node.offer(packet(1), packet(2))
    node.burst()
    node.take(Unknown(NAME))
    (whole,) = node.burst()
    assert whole == Whole(packet(1).raw, ask=True)
    node.take(Unknown(NAME))
    assert node.burst() == []
    node.take(Unknown(b"zz"))
    assert node.burst() == []
    while not node.sender.silent:
        node.sleep()
        node.burst()
    node.now += 2 * TIMING.answer
    node.sender.take(Unknown(NAME), node.now)
    assert not node.sender.silent
    assert any(isinstance(frame, Whole) for frame in node.burst())


def test_into_silence_what_is_urgent_and_new_goes_once() -> None:
    node = Node()
    node.offer(packet(1))
    node.burst()
    while not node.sender.silent:
        node.sleep()
        node.burst()
    node.offer(packet(2), priority=0)
    assert node.burst() == []
    node.offer(packet(3), priority=3)
    (frame,) = node.burst()
    assert isinstance(frame, Elided)
    assert frame.ask
    assert node.burst() == []


def test_what_was_withdrawn_or_refused_or_postponed_is_not_asked_about() -> None:
    node = Node()
    node.offer(*(packet(n) for n in range(1, 5)))
    node.burst()
    assert node.sender.withdraw(1)
    node.sender.answered(GATEWAY.kid, node.now, refused=[(12, [2])], later=[(50_000.0, [3])])
    node.sleep()
    (poll,) = node.burst()
    assert isinstance(poll, Poll)
    assert poll.sequences == (4,)


def test_a_link_that_comes_back_asks_first() -> None:
    node = Node()
    packets = [packet(n) for n in range(3)]
    node.offer(*packets)
    node.burst()
    node.sender.link_down(node.now)
    assert node.burst() == []
    assert node.sender.next_deadline() is None
    node.sender.link_up(node.now)
    (poll,) = node.burst()
    assert isinstance(poll, Poll)
    node.receipted(0, 2)
    node.take(answer(packets[0], packets[2], round_=poll.round))
    assert len(node.burst()) == 1


def test_packets_of_two_stores_are_asked_about_apart() -> None:
    node = Node()
    old, new = packet(1, store=b"old1"), packet(2)
    node.offer(old, new)
    node.burst()
    node.receipted(2)
    node.take(answer(new))
    (poll,) = node.burst()
    assert isinstance(poll, Poll)
    assert poll.context == Context.of(old).name
    assert poll.sequences == (1,)


def test_timers_come_from_airtime() -> None:
    slow = Timing.of(lambda size: airtime_ms(size, PRESETS["LONG_SLOW"]) / 1000)
    fast = Timing.of(lambda size: airtime_ms(size, PRESETS["SHORT_FAST"]) / 1000)
    assert fast.answer < TIMING.answer < slow.answer
    assert Timing.of(airtime, relays=2).answer > TIMING.answer + 4
    assert TIMING.pace().window == 16
    assert TIMING.pace().first_timeout > 16 * airtime(200)
    with pytest.raises(UsageError):
        TIMING.pace(window=7)


def test_frames_of_another_node_change_nothing() -> None:
    node = Node()
    node.offer(packet(1))
    node.burst()
    theirs = packet(1, node=NODES[1])
    node.take(Answer(Context.of(theirs).name, 0, (), (receipt_for([theirs]),)))
    assert node.burst() == []
    node.sleep()
    assert isinstance(node.burst()[0], Poll)


def test_a_burst_begins_after_a_draw_and_what_is_urgent_at_once() -> None:
    node = Node(spread=20.0, draw=0.5)
    node.offer(packet(1))
    assert node.burst() == []
    node.sleep()
    assert node.now == pytest.approx(10.0)
    assert len(node.burst()) == 1
    node.receipted(1)
    node.offer(packet(2))
    assert node.burst() == []
    node.offer(packet(3), priority=3)
    assert node.sender.next_deadline() == node.now
    assert len(node.burst()) == 2


def test_a_burst_gives_way_to_a_peer_and_then_begins() -> None:
    node = Node(spread=20.0, draw=0.5)
    node.offer(packet(1))
    assert node.burst() == []
    node.now = 9.0
    node.sender.overheard(node.now)
    node.sleep()
    assert node.now == pytest.approx(9.0 + TIMING.turnaround + 10.0)
    assert len(node.burst()) == 1


def test_a_burst_that_has_begun_goes_on() -> None:
    node = Node(spread=20.0)
    node.offer(packet(1), packet(2))
    first = node.sender.next(node.now)
    node.sender.overheard(node.now)
    assert first is not None
    assert len(node.burst()) == 1


def test_peers_that_never_end_hold_nothing_back_for_ever() -> None:
    node = Node(spread=20.0, draw=0.5)
    node.offer(packet(1))
    assert node.burst() == []
    while not (sent := node.burst()):
        node.sender.overheard(node.now)
        node.now += 2.0
        assert node.now < 300.0
    assert node.now > 200.0
    assert len(sent) == 1


def test_a_poll_gives_way_too() -> None:
    node = Node(spread=20.0)
    node.offer(packet(1))
    node.burst()
    deadline = node.sender.next_deadline()
    assert deadline is not None
    node.now = deadline
    node.sender.overheard(node.now)
    assert node.burst() == []
    node.sleep()
    assert isinstance(node.burst()[0], Poll)


def test_an_answer_to_a_peer_ends_a_silent_nodes_waiting() -> None:
    theirs = packet(1, node=NODES[1])
    to_them = Answer(Context.of(theirs).name, 0, (), (receipt_for([theirs]),))
    node = Node()
    node.offer(packet(1))
    node.fall_silent()
    for _ in range(6):
        node.sleep()
        node.burst()
    node.take(to_them)
    node.sleep()
    assert len(node.burst()) == 1
    # Anybody can say it: for a while it changes nothing any more.
    for _ in range(3):
        node.sleep()
        node.burst()
    before = node.sender.next_deadline()
    node.take(to_them)
    assert node.sender.next_deadline() == before


def test_an_answer_to_a_peer_hurries_nobody_who_is_not_silent() -> None:
    theirs = packet(1, node=NODES[1])
    node = Node()
    node.offer(packet(1))
    node.burst()
    before = node.sender.next_deadline()
    node.take(Answer(Context.of(theirs).name, 0, (), (receipt_for([theirs]),)))
    assert node.sender.next_deadline() == before
