"""Elision: a packet comes back byte for byte, or does not come back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qis_edge.core.errors import Reason, Refused
from qis_edge.core.mesh.elision import Context, Contexts, elide, restore
from qis_edge.core.packet import Extensions, Packet, unpack
from tests.core.mesh.kit import NODES, packet, verify


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 330),
    st.sampled_from([None, Extensions(tags=("estimate",)), Extensions(floor=7)]),
)
def test_a_packet_comes_back(sequence: int, words: int, extensions: Extensions | None) -> None:
    whole = packet(sequence, words=words, extensions=extensions)
    elided = elide(whole)
    assert elided is not None
    assert restore(Context.of(whole), elided.rest) == whole.raw
    # All but the head of the payload, of one byte more past 255, is gone for two bytes.
    assert len(whole.raw) - len(elided.rest) in (61, 62)
    assert len(whole.raw) <= 512


def test_a_context_has_two_bytes_and_names_its_three_parts() -> None:
    one = Context.of(packet())
    others = [
        Context.of(packet(node=NODES[1])),
        Context.of(packet(store=b"othr")),
        Context.of(packet(fingerprint=bytes(32))),
    ]
    assert len(one.name) == 2
    assert one.name == Context.of(packet(sequence=9)).name
    assert all(other.name != one.name for other in others)


def test_a_packet_in_another_form_travels_whole() -> None:
    original = packet()
    raw = original.raw.replace(bytes.fromhex("43a10132"), bytes.fromhex("43a10127"), 1)
    assert elide(unpack(raw)) is None


def test_in_the_wrong_context_the_signature_does_not_verify() -> None:
    elided = elide(packet())
    assert elided is not None
    wrong = replace(Context.of(packet()), store=b"othr")
    with pytest.raises(Refused) as caught:
        verify(restore(wrong, elided.rest))
    assert caught.value.reason is Reason.SIGNATURE


@given(st.binary(max_size=500))
def test_any_rest_is_restored_or_refused(rest: bytes) -> None:
    context = Context.of(packet())
    try:
        raw = restore(context, rest)
    except Refused as refusal:
        assert refusal.field == "elided"
        return
    assert len(raw) <= 512
    with pytest.raises(Refused):
        verify(raw)


def _context(number: int, kid: int = 0) -> Context:
    return Context(kid.to_bytes(8), number.to_bytes(32), b"stor")


def test_contexts_are_bounded_and_forget_the_longest_unused() -> None:
    contexts = Contexts(capacity=3)
    assert all(contexts.learn(_context(n, kid=n)) for n in range(3))
    assert not contexts.learn(_context(0, kid=0))
    contexts.learn(_context(3, kid=3))
    assert len(contexts) == 3
    assert _context(0, kid=0) in contexts
    assert _context(1, kid=1) not in contexts
    assert contexts.match(_context(1, kid=1).name) == ()


def test_one_key_does_not_drive_out_the_others() -> None:
    contexts = Contexts(capacity=100, per_key=4)
    contexts.learn(_context(0, kid=1))
    for number in range(1000):
        contexts.learn(_context(number, kid=2))
    assert len(contexts) == 5
    assert _context(0, kid=1) in contexts


def test_contexts_that_collide_are_all_tried_the_youngest_first() -> None:
    found: dict[bytes, Context] = {}
    number = 0
    while True:
        context = _context(number)
        if context.name in found:
            break
        found[context.name] = context
        number += 1
    contexts = Contexts()
    contexts.learn(found[context.name])
    contexts.learn(context)
    assert contexts.match(context.name) == (context, found[context.name])


def test_a_packet_of_a_stranger_is_not_more_than_its_bytes() -> None:
    whole: Packet = packet()
    assert Context.of(whole) == Context(whole.kid, whole.fingerprint, whole.store)
