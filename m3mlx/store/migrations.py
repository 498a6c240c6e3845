"""The schema of the catalog, as numbered steps from the first release on.

Each step runs once in one transaction. What has been released is never edited: a change is a
new step at the end. tests/data has a store of each format that was ever released.
"""

from __future__ import annotations

import hashlib
import sqlite3
from functools import cache, lru_cache

from sqlite_utils import Database, Migrations

from . import pieces

TOKENIZER = "porter unicode61"
LEDGER = Migrations.migrations_table
_FULL_TEXT = {  # which an encrypted catalog does not have
    *("words", "words_config", "words_data", "words_docsize", "words_idx"),
    *("piece", "piece_config", "piece_content", "piece_data", "piece_docsize", "piece_idx"),
    *("reference_added", "reference_removed", "reference_pieces_removed"),
}
_PRESENT = {  # SHA-256 of the schema after all steps, as it is listed: comparing takes longer
    "919d18b222c7f71126ee913d88e44d8e42aae21dcfd5f03335f33c208c8c3ba5",  # plain
    "b35e50564b679c3aaa6de11a5d3fc836a2355f2fd8350988e4abed3c29c76fab",  # encrypted
}

migrations = Migrations("m3mlx.store")


@cache
def steps() -> tuple[str, ...]:
    """Names of all steps, in order."""
    return tuple(step.name for step in migrations.pending(_new()))


def apply(conn: sqlite3.Connection) -> None:
    """Bring a database up to date."""
    migrations.apply(Database(conn, execute_plugins=False))


def state(conn: sqlite3.Connection) -> tuple[set[str], str]:
    """Names of the steps that a database has been through, none if it is not a catalog; and what
    it has or lacks that it does not after these steps, "" for nothing."""
    rows = conn.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()
    if all((kind, name) != ("table", LEDGER) for kind, name, _ in rows):
        return set(), ""
    ledger = f"SELECT name FROM {LEDGER} WHERE migration_set = ?"
    applied = {name for (name,) in conn.execute(ledger, [migrations.name])}
    if applied == set(steps()) and _is_present(tuple(rows)):
        return applied, ""
    return applied, _difference(conn, len(applied)) if applied <= set(steps()) else ""


@lru_cache(maxsize=8)
def _is_present(rows: tuple) -> bool:
    return hashlib.sha256(repr(list(rows)).encode()).hexdigest() in _PRESENT


def _difference(conn: sqlite3.Connection, count: int) -> str:
    """What a database has or lacks that it does not after so many steps; "" for nothing."""
    found, expected = objects(conn), schema(count)
    for (kind, name), sql in found.items():
        known = expected.get((kind, name))
        if known is None or (sql != known and not (kind == "table" and _alike(conn, name, count))):
            return f"it has a {kind} {name:.40} that no m3mlx has made"
    if lost := {name for _, name in expected.keys() - found.keys()} - _FULL_TEXT:
        return f"it has no {min(lost)}"
    return ""


def _alike(conn: sqlite3.Connection, table: str, count: int) -> bool:
    """Return whether a table has our columns, however its SQL is written."""
    columns = f"PRAGMA table_xinfo({table})"
    sql = "SELECT sql FROM sqlite_master WHERE name = ?"
    virtual = "virtual" in conn.execute(sql, [table]).fetchone()[0].lower()
    made = _made(count).conn
    return not virtual and set(conn.execute(columns)) <= set(made.execute(columns))


@cache
def schema(count: int) -> dict[tuple[str, str], str]:
    """SQL of each table, index and trigger after so many steps, by kind and name."""
    return objects(_made(count).conn)


def _made(count: int) -> Database:
    """An empty catalog after so many steps."""
    db = _new()
    migrations.apply(db, stop_before=steps()[count] if count < len(steps()) else None)
    return db


def _new() -> Database:
    return Database(memory=True, execute_plugins=False)


def objects(conn: sqlite3.Connection) -> dict[tuple[str, str], str]:
    """SQL of all that a database has, by kind and name, without the indexes of constraints."""
    rows = conn.execute("SELECT type, name, sql FROM sqlite_master WHERE sql NOT NULL").fetchall()
    return {(kind, name): " ".join(sql.split()) for kind, name, sql in rows}


