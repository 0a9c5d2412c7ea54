from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qis_edge.core import cbor
from qis_edge.core.cose import sign1
from qis_edge.core.credential import (
    CREDENTIAL_AAD,
    CWT_TAG,
    ENROLMENT_AAD,
    MAX_REVOKED,
    REVOCATION_AAD,
    Credential,
    Enrolment,
    RevocationList,
    TrustStore,
    is_name,
    issue,
)
from qis_edge.core.errors import Reason, Refused, UsageError
from qis_edge.core.identity import Identity, PublicKey
from tests.core.kit import refusal

ROOT = Identity.from_seed(b"\x00" * 32)
GATEWAY = Identity.from_seed(b"\x01" * 32)
NODE = Identity.from_seed(b"\x02" * 32)
OTHER = Identity.from_seed(b"\x03" * 32)
STRANGER = Identity.from_seed(b"\x04" * 32)
NOW = 1_000_000


def give(
    key: PublicKey,
    scope: str = "node",
    *,
    by: Identity = ROOT,
    until: int = NOW + 100,
    since: int | None = None,
    subject: str = "barn-3",
    serial: bytes = b"seri",
) -> Credential:
    return issue(
        by,
        subject=subject,
        key=key,
        scope=scope,
        expires=until,
        serial=serial,
        not_before=since,
    )


def revoke(number: int, *kids: bytes, by: Identity = ROOT) -> bytes:
    return RevocationList.issue(by, number=number, issued=NOW, kids=kids).raw


@pytest.fixture
def trust() -> TrustStore:
    """A fleet with one gateway that issues, and one node of its."""
    store = TrustStore(ROOT.public)
    store.add(give(GATEWAY.public, "gateway issuer", subject="gate").raw, NOW)
    store.add(give(NODE.public, by=GATEWAY).raw, NOW)
    return store


# --- the form of a credential ----------------------------------------------------------


@settings(max_examples=50)
@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    st.sets(st.sampled_from(["node", "gateway", "issuer"]), min_size=1),
    st.integers(1, 2**40 - 1),
    st.binary(min_size=4, max_size=8),
    st.booleans(),
)
def test_what_was_issued_is_read(
    subject: str, scope: set[str], expires: int, serial: bytes, bounded: bool
) -> None:
    not_before = expires // 2 if bounded else None
    made = issue(
        GATEWAY,
        subject=subject,
        key=NODE.public,
        scope=scope,
        expires=expires,
        serial=serial,
        not_before=not_before,
    )
    read = Credential.parse(made.raw)
    assert read == made
    assert (read.subject, read.key, read.kid) == (subject, NODE.public, NODE.kid)
    assert (read.scope, read.issuer) == (frozenset(scope), GATEWAY.kid)
    assert (read.expires, read.not_before, read.serial) == (expires, not_before, serial)
    read.verify(GATEWAY.public)


def test_it_takes_about_160_bytes() -> None:
    made = give(NODE.public, subject="node-1", until=1_800_000_000)
    assert len(made.raw) == 157
    assert made.raw.startswith(bytes.fromhex("d83dd284"))


def test_only_its_issuer_verifies_it() -> None:
    made = give(NODE.public, by=GATEWAY)
    assert refusal(lambda: made.verify(OTHER.public)) == (Reason.CHAIN, "credential.issuer")
    forged = bytearray(made.raw)
    forged[-1] ^= 1
    read = Credential.parse(bytes(forged))
    assert refusal(lambda: read.verify(GATEWAY.public)) == (Reason.SIGNATURE, "signature")


CNF = {1: {1: 1, -1: 6, -2: NODE.public.raw}}
CLAIMS: dict[object, object] = {2: "barn-3", 4: NOW, 7: b"seri", 8: CNF, 9: "node"}


def framed(claims: object, aad: bytes = CREDENTIAL_AAD) -> bytes:
    return CWT_TAG + sign1(ROOT, cbor.dumps(claims), aad)


