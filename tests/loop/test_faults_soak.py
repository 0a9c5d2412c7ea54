"""The soak of ``make bench BENCH=soak``, in small: trouble and a flood."""

from __future__ import annotations

from tests.bench.soak import Plan, measure


async def test_a_fleet_through_trouble_and_a_flood() -> None:
    plan = Plan(nodes=12, seconds=6.0, flood=3000, pace=0.5, each=6)
    found = await measure(plan)
    assert (found["lost"], found["duplicated"]) == (0, 0)
    assert found["outcomes"] >= plan.nodes * 4
    assert found["flood_frames"] > 0
    assert found["honest_passed_over"] == 0
    assert found["rss_growth_mib"] < 30
