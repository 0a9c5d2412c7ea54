"""``qis-edge status`` and ``queue``, while the node runs and while it does not."""

from __future__ import annotations

import contextlib
import re

from qis_edge.core.errors import Reason
from qis_edge.core.receipt import Receipt
from qis_edge.keys import read_key
from qis_edge.store.outbox import Outbox
from tests.cli.kit import RUNNING_NODE, Site, daemon, filled


def test_status_of_a_stopped_node(ready: Site) -> None:
    assert ready.node("status") == 0
    assert "running   no" in ready.console.out
    assert "the daemon is not running" in ready.console.err
    assert f"start it with: qis-edge run --config {ready.node_config}" in ready.console.err
    filled(ready)
    assert ready.node("status", "--json") == 0
    shown = ready.console.json
    assert ready.console.err == ""
    assert shown["running"] is False
    assert shown["outbox"]["made"] == 2
    assert shown["outbox"]["waiting"] == 1
    assert shown["outbox"]["unreceipted"] == 1
    assert shown["outbox"]["budget"] == 64_000_000


def test_status_of_a_node_that_was_never_set_up(ready: Site) -> None:
    (ready.node_state / "node.key").unlink()
    assert ready.node("status") == 1
    assert "there is no key file" in ready.console.err


def test_status_of_a_running_node(ready: Site) -> None:
    with daemon(ready.node_state, status=lambda _: RUNNING_NODE):
        assert ready.node("status", "--json") == 0
        assert ready.console.json == {"running": True, **RUNNING_NODE}
        assert ready.node("status") == 0
    out = ready.console.out
    assert "enrolled   yes, for 1 d\n" in out
    assert "(not yet trusted)" in out
    assert r"refused \x1b[2J" in out
    assert "warning    outbox.db: the disk is full\n" in out
    assert "4 outcomes for want of room" in out
    assert "2 outcomes past their time, for want of room" in out
    assert "1 outcome to damage of the disk" in out
    assert "2 packet numbers used twice: was this card copied?" in out
    assert "estimates  7 made, 2 failures of the hook\n" in out
    assert "warning    our own temperature is doubtful" in out
    assert "\x1b" not in out


def test_status_of_a_daemon_that_fails(ready: Site) -> None:
    with daemon(ready.node_state):
        assert ready.node("status") == 1
    assert "does not know 'status'" in ready.console.err


def test_queue(ready: Site) -> None:
    assert ready.node("queue") == 0
    assert "nothing was ever queued" in ready.console.out
    assert ready.node("queue", "--json") == 0
    assert ready.console.json["outbox"] is None
    filled(ready)
    assert ready.node("queue") == 0
    assert "1 outcome waiting" in ready.console.out
    assert "without a receipt" in ready.console.out
    assert "temperature 3.5" in ready.console.out
    assert "\x1b" not in ready.console.out
    assert "nothing is sent" in ready.console.err
    assert ready.node("queue", "--json", "--limit", "5") == 0
    shown = ready.console.json
    assert shown["waiting"][0]["kind"] == "partial"
    assert shown["waiting"][0]["results"] == {"temperature": 3.5}
    assert shown["unreceipted"][0]["sequence"] == 0
    assert shown["unreceipted"][0]["holders"] == 0


def test_queue_shows_what_was_refused_and_what_happened(ready: Site) -> None:
    (ready.node_state / "outbox.db").write_bytes(b"not a database" * 1000)
    filled(ready)
    identity = read_key(ready.node_state / "node.key")
    outbox = Outbox.open(ready.node_state / "outbox.db", identity.public, budget=4_000_000)
    with contextlib.closing(outbox):
        (packet,) = outbox.unreceipted()
        said = Receipt(packet.store, refused=((Reason.BOUNDS, (packet.sequence,)),))
        outbox.receipt(b"gateway.", b"\1\2\3\4", said)
    assert ready.node("queue") == 0
    assert "put aside: not sent again by itself" in ready.console.out
    assert re.search(r"notice: \S+ \S+ \w+", ready.console.out)
    assert ready.node("queue", "--json") == 0
    (refused,) = ready.console.json["refused"]
    assert refused["reason"] == "bounds"
    assert refused["gateway"] == b"gateway.".hex()
    assert refused["sequence"] == packet.sequence
    assert ready.console.json["notices"][0]["text"]


def test_queue_beside_a_running_daemon(ready: Site) -> None:
    filled(ready)
    identity = read_key(ready.node_state / "node.key")
    outbox = Outbox.open(ready.node_state / "outbox.db", identity.public, budget=4_000_000)
    with contextlib.closing(outbox), daemon(ready.node_state):
        assert ready.node("queue", "--json") == 0
        assert ready.console.json["running"] is True


def test_a_damaged_store_is_said(ready: Site) -> None:
    (ready.node_state / "outbox.db").write_bytes(b"not a database" * 100)
    for verb in ("status", "queue"):
        assert ready.node(verb) == 1
        assert ready.console.err.startswith(("error:", "note:"))
