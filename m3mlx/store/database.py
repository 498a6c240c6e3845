"""The SQLite file under the catalog: its schema, versions, transactions and errors.

One connection serves all threads of a process, one at a time. SQLite's errors become StoreError.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqlite_utils import Database, Migrations

from ..errors import StoreError
from .files import replacing

BUSY_SECONDS = 10  # how long one process waits for another's commit
TOKENIZER = "porter unicode61"
_PAGE = 16384  # of the database: six references fit, where 4096 hold one and waste a third

migrations = Migrations("m3mlx.store")


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


class Connection:
    """An open database. Read inside ``snapshot``, write inside ``transaction``."""

    @staticmethod
    def create(path: Path, settings: Mapping[str, object]) -> None:
        """Make a database with these settings: complete under its name, or not at all."""
        with replacing(path) as new:
            db = Database(sqlite3.connect(new, isolation_level=None), execute_plugins=False)
            db.execute(f"PRAGMA page_size={_PAGE}")
            db.execute("PRAGMA journal_mode=MEMORY")  # a crash leaves no half-made file to mend
            migrations.apply(db)
            for name, value in settings.items():
                db["setting"].insert({"name": name, "value": json.dumps(value)})
            db.close()

    def __init__(self, path: Path, *, write: bool = False):
        """Open a database. Raises StoreError if it is damaged, foreign or of another version."""
        self.path = path
        self.thread = threading.RLock()
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",  # never makes a new one
            uri=True,
            isolation_level=None,
            check_same_thread=False,  # thread serialises
            timeout=BUSY_SECONDS,
        )
        self.db = Database(connection, execute_plugins=False)
        try:
            with self.translated():
                self._prepare(write)
        except BaseException:
            self.close()
            raise

    def _prepare(self, write: bool) -> None:
        for pragma in ("foreign_keys", "secure_delete", "fullfsync", "cell_size_check"):
            self.db.execute(f"PRAGMA {pragma}=ON")
        try:
            applied = {migration.name for migration in migrations.applied(self.db)}
        except KeyError as error:
            raise self.damaged(f"its list of migrations has no {error}") from error
        if not applied:
            raise StoreError(f"{self.path}: this is not a catalog of m3mlx. Name another folder.")
        known = {migration.name for migration in migrations.pending(Database(memory=True))}
        if applied - known:
            raise StoreError(f"{self.path}: it was made by a newer m3mlx. Upgrade this one.")
        if known - applied and not write:
            raise StoreError(
                f"{self.path}: it was made by an older m3mlx. Run `m3mlx memorize` on any file "
                f"once to bring it up to date."
            )
        if write:
            self.db.execute("PRAGMA journal_mode=WAL")
            migrations.apply(self.db)
        else:
            self.db.execute("PRAGMA query_only=ON")

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is committed and on the disk at the end, or nothing is."""
        # IMMEDIATE: a deferred transaction that turns into a writing one fails without waiting
        with self.thread, self.translated(), self._inside("BEGIN IMMEDIATE"):
            yield

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything inside sees one commit, whatever others write meanwhile."""
        with self.thread, self.translated(), self._inside("BEGIN"):
            yield

    @contextmanager
    def _inside(self, begin: str) -> Iterator[None]:
        self.db.execute(begin)
        try:
            yield
            self.db.commit()
        except BaseException:
            self.db.rollback()
            raise

    @contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:  # a mistake of the caller, such as use after close
            raise
        except UnicodeEncodeError as error:
            raise StoreError(
                f"{self.path}: {error.object[:80]!a} cannot be stored, it is not valid Unicode. "
                f"Rename the file, or save it as UTF-8."
            ) from error
        except (sqlite3.Error, UnicodeDecodeError) as error:
            name = getattr(error, "sqlite_errorname", "")
            if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                what = "another process holds it. Wait until it has finished, then try again."
            elif name.startswith(("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_CANTOPEN")):
                what = "it cannot be written. Make room or allow writing, then try again."
            elif name.startswith("SQLITE_IOERR"):
                what = "the disk does not answer as it should. Check it, then try again."
            else:
                what = (
                    "it is damaged or not a catalog. Restore it from a backup, or remove the "
                    "store's folder and memorize the documents again."
                )
            raise StoreError(f"{self.path}: {what} ({error})") from error

    def damaged(self, what: str) -> StoreError:
        return StoreError(
            f"{self.path}: {what}. Restore it from a backup, or remove the store's folder and "
            f"memorize the documents again."
        )
