"""What is opened in a test is closed after it: Python 3.13 warns of connections that are not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qis_edge.store.database import Database


@pytest.fixture(autouse=True)
def close_what_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made: list[Database] = []
    original = Database.__init__

    def remember(self: Database, *args: Any, **settings: Any) -> None:
        original(self, *args, **settings)
        made.append(self)

    monkeypatch.setattr(Database, "__init__", remember)
    yield
    for database in made:
        database.close()
