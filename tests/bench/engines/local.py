"""``sqlite:`` and ``memory:``."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from tests.bench.engines.base import RawSqlite, Site


@contextlib.asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Site]:
    raw = RawSqlite(folder / "raw.db")
    try:
        yield Site("sqlite:routing.db", raw)
    finally:
        raw.close()


@contextlib.asynccontextmanager
async def memory(folder: Path) -> AsyncIterator[Site]:
    """Has no client; what keeps the same in a file is the nearest to one."""
    raw = RawSqlite(folder / "raw.db")
    try:
        yield Site("memory:bench", raw)
    finally:
        raw.close()
