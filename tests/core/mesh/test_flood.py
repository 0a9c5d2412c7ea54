"""Hostile floods of every kind of frame: little memory, few words, and nobody else is hurt."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qis_edge.core.errors import Refused
from qis_edge.core.mesh.elision import Context, elide
from qis_edge.core.mesh.framing import (
    Answer,
    Batch,
    Elided,
    Frame,
    Missing,
    Part,
    Ping,
    Poll,
    Pong,
    Signal,
    Tile,
    Unknown,
    Whole,
    decode,
)
from qis_edge.core.mesh.receiver import Asked, Limits, Message, Receiver
from tests.core.mesh.kit import packet, receipt_for, verify

NODE = 0x1234
LIMITS = Limits(
    contexts=8, partials=6, per_radio=2, waiting=6, seen=20, known_radios=4, stores=8,
    pending=8, answers=5, gateways=3, pongs=6, pong_every=30.0, unknowns=4, unknown_every=10.0,
    same_unknown_every=20.0, tile_wait=15.0,
)  # fmt: skip


def frame(chance: random.Random) -> bytes:
    """One of every kind, sometimes damaged."""
    two, body = chance.randbytes(2), chance.randbytes(chance.randrange(1, 190))
    part = Part(two, chance.randrange(1, 1 << 16))
    mine = Context.of(packet()).name  # names of contexts are no secret
    recorded = elide(packet(chance.randrange(3)))
    assert recorded is not None
    kinds: list[Frame] = [
        Elided(two, body), Elided(mine, body, ask=True), recorded,
        Whole(body), Whole(b"\xd2\x84" + body, ask=True),
        Tile(two, 0, chance.randrange(1, 16), body, ask=chance.random() < 0.5),
        Tile(bytes(2), chance.randrange(3), 2, body),
        Poll(two, 1, (chance.randrange(1000),)), Poll(mine, chance.randrange(1, 256), (1, 2)),
        Answer(two, 0, (part,), (body,)), Missing(part), Unknown(two), Batch((body,)),
        Ping(chance.randbytes(4), chance.randrange(200)), Pong(chance.randbytes(4)),
    ]  # fmt: skip
    data = chance.choice(kinds).encode()
    if chance.random() < 0.2:
        data = data[: chance.randrange(len(data))] + chance.randbytes(chance.randrange(3))
    return data


def kept(receiver: Receiver) -> dict[str, tuple[int, int]]:
    """What it keeps, and how much of it is allowed."""
    limits = receiver.limits
    return {
        "contexts": (len(receiver.contexts), limits.contexts),
        "partials": (receiver.partial(), 2 * limits.partials),
        "known": (len(receiver._known), limits.known_radios),
        "gateways": (len(receiver._gateways), limits.gateways),
        "highest": (len(receiver._highest), limits.contexts),
        "waiting": (len(receiver.waiting()), limits.waiting),
        "seen": (len(receiver._seen), limits.seen),
        "pending": (len(receiver._pending), limits.stores),
        "said": (len(receiver._said_unknown), limits.stores),
        "answers": (len(receiver._out), limits.answers),
        "pongs": (len(receiver._echo), limits.pongs_waiting),
    }


class Flood:
    """A receiver under attack, and what it said."""

    def __init__(self, seed: int, *, answers: bool, echo: bool = False) -> None:
        self.chance = random.Random(seed)
        self.receiver = Receiver(verify, answers=answers, limits=LIMITS, echo=echo)
        self.now = 0.0
        self.said: list[Frame] = []
        self.questions = 0

    def hear(self, radio: int, data: bytes) -> list[object]:
        signal = Signal(self.chance.uniform(-20, 10), -100, self.chance.choice([None, 0, 3]))
        try:
            events = self.receiver.take(radio, data, self.now, signal)
        except Refused as refusal:
            assert refusal.field
            return []
        for event in events:
            if isinstance(event, Asked):
                self.questions += 1
                self.receiver.answer(event, [receipt_for([packet(1)])], self.now)
        return list(events)

    def rage(self, frames: int) -> None:
        for _ in range(frames):
            self.now += self.chance.random()
            self.hear(self.chance.randrange(1, 100), frame(self.chance))
            for name, (count, most) in kept(self.receiver).items():
                assert count <= most, name
            if self.chance.random() < 0.3:
                self.listen()

    def listen(self) -> None:
        while (data := self.receiver.next(self.now)) is not None:
            assert len(data) <= 200
            self.said.append(decode(data))

    def count(self, *kinds: type) -> int:
        return sum(isinstance(one, kinds) for one in self.said)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32))
def test_a_gateway_under_a_flood(seed: int) -> None:
    flood = Flood(seed, answers=True)
    flood.hear(NODE, Whole(packet(0).raw).encode())
    flood.rage(400)
    flood.now += 10
    flood.listen()
    # Words to strangers are counted, answers are to questions.
    assert flood.count(Pong) <= LIMITS.pongs + flood.now / LIMITS.pong_every
    assert flood.count(Unknown, Missing) <= LIMITS.unknowns + flood.now / LIMITS.unknown_every
    assert flood.count(Answer) <= flood.questions
    assert len(flood.said) == flood.count(Pong, Unknown, Missing, Answer)
    # And the node is heard and answered as if nothing were.
    whole = Whole(packet(100).raw, ask=True).encode()
    message, *_ = flood.hear(NODE, whole)
    assert isinstance(message, Message)
    assert message.packet == packet(100)
    flood.said.clear()
    flood.listen()
    assert flood.count(Answer) == 1


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32))
def test_a_node_under_a_flood_says_little(seed: int) -> None:
    flood = Flood(seed, answers=False)
    flood.rage(300)
    flood.listen()
    assert flood.count(Missing) == len(flood.said)
    assert len(flood.said) <= LIMITS.unknowns + flood.now / LIMITS.unknown_every
    assert flood.questions == 0
    echo = Flood(seed, answers=False, echo=True)
    echo.rage(300)
    echo.now += 10
    echo.listen()
    assert echo.count(Pong) > 0
    assert echo.count(Pong, Missing) == len(echo.said)


@pytest.mark.parametrize("radios", [1, 1000])
def test_a_flood_of_pings_leaves_answers_alone(radios: int) -> None:
    flood = Flood(1, answers=True)
    flood.hear(NODE, Whole(packet(0).raw).encode())
    for number in range(5000):
        flood.hear(number % radios, Ping(number.to_bytes(4), number % 200).encode())
    name = Context.of(packet()).name
    flood.hear(NODE, Poll(name, 7, (0,)).encode())
    first = flood.receiver.next(flood.now)
    assert first is not None
    answer = decode(first)
    assert isinstance(answer, Answer)
    assert answer.round == 7
    flood.now += 10
    flood.listen()
    assert flood.count(Pong) <= LIMITS.pongs_waiting


def test_a_receiver_of_pings_stays_as_it_was() -> None:
    flood = Flood(2, answers=True)
    before = {name: count for name, (count, _) in kept(flood.receiver).items()}
    for number in range(2000):
        flood.hear(number, Ping(number.to_bytes(4)).encode())
        flood.hear(number, Pong(number.to_bytes(4)).encode())
    after = {name: count for name, (count, _) in kept(flood.receiver).items()}
    assert after == before | {"pongs": LIMITS.pongs_waiting}
