"""From waiting outcomes to packets: which ones, how many, under what number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from qis_edge.core.errors import Refused
from qis_edge.core.identity import Identity
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import (
    MAX_OUTCOMES,
    MAX_PACKET,
    MAX_SEQUENCE,
    Extensions,
    Packet,
    how_many,
    pack,
)
from qis_edge.core.priority import Priority
from qis_edge.core.rows import Template
from qis_edge.store.forms import (
    Candidate,
    extensions_of,
    outcome_of,
    packet_number,
)
from qis_edge.store.opening import draw_store
from qis_edge.store.tables import Group, Tables, store_id

#: A template for all fingerprints, what finds it by fingerprint, or none.
Domains = Template | Callable[[bytes], Template | None] | None
#: A policy: whether a candidate becomes a packet now or waits for more.
Ready = Callable[[Candidate], bool]

#: How many groups that a policy lets wait are passed over in one look.
_PASSED_OVER = 64
_FIRST_LOOK = 48


@dataclass(frozen=True, slots=True)
class Plan:
    """A packet that could be made now.

    :param rows: (id, time, body) of the outcomes that go into it.
    :param leading: they are the oldest of their group.
    :param problem: why the only one of them fits no packet, or ``""``.
    """

    group: Group
    rows: list[tuple[int, int, bytes]]
    outcomes: list[Outcome]
    leading: bool
    full: bool
    extensions: Extensions
    limit: int
    problem: str = ""

    @property
    def candidate(self) -> Candidate:
        """What a policy sees of it."""
        return Candidate(
            self.group.fingerprint,
            Priority(self.group.priority),
            self.group.ttl,
            len(self.outcomes),
            self.full,
            self.outcomes[0].time,
        )


class Packer:
    """Makes packets of one size for one link, one after the other."""

    def __init__(
        self,
        tables: Tables,
        identity: Identity,
        limit: int,
        domains: Domains,
        ready: Ready | None,
        least: Priority = Priority.LOW,
    ) -> None:
        self._tables = tables
        self._identity = identity
        self._limit = min(limit, MAX_PACKET)
        self._domains = domains
        self._ready = ready
        self._least = least
        self._after = dict.fromkeys(range(4), -1)
        self._store = b""

    def next(self) -> Plan | None:
        """The most urgent of the oldest packets that the policy lets go. Only reads."""
        passed = 0
        for priority in range(Priority.URGENT, self._least - 1, -1):
            while (group := self._tables.next_group(priority, self._after[priority])) is not None:
                plan = self._plan(group)
                if plan.problem or self._ready is None or self._ready(plan.candidate):
                    return plan
                self._after[priority] = group.head
                passed += 1
                if passed >= _PASSED_OVER:
                    return None
        return None

    def carry_out(self, plan: Plan) -> list[Packet]:
        """Give the packet its number, sign it and write it down, within a transaction.
        An outcome that fits no packet is put aside."""
        if plan.problem:
            self._put_aside(plan, plan.problem)
            return []
        try:
            packet = self._pack(plan)
        except (ValueError, Refused) as error:  # fits, but would not be taken
            if len(plan.rows) > 1:
                return self.carry_out(self._first_of(plan))
            self._put_aside(plan, str(error))
            return []
        state = self._tables.state
        number = packet_number(state.store, packet.sequence)
        self._tables.add_packet(packet, plan.group.priority, number)
        self._remove(plan)
        state.sequence = packet.sequence + 1
        if packet.extensions.floor is not None:
            state.announced = packet.extensions.floor
        state.packets += 1
        state.packed += packet.count
        return [packet]

    # --- planning ----------------------------------------------------------------------

    def _plan(self, group: Group) -> Plan:
        extensions = replace(extensions_of(group.extensions), floor=self._floor())
        domain = self._domain(group.fingerprint)
        for look in (_FIRST_LOOK, MAX_OUTCOMES):
            fetched = self._tables.waiting_rows(group, look)
            # In order of time, as the packet will have them; rows are in order of arrival.
            rows = sorted(fetched, key=lambda row: row[1])
            outcomes = [outcome_of(time, body) for _, time, body in rows]
            count, limit, problem = self._fit(outcomes, group, extensions, domain)
            if count < look or len(rows) < look:
                break
        chosen = rows[:count]
        return Plan(
            group=group,
            rows=chosen,
            outcomes=outcomes[:count],
            leading={row[0] for row in chosen} == {row[0] for row in fetched[:count]},
            full=count < len(rows),
            extensions=extensions,
            limit=limit,
            problem=problem,
        )

    def _fit(
        self,
        outcomes: list[Outcome],
        group: Group,
        extensions: Extensions,
        domain: Template | None,
    ) -> tuple[int, int, str]:
        """How many of them go into a packet of what size; or what is wrong with the first."""

        def fit(some: list[Outcome], limit: int) -> int:
            return how_many(
                some,
                fingerprint=group.fingerprint,
                store=self._store_id(),
                sequence=self._tables.state.sequence & MAX_SEQUENCE,
                ttl=group.ttl,
                domain=domain,
                extensions=extensions,
                limit=limit,
            )

        some = outcomes
        while True:
            try:
                if count := fit(some, self._limit):
                    return count, self._limit, ""
                if fit(some[:1], MAX_PACKET):
                    return 1, MAX_PACKET, ""
                return 1, MAX_PACKET, f"it needs more than {MAX_PACKET} bytes"
            except ValueError as error:  # one of them does not go with the others, or at all
                if len(some) == 1:
                    return 1, MAX_PACKET, str(error)
                some = some[: len(some) // 2]

    def _domain(self, fingerprint: bytes) -> Template | None:
        domains = self._domains
        return domains(fingerprint) if callable(domains) else domains

    def _floor(self) -> int | None:
        """The floor, where packets were dropped since the gateways were last told."""
        state = self._tables.state
        if state.dropped < state.announced:
            return None
        lowest = self._tables.lowest_open()
        return lowest if lowest > state.announced else None

    # --- carrying out ------------------------------------------------------------------

    def _pack(self, plan: Plan) -> Packet:
        state = self._tables.state
        if state.sequence > MAX_SEQUENCE:
            self._tables.begin_store(draw_store(self._tables.db), "used_up")
            self._store = b""
        return pack(
            plan.outcomes,
            identity=self._identity,
            fingerprint=plan.group.fingerprint,
            store=self._store_id(),
            sequence=state.sequence,
            ttl=plan.group.ttl,
            domain=self._domain(plan.group.fingerprint),
            extensions=plan.extensions,
            limit=plan.limit,
        )

    def _store_id(self) -> bytes:
        if not self._store:
            self._store = store_id(self._tables.db, self._tables.state.store)
        return self._store

    def _first_of(self, plan: Plan) -> Plan:
        return replace(plan, rows=plan.rows[:1], outcomes=plan.outcomes[:1], leading=False)

    def _remove(self, plan: Plan) -> None:
        ids = sorted(row for row, _, _ in plan.rows)
        self._tables.remove_waiting(plan.group, ids, leading=plan.leading)

    def _put_aside(self, plan: Plan, problem: str) -> None:
        self._remove(plan)
        self._tables.state.unpackable += len(plan.rows)
        for _, time, body in plan.rows:
            self._tables.put_aside(
                packet=None,
                reason=0,
                detail=f"outcome of {time}: {problem}",
                gateway=b"",
                priority=plan.group.priority,
                count=1,
                content=body,
            )
