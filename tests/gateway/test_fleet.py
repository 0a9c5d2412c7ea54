"""The fleet: who is known, who wants in, who is out, from two processes at once."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import fleet as fleet_module
from gateway.fleet import MAX_WAITING, VALIDITY, WAITING_LIFETIME, Fleet
from qis_edge.core.credential import (
    GATEWAY,
    ISSUER,
    MAX_REVOKED,
    NODE,
    Credential,
    Enrolment,
    RevocationList,
    issue,
)
from qis_edge.core.errors import Reason, Refused, StoreCorrupt, StoreError, UsageError
from qis_edge.core.identity import Identity

NOW = 1_767_225_600.0
YEAR = 365 * 86_400
ROOT = Identity.from_seed(b"r" * 32)
OTHER_ROOT = Identity.from_seed(b"R" * 32)
BASE = Identity.from_seed(b"g" * 32)
NODES = tuple(Identity.from_seed(bytes([number]) * 32) for number in range(8))


def credential(
    key: Identity,
    name: str,
    *,
    by: Identity = BASE,
    scope: str = NODE,
    expires: float = NOW + YEAR,
) -> bytes:
    return issue(
        by, subject=name, key=key.public, scope=scope, expires=int(expires), serial=b"1234"
    ).raw


BASE_CREDENTIAL = credential(BASE, "base", by=ROOT, scope=f"{GATEWAY} {ISSUER}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fleet.db"


@pytest.fixture
def fleet(path: Path) -> Iterator[Fleet]:
    """The daemon's, with the gateway's own credential in it."""
    made = Fleet(path, ROOT.public, NOW)
    made.add(BASE_CREDENTIAL, NOW)
    yield made
    made.close()


@pytest.fixture
def beside(fleet: Fleet, path: Path) -> Iterator[Fleet]:
    """The command line's, open at the same time."""
    made = Fleet(path, ROOT.public, NOW)
    yield made
    made.close()


def join(fleet: Fleet, number: int, name: str, *, now: float = NOW) -> bool:
    return fleet.enrol(Enrolment.make(NODES[number], name), now)


# --- credentials -----------------------------------------------------------------------


def test_a_node_is_known_once_its_credential_leads_to_the_root(fleet: Fleet) -> None:
    with pytest.raises(Refused) as caught:
        fleet.resolve(NODES[0].kid, NOW)
    assert caught.value.reason is Reason.UNKNOWN_KEY
    fleet.add(credential(NODES[0], "north"), NOW)
    assert fleet.resolve(NODES[0].kid, NOW) == NODES[0].public
    assert fleet.chain(NODES[0].kid) == (BASE_CREDENTIAL, credential(NODES[0], "north"))
    assert {one.subject for one in fleet.valid(NODE, NOW)} == {"north"}


def test_strangers_credentials_are_not_kept(fleet: Fleet, path: Path) -> None:
    for raw in (
        credential(NODES[0], "north", by=OTHER_ROOT),
        credential(NODES[0], "north", by=NODES[1]),
        credential(NODES[0], "north", expires=NOW - 1),
        credential(NODES[0], "north")[:-1],
    ):
        with pytest.raises(Refused):
            fleet.add(raw, NOW)
    assert fleet.nodes() == []
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM credentials").fetchone() == (1,)
    database.close()


def test_what_is_known_outlives_the_daemon(fleet: Fleet, path: Path) -> None:
    for number in range(4):
        fleet.add(credential(NODES[number], f"node-{number}"), NOW)
    fleet.revoke(["node-3"], ROOT, NOW)
    fleet.permit(NOW + 60)
    fleet.close()
    again = Fleet(path, ROOT.public, NOW + 1)
    assert again.resolve(NODES[2].kid, NOW + 1) == NODES[2].public
    assert again.revocation_number == 1
    with pytest.raises(Refused) as caught:
        again.resolve(NODES[3].kid, NOW + 1)
    assert caught.value.reason is Reason.REVOKED
    assert again.permitted(NOW + 59)
    again.close()


def test_expired_credentials_are_shown_but_not_believed(fleet: Fleet, path: Path) -> None:
    fleet.add(credential(NODES[0], "north", expires=NOW + 10), NOW)
    fleet.close()
    again = Fleet(path, ROOT.public, NOW + 11)
    with pytest.raises(Refused):
        again.resolve(NODES[0].kid, NOW + 11)
    (node,) = again.nodes()
    assert (node.name, node.expires) == ("north", NOW + 10)
    again.close()


