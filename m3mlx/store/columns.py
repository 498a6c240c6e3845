"""What an encrypted catalog says of documents and references, each bound to its row."""

from __future__ import annotations

import json
from typing import Any, AnyStr

from ..errors import StoreError
from .cipher import PLAIN, Cipher, Plain, Tampered
from .database import Connection

_TYPES = [str, str, int, str, str]  # of what is said of a document
ABOUT = "document.id, path, hash, size, added, tokenizer, sealed"  # see ``Columns.about``


class Columns:
    """Encrypts and decrypts the columns of one catalog; does nothing until it is unlocked.

    Attributes:
        cipher: that of the store.
    """

    def __init__(self, db: Connection):
        self._db = db
        self.cipher: Cipher | Plain = PLAIN

    def name(self, stored: str) -> str:
        """Decrypt a path or hash, as it is looked up."""
        try:
            return self.cipher.decrypt_name(stored)
        except Tampered as error:
            raise self._db.damaged("a name is not what was encrypted") from error

    def about(self, id: int, *columns: Any) -> list[Any]:
        """What is said of a document: path, hash, size, added and tokenizer."""
        *about, sealed = columns
        if self.cipher.encrypts:
            try:
                about = list(json.loads(self.cipher.decrypt(sealed, "document", id)))
            except (Tampered, TypeError, ValueError) as error:
                raise self._db.damaged(f"document {id} is not what was encrypted") from error
        if list(map(type, about)) != _TYPES:
            raise self._db.damaged(f"what it says of document {id} is nothing that is ever written")
        return about

    def about_of(self, document: int) -> list[Any]:
        """Path, hash, size, time of adding and tokenizer of a document."""
        statement = f"SELECT {ABOUT} FROM document WHERE id = ?"
        row = self._db.execute(statement, [document]).fetchone()
        if row is None:
            what = f"it has references of document {document}, which it does not have"
            raise self._db.damaged(what)
        return self.about(*row)

    def path_of(self, document: int) -> str | None:
        """Path of a document, also where it alone can be read; None where it cannot."""
        try:
            return str(self.about_of(document)[0])
        except StoreError:
            path = self._db.value("SELECT path FROM document WHERE id = ?", [document])
            return path if isinstance(path, str) and not self.cipher.encrypts else None

    def describe(self, document: int, path: str, hash: str) -> None:
        """Give a document this path and hash, and values of the right types."""
        try:
            rest = self.about_of(document)[2:]
        except StoreError:
            statement = "SELECT size, added, tokenizer FROM document WHERE id = ?"
            found = self._db.execute(statement, [document]).fetchone()
            rest = [v if type(v) is t else t() for v, t in zip(found, _TYPES[2:], strict=True)]
        self.put(document, path, hash, *rest)

    def put(self, id: int, path: str, hash: str, *rest: Any) -> None:
        """Give a document path, hash, size, time of adding and tokenizer."""
        encrypted = self.cipher.encrypts
        about = json.dumps([path, hash, *rest])
        names = [self.cipher.encrypt_name(name) for name in (path, hash)]
        self._db.execute(
            "UPDATE document SET path = ?, hash = ?, size = ?, added = ?, tokenizer = ?, "
            "sealed = ? WHERE id = ?",
            [*names, *rest, self.cipher.encrypt(about, "document", id) if encrypted else "", id],
        )

    def collection(self, document: int, stored: str | None) -> str:
        """Decrypt the name of a document's collection; "" for none."""
        return self.decrypt(stored, "collection", document) if stored else ""

    def decrypt(self, stored: AnyStr, column: str, document: int, *place: int) -> AnyStr:
        """Decrypt a column of a document, or of the reference with this ordinal and place."""
        try:
            return self.cipher.decrypt(stored, column, document, *place)
        except Tampered as error:
            raise StoreError(
                f"{self._db.path}: {column} of document {document} is not what was encrypted. "
                f"Forget that document and memorize it again."
            ) from error