def without(key: int) -> dict[object, object]:
    return {k: v for k, v in CLAIMS.items() if k != key}


@pytest.mark.parametrize(
    ("raw", "reason", "field"),
    [
        (b"", Reason.TRUNCATED, "credential"),
        (b"\xd8", Reason.TRUNCATED, "credential"),
        (b"\xd8\x3d\xd2", Reason.TRUNCATED, "credential"),
        (bytes(513), Reason.OVERSIZED, "credential"),
        (b"\xd2\x84", Reason.HEADER, "credential"),
        (framed(CLAIMS) + b"\x00", Reason.TRAILING, "credential.signature"),
        (framed(CLAIMS)[:-1], Reason.TRUNCATED, "credential.signature"),
        (framed([]), Reason.TYPE, "credential"),
        (framed({"sub": 1}), Reason.TYPE, "credential"),
        (framed(CLAIMS | {False: 1}), Reason.TYPE, "credential"),
        (framed(without(2)), Reason.TYPE, "credential.sub"),
        (framed(CLAIMS | {2: 1}), Reason.TYPE, "credential.sub"),
        (framed(CLAIMS | {2: ""}), Reason.BOUNDS, "credential.sub"),
        (framed(CLAIMS | {2: "a" * 65}), Reason.BOUNDS, "credential.sub"),
        (framed(CLAIMS | {2: "\x1b[31mred"}), Reason.BOUNDS, "credential.sub"),
        (framed(CLAIMS | {2: "n\u00f6de"}), Reason.BOUNDS, "credential.sub"),
        (framed(CLAIMS | {2: ".."}), Reason.BOUNDS, "credential.sub"),
        (framed(CLAIMS | {2: "a\n"}), Reason.BOUNDS, "credential.sub"),
        (framed(without(4)), Reason.TYPE, "credential.exp"),
        (framed(CLAIMS | {4: -1}), Reason.INTEGER, "credential.exp"),
        (framed(CLAIMS | {4: 2**40}), Reason.INTEGER, "credential.exp"),
        (framed(CLAIMS | {5: None}), Reason.TYPE, "credential.nbf"),
        (framed(without(7)), Reason.TYPE, "credential.cti"),
        (framed(CLAIMS | {7: b"abc"}), Reason.BOUNDS, "credential.cti"),
        (framed(CLAIMS | {7: bytes(9)}), Reason.BOUNDS, "credential.cti"),
        (framed(without(8)), Reason.TYPE, "credential.cnf"),
        (framed(CLAIMS | {8: {3: b"kid"}}), Reason.TYPE, "credential.cnf"),
        (framed(CLAIMS | {8: CNF | {3: b"kid"}}), Reason.TYPE, "credential.cnf"),
        (framed(CLAIMS | {8: {1: {1: 1, -1: 6}}}), Reason.TYPE, "credential.cnf"),
        (framed(CLAIMS | {8: {1: {1: 2, -1: 6, -2: bytes(32)}}}), Reason.TYPE, "credential.cnf"),
        (framed(CLAIMS | {8: {1: {1: 1, -1: 4, -2: bytes(32)}}}), Reason.TYPE, "credential.cnf"),
        (framed(CLAIMS | {8: {1: {1: 1, -1: 6, -2: bytes(31)}}}), Reason.BOUNDS, "credential.cnf"),
        (framed(without(9)), Reason.TYPE, "credential.scope"),
        (framed(CLAIMS | {9: ""}), Reason.BOUNDS, "credential.scope"),
        (framed(CLAIMS | {9: "node  gateway"}), Reason.BOUNDS, "credential.scope"),
        (framed(CLAIMS | {9: "Node"}), Reason.BOUNDS, "credential.scope"),
        (framed(CLAIMS | {9: "issuer gateway"}), Reason.NON_CANONICAL, "credential.scope"),
        (framed(CLAIMS | {9: "node node"}), Reason.NON_CANONICAL, "credential.scope"),
    ],
)
def test_what_is_malformed_is_refused(raw: bytes, reason: Reason, field: str) -> None:
    assert refusal(lambda: Credential.parse(raw)) == (reason, field)


