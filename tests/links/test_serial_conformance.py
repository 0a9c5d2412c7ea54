"""The serial link, on ptys that are a bus together, passes the suite of every link."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from qis_edge.testing.links import LinkConformance, LinkWorld
from tests.links.serial_bus import serial_world


class TestSerialLine(LinkConformance):
    claims = False
    redelivers = False
    quiet = 0.1

    def world(self, folder: Path) -> AbstractAsyncContextManager[LinkWorld]:
        return serial_world(folder)
