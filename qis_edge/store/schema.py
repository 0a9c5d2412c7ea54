"""The schemas of the node's two files, one script for each step from version to version.

A script that was released is never edited: what changes comes as the next script, and a
file of each version is kept in ``tests/store/old`` and opened by the tests.
"""

from __future__ import annotations

from qis_edge.store.database import Schema

# What is written most is kept small and without further indexes. Appending to a backlog
# writes one page, of `arrivals`: the counters that it changes can be told from its rows,
# until any other change takes them along and moves the rows to where packing finds them
# together. A packet's id is its store's number times 2^32 plus its sequence, so it sorts
# by age and needs no index of its own.
_OUTBOX_1 = """
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    key BLOB NOT NULL,             -- thumbprint of the key that signs here
    host TEXT NOT NULL,            -- the machine that it was made on, or ''
    inode INTEGER NOT NULL,        -- of this file: another one means a copy
    clock INTEGER NOT NULL,        -- it is not earlier than this, unix seconds
    last_row INTEGER NOT NULL,     -- id of the newest outcome
    store INTEGER NOT NULL,        -- number of the store that packs now
    sequence INTEGER NOT NULL,     -- its next sequence
    announced INTEGER NOT NULL,    -- the floor that was last packed
    dropped INTEGER NOT NULL,      -- its highest sequence that will never come, or -1
    made INTEGER NOT NULL DEFAULT 0,
    waiting INTEGER NOT NULL DEFAULT 0,
    untimed INTEGER NOT NULL DEFAULT 0,
    packed INTEGER NOT NULL DEFAULT 0,
    packets INTEGER NOT NULL DEFAULT 0,
    open_packets INTEGER NOT NULL DEFAULT 0,
    open_outcomes INTEGER NOT NULL DEFAULT 0,
    held_packets INTEGER NOT NULL DEFAULT 0,
    held_outcomes INTEGER NOT NULL DEFAULT 0,
    refused_packets INTEGER NOT NULL DEFAULT 0,
    refused_outcomes INTEGER NOT NULL DEFAULT 0,
    unpackable INTEGER NOT NULL DEFAULT 0,
    evicted_packets INTEGER NOT NULL DEFAULT 0,
    evicted_receipted INTEGER NOT NULL DEFAULT 0,
    evicted_expired INTEGER NOT NULL DEFAULT 0,
    evicted_unsent INTEGER NOT NULL DEFAULT 0,
    unreadable INTEGER NOT NULL DEFAULT 0,
    conflicts INTEGER NOT NULL DEFAULT 0,
    crc INTEGER NOT NULL
) STRICT;

CREATE TABLE stores (
    number INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    at INTEGER NOT NULL,           -- clock floor when it began
    why TEXT NOT NULL,
    crc INTEGER NOT NULL
) STRICT;

-- Outcomes that may share a packet. A group is there while it has waiting ones.
CREATE TABLE groups (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,      -- hash of the next four
    fingerprint BLOB NOT NULL,
    priority INTEGER NOT NULL,
    ttl INTEGER NOT NULL,
    extensions TEXT NOT NULL,
    head INTEGER NOT NULL,         -- its oldest outcome
    head_expires INTEGER NOT NULL
) STRICT;
CREATE INDEX groups_in_order ON groups (priority, head);

CREATE TABLE waiting (
    grp INTEGER NOT NULL,
    id INTEGER NOT NULL,
    time INTEGER NOT NULL,
    body BLOB NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (grp, id)
) STRICT, WITHOUT ROWID;

-- Waiting ones that came since the last change of `state`, which does not count them.
CREATE TABLE arrivals (
    id INTEGER PRIMARY KEY,
    grp INTEGER NOT NULL,
    time INTEGER NOT NULL,
    body BLOB NOT NULL,
    crc INTEGER NOT NULL
) STRICT;

-- Outcomes that do not know their time yet.
CREATE TABLE untimed (
    priority INTEGER NOT NULL,
    id INTEGER NOT NULL,
    boot INTEGER NOT NULL,
    monotonic REAL NOT NULL,
    fingerprint BLOB NOT NULL,
    ttl INTEGER NOT NULL,
    extensions TEXT NOT NULL,
    body BLOB NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (priority, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE boots (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    clock INTEGER NOT NULL,        -- it began no earlier than this
    offset REAL,                   -- unix seconds at its monotonic zero, once known
    uncertainty REAL
) STRICT;

CREATE TABLE packets (
    id INTEGER PRIMARY KEY,
    rank INTEGER NOT NULL,         -- the priority while it is to be sent, -1 once held
    priority INTEGER NOT NULL,
    holders INTEGER NOT NULL,      -- bits of `gateways`
    count INTEGER NOT NULL,
    last_time INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    raw BLOB NOT NULL,
    crc INTEGER NOT NULL
) STRICT;
CREATE INDEX packets_in_order ON packets (rank);
CREATE INDEX packets_expiring ON packets (expires);

-- Ids of packets that are here no more: late receipts may still name them.
CREATE TABLE stubs (
    id INTEGER PRIMARY KEY,
    packet BLOB NOT NULL
) STRICT;

-- What will never be sent: refused packets, and outcomes that no packet carries.
CREATE TABLE aside (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,           -- clock floor when it came here
    packet INTEGER,                -- its id as in `packets`, or NULL: an outcome
    reason INTEGER NOT NULL,       -- code of the refusal, 0 for an outcome
    detail TEXT NOT NULL,
    gateway BLOB NOT NULL,         -- who refused it, or ''
    priority INTEGER NOT NULL,
    count INTEGER NOT NULL,
    content BLOB NOT NULL
) STRICT;

CREATE TABLE gateways (
    bit INTEGER PRIMARY KEY,
    kid BLOB NOT NULL,
    epoch BLOB NOT NULL,
    UNIQUE (kid, epoch)
) STRICT;

CREATE TABLE notices (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,           -- clock floor when it happened
    code TEXT NOT NULL,
    text TEXT NOT NULL
) STRICT;
"""

