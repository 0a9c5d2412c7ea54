"""A process for the suites to kill: ``python -m gateway.testing.depositor URL FOLDER FIRST``.

It deposits packet after packet, and prints the number of each once it is kept.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from gateway.routing import Context, open_engine
from gateway.testing.entries import accept, make_entry


async def deposit_for_ever(url: str, folder: str, first: int) -> None:
    """Deposit, and say so, until killed.

    :param folder: of the engine's context; empty for none.
    """
    engine = open_engine(url, Context(accept, Path(folder) if folder else None))
    await engine.open()
    for number in range(first, first + 100_000):
        await engine.deposit([make_entry(number)])
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(deposit_for_ever(sys.argv[1], sys.argv[2], int(sys.argv[3])))
