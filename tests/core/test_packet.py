"""Packets: what goes in comes out, nothing else gets in."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core import cbor, cose, rows
from qis_edge.core.errors import DoesNotFit, Reason, Refused, UsageError
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.outcome import Kind, Label, Outcome
from qis_edge.core.packet import (
    MAX_PACKET,
    Extensions,
    Packet,
    _taken_apart,
    how_many,
    pack,
    unpack,
)
from qis_edge.core.rows import Rows

ME = Identity.from_seed(bytes(range(32)))
OTHER = Identity.from_seed(bytes(32))
ADDRESS = bytes(range(32))
STORE = b"abcd"
T0 = 1_357_000_000

TENTHS = st.integers(-9999, 9999).map(lambda tenths: tenths / 10)
LABELS = st.integers(0, 100) | st.text("abcdef", min_size=1, max_size=8)


@st.composite
def outcome_lists(draw: st.DrawFn) -> list[Outcome]:
    numeric = draw(st.sets(LABELS, max_size=3))
    words = draw(st.sets(LABELS, max_size=2)) - numeric
    times = draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=8))
    outcomes = []
    for time in sorted(times):
        results: dict[Label, float | str | None] = {}
        for label in numeric:
            results[label] = draw(st.none() | TENTHS)
        for label in words:
            results[label] = draw(st.none() | st.sampled_from(["n", "nw", "calm"]))
        outcomes.append(
            Outcome(
                time,
                draw(st.sampled_from(Kind)),
                draw(st.integers(0, 100)) / 100,
                draw(st.integers(0, 2**32 - 1)),
                results,
                draw(st.none() | st.text(max_size=10)),
            )
        )
    return outcomes


EXTENSIONS = st.builds(
    Extensions,
    st.none()
    | st.lists(st.integers(-9999, 9999), min_size=1, max_size=4).map(
        lambda values: tuple(value / 1000 for value in values)
    ),
    st.lists(st.text("abc", min_size=1, max_size=5), max_size=3).map(tuple),
    st.none() | st.integers(0, 10**6),
    st.none() | st.integers(0, 2**32 - 1),
)


@given(outcome_lists(), EXTENSIONS, st.integers(0, 2**32 - 1), st.integers(0, 9999))
def test_what_goes_in_comes_out(
    outcomes: list[Outcome], extensions: Extensions, sequence: int, ttl: int
) -> None:
    try:
        packet = pack(
            outcomes,
            identity=ME,
            fingerprint=ADDRESS,
            store=STORE,
            sequence=sequence,
            ttl=ttl,
            extensions=extensions,
        )
    except DoesNotFit as error:
        assert "at most 512" in str(error)
        return
    assert len(packet.raw) <= MAX_PACKET
    got = unpack(packet.raw, ME.public)
    assert got == packet
    assert (got.sequence, got.ttl, got.kid, got.store) == (sequence, ttl, ME.kid, STORE)
    assert got.extensions == extensions
    labels = {label for outcome in outcomes for label in outcome.results}
    whole = [replace(o, results={k: o.results.get(k) for k in labels}) for o in outcomes]
    assert list(got.outcomes) == whole


def one(**changes: object) -> Outcome:
    return replace(Outcome(T0, Kind.RESOLVED, 0.9, 60, {"t": 21.5}), **changes)  # type: ignore[arg-type] # test shorthand


def packed(*outcomes: Outcome, **arguments: object) -> bytes:
    given = {
        "identity": ME,
        "fingerprint": ADDRESS,
        "store": STORE,
        "sequence": 1,
        **arguments,
    }
    return pack(outcomes or (one(),), **given).raw  # type: ignore[arg-type] # test shorthand


def refusal(raw: bytes, key: PublicKey | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        unpack(raw, key or ME.public)
    return caught.value


def test_a_malleated_header_changes_no_id_and_frames_nobody() -> None:
    raw = packed()
    forged = raw[:9] + OTHER.kid + raw[17:]
    keys = {ME.kid: ME.public, OTHER.kid: OTHER.public}
    assert unpack(forged).id == unpack(raw).id
    with pytest.raises(Refused) as caught:
        unpack(forged, lambda kid: keys[kid])
    assert caught.value.reason is Reason.SIGNATURE


def test_a_signature_for_another_purpose_is_none() -> None:
    payload = cose.open_sign1(packed(), MAX_PACKET, "packet").payload
    for purpose in (b"qis/credential/1", b"qis/revocation/1", b""):
        assert refusal(cose.sign1(ME, payload, purpose)).reason is Reason.SIGNATURE


def test_how_many_is_what_pack_takes() -> None:
    rng = random.Random(7)
    outcomes = [
        one(time=T0 + 3600 * i, results={"t": rng.randint(-200, 400) / 10, "h": i * 1.0})
        for i in range(300)
    ]
    for limit in (120, 160, 200, 231, 512):
        count = how_many(outcomes, fingerprint=ADDRESS, store=STORE, sequence=9, limit=limit)
        arguments = {"sequence": 9, "limit": limit}
        if count:
            assert len(packed(*outcomes[:count], **arguments)) <= limit
        with pytest.raises(DoesNotFit):
            packed(*outcomes[: count + 1], **arguments)


def test_outcomes_are_sorted_by_time() -> None:
    raw = packed(one(time=T0 + 60), one(time=T0))
    assert [o.time for o in unpack(raw).outcomes] == [T0, T0 + 60]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"fingerprint": bytes(31)}, "fingerprint"),
        ({"store": b"abc"}, "store"),
        ({"sequence": -1}, "sequence"),
        ({"sequence": 2**32}, "sequence"),
        ({"ttl": -1}, "ttl"),
        ({"extensions": Extensions(vector=())}, "vector"),
        ({"extensions": Extensions(vector=(float("nan"),))}, "vector"),
        ({"extensions": Extensions(tags=("x" * 33,))}, "tags"),
        ({"extensions": Extensions(floor=-1)}, "floor"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, object], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        packed(**arguments)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("results", "field"),
    [
        ({"t": float("nan")}, "results.t"),
        ({"t": float("inf")}, "results.t"),
        ({"t": 1e-30}, "results.t"),
        ({"t": "x" * 201}, "results.t"),
        ({"": 1.0}, "results."),
        ({-1: 1.0}, "results.-1"),
        (dict.fromkeys(range(65), 0.0), "results"),
    ],
)
def test_a_result_that_does_not_fit_is_named(results: dict[Label, float], field: str) -> None:
    with pytest.raises(DoesNotFit) as caught:
        packed(one(results=results))
    assert caught.value.field == field


def test_outcomes_too_far_apart_do_not_share_a_packet() -> None:
    with pytest.raises(DoesNotFit, match="apart"):
        packed(one(time=0), one(time=2**33))


def test_words_and_numbers_do_not_mix() -> None:
    with pytest.raises(DoesNotFit, match="numbers and words"):
        packed(one(results={"t": 1.0}), one(results={"t": "warm"}))


def test_bytes_that_claim_many_rows_expand_to_few() -> None:
    """A short packet cannot claim more than 512 rows of 64 series."""
    raw = packed(*(one(time=T0 + i) for i in range(512)))
    assert len(raw) < 170
    assert unpack(raw).count == 512


def step_by_step(raw: bytes) -> Reason | tuple[Packet, Rows]:
    """What the way without short cuts makes of it."""
    try:
        _, packet = _taken_apart(raw)
        return packet, packet.rows
    except Refused as refusal:
        return refusal.reason


def test_an_unsigned_mutation_is_refused_as_the_long_way_refuses_it() -> None:
    """Of the framing too: each byte in turn is another, and the packet ends early or late."""
    raw = packed(one(summary="hi"))
    changed = [
        raw[:at] + bytes((byte,)) + raw[at + 1 :] for at in range(len(raw)) for byte in BYTES
    ]
    for other in [*changed, *(raw[:at] for at in range(len(raw))), raw + b"x", raw * 4]:
        try:
            packet = unpack(other)
        except Refused as refusal:
            assert refusal.reason is step_by_step(other)
        else:
            assert step_by_step(other) == (packet, packet.rows)


def test_columns_on_demand_are_as_strict() -> None:
    payload = cose.open_sign1(packed(), MAX_PACKET, "packet").payload
    for bad, reason in ((payload[:-1], Reason.TRUNCATED), (payload + b"\0", Reason.TRAILING)):
        lazy = unpack(cose.sign1(ME, bad, b"qis/packet/1"), ME.public, lazy=True)
        with pytest.raises(Refused) as caught:
            lazy.rows  # noqa: B018 - it is the asking that refuses
        assert caught.value.reason is reason


@given(outcome_lists().filter(lambda outcomes: len(outcomes) == 1))
def test_one_outcome_is_packed_as_a_reader_reads_it(outcomes: list[Outcome]) -> None:
    """What is written out for one outcome is what the columns of alike ones are."""
    packet = pack(outcomes, identity=ME, fingerprint=ADDRESS, store=STORE, sequence=1)
    payload = cbor.loads(cose.open_sign1(packet.raw, MAX_PACKET, "packet").payload, "payload")
    twice = cbor.loads(rows.encode(outcomes * 2), "columns")
    assert payload[5] == twice[2:]


@pytest.mark.parametrize(
    ("changes", "field"), [({"kind": 4}, "kind"), ({"samples": True}, "samples")]
)
def test_what_no_reader_takes_is_not_packed(changes: dict[str, object], field: str) -> None:
    with pytest.raises(DoesNotFit) as caught:
        packed(one(**changes))
    assert caught.value.field == field


BYTES = (0, 0x17, 0x18, 0x40, 0x58, 0x5F, 0x9F, 0xF5, 0xFB, 0xFF)
MUTATIONS = int(os.environ.get("QIS_FUZZ", "4000"))


def test_the_decoder_survives_mutations() -> None:
    """Bounded fuzzing: flips, cuts, inserts and splices, re-signed so that they reach all of it."""
    rng = random.Random(os.environ.get("QIS_FUZZ_SEED", "mutations"))
    corpus = [
        cose.open_sign1(raw, MAX_PACKET, "packet").payload
        for raw in (
            packed(),
            packed(*(one(time=T0 + 60 * i, results={"t": i / 10, "w": "n"}) for i in range(24))),
            packed(one(summary="hi"), extensions=Extensions((0.5,), ("a",), 3, 4)),
        )
    ]
    accepted = 0
    for _ in range(MUTATIONS):
        payload = bytearray(rng.choice(corpus))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(payload) + 1)
            choice = rng.randrange(4)
            if choice == 0 and at < len(payload):
                payload[at] = rng.randrange(256)
            elif choice == 1:
                del payload[at : at + rng.randint(1, 4)]
            elif choice == 2:
                payload[at:at] = rng.randbytes(rng.randint(1, 4))
            else:
                other = rng.choice(corpus)
                payload[at:] = other[rng.randrange(len(other)) :]
        raw = cose.sign1(ME, bytes(payload), b"qis/packet/1")
        try:
            packet = unpack(raw, ME.public)
        except Refused as refusal:
            assert refusal.reason is step_by_step(raw)
            continue
        assert step_by_step(raw) == (packet, packet.rows)
        accepted += 1
        assert 1 <= packet.count <= 512
        assert packet.outcomes
    assert accepted < MUTATIONS
