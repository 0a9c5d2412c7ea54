"""What tests of the core share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qis_edge.core.custody import Custody
from qis_edge.core.errors import Reason, Refused


def refusal(act: Callable[[], object]) -> tuple[Reason, str]:
    """Why, and the field at which, ``act`` is refused."""
    with pytest.raises(Refused) as refused:
        act()
    return refused.value.reason, refused.value.field


def send(machine: Custody[int], now: float, room: int = 1000) -> list[int]:
    """Send what is due; the keys of it."""
    keys = machine.due(now, room)
    for key in keys:
        machine.sent(key, now)
    return keys


def offer(machine: Custody[int], *keys: int, priority: int = 1, now: float = 0.0) -> None:
    """Packets that wait to be sent."""
    for key in keys:
        machine.offer(key, priority, now)