def test_claims_in_another_order_or_twice_are_refused() -> None:
    two_first = bytes.fromhex("a2 04 01 02 61 61".replace(" ", ""))
    twice = bytes.fromhex("a2 04 01 04 01".replace(" ", ""))
    for payload, reason in ((two_first, Reason.NON_CANONICAL), (twice, Reason.DUPLICATE_KEY)):
        raw = CWT_TAG + sign1(ROOT, payload, CREDENTIAL_AAD)
        assert refusal(lambda raw=raw: Credential.parse(raw)) == (reason, "credential")  # type: ignore[misc]  # bound early


def test_claims_and_scopes_of_tomorrow_are_passed_over() -> None:
    read = Credential.parse(framed(CLAIMS | {1: "issuer", 6: 5, 9: "gateway relay", -70000: [1]}))
    assert read.scope == {"gateway", "relay"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"subject": ""}, "subject"),
        ({"subject": "a b"}, "subject"),
        ({"subject": "-rf"}, "subject"),
        ({"scope": ""}, "scope"),
        ({"scope": "king"}, "scope"),
        ({"expires": -1}, "expires"),
        ({"serial": b""}, "serial"),
        ({"not_before": 50}, "not_before"),
    ],
)
def test_what_cannot_be_issued_is_our_mistake(changes: dict[str, object], field: str) -> None:
    arguments: dict[str, object] = {
        "subject": "a",
        "key": NODE.public,
        "scope": "node",
        "expires": 50,
        "serial": b"seri",
    }
    with pytest.raises(UsageError) as error:
        issue(ROOT, **(arguments | changes))  # type: ignore[arg-type]  # a table of mistakes
    assert error.value.field == field


def test_names() -> None:
    assert all(map(is_name, ("a", "7", "Barn_3.north-west", "a" * 64)))
    assert not any(map(is_name, ("", ".", "..", "_a", "a/b", "a b", "a\x1b", "a" * 65, "é")))


# --- what it is worth ------------------------------------------------------------------


def test_what_leads_to_the_root_resolves(trust: TrustStore) -> None:
    assert trust.resolve(NODE.kid, NOW, "node") == NODE.public
    assert trust.resolve(GATEWAY.kid, NOW, "gateway") == GATEWAY.public
    assert trust.resolve(GATEWAY.kid, NOW, "issuer") == GATEWAY.public
    assert len(trust) == 2


def test_nobody_else_resolves(trust: TrustStore) -> None:
    assert refusal(lambda: trust.resolve(OTHER.kid, NOW, "node")) == (Reason.UNKNOWN_KEY, "kid")
    assert refusal(lambda: trust.resolve(ROOT.kid, NOW, "issuer")) == (Reason.UNKNOWN_KEY, "kid")
    for kid, scope in ((NODE.kid, "gateway"), (NODE.kid, "issuer"), (GATEWAY.kid, "node")):
        wrong = refusal(lambda kid=kid, scope=scope: trust.resolve(kid, NOW, scope))  # type: ignore[misc]  # bound early
        assert wrong == (Reason.SCOPE, "credential")


def test_foreign_and_self_made_credentials_are_refused(trust: TrustStore) -> None:
    cases = [
        (give(OTHER.public, by=STRANGER), Reason.CHAIN, "credential.issuer"),
        (give(OTHER.public, by=OTHER), Reason.CHAIN, "credential.issuer"),
        (give(ROOT.public, "gateway issuer"), Reason.CHAIN, "credential.issuer"),
        (give(OTHER.public, "issuer", by=GATEWAY), Reason.CHAIN, "credential.scope"),
        (give(OTHER.public, "gateway issuer", by=GATEWAY), Reason.CHAIN, "credential.scope"),
        (give(OTHER.public, by=NODE), Reason.CHAIN, "credential.issuer"),
    ]
    before = trust.snapshot()
    for made, reason, field in cases:
        wrong = refusal(lambda made=made: trust.add(made.raw, NOW))  # type: ignore[misc]  # bound early
        assert wrong == (reason, field)
    assert trust.snapshot() == before


