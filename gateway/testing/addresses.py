"""How an engine takes a URL that is wrong, a login that is refused, an extra that is missing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from gateway.routing import GROUP, Context, open_engine
from gateway.testing.suite import Engines, RoutingConformance
from qis_edge.core.errors import RoutingError


class UrlConformance:
    """What every engine makes of its URL. Nothing needs to run for it."""

    #: URLs that are wrong, each with words that the error has. An unknown option is one that
    #: every engine has to notice.
    wrong: Sequence[tuple[str, str]]
    #: A right one. A password in it, if the engine takes any, is ``s3cret``.
    right: str
    #: Modules that the engine's extra installs; none for an engine that needs no extra.
    modules: Sequence[str] = ()
    #: What the error says to type where they are missing.
    command = ""
    #: A URL at which nothing listens, if the engine connects to anything.
    nobody = ""
    #: Seconds after which ``open`` has given that up.
    patience = 60.0

    def test_a_wrong_url_is_explained(self) -> None:
        assert self.wrong
        for url, words in self.wrong:
            with pytest.raises(RoutingError) as caught:
                open_engine(url)
            error = caught.value
            assert words in str(error) + (error.hint or ""), url

    def test_a_url_is_shown_without_its_secrets(self, tmp_path: Path) -> None:
        engine = open_engine(self.right, Context(folder=tmp_path))
        assert "s3cret" not in engine.url
        assert "s3cret" not in repr(engine)
        assert open_engine(self.right, Context(folder=tmp_path)).url == engine.url

    def test_a_missing_extra_names_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if not self.modules:
            return
        ours = _point(self.right).module
        for name in list(sys.modules):
            if name == ours or name.startswith(f"{ours}_"):
                monkeypatch.delitem(sys.modules, name)
        for name in self.modules:
            for loaded in list(sys.modules):
                if loaded.startswith(f"{name}."):
                    monkeypatch.delitem(sys.modules, loaded)
            monkeypatch.setitem(sys.modules, name, None)  # importing it then fails
        with pytest.raises(RoutingError) as caught:
            open_engine(self.right)
        assert "is missing" in str(caught.value)
        assert caught.value.hint == self.command
        assert self.command.startswith("pip install ")

    @pytest.mark.asyncio
    async def test_where_nobody_listens_it_says_so(self, tmp_path: Path) -> None:
        if not self.nobody:
            return
        engine = open_engine(self.nobody, Context(folder=tmp_path))
        try:
            with pytest.raises(RoutingError) as caught:
                await asyncio.wait_for(engine.open(), self.patience)
            assert engine.url in str(caught.value)
            status = await engine.status()
            assert not status.ok
            assert status.detail
        finally:
            await engine.close()


def _point(url: str) -> EntryPoint:
    scheme = url.partition(":")[0]
    return next(point for point in entry_points(group=GROUP) if point.name == scheme)


class LoginConformance(RoutingConformance):
    """For engines with logins: give ``RoutingWorld.intruder``."""

    @pytest.mark.asyncio
    async def test_a_refused_login_is_said(self, engines: Engines) -> None:
        engine = engines.world.intruder()
        try:
            for _ in range(2):
                with pytest.raises(RoutingError) as caught:
                    await asyncio.wait_for(engine.open(), self.patience)
                said = f"{caught.value} {caught.value.hint}".lower()
                assert engine.url in str(caught.value)
                assert any(word in said for word in ("login", "password", "user", "token"))
                assert "s3cret" not in said
        finally:
            await engine.close()
