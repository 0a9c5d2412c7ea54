"""What a node keeps on its disk: its outbox, and what came for it."""

from qis_edge.core.priority import Priority
from qis_edge.store.forms import (
    Answer,
    Aside,
    Candidate,
    Notice,
    Pending,
    Queued,
    Settled,
    Stats,
    Unclocked,
)
from qis_edge.store.inbox import Inbox, InboxStats, KnownGateway, Limits, Position
from qis_edge.store.outbox import Outbox
from qis_edge.store.reader import OutboxReader

__all__ = [
    "Answer",
    "Aside",
    "Candidate",
    "Inbox",
    "InboxStats",
    "KnownGateway",
    "Limits",
    "Notice",
    "Outbox",
    "OutboxReader",
    "Pending",
    "Position",
    "Priority",
    "Queued",
    "Settled",
    "Stats",
    "Unclocked",
]
