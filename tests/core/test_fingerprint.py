"""Addresses: the published one, and what the prefix scheme promises."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qis_edge.core.domain import Domain, Situation
from qis_edge.core.errors import UsageError
from qis_edge.core.fingerprint import (
    PrefixScheme,
    canonical_json,
    codes,
    common_bits,
    distance,
    masked,
    plain,
    widths,
)

CASE = {
    "chief_complaint_category": "chest_pain",
    "onset": "acute",
    "age_bracket": "45_54",
    "sex": "male",
    "risk_tier": "high",
}
CASE_JSON = (
    b'{"age_bracket":"45_54","chief_complaint_category":"chest_pain",'
    b'"onset":"acute","risk_tier":"high","sex":"male"}'
)

GRADED = """
name = "graded"
revision = 3
[[field]]
name = "place"
values = ["a", "b", "c", "d", "e"]
weight = 3
[[field]]
name = "depth"
ordinal = true
values = ["0_10", "10_30", "30_60", "60_100"]
[[field]]
name = "crop"
values = ["wheat", "maize", "rice"]
weight = 0.5
[[field]]
name = "stage"
ordinal = true
values = ["sown", "leaf", "ear"]
[[result]]
name = "x"
code = 1
unit = "1"
resolution = 1
"""
DOMAIN = Domain.parse(GRADED)
FIELDS = len(DOMAIN.fields)

situations = st.tuples(*[st.sampled_from(field.values) for field in DOMAIN.fields]).map(
    lambda values: Situation(DOMAIN, values)
)


def agreeing(a: Situation, b: Situation) -> int:
    """Leading fields in which two situations agree."""
    for n, (x, y) in enumerate(zip(a.values, b.values, strict=True)):
        if x != y:
            return n
    return FIELDS


# --- sha256 ----------------------------------------------------------------------------


def test_sha256_is_that_of_the_sorted_compact_json() -> None:
    assert canonical_json(CASE) == CASE_JSON
    assert plain(CASE) == hashlib.sha256(CASE_JSON).digest()
    assert plain(CASE).hex() == "a4cff0bb3fde4f025db066921265d178a3a8c50c0b13f209164763989cd65d28"


def test_a_domain_of_scheme_sha256_gives_the_published_address() -> None:
    fields = "".join(
        f'[[field]]\nname = "{name}"\nvalues = ["other", "{value}"]\n'
        for name, value in CASE.items()
    )
    result = '[[result]]\nname = "x"\ncode = 1\nunit = "1"\nresolution = 1\n'
    domain = Domain.parse(f'name = "triage"\nrevision = 1\nscheme = "sha256"\n{fields}{result}')
    situation = domain.situation(CASE)
    assert situation.fingerprint == hashlib.sha256(CASE_JSON).digest()
    backwards = dict(reversed(CASE.items()))
    assert domain.situation(backwards).fingerprint == situation.fingerprint
    assert situation.widen() == ((situation.fingerprint, 256),)
    assert domain.recognise(situation.fingerprint) is None
    assert domain.shared_fields(situation.fingerprint, situation.fingerprint) == 5
    assert domain.shared_fields(situation.fingerprint, bytes(32)) is None
    with pytest.raises(UsageError, match="no prefixes"):
        situation.widen(128)
    with pytest.raises(UsageError, match="no prefixes"):
        domain.prefix_bits(1)


# --- prefix ----------------------------------------------------------------------------


def test_the_layout_is_the_documented_one() -> None:
    situation = DOMAIN.situation(place="b", depth="30_60", crop="rice", stage="leaf")
    number = int.from_bytes(situation.fingerprint)
    assert situation.fingerprint[:8] == hashlib.sha256(b"graded/3").digest()[:8]
    shares = [69, 23, 11, 23]  # floor(128 * weight / 5.5)
    at = 64
    for (name, value), width in zip(situation.fields.items(), shares, strict=True):
        code = int.from_bytes(hashlib.sha256(f"{name}={value}".encode()).digest()) >> (256 - width)
        at += width
        assert number >> (256 - at) & ((1 << width) - 1) == code
    text = json.dumps(situation.fields, sort_keys=True, separators=(",", ":"))
    whole = int.from_bytes(hashlib.sha256(f"graded/3\n{text}".encode()).digest())
    assert number & ((1 << (256 - at)) - 1) == whole >> at
    assert [DOMAIN.prefix_bits(n) for n in range(5)] == [64, 133, 156, 167, 190]


def test_an_address_never_changes_by_accident() -> None:
    situation = DOMAIN.situation(place="a", depth="0_10", crop="wheat", stage="sown")
    assert situation.fingerprint.hex() == (
        "20ea67b557d4dabba457629b31c86cad782167897706286dac3f711964048898"
    )


@given(situations, situations, situations)
def test_xor_distance_orders_by_shared_leading_fields(
    a: Situation, b: Situation, c: Situation
) -> None:
    if agreeing(a, b) > agreeing(a, c):
        near = distance(a.fingerprint, b.fingerprint)
        assert near < distance(a.fingerprint, c.fingerprint)


@given(situations, situations)
def test_shared_bits_tell_shared_fields(a: Situation, b: Situation) -> None:
    count = agreeing(a, b)
    bits = common_bits(a.fingerprint, b.fingerprint)
    assert bits >= DOMAIN.prefix_bits(count)
    if count < FIELDS:
        assert bits < DOMAIN.prefix_bits(count + 1)
    assert DOMAIN.shared_fields(a.fingerprint, b.fingerprint) == count
    assert (a.fingerprint == b.fingerprint) == (a.values == b.values)


@given(situations)
def test_an_address_can_be_read_back(a: Situation) -> None:
    assert DOMAIN.recognise(a.fingerprint) == a


@given(situations, st.integers(0, 255))
def test_one_flipped_bit_is_no_address_of_the_domain(a: Situation, bit: int) -> None:
    other = (int.from_bytes(a.fingerprint) ^ 1 << bit).to_bytes(32)
    assert DOMAIN.recognise(other) is None
    assert DOMAIN.shared_fields(a.fingerprint, other) is None


def test_revisions_and_domains_do_not_meet() -> None:
    newer = Domain.parse(GRADED.replace("revision = 3", "revision = 4"))
    other = Domain.parse(GRADED.replace('"graded"', '"degraded"'))
    fields = {"place": "a", "depth": "0_10", "crop": "rice", "stage": "ear"}
    mine = DOMAIN.situation(fields).fingerprint
    for domain in (newer, other):
        theirs = domain.situation(fields).fingerprint
        assert common_bits(mine, theirs) < 64
        assert DOMAIN.shared_fields(mine, theirs) is None


def test_an_appended_value_moves_no_address() -> None:
    longer = Domain.parse(GRADED.replace('"d", "e"]', '"d", "e", "f", "g", "h"]'))
    for a in (DOMAIN, longer):
        fields = {"place": "e", "depth": "10_30", "crop": "wheat", "stage": "sown"}
        assert a.situation(fields).fingerprint == DOMAIN.situation(fields).fingerprint


# --- widening --------------------------------------------------------------------------


def test_neighbours_are_one_step_away_in_one_ordinal_field() -> None:
    here = DOMAIN.situation(place="b", depth="0_10", crop="rice", stage="leaf")
    steps = [(s.fields["depth"], s.fields["stage"]) for s in here.neighbours()]
    assert steps == [("10_30", "leaf"), ("0_10", "sown"), ("0_10", "ear")]


def test_widening_probes_the_neighbours_within_the_prefix_only() -> None:
    here = DOMAIN.situation(place="b", depth="10_30", crop="rice", stage="leaf")
    whole = here.widen()
    assert whole[0] == (here.fingerprint, 256)
    assert [f for f, _ in whole[1:]] == [s.fingerprint for s in here.neighbours()]
    # Behind the first two fields the stage does not matter any more, the depth still does.
    bits = DOMAIN.prefix_bits(2)
    depths = [DOMAIN.recognise(f).fields["depth"] for f, b in here.widen(bits) if b == bits]  # type: ignore[union-attr]  # all are addresses
    assert depths == ["10_30", "0_10", "30_60"]
    assert here.widen(DOMAIN.prefix_bits(1)) == ((here.fingerprint, DOMAIN.prefix_bits(1)),)


@given(situations, st.integers(0, FIELDS), situations)
def test_a_widened_situation_covers_what_shares_its_fields(
    here: Situation, count: int, other: Situation
) -> None:
    bits = DOMAIN.prefix_bits(count)
    asked = {masked(fingerprint, bits) for fingerprint, _ in here.widen(bits)}
    covered = masked(other.fingerprint, bits) in asked
    near = any(agreeing(s, other) >= count for s in (here, *here.neighbours()))
    assert covered == near


# --- pieces ----------------------------------------------------------------------------


@given(st.lists(st.from_regex(r"[a-z0-9_]{1,8}", fullmatch=True), unique=True, max_size=16))
def test_codes_are_distinct_even_where_they_barely_fit(values: list[str]) -> None:
    width = max(1, (len(values) - 1).bit_length()) if values else 1
    found = codes("field", values, width)
    assert len(set(found)) == len(values)
    assert all(code < 1 << width for code in found)
    assert codes("field", values[:3], width) == found[:3]


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=16))
def test_shares_never_exceed_the_bits_there_are(weights: list[float]) -> None:
    assert sum(widths(weights)) <= 128


def test_a_field_whose_share_is_too_small_is_named() -> None:
    with pytest.raises(ValueError, match="b: its share of 1 bits cannot hold 3 values"):
        PrefixScheme("d", 1, [("a", ["x", "y"], 99.0), ("b", ["x", "y", "z"], 1.0)])