def test_a_header_that_names_the_root_does_not_make_it_the_roots(trust: TrustStore) -> None:
    made = give(OTHER.public, by=STRANGER)
    framed_up = made.raw.replace(STRANGER.kid, ROOT.kid)
    assert refusal(lambda: trust.add(framed_up, NOW)) == (Reason.SIGNATURE, "signature")
    framed_up = made.raw.replace(STRANGER.kid, GATEWAY.kid)
    assert refusal(lambda: trust.add(framed_up, NOW)) == (Reason.SIGNATURE, "signature")


def test_a_signature_for_another_use_is_no_credential(trust: TrustStore) -> None:
    other_use = framed(CLAIMS, ENROLMENT_AAD)
    assert refusal(lambda: trust.add(other_use, NOW)) == (Reason.SIGNATURE, "signature")


def test_a_gateway_that_is_no_issuer_issues_nothing() -> None:
    trust = TrustStore(ROOT.public)
    trust.add(give(GATEWAY.public, "gateway").raw, NOW)
    wrong = refusal(lambda: trust.add(give(NODE.public, by=GATEWAY).raw, NOW))
    assert wrong == (Reason.SCOPE, "credential.issuer")


@pytest.mark.parametrize("scope", ["gateway", "issuer", "gateway issuer", "gateway node"])
def test_an_issuer_makes_nodes_and_nothing_else(trust: TrustStore, scope: str) -> None:
    made = give(OTHER.public, scope, by=GATEWAY)
    assert refusal(lambda: trust.add(made.raw, NOW)) == (Reason.CHAIN, "credential.scope")
    trust.add(give(OTHER.public, scope).raw, NOW)  # the root does


# --- time ------------------------------------------------------------------------------


def test_a_credential_ends_and_begins(trust: TrustStore) -> None:
    trust.add(give(OTHER.public, until=NOW + 5, since=NOW - 5).raw, NOW)
    assert trust.resolve(OTHER.kid, NOW - 5, "node") == OTHER.public
    assert trust.resolve(OTHER.kid, NOW + 4.9, "node") == OTHER.public
    for now in (NOW - 6, NOW + 5, NOW + 1_000_000):
        wrong = refusal(lambda now=now: trust.resolve(OTHER.kid, now, "node"))  # type: ignore[misc]  # bound early
        assert wrong == (Reason.EXPIRED, "credential")


def test_an_expired_credential_is_not_taken_in(trust: TrustStore) -> None:
    made = give(OTHER.public, until=NOW)
    assert refusal(lambda: trust.add(made.raw, NOW)) == (Reason.EXPIRED, "credential")
    assert trust.credential(OTHER.kid) is None


def test_an_issuer_that_expires_takes_along_what_it_issued() -> None:
    trust = TrustStore(ROOT.public)
    trust.add(give(GATEWAY.public, "gateway issuer", until=NOW + 5).raw, NOW)
    trust.add(give(NODE.public, by=GATEWAY, until=NOW + 100).raw, NOW)
    wrong = refusal(lambda: trust.resolve(NODE.kid, NOW + 6, "node"))
    assert wrong == (Reason.EXPIRED, "credential.issuer")
    trust.add(give(GATEWAY.public, "gateway issuer", until=NOW + 50).raw, NOW + 6)
    assert trust.resolve(NODE.kid, NOW + 6, "node") == NODE.public


def test_without_a_clock_dates_are_not_judged_but_revocation_is(trust: TrustStore) -> None:
    trust.add(give(OTHER.public, until=1).raw, None)
    assert trust.resolve(OTHER.kid, None, "node") == OTHER.public
    trust.apply(revoke(1, OTHER.kid))
    assert refusal(lambda: trust.resolve(OTHER.kid, None, "node"))[0] is Reason.REVOKED


