"""The emulated radio and its channel, in emulated time."""

from __future__ import annotations

from typing import Any

import pytest

from devices.radio_sim.channel import BROADCAST, Channel, Path
from devices.radio_sim.radio import Radio
from devices.radio_sim.settings import Settings
from qis_edge.core.errors import UsageError
from qis_edge.links.meshtastic_stream import definitions
from tests.devices.radios import Host, payloads, radios, reports


def error(name: str) -> int:
    return int(definitions().Routing.Error.Value(name))


# The handshake.


def test_the_handshake_has_the_firmwares_order() -> None:
    _, (one, _, _) = radios(3)
    host = Host(one, greet=False)
    assert one.next_message() is None
    host.say(want_config_id=5)
    messages = host.read()
    kinds = [message.WhichOneof("payload_variant") for message in messages]
    assert kinds == [
        *("my_info", "deviceuiConfig", "node_info", "metadata"),
        *["channel"] * 8,
        *["config"] * 10,
        *["moduleConfig"] * 16,
        *("node_info", "node_info", "fileInfo", "config_complete_id"),
    ]
    assert {message.id for message in messages} == {0}
    assert messages[0].my_info.my_node_num == one.number
    assert [m.channel.index for m in messages if m.HasField("channel")] == list(range(8))
    sections = [m.config.WhichOneof("payload_variant") for m in messages if m.HasField("config")]
    assert sections[:6] == ["device", "position", "power", "network", "display", "lora"]
    assert messages[-1].config_complete_id == 5


def test_the_nonces_that_ask_for_less() -> None:
    _, (one, _, _) = radios(3)
    host = Host(one, greet=False)
    host.say(want_config_id=69420)
    assert host.kinds().count("node_info") == 1
    host.say(want_config_id=69421)
    messages = host.read()
    assert [m.node_info.num & 0xF for m in messages[:-1]] == [1, 2, 3]
    assert messages[-1].config_complete_id == 69421


def test_a_heartbeat_is_answered_and_nonsense_is_not() -> None:
    _, (one,) = radios(1)
    host = Host(one)
    host.say(heartbeat=definitions().Heartbeat())
    assert host.statuses() == [(0, 0, 16)]
    for nonsense in (b"", b"\xff\xff", b"\x0a\x7f"):
        one.host(nonsense)
    host.send(bytes(234))  # more than the firmware parses
    assert host.read() == []


# Sending.


def test_a_broadcast_is_heard_and_both_hosts_are_told() -> None:
    channel, (one, other) = radios(2)
    hosts = Host(one), Host(other)
    hosts[0].send(b"outcome", id=7)
    assert hosts[0].statuses() == [(7, 0, 15)]
    channel.simulation.run(5)
    assert hosts[0].statuses() == [(7, 0, 16)]  # once more, as it goes on the air
    [message] = hosts[1].read()
    packet = message.packet
    assert getattr(packet, "from") == one.number
    assert (packet.to, packet.id, packet.decoded.payload) == (BROADCAST, 7, b"outcome")
    assert (packet.hop_limit, packet.hop_start, packet.rx_snr, packet.rx_rssi) == (3, 3, 6.0, -85)


@pytest.mark.parametrize(("direct", "most"), [(False, 231), (True, 219)])
def test_sizes_at_the_limits(direct: bool, most: int) -> None:
    channel, (one, other) = radios(2, "SHORT_FAST")
    hosts = Host(one), Host(other)
    to = other.number if direct else BROADCAST
    for id_, size in ((1, most), (2, most + 1)):
        hosts[0].send(bytes(size), to, id=id_)
    messages = hosts[0].read()
    assert [m.queueStatus.res for m in messages if m.HasField("queueStatus")] == [0, 7]
    assert reports(messages) == [(2, error("TOO_LARGE"), one.number)]
    channel.simulation.run(5)
    assert payloads(hosts[1].read()) == [bytes(most)]
    assert one.stats.airtime == pytest.approx(0.204, abs=0.001)  # 255 bytes either way


