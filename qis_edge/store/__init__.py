"""What a node keeps on its disk: its outbox, and what came for it."""

from qis_edge.store.forms import (
    Aside,
    Candidate,
    Notice,
    Pending,
    Priority,
    Queued,
    Receipt,
    Settled,
    Stats,
    Unclocked,
)
from qis_edge.store.outbox import Outbox
from qis_edge.store.reader import OutboxReader

__all__ = [
    "Aside",
    "Candidate",
    "Notice",
    "Outbox",
    "OutboxReader",
    "Pending",
    "Priority",
    "Queued",
    "Receipt",
    "Settled",
    "Stats",
    "Unclocked",
]
