"""The spool's tables, one script for each step from version to version.

A script that was released is never edited: what changes comes as the next one, and a file of
each earlier version is kept in ``tests/gateway/old`` and opened by the tests.
"""

from __future__ import annotations

from qis_edge.store.database import Schema

SCHEMA = Schema(
    name="spool",
    application_id=0x51495350,
    migrations=(
        """
        CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
        INSERT INTO facts VALUES
            ('epoch', randomblob(4)), ('since', 0), ('last', 0), ('packets', 0), ('bytes', 0);
        CREATE TABLE origins (
            origin INTEGER PRIMARY KEY,
            kid BLOB NOT NULL,
            store BLOB NOT NULL,
            floor INTEGER NOT NULL DEFAULT 0,
            UNIQUE (kid, store)
        );
        CREATE TABLE ranges (
            origin INTEGER NOT NULL,
            first INTEGER NOT NULL,
            last INTEGER NOT NULL,
            PRIMARY KEY (origin, first)
        ) WITHOUT ROWID;
        CREATE TABLE packets (
            position INTEGER PRIMARY KEY,
            origin INTEGER NOT NULL,
            sequence INTEGER NOT NULL,
            received INTEGER NOT NULL,
            route INTEGER NOT NULL,
            time INTEGER NOT NULL,
            expires INTEGER NOT NULL,
            confidence INTEGER NOT NULL,
            vector BLOB,
            raw BLOB NOT NULL
        );
        CREATE UNIQUE INDEX numbers ON packets (origin, sequence);
        CREATE INDEX age ON packets (received);
        CREATE TABLE engines (
            url TEXT PRIMARY KEY,
            incarnation TEXT NOT NULL DEFAULT '',
            position INTEGER NOT NULL DEFAULT 0
        ) WITHOUT ROWID;
        CREATE TABLE proofs (
            origin INTEGER NOT NULL,
            sequence INTEGER NOT NULL,
            received INTEGER NOT NULL,
            held BLOB NOT NULL,
            other BLOB NOT NULL
        );
        CREATE INDEX proven ON proofs (origin);
        """,
        # SQLite does not notice a flipped bit within a row. Rows of before have no checksum.
        """
        ALTER TABLE packets ADD COLUMN crc INTEGER;
        ALTER TABLE ranges ADD COLUMN crc INTEGER;
        """,
    ),
)
