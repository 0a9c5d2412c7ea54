"""Opening a serial port in a thread, and giving up meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qis_edge.links import tty


class Line:
    """An open port, as far as it is needed here."""

    closed = False

    def close(self) -> None:
        self.closed = True


async def test_who_gives_up_while_a_port_opens_is_heard_and_the_port_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    opening: asyncio.Future[Line] = loop.create_future()
    monkeypatch.setattr(loop, "run_in_executor", lambda *_: opening)
    receiver: Any = None
    task = asyncio.create_task(tty.open_tty("ttyS0", 9600, receiver))
    await asyncio.sleep(0)
    line = Line()
    opening.set_result(line)  # in the same turn of the loop
    task.cancel()
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()
    await asyncio.sleep(0)
    assert line.closed
