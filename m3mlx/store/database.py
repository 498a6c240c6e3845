"""The SQLite file under the catalog: its versions, transactions and errors.

One connection serves all threads of a process, one at a time. SQLite's errors become StoreError.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from .. import files
from ..errors import StoreError
from . import migrations, pages

BUSY_SECONDS = 10  # how long one process waits for another's commit
_PAGE = 16384  # of the database: six references fit, where 4096 hold one and waste a third
_MOST_ERRORS = 20  # of one file that SQLite lists


@contextmanager
def new_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a database with an empty schema to fill; it then becomes ``path``, or not at all."""
    with errors_translated(path), files.replacing(path) as new:
        conn = sqlite3.connect(new, isolation_level=None)
        conn.execute(f"PRAGMA page_size={_PAGE}")
        conn.execute("PRAGMA journal_mode=MEMORY")  # a crash leaves no half-made file to mend
        migrations.apply(conn)
        yield conn
        conn.close()


@contextmanager
def committed(conn: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """Commit what happens inside, or roll it back after an error."""
    # IMMEDIATE: a deferred transaction that turns into a writing one fails without waiting
    conn.execute(begin)
    try:
        yield
        conn.commit()
    except BaseException:
        conn.rollback()
        raise


def integrity_errors(conn: sqlite3.Connection, *, quick: bool = False) -> Iterator[str]:
    """Yield what SQLite finds wrong with the pages, indexes and foreign keys of a file."""
    pragma = "quick_check" if quick else "integrity_check"
    for (line,) in conn.execute(f"PRAGMA {pragma}({_MOST_ERRORS})").fetchall():
        if line != "ok":
            yield str(line)
    if broken := conn.execute("PRAGMA foreign_key_check").fetchall():
        yield f"{len(broken)} rows belong to no row of another table"


class Connection:
    """An open database. Read inside ``snapshot``, write inside ``transaction``.

    Attributes:
        conn: the connection of the standard library.
        lock: held by the thread whose turn it is.
        outdated: whether this is a copy of a database of an older version, brought up to date.
        begins, ends: called at the begin of each transaction, and before its commit.
    """

    def __init__(self, path: Path, *, write: bool = False, attached: bool = False):
        """Open a database. Raises StoreError if it is damaged, foreign or of another version.

        Without ``write`` nothing of it is changed: a database of an older version is copied into
        memory, and brought up to date there.

        Args:
            attached: leave no trace beside it either, as readers otherwise do for a while.
        """
        self.path = path
        self.lock = threading.RLock()
        self.outdated = False
        self.begins: Callable[[], object] = lambda: None
        self.ends: Callable[[], object] = lambda: None
        self._write, self._attached = write, attached
        with self.errors_translated(), files.os_errors_as_store_errors(path):
            self._held: pages.Database | None = pages.hold(path)
            try:
                self._connect()
            except BaseException:
                pages.release(self._held)
                raise

    def _connect(self) -> None:
        """Connect in the way that leaves most alone, and get ready."""
        self._read_as: object = None  # the state of the files that is read, if it is of one moment
        name = self.path.absolute().as_uri()
        if not self._attached and all(map(files.is_writable, (self.path, self.path.parent))):
            self.conn = _connected(f"{name}?mode=rw", uri=True)
        elif self._beside("shm").exists():  # another process has it open
            self.conn = _connected(f"{name}?mode=ro", uri=True)
        else:
            self._read_as = state = self._state()
            log = state[1]
            immutable = f"{name}?mode=ro&immutable=1"
            self.conn = self._copied() if log and log[1] else _connected(immutable, uri=True)
        try:
            self._prepare(self._write)
        except BaseException:
            self.conn.close()
            raise

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(f"{self.path.name}-{ending}")

    def _state(self) -> list[tuple[int, int, int] | None]:
        """What changes with the file, and with its log."""
        states: list[tuple[int, int, int] | None] = []
        for file in (self.path, self._beside("wal")):
            try:
                state = file.stat()
                states.append((state.st_ino, state.st_size, state.st_mtime_ns))
            except FileNotFoundError:
                states.append(None)
        return states

    def _copied(self) -> sqlite3.Connection:
        """A copy in memory of a database whose log a process that died has left."""
        copy = _connected(":memory:")
        log = self._beside("wal").read_bytes()
        copy.deserialize(bytes(pages.with_log(self.path.read_bytes(), log)))
        return copy

    def _prepare(self, write: bool) -> None:
        self.execute("PRAGMA trusted_schema=OFF")
        self.execute(
            "PRAGMA synchronous=FULL"
        )  # some systems wait for the disk at checkpoints only
        self.execute("PRAGMA fullfsync=ON")  # who closes last moves the log, reader or not
        self.execute("PRAGMA cell_size_check=ON")
        applied, what = migrations.state(self.conn)
        if not applied:
            raise StoreError(f"{self.path}: this is not a catalog of m3mlx. Name another folder.")
        if not applied <= set(migrations.steps()):
            raise StoreError(f"{self.path}: it was made by a newer m3mlx. Upgrade this one.")
        if what:
            raise self.damaged(what)
        if len(applied) < len(migrations.steps()) and not write:
            self.outdated, copy = True, _connected(":memory:")
            self.conn.backup(copy)
            self.conn.close()
            self.conn, self._read_as = copy, None
            migrations.apply(copy)
        elif write:
            for pragma in ("foreign_keys", "secure_delete"):
                self.execute(f"PRAGMA {pragma}=ON")
            self.execute("PRAGMA trusted_schema=ON")  # it is ours: triggers keep the full text
            # VACUUM writes all text to a temporary file, which must not lie anywhere else
            folder = str(self.path.absolute().parent).replace("'", "''")
            self.execute(f"PRAGMA temp_store_directory='{folder}'")
            self.execute("PRAGMA journal_mode=WAL")
            migrations.apply(self.conn)
        else:
            self.execute("PRAGMA query_only=ON")

    def close(self) -> None:
        self.conn.close()
        if self._held:
            pages.release(self._held)
            self._held = None

    def execute(
        self, statement: str, parameters: Sequence | Mapping[str, object] = ()
    ) -> sqlite3.Cursor:
        return self.conn.execute(statement, parameters)

    def column(self, statement: str, parameters: Sequence = ()) -> list[Any]:
        """Return the first value of every row."""
        return [row[0] for row in self.conn.execute(statement, parameters)]

    def value(self, statement: str, parameters: Sequence = ()) -> Any:
        """Return the first value of the first row; None without rows."""
        row = self.conn.execute(statement, parameters).fetchone()
        return row and row[0]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything inside, on the disk at the end, or nothing of it."""
        with self.lock, self.errors_translated():
            with committed(self.conn):
                self.begins()
                yield
                self.ends()
                files.at_step("committing")
            files.at_step("committed")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let everything inside see one commit, whatever others write meanwhile.

        Inside of another snapshot or a transaction it is part of that.
        """
        with self.lock, self.errors_translated():
            if self.conn.in_transaction:
                yield
            else:
                if self._read_as and self._read_as != self._state():
                    self.conn.close()
                    self._connect()
                with committed(self.conn, "BEGIN"):
                    yield

    def empty_log(self) -> bool:
        """Move the log into the database file; False if a reader keeps it from being emptied.

        Call it outside of transactions. It does not wait.
        """
        with self.lock, self.errors_translated():
            self.execute("PRAGMA busy_timeout=0")
            try:
                return not self.value("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.OperationalError:  # a reader is active at this very moment
                return False
            finally:
                self.execute(f"PRAGMA busy_timeout={int(1000 * BUSY_SECONDS)}")

    def clear_gaps(self) -> None:
        """Overwrite what is left of deleted rows between others. The log must be empty."""
        with self.lock, self.errors_translated():
            pages.clear_gaps(self.path)
            self.execute("PRAGMA shrink_memory")  # of pages as they were

    def errors_translated(self) -> AbstractContextManager[None]:
        """Raise SQLite's errors as StoreError that names the file and what to do."""
        return errors_translated(self.path)

    def damaged(self, what: str) -> StoreError:
        return damaged(self.path, what)


def _connected(name: str, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(
        name,
        uri=uri,
        isolation_level=None,
        check_same_thread=False,  # the lock serialises
        timeout=BUSY_SECONDS,
    )


def damaged(path: Path, what: str) -> StoreError:
    return StoreError(
        f"{path}: {what}. Restore it from a backup, or remove the store's folder and memorize the "
        f"documents again."
    )


@contextmanager
def errors_translated(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as StoreError that names the file and what to do."""
    try:
        yield
    except sqlite3.ProgrammingError:  # a mistake of the caller, such as use after close
        raise
    except UnicodeEncodeError as error:  # whose text may be the document's
        raise StoreError(
            f"{path}: a text cannot be stored, it is not valid Unicode. Save its file as UTF-8."
        ) from error
    except (sqlite3.Error, UnicodeDecodeError) as error:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            what = "another process holds it. Wait until it has finished, then try again."
        elif name.startswith("SQLITE_CANTOPEN"):
            what = (
                "it cannot be opened. Allow it, or close other files and programs, then try again."
            )
        elif name.startswith(("SQLITE_FULL", "SQLITE_READONLY")):
            what = "it cannot be written. Make room or allow writing, then try again."
        elif name.startswith("SQLITE_IOERR"):
            what = "the disk does not answer as it should. Check it, then try again."
        else:
            raise damaged(path, f"it is damaged or not a catalog ({error})") from error
        raise StoreError(f"{path}: {what} ({error})") from error
