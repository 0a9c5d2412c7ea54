"""The conversation with a radio, without I/O and with time as an argument."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.radio_sim.channel import BROADCAST
from devices.radio_sim.radio import Radio
from qis_edge.core.errors import UsageError
from qis_edge.links.meshtastic_session import (
    Dead,
    Declined,
    Event,
    Heard,
    Notice,
    Outcome,
    Outgoing,
    Ready,
    Reason,
    Rebooted,
    Report,
    Session,
    Settled,
    State,
    Taken,
    Telemetry,
    Unknown,
)
from qis_edge.links.meshtastic_stream import Deframer, definitions, encode
from tests.devices.radios import radios


class Talk:
    """A session and an emulated radio, with nothing between them but what a test puts there."""

    def __init__(self, radio: Radio) -> None:
        self.radio = radio
        self.simulation = radio.channel.simulation
        self.session = Session(self.simulation.now)
        self.events: list[Event] = []
        self.deaf = False  # the radio hears nothing
        self._deframer = Deframer()

    def exchange(self) -> None:
        """Carry what both have to say, until neither has."""
        for _ in range(1000):
            data = self.session.data_to_send()
            if not self.deaf:
                for message in self._deframer.feed(data):
                    self.radio.host(message)
            message_out = self.radio.next_message()
            if message_out is not None:
                self.say(encode(message_out))
            elif not data:
                return
        raise AssertionError("they never end")

    def say(self, data: bytes) -> None:
        self.events += self.session.receive(data, self.simulation.now)

    def run(self, seconds: float) -> None:
        end = self.simulation.now + seconds
        self.exchange()
        while self.simulation.now < end:
            self.simulation.advance(min(end, self.simulation.now + 0.25))
            self.events += self.session.tick(self.simulation.now)
            self.exchange()

    def take(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def send(self, payload: bytes = b"x", **more: Any) -> Outcome:
        """Send, and wait for what becomes of it."""
        identifier = self.session.submit(Outgoing(payload, **more), self.simulation.now)
        for _ in range(200):
            self.exchange()
            for event in self.events:
                if isinstance(event, Settled) and event.id == identifier:
                    self.events.remove(event)
                    return event.outcome
            self.run(0.25)
        raise AssertionError("it never settles")


def talk(count: int = 2, preset: str = "SHORT_FAST") -> tuple[Talk, list[Radio]]:
    _, made = radios(count, preset)
    one = Talk(made[0])
    one.exchange()
    assert one.take() == [Ready()]
    return one, made


def test_the_handshake_tells_who_the_radio_is() -> None:
    one, (radio, _) = talk()
    session = one.session
    assert session.state is State.READY
    assert session.radio.number == radio.number
    assert session.radio.name == "Emulated 0001"
    assert (session.radio.region, session.radio.preset) == ("EU_868", "SHORT_FAST")
    assert (session.radio.hop_limit, session.radio.firmware[:3]) == (3, "2.7")
    assert session.room == 13  # 16, of which 3 are left to the radio


def test_a_packet_is_taken_heard_and_acknowledged() -> None:
    one, (radio, other) = talk()
    peer = Talk(other)
    peer.exchange()
    peer.take()
    assert isinstance(taken := one.send(b"data", want_ack=True), Taken)
    one.run(5)
    peer.exchange()
    [heard] = peer.take()
    assert isinstance(heard, Heard)
    assert (heard.source, heard.to, heard.id, heard.port) == (
        radio.number, BROADCAST, taken.id, 256
    )  # fmt: skip
    assert (heard.payload, heard.snr, heard.rssi, heard.hops) == (b"data", 6.0, -85, 0)
    assert one.take() == [Report(taken.id, 0, "NONE", radio.number)]


@pytest.mark.parametrize(
    ("res", "nak", "to", "reason"),
    [
        (32, False, BROADCAST, Reason.QUEUE_FULL),
        (34, False, BROADCAST, Reason.DISABLED),
        (34, True, 0x10000002, Reason.OTHER),  # PKI_FAILED
        (7, True, BROADCAST, Reason.TOO_LARGE),
        (9, True, BROADCAST, Reason.DUTY_CYCLE),
        (6, True, BROADCAST, Reason.NO_CHANNEL),
        (39, True, 0x10000002, Reason.NO_KEY),
        (38, True, BROADCAST, Reason.OTHER),
        (250, False, BROADCAST, Reason.OTHER),
    ],
)
def test_refusals_are_typed(res: int, nak: bool, to: int, reason: Reason) -> None:
    one, (radio, _) = talk()
    radio.refusals.append((res, nak))
    assert one.send(to=to) == Declined(reason, res)
    one.exchange()
    reports = [event.error for event in one.take() if isinstance(event, Report)]
    assert reports == ([res] if nak else [])
    assert isinstance(one.send(), Taken)


@pytest.mark.parametrize(("to", "most"), [(BROADCAST, 231), (0x10000002, 219)])
def test_sizes_at_the_limits(to: int, most: int) -> None:
    one, _ = talk()
    assert isinstance(one.send(bytes(most), to=to), Taken)
    assert one.send(bytes(most + 1), to=to) == Declined(Reason.TOO_LARGE, 7)


def test_the_duty_cycle_says_more() -> None:
    one, (radio, _) = talk()
    radio.spend(360.0)
    assert one.send() == Declined(Reason.DUTY_CYCLE, 9)
    one.exchange()
    assert [type(event) for event in one.take()] == [Notice, Report]


def test_three_places_stay_free_and_room_is_asked_for() -> None:
    one, (radio, _) = talk(preset="LONG_SLOW")
    taken = 0
    while one.session.room:
        assert isinstance(one.send(bytes(200)), Taken)
        taken += 1
    assert (taken, radio.free) == (13, 3)
    with pytest.raises(UsageError):
        one.session.submit(Outgoing(b"x"), one.simulation.now)
    radio.status_loss = 0.5
    one.run(90)
    assert one.session.room > 0


def test_a_status_that_was_dropped_is_unknown_never_taken_never_hanging() -> None:
    one, (radio,) = talk(1)
    outcomes = set()
    for number in range(60):
        radio.status_loss = 0.5
        if one.session.room:
            outcomes.add(type(one.send(bytes([number]))))
        one.run(1)
    # The second status, as it goes on the air, tells it too; the rest is asked for.
    assert outcomes == {Taken, Unknown}
    assert one.session.state is State.READY


def test_a_nak_settles_what_its_status_did_not() -> None:
    one, (radio, _) = talk()
    radio.refusals.append((9, True))
    radio.status_loss = 1.0
    assert one.send() == Declined(Reason.DUTY_CYCLE, 9)


def test_telemetry() -> None:
    one, _ = talk()
    one.send(bytes(231))
    one.run(61)
    [told] = [event for event in one.take() if isinstance(event, Telemetry)]
    assert told == one.session.telemetry
    assert told.channel_utilization > 0.5
    assert 0 < told.air_util_tx < 0.01


def test_a_reboot_in_the_middle_of_a_send() -> None:
    one, (radio, _) = talk(preset="LONG_SLOW")
    while one.session.room:
        one.send(bytes(200))
    one.run(20)
    while not one.session.room:
        one.run(1)
    one.take()
    identifier = one.session.submit(Outgoing(b"x"), one.simulation.now)
    one.deaf = True
    one.exchange()
    radio.reboot()
    one.deaf = False
    one.run(5)
    events = one.take()
    assert events[:2] == [
        Settled(identifier, Unknown(identifier, "the radio rebooted")),
        Rebooted(),
    ]
    assert events[2] == Ready()
    assert one.session.room == 13


def test_a_radio_that_never_answers_is_given_up() -> None:
    _, (radio,) = radios(1)
    one = Talk(radio)
    one.deaf = True
    one.run(9)
    assert one.take() == []
    one.run(2)
    assert one.take() == [Dead("the radio does not answer the handshake")]
    assert one.session.deadline is None


def test_a_radio_that_falls_silent_is_asked_and_given_up() -> None:
    one, _ = talk()
    one.run(500)  # its telemetry is a sign of life
    assert one.session.state is State.READY
    one.deaf = True
    identifier = one.session.submit(Outgoing(b"x"), one.simulation.now)
    one.run(14)
    events = [event for event in one.take() if not isinstance(event, Telemetry)]
    assert events == [
        Settled(identifier, Unknown(identifier, "the radio does not answer")),
        Dead("the radio does not answer"),
    ]


def test_a_line_that_only_makes_noise_is_given_up() -> None:
    _, (radio,) = radios(1)
    one = Talk(radio)
    one.deaf = True
    noise = random.Random(5)
    for _ in range(200):
        one.say(noise.randbytes(50))
        one.run(0.5)
    assert [type(event) for event in one.take()] == [Dead]


def test_a_request_that_was_lost_is_made_again() -> None:
    _, (radio,) = radios(1)
    one = Talk(radio)
    one.deaf = True
    one.run(2)
    one.deaf = False
    one.run(2)
    assert one.take() == [Ready()]


def test_garbage_within_a_frame_costs_only_that_frame() -> None:
    one, (radio, other) = talk()
    packets = []
    for number in range(1, 4):
        packet = definitions().MeshPacket(to=BROADCAST, id=number)
        setattr(packet, "from", other.number)
        packet.decoded.portnum, packet.decoded.payload = 256, bytes([number]) * 50
        packets.append(encode(definitions().FromRadio(packet=packet).SerializeToString()))
    garbled = bytearray(packets[1])
    garbled[2:4] = (512).to_bytes(2, "big")  # a length that swallows the next
    one.say(b"DEBUG | something\r\n" + packets[0] + bytes(garbled) + packets[2])
    assert [event.id for event in one.take() if isinstance(event, Heard)] == [1]
    one.run(2)
    assert [event.id for event in one.take() if isinstance(event, Heard)] == [3]
    assert "DEBUG | something" in one.session.log_lines()
    assert radio.on


@given(st.lists(st.binary(max_size=80), max_size=20), st.integers(0, 2**32))
def test_no_bytes_break_it(parts: list[bytes], seed: int) -> None:
    one, _ = talk(1)
    draw = random.Random(seed)
    for part in parts:
        one.say(encode(part) if part and draw.random() < 0.5 else part)
    one.exchange()
    one.take()
    assert one.session.state is not State.DEAD
    one.run(20)
    assert one.session.state is State.READY
    if one.session.room:
        assert isinstance(one.send(), Taken | Declined | Unknown)


def test_a_status_of_another_client_settles_nothing() -> None:
    one, _ = talk()
    status = definitions().QueueStatus(res=0, free=9, maxlen=16, mesh_packet_id=1234567)
    identifier = one.session.submit(Outgoing(b"x"), one.simulation.now)
    one.say(encode(definitions().FromRadio(queueStatus=status).SerializeToString()))
    assert one.take() == []
    assert one.session.room == 0
    one.exchange()
    assert one.take() == [Settled(identifier, Taken(identifier))]


@pytest.mark.parametrize(
    ("field", "packet"),
    [
        ("payload", Outgoing(b"")),
        ("payload", Outgoing(bytes(234))),
        ("to", Outgoing(b"x", to=1 << 32)),
        ("port", Outgoing(b"x", port=512)),
        ("channel", Outgoing(b"x", channel=8)),
        ("hop_limit", Outgoing(b"x", hop_limit=8)),
    ],
)
def test_what_can_never_be_sent_is_a_mistake(field: str, packet: Outgoing) -> None:
    one, _ = talk()
    with pytest.raises(UsageError) as caught:
        one.session.submit(packet, 0.0)
    assert caught.value.field == field


def test_ids_are_new_each_time() -> None:
    one, (radio, _) = talk()
    seen = set()
    for _ in range(30):
        outcome = one.send()
        assert isinstance(outcome, Taken)
        seen.add(outcome.id)
        one.run(2)
    assert len(seen) == 30
    assert radio.stats.repeated_by_host == 0
