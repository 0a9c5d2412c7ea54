"""``qis-gateway status``, ``nodes`` and ``query``: what can be seen, running or not."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from gateway.cli.state import acceptor, fleet_file_of, opened_fleet
from gateway.config import GatewayConfig, load_gateway
from gateway.fleet import Fleet, NodeState, Waiting
from gateway.routing import Context, Entry, Interest, RoutingLayer, open_engine
from gateway.spool import Spool, StoreState
from qis_edge.cli.owner import act_as_owner
from qis_edge.cli.program import OK, note, print_json
from qis_edge.cli.showing import ask_status, clock_rows, link_rows, outcome_form, results_text
from qis_edge.control import is_running
from qis_edge.core.credential import NODE
from qis_edge.core.domain import Domain
from qis_edge.core.errors import Refused, UsageError
from qis_edge.core.identity import PublicKey
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Packet, unpack
from qis_edge.keys import read_key
from qis_edge.terminal import duration, moment, pairs, plural, size, table

#: Seconds that ``query`` gives an engine to read its log.
CATCH_UP = 5.0
#: And how often it looks whether that is done.
LOOK = 0.02

# --- status ----------------------------------------------------------------------------


def status(args: argparse.Namespace) -> int:
    """Say how the gateway is doing."""
    config = load_gateway(args.config, full=False)
    act_as_owner(config.gateway.state)
    found = ask_status(args, config.gateway.state, lambda: _stored_status(config))
    with opened_fleet(config, read_only=True) as fleet:
        found["nodes"] = len(fleet.nodes())
        found["waiting"] = len(fleet.waiting())
        found["permitted_until"] = fleet.permitted_until or None
    if args.json:
        print_json(found)
    else:
        _show_status(found)
    return OK


def _stored_status(config: GatewayConfig) -> dict[str, Any]:
    """What the state folder says, in the form in which a running gateway says it."""
    state = config.gateway.state
    found: dict[str, Any] = {
        "name": config.gateway.name,
        "kid": read_key(config.gateway.key_file).kid.hex(),
        "site": fleet_file_of(config).site,
        "now": config.clock.make().now(),
        "spool": None,
        "engines": [],
    }
    if (state / "spool.db").exists():
        spool = Spool(state / "spool.db", budget=config.spool.budget, read_only=True)
        with contextlib.closing(spool):
            shown = spool.status()
        found["spool"] = {
            "epoch": shown.epoch.hex(),
            "packets": shown.packets,
            "bytes": shown.size,
            "budget": shown.budget,
        }
        found["engines"] = [{"url": one.url, "behind": one.behind} for one in shown.engines]
    return found


def _show_status(found: dict[str, Any]) -> None:
    now = found["now"]
    rows: list[tuple[str, object]] = [
        ("gateway", found["name"]),
        ("kid", found["kid"]),
        ("site", found["site"]),
        ("running", found["running"]),
        ("time", moment(now)),
        ("nodes", f"{found['nodes']}, {found['waiting']} ask to join"),
    ]
    if found.get("disk"):
        rows.append(("warning", found["disk"]))
    rows += clock_rows(found)
    if (until := found["permitted_until"]) is not None and until > now:
        rows.append(("joining", f"permitted until {moment(until)}"))
    for link in found.get("links", ()):
        rows += link_rows(link)
    if (intake := found.get("intake")) is not None:
        refused = sum(intake["refused"].values())
        rows.append(
            ("packets", f"{intake['new']} new, {intake['known']} known already, {refused} refused")
        )
        rows += [("", f"{count} refused: {why}") for why, count in intake["refused"].items()]
    if (spool := found["spool"]) is not None:
        held = plural(spool["packets"], "packet")
        rows.append(("spool", f"{held}, {size(spool['bytes'])} of {size(spool['budget'])}"))
    for one in found["engines"]:
        behind = f"{one['behind']} behind" if one["behind"] else "up to date"
        away = "" if one.get("ok", True) else f"; {one['detail']}"
        rows.append(("engine", f"{one['url']}: {behind}{away}"))
    print(pairs(rows))


# --- nodes -----------------------------------------------------------------------------


def nodes(args: argparse.Namespace) -> int:
    """List the nodes, and who asks to join."""
    config = load_gateway(args.config, full=False)
    act_as_owner(config.gateway.state)
    state = config.gateway.state
    with opened_fleet(config, read_only=True) as fleet:
        known, waiting = fleet.nodes(), fleet.waiting()
        strangers, until = dict(fleet.strangers()), fleet.permitted_until
    stores: dict[bytes, list[StoreState]] = defaultdict(list)
    twice: Counter[bytes] = Counter()
    if (state / "spool.db").exists():
        spool = Spool(state / "spool.db", read_only=True)
        with contextlib.closing(spool):
            for one in spool.stores():
                stores[one.kid].append(one)
            twice.update(proof.kid for proof in spool.equivocations())
    now = config.clock.make().now()
    if args.json:
        print_json(
            {
                "running": is_running(state),
                "now": now,
                "permitted_until": until or None,
                "nodes": [_node(one, stores[one.kid], twice[one.kid]) for one in known],
                "waiting": [_waiting(one) for one in waiting],
                "strangers": strangers,
            }
        )
        return OK
    _show_nodes(known, stores, now)
    for node in known:
        if count := twice[node.kid]:
            print(f"\n{node.name} signed two contents under one number ({count}): is it copied?")
    _show_waiting(waiting, until, now)
    return OK


def _node(one: NodeState, stores: Sequence[StoreState], twice: int) -> dict[str, Any]:
    return {
        "kid": one.kid,
        "name": one.name,
        "expires": one.expires,
        "revoked": one.revoked,
        "first_seen": one.first_seen,
        "last_seen": one.last_seen,
        "accepted": one.accepted,
        "refused": dict(one.refused),
        "equivocations": twice,
        "stores": [
            {
                "store": each.store,
                "held": each.held,
                "last": each.last,
                "coming": each.coming,
                "given_up": each.given_up,
            }
            for each in stores
        ],
    }


def _waiting(one: Waiting) -> dict[str, Any]:
    return {"kid": one.kid, "name": one.name, "asked": one.asked, "taken": one.taken}


def _show_nodes(
    known: Sequence[NodeState], stores: dict[bytes, list[StoreState]], now: float
) -> None:
    if not known:
        print("no nodes yet: qis-gateway permit SECONDS lets them ask to join")
        return
    rows = [
        [
            one.name,
            one.kid.hex(),
            None if one.last_seen is None else f"{duration(max(0, now - one.last_seen))} ago",
            sum(each.held for each in stores[one.kid]),
            sum(each.coming for each in stores[one.kid]),
            sum(one.refused.values()),
            _standing(one, now),
        ]
        for one in known
    ]
    headers = ["name", "kid", "last seen", "packets", "missing", "refused", "standing"]
    print(table(headers, rows))


def _standing(one: NodeState, now: float) -> str:
    if one.revoked:
        return "revoked"
    left = one.expires - now
    return "expired" if left <= 0 else f"good for {duration(left)}"


def _show_waiting(waiting: Sequence[Waiting], until: float, now: float) -> None:
    if until > now:
        print(f"\njoining is permitted until {moment(until)}")
    if not waiting:
        return
    print("\nask to join; qis-gateway approve NODE lets one in")
    rows = [
        [
            one.name,
            one.kid.hex(),
            f"{duration(max(0, now - one.asked))} ago",
            "another node has this name" if one.taken else "",
        ]
        for one in waiting
    ]
    print(table(["name", "kid", "asked", ""], rows))


# --- query -----------------------------------------------------------------------------


def query(args: argparse.Namespace) -> int:
    """Show what an address holds, as the first routing engine has it."""
    config = load_gateway(args.config, full=False)
    act_as_owner(config.gateway.state)
    domain = None if args.domain is None else Domain.load(args.domain)
    interest = _interest(args, domain)
    if not 1 <= args.limit <= 100_000:
        raise UsageError("must be from 1 to 100000", field="--limit")
    url = config.routing.engines[0]
    if url.startswith("memory:"):
        note("memory: is empty here: what the running gateway has is in its own memory")
    with opened_fleet(config, read_only=True) as fleet:
        context = Context(
            acceptor(config, fleet), config.gateway.state, config.gateway.name.lower()
        )
        entries = asyncio.run(_ask(open_engine(url, context), interest, args.limit))
        found = [_opened(entry, fleet, config.clock.make().now()) for entry in entries]
        names = {one.kid: one.name for one in fleet.nodes()}
    if args.json:
        print_json(
            {
                "fingerprint": interest.fingerprint,
                "bits": interest.bits,
                "packets": [_packet(packet, good, names, domain) for packet, good in found],
            }
        )
    else:
        _show_packets(found, names, domain)
    return OK


async def _ask(engine: RoutingLayer, interest: Interest, limit: int) -> list[Entry]:
    """An engine that keeps a view is given time to read what came since it was last open."""
    try:
        await engine.open()
        status = await engine.status()
        deadline = time.monotonic() + CATCH_UP
        while status.ok and status.behind and time.monotonic() < deadline:
            await asyncio.sleep(LOOK)
            status = await engine.status()
        if not status.ok or status.behind:
            note(f"this may not be all: {engine.url}: {status.detail}")
        return await engine.query(interest, limit=limit)
    finally:
        await engine.close()


def _interest(args: argparse.Namespace, domain: Domain | None) -> Interest:
    """The address that was asked for."""
    if (args.fingerprint is None) == (domain is None):
        raise UsageError(
            "give either --fingerprint HEX or --domain NAME with --field NAME=VALUE",
            field="address",
        )
    bits = 256 if args.bits is None else args.bits
    if args.fingerprint is not None:
        if not re.fullmatch(r"[0-9a-fA-F]{64}", args.fingerprint):
            raise UsageError("must be 64 hexadecimal digits", field="--fingerprint")
        return Interest(bytes.fromhex(args.fingerprint), bits)
    assert domain is not None
    fields = {}
    for text in args.field:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text} is not NAME=VALUE", field="--field")
        fields[name] = value
    if args.bits is None:
        bits = _shared_bits(domain, fields)
        for field in domain.fields:  # what was left out is not looked at
            fields.setdefault(field.name, field.values[0])
    return Interest(domain.situation(fields).fingerprint, bits)


def _shared_bits(domain: Domain, fields: dict[str, str]) -> int:
    """How many leading bits the given fields settle: the first ones, or all."""
    given = [field.name in fields for field in domain.fields]
    if all(given):
        return 256
    count = given.index(False)
    if any(given[count:]):
        missing = domain.fields[count].name
        raise UsageError(
            f"{missing} comes before others that were given",
            field="--field",
            hint=f"give {missing} too, or leave out all that come after it",
        )
    return domain.prefix_bits(count)


def _opened(entry: Entry, fleet: Fleet, now: float) -> tuple[Packet, bool]:
    """A packet, and whether it was signed by a node that is one now."""

    def key(kid: bytes) -> PublicKey:
        return fleet.resolve(kid, now, NODE)

    try:
        return unpack(entry.raw, key), True
    except Refused:
        return unpack(entry.raw), False


def _outcomes(packet: Packet, domain: Domain | None) -> Sequence[Outcome]:
    return packet.outcomes if domain is None else packet.named(domain)


def _packet(
    packet: Packet, good: bool, names: dict[bytes, str], domain: Domain | None
) -> dict[str, Any]:
    return {
        "id": packet.id,
        "kid": packet.kid,
        "name": names.get(packet.kid),
        "good": good,
        "fingerprint": packet.fingerprint,
        "store": packet.store,
        "sequence": packet.sequence,
        "bytes": len(packet.raw),
        "tags": list(packet.extensions.tags),
        "outcomes": [outcome_form(one) for one in _outcomes(packet, domain)],
    }


def _show_packets(
    found: Sequence[tuple[Packet, bool]], names: dict[bytes, str], domain: Domain | None
) -> None:
    if not found:
        print("nothing is known of this address")
        return
    rows = [
        [
            moment(one.time),
            names.get(packet.kid, packet.kid.hex()) + ("" if good else " (not a node now)"),
            one.kind.name.lower(),
            round(one.confidence, 2),
            one.samples,
            results_text(one),
            one.summary or "",
        ]
        for packet, good in found
        for one in _outcomes(packet, domain)
    ]
    headers = ["time", "node", "kind", "confidence", "samples", "results", "summary"]
    print(table(headers, rows))
    if domain is None:
        note("results are shown by their codes; --domain NAME shows their names")