def test_a_full_queue_refuses_without_a_nak_and_drops_lower_priorities() -> None:
    _, (one,) = radios(1, "LONG_SLOW")
    host = Host(one)
    results = []
    for number in range(1, 18):
        host.send(b"x", id=number, priority=10)
        results += host.statuses()
    assert [res for _, res, _ in results] == [0] * 16 + [32]
    assert [free for _, _, free in results] == [*range(15, -1, -1), 0]
    host.send(b"x", id=99, priority=64)
    assert host.statuses() == [(99, 0, 0)]
    assert one.stats.evicted == 1
    assert reports(host.read()) == []


def test_statuses_are_dropped_when_the_host_does_not_read() -> None:
    _, (one,) = radios(1)
    host = Host(one)
    for number in range(1, 6):
        host.send(b"x", id=number)
    assert [id_ for id_, _, _ in host.statuses()] == [1, 2]
    assert one.stats.statuses_dropped == 3


def test_a_packet_id_is_sent_once_in_twenty() -> None:
    channel, (one,) = radios(1, "SHORT_TURBO")
    host = Host(one)
    for number in (1, 1, *range(2, 22), 1):
        host.send(b"x", id=number)
        channel.simulation.run(1)
    assert (one.stats.repeated_by_host, one.stats.sent) == (1, 22)


def test_refusals_have_their_numbers() -> None:
    _, (one, other) = radios(2)
    host = Host(one)
    for id_, to, more in ((1, 0x99, {}), (2, BROADCAST, {"channel": 3})):
        host.send(b"x", to, id=id_, **more)
    messages = host.read()
    names = ["PKI_SEND_FAIL_PUBLIC_KEY", "NO_CHANNEL"]
    assert [m.queueStatus.res for m in messages[:2]] == [error(name) for name in names]
    assert [report[1] for report in reports(messages)] == [error(name) for name in names]
    one.refusals.append((error("RATE_LIMIT_EXCEEDED"), True))
    host.send(b"x", other.number, id=3)
    assert reports(host.read()) == [(3, 38, one.number)]
    one.answer(77, error("GOT_NAK"), source=other.number)
    assert reports(host.read()) == [(77, 2, other.number)]
    one.settings.lora.region = 0
    host.send(b"x", id=4)
    assert host.statuses() == [(4, 34, 16)]


def test_the_duty_cycle_is_an_hour_long() -> None:
    channel, (one,) = radios(1)
    host = Host(one)
    one.spend(360.0)
    host.send(b"x", id=1)
    messages = host.read()
    assert messages[0].queueStatus.res == error("DUTY_CYCLE_LIMIT")
    assert "Duty cycle" in messages[1].clientNotification.message
    assert reports(messages) == [(1, 9, one.number)]
    channel.simulation.run(3601)
    host.read()
    host.send(b"x", id=2)
    assert host.statuses() == [(2, 0, 15)]


def test_telemetry_comes_every_minute() -> None:
    channel, (one, _) = radios(2)
    host = Host(one)
    host.send(bytes(231), id=1)
    channel.simulation.run(61)
    [told] = payloads(host.read(), port=67)
    metrics = definitions("telemetry_pb2").Telemetry.FromString(told).device_metrics
    # Its own frame and the other's rebroadcast of it, 2.157 s each.
    assert metrics.channel_utilization == pytest.approx(100 * 2 * 2.157 / 60, abs=0.1)
    assert metrics.air_util_tx == pytest.approx(100 * 2.157 / 3600, abs=0.001)


# ACKs.


def test_an_ack_of_the_receiver() -> None:
    channel, (one, other) = radios(2)
    hosts = Host(one), Host(other)
    hosts[0].send(b"x", other.number, id=1, want_ack=True)
    channel.simulation.run(30)
    assert reports(hosts[0].read()) == [(1, 0, other.number)]
    assert payloads(hosts[1].read()) == [b"x"]
    assert channel.carried.sent == 2


