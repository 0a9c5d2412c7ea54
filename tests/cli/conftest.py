"""The fixtures of :mod:`tests.cli.kit`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.kit import Console, Site


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Console:
    for name in ("QIS_EDGE_CONFIG", "QIS_GATEWAY_CONFIG", "QIS_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return Console(capsys)


@pytest.fixture
def site(console: Console, tmp_path: Path) -> Site:
    return Site(console, tmp_path)


@pytest.fixture
def ready(site: Site) -> Site:
    site.set_up()
    return site
