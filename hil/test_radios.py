"""Two radios, and nothing above them: does every frame that a radio takes arrive as it was?"""

from __future__ import annotations

import asyncio
import time

import pytest

from hil.bench import GATEWAY, NODE, Bench
from hil.measure import Meter
from qis_edge.core.airtime import PRESETS
from qis_edge.core.errors import UsageError
from qis_edge.links.meshtastic_session import Declined, Outgoing, Reason, Taken, Unknown

#: What is ours on the port, and no frame of a node's.
MAGIC = 0xBF


def payload(size: int, number: int = 0) -> bytes:
    """Bytes of every value, each number's differ."""
    return bytes([MAGIC]) + bytes((number + i) & 0xFF for i in range(size - 1))


async def test_handshake_and_identity(bench: Bench) -> None:
    numbers = {}
    for role in bench.ports:
        host = await bench.up(role)
        radio = host.client.radio
        assert radio is not None
        numbers[role] = radio.number
        assert 0 < radio.number < 0xFFFFFFFF
        assert radio.firmware
        assert radio.region != "UNSET", "the radio may not send before its region is set"
        assert radio.tx_enabled
        assert radio.preset in PRESETS
    assert len(set(numbers.values())) == len(numbers)
    spoken = {(h.client.radio.region, h.client.radio.preset) for h in bench.hosts if h.client.radio}
    assert len(spoken) == 1, f"the radios are not set alike: {spoken}"
    for host in list(bench.hosts):
        await host.close()
        again = await bench.up(host.role)
        assert again.number == numbers[host.role]


@pytest.mark.parametrize("size", [1, 200, 219, 230, 231])
async def test_every_size_that_fits_arrives_unchanged(bench: Bench, size: int) -> None:
    node, gateway = await bench.up(NODE), await bench.up(GATEWAY)
    for sender, receiver in ((node, gateway), (gateway, node)):
        heard = await bench.carry(sender, receiver, payload(size))
        assert heard.payload == payload(size)


@pytest.mark.parametrize("size", [232, 233])
async def test_a_size_that_does_not_fit_is_refused_with_its_reason(bench: Bench, size: int) -> None:
    node, gateway = await bench.up(NODE), await bench.up(GATEWAY)
    refused = await node.send(payload(size))
    assert isinstance(refused, Declined)
    assert refused.reason is Reason.TOO_LARGE
    # And the radio is none the worse for it.
    assert (await bench.carry(node, gateway, payload(231))).payload == payload(231)


async def test_more_than_a_radio_parses_never_reaches_it(bench: Bench) -> None:
    node = await bench.up(NODE)
    with pytest.raises(UsageError, match="233"):
        await node.client.send(Outgoing(payload(234)))
    assert node.client.up


async def test_round_trips(bench: Bench, meter: Meter) -> None:
    node, gateway = await bench.up(NODE), await bench.up(GATEWAY)

    async def echo() -> None:
        answered = 0
        while True:
            await asyncio.sleep(0.002)
            for heard in gateway.heard[answered:]:
                answered += 1
                if heard.source == node.number:
                    await gateway.send(heard.payload)

    async def trip(sent: bytes) -> float | None:
        began, before = meter.now(), len(node.heard)
        assert isinstance(await node.send(sent), Taken)
        patience = 40 * bench.airtime(node, len(sent)) + 20.0
        deadline = meter.now() + patience + bench.slack * bench.rate
        while meter.now() < deadline:
            if any(h.payload == sent and h.source == gateway.number for h in node.heard[before:]):
                return meter.now() - began
            await asyncio.sleep(0.002)
        return None

    echoing = asyncio.create_task(echo())
    came = 0
    try:
        for number, size in enumerate([12, 64, 128, 200] * 5):
            took = await trip(payload(size, number))
            if took is not None:
                came += 1
                meter.round_trip("radio echo", size, took)
                assert took > 2 * bench.airtime(node, size) * 0.9, "faster than the air is"
    finally:
        echoing.cancel()
    assert came == 20 or (bench.tries > 1 and came >= 10), f"{came} of 20 came back"


