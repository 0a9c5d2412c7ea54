"""Made the files of this folder, each with the version whose schema it has.

A file is never made again: it stands for the stores that are out there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from qis_edge.core.credential import RevocationList, issue
from qis_edge.core.receipt import Receipt
from qis_edge.store import Inbox, Outbox, Position, Unclocked
from tests.store import kit


def make_outbox(path: Path) -> None:
    """Waiting, untimed, open, held and refused outcomes, and a boot that is known."""
    with Outbox.open(path, kit.ME.public) as box:
        packets = kit.pack_each(box, 6)
        kit.held(box, packets[0].store, 0, 1)
        box.receipt(kit.GATEWAY, kit.EPOCH, Receipt(packets[0].store, refused=((10, (2,)),)))
        kit.fill(box, 4, first=6)
        box.append(kit.outcome(0, at=1.0), kit.ADDRESS, unclocked=Unclocked("boot", 60.0))
        box._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def make_inbox(path: Path) -> None:
    """Packets, a cursor, a gateway, a credential, a revocation list, a peer, ourselves."""
    box, _ = Inbox.open(path)
    with box:
        packets = [kit.peer_packet(n, n) for n in range(5)]
        box.put(packets, now=kit.T0, position=Position(kit.GATEWAY, b"cursor"))
        box.met_gateway(kit.GATEWAY, kit.EPOCH, kit.T0)
        issued = issue(
            kit.ME,
            subject="peer",
            key=kit.OTHER.public,
            scope="node",
            expires=kit.T0,
            serial=b"0001",
        )
        box.keep_credential(issued.raw)
        box.keep_revocation(RevocationList.issue(kit.ME, number=4, issued=kit.T0, kids=[]).raw)
        box.keep_peer_states({kit.OTHER.kid: b"good"})
        box.keep_own(kit.ADDRESS, [kit.outcome(1)])


if __name__ == "__main__":
    make_outbox(Path(sys.argv[1]) / "outbox-1.db")
    make_inbox(Path(sys.argv[1]) / "inbox-1.db")