OUTBOX = Schema("QIS Edge outbox", 0x51495341, (_OUTBOX_1,))

_INBOX_1 = """
CREATE TABLE addresses (
    id INTEGER PRIMARY KEY,
    fingerprint BLOB NOT NULL UNIQUE
) STRICT;

CREATE TABLE senders (
    id INTEGER PRIMARY KEY,
    kid BLOB NOT NULL UNIQUE,
    count INTEGER NOT NULL,        -- of its packets here
    bytes INTEGER NOT NULL
) STRICT;

CREATE TABLE packets (
    id INTEGER PRIMARY KEY,
    packet BLOB NOT NULL UNIQUE,   -- the packet's id
    address INTEGER NOT NULL,
    sender INTEGER NOT NULL,
    time INTEGER NOT NULL,         -- start of its newest outcome
    expires INTEGER NOT NULL,
    raw BLOB NOT NULL
) STRICT;
CREATE INDEX packets_by_address ON packets (address, time);
CREATE INDEX packets_by_sender ON packets (sender, time);
CREATE INDEX packets_by_time ON packets (time);
CREATE INDEX packets_expiring ON packets (expires);

CREATE TABLE cursors (
    gateway BLOB NOT NULL,
    scope BLOB NOT NULL,
    cursor BLOB NOT NULL,
    PRIMARY KEY (gateway, scope)
) STRICT, WITHOUT ROWID;

CREATE TABLE credentials (
    id INTEGER PRIMARY KEY,
    kid BLOB NOT NULL UNIQUE,
    rank INTEGER NOT NULL,         -- 0: of an issuer or a gateway, 1: of a node
    expires INTEGER NOT NULL,
    raw BLOB NOT NULL
) STRICT;

CREATE TABLE revocations (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    number INTEGER NOT NULL,
    raw BLOB NOT NULL
) STRICT;

CREATE TABLE gateways (
    kid BLOB PRIMARY KEY,
    epoch BLOB NOT NULL,
    seen INTEGER NOT NULL
) STRICT;

CREATE TABLE peers (
    kid BLOB PRIMARY KEY,
    state BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Our own outcomes of late: what peers are compared with.
CREATE TABLE own (
    fingerprint BLOB NOT NULL,
    time INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (fingerprint, time)
) STRICT, WITHOUT ROWID;
CREATE INDEX own_by_time ON own (time);
"""

INBOX = Schema("QIS Edge inbox", 0x51495349, (_INBOX_1,))