# --- renewal ---------------------------------------------------------------------------


def test_of_two_credentials_for_one_key_the_later_end_stands(trust: TrustStore) -> None:
    later = give(NODE.public, by=GATEWAY, until=NOW + 200)
    assert trust.add(later.raw, NOW) == later
    earlier = give(NODE.public, by=GATEWAY, until=NOW + 150)
    assert trust.add(earlier.raw, NOW) == later
    assert trust.credential(NODE.kid) == later
    assert len(trust) == 2


def test_an_issuers_credential_never_displaces_the_roots(trust: TrustStore) -> None:
    trust.add(give(OTHER.public, "gateway issuer").raw, NOW)
    demoting = give(OTHER.public, "node", by=GATEWAY, until=NOW + 10_000)
    trust.add(demoting.raw, NOW)
    assert trust.resolve(OTHER.kid, NOW, "issuer") == OTHER.public
    trust.add(give(NODE.public).raw, NOW)
    held = trust.credential(NODE.kid)
    assert held is not None
    assert held.issuer == ROOT.kid


def test_what_a_revoked_issuer_said_last_does_not_keep_the_honest_one_out() -> None:
    trust = TrustStore(ROOT.public)
    trust.add(give(GATEWAY.public, "gateway issuer").raw, NOW)
    trust.add(give(STRANGER.public, "gateway issuer").raw, NOW)
    honest = give(NODE.public, by=GATEWAY, until=NOW + 50)
    trust.add(honest.raw, NOW)
    trust.add(give(NODE.public, by=STRANGER, until=NOW + 5_000).raw, NOW)
    trust.apply(revoke(1, STRANGER.kid))
    assert refusal(lambda: trust.resolve(NODE.kid, NOW, "node"))[0] is Reason.REVOKED
    assert trust.add(honest.raw, NOW) == honest
    assert trust.resolve(NODE.kid, NOW, "node") == NODE.public


def test_a_credential_that_is_shown_again_is_judged_again(trust: TrustStore) -> None:
    raw = trust.chain(NODE.kid)[1]
    assert trust.add(raw, NOW).raw == raw
    assert refusal(lambda: trust.add(raw, NOW + 1000))[0] is Reason.EXPIRED
    trust.apply(revoke(1, GATEWAY.kid))
    assert refusal(lambda: trust.add(raw, NOW)) == (Reason.REVOKED, "credential.issuer")


