"""What comes in over MQTT: what is heard, acknowledged, held back, dropped."""

from __future__ import annotations

import asyncio
import random

import pytest

from qis_edge.links import mqtt_connection
from qis_edge.links.base import down
from qis_edge.testing.links import receive_done, send_when_possible, until_down, until_up
from tests.links.brokers import (
    DOWN_TOPIC,
    NODE,
    SITE,
    UP_TOPIC,
    gateway_link,
    node_link,
    started,
    until,
)
from tests.links.scripted_broker import ScriptedBroker, packet, text


async def test_frames_on_other_topics_and_large_ones_are_dropped() -> None:
    async with ScriptedBroker() as broker, started(node_link(broker.port)) as node:
        stranger = (b"\xcc" * 8).hex()
        bad = [
            (UP_TOPIC, b"frame"),
            (f"qis/v1/{SITE}/down/{stranger}", b"frame"),
            (f"qis/v1/{SITE}/peers/{'ab' * 16}", b"frame"),
            (f"qis/v1/{SITE}/state/{NODE.hex()}", b"online"),
            (f"qis/v1/{SITE}/down/{NODE.hex().upper()}", b"frame"),
            ("qis/v1/other/down/" + NODE.hex(), b"frame"),
            ("$SYS/broker", b"frame"),
            (DOWN_TOPIC + "/more", b"frame"),
            (DOWN_TOPIC, bytes(513)),
        ]
        for mid, (topic, payload) in enumerate(bad, 1):
            broker.say(broker.publish(topic, payload, mid))
        broker.say(broker.publish(DOWN_TOPIC, bytes(512), 99))
        assert (await receive_done(node, 1))[0].data == bytes(512)
        assert node.stats.dropped_in == len(bad)
        # They are acknowledged, or they would come for ever.
        await until(lambda: broker.acked == [*range(1, len(bad) + 1), 99])


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_what_somebody_left_retained_is_ignored(protocol: str) -> None:
    async with (
        ScriptedBroker() as broker,
        started(node_link(broker.port, protocol=protocol)) as node,
    ):
        broker.say(broker.publish(DOWN_TOPIC, b"old receipt", 1, retain=True))
        broker.say(broker.publish(DOWN_TOPIC, b"receipt", 2))
        assert [r.data for r in await receive_done(node, 1)] == [b"receipt"]
        assert node.stats.extra["retained_in"] == 1
        await until(lambda: broker.acked == [1, 2])


async def test_acknowledgements_go_out_in_the_order_of_arrival() -> None:
    async with ScriptedBroker() as broker, started(gateway_link(broker.port)) as gateway:
        for mid in range(1, 6):
            broker.say(broker.publish(UP_TOPIC, b"frame", mid))
        held = [await gateway.receive() for _ in range(5)]
        for received in (held[2], held[1], held[4]):
            await gateway.done(received)
        await asyncio.sleep(0.05)
        assert broker.acked == []
        await gateway.done(held[0])
        await until(lambda: broker.acked == [1, 2, 3])
        await gateway.done(held[3])
        await until(lambda: broker.acked == [1, 2, 3, 4, 5])


async def test_an_acknowledgement_for_an_earlier_connection_is_not_sent() -> None:
    async with ScriptedBroker() as broker, started(gateway_link(broker.port)) as gateway:
        broker.say(broker.publish(UP_TOPIC, b"before", 1))
        stale = await gateway.receive()
        broker.say(packet(0xF0, b""))
        await until_down(gateway)
        await until_up(gateway)
        broker.say(broker.publish(UP_TOPIC, b"after", 1))
        fresh = await gateway.receive()
        await gateway.done(stale)
        await asyncio.sleep(0.05)
        assert broker.acked == []
        await gateway.done(fresh)
        await until(lambda: broker.acked == [1])


@pytest.mark.parametrize(("present", "found"), [(True, [b"again"]), (False, [b"kept", b"again"])])
async def test_what_the_broker_will_repeat_is_not_kept(present: bool, found: list[bytes]) -> None:
    async with (
        ScriptedBroker(session_present=present) as broker,
        started(gateway_link(broker.port)) as gateway,
    ):
        broker.say(broker.publish(UP_TOPIC, b"kept", 1))
        await until(lambda: gateway.stats.frames_in == 1)
        broker.say(packet(0xF0, b""))
        await until_down(gateway)
        await until_up(gateway)
        broker.say(broker.publish(UP_TOPIC, b"again", 2))
        await until(lambda: gateway.stats.frames_in == 2)
        assert [(await gateway.receive()).data for _ in found] == found


async def test_a_broker_that_sends_too_much_is_held_back_by_tcp() -> None:
    async with (
        ScriptedBroker() as broker,
        started(gateway_link(broker.port, receive_window=10)) as gateway,
    ):
        for mid in range(1, 1001):
            broker.say(broker.publish(UP_TOPIC, mid.to_bytes(2, "big"), mid))
        await asyncio.sleep(0.2)
        assert gateway.stats.frames_in < 20
        found = [int.from_bytes(r.data, "big") for r in await receive_done(gateway, 1000)]
        assert found == list(range(1, 1001))
        assert gateway.stats.dropped_in == 0
        await until(lambda: broker.acked == list(range(1, 1001)))


