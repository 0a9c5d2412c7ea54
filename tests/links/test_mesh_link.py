"""The mesh link over emulated radios passes the suite of every link."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from qis_edge.testing.links import LinkConformance, LinkWorld
from tests.links.meshes import Air, on_air


class TestMesh(LinkConformance):
    claims = False
    selective = False
    addressed = False
    counts_given = False
    redelivers = False
    quiet = 0.15

    def world(self, folder: Path) -> AbstractAsyncContextManager[LinkWorld]:
        return on_air(Air(folder))
