"""The links' small parts: topics, delays, what the log is told, waking, buffering."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import pytest

from qis_edge.core.errors import UsageError
from qis_edge.links.backoff import Backoff
from qis_edge.links.base import Direction
from qis_edge.links.mqtt_dial import BufferedSocket, OversizedError
from qis_edge.links.mqtt_topics import Topics
from qis_edge.links.outage import Outage
from qis_edge.links.wake import Wake

KID = bytes(range(8))
TOPICS = Topics("north")


# Topics.


def test_topics_are_made_and_read() -> None:
    fingerprint = bytes(range(32))
    assert TOPICS.up(KID) == "qis/v1/north/up/0001020304050607"
    assert TOPICS.parse(TOPICS.up(KID)) == (Direction.UP, KID)
    assert TOPICS.parse(TOPICS.down(KID)) == (Direction.DOWN, KID)
    assert TOPICS.peers(fingerprint) == f"qis/v1/north/peers/{fingerprint[:16].hex()}"
    assert TOPICS.parse(TOPICS.peers(fingerprint)) == (Direction.PEERS, fingerprint[:16])
    assert TOPICS.state(KID) == "qis/v1/north/state/0001020304050607"


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "qis/v1/north",
        "qis/v1/north/",
        "qis/v1/north/up",
        "qis/v1/north/up/",
        "qis/v1/north/up/00010203040506",
        "qis/v1/north/up/000102030405060708",
        "qis/v1/north/up/000102030405060G",
        "qis/v1/north/up/000102030405060A",
        "qis/v1/north/up/0001020304050607/",
        "qis/v1/north/up/ 001020304050607",
        "qis/v1/north/state/0001020304050607",
        "qis/v1/north/UP/0001020304050607",
        "qis/v2/north/up/0001020304050607",
        "qis/v1/south/up/0001020304050607",
        "qis/v1/north/peers/0001020304050607",
    ],
)
def test_other_topics_are_none_of_ours(topic: str) -> None:
    assert TOPICS.parse(topic) is None


def test_keys_of_another_length_are_refused() -> None:
    for make in (TOPICS.up, TOPICS.down, TOPICS.state, TOPICS.peers):
        with pytest.raises(UsageError):
            make(b"seven..")


# Delays.


def test_delays_double_up_to_the_longest_and_begin_anew() -> None:
    backoff = Backoff(1.0, 8.0, uniform=lambda _low, _high: 1.0)
    assert [backoff.next() for _ in range(6)] == [1, 2, 4, 8, 8, 8]
    backoff.reset()
    assert backoff.next() == 1


def test_delays_are_spread() -> None:
    low = Backoff(1.0, 8.0, uniform=lambda low, _high: low)
    high = Backoff(1.0, 8.0, uniform=lambda _low, high: high)
    assert (low.next(), high.next()) == (0.5, 1.5)
    drawn = {Backoff().next() for _ in range(50)}
    assert len(drawn) > 40
    assert all(0.5 <= delay <= 1.5 for delay in drawn)


# What the log is told.


def test_an_outage_and_its_causes_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 100.0
    outage = Outage(logging.getLogger("test"), "mqtt", clock=lambda: now)
    outage.over("connected")
    assert not outage.lasting
    for cause in ("refused", "refused", "no name", "refused", "no name"):
        outage.cause(cause, "a hint")
    assert outage.lasting
    now = 142.0
    outage.over("connected")
    outage.cause("refused")
    assert [record.message for record in caplog.records] == [
        "mqtt: connected",
        "mqtt: refused (a hint); trying again until it works",
        "mqtt: no name (a hint); trying again until it works",
        "mqtt: connected after 42 s without",
        "mqtt: refused; trying again until it works",
    ]


def test_causes_that_never_repeat_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage(logging.getLogger("test"), "mqtt")
    for number in range(1000):
        outage.cause(f"cause {number}")
    assert len(caplog.records) == Outage.MAX_CAUSES


# Waking.


async def test_a_wake_is_for_those_who_called_before() -> None:
    wake = Wake()
    early = wake.changed()
    wake.notify()
    await asyncio.wait_for(early, 1)
    late = asyncio.create_task(wake.changed())
    await asyncio.sleep(0.01)
    assert not late.done()
    wake.notify()
    await asyncio.wait_for(late, 1)


async def test_a_wake_that_ended_holds_nobody() -> None:
    wake = Wake()
    waiting = asyncio.create_task(wake.changed())
    await asyncio.sleep(0)
    wake.end()
    await asyncio.wait_for(waiting, 1)
    await asyncio.wait_for(wake.changed(), 1)


# Buffering.


@pytest.fixture
def pair() -> Iterator[tuple[BufferedSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    buffered = BufferedSocket(ours, 1000)
    yield buffered, theirs
    buffered.close()
    theirs.close()


def test_reads_are_served_from_one_call(pair: tuple[BufferedSocket, socket.socket]) -> None:
    buffered, theirs = pair
    theirs.send(b"abcdef")
    assert buffered.recv(1) == b"a"
    assert buffered.pending() == 5
    assert buffered.recv(3) == b"bcd"
    assert buffered.recv(100) == b"ef"
    assert buffered.pending() == 0
    with pytest.raises(BlockingIOError):
        buffered.recv(1)
    assert buffered.error is None
    theirs.close()
    assert buffered.recv(1) == b""


def test_writes_wait_for_the_flush(pair: tuple[BufferedSocket, socket.socket]) -> None:
    buffered, theirs = pair
    theirs.setblocking(False)
    assert buffered.send(b"abc") == 3
    assert buffered.send(b"def") == 3
    with pytest.raises(BlockingIOError):
        theirs.recv(10)
    assert buffered.flush()
    assert theirs.recv(10) == b"abcdef"


def test_writes_are_bounded_and_arrive_in_order(
    pair: tuple[BufferedSocket, socket.socket],
) -> None:
    buffered, theirs = pair
    piece = bytes(range(256)) * 16
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 10_000_000:
            sent += buffered.send(piece)
    assert sent < 10_000_000
    assert not buffered.flush()
    found = b""
    theirs.setblocking(False)
    while len(found) < sent:
        found += theirs.recv(1 << 20)
        buffered.flush()
    assert found == piece * (sent // len(piece))


def test_a_packet_larger_than_any_is_not_read(
    pair: tuple[BufferedSocket, socket.socket],
) -> None:
    buffered, theirs = pair
    theirs.send(b"x" * 100)
    with pytest.raises(OversizedError, match="1001 bytes"):
        buffered.recv(1001)
    assert isinstance(buffered.error, OversizedError)


def test_a_broken_connection_is_remembered(pair: tuple[BufferedSocket, socket.socket]) -> None:
    buffered, theirs = pair
    theirs.close()
    buffered.send(b"abc")
    with pytest.raises(OSError):
        buffered.flush()
    assert isinstance(buffered.error, BrokenPipeError)
    buffered.close()
    buffered.close()