async def test_a_receiver_that_stalls_does_not_take_the_connection_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mqtt_connection, "_PATIENCE", 0.1)
    async with (
        ScriptedBroker() as broker,
        started(gateway_link(broker.port, receive_window=10)) as gateway,
    ):
        for mid in range(1, 101):
            broker.say(broker.publish(UP_TOPIC, mid.to_bytes(2, "big"), mid))
        await until(lambda: gateway.stats.dropped_in > 50)
        for _ in range(20):  # it can still send
            await send_when_possible(gateway, b"receipt", down(NODE))
        await until(lambda: gateway.room == gateway.settings.window)
        held = [await gateway.receive() for _ in range(gateway.stats.frames_in)]
        assert len(held) < 20
        for received in held:
            await gateway.done(received)
        # It comes back for those that it let go.
        await until(lambda: len(broker.connects) == 2)
        assert len(broker.acked) == len(held)


async def test_a_backlog_before_anybody_receives_does_not_keep_the_link_down() -> None:
    middle = text(UP_TOPIC) + b"%b" + b"\x00frame"
    backlog = b"".join(
        packet(0x32, middle.replace(b"%b", mid.to_bytes(2, "big"))) for mid in range(1, 1001)
    )
    async with (
        ScriptedBroker(backlog=backlog) as broker,
        started(gateway_link(broker.port, receive_window=10, connect_timeout=1.0)) as gateway,
    ):
        broker.backlog = b""
        assert gateway.stats.connects == 1
        assert gateway.stats.dropped_in > 900


async def test_a_node_that_stalls_lets_surplus_frames_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_connection, "_PATIENCE", 0.1)
    async with (
        ScriptedBroker() as broker,
        started(node_link(broker.port, receive_window=10)) as node,
    ):
        for mid in range(1, 101):
            broker.say(broker.publish(DOWN_TOPIC, bytes(10), mid))
        await until(lambda: node.stats.dropped_in > 50)
        await receive_done(node, node.stats.frames_in)
        await until(lambda: len(broker.acked) == 100)
        assert node.up
        assert len(broker.connects) == 1


async def test_frames_of_qos_0_are_bounded_too() -> None:
    async with (
        ScriptedBroker() as broker,
        started(gateway_link(broker.port, receive_window=10)) as gateway,
    ):
        for _ in range(100):
            broker.say(broker.publish(UP_TOPIC, b"frame", 0))
        await until(lambda: gateway.stats.frames_in + gateway.stats.dropped_in == 100)
        assert gateway.stats.frames_in == 20
        received = await gateway.receive()
        assert received.token is None
        await gateway.done(received)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 40,
        packet(0x32, b"\x00"),
        packet(0x32, b"\x00\x02\xff\xfe\x00\x01\x00frame"),
        packet(0x20, b""),
        packet(0x90, b"\x00"),
        packet(0x40, b""),
        packet(0xE0, b"\x8e"),
        b"\x30\xff\xff\xff\xff\xff",
    ],
    ids=["noise", "publish", "utf8", "connack", "suback", "puback", "disconnect", "length"],
)
async def test_a_broker_s_garbage_ends_nothing_but_the_connection(garbage: bytes) -> None:
    async with ScriptedBroker() as broker, started(gateway_link(broker.port)) as gateway:
        broker.say(garbage)
        await asyncio.sleep(0.05)
        await until_up(gateway)
        broker.say(broker.publish(UP_TOPIC, b"frame", 9))
        assert [r.data for r in await receive_done(gateway, 1)] == [b"frame"]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_packets_of_every_form_in_pieces_of_every_size(protocol: str) -> None:
    """Nearly all are read past paho: what is between them and what is cut is not lost."""
    rng = random.Random(5)
    async with (
        ScriptedBroker(puback=lambda _: None) as broker,  # nothing of its own in between
        started(gateway_link(broker.port, protocol=protocol)) as gateway,
    ):
        stream, expected, acked = b"", [], []
        for mid in range(1, 150):
            frame = rng.randbytes(rng.choice((1, 60, 130, 400)))
            sent = broker.publish(UP_TOPIC, frame, mid)
            form = rng.randrange(8)
            if form == 0:
                sent = bytes((sent[0] | 0x08,)) + sent[1:]  # said again
            elif form == 1 and protocol == "5":
                # message expiry, 60 s
                sent = packet(
                    0x32, text(UP_TOPIC) + mid.to_bytes(2) + b"\x05\x02\0\0\0\x3c" + frame
                )
            elif form == 2:
                sent = broker.publish(UP_TOPIC, frame, 0)
            elif form == 3:
                sent += packet(0xD0, b"")  # an answer to no ping
            stream += sent
            expected.append(frame)
            if form != 2:
                acked.append(mid)
        while stream:
            size = rng.choice((1, 2, 7, 100, 1000))
            broker.say(stream[:size])
            stream = stream[size:]
            await asyncio.sleep(0.001 if size < 10 else 0)
        assert [r.data for r in await receive_done(gateway, len(expected))] == expected
        await until(lambda: broker.acked == acked)
        assert gateway.stats.disconnects == 0


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_giant_packet_is_not_read_and_its_session_is_given_up(protocol: str) -> None:
    async with (
        ScriptedBroker() as broker,
        started(gateway_link(broker.port, protocol=protocol)) as gateway,
    ):
        broker.say(b"\x32\xff\xff\xff\x7f" + bytes(10_000))
        await until_down(gateway)
        assert "packet of 268435455 bytes" in (gateway.stats.last_error or "")
        await until_up(gateway)
        broker.say(packet(0xF0, b""))
        await until_down(gateway)
        await until_up(gateway)
        assert [c.clean for c in broker.connects] == [False, True, False]
