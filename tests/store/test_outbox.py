"""The outbox: outcomes wait, become packets, and stay until a gateway has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qis_edge.core.errors import Reason, StoreError, UsageError
from qis_edge.core.outcome import Kind, Outcome
from qis_edge.core.packet import Extensions, unpack
from qis_edge.core.receipt import Receipt
from qis_edge.store import Answer, Candidate, Notice, Outbox, Pending, Priority
from qis_edge.store.forms import body_of, outcome_of
from qis_edge.store.machine import machine_name
from tests.store.kit import (
    ADDRESS,
    ELSEWHERE,
    EPOCH,
    GATEWAY,
    HOUR,
    ME,
    OTHER,
    SECOND,
    T0,
    conserved,
    fill,
    held,
    hours,
    open_keys,
    outcome,
    pack_each,
)


@pytest.fixture(params=["file", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Outbox]]:
    """Both kinds of outbox keep to the same contract."""
    made: list[Outbox] = []

    def make(**settings: object) -> Outbox:
        if request.param == "file":
            box = Outbox.open(tmp_path / f"{len(made)}.db", ME.public, **settings)  # type: ignore[arg-type]  # passed on
        else:
            box = Outbox.in_memory(ME.public, **settings)  # type: ignore[arg-type]  # passed on
        made.append(box)
        return box

    yield make
    for box in made:
        assert conserved(box.stats())
        box.close()


@pytest.fixture
def box(make: Callable[..., Outbox]) -> Outbox:
    return make()


# --- outcomes to packets ---------------------------------------------------------------


def test_a_packet_carries_what_was_appended(box: Outbox) -> None:
    first = Outcome(T0, Kind.PARTIAL, 0.85, 57, {"temperature": 21.5, "sky": "clear"}, "windy")
    second = Outcome(T0 + HOUR, Kind.RESOLVED, 1.0, 60, {"temperature": None, "sky": "clear"})
    ids = box.append_many([Pending(first, ADDRESS), Pending(second, ADDRESS)])
    assert ids == sorted(ids)
    assert len(set(ids)) == 2
    (packet,) = box.pack(ME)
    assert unpack(packet.raw, ME.public).outcomes == (first, second)
    assert (packet.fingerprint, packet.sequence, packet.ttl) == (ADDRESS, 0, 24 * 7)
    assert packet.store == box.stats().store
    assert box.pack(ME) == []


def test_labels_may_be_codes(box: Outbox) -> None:
    box.append(Outcome(T0, results={1: 2.5, "name": 3.0}), ADDRESS)
    (packet,) = box.pack(ME)
    assert packet.outcomes[0].results == {1: 2.5, "name": 3.0}


def test_sequences_count_up_and_the_bytes_stay(box: Outbox) -> None:
    packets = pack_each(box, 5)
    assert [packet.sequence for packet in packets] == [0, 1, 2, 3, 4]
    assert [one.raw for one in box.unreceipted()] == [packet.raw for packet in packets]
    for packet in packets:
        kept = box.packet(packet.store, packet.sequence)
        assert kept is not None
        assert kept.raw == packet.raw


def test_as_many_outcomes_share_a_packet_as_the_limit_carries(box: Outbox) -> None:
    fill(box, 60)
    small = box.pack(ME, limit=200, max_packets=1)
    rest = box.pack(ME, max_packets=100)
    assert len(small[0].raw) <= 200
    assert small[0].count > 10
    assert hours(o for p in small + rest for o in p.outcomes) == list(range(60))


def test_max_packets_bounds_a_commit(box: Outbox) -> None:
    for hour in range(5):
        box.append(outcome(hour), bytes([hour]) * 32)
    assert len(box.pack(ME, max_packets=2)) == 2
    assert box.pack(ME, max_packets=0) == []
    assert len(box.pack(ME)) == 3


def test_urgent_first_then_oldest(box: Outbox) -> None:
    box.append(outcome(0), ADDRESS)
    box.append(outcome(1), ELSEWHERE, priority=Priority.LOW)
    box.append(outcome(2), ELSEWHERE)
    box.append(outcome(3), ADDRESS, priority=Priority.URGENT)
    box.append(outcome(4), ADDRESS)
    packed = [hours(packet.outcomes) for packet in box.pack(ME)]
    assert packed == [[3], [0, 4], [2], [1]]
    assert [one.sequence for one in box.unreceipted()] == [0, 1, 2, 3]
    box.append(outcome(5), ADDRESS, priority=Priority.URGENT)
    box.pack(ME)
    assert [one.sequence for one in box.unreceipted()] == [0, 4, 1, 2, 3]
    assert [sequence for _, sequence in open_keys(box)] == [0, 4, 1, 2, 3]


def test_what_differs_in_ttl_or_extensions_does_not_share_a_packet(box: Outbox) -> None:
    box.append(outcome(0), ADDRESS)
    box.append(outcome(1), ADDRESS, ttl=1)
    box.append(outcome(2), ADDRESS, extensions=Extensions(tags=("estimate",)))
    box.append(outcome(3), ADDRESS, extensions=Extensions(vector=(0.5, 1.25)))
    box.append(outcome(4), ADDRESS)
    packets = box.pack(ME)
    assert [hours(packet.outcomes) for packet in packets] == [[0, 4], [1], [2], [3]]
    assert [packet.ttl for packet in packets] == [168, 1, 168, 168]
    assert [packet.extensions.tags for packet in packets] == [(), (), ("estimate",), ()]
    assert packets[3].extensions.vector == (0.5, 1.25)


def test_times_out_of_order_are_packed_in_order(box: Outbox) -> None:
    for hour in (5, 1, 9, 3):
        box.append(outcome(hour), ADDRESS)
    (packet,) = box.pack(ME)
    assert [(o.time - T0) // HOUR for o in packet.outcomes] == [1, 3, 5, 9]


def test_out_of_order_over_several_packets_loses_nothing(box: Outbox) -> None:
    order = [hour * 37 % 200 for hour in range(200)]
    for hour in order:
        box.append(outcome(hour, x=hour * 17 % 100 / 10), ADDRESS)
    packets = box.pack(ME, limit=180, max_packets=1000)
    assert len(packets) > 3
    assert hours(o for packet in packets for o in packet.outcomes) == list(range(200))


def test_a_policy_lets_outcomes_wait(box: Outbox) -> None:
    seen: list[Candidate] = []

    def ready(candidate: Candidate) -> bool:
        seen.append(candidate)
        return candidate.full or candidate.priority is Priority.URGENT

    fill(box, 3)
    box.append(outcome(9), ELSEWHERE, priority=Priority.URGENT)
    packets = box.pack(ME, ready=ready)
    assert [hours(packet.outcomes) for packet in packets] == [[9]]
    assert Candidate(ADDRESS, Priority.NORMAL, 168, 3, False, T0) in seen
    for hour in range(3, 40):
        box.append(outcome(hour, temperature=hour * 37 % 100 / 10), ADDRESS)
    packets = box.pack(ME, limit=200, ready=ready)
    assert packets
    assert all(len(packet.raw) > 150 for packet in packets)
    assert box.stats().waiting > 0


def test_a_policy_sees_groups_behind_one_that_waits(box: Outbox) -> None:
    for hour in range(10):
        box.append(outcome(hour), bytes([hour]) * 32)
    packets = box.pack(ME, ready=lambda candidate: candidate.oldest >= T0 + 8 * HOUR)
    assert [hours(packet.outcomes) for packet in packets] == [[8], [9]]


def test_an_outcome_over_the_links_limit_goes_alone(box: Outbox) -> None:
    box.append(Outcome(T0, summary="x" * 150), ADDRESS)
    fill(box, 2, first=1)
    packets = box.pack(ME, limit=160)
    assert [hours(packet.outcomes) for packet in packets] == [[0], [1, 2]]
    assert len(packets[0].raw) > 160 >= len(packets[1].raw)


def test_an_outcome_that_fits_no_packet_is_put_aside_and_blocks_nothing(box: Outbox) -> None:
    box.append(Outcome(T0, results={f"a{n}": "word" * 20 for n in range(20)}), ADDRESS)
    box.append(Outcome(T0, results={"x": 1e-30}), ADDRESS)
    fill(box, 2, first=1)
    packets = box.pack(ME)
    assert [hours(packet.outcomes) for packet in packets] == [[1, 2]]
    tiny, big = box.aside()
    assert tiny.key is big.key is None
    assert "results.x" in tiny.detail
    assert "512 bytes" in big.detail
    assert box.stats().unpackable == 2


def test_numbers_and_words_under_one_name_are_packed_apart(box: Outbox) -> None:
    for hour in range(6):
        box.append(outcome(hour, x=1.0 if hour < 3 else "broken"), ADDRESS)
    packets = box.pack(ME)
    assert hours(o for packet in packets for o in packet.outcomes) == list(range(6))
    assert box.aside() == []


def test_times_that_are_ages_apart_are_packed_apart(box: Outbox) -> None:
    """A clock that was wrong for a while must not stop the queue."""
    times = [0, 2**39, T0, T0 + HOUR]
    for time in times:
        box.append(Outcome(time, results={"x": 1.0}), ADDRESS)
    packets = [packet for _ in range(4) for packet in box.pack(ME)]
    assert sorted(one.time for packet in packets for one in packet.outcomes) == sorted(times)
    assert box.aside() == []


def test_what_can_never_be_packed_is_refused_at_once(box: Outbox) -> None:
    with pytest.raises(UsageError, match="fingerprint"):
        box.append(outcome(0), b"short")
    with pytest.raises(UsageError, match="priority"):
        box.append(outcome(0), ADDRESS, priority=4)
    with pytest.raises(UsageError, match="ttl"):
        box.append(outcome(0), ADDRESS, ttl=-1)
    with pytest.raises(UsageError, match="results"):
        box.append(Outcome(T0, results={"x": float("nan")}), ADDRESS)
    with pytest.raises(UsageError, match="results"):
        box.append(Outcome(T0, results={"x": "\ud800"}), ADDRESS)
    with pytest.raises(UsageError, match="results"):
        box.append(Outcome(T0, results={"x": b"bytes"}), ADDRESS)  # type: ignore[dict-item]  # on purpose
    with pytest.raises(UsageError, match="identity"):
        box.pack(OTHER)
    assert box.stats().made == 0
    fill(box, 1)
    assert box.stats().made == 1


def test_a_batch_is_kept_whole_or_not_at_all(box: Outbox) -> None:
    good, bad = Pending(outcome(0), ADDRESS), Pending(outcome(1), b"short")
    with pytest.raises(UsageError):
        box.append_many([good, good, bad])
    assert box.stats().waiting == 0
    fill(box, 2)
    assert [hours(packet.outcomes) for packet in box.pack(ME)] == [[0, 1]]


# --- receipts --------------------------------------------------------------------------


def test_a_held_packet_is_not_sent_again(box: Outbox) -> None:
    packets = pack_each(box, 3)
    store = packets[0].store
    settled = held(box, store, 0, 2)
    assert settled.done == [(store, 0), (store, 2)]
    assert open_keys(box) == [(store, 1)]
    assert box.packet(store, 0) is not None
    stats = box.stats()
    assert (stats.open_packets, stats.held_packets, stats.held_outcomes) == (1, 2, 2)


def test_a_receipt_of_another_store_or_an_unknown_sequence_changes_nothing(box: Outbox) -> None:
    store = pack_each(box, 1)[0].store
    assert held(box, b"none", 0).done == []
    assert held(box, store, 7).done == []
    assert open_keys(box) == [(store, 0)]


def test_a_repeated_receipt_changes_nothing(box: Outbox) -> None:
    store = pack_each(box, 3)[0].store
    receipt = Receipt(store, held=(0,), refused=((10, (1,)),), later=((60, (2,)),))
    first = box.receipt(GATEWAY, EPOCH, receipt)
    before = box.stats()
    again = box.receipt(GATEWAY, EPOCH, receipt)
    assert (first.done, first.refused) == ([(store, 0)], [((store, 1), 10)])
    assert (again.done, again.refused) == ([], [])
    assert first.later == again.later == [((store, 2), 60)]
    assert box.stats() == before


def test_refused_is_put_aside_with_its_reason(box: Outbox) -> None:
    packets = pack_each(box, 2)
    store = packets[0].store
    box.receipt(GATEWAY, EPOCH, Receipt(store, refused=((Reason.BOUNDS, (0,)),)))
    assert open_keys(box) == [(store, 1)]
    (aside,) = box.aside()
    assert (aside.key, aside.reason, aside.detail) == ((store, 0), Reason.BOUNDS.value, "bounds")
    assert (aside.gateway, aside.count, aside.content) == (GATEWAY, 1, packets[0].raw)
    stats = box.stats()
    assert (stats.refused_packets, stats.refused_outcomes) == (1, 1)
    assert box.packet_id(store, 0) == packets[0].id


def test_an_unknown_reason_is_kept_as_its_number(box: Outbox) -> None:
    store = pack_each(box, 1)[0].store
    box.receipt(GATEWAY, EPOCH, Receipt(store, refused=((200, (0,)),)))
    assert box.aside()[0].detail == "reason 200"


def test_refused_by_one_and_held_by_another_is_held(box: Outbox) -> None:
    store = pack_each(box, 2)[0].store
    refusal = Receipt(store, refused=((Reason.SCOPE, (0, 1)),))
    held(box, store, 0, gateway=SECOND)
    box.receipt(GATEWAY, EPOCH, refusal)
    assert [aside.key for aside in box.aside()] == [(store, 1)]
    settled = held(box, store, 1, gateway=SECOND)
    assert settled.done == [(store, 1)]
    stats = box.stats()
    assert (stats.refused_packets, stats.held_packets, stats.open_packets) == (0, 2, 0)
    assert box.aside() == []


def test_refused_packets_can_be_tried_again(box: Outbox) -> None:
    packets = pack_each(box, 3)
    store = packets[0].store
    box.receipt(GATEWAY, EPOCH, Receipt(store, refused=((Reason.EXPIRED, (0, 1, 2)),)))
    assert box.retry([(store, 1)]) == 1
    assert open_keys(box) == [(store, 1)]
    assert box.retry() == 2
    assert [one.raw for one in box.unreceipted()] == [packet.raw for packet in packets]
    assert box.stats().refused_packets == 0


def test_several_gateways_may_be_needed(make: Callable[..., Outbox]) -> None:
    box = make(copies=2)
    store = pack_each(box, 2)[0].store
    assert held(box, store, 0, 1).done == []
    assert held(box, store, 0, 1).done == []
    assert [one.holders for one in box.unreceipted()] == [1, 1]
    assert held(box, store, 0, gateway=SECOND).done == [(store, 0)]
    assert open_keys(box) == [(store, 1)]


def test_refused_by_one_while_another_holds_it_is_done(make: Callable[..., Outbox]) -> None:
    box = make(copies=2)
    store = pack_each(box, 1)[0].store
    held(box, store, 0)
    settled = box.receipt(SECOND, EPOCH, Receipt(store, refused=((Reason.SCOPE, (0,)),)))
    assert (settled.done, settled.refused) == ([(store, 0)], [])
    assert box.aside() == []


def test_many_receipts_in_one_commit(box: Outbox) -> None:
    store = pack_each(box, 6)[0].store
    answers = [Answer(GATEWAY, EPOCH, Receipt(store, held=(n,))) for n in (0, 1, 2, 2, 1)]
    answers.append(Answer(SECOND, EPOCH, Receipt(store, held=(3,), refused=((10, (4,)),))))
    settled = box.receipts(answers)
    assert [sequence for _, sequence in settled.done] == [0, 1, 2, 3]
    assert settled.refused == [((store, 4), 10)]
    assert open_keys(box) == [(store, 5)]


def test_more_gateways_than_there_are_bits(box: Outbox) -> None:
    store = pack_each(box, 1)[0].store
    for number in range(70):
        held(box, store, 0, gateway=number.to_bytes(8))
    assert box.stats().held_packets == 1
    for number in range(70):
        box.resend(number.to_bytes(8))
    assert open_keys(box) == [(store, 0)]


# --- a gateway that lost what it held ----------------------------------------------------


def test_resend_brings_back_what_only_this_gateway_held(box: Outbox) -> None:
    packets = pack_each(box, 4)
    store = packets[0].store
    held(box, store, 0, 1, 2, 3)
    held(box, store, 1, gateway=SECOND)
    assert box.resend(GATEWAY) == 3
    assert [one.raw for one in box.unreceipted()] == [packets[n].raw for n in (0, 2, 3)]
    assert box.resend(GATEWAY) == 0
    assert box.resend(b"stranger") == 0
    stats = box.stats()
    assert (stats.open_packets, stats.held_packets) == (3, 1)


def test_two_gateways_lost_one_after_the_other(box: Outbox) -> None:
    store = pack_each(box, 1)[0].store
    held(box, store, 0)
    held(box, store, 0, gateway=SECOND)
    assert box.resend(GATEWAY) == 0
    assert box.resend(SECOND) == 1
    assert open_keys(box) == [(store, 0)]


def test_resend_since_a_time(box: Outbox) -> None:
    store = pack_each(box, 4)[0].store
    held(box, store, 0, 1, 2, 3)
    assert box.resend(GATEWAY, since=T0 + 2 * HOUR) == 2
    assert open_keys(box) == [(store, 2), (store, 3)]


def test_resend_spares_what_the_new_spool_has_already(box: Outbox) -> None:
    store = pack_each(box, 3)[0].store
    held(box, store, 0, 1, 2)
    box.receipt(GATEWAY, b"ep02", Receipt(store, held=(1,)))
    assert box.resend(GATEWAY, epoch=b"ep02") == 2
    assert open_keys(box) == [(store, 0), (store, 2)]
    assert box.resend(GATEWAY, epoch=b"ep02") == 0


def test_a_packet_sent_again_is_done_again(box: Outbox) -> None:
    store = pack_each(box, 1)[0].store
    held(box, store, 0)
    box.resend(GATEWAY)
    assert box.receipt(GATEWAY, b"ep02", Receipt(store, held=(0,))).done == [(store, 0)]
    assert open_keys(box) == []


# --- a number with two contents ----------------------------------------------------------


def test_an_equivocation_begins_a_new_store_and_packs_anew(make: Callable[..., Outbox]) -> None:
    notices: list[Notice] = []
    box = make(notify=notices.append)
    old = pack_each(box, 4)[0].store
    settled = box.receipt(
        GATEWAY, EPOCH, Receipt(old, held=(0,), refused=((Reason.EQUIVOCATION, (1, 2)),))
    )
    assert settled.conflict
    assert [notice.code for notice in notices] == ["conflict"]
    assert box.notices()[0].code == "conflict"
    (packet,) = box.pack(ME)
    assert packet.store != old
    assert packet.sequence == 0
    assert hours(packet.outcomes) == [1, 2]
    assert open_keys(box) == [(old, 3), (packet.store, 0)]
    assert box.aside() == []
    settled = box.receipt(GATEWAY, EPOCH, Receipt(old, refused=((Reason.EQUIVOCATION, (3,)),)))
    assert not settled.conflict
    assert box.pack(ME)[0].store == packet.store
    assert box.stats().conflicts == 3


def test_a_gateway_that_cries_equivocation_for_ever_is_not_followed(box: Outbox) -> None:
    fill(box, 1)
    for _ in range(20):
        for packet in box.pack(ME):
            refusal = Receipt(packet.store, refused=((Reason.EQUIVOCATION, (packet.sequence,)),))
            box.receipt(GATEWAY, EPOCH, refusal)
    assert box.stats().stores < 12
    assert box.stats().refused_outcomes == 1


# --- ids for receipts, the floor ---------------------------------------------------------


def test_ids_are_known_for_as_long_as_a_receipt_may_come(make: Callable[..., Outbox]) -> None:
    box = make(budget=256 * 1024)
    packets = pack_each(box, 50)
    store = packets[0].store
    assert [box.packet_id(store, p.sequence) for p in packets] == [p.id for p in packets]
    assert box.packet_id(store, 50) is None
    assert box.packet_id(b"none", 0) is None
    while not box.stats().evicted_packets:
        pack_each(box, 50)
    assert box.packet(store, 0) is None
    assert box.packet_id(store, 0) == packets[0].id


def test_the_floor_is_told_once_packets_will_never_come(box: Outbox) -> None:
    first = pack_each(box, 3)
    assert [packet.extensions.floor for packet in first] == [None] * 3
    store = first[0].store
    box.receipt(GATEWAY, EPOCH, Receipt(store, held=(0,), refused=((10, (1,)),)))
    (third,) = pack_each(box, 1)
    assert third.extensions.floor == 2
    (fourth,) = pack_each(box, 1)
    assert fourth.extensions.floor is None
    held(box, store, 2)
    assert pack_each(box, 1)[0].extensions.floor is None


def test_the_floor_passes_a_gap_only_when_what_is_below_is_settled(box: Outbox) -> None:
    store = pack_each(box, 3)[0].store
    box.receipt(GATEWAY, EPOCH, Receipt(store, refused=((10, (2,)),)))
    assert pack_each(box, 1)[0].extensions.floor is None
    held(box, store, 0)
    assert pack_each(box, 1)[0].extensions.floor == 1
    held(box, store, 1)
    assert pack_each(box, 1)[0].extensions.floor == 3


# --- for people --------------------------------------------------------------------------


def test_what_waits_is_shown_most_urgent_first(box: Outbox) -> None:
    fill(box, 3)
    box.append(outcome(7, sky="red"), ELSEWHERE, priority=Priority.URGENT)
    shown = box.waiting()
    assert shown[0] == (Priority.URGENT, ELSEWHERE, outcome(7, sky="red"))
    assert [(one.time - T0) // HOUR for _, _, one in shown[1:]] == [0, 1, 2]
    assert len(box.waiting(limit=2)) == 2


def test_stats_say_where_everything_is(box: Outbox) -> None:
    pack_each(box, 3)
    fill(box, 2, first=3)
    store = box.stats().store
    held(box, store, 0)
    box.receipt(GATEWAY, EPOCH, Receipt(store, refused=((10, (1,)),)))
    stats = box.stats()
    assert (stats.made, stats.waiting, stats.packed, stats.packets) == (5, 2, 3, 3)
    assert (stats.open_packets, stats.held_packets, stats.refused_packets) == (1, 1, 1)
    assert (stats.next_sequence, stats.stores) == (3, 1)
    assert stats.clock == T0 + 4 * HOUR
    assert stats.bytes > 0


# --- over restarts -----------------------------------------------------------------------


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox.open(path, ME.public) as box:
        packets = pack_each(box, 4)
        fill(box, 3, first=4)
        store = packets[0].store
        held(box, store, 0)
        box.receipt(GATEWAY, EPOCH, Receipt(store, refused=((10, (1,)),)))
        before = box.stats()
    with Outbox.open(path, ME.public) as box:
        assert box.stats() == before
        assert [one.raw for one in box.unreceipted()] == [p.raw for p in packets[2:]]
        assert [aside.key for aside in box.aside()] == [(store, 1)]
        assert box.clock_floor == T0 + 6 * HOUR
        (packet,) = box.pack(ME)
        assert (packet.store, packet.sequence) == (store, 4)
        assert hours(packet.outcomes) == [4, 5, 6]
        assert box.notices() == []


def test_two_cannot_write_one_outbox(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox.open(path, ME.public), pytest.raises(StoreError, match="in use"):
        Outbox.open(path, ME.public)
    Outbox.open(path, ME.public).close()


def test_anothers_outbox_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox.open(path, OTHER.public) as box:
        fill(box, 1)
    with pytest.raises(StoreError, match="another key") as caught:
        Outbox.open(path, ME.public)
    assert caught.value.hint
    with Outbox.open(path, OTHER.public) as box:
        assert box.stats().waiting == 1


def test_another_machine_or_a_copied_file_begins_a_new_store(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox.open(path, ME.public, host="one") as box:
        (old,) = pack_each(box, 1)
    notices: list[Notice] = []
    with Outbox.open(path, ME.public, host="two", notify=notices.append) as box:
        assert [notice.code for notice in notices] == ["copied"]
        (new,) = pack_each(box, 1)
        assert (new.store != old.store, new.sequence) == (True, 0)
        assert open_keys(box) == [(old.store, 0), (new.store, 0)]
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())
    with Outbox.open(copy, ME.public, host="two") as box:
        (third,) = pack_each(box, 1)
        assert third.store not in (old.store, new.store)
        assert box.stats().stores == 3
    with Outbox.open(copy, ME.public, host="two") as box:
        assert box.stats().stores == 3


def test_a_machine_that_is_not_known_is_not_another(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    for host, stores in [("", 1), ("one", 1), ("", 1), ("one", 1), ("two", 2), ("", 2), ("two", 2)]:
        with Outbox.open(path, ME.public, host=host) as box:
            assert box.stats().stores == stores, host


def test_a_machine_is_known_by_its_board(tmp_path: Path) -> None:
    serial, zeroes = tmp_path / "serial", tmp_path / "zeroes"
    serial.write_bytes(b"10000000a1b2c3d4\0")
    zeroes.write_bytes(b"0000-0000\n")
    assert machine_name([tmp_path / "none", zeroes]) == ""
    name = machine_name([zeroes, serial])
    assert len(name) == 16
    assert "a1b2" not in name
    serial.write_bytes(b"10000000a1b2c3d5\0")
    assert machine_name([serial]) not in ("", name)
    assert machine_name() == machine_name()


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="budget"):
        Outbox.open(tmp_path / "x.db", ME.public, budget=1000)
    with pytest.raises(UsageError, match="copies"):
        Outbox.open(tmp_path / "x.db", ME.public, copies=0)


def test_rows_are_the_json_that_anybody_would_write() -> None:
    """The encoder is made once, from parts that the interpreter does not document."""
    results: dict[str | int, float | str | None] = {
        "plain": 20.5,
        "tiny": 1e-7,
        "whole": 3,
        'quote "': "déjà\n\u2028",
        "gone": None,
    }
    one = Outcome(T0, Kind.PARTIAL, 0.25, 7, results, "said")
    row = [1, 0.25, 7, results, "said"]
    assert body_of(one).decode() == json.dumps(row, separators=(",", ":"), ensure_ascii=False)
    assert outcome_of(T0, body_of(one)) == one
    for wrong in float("nan"), float("inf"), object():
        with pytest.raises(UsageError, match="cannot be kept"):
            body_of(Outcome(T0, results={"x": wrong}))  # type: ignore[dict-item]  # as said