def test_credentials_are_bounded_and_the_heard_ones_stay(
    fleet: Fleet, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "MAX_CREDENTIALS", 4)
    for number in range(3):
        fleet.add(credential(NODES[number], f"node-{number}"), NOW)
    for identity in (BASE, NODES[0]):
        fleet.accepted(identity.kid, NOW)
    fleet.flush()
    for number in range(3, 6):
        fleet.add(credential(NODES[number], f"node-{number}"), NOW)
    assert [node.name for node in fleet.nodes()] == ["node-0", "node-4", "node-5"]


# --- joining ---------------------------------------------------------------------------


def test_joining_is_closed_until_it_is_permitted(fleet: Fleet) -> None:
    with pytest.raises(Refused) as caught:
        join(fleet, 0, "north")
    assert caught.value.reason is Reason.SCOPE
    fleet.permit(NOW + 120)
    assert fleet.permitted(NOW + 119)
    assert join(fleet, 0, "north", now=NOW + 119)
    assert not fleet.permitted(NOW + 120)
    with pytest.raises(Refused):
        join(fleet, 1, "south", now=NOW + 120)
    fleet.permit(0)
    assert not fleet.permitted(NOW)


def test_who_asked_is_shown_once(fleet: Fleet) -> None:
    fleet.permit(NOW + 120)
    assert join(fleet, 0, "north")
    assert not join(fleet, 0, "north", now=NOW + 1)
    assert join(fleet, 0, "northern", now=NOW + 2)
    (one,) = fleet.waiting()
    assert (one.kid, one.name, one.key, one.taken) == (
        NODES[0].kid,
        "northern",
        NODES[0].public,
        False,
    )


def test_who_waits_is_bounded_and_forgotten_in_the_end(fleet: Fleet) -> None:
    fleet.permit(NOW + 2 * WAITING_LIFETIME)
    many = [Identity.from_seed(number.to_bytes(32)) for number in range(1, MAX_WAITING + 2)]
    for identity in many[:-1]:
        fleet.enrol(Enrolment.make(identity, "crowd"), NOW)
    with pytest.raises(Refused) as caught:
        fleet.enrol(Enrolment.make(many[-1], "late"), NOW)
    assert caught.value.reason is Reason.FLOODED
    assert len(fleet.waiting()) == MAX_WAITING
    assert fleet.enrol(Enrolment.make(many[-1], "late"), NOW + WAITING_LIFETIME + 1)
    assert [one.name for one in fleet.waiting()] == ["late"]


def test_approval_makes_a_node(fleet: Fleet) -> None:
    fleet.permit(NOW + 120)
    join(fleet, 0, "north")
    made = fleet.approve("north", BASE, NOW)
    assert (made.subject, made.key, made.scope) == ("north", NODES[0].public, frozenset([NODE]))
    assert made.expires == NOW + YEAR  # no longer than the gateway's own
    assert fleet.resolve(NODES[0].kid, NOW) == NODES[0].public
    assert fleet.waiting() == []
    (node,) = fleet.nodes()
    assert (node.kid, node.name, node.revoked, node.last_seen) == (
        NODES[0].kid,
        "north",
        False,
        None,
    )


def test_the_root_may_approve_itself(fleet: Fleet) -> None:
    fleet.permit(NOW + 120)
    join(fleet, 0, "north")
    assert fleet.approve(NODES[0].kid.hex()[:6], ROOT, NOW).expires == NOW + VALIDITY
    assert fleet.chain(NODES[0].kid) == (fleet.nodes()[0].credential,)


def test_only_an_issuer_may_approve(fleet: Fleet) -> None:
    fleet.permit(NOW + 120)
    join(fleet, 0, "north")
    for identity, now in ((NODES[1], NOW), (BASE, NOW + YEAR + 1)):
        with pytest.raises(UsageError, match="may not issue") as caught:
            fleet.approve("north", identity, now)
        assert caught.value.hint
    assert len(fleet.waiting()) == 1


