from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qis_edge.core import cbor
from qis_edge.core.cose import mac0
from qis_edge.core.errors import DoesNotFit, Reason, Refused, UsageError
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.ranges import MAX_EXPANDED
from qis_edge.core.receipt import (
    MacKeys,
    Receipt,
    build,
    build_all,
    hkdf_sha256,
    mac_keys,
    parse,
    split,
    verify,
)

GATEWAY = Identity.from_seed(b"\x01" * 32)
NODE = Identity.from_seed(b"\x02" * 32)
OTHER = Identity.from_seed(b"\x03" * 32)
STORE = b"stor"
EPOCH = b"\x00\x01\x02\x03"
KEY = mac_keys(GATEWAY, gateway=GATEWAY.public, node=NODE.public).to_node


def packet_id(sequence: int) -> bytes:
    return hashlib.sha256(b"packet %d" % sequence).digest()


class Ids(dict[int, bytes]):
    def __missing__(self, sequence: int) -> bytes:
        return packet_id(sequence)

    def get(self, sequence: int, default: object = None) -> bytes:
        return packet_id(sequence)


IDS = Ids()


def make(receipt: Receipt) -> bytes:
    return build(receipt, KEY, EPOCH, IDS)


def held(*sequences: int) -> Receipt:
    return Receipt(STORE, sequences)


@st.composite
def receipts(draw: st.DrawFn) -> Receipt:
    """Any receipt: sequences dealt out to held, refused by reason and later by seconds."""
    numbers = st.integers(0, 300) | st.integers(0, 2**32 - 1)
    sequences = draw(st.lists(numbers, min_size=1, max_size=60, unique=True))
    dealt: dict[tuple[int, int], list[int]] = {}
    piles = st.sampled_from([(0, 0), (0, 0), (1, 12), (1, 20), (1, 200), (2, 5), (2, 70_000)])
    for sequence in sorted(sequences):
        dealt.setdefault(draw(piles), []).append(sequence)
    groups = {pile: tuple(members) for pile, members in sorted(dealt.items())}
    codes: dict[int, Reason | int] = {12: Reason.SIGNATURE, 20: Reason.EQUIVOCATION, 200: 200}
    return Receipt(
        STORE,
        groups.get((0, 0), ()),
        tuple((codes[n], members) for (kind, n), members in groups.items() if kind == 1),
        tuple((n, members) for (kind, n), members in groups.items() if kind == 2),
    )


# --- keys ------------------------------------------------------------------------------


def test_hkdf_is_that_of_rfc_5869() -> None:
    # Test case 3 (no salt, no info), cut to the one block that we use.
    assert hkdf_sha256(b"\x0b" * 22, b"").hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    )
    # Test case 1.
    info, salt = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"), bytes(range(13))
    assert hkdf_sha256(b"\x0b" * 22, info, salt).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    )


def test_both_sides_derive_the_same_keys_and_each_way_its_own() -> None:
    pair = {"gateway": GATEWAY.public, "node": NODE.public}
    keys = mac_keys(NODE, **pair)
    assert keys == mac_keys(GATEWAY, **pair)
    assert keys.to_node == KEY
    assert len({keys.to_node, keys.to_gateway}) == 2
    assert len(keys.to_node) == 32


def test_another_pair_has_other_keys() -> None:
    swapped = mac_keys(NODE, gateway=NODE.public, node=GATEWAY.public)
    other = mac_keys(OTHER, gateway=GATEWAY.public, node=OTHER.public)
    assert KEY not in (swapped.to_node, swapped.to_gateway, other.to_node, other.to_gateway)


def test_keys_need_one_of_the_pair_and_a_usable_peer() -> None:
    with pytest.raises(UsageError, match="identity"):
        mac_keys(OTHER, gateway=GATEWAY.public, node=NODE.public)
    small_order = PublicKey(b"\x01" + bytes(31))
    with pytest.raises(Refused) as refused:
        mac_keys(NODE, gateway=small_order, node=NODE.public)
    assert refused.value.reason is Reason.SECRET


def test_keys_do_not_show_themselves() -> None:
    assert "secret" not in repr(MacKeys(b"secret", b"secret"))


# --- size ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("receipt", "size"),
    [
        (held(0), 24),
        (held(200), 25),
        (held(65535), 26),
        (held(*range(200, 210)), 27),
        (held(*range(65512, 65535)), 28),
        (held(1, 2), 26),
    ],
)
def test_one_packet_or_run_takes_24_to_28_bytes(receipt: Receipt, size: int) -> None:
    assert len(make(receipt)) == size


@settings(max_examples=80)
@given(st.integers(0, 65535), st.integers(1, 23))
def test_every_short_run_takes_24_to_28_bytes(start: int, run: int) -> None:
    assert 24 <= len(make(held(*range(start, start + run)))) <= 28


