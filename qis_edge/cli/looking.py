"""``qis-edge status`` and ``qis-edge queue``: what can be seen of a node, running or not."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from qis_edge.cli.owner import act_as_owner
from qis_edge.cli.program import OK, note, print_json, start_command
from qis_edge.cli.showing import ask_status, clock_rows, link_rows, outcome_form, results_text
from qis_edge.config import NodeConfig, load_node
from qis_edge.control import is_running, request
from qis_edge.core.errors import NotRunning, Reason
from qis_edge.core.outcome import Outcome
from qis_edge.keys import read_key
from qis_edge.store.forms import Aside, Queued
from qis_edge.store.outbox import Outbox
from qis_edge.store.reader import OutboxReader
from qis_edge.terminal import duration, moment, pairs, plural, size, table

#: Seconds that a daemon may take to take back what was put aside.
RETRY_PATIENCE = 60.0


def status(args: argparse.Namespace) -> int:
    """Show how the node is doing."""
    config = load_node(args.config, full=False)
    act_as_owner(config.node.state)
    found = ask_status(args, config.node.state, lambda: _stored_status(config))
    if args.json:
        print_json(found)
    else:
        _show_status(found)
    return OK


def _stored_status(config: NodeConfig) -> dict[str, Any]:
    """What the state folder says, in the form in which a running node says it."""
    from qis_edge.cli.joining import stored_standing  # reads keys: only needed here

    state = config.node.state
    standing = stored_standing(config)
    found: dict[str, Any] = {
        "name": standing["name"],
        "kid": standing["kid"],
        "site": standing["site"],
        "now": config.clock.make().now(),
        "enrolled": standing["enrolled"],
        "expires": standing["expires"],
        "outbox": None,
    }
    if (state / "outbox.db").exists():
        with Outbox.inspect(state / "outbox.db") as outbox:
            found["outbox"] = _outbox_numbers(outbox, config)
    return found


def _outbox_numbers(outbox: OutboxReader, config: NodeConfig) -> dict[str, Any]:
    return outbox.stats().shown() | {"budget": config.outbox.budget}  # a reader knows none


_LOSSES = {
    "evicted_unsent": " for want of room",
    "evicted_expired": " past their time, for want of room",
    "unreadable": " to damage of the disk",
}


def _show_status(found: dict[str, Any]) -> None:
    now = found["now"]
    rows: list[tuple[str, object]] = [
        ("node", found["name"]),
        ("kid", found["kid"]),
        ("site", found["site"]),
        ("running", found["running"]),
        ("time", moment(now) + ("" if found.get("clock_trusted", True) else " (not yet trusted)")),
        ("enrolled", _enrolment(found, now)),
    ]
    if found.get("disk"):
        rows.append(("warning", found["disk"]))
    rows += clock_rows(found)
    if found.get("address"):
        rows.append(("address", found["address"]))
    for link in found.get("links", ()):
        rows += link_rows(link)
    rows += [
        ("gateway", f"{one['kid']}{'' if one['greeted'] else ', not met yet'}")
        for one in found.get("gateways", ())
    ]
    if (outbox := found["outbox"]) is not None:
        rows += [
            ("outcomes", f"{outbox['made']} made, {outbox['waiting']} waiting"),
            ("packets", _packets(outbox)),
            ("disk", f"{size(outbox['bytes'])} of {size(outbox['budget'])}"),
        ]
        rows += [
            ("lost", plural(outbox[key], "outcome") + why)
            for key, why in _LOSSES.items()
            if outbox.get(key)  # a daemon of an earlier version says less
        ]
        if outbox.get("conflicts"):
            what = plural(outbox["conflicts"], "packet number")
            rows.append(("warning", f"{what} used twice: was this card copied?"))
    if (peers := found.get("peers")) is not None:
        rows.append(("peers", f"{peers['packets']} packets of {peers['senders']} senders"))
    if (estimates := found.get("estimates")) is not None:
        failures = plural(estimates["hook_failures"], "failure") + " of the hook"
        made = f"{estimates['made']} made"
        rows.append(("estimates", made + (f", {failures}" if estimates["hook_failures"] else "")))
        rows += [
            ("warning", f"our own {name} is doubtful: peers agree on something else")
            for name in estimates["doubtful"]
        ]
    for one in found.get("sensors", ()):
        said = one["error"] or f"{plural(one['reads'], 'look')}, {one['failures']} failed"
        rows.append(("sensor", f"{one['name']}: {said}"))
    print(pairs(rows))


def _enrolment(found: dict[str, Any], now: float) -> str:
    if not found["enrolled"]:
        return "no (qis-edge enroll)"
    if found["expires"] is None:
        return "yes"
    return f"yes, for {duration(found['expires'] - now)}"


def _packets(outbox: dict[str, Any]) -> str:
    return (
        f"{outbox['packets']} made, {outbox['unreceipted']} without a receipt, "
        f"{outbox['held']} held by gateways, {outbox['refused']} refused"
    )


def queue(args: argparse.Namespace) -> int:
    """List what has not been delivered yet."""
    config = load_node(args.config, full=False)
    act_as_owner(config.node.state)
    path = config.node.state / "outbox.db"
    running = is_running(config.node.state)
    if not path.exists():
        empty: dict[str, Any] = {
            "outbox": None,
            "retried": None,
            "waiting": [],
            "unreceipted": [],
            "refused": [],
            "notices": [],
        }
        if args.json:
            print_json({"running": running, **empty})
        else:
            print(f"nothing was ever queued: there is no {path} yet")
        return OK
    retried = _retry(config, args) if args.retry else None
    limit = max(1, args.limit)
    with Outbox.inspect(path) as outbox:
        numbers = _outbox_numbers(outbox, config)
        waiting = outbox.waiting(limit)
        unreceipted = outbox.unreceipted(limit)
        refused = outbox.aside(limit)
        notices = outbox.notices(limit)
    if args.json:
        print_json(
            {
                "running": running,
                "outbox": numbers,
                "retried": retried,
                "waiting": [
                    {"priority": priority.name.lower(), "address": address, **outcome_form(outcome)}
                    for priority, address, outcome in waiting
                ],
                "unreceipted": [_packet(one) for one in unreceipted],
                "refused": [_aside(one) for one in refused],
                "notices": [
                    {"time": one.at, "code": one.code, "text": one.text} for one in notices
                ],
            }
        )
        return OK
    if not running:
        note(f"the daemon is not running: nothing is sent. Start it with: {start_command(args)}")
    if retried is not None:
        print(f"{plural(retried, 'packet')} that had been put aside wait to be sent again")
    print(f"{plural(numbers['waiting'], 'outcome')} waiting; packets: {_packets(numbers)}")
    _show_waiting(waiting, numbers["waiting"])
    _show_packets(unreceipted, numbers["unreceipted"])
    _show_refused(refused)
    for one in notices:
        print(f"\nnotice: {moment(one.at)} {table([''], [[one.text]]).strip()}")
    return OK


def _retry(config: NodeConfig, args: argparse.Namespace) -> int:
    """Take back what was put aside, in the daemon or beside a stopped one; how many packets."""
    state = config.node.state
    try:
        said = request(state, "retry", start=start_command(args), timeout=RETRY_PATIENCE)
        return int(said["retried"])
    except NotRunning:
        outbox = Outbox.open(
            state / "outbox.db",
            read_key(config.node.key_file).public,
            budget=config.outbox.budget,
            copies=config.custody.copies,
        )
        with contextlib.closing(outbox):
            return outbox.retry()


def _show_waiting(waiting: list[tuple[Any, bytes, Outcome]], count: int) -> None:
    if not waiting:
        return
    print(f"\nwaiting to be packed{_first(len(waiting), count)}")
    rows = [
        [
            moment(outcome.time),
            priority.name.lower(),
            outcome.kind.name.lower(),
            round(outcome.confidence, 2),
            results_text(outcome),
        ]
        for priority, _, outcome in waiting
    ]
    print(table(["time", "priority", "kind", "confidence", "results"], rows))


def _show_packets(packets: list[Queued], count: int) -> None:
    if not packets:
        return
    print(f"\nwithout a receipt{_first(len(packets), count)}")
    rows = [
        [one.store.hex(), one.sequence, one.count, len(one.raw), moment(one.last_time), one.holders]
        for one in packets
    ]
    print(table(["store", "sequence", "outcomes", "bytes", "newest", "holders"], rows))


def _show_refused(refused: list[Aside]) -> None:
    if not refused:
        return
    print("\nput aside: not sent again by itself (once the cause is mended: queue --retry)")
    rows = [
        [
            one.key[0].hex() if one.key else None,
            one.key[1] if one.key else None,
            one.count,
            _reason(one.reason),
            one.gateway.hex() or None,
            one.detail,
        ]
        for one in refused
    ]
    print(table(["store", "sequence", "outcomes", "reason", "gateway", "detail"], rows))


def _first(shown: int, count: int) -> str:
    return f", the first {shown} of {count}" if shown < count else ""


def _reason(code: int) -> str:
    if code == 0:
        return "unpackable"
    try:
        return Reason(code).label
    except ValueError:
        return f"reason {code}"


def _packet(one: Queued) -> dict[str, Any]:
    return {
        "store": one.store,
        "sequence": one.sequence,
        "priority": one.priority.name.lower(),
        "outcomes": one.count,
        "bytes": len(one.raw),
        "newest": one.last_time,
        "expires": one.expires,
        "holders": one.holders,
    }


def _aside(one: Aside) -> dict[str, Any]:
    return {
        "store": one.key[0] if one.key else None,
        "sequence": one.key[1] if one.key else None,
        "outcomes": one.count,
        "reason": _reason(one.reason),
        "detail": one.detail,
        "gateway": one.gateway or None,
    }