def test_an_implicit_ack_of_a_broadcast() -> None:
    channel, (one, _) = radios(2)
    host = Host(one)
    host.send(b"x", id=1, want_ack=True)
    channel.simulation.run(30)
    assert reports(host.read()) == [(1, 0, one.number)]
    assert channel.carried.sent == 2


def test_an_implicit_ack_of_a_direct_message_ends_it_without_a_word() -> None:
    channel, (one, relay, far) = radios(3)
    channel.path(one.number, far.number, None)
    channel.path(relay.number, far.number, Path(loss=1.0))
    host = Host(one)
    host.send(b"x", far.number, id=1, want_ack=True)
    channel.simulation.run(60)
    assert relay.stats.relayed == 1
    assert (one.stats.sent, reports(host.read())) == (1, [])


@pytest.mark.parametrize(
    ("preset", "seconds"),
    [("SHORT_FAST", 16), ("MEDIUM_FAST", 19), ("LONG_FAST", 31), ("LONG_SLOW", 114)],
)
def test_three_transmissions_then_a_nak(preset: str, seconds: int) -> None:
    channel, (one, other) = radios(2, preset)
    other.power_off()
    host = Host(one)
    host.send(bytes(231), id=1, want_ack=True)
    channel.simulation.run(seconds - 2)
    assert reports(host.read()) == []
    channel.simulation.run(3)
    assert reports(host.read()) == [(1, error("MAX_RETRANSMIT"), one.number)]
    assert one.stats.sent == 3


def test_a_nak_though_it_was_delivered() -> None:
    channel, (one, other) = radios(2)
    channel.path(other.number, one.number, Path(loss=1.0), both=False)
    hosts = Host(one), Host(other)
    hosts[0].send(b"x", other.number, id=1, want_ack=True)
    channel.simulation.run(60)
    assert reports(hosts[0].read()) == [(1, error("MAX_RETRANSMIT"), one.number)]
    assert payloads(hosts[1].read()) == [b"x"]  # once, for all three
    assert other.stats.sent == 3


def test_naks_of_the_receiver() -> None:
    channel, (one, other) = radios(2)
    hosts = Host(one), Host(other)
    hosts[0].send(b"x", other.number, id=1)
    packet = definitions().MeshPacket(to=other.number, id=2, hop_limit=3)
    packet.decoded.portnum, packet.decoded.payload = 256, b"y"
    packet.decoded.want_response = True
    hosts[0].say(packet=packet)
    channel.simulation.run(20)
    assert payloads(hosts[1].read()) == [b"x", b"y"]
    assert reports(hosts[0].read()) == [(2, error("NO_RESPONSE"), other.number)]


# The mesh.


def test_hops_carry_it_and_the_limit_ends_it() -> None:
    channel, line = radios(5, "SHORT_FAST", hops=2)
    for i, one in enumerate(line):
        for other in line[i + 2 :]:
            channel.path(one.number, other.number, None)
    hosts = [Host(one) for one in line]
    hosts[0].send(b"far", id=1, hop_limit=2)
    channel.simulation.run(20)
    assert [payloads(host.read()) for host in hosts] == [[], [b"far"], [b"far"], [b"far"], []]


@pytest.mark.parametrize(
    ("mode", "own_channel", "carried"),
    [("ALL", True, True), ("ALL", False, True), ("LOCAL_ONLY", True, True),
     ("LOCAL_ONLY", False, False), ("NONE", True, False),
     ("CORE_PORTNUMS_ONLY", True, False), ("CORE_PORTNUMS_ONLY", False, True)],
)  # fmt: skip
def test_what_relays_carry(mode: str, own_channel: bool, carried: bool) -> None:
    channel = Channel("SHORT_FAST")
    ends = [Radio(channel, Settings(n, channel="field", psk=bytes(32))) for n in (1, 2)]
    more = {"channel": "field", "psk": bytes(32)} if own_channel else {}
    relay = Radio(channel, Settings(3, **more))  # type: ignore[arg-type]  # the names fit
    device = relay.settings.device
    device.rebroadcast_mode = type(device).RebroadcastMode.Value(mode)
    channel.path(1, 2, None)
    hosts = [Host(one) for one in (*ends, relay)]
    hosts[0].send(b"x", id=1)
    channel.simulation.run(10)
    assert payloads(hosts[1].read()) == ([b"x"] if carried else [])
    assert payloads(hosts[2].read()) == ([b"x"] if own_channel else [])