# --- there and back --------------------------------------------------------------------


@settings(max_examples=100)
@given(receipts())
def test_what_was_said_is_read_and_verifies(receipt: Receipt) -> None:
    for part in split(receipt):
        message = parse(make(part))
        assert message.receipt == part
        verify(message, KEY, EPOCH, packet_id)


@settings(max_examples=60)
@given(receipts(), st.integers(40, 120))
def test_what_is_too_long_is_said_in_parts(receipt: Receipt, limit: int) -> None:
    parts = [parse(raw) for raw in build_all(receipt, KEY, EPOCH, IDS, limit)]
    said: dict[int, object] = {}
    for message in parts:
        verify(message, KEY, EPOCH, packet_id)
        part = message.receipt
        assert part.store == STORE
        said |= dict.fromkeys(part.held, "held")
        for reason, group in part.refused:
            said |= dict.fromkeys(group, reason)
        for seconds, group in part.later:
            said |= dict.fromkeys(group, (seconds,))
    whole: dict[int, object] = dict.fromkeys(receipt.held, "held")
    for reason, group in receipt.refused:
        whole |= dict.fromkeys(group, reason)
    for seconds, group in receipt.later:
        whole |= dict.fromkeys(group, (seconds,))
    assert said == whole
    assert sum(len(message.receipt) for message in parts) == len(receipt)
    assert all(len(raw) <= limit for raw in build_all(receipt, KEY, EPOCH, IDS, limit))


def test_thousands_in_one_run_are_split_by_number() -> None:
    raws = build_all(held(*range(10_000)), KEY, EPOCH, IDS)
    assert [len(parse(raw).receipt) for raw in raws] == [MAX_EXPANDED, MAX_EXPANDED, 1808]


def test_a_part_is_as_full_as_can_be() -> None:
    scattered = held(*range(0, 4000, 2))
    parts = split(scattered, 200)
    assert all(len(make(part)) > 190 for part in parts[:-1])
    assert len(parts) <= 24


def test_splitting_nothing_gives_nothing() -> None:
    assert build_all(held(), KEY, EPOCH, IDS) == []


def test_the_codes_of_tomorrow_are_kept() -> None:
    receipt = Receipt(STORE, (), ((Reason.REVOKED, (1,)), (99, (2,))))
    assert parse(make(receipt)).receipt.refused == ((Reason.REVOKED, (1,)), (99, (2,)))


# --- what does not verify --------------------------------------------------------------


def refusal(raw: bytes, **changes: object) -> tuple[Reason, str]:
    arguments: dict[str, object] = {"key": KEY, "epoch": EPOCH, "id_of": packet_id} | changes
    with pytest.raises(Refused) as refused:
        verify(parse(raw), **arguments)  # type: ignore[arg-type]  # a test's shorthand
    return refused.value.reason, refused.value.field


def test_a_receipt_of_another_epoch_does_not_verify() -> None:
    assert refusal(make(held(5)), epoch=b"\x00\x01\x02\x04") == (Reason.MAC, "receipt.tag")


def test_a_receipt_of_another_gateway_does_not_verify() -> None:
    forged = mac_keys(OTHER, gateway=OTHER.public, node=NODE.public).to_node
    assert refusal(build(held(5), forged, EPOCH, IDS)) == (Reason.MAC, "receipt.tag")


def test_a_reflected_receipt_does_not_verify() -> None:
    ours = mac_keys(NODE, gateway=GATEWAY.public, node=NODE.public).to_gateway
    assert refusal(build(held(5), ours, EPOCH, IDS)) == (Reason.MAC, "receipt.tag")
    assert refusal(make(held(5)), key=ours) == (Reason.MAC, "receipt.tag")


def test_a_receipt_never_means_other_packets() -> None:
    changed = {5: hashlib.sha256(b"another packet 5").digest()}
    assert refusal(make(held(5)), id_of=changed.get) == (Reason.MAC, "receipt.tag")


def test_a_receipt_for_what_was_never_sent_is_told_apart() -> None:
    known = {5: packet_id(5)}
    assert refusal(make(held(5, 6)), id_of=known.get) == (Reason.MAC, "receipt.ids")


def test_no_bit_can_be_turned() -> None:
    raw = make(Receipt(STORE, (3, 4, 9), ((Reason.SIGNATURE, (7,)),), ((60, (8,)),)))
    for bit in range(len(raw) * 8):
        turned = bytearray(raw)
        turned[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused):
            verify(parse(bytes(turned)), KEY, EPOCH, packet_id)


