"""What the tests of the engines have in common."""

from __future__ import annotations

import sys

import pytest

#: Seconds that a feed waits where there is nothing; what comes ends the wait anyhow.
WAIT = 0.1


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("routing.kafka", "routing.mqtt", "routing.nats", "routing.redis", "testing.feeds"):
        if (module := sys.modules.get(f"gateway.{name}")) is not None:
            monkeypatch.setattr(module, "WAIT", WAIT)