@migrations()
def m001_first(db: Database) -> None:
    for statement in (
        "CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        """CREATE TABLE document (
            id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL, hash TEXT NOT NULL,
            size INTEGER NOT NULL, count INTEGER NOT NULL, complete INTEGER NOT NULL,
            added TEXT NOT NULL, UNIQUE (path, complete))""",
        """CREATE TABLE reference (
            slot INTEGER PRIMARY KEY,
            document INTEGER NOT NULL REFERENCES document (id) ON DELETE CASCADE,
            ordinal INTEGER NOT NULL, "start" INTEGER NOT NULL, "end" INTEGER NOT NULL,
            page INTEGER, line INTEGER, text TEXT NOT NULL, tokens BLOB NOT NULL,
            vector BLOB NOT NULL, checksum INTEGER NOT NULL, warm INTEGER NOT NULL,
            UNIQUE (document, ordinal))""",
        "CREATE INDEX reference_of ON reference (document, warm)",  # to count without reading
        "CREATE INDEX reference_warm ON reference (warm)",
        # slots whose reference is gone and whose bytes are still in the record file
        "CREATE TABLE leftover (slot INTEGER PRIMARY KEY)",
        f"""CREATE VIRTUAL TABLE words USING fts5 (
            text, content='reference', content_rowid='slot', tokenize='{TOKENIZER}')""",
        """CREATE TRIGGER reference_added AFTER INSERT ON reference BEGIN
            INSERT INTO words (rowid, text) VALUES (new.slot, new.text); END""",
        """CREATE TRIGGER reference_removed AFTER DELETE ON reference BEGIN
            INSERT INTO words (words, rowid, text) VALUES ('delete', old.slot, old.text); END""",
    ):
        db.execute(statement)


@migrations()
def m002_editions(db: Database) -> None:
    """Memories of several models side by side; changes since the index; quarantine; a bound."""
    for statement in (
        """CREATE TABLE edition (
            id INTEGER PRIMARY KEY AUTOINCREMENT, fingerprint TEXT NOT NULL UNIQUE,
            memory TEXT NOT NULL, record_bytes INTEGER NOT NULL, file TEXT NOT NULL UNIQUE,
            origin INTEGER NOT NULL, added TEXT NOT NULL, overhead INTEGER NOT NULL DEFAULT 0)""",
        """INSERT INTO edition
            SELECT 1, f.value, m.value, r.value, 'memories.kv', 0,
                strftime('%Y-%m-%dT%H:%M:%S+00:00'), 0
            FROM setting f, setting m, setting r
            WHERE f.name = 'fingerprint' AND m.name = 'memory' AND r.name = 'record_bytes'""",
        # which references have a memory
        """CREATE TABLE memory (
            edition INTEGER NOT NULL, slot INTEGER NOT NULL,
            PRIMARY KEY (edition, slot)) WITHOUT ROWID""",
        "INSERT INTO memory SELECT e.id, r.slot FROM edition e, reference r WHERE r.warm",
        # slots whose memory is gone and whose bytes are still in a record file
        "ALTER TABLE leftover RENAME TO leftover_before",
        """CREATE TABLE leftover (
            edition INTEGER NOT NULL, slot INTEGER NOT NULL,
            PRIMARY KEY (edition, slot)) WITHOUT ROWID""",
        "INSERT INTO leftover SELECT 1, slot FROM leftover_before",
        "DROP TABLE leftover_before",
        "DROP INDEX reference_of",
        "DROP INDEX reference_warm",
        "ALTER TABLE reference DROP COLUMN warm",
        "ALTER TABLE reference ADD COLUMN quarantined INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX reference_quarantined ON reference (slot) WHERE quarantined",
        # of the tokens of its references; the commit since which it can be found
        "ALTER TABLE document ADD COLUMN tokenizer TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE document ADD COLUMN since INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX document_since ON document (since)",
        """UPDATE document SET tokenizer = coalesce(
            (SELECT json_extract(fingerprint, '$.tokenizer') FROM edition), '')""",
        # nobody knows what an index that is behind lacks
        """UPDATE setting SET value = 'null' WHERE name = 'seal' AND
            json_extract(value, '$.commit') IS NOT
            (SELECT CAST(value AS INTEGER) FROM setting WHERE name = 'commit')""",
        "INSERT INTO setting SELECT 'max_bytes', 'null' WHERE EXISTS (SELECT 1 FROM setting)",
        "DELETE FROM setting WHERE name IN ('fingerprint', 'memory', 'record_bytes')",
    ):
        db.execute(statement)


@migrations()
def m003_collections(db: Database) -> None:
    """Which collection a document is in, if it is in one."""
    db.execute(
        """CREATE TABLE collection (
            document INTEGER PRIMARY KEY REFERENCES document (id) ON DELETE CASCADE,
            name TEXT NOT NULL)"""
    )


@migrations()
def m004_ties(db: Database) -> None:
    """Record files that belong to this catalog, and records that belong to a text."""
    for statement in (
        "ALTER TABLE edition ADD COLUMN tie TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE edition ADD COLUMN next_tie TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE edition ADD COLUMN unbound INTEGER NOT NULL DEFAULT 0",
        """UPDATE edition SET unbound = coalesce(
            (SELECT CAST(value AS INTEGER) FROM setting WHERE name = 'next_slot'), 0)""",
    ):
        db.execute(statement)


@migrations()
def m005_root(db: Database) -> None:
    """What encrypted stores know of documents, bound to its row, and rows to the catalog."""
    for statement in (
        "ALTER TABLE document ADD COLUMN sealed TEXT NOT NULL DEFAULT ''",
        "INSERT INTO setting SELECT 'root', 'null' WHERE EXISTS (SELECT 1 FROM setting)",
    ):
        db.execute(statement)


@migrations()
def m006_pieces(db: Database) -> None:
    """Pieces of words, where the words of a text do not stand apart; not of encrypted stores."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'words'").fetchone():
        db.execute(pieces.TABLE)
        db.execute(
            """CREATE TRIGGER reference_pieces_removed AFTER DELETE ON reference BEGIN
                DELETE FROM piece WHERE rowid = old.slot; END"""
        )
        pieces.fill(db.conn)


@migrations()
def m007_facts(db: Database) -> None:
    """Who said a fact, and what it replaced."""
    db.execute(
        """CREATE TABLE fact (
            document INTEGER PRIMARY KEY REFERENCES document (id) ON DELETE CASCADE,
            details TEXT NOT NULL)"""
    )
