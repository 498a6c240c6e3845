"""The columns that an encrypted store keeps sealed, and its full text, which is in memory only.

Paths, content hashes, texts, token ids and vectors are sealed. Full text on the disk would list
the words of all documents, so such a store has none: it is made in memory, from the texts, when
it is first asked for. In a store that is not encrypted everything passes through as it is.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

from sqlite_utils import Database

from ..errors import StoreError
from .cipher import Cipher, Passphrase, Tampered, unlock
from .database import Connection
from .migrations import TOKENIZER
from .rows import Edition

MOST_WORDS = 20_000  # references whose full text is made in memory, in a second or two
_VISIBLE = "document IN (SELECT id FROM document WHERE complete) AND NOT quarantined"
_SHOWN = (
    "rowid NOT IN (SELECT slot FROM reference WHERE document IN "
    "(SELECT id FROM document WHERE NOT complete)) "
    "AND rowid NOT IN (SELECT slot FROM reference WHERE quarantined)"
)


class Sealed(Connection):
    """A database some of whose columns may be encrypted.

    Attributes:
        cipher: the keys of an encrypted store; None for any other, and until it is unlocked.
    """

    cipher: Cipher | None = None
    # full text in memory, with the commit that it belongs to
    _words: tuple[str, sqlite3.Connection | None] | None = None

    @classmethod
    def create(
        cls, path: Path, settings: Mapping[str, object], editions: Iterable[Edition] = ()
    ) -> None:
        """See ``Connection.create``. With the setting ``cipher`` there is no full text."""
        statements = ()
        if settings.get("cipher"):
            triggers = ("DROP TRIGGER reference_added", "DROP TRIGGER reference_removed")
            statements = (*triggers, "DROP TABLE words")
        super().create(path, settings, editions, statements)

    def unlock(self, passphrase: Passphrase | None) -> None:
        """Take the keys, if the store is encrypted.

        Raises:
            LockedError: the passphrase is missing or wrong.
            StoreError: the setting that has the wrapped key is damaged.
        """
        with self.snapshot():
            rows = self.db.execute(
                "SELECT name, value FROM setting WHERE name IN ('id', 'cipher')"
            ).fetchall()
            sealed = self.db.execute("SELECT 1 FROM edition WHERE overhead").fetchone()
        try:
            settings = {name: json.loads(value) for name, value in rows}
        except (TypeError, ValueError) as error:
            raise self.damaged(f"a setting cannot be read ({error})") from error
        if locked := settings.get("cipher"):
            store = str(settings.get("id"))
            self.cipher = unlock(self.path.parent, store, locked, passphrase)
        elif sealed:
            raise self.damaged("it is encrypted, and its key is gone")

    def stored_name(self, name: str) -> str:
        return self.cipher.seal_name(name) if self.cipher else name

    def name(self, stored: str) -> str:
        if not self.cipher:
            return stored
        try:
            return self.cipher.open_name(stored)
        except Tampered as error:
            raise self.damaged("a name is not what was encrypted") from error

    def sealed(
        self, owner: tuple[int, int], text: str, tokens: bytes, vector: bytes
    ) -> tuple[str, bytes, bytes]:
        """Values as they are stored. ``owner`` is document and position of the reference."""
        if not self.cipher:
            return text, tokens, vector
        return (
            self.cipher.seal_text(text, "text", *owner),
            self.cipher.seal(tokens, "tokens", *owner),
            self.cipher.seal(vector, "vector", *owner),
        )

    def opened(
        self, owner: tuple[int, int], text: str, tokens: bytes, vector: bytes
    ) -> tuple[str, bytes, bytes]:
        """Values as they were given."""
        if not self.cipher:
            return text, tokens, vector
        try:
            tokens = self.cipher.open(tokens, "tokens", *owner)
        except Tampered as error:
            raise self._tampered(owner) from error
        return self._text(owner, text), tokens, self.opened_vector(owner, vector)

    def opened_vector(self, owner: tuple[int, int], vector: bytes) -> bytes:
        if not self.cipher:
            return vector
        try:
            return self.cipher.open(vector, "vector", *owner)
        except Tampered as error:
            raise self._tampered(owner) from error

    def _tampered(self, owner: tuple[int, int]) -> StoreError:
        return StoreError(
            f"{self.path}: reference {owner[1]} of document {owner[0]} is not what was encrypted. "
            f"Forget that document and memorize it again."
        )

    def full_text(self) -> tuple[Database | sqlite3.Connection, str] | None:
        """A database whose table ``words`` has the full text, and which of its rows may be found.

        None if the store is encrypted and too large. Full text in memory is made again after
        each commit that changes what searches find.
        """
        if not self.cipher:
            return self.db, _SHOWN
        (commit,) = self.db.execute("SELECT value FROM setting WHERE name = 'commit'").fetchone()
        if self._words is None or self._words[0] != commit:
            self._words = commit, self._made_words()
        return self._words[1] and (self._words[1], "1")

    def _made_words(self) -> sqlite3.Connection | None:
        (count,) = self.db.execute(f"SELECT count(*) FROM reference WHERE {_VISIBLE}").fetchone()
        if count > MOST_WORDS:
            return None
        made = sqlite3.connect(":memory:", check_same_thread=False)
        made.execute(
            f"CREATE VIRTUAL TABLE words USING fts5 (text, content='', tokenize='{TOKENIZER}')"
        )
        rows = self.db.execute(
            f"SELECT slot, document, ordinal, text FROM reference WHERE {_VISIBLE}"
        )
        made.executemany(
            "INSERT INTO words (rowid, text) VALUES (?, ?)",
            ((slot, self._text((document, place), text)) for slot, document, place, text in rows),
        )
        return made

    def _text(self, owner: tuple[int, int], stored: str) -> str:
        try:
            return self.cipher.open_text(stored, "text", *owner)
        except Tampered as error:
            raise self._tampered(owner) from error
