"""Signatures are checked beside the event loop, whatever becomes of who checks them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest

from gateway.prover import FEW, MOST_ENDS, Claim, Prover
from qis_edge.core.identity import Identity
from qis_edge.core.packet import signed
from tests.gateway.kit import packet_of, until

NODE = Identity.from_seed(bytes(32))


def claims(count: int) -> tuple[list[Claim], list[bool]]:
    """Every third is of other bytes, or of another key."""
    other = Identity.from_seed(bytes(31) + b"\x01").public.raw
    made: list[Claim] = []
    for number in range(count):
        text = signed(packet_of(NODE, number).raw)
        if number % 3 == 1:
            made.append((NODE.public.raw, text[:-1] + bytes((text[-1] ^ 1,))))
        else:
            made.append((other if number % 3 else NODE.public.raw, text))
    return made, [number % 3 == 0 for number in range(count)]


@contextlib.asynccontextmanager
async def prover(processors: int = 2) -> AsyncIterator[Prover]:
    made = Prover(processors)
    try:
        yield made
    finally:
        made.close()
        made.close()
        process = made._process
        await until(lambda: made._process is None, 60)
        assert process is None or process.returncode is not None


@pytest.mark.parametrize(
    ("processors", "count"), [(1, 4 * FEW), (2, FEW - 1), (2, 4 * FEW), (2, 300), (2, 0)]
)
async def test_what_is_signed_is_told_from_what_is_not(processors: int, count: int) -> None:
    made, expected = claims(count)
    async with prover(processors) as one:
        assert list(await one.prove(made)) == expected
        assert (one._process is not None) is (processors > 1 and count >= FEW)


async def test_a_helper_that_ends_is_replaced_and_at_last_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made, expected = claims(2 * FEW)
    async with prover() as one:
        for _ in range(MOST_ENDS):
            assert list(await one.prove(made)) == expected
            assert one._process is not None
            one._process.kill()
            one._process.wait()
            with caplog.at_level(logging.WARNING):
                assert list(await one.prove(made)) == expected  # a thread does it
        assert len(caplog.records) == MOST_ENDS
        assert list(await one.prove(made)) == expected
        assert one._process is None


async def test_the_order_of_questions_is_the_order_of_answers() -> None:
    made, expected = claims(40)
    async with prover() as one:
        answers = await asyncio.gather(*(one.prove(made[at:]) for at in range(20)))
    assert [list(answer) for answer in answers] == [expected[at:] for at in range(20)]