def test_held_and_refused_do_not_stand_for_each_other() -> None:
    # The same ids in the same order, but the payload is under the tag as well.
    raw = make(held(7))
    other = make(Receipt(STORE, (), ((Reason.SIGNATURE, (7,)),)))
    assert refusal(other[:-8] + raw[-8:]) == (Reason.MAC, "receipt.tag")


# --- what is not well formed -----------------------------------------------------------


def framed(form: object) -> bytes:
    return mac0(KEY, cbor.dumps(form), b"")


@pytest.mark.parametrize(
    ("form", "reason", "field"),
    [
        (7, Reason.TYPE, "receipt"),
        ([STORE], Reason.BOUNDS, "receipt"),
        ([STORE, 1, [[1, 2]], [[1, 3]], 0], Reason.BOUNDS, "receipt"),
        ([b"sto", 1], Reason.BOUNDS, "receipt.store"),
        (["stor", 1], Reason.TYPE, "receipt.store"),
        ([STORE, "1"], Reason.TYPE, "receipt.held"),
        ([STORE, 2**32], Reason.INTEGER, "receipt.held"),
        ([STORE, [0, 4097]], Reason.BOUNDS, "receipt.held"),
        ([STORE, [0, 4000], [[1, [5000, 97]]]], Reason.BOUNDS, "receipt"),
        ([STORE, [], [[1, [0, 3000]], [2, [5000, 1097]]]], Reason.BOUNDS, "receipt.refused"),
        ([STORE, []], Reason.BOUNDS, "receipt"),
        ([STORE, 1, []], Reason.NON_CANONICAL, "receipt"),
        ([STORE, 1, [[1, 2]], []], Reason.NON_CANONICAL, "receipt"),
        ([STORE, 1, 2], Reason.TYPE, "receipt.refused"),
        ([STORE, 1, [1, 2]], Reason.TYPE, "receipt.refused"),
        ([STORE, 1, [[1, 2, 3]]], Reason.BOUNDS, "receipt.refused"),
        ([STORE, 1, [[256, 2]]], Reason.INTEGER, "receipt.refused"),
        ([STORE, 1, [[1, []]]], Reason.BOUNDS, "receipt.refused"),
        ([STORE, 1, [[2, 2], [1, 3]]], Reason.NON_CANONICAL, "receipt.refused"),
        ([STORE, 1, [[1, 2], [1, 3]]], Reason.DUPLICATE_KEY, "receipt.refused"),
        ([STORE, 1, [], [[2**32, 2]]], Reason.INTEGER, "receipt.later"),
        ([STORE, 1, [[1, 1]]], Reason.DUPLICATE_KEY, "receipt"),
        ([STORE, 1, [], [[60, [1, 3]]]], Reason.DUPLICATE_KEY, "receipt"),
    ],
)
def test_what_is_malformed_is_refused(form: object, reason: Reason, field: str) -> None:
    with pytest.raises(Refused) as refused:
        parse(framed(form))
    assert (refused.value.reason, refused.value.field) == (reason, field)


def test_other_framings_are_refused() -> None:
    payload = cbor.dumps([STORE, 1])
    with pytest.raises(Refused) as refused:
        parse(mac0(KEY, payload, b"", kid=b"12345678"))
    assert refused.value.reason is Reason.HEADER
    with pytest.raises(Refused) as refused:
        parse(bytes(513))
    assert refused.value.reason is Reason.OVERSIZED


# --- our own mistakes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("receipt", "field"),
    [
        (held(), "receipt"),
        (Receipt(STORE, (), ((Reason.MAC, (1,)), (Reason.MAC, (2,)))), "refused"),
        (Receipt(STORE, (1,), ((Reason.MAC, ()),)), "refused"),
        (Receipt(STORE, (1,), (), ((-1, (2,)),)), "later"),
        (held(*range(MAX_EXPANDED + 1)), "receipt"),
        (held(*range(0, 2000, 2)), "receipt"),
    ],
)
def test_what_cannot_be_said_is_our_mistake(receipt: Receipt, field: str) -> None:
    with pytest.raises(UsageError) as error:
        make(receipt)
    assert error.value.field == field


def test_a_sequence_is_named_once() -> None:
    with pytest.raises(UsageError, match="twice"):
        Receipt(STORE, (1,), (), ((5, (1,)),))
    with pytest.raises(UsageError, match="store"):
        Receipt(b"", (1,))


def test_arguments_are_checked() -> None:
    with pytest.raises(UsageError, match="epoch"):
        build(held(1), KEY, b"", IDS)
    with pytest.raises(UsageError, match="ids"):
        build(held(1), KEY, EPOCH, {})
    with pytest.raises(UsageError, match="ids"):
        build(held(1), KEY, EPOCH, {1: b"short"})
    with pytest.raises(DoesNotFit):
        split(held(70_000), 26)
