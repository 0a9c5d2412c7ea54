"""The MQTT link, on Mosquitto in both protocols, passes the suite of every link."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from qis_edge.testing.links import LinkConformance, LinkWorld
from tests.links.brokers import mosquitto_world


class TestMqtt5(LinkConformance):
    quiet = 0.15

    def world(self, folder: Path) -> AbstractAsyncContextManager[LinkWorld]:
        return mosquitto_world(folder, "5")


class TestMqtt311(LinkConformance):
    quiet = 0.15

    def world(self, folder: Path) -> AbstractAsyncContextManager[LinkWorld]:
        return mosquitto_world(folder, "3.1.1")