def test_another_key_of_the_same_kid_does_not_displace(
    trust: TrustStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = give(OTHER.public, by=GATEWAY, until=NOW + 500)
    init = PublicKey.__init__

    def collide(self: PublicKey, raw: bytes) -> None:
        init(self, raw)
        if raw == OTHER.public.raw:
            self.kid = NODE.kid

    monkeypatch.setattr(PublicKey, "__init__", collide)
    assert refusal(lambda: trust.add(rival.raw, NOW)) == (Reason.CHAIN, "credential.cnf")
    assert trust.resolve(NODE.kid, NOW, "node") == NODE.public


def test_an_issuer_that_was_dropped_takes_along_what_it_issued(
    trust: TrustStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrustStore, "MAX_PINNED", 1)
    trust.apply(revoke(1, GATEWAY.kid))
    trust.add(give(OTHER.public, "gateway").raw, NOW)
    trust.apply(revoke(2))
    wrong = refusal(lambda: trust.resolve(NODE.kid, NOW, "node"))
    assert wrong == (Reason.CHAIN, "credential.issuer")
    assert trust.chain(NODE.kid) == ()


# --- revocation ------------------------------------------------------------------------


def test_a_revoked_key_is_out_at_once(trust: TrustStore) -> None:
    assert trust.apply(revoke(1, NODE.kid))
    wrong = refusal(lambda: trust.resolve(NODE.kid, NOW, "node"))
    assert wrong == (Reason.REVOKED, "credential")
    again = give(NODE.public, by=GATEWAY, until=NOW + 10_000)
    assert refusal(lambda: trust.add(again.raw, NOW)) == (Reason.REVOKED, "credential")


def test_a_revoked_issuer_takes_along_what_it_issued(trust: TrustStore) -> None:
    trust.apply(revoke(1, GATEWAY.kid))
    assert refusal(lambda: trust.resolve(GATEWAY.kid, NOW, "gateway"))[0] is Reason.REVOKED
    wrong = refusal(lambda: trust.resolve(NODE.kid, NOW, "node"))
    assert wrong == (Reason.REVOKED, "credential.issuer")
    new = give(OTHER.public, by=GATEWAY)
    assert refusal(lambda: trust.add(new.raw, NOW)) == (Reason.REVOKED, "credential.issuer")


def test_a_key_can_be_revoked_before_it_was_ever_seen(trust: TrustStore) -> None:
    trust.apply(revoke(1, OTHER.kid))
    assert refusal(lambda: trust.resolve(OTHER.kid, NOW, "node"))[0] is Reason.REVOKED
    assert refusal(lambda: trust.add(give(OTHER.public).raw, NOW))[0] is Reason.REVOKED


def test_the_highest_number_wins(trust: TrustStore) -> None:
    assert trust.revocation_number == 0
    assert trust.apply(revoke(3, NODE.kid))
    assert not trust.apply(revoke(3))
    wrong = refusal(lambda: trust.apply(revoke(2)))
    assert wrong == (Reason.REPLAYED, "revocation.number")
    assert trust.revocation is not None
    assert trust.revocation.kids == (NODE.kid,)
    assert trust.apply(revoke(4))
    assert trust.resolve(NODE.kid, NOW, "node") == NODE.public
    assert trust.revocation_number == 4


def test_only_the_root_revokes(trust: TrustStore) -> None:
    by_gateway = revoke(9, NODE.kid, by=GATEWAY)
    assert refusal(lambda: trust.apply(by_gateway)) == (Reason.CHAIN, "revocation.kid")
    framed_up = by_gateway.replace(GATEWAY.kid, ROOT.kid)
    assert refusal(lambda: trust.apply(framed_up)) == (Reason.SIGNATURE, "signature")
    assert trust.revocation_number == 0


def revocation(payload: object) -> bytes:
    return sign1(ROOT, cbor.dumps(payload), REVOCATION_AAD)


@pytest.mark.parametrize(
    ("raw", "reason", "field"),
    [
        (b"", Reason.TRUNCATED, "revocation"),
        (bytes(511), Reason.OVERSIZED, "revocation"),
        (revocation({}), Reason.TYPE, "revocation"),
        (revocation([1, 2]), Reason.BOUNDS, "revocation"),
        (revocation([0, 2, []]), Reason.INTEGER, "revocation.number"),
        (revocation(["1", 2, []]), Reason.TYPE, "revocation.number"),
        (revocation([1, -2, []]), Reason.INTEGER, "revocation.issued"),
        (revocation([1, 2, [b"short"]]), Reason.BOUNDS, "revocation.kids"),
        (revocation([1, 2, [b"b" * 8, b"a" * 8]]), Reason.NON_CANONICAL, "revocation.kids"),
        (revocation([1, 2, [b"a" * 8] * 2]), Reason.DUPLICATE_KEY, "revocation.kids"),
        (revocation([1, 2, [bytes([n] * 8) for n in range(45)]]), Reason.BOUNDS, "revocation.kids"),
    ],
)
def test_what_is_no_revocation_list_is_refused(raw: bytes, reason: Reason, field: str) -> None:
    assert refusal(lambda: RevocationList.parse(raw)) == (reason, field)


def test_a_full_list_says_what_to_do() -> None:
    kids = [bytes([n]) * 8 for n in range(MAX_REVOKED + 1)]
    with pytest.raises(UsageError, match="a list holds 44") as error:
        RevocationList.issue(ROOT, number=1, issued=NOW, kids=kids)
    assert error.value.hint is not None
    assert "expired" in error.value.hint
    for number, issued, names in ((0, 0, []), (1, -1, []), (1, 0, [b"short"])):
        with pytest.raises(UsageError):
            RevocationList.issue(ROOT, number=number, issued=issued, kids=names)


# --- enrolment -------------------------------------------------------------------------


def test_an_enrolment_proves_its_key() -> None:
    opened = Enrolment.open(Enrolment.make(NODE, "barn-3").raw)
    assert (opened.name, opened.key) == ("barn-3", NODE.public)


def enrolment(claims: object, by: Identity = NODE) -> bytes:
    return CWT_TAG + sign1(by, cbor.dumps(claims), ENROLMENT_AAD)


@pytest.mark.parametrize(
    ("raw", "reason", "field"),
    [
        (enrolment({2: "a", 8: CNF}, by=OTHER), Reason.HEADER, "enrolment.kid"),
        (
            enrolment({2: "a", 8: CNF}, by=OTHER).replace(OTHER.kid, NODE.kid),
            Reason.SIGNATURE,
            "signature",
        ),
        (give(NODE.public, by=NODE).raw, Reason.SIGNATURE, "signature"),
        (enrolment({2: "\x1b[2J", 8: CNF}), Reason.BOUNDS, "enrolment.sub"),
        (enrolment({8: CNF}), Reason.TYPE, "enrolment.sub"),
        (enrolment({2: "a"}), Reason.TYPE, "enrolment.cnf"),
        (enrolment([]), Reason.TYPE, "enrolment"),
        (b"\xd2\x84", Reason.HEADER, "enrolment"),
    ],
)
def test_what_proves_nothing_is_refused(raw: bytes, reason: Reason, field: str) -> None:
    assert refusal(lambda: Enrolment.open(raw)) == (reason, field)


def test_an_enrolment_is_no_credential(trust: TrustStore) -> None:
    raw = Enrolment.make(NODE, "barn-3").raw
    assert refusal(lambda: trust.add(raw, NOW))[0] is Reason.TYPE
    with pytest.raises(UsageError, match="name"):
        Enrolment.make(NODE, "a b")


# --- showing and keeping ---------------------------------------------------------------


def test_a_chain_convinces_a_stranger_who_knows_the_root(trust: TrustStore) -> None:
    chain = trust.chain(NODE.kid)
    stranger = TrustStore(ROOT.public)
    assert [stranger.add(raw, NOW).kid for raw in chain] == [GATEWAY.kid, NODE.kid]
    assert stranger.resolve(NODE.kid, NOW, "node") == NODE.public
    assert len(trust.chain(GATEWAY.kid)) == 1
    assert trust.chain(OTHER.kid) == ()


def test_everything_survives_a_restart(trust: TrustStore) -> None:
    trust.add(give(OTHER.public).raw, NOW)
    trust.apply(revoke(7, OTHER.kid))
    again = TrustStore(ROOT.public)
    left_out = again.restore(trust.snapshot(), NOW)
    assert [refused.reason for refused in left_out] == [Reason.REVOKED]
    assert again.resolve(NODE.kid, NOW, "node") == NODE.public
    assert again.revocation_number == 7


def test_what_was_kept_is_believed_no_more_than_what_is_sent(trust: TrustStore) -> None:
    snapshot = [*trust.snapshot(), b"", b"\xd8\x3d", revoke(9, NODE.kid, by=OTHER)]
    of_another_fleet = TrustStore(STRANGER.public)
    assert len(of_another_fleet.restore(snapshot, NOW)) == len(snapshot)
    assert len(of_another_fleet) == 0
    again = TrustStore(ROOT.public)
    assert len(again.restore(snapshot, NOW)) == 3
    assert again.revocation_number == 0


def test_valid_lists_who_may_act(trust: TrustStore) -> None:
    def names(scope: str, now: int | None) -> set[bytes]:
        return {held.kid for held in trust.valid(scope, now)}

    trust.add(give(OTHER.public, "gateway", until=NOW + 5).raw, NOW)
    assert names("gateway", NOW) == {GATEWAY.kid, OTHER.kid}
    assert names("gateway", NOW + 6) == {GATEWAY.kid}
    assert names("node", NOW) == {NODE.kid}
    trust.apply(revoke(1, GATEWAY.kid))
    assert names("node", None) == set()


# --- bounds ----------------------------------------------------------------------------


def keys(count: int, start: int = 100) -> Iterable[PublicKey]:
    return (Identity.from_seed(n.to_bytes(32)).public for n in range(start, start + count))


def test_a_flood_of_valid_credentials_leaves_those_in_use() -> None:
    trust = TrustStore(ROOT.public, max_entries=10)
    trust.add(give(GATEWAY.public, "gateway issuer").raw, NOW)
    in_use = list(keys(5))
    for key in in_use:
        trust.add(give(key, by=GATEWAY).raw, NOW)
        trust.resolve(key.kid, NOW, "node")
    for key in keys(50, start=1000):
        trust.add(give(key, by=GATEWAY).raw, NOW)
        assert len(trust) <= 11
    assert all(trust.resolve(key.kid, NOW, "node") == key for key in in_use)
    assert trust.resolve(GATEWAY.kid, NOW, "gateway") == GATEWAY.public


def test_the_last_resolved_stay_longest() -> None:
    trust = TrustStore(ROOT.public, max_entries=4)
    first, second, third, fourth, fifth = keys(5)
    for key in (first, second, third):
        trust.add(give(key).raw, NOW)
        trust.resolve(key.kid, NOW, "node")
    trust.resolve(second.kid, NOW, "node")
    for key in (fourth, fifth):
        trust.add(give(key).raw, NOW)
    held = [key for key in (first, second, third, fourth, fifth) if trust.credential(key.kid)]
    assert held == [second, third, fourth, fifth]


def test_a_renewed_credential_stays_in_use() -> None:
    trust = TrustStore(ROOT.public, max_entries=2)
    first, second, third = keys(3)
    trust.add(give(first).raw, NOW)
    trust.resolve(first.kid, NOW, "node")
    trust.add(give(first, until=NOW + 500).raw, NOW)
    for key in (second, third):
        trust.add(give(key).raw, NOW)
    assert trust.credential(first.kid) is not None


def test_gateways_are_bounded_and_the_lapsed_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrustStore, "MAX_PINNED", 2)
    trust = TrustStore(ROOT.public)
    first, second, third = keys(3)
    trust.add(give(first, "gateway", until=NOW + 5).raw, NOW)
    trust.add(give(second, "gateway").raw, NOW)
    new = give(third, "gateway")
    assert refusal(lambda: trust.add(new.raw, NOW)) == (Reason.FLOODED, "credential")
    trust.add(new.raw, NOW + 5)
    assert trust.credential(first.kid) is None
    assert trust.resolve(third.kid, NOW + 5, "gateway") == third


def test_a_store_has_room_for_somebody() -> None:
    with pytest.raises(UsageError, match="max_entries"):
        TrustStore(ROOT.public, max_entries=1)


# --- anything at all -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_what_was_mutated_is_refused(seed: int) -> None:
    rng = random.Random(seed)
    trust = TrustStore(ROOT.public)
    gateway = give(GATEWAY.public, "gateway issuer").raw
    victims = [gateway, revoke(4, OTHER.kid, NODE.kid), Enrolment.make(NODE, "barn-3").raw]
    raw = victims[seed]
    act = (lambda data: trust.add(data, None), trust.apply, Enrolment.open)[seed]
    for _ in range(1500):
        data = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        del data[len(data) - rng.choice((0, 0, 0, 1, 9)) :]
        if bytes(data) == raw:
            continue
        with pytest.raises(Refused):
            act(bytes(data))
    assert len(trust) == 0
    assert trust.revocation_number == 0
