"""The inbox: bounded, fair to each sender, and true to what must not be lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qis_edge.core.credential import Credential, RevocationList, TrustStore, issue
from qis_edge.core.errors import Refused, StoreError, UsageError
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.packet import Packet
from qis_edge.store import Inbox, Limits, Position, inbox
from tests.store.kit import (
    ADDRESS,
    ELSEWHERE,
    GATEWAY,
    HOUR,
    ME,
    OTHER,
    SECOND,
    T0,
    files,
    outcome,
    peer_packet,
)

PEERS = [Identity.from_seed(bytes([n]) * 32) for n in range(1, 7)]
NOW = T0 + 10 * HOUR
ROOT = Identity.from_seed(b"r" * 32)


@pytest.fixture(params=["file", "memory"])
def box(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Inbox]:
    made = Inbox.open(tmp_path / "inbox.db")[0] if request.param == "file" else Inbox.in_memory()
    yield made
    made.close()


def credential(issuer: Identity, key: PublicKey, scope: set[str], expires: int) -> Credential:
    return issue(issuer, subject="x", key=key, scope=scope, expires=expires, serial=b"0001")


def small(packets: int = 20, **settings: float) -> Inbox:
    return Inbox.in_memory(Limits(packets=packets, **settings))  # type: ignore[arg-type]  # passed on


def raws(packets: list[Packet]) -> list[bytes]:
    return [packet.raw for packet in packets]


# --- packets ---------------------------------------------------------------------------


def test_what_came_is_found_newest_first(box: Inbox) -> None:
    packets = [peer_packet(n, hour) for n, hour in enumerate((3, 1, 2))]
    elsewhere = peer_packet(9, 5, address=ELSEWHERE)
    assert box.put([*packets, elsewhere], now=NOW) == [*packets, elsewhere]
    assert raws(box.query(ADDRESS)) == raws([packets[0], packets[2], packets[1]])
    assert raws(box.query(ADDRESS, limit=1)) == raws([packets[0]])
    assert raws(box.query(ADDRESS, since=T0 + 2 * HOUR)) == raws([packets[0], packets[2]])
    assert box.query(bytes(32)) == []
    assert box.query(ADDRESS)[0].outcomes == packets[0].outcomes


def test_a_packet_is_kept_once(box: Inbox) -> None:
    packet = peer_packet(1, 1)
    assert box.put([packet, packet], now=NOW) == [packet]
    assert box.put([packet], now=NOW) == []
    assert box.has(packet)
    assert not box.has(peer_packet(2, 1))
    assert box.stats().packets == 1


def test_who_signs_what_another_has_signed_takes_nobodys_place(box: Inbox) -> None:
    copy, own = (peer_packet(1, 1, peer=peer) for peer in PEERS[:2])
    assert copy.id == own.id
    assert box.put([copy], now=NOW) == [copy]
    assert not box.has(own)
    assert box.put([own, copy], now=NOW) == [own]
    assert sorted(raws(box.query(ADDRESS))) == sorted(raws([own, copy]))


def test_when_it_is_full_the_expired_go_first_then_the_oldest() -> None:
    box = small(packets=10, share=1.0)
    box.put([peer_packet(n, n, peer=PEERS[0], ttl=1) for n in range(5)], now=T0)
    box.put([peer_packet(n, n - 20, peer=PEERS[1], ttl=999) for n in range(5)], now=T0)
    new = [peer_packet(n, 50 + n, peer=PEERS[2]) for n in range(3)]
    box.put(new, now=NOW)
    left = box.query(ADDRESS)
    assert [packet.ttl for packet in left] == [24] * 3 + [1] * 2 + [999] * 5
    box.put([peer_packet(n, 60 + n, peer=PEERS[3]) for n in range(4)], now=NOW)
    left = box.query(ADDRESS)
    assert [packet.ttl for packet in left] == [24] * 7 + [999] * 3
    assert (left[-1].time - T0) // HOUR == -18


def test_its_bytes_are_bounded() -> None:
    box = small(packets=1000, bytes=20_000, share=1.0)
    box.put([peer_packet(n, n, summary="x" * 150) for n in range(200)], now=NOW)
    stats = box.stats()
    assert 0 < stats.bytes <= 20_000
    newest = box.query(ADDRESS)[0]
    assert (newest.time - T0) // HOUR == 199


def test_one_sender_cannot_fill_it() -> None:
    box = small(packets=20, share=0.25)
    quiet = [peer_packet(n, n, peer=PEERS[0]) for n in range(4)]
    box.put(quiet, now=T0)
    for start in range(0, 100, 7):
        box.put([peer_packet(n, 100 + n) for n in range(start, start + 7)], now=T0)
    left = box.query(ADDRESS)
    assert sum(packet.kid == OTHER.kid for packet in left) == 5
    assert {packet.raw for packet in quiet} <= {packet.raw for packet in left}
    by_bytes = small(packets=1000, bytes=20_000, share=0.25)
    by_bytes.put([peer_packet(n, n, summary="x" * 150) for n in range(200)], now=T0)
    assert 0 < by_bytes.stats().bytes <= 5_000


def test_what_has_expired_and_what_was_revoked_goes(box: Inbox) -> None:
    box.put([peer_packet(n, n, ttl=1) for n in range(4)], now=T0)
    box.put([peer_packet(n, n, peer=PEERS[0], ttl=999) for n in range(4)], now=T0)
    assert box.expire(T0 + 3 * HOUR) == 3
    assert box.forget_sender(PEERS[0].kid) == 4
    assert box.forget_sender(b"stranger") == 0
    assert [packet.kid for packet in box.query(ADDRESS)] == [OTHER.kid]
    stats = box.stats()
    assert (stats.packets, stats.senders, stats.addresses) == (1, 1, 1)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 60), st.sampled_from([1, 24])), max_size=60
    ),
    st.integers(1, 12),
)
def test_it_stays_within_its_limits_and_counts_right(
    arrivals: list[tuple[int, int, int]], most: int
) -> None:
    box = small(packets=most, bytes=4096, share=0.5)
    for number, (peer, hour, ttl) in enumerate(arrivals):
        packet = peer_packet(number, hour, peer=PEERS[peer], ttl=ttl)
        box.put([packet], now=NOW)
        assert box.has(packet) or box.stats().packets
    stats = box.stats()
    assert stats.packets <= most
    assert stats.bytes <= 4096
    assert (
        stats.packets
        == len(box.query(ADDRESS, limit=1000))
        == box._db.number("SELECT count(*) FROM packets")
    )
    assert stats.bytes == box._db.number(f"SELECT sum(length(raw) + {inbox._ROW}) FROM packets")


def test_limits_are_checked() -> None:
    with pytest.raises(UsageError):
        Limits(packets=0)
    with pytest.raises(UsageError):
        Limits(share=0.0)


# --- the downlink ----------------------------------------------------------------------


def test_a_cursor_moves_with_its_packets_or_not_at_all(box: Inbox) -> None:
    assert box.cursor(GATEWAY) is None
    box.put([peer_packet(1, 1)], now=NOW, position=Position(GATEWAY, b"one"))

    def broken() -> Iterator[Packet]:
        yield peer_packet(2, 2)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        box.put(broken(), now=NOW, position=Position(GATEWAY, b"two"))
    assert box.cursor(GATEWAY) == b"one"
    assert box.stats().packets == 1
    box.put([], now=NOW, position=Position(GATEWAY, b"two", scope=b"wide"))
    assert (box.cursor(GATEWAY), box.cursor(GATEWAY, b"wide")) == (b"one", b"two")
    assert box.cursor(SECOND) is None
    box.forget_cursors(GATEWAY)
    assert box.cursor(GATEWAY, b"wide") is None


def test_gateways_are_remembered(box: Inbox) -> None:
    assert box.gateway(GATEWAY) is None
    box.met_gateway(GATEWAY, b"ep01", NOW)
    box.met_gateway(SECOND, b"ep09", NOW + 1)
    box.met_gateway(GATEWAY, b"ep01", NOW + 60)
    found = box.gateway(GATEWAY)
    assert found is not None
    assert (found.epoch, found.seen) == (b"ep01", NOW)  # not written for a minute
    box.met_gateway(GATEWAY, b"ep02", NOW + 61)
    assert [(one.kid, one.epoch) for one in box.gateways()] == [
        (GATEWAY, b"ep02"),
        (SECOND, b"ep09"),
    ]


# --- who is who ------------------------------------------------------------------------


def test_trust_is_restored_from_it(box: Inbox) -> None:
    issuer, node = PEERS[0], PEERS[1]
    first = credential(ROOT, issuer.public, {"issuer", "gateway"}, NOW + 100)
    leaf = credential(issuer, node.public, {"node"}, NOW + 100)
    renewed = credential(ROOT, issuer.public, {"issuer", "gateway"}, NOW + 900)
    for one in (first, leaf, renewed, leaf):
        box.keep_credential(one.raw)
    revocation = RevocationList.issue(ROOT, number=3, issued=NOW, kids=[PEERS[2].kid])
    assert box.keep_revocation(revocation.raw)
    older = RevocationList.issue(ROOT, number=2, issued=NOW, kids=[])
    assert not box.keep_revocation(older.raw)
    assert not box.keep_revocation(revocation.raw)
    assert box.revocation_number == 3
    trust = TrustStore(ROOT.public)
    assert trust.restore(box.trust(), NOW) == []
    assert trust.resolve(node.kid, NOW, "node") == node.public
    assert trust.revocation_number == 3
    assert box.trust() == [revocation.raw, renewed.raw, leaf.raw]


def test_what_is_no_credential_is_refused(box: Inbox) -> None:
    with pytest.raises(Refused):
        box.keep_credential(b"nonsense")
    with pytest.raises(Refused):
        box.keep_revocation(b"nonsense")
    assert box.trust() == []


def test_credentials_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "KEEP_CREDENTIALS", 3)
    box = Inbox.in_memory()
    issuer = credential(ROOT, OTHER.public, {"issuer"}, NOW + 9)
    box.keep_credential(issuer.raw)
    expires = [NOW + 5, NOW - 5, NOW + 5, NOW + 5]
    leaves = [
        credential(OTHER, peer.public, {"node"}, when)
        for peer, when in zip(PEERS, expires, strict=False)
    ]
    for leaf in leaves:
        box.keep_credential(leaf.raw, NOW)
    assert box.trust() == [issuer.raw, leaves[2].raw, leaves[3].raw]


# --- peers and ourselves ---------------------------------------------------------------


def test_what_is_thought_of_peers(box: Inbox) -> None:
    box.keep_peer_states({OTHER.kid: b"good", ME.kid: b"me"})
    box.keep_peer_states({OTHER.kid: b"bad", ME.kid: None})
    assert box.peer_states() == {OTHER.kid: b"bad"}


def test_our_own_outcomes_of_late(box: Inbox) -> None:
    box.keep_own(ADDRESS, [outcome(n) for n in range(5)])
    box.keep_own(ELSEWHERE, [outcome(2, x=1.5)])
    box.keep_own(ADDRESS, [outcome(4, x=9.0)])
    box.keep_own(ADDRESS, [])
    assert [one for _, one in box.own(ADDRESS)] == [*map(outcome, range(4)), outcome(4, x=9.0)]
    assert box.own(since=T0 + 4 * HOUR) == [(ADDRESS, outcome(4, x=9.0))]
    assert [where for where, _ in box.own(since=T0 + 2 * HOUR)].count(ELSEWHERE) == 1
    assert [one for _, one in box.own(ADDRESS, limit=2)] == [outcome(3), outcome(4, x=9.0)]
    box.keep_own(ADDRESS, [outcome(24 * 14 + 3)])
    assert min(one.time for _, one in box.own()) == T0 + 3 * HOUR


def test_our_own_outcomes_are_bounded(box: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "KEEP_OWN", 10)
    box.keep_own(ADDRESS, [outcome(n) for n in range(25)])
    assert [one for _, one in box.own()] == [outcome(n) for n in range(15, 25)]


# --- the file --------------------------------------------------------------------------


def furnish(path: Path) -> None:
    box, news = Inbox.open(path)
    assert news == []
    with box:
        box.put([peer_packet(n, n) for n in range(200)], now=NOW, position=Position(GATEWAY, b"c"))
        box.met_gateway(GATEWAY, b"ep01", NOW)
        vouched = credential(ROOT, OTHER.public, {"node"}, NOW)
        box.keep_credential(vouched.raw)
        revocation = RevocationList.issue(ROOT, number=3, issued=NOW, kids=[])
        box.keep_revocation(revocation.raw)
        box.keep_peer_states({OTHER.kid: b"good"})


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "inbox.db"
    furnish(path)
    with Inbox.inspect(path) as reader:
        before = reader.stats()
    box, news = Inbox.open(path)
    with box:
        assert news == []
        assert box.stats() == before
        assert box.cursor(GATEWAY) == b"c"
        assert box.peer_states() == {OTHER.kid: b"good"}
        with pytest.raises(StoreError, match="in use"):
            Inbox.open(path)
        with Inbox.inspect(path) as reader:
            box.put([peer_packet(999, 1)], now=NOW)
            assert reader.stats().packets == before.packets + 1


def test_a_smaller_limit_holds_from_the_next_packet_on(tmp_path: Path) -> None:
    path = tmp_path / "inbox.db"
    furnish(path)
    box, _ = Inbox.open(path, Limits(packets=10, share=1.0))
    with box:
        box.put([peer_packet(999, 999)], now=T0)
        assert box.stats().packets == 10


def test_a_damaged_inbox_is_set_aside_and_who_is_who_carried_over(tmp_path: Path) -> None:
    path = tmp_path / "inbox.db"
    furnish(path)
    data = bytearray(path.read_bytes())
    where = data.index(peer_packet(150, 150).raw[:40]) // 2048 * 2048
    data[where : where + 2048] = bytes(2048)
    path.write_bytes(data)
    box, news = Inbox.open(path)
    with box:
        assert [notice.code for notice in news] == ["salvaged"]
        stats = box.stats()
        assert (stats.credentials, stats.revocation, stats.gateways) == (1, 3, 1)
        assert stats.packets == 0
        assert box.cursor(GATEWAY) is None  # so that they are fetched anew
        box.put([peer_packet(1, 1)], now=NOW)
    assert "inbox.db.aside-1" in files(tmp_path)


def test_an_inbox_that_is_rubble(tmp_path: Path) -> None:
    path = tmp_path / "inbox.db"
    path.write_bytes(b"rubble" * 1000)
    box, news = Inbox.open(path)
    with box:
        assert [notice.code for notice in news] == ["salvaged"]
        assert box.stats().packets == 0


def test_a_packet_that_did_not_survive_on_the_disk_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "inbox.db"
    furnish(path)
    broken = peer_packet(150, 150)
    data = bytearray(path.read_bytes())
    data[data.index(broken.raw) + 20] ^= 0x80
    path.write_bytes(data)
    box, _ = Inbox.open(path)
    with box:
        found = box.query(ADDRESS, limit=1000)
        assert len(found) == 199
        assert broken.raw not in raws(found)
