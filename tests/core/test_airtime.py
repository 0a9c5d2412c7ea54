"""Airtime against the published table, and budgets against the law."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core.airtime import (
    HOUR,
    MAX_PAYLOAD,
    PRESETS,
    REGIONS,
    Bucket,
    Budget,
    airtime_ms,
    effective,
    effective_preset,
    on_air,
    region_named,
    time_on_air_ms,
)
from qis_edge.core.errors import UsageError
from qis_edge.links.meshtastic_stream import definitions

SIZES = (50, 100, 150, 200, 231)
#: Milliseconds as the firmware computes them, for payloads of SIZES and for its own ACK.
TABLE = {
    "SHORT_TURBO": (35, 53, 73, 90, 102, 19),
    "SHORT_FAST": (71, 107, 145, 181, 204, 37),
    "SHORT_SLOW": (126, 193, 254, 321, 362, 70),
    "MEDIUM_FAST": (232, 345, 457, 570, 641, 129),
    "MEDIUM_SLOW": (423, 628, 832, 1037, 1181, 239),
    "LONG_TURBO": (574, 869, 1164, 1460, 1656, 312),
    "LONG_FAST": (805, 1174, 1542, 1911, 2157, 477),
    "LONG_MODERATE": (2691, 4133, 5575, 7016, 7934, 1380),
    "LONG_SLOW": (4858, 7479, 10101, 12722, 14295, 2499),
}
#: On air, an acknowledgement has so many bytes.
ACK = 28


def test_the_table_has_every_preset() -> None:
    assert set(TABLE) == set(PRESETS)


@pytest.mark.parametrize("name", TABLE)
def test_every_cell_of_the_table(name: str) -> None:
    preset = PRESETS[name]
    for size, published in zip(SIZES, TABLE[name], strict=False):
        assert airtime_ms(size, preset) == pytest.approx(published, abs=1)
    assert time_on_air_ms(ACK, preset) == pytest.approx(TABLE[name][-1], abs=1)


def test_sizes_on_air() -> None:
    assert [on_air(size) for size in SIZES] == [73, 123, 174, 224, 255]


@pytest.mark.parametrize("size", [-1, MAX_PAYLOAD + 1])
def test_a_payload_that_the_radio_does_not_carry(size: int) -> None:
    with pytest.raises(UsageError) as caught:
        airtime_ms(size, PRESETS["LONG_FAST"])
    assert caught.value.field == "payload_size"


@given(st.integers(0, MAX_PAYLOAD - 1), st.sampled_from(sorted(PRESETS)))
def test_more_bytes_never_take_less_air(size: int, name: str) -> None:
    assert airtime_ms(size, PRESETS[name]) <= airtime_ms(size + 1, PRESETS[name])


def test_a_turbo_preset_does_not_fit_the_european_slot() -> None:
    assert effective(PRESETS["SHORT_TURBO"], REGIONS["EU_868"]) == PRESETS["LONG_FAST"]
    assert effective(PRESETS["SHORT_TURBO"], REGIONS["US"]) == PRESETS["SHORT_TURBO"]
    assert effective(PRESETS["MEDIUM_FAST"], REGIONS["EU_868"]) == PRESETS["MEDIUM_FAST"]


def test_presets_and_regions_by_the_names_that_a_radio_tells() -> None:
    assert effective_preset("EU_868", "SHORT_TURBO").name == "LONG_FAST"
    assert effective_preset("EU_868", "SHORT_FAST").name == "SHORT_FAST"
    assert effective_preset("UA_868", "LONG_TURBO").name == "LONG_TURBO"
    # Of what nobody knows yet, the most careful is taken.
    assert effective_preset("ATLANTIS", "SHORT_TURBO").name == "LONG_FAST"
    assert effective_preset("US", "HYPER_FAST").name == "LONG_FAST"
    assert region_named("EU_868") is REGIONS["EU_868"]
    strictest = min(region.duty_cycle for region in REGIONS.values())
    assert region_named("ATLANTIS").duty_cycle == strictest


def test_duty_cycles_are_those_of_the_firmware() -> None:
    limited = {name: region.duty_cycle for name, region in REGIONS.items() if region.duty_cycle < 1}
    assert limited == {
        "EU_433": 0.10,
        "EU_868": 0.10,
        "TH": 0.10,
        "UA_433": 0.10,
        "UA_868": 0.01,
    }


def test_every_region_is_one_that_radios_know() -> None:
    codes = definitions("config_pb2").Config.LoRaConfig.RegionCode
    assert set(REGIONS) <= set(codes.keys())


@pytest.mark.parametrize(
    ("name", "limit"),
    [("SHORT_TURBO", -7.5), ("SHORT_SLOW", -10), ("LONG_FAST", -17.5), ("LONG_SLOW", -20)],
)
def test_demodulation_limits_are_those_of_the_data_sheet(name: str, limit: float) -> None:
    assert PRESETS[name].snr_limit == limit


@given(st.lists(st.tuples(st.floats(0, 900), st.floats(1, 15_000)), max_size=200))
def test_no_hour_spends_more_than_its_allowance(steps: list[tuple[float, float]]) -> None:
    bucket = Bucket(360_000, now=0.0)
    now = 0.0
    spent: list[tuple[float, float]] = []
    for wait, ms in steps:
        now = max(now + wait, bucket.when(ms, now + wait))
        bucket.spend(ms, now)
        spent.append((now, ms))
    for end, _ in spent:
        within = sum(ms for at, ms in spent if end - HOUR < at <= end)
        assert within <= 360_000 + 1e-3


def test_a_backlog_gets_most_of_every_hour() -> None:
    bucket = Bucket(360_000, now=0.0)
    now, total = 0.0, 0.0
    while True:
        now = bucket.when(1911, now)
        if now > 10 * HOUR:
            break
        bucket.spend(1911, now)
        total += 1911
    assert total > 0.9 * 10 * 360_000


def test_when_is_exact() -> None:
    bucket = Bucket(120_000, now=5.0)
    bucket.spend(bucket.size, 5.0)
    ready = bucket.when(1000, 5.0)
    assert ready > 5.0
    assert bucket.level(ready) == pytest.approx(1000)
    assert bucket.when(1000, ready + 0.001) == ready + 0.001


def test_what_never_fits_goes_when_the_bucket_is_full() -> None:
    bucket = Bucket(12_000, now=0.0)
    assert bucket.when(5000, 0.0) == 0.0
    bucket.spend(5000, 0.0)
    assert bucket.level(0.0) == -4000
    assert bucket.when(5000, 0.0) > bucket.when(500, 0.0)


def test_a_budget_tells_what_it_spent_and_has_left() -> None:
    budget = Budget(REGIONS["EU_868"], now=0.0, spare=1.0)
    assert budget.state(0.0).hourly_ms == 360_000
    assert budget.state(0.0).left_ms == 30_000
    budget.spend(20_000, 10.0)
    budget.spend(5_000, 1000.0)
    assert budget.state(1000.0).spent_ms == 25_000
    assert budget.state(HOUR + 11.0).spent_ms == 5_000
    assert budget.state(2 * HOUR).spent_ms == 0


def test_a_region_without_a_duty_cycle_hardly_waits() -> None:
    budget = Budget(REGIONS["US"], now=0.0)
    for number in range(100):
        budget.spend(1911, 2.0 * number)
    assert budget.when(1911, 200.0) == 200.0


def test_a_busy_channel_is_left_to_others_for_a_while() -> None:
    budget = Budget(REGIONS["US"], now=0.0)
    budget.channel(0.30, 0.0)
    assert budget.when(500, 1.0) > 1.0
    assert budget.when(500, 1.0, urgent=True) == 1.0
    budget.channel(0.45, 2.0)
    assert budget.when(500, 3.0, urgent=True) > 3.0
    # A radio that fell silent does not hold us for ever.
    assert budget.when(500, 200.0) == 200.0
    budget.channel(0.10, 201.0)
    assert budget.when(500, 202.0) == 202.0


def test_when_the_radio_refuses_nothing_is_left() -> None:
    budget = Budget(REGIONS["EU_868"], now=0.0)
    budget.refused(1.0)
    assert budget.state(1.0).left_ms == 0
    assert budget.when(1911, 1.0) > 1.0


def test_the_log_of_a_budget_is_bounded() -> None:
    budget = Budget(REGIONS["US"], now=0.0)
    for second in range(3 * 3600):
        budget.spend(10, float(second))
    assert len(budget._log) <= 61