def test_who_is_late_passes_on_what_others_did() -> None:
    channel, (one, early, late) = radios(3, "SHORT_FAST")
    device = late.settings.device
    device.role = type(device).Role.Value("ROUTER_LATE")
    Host(one).send(b"x", id=1)
    channel.simulation.run(30)
    assert (early.stats.relayed, late.stats.relayed) == (1, 1)


def test_two_at_once_collide_and_the_stronger_survives() -> None:
    channel, (one, other, third) = radios(3, hops=0)
    channel.path(one.number, other.number, None)  # they do not hear each other
    hosts = [Host(radio) for radio in (one, other, third)]
    for host in hosts[:2]:
        host.send(bytes(231), hop_limit=0)
    channel.simulation.run(10)
    assert payloads(hosts[2].read()) == []
    assert channel.carried.collided == 2
    channel.path(one.number, third.number, Path(snr=13.0))
    for host, letter in zip(hosts[:2], (b"A", b"B"), strict=True):
        host.send(letter * 231, hop_limit=0)
    channel.simulation.run(10)
    assert payloads(hosts[2].read()) == [b"A" * 231]


def test_who_hears_another_waits_for_it() -> None:
    channel, (one, other, third) = radios(3, hops=0)
    hosts = [Host(radio) for radio in (one, other, third)]
    hosts[0].send(bytes(231), hop_limit=0)
    channel.simulation.run(1.0)
    hosts[1].send(bytes(231), hop_limit=0)
    channel.simulation.run(10)
    assert len(payloads(hosts[2].read())) == 2
    assert channel.carried.collided == channel.carried.deaf == 0


@pytest.mark.parametrize("want_ack", [False, True])
def test_fifty_back_to_back_fare_as_they_were_measured_to(want_ack: bool) -> None:
    """On real firmware 43 of 50 arrived without want_ack and 48 with it, 2.5 s each."""
    channel, (one, other) = radios(2, region="US")
    hosts, got, sent = (Host(one), Host(other)), 0, 0
    while sent < 50:
        if one.free:
            hosts[0].send(bytes(200), want_ack=want_ack)
            sent += 1
        else:
            channel.simulation.run(0.5)
        hosts[0].read()
        got += len(payloads(hosts[1].read()))
    seconds = channel.now
    channel.simulation.run(300)
    assert 40 <= got + len(payloads(hosts[1].read())) < 50
    assert 2.0 < seconds / 34 < 4.5  # 16 of them are still in the queue then


def test_who_begins_within_a_slot_is_not_sensed() -> None:
    channel, (one, other, third) = radios(3, hops=0)
    frame = one._encode(packet_of(one))[0]
    assert frame is not None
    channel.transmit(one, frame, lambda: None)
    assert not channel.sensed(other.number)
    assert channel.sensed(one.number)
    channel.simulation.run(channel.slot * 1.1)
    assert channel.sensed(other.number)
    assert channel.sensed(third.number)
    channel.simulation.run(5)
    assert not channel.sensed(other.number)


def packet_of(radio: Radio) -> Any:
    packet = definitions().MeshPacket(to=BROADCAST, id=1)
    setattr(packet, "from", radio.number)
    packet.decoded.portnum, packet.decoded.payload = 256, bytes(200)
    return packet


def test_who_sends_is_deaf() -> None:
    channel, (one, other) = radios(2, hops=0)
    channel.path(one.number, other.number, None)  # neither senses the other yet
    host = Host(one)
    Host(other).send(bytes(231), hop_limit=0)
    host.send(bytes(231), hop_limit=0)
    channel.simulation.run(1)
    channel.path(one.number, other.number, Path())
    channel.simulation.run(10)
    assert (channel.carried.deaf, channel.carried.delivered) == (2, 0)


