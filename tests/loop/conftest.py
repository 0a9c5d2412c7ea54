"""In the tests of the loop nobody waits for seconds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway import drain, watch
from qis_edge.core.custody import BROKER
from qis_edge.links import mqtt, ways
from qis_edge.links.base import Cadence
from qis_edge.node import gateways, membership
from qis_edge.testing import memory


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (memory, mqtt, gateways):
        monkeypatch.setattr(module, "BROKER_CADENCE", Cadence(hello=0.1))
    monkeypatch.setattr(ways, "BROKER", replace(BROKER, first_timeout=0.4, least_timeout=0.2))
    monkeypatch.setattr(membership, "ASK_EVERY", 0.1)
    monkeypatch.setattr(watch, "REFRESH", 0.05)
    monkeypatch.setattr(drain, "RETRY_FIRST", 0.02)
    monkeypatch.setattr(drain, "RETRY_LONGEST", 0.1)
