"""What engines remember of packets that they verified."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.routing import Entry, verified
from gateway.routing.verified import Verified
from gateway.testing import make_entry
from gateway.testing.entries import accept


@pytest.fixture
def asked() -> list[bytes]:
    """What was verified, in order."""
    return []


@pytest.fixture
def entries_of(asked: list[bytes]) -> Iterator[Verified]:
    def counting(raw: bytes) -> Entry:
        asked.append(raw)
        return accept(raw)

    made = Verified(counting)
    yield made
    made.close()


async def test_each_is_verified_once_and_given_once_in_order(
    entries_of: Verified, asked: list[bytes]
) -> None:
    entries = [make_entry(number) for number in range(250)]
    raws = [entry.raw for entry in entries]
    assert await entries_of([*raws, *raws[:10]]) == entries
    assert asked == raws
    assert await entries_of(raws[::-1]) == entries[::-1]
    assert asked == raws


async def test_what_is_no_packet_is_left_out_and_tried_again(
    entries_of: Verified, asked: list[bytes]
) -> None:
    good = make_entry(1)
    forged = good.raw[:-1] + bytes([good.raw[-1] ^ 1])
    for _ in range(2):
        assert await entries_of([b"noise", good.raw, forged]) == [good]
    assert asked == [b"noise", good.raw, forged, b"noise", forged]


async def test_what_is_known_needs_no_check_until_it_gave_way(
    entries_of: Verified, asked: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "MAX_KNOWN", 3)
    entries = [make_entry(number) for number in range(5)]
    entries_of.know(entries)
    assert await entries_of([entry.raw for entry in entries]) == entries
    assert asked == [entry.raw for entry in entries[:2]]


async def test_it_goes_on_after_it_was_closed(entries_of: Verified) -> None:
    assert await entries_of([make_entry(1).raw]) == [make_entry(1)]
    entries_of.close()
    assert await entries_of([make_entry(2).raw]) == [make_entry(2)]
