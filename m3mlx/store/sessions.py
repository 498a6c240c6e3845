"""Conversations that are kept beside the documents, in a file of their own.

Any chat may add to them, also while another process writes to the store. In an encrypted
store names and words are encrypted like those of documents. What is deleted is overwritten.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..files import is_writable, os_errors_as_store_errors
from . import pages
from .cipher import PLAIN, Cipher, Plain, Tampered
from .database import committed, integrity_errors
from .migrations import objects

FILE = "sessions.sqlite"
TYPED = "typed"  # the lines that were typed in chats, for line editing; never of encrypted stores
CONVERSATION = "chat:"  # before the name of a session that is a document too
_FORMAT = 2  # user_version of the file; 1 had no details
_BUSY_SECONDS = 10
_PRAGMAS = ("secure_delete=ON", "foreign_keys=ON", "fullfsync=ON", "synchronous=FULL")
_SCHEMA = (
    """CREATE TABLE session (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, begun TEXT NOT NULL)""",
    """CREATE TABLE message (
        session INTEGER NOT NULL REFERENCES session (id) ON DELETE CASCADE,
        ordinal INTEGER NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL, said TEXT NOT NULL,
        details TEXT, PRIMARY KEY (session, ordinal)) WITHOUT ROWID""",
    f"PRAGMA user_version={_FORMAT}",
)
_OBJECTS = {("table", sql.split()[2]): " ".join(sql.split()) for sql in _SCHEMA[:2]}
_OBJECTS["table", "sqlite_sequence"] = "CREATE TABLE sqlite_sequence(name,seq)"
_OBJECTS_1 = {  # of format 1
    name: sql.replace(" details TEXT,", "") for name, sql in _OBJECTS.items()
}


@dataclass(frozen=True)
class Session:
    """A conversation; times are ISO 8601 in UTC."""

    name: str
    begun: str
    last: str
    messages: int


@dataclass(frozen=True)
class Message:
    """Something that was said in a session.

    Attributes:
        number: counts from 1.
        said: when, ISO 8601 in UTC.
        details: what the server's page keeps with an answer, such as its sources; JSON-able.
    """

    session: str
    number: int
    role: str
    content: str
    said: str
    details: dict[str, Any] | None = None


class Sessions:
    """The sessions of one store.

    Args:
        store: its folder.
        cipher: that of an encrypted store.

    Raises:
        StoreError: the file is damaged, foreign or of another version.
    """

    def __init__(self, store: Path, cipher: Cipher | Plain = PLAIN):
        self.path, self._cipher = store / FILE, cipher
        with os_errors_as_store_errors(store):
            name = self._database()
            self._held = pages.hold(self.path) if self.path.exists() else None
        try:
            with self._errors_translated():
                self._db = sqlite3.connect(
                    name, uri=True, isolation_level=None, timeout=_BUSY_SECONDS
                )
        except BaseException:
            self._release()
            raise
        try:
            with self._errors_translated():
                self._db.execute("PRAGMA trusted_schema=OFF")
                for pragma in _PRAGMAS:
                    self._db.execute(f"PRAGMA {pragma}")
                reading = not is_writable(self.path.parent) and self.path.exists()
                with committed(self._db, "BEGIN" if reading else "BEGIN IMMEDIATE"):
                    (version,) = self._db.execute("PRAGMA user_version").fetchone()
                    if version == 0:
                        for statement in _SCHEMA:
                            self._db.execute(statement)
                    elif version == 1 and not reading:
                        self._db.execute("ALTER TABLE message ADD COLUMN details TEXT")
                        self._db.execute(f"PRAGMA user_version={_FORMAT}")
                    elif version not in (1, _FORMAT):
                        raise StoreError(f"{self.path}: it was made by a newer m3mlx. Upgrade.")
                    old = version == 1 and reading
                    self._details = "NULL" if old else "details"
                    if objects(self._db) != (_OBJECTS_1 if old else _OBJECTS):
                        raise sqlite3.DatabaseError("its tables are not those of m3mlx")
        except BaseException:
            self.close()
            raise

    def _database(self) -> str:
        """What SQLite is to open: the file, made if there is none, or what stands for it."""
        if is_writable(self.path.parent):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            return self.path.absolute().as_uri()
        return f"{self.path.absolute().as_uri()}?mode=ro" if self.path.exists() else ":memory:"

    def __enter__(self) -> Sessions:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()
        self._release()

    def _release(self) -> None:
        if self._held:
            pages.release(self._held)
            self._held = None

    def add(self, name: str, messages: Sequence[Mapping[str, Any]]) -> None:
        """Append messages to a session; a new one if there is none.

        Args:
            messages: each with role, content and perhaps details.
        """
        with self._errors_translated(), committed(self._db):
            self._db.execute(
                "INSERT OR IGNORE INTO session (name, begun) VALUES (?, ?)",
                [self._cipher.encrypt_name(name), _now()],
            )
            self._append(*self._found(name), messages)

    def replace(
        self, name: str, first: int, messages: Sequence[Mapping[str, Any]], *, expected: int
    ) -> int | None:
        """Replace the messages of a session behind its first ones.

        Args:
            first: number of messages that stay.
            messages: as for ``add``.
            expected: number of messages that the session has; if it has others by now, nothing is
                changed.

        Returns:
            Number of messages before; None if there is no such session.
        """
        with self._errors_translated(), committed(self._db):
            id, count = self._found(name)
            if id is not None and count == expected and first <= count:
                self._db.execute(
                    "DELETE FROM message WHERE session = ? AND ordinal >= ?", [id, first]
                )
                self._append(id, first, messages)
        return None if id is None else count

    def rename(self, name: str, new: str) -> bool:
        """Rename a session; return whether there was one.

        Raises:
            StoreError: another has the new name.
        """
        with self._errors_translated(), committed(self._db):
            id, _ = self._found(name)
            if self._found(new)[0] not in (None, id):
                raise StoreError(f"{self.path}: there is a conversation {new} already")
            self._db.execute(
                "UPDATE session SET name = ? WHERE id = ?", [self._cipher.encrypt_name(new), id]
            )
        return id is not None

    def _found(self, name: str) -> tuple[int | None, int]:
        """Id and number of messages of a session; None and 0 if there is none."""
        row = self._db.execute(
            "SELECT id, (SELECT count(*) FROM message WHERE session = id) FROM session "
            "WHERE name = ?",
            [self._cipher.encrypt_name(name)],
        ).fetchone()
        return row or (None, 0)

    def _append(self, id: int | None, first: int, messages: Sequence[Mapping[str, Any]]) -> None:
        for ordinal, message in enumerate(messages, first):
            role, details = message["role"], message.get("details")
            content = message["content"].encode("utf-8", "replace").decode()  # half characters
            content = self._cipher.encrypt(content, "message", id, ordinal, role)
            if details is not None:
                details = self._cipher.encrypt(json.dumps(details), "details", id, ordinal, role)
            self._db.execute(
                "INSERT INTO message VALUES (?, ?, ?, ?, ?, ?)",
                [id, ordinal, role, content, _now(), details],
            )

    def list(self) -> Sequence[Session]:
        """All sessions, the one that was last added to at the end."""
        with self._errors_translated():
            rows = self._db.execute(
                "SELECT name, begun, max(said), count(said) FROM session LEFT JOIN message "
                "ON session = id GROUP BY id ORDER BY max(said), id"
            ).fetchall()
            return [
                Session(self._cipher.decrypt_name(name), begun, last or begun, count)
                for name, begun, last, count in rows
            ]

    def messages(self, name: str | None = None) -> Sequence[Message]:
        """The messages of one session, or of all, in order."""
        with self._errors_translated():
            rows = self._db.execute(
                f"SELECT id, name, ordinal, role, content, said, {self._details} FROM message "
                "JOIN session ON session = id WHERE name = ?1 OR ?1 IS NULL ORDER BY id, ordinal",
                [None if name is None else self._cipher.encrypt_name(name)],
            ).fetchall()
            return [
                Message(
                    session=self._cipher.decrypt_name(stored),
                    number=ordinal + 1,
                    role=role,
                    content=self._cipher.decrypt(content, "message", id, ordinal, role),
                    said=said,
                    details=details
                    and json.loads(self._cipher.decrypt(details, "details", id, ordinal, role)),
                )
                for id, stored, ordinal, role, content, said, details in rows
            ]

    def search(self, words: str) -> Sequence[Message]:
        """Messages that contain all of some words, whatever their case."""
        wanted = words.casefold().split()
        return [
            message
            for message in self.messages()
            if all(word in message.content.casefold() for word in wanted)
        ]

    def delete(self, name: str) -> bool:
        """Erase a session, and the lines typed in all of them; return whether there was one."""
        with os_errors_as_store_errors(self.path):
            (self.path.parent / TYPED).unlink(missing_ok=True)
        with self._errors_translated(), committed(self._db):
            stored = self._cipher.encrypt_name(name)
            gone = self._db.execute("DELETE FROM session WHERE name = ?", [stored]).rowcount
        return bool(gone)

    def errors(self) -> Iterator[str]:
        """Yield what is damaged; all of the file is read, and every message."""
        with self._errors_translated():
            yield from integrity_errors(self._db)
        self.messages()

    @contextmanager
    def _errors_translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:  # a mistake of the caller
            raise
        except Tampered as error:
            raise StoreError(
                f"{self.path}: a conversation is not what was encrypted. Restore the file from a "
                f"backup, or remove it."
            ) from error
        except sqlite3.Error as error:
            raise StoreError(
                f"{self.path}: the conversations cannot be read or written ({error}). Restore the "
                f"file from a backup, or remove it."
            ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