@pytest.mark.parametrize("loss", [0.1, 0.5])
def test_loss_is_what_it_says(loss: float) -> None:
    channel, (one, other) = radios(2, "SHORT_TURBO", loss=loss, hops=0, region="US")
    hosts = Host(one), Host(other)
    got = 0
    for _ in range(400):
        hosts[0].send(b"x", hop_limit=0)
        channel.simulation.run(1)
        got += len(payloads(hosts[1].read()))
    assert got / 400 == pytest.approx(1 - loss, abs=0.08)


def test_the_same_seed_gives_the_same_night() -> None:
    nights = []
    for _ in range(2):
        channel, (one, other) = radios(2, "SHORT_FAST", loss=0.3)
        host = Host(one)
        for _ in range(30):
            host.send(bytes(100), want_ack=True)
            channel.simulation.run(3)
        nights.append((channel.carried, other.stats))
    assert nights[0] == nights[1]


# Receiving, and power.


def test_packets_wait_for_an_absent_host_and_the_newest_are_dropped() -> None:
    channel, (one, other) = radios(2, "SHORT_TURBO", hops=0)
    other.receive_limit = 8
    sender = Host(one)
    for number in range(12):
        sender.send(bytes([number]), other.number, want_ack=True)
        channel.simulation.run(1)
    # The radio ACKs what its host will never see.
    assert [report[1:] for report in reports(sender.read())] == [(0, other.number)] * 12
    assert payloads(Host(other, greet=False).read()) == []
    host = Host(other, greet=False)
    host.say(want_config_id=1)
    assert payloads(host.read()) == [bytes([number]) for number in range(8)]
    assert other.stats.dropped_to_host == 4


def test_a_reboot_forgets_everything_but_the_settings() -> None:
    channel, (one, other) = radios(2, "LONG_SLOW")
    hosts = Host(one), Host(other)
    for number in range(1, 17):
        hosts[0].send(bytes(200), id=number, want_ack=True)
    one.reboot()
    assert (one.on, hosts[0].read()) == (False, [])
    hosts[0].send(b"x", id=50)
    channel.simulation.run(3)
    assert [m.rebooted for m in hosts[0].read()] == [True]
    hosts[0].say(want_config_id=1)
    messages = hosts[0].read()
    assert messages[0].my_info.reboot_count == 1
    hosts[0].say(heartbeat=definitions().Heartbeat())
    assert hosts[0].statuses() == [(0, 0, 16)]
    channel.simulation.run(300)
    assert payloads(hosts[1].read()) == []
    assert reports(hosts[0].read()) == []


def test_a_radio_that_goes_off_in_the_middle_of_a_frame() -> None:
    channel, (one, other) = radios(2, "LONG_SLOW")
    hosts = Host(one), Host(other)
    hosts[0].send(bytes(231), id=1)
    channel.simulation.run(5)
    assert one.stats.sent == 1
    one.power_off()
    channel.simulation.run(60)
    assert payloads(hosts[1].read()) == []


def test_radios_learn_of_each_other() -> None:
    channel = Channel("SHORT_FAST")
    one, other = (Radio(channel, Settings(n, name=f"radio {n}")) for n in (1, 2))
    one.announce()
    channel.simulation.run(5)
    assert other.known[1].user.long_name == "radio 1"
    host = Host(other)
    host.send(b"hello", 1, id=5, want_ack=True)
    channel.simulation.run(5)
    assert reports(host.read()) == [(5, 0, 1)]


# What is wrong.


def test_mistakes_are_said() -> None:
    with pytest.raises(UsageError):
        Channel("LONG_WISH")
    with pytest.raises(UsageError):
        Settings(1, region="MOON")
    with pytest.raises(UsageError):
        Path(loss=1.5)
    channel = Channel()
    Radio(channel, Settings(1))
    with pytest.raises(UsageError):
        Radio(channel, Settings(1))