def test_one_name_is_one_node(fleet: Fleet) -> None:
    fleet.permit(NOW + 120)
    fleet.add(credential(NODES[0], "north"), NOW)
    join(fleet, 1, "north")
    join(fleet, 2, "north", now=NOW + 1)
    assert [one.taken for one in fleet.waiting()] == [True, True]
    with pytest.raises(UsageError, match=NODES[1].kid.hex()):  # which one?
        fleet.approve("north", BASE, NOW)
    with pytest.raises(UsageError, match="is the name of the node"):
        fleet.approve(NODES[1].kid, BASE, NOW)
    with pytest.raises(UsageError, match="A-Za-z0-9"):
        fleet.approve(NODES[1].kid, BASE, NOW, name="no\x1b[31mrth")
    assert fleet.approve(NODES[1].kid, BASE, NOW, name="north-2").subject == "north-2"
    # Its own name is nobody else's: it may be approved again, for longer.
    join(fleet, 0, "north")
    fleet.approve(NODES[0].kid, ROOT, NOW)
    assert [node.name for node in fleet.nodes()] == ["north", "north-2"]


def test_nobody_is_approved_by_mistake(fleet: Fleet) -> None:
    fleet.permit(NOW + 120)
    join(fleet, 0, "north")
    for who in ("south", "", "zz", NODES[3].kid.hex(), NODES[3].kid):
        with pytest.raises(UsageError, match="asks to join"):
            fleet.approve(who, BASE, NOW)
    assert len(fleet.waiting()) == 1


def test_an_enrolment_that_was_brought_needs_no_permission(fleet: Fleet) -> None:
    enrolment = Enrolment.make(NODES[0], "north")
    with pytest.raises(UsageError, match="may not issue"):
        fleet.approve_enrolment(enrolment, NODES[1], NOW)
    made = fleet.approve_enrolment(enrolment, BASE, NOW)
    assert (made.subject, made.key, made.expires) == ("north", NODES[0].public, NOW + YEAR)
    with pytest.raises(UsageError, match="is the name of the node"):
        fleet.approve_enrolment(Enrolment.make(NODES[1], "north"), BASE, NOW)
    other = fleet.approve_enrolment(Enrolment.make(NODES[1], "north"), BASE, NOW, name="south")
    assert other.subject == "south"


def test_who_is_out_is_not_approved_again(fleet: Fleet) -> None:
    fleet.permit(NOW + 120)
    join(fleet, 0, "north")
    fleet.revoke([NODES[0].kid], ROOT, NOW)
    with pytest.raises(UsageError, match="was revoked"):
        fleet.approve("north", BASE, NOW)
    with pytest.raises(UsageError, match="was revoked"):
        fleet.approve_enrolment(Enrolment.make(NODES[0], "north"), BASE, NOW)


# --- revocation ------------------------------------------------------------------------


def test_revocation_lists_count_up_and_keep_what_they_held(fleet: Fleet) -> None:
    for number in range(3):
        fleet.add(credential(NODES[number], f"node-{number}"), NOW)
    first = fleet.revoke(["node-0"], ROOT, NOW)
    assert (first.number, first.kids) == (1, (NODES[0].kid,))
    second = fleet.revoke([NODES[1].kid.hex(), NODES[5].kid], ROOT, NOW)
    assert second.number == 2
    assert set(second.kids) == {NODES[0].kid, NODES[1].kid, NODES[5].kid}
    second.verify(ROOT.public)
    assert fleet.revocation == second
    assert [node.revoked for node in fleet.nodes()] == [True, True, False]
    fleet.permit(NOW + 60)
    with pytest.raises(Refused) as caught:
        join(fleet, 0, "again")
    assert caught.value.reason is Reason.REVOKED


def test_what_ran_out_by_itself_leaves_the_list(fleet: Fleet) -> None:
    fleet.add(credential(NODES[0], "short", expires=NOW + 10), NOW)
    fleet.add(credential(NODES[1], "long"), NOW)
    fleet.revoke(["short"], ROOT, NOW)
    made = fleet.revoke(["long"], ROOT, NOW + 11)
    assert (made.number, made.kids) == (2, (NODES[1].kid,))


def test_a_revoked_issuer_takes_its_nodes_along(fleet: Fleet) -> None:
    fleet.add(credential(NODES[0], "north"), NOW)
    fleet.revoke(["base"], ROOT, NOW)
    with pytest.raises(Refused) as caught:
        fleet.resolve(NODES[0].kid, NOW)
    assert caught.value.reason is Reason.REVOKED
    assert [node.revoked for node in fleet.nodes()] == [True]


