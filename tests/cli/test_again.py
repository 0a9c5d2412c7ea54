"""``qis-edge queue --retry`` and ``qis-gateway recall``: what is to be sent again."""

from __future__ import annotations

import contextlib

import pytest

from gateway.spool import Spool
from qis_edge.core.errors import Reason
from qis_edge.core.receipt import Receipt
from qis_edge.keys import read_key
from qis_edge.store.outbox import Outbox
from tests.cli.kit import Site, daemon, deposited, filled


def refused(ready: Site) -> None:
    """An outbox of which a gateway refused a packet."""
    filled(ready)
    identity = read_key(ready.node_state / "node.key")
    outbox = Outbox.open(ready.node_state / "outbox.db", identity.public, budget=4_000_000)
    with contextlib.closing(outbox):
        (packet,) = outbox.unreceipted()
        said = Receipt(packet.store, refused=((Reason.BOUNDS, (packet.sequence,)),))
        outbox.receipt(b"gateway.", b"\1\2\3\4", said)


def test_what_was_put_aside_is_sent_again(ready: Site) -> None:
    refused(ready)
    assert ready.node("queue") == 0
    assert "queue --retry" in ready.console.out
    assert ready.node("queue", "--retry") == 0
    assert "1 packet that had been put aside" in ready.console.out
    assert "put aside: not sent" not in ready.console.out
    assert ready.node("queue", "--retry", "--json") == 0
    shown = ready.console.json
    assert shown["retried"] == 0
    assert (len(shown["unreceipted"]), shown["refused"]) == (1, [])


def test_a_running_daemon_does_it_itself(ready: Site) -> None:
    filled(ready)
    with daemon(ready.node_state, retry=lambda _: {"retried": 3}):
        assert ready.node("queue", "--retry", "--json") == 0
        assert ready.console.json["retried"] == 3


def test_recall_begins_another_epoch(ready: Site) -> None:
    assert ready.gateway("recall") == 1
    assert "nothing to do" in ready.console.err
    deposited(ready)
    path = ready.gateway_state / "spool.db"
    epochs = set()
    for arguments, since in ((), 0), (("--since", "2026-06-01"), 1_780_272_000):
        assert ready.gateway("recall", *arguments) == 0
        assert "send again" in ready.console.out
        with contextlib.closing(Spool(path, read_only=True)) as spool:
            assert spool.since == since
            epochs.add(spool.epoch)
    assert len(epochs) == 2
    with daemon(ready.gateway_state):
        assert ready.gateway("recall") == 1
        assert "the gateway is running" in ready.console.err


@pytest.mark.parametrize("since", ["yesterday", "2026-13-01", ""])
def test_a_date_that_is_none_is_refused(ready: Site, since: str) -> None:
    assert ready.gateway("recall", "--since", since) == 2
    assert "2026-06-01" in ready.console.err
