"""Conversations that are kept beside the documents, in a file of their own.

Whoever chats may add to them, also while another process writes to the store. In an encrypted
store names and words are encrypted like those of documents. What is deleted is overwritten.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..errors import StoreError
from ..files import os_errors_as_store_errors
from .cipher import Cipher, Tampered

FILE = "sessions.sqlite"
CONVERSATION = "chat:"  # before the name of a session that is a document too
_FORMAT = 1  # user_version of the file
_BUSY_SECONDS = 10
_SCHEMA = (
    """CREATE TABLE session (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, begun TEXT NOT NULL)""",
    """CREATE TABLE message (
        session INTEGER NOT NULL REFERENCES session (id) ON DELETE CASCADE,
        ordinal INTEGER NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL, said TEXT NOT NULL,
        PRIMARY KEY (session, ordinal)) WITHOUT ROWID""",
    f"PRAGMA user_version={_FORMAT}",
)


@dataclass(frozen=True)
class Session:
    """A conversation; times are ISO 8601 in UTC."""

    name: str
    begun: str
    last: str
    messages: int


@dataclass(frozen=True)
class Message:
    """Something that was said in a session; ``number`` counts from 1."""

    session: str
    number: int
    role: str
    content: str
    said: str


class Sessions:
    """The sessions of one store.

    Args:
        store: its folder.
        cipher: keys of an encrypted store.

    Raises:
        StoreError: the file is damaged, foreign or of another version.
    """

    def __init__(self, store: Path, cipher: Cipher | None):
        self.path, self._cipher = store / FILE, cipher
        with os_errors_as_store_errors(store):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        self._db = sqlite3.connect(self.path, isolation_level=None, timeout=_BUSY_SECONDS)
        try:
            with self._translated():
                for pragma in ("secure_delete=ON", "foreign_keys=ON", "fullfsync=ON"):
                    self._db.execute(f"PRAGMA {pragma}")
                with self._transaction():
                    (version,) = self._db.execute("PRAGMA user_version").fetchone()
                    if version == 0:
                        for statement in _SCHEMA:
                            self._db.execute(statement)
                    elif version != _FORMAT:
                        raise StoreError(f"{self.path}: it was made by a newer m3mlx. Upgrade.")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Sessions:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def add(self, name: str, messages: Sequence[Mapping[str, str]]) -> None:
        """Append messages, as role and content, to a session; a new one if there is none."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._translated(), self._transaction():
            stored = self._sealed_name(name)
            self._db.execute(
                "INSERT OR IGNORE INTO session (name, begun) VALUES (?, ?)", [stored, now]
            )
            id, first = self._db.execute(
                "SELECT id, (SELECT count(*) FROM message WHERE session = id) FROM session "
                "WHERE name = ?",
                [stored],
            ).fetchone()
            for ordinal, message in enumerate(messages, first):
                role, content = message["role"], message["content"]
                content = content.encode("utf-8", "replace").decode()  # halves of characters
                sealed = self._sealed(content, id, ordinal, role)
                self._db.execute(
                    "INSERT INTO message VALUES (?, ?, ?, ?, ?)", [id, ordinal, role, sealed, now]
                )

    def list(self) -> list[Session]:
        """All sessions, the one that was last spoken in at the end."""
        with self._translated():
            rows = self._db.execute(
                "SELECT name, begun, max(said), count(said) FROM session LEFT JOIN message "
                "ON session = id GROUP BY id ORDER BY max(said), id"
            ).fetchall()
        return [
            Session(self._name(name), begun, last or begun, count)
            for name, begun, last, count in rows
        ]

    def messages(self, name: str | None = None) -> list[Message]:
        """What was said in one session, or in all, in order."""
        with self._translated():
            rows = self._db.execute(
                "SELECT id, name, ordinal, role, content, said FROM message JOIN session "
                "ON session = id WHERE name = ?1 OR ?1 IS NULL ORDER BY id, ordinal",
                [None if name is None else self._sealed_name(name)],
            ).fetchall()
        return [
            Message(
                *(self._name(stored), ordinal + 1, role),
                self._opened(content, id, ordinal, role),
                said,
            )
            for id, stored, ordinal, role, content, said in rows
        ]

    def search(self, words: str) -> list[Message]:
        """Messages in which all of some words stand, whatever their case."""
        wanted = words.casefold().split()
        found = []
        for message in self.messages():
            content = message.content.casefold()
            if all(word in content for word in wanted):
                found.append(message)
        return found

    def delete(self, name: str) -> bool:
        """Erase a session; whether there was one."""
        with self._translated(), self._transaction():
            stored = self._sealed_name(name)
            gone = self._db.execute("DELETE FROM session WHERE name = ?", [stored]).rowcount
        return bool(gone)

    def complaints(self) -> Iterator[str]:
        """What is damaged; all of the file is read, and every message."""
        with self._translated():
            for (line,) in self._db.execute("PRAGMA integrity_check"):
                if line != "ok":
                    yield str(line)
            if self._db.execute("PRAGMA foreign_key_check").fetchone():
                yield "a message belongs to no session"
        self.messages()

    # what is encrypted

    def _sealed_name(self, name: str) -> str:
        return self._cipher.seal_name(name) if self._cipher else name

    def _name(self, stored: str) -> str:
        try:
            return self._cipher.open_name(stored) if self._cipher else stored
        except Tampered as error:
            raise self._tampered() from error

    def _sealed(self, content: str, *place: object) -> str:
        return self._cipher.seal_text(content, "message", *place) if self._cipher else content

    def _opened(self, stored: str, *place: object) -> str:
        try:
            return self._cipher.open_text(stored, "message", *place) if self._cipher else stored
        except Tampered as error:
            raise self._tampered() from error

    def _tampered(self) -> StoreError:
        return StoreError(
            f"{self.path}: a conversation is not what was encrypted. Restore the file from a "
            f"backup, or remove it."
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:  # a mistake of the caller
            raise
        except sqlite3.Error as error:
            raise StoreError(
                f"{self.path}: the conversations cannot be read or written ({error}). Restore the "
                f"file from a backup, or remove it."
            ) from error