def test_without_the_root_key_it_says_what_to_do(fleet: Fleet) -> None:
    fleet.add(credential(NODES[0], "north"), NOW)
    with pytest.raises(UsageError, match="root key") as caught:
        fleet.revoke(["north"], None, NOW)
    assert "root.key" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="another fleet"):
        fleet.revoke(["north"], OTHER_ROOT, NOW)
    with pytest.raises(UsageError, match="nobody called"):
        fleet.revoke(["nroth"], ROOT, NOW)
    assert fleet.revocation_number == 0


def test_a_full_list_is_said(fleet: Fleet) -> None:
    kids = [number.to_bytes(8) for number in range(MAX_REVOKED + 1)]
    with pytest.raises(UsageError, match="holds"):
        fleet.revoke(kids, ROOT, NOW)
    assert fleet.revocation_number == 0
    assert fleet.revoke(kids[1:], ROOT, NOW).number == 1


def test_a_list_made_elsewhere_is_taken_in(fleet: Fleet, path: Path) -> None:
    made = RevocationList.issue(ROOT, number=7, issued=int(NOW), kids=[NODES[0].kid])
    assert fleet.apply(made.raw)
    assert not fleet.apply(made.raw)
    older = RevocationList.issue(ROOT, number=6, issued=int(NOW), kids=[])
    with pytest.raises(Refused) as caught:
        fleet.apply(older.raw)
    assert caught.value.reason is Reason.REPLAYED
    foreign = RevocationList.issue(OTHER_ROOT, number=8, issued=int(NOW), kids=[])
    with pytest.raises(Refused):
        fleet.apply(foreign.raw)
    again = Fleet(path, ROOT.public, NOW)
    assert again.revocation_number == 7
    again.close()


# --- two processes ---------------------------------------------------------------------


def test_the_daemon_notices_what_the_command_line_did(fleet: Fleet, beside: Fleet) -> None:
    assert fleet.refresh(NOW) == fleet_module.Changes()
    beside.permit(NOW + 120)
    assert not fleet.permitted(NOW)
    fleet.refresh(NOW)
    assert fleet.permitted(NOW)
    join(fleet, 0, "north")
    made = beside.approve("north", BASE, NOW)
    assert fleet.refresh(NOW).credentials == (made,)
    assert fleet.resolve(NODES[0].kid, NOW) == NODES[0].public
    beside.revoke(["north"], ROOT, NOW)
    changes = fleet.refresh(NOW)
    assert changes.revocation is not None
    assert changes.revocation.kids == (NODES[0].kid,)
    with pytest.raises(Refused):
        fleet.resolve(NODES[0].kid, NOW)
    assert fleet.refresh(NOW) == fleet_module.Changes()


def test_what_it_did_itself_is_no_news(fleet: Fleet, beside: Fleet) -> None:
    fleet.add(credential(NODES[0], "north"), NOW)
    beside.permit(NOW + 1)
    assert fleet.refresh(NOW).credentials == ()
    assert beside.refresh(NOW).credentials != ()


def test_both_revoke_and_no_number_is_used_twice(fleet: Fleet, beside: Fleet) -> None:
    assert fleet.revoke([NODES[0].kid], ROOT, NOW).number == 1
    made = beside.revoke([NODES[1].kid], ROOT, NOW)
    assert made.number == 2
    assert set(made.kids) == {NODES[0].kid, NODES[1].kid}


def test_enrolment_follows_the_permission_given_beside(fleet: Fleet, beside: Fleet) -> None:
    beside.permit(NOW + 120)
    assert join(fleet, 0, "north")
    beside.permit(0)
    with pytest.raises(Refused):
        join(fleet, 1, "south")
    assert [one.name for one in beside.waiting()] == ["north"]


def test_it_can_be_read_beside(fleet: Fleet, path: Path) -> None:
    fleet.add(credential(NODES[0], "north"), NOW)
    reader = Fleet(path, ROOT.public, NOW, read_only=True)
    assert [node.name for node in reader.nodes()] == ["north"]
    with pytest.raises(StoreError):
        reader.permit(NOW)
    reader.close()


# --- counting --------------------------------------------------------------------------


