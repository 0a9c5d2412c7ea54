"""The MQTT link's own ways, on a broker that does as it is told."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from qis_edge.core.errors import LinkError, UsageError
from qis_edge.links import mqtt
from qis_edge.links.base import UP, Link, Role, down, peers
from qis_edge.links.mqtt import MqttLink, MqttSettings
from qis_edge.testing.links import until_down, until_up
from tests.links.brokers import (
    DOWN_TOPIC,
    GATEWAY,
    NODE,
    SITE,
    UP_TOPIC,
    error_of,
    gateway_link,
    node_link,
    settings,
    started,
    until,
)
from tests.links.scripted_broker import ScriptedBroker, packet

#: DISCONNECT with its reason, and a string of the broker's own.
TAKEN_OVER = packet(0xE0, b"\x8e\x07\x1f\x00\x04\x1b[2J")


# What goes over the wire.


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("size", [1, 80, 100, 512])
async def test_cost_is_the_size_of_the_publish_packet(protocol: str, size: int) -> None:
    async with (
        ScriptedBroker() as broker,
        started(node_link(broker.port, protocol=protocol)) as node,
        started(gateway_link(broker.port, protocol=protocol)) as gateway,
    ):
        await node.send(bytes(size), UP)
        await gateway.send(bytes(size), down(NODE))
        await until(lambda: len(broker.publishes) == 4)
        found = {p.topic: p for p in broker.publishes}
        assert found[UP_TOPIC].wire == node.cost(size)
        assert found[DOWN_TOPIC].wire == gateway.cost(size)
        assert not found[UP_TOPIC].retain


async def test_topics_and_presence() -> None:
    async with ScriptedBroker() as broker:
        async with started(node_link(broker.port)) as node:
            await node.listen(frozenset([b"\xab" * 32]))
        async with started(gateway_link(broker.port)) as gateway:
            await gateway.send(b"packet", peers(b"\xab" * 32))
        state = f"qis/v1/{SITE}/state/"
        assert [(p.topic, p.payload, p.retain) for p in broker.publishes] == [
            (state + NODE.hex(), b"online", True),
            (state + NODE.hex(), b"offline", True),
            (state + GATEWAY.hex(), b"online", True),
            (f"qis/v1/{SITE}/peers/{'ab' * 16}", b"packet", False),
            (state + GATEWAY.hex(), b"offline", True),
        ]
        assert broker.subscribed == [
            DOWN_TOPIC,
            f"qis/v1/{SITE}/peers/{'ab' * 16}",
            f"qis/v1/{SITE}/up/+",
        ]
        assert broker.disconnected == 2


async def test_a_node_starts_clean_and_a_gateway_comes_back_to_its_session() -> None:
    async with ScriptedBroker() as broker:
        for protocol in ("5", "3.1.1"):
            async with started(node_link(broker.port, protocol=protocol)):
                pass
            async with started(gateway_link(broker.port, protocol=protocol)):
                pass
        assert [(c.clean, c.client_id) for c in broker.connects] == [
            (True, f"qis-{NODE.hex()}"),
            (False, f"qis-gw-{GATEWAY.hex()}"),
        ] * 2


async def test_many_addresses_are_subscribed_to_in_pieces() -> None:
    addresses = frozenset(bytes([number]) * 32 for number in range(120))
    async with ScriptedBroker() as broker, started(node_link(broker.port)) as node:
        await node.listen(addresses)
        assert len(broker.subscribed) == 121


async def test_a_broker_that_forgets_to_answer_is_asked_again() -> None:
    async with (
        ScriptedBroker(unsuback=False) as broker,
        started(node_link(broker.port, connect_timeout=0.2)) as node,
    ):
        await node.listen(frozenset([b"\x01" * 32]))
        await node.listen(frozenset([b"\x02" * 32]))
        await until(lambda: len(broker.connects) == 2)
        await until_up(node)
        assert broker.subscribed[-1] == f"qis/v1/{SITE}/peers/{'02' * 16}"


async def test_listening_while_it_connects_is_not_forgotten() -> None:
    slow = ScriptedBroker(suback=lambda _: 1)
    async with slow as broker:
        node = node_link(broker.port)
        async with started(node, wait=False):
            numbers = iter(range(100))
            while not node.up:
                await node.listen(frozenset([bytes([next(numbers)]) * 32]))
                await asyncio.sleep(0.0005)
            last = bytes([next(numbers) - 1]) * 32
            await node.listen(frozenset([last]))
            assert broker.subscribed[-1] == f"qis/v1/{SITE}/peers/{last[:16].hex()}"


# Protocol versions.


@pytest.mark.parametrize("way", ["refuse", "hang up", "keep silent"])
async def test_an_old_broker_is_spoken_to_in_3_1_1(way: str) -> None:
    patience = 0.3 if way == "keep silent" else 5.0
    async with (
        ScriptedBroker(level=4, to_newer=way) as broker,
        started(node_link(broker.port, connect_timeout=patience)) as node,
    ):
        assert node.stats.extra["protocol"] == 3.1
        assert [c.level for c in broker.connects] == [5, 4]
        await node.send(b"frame", UP)
        await until(lambda: [p.payload for p in broker.publishes[1:]] == [b"frame"])


@pytest.mark.parametrize(
    ("way", "levels"), [("refuse", [5, 4, 4, 4]), ("hang up", [5, 4, 5, 4, 4])]
)
async def test_what_an_old_broker_taught_is_remembered(way: str, levels: list[int]) -> None:
    async with (
        ScriptedBroker(level=4, to_newer=way) as broker,
        started(node_link(broker.port)) as node,
    ):
        for _ in range(2):
            broker.say(packet(0xF0, b""))  # breaks 3.1.1: the link leaves and comes back
            await until_down(node)
            await until_up(node)
        assert [c.level for c in broker.connects] == levels


async def test_a_protocol_that_is_set_is_kept_to() -> None:
    async with (
        ScriptedBroker(level=4) as broker,
        started(node_link(broker.port, protocol="5"), wait=False) as node,
    ):
        await error_of(node, "does not speak MQTT 5")
        assert {c.level for c in broker.connects} == {5}


# Refusals.


@pytest.mark.parametrize(
    ("level", "code", "words"),
    [
        (5, 0x86, "Bad user name or password"),
        (5, 0x87, "Not authorized"),
        (5, 0x88, "Server unavailable"),
        (5, 0x85, "Client identifier not valid"),
        (4, 4, "Bad user name or password"),
        (4, 5, "Not authorized"),
        (4, 3, "Server unavailable"),
    ],
)
async def test_a_refusal_is_said_in_words(level: int, code: int, words: str) -> None:
    protocol = "5" if level == 5 else "3.1.1"
    async with (
        ScriptedBroker(connack=code) as broker,
        started(node_link(broker.port, protocol=protocol), wait=False) as node,
    ):
        assert await error_of(node, words) == f"the broker refuses us: {words}"
        with pytest.raises(LinkError, match=words):
            await node.send(b"frame", UP)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_without_its_own_topic_a_link_is_not_up(protocol: str) -> None:
    code = 0x87 if protocol == "5" else 0x80
    async with (
        ScriptedBroker(suback=lambda _: code) as broker,
        started(node_link(broker.port, protocol=protocol), wait=False) as node,
    ):
        assert DOWN_TOPIC in await error_of(node, "does not let us subscribe")
        assert not node.up
        assert node.stats.connects == 0


async def test_without_an_address_it_is_up_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        ScriptedBroker(suback=lambda name: 0x87 if "/peers/" in name else 1) as broker,
        started(node_link(broker.port)) as node,
    ):
        for byte in (b"\x01", b"\x02", b"\x01"):
            await node.listen(frozenset([byte * 32]))
        assert node.up
        assert node.stats.extra["refused_subscriptions"] == 3
        said = [r.message for r in caplog.records if "does not let us subscribe" in r.message]
        assert len(said) == 2  # each topic once


async def test_a_node_that_may_not_publish_goes_down() -> None:
    async with (
        ScriptedBroker(puback=lambda topic: 0x87 if "/up/" in topic else 0) as broker,
        started(node_link(broker.port)) as node,
    ):
        await node.send(b"frame", UP)
        await until_down(node)
        error = await error_of(node, "does not let us publish")
        assert UP_TOPIC in error
        assert node.stats.extra["refused_out"] == 1


async def test_a_gateway_that_may_not_reach_one_node_stays_up() -> None:
    async with (
        ScriptedBroker(puback=lambda topic: 0x87 if "/down/" in topic else 0) as broker,
        started(gateway_link(broker.port)) as gateway,
    ):
        for _ in range(3):
            await gateway.send(b"frame", down(NODE))
        await until(lambda: gateway.stats.extra.get("refused_out") == 3)
        assert gateway.up
        assert "Not authorized" in (gateway.stats.last_error or "")


async def test_frames_that_nobody_hears_are_counted() -> None:
    async with (
        ScriptedBroker(puback=lambda _: 0x10) as broker,
        started(node_link(broker.port)) as node,
    ):
        await node.send(b"frame", UP)
        await until(lambda: node.stats.extra.get("no_subscribers") == 1)
        assert node.up


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        (b"\x24\x00", "does not offer QoS 1"),  # maximum QoS 0
        (b"\x27\x00\x00\x01\x00", "takes packets of 256 bytes"),  # maximum packet size
    ],
)
async def test_a_broker_that_offers_too_little_is_refused(properties: bytes, words: str) -> None:
    async with (
        ScriptedBroker(properties=properties) as broker,
        started(node_link(broker.port), wait=False) as node,
    ):
        await error_of(node, words)
        assert not node.up


# Back-pressure towards the broker.


async def test_the_broker_s_own_window_counts() -> None:
    async with (
        ScriptedBroker(
            properties=b"\x21\x00\x07", puback=lambda topic: None if "/up/" in topic else 0
        ) as broker,
        started(node_link(broker.port, ack_timeout=0.5)) as node,
    ):
        await until(lambda: node.room == 7)
        for _ in range(7):
            await node.send(b"frame", UP)
        assert node.room == 0
        with pytest.raises(LinkError, match="no room"):
            await node.send(b"frame", UP)


async def test_a_broker_that_acknowledges_nothing_is_left() -> None:
    async with (
        ScriptedBroker(puback=lambda topic: None if "/up/" in topic else 0) as broker,
        started(node_link(broker.port, ack_timeout=0.4, window=5)) as node,
    ):
        await until(lambda: node.room == 5)
        await asyncio.sleep(0.6)
        assert node.up  # nothing waits
        for _ in range(5):
            await node.send(b"frame", UP)
        assert node.room == 0
        await until_down(node)
        assert "acknowledges nothing" in (node.stats.last_error or "")
        await until_up(node)
        await until(lambda: node.room == 5)
        assert sum("/up/" in p.topic for p in broker.publishes) == 5  # nothing twice


async def test_a_broker_that_answers_no_ping_is_left() -> None:
    async with (
        ScriptedBroker(pings=False) as broker,
        started(node_link(broker.port, keepalive=1)) as node,
    ):
        await until_down(node, seconds=30)
        assert "fallen silent" in (node.stats.last_error or "")


# The life of the link.


async def test_an_outage_is_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    node = node_link(port, retry_first=0.01, retry_longest=0.02)
    async with started(node, wait=False):
        assert "refuses connections" in await error_of(node, "refuses")
        await asyncio.sleep(0.2)
        messages = [r.message for r in caplog.records if r.name == mqtt.__name__]
        assert len(messages) == 1
        assert f"127.0.0.1:{port} refuses connections (is the broker running?)" in messages[0]
        broker = ScriptedBroker()
        async with broker:
            node.settings = settings(broker.port)
            await until_up(node)
            messages = [r.message for r in caplog.records if r.name == mqtt.__name__]
            assert len(messages) == 2
            assert "connected with MQTT 5 after" in messages[1]
            assert node.stats.last_error is None


async def test_two_links_that_push_each_other_out_slow_down() -> None:
    async with ScriptedBroker() as broker:
        node = node_link(broker.port, retry_first=0.05, retry_longest=10)
        async with started(node):
            for _ in range(3):
                broker.say(TAKEN_OVER)
                await until_down(node)
                assert "Session taken over" in (node.stats.last_error or "")
                await until_up(node)
            began = time.monotonic()
            broker.say(TAKEN_OVER)
            await until_down(node)
            await until_up(node)
            assert time.monotonic() - began > 0.05 * 2**3 * 0.5


async def test_a_good_connection_resets_the_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "_GOOD", 0.05)
    async with ScriptedBroker() as broker:
        node = node_link(broker.port, retry_first=0.02, retry_longest=10)
        async with started(node):
            for _ in range(6):
                await asyncio.sleep(0.06)
                broker.say(packet(0xF0, b""))
                await until_down(node)
                began = time.monotonic()
                await until_up(node)
            assert time.monotonic() - began < 0.3


async def test_a_name_that_does_not_resolve_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    node = MqttLink(MqttSettings(host="broker.invalid", retry_first=0.05), Role.NODE, SITE, NODE)
    async with started(node, wait=False):
        assert await error_of(node, "resolve") == "the name broker.invalid does not resolve"


async def test_a_resolver_that_hangs_blocks_neither_the_loop_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = threading.Event()

    def hangs(*_: object, **__: object) -> None:
        released.wait(60)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    node = MqttLink(MqttSettings(host="broker.invalid"), Role.NODE, SITE, NODE)
    try:
        await node.start()
        began = time.monotonic()
        await asyncio.sleep(0.05)
        await node.close()
        assert time.monotonic() - began < 1
    finally:
        released.set()
    await until(lambda: not any(t.name == "mqtt-dial" for t in threading.enumerate()))


async def test_an_address_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def times_out(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", times_out)
    node = MqttLink(MqttSettings(host="192.0.2.1", retry_first=0.05), Role.NODE, SITE, NODE)
    async with started(node, wait=False):
        assert await error_of(node, "answer") == "192.0.2.1:1883 does not answer"


async def test_closing_while_the_broker_has_not_answered() -> None:
    async with ScriptedBroker(level=4, to_newer="keep silent") as broker:
        node = node_link(broker.port)
        await node.start()
        await until(lambda: broker.connects)
        await asyncio.wait_for(node.close(), 1)


async def test_closing_does_not_wait_for_ever_for_a_frozen_broker() -> None:
    async with (
        ScriptedBroker(puback=lambda _: None) as broker,
        started(node_link(broker.port)) as node,
    ):
        began = time.monotonic()
        await node.close()
        assert 1 < time.monotonic() - began < 4


async def test_what_was_sent_before_closing_goes_out() -> None:
    async with ScriptedBroker() as broker:
        async with started(node_link(broker.port)) as node:
            for _ in range(50):
                await node.send(bytes(500), UP)
        assert sum("/up/" in p.topic for p in broker.publishes) == 50
        assert broker.publishes[-1].payload == b"offline"


# Settings that can never work, and secrets.


async def test_files_that_cannot_be_used_are_said_at_once(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    text = tmp_path / "text"
    text.write_text("not a certificate")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tls": True, "ca": missing}, "ca: .*missing: No such file"),
        ({"tls": True, "ca": text}, "ca: "),
        ({"tls": True, "cert": missing}, "cert: .*missing: No such file"),
        ({"tls": True, "cert": text}, "cert: "),
        ({"user": "node", "password_file": missing}, "password_file: .*missing: No such file"),
    ]
    for wrong, words in cases:
        with pytest.raises(LinkError, match=words):
            await node_link(1, **wrong).start()


async def test_a_password_is_never_shown(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG)
    async with ScriptedBroker(connack=0x86) as broker:
        node = node_link(broker.port, user="node", password="hunter2")
        async with started(node, wait=False):
            await error_of(node, "Bad user name")
        assert "hunter2" not in repr(node.settings) + str(vars(node)) + str(node.stats)
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("site", ["", "a/b", "+", "#", "ü", "a" * 65])
def test_a_site_that_breaks_topics_is_refused(site: str) -> None:
    with pytest.raises(UsageError, match="site"):
        MqttLink(MqttSettings(), Role.NODE, site, NODE)


def test_a_kid_of_another_length_is_refused() -> None:
    with pytest.raises(UsageError, match="kid"):
        MqttLink(MqttSettings(), Role.NODE, SITE, b"short")


def test_it_is_a_link() -> None:
    assert isinstance(node_link(1), Link)
