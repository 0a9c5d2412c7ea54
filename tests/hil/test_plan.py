"""Which radios and lines the tests on the bench take."""

from __future__ import annotations

import pytest

from hil.bench import GATEWAY, NODE, SECOND
from hil.plan import Plan, line, radios


def chosen(*named: str | None, found: int = 0, emulated: bool = False, ci: bool = False) -> Plan:
    ports = [f"/dev/ttyUSB{i}" for i in range(found)]
    return radios(
        (*named, *[None] * (3 - len(named))), emulated=emulated, ci=ci, find=lambda: ports
    )


def test_named_radios_are_taken_whatever_is_plugged_in() -> None:
    for ci in (False, True):
        plan = chosen("/dev/a", "/dev/b", found=3, ci=ci)
        assert plan.ports == {NODE: "/dev/a", GATEWAY: "/dev/b"}
        assert not plan.emulated
    assert chosen("/dev/a", "/dev/b", "tcp:base").ports[SECOND] == "tcp:base"


@pytest.mark.parametrize("found", [2, 3])
def test_two_or_three_that_are_plugged_in_are_taken(found: int) -> None:
    plan = chosen(found=found)
    assert list(plan.ports) == [NODE, GATEWAY, SECOND][:found]
    assert "found" in plan.why


def test_without_two_radios_emulated_ones_are_taken_and_it_says_why() -> None:
    assert chosen().why == "no radio is plugged in"
    one = chosen(found=1)
    assert one.emulated
    assert "/dev/ttyUSB0" in one.why


def test_hardware_is_left_alone_where_nobody_asked_for_it() -> None:
    assert chosen(found=2, emulated=True).emulated
    ci = chosen(found=2, ci=True)
    assert ci.emulated
    assert "CI" in ci.why


def test_nothing_is_looked_for_without_need() -> None:
    def find() -> list[str]:
        raise AssertionError("looked")

    radios((None, None, None), emulated=True, ci=False, find=find)
    radios((None, None, None), emulated=False, ci=True, find=find)
    radios(("a", "b", None), emulated=False, ci=False, find=find)


@pytest.mark.parametrize(
    ("named", "emulated", "found", "message"),
    [
        (("/dev/a",), False, 0, "go together"),
        ((None, "/dev/b"), False, 0, "go together"),
        ((None, None, "/dev/c"), False, 2, "go together"),
        (("/dev/a", "/dev/a"), False, 0, "the same"),
        (("/dev/a", "/dev/b"), True, 0, "not both"),
        ((), False, 4, "name two"),
    ],
)
def test_what_does_not_go_together_is_refused(
    named: tuple[str | None, ...], emulated: bool, found: int, message: str
) -> None:
    with pytest.raises(pytest.UsageError, match=message):
        chosen(*named, emulated=emulated, found=found)


def test_lines_are_named_or_emulated() -> None:
    assert line((None, None), emulated=False).emulated
    assert line(("/dev/a", "/dev/b"), emulated=False).ports == {NODE: "/dev/a", GATEWAY: "/dev/b"}
    for named, emulated in (
        (("/dev/a", None), False),
        (("/dev/a", "/dev/a"), False),
        (("/dev/a", "/dev/b"), True),
    ):
        with pytest.raises(pytest.UsageError):
            line(named, emulated=emulated)
