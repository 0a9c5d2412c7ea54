"""Our own standing, and packets of those who are not known yet."""

from __future__ import annotations

import pytest

from qis_edge.core.credential import RevocationList
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.identity import Identity
from qis_edge.core.messages import CredentialMessage, EnrolmentMessage, Wanted, decode
from qis_edge.node import membership as module
from qis_edge.node.membership import Membership, is_ours
from tests.node.kit import NOW, Fleet


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def member(fleet: Fleet, **how: bool) -> Membership:
    return Membership(fleet.me, "field-1", fleet.trust(**how))


def wanted(raw: bytes | None) -> tuple[bytes, ...]:
    assert raw is not None
    message = decode(raw)
    assert isinstance(message, Wanted)
    return message.kids


def kid(number: int) -> bytes:
    return number.to_bytes(8)


# --- ourselves -----------------------------------------------------------------------------


def test_who_has_joined_shows_the_whole_chain(fleet: Fleet) -> None:
    ours = member(fleet)
    assert ours.enrolled(NOW)
    assert ours.credential == fleet.credential
    shown = [decode(raw) for raw in ours.present(NOW, 0.0)]
    assert shown == [
        CredentialMessage(fleet.gateway_credential.raw),
        CredentialMessage(fleet.credential.raw),
    ]


def test_who_has_not_wants_to_join(fleet: Fleet) -> None:
    ours = member(fleet, enrolled=False)
    assert not ours.enrolled(NOW)
    assert ours.credential is None
    (message,) = (decode(raw) for raw in ours.present(NOW, 0.0))
    assert isinstance(message, EnrolmentMessage)
    assert (message.enrolment.name, message.enrolment.key) == ("field-1", fleet.me.public)


def test_an_expired_credential_is_renewed(fleet: Fleet) -> None:
    ours = member(fleet)
    later = NOW + 400 * 86400
    assert not ours.enrolled(later)
    (message,) = (decode(raw) for raw in ours.present(later, 0.0))
    assert isinstance(message, EnrolmentMessage)


def test_not_everybody_who_asks_is_answered(fleet: Fleet) -> None:
    ours = member(fleet)
    for _ in range(module.PRESENT_BURST):
        ours.present(NOW, 0.0)
    with pytest.raises(Refused) as error:
        ours.present(NOW, 1.0)
    assert error.value.reason is Reason.FLOODED
    ours.present(NOW, module.PRESENT_EVERY + 1)


# --- others --------------------------------------------------------------------------------


def test_a_key_is_asked_for_once_and_then_again_after_a_while(fleet: Fleet) -> None:
    ours = member(fleet)
    assert ours.question(0.0) is None
    ours.park(kid(1), b"one", 0.0)
    assert wanted(ours.question(0.0)) == (kid(1),)
    ours.park(kid(1), b"two", 0.1)
    assert ours.question(module.ASK_EVERY) is None
    assert ours.question_at == module.ASK_AGAIN
    assert wanted(ours.question(module.ASK_AGAIN)) == (kid(1),)
    assert ours.unpark(kid(1)) == [b"one", b"two"]


def test_many_are_asked_for_together(fleet: Fleet) -> None:
    ours = member(fleet)
    for number in range(50):
        ours.park(kid(number), b"packet", 0.0)
    assert len(wanted(ours.question(0.0))) == 32
    assert ours.question(module.ASK_EVERY / 2) is None
    assert len(wanted(ours.question(module.ASK_EVERY))) == 18


def test_whom_nobody_knows_is_given_up(fleet: Fleet) -> None:
    ours = member(fleet)
    ours.park(kid(1), b"one", 0.0)
    now = 0.0
    for _ in range(module.MOST_ASKS):
        assert ours.question(now) is not None
        assert ours.parked == {kid(1)}
        now += module.ASK_AGAIN
    assert ours.question(now) is None
    assert ours.parked == frozenset()
    assert ours.dropped == 1
    ours.park(kid(1), b"two", now)  # in vain, for a while
    assert ours.parked == frozenset()
    assert ours.dropped == 2
    now += module.GIVEN_UP
    ours.park(kid(1), b"three", now)
    assert ours.parked == {kid(1)}
    assert wanted(ours.question(now)) == (kid(1),)


def test_a_packet_waits_once(fleet: Fleet) -> None:
    ours = member(fleet)
    for _ in range(3):
        ours.park(kid(1), b"one", 0.0)
    assert ours.unpark(kid(1)) == [b"one"]
    assert ours.unpark(kid(1)) == []


def test_what_waits_is_bounded(fleet: Fleet) -> None:
    ours = member(fleet)
    for number in range(1000):
        ours.park(kid(number), b"packet", 0.0)
    assert len(ours.parked) == module.PARKED_KEYS
    assert ours.dropped == 1000 - module.PARKED_KEYS
    assert len(ours._asked) <= module.MAX_ASKED
    for number in range(1000):
        ours.park(kid(5000), b"%d" % number, 0.0)
    assert len(ours.unpark(kid(5000))) == module.PARKED_EACH


def test_who_is_no_sender_is_asked_for_too(fleet: Fleet) -> None:
    """A gateway that greets and is not known."""
    ours = member(fleet)
    assert ours.miss(kid(1), 0.0)
    assert wanted(ours.question(0.0)) == (kid(1),)
    assert ours.parked == frozenset()


# --- what comes in -------------------------------------------------------------------------


def test_a_credential_is_news_once(fleet: Fleet) -> None:
    ours = member(fleet)
    peer = Identity.generate()
    credential = fleet.vouch(peer)
    with pytest.raises(Refused):
        ours.key(peer.kid, NOW)
    ours.park(peer.kid, b"packet", 0.0)
    assert ours.accept(credential.raw, NOW) == (credential, True)
    assert ours.accept(credential.raw, NOW) == (credential, False)
    assert ours.key(peer.kid, NOW) == peer.public
    assert ours.question(0.0) is None  # it need not be asked for any more


def test_an_older_credential_is_no_news(fleet: Fleet) -> None:
    ours = member(fleet)
    peer = Identity.generate()
    newer, older = fleet.vouch(peer), fleet.vouch(peer, expires=NOW + 100)
    ours.accept(newer.raw, NOW)
    assert ours.accept(older.raw, NOW) == (newer, False)


def test_a_foreign_credential_is_refused(fleet: Fleet) -> None:
    ours = member(fleet)
    with pytest.raises(Refused) as error:
        ours.accept(Fleet().credential.raw, NOW)
    assert error.value.reason is Reason.CHAIN


def test_our_own_makes_us_join(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    ours = member(fleet, enrolled=False)
    assert ours.accept(fleet.credential.raw, NOW)[1]
    assert ours.enrolled(NOW)
    assert "joined the fleet as one" in caplog.text


def test_a_revocation_is_news_once(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    ours = member(fleet)
    made = RevocationList.issue(fleet.root, number=2, issued=NOW, kids=[fleet.me.kid])
    assert ours.revocation is None
    assert ours.revoke(made.raw) == made
    assert ours.revoke(made.raw) is None
    assert ours.revocation == made
    assert "our own key was revoked" in caplog.text
    older = RevocationList.issue(fleet.root, number=1, issued=NOW, kids=[])
    with pytest.raises(Refused):
        ours.revoke(older.raw)


def test_what_a_credential_may_mend() -> None:
    assert is_ours(Refused(Reason.UNKNOWN_KEY, "kid"))
    assert is_ours(Refused(Reason.EXPIRED, "credential"))
    assert not is_ours(Refused(Reason.REVOKED, "credential"))
    assert not is_ours(Refused(Reason.SIGNATURE, "signature"))