async def test_a_burst(bench: Bench, meter: Meter) -> None:
    node, gateway = await bench.up(NODE), await bench.up(GATEWAY)
    began, count, size = meter.now(), 20, 200
    sent = []
    for number in range(count):
        outcome = await node.send(payload(size, number))
        assert isinstance(outcome, Taken), outcome
        sent.append(outcome.id)
    last = await gateway.hears(node.number, sent[-1], 30 * bench.airtime(node, size) + 60)
    took = meter.now() - began
    arrived = [one for one in sent if gateway.has(node.number, one)]
    meter.transfer("burst of 20 frames", size * len(arrived), took)
    least = count if bench.tries == 1 else 0.7 * count
    assert len(arrived) >= least, f"{len(arrived)} of {count} arrived"
    assert last is not None or bench.tries > 1
    bodies = [gateway.has(node.number, one) for one in sent]
    assert all(h.payload == payload(size, i) for i, h in enumerate(bodies) if h is not None)
    assert len(gateway.heard) == len({(h.source, h.id) for h in gateway.heard}), "came twice"


async def test_telemetry_says_what_was_on_air(bench: Bench) -> None:
    node = await bench.up(NODE)
    await node.send(payload(231))
    await bench.until("telemetry", lambda: node.client.telemetry is not None, 150.0)
    telemetry = node.client.telemetry
    assert telemetry is not None
    assert 0.0 < telemetry.channel_utilization <= 100.0
    assert 0.0 < telemetry.air_util_tx <= 100.0


@pytest.mark.disturbs
async def test_packets_wait_for_a_host_that_is_away(bench: Bench) -> None:
    node, gateway = await bench.up(NODE), await bench.up(GATEWAY)
    await gateway.close()
    sent = []
    for number in range(5):  # the smallest radios keep 8
        outcome = await node.send(payload(40, number))
        assert isinstance(outcome, Taken)
        sent.append(outcome.id)
    await bench.sleep(8 * bench.airtime(node, 40) + 10)
    again = await bench.up(GATEWAY)
    await again.hears(node.number, sent[-1], 20)
    got = [h.id for h in again.heard if h.source == node.number and h.id in sent]
    assert got == [one for one in sent if one in got], "out of order, or twice"
    assert got == sent or bench.tries > 1


@pytest.mark.disturbs
async def test_unplugged_in_the_middle_and_back(bench: Bench) -> None:
    node, gateway = await bench.up(NODE), await bench.up(GATEWAY)
    outcomes: list[Taken | Declined | Unknown] = []

    async def stream() -> None:
        for number in range(200):
            outcomes.append(await node.client.send(Outgoing(payload(60, number), hop_limit=0)))
            await asyncio.sleep(0.005)

    streaming = asyncio.create_task(stream())
    await bench.until("the first frames", lambda: len(outcomes) > 3, 60)
    async with bench.unplugged(NODE):
        await bench.until("the loss to be seen", lambda: not node.client.up, 60)
        await bench.until("a refusal", lambda: outcomes[-1] == Declined(Reason.NOT_CONNECTED), 20)
    streaming.cancel()
    await node.room()
    assert node.client.stats.connects == 2
    assert (await bench.carry(node, gateway, payload(100))).payload == payload(100)
    # Nothing ended without a word.
    stats = node.client.stats
    assert stats.taken + stats.declined + stats.unknown >= len(outcomes)
    if bench.tries == 1:  # its battery kept the radio on, and what it had taken went out
        for one in outcomes:
            if isinstance(one, Taken):
                assert await gateway.hears(node.number, one.id, 60)


@pytest.mark.disturbs
@pytest.mark.parametrize("role", [NODE, GATEWAY])
async def test_a_reboot_with_a_full_queue(bench: Bench, role: str) -> None:
    other = await bench.up(GATEWAY if role == NODE else NODE)
    host = await bench.up(role)
    await host.reboot(10)
    full = False

    def rebooted() -> bool:
        stats = host.client.stats
        return stats.reboots + stats.disconnects > 0

    async def fill() -> None:
        nonlocal full
        while not rebooted():
            outcome = await host.client.send(Outgoing(payload(231), hop_limit=0))
            full = full or outcome == Declined(Reason.NO_ROOM)
            await asyncio.sleep(0.001)

    filling = asyncio.create_task(fill())
    await bench.until("the reboot", rebooted, 120)
    await filling
    assert full, "the queue was never full"
    await host.room()
    assert (await bench.carry(host, other, payload(50))).payload == payload(50)


@pytest.mark.disturbs
@pytest.mark.exhausts
async def test_a_used_up_duty_cycle_is_refused_with_its_reason(bench: Bench) -> None:
    node = await bench.up(NODE)
    if bench.duty_cycle(node) >= 1:
        pytest.skip("the law of the radios' region bounds no duty cycle")
    await bench.use_up_airtime(node)
    began = time.monotonic()
    refused = await node.send(payload(50))
    assert refused == Declined(Reason.DUTY_CYCLE, 9)
    assert time.monotonic() - began < bench.slack
    assert node.client.up
