"""The receiver: each packet once, questions answered, memory bounded, strangers refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qis_edge.core.errors import Reason, Refused, UsageError
from qis_edge.core.identity import Identity
from qis_edge.core.mesh.elision import Context, elide
from qis_edge.core.mesh.fragments import cut
from qis_edge.core.mesh.framing import (
    Answer,
    Batch,
    Elided,
    Missing,
    Part,
    Poll,
    Unknown,
    Whole,
    decode,
)
from qis_edge.core.mesh.receiver import Asked, Limits, Message, Receiver
from qis_edge.core.packet import Packet
from tests.core.mesh.kit import NODES, STORE, packet, receipt_for, verify

RADIO = 0x1234


def gateway(limits: Limits | None = None) -> Receiver:
    return Receiver(verify, answers=True, limits=limits)


def elided(whole: Packet, *, ask: bool = False) -> bytes:
    frame = elide(whole)
    assert frame is not None
    return replace(frame, ask=ask).encode()


def heard(receiver: Receiver, data: bytes, now: float = 0.0, radio: int = RADIO) -> list[int]:
    """Sequences of the packets that a frame brought."""
    events = receiver.take(radio, data, now)
    return [e.packet.sequence for e in events if isinstance(e, Message) and e.packet]


def teach(receiver: Receiver, sequence: int = 0, *, node: Identity = NODES[0]) -> None:
    assert heard(receiver, Whole(packet(sequence, node=node).raw).encode()) == [sequence]


def said(receiver: Receiver, now: float = 0.0) -> list[object]:
    frames: list[object] = []
    while (frame := receiver.next(now)) is not None:
        frames.append(decode(frame))
    return frames


def test_a_context_is_taught_by_a_whole_packet() -> None:
    receiver = gateway()
    teach(receiver)
    assert heard(receiver, elided(packet(1))) == [1]
    assert said(receiver) == []


def test_an_unknown_context_is_answered_and_the_frame_kept_until_it_is_known() -> None:
    receiver = gateway()
    assert heard(receiver, elided(packet(1))) == []
    assert heard(receiver, elided(packet(2))) == []
    assert said(receiver) == [Unknown(Context.of(packet()).name)]
    assert heard(receiver, Whole(packet(3).raw).encode()) == [3, 1, 2]
    assert receiver.waiting() == []


def test_unknown_contexts_are_answered_at_a_limited_rate() -> None:
    receiver = gateway(Limits(unknowns=4, unknown_every=10.0))
    for number in range(1000):
        frame = Elided(number.to_bytes(2), b"x" * 90)
        assert receiver.take(number, frame.encode(), number / 100) == []
    # Four at once, and one more of the ten seconds that passed.
    assert len(said(receiver, 10.0)) <= 5
    assert len(receiver.waiting()) <= receiver.limits.waiting


def test_one_context_is_asked_for_again_only_after_a_while() -> None:
    receiver = gateway()
    for second in range(41):
        heard(receiver, elided(packet(second)), float(second))
    assert len(said(receiver, 40.0)) == 3


def test_a_collision_is_settled_by_the_signature() -> None:
    receiver = gateway()
    teach(receiver)
    name = Context.of(packet()).name
    # Another store of the same node at another address, of the same name.
    number = 0
    while Context(NODES[1].kid, bytes(28) + number.to_bytes(4), STORE).name != name:
        number += 1
    twin = packet(9, node=NODES[1], fingerprint=bytes(28) + number.to_bytes(4))
    assert heard(receiver, elided(twin)) == []
    assert said(receiver) == [Unknown(name)]
    assert heard(receiver, Whole(twin.raw).encode()) == [9]
    for sequence in (10, 11):
        mine = packet(sequence)
        theirs = packet(sequence, node=NODES[1], fingerprint=twin.fingerprint)
        assert heard(receiver, elided(mine)) == [sequence]
        assert heard(receiver, elided(theirs)) == [sequence]


def test_each_packet_is_handed_up_once_however_it_comes() -> None:
    receiver = gateway()
    teach(receiver)
    long = packet(1, words=300)
    tiles = [tile.encode() for tile in cut(elided(long), 200)]
    for _ in range(3):
        for tile in tiles:
            heard(receiver, tile)
    assert receiver.duplicates == 2
    first, second = (tile.encode() for tile in cut(Whole(long.raw).encode(), 200))

    def again(now: float) -> list[int]:
        return heard(receiver, first, now) + heard(receiver, second, now)

    assert again(0.0) == []
    receiver.forget(long.id)
    assert again(0.0) == [1]
    assert again(3599.0) == []
    assert again(3601.0) == [1]


def test_another_who_signs_the_same_payload_suppresses_nothing() -> None:
    receiver = gateway()
    mine, theirs = (packet(7, node=node) for node in NODES[:2])
    assert mine.id == theirs.id
    for one in (theirs, mine):
        (event,) = receiver.take(RADIO, Whole(one.raw).encode(), 0.0)
        assert isinstance(event, Message)
        assert event.packet is not None
        assert event.packet.kid == one.kid


def test_a_frame_that_asks_is_a_question_about_all_since_the_last() -> None:
    receiver = gateway()
    teach(receiver, 5)
    heard(receiver, elided(packet(7)))
    *_, asked = receiver.take(RADIO, elided(packet(6), ask=True), 0.0)
    name = Context.of(packet()).name
    place = ((NODES[0].kid, STORE),)
    assert asked == Asked(name, 0, RADIO, place, (5, 6, 7))
    events = receiver.take(RADIO, elided(packet(8), ask=True), 0.0)
    assert events[-1] == Asked(name, 0, RADIO, place, (8,))


def test_a_poll_is_a_question_and_its_answer_names_what_is_partly_here() -> None:
    receiver = gateway()
    teach(receiver, 5)
    tiles = cut(elided(packet(6, words=300)), 200)
    receiver.take(RADIO, tiles[1].encode(), 0.0)
    name = Context.of(packet()).name
    (asked,) = receiver.take(RADIO, Poll(name, 3, (5, 6, 9)).encode(), 0.0)
    assert isinstance(asked, Asked)
    assert (asked.round, asked.sequences) == (3, (5, 6, 9))
    receipt = receipt_for([packet(5)])
    receiver.answer(asked, [receipt], 0.0)
    assert said(receiver) == [Answer(name, 3, (Part(tiles[0].tag, 0b10),), (receipt,))]


def test_a_poll_about_an_unknown_context_is_answered() -> None:
    receiver = gateway()
    assert receiver.take(RADIO, Poll(b"ab", 3, (5,)).encode(), 0.0) == []
    assert said(receiver) == [Unknown(b"ab")]


def test_an_answer_fits_its_frame_and_leaves_out_what_does_not() -> None:
    receiver = gateway()
    teach(receiver)
    asked = Asked(b"ab", 1, RADIO, (), ())
    receiver.answer(asked, [bytes([n]) * 60 for n in range(1, 6)], 0.0)
    (answer,) = said(receiver)
    assert isinstance(answer, Answer)
    assert len(answer.messages) == 3
    assert len(answer.encode()) <= 200
    with pytest.raises(UsageError):
        receiver.answer(asked, [bytes(256)], 0.0)


def test_a_tile_that_asks_before_its_packet_is_whole() -> None:
    receiver = gateway()
    teach(receiver, 5)
    tiles = cut(elided(packet(6, words=300)), 200)
    (asked,) = receiver.take(RADIO, replace(tiles[-1], ask=True).encode(), 0.0)
    assert isinstance(asked, Asked)
    assert asked.sequences == (5,)
    assert gateway().take(RADIO, replace(tiles[-1], ask=True).encode(), 0.0) == []


def test_a_node_listens_and_does_not_answer() -> None:
    node = Receiver(verify, answers=False)
    teach(node)
    assert heard(node, elided(packet(1), ask=True)) == [1]
    assert node.take(RADIO, Poll(Context.of(packet()).name, 1, (1,)).encode(), 0.0) == []
    assert heard(node, Elided(b"zz", b"x" * 90).encode()) == []
    assert said(node) == []


def test_answers_and_batches_bring_messages() -> None:
    node = Receiver(verify, answers=False)
    answer = Answer(b"ab", 1, (), (b"one", b"two"))
    events = node.take(RADIO, answer.encode(), 0.0)
    assert events == [Message(b"one", RADIO), Message(b"two", RADIO), answer]
    assert node.take(RADIO, Batch((b"one",)).encode(), 0.0) == [Message(b"one", RADIO)]
    assert node.take(RADIO, Whole(b"hi").encode(), 0.0) == [Message(b"hi", RADIO)]
    for frame in (Missing(Part(b"ab", 1)), Unknown(b"ab")):
        assert node.take(RADIO, frame.encode(), 0.0) == [frame]


def test_a_packet_whose_key_is_not_known_goes_up_unverified() -> None:
    receiver = gateway()
    stranger = packet(node=Identity.from_seed(b"\x77" * 32))
    (message,) = receiver.take(RADIO, Whole(stranger.raw).encode(), 0.0)
    assert message == Message(stranger.raw, RADIO)
    assert len(receiver.contexts) == 0


def test_a_forged_packet_is_refused() -> None:
    receiver = gateway()
    raw = packet().raw
    with pytest.raises(Refused) as caught:
        receiver.take(RADIO, Whole(raw[:-1] + bytes((raw[-1] ^ 1,))).encode(), 0.0)
    assert caught.value.reason is Reason.SIGNATURE


def test_what_verifies_but_is_revoked_is_refused_by_that_name() -> None:
    revoked = False

    def check(raw: bytes) -> Packet:
        found = verify(raw)
        if revoked:
            raise Refused(Reason.REVOKED, "kid")
        return found

    receiver = Receiver(check, answers=True)
    teach(receiver)
    revoked = True
    with pytest.raises(Refused) as caught:
        receiver.take(RADIO, elided(packet(1)), 0.0)
    assert caught.value.reason is Reason.REVOKED


def test_a_hostile_sender_of_first_tiles_starves_no_known_node() -> None:
    receiver = gateway()
    teach(receiver)
    tiles = cut(elided(packet(1, words=300)), 200)
    receiver.take(RADIO, tiles[0].encode(), 0.0)
    hostile = cut(bytes(513), 48)[0]
    for number in range(3000):
        frame = replace(hostile, tag=number.to_bytes(2)).encode()
        receiver.take(number % 300 + 10_000, frame, 0.0)
    assert receiver.partial() <= 2 * receiver.limits.partials
    assert heard(receiver, tiles[1].encode()) == [1]


def test_a_recording_played_from_another_radio_makes_it_not_known() -> None:
    receiver = gateway(Limits(partials=4, per_radio=2))
    teach(receiver, 5)
    recording = elided(packet(6))
    heard(receiver, recording)
    for radio in range(100, 400):
        heard(receiver, recording, radio=radio)
        tile = cut(bytes((radio % 256,)) * 400, 200)[0]
        receiver.take(radio, tile.encode(), 0.0)
    # Strangers have their own half and nothing more.
    assert receiver.partial() <= 4


def test_missing_tiles_are_asked_for_when_nobody_else_does() -> None:
    receiver = gateway()
    tiles = cut(Whole(b"m" * 500).encode(), 200)
    receiver.take(RADIO, tiles[0].encode(), 0.0)
    due = receiver.next_deadline()
    assert due == receiver.limits.tile_wait
    assert said(receiver, due - 1) == []
    assert said(receiver, due) == [Missing(Part(tiles[0].tag, 0b001))]


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=120)), max_size=12), st.data())
def test_any_bytes_are_refused_by_name_or_harmless(
    frames: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    receiver = gateway()
    teach(receiver)
    name = Context.of(packet()).name
    for radio, body in frames:
        head = data.draw(st.sampled_from([b"", b"\xb0" + name, b"\xb2", b"\xb4", b"\xb6", b"\xb7"]))
        try:
            events = receiver.take(radio, head + body, 0.0)
        except Refused as refusal:
            assert refusal.field
            continue
        assert not any(isinstance(event, Message) and event.packet for event in events)
    assert receiver.partial() <= len(frames)
    assert heard(receiver, elided(packet(1)), 1.0) == [1]


def test_a_node_asks_gateways_for_tiles_and_not_its_peers() -> None:
    node = Receiver(verify, answers=False)
    tiles = cut(Whole(b"m" * 500).encode(), 200)
    for radio in (1, 2):
        node.take(radio, tiles[radio].encode(), 0.0)
    assert node.next_deadline() is None
    assert said(node, 1000.0) == []
    node.take(2, Answer(b"ab", 1).encode(), 1000.0)
    assert node.next_deadline() == node.limits.tile_wait
    assert said(node, 1000.0) == [Missing(Part(tiles[0].tag, 0b100))]


def test_whoever_polls_without_end_fills_nothing() -> None:
    receiver = gateway()
    for number in range(200):
        teach(receiver, number)
        name = Context.of(packet()).name
        (asked,) = receiver.take(RADIO, Poll(name, 1 + number % 255, (number,)).encode(), 0.0)
        assert isinstance(asked, Asked)
        receiver.answer(asked, [receipt_for([packet(number)])], 0.0)
        receiver.answer(replace(asked, context=number.to_bytes(2)), [], 0.0)
    answers = said(receiver)
    assert len(answers) <= receiver.limits.answers


def test_only_the_last_question_of_a_node_is_answered() -> None:
    receiver = gateway()
    for round_ in (1, 2, 3):
        receiver.answer(Asked(b"ab", round_, RADIO, (), ()), [], 0.0)
    assert said(receiver) == [Answer(b"ab", 3)]


def test_timers_follow_airtime_and_duty_cycle() -> None:
    quick = Limits.of(lambda _: 0.2)
    slow = Limits.of(lambda _: 2.0, duty_cycle=0.1)
    assert quick.tile_wait < 10
    assert slow.tile_wait > 60
    assert quick.same_unknown_every < slow.same_unknown_every
