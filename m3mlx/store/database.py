"""The SQLite file under the catalog: its versions, transactions and errors.

One connection serves all threads of a process, one at a time. SQLite's errors become StoreError.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqlite_utils import Database

from .. import files
from ..errors import StoreError
from .migrations import migrations
from .rows import Edition

BUSY_SECONDS = 10  # how long one process waits for another's commit
_PAGE = 16384  # of the database: six references fit, where 4096 hold one and waste a third


class OlderSchema(StoreError):
    """A catalog must be brought up to date, which only a writer may do."""


class Connection:
    """An open database. Read inside ``snapshot``, write inside ``transaction``."""

    @staticmethod
    def create(
        path: Path,
        settings: Mapping[str, object],
        editions: Iterable[Edition] = (),
        changes: Iterable[str] = (),
    ) -> None:
        """Make a database with these settings: complete under its name, or not at all.

        ``changes`` are statements that follow those of the schema.
        """
        with files.replacing(path) as new:
            db = Database(sqlite3.connect(new, isolation_level=None), execute_plugins=False)
            db.execute(f"PRAGMA page_size={_PAGE}")
            db.execute("PRAGMA journal_mode=MEMORY")  # a crash leaves no half-made file to mend
            migrations.apply(db)
            for name, value in settings.items():
                db["setting"].insert({"name": name, "value": json.dumps(value)})
            for edition in editions:
                db["edition"].insert(edition_row(edition))
            for statement in changes:
                db.execute(statement)
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
            raise OlderSchema(f"{self.path}: it was made by an older m3mlx.")
        if write:
            # VACUUM writes all text to a temporary file, which must not lie anywhere else
            folder = str(self.path.absolute().parent).replace("'", "''")
            self.db.execute(f"PRAGMA temp_store_directory='{folder}'")
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
        with self.thread, self.translated():
            with self._inside("BEGIN IMMEDIATE"):
                yield
                files.step("committing")
            files.step("committed")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything inside sees one commit, whatever others write meanwhile.

        Inside of another snapshot or a transaction it is part of that.
        """
        with self.thread, self.translated():
            if self.db.conn.in_transaction:
                yield
            else:
                with self._inside("BEGIN"):
                    yield

    def empty_log(self) -> bool:
        """Move the log into the database file; False if a reader keeps it from being emptied.

        Call it outside of transactions. It does not wait.
        """
        with self.thread, self.translated():
            self.db.execute("PRAGMA busy_timeout=0")
            try:
                return not self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.OperationalError:  # somebody reads or looks at this very moment
                return False
            finally:
                self.db.execute(f"PRAGMA busy_timeout={int(1000 * BUSY_SECONDS)}")

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
        except UnicodeEncodeError as error:  # whose text may be the document's
            raise StoreError(
                f"{self.path}: a text cannot be stored, it is not valid Unicode. Save its file as "
                f"UTF-8."
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


def edition_row(edition: Edition) -> dict[str, object]:
    """An edition as its row, without the id that the database gives it."""
    row = dict(vars(edition))
    del row["id"]
    for name in ("fingerprint", "memory"):
        row[name] = json.dumps(row[name], sort_keys=True)
    return row
