"""Which gateways are known, and what their words are worth."""

from __future__ import annotations

import pytest

from qis_edge.core.credential import RevocationList
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.identity import Identity
from qis_edge.core.messages import Hello, Position, decode
from qis_edge.links.base import BROKER_CADENCE
from qis_edge.node.gateways import Gateways
from tests.node.kit import NOW, Fleet

NONCE = b"nonce--1"


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def known(fleet: Fleet, **how: bool) -> Gateways:
    made = Gateways(fleet.me, fleet.trust(**how))
    made.learn({}, NOW)
    return made


def reason(error: pytest.ExceptionInfo[Refused]) -> Reason:
    return error.value.reason


def test_a_greeting_answers_a_hello(fleet: Fleet) -> None:
    gateways = known(fleet)
    hello = decode(gateways.hello(10.0, NONCE))
    assert isinstance(hello, Hello)
    assert (hello.kid, hello.nonce, hello.revocation) == (fleet.me.kid, NONCE, 0)
    greeted, ago = gateways.greet(fleet.greeting(NONCE), 10.5, NOW)
    assert (greeted.kid, greeted.greeted, ago) == (fleet.gateway.kid, 10.5, 0.5)
    assert gateways.hello_at == 10.5 + BROKER_CADENCE.greeted


def test_a_greeting_to_nobodys_hello_is_refused(fleet: Fleet) -> None:
    gateways = known(fleet)
    gateways.hello(10.0, NONCE)
    with pytest.raises(Refused) as error:
        gateways.greet(fleet.greeting(b"another!"), 10.5, NOW)
    assert reason(error) is Reason.REPLAYED
    for number in range(8):  # the newest few hellos are remembered
        gateways.hello(11.0, bytes((number,)) * 8)
    with pytest.raises(Refused):
        gateways.greet(fleet.greeting(NONCE), 12.0, NOW)


def test_a_stranger_or_an_outcast_is_not_believed(fleet: Fleet) -> None:
    gateways = known(fleet, gateway=False, enrolled=False)
    gateways.hello(10.0, NONCE)
    with pytest.raises(Refused) as error:
        gateways.greet(fleet.greeting(NONCE), 10.5, NOW)
    assert reason(error) is Reason.UNKNOWN_KEY
    trust = fleet.trust()
    gateways = Gateways(fleet.me, trust)
    gateways.learn({fleet.gateway.kid: b"ep-1"}, NOW)
    assert [one.kid for one in gateways.greeted(NOW)] == [fleet.gateway.kid]
    made = RevocationList.issue(fleet.root, number=1, issued=NOW, kids=[fleet.gateway.kid])
    trust.apply(made.raw)
    assert gateways.greeted(NOW) == []
    gateways.hello(10.0, NONCE)
    with pytest.raises(Refused) as error:
        gateways.greet(fleet.greeting(NONCE), 10.5, NOW)
    assert reason(error) is Reason.REVOKED


def test_an_expired_gateway_is_not_believed_where_the_time_is_known(fleet: Fleet) -> None:
    gateways = Gateways(fleet.me, fleet.trust())
    gateways.learn({fleet.gateway.kid: b"ep-1"}, NOW)
    later = NOW + 400 * 86400
    assert gateways.greeted(later) == []
    assert len(gateways.greeted(None)) == 1


def test_nobody_counts_before_their_first_greeting(fleet: Fleet) -> None:
    gateways = known(fleet)
    assert gateways.greeted(NOW) == []
    assert len(list(gateways)) == 1


def test_hellos_become_rarer_until_somebody_greets(fleet: Fleet) -> None:
    gateways = known(fleet)
    now, waits = 100.0, []
    for _ in range(8):
        gateways.hello(now, NONCE)
        waits.append(gateways.hello_at - now)
        now = gateways.hello_at
    assert waits == sorted(waits)
    assert waits[0] == BROKER_CADENCE.hello
    assert waits[-1] == BROKER_CADENCE.ungreeted
    gateways.hello_soon()
    assert gateways.hello_at <= now


def test_one_who_wants_more_goes_on_saying_hello(fleet: Fleet) -> None:
    gateways = known(fleet)
    gateways.hello(10.0, NONCE)
    gateways.greet(fleet.greeting(NONCE), 10.5, NOW, settled=False)
    assert gateways.hello_at == 10.0 + BROKER_CADENCE.hello


def test_an_answer_to_the_last_hello_is_none_to_the_one_that_is_due(fleet: Fleet) -> None:
    gateways = known(fleet)
    gateways.hello(10.0, NONCE)
    gateways.hello_soon()
    gateways.greet(fleet.greeting(NONCE), 10.5, NOW)
    assert gateways.hello_at <= 10.5


def test_doubt_brings_a_hello_but_not_often(fleet: Fleet) -> None:
    gateways = known(fleet)
    gateways.hello(10.0, NONCE)
    gateways.greet(fleet.greeting(NONCE), 10.5, NOW)
    gateways.doubt(200.0)
    assert gateways.hello_at <= 200.0
    gateways.hello(200.0, NONCE)
    gateways.greet(fleet.greeting(NONCE), 200.5, NOW)
    gateways.doubt(201.0)  # somebody forges answers
    assert gateways.hello_at == 200.5 + BROKER_CADENCE.greeted


def test_a_credential_of_a_gateway_makes_it_known(fleet: Fleet) -> None:
    trust = fleet.trust()
    gateways = Gateways(fleet.me, trust)
    gateways.hello(10.0, NONCE)
    gateways.add(fleet.credential)  # our own: no gateway
    assert list(gateways) == []
    gateways.add(fleet.gateway_credential)
    assert [one.kid for one in gateways] == [fleet.gateway.kid]
    assert gateways.hello_at == 0.0


def test_positions_are_checked(fleet: Fleet) -> None:
    gateways = known(fleet)
    good = Position(fleet.gateway.kid, b"cursor", complete=True)
    arrived = decode(good.encode(fleet.keys().to_node))
    assert isinstance(arrived, Position)
    assert gateways.position(arrived, NOW).kid == fleet.gateway.kid
    stranger = Identity.generate()
    for key in (fleet.keys().to_gateway, fleet.keys(stranger).to_node):
        forged = decode(good.encode(key))
        assert isinstance(forged, Position)
        with pytest.raises(Refused) as error:
            gateways.position(forged, NOW)
        assert reason(error) is Reason.MAC