def test_counts_are_kept_through_restarts(fleet: Fleet, path: Path) -> None:
    fleet.add(credential(NODES[0], "north"), NOW)
    fleet.accepted(NODES[0].kid, NOW, packets=3)
    fleet.accepted(NODES[0].kid, NOW + 5, packets=2)
    fleet.refused(NODES[0].kid, Reason.SIGNATURE)
    fleet.refused(NODES[0].kid, Reason.SIGNATURE)
    fleet.refused(NODES[0].kid, Reason.FUTURE)
    assert fleet.nodes()[0].accepted == 0
    fleet.close()
    again = Fleet(path, ROOT.public, NOW)
    again.accepted(NODES[0].kid, NOW + 9)
    again.flush()
    (node,) = again.nodes()
    assert (node.first_seen, node.last_seen, node.accepted) == (NOW, NOW + 9, 6)
    assert node.refused == {"future": 1, "signature": 2}
    again.close()


def test_strangers_are_counted_together(fleet: Fleet, path: Path) -> None:
    for identity in NODES:
        fleet.refused(identity.kid, Reason.UNKNOWN_KEY)
    fleet.refused(None, Reason.MESSAGE)
    fleet.flush()
    assert fleet.strangers() == {"message": 1, "unknown_key": len(NODES)}
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM refusals").fetchone() == (2,)
    database.close()


def test_what_is_in_memory_never_waits_for_the_disk(fleet: Fleet, path: Path) -> None:
    fleet.add(credential(NODES[0], "north"), NOW)
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    writer = threading.Thread(target=fleet.permit, args=(NOW + 60,))
    writer.start()
    try:
        assert fleet.resolve(NODES[0].kid, NOW) == NODES[0].public
        assert len(fleet.chain(NODES[0].kid)) == 2
        fleet.accepted(NODES[0].kid, NOW)
        fleet.refused(NODES[0].kid, Reason.FUTURE)
        assert not fleet.permitted(NOW)
        assert writer.is_alive()
    finally:
        lock.close()
        writer.join()
    assert fleet.permitted(NOW)


# --- bad files -------------------------------------------------------------------------


def test_what_others_wrote_there_is_passed_over(fleet: Fleet, path: Path) -> None:
    fleet.add(credential(NODES[0], "north"), NOW)
    database = sqlite3.connect(path, isolation_level=None)
    foreign = credential(NODES[1], "intruder", by=OTHER_ROOT)
    for kid, raw in ((NODES[1].kid, foreign), (NODES[2].kid, b"\x1b[31mrubbish")):
        database.execute("INSERT INTO credentials VALUES (?, ?, 99)", (kid, raw))
    database.execute("INSERT INTO waiting VALUES (?, 'x', 0, ?)", (NODES[3].kid, b"rubbish"))
    database.execute("UPDATE facts SET value = ? WHERE name = 'revocation'", (b"rubbish",))
    database.execute("UPDATE facts SET value = 99 WHERE name = 'change'")
    database.close()
    assert fleet.refresh(NOW) == fleet_module.Changes()
    again = Fleet(path, ROOT.public, NOW)
    assert again.resolve(NODES[0].kid, NOW) == NODES[0].public
    with pytest.raises(Refused):
        again.resolve(NODES[1].kid, NOW)
    assert again.waiting() == []
    assert again.revocation is None
    again.close()


def test_damage_is_said(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(StoreCorrupt) as caught:
        Fleet(path, ROOT.public)
    assert "present their credentials again" in (caught.value.hint or "")


def test_who_asks_again_keeps_what_it_has(fleet: Fleet) -> None:
    fleet.permit(NOW + 120)
    join(fleet, 0, "north")
    first = fleet.approve("north", BASE, NOW)
    assert len(first.serial) == 8
    join(fleet, 0, "north")
    assert fleet.approve("north", BASE, NOW + 9) == first  # both end with the gateway's own
    assert fleet.waiting() == []
    join(fleet, 0, "south")
    with pytest.raises(UsageError, match="already known as north"):
        fleet.approve("south", BASE, NOW)
    longer = fleet.approve("south", ROOT, NOW)
    assert longer.subject == "south"
    assert longer.serial != first.serial
    assert [node.name for node in fleet.nodes()] == ["south"]
    assert Credential.parse(fleet.nodes()[0].credential) == longer


def test_several_may_begin_it_at_once(path: Path) -> None:
    failures: list[BaseException] = []
    together = threading.Barrier(6)

    def begin() -> None:
        together.wait()
        try:
            Fleet(path, ROOT.public, NOW).close()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test shows it
            failures.append(error)

    for _ in range(5):
        threads = [threading.Thread(target=begin) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
