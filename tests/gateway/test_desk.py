"""Who is who, and every answer that is not about packets."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway import desk as module
from gateway.desk import FleetDesk, Limiter, Pairs
from qis_edge.core.credential import Enrolment, RevocationList
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.identity import Identity
from qis_edge.core.messages import (
    CredentialMessage,
    EnrolmentMessage,
    Greeting,
    Hello,
    Position,
    Request,
    RevocationMessage,
    Wanted,
    decode,
)
from qis_edge.links.base import Direction, Received
from qis_edge.worker import Disk
from tests.gateway.kit import ADDRESS, CLOCK, NOW, Letters, People, Wire

#: What encodes itself without a key.
Plain = Hello | Wanted | EnrolmentMessage | RevocationMessage

EPOCH = b"ep-1"
NONCE = b"nonce--1"


class Bench:
    def __init__(self, folder: Path) -> None:
        self.people = People(folder)
        self.fleet = self.people.fleet
        self.node = self.people.let_in(Identity.generate())
        self.stranger = Identity.generate()
        self.disk = Disk("fleet")
        self.post = Letters()
        self.requests: list[Request] = []
        self.revoked: list[RevocationList] = []
        self.keys_of = Pairs(self.people.gateway, self.fleet)
        self.desk = FleetDesk(
            self.people.gateway,
            self.fleet,
            self.disk,
            Wire(),
            self.post,
            CLOCK,
            self.keys_of,
            epoch=(EPOCH, 123),
            request=self.requests.append,
            revoked=self.revoked.append,
        )

    async def say(self, message: Plain | bytes, claimed: bytes | None = None) -> None:
        """A frame comes in."""
        raw = message if isinstance(message, bytes) else message.encode()
        await self.desk.handle(decode(raw), Received(raw, Direction.UP, claimed))

    async def refused(self, message: Plain | bytes, claimed: bytes | None = None) -> Reason:
        with pytest.raises(Refused) as error:
            await self.say(message, claimed)
        return error.value.reason

    def revoke(self, *kids: bytes, number: int = 1) -> RevocationList:
        return RevocationList.issue(self.people.root, number=number, issued=NOW, kids=kids)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    made.fleet.refresh(NOW)
    yield made
    made.disk.close()
    made.fleet.close()


# --- hello ---------------------------------------------------------------------------------


async def test_a_hello_is_greeted(bench: Bench) -> None:
    await bench.say(Hello(bench.node.kid, NONCE), bench.node.kid)
    (greeting,) = bench.post.messages(bench.node.kid)
    assert isinstance(greeting, Greeting)
    greeting.verify(bench.people.keys(bench.node).to_node, NONCE)
    assert (greeting.kid, greeting.time) == (bench.people.gateway.kid, NOW)
    assert (greeting.epoch, greeting.since, greeting.revocation) == (EPOCH, 123, 0)


async def test_a_stranger_is_asked_who_it_is(bench: Bench) -> None:
    hello = Hello(bench.stranger.kid, NONCE)
    assert await bench.refused(hello, bench.stranger.kid) is Reason.UNKNOWN_KEY
    assert bench.post.messages(bench.stranger.kid) == [Wanted((bench.stranger.kid,))]


async def test_a_hello_on_anothers_topic_is_refused(bench: Bench) -> None:
    hello = Hello(bench.node.kid, NONCE)
    assert await bench.refused(hello, bench.stranger.kid) is Reason.TOPIC
    assert bench.post.letters == []


async def test_strangers_all_together_are_not_answered_without_end(bench: Bench) -> None:
    for number in range(1000):
        kid = number.to_bytes(8)
        with pytest.raises(Refused):
            bench.desk.node_key(kid)
    assert len(bench.post.letters) <= module.STRANGERS_BURST + 60
    # Who is known is greeted all the same.
    await bench.say(Hello(bench.node.kid, NONCE))
    assert bench.post.said(bench.node.kid)["Greeting"] == 1


async def test_the_list_goes_before_the_greeting(bench: Bench) -> None:
    bench.fleet.apply(bench.revoke(b"outcast!").raw)
    await bench.say(Hello(bench.node.kid, NONCE, 0))
    assert [type(one) for one in bench.post.messages()] == [RevocationMessage, Greeting]
    bench.post.letters.clear()
    await bench.say(Hello(bench.node.kid, NONCE, 1))
    assert [type(one) for one in bench.post.messages()] == [Greeting]


async def test_no_greeting_where_the_list_cannot_be_told(bench: Bench) -> None:
    """Somebody says hello in its name, again and again, to use up what we tell it."""
    bench.fleet.apply(bench.revoke(b"outcast!").raw)
    reasons = set()
    for _ in range(module.BURST + 5):
        try:
            await bench.say(Hello(bench.node.kid, NONCE, 0))
        except Refused as refusal:
            reasons.add(refusal.reason)
    assert reasons == {Reason.FLOODED}
    said = bench.post.said()
    assert said["Greeting"] == said["RevocationMessage"] == module.BURST


# --- who is who ----------------------------------------------------------------------------


async def test_credentials_are_taken_in_and_handed_out(bench: Bench) -> None:
    credential = bench.people.credential(bench.stranger)
    await bench.say(CredentialMessage(credential).raw)
    assert bench.desk.node_key(bench.stranger.kid) == bench.stranger.public
    await bench.say(Wanted(tuple(sorted((bench.stranger.kid, b"nobody!!")))), bench.node.kid)
    shown = bench.post.messages(bench.node.kid)
    assert [type(one) for one in shown] == [CredentialMessage] * 2
    assert shown[1] == CredentialMessage(credential)


async def test_a_foreign_credential_is_refused(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = People(tmp_path / "other")
    assert await bench.refused(other.credential(bench.stranger)) is Reason.CHAIN
    other.fleet.close()


async def test_one_asker_is_not_answered_without_end(bench: Bench) -> None:
    wanted = Wanted((bench.node.kid,))
    for _ in range(module.BURST):
        await bench.say(wanted, bench.node.kid)
    assert await bench.refused(wanted, bench.node.kid) is Reason.FLOODED
    await bench.say(wanted, bench.stranger.kid)


async def test_a_wish_to_join_is_listed_while_that_is_permitted(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    wish = EnrolmentMessage(Enrolment.make(bench.stranger, "field-7"))
    assert await bench.refused(wish, bench.stranger.kid) is Reason.SCOPE
    bench.fleet.permit(NOW + 60)
    assert await bench.refused(wish, bench.node.kid) is Reason.TOPIC
    await bench.say(wish, bench.stranger.kid)
    assert [one.name for one in bench.fleet.waiting()] == ["field-7"]
    assert f"qis-gateway approve {bench.stranger.kid.hex()}" in caplog.text


async def test_one_that_was_approved_and_does_not_know_is_told(bench: Bench) -> None:
    wish = EnrolmentMessage(Enrolment.make(bench.node, "field-1"))
    await bench.say(wish, bench.node.kid)
    assert bench.post.said(bench.node.kid) == {"CredentialMessage": 2}


async def test_what_gateways_say_is_nobodys_to_say_here(bench: Bench) -> None:
    key = bench.people.keys(bench.node).to_node
    said = Position(bench.people.gateway.kid, b"here", complete=True).encode(key)
    assert await bench.refused(said) is Reason.SCOPE


# --- requests ------------------------------------------------------------------------------


def request_of(bench: Bench, *, gateway: bytes = b"", key: bytes = b"") -> bytes:
    made = Request(bench.node.kid, gateway or bench.people.gateway.kid, ((ADDRESS, 256),), None, 10)
    return made.encode(key or bench.people.keys(bench.node).to_gateway)


async def test_a_request_is_passed_on(bench: Bench) -> None:
    await bench.say(request_of(bench))
    assert [one.kid for one in bench.requests] == [bench.node.kid]


async def test_requests_to_others_and_forged_ones_are_not(bench: Bench) -> None:
    await bench.say(request_of(bench, gateway=b"another!"))
    assert await bench.refused(request_of(bench, key=bytes(32))) is Reason.MAC
    reflected = request_of(bench, key=bench.people.keys(bench.node).to_node)
    assert await bench.refused(reflected) is Reason.MAC
    assert bench.requests == []


# --- revocation ----------------------------------------------------------------------------


async def test_one_that_is_out_is_told_when_it_speaks(bench: Bench) -> None:
    bench.fleet.apply(bench.revoke(bench.node.kid).raw)
    with pytest.raises(Refused) as error:
        bench.desk.node_key(bench.node.kid)
    assert error.value.reason is Reason.REVOKED
    assert bench.post.said(bench.node.kid) == {"RevocationMessage": 1}


async def test_a_list_that_a_node_brings_is_taken_in(bench: Bench) -> None:
    made = bench.revoke(b"outcast!", number=4)
    await bench.say(RevocationMessage(made))
    assert bench.fleet.revocation_number == 4
    assert bench.revoked == [made]
    assert await bench.refused(RevocationMessage(bench.revoke(number=3))) is Reason.REPLAYED
    await bench.say(RevocationMessage(made))  # no news
    assert len(bench.revoked) == 1


async def test_a_list_goes_to_each_for_itself(bench: Bench) -> None:
    bench.desk.tell_revocation(bench.revoke(b"outcast!"), [bench.node.kid, bench.stranger.kid])
    assert bench.post.said(bench.node.kid) == {"RevocationMessage": 1}
    assert bench.post.said(bench.stranger.kid) == {"RevocationMessage": 1}


async def test_a_new_credential_is_shown_to_its_node(bench: Bench) -> None:
    bench.desk.tell_chain(bench.node.kid)
    assert bench.post.said(bench.node.kid) == {"CredentialMessage": 2}


async def test_who_was_heard_is_present(bench: Bench) -> None:
    nodes = [bench.people.let_in(Identity.generate()) for _ in range(2)]
    assert not bench.desk.present(nodes[0].kid)
    await bench.say(Hello(nodes[0].kid, NONCE))
    bench.desk.accepted(nodes[1].kid, NOW, 1)
    bench.fleet.permit(NOW + 60)
    await bench.say(EnrolmentMessage(Enrolment.make(bench.stranger, "field-7")))
    await bench.say(request_of(bench))
    for who in (*nodes, bench.stranger, bench.node):
        assert bench.desk.present(who.kid)
    with pytest.raises(Refused):
        await bench.say(Hello(b"nobody!!", NONCE))
    assert not bench.desk.present(b"nobody!!")


# --- nudges --------------------------------------------------------------------------------


async def test_who_sends_and_asks_for_nothing_is_nudged_once(bench: Bench) -> None:
    for _ in range(3):
        bench.desk.accepted(bench.node.kid, NOW, 1)
        bench.desk.nudge(time.monotonic() + 1.0)
    assert bench.post.letters == []
    for _ in range(3):
        bench.desk.accepted(bench.node.kid, NOW, 1)
        bench.desk.nudge(time.monotonic() + module.NUDGE_AFTER)
    assert bench.post.messages(bench.node.kid) == [Wanted((bench.node.kid,))]


async def test_who_has_asked_is_left_alone(bench: Bench) -> None:
    await bench.say(request_of(bench))
    bench.desk.accepted(bench.node.kid, NOW, 1)
    bench.desk.nudge(1e12)
    assert bench.post.letters == []


async def test_who_was_heard_is_not_remembered_without_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_HEARD", 10)
    for number in range(100):
        bench.desk.accepted(number.to_bytes(8), NOW, 1)
    assert len(bench.desk._heard) == len(bench.desk._present) == 10


# --- the rest ------------------------------------------------------------------------------


async def test_refusals_are_counted_in_the_fleet(bench: Bench) -> None:
    bench.desk.refused(bench.node.kid, Refused(Reason.SIGNATURE, "signature"))
    bench.desk.refused(None, Refused(Reason.MESSAGE, "message"))
    bench.fleet.flush()
    (state,) = (one for one in bench.fleet.nodes() if one.kid == bench.node.kid)
    assert state.refused == {"signature": 1}


def test_pairs_are_remembered_within_bounds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAIRS", 2)
    others = [bench.people.let_in(Identity.generate()) for _ in range(4)]
    for other in others:
        assert bench.keys_of(other.kid) == bench.people.keys(other)
    assert len(bench.keys_of._known) == 2
    with pytest.raises(Refused) as error:
        bench.keys_of(b"nobody!!")
    assert error.value.reason is Reason.UNKNOWN_KEY


def test_a_limiter_fills_again() -> None:
    limiter = Limiter(2, 10.0, 2)
    assert [limiter.allows(b"a", 0.0) for _ in range(3)] == [True, True, False]
    assert limiter.allows(b"b", 0.0)
    assert limiter.allows(b"a", 10.0)
    assert not limiter.allows(b"a", 10.0)
    assert limiter.allows(b"c", 10.0)  # the one that was not heard for longest is forgotten
    assert limiter.allows(b"b", 10.0)
