"""Hooks for tests, named in configurations as ``tests.loop.hooks:…``."""

from __future__ import annotations

from qis_edge.core.synthesis import Estimate

#: What :func:`keep` was given.
kept: list[Estimate] = []


def keep(estimate: Estimate) -> None:
    kept.append(estimate)


def fail(estimate: Estimate) -> None:
    raise ValueError("a hook's bug")
