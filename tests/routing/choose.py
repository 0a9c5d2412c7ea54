"""Parts of the suites, for engines that are tested twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Suite = TypeVar("Suite")


def only(*names: str) -> Callable[[type[Suite]], type[Suite]]:
    """Of a suite, these tests alone."""

    def choose(suite: type[Suite]) -> type[Suite]:
        inherited = [name for name in dir(suite) if name.startswith("test_")]
        assert {*names} <= {*inherited}
        for name in inherited:
            if name not in names:
                setattr(suite, name, None)
        return suite

    return choose


def beyond(*bases: type) -> Callable[[type[Suite]], type[Suite]]:
    """Of a suite, the tests that these do not have."""

    def choose(suite: type[Suite]) -> type[Suite]:
        covered = {name for base in bases for name in dir(base)}
        names = {name for name in dir(suite) if name.startswith("test_")} - covered
        return only(*names)(suite)

    return choose


def without(*names: str) -> Callable[[type[Suite]], type[Suite]]:
    """Of a suite, all tests but these."""

    def choose(suite: type[Suite]) -> type[Suite]:
        inherited = {name for name in dir(suite) if name.startswith("test_")}
        assert {*names} <= inherited
        return only(*inherited.difference(names))(suite)

    return choose
